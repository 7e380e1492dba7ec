"""Survival over folds against R's survival and scikit-survival, with what pooling the risks would do, null data and bad input."""
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from hypothesis import given, settings, strategies as st

from fusion_nb.compare import claim, compare_models
from fusion_nb.metrics import _run_tasks
from fusion_nb.predictions import prediction_rows
from fusion_nb.resample import bootstrap_counts, intervals
from fusion_nb.schema import DataError
from fusion_nb.survival import breslow_survival, harrell_c, integrated_brier, kaplan_meier
from fusion_nb.survival_groups import (Forecasts, _fold_tasks, _harrell_within, calibration_at, fold_brier, fold_c, fold_forecasts, fold_table,
                                       km_curves, logrank, modality_table, risk_groups)

ORACLES = Path(__file__).parent / "oracles"
ROWS = pd.read_csv(ORACLES / "survival_groups.csv")
SKSURV, R = (json.loads((ORACLES / f"{name}.json").read_text()) for name in ("survival_groups", "survival_groups_r"))
CASES = list(SKSURV["cases"])
close = partial(np.testing.assert_allclose, rtol=0, atol=1e-9)


def oracle(case):
    """The prediction table of one case."""
    rows = ROWS[ROWS["case"] == case]
    rows = rows.assign(case_id=rows["patient"].astype(str) + "_" + rows["slide"].astype(str), group=rows["patient"].astype(str), split=rows["part"])
    return pd.concat([prediction_rows(r, r["risk"].to_numpy(), model="m", fold=f) for f, r in rows.groupby("fold")], ignore_index=True)


def divided(case):
    """One row per patient, in two groups cut at each fold's median."""
    one = ROWS[(ROWS["case"] == case) & (ROWS["part"] == "test") & (ROWS["slide"] == 0)]
    return one.assign(model="m", group=one["patient"], risk_group=(one["risk"] > one.groupby("fold")["risk"].transform("median")).astype(int))


def made(seed=0, n=100, n_folds=5, signals=(1.0, 0.0), shift=5.0, slides=2):
    """Patients with several slides, a model per signal; every fold's risks are shifted and scaled, test and val rows alike."""
    rng = np.random.default_rng(seed)
    hidden, place = rng.normal(size=n), np.arange(n) % n_folds
    died, left = rng.exponential(30 * np.exp(-hidden)), rng.exponential(40, n)
    patients = pd.DataFrame({"group": [f"p{i:03d}" for i in range(n)], "time": np.minimum(died, left), "event": (died <= left).astype(int)})
    cases = patients.loc[patients.index.repeat(slides)].assign(case_id=[f"{i:04d}" for i in range(slides * n)])
    seen = [s * np.repeat(hidden, slides) + np.repeat(rng.normal(size=n), slides) + .5 * rng.normal(size=slides * n) for s in signals]
    parts = []
    for fold in range(n_folds):
        split = np.repeat(np.where(place == fold, "test", np.where(place == (fold + 1) % n_folds, "val", "train")), slides)
        parts += [prediction_rows(cases.assign(split=split), shift * rng.normal() + rng.uniform(.5, 2) * risk, model=f"m{m}", fold=fold)
                  for m, risk in enumerate(seen)]
    return pd.concat(parts, ignore_index=True)


PRED = made()


# ---- outside answers

@pytest.mark.parametrize("case", CASES)
def test_c_within_folds_equals_r_with_strata(case):
    slides = fold_c(oracle(case), n=2)
    close(slides.estimate[0, 0], R["cases"][case]["harrell"])
    close(slides.estimate[0, 0], SKSURV["cases"][case]["harrell"])
    close(fold_c(oracle(case), level="patient", n=2).estimate[0, 0], R["cases"][case]["harrell_patient"])


@pytest.mark.parametrize("case", CASES)
def test_uno_and_auc_within_folds_equal_scikit_survival(case):
    answers = SKSURV["cases"][case]
    found = fold_c(oracle(case), metrics=("uno_c", f"auc_at_{SKSURV['at']:g}"), tau=answers["tau"], n=2)
    close(found.estimate[0], [answers["uno"], answers["auc"]])


@pytest.mark.parametrize("case", CASES)
def test_clustered_bootstrap_agrees_with_the_infinitesimal_jackknife_of_r(case):
    spread = fold_c(oracle(case), n=2000).values[:, 0, 0].std()
    assert .95 < spread / R["cases"][case]["sd"] < 1.12  # the bootstrap also lets the sizes of the folds vary


