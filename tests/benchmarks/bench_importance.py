"""What embedding the images once saves in permutation importance: one JSON line, `ratio` = recomputing / embedding once (target: at least 20).

A ResNet-18 on 64x64 images, learned fusion, 18 variables shuffled 30 times each. The fast way is timed as a whole, the one embedding included.
The slow way runs the whole network for every shuffle; only `--slow-shuffles` of its 541 predictions are timed and their median is multiplied,
and the JSON line says so. Both ways are first checked to give the same importance.
"""
import argparse
import json
import statistics
import time

import numpy as np
import torch

from fusion_nb.batches import FusionData
from fusion_nb.encoders import image_encoder
from fusion_nb.fusion import build_model
from fusion_nb.importance import permutation_importance
from fusion_nb.train import embed_images, predict, predict_from_embeddings

VARIABLES, REPEATS, COLUMNS = 18, 30, 33


def make_data(n: int) -> FusionData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 1, 64, 64), dtype=np.uint8)
    return FusionData(images, rng.normal(size=(n, COLUMNS)).astype("float32"), (np.arange(n) % 2).astype("float32"))


def fast(model, data, columns_of, n_repeats):
    embeddings = embed_images(model, data, np.arange(len(data)))
    return permutation_importance(lambda table: predict_from_embeddings(model, embeddings, table), data.table, data.labels,
                                  columns_of=columns_of, n_repeats=n_repeats)


def slow(model, data, columns_of, n_repeats):
    def whole(table):
        return predict(model, FusionData(data.images, table, data.labels), np.arange(len(data)))
    return permutation_importance(whole, data.table, data.labels, columns_of=columns_of, n_repeats=n_repeats)


def seconds(work, *args) -> float:
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=252)
    parser.add_argument("--slow-shuffles", type=int, default=4, help="predictions of the slow way that are timed")
    args = parser.parse_args()
    data = make_data(args.cases)
    model = build_model("learned_concat", lambda: image_encoder("resnet18", channels=1), table_dim=COLUMNS)
    columns_of = {f"v{i}": columns.tolist() for i, columns in enumerate(np.array_split(np.arange(COLUMNS), VARIABLES))}
    one = {"v0": columns_of["v0"]}
    np.testing.assert_allclose(fast(model, data, one, 1)["permuted"], slow(model, data, one, 1)["permuted"], atol=1e-3)  # also warms up
    fast_s = seconds(fast, model, data, columns_of, REPEATS)
    # one variable, one shuffle: two whole predictions, the intact one and the shuffled one
    each = statistics.median(seconds(slow, model, data, one, 1) / 2 for _ in range(-(-args.slow_shuffles // 2)))
    predictions = 1 + VARIABLES * REPEATS
    print(json.dumps({"benchmark": "importance", "ratio": round(predictions * each / fast_s, 1), "target": 20, "fast_s": round(fast_s, 3),
                      "slow_s": round(predictions * each, 1), "slow_s_is": f"{predictions} x the median of {args.slow_shuffles} timed predictions",
                      "cases": args.cases, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
