"""Permutation importance against scikit-learn, a hand computation and the published rank products."""
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from scipy.stats import kendalltau
from sklearn.inspection import permutation_importance as sklearn_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, log_loss, roc_auc_score
from xgboost import XGBClassifier

from fusion_nb.importance import importance_summary, permutation_importance, rank_product, resampled_importance
from fusion_nb.resample import bootstrap_counts
from fusion_nb.schema import DataError


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4))
    label = (X @ [1.5, 0.8, 0.3, 0] + rng.logistic(size=300) > 0).astype(int)
    return LogisticRegression().fit(X, label), X, label


def names(X):
    return {f"x{i}": [i] for i in range(X.shape[1])}


def test_agrees_with_scikit_learn_in_expectation(fitted):
    model, X, label = fitted
    ours = permutation_importance(lambda X: model.predict_proba(X)[:, 1], X, label, columns_of=names(X), n_repeats=400)
    ours = (ours["baseline"] - ours["permuted"]).groupby(ours["variable"])
    theirs = sklearn_importance(model, X, label, scoring="roc_auc", n_repeats=400, random_state=0)
    error = np.hypot(ours.std(), theirs.importances_std) / np.sqrt(400)
    assert (np.abs(ours.mean() - theirs.importances_mean) < 4 * error).all()


def test_mean_drop_is_the_mean_over_all_orders_by_hand():
    X, label = np.array([[4.0], [3.0], [2.0], [1.0]]), np.array([1, 0, 1, 0])
    exact = np.mean([roc_auc_score(label, X[list(order), 0]) for order in permutations(range(4))])
    drops = permutation_importance(lambda X: X[:, 0], X, label, columns_of={"x": [0]}, n_repeats=4000)
    assert exact == 0.5 and drops["baseline"].iloc[0] == 0.75
    assert abs(drops["permuted"].mean() - exact) < 4 * drops["permuted"].std() / np.sqrt(4000)
    assert np.allclose(drops["drop_percent"], 100 * (0.75 - drops["permuted"]) / 0.75)


def test_columns_of_one_variable_travel_together(fitted):
    _, X, label = fitted
    one_hot = np.eye(3)[np.arange(300) % 3]
    X = np.column_stack([X[:, 0], one_hot])
    seen = []

    def predict(X):
        seen.append(X.copy())
        return X[:, 0]

    permutation_importance(predict, X, label, columns_of={"x": [0], "kind": [1, 2, 3]}, n_repeats=3)
    assert len(seen) == 1 + 2 * 3
    assert all((s[:, 1:].sum(axis=1) == 1).all() for s in seen)  # never two kinds at once
    assert any((s[:, 1:] != one_hot).any() for s in seen)
    assert (X[:, 1:] == one_hot).all()  # the caller's array is untouched


def test_a_raw_table_keeps_its_cells_and_types(fitted):
    model, X, label = fitted
    table = pd.DataFrame({"age": X[:, 0], "signs": [("lump",), None] * 150, "kind": pd.Categorical(["a", "b"] * 150)}, index=range(7, 307))
    shapes = []

    def predict(table):
        shapes.append((list(table.dtypes), table["signs"].isna().sum(), list(table.index)))
        return table["age"].to_numpy()

    drops = permutation_importance(predict, table, label, n_repeats=2)
    assert list(drops["variable"].unique()) == ["age", "signs", "kind"]
    assert all(s == shapes[0] for s in shapes)
    assert (drops.query("variable != 'age'")["drop_percent"] == 0).all()


def test_same_seed_same_numbers_and_same_shuffles_for_every_model(fitted):
    _, X, label = fitted
    orders = []

    def run(seed, columns_of):
        orders.clear()
        drops = permutation_importance(lambda X: orders.append(X.copy()) or X[:, 0] + X[:, 1], X, label, columns_of=columns_of, n_repeats=3, seed=seed)
        return drops, [o[:, 1] for o in orders]

    (first, seen), (second, again) = run(0, names(X)), run(0, names(X))
    pd.testing.assert_frame_equal(first, second)
    alone, _ = run(0, {"x1": [1]})  # leaving variables out does not change the others
    pd.testing.assert_frame_equal(first.query("variable == 'x1'").reset_index(drop=True), alone)
    assert not run(1, names(X))[0].equals(first)


