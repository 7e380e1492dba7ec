"""Preprocessing of genes: against scikit-learn, nothing learned from test rows, missing RNA, JSON, outliers, and the errors."""
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from fusion_nb.data.omics import read_tcga_brca
from fusion_nb.expression import ExpressionPreprocessor, TableAndExpression, expression_outliers, make_preprocessor, outlier_table
from fusion_nb.preprocess import TablePreprocessor
from fusion_nb.schema import DataError, Variable

LIGHT = settings(max_examples=25, deadline=None, derandomize=True)  # the same tables every time
GENES = tuple(Variable(f"gene{i}", "expression") for i in range(30))
NAMES = [v.name for v in GENES]
CLINICAL = (Variable("age", "continuous"), Variable("grade", "categorical"))


def make_table(n, seed, missing=.1, counts=True, dtype=np.float64):
    """Counts (or their logarithms) of 30 genes, of which gene0 is constant; row 0 is complete, the last row has no RNA at all."""
    rng = np.random.default_rng(seed)
    X = rng.lognormal(rng.uniform(2, 7, 30), 1, (n, 30))
    X[:, 0] = 7
    X = X if counts else np.log2(X + 1)
    X[1:][rng.random((n - 1, 30)) < missing] = np.nan
    X[-1] = np.nan
    table = pd.DataFrame(X, columns=NAMES).astype(dtype)
    return table.assign(age=rng.normal(60, 9, n), grade=rng.choice(["1", "2"], n), case_id=[f"P{i}" for i in range(n)])