@pytest.mark.parametrize("case", CASES)
def test_brier_equals_scikit_survival(case):
    forecasts = fold_forecasts(oracle(case), times=SKSURV["times"], level="case")
    close(fold_brier(forecasts, n=2).estimate[:, 0], [SKSURV["cases"][case]["brier"][name] for name in ("cox", "kaplan_meier")])


@pytest.mark.parametrize("case", CASES)
def test_logrank_equals_both(case):
    row = logrank(divided(case)).iloc[0]
    close([row["statistic"], row["p"]], [R["cases"][case]["chisq"], R["cases"][case]["p"]])
    close([row["statistic"], row["p"]], list(SKSURV["cases"][case]["logrank"].values()))


@pytest.mark.parametrize("case", CASES)
def test_curves_and_limits_equal_r(case):
    curves = km_curves(divided(case)).query("time > 0")
    for group, name in enumerate(("low", "high")):
        mine, theirs = curves[curves["risk_group"] == group], R["cases"][case]["curves"][name]
        for column in ("time", "survival", "low", "high", "at_risk"):
            known = np.array(theirs[column], float)
            ours = mine[column].to_numpy(float)
            both = ~np.isnan(known)  # where the curve has reached 0, R gives no limits
            assert not np.isnan(ours[both]).any()
            close(ours[both], known[both])


# ---- why folds are not pooled

def test_pooled_risks_are_biased_and_those_within_folds_are_not():
    """The hidden order is known: without a shift between folds the pooled C is right, with one it is not; within folds both are the same."""
    plain, moved = made(1, n=400, shift=0.0), made(1, n=400, shift=30.0)
    pooled = [harrell_c(*(rows[c] for c in ("time", "event", "score_risk"))) for rows in (p.query("split == 'test' and model == 'm0'") for p in (plain, moved))]
    inside = [fold_c(p, n=2).estimate[0, 0] for p in (plain, moved)]
    close(inside[0], inside[1])
    assert abs(pooled[0] - inside[0]) < .02 and inside[1] - pooled[1] > .1


def test_a_model_without_knowledge_is_below_chance_when_pooled():
    """It predicts the event rate of its training part: many events in the test part leave few for training."""
    below = []
    for seed in range(12):
        rows = made(seed, n=60).query("model == 'm1'")
        rate = rows[rows["split"] != "test"].groupby("fold")["event"].mean()
        rows = rows.assign(score_risk=rows["fold"].map(rate))
        test = rows[rows["split"] == "test"]
        below.append(harrell_c(test["time"], test["event"], test["score_risk"]))
        assert fold_c(rows, n=2).estimate[0, 0] == .5
    assert np.mean(below) < .47


@given(st.integers(0, 1000), st.lists(st.floats(.1, 10), min_size=5, max_size=5))
@settings(max_examples=8, deadline=None)
def test_any_rising_change_of_a_folds_risks_changes_nothing(seed, scales):
    pred = made(seed, n=40)
    factor = pred["fold"].map(dict(enumerate(scales)))
    moved = pred.assign(score_risk=np.arcsinh(pred["score_risk"]) * factor + 1000 * pred["fold"])
    assert np.array_equal(fold_c(pred, n=64).values, fold_c(moved, n=64).values, equal_nan=True)
    turned = fold_c(pred.assign(score_risk=-pred["score_risk"]), n=2).estimate
    close(turned, 1 - fold_c(pred, n=2).estimate)


@pytest.mark.parametrize("seed", range(3))
def test_one_fold_is_plain_c(seed):
    rows = made(seed, n_folds=1).query("split == 'test'")
    for model, found in zip(("m0", "m1"), fold_c(rows, n=2).estimate[:, 0]):
        mine = rows[rows["model"] == model]
        assert found == harrell_c(mine["time"], mine["event"], mine["score_risk"])


# ---- intervals and comparisons

