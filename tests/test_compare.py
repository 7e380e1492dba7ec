"""Paired comparison: against pROC and p.adjust, and its size under the null."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from fusion_nb.compare import claim, compare_models
from fusion_nb.compare import _corrected
from fusion_nb.predictions import Scores
from fusion_nb.resample import Resamples, bootstrap_metrics
from fusion_nb.schema import DataError
from test_resample import oracle_scores, scores_of  # noqa: F401 (a fixture)

PROC = json.loads((Path(__file__).parent / "oracles/proc.json").read_text())


def test_paired_test_equals_proc(oracle_scores):
    table = compare_models(bootstrap_metrics(oracle_scores, n=5000, seed=2))
    for ours, theirs in zip(table.itertuples(), PROC["tests"]):
        assert (ours.model_a, ours.model_b) == (theirs["model_a"], theirs["model_b"])
        assert ours.z == pytest.approx(theirs["bootstrap_z"], rel=.05)
        assert ours.z == pytest.approx(theirs["delong_z"], rel=.06)


def test_corrections_equal_r():
    ours = _corrected([{"p": p} for p in PROC["p_adjust"]["p"]])
    assert ours["p_holm"].to_numpy() == pytest.approx(PROC["p_adjust"]["holm"], abs=1e-9)
    assert ours["p_bh"].to_numpy() == pytest.approx(PROC["p_adjust"]["BH"], abs=1e-9)
    from statsmodels.stats.multitest import multipletests
    many = np.random.default_rng(0).random(50) ** 3
    ours = _corrected([{"p": p} for p in [*many, np.nan]])  # what cannot be tested is not counted
    for column, method in (("p_holm", "holm"), ("p_bh", "fdr_bh")):
        assert ours[column].to_numpy() == pytest.approx([*multipletests(many, method=method)[1], np.nan], abs=1e-12, nan_ok=True)


def test_swapping_models_flips_the_sign(oracle_scores):
    from dataclasses import replace
    swapped = replace(oracle_scores, models=oracle_scores.models[::-1], scores=oracle_scores.scores[:, ::-1])
    a, b = (compare_models(bootstrap_metrics(s, n=300)) for s in (oracle_scores, swapped))
    b = b[::-1].reset_index(drop=True)
    assert np.allclose(a["difference"], -b["difference"]) and np.allclose(a["low"], -b["high"]) and np.allclose(a["p"], b["p"])


def test_reference_and_corrections_cover_the_rows_shown(oracle_scores):
    res = bootstrap_metrics(oracle_scores, n=300)
    table = compare_models(res, reference="fusion")
    assert table[["model_a", "model_b"]].values.tolist() == [["image", "fusion"], ["table", "fusion"]]
    assert table["p_holm"].min() == pytest.approx(2 * table["p"].min())


def test_max_t_by_hand(oracle_scores):
    res = bootstrap_metrics(oracle_scores, n=500)
    table, values = compare_models(res), res.values[:, :, 0]
    d = np.stack([values[:, 0] - values[:, 1], values[:, 0] - values[:, 2], values[:, 1] - values[:, 2]], axis=1)
    t = np.abs(d - table["difference"].to_numpy()) / d.std(axis=0, ddof=1)
    assert table["p_max_t"].tolist() == [(1 + (t.max(axis=1) >= abs(z)).sum()) / 501 for z in table["z"]]
    assert (table["p_max_t"] >= table["p"] - .02).all() and (table["p_max_t"] <= 3 * table["p"] + .02).all()  # Bonferroni


def test_one_pair_needs_no_correction(oracle_scores):
    pair = Scores(oracle_scores.cases, oracle_scores.models[:2], oracle_scores.scores[:, :2])
    row = compare_models(bootstrap_metrics(pair, n=20_000)).iloc[0]
    assert row["p_holm"] == row["p_bh"] == row["p"] and row["p_max_t"] == pytest.approx(row["p"], abs=.02)


def test_percentile_p_by_hand():
    d = np.r_[np.full(4, -.1), np.full(95, .1), 0]
    row = compare_models(fake(d, .1)).iloc[0]
    assert row["p_percentile"] == 2 * (5 + 1) / 101  # four below, one at zero
    assert compare_models(fake(np.linspace(.1, .2, 99))).iloc[0]["p_percentile"] == 2 / 100  # never zero
    assert compare_models(fake(np.zeros(9))).iloc[0]["p_percentile"] == 1


@pytest.fixture(scope="module")
def four_models() -> Scores:
    """Six differences, of which Holm and Benjamini-Hochberg multiply some by the factor of another row."""
    rng, label = np.random.default_rng(3), np.arange(200) % 2
    seen = label + rng.normal(size=200)
    return scores_of(label, **{f"noise {i}": seen + .35 * i ** .5 * rng.normal(size=200) for i in range(4)})


@pytest.mark.parametrize("cohort", ["oracle_scores", "four_models"])
def test_monte_carlo_errors_are_the_spread_over_seeds(cohort, request):
    scores = request.getfixturevalue(cohort)
    tables = [compare_models(bootstrap_metrics(scores, n=1000, seed=s)) for s in range(60)]
    some = tables[0]["p"] > 1e-4
    assert some.any()
    for column in ("p", "p_holm", "p_bh"):
        spread, claimed = np.std([t[column] for t in tables], axis=0), np.mean([t[f"{column}_mc"] for t in tables], axis=0)
        assert np.all((claimed / spread)[some] > .7) and np.all((claimed / spread)[some] < 1.4), column


def test_monte_carlo_errors_of_corrected_p_by_hand():
    p, error = [.03, .01, .02, .9, np.nan], [.003, .001, .002, .1, .5]
    table = _corrected([{"p": a, "p_mc": b} for a, b in zip(p, error)])
    assert table["p_holm"].tolist()[:4] == pytest.approx([.06, .04, .06, .9]) and table["p_bh"].tolist()[:4] == pytest.approx([.04, .04, .04, .9])
    assert table["p_holm_mc"].tolist()[:4] == pytest.approx([.006, .004, .006, .1])  # 0.02 sets two of them: three times its error
    assert table["p_bh_mc"].tolist()[:4] == pytest.approx([.004, .004, .004, .1])  # 0.03 sets three of them: 4/3 times its error
    assert table.iloc[4].drop("p_mc").isna().all()
    capped = _corrected([{"p": .6, "p_mc": .1}, {"p": .7, "p_mc": .1}])
    assert capped["p_holm"].tolist() == [1, 1] and capped["p_holm_mc"].tolist() == [0, 0] and capped["p_bh_mc"].tolist() == [.1, .1]
    assert "p_holm_mc" not in _corrected([{"p": .6}])
    again = _corrected(capped.drop(columns=["p_holm", "p_bh"])[:1])  # another family: nothing is left of the errors in the old one
    assert again["p_holm_mc"].tolist() == [.1]


def fake(d, estimate=None) -> Resamples:
    """Resamples of two models with the differences `d`."""
    values = np.stack([.5 + np.asarray(d, float), np.full(len(d), .5)], axis=1)[:, :, None]
    return Resamples(values, np.array([[.5 + (np.nanmean(d) if estimate is None else estimate)], [.5]]), ("a", "b"), ("auc",), 9, 9, "")


def test_no_spread():
    same = compare_models(fake(np.zeros(20))).iloc[0]
    assert same["p"] == 1 and same["z"] == 0 and "No difference" in claim(same)
    constant = compare_models(fake(np.full(20, .25))).iloc[0]
    assert np.isnan(constant[["z", "p", "p_holm", "p_bh"]].astype(float)).all() and "cannot be tested" in claim(constant)


def test_undefined_resamples_are_counted():
    d = np.random.default_rng(0).normal(.1, .05, 100)
    row = compare_models(fake(np.r_[d, np.nan, np.nan])).iloc[0]
    assert row["n_undefined"] == 2 and row["z"] == pytest.approx(d.mean() / d.std(ddof=1))
    assert np.isnan(compare_models(fake([np.nan] * 5, estimate=.1)).iloc[0]["p"])


def test_a_claim_follows_the_direction_of_the_metric():
    row = compare_models(fake(np.random.default_rng(0).normal(.1, .01, 100))).iloc[0]
    assert claim(row).startswith("a has a higher (better) AUC than b") and "P < 0.001" in claim(row)
    assert claim(row.replace("auc", "brier")).startswith("b has a lower (better) Brier score than a")
    weak = compare_models(fake(np.random.default_rng(0).normal(.01, .05, 100))).iloc[0]
    assert claim(weak).startswith("No difference in AUC was shown")


@pytest.mark.parametrize("call, says", [
    (lambda r: compare_models(r, metric="acu"), "metric in these resamples.*Did you mean 'auc'"),
    (lambda r: compare_models(r, reference="fuson"), "Did you mean 'fusion'"),
    (lambda r: compare_models(bootstrap_metrics(scores_of([0, 1, 0, 1], a=[.1, .2, .3, .4]), n=5)), "at least two models.*Got a"),
    (lambda r: compare_models(r, level=1.5), "a level between 0 and 1"),
])
def test_bad_input(oracle_scores, call, says):
    with pytest.raises(DataError, match=says): call(bootstrap_metrics(oracle_scores, n=5))


def rejections(cohort, cluster=True, cohorts=200) -> int:
    """In how many of the null cohorts the paired test gives P < 0.05."""
    return sum(compare_models(bootstrap_metrics(cohort(np.random.default_rng([2024, c])), n=1000, seed=c, cluster=cluster))["p"].item() < .05
               for c in range(cohorts))


def independent(rng):
    """200 patients, one case each; two equally good scores that share half of their noise."""
    label, shared = np.arange(200) % 2, rng.normal(size=200)
    return scores_of(label, **{m: label + shared + rng.normal(size=200) for m in "ab"})


def clustered(rng):
    """80 patients of 1 to 4 cases; each of two equally good scores has a patient effect of its own."""
    patient = np.repeat(np.arange(80), rng.integers(1, 5, 80))
    label = (patient % 2 == 0).astype(int)
    return scores_of(label, patient, **{m: label + 1.5 * rng.normal(size=80)[patient] + .5 * rng.normal(size=len(patient)) for m in "ab"})


@pytest.mark.slow
@pytest.mark.parametrize("cohort", [independent, clustered])
def test_the_paired_test_rejects_at_its_nominal_rate(cohort):
    low, high = binom.ppf([.005, .995], 200, .05)
    rejected = rejections(cohort)
    print(f"{cohort.__name__}: {rejected} of 200 rejected at 5%")
    assert low <= rejected <= high


@pytest.mark.slow
def test_rows_drawn_singly_reject_far_too_often_in_clustered_data():
    rejected = rejections(clustered, cluster=False)
    print(f"clustered, rows drawn singly: {rejected} of 200 rejected at 5%")
    assert rejected > binom.ppf(.995, 200, .05)


def test_claim_takes_one_row_of_a_comparison(oracle_scores):
    from fusion_nb.paired_tests import noninferiority
    from fusion_nb.resample import intervals
    res = bootstrap_metrics(oracle_scores, n=300)
    row = noninferiority(res, reference="fusion", margin=.2).iloc[0]
    assert claim(row) == row["verdict"]  # no claim of superiority from a test of non-inferiority
    for wrong in (intervals(res).iloc[0], compare_models(res)):
        with pytest.raises(DataError, match="one row of a comparison"): claim(wrong)
    with pytest.raises(DataError, match="a level between 0 and 1.*5"): claim(compare_models(res).iloc[0], alpha=5)
