"""The audits: equal to formulas, enumeration and scikit-learn; known answers on real predictions; the verdict in every constellation."""
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from fusion_nb.audit import audit_models, audit_predictions, audit_splits, claim_allowed, independent_auc, pairing_verdict, split_verdict
from fusion_nb.pairing import POLICIES, repair
from fusion_nb.predictions import ensemble, late_fusion, prediction_rows, score_matrix
from fusion_nb.resample import bootstrap_metrics, intervals
from fusion_nb.schema import DataError

COLUMNS = ["policy", "model", "role", "metric", "estimate", "low", "high", "n", "n_groups", "spread", "against", "gain", "gain_low", "gain_high"]
D = (1.4, 1.0)  # distances of the classes, in standard deviations


def table_of(label, group=None, run=0, fold=0, split="test", **models) -> pd.DataFrame:
    cases = pd.DataFrame({"case_id": [f"{i:06d}" for i in range(len(label))], "group": group, "split": split, "label": label})
    return pd.concat([prediction_rows(cases, score, model=m, run=run, fold=fold) for m, score in models.items()], ignore_index=True)


def binormal(n, rho=0.0, d=D, seed=0, **columns) -> pd.DataFrame:
    """Calibrated probabilities of two modalities with the correlation `rho` within each class."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(n) % 2)
    noise = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n)
    image, table = (expit(d[m] * (noise[:, m] + d[m] * (label - .5))) for m in (0, 1))
    return table_of(label, image_only=image, table_only=table, **columns)


def late_auc(rho, d=D):
    """The mean logit of true pairs: the sum of d_m x_m, with its variance."""
    return norm.cdf((d[0] ** 2 + d[1] ** 2) / np.sqrt(2 * (d[0] ** 2 + d[1] ** 2 + 2 * rho * d[0] * d[1])))


def value(audit, policy, model="late_fusion", column="estimate", metric=None):
    rows = audit[(audit["policy"] == policy) & (audit["model"] == model) & (audit["metric"] == (metric or audit["metric"].iloc[0]))]
    return rows[column].item()


# ---- conditional independence

def test_known_answers_of_the_formula():
    assert round(independent_auc(.849, .807), 3) == .911  # Holste et al.: image-only, non-image-only
    assert independent_auc(.5, .5) == .5 and independent_auc(.7, .5) == pytest.approx(.7, abs=1e-15) and independent_auc(.9, .2) == pytest.approx(.9, abs=1e-15)
    assert independent_auc(1, .6) == 1
    a, b = np.array([.6, .8, .95]), np.array([.7, .7, .5])
    np.testing.assert_allclose(independent_auc(a, b), [independent_auc(x, y) for x, y in zip(a, b)], atol=1e-15)
    assert independent_auc(.7, .6, .8) == pytest.approx(independent_auc(independent_auc(.7, .6), .8), abs=1e-12)
    assert independent_auc(.7, .6) == pytest.approx(late_auc(0, [np.sqrt(2) * norm.ppf(x) for x in (.7, .6)]), abs=1e-12)
    for bad in ((.9,), (.9, 1.1), (-.1, .5)):
        with pytest.raises(DataError, match="two AUCs or more, from 0 to 1"): independent_auc(*bad)


def test_the_formula_is_the_best_sum_of_a_simulation():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 100_000)
    x = rng.normal(size=(200_000, 2)) + label[:, None] * np.array(D)
    aucs = [roc_auc_score(label, column) for column in x.T]
    assert independent_auc(*aucs) == pytest.approx(roc_auc_score(label, x @ D), abs=.003)


@pytest.mark.parametrize("rho", [-.3, 0, .5])
def test_pairs_of_known_truth(rho):
    audit = audit_predictions(binormal(8000, rho), policies=tuple(POLICIES), n=50, pairings=20)
    assert value(audit, "patient") == pytest.approx(late_auc(rho), abs=.01)
    assert value(audit, "label_matched") == pytest.approx(late_auc(0), abs=.01)
    assert value(audit, "label_matched") == pytest.approx(value(audit, "alone", "conditional independence"), abs=.003)
    assert value(audit, "random") < value(audit, "alone", "image_only") < value(audit, "label_matched")
    order = value(audit, "patient") - value(audit, "label_matched")
    assert abs(order) < .01 if rho == 0 else np.sign(order) == -np.sign(rho)


def test_known_answers_on_real_predictions(data_dir):
    """The two files are of one image and not independent: true pairs gain nothing, label-matched ones what independence predicts."""
    from fusion_nb.predictions import read_scores
    models = ("image-only", "learned-feature-fusion")
    pred = read_scores([data_dir / "breast_mri_fusion" / m / "preds.csv" for m in models], label="y_true", score="y_prob", model=models)
    audit = audit_predictions(pred, modalities=models, policies=tuple(POLICIES), n=100, pairings=50)
    assert [round(value(audit, "alone", m), 3) for m in models] == [.849, .898]
    predicted = value(audit, "alone", "conditional independence")
    assert predicted == pytest.approx(independent_auc(value(audit, "alone", models[0]), value(audit, "alone", models[1])), abs=1e-12)
    assert value(audit, "label_matched") == pytest.approx(predicted, abs=.003)
    assert value(audit, "random") < .80 < value(audit, "alone", "image-only") < value(audit, "patient") < value(audit, "label_matched") - .04
    wide = pred.pivot(index="case_id", columns="model", values="score_positive")
    label = pred.drop_duplicates("case_id").set_index("case_id")["label"].loc[wide.index]
    assert value(audit, "patient") == pytest.approx(roc_auc_score(label, logit(wide.clip(1e-6, 1 - 1e-6)).mean(axis=1)), abs=1e-12)
    assert np.isnan(value(audit, "patient", column="n_groups")) and value(audit, "patient", column="n") == 4909
    assert not claim_allowed(audit) and "leak of the label" in pairing_verdict(audit)


# ---- pairing anew

def test_the_mean_over_re_pairings_is_that_over_all_of_them():
    label = np.array([0, 0, 0, 0, 1, 1, 1])
    a, b = np.array([.1, .4, .35, .8, .3, .6, .9]), np.array([.2, .7, .1, .4, .45, .5, .95])
    def areas(orders):  # every pair of a positive and a negative, by definition
        scores = logit(a) + logit(b)[np.array(orders)]
        return np.mean([(scores[:, i] > scores[:, j]) + .5 * (scores[:, i] == scores[:, j]) for i in range(4, 7) for j in range(4)], axis=0)
    every = areas([[*p, *q] for p in permutations(range(4)) for q in permutations(range(4, 7))])
    audit = audit_predictions(table_of(label, image_only=a, table_only=b), n=20, pairings=4000)
    assert value(audit, "label_matched") == pytest.approx(np.mean(every), abs=4 * np.std(every) / np.sqrt(4000))
    assert value(audit, "label_matched", column="spread") == pytest.approx(np.std(every), rel=.05)
    every = areas(list(permutations(range(7))))
    assert value(audit, "random") == pytest.approx(np.mean(every), abs=4 * np.std(every) / np.sqrt(4000))


@pytest.mark.parametrize("policy", ["random", "label_matched"])
def test_the_same_as_repair_and_late_fusion(policy):
    pred = binormal(120, .4)
    image, table = (pred[pred["model"] == m] for m in ("image_only", "table_only"))
    byhand = [late_fusion(pd.concat([image, repair(image, table, policy, seed)])) for seed in range(50)]
    byhand = np.array([roc_auc_score(rows["label"], rows["score_positive"]) for rows in byhand])
    audit = audit_predictions(pred, n=20, pairings=300)
    assert value(audit, policy) == pytest.approx(byhand.mean(), abs=4 * byhand.std() * np.sqrt(1 / 50 + 1 / 300))


def test_true_pairs_and_modalities_are_those_of_the_bootstrap():
    pred = binormal(150, .3, group=[f"g{i // 3}" for i in range(150)])
    audit = audit_predictions(pred, policies=("patient",), n=300, seed=4)
    scores = score_matrix(pd.concat([pred, late_fusion(pred)], ignore_index=True))
    want = intervals(bootstrap_metrics(scores, "auc", n=300, seed=4)).set_index("model")
    for policy, model in (("alone", "image_only"), ("alone", "table_only"), ("patient", "late_fusion")):
        for column in ("estimate", "low", "high"): assert value(audit, policy, model, column) == pytest.approx(want.loc[model, column], abs=1e-12)
    assert value(audit, "patient", column="n_groups") == 50 and audit.columns.tolist() == COLUMNS
    assert np.isnan(value(audit, "patient", column="spread"))


def test_differences_are_paired():
    """A second modality that says nothing changes no rank: the gain is exactly zero in every resample."""
    pred = binormal(100)
    pred.loc[pred["model"] == "table_only", "score_positive"] = .5
    for groups in (None, [f"g{i % 37}" for i in range(100)]):
        audit = audit_predictions(pred.assign(group=None if groups is None else np.tile(groups, 2)), policies=tuple(POLICIES), n=60, pairings=5)
        for policy in POLICIES: assert (value(audit, policy, column="gain_low"), value(audit, policy, column="gain_high")) == (0, 0)
        assert value(audit, "random", column="spread") == 0


def test_exchange_stays_within_a_fold():
    """The table's score is constant within each fold: within it an exchange changes nothing."""
    label = np.random.default_rng(0).integers(0, 2, 80)
    image = np.random.default_rng(1).random(80)
    fold = np.arange(80) % 4
    pred = pd.concat([table_of(label[fold == k], fold=k, image_only=image[fold == k], table_only=np.full((fold == k).sum(), .2 + k / 5)).assign(
        case_id=lambda t: f"{k}-" + t["case_id"]) for k in range(4)], ignore_index=True)
    audit = audit_predictions(pred, policies=tuple(POLICIES), n=20, pairings=10)
    assert value(audit, "random") == value(audit, "label_matched") == value(audit, "patient") and value(audit, "random", column="spread") == 0


