"""C within folds against its peers, in one run on one machine: a table and one JSON line a peer, `ratio` = peer / ours.

1,000 resamples of patients, five models, 1,000 slides of 500 patients in five folds, drawn and evaluated, intervals included; kernels warm.
lifelines computes fold by fold on the rows drawn, a few resamples are timed and multiplied; R's `concordance` with strata is timed inside
R and gets the rows already drawn. A peer that is not there is named as absent. Every peer is first checked to give the same number.
"""
import argparse
import json
import shutil
import subprocess
import tempfile
import time

import numpy as np
import pandas as pd
from lifelines.utils import concordance_index

from fusion_nb.predictions import prediction_rows
from fusion_nb.resample import intervals
from fusion_nb.survival_groups import fold_c

MODELS, FOLDS = 5, 5


def cohort(n: int) -> pd.DataFrame:
    """Half the cases have an event; two slides of each patient."""
    rng = np.random.default_rng(0)
    patients = np.arange(n) // 2
    cases = pd.DataFrame({"case_id": np.arange(n).astype(str), "group": patients.astype(str), "split": "test", "time": rng.exponential(30, n)[patients],
                          "event": rng.integers(0, 2, n)[patients]})
    risk = rng.normal(size=(n, MODELS))
    return pd.concat([prediction_rows(cases[patients % FOLDS == f], risk[patients % FOLDS == f, m], model=f"model {m}", fold=f)
                      for f in range(FOLDS) for m in range(MODELS)], ignore_index=True)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pairs_of(rows) -> int:
    """Comparable pairs of one fold."""
    time_, event = rows["time"].to_numpy(), rows["event"].to_numpy()
    return int((event[:, None] * ((time_ > time_[:, None]) | ((time_ == time_[:, None]) & (event == 0)))).sum())


def lifelines_c(rows) -> float:
    each = [(concordance_index(r["time"], -r["score_risk"], r["event"]), pairs_of(r)) for _, r in rows.groupby("fold")]
    return sum(c * n for c, n in each) / sum(n for _, n in each)


def lifelines_loop(pred: pd.DataFrame, resamples: int, timed: int) -> float:
    rng, models = np.random.default_rng(0), [rows for _, rows in pred.groupby("model", sort=False)]
    def work():
        for _ in range(timed):
            drawn = rng.integers(0, len(models[0]), len(models[0]))
            for rows in models: lifelines_c(rows.iloc[drawn])
    return seconds(work) * resamples / timed


def r_answer(pred: pd.DataFrame, resamples: int, timed: int):
    """(C of the first model, seconds for all resamples of all models), or None without R and its survival package."""
    if not shutil.which("Rscript"): return None
    with tempfile.TemporaryDirectory() as folder:
        pred[pred["model"] == "model 0"].to_csv(f"{folder}/d.csv", index=False)
        code = f"""suppressPackageStartupMessages(library(survival)); d <- read.csv("{folder}/d.csv")
            C <- function(d) concordance(Surv(time, event) ~ score_risk + strata(fold), data = d, reverse = TRUE, timefix = FALSE, std.err = FALSE)$concordance
            took <- system.time(for (i in 1:{timed}) C(d[sample(nrow(d), replace = TRUE), ]))[["elapsed"]]
            cat(sprintf("%.15g", c(C(d), took)))"""
        done = subprocess.run(["Rscript", "-e", code], capture_output=True, text=True)
    if done.returncode: return None
    c, took = map(float, done.stdout.split())
    return c, took * MODELS * resamples / timed


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=5, help="resamples of each peer that are timed")
    options = parser.parse_args()
    pred = cohort(options.cases)
    ours = fold_c(pred, n=64).estimate[0, 0]  # compiles
    took = min(seconds(lambda: intervals(fold_c(pred, n=options.resamples))) for _ in range(3))
    print(f"{options.resamples:,} resamples, {MODELS} models, {options.cases:,} cases: {took:.3f} s")
    theirs = lifelines_c(pred[pred["model"] == "model 0"])
    peers = {"lifelines": (theirs, lifelines_loop(pred, options.resamples, options.timed)), "R survival": r_answer(pred, options.resamples, options.timed)}
    for name, found in peers.items():
        if found is None:
            print(f"{name}: absent")
            continue
        assert abs(found[0] - ours) < 1e-9, f"{name} finds {found[0]}, we {ours}"
        print(json.dumps({"job": "C within folds", "peer": name, "ours_s": round(took, 3), "peer_s": round(found[1], 1), "ratio": round(found[1] / took, 1),
                          "timed": options.timed}))


if __name__ == "__main__":
    main()