@LIGHT
@given(seed=st.integers(0, 10**6), n=st.integers(6, 60), counts=st.booleans())
def test_equal_to_scikit_learn(seed, n, counts):
    table = make_table(n, seed, counts=counts)
    train = table[:n // 2]
    got = ExpressionPreprocessor(GENES).fit(train)
    logarithm = FunctionTransformer(lambda X: np.log2(X + 1)) if counts else FunctionTransformer()
    peer = make_pipeline(logarithm, SimpleImputer(strategy="median"), VarianceThreshold(), StandardScaler()).fit(train[NAMES])
    has_rna = table[got.columns_].notna().any(axis=1)
    assert got.log_ == counts and "gene0" in got.dropped_
    assert np.allclose(got.transform(table)[has_rna], peer.transform(table[NAMES])[has_rna], atol=1e-5)


@LIGHT
@given(seed=st.integers(0, 10**6), rows=st.integers(0, 40))
def test_only_a_row_without_any_rna_is_nan(seed, rows):
    table = make_table(45, seed, missing=.5)
    table.loc[rows:rows + 2, NAMES] = np.nan
    preprocessor = ExpressionPreprocessor(GENES).fit(table)
    nan, empty = np.isnan(preprocessor.transform(table)), table[preprocessor.columns_].isna().all(axis=1)
    assert (nan.all(axis=1) == empty).all() and (nan.any(axis=1) == empty).all() and empty.sum() >= 4


@pytest.mark.parametrize("options", [{}, {"n_genes": 8}, {"n_genes": 8, "select": "mad"}, {"select": "list", "genes": ("gene3", "gene0", "gene9")}, {"clip": 2, "log": True}])
def test_nothing_is_learned_from_test_rows(options):
    table = make_table(60, 0)
    train = np.arange(60) < 40
    corrupted = table.copy()
    corrupted.loc[~train, NAMES] = 1e6 * np.random.default_rng(1).random((20, 30))
    fitted = [make_preprocessor((*CLINICAL, *GENES), {"expression": options}).fit(t[train]) for t in (table, corrupted)]
    assert fitted[0].to_json() == fitted[1].to_json()
    assert np.array_equal(fitted[0].transform(table)[train], fitted[1].transform(corrupted)[train], equal_nan=True)
    outliers = [expression_outliers(t, variables=GENES, train=train, options=options) for t in (table, corrupted)]
    pd.testing.assert_frame_equal(outliers[0][train], outliers[1][train])
    assert outliers[1].loc[~train, "distance"].min() >= outliers[0].loc[~train, "distance"].min()


def test_the_genes_that_vary_most_in_train_are_kept_in_the_tables_order():
    table = pd.DataFrame({f"gene{i}": np.arange(10.) * scale for i, scale in enumerate([1, 5, 0, 3, 5, 2])})
    genes = GENES[:6]
    def kept(**options): return ExpressionPreprocessor(genes, log=False, **options).fit(table).columns_
    assert kept(n_genes=3) == ["gene1", "gene3", "gene4"] and kept(n_genes=1) == ["gene1"]  # of equals the first
    assert kept(n_genes=99) == kept() == ["gene0", "gene1", "gene3", "gene4", "gene5"]
    assert kept(select="list", genes=("gene5", "gene0", "gene3"), n_genes=2) == ["gene3", "gene5"]
    table.loc[9, "gene0"] = 1e4  # one patient
    assert kept(n_genes=1) == ["gene0"] and kept(n_genes=1, select="mad") == ["gene1"]


def test_constant_and_empty_genes_are_counted():
    table = make_table(20, 0)
    table["gene5"] = np.nan
    preprocessor = ExpressionPreprocessor(GENES).fit(table)
    assert preprocessor.dropped_ == {"gene0": "constant", "gene5": "empty"} and len(preprocessor.columns_) == 28
    assert preprocessor.notes_ == ("1 of 30 genes are constant in the training rows and were left out, the first gene0.",
                                   "1 of 30 genes are empty in the training rows and were left out, the first gene5.")
    assert not {"gene0", "gene5"} & set(preprocessor.columns_of) and preprocessor.columns_of["gene6"] == [4]


def test_a_constant_gene_that_varies_in_test_is_still_left_out():
    table = make_table(20, 0)
    preprocessor = ExpressionPreprocessor(GENES).fit(table)
    other = table.assign(gene0=np.arange(20.))
    assert np.array_equal(preprocessor.transform(table), preprocessor.transform(other), equal_nan=True)


@pytest.mark.parametrize("scale, log, wanted", [(1, "auto", True), (1e-3, "auto", False), (1, False, False), (1e-3, True, True)])
def test_when_the_logarithm_is_taken(scale, log, wanted):
    table = make_table(20, 0, missing=0)
    table[NAMES] *= scale
    assert ExpressionPreprocessor(GENES, log=log).fit(table).log_ is wanted


def test_negative_values_and_the_logarithm():
    table = make_table(20, 0)
    z = table.assign(gene4=-1.5)
    assert ExpressionPreprocessor(GENES).fit(z).log_ is False
    with pytest.raises(DataError, match="values from 0 up, for the logarithm. Got -1.5 of gene 'gene4' in row 0, 20 such values.*log=False"):
        ExpressionPreprocessor(GENES, log=True).fit(z)
    with pytest.raises(DataError, match="values from 0 up, for the logarithm"):  # counts in train, z-scores in test
        ExpressionPreprocessor(GENES[5:]).fit(table).transform(table.assign(gene7=-1))


def test_a_limit_of_the_z_scores():
    table = make_table(40, 0)
    free, limited = (ExpressionPreprocessor(GENES, clip=clip).fit(table).transform(table) for clip in (None, 1.5))
    assert np.nanmax(np.abs(free)) > 1.5 and np.array_equal(np.clip(free, -1.5, 1.5), limited, equal_nan=True)


@pytest.mark.parametrize("options", [{}, {"log": False, "n_genes": np.int64(5), "select": "mad", "clip": np.float32(3)}, {"select": "list", "genes": ("gene1", "gene2")}])
def test_json_brings_everything_back(options):
    table = make_table(30, 0, dtype=np.float32)
    preprocessor = ExpressionPreprocessor(GENES, **options).fit(table)
    text = preprocessor.to_json()
    again = ExpressionPreprocessor.from_json(text)
    assert again.to_json() == text and again.columns_of == preprocessor.columns_of and again.notes_ == preprocessor.notes_
    assert np.array_equal(again.transform(table), preprocessor.transform(table), equal_nan=True)
    assert again.get_params()["genes"] == tuple(options.get("genes", ()))


@pytest.mark.parametrize("text", [
    "", "{}", "[1]", json.dumps({"settings": {}, "fitted": {}}),
    json.dumps({"settings": {"variables": ["a"], "genes": [], "size": 3}, "fitted": {}})])
def test_other_text_is_no_preprocessor(text):
    for kind in (ExpressionPreprocessor, TableAndExpression):
        with pytest.raises(DataError, match="the text that to_json wrote.*Fit again"):
            kind.from_json(text)


def test_it_is_a_scikit_learn_transformer():
    table = make_table(60, 0, missing=0)[:-1]
    label = (table["gene1"] > table["gene1"].median()).astype(int)
    model = make_pipeline(clone(ExpressionPreprocessor(GENES, n_genes=20)), LogisticRegression()).fit(table, label)
    assert model.score(table, label) > .8 and len(model[0].get_feature_names_out()) == 20
    for ask in ("columns_", "to_json", "transform", "columns_of"):
        with pytest.raises((NotFittedError, TypeError)):
            getattr(ExpressionPreprocessor(GENES), ask)(table)


def test_values_as_measured_for_trees():
    table = make_table(30, 0, dtype=np.float32)
    preprocessor = ExpressionPreprocessor(GENES, n_genes=6).fit(table)
    assert np.array_equal(preprocessor.with_gaps(table), table[preprocessor.columns_], equal_nan=True)
    both = make_preprocessor((*CLINICAL, *GENES)).fit(table)
    assert both.with_gaps(table).shape == both.transform(table).shape == (30, len(both.feature_names))


def test_both_kinds_side_by_side():
    table = make_table(40, 0)
    variables = (GENES[0], CLINICAL[0], *GENES[1:], CLINICAL[1])  # in any order
    both = make_preprocessor(variables, {"indicators": (), "expression": {"n_genes": 5}}).fit(table[:30])
    alone = TablePreprocessor(CLINICAL, indicators=()).fit(table[:30]), ExpressionPreprocessor(GENES, n_genes=5).fit(table[:30])
    expected = np.hstack([part.transform(table) for part in alone])
    assert np.isnan(expected[39, 3:]).all() and not np.isnan(expected[39, :3]).any()
    expected[39] = np.nan  # without RNA there is no row
    assert np.array_equal(both.transform(table), expected, equal_nan=True) and not np.isnan(both.with_gaps(table)[39, 0])
    assert list(both.columns_of) == ["age", "grade", *alone[1].columns_] and sorted(sum(both.columns_of.values(), [])) == list(range(8))
    again = TableAndExpression.from_json(both.to_json())
    assert again.to_json() == both.to_json() and np.array_equal(again.transform(table), both.transform(table), equal_nan=True)


def test_the_preprocessor_that_the_variables_need():
    assert make_preprocessor(CLINICAL, {"max_missing": .5}).get_params()["max_missing"] == .5
    assert make_preprocessor(GENES, {"expression": {"clip": 3}}).clip == 3
    with pytest.raises(DataError, match="n_genes for genes, of which there are none"):
        make_preprocessor(CLINICAL, {"expression": {"n_genes": 5}})
    with pytest.raises(DataError, match="max_missing for clinical variables, of which there are none"):
        make_preprocessor(GENES, {"max_missing": .5})


@pytest.mark.parametrize("options, message", [
    ({"select": "varience"}, "known way to select genes.*Did you mean 'variance'"), ({"select": "list"}, "genes with select='list', and only then"),
    ({"genes": ("gene1",)}, "genes with select='list', and only then"),
    ({"select": "list", "genes": ("gen1",)}, "the gene 'gen1' in the variables.*1 of 1 genes are not there. Did you mean 'gene1'"),
    ({"n_genes": 0}, "positive number of genes"), ({"n_genes": 2.5}, "positive number of genes"), ({"clip": 0}, "positive limit"), ({"log": "log2"}, "known way with logarithms")])
def test_settings_that_cannot_be_meant(options, message):
    with pytest.raises(DataError, match=message):
        ExpressionPreprocessor(GENES, **options).fit(make_table(20, 0))


@pytest.mark.parametrize("change, message", [
    (lambda t: t.drop(columns=["gene3", "gene4"]), "the gene 'gene3' in the table of expression.*2 of 30 genes are not there"),
    (lambda t: t.assign(gene3="high"), "numbers for every gene. Got the column 'gene3' of object"),
    (lambda t: t.assign(gene3=np.inf), "finite values of expression. Got inf of gene 'gene3' in row 0"),
    (lambda t: t[-1:], "training rows with expression"), (lambda t: t[:1], "a gene that varies among the training rows")])
def test_tables_that_cannot_be_used(change, message):
    with pytest.raises(DataError, match=message):
        ExpressionPreprocessor(GENES).fit(change(make_table(20, 0)))


def test_other_kinds_of_variables_and_none():
    for variables, message in (((*CLINICAL, *GENES), "variables of kind 'expression'. Got 2 of another kind, the first 'age'"),
                               ((), "at least one gene"), ((*GENES, GENES[0]), "none of them twice")):
        with pytest.raises(DataError, match=message):
            ExpressionPreprocessor(variables).fit(make_table(20, 0))


def test_a_message_does_not_list_thousands_of_genes():
    wide = pd.DataFrame(np.random.default_rng(0).random((4, 3000)), columns=[f"ENSG{i:05d}" for i in range(3000)])
    with pytest.raises(DataError) as raised:
        ExpressionPreprocessor((Variable("TP53", "expression"),)).fit(wide)
    assert len(str(raised.value)) < 200 and "3000 other columns" in str(raised.value)


# ---- outliers

@pytest.fixture
def disturbed() -> pd.DataFrame:
    """Eighty patients of 200 genes in four modules; five of them with noise in every gene, the last without RNA."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(80, 4)), 50, axis=1) + rng.normal(size=(80, 200))
    X[:5] += rng.normal(0, 4, (5, 200))
    X[-1] = np.nan
    return pd.DataFrame(X, columns=[f"g{i}" for i in range(200)]).assign(case_id=[f"P{i}" for i in range(80)])


@pytest.mark.parametrize("method", ["mean_z", "pca"])
def test_disturbed_patients_are_found(disturbed, method):
    found = expression_outliers(disturbed, method=method)
    assert list(found.columns) == ["patient", "distance", "threshold", "outlier"] and found["patient"].tolist() == disturbed["case_id"].tolist()
    assert found["outlier"][:5].all() and found["outlier"][5:].mean() < .1 and np.isnan(found["distance"].iloc[-1]) and not found["outlier"].iloc[-1]
    clean = expression_outliers(disturbed, method=method, train=np.arange(80) >= 5)["outlier"][:5]
    assert clean.all() if method == "mean_z" else not clean.all()  # components fitted without outliers need not point at them


def test_distances_by_hand(disturbed):
    X = disturbed.drop(columns="case_id").to_numpy()[:-1]
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    distance = np.abs(Z).mean(axis=1)
    found = expression_outliers(disturbed, cutoff=2)[:-1]
    assert np.allclose(found["distance"], distance, atol=1e-6)
    assert np.allclose(found["threshold"], np.median(distance) + 2 * 1.4826 * np.median(np.abs(distance - np.median(distance))), atol=1e-6)
    scores = PCA(6, svd_solver="full").fit_transform(Z)
    scaled = (scores - np.median(scores, axis=0)) / (1.4826 * np.median(np.abs(scores - np.median(scores, axis=0)), axis=0))
    assert np.allclose(expression_outliers(disturbed, method="pca", n_components=6)["distance"][:-1], np.linalg.norm(scaled, axis=1), rtol=1e-4)


def test_one_extreme_gene_does_not_make_an_outlier(disturbed):
    disturbed.loc[40, "g7"] = 1e4
    assert not expression_outliers(disturbed)["outlier"][40]


def test_before_and_after(disturbed):
    table = outlier_table(disturbed, cutoff=5)
    assert table.index.tolist() == ["before", "after"] and table["patients"].tolist() == [79, 74] and table["outliers"].tolist() == [5, 0]
    after = disturbed[5:].drop(columns="case_id")
    assert table.loc["after", "largest distance"] == pytest.approx(expression_outliers(after)["distance"].max())
    X = after.to_numpy()[:-1]
    share = PCA(1, svd_solver="full").fit((X - X.mean(axis=0)) / X.std(axis=0)).explained_variance_ratio_[0]
    assert table.loc["after", "first component"] == pytest.approx(share, rel=1e-5)
    assert table.loc["after", "largest |z|"] < table.loc["before", "largest |z|"]


def test_few_patients_and_few_genes(disturbed):
    small = disturbed.iloc[5:10, :3]
    for method in ("mean_z", "pca"):
        assert np.isfinite(expression_outliers(small, method=method)["distance"]).all()
    alike = pd.DataFrame({"a": [1.0, 1, 1, 1, 2], "b": [0.0, 0, 0, 0, 1]})  # spread around the median: none
    assert expression_outliers(alike, method="pca")["distance"].tolist() == [0] * 5 and expression_outliers(alike)["outlier"].tolist() == [False] * 4 + [True]


def test_what_outlier_detection_refuses(disturbed):
    with pytest.raises(DataError, match="known distance.*'pcs'.*Did you mean 'pca'"):
        expression_outliers(disturbed, method="pcs")
    for train in (np.arange(80), np.ones(79, bool)):
        with pytest.raises(DataError, match="a boolean per row of the table in `train`"):
            expression_outliers(disturbed, train=train)


def test_tcga_brca(data_dir):
    cohort = read_tcga_brca(data_dir / "tcga_brca_tabular")
    genes = ExpressionPreprocessor(cohort.variables, clip=10).fit(cohort.table)
    X = genes.transform(cohort.table)
    assert X.shape == (895, 1558) and not genes.log_ and genes.dropped_ == {} and np.abs(X).max() == 10 and not np.isnan(X).any()
    table = outlier_table(cohort.table, variables=cohort.variables)
    assert 0 < table.loc["before", "outliers"] < 30 and table.loc["after", "patients"] == 895 - table.loc["before", "outliers"]
