"""Otsu's thresholds of scikit-image for tests/test_slides.py: `pip install scikit-image`, then `python tests/oracles/slides.py` rewrites slides.json.

The pixels are drawn from the seeds in `PICTURES`, so that the test can draw the same ones.
"""
import json
from pathlib import Path

import numpy as np

PICTURES = {"two kinds": (0, (60, 200), (15, 10)), "overlapping": (1, (110, 150), (20, 20)), "three kinds": (2, (30, 120, 240), (5, 30, 3)),
            "one kind": (3, (243,), (2,)), "nearly nothing dark": (4, (90,) + (243,) * 40, (10,) + (3,) * 40)}


def pixels(name: str) -> np.ndarray:
    """uint8 (100, 100): normal values around each of the means."""
    seed, means, spreads = PICTURES[name]
    rng = np.random.default_rng(seed)
    which = rng.integers(len(means), size=(100, 100))
    return np.clip(rng.normal(np.array(means)[which], np.array(spreads)[which]), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    import skimage
    from skimage.filters import threshold_otsu

    found = {name: int(threshold_otsu(pixels(name))) for name in PICTURES}
    Path(__file__).with_suffix(".json").write_text(json.dumps({"scikit-image": skimage.__version__, "thresholds": found}, indent=1) + "\n")
