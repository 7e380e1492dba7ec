"""The simulations of coverage and size: known truths, the same for any number of processes, and gross faults are seen."""
import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import norm

from fusion_nb.coverage import Setting, _auc_difference, _dealt, cover, rates, reject, reject_trained, repeat, simulate_scores, true_values
from fusion_nb.resample import _jobs
from fusion_nb.schema import DataError


@pytest.mark.parametrize("per_patient, mixed", [(1, False), (2, False), (4, True)])
@pytest.mark.parametrize("positive", [.5, .05])
def test_truth_is_what_many_cases_show(per_patient, mixed, positive):
    setting = Setting(n=30_000, positive=positive, per_patient=per_patient, mixed=mixed)
    scores, truth = simulate_scores(setting, 0), true_values(setting)
    got = np.array([[job.plain() for job in _jobs(scores, (name,))] for name in truth]).T
    off = np.abs(got[:3] - list(truth.values()))
    off[:, list(truth).index("calibration_intercept")] /= 3  # a log-odds: its scale is wider
    assert off.max() < .05 and got[3, 0] == pytest.approx(setting.auc - .05, abs=.02)
    assert len(np.unique(scores.group)) == 30_000 // per_patient and scores.label.mean() == pytest.approx(positive, abs=.015)
    logits = logit(scores.scores[scores.label == 0])
    assert np.corrcoef(logits.T)[0, 1] == pytest.approx(setting.correlation, abs=.02)
    alike = scores.label.reshape(-1, per_patient)
    assert mixed == (alike.min(axis=1) != alike.max(axis=1)).any()
    assert truth["auc"] == .8 and truth["sensitivity"] == pytest.approx(norm.cdf(norm.ppf(.8) / np.sqrt(2)))


def test_same_numbers_for_any_number_of_processes():
    setting = Setting(n=40, per_patient=2)
    for one in (cover, reject): assert repeat(one, setting, 6, n=50).equals(repeat(one, setting, 6, n=50, jobs=2))


def test_rows_drawn_singly_are_seen_to_fail():
    table = repeat(cover, Setting(n=120, per_patient=4, shared=.95), 80, n=200).set_index(["method", "metric"])["rate"]
    assert table["percentile bootstrap", "auc"] > .82 and table["percentile bootstrap, rows drawn singly", "auc"] < .78


def test_methods_that_refuse_are_counted():
    one_patient = Setting(n=40, positive=.05, per_patient=8)  # at most one patient is positive, as a rule: DeLong and BCa have no answer
    table = repeat(cover, one_patient, 6, n=50).set_index(["method", "metric"])
    assert table.loc[("DeLong", "auc"), "n_undefined"] >= 4 and table.loc[("DeLong", "auc"), "rate"] <= 2 / 6
    assert table.loc[("percentile bootstrap", "auc"), "n_undefined"] == 0
    assert repeat(reject, one_patient, 6, n=50).set_index("method").loc["DeLong", "n_undefined"] >= 4


def test_an_interval_of_the_calibration_error_never_holds_its_truth():
    table = repeat(cover, Setting(n=200), 30, n=100).set_index(["method", "metric"])["rate"]
    assert table["percentile bootstrap", "ece"] == 0 and table["percentile bootstrap", "brier"] > .8


def test_bad_input():
    import pandas as pd
    with pytest.raises(DataError, match="at least 2 cohorts"): repeat(cover, Setting(), 1)
    with pytest.raises(DataError, match="the cohorts' outcomes"): rates(pd.DataFrame({"method": ["a"]}))


def test_the_common_t_test_cries_wolf_and_the_corrected_one_does_not():
    table = repeat(reject_trained, Setting(n=100), 100, n=4).set_index("method")["rate"]
    assert table["common t, five folds 4 times"] > .2 and table["corrected t, five folds 4 times"] < .12


def test_a_real_difference_between_trainings_is_found():
    unequal = np.array([_auc_difference(np.stack([x, noise])[:, :, None], label, test) for x, noise, label, test in _learnable()])
    assert (unequal > .2).all()


def _learnable():
    "A view that tells the label and one that does not."
    for seed in range(3):
        rng = np.random.default_rng(seed)
        label = np.arange(400) % 2
        yield rng.normal(2 * label), rng.normal(size=400), label, rng.random(400) < .5


def test_folds_are_dealt_by_patient_and_class():
    patient = np.repeat(np.arange(50), 2)
    label = (np.arange(50) < 10)[patient].astype(int)
    fold = _dealt(label, patient, np.random.default_rng(0))
    assert (fold[::2] == fold[1::2]).all() and (np.bincount(fold, label) == 4).all() and (np.bincount(fold) == 20).all()


def test_a_fold_without_positives_is_counted():
    table = repeat(reject_trained, Setting(n=20, positive=.05), 10, n=2)
    assert (table["n_undefined"] >= 9).all() and (table["rate"] == 0).all()
