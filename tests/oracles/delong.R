# The answers of R's pROC (DeLong) and of Obuchowski's formulas, written out as double loops, to scores.csv, edge_cases.csv and to data
# that a formula of integers makes alike in R and Python. Written to delong.json. Run once, in this folder: Rscript delong.R
suppressPackageStartupMessages({library(pROC); library(jsonlite)})
curve <- function(y, s) roc(y, s, levels = c(0, 1), direction = "<", quiet = TRUE)
ci <- function(r, level = 0.95) suppressWarnings(as.numeric(ci.auc(r, method = "delong", conf.level = level)))

# Made data: whole numbers below 2^53 throughout. Scores a and b share noise, c has few values; 1 in `every` is positive.
made <- function(n, every) {
  i <- as.numeric(seq_len(n)); u <- function(a) (i * i * a + 17 * i) %% 1000003
  y <- as.numeric(u(31) %% every == 0)
  data.frame(y = y, a = (u(7919) + u(101) + 300000 * y) %/% 50, b = u(104729) + u(101) + 200000 * y, c = (u(48271) + 150000 * y) %/% 100000,
             patient = u(91193) %% (n %/% 2))
}

# DeLong by pROC: AUCs, covariance, intervals, paired tests, and the Wald chi-square of equal AUCs from pROC's cov().
delong <- function(d, models) {
  rocs <- lapply(models, function(m) curve(d$y, d[[m]]))
  k <- length(models)
  theta <- sapply(rocs, function(r) as.numeric(auc(r)))
  S <- matrix(NA, k, k)
  for (i in 1:k) for (j in 1:k) S[i, j] <- if (i == j) var(rocs[[i]], method = "delong") else cov(rocs[[i]], rocs[[j]], method = "delong")
  L <- cbind(1, -diag(k - 1))
  d_theta <- L %*% theta
  chi2 <- as.numeric(t(d_theta) %*% solve(L %*% S %*% t(L)) %*% d_theta)
  se <- sqrt(diag(S))
  logit <- lapply(1:k, function(i) plogis(qlogis(theta[i]) + qnorm(c(.025, .975)) * se[i] / (theta[i] * (1 - theta[i]))))
  tests <- combn(k, 2, simplify = FALSE, FUN = function(p) {
    t <- roc.test(rocs[[p[1]]], rocs[[p[2]]], method = "delong", paired = TRUE)
    list(model_a = models[p[1]], model_b = models[p[2]], z = as.numeric(t$statistic), p = t$p.value, ci95 = as.numeric(t$conf.int))
  })
  list(models = models, auc = theta, covariance = S, ci95 = lapply(rocs, ci), ci80 = lapply(rocs, ci, level = 0.8), logit95 = logit,
       tests = tests, omnibus = list(chi2 = chi2, df = k - 1, p = pchisq(chi2, k - 1, lower.tail = FALSE)))
}

# Obuchowski, Biometrics 1997: nothing but loops over clusters, their abnormal units j and normal units k, and all pairs for psi.
obuchowski <- function(d, models) {
  clusters <- unique(d$patient); I <- length(clusters)
  M <- sum(d$y == 1); N <- sum(d$y == 0)
  I10 <- length(unique(d$patient[d$y == 1])); I01 <- length(unique(d$patient[d$y == 0]))
  psi <- function(x, y) if (x > y) 1 else if (x == y) 0.5 else 0
  parts <- lapply(models, function(model) {
    X <- d[[model]][d$y == 1]; Y <- d[[model]][d$y == 0]
    theta <- 0
    for (x in X) for (y in Y) theta <- theta + psi(x, y) / (M * N)
    tx <- ty <- numeric(I)
    for (i in 1:I) {
      here <- d[d$patient == clusters[i], ]
      for (j in seq_len(nrow(here))) {
        s <- here[[model]][j]; v <- 0
        if (here$y[j] == 1) { for (y in Y) v <- v + psi(s, y) / N; tx[i] <- tx[i] + v - theta }
        else { for (x in X) v <- v + psi(x, s) / M; ty[i] <- ty[i] + v - theta }
      }
    }
    list(theta = theta, tx = tx, ty = ty)
  })
  k <- length(models); S <- matrix(0, k, k)
  for (r in 1:k) for (s in 1:k) {
    S10 <- I10 / ((I10 - 1) * M) * sum(parts[[r]]$tx * parts[[s]]$tx)
    S01 <- I01 / ((I01 - 1) * N) * sum(parts[[r]]$ty * parts[[s]]$ty)
    S11 <- I / (I - 1) * sum(parts[[r]]$tx * parts[[s]]$ty)
    S11t <- I / (I - 1) * sum(parts[[s]]$tx * parts[[r]]$ty)
    S[r, s] <- S10 / M + S01 / N + (S11 + S11t) / (M * N)
  }
  theta <- sapply(parts, function(p) p$theta)
  se <- sqrt(S[1, 1] + S[2, 2] - 2 * S[1, 2])
  list(models = models, clusters = I, with_positive = I10, with_negative = I01, auc = theta, covariance = S,
       first_pair = list(z = (theta[1] - theta[2]) / se, p = 2 * pnorm(-abs(theta[1] - theta[2]) / se)))
}

abc <- c("a", "b", "c")
scores <- read.csv("scores.csv"); names(scores)[names(scores) == "y_true"] <- "y"
ten <- data.frame(y = c(1, 1, 1, 0, 1, 0, 0, 1, 0, 0), a = c(.9, .8, .8, .8, .6, .6, .5, .3, .3, .1), b = c(5, 5, 3, 2, 4, 4, 1, 2, 0, 3))
edge <- read.csv("edge_cases.csv")
large <- made(100000, 20)

small <- made(40, 3); mixed <- made(600, 8); single <- transform(small, patient = seq_len(nrow(small)))
write_json(list(
  made_by = list(R = R.version.string, pROC = as.character(packageVersion("pROC"))),
  scores = delong(scores, c("image", "table", "fusion")),
  unbalanced = delong(made(2000, 20), abc), large = delong(large, abc),
  alike = roc.test(curve(ten$y, ten$a), curve(ten$y, ten$a^3), method = "delong", paired = TRUE)[c("statistic", "p.value")],
  ten = c(list(data = as.list(ten)), delong(ten, c("a", "b"))),
  edge_cases = lapply(split(edge, edge$case), function(d) ci(curve(d$y_true, d$score))),
  clustered = list(small = obuchowski(small, abc), mixed = obuchowski(mixed, abc),
                   scores = obuchowski(scores, c("image", "table", "fusion"))),
  singletons = list(obuchowski = obuchowski(single, abc), proc = delong(single, abc))
), "delong.json", auto_unbox = TRUE, digits = NA, pretty = TRUE, na = "null")