@pytest.mark.parametrize("decimals", [0, 9])
def test_the_kernel_equals_numpy_to_the_last_bit(decimals):
    rng, n = np.random.default_rng(decimals), 150
    outcome = (rng.exponential(5, n).round(decimals), rng.integers(0, 2, n), rng.integers(0, 6, n) * 3)
    risk, group = rng.normal(size=n).round(decimals), rng.integers(0, 60, n)
    counts = bootstrap_counts(outcome[1], group, n=100, stratified=False)
    unit = pd.factorize(group)[0]
    of_units = np.zeros((unit.max() + 1, 100), np.uint8)
    of_units[unit] = counts.T
    (won, pairs), = _run_tasks(_fold_tasks(*outcome, risk, unit), of_units)
    assert np.array_equal(won[:100] / pairs[:100], _harrell_within(*outcome, risk, counts=counts))
    repeated = [np.repeat(a, counts[7]) for a in (*outcome, risk)]
    close(_harrell_within(*repeated), (won / pairs)[7])


def test_patients_are_drawn_whole():
    """Ten copies of every slide say nothing new: the interval stays."""
    once, often = made(2, slides=1), made(2, slides=1)
    often = pd.concat([often.assign(case_id=often["case_id"] + f"_{k}") for k in range(10)], ignore_index=True)
    a, b = (intervals(fold_c(p, n=300)) for p in (once, often))
    pd.testing.assert_frame_equal(a[["estimate", "low", "high"]], b[["estimate", "low", "high"]])
    alone = intervals(fold_c(often.assign(group=None), n=300))
    assert ((alone["high"] - alone["low"]) < .5 * (b["high"] - b["low"])).all() and "independent" in alone["method"].iloc[0]


def test_paired_differences_and_their_claim():
    found = fold_c(made(3, n=200), level="patient", n=500)
    row = compare_models(found, metric="harrell_c").iloc[0]
    assert row["model_a"] == "m0" and row["low"] > 0 and row["p"] < .01 and row["n"] == 200
    assert "m0 has a higher (better) Harrell's C" in claim(row)
    same = made(3)
    same = pd.concat([same, same.query("model == 'm0'").assign(model="copy")])
    row = compare_models(fold_c(same, n=50), metric="harrell_c").set_index(["model_a", "model_b"]).loc[("m0", "copy")]
    assert row["difference"] == 0 and row["p"] == 1


def test_null_intervals_cover_a_half():
    covered = []
    for seed in range(25):
        rows = made(seed, signals=(0.0,)).query("split == 'test'")
        table = pd.concat([intervals(fold_c(rows, level=level, n=200, seed=seed)) for level in ("case", "patient")])
        covered.append(((table["low"] <= .5) & (.5 <= table["high"])).to_numpy())
    assert (np.mean(covered, axis=0) >= .8).all() and len(covered) == 25  # 95%, less three standard errors of 25 cohorts


def test_fast_enough():
    """A thousand resamples, five models, a thousand cases: about a second, most of the time far less."""
    rows = made(4, n=500, signals=(1, .5, .2, .1, 0)).query("split == 'test'")
    fold_c(rows, n=64)  # compiles
    start = time.process_time()
    assert fold_c(rows, n=1000).values.shape == (1000, 5, 1)
    assert time.process_time() - start < 1.5


def test_bca_limits_are_refused_since_they_would_leave_cases_out_of_pooled_risks():
    with pytest.raises(DataError, match="with their scores, for BCa"): intervals(fold_c(PRED, n=50), method="bca")


# ---- bad input

def test_a_fold_without_comparable_pairs_is_reported_and_counts_for_nothing():
    pred = PRED[PRED["split"] == "test"]
    silent = pred.assign(event=np.where(pred["fold"] == 2, 0, pred["event"]))
    found, table = fold_c(silent, n=50), fold_table(silent)
    assert "within each of 5 folds only; 1 of them (2) without a comparable pair" in found.method
    assert table[table["fold"] == 2]["harrell_c"].isna().all() and table["note"].str.contains("no comparable pair").sum() == 2
    close(found.estimate, fold_c(pred[pred["fold"] != 2], n=2).estimate)
    assert not np.isnan(found.values).any()
    last = pred.assign(event=np.where(pred["fold"] == 2, pred["time"] == pred.groupby("fold")["time"].transform("max"), 0).astype(int))
    with pytest.raises(DataError, match="an event that another case of its fold outlived. Got none in any fold"): fold_c(last, n=2)


TWO_FOLDS = PRED.assign(group=PRED["group"].where(PRED["group"] != "p001", "p000"))
MOVED = PRED.assign(fold=np.where((PRED["model"] == "m1") & (PRED["split"] == "test"), (PRED["fold"] + 1) % 5, PRED["fold"]))
NO_VAL_EVENTS = PRED[~((PRED["split"] == "val") & (PRED["fold"] == 3) & (PRED["event"] == 1))]


