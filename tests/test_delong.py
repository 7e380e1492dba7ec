"""DeLong: against pROC, against Obuchowski's formulas in double loops, against the clustered bootstrap, and what must be refused."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from fusion_nb.compare import claim, compare_models
from fusion_nb.delong import delong, delong_compare, delong_intervals, delong_omnibus
from fusion_nb.metrics import auc
from fusion_nb.predictions import Scores, read_scores, score_matrix
from fusion_nb.resample import bootstrap_metrics, intervals
from fusion_nb.schema import DataError

ORACLES = Path(__file__).parent / "oracles"
R = json.loads((ORACLES / "delong.json").read_text())
EXACT = dict(rel=0, abs=1e-8)


def scores_of(label, group=None, **models) -> Scores:
    cases = pd.DataFrame({"case_id": np.arange(len(label)).astype(str), "group": group, "fold": 0, "label": label})
    return Scores(cases, tuple(models), np.stack([np.asarray(s, float) for s in models.values()], axis=1))


def made(n, every, patients=False) -> Scores:
    """The data of `made` in delong.R: whole numbers, the same in both languages."""
    i = np.arange(1, n + 1)
    u = lambda a: (i * i * a + 17 * i) % 1000003
    y = (u(31) % every == 0).astype(int)
    return scores_of(y, u(91193) % (n // 2) if patients else None, a=(u(7919) + u(101) + 300000 * y) // 50,
                     b=u(104729) + u(101) + 200000 * y, c=(u(48271) + 150000 * y) // 100000)


def from_csv(patients=False) -> Scores:
    table = pd.read_csv(ORACLES / "scores.csv")
    return scores_of(table["y_true"].to_numpy(), table["patient"] if patients else None, **{m: table[m] for m in ("image", "table", "fusion")})


def ten() -> Scores:
    return scores_of(R["ten"]["data"]["y"], a=R["ten"]["data"]["a"], b=R["ten"]["data"]["b"])


INDEPENDENT = {"scores": from_csv, "unbalanced": lambda: made(2000, 20), "large": lambda: made(100_000, 20), "ten": ten}
CLUSTERED = {"small": lambda: made(40, 3, True), "mixed": lambda: made(600, 8, True), "scores": lambda: from_csv(True)}


# ---- pROC

@pytest.mark.parametrize("name", INDEPENDENT)
def test_everything_equals_proc(name):
    scores, proc = INDEPENDENT[name](), R[name]
    got = delong(scores)
    assert list(got.models) == proc["models"] and got.auc == pytest.approx(np.array(proc["auc"]), **EXACT)
    np.testing.assert_allclose(got.covariance, proc["covariance"], rtol=1e-8, atol=1e-14)
    assert not got.clustered and np.isnan(got.n_groups) and "rows were taken as independent" in got.method
    for options, theirs in (({}, "ci95"), ({"level": .8}, "ci80")):
        assert delong_intervals(scores, **options)[["low", "estimate", "high"]].to_numpy() == pytest.approx(np.array(proc[theirs]), **EXACT)
    assert delong_intervals(scores, transform="logit")[["low", "high"]].to_numpy() == pytest.approx(np.array(proc["logit95"]), **EXACT)
    tests = pd.json_normalize(proc["tests"])
    table = delong_compare(scores)
    assert table[["model_a", "model_b"]].equals(tests[["model_a", "model_b"]])
    assert table["z"].to_numpy() == pytest.approx(tests["z"].to_numpy(), **EXACT) and table["p"].to_numpy() == pytest.approx(tests["p"].to_numpy(), rel=1e-8)
    assert table[["low", "high"]].to_numpy() == pytest.approx(np.stack(tests["ci95"]), **EXACT)
    whole = delong_omnibus(scores).iloc[0]
    assert whole["chi2"] == pytest.approx(proc["omnibus"]["chi2"], rel=1e-8) and whole["df"] == proc["omnibus"]["df"]
    assert whole["p"] == pytest.approx(proc["omnibus"]["p"], rel=1e-7)


@pytest.mark.parametrize("name", [name for name, limits in R["edge_cases"].items() if limits[0] is not None])
def test_intervals_of_edge_cases_equal_proc(name):
    edge = pd.read_csv(ORACLES / "edge_cases.csv").query("case == @name")
    row = delong_intervals(scores_of(edge["y_true"].to_numpy(), a=edge["score"]))[["low", "estimate", "high"]]
    assert row.to_numpy()[0] == pytest.approx(np.array(R["edge_cases"][name]), **EXACT)


def test_pROC_too_has_no_interval_for_one_positive():
    assert R["edge_cases"]["one_positive"] == [None] * 3
    edge = pd.read_csv(ORACLES / "edge_cases.csv").query("case == 'one_positive'")
    with pytest.raises(DataError, match="at least two cases with a positive case.*one, among 6 cases.*bootstrap.*cannot help.*without an interval"):
        delong(scores_of(edge["y_true"].to_numpy(), a=edge["score"]))


def test_intervals_have_the_columns_of_the_bootstrap():
    assert list(delong_intervals(from_csv())) == list(intervals(bootstrap_metrics(from_csv(), n=50)))


def test_the_interval_at_other_levels_nests():
    low = [delong_intervals(from_csv(), level=level)["low"].to_numpy() for level in (.5, .9, .99)]
    assert (np.diff(low, axis=0) < 0).all()


# ---- Obuchowski

@pytest.mark.parametrize("name", CLUSTERED)
def test_clustered_covariance_equals_the_double_loops(name):
    scores, loops = CLUSTERED[name](), R["clustered"][name]
    got = delong(scores)
    assert got.clustered and got.n_groups == loops["clusters"] and "clustered by patient (Obuchowski 1997)" in got.method
    assert got.auc == pytest.approx(np.array(loops["auc"]), **EXACT)
    np.testing.assert_allclose(got.covariance, loops["covariance"], rtol=1e-8, atol=1e-14)
    row = delong_compare(scores).iloc[0]
    assert [row["z"], row["p"]] == pytest.approx([loops["first_pair"]["z"], loops["first_pair"]["p"]], **EXACT)
    assert "clustered by patient" in row["test"] and row["n_groups"] == loops["clusters"]
    both = {t: delong_intervals(scores, transform=t) for t in ("none", "logit")}
    assert np.allclose(both["none"].eval("high - low"), 2 * 1.959963984540054 * np.sqrt(np.diag(got.covariance)), atol=1e-9)
    assert (both["logit"]["low"] != both["none"]["low"]).all() and both["logit"]["method"].str.contains("clustered by patient").all()


def test_one_case_per_patient_is_delong_to_the_last_factor():
    loops, proc = R["singletons"]["obuchowski"], R["singletons"]["proc"]
    np.testing.assert_allclose(loops["covariance"], proc["covariance"], rtol=1e-12)
    known = made(40, 3)
    known = replace(known, cases=known.cases.assign(group=np.arange(40)[::-1].astype(str)))
    for got in (delong(known), delong(known, cluster=False)):
        np.testing.assert_allclose(got.covariance, proc["covariance"], rtol=1e-10)
        assert not got.clustered and got.n_groups == 40 and "one per patient" in got.method


def test_copies_of_every_case_add_nothing():
    """Every case twice: rows taken as independent would halve the variance; clustered, it stays."""
    once = made(600, 8)
    scores = replace(once, cases=pd.concat([once.cases] * 2, ignore_index=True).assign(group=np.tile(np.arange(600), 2)), scores=np.tile(once.scores, (2, 1)))
    np.testing.assert_allclose(delong(scores).covariance, delong(once).covariance, rtol=1e-10)
    naive = delong(replace(scores, cases=scores.cases.assign(group=None)))
    assert np.allclose(np.diag(naive.covariance) / np.diag(delong(scores).covariance), .5, atol=.01)


def test_the_standard_error_equals_the_clustered_bootstrap():
    """2,000 patients of 1 to 3 cases, of either class, with a patient effect: within 4 Monte Carlo errors and what 1 / patients leaves open."""
    rng = np.random.default_rng(7)
    patient = np.repeat(np.arange(2000), rng.integers(1, 4, 2000))
    label = rng.binomial(1, np.where(rng.random(2000) < .5, .1, .6)[patient])
    a, b = (label + rng.normal(size=2000)[patient] + .5 * rng.normal(size=len(patient)) for _ in "ab")
    scores = scores_of(label, patient, a=a, b=b)
    drawn = bootstrap_metrics(scores, n=20_000, seed=3, stratified=False).of("auc")[0]
    got, row = delong(scores), delong_compare(scores).iloc[0]  # an sd of R resamples is known to 1 / sqrt(2 R)
    ours = [*np.sqrt(np.diag(got.covariance)), row["difference"] / row["z"]]
    theirs = [*drawn.std(axis=0, ddof=1), (drawn[:, 0] - drawn[:, 1]).std(ddof=1)]
    assert ours == pytest.approx(theirs, rel=4 / np.sqrt(2 * 20_000) + 1 / 1000)
    independent = delong(scores_of(label, a=a, b=b))
    assert (np.sqrt(np.diag(independent.covariance)) < .9 * np.array(theirs[:2])).all()  # the error that clustering corrects is larger


# ---- properties

@pytest.mark.parametrize("patients", [False, True])
def test_any_rising_transform_leaves_everything(patients):
    scores = from_csv(patients)
    risen = replace(scores, scores=np.stack([np.exp(5 * scores.scores[:, 0]), scores.scores[:, 1] - 100, np.arctan(scores.scores[:, 2])], axis=1))
    for f in (delong_intervals, delong_compare, delong_omnibus): pd.testing.assert_frame_equal(f(risen), f(scores))
    assert np.array_equal(delong(risen).covariance, delong(scores).covariance)


@pytest.mark.parametrize("patients", [False, True])
def test_order_of_models_and_rows_does_not_matter(patients):
    scores = from_csv(patients)
    swapped = replace(scores, models=scores.models[::-1], scores=scores.scores[:, ::-1])
    a, b = delong_compare(scores), delong_compare(swapped)[::-1].reset_index(drop=True)
    for ours, theirs in (("difference", "difference"), ("z", "z"), ("low", "high"), ("high", "low")): assert np.allclose(a[ours], -b[theirs], atol=1e-12)
    assert np.allclose(a[["p", "p_holm", "p_bh"]], b[["p", "p_holm", "p_bh"]]) and (a["model_a"] == b["model_b"]).all()
    assert np.isclose(delong_omnibus(scores)["chi2"], delong_omnibus(swapped)["chi2"]).all()
    order = np.random.default_rng(0).permutation(len(scores))
    shuffled = Scores(scores.cases.iloc[order].reset_index(drop=True), scores.models, scores.scores[order])
    np.testing.assert_allclose(delong(shuffled).covariance, delong(scores).covariance, rtol=1e-10)


@pytest.mark.parametrize("patients", [False, True])
def test_exchanging_the_classes_and_the_direction_leaves_the_auc_and_its_variance(patients):
    scores = from_csv(patients)
    turned = replace(scores, cases=scores.cases.assign(label=1 - scores.label), scores=-scores.scores)
    assert np.allclose(delong(turned).auc, delong(scores).auc) and np.allclose(delong(turned).covariance, delong(scores).covariance, rtol=1e-10)


def test_the_covariance_agrees_with_the_comparison_and_the_metric():
    scores = from_csv(True)
    got, table = delong(scores), delong_compare(scores)
    se = np.sqrt(got.covariance[0, 0] + got.covariance[1, 1] - 2 * got.covariance[0, 1])
    assert table["z"][0] == pytest.approx((got.auc[0] - got.auc[1]) / se, rel=1e-10)
    assert got.auc == pytest.approx([auc(scores.label, s) for s in scores.scores.T], abs=1e-12)
    assert (np.linalg.eigvalsh(got.covariance) > 0).all()


def test_reference_and_corrections_cover_the_rows_shown():
    table = delong_compare(from_csv(), reference="fusion")
    assert table[["model_a", "model_b"]].values.tolist() == [["image", "fusion"], ["table", "fusion"]]
    assert table["p_holm"].min() == pytest.approx(2 * table["p"].min())
    assert list(table) == ["model_a", "model_b", "metric", "difference", "low", "high", "z", "p", "p_holm", "p_bh", "n", "n_groups", "test"]
    assert claim(table.iloc[0]).startswith("fusion has a higher (better) AUC than image")


# ---- where nothing varies

def test_equal_rankings_differ_by_nothing_as_in_proc():
    scores = replace(ten(), models=("a", "its cubes"), scores=np.stack([ten().scores[:, 0], ten().scores[:, 0] ** 3], axis=1))
    row = delong_compare(scores).iloc[0]
    assert (row["z"], row["p"]) == (R["alike"]["statistic"], R["alike"]["p.value"]) == (0, 1) and row["low"] == row["high"] == 0
    whole = delong_omnibus(scores).iloc[0]
    assert (whole["chi2"], whole["df"], whole["p"]) == (0, 0, 1) and "some models rank alike" in whole["test"]


def test_a_difference_without_spread_cannot_be_tested():
    label = np.tile([0, 1], 10)
    scores = scores_of(label, perfect=label, constant=np.ones(20), inverted=-label, perfect_too=3 * label)
    table = delong_compare(scores).set_index(["model_a", "model_b"])
    assert table.loc[("perfect", "constant")][["z", "p", "p_holm", "p_bh"]].isna().all() and table.loc[("perfect", "constant"), "difference"] == .5
    assert table.loc[("perfect", "perfect_too"), "p"] == 1
    assert "cannot be tested" in claim(table.reset_index().iloc[0])
    whole = delong_omnibus(scores).iloc[0]
    assert np.isnan(whole["chi2"]) and np.isnan(whole["p"])
    noisy = replace(scores, models=("perfect", "constant", "noisy"), scores=np.c_[scores.scores[:, :2], np.arange(20.)])
    assert np.isnan(delong_omnibus(noisy)["p"].item()) and delong_compare(noisy)["p"].notna().tolist() == [False, True, True]


@pytest.mark.parametrize("n", [3, 7, 10, 49])
def test_a_constant_difference_is_known_through_rounding(n):
    """Positives and negatives alternate, in one model with a negative first, in the other with a positive: each share differs by 1 / n."""
    label, order = np.tile([0, 1], n), np.arange(2 * n)
    row = delong_compare(scores_of(label, a=order, b=order - 2.5 * label)).iloc[0]
    assert row["difference"] == pytest.approx(1 / n) and row["low"] == pytest.approx(row["high"]) and np.isnan(row["p"])


def test_no_interval_at_an_auc_of_one_and_what_is_said_instead():
    label = np.r_[np.ones(10, int), np.zeros(30, int)]
    table = delong_intervals(scores_of(label, perfect=label, inverted=-label, constant=np.ones(40))).set_index("model")
    assert table[["low", "high"]].values.tolist() == [[1, 1], [0, 0], [.5, .5]]
    assert f"at least {.025 ** (1 / 10):.3f} by the exact binomial limit of 10 disjoint pairs" in table.loc["perfect", "method"]
    assert f"at most {1 - .025 ** (1 / 10):.3f}" in table.loc["inverted", "method"] and "same placement" in table.loc["constant", "method"]
    assert table["method"].str.contains("say nothing").all()
    logit = delong_intervals(scores_of(label, perfect=label), transform="logit").iloc[0]
    assert logit["low"] == logit["high"] == 1
    mixed = scores_of(np.tile([0, 1], 6), np.repeat(np.arange(6), 2), perfect=np.tile([0, 1], 6))  # six patients make three pairs
    assert "3 disjoint pairs" in delong_intervals(mixed)["method"].item()


def test_models_that_rank_alike_leave_the_omnibus_test():
    scores = from_csv(True)
    want = delong_omnibus(scores).iloc[0]
    for order in ([0, 1, 2, 2], [2, 0, 1, 2], [1, 1, 0, 2, 1]):
        more = replace(scores, models=tuple(f"m{k}" for k in range(len(order))), scores=np.exp(scores.scores[:, order]))
        got = delong_omnibus(more).iloc[0]
        assert got["df"] == 2 and got["chi2"] == pytest.approx(want["chi2"], rel=1e-8) and "some models rank alike" in got["test"]


def test_nearly_equal_models_are_tested_nonetheless():
    """One positive that passes one negative among 100,000 cases: far below the rounding of the covariance matrix."""
    scores = made(100_000, 20)
    score = scores.scores[:, 1].copy()
    i = np.flatnonzero(scores.label == 1)[100]
    above = np.flatnonzero((scores.label == 0) & (score > score[i]))
    changed = score.copy()
    changed[i] = score[above].min() + .5
    row = delong_compare(scores_of(scores.label, a=changed, b=score)).iloc[0]
    assert row["difference"] > 0 and .5 < row["z"] < 1.5


# ---- refusals

def test_repeated_patients_without_clustering_are_refused():
    with pytest.raises(DataError, match="one case per patient for DeLong.*400 cases of 250 patients.*Use cluster=True"): delong(from_csv(True), cluster=False)


@pytest.mark.parametrize("label, patient, says", [
    ([0, 1, 0, 0], None, "at least two cases with a positive case.*one, among 4"),
    ([1, 1, 0, 1], None, "at least two cases with a negative case"),
    ([1, 1, 0, 0, 0], list("aabcd"), "at least two patients with a positive case"),
    ([1, 1, 0, 0, 0], list("abccc"), "at least two patients with a negative case"),
    ([1, 1], None, "cases of both classes"),
])
@pytest.mark.parametrize("f", [delong, delong_intervals, delong_compare, delong_omnibus])
def test_one_witness_of_a_class_is_refused(f, label, patient, says):
    score = np.arange(len(label))
    with pytest.raises(DataError, match=says): f(scores_of(label, patient, a=score, b=-score))


def test_two_of_a_class_are_enough_to_compute():
    got = delong(scores_of([1, 1, 0, 0, 0], a=[3, 1, 2, 0, 0]))
    assert got.auc[0] == pytest.approx(mannwhitneyu([3, 1], [2, 0, 0]).statistic / 6) and got.covariance[0, 0] > 0


def survival() -> Scores:
    cases = pd.DataFrame({"case_id": list("abcd"), "group": None, "fold": 0, "time": [1., 2, 3, 4], "event": [1, 0, 1, 1]})
    return Scores(cases, ("a", "b"), np.random.default_rng(0).random((4, 2)))


def three_classes() -> Scores:
    cases = pd.DataFrame({"case_id": list("abcdef"), "group": None, "fold": 0, "label": [0, 1, 2, 0, 1, 2]})
    return Scores(cases, ("a", "b"), np.full((6, 2, 3), 1 / 3), classes=("x", "y", "z"))


@pytest.mark.parametrize("f", [delong, delong_intervals, delong_compare, delong_omnibus])
def test_other_kinds_of_scores_are_refused(f):
    with pytest.raises(DataError, match="binary scores for DeLong.*survival scores.*concordance"): f(survival())
    with pytest.raises(DataError, match="binary scores for DeLong.*multiclass scores.*one class with the rest"): f(three_classes())


@pytest.mark.parametrize("call, says", [
    (lambda s: delong_intervals(s, level=95), "a level between 0 and 1.*Got 95"),
    (lambda s: delong_compare(s, level=0), "a level between 0 and 1"),
    (lambda s: delong_intervals(s, transform="logti"), "known transform.*Did you mean 'logit'"),
    (lambda s: delong_compare(s, reference="fuson"), "Did you mean 'fusion'"),
    (lambda s: delong_compare(replace(s, models=("a",), scores=s.scores[:, :1])), "at least two models"),
    (lambda s: delong_omnibus(replace(s, models=("a",), scores=s.scores[:, :1])), "at least two models"),
    (lambda s: delong(replace(s, scores=np.where(s.scores > .9, np.nan, s.scores))), "finite scores"),
    (lambda s: delong(replace(s, cases=s.cases.assign(label=s.label + 1))), "labels 0 or 1"),
])
def test_bad_input(call, says):
    with pytest.raises(DataError, match=says): call(from_csv())


# ---- what was published

def test_published_intervals_on_real_data(data_dir):
    folder = data_dir / "breast_mri_fusion"
    pred = pd.concat([read_scores(folder / m / "preds.csv", label="y_true", score="y_prob", model=m) for m in ("image-only", "learned-feature-fusion")])
    scores = score_matrix(pred)
    table = delong_intervals(scores).set_index("model")
    for model, point, limits in (("image-only", .849, (.834, .864)), ("learned-feature-fusion", .898, (.885, .909))):
        assert round(table.loc[model, "estimate"], 3) == point
        assert table.loc[model, ["low", "high"]].tolist() == pytest.approx(limits, abs=.002)
    row = delong_compare(scores).iloc[0]
    assert row["p"] < 1e-10 and row["difference"] == pytest.approx(.849 - .898, abs=.001) and row["n"] == 4909


# ---- variances that cancel

def one_of_each(seed):
    """2 to 8 patients with one positive and one negative each; what a patient shares decides the order."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    a, b = (np.repeat(rng.normal(size=n), 2) + 1e-3 * rng.normal(size=2 * n) for _ in "ab")
    return scores_of(np.tile([1, 0], n), np.repeat(np.arange(n), 2), a=a, b=b)


