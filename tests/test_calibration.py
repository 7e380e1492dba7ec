"""Calibration against scikit-learn, statsmodels and base R, on the sample and on every resample of it."""
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
import statsmodels.api as sm
from hypothesis import given, settings, strategies as st
from scipy.optimize import brentq
from scipy.special import expit, logit, softmax
from sklearn.calibration import calibration_curve
from statsmodels.stats.proportion import proportion_confint

from fusion_nb.calibration import (brier, calibration_error, calibration_intercept, calibration_slope, decision_curve, log_loss,
                                   reliability_points)
from fusion_nb.metrics import threshold_metric
from fusion_nb.schema import DataError

ORACLES = Path(__file__).parent / "oracles"
R = json.loads((ORACLES / "calibration.json").read_text())
SCORES = pd.read_csv(ORACLES / "scores.csv")
BINARY = {"brier": brier, "log_loss": log_loss, "ece": calibration_error,
          "ece_equal_mass": lambda y, p, **o: calibration_error(y, p, equal_mass=True, **o),
          "ece_7": lambda y, p, **o: calibration_error(y, p, equal_mass=True, bins=7, **o),
          "slope": calibration_slope, "intercept": calibration_intercept}


def kept(p):
    return np.clip(p, 1e-6, 1 - 1e-6)


def sm_slope(label, p):
    return sm.GLM(label, sm.add_constant(logit(kept(p)), has_constant="add"), family=sm.families.Binomial()).fit(tol=1e-14, maxiter=200).params[1]


def sm_intercept(label, p):
    return sm.GLM(label, np.ones(len(p)), family=sm.families.Binomial(), offset=logit(kept(p))).fit(tol=1e-14, maxiter=200).params[0]


