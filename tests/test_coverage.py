"""The simulations of coverage and size: known truths, the same for any number of processes, and gross faults are seen."""
import numpy as np
import pytest
from scipy.stats import norm

from fusion_nb.coverage import Setting, cover, rates, reject, repeat, simulate_scores, true_values
from fusion_nb.resample import bootstrap_metrics
from fusion_nb.schema import DataError


@pytest.mark.parametrize("per_patient", [1, 2, 4])
@pytest.mark.parametrize("positive", [.5, .05])
def test_truth_is_what_many_cases_show(per_patient, positive):
    setting = Setting(n=200_000, positive=positive, per_patient=per_patient)
    scores, truth = simulate_scores(setting, 0), true_values(setting)
    got = bootstrap_metrics(scores, tuple(truth), n=2, threads=1).estimate
    assert np.allclose(got[:3], list(truth.values()), atol=.012) and got[3, 0] == pytest.approx(setting.auc - .05, abs=.01)
    assert len(np.unique(scores.group)) == 200_000 // per_patient and scores.label.mean() == pytest.approx(positive, abs=1e-4)
    residual = scores.scores - scores.label[:, None] * scores.scores[scores.label == 1].mean(axis=0)
    assert np.corrcoef(residual[scores.label == 0].T)[0, 1] == pytest.approx(setting.correlation, abs=.02)
    if per_patient > 1: assert np.corrcoef(scores.scores[:-1:per_patient, 0], scores.scores[1::per_patient, 0])[0, 1] > .6
    assert truth["auc"] == .8 and truth["sensitivity"] == pytest.approx(norm.cdf(norm.ppf(.8) / np.sqrt(2)))


def test_same_numbers_for_any_number_of_processes():
    setting = Setting(n=40, per_patient=2)
    for one in (cover, reject): assert repeat(one, setting, 6, n=50).equals(repeat(one, setting, 6, n=50, jobs=2))


def test_rows_drawn_singly_are_seen_to_fail():
    table = repeat(cover, Setting(n=120, per_patient=4, shared=.95), 150, n=300).set_index(["method", "metric"])["rate"]
    assert table["percentile bootstrap", "auc"] > .87 and table["percentile bootstrap, rows drawn singly", "auc"] < .8


def test_methods_that_refuse_are_counted():
    table = repeat(cover, Setting(n=50, positive=.02), 4, n=50).set_index(["method", "metric"])
    assert table.loc[("DeLong", "auc"), "n_undefined"] == 4 and table.loc[("BCa bootstrap", "auc"), "n_undefined"] == 4
    assert table.loc[("DeLong", "auc"), "rate"] == 0 and table.loc[("percentile bootstrap", "auc"), "n_undefined"] == 0
    assert repeat(reject, Setting(n=50, positive=.02), 3, n=50).set_index("method").loc["DeLong", "n_undefined"] == 3


def test_bad_input():
    import pandas as pd
    with pytest.raises(DataError, match="at least 2 cohorts"): repeat(cover, Setting(), 1)
    with pytest.raises(DataError, match="the cohorts' outcomes"): rates(pd.DataFrame({"method": ["a"]}))
