"""What the training loop costs beyond the tensor steps themselves: one JSON line, `ratio` = loop / bare steps (target: at most 1.05).

Both train the same SmallCNN on the same 64x64 images in batches of 64, on the CPU. The bare steps get their batches as ready float tensors; the
loop is all of `fit` but augmentation (which is work, not overhead): reading bytes, converting, shuffling, seeding, Fabric, checks, validation of a
handful of cases, the progress bar. The two take turns, so that a busy machine slows both; the median of the turns' ratios counts.
"""
import argparse
import contextlib
import io
import json
import statistics
import time

import numpy as np
import torch

from fusion_nb.batches import FusionData
from fusion_nb.fusion import build_model
from fusion_nb.losses import multi_head_loss
from fusion_nb.train import TrainConfig, fit

BATCH, VALIDATION = 64, 8


def make_data(n: int) -> FusionData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 1, 64, 64), dtype=np.uint8)
    return FusionData(images, rng.normal(size=(n, 8)).astype("float32"), (np.arange(n) % 2).astype("float32"))


def small_model():
    return build_model("feature_fusion", "small_cnn", table_dim=8, hidden=(64, 32))


def bare_seconds(batches, epochs: int) -> float:
    model = small_model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    start = time.perf_counter()
    for batch in [b for _ in range(epochs) for b in batches]:
        loss = multi_head_loss(model(batch["image"], batch["table"]), batch["label"], smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def loop_seconds(data: FusionData, epochs: int) -> float:
    rows = np.arange(len(data))
    config = TrainConfig(batch_size=BATCH, epochs=epochs, augment=False, accelerator="cpu")
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # the bar is drawn, but not into the output
        fit(small_model(), data, rows[:-VALIDATION], rows[-VALIDATION:], config=config)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16, help="steps per epoch")
    args = parser.parse_args()
    data = make_data(args.steps * BATCH + VALIDATION)
    ready = list(data.batches(np.arange(args.steps * BATCH), batch_size=BATCH))
    bare_seconds(ready, 1), loop_seconds(data, 1)  # first calls load libraries
    bare, loop = zip(*((bare_seconds(ready, args.epochs), loop_seconds(data, args.epochs)) for _ in range(args.repeats)))
    ratio = statistics.median(slow / fast for fast, slow in zip(bare, loop))
    print(json.dumps({"benchmark": "train_loop", "ratio": round(ratio, 4), "target": 1.05, "bare_s": round(statistics.median(bare), 4),
                      "loop_s": round(statistics.median(loop), 4), "steps": args.steps * args.epochs, "repeats": args.repeats,
                      "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
