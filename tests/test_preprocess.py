"""Preprocessing: against scikit-learn, nothing learned from test rows, JSON, and the errors."""
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
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
LIGHTER = settings(LIGHT, max_examples=12)
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
    (["1.0", "2.0"], "'1.0'"), ([1.0, "n/a"], "'n/a'"), ([1.0, np.inf], "inf"), ([1.0, 1e60], "1e+60"), ([1.0, 10**60], "000"), (np.array([1, 2j]), "1+0j"), (list(pd.to_datetime(["2020-01-01"] * 2)), "2020-01-01")])
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


# ---- settings: the limit of missing values, strata, indicators; and the table with gaps

SETTINGS = {"max_missing": 0.5, "strata": {"age": (45, 60), "shape": ()}, "indicators": ("size",)}
OLD_JSON = '''[{"variable": {"name": "age", "kind": "continuous", "levels": []}, "missing": true,
  "block": {"fill": 60.0, "mean": 60.0, "scale": 14.142135623730951}},
 {"variable": {"name": "stage", "kind": "ordinal", "levels": ["I", "II"]}, "missing": false, "block": {"levels": ["I", "II"], "fill": ["II"]}}]'''


def test_json_from_before_there_were_settings():
    table = pd.DataFrame({"age": [40, 60, np.nan, 80], "stage": ["I", "II", "II", "II"]})
    old = TablePreprocessor.from_json(OLD_JSON)
    assert old.feature_names == ["age", "age (missing)", "stage=I", "stage=II"] and old.dropped_ == {}
    new = TablePreprocessor(old.variables).fit(table)
    assert json.loads(new.to_json()) == json.loads(OLD_JSON)  # and plain tables are written as they were
    assert new.transform(table).tobytes() == old.transform(table).tobytes()


@LIGHTER
@given(n=st.integers(5, 80), seed=st.integers(0, 10**6))
def test_settings_that_ask_for_nothing_change_nothing(n, seed):
    table = make_table(n, seed)
    plain, told = (TablePreprocessor(VARIABLES, **s).fit(table) for s in ({}, {"max_missing": 1, "strata": {}, "indicators": "all"}))
    assert plain.transform(table).tobytes() == told.transform(table).tobytes() and plain.to_json() == told.to_json()


def imputed_by_pandas(train, table, column, cuts, level):
    """Medians of pandas' own groups, and the strata cut by pandas."""
    def stratum(t): return pd.cut(t["age"].astype(float), [-np.inf, *cuts, np.inf], right=False, labels=False).astype(object), t[level]
    medians = train[column].astype(float).groupby(list(stratum(train))).median()
    keys = pd.MultiIndex.from_arrays(stratum(table)) if len(table) else []
    found = [medians.get(k, np.nan) if not pd.isna(list(k)).any() else np.nan for k in keys]
    return table[column].astype(float).fillna(pd.Series(found, table.index)).fillna(train[column].astype(float).median())


