"""What permutation importance costs: JSON lines.

`importance`: `ratio` = recomputing the images / embedding them once (target: at least 20). A ResNet-18 on 64x64 images, learned fusion,
18 variables shuffled 30 times each. The fast way is timed as a whole, the one embedding included. The slow way runs the whole network for every
shuffle; only `--slow-shuffles` of its 541 predictions are timed and their median is multiplied, and the JSON line says so. Both ways
are first checked to give the same importance.

`importance_job`: 18 variables x 30 shuffles, embeddings given: `ratio` = peer / ours, a line for each of scikit-learn, mlxtend and captum, and one
for the bare predictions on tables that were shuffled before (there the target of ours / bare is 1.12). 1,300 cases whose image is embedded in 512
numbers, a learned fusion head, 18 variables of one column each (scikit-learn knows only columns): on a free core the bare predictions take about
25 s. Ours runs all 541 predictions; of each peer one
shuffle per variable is timed, and multiplied, as its JSON line says. Processor time of one thread, so that a busy machine does not matter much.
`overhead_s` is what all 18 x 30 shuffles cost with a model that costs nothing. All importances are checked to agree.
"""
import argparse
import json
import statistics
import time

import numpy as np
import torch
from captum.attr import FeaturePermutation
from mlxtend.evaluate import feature_importance_permutation
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
    drops = permutation_importance(ask, table, label, columns_of={f"v{i}": [i] for i in range(VARIABLES)}, n_repeats=repeats)
    return (drops["baseline"] - drops["permuted"]).groupby(drops["variable"], sort=False).mean().to_numpy()


def sklearns(ask, table, label, repeats):
    return sklearn_importance(Fitted(), table, label, n_repeats=repeats, random_state=0, scoring=lambda _, X, y: roc_auc_score(y, ask(X))).importances_mean


def mlxtends(ask, table, label, repeats):
    return feature_importance_permutation(table.copy(), label, ask, roc_auc_score, num_rounds=repeats, seed=0)[0]  # it shuffles in place


def captums(ask, table, label, repeats):
    shuffle = FeaturePermutation(lambda X: torch.tensor([roc_auc_score(label, ask(X.numpy()))]))
    return np.mean([shuffle.attribute(torch.from_numpy(table))[0].numpy() for _ in range(repeats)], axis=0)


def job(cases: int, peer_repeats: int):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng, model = np.random.default_rng(0), make_model(VARIABLES)
    embeddings, table = (rng.normal(size=(cases, n)).astype("float32") for n in (512, VARIABLES))
    table *= np.linspace(.1, 3, VARIABLES, dtype="float32")  # so that some matter more than others
    ask = lambda X: predict_from_embeddings(model, embeddings, X)
    scores = ask(table)
    label, nothing = (scores > np.median(scores)).astype(int), lambda X: scores
    shuffled = [np.where(np.arange(VARIABLES) == v, table[rng.permutation(cases)], table) for v in range(VARIABLES)]
    predictions, timed, found = 1 + VARIABLES * REPEATS, 1 + VARIABLES * peer_repeats, {}

    def seconds_of(how, repeats):
        found[how] = None
        def work(): found[how] = how(ask, table, label, repeats)
        return processor_seconds(work)

    def bare(ask, table, *_): return [ask(X) for X in [table, *shuffled * peer_repeats]]

    peers, taken = {"bare predictions": bare, "scikit-learn": sklearns, "mlxtend": mlxtends, "captum": captums}, {}
    for name, how in peers.items(): taken[name] = seconds_of(how, peer_repeats)  # before ours and after it, for the machine may be busier at one time
    mine = seconds_of(ours, REPEATS)
    for name, how in peers.items():
        taken[name] = predictions / timed * (taken[name] + seconds_of(how, peer_repeats)) / 2
        if how is not bare: assert np.corrcoef(found[ours], found[how])[0, 1] > .9, name
        free = processor_seconds(lambda: how(nothing, table, label, REPEATS))
        row = {"benchmark": "importance_job", "job": f"{VARIABLES} variables x {REPEATS}, embeddings given", "ours_s": round(mine, 2), "peer": name,
               "peer_s": round(taken[name], 2), "ratio": round(taken[name] / mine, 3), "peer_overhead_s": round(free, 2),
               "peer_s_is": f"{predictions}/{timed} x {timed} timed predictions, the mean of two such"}
        print(json.dumps(row), flush=True)
    bare_s, free = taken["bare predictions"], processor_seconds(lambda: ours(nothing, table, label, REPEATS))
    print(json.dumps({"benchmark": "importance_overhead", "ratio": round(mine / bare_s, 3), "target": 1.12, "one_prediction_s": round(bare_s / predictions, 4),
                      "overhead_s": round(free, 2), "cases": cases, "threads": 1}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=252)
    parser.add_argument("--slow-shuffles", type=int, default=4, help="predictions of the slow way that are timed")
    parser.add_argument("--job-cases", type=int, default=1300)
    parser.add_argument("--peer-repeats", type=int, default=1, help="shuffles per variable of a peer that are timed and multiplied")
    args = parser.parse_args()
    print(json.dumps(embedding_once(args.cases, args.slow_shuffles)), flush=True)
    job(args.job_cases, args.peer_repeats)


if __name__ == "__main__":
    main()
