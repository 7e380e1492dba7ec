"""Metrics against scikit-learn, pROC and their own properties."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings, strategies as st

from fusion_nb.metrics import METRICS, accuracy, auc, brier, check_scores, f1, roc_points, specificity_at_sensitivity
from fusion_nb.schema import DataError

ORACLES = Path(__file__).parent / "oracles"
PROC = json.loads((ORACLES / "proc.json").read_text())
SCORES, EDGE = pd.read_csv(ORACLES / "scores.csv"), pd.read_csv(ORACLES / "edge_cases.csv")


def sk_specificity(label, score, sensitivity=0.95):
    fpr, tpr, _ = sk.roc_curve(label, score, drop_intermediate=False)
    return 1 - fpr[tpr >= sensitivity].min()


SKLEARN = {"auc": sk.roc_auc_score, "specificity_at_95_sensitivity": sk_specificity, "accuracy": lambda y, s: sk.accuracy_score(y, s >= .5),
           "f1": lambda y, s: sk.f1_score(y, s >= .5), "brier": sk.brier_score_loss}


def samples():
    """(label, score): ties of every degree, imbalance, ten rows and many."""
    rng = np.random.default_rng(0)
    for n in (10, 57, 400, 100_000):
        for decimals in (0, 1, 2, 12):
            for share in (.05, .5):
                label = rng.permutation(np.arange(n) < max(1, round(share * n))).astype(int)
                yield label, np.clip(.3 * label + .7 * rng.random(n), 0, 1).round(decimals)


def test_every_metric_equals_sklearn():
    assert SKLEARN.keys() == METRICS.keys()
    for label, score in samples():
        for name, metric in METRICS.items():
            assert metric.function(label, score) == pytest.approx(SKLEARN[name](label, score), abs=1e-12), (name, len(label))


@pytest.mark.parametrize("model", PROC["models"])
def test_auc_equals_proc(model):
    assert auc(SCORES["y_true"], SCORES[model]) == pytest.approx(PROC["models"][model]["auc"], abs=1e-9)


@pytest.mark.parametrize("sensitivity", [0.95, 0.80])
@pytest.mark.parametrize("model", PROC["models"])
def test_specificity_equals_proc_up_to_its_line_through_ties(model, sensitivity):
    ours = specificity_at_sensitivity(SCORES["y_true"], SCORES[model], sensitivity=sensitivity)
    theirs = PROC["models"][model][f"specificity_at_{sensitivity * 100:.0f}"]
    if model != "table":  # no ties
        assert ours == pytest.approx(theirs, abs=1e-9)
    else:  # pROC's point lies on the line from our step to the one before it
        points = roc_points(SCORES["y_true"], SCORES[model])
        assert ours < theirs == pytest.approx(np.interp(sensitivity, points["sensitivity"], points["specificity"]), abs=1e-9)
        assert ours == points.query("sensitivity >= @sensitivity")["specificity"].max()


@pytest.mark.parametrize("case", PROC["edge_cases"])
def test_edge_cases_equal_proc(case):
    rows = EDGE[EDGE["case"] == case]
    assert auc(rows["y_true"], rows["score"]) == pytest.approx(PROC["edge_cases"][case]["auc"], abs=1e-9)
    theirs = pd.DataFrame(PROC["edge_cases"][case]["points"]).sort_values(["sensitivity", "specificity"], ascending=[True, False])
    ours = roc_points(rows["y_true"], rows["score"])[["sensitivity", "specificity"]]
    assert np.allclose(ours, theirs, atol=1e-9)


def test_roc_points_equal_sklearn():
    for label, score in samples():
        fpr, tpr, thresholds = sk.roc_curve(label, score, drop_intermediate=False)
        points = roc_points(label, score)
        assert np.allclose(points["sensitivity"], tpr, atol=1e-12) and np.allclose(1 - points["specificity"], fpr, atol=1e-12)
        assert np.array_equal(points["threshold"], thresholds)


def test_nineteen_of_twenty_are_95_percent():
    label = np.r_[np.ones(20, int), np.zeros(10, int)]
    score = np.r_[np.linspace(1, 2, 19), -1, np.zeros(10)]
    assert specificity_at_sensitivity(label, score) == 1
    for positives in (20, 40, 60, 100, 1000, 1006):  # and no other count slips over the edge
        label = np.r_[np.ones(positives, int), 0]
        score = np.r_[np.arange(positives, 0, -1), positives - np.ceil(.95 * positives - 1e-9) + 1.5]
        assert specificity_at_sensitivity(label, score) == sk_specificity(label, score) == 0


pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(-5, 5)), min_size=4, max_size=40).filter(lambda p: 0 < sum(y for y, _ in p) < len(p))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(pairs)
def test_properties(rows):
    label, score = np.array(rows).T
    score = score / 10 + .5
    assert auc(label, np.exp(3 * score)) == auc(label, score)
    assert auc(1 - label, score) == pytest.approx(1 - auc(label, score), abs=1e-12)
    counts = np.random.default_rng(0).integers(0, 4, (5, len(label)))
    for name, metric in METRICS.items():
        got = metric.function(label, score, counts=counts)
        for r, c in enumerate(counts):
            drawn = np.repeat(np.arange(len(label)), c)
            if len(set(label[drawn])) == 2: assert got[r] == pytest.approx(SKLEARN[name](label[drawn], score[drawn]), abs=1e-12), name
            elif name in ("auc", "specificity_at_95_sensitivity"): assert np.isnan(got[r])


def test_a_threshold_for_every_row():
    label, score = np.array([0, 1, 0, 1]), np.array([.2, .4, .6, .9])
    assert accuracy(label, score, threshold=np.array([.5, .3, .7, .5])) == 1
    assert f1(label, score, threshold=np.array([.5, .3, .7, .5])) == 1


@pytest.mark.parametrize("label, score, says", [
    ([0, 1, 1], [.1, np.nan, .2], "finite scores.*nan at position 1"),
    ([0, 1, 1], [.1, .3, np.inf], "finite scores.*inf at position 2"),
    ([1, 1, 1], [.1, .3, .2], "both classes.*3 cases, all of them 1"),
    ([0, 0], [.1, .3], "both classes.*all of them 0"),
    ([], [], "both classes.*no cases"),
    ([0, 1, 2], [.1, .3, .2], "labels 0 or 1.*Got 2 in 1 rows"),
    ([0, 1, np.nan], [.1, .3, .2], "labels 0 or 1.*Got nan"),
    (["no", "yes"], [.1, .3], "labels 0 or 1.*Got 'no' in 2 rows"),
    ([0, 1], [.1, .3, .2], r"one score per case.*\(2,\).*\(3,\)"),
])
def test_bad_input_is_refused_by_every_metric(label, score, says):
    for call in (check_scores, roc_points, *(m.function for m in METRICS.values())):
        with pytest.raises(DataError, match=says): call(np.array(label), np.array(score))


def test_bad_options():
    label, score = np.array([0, 1]), np.array([.1, 7])
    with pytest.raises(DataError, match="counts of shape"): auc(label, score, counts=np.ones((3, 5)))
    with pytest.raises(DataError, match="probabilities.*to 7"): brier(label, score)
    for wrong in (0, 95, np.nan):
        with pytest.raises(DataError, match="sensitivity"): specificity_at_sensitivity(label, score, sensitivity=wrong)


def test_the_statistics_do_not_load_torch():
    modules = "predictions metrics resample compare".split()
    code = f"import sys; {'; '.join(f'import fusion_nb.{m}' for m in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
