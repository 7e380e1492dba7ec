"""Does fusion help: worlds where the answer is known, the choice by validation alone, seeds by hand, and every sentence."""
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax
from sklearn.metrics import brier_score_loss, roc_auc_score

from fusion_nb.compare import compare_models
from fusion_nb.fusion_gain import fusion_gain, gain_claim
from fusion_nb.predictions import best_run, ensemble, late_fusion, read_scores, score_matrix
from fusion_nb.resample import bootstrap_metrics
from fusion_nb.schema import DataError

MODALITIES = ("image_only", "table_only")


def cohort(scored, label_logit, n_seeds=3, noise=.3, folds=1, seed=0):
    """A prediction table: `scored(a, b)` gives each model's logit, to which every seed adds its noise."""
    rng = np.random.default_rng(seed)
    tables = []
    for fold in range(folds):
        n = 600
        a, b = rng.normal(size=(2, n)) * [[1.3], [1.7]]
        cases = pd.DataFrame({"study": "s", "fold": fold, "case_id": [f"f{fold} c{i:03d}" for i in range(n)], "group": np.arange(n) // 2 + n * fold,
                              "split": np.repeat(["train", "val", "test"], [40, 160, 400]), "label": rng.binomial(1, expit(label_logit(a, b)))})
        tables += [cases.assign(model=model, run=run, score_pos=expit(z + noise * rng.normal(size=n)))
                   for model, z in scored(a, b).items() for run in range(n_seeds)]
    return pd.concat(tables, ignore_index=True)


def additive(**options):
    return cohort(lambda a, b: {"image_only": a, "table_only": b, "fused": .5 * (a + b)}, lambda a, b: a + b, **options)


def interacting(**options):
    return cohort(lambda a, b: {"image_only": a, "table_only": b, "fused": a + b + 1.5 * a * b}, lambda a, b: a + b + 1.5 * a * b, **options)


def gain(pred, **options):
    return fusion_gain(pred, **{"fused": "fused", "n": 300, **options})


@pytest.fixture(scope="module")
def pred():
    return additive()


# ---- worlds where the answer is known

def test_an_additive_world_gives_a_claim_for_combining_only(pred):
    table = gain(pred, n=1000)
    assert table["model_b"].tolist() == ["table_only", "late_fusion"]
    assert table["p_holm"].lt(.05).tolist() == [True, False] and table["difference"][0] > .03 and abs(table["difference"][1]) < .02
    assert "the gain is that of combining" in gain_claim(table) and "Not shown is not equal" in gain_claim(table)


def test_a_planted_interaction_gives_a_claim_for_learning():
    table = gain(interacting(), n=1000)
    assert table["p_holm"].lt(.05).all() and (table["low"] > 0).all()
    assert "learning to fuse gives more than combining alone" in gain_claim(table)


def test_no_claim_without_a_difference():
    """Three models of the same quality and independent noise: the Holm-corrected claims stay near 5%."""
    claims = 0
    for seed in range(20):
        pred = cohort(lambda a, b: {"image_only": b, "table_only": b, "fused": b}, lambda a, b: b, n_seeds=1, noise=1.5, seed=seed)
        claims += (gain(pred, modalities=("image_only",), n=200)["p_holm"] < .05).any()
    assert claims <= 4  # of 20 at 5%, more with a probability of 0.3%


def test_a_worse_fusion_is_called_worse(pred):
    spoilt = pred["score_pos"].where(pred["model"] != "fused", expit(.2 * logit(pred["score_pos"]) + np.random.default_rng(0).normal(size=len(pred))))
    claim = gain_claim(gain(pred.assign(score_pos=spoilt)))
    assert "has a lower (worse) AUC than table_only" in claim and "this fusion is worse than one modality alone" in claim


# ---- the modality to beat

def test_the_choice_never_looks_at_test(pred):
    test, modality = pred["split"] == "test", pred["model"].isin(MODALITIES)
    rng = np.random.default_rng(0)
    spoilt = [pred.assign(label=pred["label"].where(~test, 1 - pred["label"])),
              pred.assign(score_pos=pred["score_pos"].where(~(test & modality), rng.random(len(pred)))),
              pred.assign(score_pos=pred["score_pos"].where(~test, (pred["model"] == "image_only") * .8 + .1 * pred["label"]))]
    for metric in ("auc", "brier"):
        chosen = gain(pred, metric=metric, n=20)[["model_b", "against", "why"]]
        for other in spoilt: pd.testing.assert_frame_equal(gain(other, metric=metric, n=20)[["model_b", "against", "why"]], chosen)