def test_summary_is_median_percentiles_and_rank():
    rng = np.random.default_rng(0)
    drops = pd.DataFrame({"variable": np.repeat(["a", "b", "c"], 40), "repeat": np.tile(range(40), 3), "baseline": 0.8,
                          "drop_percent": np.concatenate([rng.normal(m, 1, 40) for m in (1, 5, -7)])})
    summary = importance_summary(drops).set_index("variable")
    for name, values in drops.groupby("variable")["drop_percent"]:
        assert np.allclose(summary.loc[name, ["low", "median", "high"]].astype(float), np.percentile(values, [2.5, 50, 97.5]))
    assert summary.index.tolist() == ["b", "a", "c"]  # a drop of -7 is no importance: last, not first
    assert summary["rank"].tolist() == [1, 2, 3]


def test_equal_drops_share_their_mean_rank():
    drops = pd.DataFrame({"variable": ["a", "b", "c"], "repeat": 0, "baseline": 0.8, "drop_percent": [2.0, 0.0, 0.0]})
    assert importance_summary(drops)["rank"].tolist() == [1, 2.5, 2.5]


def test_rank_products_sort_the_published_table_as_printed():
    # Holste et al., ICCV-W 2021, table 3: ranks in Non-Image-Only, Probability, Feature and Learned Feature Fusion
    printed = {"MRI Indication": (1, 1, 1, 1), "MRI Software Version": (2, 2, 4, 3), "Age": (3, 5, 2, 2), "MIP Height": (5, 6, 3, 4),
               "Precession Frequency": (8, 3, 5, 7), "MIP Max Intensity": (4, 8, 18, 8), "BPE": (7, 10, 6, 13),
               "Reconstruction Diameter": (15, 7, 13, 5), "Pixel Dimensions": (6, 4, 17, 17), "Repetition Time": (10, 11, 7, 10),
               "Breast Density": (13, 9, 8, 9)}
    shuffled = sorted(printed)
    summaries = {f"m{k}": pd.DataFrame({"variable": shuffled, "rank": [printed[v][k] for v in shuffled]}) for k in range(4)}
    products = rank_product(summaries)
    assert products["variable"].tolist() == list(printed)
    assert np.isclose(products.set_index("variable").loc["Age", "rank_product"], 60 ** 0.25)


def test_resampling_patients_widens_the_interval_and_agrees_in_the_middle(fitted):
    model, X, label = fitted
    predict, group = (lambda X: model.predict_proba(X)[:, 1]), np.arange(300) // 2
    shuffles = importance_summary(permutation_importance(predict, X, label, columns_of=names(X))).set_index("variable").loc["x0"]
    drops = resampled_importance(predict, X, label, group, columns_of=names(X), n=300)
    patients = importance_summary(drops).set_index("variable").loc["x0"]
    assert patients["high"] - patients["low"] > shuffles["high"] - shuffles["low"]
    assert patients["low"] < shuffles["median"] < patients["high"]
    assert (shuffles["over"], patients["over"]) == ("shuffles", "resamples of the patients")
    assert (drops.groupby("variable")["repeat"].nunique() == 300).all() and (drops.groupby("repeat")["baseline"].nunique() == 1).all()


def test_a_null_variable_drops_nothing_on_average(fitted):
    model, X, label = fitted
    drops = permutation_importance(lambda X: model.predict_proba(X)[:, 1], X, np.random.default_rng(5).permutation(label), columns_of=names(X), n_repeats=100)
    assert drops.groupby("variable")["drop_percent"].mean().abs().max() < 10  # labels of nobody: small drops either way


