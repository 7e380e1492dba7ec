"""Paired tests: against every exchange and R, statsmodels' McNemar, Tango's limits, the t distribution, and what each refuses."""
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm, rankdata
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar

from fusion_nb.compare import compare_models
from fusion_nb.metrics import auc
from fusion_nb.paired_tests import corrected_resampled_t, mcnemar_compare, noninferiority, permutation_compare
from fusion_nb.paired_tests import _mcnemar_p, _tango_low
from fusion_nb.predictions import Scores, read_scores, score_matrix
from fusion_nb.resample import METRICS, Resamples, bootstrap_metrics
from fusion_nb.schema import DataError

ORACLES = Path(__file__).parent / "oracles"
R = json.loads((ORACLES / "paired_tests.json").read_text())


def scores_of(label, group=None, classes=None, **models) -> Scores:
    cases = pd.DataFrame({"case_id": np.arange(len(label)).astype(str), "group": group, "fold": 0, "label": label})
    return Scores(cases, tuple(models), np.stack(list(models.values()), axis=1).astype(float), classes)


def swapped(scores) -> Scores:
    return replace(scores, models=scores.models[::-1], scores=scores.scores[:, ::-1],
                   thresholds=None if scores.thresholds is None else scores.thresholds[:, ::-1])


@pytest.fixture(scope="module")
def oracle_scores() -> Scores:
    table = pd.read_csv(ORACLES / "scores.csv")
    return scores_of(table["y_true"].to_numpy(), table["patient"].to_numpy(), image=table["image"], table=table["table"])


# ---- permutation

def every_exchange(label, a, b, metric, unit=None) -> float:
    """P of all exchanges, one after the other."""
    unit = np.arange(len(label)) if unit is None else np.unique(unit, return_inverse=True)[1]
    d = []
    for bits in product([False, True], repeat=unit.max() + 1):
        swap = np.array(bits)[unit]
        d.append(metric(label, np.where(swap, b, a)) - metric(label, np.where(swap, a, b)))
    return np.mean(np.abs(d) >= abs(d[0]) - 1e-12)


@pytest.mark.parametrize("case, group, options", [("ranks", None, {}), ("ranks_by_patient", "patient", {}), ("raw", None, {"raw": True})])
def test_eight_cases_equal_all_exchanges_in_r(case, group, options):
    s = R["small"]
    row = permutation_compare(scores_of(np.array(s["y"]), s.get(group), a=s["a"], b=s["b"]), **options).iloc[0]
    assert row["p"] == pytest.approx(s[case]["p"], abs=1e-9) and row["difference"] == pytest.approx(s[case]["difference"], abs=1e-9)
    assert row["p_mc"] == 0 and row["n"] == 8 and (np.isnan(row["n_groups"]) if group is None else row["n_groups"] == 4)


@pytest.mark.parametrize("name, metric, form", [
    ("auc", roc_auc_score, rankdata), ("average_precision", average_precision_score, rankdata), ("brier", brier_score_loss, np.asarray),
    ("accuracy", lambda y, call: np.mean(y == call), lambda s: s >= .5), ("specificity_at_95_sensitivity", METRICS["specificity_at_95_sensitivity"].function, rankdata),
    ("f1", lambda y, call: 2 * (y * call).sum() / (y.sum() + call.sum()), lambda s: (s >= .5).astype(int))])
@pytest.mark.parametrize("group", [None, [0, 0, 1, 2, 3, 4, 5, 5]])
def test_eight_cases_equal_all_exchanges(name, metric, form, group):
    rng = np.random.default_rng(4)
    label, a, b = np.tile([0, 1], 4), rng.random(8).round(1), rng.random(8).round(2)
    got = permutation_compare(scores_of(label, group, a=a, b=b), name)["p"].item()
    assert got == pytest.approx(every_exchange(label, form(a), form(b), metric, group), abs=1e-12)


def test_random_exchanges_within_patients_equal_r(oracle_scores):
    for case, options in (("ranks", {}), ("raw", {"raw": True})):
        row, theirs = permutation_compare(oracle_scores, **options).iloc[0], R["large"][case]
        error = np.hypot(row["p_mc"], np.sqrt(theirs["p"] * (1 - theirs["p"]) / R["large"]["n"]))
        assert abs(row["p"] - theirs["p"]) < 4 * error and row["difference"] == pytest.approx(theirs["difference"], abs=1e-9)