def test_clusters_widen_the_interval():
    small = binormal(60, seed=3)
    copies = pd.concat([small.assign(case_id=small["case_id"] + f"-{k}", group="g" + small["case_id"]) for k in range(8)], ignore_index=True)
    def width(pred): return np.subtract(*(value(audit_predictions(pred, n=300, pairings=5), "label_matched", column=c) for c in ("high", "low")))
    assert width(copies) > 1.8 * width(copies.assign(group=None))


def test_same_seed_same_numbers_and_order_of_rows_plays_no_part():
    pred = binormal(80, .2)
    one, other = (audit_predictions(p, n=40, pairings=20, seed=3) for p in (pred, pred.sample(frac=1, random_state=0)))
    pd.testing.assert_frame_equal(one, other)
    assert not one.equals(audit_predictions(pred, n=40, pairings=20, seed=4))


# ---- several classes

def three_classes(n=300, seed=0, group=None) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(n) % 3)
    def scores(signal):
        p = np.exp(signal * np.eye(3)[label] + rng.normal(size=(n, 3)))
        return pd.DataFrame(p / p.sum(axis=1, keepdims=True), columns=["mitosis", "tumor", "non_tumor"])
    return table_of(label, group, image_only=scores(1.5), table_only=scores(1.0))


def test_several_classes():
    pred = three_classes()
    audit = audit_predictions(pred, policies=tuple(POLICIES), n=30, pairings=20)
    metrics = ["macro_auc", "auc:mitosis", "auc:tumor", "auc:non_tumor"]
    assert audit["metric"].unique().tolist() == metrics
    late = late_fusion(pred)
    columns = [c for c in late if c.startswith("score_")]
    assert value(audit, "patient") == pytest.approx(roc_auc_score(late["label"], late[columns], multi_class="ovr"), abs=1e-12)
    assert value(audit, "patient", metric="auc:tumor") == pytest.approx(roc_auc_score(late["label"] == 1, late["score_tumor"]), abs=1e-12)
    for policy, model in (("patient", "late_fusion"), ("random", "late_fusion"), ("alone", "conditional independence"), ("alone", "image_only")):
        assert value(audit, policy, model) == pytest.approx(np.mean([value(audit, policy, model, metric=m) for m in metrics[1:]]), abs=1e-12)
    alone = [value(audit, "alone", m, metric="auc:tumor") for m in ("image_only", "table_only")]
    assert value(audit, "alone", "conditional independence", metric="auc:tumor") == pytest.approx(independent_auc(*alone), abs=1e-12)
    assert value(audit, "random") < value(audit, "alone", "image_only") < value(audit, "label_matched")
    assert value(audit, "label_matched") == pytest.approx(value(audit, "alone", "conditional independence"), abs=.02)  # the rest is a mixture: approximate
    assert "auc" not in audit["metric"].unique() and "mitosis" in pairing_verdict(audit, metric="auc:mitosis")