def ece_by_hand(label, p, bins, equal_mass):
    """Bin by bin and case by case."""
    in_bin = [bins * (p < one).sum() // len(p) if equal_mass else max(0, int(np.ceil(round(one * bins, 9))) - 1) for one in p]
    rows = pd.DataFrame({"gap": label - p}).groupby(in_bin)["gap"].sum()
    return rows.abs().sum() / len(p)


def samples():
    """(label, probability): ties of every degree, imbalance, one positive, ten rows and many."""
    rng = np.random.default_rng(0)
    for n, places in ((10, (1, 2, 12)), (57, (1, 2, 12)), (400, (1, 2, 12)), (100_000, (2,))):
        for decimals in places:
            for share in (0, .05, .5):
                label = rng.permutation(np.arange(n) < max(1, round(share * n))).astype(int)
                yield label, expit(1.5 * label + rng.normal(-1, 1.5, n)).round(decimals)


def test_brier_and_log_loss_equal_sklearn():
    for label, p in samples():
        assert brier(label, p) == pytest.approx(sk.brier_score_loss(label, p), abs=1e-12)
        assert log_loss(label, p) == pytest.approx(sk.log_loss(label, p), abs=1e-12)
    certain = np.array([0, 1, 0, 1]), np.array([0.0, 1, 1, 0])
    assert log_loss(*certain) == pytest.approx(sk.log_loss(*certain), abs=1e-12) and brier(*certain) == .5


@pytest.mark.parametrize("classes", [3, 7])
def test_several_classes_equal_sklearn(classes):
    rng = np.random.default_rng(classes)
    label = np.r_[np.arange(classes), rng.integers(0, classes, 200)]
    p = softmax(2 * rng.normal(size=(len(label), classes)) + np.eye(classes)[label], axis=1)
    p[5] = np.eye(classes)[1]  # certain, and wrong
    counts = rng.multinomial(len(label), np.full(len(label), 1 / len(label)), size=8)
    for ours, theirs in ((brier, sk.brier_score_loss), (log_loss, sk.log_loss)):
        assert ours(label, p) == pytest.approx(theirs(label, p, labels=range(classes)), abs=1e-12)
        got = ours(label, p, counts=counts)
        for value, c in zip(got, counts):
            drawn = np.repeat(np.arange(len(label)), c)
            assert value == pytest.approx(theirs(label[drawn], p[drawn], labels=range(classes)), abs=1e-12)


def test_calibration_error_equals_sklearn_where_its_bins_are_the_same():
    rng = np.random.default_rng(1)
    for label, p in [*samples(), (rng.integers(0, 2, 100), np.arange(1, 101) / 100)]:
        for bins in (1, 5, 10):
            observed, predicted = calibration_curve(label, p, n_bins=bins)
            points = reliability_points(label, p, bins=bins, equal_mass=False)
            np.testing.assert_allclose(points[["observed", "predicted"]], np.stack([observed, predicted], 1), rtol=0, atol=1e-12)
            error = (np.abs(observed - predicted) * points["n"]).sum() / len(p)
            assert calibration_error(label, p, bins=bins) == pytest.approx(error, abs=1e-12)
    p = rng.permutation(np.arange(400) / 400 + .001)  # no ties, and as many cases in each bin: quantiles cut there too
    label = rng.binomial(1, p ** 2)
    observed, predicted = calibration_curve(label, p, n_bins=8, strategy="quantile")
    assert calibration_error(label, p, bins=8, equal_mass=True) == pytest.approx(np.abs(observed - predicted).mean(), abs=1e-12)


def test_calibration_error_by_hand():
    for label, p in samples():
        if len(label) > 1000: continue
        for bins in (1, 3, 10, 1000):
            for equal_mass in (False, True):
                got = calibration_error(label, p, bins=bins, equal_mass=equal_mass)
                assert got == pytest.approx(ece_by_hand(label, p, bins, equal_mass), abs=1e-12)


def test_slope_and_intercept_equal_statsmodels():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for label, p in samples():
            intercept = calibration_intercept(label, p)
            assert expit(intercept + logit(kept(p))).sum() == pytest.approx(label.sum(), abs=1e-8)  # what defines it: as many expected as seen
            if intercept > -15: assert intercept == pytest.approx(sm_intercept(label, p), abs=1e-9)  # one in 100,000: statsmodels diverges
            positives, negatives = p[label == 1], p[label == 0]
            if positives.min() < negatives.max() and negatives.min() < positives.max():
                assert calibration_slope(label, p) == pytest.approx(sm_slope(label, p), abs=1e-9)


@pytest.mark.parametrize("model", R["models"])
def test_equal_to_base_r(model):
    label, p, want = SCORES["y_true"].to_numpy(), SCORES[model].to_numpy(), R["models"][model]
    assert calibration_slope(label, p) == pytest.approx(want["slope"], abs=1e-9)
    assert calibration_intercept(label, p) == pytest.approx(want["intercept"], abs=1e-9)
    assert brier(label, p) == pytest.approx(want["brier"], abs=1e-12)
    assert calibration_error(label, p * p) == pytest.approx(want["ece_of_square"], abs=1e-9)
    assert calibration_error(label, p * p, equal_mass=True) == pytest.approx(want["ece_equal_mass_of_square"], abs=1e-9)
    points = reliability_points(label, p)[["n", "predicted", "observed", "observed_low", "observed_high"]]
    np.testing.assert_allclose(points, want["wilson"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(decision_curve(label, p, thresholds=R["thresholds"])["net_benefit"], want["net_benefit"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_every_resample_equals_the_metric_of_its_rows(decimals):
    rng = np.random.default_rng(decimals)
    label = rng.binomial(1, .3, 200)
    p = expit(label + rng.normal(-1, 2, 200)).round(decimals)
    for counts in (rng.multinomial(200, np.full(200, 1 / 200), size=30), rng.integers(0, 6, (5, 200)).astype(np.uint8), np.ones((1, 200))):
        for name, metric in BINARY.items():
            got = metric(label, p, counts=counts)
            assert got.shape == (len(counts),)
            for value, c in zip(got, counts):
                drawn = np.repeat(np.arange(200), c.astype(int))
                assert value == pytest.approx(metric(label[drawn], p[drawn]), abs=1e-12), name


both_classes = lambda rows: 0 < sum(y for y, _ in rows) < len(rows)
pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9)), min_size=4, max_size=30).filter(both_classes)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pairs, st.integers(0, 2 ** 32 - 1))
def test_properties(rows, seed):
    label, tenths = np.array(rows).T
    p, rng = tenths / 10, np.random.default_rng(seed)
    turn, counts = rng.permutation(len(p)), rng.integers(0, 3, (4, len(p)))
    for name, metric in BINARY.items():
        try: value = metric(label, p)
        except DataError:
            assert name == "slope"
            continue
        assert metric(label[turn], p[turn]) == pytest.approx(value, abs=1e-12, rel=1e-12), name  # the order of the rows is nothing
        assert metric(np.tile(label, 3), np.tile(p, 3)) == pytest.approx(value, abs=1e-12, rel=1e-12), name  # nor is their number
        if name in ("slope", "intercept"):  # turning the classes round
            assert metric(1 - label, 1 - p) == pytest.approx(value if name == "slope" else -value, abs=1e-8, rel=1e-8)
        for got, c in zip(metric(label, p, counts=counts), counts):
            drawn = np.repeat(np.arange(len(p)), c)
            try: want = metric(label[drawn], p[drawn])
            except DataError:  # one class, or no slope; the losses and the error are means of whatever was drawn
                assert np.isnan(got) == (name in ("slope", "intercept") or not len(drawn)), name
                continue
            assert got == pytest.approx(want, abs=1e-12, rel=1e-12), name


def test_tied_scores_are_never_parted():
    rng = np.random.default_rng(3)
    label, p = rng.integers(0, 2, 1000), rng.choice([.1, .2, .25, .7], 1000, p=[.05, .6, .3, .05])
    points = reliability_points(label, p, bins=50)
    assert points["low"].tolist() == points["high"].tolist() == [.1, .2, .25, .7] and points["n"].sum() == 1000
    assert calibration_error(label, p, bins=50, equal_mass=True) == pytest.approx(
        sum(abs((label - p)[p == v].sum()) for v in np.unique(p)) / 1000, abs=1e-12)


def test_resamples_of_certain_scores():
    """Where all is 0 or 1 the information is a millionth of the usual, and rounding that much larger."""
    rng = np.random.default_rng(8)
    for _ in range(40):
        label, p = np.r_[0, 1, rng.integers(0, 2, 10)], rng.choice([0, .5, 1], 12, p=[.45, .1, .45])
        counts = rng.multinomial(12, np.full(12, 1 / 12), size=10)
        for value, c in zip(calibration_intercept(label, p, counts=counts), counts):
            drawn = np.repeat(np.arange(12), c)
            if len(set(label[drawn])) == 2: assert value == pytest.approx(calibration_intercept(label[drawn], p[drawn]), abs=1e-9)
            else: assert np.isnan(value)


def test_edges_belong_to_the_bin_below():
    points = reliability_points([0, 1, 0, 1, 1], [0, .1, .2, .3, 1], equal_mass=False)
    assert points["n"].tolist() == [2, 1, 1, 1] and points["low"].tolist() == [0, .2, .3, 1]
    for bins in (3, 7, 10, 15, 49):  # k/bins as a person writes it
        points = reliability_points(np.arange(bins) % 2 if bins > 1 else [0, 1], np.arange(1, bins + 1) / bins, bins=bins, equal_mass=False)
        assert points["n"].tolist() == [1] * bins


def test_a_perfect_model_has_slope_1_and_intercept_0_and_little_error():
    rng = np.random.default_rng(4)
    truth = rng.normal(-1, 1.5, 100_000)
    label, p = rng.binomial(1, expit(truth)), expit(truth)
    assert calibration_slope(label, p) == pytest.approx(1, abs=.03) and calibration_intercept(label, p) == pytest.approx(0, abs=.03)
    assert max(calibration_error(label, p), calibration_error(label, p, equal_mass=True)) < .006
    for b, a in ((.5, 0), (2, 1)):  # exact: the regression undoes a line
        slope = calibration_slope(label, expit(b * truth + a))
        assert slope == pytest.approx(calibration_slope(label, p) / b, abs=1e-6)
    assert calibration_intercept(label, expit(truth + 1)) == pytest.approx(calibration_intercept(label, p) - 1, abs=1e-6)


@pytest.mark.parametrize("label, p, says", [
    ([0, 0, 1, 1], [.1, .2, .8, .9], "Got scores that part the classes without an error"),
    ([1, 1, 0, 0], [.1, .2, .8, .9], "Got scores that part the classes without an error"),
    ([0, 0, 1, 1], [.1, .5, .5, .9], "Got scores that part the classes without an error"),
    ([0, 0, 1, 1], [.3, .3, .3, .3], "Got one score for every case"),
    ([0, 0, 1, 1], [1, 1 - 1e-9, 1, 1], "Got one score for every case"),
])
def test_no_slope_is_an_error_on_the_sample(label, p, says):
    with pytest.raises(DataError, match=f"finite slope. {says}. Leave the slope out"): calibration_slope(label, p)
    with pytest.raises(DataError, match=says): calibration_slope(label, p, counts=np.ones((2, 4), int))
    assert np.isfinite(calibration_intercept(label, p)) and np.isfinite(brier(label, p)) and np.isfinite(log_loss(label, p))


def test_no_slope_is_nan_in_a_resample():
    label, p = np.array([0, 0, 1, 1]), np.array([.1, .6, .5, .9])
    counts = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 2, 2, 0], [2, 2, 0, 0], [0, 0, 1, 3], [0, 0, 0, 0], [1, 1, 2, 0]])
    slope, intercept = calibration_slope(label, p, counts=counts), calibration_intercept(label, p, counts=counts)
    assert np.isnan(slope).tolist() == [False, True, True, True, True, True, False]
    assert np.isnan(intercept).tolist() == [False, False, False, True, True, True, False]
    for metric in (brier, log_loss, calibration_error): assert np.isnan(metric(label, p, counts=counts)).tolist() == [False] * 5 + [True, False]


