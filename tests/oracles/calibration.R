# The answers of base R to scores.csv, written to calibration.json.
# Run once, in this folder: Rscript calibration.R     (Debian: apt-get install r-base-core r-cran-jsonlite)
suppressPackageStartupMessages(library(jsonlite))
scores <- read.csv("scores.csv")
y <- scores$y_true
tight <- glm.control(epsilon = 1e-15, maxit = 100)
fit <- function(formula, data) glm(formula, family = binomial, data = data, control = tight)

of_model <- function(p) {
  d <- data.frame(y = y, x = qlogis(pmin(pmax(p, 1e-6), 1 - 1e-6)), p = p, q = p * p)  # q crosses the diagonal, p lies below it
  line <- fit(y ~ x, d)                                          # Cox's line, and Platt's
  bins <- split(d, floor(10 * (rank(p, ties.method = "min") - 1) / nrow(d)))  # of equal mass; ties.method = "min": cases strictly below
  rising <- isoreg(aggregate(y ~ p, d, mean)$p, aggregate(y ~ p, d, mean)$y)  # only where nothing ties: isoreg has no weights
  list(
    slope = unname(coef(line)[2]), platt_intercept = unname(coef(line)[1]),
    intercept = unname(coef(fit(y ~ 1 + offset(x), d))),         # calibration in the large
    temperature = 1 / unname(coef(fit(y ~ 0 + x, d))),
    brier = mean((p - y)^2),
    ece_equal_mass_of_square = sum(sapply(bins, function(b) abs(sum(b$y - b$q)))) / nrow(d),
    ece_of_square = sum(sapply(split(d, cut(d$q, 0:10 / 10, include.lowest = TRUE), drop = TRUE), function(b) abs(sum(b$y - b$q)))) / nrow(d),
    wilson = do.call(rbind, lapply(bins, function(b) c(nrow(b), mean(b$p), mean(b$y), prop.test(sum(b$y), nrow(b), correct = FALSE)$conf.int))),
    isotonic = if (any(duplicated(p))) NULL else rising$yf,
    net_benefit = sapply(c(0.1, 0.25, 0.5), function(t) mean(p >= t & y == 1) - mean(p >= t & y == 0) * t / (1 - t)))
}

write_json(list(made_by = list(R = R.version.string), thresholds = c(0.1, 0.25, 0.5),
                models = suppressWarnings(lapply(setNames(nm = c("image", "table", "fusion")), function(m) of_model(scores[[m]])))),
           "calibration.json", auto_unbox = TRUE, digits = NA, pretty = TRUE, null = "null")
