"""Writes the small synthetic score files that the oracles read: scores.csv and edge_cases.csv, beside this script.

Run once: `python tests/oracles/make_scores.py`. The files are committed, so that R and Python read the same numbers.
"""
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent


def scores() -> pd.DataFrame:
    """400 cases of 250 patients, 30% positive: two continuous scores and one of few values, full of ties."""
    rng = np.random.default_rng(20210)
    patient = np.sort(np.concatenate([np.arange(250), rng.integers(0, 250, 150)]))
    y = rng.binomial(1, 0.3, 400)
    image, table = 0.9 * y + rng.normal(size=400), 0.8 * y + rng.normal(size=400)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    return pd.DataFrame({
        "case_id": [f"c{i:03d}" for i in range(400)], "patient": [f"p{p:03d}" for p in patient], "y_true": y,
        "image": sigmoid(image - 0.5).round(9), "table": sigmoid(table - 0.5).round(1), "fusion": sigmoid(image + table - 1).round(9)})


def edge_cases() -> pd.DataFrame:
    """Small files that break careless code: everything tied, one positive, perfect, inverted, ten rows."""
    cases = {
        "all_equal": ([1, 0, 1, 0, 0], [0.5] * 5),
        "one_positive": ([0, 0, 0, 1, 0, 0], [0.1, 0.4, 0.35, 0.4, 0.8, 0.2]),
        "perfect": ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),
        "inverted": ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]),
        "ten_with_ties": ([1, 1, 1, 0, 1, 0, 0, 1, 0, 0], [0.9, 0.8, 0.8, 0.8, 0.6, 0.6, 0.5, 0.3, 0.3, 0.1]),
        "logits": ([1, 0, 1, 0, 1, 0], [3.5, -2.0, 0.25, 0.5, -0.125, -7.0]),
    }
    return pd.concat([pd.DataFrame({"case": name, "y_true": y, "score": s}) for name, (y, s) in cases.items()])


if __name__ == "__main__":
    scores().to_csv(HERE / "scores.csv", index=False)
    edge_cases().to_csv(HERE / "edge_cases.csv", index=False)