def test_the_intercept_exists_however_wrong_the_scores():
    odds = np.log(1e-6 / (1 - 1e-6))
    for n_positive in (1, 2, 3):
        label = np.arange(4) < n_positive
        for edge, sign in ((0, 1), (1e-9, 1), (1, -1)):
            assert calibration_intercept(label, np.full(4, edge)) == pytest.approx(logit(n_positive / 4) - sign * odds, abs=1e-9)
    label = np.arange(1000) < 999  # so far off that Newton's first step would leave no curvature at all
    assert calibration_intercept(label, np.zeros(1000)) == pytest.approx(logit(.999) - odds, abs=1e-9)
    rng = np.random.default_rng(5)
    for _ in range(300):
        label, p = np.r_[0, 1, rng.integers(0, 2, 8)], rng.choice([0, 1e-9, 1e-5, .01, .5, .999, 1], 10)
        a = calibration_intercept(label, p)
        assert expit(a + logit(kept(p))).sum() == pytest.approx(label.sum(), abs=1e-9)


def test_nearly_parted_classes_have_their_steep_slope():
    for gap in (1e-2, 1e-4):
        x = np.r_[np.linspace(-5, 0, 20), np.linspace(-gap, 5, 20)]
        label, p = np.repeat([0, 1], 20), expit(x)
        slope = calibration_slope(label, p)
        off = lambda a: label - expit(a + slope * x)
        a = brentq(lambda a: off(a).sum(), -20, 20, xtol=1e-14)
        assert slope > 15 and abs((off(a) * x).sum()) < 1e-9  # the likelihood is flat there