def test_a_class_that_a_resample_lacks_is_no_error():
    """All of one class in one patient, who is often not drawn."""
    pred = three_classes(60)
    label = pred["label"].to_numpy()
    audit = audit_predictions(pred.assign(group=np.where(label == 0, "one", [f"g{i % 20}" for i in range(120)])), n=80, pairings=5)
    assert audit[["estimate", "low", "high"]].notna().all(axis=None)


# ---- edges and refusals

@pytest.mark.parametrize("n", [10, 20_000])
def test_few_and_many(n):
    audit = audit_predictions(binormal(n), n=10, pairings=5)
    assert audit["estimate"].between(0, 1).all() and (audit["low"] <= audit["high"]).all()


def test_ties_and_one_positive():
    audit = audit_predictions(table_of([0, 0, 0, 0, 1], image_only=np.full(5, .3), table_only=np.full(5, .9)), policies=tuple(POLICIES), n=20, pairings=5)
    assert (audit.loc[audit["role"] != "predicted", ["estimate", "low", "high"]] == .5).all(axis=None) and value(audit, "alone", "conditional independence") == .5


def test_runs_enter_as_their_ensemble():
    runs = pd.concat([binormal(60, seed=s).assign(run=s, label=binormal(60)["label"]) for s in (0, 1)], ignore_index=True)
    pd.testing.assert_frame_equal(audit_predictions(runs, n=20, pairings=5), audit_predictions(ensemble(runs), n=20, pairings=5))


