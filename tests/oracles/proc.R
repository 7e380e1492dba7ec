# The answers of R's pROC and base R to scores.csv and edge_cases.csv, written to proc.json.
# Run once, in this folder: Rscript proc.R     (Debian: apt-get install r-base-core r-cran-proc r-cran-jsonlite)
suppressPackageStartupMessages({library(pROC); library(jsonlite)})
set.seed(1)
N_BOOT <- 5000
scores <- read.csv("scores.csv")
models <- c("image", "table", "fusion")
curve <- function(y, s) roc(y, s, levels = c(0, 1), direction = "<", quiet = TRUE)
at <- function(r, se) coords(r, se, input = "sensitivity", ret = "specificity")[1, 1]
rocs <- lapply(setNames(models, models), function(m) curve(scores$y_true, scores[[m]]))

by_model <- lapply(rocs, function(r) list(
  auc = as.numeric(auc(r)),
  delong_ci = as.numeric(ci.auc(r, method = "delong")),
  bootstrap_ci = as.numeric(ci.auc(r, method = "bootstrap", boot.n = N_BOOT, boot.stratified = TRUE, progress = "none")),
  specificity_at_95 = at(r, 0.95), specificity_at_80 = at(r, 0.80),
  specificity_at_95_bootstrap = as.numeric(ci.sp(r, sensitivities = 0.95, boot.n = N_BOOT, boot.stratified = TRUE, progress = "none"))))

pairs <- combn(models, 2, simplify = FALSE)
tests <- lapply(pairs, function(p) {
  b <- roc.test(rocs[[p[1]]], rocs[[p[2]]], method = "bootstrap", paired = TRUE, boot.n = N_BOOT, boot.stratified = TRUE, progress = "none")
  d <- roc.test(rocs[[p[1]]], rocs[[p[2]]], method = "delong", paired = TRUE)
  list(model_a = p[1], model_b = p[2], bootstrap_z = as.numeric(b$statistic), bootstrap_p = b$p.value,
       delong_z = as.numeric(d$statistic), delong_p = d$p.value)
})

edge <- read.csv("edge_cases.csv")
by_case <- lapply(split(edge, edge$case), function(d) {
  r <- curve(d$y_true, d$score)
  list(auc = as.numeric(auc(r)), points = data.frame(sensitivity = r$sensitivities, specificity = r$specificities))
})

p <- c(0.001, 0.02, 0.03, 0.04, 0.6)
write_json(list(
  made_by = list(R = R.version.string, pROC = as.character(packageVersion("pROC")), resamples = N_BOOT),
  models = by_model, tests = tests, edge_cases = by_case,
  p_adjust = list(p = p, holm = p.adjust(p, "holm"), BH = p.adjust(p, "BH")),
  quantile7 = list(x = c(3, 1, 4, 1.5, 9), q = as.numeric(quantile(c(3, 1, 4, 1.5, 9), c(.025, .5, .975), type = 7)))
), "proc.json", auto_unbox = TRUE, digits = NA, pretty = TRUE)