def test_a_monotone_transform_of_one_model_leaves_p(oracle_scores):
    bent = replace(oracle_scores, scores=np.stack([1 / (1 + np.exp(9 - 20 * oracle_scores.scores[:, 0])), oracle_scores.scores[:, 1]], axis=1))
    p, p_bent = (permutation_compare(s, n=500)["p"].item() for s in (oracle_scores, bent))
    raw, raw_bent = (permutation_compare(s, n=500, raw=True)["p"].item() for s in (oracle_scores, bent))
    assert p == p_bent and raw != raw_bent


@pytest.mark.parametrize("metric", ["auc", "accuracy", "brier", "average_precision"])
def test_swapping_the_models_flips_the_difference_and_leaves_p(oracle_scores, metric):
    ours, theirs = (permutation_compare(s, metric, n=500, seed=3).iloc[0] for s in (oracle_scores, swapped(oracle_scores)))
    assert ours["difference"] == -theirs["difference"] and ours["p"] == theirs["p"]


def test_permutations_depend_on_the_seed_alone(oracle_scores):
    told = lambda **options: permutation_compare(oracle_scores, **{"n": 300, **options})["p"].item()
    assert told() == told(threads=1) == told(threads=3) == told(threads=0) and told() != told(seed=1)
    assert all(permutation_compare(oracle_scores, m, n=100).equals(permutation_compare(oracle_scores, m, n=100, threads=0))
               for m in ("average_precision", "specificity_at_95_sensitivity", "accuracy", "mcc"))


def test_sampled_p_has_the_one_and_its_error(oracle_scores):
    sure = scores_of(np.tile([0, 1], 50), good=np.arange(100) % 2 + np.arange(100) / 1000, bad=np.random.default_rng(0).random(100))
    row = permutation_compare(sure, n=99).iloc[0]
    assert row["p"] == 1 / 100 and row["p_mc"] == pytest.approx(np.sqrt(.01 * .99 / 99))
    p = [permutation_compare(oracle_scores, n=400, seed=s)["p"].item() for s in range(25)]
    assert np.std(p) == pytest.approx(permutation_compare(oracle_scores)["p_mc"].item() * np.sqrt(20_000 / 400), rel=.4)


@pytest.mark.parametrize("units, n, told", [(4, 8, "all 8 exchanges"), (4, 7, "7 random exchanges"), (15, 16_384, "all 16,384 exchanges")])
def test_few_units_are_enumerated(units, n, told):
    rng = np.random.default_rng(units)
    row = permutation_compare(scores_of(np.arange(units) % 2, a=rng.random(units), b=rng.random(units)), n=n).iloc[0]
    assert told in row["test"] and row["p"] * (n if "all" in told else n + 1) % 1 < 1e-9
    assert row["p_mc"] == (0 if "all" in told else np.sqrt(row["p"] * (1 - row["p"]) / n))


def test_equal_models_and_equal_scores():
    label = np.tile([0, 1], 20)
    score = np.random.default_rng(0).random(40)
    assert permutation_compare(scores_of(label, a=score, b=score), n=200)["p"].item() == 1
    assert permutation_compare(scores_of(label, a=score, b=score ** 2), n=200)["p"].item() == 1
    flat = permutation_compare(scores_of(label, a=np.full(40, .5), b=score), n=200).iloc[0]
    assert flat["difference"] == .5 - auc(label, score) and 0 < flat["p"] <= 1


def test_one_positive():
    row = permutation_compare(scores_of(np.arange(200) == 3, a=np.arange(200) == 3, b=np.arange(200)), n=500).iloc[0]
    assert row["difference"] == 1 - 3 / 199 and .3 < row["p"] <= 1  # one case cannot show anything: half of the exchanges keep it


def test_a_hundred_thousand_rows():
    rng = np.random.default_rng(0)
    label = rng.binomial(1, .1, 100_000)
    row = permutation_compare(scores_of(label, a=label + rng.normal(size=100_000), b=.9 * label + rng.normal(size=100_000)), n=64).iloc[0]
    assert row["p"] == 1 / 65


