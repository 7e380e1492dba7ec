# Permutation of ranks, McNemar, Tango, Nadeau and Bengio, and non-inferiority, by hand in base R (AUC by pROC), written to paired_tests.json.
# Run once, in this folder: Rscript paired_tests.R     (Debian: apt-get install r-base-core r-cran-proc r-cran-jsonlite)
suppressPackageStartupMessages({library(pROC); library(jsonlite)})
set.seed(1)
area <- function(y, s) as.numeric(auc(roc(y, s, levels = c(0, 1), direction = "<", quiet = TRUE)))

# every exchange of eight cases, of four patients too; ties within and between the models
y <- c(0, 0, 0, 0, 1, 1, 1, 1); patient <- c(1, 2, 2, 3, 1, 3, 4, 4)
a <- c(.1, .2, .3, .4, .4, .6, .7, .8); b <- c(.93, .98, .94, .95, .92, .96, .95, .97)
exchanges <- function(a, b, unit) {
  swaps <- as.matrix(expand.grid(rep(list(c(FALSE, TRUE)), max(unit))))
  d <- apply(swaps, 1, function(s) area(y, ifelse(s[unit], b, a)) - area(y, ifelse(s[unit], a, b)))
  list(difference = d[1], p = mean(abs(d) >= abs(d[1]) - 1e-12))
}
small <- list(ranks = exchanges(rank(a), rank(b), 1:8), ranks_by_patient = exchanges(rank(a), rank(b), patient), raw = exchanges(a, b, 1:8))

# random exchanges within the patients of scores.csv
scores <- read.csv("scores.csv")
pairs <- scores$y_true == 1
quick <- function(s) { r <- rank(s); (sum(r[pairs]) - sum(pairs) * (sum(pairs) + 1) / 2) / (sum(pairs) * sum(!pairs)) }
unit <- as.integer(factor(scores$patient))
N <- 10000
by_chance <- function(a, b) {
  d <- replicate(N, { s <- (runif(max(unit)) < .5)[unit]; quick(ifelse(s, b, a)) - quick(ifelse(s, a, b)) })
  list(difference = quick(a) - quick(b), sd = sd(d), p = (1 + sum(abs(d) >= abs(quick(a) - quick(b)) - 1e-12)) / (1 + N))
}
large <- list(n = N, ranks = by_chance(rank(scores$image), rank(scores$table)), raw = by_chance(scores$image, scores$table))

# McNemar, and Tango's limits from the likelihood under each difference, maximised by its derivative
tango <- function(b, c, n, z) {
  statistic <- function(d) {
    part <- function(count, share) if (count == 0) 0 else count / share
    slope <- function(p) part(b, p + d) + part(c, p) - 2 * part(n - b - c, 1 - 2 * p - d)
    ends <- c(max(0, -d), (1 - d) / 2)
    inner <- ends + c(1, -1) * 1e-15 * diff(ends)
    p <- if (slope(inner[1]) <= 0) ends[1] else if (slope(inner[2]) >= 0) ends[2] else uniroot(slope, inner, tol = 1e-16)$root
    (b - c - n * d) / sqrt(n * (2 * p + d * (1 - d)))
  }
  here <- (b - c) / n; e <- 1e-10
  c(if (here == -1) -1 else uniroot(function(d) statistic(d) - z, c(-1 + e, here - e), tol = 1e-14)$root,
    if (here == 1) 1 else uniroot(function(d) statistic(d) + z, c(here + e, 1 - e), tol = 1e-14)$root)
}
mcnemar <- function(b, c, n) {
  exact <- if (b + c > 0) binom.test(b, b + c)$p.value else 1
  list(b = b, c = c, n = n, exact = exact, mid = 2 * pbinom(min(b, c), b + c, .5) - dbinom(min(b, c), b + c, .5),
       z = if (b + c > 0) sign(b - c) * sqrt(unname(mcnemar.test(matrix(c(n - b - c, c, b, 0), 2), correct = FALSE)$statistic)) else 0,
       tango = tango(b, c, n, qnorm(.975)))
}
right <- sapply(c("image", "table"), function(m) (scores[[m]] >= .5) == (scores$y_true == 1))
tables <- list(c(sum(right[, 1] & !right[, 2]), sum(right[, 2] & !right[, 1]), nrow(scores)),
               c(1, 7, 21), c(6, 16, 161), c(40, 20, 160), c(3, 3, 50), c(0, 0, 30), c(0, 4, 9), c(5, 0, 5), c(0, 5, 5))

# Nadeau and Bengio: 5 folds, 4 times
d <- round(rnorm(20, .02, .03), 6); share <- .2
error <- sqrt((1 / 20 + share / (1 - share)) * var(d)); t <- mean(d) / error
resampled_t <- list(differences = d, difference = mean(d), t = t, p = 2 * pt(-abs(t), 19), limits = mean(d) + c(-1, 1) * qt(.975, 19) * error)

# non-inferiority from given resamples of two models
new <- round(rnorm(400, .845, .02), 6); old <- round(.6 * (new - .845) + rnorm(400, .85, .01), 6); margin <- .03
z <- (.845 - .85 + margin) / sd(new - old)
noninferior <- list(new = new, old = old, estimate = c(.845, .85), margin = margin, z = z, p = pnorm(-z), p_percentile = (1 + sum(new - old <= -margin)) / 401,
                    limits = as.numeric(quantile(new - old, c(.025, .975), type = 7)))

write_json(list(made_by = list(R = R.version.string, pROC = as.character(packageVersion("pROC"))),
                small = c(list(y = y, patient = patient, a = a, b = b), small), large = large,
                mcnemar = lapply(tables, function(x) mcnemar(x[1], x[2], x[3])), resampled_t = resampled_t, noninferior = noninferior),
           "paired_tests.json", auto_unbox = TRUE, digits = NA, pretty = TRUE)