def test_the_choice_follows_validation_and_says_its_values(pred):
    val, image = pred["split"] == "val", pred["model"] == "image_only"
    better = pred.assign(score_pos=pred["score_pos"].where(~(val & image), .1 + .8 * pred["label"]))
    row = gain(better, n=20).iloc[0]
    assert row["model_b"] == "image_only" and "image_only 1.000" in row["why"]
    chosen = best_run(pred).query("split == 'val'")
    for metric, function in (("auc", roc_auc_score), ("brier", brier_score_loss)):
        for model in MODALITIES:
            rows = chosen[chosen["model"] == model]
            assert f"{model} {function(rows['label'], rows['score_pos']):.3f}" in gain(pred, metric=metric, n=20)["why"][0]
    assert gain(pred, metric="brier", n=20)["model_b"][0] == "table_only"  # the lower one


def test_train_rows_do_not_count(pred):
    train = pred["split"] == "train"
    pd.testing.assert_frame_equal(gain(pred[~train], n=20), gain(pred.assign(score_pos=pred["score_pos"].where(~train, .5)), n=20))
    some = pred[~(train & (pred["run"] == 1))]  # scored on train by two runs of three: no matter to the ensemble
    pd.testing.assert_frame_equal(gain(some, runs="ensemble", n=20), gain(pred, runs="ensemble", n=20))


def test_several_folds_choose_one_modality_by_their_mean():
    pred = additive(folds=3, n_seeds=2)
    table, chosen = gain(pred, n=50), best_run(pred)
    val = chosen[chosen["split"] == "val"]
    for model in MODALITIES:
        mean = np.mean([roc_auc_score(r["label"], r["score_pos"]) for _, r in val[val["model"] == model].groupby("fold")])
        assert f"{model} {mean:.3f}" in table["why"][0]
    assert table["n"].tolist() == [1200, 1200] and table["n_groups"].tolist() == [600, 600]
    assert "validation AUC, mean of 3 folds that weigh equally: image_only" in table["why"][0]


def test_a_declared_modality_is_taken_and_its_validation_shown(pred):
    row = gain(pred, best="image_only", n=20).iloc[0]
    assert (row["model_b"], row["against"]) == ("image_only", "declared single modality") and "table_only 0." in row["why"]
    alone = gain(pred.query("split == 'test' and run == 0"), best="image_only", n=20).iloc[0]
    assert alone["why"] == "declared beforehand" and alone["runs"] == "one run"


def test_a_declared_modality_needs_no_validation(pred):
    bare = pred[pred["split"] != "val"]
    table = gain(bare, best="table_only", n=20)
    assert table["against"].tolist() == ["declared single modality", "untrained mean logit"] and table["why"][0] == "declared beforehand"
    assert set(table["runs"]) == {"ensemble of the runs, without validation rows to choose one by"}
    pd.testing.assert_frame_equal(table.drop(columns=["runs", "why"]), gain(pred, best="table_only", runs="ensemble", n=20).drop(columns=["runs", "why"]))
    assert "ensemble of the runs, without validation rows" in gain_claim(table)
    assert set(gain(pred, n=20)["runs"]) == {"best run by validation AUC"}
    one_class = pred[(pred["split"] != "val") | (pred["label"] == 1)].query("run == 0")  # no AUC on validation
    assert gain(one_class, best="table_only", n=20)["why"][0] == "declared beforehand"
    with pytest.raises(DataError, match="both classes"): gain(one_class, n=20)


# ---- the numbers

