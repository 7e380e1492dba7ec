"""Preprocessing: against scikit-learn, nothing learned from test rows, JSON, and the errors."""
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer, OneHotEncoder, StandardScaler

from fusion_nb.data.breast_lesions import read_breast_lesions
from fusion_nb.preprocess import TablePreprocessor
from fusion_nb.schema import DataError, Variable
from fusion_nb.splits import kfold

LIGHT = settings(max_examples=40, deadline=None, derandomize=True)  # the same tables every time
STAGES, SIGNS = ("I", "II", "III", "IV"), ("redness", "retraction", "warmth", "lump")
VARIABLES = (Variable("age", "continuous"), Variable("shape", "categorical"), Variable("size", "continuous"),
             Variable("stage", "ordinal", STAGES), Variable("signs", "multi"))


def make_table(n, seed, missing=0.2):
    """Values of every kind, some of them missing; row 0 is complete so that there is always something to fit."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({
        "age": rng.normal(55, 12, n), "size": rng.lognormal(3, 2, n),
        "shape": rng.choice(["oval", "round", "irregular"], n), "stage": rng.choice(STAGES, n)}).astype({"shape": object, "stage": object})
    table["signs"] = [tuple(s for s in SIGNS if rng.random() < 0.3) for _ in range(n)]
    for column in table.columns:
        table.loc[(rng.random(n) < missing) & (np.arange(n) > 0), column] = None
    return table


def scikit_learn(train, table):
    """The same matrix by scikit-learn's own transformers, which share no code with ours beyond the scaler."""
    mode = SimpleImputer(strategy="most_frequent", missing_values=None)
    by_kind = ColumnTransformer([
        ("age", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["age"]),
        ("shape", make_pipeline(mode, OneHotEncoder(handle_unknown="ignore", sparse_output=False)), ["shape"]),
        ("size", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["size"]),
        ("stage", make_pipeline(mode, OneHotEncoder(categories=[list(STAGES)], sparse_output=False)), ["stage"])])
    train, table = (t.astype(object).where(t.notna(), None).astype({"age": float, "size": float}) for t in (train, table))
    by_kind.fit(train)
    matrix = by_kind.transform(table)
    multi = MultiLabelBinarizer().fit([s for s in train["signs"] if s is not None])
    seen = [tuple(v for v in s or () if v in multi.classes_) for s in table["signs"]]
    blocks = {name: matrix[:, part] for name, part in by_kind.output_indices_.items()} | {"signs": multi.transform(seen)}
    gone = {v.name: MissingIndicator(features="all").fit_transform(table[[v.name]].isna().astype(float).replace(1, np.nan)) for v in VARIABLES}
    return np.hstack([b for v in VARIABLES for b in ([blocks[v.name], gone[v.name]] if train[v.name].isna().any() else [blocks[v.name]])])