def test_refusals_of_the_audit():
    pred = binormal(40)
    for bad, says in ((dict(policies=("patients",)), "Did you mean 'patient'"), (dict(policies="random"), "a tuple of policies"), (dict(policies=()), "a tuple of policies"),
                      (dict(modalities=("image_only",)), "two models or more"), (dict(modalities="image_only"), "two models or more"),
                      (dict(modalities=("image_only", "image_only")), "two models or more"), (dict(modalities=("image_only", "tabel_only")), "Did you mean 'table_only'")):
        with pytest.raises(DataError, match=says): audit_predictions(pred, **bad)
    with pytest.raises(DataError, match="test rows"): audit_predictions(pred.assign(split="val"))
    with pytest.warns(UserWarning), pytest.raises(DataError, match="probabilities from 0 to 1"): audit_predictions(pred.assign(score_positive=pred["score_positive"] * 3))
    with pytest.raises(DataError, match="rows of one without the other"): audit_predictions(pred.iloc[:-1])
    life = pred.drop(columns=["label", "score_positive"]).assign(time=1.0, event=1, score_risk=.5)
    with pytest.raises(DataError, match="risks of survival"): audit_predictions(life)


# ---- trained models

def with_fusion(pred, weight, name="concat"):
    wide = pred.pivot_table(index=["run", "case_id"], columns="model", values="score_positive")
    score = expit(logit(wide["image_only"]) + weight * logit(wide["table_only"]))
    rows = pred[pred["model"] == "image_only"]
    return pd.concat([pred, rows.assign(model=name, score_positive=score.loc[pd.MultiIndex.from_frame(rows[["run", "case_id"]])].to_numpy())], ignore_index=True)


@pytest.fixture(scope="module")
def trained():
    """True pairs that share nothing but the class, and the same cases with the records in another order."""
    true = binormal(600, group=[f"g{i // 2}" for i in range(600)])
    table = (true["model"] == "table_only").to_numpy()
    mixed = true.copy()
    mixed.loc[table, "score_positive"] = np.random.default_rng(0).permutation(mixed.loc[table, "score_positive"])
    return {"patient": with_fusion(true, 1), "random": with_fusion(mixed, 0), "label_matched": with_fusion(true, 1)}


