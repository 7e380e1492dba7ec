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

from fusion_nb.metrics import (_placements, _run_tasks, auc, average_precision, check_scores, class_auc, confusion_counts, roc_points,
                               sensitivity_at_specificity, specificity_at_sensitivity, threshold_metric)
from fusion_nb.resample import METRICS
from fusion_nb.schema import DataError

ORACLES = Path(__file__).parent / "oracles"
PROC = json.loads((ORACLES / "proc.json").read_text())
SCORES, EDGE = pd.read_csv(ORACLES / "scores.csv"), pd.read_csv(ORACLES / "edge_cases.csv")


def sk_specificity(label, score, sensitivity=0.95):
    fpr, tpr, _ = sk.roc_curve(label, score, drop_intermediate=False)
    return 1 - fpr[tpr >= sensitivity].min()


def sk_sensitivity(label, score, specificity=0.95):
    fpr, tpr, _ = sk.roc_curve(label, score, drop_intermediate=False)
    return tpr[1 - fpr >= specificity - 1e-12].max()


def at_half(metric, **options):
    return lambda y, s: metric(y, s >= .5, **options)


def sk_net_benefit(label, score, t=.5):
    (_, fp), (_, tp) = sk.confusion_matrix(label, score >= t, labels=[0, 1])
    return tp / len(label) - fp / len(label) * t / (1 - t)


SKLEARN = {
    "auc": sk.roc_auc_score, "average_precision": sk.average_precision_score, "specificity_at_95_sensitivity": sk_specificity,
    "sensitivity_at_95_specificity": sk_sensitivity, "accuracy": at_half(sk.accuracy_score), "balanced_accuracy": at_half(sk.balanced_accuracy_score),
    "sensitivity": at_half(sk.recall_score), "specificity": at_half(sk.recall_score, pos_label=0),
    "precision": at_half(sk.precision_score, zero_division=np.nan), "f1": at_half(sk.f1_score, zero_division=np.nan),
    "macro_f1": at_half(sk.f1_score, average="macro"), "mcc": at_half(sk.matthews_corrcoef), "net_benefit": sk_net_benefit}
OURS = {name: METRICS[name] for name in SKLEARN}  # the metrics of probabilities are in test_calibration.py, those of survival in test_survival.py


def undefined_here(name, label, score):
    """Where scikit-learn answers 0 and we say that there is no answer: nothing, or everything, is called positive."""
    return name == "mcc" and len(np.unique(score >= .5)) == 1


def samples():
    """(label, score): ties of every degree, imbalance, ten rows and many."""
    rng = np.random.default_rng(0)
    for n in (10, 57, 400, 100_000):
        for decimals in (0, 1, 2, 12):
            for share in (.05, .5):
                label = rng.permutation(np.arange(n) < max(1, round(share * n))).astype(int)
                yield label, np.clip(.3 * label + .7 * rng.random(n), 0, 1).round(decimals)


@pytest.mark.parametrize("name", SKLEARN)
def test_every_metric_equals_sklearn(name):
    for label, score in samples():
        got = OURS[name].function(label, score)
        if undefined_here(name, label, score): assert np.isnan(got)
        else: assert got == pytest.approx(SKLEARN[name](label, score), abs=1e-12, nan_ok=True), len(label)