def test_probabilities_of_0_and_1_are_taken_as_a_millionth():
    label, p = np.array([0, 1, 0, 1, 1]), np.array([0, 1, 1, 0, .7])
    for metric in (calibration_slope, calibration_intercept): assert metric(label, p) == metric(label, kept(p))
    assert log_loss(label, p) > log_loss(label, kept(p))  # the losses take them at their word


def test_wilson_and_the_ends_of_bins():
    rng = np.random.default_rng(6)
    p = rng.random(173)
    points = reliability_points(rng.binomial(1, p), p, bins=7, level=.9)
    low, high = proportion_confint((points["observed"] * points["n"]).round(), points["n"], alpha=.1, method="wilson")
    np.testing.assert_allclose(points[["observed_low", "observed_high"]], np.stack([low, high], 1), rtol=0, atol=1e-12)
    assert points["n"].sum() == 173 and points["n"].max() - points["n"].min() <= 1
    assert (points["low"] <= points["predicted"]).all() and (points["predicted"] <= points["high"]).all()
    assert (points["high"][:-1].to_numpy() < points["low"][1:].to_numpy()).all()
    assert points["low"].iloc[0] == p.min() and points["high"].iloc[-1] == p.max()


def test_decision_curve_equals_the_metric_and_counting():
    for label, p in samples():
        if len(label) > 1000: continue
        curve = decision_curve(label, p)
        assert len(curve) == 99 and (curve["treat_none"] == 0).all()
        for t, benefit, treat_all in curve[["threshold", "net_benefit", "treat_all"]].to_numpy()[::7]:
            called = p >= t
            by_hand = (called & (label == 1)).mean() - (called & (label == 0)).mean() * t / (1 - t)
            assert benefit == pytest.approx(by_hand, abs=1e-12) == pytest.approx(threshold_metric("net_benefit", label, p, threshold=t), abs=1e-12)
            assert treat_all == pytest.approx(label.mean() - (1 - label.mean()) * t / (1 - t), abs=1e-12)
        assert (curve["net_benefit"] <= label.mean() + 1e-12).all()
    tied = decision_curve([0, 1], [.3, .3], thresholds=[.3, .31, .29])
    assert tied["net_benefit"].tolist() == pytest.approx([.5 - .5 * 3 / 7, 0, .5 - .5 * 29 / 71])
    assert decision_curve([0, 1], np.array([.1, .6]), thresholds=.5)["net_benefit"].tolist() == [.5]


