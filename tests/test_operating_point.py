"""Calibrators and thresholds: against scikit-learn, statsmodels and base R; fitted on validation, unmoved by the test part; whole in a file."""
import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
import statsmodels.api as sm
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax
from sklearn.calibration import _TemperatureScaling
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from fusion_nb.calibration import calibration_error, calibration_intercept, calibration_slope
from fusion_nb.metrics import auc, roc_points, sensitivity_at_specificity, specificity_at_sensitivity
from fusion_nb.operating_point import Calibrator, Threshold, choose_threshold, fit_calibrator, read_fitted
from fusion_nb.predictions import prediction_rows, read_scores, score_matrix
from fusion_nb.schema import DataError

ORACLES = Path(__file__).parent / "oracles"
R = json.loads((ORACLES / "calibration.json").read_text())
SCORES = pd.read_csv(ORACLES / "scores.csv")
METHODS = ("platt", "temperature", "isotonic")


def toy(n=400, seed=0):
    """Labels and probabilities that are too extreme and too high."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-.5, 1.5, n)
    return rng.binomial(1, expit(truth)), expit(2 * truth + .5)


@pytest.mark.parametrize("model", R["models"])
def test_fits_equal_base_r(model):
    label, p, want = SCORES["y_true"].to_numpy(), SCORES[model].to_numpy(), R["models"][model]
    platt = fit_calibrator(label, p)
    assert platt.parameters == pytest.approx({"intercept": want["platt_intercept"], "slope": want["slope"]}, abs=1e-9)
    assert fit_calibrator(label, p, method="temperature").parameters["temperature"] == pytest.approx(want["temperature"], abs=1e-9)
    if want["isotonic"] is not None:
        np.testing.assert_allclose(fit_calibrator(label, p, method="isotonic").apply(np.sort(p)), want["isotonic"], rtol=0, atol=1e-9)


def test_platt_equals_statsmodels_and_sklearn_on_either_scale():
    label, p = toy()
    new = np.array([0.0, .01, .5, .99, 1])
    raw = 3 + 10 * logit(p)
    for score, x, scale, at in ((p, logit(p), "logit", new), (raw, raw, "score", new * 100 - 30), (1e9 * p, 1e9 * p, "score", new * 1e9)):
        ours, unit = fit_calibrator(label, score), x.std()  # in its own unit statsmodels does not converge on 1e9
        assert ours.scale == scale
        theirs = sm.Logit(label, sm.add_constant(x / unit)).fit(disp=0, tol=1e-13, maxiter=100)
        assert ours.parameters["intercept"] == pytest.approx(theirs.params[0], abs=1e-9)
        assert ours.parameters["slope"] * unit == pytest.approx(theirs.params[1], abs=1e-9)
        on = logit(np.clip(at, 1e-6, 1 - 1e-6)) if scale == "logit" else at
        np.testing.assert_allclose(ours.apply(at), theirs.predict(np.c_[np.ones(5), on / unit]), rtol=0, atol=1e-9)
        free = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit((x / unit)[:, None], label)
        np.testing.assert_allclose(ours.apply(at), free.predict_proba(on[:, None] / unit)[:, 1], rtol=0, atol=1e-5)  # sklearn's solver stops earlier


def test_temperature_equals_statsmodels_and_minimising_the_log_loss():
    for seed in range(5):
        label, p = toy(seed=seed)
        got = fit_calibrator(label, p, method="temperature").parameters["temperature"]
        assert got == pytest.approx(1 / sm.Logit(label, logit(p)).fit(disp=0, tol=1e-13, maxiter=100).params[0], abs=1e-9)
        loss = lambda t: sk.log_loss(label, expit(logit(p) / t))
        assert got == pytest.approx(minimize_scalar(loss, bounds=(.1, 20), method="bounded", options={"xatol": 1e-9}).x, abs=1e-5)
        assert fit_calibrator(label, expit(logit(p) / 2), method="temperature").parameters["temperature"] == pytest.approx(got / 2, abs=1e-9)


def test_temperature_of_several_classes_equals_sklearn_and_minimising_the_log_loss():
    rng = np.random.default_rng(3)
    truth = softmax(rng.normal(size=(600, 4)), axis=1)
    label = (rng.random((600, 1)) > truth.cumsum(axis=1)[:, :3]).sum(axis=1)
    probability = softmax(2.5 * np.log(truth), axis=1)
    fitted = fit_calibrator(label, probability, method="temperature")
    log = np.log(np.clip(probability, 1e-6, 1 - 1e-6))
    loss = lambda b: -np.log(softmax(b * log, axis=1)[np.arange(600), label]).sum()
    assert 1 / fitted.parameters["temperature"] == pytest.approx(minimize_scalar(loss, bounds=(1e-3, 10), method="bounded", options={"xatol": 1e-12}).x, abs=1e-6)
    assert 1 / fitted.parameters["temperature"] == pytest.approx(_TemperatureScaling().fit(log, label).beta_, rel=1e-3)  # its own tolerance
    assert fitted.apply(probability) == pytest.approx(softmax(log / fitted.parameters["temperature"], axis=1), abs=1e-12)


def test_a_temperature_of_several_classes_is_refused_where_none_is_best(tmp_path):
    label, right = np.arange(9) % 3, np.eye(3)[np.arange(9) % 3] * .7 + .1
    with pytest.raises(DataError, match="own class is not the likeliest"): fit_calibrator(label, right, method="temperature")
    with pytest.raises(DataError, match="more than chance"): fit_calibrator(label, np.roll(right, 1, axis=1), method="temperature")
    with pytest.raises(DataError, match="method='temperature'"): fit_calibrator(label, right)
    some = np.vstack([right, right[[1]]])
    fitted = fit_calibrator(np.append(label, 0), some, method="temperature")
    assert np.array_equal(read_fitted(fitted.save(tmp_path / "t.json")).apply(some), fitted.apply(some))


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_isotonic_equals_sklearn(decimals):
    label, p = toy()
    score = (8 * p - 4).round(decimals)
    ours, theirs = fit_calibrator(label, score, method="isotonic"), IsotonicRegression(out_of_bounds="clip").fit(score, label)
    new = np.r_[score, np.linspace(-9, 9, 500)]
    np.testing.assert_allclose(ours.apply(new), theirs.predict(new), rtol=0, atol=1e-12)
    assert ours.apply(-1e300) == ours.apply(score.min()) and ours.apply(1e300) == ours.apply(score.max())


@pytest.mark.parametrize("seed", range(3))
def test_what_calibration_leaves_and_what_it_mends(seed):
    label, p = toy(2000, seed)
    platt = fit_calibrator(label, p).apply(p)
    assert calibration_slope(label, platt) == pytest.approx(1, abs=1e-9) and calibration_intercept(label, platt) == pytest.approx(0, abs=1e-9)
    losses = {m: sk.log_loss(label, np.clip(fit_calibrator(label, p, method=m).apply(p), 1e-9, 1 - 1e-9)) for m in METHODS}
    assert losses["isotonic"] <= losses["platt"] <= losses["temperature"] <= sk.log_loss(label, p)  # on the cases that they were fitted on
    for method in ("platt", "temperature"):
        assert auc(label, fit_calibrator(label, p, method=method).apply(p)) == auc(label, p)
    steps = fit_calibrator(label, p, method="isotonic").apply(np.sort(p))
    assert (np.diff(steps) >= 0).all() and steps.mean() == pytest.approx(label.mean(), abs=1e-9)
    assert fit_calibrator(label, p, method="temperature").apply(.5) == .5


def test_apply_takes_any_shape():
    label, p = toy()
    for method in METHODS:
        calibrator = fit_calibrator(label, p, method=method)
        assert calibrator.apply(p.reshape(20, 4, 5)).shape == (20, 4, 5) and calibrator.apply([]).shape == (0,)
        assert np.array_equal(calibrator.apply(p.reshape(20, 20)).ravel(), calibrator.apply(p))
        assert ((calibrator.apply([0, 1]) >= 0) & (calibrator.apply([0, 1]) <= 1)).all()
        assert (calibrator.n, calibrator.n_positive) == (400, label.sum())


def by_hand(label, score, by, target):
    """Try every score as the threshold."""
    rows = []
    for t in np.unique(score):
        called = score >= t
        tp, tn = (called & (label == 1)).sum(), (~called & (label == 0)).sum()
        rows.append({"threshold": t, "sensitivity": tp / (label == 1).sum(), "specificity": tn / (label == 0).sum(), "precision": tp / called.sum()})
    rows = pd.DataFrame(rows)
    if by == "youden": return rows, (rows["sensitivity"] + rows["specificity"] - 1).max()
    enough = rows[rows[by] >= target - 1e-12]
    return rows, enough["specificity" if by == "sensitivity" else "sensitivity"].max() if len(enough) else None


both_classes = lambda rows: 0 < sum(y for y, _ in rows) < len(rows)
pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(-5, 5)), min_size=4, max_size=40).filter(both_classes)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pairs, st.sampled_from(["youden", "sensitivity", "specificity", "precision"]), st.sampled_from([.05, .5, .6, .8, .95, 1.0]))
def test_thresholds_equal_trying_all(rows, by, target):
    label, score = np.array(rows).T
    target = None if by == "youden" else target
    table, best = by_hand(label, score, by, target)
    if best is None:
        with pytest.raises(DataError, match=f"a {by} of {target:g} or more. Got {table[by].max():.4g} at best"):
            choose_threshold(label, score, by=by, target=target)
        return
    got = choose_threshold(label, score, by=by, target=target)
    assert got.achieved == pytest.approx(table.set_index("threshold").loc[got.value].to_dict(), abs=1e-12)  # one of the scores, told truly
    a = got.achieved
    if by == "youden": assert a["sensitivity"] + a["specificity"] - 1 == pytest.approx(best, abs=1e-12)
    else: assert a[by] >= target - 1e-12 and a["specificity" if by == "sensitivity" else "sensitivity"] == best
    better = table[(table["sensitivity"] >= a["sensitivity"]) & (table["specificity"] >= a["specificity"])]
    assert len(better.drop_duplicates(["sensitivity", "specificity"])) == 1  # nothing is better at both
    assert choose_threshold(label, 2.0 ** score, by=by, target=target).value == 2.0 ** got.value  # only the order counts


@pytest.mark.parametrize("model", ["image", "table", "fusion"])
def test_thresholds_agree_with_the_metrics_and_sklearn(model):
    label, score = SCORES["y_true"].to_numpy(), SCORES[model].to_numpy()
    achieved = lambda **aim: choose_threshold(label, score, **aim).achieved
    for target in (.8, .95, 1.0):
        assert achieved(by="sensitivity", target=target)["specificity"] == specificity_at_sensitivity(label, score, sensitivity=target)
        if roc_points(label, score)["specificity"][1] >= target:  # else only calling no one reaches it
            assert achieved(by="specificity", target=target)["sensitivity"] == sensitivity_at_specificity(label, score, specificity=target)
    fpr, tpr, thresholds = sk.roc_curve(label, score, drop_intermediate=False)
    assert choose_threshold(label, score).value == thresholds[np.argmax(tpr - fpr)]
    precision, recall, _ = sk.precision_recall_curve(label, score)
    assert achieved(by="precision", target=.6)["sensitivity"] == recall[:-1][precision[:-1] >= .6].max()


def test_thresholds_in_hard_cases():
    assert choose_threshold([0, 1], [.3, .3]).achieved == {"sensitivity": 1, "specificity": 0, "precision": .5}
    one = choose_threshold(np.r_[1, np.zeros(9)], np.r_[.5, np.linspace(0, .9, 9)], by="sensitivity", target=.95)
    assert one.value == .5 and one.achieved["sensitivity"] == 1 and (one.n, one.n_positive) == (10, 1)
    label, score = np.r_[np.ones(10, int), 0, 0], np.r_[np.arange(10, 0, -1), 7.5, 0]
    assert choose_threshold(label, score, by="sensitivity", target=3 * .1).value == 8  # three of ten, whatever the binary fraction
    assert choose_threshold([1, 1, 0], [5, 4, 3], by="sensitivity", target=.5).value == 4  # at no cost it goes beyond the target
    equal = choose_threshold([1, 0, 1, 0], [4, 3, 2, 1])  # J = 0.5 at 4 and at 2
    assert equal.value == 2 and equal.achieved["sensitivity"] == 1
    with pytest.raises(DataError, match="a specificity of 0.9 or more. Got 0.5 at best, at 0.8"):
        choose_threshold([1, 0, 1, 0], [.8, .8, .3, .2], by="specificity", target=.9)
    rng = np.random.default_rng(0)
    label = rng.binomial(1, .3, 100_000)
    big = choose_threshold(label, label + rng.normal(size=100_000))
    assert big.value == pytest.approx(.5, abs=.1) and big.n == 100_000


@pytest.mark.parametrize("method", METHODS)
def test_the_test_part_moves_nothing(method, tmp_path):
    label, p = toy(600)
    cases = pd.DataFrame({"case_id": np.arange(600), "label": label, "split": np.repeat(["val", "test"], 300)})
    other = cases.assign(label=np.where(cases["split"] == "test", 1 - label, label))
    shuffled = np.where(cases["split"] == "test", np.random.default_rng(0).random(600), p)
    written = []
    for rows, score in ((cases, p), (other, shuffled)):
        val = score_matrix(prediction_rows(rows, score, model="m"), split="val")
        calibrator = fit_calibrator(val.label, val.scores[:, 0], method=method)
        threshold = choose_threshold(val.label, calibrator.apply(val.scores[:, 0]), by="sensitivity", target=.9)
        written.append([fitted.save(tmp_path / "fitted.json").read_text() for fitted in (calibrator, threshold)])
    assert written[0] == written[1]


def test_saved_and_read_it_is_the_same(tmp_path):
    label, p = toy()
    for method in METHODS:
        for score in (p, logit(p)):
            if method == "temperature" and score is not p: continue
            calibrator = fit_calibrator(label, score, method=method)
            again = read_fitted(calibrator.save(tmp_path / "new" / "c.json"))
            assert again == calibrator and np.array_equal(again.apply(score), calibrator.apply(score))
    for by, target in (("youden", None), ("sensitivity", .95), ("specificity", 1), ("precision", .7)):
        threshold = choose_threshold(label, p, by=by, target=target)
        assert read_fitted(threshold.save(tmp_path / "t.json")) == threshold
    with pytest.raises(FrozenInstanceError): threshold.value = 0


PLATT = {"fitted": "calibrator", "version": 1, "method": "platt", "scale": "logit", "parameters": {"intercept": 0.5, "slope": 2.0},
         "n": 10, "n_positive": 4}
CURVE = PLATT | {"method": "isotonic", "scale": "score", "parameters": {"score": [1, 2], "probability": [.1, .9]}}
CUT = {"fitted": "threshold", "version": 1, "value": .5, "by": "sensitivity", "target": .9, "n": 10, "n_positive": 4,
       "achieved": {"sensitivity": .9, "specificity": .8, "precision": .7}}


def test_files_as_written_here_can_be_read(tmp_path):
    for content in (PLATT, CURVE, CUT):
        (tmp_path / "f.json").write_text(json.dumps(content))
        assert isinstance(read_fitted(tmp_path / "f.json"), Threshold if content is CUT else Calibrator)


@pytest.mark.parametrize("text, says", [
    ("{", "Expected JSON in .*f.json. Got line 1"), ("[1, 2]", "a calibrator or threshold in .*f.json. Got JSON of something else"),
    ("{}", "JSON of something else"),
    (PLATT | {"fitted": "calibrater"}, "Did you mean 'calibrator'"),
    (PLATT | {"fitted": ["x"]}, "a known kind of thing"),
    (PLATT | {"version": 2}, "version 1 of the file .*f.json. Got 2"),
    ({k: v for k, v in PLATT.items() if k != "version"}, "version 1.*Got None"),
    ({k: v for k, v in PLATT.items() if k != "n"}, "method, scale, parameters, n, n_positive in .*f.json"),
    (PLATT | {"extra": 1}, "Got .*extra"),
    (PLATT | {"method": "plat"}, "Did you mean 'platt'"),
    (PLATT | {"method": None}, "a known method"),
    (PLATT | {"scale": "probit"}, "a known scale of the method 'platt'"),
    (CURVE | {"scale": "logit"}, "a known scale of the method 'isotonic'"),
    (PLATT | {"parameters": {"slope": 1}}, "the parameters intercept and slope of the method 'platt' in .*f.json"),
    (PLATT | {"parameters": [1, 2]}, "the parameters intercept"),
    (PLATT | {"parameters": {"intercept": np.nan, "slope": 1}}, "a finite number as the parameter 'intercept' in .*Got nan"),
    (PLATT | {"parameters": {"intercept": 0, "slope": "1"}}, "a finite number as the parameter 'slope'.*Got '1'"),
    (PLATT | {"parameters": {"intercept": 0, "slope": [1]}}, "a finite number as the parameter 'slope'"),
    (PLATT | {"parameters": {"intercept": 0, "slope": None}}, "a finite number as the parameter 'slope'"),
    (PLATT | {"parameters": {"intercept": 0, "slope": {}}}, "a finite number as the parameter 'slope'"),
    (PLATT | {"n_positive": 10}, "the number of cases.*Got 10 and 10"),
    (PLATT | {"n": 10.5}, "the number of cases"),
    (PLATT | {"n": "10"}, "the number of cases"),
    (PLATT | {"method": "temperature", "parameters": {"temperature": 0}}, "a temperature above 0"),
    (CURVE | {"parameters": {"score": [1, 2], "probability": [.1]}}, "rising scores.*2 scores and 1 probabilities"),
    (CURVE | {"parameters": {"score": [], "probability": []}}, "rising scores"),
    (CURVE | {"parameters": {"score": 1, "probability": .1}}, "finite numbers as"),
    (CURVE | {"parameters": {"score": [2, 1], "probability": [.1, .9]}}, "rising scores"),
    (CURVE | {"parameters": {"score": [1, 1], "probability": [.1, .9]}}, "rising scores"),
    (CURVE | {"parameters": {"score": [1, 2], "probability": [.9, .1]}}, "rising scores"),
    (CURVE | {"parameters": {"score": [1, 2], "probability": [.1, 1.1]}}, "rising scores"),
    (CURVE | {"parameters": {"score": [1, np.inf], "probability": [.1, .9]}}, "finite numbers as the parameter 'score'"),
    (CUT | {"value": None}, "a finite number as the threshold's value"),
    (CUT | {"value": np.inf}, "a finite number as the threshold's value"),
    (CUT | {"by": "recall"}, "a known way"),
    (CUT | {"target": None}, "a target above 0"),
    (CUT | {"target": "0.9"}, "a finite number as the target"),
    (CUT | {"by": "youden"}, "no target with"),
    (CUT | {"achieved": {"sensitivity": 1}}, "sensitivity, specificity, precision that were achieved"),
    (CUT | {"achieved": CUT["achieved"] | {"precision": 70}}, "a precision from 0 to 1"),
    (CUT | {"achieved": CUT["achieved"] | {"precision": np.nan}}, "a finite number as precision"),
    (CUT | {"n_positive": 0}, "the number of cases"),
])
def test_broken_files_are_refused(tmp_path, text, says):
    (tmp_path / "f.json").write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(DataError, match=says): read_fitted(tmp_path / "f.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="does not exist"): read_fitted(tmp_path / "none.json")


@pytest.mark.parametrize("label, score, says", [
    ([0, 1, 1], [.1, np.nan, .2], "finite scores"), ([1, 1, 1], [.1, .3, .2], "both classes"), ([0, 1, 2], [.1, .3, .2], "Got 2 in 1 rows"),
    ([], [], "no cases"), ([0, 1], [.1, .3, .2], r"\(2,\).*\(3,\)"),
    ([0, 1], [[.1, .9], [.3, .7]], "one positive class.*one class against the rest"),
])
def test_bad_validation_parts(label, score, says):
    for call in (choose_threshold, *(lambda y, s, m=m: fit_calibrator(y, s, method=m) for m in METHODS)):
        with pytest.raises(DataError, match=says): call(np.array(label), np.array(score))


@pytest.mark.parametrize("call, says", [
    (lambda y, p: fit_calibrator(y, p, method="plat"), "Did you mean 'platt'"),
    (lambda y, p: fit_calibrator(y, logit(p), method="temperature"), "probabilities from 0 to 1, for a calibration.*'platt' or 'isotonic'"),
    (lambda y, p: fit_calibrator(y, 1 - p, method="temperature"), "part the classes at 0.5 better than by chance.*method='platt'"),
    (lambda y, p: fit_calibrator(y, np.full(400, .5), method="temperature"), "a case on the wrong side of 0.5"),
    (lambda y, p: fit_calibrator(y, .2 + .6 * y, method="temperature"), "a case on the wrong side of 0.5.*method='isotonic'"),
    (lambda y, p: fit_calibrator(y, y + .1 * p), "a finite slope. Got scores that part the classes without an error. Take method='isotonic'"),
    (lambda y, p: fit_calibrator(y, np.full(400, 3.0)), "a finite slope. Got one score for every case"),
    (lambda y, p: fit_calibrator(y, p).apply([.1, 2]), "probabilities from 0 to 1.*from 0.1 to 2.*fitted and applied on that scale"),
    (lambda y, p: fit_calibrator(y, p).apply([.1, np.nan]), "finite scores. Got 1 that are not"),
    (lambda y, p: fit_calibrator(y, p, method="isotonic").apply(np.inf), "finite scores"),
    (lambda y, p: choose_threshold(y, p, by="recall"), "a known way to choose a threshold"),
    (lambda y, p: choose_threshold(y, p, by="sensitivity"), "a target above 0, at most 1, for by='sensitivity'. Got None"),
    (lambda y, p: choose_threshold(y, p, by="precision", target=95), "Got 95. Write 0.95 for 95%"),
    (lambda y, p: choose_threshold(y, p, by="precision", target=0), "a target above 0"),
    (lambda y, p: choose_threshold(y, p, by="precision", target=np.nan), "a finite number as the target"),
    (lambda y, p: choose_threshold(y, p, target=.9), "no target with by='youden'"),
    (lambda y, p: choose_threshold(y, np.round(p), by="precision", target=.99), "precision of 0.99 or more. Got 0.[0-9]+ at best, at 1. Lower"),
])
def test_bad_options(call, says):
    with pytest.raises(DataError, match=says): call(*toy())


def test_isotonic_takes_what_the_others_cannot():
    label, p = toy()
    assert set(fit_calibrator(label, label * 2.0, method="isotonic").apply([-1, 0, 2, 9])) == {0, 1}
    assert fit_calibrator(label, np.zeros(400), method="isotonic").apply([-1, 5]) == pytest.approx(label.mean(), abs=1e-12)
    reversed_ = fit_calibrator(label, -logit(p)).parameters["slope"]
    assert reversed_ < 0  # Platt turns a score that is worse than chance round; isotonic does not
    assert np.ptp(fit_calibrator(label, -logit(p), method="isotonic").apply(-logit(p))) < .2


def real_scores(data_dir, model):
    return score_matrix(read_scores(data_dir / "breast_mri_fusion" / model / "preds.csv", label="y_true", score="y_prob"))


@pytest.mark.parametrize("model", ["image-only", "learned-feature-fusion"])
def test_platt_on_half_of_the_real_predictions_mends_the_other(data_dir, model, tmp_path):
    scores, errors = real_scores(data_dir, model), []
    label, p = scores.label, scores.scores[:, 0]
    assert .19 < calibration_error(label, p) < .29  # as in the specification
    for seed in range(10):
        fitted_on = np.random.default_rng(seed).permutation(len(label)) < len(label) // 2
        platt = read_fitted(fit_calibrator(label[fitted_on], p[fitted_on]).save(tmp_path / "platt.json"))
        mended = platt.apply(p)
        errors.append(calibration_error(label[~fitted_on], mended[~fitted_on]))
        assert calibration_error(label[~fitted_on], p[~fitted_on]) > .26
        assert calibration_slope(label[~fitted_on], mended[~fitted_on]) == pytest.approx(1, abs=.2)
        assert calibration_intercept(label[~fitted_on], mended[~fitted_on]) == pytest.approx(0, abs=.3)
        threshold = choose_threshold(label[fitted_on], mended[fitted_on], by="sensitivity", target=.95)
        at = replace(scores, scores=platt.apply(scores.scores)).at(threshold.value)
        assert np.mean((at.scores >= at.thresholds)[~fitted_on & (label == 1)]) == pytest.approx(.95, abs=.05)  # 3.5 standard errors
    assert np.mean(errors) < .03 and max(errors) < .04


@pytest.mark.parametrize("model", ["image-only", "learned-feature-fusion"])
def test_the_real_rows_do_not_come_in_random_order(data_dir, model):
    """Of the first half of the file 16% are positive, of the second 25%: no calibrator fitted on one is right for the other."""
    scores = real_scores(data_dir, model)
    label, p, first = scores.label, scores.scores[:, 0], np.arange(len(scores)) < len(scores) // 2
    assert round(label[first].mean(), 2) == .16 and round(label[~first].mean(), 2) == .25
    mended = fit_calibrator(label[first], p[first]).apply(p[~first])
    assert .4 < calibration_intercept(label[~first], mended) < .6 and .04 < calibration_error(label[~first], mended) < .06


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_what_is_no_number_cannot_be_calibrated(method):
    calibrator = fit_calibrator(np.array([0, 1, 0, 1, 1, 0]), np.array([.1, .4, .6, .8, .9, .2]), method=method)
    for wrong in ("abc", ["a", .3], None, {}):
        with pytest.raises(DataError, match="scores that are numbers|finite scores"): calibrator.apply(wrong)


def test_scores_beyond_a_millionth_are_applied_as_a_millionth():
    label, p = np.array([0, 1, 0, 1, 1, 0]), np.array([.1, .4, .6, .8, .9, .2])
    for method in ("platt", "temperature"):
        calibrator = fit_calibrator(label, p, method=method)
        assert calibrator.apply(1e-9) == calibrator.apply(1e-6) < calibrator.apply(1e-5)
