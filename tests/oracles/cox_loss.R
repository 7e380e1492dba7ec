# R's Cox partial likelihood of cox_loss.csv with the coefficient of the risk held at 1, written to cox_loss.json: its logarithm, its derivative
# by the coefficient, and by each patient's risk, which is the martingale residual.
# Run once, in this folder, after cox_loss.py: Rscript cox_loss.R     (Debian: apt-get install r-base-core r-cran-survival r-cran-jsonlite)
suppressPackageStartupMessages({library(survival); library(jsonlite)})
rows <- read.csv("cox_loss.csv")
rows$case <- factor(rows$case, unique(rows$case))
likelihood <- function(ties, d) {
  fit <- coxph(Surv(time, event) ~ risk, data = d, ties = ties, init = 1, control = coxph.control(iter.max = 0, timefix = FALSE))
  list(loglik = fit$loglik[1], score = sum(residuals(fit, type = "score")), residuals = as.numeric(residuals(fit, type = "martingale")))
}
by_case <- lapply(split(rows, rows$case), function(d) sapply(c("breslow", "efron"), likelihood, d = d, simplify = FALSE))
text <- toJSON(list(made_by = list(R = R.version.string, survival = as.character(packageVersion("survival"))), cases = by_case), auto_unbox = TRUE, digits = NA)
writeLines(gsub(',"', ',\n"', text, fixed = TRUE), "cox_loss.json")
