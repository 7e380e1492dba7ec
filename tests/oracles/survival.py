"""Writes survival.csv (made cohorts, seeded) and the answers of scikit-survival to it, survival.json, beside this script.

Run once: `python tests/oracles/survival.py` in an environment of its own (`pip install scikit-survival`, GPL, so nothing of this
project imports it). Then `Rscript survival.R` reads the same CSV. Predictions for the Brier score follow from the risk by a formula.
"""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import sksurv
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import (brier_score, concordance_index_censored, concordance_index_ipcw, cumulative_dynamic_auc,
                            integrated_brier_score)
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

HERE = Path(__file__).parent
DRAWS = 4
# n, the mean time to censoring, decimals of the time and of the risk
CASES = {"plain": (200, 4, 6, 6), "tied_times": (200, 4, 0, 6), "tied_risks": (200, 4, 6, 0), "tied_both": (200, 4, 0, 0), "ten": (10, 6, 1, 1),
         "heavy_censoring": (300, .15, 3, 3), "long_tail": (150, 40, 2, 2)}


def made(rng, n, censored_after, decimals, risk_decimals):
    """A cohort whose risk says something; no time is 0, and times tie only where they are rounded."""
    frailty = rng.normal(size=n)
    died, left = rng.exponential(3 * np.exp(-frailty)), rng.exponential(censored_after, size=n)
    scale = 4 if decimals == 0 else 1  # whole numbers from 1 to 20 or so: many ties
    time = np.maximum((.1 + scale * np.minimum(died, left)).round(decimals), .1 if decimals else 1)
    return pd.DataFrame({"time": time, "event": (died <= left).astype(int), "risk": (frailty + rng.normal(size=n)).round(risk_decimals)})


def cohorts() -> pd.DataFrame:
    """Train and test rows of every case; the draws are resamples of the test rows."""
    rng, parts = np.random.default_rng(20230), []
    for case, options in CASES.items():
        test, train = made(rng, *options), made(rng, max(options[0], 60), *options[1:])
        last = train.index[-1]
        train.loc[last, ["time", "event"]] = [max(test["time"].max(), train["time"].max()) + 1, 0]  # G is known wherever test rows are
        for r in range(DRAWS):
            test[f"draw_{r}"] = np.bincount(rng.integers(0, len(test), len(test)), minlength=len(test))
        parts += [train.assign(case=case, part="train"), test.assign(case=case, part="test")]
    rows = np.arange(20)
    edge = {"all_equal": (1 + rows % 7, rows % 2, 0 * rows), "one_event": (1 + rows, rows == 4, (rows * 7) % 11),
            "perfect": (1 + rows, rows % 3 > 0, -rows), "inverted": (1 + rows, rows % 3 > 0, rows)}
    parts += [pd.DataFrame({"time": t, "event": np.asarray(e, int), "risk": r}).assign(case=case, part="test") for case, (t, e, r) in edge.items()]
    return pd.concat(parts)[["case", "part", "time", "event", "risk", *(f"draw_{r}" for r in range(DRAWS))]]


def large(n=100_000):
    """The same 100,000 rows everywhere, by arithmetic on whole numbers: ties in time and in risk, 60% censored."""
    i = np.arange(n)
    time = 1 + (i * 7919 % 100_003) % 3000
    return time, (i * 31 % 10 < 4).astype(int), (i * 104_729 % 100_003) // 25 - time


def surv(rows): return Surv.from_arrays(rows["event"] == 1, rows["time"])


def plain(found):
    """Numbers and lists for JSON, null for NaN."""
    if isinstance(found, (tuple, list, np.ndarray)): return [plain(x) for x in found]
    return None if np.isnan(found) else float(found)


def tried(f, *args, **options):
    """The answer, or null where scikit-survival refuses."""
    try:
        with np.errstate(invalid="ignore"): return plain(f(*args, **options))
    except ValueError: return None


def harrell(rows): return concordance_index_censored(rows["event"] == 1, rows["time"], rows["risk"], tied_tol=0)


def of_resample(rows, times, tau, scale):
    """The metrics on the rows drawn, with the censoring of the rows drawn."""
    return {"harrell": harrell(rows)[0], "uno_tau": (tried(concordance_index_ipcw, surv(rows), surv(rows), rows["risk"], tau=tau, tied_tol=0) or [None])[0],
            "auc": tried(cumulative_dynamic_auc, surv(rows), surv(rows), rows["risk"], times, tied_tol=0),
            "ibs": tried(integrated_brier_score, surv(rows), surv(rows), probability(rows, times, scale), times)}


def probability(rows, times, scale): return np.exp(-np.outer(np.exp(rows["risk"] / 2), times) / scale)


def of_case(train, test) -> dict:
    """Everything on one case: with the censoring of the test rows ("own") and of the training rows ("train")."""
    events = np.sort(test.loc[test["event"] == 1, "time"])
    times = np.unique(np.quantile(test["time"], [.2, .4, .6, .8]).clip(events[0]).round(3))
    tau, scale = float(np.quantile(test["time"], .9)), float(test["time"].mean())
    found = {"times": times.tolist(), "tau": tau, "scale": scale, "harrell": tried(harrell, test),
             "survival": tried(kaplan_meier_estimator, test["event"] == 1, test["time"]),
             "censoring": tried(kaplan_meier_estimator, test["event"] == 1, test["time"], reverse=True)}
    for name, from_rows in (("own", test), ("train", train)):
        both = surv(from_rows), surv(test)
        found[name] = {"uno": tried(concordance_index_ipcw, *both, test["risk"], tied_tol=0),
                       "uno_tau": tried(concordance_index_ipcw, *both, test["risk"], tau=tau, tied_tol=0),
                       "auc": tried(cumulative_dynamic_auc, *both, test["risk"], times, tied_tol=0),
                       "brier": tried(brier_score, *both, probability(test, times, scale), times),
                       "ibs": tried(integrated_brier_score, *both, probability(test, times, scale), times)}
    cox = CoxPHSurvivalAnalysis(ties="breslow", tol=1e-16, n_iter=200).fit(train[["risk"]].to_numpy(float), surv(train))
    found["cox"] = {"slope": float(cox.coef_[0]), "survival": [f(times).tolist() for f in cox.predict_survival_function(test[["risk"]].to_numpy(float)[:5])]}
    found["draws"] = [of_resample(test.loc[test.index.repeat(test[f"draw_{r}"])], times, tau, scale) for r in range(DRAWS)]
    return found


def main():
    table = cohorts()
    table.to_csv(HERE / "survival.csv", index=False)
    table, cases = pd.read_csv(HERE / "survival.csv"), {}  # what the tests read
    for case in CASES:
        train, test = (table[(table["case"] == case) & (table["part"] == part)].reset_index(drop=True) for part in ("train", "test"))
        cases[case] = of_case(train, test.astype({f"draw_{r}": int for r in range(DRAWS)}))
    edge = {case: harrell(rows) for case, rows in table.groupby("case") if case not in CASES}
    time, event, risk = large()
    found = concordance_index_censored(event == 1, time, risk.astype(float), tied_tol=0)
    answers = {"made_by": f"scikit-survival {sksurv.__version__}, numpy {np.__version__}", "cases": cases,
               "edge_cases": {case: plain(f) for case, f in edge.items()}, "large": plain(found)}
    (HERE / "survival.json").write_text(json.dumps(answers, allow_nan=False).replace(', "', ',\n"') + "\n")


if __name__ == "__main__":
    main()