def test_the_rows_are_those_of_compare_models_with_holm_over_them(pred):
    for runs, one in (("best", best_run(pred).assign(run=-1)), ("ensemble", ensemble(pred))):
        table = gain(pred, runs=runs)
        test = one[one["split"] == "test"]
        scores = score_matrix(pd.concat([test, late_fusion(test)]))
        want = compare_models(bootstrap_metrics(scores, n=300))
        for _, row in table.iterrows():
            same = want[(want["model_a"] == row["model_b"]) & (want["model_b"] == "fused") | (want["model_b"] == row["model_b"]) & (want["model_a"] == "fused")].iloc[0]
            sign = 1 if same["model_a"] == "fused" else -1
            assert row["difference"] == pytest.approx(sign * same["difference"], abs=1e-12)
            assert [row["low"], row["high"]] == pytest.approx(sorted([sign * same["low"], sign * same["high"]]), abs=1e-12)
            assert row["p"] == pytest.approx(same["p"], rel=1e-9)
            ours, theirs = (test[test["model"] == m].sort_values("case_id") for m in ("fused", row["model_b"]))
            if len(theirs): assert row["difference"] == pytest.approx(
                roc_auc_score(ours["label"], ours["score_pos"]) - roc_auc_score(theirs["label"], theirs["score_pos"]), abs=1e-12)
        small, large = sorted(table["p"])
        assert sorted(table["p_holm"]) == pytest.approx([min(1, 2 * small), max(large, min(1, 2 * small))], rel=1e-12)
        assert sorted(table["p_bh"]) == pytest.approx([min(2 * small, large), large], rel=1e-12)


def test_seeds_by_hand(pred):
    test = pred[pred["split"] == "test"]
    wide = {key: rows.sort_values("case_id") for key, rows in test.groupby(["model", "run"])}
    label = wide["fused", 0]["label"]
    mean = {run: expit((logit(wide["image_only", run]["score_pos"].to_numpy()) + logit(wide["table_only", run]["score_pos"].to_numpy())) / 2) for run in range(3)}
    area = {m: np.array([roc_auc_score(label, wide[m, run]["score_pos"]) for run in range(3)]) for m in ("fused", "table_only")}
    area["late_fusion"] = np.array([roc_auc_score(label, mean[run]) for run in range(3)])
    for _, row in gain(pred, n=20).iterrows():
        d = area["fused"] - area[row["model_b"]]
        assert (row["seeds_mean"], row["seeds_sd"], row["n_seeds"]) == (pytest.approx(d.mean(), abs=1e-12), pytest.approx(d.std(ddof=1), abs=1e-12), 3)


def test_only_whole_runs_that_both_have_are_paired(pred):
    table = gain(pred[(pred["model"] != "table_only") | (pred["run"] == 1)], n=20)  # a table model without seeds
    assert table["n_seeds"].tolist() == [1, 1] and table["seeds_sd"].isna().all() and table["seeds_mean"].notna().all()
    short = pred.drop(pred[(pred["model"] == "fused") & (pred["run"] == 2) & (pred["split"] == "test")].index[:1])
    short["score_pos"] = short["score_pos"].where((short["run"] != 2) | (short["split"] != "val"), .5)  # so that run 2 is nobody's best
    assert gain(short, n=20)["n_seeds"].tolist() == [2, 2]
    apart = pred.assign(run=pred["run"] + 10 * (pred["model"] == "table_only"))
    table = gain(apart, n=20)
    assert table["n_seeds"].tolist() == [0, 0] and table["seeds_mean"].isna().all() and "No seed in common: what another" in gain_claim(table)


def test_swapping_the_models_flips_the_sign(pred):
    there = gain(pred, modalities="table_only").iloc[0]
    back = gain(pred, fused="table_only", modalities="fused").iloc[0]
    assert there["difference"] == -back["difference"] and there["seeds_mean"] == pytest.approx(-back["seeds_mean"], abs=1e-15)
    assert [there["low"], there["high"], there["p"]] == pytest.approx([-back["high"], -back["low"], back["p"]], abs=1e-12)


def test_the_order_of_rows_and_a_mean_logit_that_is_there_do_not_matter(pred):
    want = gain(pred, n=50)
    shuffled = pred.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(gain(shuffled, n=50), want, rtol=1e-12)
    pd.testing.assert_frame_equal(gain(pd.concat([pred, late_fusion(pred).assign(score_pos=.5)]), n=50), want)