@LIGHT
@given(n=st.integers(5, 80), seed=st.integers(0, 10**6), missing=st.sampled_from([0, 0.05, 0.4]))
def test_equals_scikit_learn(n, seed, missing):
    table = make_table(n, seed, missing)
    train = table[: max(3, n // 2)]
    ours = TablePreprocessor(VARIABLES).fit(train)
    expected = scikit_learn(train, table)
    assert ours.transform(table).dtype == np.float32
    np.testing.assert_array_equal(ours.transform(table), expected.astype(np.float32))


@LIGHT
@given(n=st.integers(2, 60), seed=st.integers(0, 10**6), missing=st.sampled_from([0, 0.3]))
def test_json_round_trip_is_bit_identical(n, seed, missing):
    table = make_table(n, seed, missing)
    first = TablePreprocessor(VARIABLES).fit(table[: n // 2 + 1])
    second = TablePreprocessor.from_json(first.to_json())
    assert second.to_json() == first.to_json() and second.variables == first.variables
    assert second.transform(table).tobytes() == first.transform(table).tobytes()
    assert second.feature_names == first.feature_names and second.columns_of == first.columns_of


@pytest.mark.parametrize("corruption", [
    {"age": 1e9, "size": -1e9, "shape": "a new shape", "stage": "IV", "signs": [("a new sign",)] * 20},
    {"age": np.nan, "size": np.nan, "shape": None, "stage": None, "signs": None},
    {"age": "text", "size": "text", "shape": 7, "stage": "no stage", "signs": "no tuple"}])
def test_corrupting_every_test_row_changes_no_fitted_number(corruption):
    table, test = make_table(60, seed=3).assign(label=np.arange(60) % 2), np.arange(60) >= 40
    corrupted = table.astype(object)
    for column, value in (corruption | {"label": 1}).items():
        corrupted.loc[test, column] = pd.Series(value, index=corrupted.index[test], dtype=object)
    assert not corrupted[test].equals(table[test].astype(object))
    first, second = (TablePreprocessor(VARIABLES).fit(t[~test], t["label"][~test]) for t in (table, corrupted))
    assert first.to_json() == second.to_json()
    # and the comparison can fail: one corrupted training row changes the fitted numbers
    assert first.to_json() != TablePreprocessor(VARIABLES).fit(table.assign(age=table["age"].mask(table.index == 0, 1e9))[~test]).to_json()


def test_rows_are_transformed_one_by_one():
    table = make_table(40, seed=5)
    fitted = TablePreprocessor(VARIABLES).fit(table[:30])
    np.testing.assert_array_equal(fitted.transform(table), np.vstack([fitted.transform(table[i:i + 1]) for i in range(40)]))
    assert fitted.transform(table[:0]).shape == (0, len(fitted.feature_names))


def test_names_and_columns_of_variables():
    table = make_table(30, seed=1)
    fitted = TablePreprocessor(VARIABLES).fit(table)
    assert fitted.feature_names == [
        "age", "age (missing)", "shape=irregular", "shape=oval", "shape=round", "shape (missing)", "size", "size (missing)",
        "stage=I", "stage=II", "stage=III", "stage=IV", "stage (missing)",
        "signs=lump", "signs=redness", "signs=retraction", "signs=warmth", "signs (missing)"]
    assert fitted.columns_of == {"age": [0, 1], "shape": [2, 3, 4, 5], "size": [6, 7], "stage": [8, 9, 10, 11, 12],
                                 "signs": [13, 14, 15, 16, 17]}
    complete = TablePreprocessor(VARIABLES).fit(make_table(30, seed=1, missing=0))
    assert not any("missing" in name for name in complete.feature_names)


def test_is_a_scikit_learn_transformer():
    table = make_table(80, seed=2)
    label = (table["age"].fillna(55) > 55).astype(int)
    model = make_pipeline(TablePreprocessor(VARIABLES), LogisticRegression(max_iter=1000))
    assert clone(model).fit(table, label).score(table, label) > 0.9
    frame = TablePreprocessor(VARIABLES).set_output(transform="pandas").fit_transform(table)
    assert list(frame.columns) == TablePreprocessor(VARIABLES).fit(table).get_feature_names_out().tolist()


def one(kind, values, levels=()):
    return (Variable("x", kind, levels),), pd.DataFrame({"x": pd.Series(values, dtype=object)})


def test_constant_and_unseen():
    for value in (0.1, 0, 1e9):
        variables, table = one("continuous", [value] * 7)
        assert np.abs(TablePreprocessor(variables).fit(table.astype(float)).transform(table.astype(float))).max() < 1e-6
    variables, table = one("categorical", ["a", "b", "a"])
    assert TablePreprocessor(variables).fit(table).transform(pd.DataFrame({"x": ["c", "b", None]})).tolist() == [[0, 0], [0, 1], [1, 0]]
    variables, table = one("multi", [("a", "b"), ()])
    assert TablePreprocessor(variables).fit(table).transform(pd.DataFrame({"x": [("c", "b"), None]})).tolist() == [[0, 1], [0, 0]]


def test_a_category_is_the_same_as_number_and_as_text():
    variables, table = one("categorical", [1, 2, 2])
    fitted = TablePreprocessor(variables).fit(table)
    for values in ([1, 2], [1.0, 2.0], np.array([1, 2], dtype="float32"), ["1", "2"], pd.Categorical([1, 2])):
        assert fitted.transform(pd.DataFrame({"x": values})).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("kind, levels", [("continuous", ()), ("categorical", ()), ("ordinal", ("a", "b")), ("multi", ())])
def test_all_missing_in_train(kind, levels):
    variables, table = one(kind, [None, np.nan, None], levels)
    with pytest.raises(DataError, match="a value of 'x' in the rows to fit on.*3 rows, all of them missing.*Leave this variable out"):
        TablePreprocessor(variables).fit(table)


@pytest.mark.parametrize("values, found", [
    (["1.0", "2.0"], "'1.0'"), ([1.0, "n/a"], "'n/a'"), ([1.0, np.inf], "inf"), ([1.0, 1e60], "1e+60"), ([1.0, 10**60], "000"), (list(pd.to_datetime(["2020-01-01"] * 2)), "2020-01-01")])
def test_a_number_column_that_is_no_longer_one(values, found):
    variables, table = one("continuous", [1.0, 2.0])
    fitted, wrong = TablePreprocessor(variables).fit(table), pd.DataFrame({"x": values})
    for call in (fitted.transform, fitted.fit):
        with pytest.raises(DataError, match="finite numbers in the continuous variable 'x'") as error:
            call(wrong)
        assert found in error.value.got and "row" in error.value.got


def test_a_number_too_large_for_single_precision_after_scaling():
    variables, table = one("continuous", [1e-9, 2e-9])
    fitted = TablePreprocessor(variables).fit(table)
    with pytest.raises(DataError, match="variable 'x', of a size.*1e.35. in row 1"): fitted.transform(pd.DataFrame({"x": [1e-9, 1e35]}))


def test_a_multi_column_that_is_no_longer_one():
    variables, table = one("multi", [("a", "b"), ("a",)])
    with pytest.raises(DataError, match="a tuple of categories.*'a&b'.*Split the cells"):
        TablePreprocessor(variables).fit(table).transform(pd.DataFrame({"x": ["a&b", "a"]}))


def test_an_undeclared_level():
    variables, table = one("ordinal", ["low", "high"], ("low", "high"))
    fitted = TablePreprocessor(variables).fit(table)
    for call in (fitted.transform, fitted.fit):
        with pytest.raises(DataError, match="known level of 'x'.*'hihg'.*Did you mean 'high'"):
            call(pd.DataFrame({"x": ["low", "hihg"]}))


def test_missing_column_unfitted_and_badly_declared():
    table = make_table(10, seed=0)
    for call in (TablePreprocessor(VARIABLES).fit, TablePreprocessor(VARIABLES).fit(table).transform):
        with pytest.raises(DataError, match="the column 'stage'.*Did you mean 'stages'"):
            call(table.rename(columns={"stage": "stages"}))
    for use in (lambda p: p.transform(table), lambda p: p.feature_names, lambda p: p.columns_of, lambda p: p.to_json()):
        with pytest.raises(NotFittedError, match="not fitted yet. Call 'fit'"):
            use(TablePreprocessor(VARIABLES))
    for variables in ((), VARIABLES + VARIABLES[:1]):
        with pytest.raises(DataError, match="at least one variable, and none of them twice"):
            TablePreprocessor(variables).fit(table)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"variable": {"name": "x", "kind": "continuous", "levels": []}}]', "{}x"])
def test_json_that_is_not_ours(text):
    with pytest.raises(DataError, match="the text that to_json wrote"):
        TablePreprocessor.from_json(text)


def test_json_is_plain():
    fitted = TablePreprocessor(VARIABLES).fit(make_table(20, seed=4))
    assert [entry["variable"]["name"] for entry in json.loads(fitted.to_json())] == [v.name for v in VARIABLES]


@pytest.mark.parametrize("features, low, high", [("clinical", 0.75, 0.85), ("descriptors", 0.87, 0.94)])
def test_real_variables_carry_what_a_logistic_regression_is_known_to_find(data_dir, features, low, high):
    cohort = read_breast_lesions(data_dir / "breast_lesions_usg", features=features)
    table, score = cohort.table, np.zeros(len(cohort))
    for _, fold in kfold(table, seed=1).groupby("fold"):
        test = (fold["split"] == "test").to_numpy()
        model = make_pipeline(TablePreprocessor(cohort.variables), LogisticRegression(C=0.3, max_iter=2000))
        score[test] = model.fit(table[~test], table["label"][~test]).predict_proba(table[test])[:, 1]
    assert low < roc_auc_score(table["label"], score) < high
