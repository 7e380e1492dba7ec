"""Writes cox_loss.csv (made cohorts, seeded) and scikit-survival's Cox likelihood of it, cox_loss_sksurv.json, beside this script.

Run once: `python tests/oracles/cox_loss.py` in an environment of its own (`pip install scikit-survival`, GPL, so nothing of this
project imports it). Then `Rscript cox_loss.R` reads the same CSV. The risk is the one covariate, and its coefficient is held at 1.
"""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import sksurv
from sksurv.linear_model.coxph import CoxPHOptimizer

HERE = Path(__file__).parent
# n, decimals of the time, share of events
CASES = {"plain": (60, 6, .6), "tied": (60, 0, .6), "mostly_tied": (80, -1, .8), "censored": (100, 1, .1), "all_die": (30, 0, 1.0),
         "one_event": (12, 1, .01), "at_once": (9, -3, .7), "ten": (10, 1, .5), "strong": (60, 0, .6)}


def made(rng, case):
    """A cohort; times tie where they are rounded, and at least one patient dies."""
    n, decimals, share = CASES[case]
    risk = (5 if case == "strong" else 1) * rng.normal(size=n)
    time = (1 + rng.exponential(10 * np.exp(-risk / 2)).clip(max=99)).round(decimals)
    event = (rng.random(n) < share).astype(int)
    event[np.argsort(time)[n // 4]] = 1
    return pd.DataFrame({"case": case, "time": time, "event": event, "risk": risk.round(6)})


def likelihood(rows, ties):
    """The log-likelihood at a coefficient of 1, and its derivative by the coefficient."""
    found = CoxPHOptimizer(rows[["risk"]].to_numpy(), rows["event"].to_numpy() == 1, rows["time"].to_numpy(), np.zeros(1), ties)
    found.update(np.ones(1))
    return {"loglik": -float(found.nlog_likelihood(np.ones(1))) * len(rows), "score": -float(found.gradient.squeeze()) * len(rows)}


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    pd.concat([made(rng, case) for case in CASES]).to_csv(HERE / "cox_loss.csv", index=False)
    table = pd.read_csv(HERE / "cox_loss.csv")  # what the tests read
    answers = {case: {ties: likelihood(rows, ties) for ties in ("breslow", "efron")} for case, rows in table.groupby("case", sort=False)}
    text = json.dumps({"made_by": f"scikit-survival {sksurv.__version__}, numpy {np.__version__}", "cases": answers})
    (HERE / "cox_loss_sksurv.json").write_text(text.replace('}}, "', '}},\n"') + "\n")
