"""Boosted trees: XGBoost's own estimator gives the same bits, nothing is learned from rows outside, files, and the errors."""
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils.class_weight import compute_sample_weight
from xgboost import XGBClassifier

from fusion_nb.data.breast_lesions import read_breast_lesions
from fusion_nb.predictions import check_predictions, prediction_rows
from fusion_nb.preprocess import TablePreprocessor
from fusion_nb.schema import DataError, Variable
from fusion_nb.splits import kfold
from fusion_nb.trees import TreeConfig, fit_trees, read_trees

QUICK = TreeConfig(depths=(2,), rounds=60, patience=10, learning_rate=0.2)


def cohort(n_classes, seed=0, n=400):
    """(table, label, groups, masks of train, val and test); two rows a patient, gaps everywhere, the last class rare."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(n, 5))
    cuts = np.quantile(table[:, 0], {2: [0.75], 3: [0.5, 0.85]}[n_classes])
    label = np.digitize(table[:, 0] + 0.7 * rng.normal(size=n), cuts)
    table[rng.random(table.shape) < 0.2] = np.nan
    patient = np.repeat(np.arange(n // 2), 2)
    return table, label, patient, patient % 5 < 3, patient % 5 == 3, patient % 5 == 4


def by_xgboost(table, label, train, val, config, depth, balanced=True):
    """XGBoost's scikit-learn estimator with the same parameters, fitted and stopped on the same rows."""
    binary = label.max() == 1
    model = XGBClassifier(n_estimators=config.rounds, max_depth=depth, learning_rate=config.learning_rate, subsample=config.subsample,
                          colsample_bytree=config.colsample, n_jobs=config.threads, random_state=config.seed, tree_method="hist",
                          early_stopping_rounds=config.patience, eval_metric="auc" if binary else "mlogloss")
    weights = {}
    if balanced and binary: model.set_params(scale_pos_weight=(label[train] == 0).sum() / (label[train] == 1).sum())
    elif balanced:
        seen = compute_sample_weight("balanced", label[train])
        by_class = {c: seen[label[train] == c][0] for c in np.unique(label)}
        weights = {"sample_weight": seen, "sample_weight_eval_set": [np.array([by_class[c] for c in label[val]])]}
    return model.fit(table[train], label[train], eval_set=[(table[val], label[val])], verbose=False, **weights)