def test_two_thousand_resamples_of_five_thousand_cases_take_seconds():
    rng = np.random.default_rng(7)
    truth = rng.normal(-1, 1.2, 5000)
    label, p = rng.binomial(1, expit(truth)), expit(2 * truth + 1)
    counts = rng.multinomial(5000, np.full(5000, 1 / 5000), size=2000).astype(np.uint16)
    calibration_slope(label, p, counts=counts[:1])  # compiled or read from the cache
    start = time.process_time()
    slopes = calibration_slope(label, p, counts=counts)
    assert time.process_time() - start < 10  # about one, on an idle machine
    assert slopes.std() == pytest.approx(sm.Logit(label, sm.add_constant(logit(p))).fit(disp=0).bse[1], rel=.1)


BAD = [
    ([0, 1, 1], [.1, np.nan, .2], "finite scores"), ([0, 1, 1], [.1, .3, np.inf], "finite scores"),
    ([1, 1, 1], [.1, .3, .2], "both classes"), ([], [], "no cases"), ([0, 1, 2], [.1, .3, .2], "Got 2 in 1 rows"),
    ([0, 1], [.1, .3, .2], r"\(2,\).*\(3,\)"), ([0, 1], [.1, 1.2], "probabilities from 0 to 1. Got scores from 0.1 to 1.2.*fit_calibrator"),
    ([0, 1], [-.1, .2], "probabilities from 0 to 1. Got scores from -0.1 to 0.2"),
]


