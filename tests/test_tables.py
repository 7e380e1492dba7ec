"""What the tables say: the numbers of pandas and of the paper, escaped, footnoted and marked when synthetic."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fusion_nb.compare import compare_models
from fusion_nb.predictions import Scores
from fusion_nb.resample import bootstrap_metrics, intervals
from fusion_nb.schema import Cohort, DataError, Variable
from fusion_nb.tables import (cohort_table, comparison_table, examples_of, interval_note, p_text, results_table, save_table, table_html)


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    n = 120
    table = pd.DataFrame({"case_id": [f"c{i}" for i in range(n)], "group": np.arange(n) // 3, "label": rng.integers(0, 2, n), "image": "x.png",
                          "age": np.where(rng.random(n) < 0.2, np.nan, rng.normal(50, 10, n)), "side": rng.choice(["left", "right", None], n),
                          "density": rng.choice(["A", "B"], n), "signs": [[("lump",), ("lump", "pain"), None][i % 3] for i in range(n)]})
    variables = (Variable("age", "continuous"), Variable("side", "categorical"), Variable("density", "ordinal", ("A", "B", "C")), Variable("signs", "multi"))
    return Cohort("toy", table, variables, ("benign", "malignant"), "Made up.")


@pytest.fixture(scope="module")
def holdout(cohort):
    part = np.where(cohort.table["group"] < 24, "train", np.where(cohort.table["group"] < 28, "val", "test"))
    return pd.DataFrame({"case_id": cohort.table["case_id"], "fold": 0, "split": part}).sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def resamples():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [60, 40])
    cases = pd.DataFrame({"case_id": np.arange(100), "group": np.arange(100) // 2, "fold": 0, "label": label})
    scores = Scores(cases, ("image_only", "learned_concat"), 1 / (1 + np.exp(-rng.normal(size=(100, 2)) - np.outer(label, [1, 2]))))
    return bootstrap_metrics(scores, ["auc", "specificity_at_95_sensitivity"], n=100)


def read(text):  # "12 (4.8%)" -> 12
    return int(text.split()[0].replace(",", ""))


def test_parts_are_counted_as_pandas_counts_them(cohort, holdout):
    shown = cohort_table(cohort, holdout).set_index(["Characteristic", "Value"])
    assert list(shown) == ["Training", "Validation", "Test", "Total"]
    train = cohort.table[cohort.table["group"] < 24]
    assert shown.loc[("Cases", ""), "Training"] == "72" and shown.loc[("Patients", ""), "Training"] == "24"
    assert shown.loc[("Age", "mean ± sd"), "Training"] == f"{train['age'].mean():.1f} ± {train['age'].std(ddof=1):.1f}"
    left = int((train["side"] == "left").sum())
    assert shown.loc[("Side", "left"), "Training"] == f"{left} ({100 * left / 72:.1f}%)"
    assert shown.loc[("Signs", "lump"), "Training"] == "48 (66.7%)" and shown.loc[("Signs", "pain"), "Training"] == "24 (33.3%)"
    assert shown.loc[("Signs", "missing"), "Training"] == "24 (33.3%)"
    assert read(shown.loc[("Target", "malignant"), "Total"]) == cohort.table["label"].sum()


def test_of_several_classes_each_is_counted(cohort, holdout):
    three = replace(cohort, table=cohort.table.assign(label=np.arange(len(cohort)) % 3), classes=("a", "b", "c"))
    targets = cohort_table(three, holdout).query("Characteristic == 'Target'")
    assert targets["Value"].tolist() == ["a", "b", "c"] and targets["Total"].map(read).sum() == len(cohort)


def test_values_and_missing_ones_add_up(cohort, holdout):
    shown = cohort_table(cohort, holdout)
    counted = shown[shown["Characteristic"] == "Side"]
    for part in ("Training", "Validation", "Test", "Total"):
        assert counted[part].map(read).sum() == read(shown.loc[0, part])
    parts = shown.loc[shown["Value"].ne("mean ± sd") & shown["Value"].ne(""), ["Training", "Validation", "Test"]]
    assert (parts.map(read).sum(axis=1) == shown.loc[parts.index, "Total"].map(read)).all()


def test_ordinal_levels_keep_their_order_and_the_empty_ones(cohort):
    shown = cohort_table(cohort)
    assert shown.loc[shown["Characteristic"] == "Density", "Value"].tolist() == ["A", "B", "C"]
    assert shown.loc[shown["Value"] == "C", "Total"].item() == "0 (0.0%)"


def test_folds_are_shown_by_class(cohort, holdout):
    folds = pd.concat([holdout.assign(fold=f) for f in range(2)])
    shown = cohort_table(cohort, folds)
    assert list(shown) == ["Characteristic", "Value", "Benign", "Malignant", "Total"] and "Target" not in set(shown["Characteristic"])
    assert read(shown.loc[0, "Benign"]) + read(shown.loc[0, "Malignant"]) == 120
    pd.testing.assert_frame_equal(shown, cohort_table(cohort))


def test_a_part_without_values_has_no_mean(cohort, holdout):
    empty = cohort.table.assign(age=np.nan)
    shown = cohort_table(Cohort("no ages", empty, cohort.variables[:1], cohort.classes, ""), holdout).set_index("Value")
    assert shown.loc["mean ± sd", "Total"] == "–" and shown.loc["missing", "Total"] == "120 (100.0%)"


def test_results_repeat_the_intervals(resamples):
    table = intervals(resamples)
    shown = results_table(table)
    assert list(shown) == ["Model", "AUC", "Specificity at 95% sensitivity (%)", "Cases", "Patients"]
    for model, text in zip(("image_only", "learned_concat"), shown["AUC"]):
        row = table.query("model == @model and metric == 'auc'").iloc[0]
        assert text == f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    assert shown["Patients"].tolist() == ["50", "50"] and shown["Cases"].tolist() == ["100", "100"]
    assert "50 patients" in interval_note(table) and "100 stratified bootstrap resamples" in interval_note(table)


def test_seeds_have_mean_sd_and_number(resamples):
    seeds = pd.DataFrame({"model": ["image_only"] * 3 + ["learned_concat"], "metric": "auc", "estimate": [0.70, 0.72, 0.77, 0.9]})
    shown = results_table(intervals(resamples), by_seed=seeds)["AUC over seeds, mean ± sd"].tolist()
    assert shown == [f"{np.mean([0.70, 0.72, 0.77]):.3f} ± {np.std([0.70, 0.72, 0.77], ddof=1):.3f} (3)", "–"]


def test_undefined_values_and_unknown_patients_are_said(resamples):
    table = intervals(resamples).assign(n_groups=np.nan)
    table.loc[0, ["low", "high"]] = np.nan
    shown = results_table(table)
    assert shown.loc[0, "AUC"] == "not defined" and shown["Patients"].tolist() == ["unknown"] * 2
    assert "AUC was undefined in up to 7" in interval_note(table.assign(n_undefined=[7, 0, 0, 0]))


def test_comparison_repeats_the_differences(resamples):
    table = compare_models(resamples)
    shown, row = comparison_table(table).iloc[0], table.iloc[0]
    assert shown["A \N{MINUS SIGN} B [95% interval]"].replace("\N{MINUS SIGN}", "-") == f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    assert shown["P"] == p_text(row["p"]) and shown["Model A"] == "Image only"


@pytest.mark.parametrize("p, text", [(0.0, "<0.001"), (0.0009999, "<0.001"), (0.001, "0.001"), (0.0349, "0.035"), (1.0, "1.000"), (np.nan, "–")])
def test_p_values(p, text):
    assert p_text(p) == text


def made(label, score):
    n = len(label)
    ids = [f"c{i}" for i in range(n)]
    return Scores(pd.DataFrame({"case_id": ids, "group": ids, "fold": 0, "label": label}), ("m",), np.array(score, float)[:, None])


def test_examples_are_typical_and_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 101), rng.random(101)
    scores = made(label, score)
    chosen = examples_of(scores, "m").set_index("kind")
    for kind, mask in (("TP", (label == 1) & (score >= .5)), ("FP", (label == 0) & (score >= .5)), ("FN", (label == 1) & (score < .5)), ("TN", (label == 0) & (score < .5))):
        assert abs(chosen.loc[kind, "score"] - np.median(score[mask])) == np.abs(score[mask] - np.median(score[mask])).min()
        assert chosen.loc[kind, "n"] == mask.sum()
    back = np.arange(101)[::-1]
    turned = Scores(scores.cases.iloc[back].reset_index(drop=True), ("m",), scores.scores[back])
    pd.testing.assert_frame_equal(examples_of(turned, "m").set_index("kind"), chosen)


def test_examples_take_a_threshold_per_case_and_skip_what_is_not_there():
    scores = made([1, 0], [0.4, 0.6])
    assert examples_of(scores, "m")["kind"].tolist() == ["FP", "FN"]
    assert examples_of(scores, "m", threshold=np.array([0.3, 0.7]))["kind"].tolist() == ["TP", "TN"]
    assert examples_of(made([1, 0], [0.5, 0.1]), "m")["kind"].tolist() == ["TP", "TN"]  # at the threshold: called positive


def test_html_is_escaped_marked_and_needs_no_network():
    table = pd.DataFrame({"<b>Name": ["<script>alert(1)</script>", "x"], "n": ["1", "2"]})
    html = table_html(table, caption="A <i>", footnote="f & g", synthetic=True)
    assert "<script" not in html and "<i>" not in html and "<b>" not in html and "f &amp; g" in html
    assert "synthetic data" in html and "synthetic data" not in table_html(table, caption="A")
    assert "http" not in html and "url(" not in html
    assert html._repr_html_() == html


def test_saved_three_times_alike(tmp_path, resamples):
    table = results_table(intervals(resamples))
    paths = save_table(table, tmp_path / "deep" / "er", "results", caption="Results", footnote="note", synthetic=True)
    assert [p.name for p in paths] == ["results.parquet", "results.csv", "results.html"]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == ["results.csv", "results.html", "results.parquet"]
    parquet, csv = pd.read_parquet(paths[0]), pd.read_csv(paths[1], dtype=str)
    assert parquet.pop("synthetic data").all() and parquet.equals(table)
    assert csv.drop(columns="synthetic data").equals(table.astype(str))
    assert "synthetic data" in paths[2].read_text(encoding="utf-8")
    assert "synthetic data" not in pd.read_parquet(save_table(table, tmp_path, "real", caption="Results")[0])


def test_bad_input_is_refused(cohort, holdout, resamples, tmp_path):
    table, comparison = intervals(resamples), compare_models(resamples)
    for make, says in ((lambda: cohort_table(cohort, holdout.iloc[1:]), "splits of the same cases"),
                       (lambda: cohort_table(cohort, holdout.assign(split="training")), "Did you mean 'train'"),
                       (lambda: cohort_table(cohort, holdout.drop(columns="split")), "'split'"),
                       (lambda: cohort_table(cohort, holdout.drop(columns="fold")), "'fold'"),
                       (lambda: results_table(table.iloc[:0]), "at least one model"),
                       (lambda: results_table(table.drop(columns="low")), "'low'"),
                       (lambda: results_table(table.assign(metric="AUC")), "Did you mean 'auc'"),
                       (lambda: results_table(table, by_seed=table.drop(columns="estimate")), "'estimate'"),
                       (lambda: comparison_table(comparison.iloc[:0]), "at least one pair"),
                       (lambda: comparison_table(comparison.drop(columns="p_bh")), "'p_bh'"),
                       (lambda: p_text(1.5), "from 0 to 1"),
                       (lambda: examples_of(made([1, 0], [1, 0]), "n"), "known model"),
                       (lambda: interval_note(table.drop(columns="method")), "'method'"),
                       (lambda: table_html(table.iloc[:0], caption="A"), "at least one row"),
                       (lambda: save_table(table.iloc[:0], tmp_path, "x", caption="A"), "at least one row")):
        with pytest.raises(DataError, match=says): make()
    assert not list(tmp_path.iterdir())


def test_the_real_cohort_is_described(data_dir):
    from fusion_nb.data.breast_lesions import read_breast_lesions
    shown = cohort_table(read_breast_lesions(data_dir / "breast_lesions_usg", features="both")).set_index(["Characteristic", "Value"])
    assert shown.loc[("Cases", "")].tolist() == ["154", "98", "252"] == shown.loc[("Patients", "")].tolist()
    assert shown.loc[("Age", "missing"), "Total"] == "41 (16.3%)"