@LIGHTER
@given(n=st.integers(6, 120), seed=st.integers(0, 10**6), missing=st.sampled_from([0.05, 0.4]))
def test_medians_of_strata_equal_those_of_pandas(n, seed, missing):
    table = make_table(n, seed, missing)
    train = table[: n // 2 + 1]
    fitted = TablePreprocessor(VARIABLES, strata={"age": (45, 60), "shape": ()}).fit(train)
    matrix = pd.DataFrame(fitted.transform(table), columns=fitted.feature_names)
    for column in ("age", "size"):
        seen, every = (imputed_by_pandas(train, t, column, (45, 60), "shape").to_numpy() for t in (train, table))
        scaler = StandardScaler().fit(seen[:, None])
        np.testing.assert_array_equal(matrix[column], scaler.transform(every[:, None])[:, 0].astype(np.float32))
    plain = TablePreprocessor(VARIABLES).fit(train)  # nothing else depends on strata
    rest = [name for name in plain.feature_names if name not in ("age", "size")]
    pd.testing.assert_frame_equal(matrix[rest], pd.DataFrame(plain.transform(table), columns=plain.feature_names)[rest])


def test_a_stratum_that_is_unknown_or_empty_takes_the_overall_median():
    variables = tuple(Variable(name, kind) for name, kind in (("age", "continuous"), ("sex", "categorical"), ("lab", "continuous")))
    train = pd.DataFrame({"age": [30, 35, 70, 75, 80, np.nan], "sex": ["F", "F", "F", "F", "M", "M"], "lab": [1, 3, 10, 20, np.nan, 100.0]})
    fitted = TablePreprocessor(variables, strata={"age": (50,), "sex": ()}).fit(train)
    gaps = pd.DataFrame({"age": [49.9, 50, 90, np.nan, 40, 40, 40], "sex": ["F", "F", "M", "F", None, "M", "X"], "lab": np.nan})
    found = fitted.transform(gaps)[:, fitted.columns_of["lab"][0]]
    unscaled = found * train["lab"].fillna(10).std(ddof=0) + train["lab"].fillna(10).mean()
    #  young women, old women, old men (no value in train), unknown age, unknown sex, no such people in train (twice)
    np.testing.assert_allclose(unscaled, [2, 15, 10, 10, 10, 10, 10], rtol=1e-6)


def test_strata_by_level_and_by_ordinal():
    variables = Variable("stage", "ordinal", ("I", "II")), Variable("lab", "continuous")
    train = pd.DataFrame({"stage": ["I", "I", "II"], "lab": [1.0, 3.0, 9.0]})
    for strata in (("stage",), ["stage"], {"stage": ()}):
        fitted = TablePreprocessor(variables, strata=strata).fit(train)
        assert fitted.fitted_[1].block.medians == {"stage=I": 2, "stage=II": 9}
    with pytest.raises(DataError, match="level of 'stage'"): fitted.transform(train.assign(stage="III"))


@pytest.mark.parametrize("gone, kept", [(8, True), (9, False), (10, False)])
def test_more_than_the_share_is_dropped(gone, kept):
    table = pd.DataFrame({"x": [np.nan] * gone + [1.0] * (10 - gone), "y": np.arange(10.0)})
    fitted = TablePreprocessor((Variable("x", "continuous"), Variable("y", "continuous")), max_missing=0.8).fit(table)
    assert fitted.feature_names == (["x", "x (missing)", "y"] if kept else ["y"])
    assert fitted.dropped_ == ({} if kept else {"x": gone / 10})
    assert fitted.columns_of == ({"x": [0, 1], "y": [2]} if kept else {"y": [0]})
    again = TablePreprocessor.from_json(fitted.to_json())
    assert again.dropped_ == fitted.dropped_ and again.variables == fitted.variables
    if not kept:  # nobody needs the column any more, and it may hold anything
        for other in (table.drop(columns="x"), table.assign(x="n/a")):
            for p in (fitted, again): np.testing.assert_array_equal(p.transform(other), fitted.transform(table))


@pytest.mark.parametrize("indicators, expected", [
    ("all", ["age (missing)", "shape (missing)", "size (missing)", "stage (missing)", "signs (missing)"]),
    ((), []), (("size",), ["size (missing)"]), (["signs", "age"], ["age (missing)", "signs (missing)"])])
def test_indicators(indicators, expected):
    table = make_table(60, seed=1)
    fitted = TablePreprocessor(VARIABLES, indicators=indicators).fit(table)
    assert [name for name in fitted.feature_names if "missing" in name] == expected
    plain = TablePreprocessor(VARIABLES).fit(table)
    chosen = [plain.feature_names.index(name) for name in fitted.feature_names]
    np.testing.assert_array_equal(fitted.transform(table), plain.transform(table)[:, chosen])
    complete = make_table(30, seed=1, missing=0)  # a column that is 0 in every training row would never be learned
    assert not any("missing" in name for name in TablePreprocessor(VARIABLES, indicators=indicators).fit(complete).feature_names)


@pytest.mark.parametrize("corruption", [
    {"age": 1e9, "size": -1e9, "shape": "a new shape", "stage": "IV", "signs": [("a new sign",)] * 20},
    {"age": np.nan, "size": np.nan, "shape": None, "stage": None, "signs": None}])
def test_settings_are_fitted_on_training_rows_alone(corruption):
    table, test = make_table(60, seed=3, missing=0.45), np.arange(60) >= 40
    corrupted = table.astype(object)
    for column, value in corruption.items():
        corrupted.loc[test, column] = pd.Series(value, index=corrupted.index[test], dtype=object)
    assert not corrupted[test].equals(table[test].astype(object))
    first, second = (TablePreprocessor(VARIABLES, **SETTINGS).fit(t[~test]) for t in (table, corrupted))
    assert first.to_json() == second.to_json() and first.dropped_ == second.dropped_ != {}
    for change in ({"size": 1e6}, {"age": 46.5}, {"stage": np.nan, "size": np.nan}):  # and the comparison can fail
        other = table.astype(object).assign(**{c: table[c].astype(object).mask(np.arange(60) < 20, v) for c, v in change.items()})
        assert first.to_json() != TablePreprocessor(VARIABLES, **SETTINGS).fit(other[~test]).to_json()


@LIGHTER
@given(n=st.integers(8, 60), seed=st.integers(0, 10**6))
def test_settings_come_back_from_json(n, seed):
    table = make_table(n, seed, 0.3)
    first = TablePreprocessor(VARIABLES, **SETTINGS | {"max_missing": 0.9}).fit(table[: n // 2 + 1])
    second = TablePreprocessor.from_json(first.to_json())
    assert second.to_json() == first.to_json() and second.get_params() == first.get_params()
    assert second.transform(table).tobytes() == first.transform(table).tobytes()
    assert second.with_gaps(table).tobytes() == first.with_gaps(table).tobytes()
    assert second.feature_names == first.feature_names and second.columns_of == first.columns_of
    assert clone(first).fit(table[: n // 2 + 1]).to_json() == first.to_json()


@pytest.mark.parametrize("text", ["{}", '{"fitted": []}', "7", '"fitted"', "null"])
def test_json_of_settings_that_is_not_ours(text):
    with pytest.raises(DataError, match="the text that to_json wrote"): TablePreprocessor.from_json(text)


@pytest.mark.parametrize("wrong, message", [
    ({"max_missing": 80}, "a share from 0 to 1 for max_missing.*Got 80.*0.8"), ({"max_missing": "0.8"}, "a share from 0 to 1"),
    ({"max_missing": -0.1}, "a share from 0 to 1"), ({"max_missing": np.nan}, "a share from 0 to 1"),
    ({"strata": "age"}, r"tuple of names of variables in strata.*\('age',\)"), ({"strata": 3}, "tuple of names of variables in strata"),
    ({"strata": ("Shape",)}, "variable in strata.*Did you mean 'shape'"), ({"strata": ("age",)}, r"bands of 'age' begin in strata.*Got \(\)"),
    ({"strata": {"age": (60, 40)}}, "rising numbers"), ({"strata": {"age": (40, 40)}}, "rising numbers"),
    ({"strata": {"age": (40, np.inf)}}, "rising numbers"), ({"strata": {"age": ("40", "60")}}, "rising numbers"),
    ({"strata": {"shape": (1,)}}, "no bands for the categorical variable 'shape'"), ({"strata": ("signs",)}, "one value per row.*multi"),
    ({"indicators": "size"}, "tuple of names of variables in indicators"), ({"indicators": ("siz",)}, "indicators.*Did you mean 'size'"),
    ({"max_missing": 0.0}, "at most 0% of the training rows missing.*5 variables with more.*Raise max_missing")])
def test_settings_that_cannot_be_meant(wrong, message):
    with pytest.raises(DataError, match=message): TablePreprocessor(VARIABLES, **wrong).fit(make_table(60, seed=0))


def test_a_column_that_makes_strata_is_needed_even_where_it_was_dropped():
    variables = Variable("age", "continuous"), Variable("lab", "continuous")
    table = pd.DataFrame({"age": [30, 70, np.nan, np.nan, np.nan], "lab": [1.0, 2.0, 3.0, np.nan, 5.0]})
    fitted = TablePreprocessor(variables, max_missing=0.5, strata={"age": (50,)}).fit(table)
    assert fitted.dropped_ == {"age": 0.6} and fitted.fitted_[0].block.medians == {"age below 50": 1, "age from 50": 2}
    with pytest.raises(DataError, match="the column 'age'"): fitted.transform(table.drop(columns="age"))
    assert fitted.with_gaps(table.drop(columns="age")).shape == (5, 2)  # nothing is imputed there


@LIGHTER
@given(n=st.integers(5, 40), seed=st.integers(0, 10**6))
def test_the_table_with_gaps(n, seed):
    table = make_table(n, seed)
    fitted = TablePreprocessor(VARIABLES).fit(table[: n // 2 + 1])
    gaps, full, names = fitted.with_gaps(table), fitted.transform(table), fitted.feature_names
    assert gaps.dtype == np.float32 and gaps.shape == full.shape
    for variable in VARIABLES:
        columns, missing = fitted.columns_of[variable.name], table[variable.name].isna().to_numpy()
        values = [c for c in columns if not names[c].endswith("(missing)")]
        assert np.isnan(gaps[missing][:, values]).all() and not np.isnan(gaps[~missing]).all(0)[values].any()
        if variable.kind == "continuous":
            np.testing.assert_array_equal(gaps[:, values[0]], table[variable.name].to_numpy(np.float32))
        else: np.testing.assert_array_equal(gaps[~missing][:, values], full[~missing][:, values])
        others = [c for c in columns if c not in values]
        np.testing.assert_array_equal(gaps[:, others], full[:, others])
    np.testing.assert_array_equal(gaps, np.vstack([fitted.with_gaps(table[i:i + 1]) for i in range(n)]))


def test_the_table_with_gaps_feeds_trees_and_is_refused_as_transform_is():
    table = make_table(80, seed=2)
    label = (table["age"].fillna(55) > 55).astype(int)
    fitted = TablePreprocessor(VARIABLES, **SETTINGS).fit(table)
    assert HistGradientBoostingClassifier(min_samples_leaf=5).fit(fitted.with_gaps(table), label).score(fitted.with_gaps(table), label) > 0.9
    assert fitted.with_gaps(table[:0]).shape == (0, len(fitted.feature_names))
    with pytest.raises(DataError, match="the column 'stage'.*Did you mean 'stages'"): fitted.with_gaps(table.rename(columns={"stage": "stages"}))
    with pytest.raises(DataError, match="finite numbers in the continuous variable 'age'"): fitted.with_gaps(table.assign(age=np.inf))
    with pytest.raises(NotFittedError): TablePreprocessor(VARIABLES).with_gaps(table)


@pytest.mark.parametrize("features, low, high", [("clinical", 0.75, 0.85), ("descriptors", 0.87, 0.94)])
def test_real_variables_carry_what_a_logistic_regression_is_known_to_find(data_dir, features, low, high):
    cohort = read_breast_lesions(data_dir / "breast_lesions_usg", features=features)
    table, score = cohort.table, np.zeros(len(cohort))
    for _, fold in kfold(table, seed=1).groupby("fold"):
        test = (fold["split"] == "test").to_numpy()
        model = make_pipeline(TablePreprocessor(cohort.variables), LogisticRegression(C=0.3, max_iter=2000))
        score[test] = model.fit(table[~test], table["label"][~test]).predict_proba(table[test])[:, 1]
    assert low < roc_auc_score(table["label"], score) < high