def test_the_mean_logit_itself_against_the_best_modality(pred):
    table = gain(pred, fused="late_fusion", n=500)
    assert table[["model_a", "model_b"]].values.tolist() == [["late_fusion", "table_only"]] and table["n_seeds"].tolist() == [3]
    assert gain_claim(table).count("nothing was learned") == 1


def test_several_fused_models_share_the_correction(pred):
    second = pred[pred["model"] == "fused"].assign(model="other", score_pos=lambda t: t["score_pos"] ** 2)  # the same order of cases
    table = gain(pd.concat([pred, second]), fused=("fused", "other", "late_fusion"))
    assert table[["model_a", "model_b"]].values.tolist() == [["fused", "table_only"], ["fused", "late_fusion"], ["other", "table_only"],
                                                            ["other", "late_fusion"], ["late_fusion", "table_only"]]
    assert table["difference"][0] == table["difference"][2] and table["p_holm"].min() == pytest.approx(5 * table["p"].min())
    assert gain_claim(table).count("\n\n") == 2


def test_equal_models_are_not_claimed_to_differ(pred):
    same = pred[pred["model"] == "table_only"].assign(model="fused")
    row = gain(pd.concat([pred[pred["model"] != "fused"], same]), n=50).iloc[0]
    assert (row["difference"], row["p"], row["seeds_sd"]) == (0, 1, 0)


