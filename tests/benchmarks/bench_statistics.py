"""Resampling against its peers, in one run on one machine: a table and one JSON line a job, `ratio` = peer / ours.

Ours is timed whole, intervals included, compiled kernels warm; their compile time is told apart. scikit-learn and pROC are slow and regular,
so a few of their resamples are timed and multiplied, and the line says how many. The floor is drawing the resamples and nothing else.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pandas as pd
import sklearn.metrics as sk
from scipy.stats import bootstrap, rankdata

from fusion_nb.compare import compare_models
from fusion_nb.paired_tests import mcnemar_compare
from fusion_nb.predictions import Scores
from fusion_nb.resample import Metric, _Job, _draw_kernel, _evaluate, _key, bootstrap_metrics, intervals

RESAMPLES, BOTH = 5000, ("auc", "specificity_at_95_sensitivity")


def cohort(n: int, models: int = 5, positive: float = 0.205) -> Scores:
    rng = np.random.default_rng(0)
    label = rng.permutation(np.arange(n) < round(positive * n)).astype(int)
    score = 1 / (1 + np.exp(-(1.5 * label[:, None] - 1 + rng.normal(size=(n, models)))))
    cases = pd.DataFrame({"case_id": np.arange(n).astype(str), "group": None, "fold": 0, "label": label})
    return Scores(cases, tuple(f"model {m}" for m in range(models)), score)


def best_of(work, times: int = 5) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def specificity(label, score):
    fpr, tpr, _ = sk.roc_curve(label, score)
    return 1 - fpr[tpr >= .95].min()


PEERS = {"auc": sk.roc_auc_score, "specificity_at_95_sensitivity": specificity, "average_precision": sk.average_precision_score,
         "accuracy": lambda y, s: sk.accuracy_score(y, s >= .5), "f1": lambda y, s: sk.f1_score(y, s >= .5),
         "sensitivity": lambda y, s: sk.recall_score(y, s >= .5)}


def sklearn_loop(scores, metrics, timed: int) -> float:
    """Seconds for all resamples: every metric of every model on the rows drawn."""
    rng, label = np.random.default_rng(0), scores.label
    strata = [np.flatnonzero(label == c) for c in (0, 1)]

    def work():
        for _ in range(timed):
            rows = np.concatenate([rng.choice(s, len(s)) for s in strata])
            for m in range(len(scores.models)):
                for name in metrics: PEERS[name](label[rows], scores.scores[rows, m])
    return best_of(work, 1) * RESAMPLES / timed


def scipy_bootstrap(scores, timed: int) -> float:
    """scipy's own bootstrap with a vectorised AUC, one model after the other (it cannot share resamples); AUC only."""
    def area(pos, neg, axis=-1):
        ranks = rankdata(np.concatenate([pos, neg], axis=-1), axis=-1)
        p, n = pos.shape[-1], neg.shape[-1]
        return (ranks[..., :p].sum(axis=-1) - p * (p + 1) / 2) / (p * n)

    def work():
        for score in scores.scores.T:
            bootstrap((score[scores.label == 1], score[scores.label == 0]), area, n_resamples=timed, batch=20, method="percentile", vectorized=True)
    return best_of(work, 1) * RESAMPLES / timed


def proc(scores, paired: bool, timed: int) -> float | None:
    """R's pROC, where R is: AUC and specificity of every model, or the paired bootstrap test of every pair."""
    if not shutil.which("Rscript"): return None
    single = """for (r in rocs) { ci.auc(r, method="bootstrap", boot.n=B, progress="none"); ci.sp(r, sensitivities=.95, boot.n=B, progress="none") }"""
    pairs = """for (p in combn(length(rocs), 2, simplify=FALSE)) roc.test(rocs[[p[1]]], rocs[[p[2]]], method="bootstrap", boot.n=B, progress="none")"""
    with tempfile.TemporaryDirectory() as folder:
        pd.DataFrame(scores.scores).assign(y=scores.label).to_csv(f"{folder}/s.csv", index=False)
        code = f"""suppressPackageStartupMessages(library(pROC)); B <- {timed}; d <- read.csv("{folder}/s.csv")
            rocs <- lapply(1:{len(scores.models)}, function(m) roc(d$y, d[[m]], levels=c(0,1), direction="<", quiet=TRUE))
            cat(system.time({{ {pairs if paired else single} }})[["elapsed"]])"""
        done = subprocess.run(["Rscript", "-e", code], capture_output=True, text=True)
    return float(done.stdout) * RESAMPLES / timed if done.returncode == 0 else None