def test_undefined_exchanges_count_against_a_difference():
    label = np.array([0, 1, 0, 1, 0, 1])
    row = permutation_compare(scores_of(label, a=[0, 0, 0, .9, 0, .9], b=[0, 0, 0, .1, .9, .1]), "precision").iloc[0]
    d = []
    for bits in product([0, 1], repeat=6):  # precision is undefined for the one that gets no call
        call = np.array([[0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0]])
        a, b = np.where(bits, call[1], call[0]), np.where(bits, call[0], call[1])
        d.append((a @ label / a.sum() if a.sum() else np.nan) - (b @ label / b.sum() if b.sum() else np.nan))
    assert row["n_undefined"] == np.isnan(d).sum() / 2 > 0
    assert row["p"] == np.mean(np.isnan(d) | (np.abs(d) >= 1))


def test_thresholds_go_with_the_calls():
    rng = np.random.default_rng(1)
    label = np.tile([0, 1], 6)
    a, b = rng.random(12), 10 * rng.random(12)
    got = permutation_compare(scores_of(label, a=a, b=b).at({"a": .4, "b": 6}), "accuracy")["p"].item()
    want = permutation_compare(scores_of(label, a=a >= .4, b=b >= 6), "accuracy")["p"].item()
    assert got == want == every_exchange(label, a >= .4, b >= 6, lambda y, call: np.mean(y == call))


def test_several_classes():
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1, 2], 2)
    a, b = (rng.dirichlet([1, 1, 1], 6) for _ in "ab")
    scores = scores_of(label, classes=("x", "y", "z"), a=a, b=b)
    ranks = [np.stack([rankdata(c) for c in s.T], axis=1) for s in (a, b)]
    swaps = [np.array(bits)[:, None] for bits in product([False, True], repeat=6)]
    macro = lambda s: np.mean([roc_auc_score(label == c, s[:, c]) for c in range(3)])
    d = np.array([macro(np.where(s, *ranks[::-1])) - macro(np.where(s, *ranks)) for s in swaps])
    assert permutation_compare(scores, "macro_auc")["p"].item() == pytest.approx(np.mean(abs(d) >= abs(d[0]) - 1e-12))
    y = permutation_compare(scores, "auc:y")["p"].item()
    assert y == permutation_compare(scores_of((label == 1).astype(int), a=a[:, 1], b=b[:, 1]))["p"].item()
    right = mcnemar_compare(scores).iloc[0]
    assert right["only_a"] - right["only_b"] == (a.argmax(axis=1) == label).sum() - (b.argmax(axis=1) == label).sum()


def test_survival_has_permutations_of_ranks():
    rng = np.random.default_rng(3)
    cases = pd.DataFrame({"case_id": np.arange(40).astype(str), "group": None, "fold": 0, "time": rng.exponential(size=40), "event": rng.binomial(1, .7, 40)})
    risk = -np.log(cases["time"].to_numpy())
    scores = Scores(cases, ("good", "noise"), np.stack([risk + .3 * rng.normal(size=40), rng.normal(size=40)], axis=1))
    assert permutation_compare(scores, "harrell_c", n=99)["p"].item() < .05
    with pytest.raises(DataError, match="permutation_compare"): mcnemar_compare(scores)


def test_real_files_with_late_fusion(data_dir):
    """The mean logit of the two published models against their mean probability: nearly the same order, scales that differ."""
    folder = data_dir / "breast_mri_fusion"
    pred = pd.concat([read_scores(folder / m / "preds.csv", label="y_true", score="y_prob", model=m) for m in ("image-only", "learned-feature-fusion")])
    both = score_matrix(pred)
    p = np.clip(both.scores, 1e-6, 1 - 1e-6)
    logit = np.log(p / (1 - p)).mean(axis=1)
    late = replace(both, models=("logit", "mean"), scores=np.stack([1 / (1 + np.exp(-logit)), both.scores.mean(axis=1)], axis=1))
    ranks, raw = (permutation_compare(late, n=2000, raw=r)["p"].item() for r in (False, True))
    assert ranks == pytest.approx(.034, abs=.02) and raw > .09  # DeLong gives .034
    assert permutation_compare(both, n=500)["p"].item() == 1 / 501


# ---- McNemar