def test_trained_models_are_compared_within_their_policy(trained):
    audit = audit_models(trained, fused="concat", n=200, seed=2)
    assert audit.columns.tolist() == COLUMNS and audit["policy"].unique().tolist() == list(trained)
    for policy, pred in trained.items():
        scores = score_matrix(pd.concat([pred, late_fusion(pred)], ignore_index=True))
        values, estimate = bootstrap_metrics(scores, "auc", n=200, seed=2).of("auc")
        at = {m: i for i, m in enumerate(scores.models)}
        best = max(("image_only", "table_only"), key=lambda m: estimate[at[m]])
        assert value(audit, policy, "concat", "against") == best
        difference = values[:, at["concat"]] - values[:, at[best]]
        got = [value(audit, policy, "concat", c) for c in ("estimate", "gain", "gain_low", "gain_high")]
        np.testing.assert_allclose(got, [estimate[at["concat"]], estimate[at["concat"]] - estimate[at[best]], *np.quantile(difference, [.025, .975])], atol=1e-12)
        roles = audit[audit["policy"] == policy].set_index("model")["role"].to_dict()
        assert roles == {"image_only": "single", "table_only": "single", "concat": "fused", "late_fusion": "late fusion", "conditional independence": "predicted"}
    assert "The gain is real" in pairing_verdict(audit) and claim_allowed(audit)
    only = audit_models({k: v for k, v in trained.items() if k != "patient"}, fused="concat", n=200)
    assert "leak of the label, not fusion" in pairing_verdict(only) and "may not be claimed" in pairing_verdict(only) and not claim_allowed(only)


def test_another_reference_and_a_late_fusion_of_ones_own(trained):
    audit = audit_models({"random": trained["random"]}, fused="late_fusion", reference="table_only", n=50)
    assert value(audit, "random", "image_only", "against") == "table_only" and value(audit, "random", "table_only", "against") is None
    own = pd.concat([trained["random"], late_fusion(trained["random"]).assign(score_positive=.5)], ignore_index=True)
    assert value(audit_models({"random": own}, fused="concat", n=50), "random", "late_fusion") == .5


def test_spread_over_runs():
    label = binormal(80)["label"]
    runs = pd.concat([with_fusion(binormal(80, seed=s).assign(run=s, label=label), 1) for s in range(3)], ignore_index=True)
    audit = audit_models({"label_matched": runs}, fused="concat", n=30)
    each = [roc_auc_score(rows["label"], rows["score_positive"]) for _, rows in runs[runs["model"] == "concat"].groupby("run")]
    assert value(audit, "label_matched", "concat", "spread") == pytest.approx(np.std(each, ddof=1), abs=1e-12)
    mean = ensemble(runs)[lambda t: t["model"] == "concat"]
    assert value(audit, "label_matched", "concat") == pytest.approx(roc_auc_score(mean["label"], mean["score_positive"]), abs=1e-12)


def test_refusals_of_the_audit_of_models(trained):
    with pytest.raises(DataError, match="{policy: prediction table}"): audit_models(trained["random"], fused="concat")
    with pytest.raises(DataError, match="Did you mean 'random'"): audit_models({"randon": trained["random"]}, fused="concat")
    with pytest.raises(DataError, match="Did you mean 'concat'"): audit_models(trained, fused="conact", n=20)
    with pytest.raises(DataError, match="known model. Got 'resnet'"): audit_models(trained, fused="concat", reference="resnet", n=20)


# ---- the verdict

GAIN, NONE, LOSS = (.05, .02), (.005, .02), (-.05, .02)
STATES = {"gain": GAIN, "none": NONE, "loss": LOSS, "absent": None}
NOT_RECORDS, LEAK = "does not come from the records", "leak of the label, not fusion"


def made(patient=None, random=None, label_matched=None) -> pd.DataFrame:
    given = {"patient": patient, "random": random, "label_matched": label_matched}
    rows = [{**dict.fromkeys(COLUMNS, np.nan), "policy": p, "model": "concat", "role": "fused", "metric": "auc", "estimate": .8 + g[0], "against": "image_only", "gain": g[0],
             "gain_low": g[0] - g[1], "gain_high": g[0] + g[1]} for p, g in given.items() if g is not None]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize("patient, random, matched", [c for c in product(STATES, repeat=3) if c != ("absent",) * 3])