def floor(scores, threads: int) -> float:
    sizes, key = np.bincount(scores.label), _key(0)
    fill = lambda counts, scratch, first: _draw_kernel(counts, scratch, sizes, key, first)
    nothing = Metric("nothing", None, tasks=lambda *_: [], finish=lambda found: np.zeros(RESAMPLES))
    return best_of(lambda: _evaluate([_Job(nothing, ("", ""), (), None, {})], fill, np.arange(len(scores)), len(scores), RESAMPLES, threads), 3)


def estimate(scores, metrics):
    return intervals(bootstrap_metrics(scores, metrics, n=RESAMPLES))


def whole_table(scores):
    resamples = bootstrap_metrics(scores, BOTH, n=RESAMPLES)
    return intervals(resamples), [compare_models(resamples, metric=m) for m in BOTH]


def calls(scores):
    return estimate(scores, ("accuracy", "f1", "sensitivity")), mcnemar_compare(scores)


def first_call() -> list:
    """Seconds of the first call in a new process: compiling, and reading the kernels from the disk."""
    code = ("import sys, time; sys.path.insert(0, 'tests/benchmarks'); import bench_statistics as b; s = b.cohort(500); t = time.perf_counter();"
            "b.estimate(s, ('auc', 'specificity_at_95_sensitivity', 'average_precision', 'accuracy')); print(time.perf_counter() - t)")
    with tempfile.TemporaryDirectory() as folder:
        run = lambda: float(subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": folder}, capture_output=True, text=True,
                                           check=True).stdout)
        return [run(), run()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="n = 1,000,000 too (about a minute)")
    args = parser.parse_args()
    cores, rows = len(os.sched_getaffinity(0)), []

    def job(name, target, ours, **peers):
        for peer, seconds in peers.items() or [("", None)]:
            rows.append({"job": name, "ours_s": round(ours, 4), "target_s": target, "peer": peer,
                         "peer_s": None if seconds is None else round(seconds, 1), "ratio": None if seconds is None else round(seconds / ours)})
            print(json.dumps(rows[-1]), flush=True)

    published = cohort(4909)
    estimate(published, (*BOTH, "average_precision", "accuracy", "f1", "sensitivity"))  # warm
    job("drawing alone, n = 4,909", None, floor(published, cores))
    job("5 models, AUC + specificity, n = 4,909", 0.05, best_of(lambda: estimate(published, BOTH)), sklearn=sklearn_loop(published, BOTH, 40),
        scipy_auc_only=scipy_bootstrap(published, 100), pROC=proc(published, False, 50))
    job("the same with all paired tests", 0.1, best_of(lambda: whole_table(published)), pROC_auc_only=proc(published, True, 50))
    job("average precision, 5 models", 0.05, best_of(lambda: estimate(published, ("average_precision",))), sklearn=sklearn_loop(published, ("average_precision",), 40))
    job("accuracy, F1, sensitivity, McNemar", 0.05, best_of(lambda: calls(published)), sklearn=sklearn_loop(published, ("accuracy", "f1", "sensitivity"), 40))
    for n, target in ((100_000, 0.8), (1_000_000, 12))[:1 + args.large]:
        large = cohort(n)
        job(f"drawing alone, n = {n:,}", None, floor(large, cores))
        job(f"5 models, AUC + specificity, n = {n:,}", target, best_of(lambda: estimate(large, BOTH), 1 if n > 10 ** 5 else 2), sklearn_auc_only=sklearn_loop(large, ("auc",), 2))
    compiling, reading = first_call()
    print(json.dumps({"first call, compiling_s": round(compiling, 2), "kernels read from disk_s": round(reading, 2), "cores": cores,
                      "peers' times": "of 40 (scikit-learn; 2 from n = 100,000), 100 (scipy), 50 (pROC) resamples, multiplied to 5,000",
                      "R": bool(shutil.which("Rscript"))}))
    print(pd.DataFrame(rows).to_string(index=False, na_rep="-"))


if __name__ == "__main__":
    main()