@pytest.mark.parametrize("case", R["mcnemar"], ids=lambda c: f"{c['b']}-{c['c']}-{c['n']}")
def test_mcnemar_equals_r_and_statsmodels(case):
    b, c, n = case["b"], case["c"], case["n"]
    assert _mcnemar_p(b, c, "exact") == pytest.approx(case["exact"], abs=1e-9)
    assert _mcnemar_p(b, c, "exact") == pytest.approx(mcnemar([[n - b - c, b], [c, 0]], exact=True).pvalue, abs=1e-12)
    assert _mcnemar_p(b, c, "mid-p") == pytest.approx(case["mid"], abs=1e-9)
    assert [_tango_low(b, c, n, 1.959963984540054), -_tango_low(c, b, n, 1.959963984540054)] == pytest.approx(case["tango"], abs=1e-9)
    label = np.ones(n)
    row = mcnemar_compare(scores_of(label, a=np.arange(n) >= c, b=(np.arange(n) < c) | (np.arange(n) >= b + c))).iloc[0]
    assert (row["only_a"], row["only_b"], row["n"]) == (b, c, n) and row["p"] == pytest.approx(case["mid"], abs=1e-9)
    assert [row["low"], row["high"]] == pytest.approx(case["tango"], abs=1e-9) and row["z"] == pytest.approx(case["z"], abs=1e-9)


def test_mcnemar_on_the_oracle_scores(oracle_scores):
    alone = replace(oracle_scores, cases=oracle_scores.cases.assign(group=None))
    exact, mid = (mcnemar_compare(alone, method=m).iloc[0] for m in ("exact", "mid-p"))
    assert exact["p"] == pytest.approx(R["mcnemar"][0]["exact"], abs=1e-9) and mid["p"] == pytest.approx(R["mcnemar"][0]["mid"], abs=1e-9)
    back = mcnemar_compare(swapped(alone)).iloc[0]
    assert back["difference"] == -mid["difference"] and back["p"] == mid["p"] and back["low"] == pytest.approx(-mid["high"], abs=1e-12)
    assert mid["difference"] == pytest.approx(np.diff(bootstrap_metrics(alone, "accuracy", n=2).estimate[::-1, 0]).item())
    parts = [mcnemar_compare(alone, m).iloc[0] for m in ("sensitivity", "specificity")]
    assert sum(p["only_a"] for p in parts) == mid["only_a"] and sum(p["n"] for p in parts) == 400 and np.isnan(mid["n_groups"])


def test_tangos_limits_are_where_the_score_test_turns():
    for b, c, n in [(1, 7, 21), (400, 300, 5000), (0, 1, 10_000), (30, 0, 30)]:
        for level in (.8, .95, .999):
            z = norm.ppf((1 + level) / 2)
            low, high = _tango_low(b, c, n, z), -_tango_low(c, b, n, z)
            assert -1 <= low < (b - c) / n <= high <= 1
            assert (low > 0 or high < 0) == (abs(b - c) / np.sqrt(b + c) > z)


# ---- repeated cross-validation

def test_resampled_t_equals_r():
    got, want = corrected_resampled_t(R["resampled_t"]["differences"], test_fraction=.2), R["resampled_t"]
    assert [got["difference"], got["t"], got["p"]] == pytest.approx([want["difference"], want["t"], want["p"]], abs=1e-9)
    assert [got["low"], got["high"]] == pytest.approx(want["limits"], abs=1e-9) and got["df"] == 19
    square = np.reshape(want["differences"], (4, 5))
    assert corrected_resampled_t(square, test_fraction=.2).equals(got) and corrected_resampled_t(-square, test_fraction=.2)["p"] == got["p"]


def test_resampled_t_equals_scikit_learns_example():
    """`corrected_std` and `compute_corrected_ttest` of "Statistical comparison of models using grid search"."""
    d = np.random.default_rng(0).normal(.01, .02, 100)
    std = np.sqrt(np.var(d, ddof=1) * (1 / len(d) + 10 / 90))
    assert corrected_resampled_t(d, test_fraction=.1)["t"] == pytest.approx(np.mean(d) / std, abs=1e-12)


def test_more_repetitions_do_not_sharpen_the_test_at_will():
    d = np.random.default_rng(0).normal(.02, .03, 10)
    p = [corrected_resampled_t(np.tile(d, r), test_fraction=.1)["p"] for r in (1, 10, 1000)]
    assert p[0] > p[1] > p[2] == pytest.approx(2 * norm.sf(d.mean() / np.sqrt(d.var() / 9)), rel=.01)


def test_differences_that_do_not_vary():
    assert corrected_resampled_t([0, 0, 0], test_fraction=.1)["p"] == 1
    same = corrected_resampled_t([.1, .1, .1], test_fraction=.1)
    assert np.isnan(same["t"]) and np.isnan(same["p"]) and same["low"] == pytest.approx(.1)


# ---- non-inferiority

def fake(new, old, estimate, metric="auc") -> Resamples:
    return Resamples(np.stack([new, old], axis=1)[:, :, None], np.array(estimate)[:, None], ("new", "old"), (metric,), 100, np.nan, "By hand.")


