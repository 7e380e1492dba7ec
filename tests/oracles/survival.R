# The answers of R's survival package to survival.csv, written to survival_r.json.
# Run once, in this folder, after survival.py: Rscript survival.R     (Debian: apt-get install r-base-core r-cran-survival r-cran-jsonlite)
suppressPackageStartupMessages({library(survival); library(jsonlite)})
rows <- read.csv("survival.csv")
answers <- fromJSON("survival.json", simplifyVector = FALSE)$cases
c_of <- function(d, ...) {
  fit <- concordance(Surv(time, event) ~ risk, data = d, reverse = TRUE, timefix = FALSE, ...)
  list(c = as.numeric(fit$concordance), count = as.numeric(fit$count))
}
curve <- function(time, event) {
  fit <- survfit(Surv(time, event) ~ 1, timefix = FALSE)
  list(time = fit$time, surv = fit$surv)
}

by_case <- lapply(split(rows, rows$case), function(d) {
  test <- d[d$part == "test", ]
  train <- d[d$part == "train", ]
  found <- list(harrell = c_of(test), survival = curve(test$time, test$event), censoring = curve(test$time, 1 - test$event))
  if (nrow(train) == 0) return(found)
  known <- answers[[test$case[1]]]
  # R weights by G just before a time, scikit-survival by G at it: the same unless a case is censored at the time of an event
  tied <- length(intersect(test$time[test$event == 1], test$time[test$event == 0])) > 0
  found$uno <- if (!tied) c_of(test, timewt = "n/G2")
  found$uno_tau <- if (!tied) c_of(test, timewt = "n/G2", ymax = known$tau * (1 - 1e-12))
  control <- coxph.control(eps = 1e-15, iter.max = 100, toler.chol = 1e-16, timefix = FALSE)
  cox <- coxph(Surv(time, event) ~ risk, data = train, ties = "breslow", control = control)
  curves <- survfit(cox, newdata = test[1:5, ])
  found$cox <- list(slope = as.numeric(coef(cox)), survival = t(summary(curves, times = unlist(known$times), extend = TRUE)$surv))
  found
})

i <- 0:99999
time <- 1 + ((i * 7919) %% 100003) %% 3000
large <- data.frame(time = time, event = as.integer((i * 31) %% 10 < 4), risk = ((i * 104729) %% 100003) %/% 25 - time)
text <- toJSON(list(made_by = list(R = R.version.string, survival = as.character(packageVersion("survival"))), cases = by_case, large = c_of(large)),
               auto_unbox = TRUE, digits = NA, null = "null")
writeLines(gsub(',"', ',\n"', text, fixed = TRUE), "survival_r.json")