@pytest.mark.parametrize("changes, says", [
    ({"columns_of": {"age": [9]}}, "column of the variable 'age'"),
    ({"columns_of": {"age": []}}, "columns for the variable 'age'"),
    ({"columns_of": {}}, "at least one variable"),
    ({"columns_of": None}, "columns_of"),
    ({"n_repeats": 0}, "at least one shuffle"),
    ({"predict": lambda X: X}, r"one score per case from `predict`, shape \(300,\)"),
    ({"predict": lambda X: X[:-1, 0]}, "one score per case"),
    ({"predict": lambda X: np.full(len(X), np.nan)}, "finite scores"),
    ({"label": np.ones(300, int)}, "both classes"),
    ({"label": np.arange(300)}, "labels 0 or 1"),
    ({"label": np.array([0, 1])}, "one label per case"),
    ({"X": np.empty((0, 4)), "label": np.empty(0)}, "at least one variable and one case"),
    ({"metric": lambda label, score: 0.0}, "a metric above 0"),
])
def test_bad_input_is_refused(fitted, changes, says):
    _, X, label = fitted
    given = {"predict": lambda X: X[:, 0], "X": X, "label": label, "columns_of": names(X), "n_repeats": 1, **changes}
    with pytest.raises(DataError, match=says):
        permutation_importance(given.pop("predict"), given.pop("X"), given.pop("label"), **given)


# ---- modalities, metrics and models of all kinds

@pytest.fixture(scope="module")
def paired():
    """Embedded images, a table with names, and file names: what a fusion model may be given."""
    rng = np.random.default_rng(1)
    image, table = rng.normal(size=(200, 5)), pd.DataFrame(rng.normal(size=(200, 2)), columns=["age", "size"], index=range(1000, 1200))
    label = (image[:, 0] + 2 * table["age"].to_numpy() + rng.logistic(size=200) > 0).astype(int)
    return {"image": image, "table": table, "name": [f"{i}.png" for i in range(200)]}, label


def test_a_modality_is_shuffled_whole_and_apart_from_the_others(paired):
    X, label = paired
    seen = []

    def predict(X):
        seen.append(X)
        return X["image"][:, 0] + X["table"]["age"].to_numpy()

    drops = permutation_importance(predict, X, label, n_repeats=2)
    intact, images, tables, names = seen[0], seen[1::3], seen[2::3], seen[3::3]
    assert intact["image"] is X["image"] and len(seen) == 1 + 3 * 2
    for repeat in range(2):
        order = [int(n.removesuffix(".png")) for n in names[repeat]["name"]]
        assert sorted(order) == list(range(200)) and order != list(range(200))
        assert (images[repeat]["image"] == X["image"][order]).all() and images[repeat]["table"] is X["table"] and images[repeat]["name"] is X["name"]
        assert (tables[repeat]["table"].to_numpy() == X["table"].to_numpy()[order]).all() and tables[repeat]["image"] is X["image"]
        assert tables[repeat]["table"].index.equals(X["table"].index)  # nothing can align the rows back
        by_hand = [roc_auc_score(label, X["image"][order, 0] + X["table"]["age"]), roc_auc_score(label, X["image"][:, 0] + X["table"]["age"].to_numpy()[order])]
        assert drops.query(f"repeat == {repeat}")["permuted"].tolist()[:2] == pytest.approx(by_hand, abs=1e-12)
    assert (drops.query("variable == 'name'")["drop_percent"] == 0).all()


def test_columns_given_as_modalities_are_the_same_variables(fitted):
    model, X, label = fitted
    apart = {f"x{i}": X[:, i] for i in range(4)}
    one = permutation_importance(lambda X: model.predict_proba(X)[:, 1], X, label, columns_of=names(X), n_repeats=3)
    two = permutation_importance(lambda X: model.predict_proba(np.column_stack(list(X.values())))[:, 1], apart, label, n_repeats=3)
    pd.testing.assert_frame_equal(one, two, rtol=1e-12)
    joined = {"first": ["x0", "x1"], "rest": ["x2", "x3"]}
    three = permutation_importance(lambda X: model.predict_proba(np.column_stack(list(X.values())))[:, 1], apart, label, columns_of=joined, n_repeats=3)
    four = permutation_importance(lambda X: model.predict_proba(X)[:, 1], X, label, columns_of={"first": [0, 1], "rest": [2, 3]}, n_repeats=3)
    pd.testing.assert_frame_equal(three, four, rtol=1e-12)


