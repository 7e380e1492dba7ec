"""What the training loop costs beyond the tensor steps themselves: one JSON line, `ratio` = loop / bare steps (target: at most 1.05).

Two equal models (SmallCNN on 64x64 images, batches of 64) are trained on the CPU. The bare one gets ready float tensors and does nothing but
forward, loss, backward and optimiser. The other is trained by `fit`, all of it but augmentation, which is work and not overhead: reading bytes,
converting, shuffling, seeding, Fabric, checks, validation of a handful of cases, the progress bar. After each step of the loop comes one
bare step, timed apart, so that whatever else the machine does hits both alike. The median of several repeats counts.
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


def small_model():
    return build_model("feature_fusion", "small_cnn", table_dim=8, hidden=(64, 32))


class BareSteps:
    """Trains on ready batches, one step a call, and adds up the time."""

    def __init__(self, batches):
        self.batches, self.model, self.seconds, self.calls = batches, small_model().train(), 0.0, 0
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)

    def step(self):
        within = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)  # a price that the loop pays, not the bare steps
        start = time.perf_counter()
        batch = self.batches[self.calls % len(self.batches)]
        loss = multi_head_loss(self.model(batch["image"], batch["table"]), batch["label"], smoothing=0.1)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds += time.perf_counter() - start
        self.calls += 1
        torch.use_deterministic_algorithms(within, warn_only=True)


class Interleaved(FusionData):
    """Data that calls `between` after each training step."""

    between = None

    def batches(self, rows, **options):
        for batch in super().batches(rows, **options):
            yield batch
            if options.get("shuffle_seed"): Interleaved.between()


def make_data(n: int) -> FusionData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 1, 64, 64), dtype=np.uint8)
    return Interleaved(images, rng.normal(size=(n, 8)).astype("float32"), (np.arange(n) % 2).astype("float32"))


def measure(data, epochs: int) -> tuple:
    """Seconds of the loop and of as many bare steps."""
    rows = np.arange(len(data))
    bare = BareSteps(list(data.batches(rows[:-VALIDATION], batch_size=BATCH)))
    Interleaved.between = bare.step
    config = TrainConfig(batch_size=BATCH, epochs=epochs, patience=epochs, augment=False, accelerator="cpu")
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # the bar is drawn, but not into the output
        fit(small_model(), data, rows[:-VALIDATION], rows[-VALIDATION:], config=config)
    return time.perf_counter() - start - bare.seconds, bare.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16, help="steps per epoch")
    args = parser.parse_args()
    data = make_data(args.steps * BATCH + VALIDATION)
    measure(data, 1)  # the first call loads libraries
    times = [measure(data, args.epochs) for _ in range(args.repeats)]
    loop, bare = map(statistics.median, zip(*times))
    print(json.dumps({"benchmark": "train_loop", "ratio": round(statistics.median(a / b for a, b in times), 4), "target": 1.05,
                      "loop_s": round(loop, 4), "bare_s": round(bare, 4), "steps": args.steps * args.epochs,
                      "repeats": args.repeats, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
