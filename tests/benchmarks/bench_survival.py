"""Harrell's C against its peers, in one run on one machine: a table and one JSON line a job, `ratio` = peer / ours.

Jobs: 5,000 bootstrap resamples of 5,000 cases, drawn and evaluated, interval included, on two threads; and one value of 100,000 cases. Compiled
kernels are warm; what the first call of a new process takes (compiling, then reading from the disk) is told apart. Peers draw rows, and a few
of their resamples are timed and multiplied. lifelines comes with the requirements for development; scikit-survival is no dependency: to run it,
`pip install` it where this runs. R's survival is timed inside R. A peer that is not there is named as absent. Every peer is first checked to
give the same number.
"""
import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pandas as pd

from fusion_nb.predictions import Scores
from fusion_nb.resample import bootstrap_metrics, intervals
from fusion_nb.survival import harrell_c

RESAMPLES, THREADS = 5000, 2


def cohort(n: int) -> tuple:
    """(time, event, risk): 58% events, no ties."""
    rng = np.random.default_rng(0)
    frailty = rng.normal(size=n)
    died, left = rng.exponential(np.exp(-frailty)), rng.exponential(1.5, size=n)
    return np.minimum(died, left), (died <= left).astype(int), frailty + rng.normal(size=n)


def best_of(work, times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def ours(outcome: tuple) -> pd.DataFrame:
    time_, event, risk = outcome
    cases = pd.DataFrame({"case_id": np.arange(len(risk)).astype(str), "group": None, "fold": 0, "time": time_, "event": event})
    return intervals(bootstrap_metrics(Scores(cases, ("model",), risk[:, None]), "harrell_c", n=RESAMPLES, threads=THREADS))


def python_peers() -> dict:
    """{name: f(time, event, risk)} of the packages that are installed, None for the others."""
    def lifelines(t, e, r):
        from lifelines.utils import concordance_index
        return concordance_index(t, -r, e)

    def sksurv(t, e, r):
        from sksurv.metrics import concordance_index_censored
        return concordance_index_censored(e == 1, t, r)[0]
    return {f.__name__: f if importlib.util.find_spec(f.__name__) else None for f in (lifelines, sksurv)}


def loop(f, outcome: tuple, timed: int) -> float:
    """Seconds for all resamples."""
    rng, n = np.random.default_rng(0), len(outcome[0])
    def work():
        for _ in range(timed):
            rows = rng.integers(0, n, n)
            f(*(x[rows] for x in outcome))
    return best_of(work, 1) * RESAMPLES / timed


def r_survival(outcome: tuple, timed: int) -> float | None:
    """Seconds of `timed` resamples in R, of the sample itself where `timed` is 0; None without R or its package."""
    if not shutil.which("Rscript"): return None
    with tempfile.TemporaryDirectory() as folder:
        pd.DataFrame(dict(zip("ter", outcome))).to_csv(f"{folder}/d.csv", index=False)
        code = f"""suppressPackageStartupMessages(library(survival)); d <- read.csv("{folder}/d.csv")
            C <- function(d) concordance(Surv(t, e) ~ r, data = d, reverse = TRUE, timefix = FALSE, std.err = FALSE)$concordance
            n <- nrow(d); c0 <- C(d)
            s <- if ({timed}) system.time(for (i in 1:{timed}) C(d[sample(n, n, TRUE), ])) else system.time(C(d))
            cat(format(c0, digits = 15), s[["elapsed"]])"""
        done = subprocess.run(["Rscript", "-e", code], capture_output=True, text=True)
    if done.returncode: return None
    value, elapsed = map(float, done.stdout.split())
    np.testing.assert_allclose(value, harrell_c(*outcome), atol=1e-12)
    return elapsed


def first_call() -> list:
    """Seconds of the first calls in a new process: compiling, then reading the kernels from the disk."""
    code = ("import sys, time; sys.path.insert(0, 'tests/benchmarks'); import bench_survival as b; d = b.cohort(500); t = time.perf_counter();"
            "b.harrell_c(*d); b.ours(d); print(time.perf_counter() - t)")
    with tempfile.TemporaryDirectory() as folder:
        return [round(float(subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": folder}, capture_output=True,
                                           text=True, check=True).stdout), 2) for _ in range(2)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-resamples", type=int, default=10, help="resamples of a peer that are timed and multiplied")
    timed, rows, peers = parser.parse_args().peer_resamples, [], python_peers()
    small, large = cohort(5000), cohort(100_000)
    ours(small)  # warm
    for name, f in peers.items():
        if f: np.testing.assert_allclose(f(*small), harrell_c(*small), atol=1e-12)

    def job(name, target, seconds, theirs):
        for peer, peer_s in theirs.items():
            rows.append({"job": name, "ours_s": round(seconds, 4), "target_s": target, "peer": peer, "peer_s": peer_s and round(peer_s, 2),
                         "ratio": round(peer_s / seconds) if peer_s else "absent"})
            print(json.dumps(rows[-1]), flush=True)

    by_r = r_survival(small, timed)
    job(f"C-index, n = 5,000, {RESAMPLES:,} resamples", 0.15, best_of(lambda: ours(small), 9),
        {**{name: f and loop(f, small, timed) for name, f in peers.items()}, "R survival": by_r and by_r * RESAMPLES / timed})
    job("C-index, one value, n = 100,000", 0.03, best_of(lambda: harrell_c(*large), 15),
        {**{name: f and best_of(lambda: f(*large), 1) for name, f in peers.items()}, "R survival": r_survival(large, 0)})
    compiling, reading = first_call()
    print(json.dumps({"first call, compiling_s": compiling, "kernels read from disk_s": reading, "threads": THREADS, "peer_resamples_timed": timed}))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
