"""Run by test_slide_features.py: `killed_extraction.py FOLDER OUT KILL_AT` extracts FOLDER's slides to OUT twice, the first time killed with SIGKILL.

Each attempt is a forked process; the first ends at its KILL_AT-th batch. Prints the signal that ended it, the files that were there then, and how
many batches the second one encoded; each once plain and once as an augmented copy.
"""
import os
import signal
import sys
from pathlib import Path

import pandas as pd
import torch

from fusion_nb import slide_features
from fusion_nb.slide_features import extract_features

torch.set_num_threads(1)  # a forked process must not inherit the threads of a pool


class Doomed(torch.nn.Module):
    """Mean colours of quarters of the tile; ends the process at a given batch."""

    dim = 12

    def __init__(self, kill_at: int | None = None):
        super().__init__()
        self.kill_at, self.calls = kill_at, 0

    def forward(self, image):
        self.calls += 1
        if self.calls == self.kill_at: os.kill(os.getpid(), signal.SIGKILL)
        return torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(1)


def extract(folder, out, encoder):
    paths = sorted(Path(folder).glob("*.tif"))
    slides = pd.DataFrame({"slide": [p.stem for p in paths], "path": [str(p) for p in paths]})
    return extract_features(slides, Path(out), encoder=encoder, copies=1, tiling={"size": 32, "max_tiles": 20}, progress=False)


def attempt(folder, out, kill_at) -> int:
    """In a process of its own: the signal that ended it, or 0."""
    child = os.fork()
    if not child:
        encoder = Doomed(kill_at)
        extract(folder, out, encoder)
        print(encoder.calls, flush=True)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    folder, out, kill_at = sys.argv[1:]
    slide_features._BATCH = 8
    print(attempt(folder, out, int(kill_at)), flush=True)
    print(*sorted(p.name for p in Path(out).glob("[!.]*.h5")), flush=True)
    print(attempt(folder, out, None), flush=True)
