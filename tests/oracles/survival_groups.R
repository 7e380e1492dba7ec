# The answers of R's survival package to survival_groups.csv, written to survival_groups_r.json.
# Run once, in this folder, after survival_groups.py: Rscript survival_groups.R   (Debian: apt-get install r-base-core r-cran-survival r-cran-jsonlite)
suppressPackageStartupMessages({library(survival); library(jsonlite)})
rows <- read.csv("survival_groups.csv")

by_case <- lapply(split(rows, rows$case), function(d) {
  test <- d[d$part == "test", ]
  form <- if (length(unique(test$fold)) > 1) Surv(time, event) ~ risk + strata(fold) else Surv(time, event) ~ risk
  slides <- concordance(form, data = test, reverse = TRUE, timefix = FALSE, cluster = patient)
  means <- aggregate(risk ~ fold + patient + time + event, data = test, FUN = mean)
  # a mean of rounded risks must tie where theirs do
  means$risk <- round(means$risk, 9)
  patients <- concordance(form, data = means, reverse = TRUE, timefix = FALSE)
  one <- test[test$slide == 0, ]
  one$high <- as.integer(one$risk > ave(one$risk, one$fold, FUN = median))
  diff <- survdiff(Surv(time, event) ~ high, data = one)
  curve <- function(g) {
    fit <- survfit(Surv(time, event) ~ 1, data = one[one$high == g, ], conf.type = "log-log", timefix = FALSE)
    list(time = fit$time, survival = fit$surv, low = fit$lower, high = fit$upper, at_risk = fit$n.risk)
  }
  # late fusion: two risks, each in standard deviations of the val rows, a ridge of .01 beside the mean loss
  val <- d[d$part == "val" & d$fold == 0 & d$slide == 0, ]
  other <- d[d$part == "val" & d$fold == 0 & d$slide == 1, ]
  z <- cbind(val$risk / sd(val$risk), other$risk / sd(other$risk))
  cox <- coxph(Surv(val$time, val$event) ~ ridge(z, theta = .01 * nrow(val), scale = FALSE), ties = "efron",
               control = coxph.control(eps = 1e-12, iter.max = 100, toler.chol = 1e-13, timefix = FALSE))
  list(harrell = as.numeric(slides$concordance), sd = sqrt(as.numeric(slides$var)), harrell_patient = as.numeric(patients$concordance),
       chisq = diff$chisq, p = pchisq(diff$chisq, 1, lower.tail = FALSE), curves = list(low = curve(0), high = curve(1)), slopes = as.numeric(coef(cox)))
})
text <- toJSON(list(made_by = list(R = R.version.string, survival = as.character(packageVersion("survival"))), cases = by_case),
               auto_unbox = TRUE, digits = NA, null = "null", na = "null")
writeLines(gsub(',"', ',\n"', text, fixed = TRUE), "survival_groups_r.json")