@pytest.mark.parametrize("wrong, message", [
    (lambda: fold_c(TWO_FOLDS), "each patient in one fold. Got group 'p000' in folds 0 and 1, 1 such in all. Split by patient"),
    (lambda: fold_c(MOVED), "each case in the same fold for every model. Got case_id '0000' in folds 0 and 1, 200 such in all"),
    (lambda: fold_c(PRED.assign(event=0)), "an event or more in the test part. Got 200 cases, all of them censored"),
    (lambda: fold_c(PRED, level="slide"), "a known level. Got 'slide'"),
    (lambda: fold_c(PRED.assign(group=None), level="patient"), "the patient .group. of every case. Got none"),
    (lambda: fold_c(PRED, split="tests"), "rows of the tests part. Got none"),
    (lambda: fold_c(PRED, metrics=("auc",)), "harrell_c, uno_c or auc_at_<time>. Got 'auc'"),
    (lambda: fold_c(PRED, metrics=("harrel_c",)), "Did you mean 'harrell_c'"),
    (lambda: fold_c(PRED, metrics=("auc_at_9999",)), "Later than that nobody was under observation"),
    (lambda: fold_c(PRED, metrics=("auc_at_0.000001",)), "an event by 1e-06. Got none before"),
    (lambda: fold_c(PRED.drop(columns=["time", "event"]).assign(label=0)), "an event or more in the test part"),
    (lambda: fold_c(PRED.drop(columns=["time", "event"]).assign(label=PRED["event"]), level="patient"), "level='case' and no metrics for two classes"),
    (lambda: fold_c(PRED.drop(columns=["time", "event"]).assign(label=PRED["event"], score_other=0.5)), "risks, or scores of two classes. Got 2 classes"),
    (lambda: fold_c(PRED, n=1), "at least 2 resamples"),
    (lambda: fold_c(pd.concat([PRED, PRED.assign(run=1)])), "one score per model and case"),
    (lambda: fold_c(PRED[(PRED["model"] == "m0") | (PRED["case_id"] != "0004")]), "the same cases for every model"),
    (lambda: risk_groups(PRED, cut_on="test"), "a known part to cut on. Got 'test'"),
    (lambda: risk_groups(PRED, n_groups=1), "two groups or more. Got n_groups=1"),
    (lambda: risk_groups(PRED[PRED["split"] == "test"]), "rows of the val part of fold 0. Got none. Keep the train and val rows"),
    (lambda: risk_groups(NO_VAL_EVENTS), "an event or more in the val part of fold 3. Got"),
    (lambda: risk_groups(PRED.assign(score_risk=1.0)), "2 different risks or more of 'm0' in the val part of fold 0. Got 1"),
    (lambda: fold_forecasts(NO_VAL_EVENTS, times=[5, 10]), "an event or more in the val part of fold 3"),
    (lambda: fold_forecasts(PRED, times=[5, 9999]), "Later than that nobody was under observation"),
    (lambda: fold_forecasts(PRED[(PRED["split"] == "test") | (PRED["time"] < 20)], times=[5, 30]), "times up to the last one in the val part of fold 0, 1.* Got 30"),
    (lambda: fold_brier(fold_forecasts(PRED, times=[5])), "two times or more to integrate over. Got 1"),
    (lambda: calibration_at(fold_forecasts(PRED, times=[5, 10]), 12), "one of the times of the forecasts, 5, 10. Got 12"),
    (lambda: calibration_at(fold_forecasts(PRED, times=[5, 10]), 5, bins=0), "one group or more. Got bins=0"),
    (lambda: logrank(risk_groups(PRED).assign(risk_group=1)), "cases in two risk groups or more of 'm0'. Got all 100 in one"),
    (lambda: logrank(risk_groups(PRED).assign(event=0)), "an event or more among the cases of 'm0'"),
    (lambda: km_curves(risk_groups(PRED).drop(columns="event")), "event"),
    (lambda: km_curves(risk_groups(PRED), level=95), "a level between 0 and 1"),
    (lambda: modality_table(PRED, modalities={"m9": "slides"}), "a known model. Got 'm9'"),
    (lambda: modality_table(PRED, modalities={"m0": "slides", "m1": "RNA"}, reference="m7", n=2), "Got 'm7'"),
])
def test_bad_input(wrong, message):
    with pytest.raises(DataError, match=message): wrong()


