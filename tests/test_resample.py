"""The bootstrap: equal to scikit-learn on the drawn rows, to pROC within Monte Carlo error, and to what was published."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fusion_nb.metrics import auc, roc_counts
from fusion_nb.predictions import Scores, read_scores, score_matrix
from fusion_nb.resample import METRICS, bootstrap_counts, bootstrap_metrics, intervals, jackknife, merge_resamples, metric_named, percentile_limits
from fusion_nb.schema import DataError
from fusion_nb.survival import cumulative_dynamic_auc
from test_metrics import SKLEARN, sk_sensitivity, sk_specificity, undefined_here

ORACLES = Path(__file__).parent / "oracles"
PROC = json.loads((ORACLES / "proc.json").read_text())


def scores_of(label, group=None, **models) -> Scores:
    cases = pd.DataFrame({"case_id": np.arange(len(label)).astype(str), "group": group, "fold": 0, "label": label})
    return Scores(cases, tuple(models), np.stack(list(models.values()), axis=1).astype(float))


@pytest.fixture(scope="module")
def oracle_scores() -> Scores:
    table = pd.read_csv(ORACLES / "scores.csv")
    return scores_of(table["y_true"].to_numpy(), image=table["image"], table=table["table"], fusion=table["fusion"])


def test_every_resample_equals_sklearn_on_the_drawn_rows():
    rng = np.random.default_rng(0)
    label = rng.binomial(1, .3, 150)
    patient = rng.integers(0, 60, 150)
    models = {f"rounded to {d}": np.clip(.3 * label + .7 * rng.random(150), 0, 1).round(d) for d in (0, 1, 2, 12)}
    scores = scores_of(label, patient, **models)
    for cluster, stratified in ((False, True), (True, True), (True, False)):
        got = bootstrap_metrics(scores, SKLEARN, n=25, seed=3, cluster=cluster, stratified=stratified)
        counts = bootstrap_counts(label, patient if cluster else None, n=25, seed=3, stratified=stratified)
        for r, c in enumerate(counts):
            drawn = np.repeat(np.arange(150), c)
            for m in range(4):
                score = scores.scores[drawn, m]
                want = [np.nan if undefined_here(name, label[drawn], score) else SKLEARN[name](label[drawn], score) for name in got.metrics]
                np.testing.assert_allclose(got.values[r, m], want, rtol=0, atol=1e-12)


def test_stratified_resamples_keep_the_counts_of_both_classes():
    label = np.random.default_rng(0).binomial(1, .2, 300)
    counts = bootstrap_counts(label, n=50)
    assert counts.dtype == np.uint16 and (counts[:, label == 1].sum(axis=1) == label.sum()).all() and (counts.sum(axis=1) == 300).all()
    plain = bootstrap_counts(label, n=50, stratified=False)
    assert (plain.sum(axis=1) == 300).all() and len(np.unique(plain[:, label == 1].sum(axis=1))) > 10
    assert abs(counts.mean() - 1) < 1e-12 and abs(counts.var() - 1) < .05  # a row is drawn about Poisson(1) times


def test_clusters_are_drawn_whole_and_by_stratum():
    rng = np.random.default_rng(1)
    patient, label = rng.integers(0, 40, 100), rng.binomial(1, .3, 100)
    counts = pd.DataFrame(bootstrap_counts(label, patient, n=30).T).groupby(patient)
    assert (counts.nunique() == 1).all(axis=None)
    positive = pd.Series(label).groupby(patient).max()
    per_patient = counts.first()
    assert (per_patient[positive == 1].sum() == positive.sum()).all() and (per_patient.sum() == len(positive)).all()


@pytest.mark.parametrize("stratified", [True, False])
def test_same_numbers_by_any_number_of_threads_and_by_numpy(stratified):
    rng = np.random.default_rng(0)
    label, patient = np.tile([0, 1, 1], 21), rng.integers(0, 20, 63)
    scores = scores_of(label, patient, a=rng.random(63), b=rng.random(63).round(1))
    names = [n for n, m in METRICS.items() if "binary" in m.kinds and n not in ("calibration_slope", "calibration_intercept")]
    one, two, plain = (bootstrap_metrics(scores, names, n=150, seed=5, stratified=stratified, threads=t).values for t in (1, 2, 0))
    assert np.array_equal(one, two, equal_nan=True) and np.allclose(one, plain, rtol=0, atol=1e-12, equal_nan=True)
    for name in ("auc", "specificity_at_95_sensitivity", "accuracy", "mcc"): assert np.array_equal(*(v[..., names.index(name)] for v in (one, plain)), equal_nan=True)
    assert np.array_equal(bootstrap_metrics(scores, names, n=40, seed=5, stratified=stratified).values, one[:40], equal_nan=True)
    assert not np.array_equal(bootstrap_metrics(scores, "auc", n=150, seed=6, stratified=stratified).values, one[..., :1])


@pytest.mark.parametrize("models", [2, 5, 12])
def test_joint_cells_of_many_models_change_no_number(models):
    """Few joint cells are counted in one pass; those of 12 models would be too many."""
    rng = np.random.default_rng(0)
    scores = scores_of(rng.binomial(1, .3, 700), **{f"m{i}": rng.random(700) for i in range(models)})
    scores = scores.at(dict(zip(scores.models, rng.uniform(.3, .7, models))))
    names = ("accuracy", "auc", "sensitivity", "f1")
    assert (len(np.unique(np.c_[scores.label, scores.scores >= scores.thresholds], axis=0)) > 256) == (models == 12)
    fast, plain = (bootstrap_metrics(scores, names, n=70, threads=t).values for t in (2, 0))
    assert np.array_equal(fast, plain)
    alone = bootstrap_metrics(Scores(scores.cases, scores.models[:1], scores.scores[:, :1], thresholds=scores.thresholds[:, :1]), names, n=70).values
    assert np.array_equal(fast[:, :1], alone)


def test_classes_are_drawn_apart_where_their_share_does_not_matter(oracle_scores):
    names = tuple(n for n in SKLEARN)
    drawn, apart, together = (bootstrap_metrics(oracle_scores, names, n=50, stratified=s) for s in (None, True, False))
    for k, name in enumerate(names):
        same = apart if name in ("auc", "specificity_at_95_sensitivity", "sensitivity_at_95_specificity", "sensitivity", "specificity", "balanced_accuracy") else together
        assert np.array_equal(drawn.values[..., k], same.values[..., k], equal_nan=True) and drawn.strata[k] == (same is apart), name
    assert "the classes drawn apart for AUC, Specificity at 95% sensitivity" in drawn.method
    assert "20 stratified" in bootstrap_metrics(oracle_scores, "auc", n=20).method and "20 bootstrap" in bootstrap_metrics(oracle_scores, "f1", n=20).method


@pytest.mark.parametrize("percent", ["1", "50", "80", "90", "97.5", "99.9"])
def test_metrics_at_any_percentage_equal_sklearn(oracle_scores, percent):
    names = (f"specificity_at_{percent}_sensitivity", f"sensitivity_at_{percent}_specificity", "auc")
    fast, plain = (bootstrap_metrics(oracle_scores, names, n=70, threads=t) for t in (2, 0))
    assert np.array_equal(fast.values, plain.values) and np.array_equal(fast.estimate, plain.estimate)
    assert np.array_equal(fast.values[..., 2:], bootstrap_metrics(oracle_scores, "auc", n=70).values)  # the AUC of the kernel of 95%
    counts, share = bootstrap_counts(oracle_scores.label, n=3), float(percent) / 100
    for r, drawn in enumerate([np.repeat(np.arange(400), c) for c in counts]):
        for m, score in enumerate(oracle_scores.scores[drawn].T):
            want = [f(oracle_scores.label[drawn], score, share) for f in (sk_specificity, sk_sensitivity)]
            assert fast.values[r, m, :2] == pytest.approx(want, abs=1e-12)
    assert [metric_named(name).title for name in names] == [f"Specificity at {percent}% sensitivity", f"Sensitivity at {percent}% specificity", "AUC"]


def test_a_percentage_is_what_its_digits_say():
    for percent in (29, 57, 58, 99.9): assert metric_named(f"specificity_at_{percent}_sensitivity").function.keywords["sensitivity"] == float(f"{percent}e-2")
    by_name, known = metric_named("specificity_at_95_sensitivity"), METRICS["specificity_at_95_sensitivity"]
    assert by_name is known and metric_named("sensitivity_at_90_specificity:mitosis").title == "Sensitivity at 90% specificity, mitosis"


@pytest.mark.parametrize("name, message", [
    ("specificity_at_0_sensitivity", "a sensitivity from 1 to less than 100 per cent. Got '0'. Write specificity_at_95_sensitivity for 95%"),
    ("specificity_at_0.95_sensitivity", "Got '0.95'. Write specificity_at_95_sensitivity"), ("sensitivity_at_100_specificity", "a specificity from 1 .*Got '100'"),
    ("sensitivity_at_-5_specificity", "Got '-5'"), ("specificity_at_ninety_sensitivity", "Got 'ninety'"), ("specificity_at_95%_sensitivity", "Got '95%'"),
    ("specificity_at_9５_sensitivity", "Got '9５'"), ("specificity_at_95_specificity", "Did you mean 'specificity_at_95_sensitivity'"),
    ("specificity_at_sensitivity", "known metric"), ("auc_at_", "known metric"), ("auc_at_later", "a time of 0 or more. Got 'later'. Write auc_at_60"),
    ("auc_at_-1", "Got '-1'"), ("auc_at_1e3", "Got '1e3'")])
def test_names_with_no_sensible_number_are_refused(name, message):
    with pytest.raises(DataError, match=message): metric_named(name)


def test_time_dependent_auc_by_name():
    rng = np.random.default_rng(0)
    time, event, risk = rng.exponential(size=120).round(2) + .01, rng.binomial(1, .7, 120), rng.normal(size=(120, 2))
    cases = pd.DataFrame({"case_id": np.arange(120).astype(str), "group": None, "fold": 0, "time": time, "event": event})
    scores = Scores(cases, ("a", "b"), risk)
    got = bootstrap_metrics(scores, ("auc_at_1", "auc_at_0.5", "harrell_c"), n=70)
    for k, at in enumerate((1, .5)):
        counts = bootstrap_counts(event, n=70, stratified=False)
        want = [cumulative_dynamic_auc(time, event, r, times=[at], counts=counts)[:, 0] for r in risk.T]
        assert np.array_equal(got.values[:, :, k].T, want, equal_nan=True)
        assert got.estimate[:, k].tolist() == [cumulative_dynamic_auc(time, event, r, times=[at])[0] for r in risk.T]
    assert intervals(got).query("metric == 'auc_at_1'").eval("low < estimate < high").all() and metric_named("auc_at_0.5").title == "AUC at time 0.5"
    with pytest.raises(DataError, match="times before the last time of these cases"): bootstrap_metrics(scores, "auc_at_99", n=9)
    with pytest.raises(DataError, match="a metric for binary scores"): bootstrap_metrics(scores_of([0, 1], a=[0, 1]), "auc_at_1", n=9)


def test_intervals_let_the_share_of_positives_vary():
    """Net benefit of calling all positive is the share of positives, up to a constant: its sd is known."""
    label = np.repeat([1, 0], [60, 140])
    values = bootstrap_metrics(scores_of(label, a=np.full(200, .9)).at(.5), "net_benefit", n=4000).values[:, 0, 0]
    assert values.std() == pytest.approx(2 * np.sqrt(.3 * .7 / 200), rel=.05)


def test_draws_are_uniform():
    """Chi-square of 200,000 draws, within and between the positions of a word."""
    counts = bootstrap_counts(np.zeros(101), n=2000, stratified=False)
    chi2 = ((counts.sum(axis=0) - 2000) ** 2 / 2000).sum()
    assert 60 < chi2 < 150  # 100 degrees of freedom
    shares = np.bincount(counts.ravel(), minlength=5)[:5] / counts.size
    from scipy.stats import binom
    assert np.abs(shares - binom.pmf(range(5), 101, 1 / 101)).max() < .004


def test_several_classes_and_survival():
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat([0, 1, 2], [30, 50, 20]))
    likely = rng.dirichlet(np.ones(3), (100, 2)).transpose(0, 1, 2) + .4 * np.eye(3)[label][:, None]
    likely /= likely.sum(axis=2, keepdims=True)
    cases = pd.DataFrame({"case_id": np.arange(100).astype(str), "group": None, "fold": 0, "label": label})
    scores = Scores(cases, ("a", "b"), likely, classes=("benign", "atypical", "malignant"))
    names = ("macro_auc", "weighted_auc", "macro_f1", "accuracy", "log_loss", "auc:malignant", "average_precision:benign", "brier")
    fast, plain = (bootstrap_metrics(scores, names, n=80, threads=t).values for t in (2, 0))
    assert np.allclose(fast, plain, rtol=0, atol=1e-12)
    assert metric_named("auc:malignant").title == "AUC, malignant"
    with pytest.raises(DataError, match="for multiclass scores: accuracy.*Got 'auc'.*auc:<class>"): bootstrap_metrics(scores, "auc", n=9)
    with pytest.raises(DataError, match="Did you mean 'malignant'"): bootstrap_metrics(scores, "auc:malignent", n=9)
    life = cases.drop(columns="label").assign(time=rng.exponential(size=100), event=rng.binomial(1, .6, 100))
    survival = Scores(life, ("a",), rng.random((100, 1)))
    fast, plain = (bootstrap_metrics(survival, "harrell_c", n=80, threads=t).values for t in (2, 0))
    assert np.array_equal(fast, plain)
    with pytest.raises(DataError, match="a metric for survival scores: harrell_c"): bootstrap_metrics(survival, "auc", n=9)


@pytest.mark.parametrize("cluster", [True, False])
def test_jackknife_in_closed_form_equals_leaving_out(cluster):
    rng = np.random.default_rng(0)
    label, patient = rng.binomial(1, .4, 60), rng.integers(0, 25, 60)
    scores = scores_of(label, patient, a=rng.random(60).round(1), b=rng.random(60))
    got = jackknife(scores, ("auc", "average_precision"), cluster=cluster)
    unit = pd.factorize(patient)[0] if cluster else np.arange(60)
    for u in range(unit.max() + 1):
        for m in range(2):
            kept = unit != u
            want = [SKLEARN[n](label[kept], scores.scores[kept, m]) for n in ("auc", "average_precision")]
            assert got[u, m] == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("method", ["percentile", "basic", "BCa"])
@pytest.mark.parametrize("stratified", [True, False])
def test_intervals_equal_scipys_bootstrap_within_monte_carlo_error(method, stratified):
    from scipy.stats import bootstrap
    rng = np.random.default_rng(3)
    label = np.repeat([1, 0], [25, 60])
    score = label + rng.normal(size=85)
    ours = intervals(bootstrap_metrics(scores_of(label, a=score), n=20_000, stratified=stratified), method=method.lower()).iloc[0]
    if stratified:  # two samples
        area = lambda pos, neg, axis=-1: (pos[..., :, None] > neg[..., None, :]).mean(axis=(-1, -2))
        theirs = bootstrap((score[:25], score[25:]), area, n_resamples=5000, method=method, vectorized=True, batch=100, rng=1)
    else:
        area = lambda y, s: auc(y, s) if 0 < y.sum() < len(y) else np.nan  # ours, which is faster than scikit-learn's and equal to it
        theirs = bootstrap((label, score), area, paired=True, n_resamples=3000, method=method, vectorized=False, rng=1)
    off = np.abs(np.array([ours["low"], ours["high"]]) - theirs.confidence_interval)
    errors = np.array([ours["low_mc"], ours["high_mc"]]) * np.sqrt(1 + 20_000 / (5000 if stratified else 3000))
    assert (off < 4 * errors).all(), (off, errors)


def test_monte_carlo_errors_are_the_spread_over_seeds(oracle_scores):
    tables = [intervals(bootstrap_metrics(oracle_scores, n=2000, seed=s)) for s in range(60)]
    for limit in ("low", "high"):
        spread, claimed = np.std([t[limit] for t in tables], axis=0), np.mean([t[f"{limit}_mc"] for t in tables], axis=0)
        assert np.all((claimed / spread > .7) & (claimed / spread < 1.4))


def test_bca_is_refused_or_undefined_where_it_has_no_meaning():
    one = scores_of([1, 0, 0, 0, 0], a=[.5, .1, .2, .3, .95])
    assert intervals(bootstrap_metrics(one, n=200), method="bca")[["low", "high"]].isna().all(axis=None)
    from dataclasses import replace
    with pytest.raises(DataError, match="resamples with their scores"): intervals(replace(bootstrap_metrics(one, n=9), scores=None), method="bca")
    with pytest.raises(DataError, match="Did you mean 'basic'"): intervals(bootstrap_metrics(one, n=9), method="bassic")


def test_merging_commutes(oracle_scores):
    a, b = (bootstrap_metrics(oracle_scores, n=300, seed=s) for s in (1, 2))
    ab, ba = (intervals(merge_resamples(*pair)) for pair in ((a, b), (b, a)))
    assert ab.drop(columns="method").equals(ba.drop(columns="method"))
    with pytest.raises(DataError, match="seed 1 twice"): merge_resamples(a, a)
    with pytest.raises(DataError, match="seed 2 twice"): merge_resamples(merge_resamples(a, b), b)
    small = scores_of([0, 1, 0, 1], a=[0, 1, 1, 1])
    merge_resamples(*(bootstrap_metrics(small, "accuracy", n=2, seed=s) for s in (1, 2)))  # equal values are no proof of equal resamples
    with pytest.raises(DataError, match="the same metrics"): merge_resamples(a, bootstrap_metrics(oracle_scores, "f1", n=5, seed=3))


def test_undefined_resamples_are_counted():
    label = np.array([1, 0, 0, 0, 0])
    scores = scores_of(label, a=[.9, .1, .2, .3, .95])
    plain = bootstrap_metrics(scores, ("auc", "accuracy"), n=1000, stratified=False)
    expected = (4 / 5) ** 5 + (1 / 5) ** 5  # no positive drawn, or nothing else
    table = intervals(plain).set_index("metric")
    assert table.loc["auc", "n_undefined"] == np.isnan(plain.values[:, 0, 0]).sum() == pytest.approx(1000 * expected, abs=60)
    assert table.loc["accuracy", "n_undefined"] == 0 and table[["low", "high"]].notna().all(axis=None)
    assert intervals(bootstrap_metrics(scores, n=100))["n_undefined"].item() == 0


def test_limits_where_nothing_is_defined():
    low, high = percentile_limits(np.array([[np.nan, 1.0], [np.nan, 2.0]]))
    assert np.isnan(low[0]) and np.isnan(high[0]) and low[1] == 1.025


def test_quantile_is_type_7():
    q = PROC["quantile7"]
    assert [percentile_limits(np.array(q["x"]))[i] for i in (0, 1)] == pytest.approx([q["q"][0], q["q"][2]], abs=1e-9)


def error_of_limits(values, level=.95):
    """Monte Carlo standard errors of both percentile limits."""
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(values, tails - .01), np.quantile(values, tails + .01)
    return np.sqrt(tails * (1 - tails) / len(values)) * (high - low) / .02


def proc_line(label, score, counts):
    """Specificity at 95% sensitivity as pROC has it inside its bootstrap: straight lines through runs of tied scores."""
    sensitivity, passed = (p / p[:, -1:] for p in roc_counts(label, score, counts))
    # between equal sensitivities np.interp takes the last point before the crossing and the first after it, as pROC does
    return np.array([1 - np.interp(.95, x, y) for x, y in zip(sensitivity, passed)])


@pytest.mark.parametrize("m, model", list(enumerate(PROC["models"])))
def test_intervals_equal_proc_within_monte_carlo_error(oracle_scores, m, model):
    got, proc = bootstrap_metrics(oracle_scores, ("auc", "specificity_at_95_sensitivity"), n=5000, seed=1), PROC["models"][model]
    area, specificity = got.values[:, m].T
    line = proc_line(oracle_scores.label, oracle_scores.scores[:, m], bootstrap_counts(oracle_scores.label, n=5000, seed=1))
    assert (specificity <= line + 1e-12).all() and (model == "table" or np.allclose(specificity, line, rtol=0, atol=1e-12))
    for ours, theirs in ((area, "bootstrap_ci"), (line, "specificity_at_95_bootstrap")):
        off = np.abs(np.array(percentile_limits(ours)) - np.array(proc[theirs])[[0, 2]])
        assert (off <= 4 * np.sqrt(2) * error_of_limits(ours)).all(), (theirs, off)
    assert np.abs(np.array(percentile_limits(area)) - np.array(proc["delong_ci"])[[0, 2]]).max() < .006


def test_published_intervals_on_real_data(data_dir):
    folder = data_dir / "breast_mri_fusion"
    pred = pd.concat([read_scores(folder / m / "preds.csv", label="y_true", score="y_prob", model=m) for m in ("image-only", "learned-feature-fusion")])
    scores = score_matrix(pred)
    assert len(scores) == 4909 and scores.label.sum() == 1006
    table = intervals(bootstrap_metrics(scores, ("auc", "specificity_at_95_sensitivity"), n=5000)).set_index(["model", "metric"])
    for model, point, limits in (("image-only", .849, (.834, .864)), ("learned-feature-fusion", .898, (.885, .909))):
        row = table.loc[(model, "auc")]
        assert round(row["estimate"], 3) == point
        assert [row["low"], row["high"]] == pytest.approx(limits, abs=.002)
    for model, point, limits in (("image-only", 30.1, (.231, .370)), ("learned-feature-fusion", 49.1, (.388, .553))):
        row = table.loc[(model, "specificity_at_95_sensitivity")]
        assert round(100 * row["estimate"], 1) == point
        assert [row["low"], row["high"]] == pytest.approx(limits, abs=.01)
        label, score = scores.label, scores.scores[:, scores.models.index(model)]
        cut = np.sort(score[label == 1])[::-1][955]  # 956 of 1,006 positives are the least that make 95%
        assert row["estimate"] == np.mean(score[label == 0] < cut)
    assert "rows were taken as independent" in table["method"].iloc[0]


def test_the_method_says_what_was_drawn():
    label, patient = np.tile([0, 1], 10), np.repeat(np.arange(10), 2)
    score = np.random.default_rng(0).random(20)
    told = lambda group, **options: bootstrap_metrics(scores_of(label, group, a=score), n=10, **options)
    assert "resamples of 10 patients (20 cases)" in told(patient).method and told(patient).n_groups == 10
    assert "too narrow" in told(patient, cluster=False).method and told(patient, cluster=False).n_groups == 10
    assert "one per patient" in told(np.arange(20)).method
    assert "no patient id was given, so rows were taken as independent" in told(None).method and np.isnan(told(None).n_groups)
    assert "stratified" not in told(None, stratified=False).method
    assert "only 5 of them in the smallest class" in told(patient[np.argsort(label, kind="stable")]).method
    many = np.tile([0, 1], 20)
    assert "smallest class" not in bootstrap_metrics(scores_of(many, a=many), n=9).method
    few = scores_of(np.r_[0, 0, np.ones(118, int)], np.arange(120) // 3, a=np.random.default_rng(0).random(120))  # the negatives share a patient with a positive
    assert "only 1 of them in the smallest class" in bootstrap_metrics(few, n=9).method
    assert "only 19 of them" in bootstrap_metrics(scores_of(many[:-1], a=many[:-1]), n=9).method


def test_thresholds_by_model():
    label = np.tile([0, 1], 10)
    scores = scores_of(label, a=label * .2, b=label * .8)
    at = bootstrap_metrics(scores.at({"a": .1, "b": np.full(20, .5)}), ("accuracy", "f1"), n=10)
    assert (at.estimate == 1).all() and (bootstrap_metrics(scores, "accuracy", n=10).estimate[:, 0] == [.5, 1]).all()


@pytest.mark.parametrize("call, says", [
    (lambda s: bootstrap_metrics(s, ("auc", "specificity_at_95_sensitivty")), "Did you mean 'specificity_at_95_sensitivity'"),
    (lambda s: bootstrap_metrics(s, n=1), "at least 2 resamples"),
    (lambda s: bootstrap_metrics(s, ()), "at least one metric"),
    (lambda s: bootstrap_metrics(s, n=9, seed=-1), "whole number from 0 up as seed.*-1"),
    (lambda s: bootstrap_metrics(s, n="1000"), "a whole number.*'1000'"),
    (lambda s: bootstrap_metrics(s, None), "at least one metric.*None"),
    (lambda s: bootstrap_metrics(s, n=9, threads=-1), "number of threads from 0 up.*-1"),
    (lambda s: bootstrap_metrics(s, n=9, threads=1.5), "number of threads from 0 up.*1.5"),
    (lambda s: bootstrap_metrics(scores_of([0, 1, 1], ["a"] * 3, a=[.1, .2, .3]), n=9), "at least two units to draw.*1 patient"),
    (lambda s: bootstrap_metrics(scores_of([0, 1, 1], a=[1, 20, 30]), "f1", n=9), "a threshold for F1, since the scores are no probabilities.*1 to 30"),
    (lambda s: bootstrap_metrics(scores_of([0, 1], a=[0, 1], b=[1, 0]).at({"a": .1, "b": .5}), "net_benefit", n=9), "one threshold for the net benefit"),
    (lambda s: intervals(bootstrap_metrics(s, n=5), level="0.95"), "a level between 0 and 1.*'0.95'"),
    (lambda s: intervals(bootstrap_metrics(s, n=5), level=95), "a level between 0 and 1"),
    (lambda s: bootstrap_metrics(s, n=5).of("f1"), "metric in these resamples"),
    (lambda s: bootstrap_metrics(scores_of([0, 1], a=[.1, np.nan])), "finite scores"),
    (lambda s: bootstrap_metrics(scores_of([1, 1], a=[.1, .2])), "both classes"),
    (lambda s: bootstrap_counts(np.array([0, 1]), np.array(["a", None], object), n=2), "a group for every row"),
])
def test_bad_input(call, says):
    with pytest.raises(DataError, match=says): call(scores_of(np.tile([0, 1], 5), a=np.arange(10) / 10))