@pytest.mark.filterwarnings("error")
def test_a_variance_is_never_below_zero():
    cancelled = 0
    for seed in range(300):
        scores = one_of_each(seed)
        covariance, rows = delong(scores).covariance, delong_intervals(scores)
        assert (np.diag(covariance) >= 0).all() and rows[["low", "high"]].notna().all(axis=None) and rows.eval("low <= estimate <= high").all()
        if seed < 60: assert delong_compare(scores)[["low", "high"]].notna().all(axis=None) and delong_omnibus(scores)["df"].item() <= 1
        inside = (rows["low"] == rows["high"]) & rows["estimate"].between(.01, .99)
        assert rows.loc[inside, "method"].str.endswith("the placements cancel within every patient.").all()
        cancelled += inside.sum()
    assert cancelled > 10  # they are not rare


def test_a_variance_of_zero_says_why():
    flat = delong_intervals(scores_of([0, 0, 1, 1], a=[1, 1, 1, 1])).iloc[0]
    assert flat["low"] == flat["high"] == .5 and "every case has the same placement" in flat["method"]
    apart = delong_intervals(scores_of([1, 0, 1, 0], [0, 0, 1, 1], a=[2, 1, 4, 3])).iloc[0]  # of the positives patient 1 does better, of the negatives patient 0
    assert apart["low"] == apart["high"] == .75 and "the placements cancel within every patient" in apart["method"]


@pytest.mark.parametrize("level", ["0.95", 0, 1, True, None])
def test_a_level_that_is_none(level):
    for f in (delong_intervals, delong_compare):
        with pytest.raises(DataError, match="a level between 0 and 1"): f(from_csv(), level=level)


def test_the_docstrings_warn_of_few_cases_as_measured(repo):
    rates = pd.read_csv(repo / "nbs/studies/results/coverage_and_size.csv").query("method == 'DeLong'").set_index(["what", "setting"])["rate"]
    for f, what in ((delong_intervals, "coverage"), (delong_compare, "size")):
        for cases in ("one case per patient", "2 cases per patient"):
            assert f"{rates[what, f'n = 200, 5% positive, {cases}']:.0%}" in f.__doc__, (what, cases)


def test_the_docstring_of_the_bootstrap_warns_as_measured(repo):
    rates = pd.read_csv(repo / "nbs/studies/results/coverage_and_size.csv").query("what == 'size' and method == 'paired bootstrap, z'").set_index("setting")["rate"]
    for setting in ("n = 200, 5% positive, one case per patient", "n = 200, 5% positive, 2 cases per patient", "n = 50, 5% positive, one case per patient"):
        assert f"{rates[setting]:.0%}" in compare_models.__doc__, setting
