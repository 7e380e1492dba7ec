"""What reading bags costs beside the training step that uses them: a JSON line a setting, `ratio` = reading / step (target: at most 0.10).

The bags lie in one memory-mapped file, warm in the page cache, as from the second epoch on. A step is forward, Cox loss, backward and Adam of the
cross-attention model on the CPU; before each step its bags are drawn, timed apart, so that whatever else the machine does hits both
alike. Medians of CPU time. `ceiling`: drawing by numpy's generator, a case at a time, as a short script would do it.
"""
import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fusion_nb.bag_encoders import Bag
from fusion_nb.bag_fusion import build_bag_model
from fusion_nb.slide_features import Bags, _reopened, bags_of
from fusion_nb.survival_losses import cox_loss

MOST, CASES = 0.10, 120
# name: patches of a case (from, to), width, batch, bag, genes, augmented copies
SETTINGS = {"paper: 2,048 wide, batch 128, bag 32": ((300, 400), 2048, 128, 32, 12_778, 0),
            "paper: 2,048 wide, batch 32, bag 16": ((300, 400), 2048, 32, 16, 1_558, 0),
            "paper: 2,048 wide, batch 32, bag 16, 3 copies": ((300, 400), 2048, 32, 16, 1_558, 3),
            "twin: 64 wide, batch 32, bag 16": ((60, 200), 64, 32, 16, 200, 0),
            "twin: 64 wide, batch 32, bag 16, 3 copies": ((60, 200), 64, 32, 16, 200, 3),
            "twin: 64 wide, batch 128, bag 16": ((60, 200), 64, 128, 16, 200, 0)}


def mapped(folder: Path, sizes, dim: int, bag: int, copies: int) -> Bags:
    """Invented bags, their features in files."""
    rng = np.random.default_rng(0)
    bags = bags_of([rng.standard_normal((n, dim), dtype=np.float32) for n in rng.integers(*sizes, CASES)], bag_size=bag)
    files = {"features": str(folder / "features.npy"), **({"augmented": str(folder / "augmented.npy")} if copies else {})}
    np.save(folder / "features.npy", bags.features)
    if copies: np.save(folder / "augmented.npy", np.stack([bags.features] * copies))
    return _reopened({**vars(bags), **files})


def one_by_one(bags: Bags, rows, seed: int):
    """The same draw without our kernel."""
    tokens, mask = np.zeros((len(rows), bags.bag_size, bags.dim), np.float32), np.zeros((len(rows), bags.bag_size), bool)
    for i, row in enumerate(rows):
        patches = np.random.default_rng([seed, row]).permutation(np.arange(bags.offsets[row], bags.offsets[row + 1]))[:bags.bag_size]
        tokens[i, :len(patches)], mask[i, :len(patches)] = bags.features[np.sort(patches)], True
    return tokens, mask


def timed(work):
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


def measure(folder: Path, setting, repeats: int) -> dict:
    sizes, dim, batch, bag, genes, copies = setting
    bags, rng = mapped(folder, sizes, dim, bag, copies), np.random.default_rng(1)
    torch.manual_seed(0)
    hidden = (4096, 2048) if dim == 2048 else (64, 32)
    model = build_bag_model("cross_attention", token_dim=dim, table_dim=genes, gene_hidden=hidden).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    table, time_, event = torch.randn(batch, genes), torch.rand(batch) + 0.1, torch.arange(batch) % 2

    def step(tokens, mask):
        optimizer.zero_grad()
        cox_loss(model(Bag(torch.from_numpy(tokens), torch.from_numpy(mask)), table)["main"], time_, event.float()).backward()
        optimizer.step()

    taken = []
    for i in range(repeats + 2):
        rows = rng.integers(CASES, size=batch)
        drawn, reading = timed(lambda: bags.draw(rows, seed=(0, i)))
        _, stepping = timed(lambda: step(*drawn))
        _, slowly = timed(lambda: one_by_one(bags, rows, i))
        taken.append((reading, stepping, slowly))
    reading, stepping, slowly = (statistics.median(t) for t in zip(*taken[2:]))  # the first two warm the caches
    return {"reading_ms": round(1e3 * reading, 2), "step_ms": round(1e3 * stepping, 2), "ratio": round(reading / stepping, 3),
            "one_by_one_ms": round(1e3 * slowly, 2), "holds": reading <= MOST * stepping}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=60, help="steps of each setting of the twin, a twelfth of them of the paper's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, setting in SETTINGS.items():
        with tempfile.TemporaryDirectory() as tmp:
            row = measure(Path(tmp), setting, args.repeats if setting[1] < 2048 else max(3, args.repeats // 12))
            print(json.dumps({"benchmark": "bags", "synthetic": True, "setting": name, **row}), flush=True)


if __name__ == "__main__":
    main()