def test_noninferiority_equals_r():
    want = R["noninferior"]
    row = noninferiority(fake(want["new"], want["old"], want["estimate"]), reference="old", margin=want["margin"]).iloc[0]
    assert [row["z"], row["p"], row["p_percentile"]] == pytest.approx([want["z"], want["p"], want["p_percentile"]], abs=1e-9)
    assert [row["low"], row["high"]] == pytest.approx(want["limits"], abs=1e-9)
    assert row["verdict"].startswith("not shown" if want["limits"][0] < -want["margin"] else "non-inferior")


@pytest.mark.parametrize("gain, says", [(.03, "superior"), (-.001, "non-inferior within 0.02"), (-.015, "not shown"), (-.1, "not shown")])
@pytest.mark.parametrize("metric, sign", [("auc", 1), ("brier", -1)])
def test_verdicts_respect_the_metrics_direction(gain, says, metric, sign):
    d = sign * np.random.default_rng(0).normal(gain, .005, 2000)
    row = noninferiority(fake(.5 + d, np.full(2000, .5), [.5 + sign * gain, .5], metric), reference="old", margin=.02, metric=metric).iloc[0]
    assert row["verdict"].startswith(says) and (row["p"] < .025) == (says != "not shown") and row["difference"] == pytest.approx(sign * gain)


def test_noninferiority_without_spread():
    flat = np.full(50, .5)
    row = lambda *args: noninferiority(fake(*args), reference="old", margin=.02).iloc[0]
    assert row(flat, flat, [.5, .5])["verdict"].startswith("non-inferior") and row(flat, flat, [.5, .5])["p"] == 0
    assert np.isnan(row(flat + .1, flat, [.6, .5])["p"]) and "cannot be tested" in row(flat + .1, flat, [.6, .5])["verdict"]
    undefined = row(flat * np.nan, flat, [.5, .5])
    assert undefined["n_undefined"] == 50 and undefined["verdict"].startswith("not shown")


def test_noninferiority_follows_the_two_sided_comparison(oracle_scores):
    res = bootstrap_metrics(oracle_scores, n=500)
    ours, theirs = noninferiority(res, reference="table", margin=.02).iloc[0], compare_models(res, reference="table").iloc[0]
    same = ["difference", "low", "high", "low_mc", "high_mc", "n_undefined"]
    assert [ours[c] for c in same] == [theirs[c] for c in same]
    assert set(ours.index) == {c for c in theirs.index if not c.startswith("p_max_t")} | {"margin", "verdict"}


def test_monte_carlo_errors_of_noninferiority(oracle_scores):
    rows = pd.concat([noninferiority(bootstrap_metrics(oracle_scores, n=500, seed=s), reference="image", margin=.02) for s in range(40)])
    for limit, error in (("low", "low_mc"), ("high", "high_mc"), ("p", "p_mc")):
        assert 0 < rows[limit].std() and rows[limit].std() == pytest.approx(rows[error].mean(), rel=.5), limit
    flat = np.full(50, .5)
    assert noninferiority(fake(flat, flat, [.5, .5]), reference="old", margin=.02)["p_mc"].item() == 0


def test_a_verdict_among_several_says_that_it_is_uncorrected(oracle_scores):
    three = replace(oracle_scores, models=(*oracle_scores.models, "both"), scores=np.hstack([oracle_scores.scores, oracle_scores.scores.mean(axis=1, keepdims=True)]))
    several = noninferiority(bootstrap_metrics(three, n=200), reference="both", margin=.02)["verdict"]
    assert len(several) == 2 and several.str.endswith(" Uncorrected, one of 2 comparisons; p_holm is corrected.").all()
    one = noninferiority(fake(np.arange(50.), np.arange(50.)[::-1], [.5, .5]), reference="old", margin=.02)["verdict"].item()
    assert "ncorrected" not in one


# ---- what is refused

def toy(**kwargs) -> Scores:
    return scores_of(np.tile([0, 1], 10), **{"a": np.arange(20) / 20, "b": np.arange(20)[::-1] / 20, **kwargs})