def test_a_patient_whose_slides_have_two_outcomes():
    spoilt = PRED.assign(time=PRED["time"] + (PRED["case_id"] == "0000"))
    with pytest.raises(DataError, match="one time for all rows of a group"): fold_c(spoilt, level="patient")


# ---- groups, forecasts, calibration

@pytest.mark.parametrize("level, n", [("patient", 100), ("case", 200)])
def test_groups_come_from_the_validation_part_alone(level, n):
    groups = risk_groups(PRED, n_groups=3, level=level)
    assert len(groups) == 2 * n and set(groups["risk_group"]) == {0, 1, 2}
    means = PRED.groupby(["model", "fold", "split", "group" if level == "patient" else "case_id"])["score_risk"].mean()
    for (model, fold), rows in groups.groupby(["model", "fold"]):
        cut = np.quantile(means[model, fold, "val"], [1 / 3, 2 / 3])
        assert (rows.set_index("case_id")["risk_group"] == (means[model, fold, "test"].to_numpy()[:, None] > cut).sum(axis=1)).all()
    spoilt = PRED.assign(score_risk=np.where(PRED["case_id"] == PRED["case_id"].iloc[0], 99.0, PRED["score_risk"]))
    one = PRED["case_id"].iloc[0] if level == "case" else PRED["group"].iloc[0]
    fold = groups.set_index("case_id").loc[one, "fold"].iloc[0]
    after = risk_groups(spoilt, n_groups=3, level=level)
    same = (groups["fold"] == fold) & (groups["case_id"] != one)  # a wild test row moves no cut of its own fold
    assert groups[same].equals(after[same])


def test_a_risk_at_the_cut_is_low():
    pred = PRED.assign(score_risk=PRED["score_risk"].round(0))
    groups = risk_groups(pred, level="case").query("model == 'm0' and fold == 0")
    cut = pred.query("model == 'm0' and fold == 0 and split == 'val'")["score_risk"].median()
    at = pred.query("model == 'm0' and fold == 0 and split == 'test'").set_index("case_id")["score_risk"] == cut
    assert at.any() and (groups.set_index("case_id").loc[at[at].index, "risk_group"] == 0).all()


@pytest.mark.parametrize("fit_on, slope", [("val", None), ("train", None), ("val", 1.0)])
def test_forecasts_are_made_fold_by_fold(fit_on, slope):
    times = np.array([5.0, 10, 20])
    found = fold_forecasts(PRED, times=times, fit_on=fit_on, slope=slope, level="case")
    assert isinstance(found, Forecasts) and found.models == ("m0", "m1", "kaplan_meier") and found.probability.shape == (200, 3, 3)
    for fold in range(5):
        rows = found.scores.cases["fold"].to_numpy() == fold
        fit, test = (PRED.query(f"model == 'm1' and fold == {fold} and split == '{part}'").sort_values("case_id") for part in (fit_on, "test"))
        known = tuple(fit[c].to_numpy() for c in ("time", "event", "score_risk"))
        assert np.array_equal(found.probability[rows, 1], breslow_survival(known, test["score_risk"].to_numpy(), times=times, slope=slope))
        steps, free = kaplan_meier(*known[:2])
        assert (found.probability[rows, 2] == free[np.searchsorted(steps, times, side="right") - 1]).all()
    assert f"on the {fit_on} part" in found.method


def test_forecasts_do_not_look_at_the_test_outcomes():
    spoilt = PRED.assign(event=np.where(PRED["split"] == "test", 1 - PRED["event"], PRED["event"]))
    for fold in range(5):  # one at a time: a case is test in one fold and val in another
        one, other = (p[p["fold"] == fold] for p in (PRED, spoilt))
        assert np.array_equal(*(fold_forecasts(p, times=[5, 10]).probability for p in (one, other)))


def test_brier_resamples_are_those_of_the_metric():
    forecasts = fold_forecasts(PRED, times=[5, 10, 20])
    found = fold_brier(forecasts, n=40, seed=3)
    counts = bootstrap_counts(forecasts.scores.outcome[1], None, n=40, seed=3, stratified=False)
    for m in range(3):
        close(found.of("integrated_brier")[0][:, m], integrated_brier(*forecasts.scores.outcome, forecasts.probability[:, m], times=[5, 10, 20], counts=counts))
    table = compare_models(found, metric="integrated_brier", reference="kaplan_meier").set_index("model_a")
    assert table.loc["m0", "high"] < 0 and "stratified" not in found.method