def test_the_verdict_in_every_constellation(patient, random, matched):
    audit = made(STATES[patient], STATES[random], STATES[matched])
    said = pairing_verdict(audit)
    allowed = patient == "gain" and random != "gain"
    assert claim_allowed(audit) == allowed
    assert ("It may be claimed that fusion helps" in said) == allowed and ("may not be claimed that fusion helps" in said) == (not allowed)
    assert ("Without true pairs it may not be claimed" in said) == (patient == "absent")
    assert (NOT_RECORDS in said) == (random == "gain")
    if random == "gain": return
    # a gain of label-matched pairs that is not there at random, nor (where they were audited) with true pairs, is a leak
    assert (LEAK in said) == (matched == "gain" and patient != "gain" and not (patient == "absent" and random == "absent"))
    if patient == random == "absent" and matched == "gain": assert "were not audited" in said
    if patient == "gain": assert ("label-matched pairs are missing" in said) == (matched == "absent")
    level = {"gain": "not shown to differ", "none": "above", "loss": "above"}  # the gains above, by MOVER: 0.045 - sqrt(2) * 0.02 > 0
    if patient == "gain" and matched in level: assert f"{level[matched]} " in said and ("The gain is real" in said)
    if patient == "none": assert "No gain was shown with true pairs; that is not to say that there is none." in said
    if patient == "loss": assert "worse than the best single modality" in said
    if patient == "absent" and matched in ("none", "loss"): assert "No gain was shown under any pairing" in said
    if patient == matched == "absent": assert "none can be there" in said


def test_a_fusion_that_is_the_record_model_is_no_gain():
    alone = [{**dict.fromkeys(COLUMNS, np.nan), "policy": "patient", "model": m, "role": "single", "metric": "auc", "estimate": e} for m, e in (("image_only", .67), ("table_only", .96))]
    audit = pd.concat([made(patient=(.29, .02), random=NONE), pd.DataFrame(alone, columns=COLUMNS)], ignore_index=True)
    assert not claim_allowed(audit) and "image_only, with which it was compared, is not the better single modality" in pairing_verdict(audit)
    assert claim_allowed(audit.assign(against="table_only"))


def test_few_groups_are_said():
    assert "rest on 4 groups, too few" in pairing_verdict(made(label_matched=GAIN).assign(n_groups=4)) and "too few" not in pairing_verdict(made(label_matched=GAIN).assign(n_groups=400))


def test_a_gain_beside_one_not_shown_is_no_difference_of_gains():
    said = pairing_verdict(made(random=(.044, .07), label_matched=(.039, .02)))
    assert "the two gains were not shown to differ" in said and LEAK not in said and "Without true pairs it may not be claimed" in said


@pytest.mark.parametrize("true, matched, says", [
    ((.10, .02), (.05, .02), "above what label-matched pairing produces.*an interaction"),
    ((.03, .02), (.10, .02), "below what label-matched pairing produces.*repeat one another.*overstated"),
    ((.06, .02), (.05, .02), "not shown to differ from what label-matched pairing produces.*an interaction was not shown"),
    ((.06, .02), (.0, .02), "above what label-matched pairing produces"),
])
def test_true_pairs_against_the_label_matched_level(true, matched, says):
    import re
    said = pairing_verdict(made(true, NONE, matched))
    assert re.search(says, said) and said.endswith("It may be claimed that fusion helps, on true pairs.")


def test_the_verdict_has_its_numbers():
    said = pairing_verdict(made(random=(.001, .01), label_matched=(.05, .02)))
    assert "concat, AUC, with records at random 0.801 against image_only 0.800: +0.001 [-0.009, +0.011]; with label-matched records 0.850" in said
    audit = audit_predictions(binormal(300), n=50, pairings=10)
    assert f"would give {value(audit, 'alone', 'conditional independence'):.3f}" in pairing_verdict(audit)
    with pytest.raises(DataError, match="a fused model in the audit"): pairing_verdict(audit[audit["role"] == "single"])
    with pytest.raises(DataError, match="the column 'role'"): pairing_verdict(audit.drop(columns="role"))
    with pytest.raises(DataError, match="metric in this audit"): claim_allowed(audit, metric="macro_auc")