def test_any_predict_function_will_do(paired):
    X, label = paired
    together = lambda X: np.column_stack([X["image"], X["table"]])
    trees = XGBClassifier(n_estimators=20, n_jobs=1, random_state=0).fit(together(X), label)
    plain = lambda X: [float(a + b) for a, b in zip(X["image"][:, 0], X["table"]["age"])]  # a list, of no library
    for predict in (lambda X: trees.predict_proba(together(X))[:, 1], plain):
        summary = importance_summary(permutation_importance(predict, X, label, n_repeats=5)).set_index("variable")
        assert summary.index.tolist() == ["table", "image", "name"] and summary.loc["image", "low"] > 0 and summary.loc["name", "high"] == 0


@pytest.mark.parametrize("metric, function, better", [
    ("auc", roc_auc_score, 1), ("average_precision", average_precision_score, 1), ("brier", brier_score_loss, -1), ("log_loss", log_loss, -1),
    ("accuracy", lambda label, p: accuracy_score(label, p >= .5), 1), (roc_auc_score, roc_auc_score, 1)])
def test_metrics_by_name_equal_scikit_learn(fitted, metric, function, better):
    model, X, label = fitted
    shuffles = []

    def predict(X):
        shuffles.append(model.predict_proba(X)[:, 1])
        return shuffles[-1]

    drops = permutation_importance(predict, X, label, columns_of={"x0": [0]}, n_repeats=3, metric=metric)
    intact, *after = (function(label, p) for p in shuffles)
    assert drops["permuted"].tolist() == pytest.approx(after, abs=1e-12) and drops["baseline"].tolist() == pytest.approx([intact] * 3, abs=1e-12)
    assert drops["drop_percent"].tolist() == pytest.approx([100 * better * (intact - p) / intact for p in after], abs=1e-9) and (drops["drop_percent"] > 0).all()


def test_several_classes_and_survival():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(150, 2))
    label = rng.permutation(np.arange(150) % 3)
    probability = lambda X: softmax(np.column_stack([X[:, 0], X[:, 0] * 0, X[:, 0] * -1]), axis=1)
    X[:, 0] += 1 - label
    drops = permutation_importance(probability, X, label, columns_of=names(X), n_repeats=3, metric="macro_auc")
    assert drops["baseline"][0] == pytest.approx(roc_auc_score(label, probability(X), multi_class="ovr"), abs=1e-12)
    assert (drops.query("variable == 'x0'")["drop_percent"] > 0).all() and (drops.query("variable == 'x1'")["drop_percent"] == 0).all()
    time, event = rng.exponential(np.exp(-X[:, 1])), np.ones(150, int)
    drops = permutation_importance(lambda X: X[:, 1], X, (time, event), columns_of=names(X), n_repeats=3, metric="harrell_c")
    assert drops["baseline"][0] == pytest.approx((1 - kendalltau(time, X[:, 1])[0]) / 2, abs=1e-12)  # without ties and censoring
    censored = (time, rng.permutation(np.arange(150) % 2))
    drops = resampled_importance(lambda X: X[:, 1], X, censored, columns_of=names(X), n=20, metric="harrell_c")
    assert (drops.query("variable == 'x1'")["drop_percent"] > 0).all() and (drops.query("variable == 'x0'")["drop_percent"] == 0).all()


def test_every_resample_of_a_modality_by_hand(paired):
    X, label = paired
    group, seen = np.arange(200) // 2, []

    def predict(X):
        seen.append(1 / (1 + np.exp(-X["image"][:, 0] - X["table"]["age"].to_numpy())))
        return seen[-1]

    for metric, function, better in (("auc", roc_auc_score, 1), ("brier", brier_score_loss, -1)):
        seen.clear()
        drops = resampled_importance(predict, X, label, group, columns_of={"image": ["image"], "table": ["table"]}, n=40, metric=metric)
        assert len(seen) == 1 + 2 * 30  # predictions are made for 30 shuffles, not for every resample
        for r, counts in enumerate(bootstrap_counts(label, group, n=40, seed=0)):
            drawn = np.repeat(np.arange(200), counts)
            baseline = function(label[drawn], seen[0][drawn])
            for v, variable in enumerate(("image", "table")):
                permuted = function(label[drawn], seen[1 + 2 * (r % 30) + v][drawn])
                row = drops.query(f"variable == '{variable}' and repeat == {r}").iloc[0]
                assert [row["baseline"], row["permuted"]] == pytest.approx([baseline, permuted], abs=1e-12)
                assert row["drop_percent"] == pytest.approx(100 * better * (baseline - permuted) / baseline, abs=1e-9)


