"""Permutation importance against scikit-learn, a hand computation and the published rank products."""
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from sklearn.inspection import permutation_importance as sklearn_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fusion_nb.importance import importance_summary, permutation_importance, rank_product, resampled_importance
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


def test_bad_summaries_are_refused():
    good = pd.DataFrame({"variable": ["a"], "repeat": [0], "baseline": [0.8], "drop_percent": [1.0]})
    for table, says in ((good.iloc[:0], "empty table"), (good.drop(columns="drop_percent"), "'drop_percent'"),
                        (good.assign(drop_percent=np.nan), "a number for every drop")):
        with pytest.raises(DataError, match=says): importance_summary(table)
    with pytest.raises(DataError, match="at least one model"): rank_product({})
    with pytest.raises(DataError, match="'rank'"): rank_product({"m": good})
    ranks = pd.DataFrame({"variable": ["a", "b"], "rank": [1.0, 2.0]})
    with pytest.raises(DataError, match="no rank of 'b' for 'other'"): rank_product({"m": ranks, "other": ranks.iloc[:1]})
