"""DeLong's paired test of two models at n = 4,909: one JSON line, `ratio` = all pairs in numpy / ours (target: at least 3), `ratio_proc_N` = R's pROC / ours.

Ours is the whole of `delong_compare`: checks, sorting, the table. The naive way compares every positive with every negative, as DeLong's
paper defines it. pROC (where Rscript and pROC are there) is timed inside R without its start: two `roc` and one `roc.test`. Both answers are
first checked against ours. Then pROC and ours at 100,000 cases, and ours alone at 1,000,000; a fifth of the cases is positive throughout.
"""
import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from fusion_nb.delong import delong_compare
from fusion_nb.predictions import Scores

PROC = """suppressPackageStartupMessages(library(pROC))
a <- commandArgs(TRUE); d <- read.csv(a[1]); repeats <- as.integer(a[2])
curve <- function(s) roc(d$y, s, levels = c(0, 1), direction = "<", quiet = TRUE)
work <- function() roc.test(curve(d$a), curve(d$b), method = "delong", paired = TRUE)
z <- work()$statistic
cat(format(z, digits = 15), median(sapply(seq_len(repeats), function(i) system.time(for (k in 1:5) work())[["elapsed"]] / 5)), as.character(packageVersion("pROC")))
"""


def make_scores(n: int) -> Scores:
    rng = np.random.default_rng(0)
    label, shared = (rng.random(n) < .205).astype(int), rng.normal(size=n)
    score = np.stack([label + shared + .5 * rng.normal(size=n), 1.3 * label + shared + .5 * rng.normal(size=n)], axis=1)
    cases = pd.DataFrame({"case_id": np.arange(n).astype(str), "group": None, "fold": 0, "label": label})
    return Scores(cases, ("a", "b"), score.round(6))


def naive(scores: Scores) -> float:
    """z of DeLong's paired test by all pairs."""
    positive = scores.label == 1
    shares = []
    for s in scores.scores.T:
        above = (np.sign(s[positive][:, None] - s[~positive]) + 1) / 2
        shares.append((above.mean(axis=1), above.mean(axis=0)))
    x, y = (a - b for a, b in zip(*shares))
    return x.mean() / np.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))


def seconds(work, *args, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work(*args)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def proc(scores: Scores, repeats: int) -> tuple | None:
    """z, seconds and version of pROC, or None where it is not installed."""
    if shutil.which("Rscript") is None: return None
    with tempfile.TemporaryDirectory() as folder:
        table, program = Path(folder) / "scores.csv", Path(folder) / "time.R"
        pd.DataFrame({"y": scores.label, "a": scores.scores[:, 0], "b": scores.scores[:, 1]}).to_csv(table, index=False)
        program.write_text(PROC)
        done = subprocess.run(["Rscript", str(program), str(table), str(repeats)], capture_output=True, text=True)
    if done.returncode: return None
    z, elapsed, version = done.stdout.split()
    return float(z), float(elapsed), version


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    small, large, huge = map(make_scores, (4909, 100_000, 1_000_000))
    np.testing.assert_allclose(naive(small), delong_compare(small)["z"].item(), rtol=1e-8)  # also warms up
    ours = {len(s): seconds(delong_compare, s, repeats=n) for s, n in ((small, 5 * args.repeats), (large, args.repeats), (huge, 3))}
    naive_s = seconds(naive, small, repeats=args.repeats)
    theirs = {len(s): proc(s, args.repeats) for s in (small, large)}
    result = {"benchmark": "delong", "ratio": round(naive_s / ours[4909], 1), "target": 3, "cases": 4909, "naive_s": round(naive_s, 4),
              **{f"ours_{n}_s": round(s, 5) for n, s in ours.items()}, "repeats": args.repeats}
    for s in (small, large):
        if theirs[len(s)] is None: continue
        z, elapsed, result["proc"] = theirs[len(s)]
        np.testing.assert_allclose(z, delong_compare(s)["z"].item(), rtol=1e-8)
        result |= {f"proc_{len(s)}_s": elapsed, f"ratio_proc_{len(s)}": round(elapsed / ours[len(s)], 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