@pytest.mark.parametrize("label, score, says", BAD)
def test_bad_input_is_refused_by_all(label, score, says):
    for call in (*BINARY.values(), reliability_points, decision_curve):
        with pytest.raises(DataError, match=says): call(np.array(label), np.array(score))


@pytest.mark.parametrize("call, says", [
    (lambda y, p: brier(y, p, counts=np.ones((3, 5))), "counts of shape"),
    (lambda y, p: calibration_slope(y, p, counts=np.ones(4)), "counts of shape"),
    (lambda y, p: calibration_error(y, p, bins=0), "whole number of bins.*Got 0"),
    (lambda y, p: calibration_error(y, p, bins=2.5), "whole number of bins.*Got 2.5"),
    (lambda y, p: calibration_error(y, p, bins=True), "whole number of bins.*Got True"),
    (lambda y, p: decision_curve(y, p, thresholds="a"), "thresholds between 0 and 1.*Got 'a'"),
    (lambda y, p: decision_curve(y, p, thresholds=[.2, None, "x"]), "thresholds between 0 and 1"),
    (lambda y, p: reliability_points(y, p, level="0.95"), "level between 0 and 1.*Got '0.95'"),
    (lambda y, p: reliability_points(y, p, bins="10"), "whole number of bins.*Got '10'"),
    (lambda y, p: reliability_points(y, p, level=95), "level between 0 and 1.*0.95 for 95%"),
    (lambda y, p: decision_curve(y, p, thresholds=[]), "thresholds between 0 and 1"),
    (lambda y, p: decision_curve(y, p, thresholds=[.2, 1]), "thresholds between 0 and 1"),
    (lambda y, p: decision_curve(y, p, thresholds=[[.2]]), "thresholds between 0 and 1"),
    (lambda y, p: decision_curve(y, p, thresholds=[np.nan]), "thresholds between 0 and 1"),
    (lambda y, p: calibration_error(y, np.stack([1 - p, p], 1)), "one positive class.*one class against the rest"),
    (lambda y, p: calibration_slope(y, np.stack([1 - p, p], 1)), "one positive class"),
    (lambda y, p: decision_curve(y, np.stack([1 - p, p], 1)), "one positive class"),
    (lambda y, p: brier(y, np.stack([1 - p, p + .1], 1)), "sum to 1 in every case.*off by 0.1"),
    (lambda y, p: log_loss(y, np.stack([p - 1, 2 - p], 1)), "probabilities from 0 to 1"),
])
def test_bad_options(call, says):
    with pytest.raises(DataError, match=says): call(np.array([0, 1, 0, 1]), np.array([.1, .6, .5, .8]))


def test_resampling_adds_to_the_calibration_error():
    """Why the docstring says to give no interval: of a calibrated model, the resamples' errors lie above the sample's."""
    above = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = expit(rng.normal(-1, 1.2, 300))
        label = rng.binomial(1, p)
        drawn = rng.multinomial(300, np.full(300, 1 / 300), size=200)
        above.append((calibration_error(label, p, counts=drawn) > calibration_error(label, p)).mean())
    assert np.mean(above) > .8 and "percentile interval" in calibration_error.__doc__


def test_scores_beyond_a_millionth_are_taken_as_a_millionth():
    """As the docstrings of slope and intercept say."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    p = np.where(rng.random(200) < .2, 10.0 ** -rng.integers(7, 12, 200), expit(label + rng.normal(size=200)))
    x = logit(np.clip(p, 1e-6, 1 - 1e-6))
    assert calibration_slope(label, p) == pytest.approx(sm.Logit(label, sm.add_constant(x)).fit(disp=0).params[1], abs=1e-7)
    assert calibration_intercept(label, p) == pytest.approx(sm.GLM(label, np.ones(200), family=sm.families.Binomial(), offset=x).fit().params[0], abs=1e-6)
    assert all("1e-6" in f.__doc__ for f in (calibration_slope, calibration_intercept))
