"""What permutation importance costs: two JSON lines.

`importance`: `ratio` = recomputing the images / embedding them once (target: at least 20). A ResNet-18 on 64x64 images, learned fusion,
18 variables shuffled 30 times each. The fast way is timed as a whole, the one embedding included. The slow way runs the whole network for every
shuffle; only `--slow-shuffles` of its 541 predictions are timed and their median is multiplied, and the JSON line says so. Both ways
are first checked to give the same importance.

`importance_overhead`: `ratio` = our whole time / the bare predictions on tables that were shuffled before (target: at most 1.12), `ratio_sklearn` the
same of scikit-learn's `permutation_importance`. 4,909 cases whose image is embedded in 512 numbers, a learned fusion head, 18 variables of one
column each (scikit-learn knows only columns). Processor time of one thread, `--repeats` of the 30 shuffles, the best of a few rounds in turns.
`overhead_s` is what all 18 x 30 shuffles cost with a model that costs nothing. Both importances are first checked to agree.
"""
import argparse
import json
import statistics
import time

import numpy as np
import torch
from sklearn.inspection import permutation_importance as sklearn_importance
from sklearn.metrics import roc_auc_score

from fusion_nb.batches import FusionData
from fusion_nb.encoders import image_encoder
from fusion_nb.fusion import build_model
from fusion_nb.importance import permutation_importance
from fusion_nb.train import embed_images, predict, predict_from_embeddings

VARIABLES, REPEATS, COLUMNS = 18, 30, 33


def make_data(n: int, columns: int = COLUMNS) -> FusionData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 1, 64, 64), dtype=np.uint8)
    return FusionData(images, rng.normal(size=(n, columns)).astype("float32"), (np.arange(n) % 2).astype("float32"))


def make_model(columns: int = COLUMNS):
    return build_model("learned_concat", lambda: image_encoder("resnet18", channels=1), table_dim=columns)


def fast(model, data, columns_of, n_repeats):
    embeddings = embed_images(model, data, np.arange(len(data)))
    return permutation_importance(lambda table: predict_from_embeddings(model, embeddings, table), data.table, data.labels,
                                  columns_of=columns_of, n_repeats=n_repeats)


def slow(model, data, columns_of, n_repeats):
    def whole(table):
        return predict(model, FusionData(data.images, table, data.labels), np.arange(len(data)))
    return permutation_importance(whole, data.table, data.labels, columns_of=columns_of, n_repeats=n_repeats)


def seconds(work, *args, **options) -> float:
    start = time.perf_counter()
    work(*args, **options)
    return time.perf_counter() - start


def embedding_once(cases: int, slow_shuffles: int) -> dict:
    data, model = make_data(cases), make_model()
    columns_of = {f"v{i}": columns.tolist() for i, columns in enumerate(np.array_split(np.arange(COLUMNS), VARIABLES))}
    one = {"v0": columns_of["v0"]}
    np.testing.assert_allclose(fast(model, data, one, 1)["permuted"], slow(model, data, one, 1)["permuted"], atol=1e-3)  # also warms up
    fast_s = seconds(fast, model, data, columns_of, REPEATS)
    # one variable, one shuffle: two whole predictions, the intact one and the shuffled one
    each = statistics.median(seconds(slow, model, data, one, 1) / 2 for _ in range(-(-slow_shuffles // 2)))
    predictions = 1 + VARIABLES * REPEATS
    return {"benchmark": "importance", "ratio": round(predictions * each / fast_s, 1), "target": 20, "fast_s": round(fast_s, 3),
            "slow_s": round(predictions * each, 1), "slow_s_is": f"{predictions} x the median of {slow_shuffles} timed predictions",
            "cases": cases, "threads": torch.get_num_threads()}


class Fitted:
    """What scikit-learn asks of an estimator, with a score that calls our model."""
    def fit(self, X, y): return self


def processor_seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def ours(ask, table, label, repeats):
    return permutation_importance(ask, table, label, columns_of={f"v{i}": [i] for i in range(VARIABLES)}, n_repeats=repeats)


def sklearns(ask, table, label, repeats):
    return sklearn_importance(Fitted(), table, label, n_repeats=repeats, random_state=0, scoring=lambda _, X, y: roc_auc_score(y, ask(X)))


def overhead(cases: int, repeats: int, rounds: int) -> dict:
    torch.set_num_threads(1)
    rng, model = np.random.default_rng(0), make_model(VARIABLES)
    embeddings, table = (rng.normal(size=(cases, n)).astype("float32") for n in (512, VARIABLES))
    table *= np.linspace(.1, 3, VARIABLES, dtype="float32")  # so that some matter more than others
    ask = lambda X: predict_from_embeddings(model, embeddings, X)
    scores = ask(table)
    label, nothing = (scores > np.median(scores)).astype(int), lambda X: scores
    orders = [rng.permutation(cases) for _ in range(repeats)]
    shuffled = [np.where(np.arange(VARIABLES) == v, table[order], table) for order in orders for v in range(VARIABLES)]
    drops, theirs = ours(ask, table, label, repeats), sklearns(ask, table, label, repeats)
    mine = (drops["baseline"] - drops["permuted"]).groupby(drops["variable"], sort=False)
    assert np.corrcoef(mine.mean(), theirs.importances_mean)[0, 1] > .9
    work = {"bare": lambda: [ask(X) for X in [table, *shuffled]], "ours": lambda: ours(ask, table, label, repeats),
            "sklearn": lambda: sklearns(ask, table, label, repeats)}
    best = dict.fromkeys(work, np.inf)
    for _ in range(rounds):
        for name, run in work.items(): best[name] = min(best[name], processor_seconds(run))
    free = [min(processor_seconds(lambda: how(nothing, table, label, REPEATS)) for _ in range(2)) for how in (ours, sklearns)]
    return {"benchmark": "importance_overhead", "ratio": round(best["ours"] / best["bare"], 3), "target": 1.12,
            "ratio_sklearn": round(best["sklearn"] / best["bare"], 3), "overhead_s": round(free[0], 2), "overhead_sklearn_s": round(free[1], 2),
            "one_prediction_s": round(best["bare"] / (1 + len(shuffled)), 4), "cases": cases, "repeats": repeats, "threads": 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=252)
    parser.add_argument("--slow-shuffles", type=int, default=4, help="predictions of the slow way that are timed")
    parser.add_argument("--repeats", type=int, default=1, help="shuffles per variable where the overhead is timed")
    parser.add_argument("--rounds", type=int, default=2, help="times that the overhead is timed")
    args = parser.parse_args()
    print(json.dumps(embedding_once(args.cases, args.slow_shuffles)), flush=True)
    print(json.dumps(overhead(4909, args.repeats, args.rounds)))


if __name__ == "__main__":
    main()