# ---- the split audit

def split_tables(seen=3.0, new=1.0, n_cases=40, per_case=10, seed=0):
    rng = np.random.default_rng(seed)
    n = n_cases * per_case
    label, group = rng.integers(0, 2, n), [f"case {i // per_case}" for i in range(n)]
    return [table_of(label, group, cnn=expit(s * (label - .5) + rng.normal(size=n)), resnet=expit(s * (label - .5) + rng.normal(size=n))) for s in (seen, new)]


def test_the_split_audit():
    patch, case = split_tables()
    audit = audit_splits(patch, case, n=300, seed=1)
    assert audit["split"].tolist() == ["patch"] * 2 + ["case"] * 2 + ["patch - case"] * 2 and audit["n_groups"].iloc[0] == 40
    for split, pred in (("patch", patch), ("case", case)):
        want = intervals(bootstrap_metrics(score_matrix(pred), "auc", n=300, seed=1)).set_index("model")
        rows = audit[audit["split"] == split].set_index("model")
        for c in ("estimate", "low", "high"): np.testing.assert_allclose(rows[c], want.loc[rows.index, c], atol=1e-12)
    rows = {s: audit[audit["split"] == s].set_index("model").loc["cnn"] for s in audit["split"].unique()}
    a, b, d = rows["patch"], rows["case"], rows["patch - case"]
    assert d["estimate"] == a["estimate"] - b["estimate"]
    assert d["low"] == pytest.approx(d["estimate"] - np.hypot(a["estimate"] - a["low"], b["high"] - b["estimate"]), abs=1e-12)  # Zou and Donner 2008
    said = split_verdict(audit)
    assert said.count("optimistic") == 2 and "Intervals draw whole cases" in said and "too few" not in said
    assert audit_splits(patch, case, models=("resnet",), n=20)["model"].eq("resnet").all()


def test_verdicts_on_a_split():
    patch, case = split_tables()
    assert "pessimistic by -" in split_verdict(audit_splits(case, patch, n=100))
    same, _ = split_tables(1.0, 1.0)
    assert "a difference was not shown" in split_verdict(audit_splits(same, split_tables(1.0, 1.0, seed=1)[0], n=100))
    assert "optimistic by -" in split_verdict(audit_splits(patch, case, metric="brier", n=100))  # lower is better
    few = split_tables(n_cases=6)
    assert "tests on 6 cases, too few" in split_verdict(audit_splits(*few, n=50))
    train = patch.assign(split="train", case_id="t" + patch["case_id"])
    assert "(30 of 40)" in split_verdict(audit_splits(pd.concat([patch, train[train["group"].str.slice(5).astype(int) < 30]]), case, n=50))


def test_refusals_of_the_split_audit():
    patch, case = split_tables(n_cases=8)
    leaking = pd.concat([case, case.assign(split="train", case_id="t" + case["case_id"])])
    with pytest.raises(DataError, match="a split by case. Got 8 cases with rows in train and in test"): audit_splits(patch, leaking)
    with pytest.raises(DataError, match="the case or patient of every row"): audit_splits(patch.assign(group=None), case)
    with pytest.raises(DataError, match="models that are in both"): audit_splits(patch, case.assign(model=case["model"] + "2"))
    with pytest.raises(DataError, match="Did you mean 'resnet'"): audit_splits(patch, case, models=("resnett",))


@pytest.mark.slow
def test_intervals_of_re_paired_predictions_cover():
    """200 samples of 300: the interval of the label-matched late fusion holds the truth about as often as it says."""
    hits = 0
    for seed in range(200):
        audit = audit_predictions(binormal(300, .5, seed=seed), policies=("label_matched",), n=300, pairings=10)
        hits += value(audit, "label_matched", column="low") <= late_auc(0) <= value(audit, "label_matched", column="high")
    assert 181 <= hits <= 199, hits