def test_three_classes():
    """Each modality tells one class from the others; both together tell all three."""
    rng = np.random.default_rng(0)
    n, classes = 500, ("a", "b", "c")
    label = rng.integers(0, 3, n)
    cases = pd.DataFrame({"study": "s", "fold": 0, "case_id": np.arange(n).astype(str), "group": np.arange(n) // 2,
                          "split": np.repeat(["val", "test"], n // 2), "label": label})
    knows = {"image_only": [2, 0, 0], "table_only": [0, 3, 0], "fused": [2, 3, 0]}
    tables = []
    for model, weight in knows.items():
        for run in range(2):
            probability = softmax(np.eye(3)[label] * weight + rng.normal(size=(n, 3)), axis=1)
            tables.append(cases.assign(model=model, run=run, **{f"score_{c}": p for c, p in zip(classes, probability.T)}))
    pred = pd.concat(tables)
    table = gain(pred, metric="macro_auc")
    test = best_run(pred).query("split == 'test'")
    area = {m: roc_auc_score(r["label"], r[[f"score_{c}" for c in classes]], multi_class="ovr") for m, r in test.groupby("model")}
    assert table["model_b"].tolist() == ["table_only", "late_fusion"] and table["p_holm"][0] < .05
    assert table["difference"][0] == pytest.approx(area["fused"] - area["table_only"], abs=1e-12) and table["n_seeds"].tolist() == [2, 2]
    one = gain(pred, metric="auc:a")
    assert one["model_b"][0] == "image_only" and "AUC, a than image_only" in gain_claim(one)


def test_survival_against_one_modality():
    rng = np.random.default_rng(0)
    risk = rng.normal(size=200)
    cases = pd.DataFrame({"study": "s", "run": 0, "fold": 0, "case_id": np.arange(200).astype(str), "group": None, "split": "test",
                          "time": rng.exponential(np.exp(-risk)), "event": rng.binomial(1, .7, 200)})
    pred = pd.concat([cases.assign(model=m, score_risk=risk + s * rng.normal(size=200)) for m, s in (("fused", .1), ("table_only", 3))])
    table = gain(pred, modalities="table_only", metric="harrell_c")
    assert table["p_holm"][0] < .05 and "has a higher (better) Harrell's C than table_only" in gain_claim(table)


def test_two_files_of_test_scores(data_dir):
    folder = data_dir / "breast_mri_fusion"
    pred = pd.concat([read_scores(folder / m / "preds.csv", label="y_true", score="y_prob", model=m) for m in ("image-only", "learned-feature-fusion")])
    table = fusion_gain(pred, fused="learned-feature-fusion", modalities=("image-only",), best="image-only", n=500)
    row = table.iloc[0]
    assert len(table) == 1 and round(row["difference"], 3) == .049 and row["p_holm"] < 1e-6 and np.isnan(row["n_groups"]) and np.isnan(row["seeds_sd"])
    claim = gain_claim(table)
    for said in ("has a higher (better) AUC than image-only, the only single modality given", "not that fusion helps", "No patient id was given", "One seed"):
        assert said in claim, claim


# ---- the sentences

def made(single, mean, metric="auc", sd=.001, seeds=5, groups=100.0):
    """A table with these outcomes; None: no such row."""
    up = 1 if metric == "auc" else -1
    d = {"better": .03 * up, "worse": -.03 * up, "unclear": .01}
    rows = [{"model_a": "fused", "model_b": b, "against": against, "why": "", "runs": "one run", "metric": metric, "difference": d[o], "low": d[o] - .02,
             "high": d[o] + .02, "p": .01 if o != "unclear" else .4, "p_holm": .02 if o != "unclear" else .4, "n_groups": groups,
             "seeds_mean": d[o], "seeds_sd": sd, "n_seeds": seeds}
            for b, against, o in (("table_only", "best single modality", single), ("late_fusion", "untrained mean logit", mean)) if o]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("metric", ["auc", "brier"])
@pytest.mark.parametrize("single, mean, says", [
    ("better", "better", "fusion helps, and that learning to fuse gives more than combining alone"),
    ("better", "unclear", "not that learning to combine them does: the gain is that of combining"),
    ("better", "worse", "fusion helps, but not by learning: combining without training is better"),
    ("better", None, "whether learning to fuse gives more than combining alone was not tested"),
    ("unclear", "better", "It may not be claimed that fusion helps: it beats the untrained mean, which the weaker modality may have spoilt"),
    ("unclear", "unclear", "It may not be claimed that fusion helps."),
    ("unclear", "worse", "It may not be claimed that fusion helps; combining without training is better than learning to combine."),
    ("unclear", None, "It may not be claimed that fusion helps."),
    ("worse", "better", "this fusion is worse than one modality alone"),
    ("worse", "unclear", "this fusion is worse than one modality alone"),
    ("worse", "worse", "this fusion is worse than one modality alone"),
    ("worse", None, "this fusion is worse than one modality alone"),
])
def test_every_outcome_has_its_sentence(single, mean, says, metric):
    claim = gain_claim(made(single, mean, metric))
    higher = {("better", "auc"): "higher (better) AUC", ("better", "brier"): "lower (better) Brier score",
              ("worse", "auc"): "lower (worse) AUC", ("worse", "brier"): "higher (worse) Brier score"}
    assert says in claim
    for outcome, other in ((single, "table_only, the best single modality"), (mean, "late_fusion, the untrained mean logit")):
        if outcome in ("better", "worse"): assert f"has a {higher[outcome, metric]} than {other}" in claim
        elif outcome: assert f"was not shown to differ in {'AUC' if metric == 'auc' else 'Brier score'} from {other}" in claim
    assert ("Not shown is not equal" in claim) == ("unclear" in (single, mean))


def test_seeds_and_patients_in_the_sentence():
    wide = "a spread as large as the difference of +0.030: another training may not show it"
    assert wide in gain_claim(made("better", "unclear", sd=.03)) and gain_claim(made("better", "unclear", sd=.03)).count("as large") == 1
    assert "as large" not in gain_claim(made("better", "better", sd=.029)) and "+0.030 (sd 0.029, 5 seeds)" in gain_claim(made("better", "better", sd=.029))
    assert "a spread as large as the difference of -0.030" in gain_claim(made("better", "unclear", metric="brier", sd=.04))
    assert "One seed: what another training would give is not known" in gain_claim(made("better", "better", sd=np.nan, seeds=1))
    one = made("better", "better"); one.loc[1, "n_seeds"] = 1
    assert "1 seed in common with late_fusion" in gain_claim(one)
    assert "No patient id" in gain_claim(made("better", "better", groups=np.nan)) and "No patient id" not in gain_claim(made("better", "better"))


def test_a_difference_that_cannot_be_tested_is_not_claimed():
    claim = gain_claim(made("better", "better").assign(p=np.nan, p_holm=np.nan))
    assert "cannot be tested" in claim and "may not be claimed" in claim
    assert "may not be claimed" in gain_claim(made("better", "better"), alpha=.01)


# ---- bad input

@pytest.mark.parametrize("change, options, says", [
    (None, {"metric": "acu"}, "known metric.*Did you mean 'auc'"),
    (None, {"metric": "macro_auc"}, "a metric for binary scores"),
    (None, {"metric": "calibration_slope"}, "more, or less, is better.*best at 1"),
    (None, {"metric": "calibration_intercept"}, "more, or less, is better.*best at 0"),
    (None, {"fused": "fuse"}, "known model.*Did you mean 'fused'"),
    (None, {"modalities": ("image_only", "table")}, "known model"),
    (None, {"modalities": ()}, "a fused model and the single modalities, apart.*modalities none"),
    (None, {"fused": ()}, "a fused model.*fused none"),
    (None, {"fused": "table_only"}, "a fused model and the single modalities, apart"),
    (None, {"modalities": ("table_only", "table_only")}, "each model of one input among `modalities`, once"),
    (None, {"modalities": ("table_only", "late_fusion")}, "apart"),
    (None, {"fused": "late_fusion", "modalities": ("table_only",)}, "known model.*'late_fusion'"),
    (None, {"best": "table"}, "known modality.*Did you mean 'table_only'"),
    (None, {"runs": "last"}, "known choice of runs"),
    (lambda p: p[p["split"] != "val"], {"runs": "ensemble"}, "validation rows of every modality.*best='image_only'"),
    (lambda p: p[p["split"] != "val"], {}, "validation rows of every modality.*best='image_only'"),
    (lambda p: p[p["split"] != "val"], {"runs": "best"}, "validation rows of .* for every model.*or use runs='ensemble'"),
    (None, {"fused": None}, "a fused model.*fused none"),
    (None, {"nn": 3}, "known option of fusion_gain or bootstrap_metrics. Got 'nn'. Did you mean 'n'"),
    (None, {"stratify": True}, "Did you mean 'stratified'"), (None, {"run": "best"}, "Did you mean 'runs'"),
    (lambda p: p[(p["split"] != "val") | (p["model"] != "table_only")], {"runs": "ensemble"}, "validation rows of every modality"),
    (lambda p: p[p["split"] != "test"], {}, "split in the table.*'test'"),
    (lambda p: p[(p["model"] != "fused") | (p["case_id"] != "f0 c599")], {}, "the same cases for every model"),
    (lambda p: p[(p["split"] != "test") | (p["label"] == 1)], {}, "both classes"),
    (lambda p: p.drop(columns="label").rename(columns={"score_pos": "score_risk"}).assign(time=1.0, event=1), {}, "labels, to choose runs by"),
    (lambda p: p[p["run"] == 0].drop(columns="label").rename(columns={"score_pos": "score_risk"}).assign(time=p["group"] + 1, event=1),
     {"best": "table_only", "metric": "harrell_c"}, "probabilities of classes for a mean logit"),
    (lambda p: pd.concat([p, p.assign(study="t")]), {}, "one score per model and case"),
    (lambda p: p.drop(columns="group"), {}, "the column 'group'"),
    (lambda p: p.assign(score_pos=p["score_pos"].where(p.index > 0, np.nan)), {}, "finite scores"),
])
def test_bad_input(pred, change, options, says):
    with pytest.raises(DataError, match=says): gain(change(pred) if change else pred, **{"n": 20, **options})


@pytest.mark.filterwarnings("ignore:.*scores outside 0 to 1")
def test_scores_that_are_no_probabilities_have_no_mean_logit(pred):
    logits = pred.assign(score_pos=logit(pred["score_pos"]))
    with pytest.raises(DataError, match="probabilities from 0 to 1 for a mean logit"): gain(logits, n=20)
    alone = gain(logits, modalities="table_only", n=50)
    assert len(alone) == 1 and alone["difference"][0] == pytest.approx(gain(pred, modalities="table_only", n=50)["difference"][0], abs=1e-12)


def test_bad_tables_are_refused():
    with pytest.raises(DataError, match="comparison of 'fused' with a single modality.*Give the whole table"): gain_claim(made(None, "better"))
    with pytest.raises(DataError, match="the column 'against' in the table of `fusion_gain`"): gain_claim(made("better", "better").drop(columns="against"))