@pytest.mark.parametrize("call, says", [
    (lambda: permutation_compare(toy(), "acu"), "Did you mean 'auc'"),
    (lambda: permutation_compare(toy(), reference="c"), "a known model"),
    (lambda: permutation_compare(toy(), n=1), "at least 2 exchanges"),
    (lambda: permutation_compare(toy(), seed=-1), "seed"),
    (lambda: permutation_compare(toy(), "harrell_c"), "a metric for binary scores"),
    (lambda: permutation_compare(toy(a=3 * np.arange(20)), "accuracy"), "the scores are no probabilities.*scores.at"),
    (lambda: permutation_compare(toy(a=3 * np.arange(20)), "brier"), "probabilities"),
    (lambda: permutation_compare(toy(a=np.zeros(20)), "precision"), "defined for every model.*no precision of 'a'"),
    (lambda: permutation_compare(toy(group=["p"] * 20)), "at least two patients"),
    (lambda: permutation_compare(scores_of(np.ones(9), a=np.arange(9), b=np.arange(9))), "both classes"),
    (lambda: permutation_compare(scores_of(np.tile([0, 1], 3), a=np.arange(6))), "at least two models"),
    (lambda: mcnemar_compare(toy(group=np.repeat(np.arange(10), 2))), "one row per patient.*permutation_compare"),
    (lambda: mcnemar_compare(toy(), "auc"), "a known metric of McNemar"),
    (lambda: mcnemar_compare(toy(), method="chi"), "a known method"),
    (lambda: mcnemar_compare(toy(), level=95), "a level between 0 and 1"),
    (lambda: mcnemar_compare(toy(b=5 * np.arange(20))), "scores.at"),
    (lambda: mcnemar_compare(scores_of(np.ones(9), a=np.ones(9), b=np.ones(9)), "specificity"), "cases for the specificity"),
    (lambda: corrected_resampled_t([.1, .2], test_fraction=10), "a share of test cases"),
    (lambda: corrected_resampled_t([.1], test_fraction=.1), "at least two folds"),
    (lambda: corrected_resampled_t([.1, np.inf], test_fraction=.1), "inf at position 1"),
    (lambda: corrected_resampled_t([.1, .2], test_fraction=.1, level=2), "a level between"),
    (lambda: noninferiority(bootstrap_metrics(toy(), n=5), reference="b", margin=0), "a margin above 0"),
    (lambda: noninferiority(bootstrap_metrics(toy(), n=5), reference="b", margin=".1"), "a margin above 0. Got '.1'"),
    (lambda: noninferiority(bootstrap_metrics(toy(), n=5), reference="b", margin=None), "a margin above 0. Got None"),
    (lambda: noninferiority(bootstrap_metrics(toy(), n=5), reference="b", margin=.1, alpha=.5), "a one-sided level"),
    (lambda: noninferiority(bootstrap_metrics(toy(), n=5), reference="b", margin=.1, alpha="0.025"), "a one-sided level.*Got '0.025'"),
    (lambda: mcnemar_compare(toy(), level="0.95"), "a level between 0 and 1"),
    (lambda: permutation_compare(toy(), threads=-1), "a number of threads"),
    (lambda: noninferiority(bootstrap_metrics(toy(), n=5), reference="c", margin=.1), "a known model"),
    (lambda: noninferiority(bootstrap_metrics(toy(), n=5), reference="b", margin=.1, metric="f1"), "metric in these resamples"),
])
def test_bad_input(call, says):
    with pytest.raises(DataError, match=says): call()


# ---- size

def null(seed, clustered):
    """Two equally good models on 80 cases (of 40 patients), one of them badly calibrated."""
    rng = np.random.default_rng([11, seed])
    patient = np.arange(80) // 2 if clustered else np.arange(80)
    label = (patient % 2).astype(int)
    a, b = (label + rng.normal(size=80)[patient] + .3 * rng.normal(size=80) for _ in "ab")
    return scores_of(label, patient, a=1 / (1 + np.exp(-a)), b=.02 / (1 + np.exp(-3 * b)))


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_permutation_rejects_at_its_nominal_rate(clustered):
    rejected = sum(permutation_compare(null(seed, clustered), n=399)["p"].item() <= .05 for seed in range(400))
    print(f"clustered {clustered}: {rejected} of 400 rejected at 5%")
    assert binom.ppf(.005, 400, .05) <= rejected <= binom.ppf(.995, 400, .05)


def test_no_p_above_one():
    """The mid-P of equal counts is 1; computed, it may be a little more, which no correction accepts."""
    from fusion_nb.paired_tests import _mcnemar_p
    assert max(_mcnemar_p(b, b, "mid-p") for b in range(300)) == 1