def test_a_modality_has_intervals_over_shuffles_and_over_patients(paired):
    X, label = paired
    predict = lambda X: X["image"][:, 0] + 2 * X["table"]["age"].to_numpy()
    shuffles = importance_summary(permutation_importance(predict, X, label)).set_index("variable")
    patients = importance_summary(resampled_importance(predict, X, label, np.arange(200) // 2, n=300)).set_index("variable")
    width = lambda summary: summary["high"] - summary["low"]
    assert (width(patients)[["image", "table"]] > width(shuffles)[["image", "table"]]).all()
    assert rank_product({"shuffles": shuffles.reset_index(), "patients": patients.reset_index()})["variable"].tolist() == ["table", "image", "name"]


@pytest.mark.parametrize("changes, says", [
    ({"X": {"image": np.zeros((200, 5)), "table": np.zeros((199, 2))}}, "the same cases in every modality.*200 in image, 199 in table"),
    ({"X": {"image": None, "table": np.zeros((200, 2))}}, "an array, table or list for the modality 'image'.*Leave it out"),
    ({"X": {}}, "at least one variable and one case"),
    ({"X": {"image": np.zeros((0, 5))}, "label": np.zeros(0)}, "at least one variable and one case"),
    ({"columns_of": {"picture": ["imag"]}}, "column of the variable 'picture'.*Did you mean 'image'"),
    ({"X": np.zeros((200, 5, 5))}, "an array of cases by columns.*mapping"),
    ({"metric": "acu"}, "known metric.*Did you mean 'auc'"),
    ({"metric": "macro_auc"}, "a metric for binary scores.*There is: auc"),
    ({"metric": "auc:mitosis"}, "a metric of all classes. Got 'auc:mitosis'"), ({"metric": "specificity_at_0_sensitivity"}, "from 1 to less than 100 per cent"),
    ({"metric": "harrell_c"}, "a metric for binary scores"),
    ({"metric": "calibration_slope"}, "more, or less, is better"),
    ({"label": (np.ones(200), np.ones(200))}, "a metric for survival scores.*harrell_c"),
    ({"label": (np.ones(200), np.ones(199)), "metric": "harrell_c"}, "one label per case, 200.*199"),
    ({"predict": lambda X: np.zeros((200, 3)), "metric": "auc"}, "one score per case from"),
    ({"predict": lambda X: np.zeros((200, 3, 3)), "metric": "brier"}, "one score per case .and class"),
    ({"predict": lambda X: np.zeros(200), "metric": "mcc"}, "a metric above 0"),
])
@pytest.mark.parametrize("ask", [permutation_importance, resampled_importance])
def test_bad_modalities_and_metrics_are_refused(paired, ask, changes, says):
    X, label = paired
    given = {"predict": lambda X: np.linspace(0, 1, 200), "X": X, "label": label, "columns_of": {"image": ["image"]} if "X" not in changes else None, **changes}
    if isinstance(given["X"], np.ndarray): given["columns_of"] = {"image": [0]}
    with pytest.raises(DataError, match=says): ask(given.pop("predict"), given.pop("X"), given.pop("label"), **given)


def test_bad_summaries_are_refused():
    good = pd.DataFrame({"variable": ["a"], "repeat": [0], "baseline": [0.8], "drop_percent": [1.0]})
    for table, says in ((good.iloc[:0], "empty table"), (good.drop(columns="drop_percent"), "'drop_percent'"),
                        (good.assign(drop_percent=np.nan), "a number for every drop")):
        with pytest.raises(DataError, match=says): importance_summary(table)
    with pytest.raises(DataError, match="at least one model"): rank_product({})
    with pytest.raises(DataError, match="'rank'"): rank_product({"m": good})
    ranks = pd.DataFrame({"variable": ["a", "b"], "rank": [1.0, 2.0]})
    with pytest.raises(DataError, match="no rank of 'b' for 'other'"): rank_product({"m": ranks, "other": ranks.iloc[:1]})