@pytest.mark.parametrize("name", [n for n, m in METRICS.items() if m.tasks is not None and "binary" in m.kinds])
def test_kernels_equal_numpy(name):
    rng = np.random.default_rng(0)
    for label, score in samples():
        if len(label) > 1000: continue
        unit = rng.permutation(len(label)) if name == "auc" else rng.integers(0, len(label) // 2, len(label))  # several rows to a unit
        counts = rng.poisson(1, (len(label), 70)).astype(np.uint8)
        fast = METRICS[name].finish(_run_tasks(METRICS[name].tasks(label, score, unit), counts))
        assert np.allclose(fast, METRICS[name].function(label, score, counts=counts[unit].T), rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("average", [None, "macro", "weighted"])
def test_several_classes_equal_sklearn(average):
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat([0, 1, 2, 3], [5, 20, 60, 15]))
    score = rng.dirichlet(np.ones(4), 100).round(2) + .5 * np.eye(4)[label]
    score /= score.sum(axis=1, keepdims=True)
    want = lambda rows: sk.roc_auc_score(label[rows], score[rows], multi_class="ovr", average=average)
    assert class_auc(label, score, average=average) == pytest.approx(want(np.arange(100)), abs=1e-12)
    counts = rng.poisson(1, (20, 100))
    for r, got in enumerate(class_auc(label, score, average=average, counts=counts)):
        assert got == pytest.approx(want(np.repeat(np.arange(100), counts[r])), abs=1e-12)
    called = score.argmax(axis=1)
    for name, theirs in (("accuracy", sk.accuracy_score), ("balanced_accuracy", sk.balanced_accuracy_score), ("mcc", sk.matthews_corrcoef)):
        assert threshold_metric(name, label, score) == pytest.approx(theirs(label, called), abs=1e-12)
    assert threshold_metric("macro_f1", label, score) == pytest.approx(sk.f1_score(label, called, average="macro"), abs=1e-12)
    assert (confusion_counts(label, score) == sk.confusion_matrix(label, called)).all()


def test_placements_make_the_auc():
    for label, score in samples():
        if len(label) > 1000: continue
        positive, above = label == 1, (score[:, None] > score) + .5 * (score[:, None] == score)
        want = np.where(positive, above[:, ~positive].mean(axis=1), above[positive].mean(axis=0))
        assert np.allclose(_placements(label, score), want, rtol=0, atol=1e-12)


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
    assert sensitivity_at_specificity(label, score) == specificity_at_sensitivity(1 - label, -score)
    for name, metric in OURS.items():
        got = metric.function(label, score, counts=counts)
        for r, c in enumerate(counts):
            drawn = np.repeat(np.arange(len(label)), c)
            if undefined_here(name, label[drawn], score[drawn]): assert np.isnan(got[r]), name
            elif len(set(label[drawn])) == 2: assert got[r] == pytest.approx(SKLEARN[name](label[drawn], score[drawn]), abs=1e-12, nan_ok=True), name
            elif metric.exchange == "ranks" and (name != "average_precision" or not label[drawn].any()): assert np.isnan(got[r]), name


def test_a_threshold_for_every_row():
    label, score = np.array([0, 1, 0, 1]), np.array([.2, .4, .6, .9])
    for name in ("accuracy", "f1", "mcc"): assert threshold_metric(name, label, score, threshold=np.array([.5, .3, .7, .5])) == 1
    with pytest.raises(DataError, match="one threshold between 0 and 1 for the net benefit.*3 thresholds from 0.3 to 0.7"):
        threshold_metric("net_benefit", label, score, threshold=np.array([.5, .3, .7, .5]))


@pytest.mark.parametrize("label, score, says", [
    ([0, 1, 1], [.1, np.nan, .2], "finite scores.*nan at position 1"),
    ([0, 1, 1], [.1, .3, np.inf], "finite scores.*inf at position 2"),
    ([1, 1, 1], [.1, .3, .2], "both classes.*3 cases, none of them of class 0"),
    ([0, 0], [.1, .3], "both classes.*none of them of class 1"),
    ([], [], "both classes.*no cases"),
    ([0, 1, 2], [.1, .3, .2], "labels 0 or 1.*Got 2 in 1 rows"),
    ([0, 1, np.nan], [.1, .3, .2], "labels 0 or 1.*Got nan"),
    (["no", "yes"], [.1, .3], "labels 0 or 1.*Got 'no' in 2 rows"),
    ([0, 1], [.1, .3, .2], r"one label and one score.*\(2,\).*\(3,\)"),
])
def test_bad_input_is_refused_by_every_metric(label, score, says):
    for call in (check_scores, roc_points, *(m.function for m in METRICS.values() if "binary" in m.kinds)):
        with pytest.raises(DataError, match=says): call(np.array(label), np.array(score))


def test_bad_options():
    label, score = np.array([0, 1]), np.array([.1, 7])
    with pytest.raises(DataError, match="counts of shape"): auc(label, score, counts=np.ones((3, 5)))
    with pytest.raises(DataError, match="probabilities.*to 7"): METRICS["brier"].function(label, score)
    with pytest.raises(DataError, match="Did you mean 'weighted'"): class_auc(label, np.eye(2), average="weigted")
    with pytest.raises(DataError, match="labels 0, 1 or 2.*Got 3 in 1 rows.*column of scores"): class_auc(np.array([0, 1, 2, 3]), np.ones((4, 3)))
    with pytest.raises(DataError, match="cases of every class.*none of them of class 1"): class_auc(np.array([0, 2, 2]), np.ones((3, 3)))
    with pytest.raises(DataError, match="finite scores"): average_precision(label, score * np.nan)
    for wrong in (0, 95, np.nan):
        with pytest.raises(DataError, match="sensitivity"): specificity_at_sensitivity(label, score, sensitivity=wrong)


def test_the_statistics_do_not_load_torch():
    modules = "predictions metrics survival calibration resample compare delong paired_tests fusion_gain operating_point curves".split()
    code = f"import sys; {'; '.join(f'import fusion_nb.{m}' for m in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_scores_of_several_classes_are_not_taken_for_one():
    label, two = np.array([0, 1, 1]), np.array([[.9, .1], [.2, .8], [.4, .6]])
    for metric in (auc, average_precision, specificity_at_sensitivity, sensitivity_at_specificity, roc_points):
        with pytest.raises(DataError, match=r"one score per case.*\(3, 2\).*score\[:, 1\]"): metric(label, two)
    with pytest.raises(DataError, match="a column of scores for each class"): class_auc(label, two[:, 1])
    for name in ("sensitivity", "specificity", "precision", "f1", "net_benefit"):
        with pytest.raises(DataError, match=f"one score per case for {name}"): threshold_metric(name, label, two)
    with pytest.raises(DataError, match="a threshold for every case.*NaN"): threshold_metric("accuracy", label, two[:, 1], threshold=np.nan)
