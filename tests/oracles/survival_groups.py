"""Writes survival_groups.csv (made cross-validations, seeded) and scikit-survival's answers to it, survival_groups.json, beside this script.

Run once: `python tests/oracles/survival_groups.py` in an environment of its own (`pip install scikit-survival`, GPL). Then
`Rscript survival_groups.R` reads the same CSV and writes survival_groups_r.json.
"""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import sksurv
from sksurv.compare import compare_survival
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored, concordance_index_ipcw, cumulative_dynamic_auc, integrated_brier_score
from sksurv.nonparametric import CensoringDistributionEstimator, kaplan_meier_estimator
from sksurv.util import Surv

HERE = Path(__file__).parent
# patients, decimals of the time and of the risk, folds
CASES = {"plain": (120, 4, 4, 5), "tied_times": (120, 0, 4, 4), "tied_risks": (120, 4, 0, 3), "tied_both": (90, 0, 0, 4), "one_fold": (60, 2, 6, 1)}
TIMES, AT = [3.0, 6.0, 9.0, 12.0], 6.0


def made(rng, n, decimals, risk_decimals, n_folds):
    """Two slides of each patient; every fold's risks have a scale of their own; each fold has its own val rows."""
    frailty, fold = rng.normal(size=n), np.arange(n) % n_folds
    died, left = rng.exponential(10 * np.exp(-frailty)), rng.exponential(15, n)
    time = np.maximum(np.minimum(died, left).round(decimals), .5)
    rows = []
    for f in range(n_folds):
        scale, shift = rng.uniform(.5, 3), 5 * rng.normal()
        for part, mine in (("test", fold == f), ("val", fold == (f + 1) % n_folds)):
            patients = np.repeat(np.flatnonzero(mine), 2)
            risk = shift + scale * (frailty[patients] + rng.normal(size=len(patients)))
            rows.append(pd.DataFrame({"fold": f, "part": part, "patient": patients + n * (part == "val"), "slide": np.arange(len(patients)) % 2, "time": time[patients],
                                      "event": (died <= left)[patients].astype(int), "risk": risk.round(risk_decimals)}))
    return pd.concat(rows)


def surv(rows): return Surv.from_arrays(rows["event"] == 1, rows["time"])


def later(rows, i, used): return (rows["time"] > rows["time"][i]) | ((rows["time"] == rows["time"][i]) & (rows["event"] == 0))


def combined(values, weights): return float(np.dot(values, weights) / np.sum(weights))


def within(test):
    """Uno's C and the AUC at a time: scikit-survival's per fold, with the censoring of all folds, by the weight of their pairs."""
    left, uno, auc = CensoringDistributionEstimator().fit(surv(test)), [], []
    tau = float(np.quantile(test["time"], .8))
    for _, rows in test.groupby("fold"):
        rows = rows.reset_index(drop=True)
        chance = left.predict_proba(rows["time"].to_numpy())
        early = np.flatnonzero((rows["event"] == 1) & (rows["time"] < tau))
        pairs = sum(chance[i] ** -2 * later(rows, i, early).sum() for i in early)
        uno.append((concordance_index_ipcw(surv(test), surv(rows), rows["risk"], tau=tau, tied_tol=0)[0], pairs))
        cases = (rows["event"] == 1) & (rows["time"] <= AT)
        both = (1 / chance[cases]).sum() * (rows["time"] > AT).sum()
        auc.append((cumulative_dynamic_auc(surv(test), surv(rows), rows["risk"], [AT], tied_tol=0)[0][0], both))
    return {"tau": tau, "uno": combined(*zip(*uno)), "auc": combined(*zip(*auc))}


def harrell(test):
    counts = np.array([concordance_index_censored(r["event"] == 1, r["time"], r["risk"], tied_tol=0)[1:4] for _, r in test.groupby("fold")]).sum(axis=0)
    return float((counts[0] + counts[2] / 2) / counts.sum())


def brier(test, val):
    """Integrated Brier score of Cox forecasts and of the Kaplan-Meier curve, both fitted on the val rows fold by fold."""
    tables, curves, order = [], [], []
    for f, rows in test.groupby("fold"):
        fit = val[val["fold"] == f]
        cox = CoxPHSurvivalAnalysis(ties="breslow", tol=1e-16, n_iter=200).fit(fit[["risk"]].to_numpy(float), surv(fit))
        tables.append(np.array([g(TIMES) for g in cox.predict_survival_function(rows[["risk"]].to_numpy(float))]))
        known, free = kaplan_meier_estimator(fit["event"] == 1, fit["time"])
        curves.append(np.tile(free[np.searchsorted(known, TIMES, side="right") - 1], (len(rows), 1)))
        order.append(rows)
    rows = pd.concat(order)
    return {name: float(integrated_brier_score(surv(rows), surv(rows), np.concatenate(p), TIMES)) for name, p in (("cox", tables), ("kaplan_meier", curves))}


def logrank(test):
    """Groups cut at each fold's own median, which is all that a test of the test needs."""
    one = test[test["slide"] == 0]
    group = (one["risk"] > one.groupby("fold")["risk"].transform("median")).astype(int)
    chisq, p = compare_survival(surv(one), group.to_numpy())
    return {"chisq": float(chisq), "p": float(p)}


def main():
    rng, parts = np.random.default_rng(20235), []
    for case, options in CASES.items(): parts.append(made(rng, *options).assign(case=case))
    columns = ["case", "fold", "part", "patient", "slide", "time", "event", "risk"]
    pd.concat(parts)[columns].to_csv(HERE / "survival_groups.csv", index=False)
    table, answers = pd.read_csv(HERE / "survival_groups.csv"), {}  # what the tests read
    for case, rows in table.groupby("case", sort=False):
        test, val = (rows[rows["part"] == part].reset_index(drop=True) for part in ("test", "val"))
        answers[case] = {"harrell": harrell(test), **within(test), "brier": brier(test, val), "logrank": logrank(test)}
    found = {"made_by": f"scikit-survival {sksurv.__version__}, numpy {np.__version__}", "times": TIMES, "at": AT, "cases": answers}
    (HERE / "survival_groups.json").write_text(json.dumps(found, allow_nan=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