def test_calibration_is_kaplan_meier_in_each_group():
    forecasts = fold_forecasts(made(7, n=300), times=[5, 15])
    points = calibration_at(forecasts, 15, bins=3)
    chance = 1 - forecasts.probability[:, 0, 1]
    edges = np.quantile(chance, [1 / 3, 2 / 3])
    for b, row in points[points["model"] == "m0"].set_index("bin").iterrows():
        rows = forecasts.scores.cases[np.searchsorted(edges, chance) == b]
        steps, free = kaplan_meier(rows["time"], rows["event"])
        close([row["predicted"], row["observed"]], [chance[rows.index].mean(), 1 - free[steps <= 15][-1]])
        assert row["low"] < row["observed"] < row["high"] and row["n_bin"] == len(rows)
    assert points.groupby("model")["n_bin"].sum().eq(300).all() and "kaplan_meier" not in set(points["model"])


def test_a_group_that_was_not_followed_so_long_has_no_observed_share():
    pred = made(8, n=200)
    high = risk_groups(pred).query("model == 'm0' and risk_group == 1")["group"]
    rows = pred["group"].isin(high)  # all at high risk left after ten months
    pred = pred.assign(event=np.where(rows & (pred["time"] > 10), 0, pred["event"]), time=np.where(rows, np.minimum(pred["time"], 10), pred["time"]))
    points = calibration_at(fold_forecasts(pred, times=[5, 12], fit_on="train"), 12, bins=4).query("model == 'm0'")
    assert points["observed"].isna().any() and points["observed"].notna().any()


def test_modalities_side_by_side():
    theirs = pd.DataFrame({"model": ["m0"], "level": ["patient"], "published": [.62]})
    table = modality_table(PRED, modalities={"m1": "RNA", "m0": "slides"}, reference="m1", published=theirs, n=100)
    assert table["model"].tolist() == ["m1", "m0"] * 2 and table["level"].tolist() == ["case"] * 2 + ["patient"] * 2
    assert table["published"].notna().tolist() == [False, False, False, True] and table["n"].tolist() == [200, 200, 100, 100]
    each = compare_models(fold_c(PRED, n=100), metric="harrell_c", reference="m1").iloc[0]
    assert table.loc[1, "difference"] == each["difference"] and table.loc[1, "p"] == each["p"]
    assert not {"reference", "difference", "published"} & set(modality_table(PRED, modalities={"m0": "slides"}, n=10))


# ---- real rows

def test_age_alone_on_real_rows(data_dir):
    """TCGA-BRCA: age says something about survival, and the folds, of which each sees a fifth of the patients, lose little of it."""
    rows = pd.read_csv(next((data_dir / "tcga_brca_tabular").glob("*.csv*")), usecols=["case_id", "age", "survival_months", "censorship"])
    rows = rows.drop_duplicates("case_id").query("survival_months > 0").reset_index(drop=True)
    cases = rows.assign(time=rows["survival_months"], event=1 - rows["censorship"].astype(int), split="test", group=rows["case_id"])
    fold = np.arange(len(rows)) % 5
    pred = pd.concat([prediction_rows(cases[fold == f], cases.loc[fold == f, "age"].to_numpy(float) + 100 * f, model="age", fold=f) for f in range(5)])
    row = intervals(fold_c(pred, level="patient")).iloc[0]
    assert len(rows) > 900 and row["low"] > .5
    assert abs(row["estimate"] - harrell_c(cases["time"], cases["event"], cases["age"])) < .02


def test_auc_of_two_classes_within_folds_is_that_of_scikit_learn():
    two = PRED.drop(columns=["time", "event"]).assign(label=PRED["event"])
    found = fold_c(two, n=50)
    for model, estimate in zip(found.models, found.of("auc")[1]):
        rows = two[(two["model"] == model) & (two["split"] == "test")]
        folds = [(roc_auc_score(r["label"], r["score_risk"]), r["label"].sum() * (1 - r["label"]).sum()) for _, r in rows.groupby("fold") if r["label"].nunique() == 2]
        values, weights = zip(*folds)
        assert estimate == pytest.approx(np.average(values, weights=weights), abs=1e-12)