def saved(trees, folder):
    return (trees.save(folder) / "trees.ubj").read_bytes()


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("class_weight", ["balanced", "none"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_xgboosts_own_estimator(n_classes, class_weight, seed):
    table, label, groups, train, val, _ = cohort(n_classes, seed)
    config = replace(QUICK, class_weight=class_weight, seed=seed)
    trees = fit_trees(table, label, groups, train, val, config=config)
    model = by_xgboost(table, label, train, val, config, 2, class_weight == "balanced")
    expected = model.predict_proba(table)
    assert trees.rounds == model.best_iteration + 1 < 60
    np.testing.assert_array_equal(trees.predict(table), expected[:, 1] if n_classes == 2 else expected)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_tuning_is_the_grouped_cross_validation_of_the_training_rows(n_classes):
    table, label, groups, train, val, _ = cohort(n_classes)
    config = replace(QUICK, depths=(3, 1), folds=3)
    trees = fit_trees(table, label, groups, train, val, config=config)
    x, y, patient = table[train], label[train], groups[train]
    expected = []
    for fold, (seen, unseen) in enumerate(StratifiedGroupKFold(3, shuffle=True, random_state=0).split(x, y, patient.astype(str))):
        assert not set(patient[seen]) & set(patient[unseen])
        for depth in (1, 3):
            model = by_xgboost(x, y, seen, unseen, config, depth)
            expected.append((depth, fold, model.best_score if n_classes == 2 else -model.best_score, model.best_iteration + 1))
    expected = pd.DataFrame(expected, columns=["depth", "fold", "score", "rounds"]).sort_values(["depth", "fold"], ignore_index=True)
    pd.testing.assert_frame_equal(trees.tuning, expected, rtol=0, atol=0)
    assert trees.depth == expected.groupby("depth")["score"].mean().idxmax()
    score = by_xgboost(table, label, train, val, config, trees.depth).predict_proba(table)
    np.testing.assert_array_equal(trees.predict(table), score[:, 1] if n_classes == 2 else score)


def test_the_score_is_that_of_the_validation_part():
    table, label, groups, train, val, _ = cohort(2)
    trees = fit_trees(table, label, groups, train, val, config=QUICK)
    assert trees.score == pytest.approx(roc_auc_score(label[val], trees.predict(table[val])), abs=1e-9)
    table, label, groups, train, val, _ = cohort(3)
    trees = fit_trees(table, label, groups, train, val, config=QUICK)
    weight, score = len(label[train]) / (3 * np.bincount(label[train])), trees.predict(table[val])
    expected = log_loss(label[val], score / score.sum(1, keepdims=True), sample_weight=weight[label[val]])
    assert -trees.score == pytest.approx(expected, abs=1e-6)


def test_as_good_as_scikit_learns_boosted_trees():
    table, label, groups, train, val, test = cohort(2, n=2000)
    ours = fit_trees(table, label, groups, train, val, config=replace(QUICK, rounds=300, learning_rate=0.05, patience=50))
    theirs = HistGradientBoostingClassifier(max_depth=2, learning_rate=0.05, max_iter=ours.rounds, class_weight="balanced",
                                            early_stopping=False, random_state=0).fit(table[train], label[train])
    found, expected = (roc_auc_score(label[test], s) for s in (ours.predict(table[test]), theirs.predict_proba(table[test])[:, 1]))
    assert expected > 0.75 and abs(found - expected) < 0.02


def test_nothing_is_learned_from_rows_outside(tmp_path):
    table, label, groups, train, val, test = cohort(2)
    config = replace(QUICK, depths=(1, 2), folds=3)
    first = fit_trees(table, label, groups, train, val, config=config)
    wrong, wrong_label, wrong_groups = table.copy(), label.astype(float), groups.astype(object)
    wrong[test], wrong_label[test], wrong_groups[test] = np.inf, -7.5, None
    second = fit_trees(wrong, wrong_label, wrong_groups, train, val, config=config)
    assert saved(first, tmp_path / "a") == saved(second, tmp_path / "b") and first.tuning.equals(second.tuning)
    # the validation rows stop the final model and have no part in the tuning
    wrong = table.copy()
    wrong[val] = np.random.default_rng(1).normal(size=wrong[val].shape)
    third = fit_trees(wrong, label, groups, train, val, config=config)
    assert first.tuning.equals(third.tuning) and first.score != third.score
    # and the comparison can fail: a training row changes the trees
    wrong[np.flatnonzero(train)[:20]] = 5
    assert saved(fit_trees(wrong, label, groups, train, val, config=config), tmp_path / "c") != saved(first, tmp_path / "a")


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_bits(tmp_path, threads):
    table, label, groups, train, val, _ = cohort(3)
    config = replace(QUICK, depths=(1, 2), folds=2, threads=threads)
    one, two, other = (fit_trees(table, label, groups, train, val, config=replace(config, seed=s)) for s in (4, 4, 5))
    assert saved(one, tmp_path / "a") == saved(two, tmp_path / "b") and one.tuning.equals(two.tuning)
    assert saved(one, tmp_path / "a") != saved(other, tmp_path / "c")


def test_positions_are_as_good_as_masks(tmp_path):
    table, label, groups, train, val, _ = cohort(2)
    masks = fit_trees(table, label, groups, train, val, config=QUICK)
    positions = fit_trees(table, label, groups, np.flatnonzero(train), np.flatnonzero(val), config=QUICK)
    assert saved(masks, tmp_path / "a") == saved(positions, tmp_path / "b")


def test_balanced_classes_weigh_the_same():
    table, label, groups, train, val, _ = cohort(2, n=2000)
    share = label[train].mean()
    means = {w: fit_trees(table, label, groups, train, val, config=replace(QUICK, class_weight=w)).predict(table[train]).mean()
             for w in ("balanced", "none")}
    assert means["none"] == pytest.approx(share, abs=0.03) and means["balanced"] > share + 0.1


def test_one_depth_needs_no_folds():
    table, label, groups, train, val, _ = cohort(2)
    trees = fit_trees(table, label, np.zeros(len(label)), train, val, config=QUICK)  # a single patient could not be split
    assert len(trees.tuning) == 0 and trees.tuning.columns.tolist() == ["depth", "fold", "score", "rounds"] and trees.depth == 2


# ---- from the preprocessor to the prediction table

def test_one_pipeline_from_variables_to_the_prediction_table():
    rng = np.random.default_rng(0)
    n, patient = 300, np.repeat(np.arange(150), 2)
    raw = pd.DataFrame({"age": rng.normal(60, 10, n), "lab <mg/dL> [min]": rng.normal(size=n), "sex": rng.choice(["F", "M"], n)})
    label = (raw["lab <mg/dL> [min]"] + 0.5 * rng.normal(size=n) > 0.5).astype(int).to_numpy()
    raw = raw.mask(rng.random(raw.shape) < 0.2)
    train, val = patient % 5 < 3, patient % 5 == 3
    variables = Variable("age", "continuous"), Variable("lab <mg/dL> [min]", "continuous"), Variable("sex", "categorical")
    fitted = TablePreprocessor(variables, indicators=("age",)).fit(raw[train])
    table = pd.DataFrame(fitted.with_gaps(raw), columns=fitted.feature_names)
    trees = fit_trees(table, label, patient, train, val, config=QUICK)
    assert list(trees.names) == fitted.feature_names and roc_auc_score(label[~train], trees.predict(table)[~train]) > 0.8
    cases = pd.DataFrame({"case_id": np.arange(n).astype(str), "group": patient, "label": label,
                          "split": np.select([train, val], ["train", "val"], "test")})
    assert check_predictions(prediction_rows(cases, trees.predict(table), model="xgboost"))["score_positive"].tolist() == trees.predict(table).tolist()
    three = pd.qcut(np.nan_to_num(raw["age"].astype(float), nan=60), 3, labels=False)
    score = pd.DataFrame(fit_trees(table, three, patient, train, val, config=QUICK).predict(table), columns=["young", "middle", "old"])
    pred = check_predictions(prediction_rows(cases.assign(label=three), score, model="xgboost"))
    assert pred.filter(like="score_").columns.tolist() == ["score_young", "score_middle", "score_old"]


def test_real_descriptors_carry_what_trees_are_known_to_find(data_dir):
    cohort = read_breast_lesions(data_dir / "breast_lesions_usg", features="descriptors")
    cases, score = cohort.table, np.zeros(len(cohort))
    for _, fold in kfold(cases, n_splits=3, seed=1).groupby("fold"):
        train, val, test = ((fold["split"] == part).to_numpy() for part in ("train", "val", "test"))
        table = TablePreprocessor(cohort.variables).fit(cases[train]).with_gaps(cases)
        score[test] = fit_trees(table, cases["label"], cases["group"], train, val, config=replace(QUICK, patience=50)).predict(table[test])
    assert 0.82 < roc_auc_score(cases["label"], score) < 0.94  # a logistic regression has 0.87 to 0.94


def test_columns_are_read_by_name_and_checked():
    table, label, groups, train, val, _ = cohort(2)
    named = pd.DataFrame(table, columns=["age", "lactate", "sodium", "urea", "ph"])
    trees = fit_trees(named, label, groups, train, val, config=QUICK)
    score = trees.predict(named)
    assert np.array_equal(trees.predict(named[["ph", "age", "urea", "lactate", "sodium"]]), score)
    assert np.array_equal(trees.predict(table), score) and np.array_equal(trees.predict(named.astype("float32")), score)
    for wrong, message in ((named.rename(columns={"sodium": "Sodium"}), "the column 'sodium' in the table to predict.*Did you mean 'Sodium'"),
                           (named.assign(ages=1), "known column of these trees.*'ages'.*Did you mean 'age'"),
                           (table[:, :4], "5 columns, as in training: age, lactate, sodium.*Got 4"),
                           (table[0], r"shape \(N, F\).*shape \(5,\)"),
                           (named.assign(urea=np.where(np.arange(400) == 7, -np.inf, 1)), "-inf in row 7 of the column 'urea' .1 such cells"),
                           (named.assign(urea="high"), "a table of numbers.*'high'.*TablePreprocessor")):
        with pytest.raises(DataError, match=message): trees.predict(wrong)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_no_row_all_missing_and_integers(n_classes):
    table, label, groups, train, val, _ = cohort(n_classes)
    trees = fit_trees(table, label, groups, train, val, config=QUICK)
    assert trees.predict(table[:0]).shape == ((0,) if n_classes == 2 else (0, 3))
    assert np.isfinite(trees.predict(np.full((2, 5), np.nan))).all() and np.isfinite(trees.predict(np.ones((2, 5), int))).all()
    table[:, 1] = np.nan  # a column without a single value
    assert np.isfinite(fit_trees(table, label, groups, train, val, config=QUICK).predict(table)).all()


# ---- files

@pytest.mark.parametrize("n_classes", [2, 3])
def test_files_come_back_to_the_bit(tmp_path, n_classes):
    table, label, groups, train, val, _ = cohort(n_classes)
    named = pd.DataFrame(table, columns=["age [years]", "<0.3", "ü", "d", "e"])
    trees = fit_trees(named, label, groups, train, val, config=replace(QUICK, depths=(1, 2), folds=2))
    trees.save(tmp_path / "new folder")
    again = read_trees(tmp_path / "new folder")
    assert {p.name for p in (tmp_path / "new folder").iterdir()} == {"trees.ubj", "trees.json"}
    assert np.array_equal(again.predict(named), trees.predict(named))
    for name in ("names", "n_classes", "depth", "score", "config", "rounds"): assert getattr(again, name) == getattr(trees, name)
    pd.testing.assert_frame_equal(again.tuning, trees.tuning)
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice" / "trees.json").read_text() == (tmp_path / "new folder" / "trees.json").read_text()


def test_damaged_files_are_refused(tmp_path):
    table, label, groups, train, val, _ = cohort(2)
    trees = fit_trees(table, label, groups, train, val, config=QUICK)
    other = fit_trees(table, label, groups, train, val, config=replace(QUICK, seed=1))
    with pytest.raises(DataError, match="a JSON file.*trees.json, which does not exist"): read_trees(tmp_path)
    model, facts = trees.save(tmp_path) / "trees.ubj", tmp_path / "trees.json"
    good, text = model.read_bytes(), facts.read_text()
    for bad in (good[:100], b"", saved(other, tmp_path / "other")):
        model.write_bytes(bad)
        with pytest.raises(DataError, match="trees.json was written with.*other content.*Fit the trees again"): read_trees(tmp_path)
    model.unlink()
    with pytest.raises(DataError, match="trees.ubj, which does not exist"): read_trees(tmp_path)
    model.write_bytes(good)
    assert np.array_equal(read_trees(tmp_path).predict(table), trees.predict(table))  # whole again
    state = json.loads(text)
    for bad in ({}, [], state | {"config": {"deep": 3}}, {k: v for k, v in state.items() if k != "depth"}, state | {"tuning": {}}):
        facts.write_text(json.dumps(bad))
        with pytest.raises(DataError, match="what Trees.save wrote"): read_trees(tmp_path)
    facts.write_text(text[:50])
    with pytest.raises(DataError, match="line .*column"): read_trees(tmp_path)


# ---- bad input

@pytest.mark.parametrize("change, message", [
    ({"label": lambda y: np.where(y == 1, 2, 0)}, "training rows of every class.* 0 of label 1"),
    ({"label": lambda y: np.where(y == 1, 1, -1)}, r"labels 0 and 1, or 0 to C-1.*Got -1 in row \d+ .\d+ such rows"),
    ({"label": lambda y: y + 0.5}, "labels 0 and 1.*Got [01].5"),
    ({"label": lambda y: np.where(y == 1, "ill", "well")}, "labels 0 and 1.*Got '(ill|well)'"),
    ({"label": lambda y: np.where(y == 1, np.nan, 0)}, "labels 0 and 1.*Got nan"),
    ({"label": lambda y: y * 0}, "training rows of every class.*240 of label 0"),
    ({"label": lambda y: y[:-1]}, r"a label for each of 400 rows.*shape \(399,\)"),
    ({"label": lambda y: y[:, None]}, r"a label for each of 400 rows.*shape \(400, 1\)"),
    ({"groups": lambda g: g[:3]}, "a group for each of 400 rows"),
    ({"groups": lambda g: np.where(g < 5, np.nan, g)}, r"a group \(patient\) for every training row.*6 of 240 without one"),
    ({"groups": lambda g: g % 2}, "no more folds than groups.*5 folds for groups 2 of label 0, 2 of label 1.*Use fewer folds"),
    ({"table": lambda x: x[:, :0]}, "at least one column"),
    ({"table": lambda x: pd.DataFrame(x, columns=["a", "b", "a", "c", "d"])}, "no name twice.*a, b, a"),
    ({"table": lambda x: np.where(np.arange(400)[:, None] == 3, np.inf, x)}, "or NaN.*inf in row 3 of the column 'f0'"),
    ({"table": lambda x: np.where(np.arange(400)[:, None] == 3, 1e300, x)}, "single precision can hold.*1e.300 in row 3"),
    ({"val_rows": lambda v: ~v}, "no row in two parts.*240 rows"),
    ({"val_rows": lambda v: v & False}, "validation rows from 0 to 399.*none"),
    ({"val_rows": lambda v: [6, 400]}, "validation rows from 0 to 399.*6 to 400"),
    ({"train_rows": lambda t: [-1, 3]}, "training rows from 0 to 399.*-1 to 3")])
def test_bad_input(change, message):
    table, label, groups, train, val, _ = cohort(2)
    arguments = {"table": table, "label": label, "groups": groups, "train_rows": train, "val_rows": val}
    arguments |= {name: make(arguments[name]) for name, make in change.items()}
    with pytest.raises(DataError, match=message): fit_trees(**arguments, config=replace(QUICK, depths=(1, 2)))


def test_parts_of_one_class_are_refused():
    table, label, groups, train, val, _ = cohort(2)
    with pytest.raises(DataError, match="validation rows of at least two classes.* 0 of label 1"):
        fit_trees(table, label, groups, train, val & (label == 0), config=QUICK)
    with pytest.raises(DataError, match="training rows of every class.* 0 of label 0"):
        fit_trees(table, label, groups, train & (label == 1), val, config=QUICK)
    three = np.where(val & (label == 1), 2, label)  # a class that only the validation part has
    with pytest.raises(DataError, match="validation rows of the classes that training has, 0 to 1"):
        fit_trees(table, three, groups, train, val, config=QUICK)


def test_a_fold_without_a_class_is_named():
    label, patient = np.array([1, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 3])  # patient 2 has most rows
    with pytest.raises(DataError, match=r"training \(fold 0 of the tuning\) rows of every class.*0 of label 0, 2 of label 1.*fewer folds"):
        fit_trees(np.zeros((11, 1)), label, patient, np.arange(9), [9, 10], config=replace(QUICK, depths=(1, 2), folds=2))


@pytest.mark.parametrize("wrong, message", [
    ({"depths": ()}, "depths as a tuple"), ({"depths": 3}, "depths as a tuple.*Got 3"), ({"depths": (0,)}, "depths as a tuple"),
    ({"depths": (2.5,)}, "depths as a tuple"), ({"rounds": 0}, "rounds as a whole number of at least 1"), ({"folds": 1}, "folds .*at least 2"),
    ({"threads": True}, "threads as a whole number"), ({"seed": -1}, "seed .*at least 0"), ({"patience": 1.0}, "patience as a whole"),
    ({"learning_rate": 0}, "learning_rate above 0"), ({"subsample": 1.1}, "subsample above 0 and at most 1"),
    ({"colsample": "0.8"}, "colsample above 0"), ({"class_weight": "balance"}, "known class_weight.*Did you mean 'balanced'")])
def test_settings_that_cannot_be_meant(wrong, message):
    with pytest.raises(DataError, match=message): TreeConfig(**wrong)


def test_settings_of_the_paper():
    config = TreeConfig()
    assert (config.depths, config.learning_rate, config.rounds, config.patience) == ((6, 7, 8), 0.05, 1000, 50)
    assert (config.subsample, config.colsample, config.folds, config.class_weight, config.threads) == (0.8, 0.8, 5, "balanced", 1)


def test_loads_no_torch():
    program = "import sys, fusion_nb.trees; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
