"""Files of predictions, from the shell's side of the table: what is said of them, what is refused, and that a report stands alone and whole."""
import errno
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fusion_nb.compare_files as module
from fusion_nb.audit import audit_models, audit_predictions, pairing_verdict
from fusion_nb.cli import main
from fusion_nb.compare import compare_models
from fusion_nb.compare_files import (AuditSettings, FileComparison, Settings, audit_files, check_out, compare_files, report_html, write_audit,
                                     write_comparison)
from fusion_nb.delong import delong_compare
from fusion_nb.predictions import read_scores, score_matrix, write_predictions
from fusion_nb.resample import METRICS, bootstrap_metrics, intervals
from fusion_nb.schema import DataError

SHORT = AuditSettings(n=30)
COLUMNS = {"label": "y_true", "score": "y_prob"}
FEW = Settings(n=200)
FILES = {"metrics.parquet", "comparisons.parquet", "calibration.parquet", "report.html", "record.json"}


def made_up(n=120, seed=0) -> pd.DataFrame:
    """Labels of 80 patients, times with censoring, and probabilities of three models."""
    rng = np.random.default_rng(seed)
    patient = np.arange(n) * 2 // 3
    label = rng.binomial(1, .4, patient.max() + 1)[patient]
    scores = {name: np.round(1 / (1 + np.exp(1 - signal * label - rng.normal(size=n))), 3) for name, signal in {"a": .5, "b": 1.5, "c": 1.6}.items()}
    return pd.DataFrame({"id": [f"c{i:03d}" for i in range(n)], "patient": [f"p{i}" for i in patient], "y_true": label, **scores,
                         "months": rng.exponential(10, n).round(1), "died": rng.binomial(1, .6, n)})


def write(folder, models="ab", table=None, **changes) -> list:
    """A CSV for each model, with the columns of all but its own score called y_prob."""
    table, paths = made_up() if table is None else table, []
    for model in models:
        paths.append(folder / f"{model}.csv")
        table.drop(columns=[c for c in "abc" if c != model]).rename(columns={model: "y_prob"}).assign(**changes).to_csv(paths[-1], index=False)
    return paths


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> FileComparison:
    return compare_files(write(tmp_path_factory.mktemp("two")), **COLUMNS, group="patient", settings=FEW)


# ---- the numbers

def test_numbers_are_those_of_the_five_lines_of_python(tmp_path):
    paths = write(tmp_path, "abc")
    result = compare_files(paths, **COLUMNS, group="patient", settings=Settings(metrics=("auc", "brier"), n=300, seed=4, level=.9))
    scores = score_matrix(read_scores(paths, **COLUMNS, group="patient"))
    resamples = bootstrap_metrics(scores, ("auc", "brier"), n=300, seed=4)
    pd.testing.assert_frame_equal(result.metrics, intervals(resamples, level=.9))
    bootstrap = result.comparisons[result.comparisons["procedure"] == "paired bootstrap"].reset_index(drop=True)
    for metric in ("auc", "brier"):
        want = compare_models(resamples, metric=metric, level=.9)
        pd.testing.assert_frame_equal(bootstrap[bootstrap["metric"] == metric][want.columns].reset_index(drop=True), want, check_dtype=False)
    delong = result.comparisons[result.comparisons["procedure"] == "DeLong"].reset_index(drop=True)
    want = delong_compare(scores, level=.9)
    pd.testing.assert_frame_equal(delong[want.columns], want, check_dtype=False)
    assert set(result.comparisons["procedure"]) == {"paired bootstrap", "DeLong", "permutation of ranks"}


def test_real_files(data_dir):
    paths = [data_dir / "breast_mri_fusion" / name / "preds.csv" for name in ("image-only", "learned-feature-fusion")]
    result = compare_files(paths, **COLUMNS)
    rows = result.metrics.set_index(["model", "metric"])
    assert result.scores.models == ("image-only/preds", "learned-feature-fusion/preds")
    for model, auc, low, high, specificity in (("image-only/preds", .849, .834, .864, .301), ("learned-feature-fusion/preds", .898, .885, .909, .491)):
        np.testing.assert_allclose(rows.loc[(model, "auc"), ["estimate", "low", "high"]].astype(float), [auc, low, high], rtol=0, atol=.002)
        assert round(rows.loc[(model, "specificity_at_95_sensitivity"), "estimate"], 3) == specificity
    assert rows["n"].eq(4909).all() and rows["n_groups"].isna().all()
    assert "matched by row" in result.notes[0] and "No patient id" in result.notes[1]


def test_matching_by_case_id_is_the_same_whatever_the_order(tmp_path, two):
    paths = write(tmp_path)
    pd.read_csv(paths[1]).sample(frac=1, random_state=0).to_csv(paths[1], index=False)
    shuffled = compare_files(paths, **COLUMNS, group="patient", case_id="id", settings=FEW)
    pd.testing.assert_frame_equal(shuffled.metrics, two.metrics)
    assert "by the case id in the column 'id'" in shuffled.notes[0] and "by row" in two.notes[0]


def test_one_file(tmp_path):
    result = compare_files(write(tmp_path, "a")[0], **COLUMNS, settings=FEW)
    assert len(result.comparisons) == 0 and "matched" not in str(result) and "Comparisons" not in str(result)
    write_comparison(result, tmp_path / "out")
    empty = pd.read_parquet(tmp_path / "out" / "comparisons.parquet")
    assert len(empty) == 0 and {"model_a", "model_b", "metric", "difference", "p"} <= set(empty)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Comparisons</h2>" not in page and "Holm" not in page and "<h2>Calibration</h2>" in page


def test_reference(tmp_path):
    paths = write(tmp_path, "abc")
    result = compare_files(paths, **COLUMNS, settings=replace(FEW, reference="b"))
    assert set(result.comparisons["model_b"]) == {"b"} and set(result.comparisons["model_a"]) == {"a", "c"}
    with pytest.raises(DataError, match="a known model"): compare_files(paths, **COLUMNS, settings=replace(FEW, reference="d"))


def test_equal_scores_are_said_and_do_not_differ(tmp_path):
    paths = write(tmp_path, "ab", made_up().assign(b=made_up()["a"]))
    result = compare_files(paths, **COLUMNS, settings=FEW)
    assert any("same score in every row" in note for note in result.notes)
    assert result.comparisons["difference"].eq(0).all() and result.comparisons["p"].eq(1).all()
    report_html(result)


def test_survival(tmp_path):
    paths = write(tmp_path, "abc")
    result = compare_files(paths, label=("months", "died"), score="y_prob", settings=FEW)
    assert set(result.metrics["metric"]) == {"harrell_c"} and "events" in result.files and "same times and events" in result.notes[0]
    page = report_html(result)
    assert "--time months --event died --score y_prob" in page and "<h2>Curves</h2>" not in page and "Harrell FE" in page and "DeLong" not in page


def test_three_classes(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        p = rng.dirichlet((1, 1, 1), 90)
        pd.DataFrame({"kind": ["x", "y", "z"] * 30, **{f"p_{c}": p[:, i] for i, c in enumerate("xyz")}}).rename(
            columns=lambda c: c.replace("p_", "score_")).to_csv(tmp_path / f"{name}.csv", index=False)
    columns = {"label": "kind", "score": ["score_x", "score_y", "score_z"]}
    result = compare_files([tmp_path / "a.csv", tmp_path / "b.csv"], **columns, settings=replace(FEW, metrics=("macro_auc", "auc:x")))
    assert set(result.metrics["metric"]) == {"macro_auc", "auc:x"} and result.files["class y"].tolist() == [30, 30]
    assert "--score score_x --score score_y --score score_z --metric macro_auc --metric auc:x" in report_html(result)
    assert set(compare_files([tmp_path / "a.csv"], **columns, settings=FEW).metrics["metric"]) == {"macro_auc"}


def test_all_metrics(tmp_path):
    everything = replace(FEW, n=20, metrics=("all",))
    result = compare_files(write(tmp_path), **COLUMNS, settings=everything)
    assert set(result.metrics["metric"]) == {m for m, metric in METRICS.items() if "binary" in metric.kinds}
    result = compare_files(write(tmp_path, table=made_up().assign(a=lambda t: 10 * t["a"])), **COLUMNS, settings=everything)
    assert {"auc", "average_precision"} <= set(result.metrics["metric"]) and "brier" not in set(result.metrics["metric"])
    assert {"accuracy", "f1"}.isdisjoint(result.metrics["metric"]), "a threshold of 0.5 means nothing here"
    assert any(note.startswith("Brier score was left out. Expected probabilities from 0 to 1.") for note in result.notes)
    assert any(note.startswith("Accuracy was left out.") and "--threshold" in note and "scores.at" not in note for note in result.notes)
    table, notes = module._calibration(result)
    assert len(table) == 0 and notes == ("Calibration was left out: scores outside 0 to 1, which are no probabilities, in a.",)
    page = report_html(result)
    assert notes[0] in page and "<h2>Calibration</h2>" not in page
    with_threshold = compare_files([tmp_path / "a.csv", tmp_path / "b.csv"], **COLUMNS, settings=replace(everything, threshold=.5))
    assert "accuracy" in set(with_threshold.metrics["metric"]) and "Called positive at 0.5 or above: for Accuracy" in str(with_threshold)


def test_all_metrics_where_none_can_be_had(tmp_path):
    """One patient: nothing can be drawn, and the reason is that of the metrics, not that none was asked for."""
    for metrics in (("all",), ("auc",)):
        with pytest.raises(DataError, match="at least two units to draw.*1 patient"):
            compare_files(write(tmp_path, patient="p0"), **COLUMNS, group="patient", settings=replace(FEW, metrics=metrics))


def test_threshold(tmp_path):
    paths, settings = write(tmp_path), replace(FEW, metrics=("accuracy",), threshold=.3)
    table = pd.read_csv(paths[0])
    accuracy = compare_files(paths, **COLUMNS, settings=settings).metrics.set_index("model").loc["a", "estimate"]
    assert accuracy == ((table["y_prob"] >= .3) == table["y_true"]).mean() != ((table["y_prob"] >= .5) == table["y_true"]).mean()


# ---- what is refused

def spoilt(folder, **changes):
    """Two files, of which the second is changed in its table."""
    paths = write(folder)
    table = pd.read_csv(paths[1]).astype(object)
    for column, (row, value) in changes.items(): table.loc[row, column] = value
    table.to_csv(paths[1], index=False)
    return paths


def emptied(folder, text):
    paths = write(folder)
    paths[1].write_text(text)
    return paths


@pytest.mark.parametrize("files, options, says", [
    (lambda d: [*write(d), d / "no.csv"], {}, r"no\.csv, which is not there"),
    (lambda d: emptied(d, ""), {}, r"a readable csv file.*b\.csv"),
    (lambda d: emptied(d, "y_true,y_prob,patient,id\n"), {}, r"b\.csv with a header only"),
    (write, {"score": "y_prop"}, r"'y_prop' in .*a\.csv.*Did you mean 'y_prob'"),
    (write, {"label": "y_ture"}, r"Did you mean 'y_true'"),
    (write, {"group": "patients"}, r"Did you mean 'patient'"),
    (lambda d: spoilt(d, y_prob=(7, np.nan)), {}, r"'y_prob' of .*b\.csv.*nan in row 9"),
    (lambda d: spoilt(d, y_prob=(7, "high")), {}, r"'y_prob' of .*b\.csv.*'high' in row 9"),
    (lambda d: spoilt(d, y_true=(7, 2)), {}, r"b\.csv.*2.* in row 9"),
    (lambda d: write(d, y_true=1), {}, r"both classes"),
    (lambda d: [*write(d, "a"), *write(d, "b", made_up(119))], {}, r"120 rows in .*a\.csv and 119 in .*b\.csv.*case_id"),
    (lambda d: spoilt(d, y_true=(7, 1 - made_up()["y_true"][7])), {}, r"a\.csv.*b\.csv.*row 9"),
    (lambda d: spoilt(d, id=(7, "c999")), {"case_id": "id"}, r"a\.csv.*b\.csv.*'c007'"),
    (lambda d: spoilt(d, id=(7, "c008")), {"case_id": "id"}, r"b\.csv"),
    (lambda d: spoilt(d, patient=(7, None)), {"group": "patient"}, r"'patient' of .*b\.csv.*row 9"),
    (lambda d: spoilt(d, patient=(7, "p0")), {"group": "patient"}, r"a\.csv.*b\.csv.*row 9"),
    (lambda d: write(d, "aa"), {}, r"each file once\. Got .*a\.csv twice\. Leave it out, or give another file"),
    (lambda d: [*write(d, "a"), d / "a.parquet"], {}, r"each file once\. Got .*a\.csv and .*a\.parquet, which make one name"),
    (lambda d: [], {}, r"one file or more"),
    (write, {"settings": Settings(metrics=("harrell_c",), n=20)}, r"a metric for binary scores.*'harrell_c'"),
    (write, {"label": ("months", "died"), "settings": Settings(metrics=("auc",), n=20)}, r"a metric for survival scores.*'auc'"),
])
def test_bad_files_are_refused_by_name(tmp_path, files, options, says):
    with pytest.raises(DataError, match=says): compare_files(files(tmp_path), **{**COLUMNS, "settings": FEW, **options})


@pytest.mark.parametrize("settings, says", [
    ({"metrics": ("acu",)}, "Did you mean 'auc'"), ({"metrics": ("all", "auc:x", "nonsense")}, "a known metric"),
    ({"level": 95}, "a level between 0 and 1"), ({"level": 0}, "a level"), ({"n": 1}, "at least 2 resamples"),
    ({"n": 1e4}, r"a whole number\. Got n=10000\.0"), ({"n": True}, "a whole number"), ({"n": "9"}, "a whole number. Got n='9'"),
    ({"level": "0.95"}, "a level between 0 and 1. Got '0.95'"), ({"level": np.nan}, "a level"), ({"level": None}, "a level"),
    ({"seed": -1}, "from 0 up as seed. Got -1"), ({"seed": 1.5}, "as seed"), ({"threshold": "0.3"}, "a number as threshold"),
    ({"threshold": np.nan}, "a number as threshold"), ({"threshold": True}, "a number as threshold"),
    ({"metrics": 5}, "names of metrics"), ({"metrics": (5,)}, "names of metrics")])
def test_bad_settings(settings, says):
    with pytest.raises(DataError, match=says): Settings(**settings)


def test_a_test_that_is_refused_is_no_failure(tmp_path):
    """One positive: DeLong has no variance. The bootstrap's numbers stay, and the report says what is missing."""
    result = compare_files(write(tmp_path, y_true=[1] + [0] * 119), **COLUMNS, settings=FEW)
    assert "paired bootstrap" in set(result.comparisons["procedure"]) and "DeLong" not in set(result.comparisons["procedure"])
    assert any(note.startswith("DeLong: not done. Expected at least two") for note in result.notes)
    assert "Biometrics 1988" not in report_html(result)


# ---- what the numbers rest on

def separated(folder, rows=80):
    """Three models: one that separates the classes, one that does not, and one that always says the same."""
    rng = np.random.default_rng(0)
    label = np.tile([0, 1], rows // 2)
    table = pd.DataFrame({"y_true": label, "a": np.where(label == 1, .9, .1), "b": .3 + .2 * label + .4 * rng.random(rows), "c": .5})
    return write(folder, "abc", table)


def test_a_model_that_separates_the_classes_does_not_cost_the_report(tmp_path):
    """Its slope is infinite; nobody asked for it. What can be had of the others is the same as without it."""
    paths = separated(tmp_path)
    table, notes = module._calibration(compare_files(paths, **COLUMNS, settings=FEW))
    had = {model: set(rows["metric"]) for model, rows in table.groupby("model")}
    assert had["a"] == set(module._CALIBRATION) - {"calibration_slope"} and had["b"] == set(module._CALIBRATION)
    assert [n for n in notes if n.startswith("Calibration slope of a was left out. Expected scores of positives among those of negatives")]
    assert not [n for n in notes if " of b " in n.partition(" was left out")[0] + " "]
    alone = module._calibration(compare_files(paths[1], **COLUMNS, settings=FEW))[0]
    pd.testing.assert_frame_equal(table[table["model"] == "b"].reset_index(drop=True), alone)
    out = write_comparison(compare_files(paths, **COLUMNS, settings=FEW), tmp_path / "out")
    assert {p.name for p in out.parent.iterdir()} == FILES and "Calibration slope of a was left out." in out.read_text()


def test_two_rows_have_a_report(tmp_path):
    """One case of each class: an AUC, and hardly anything else."""
    out = write_comparison(compare_files(separated(tmp_path, rows=2), **COLUMNS, settings=FEW), tmp_path / "out")
    assert {p.name for p in out.parent.iterdir()} == FILES


def test_the_calibration_error_has_no_interval(tmp_path):
    """Resampling adds noise that it counts as error: the interval would not hold the true value."""
    result = compare_files(write(tmp_path), **COLUMNS, settings=replace(FEW, metrics=("ece", "ece_equal_mass", "auc")))
    rows = result.metrics.set_index(["metric", "model"])
    for metric in ("ece", "ece_equal_mass"):
        assert rows.loc[metric][["low", "high", "low_mc", "high_mc"]].isna().all(axis=None) and rows.loc[metric, "estimate"].between(0, 1).all()
    assert rows.loc["auc", ["low", "high"]].notna().all(axis=None)
    page, value = report_html(result), f"{rows.loc[('ece', 'a'), 'estimate']:.3f}"
    assert re.search(rf"^Calibration error +a +{value} +120", str(result), re.M) and "not defined" not in str(result) + page
    assert "Calibration error and Calibration error, bins of equal size: no interval" in " ".join(str(result).split())
    assert "The calibration error was given with no interval" in page and "stands without an interval" in page
    table = module._calibration(result)[0].set_index("metric")
    assert table.loc["ece", ["low", "high"]].isna().all(axis=None) and table.drop("ece")[["low", "high"]].notna().all(axis=None)
    only = compare_files(write(tmp_path), **COLUMNS, settings=replace(FEW, metrics=("ece",)))
    assert "Calibration error: no interval" in str(only) and "Estimate [95% interval];" not in str(only)
    report_html(only)


def test_monte_carlo_errors_are_said(tmp_path, two):
    compared, text = two.comparisons, str(two).replace("\n  ", " ")
    percent = {m: 100 if "specificity" in m else 1 for m in two.metrics["metric"].unique()}
    rows = pd.concat([two.metrics, compared])
    largest = (rows[["low_mc", "high_mc"]].max(axis=1) * rows["metric"].map(percent)).groupby(rows["metric"]).max()
    found = [re.search(rf" of {what} at most (\d+\.?\d*)", text)[1] for what in ("a limit", "a limit in per cent", "P")]
    for said, value in zip(found, (largest["auc"], largest["specificity_at_95_sensitivity"], compared["p_mc"].max())):
        assert value <= float(said) <= max(2 * value, 1e-4)
    page = report_html(two)
    assert page.count("Monte Carlo standard error of") == 4, "below results, calibration, comparisons and the permutation test"
    one = str(compare_files(write(tmp_path, "a"), **COLUMNS, settings=replace(FEW, metrics=("auc",))))
    assert re.search(r"Monte Carlo standard error of a limit at most [\d.]+\.$", one, re.M)


def test_every_way_of_drawing_is_said(tmp_path):
    """Ranks are drawn with strata, what depends on the prevalence without: text, footnote and methods name which is which."""
    result = compare_files(write(tmp_path), **COLUMNS, group="patient", settings=replace(FEW, metrics=("auc", "brier")))
    method = result.metrics.drop_duplicates("metric").set_index("metric")["method"]
    text, page = " ".join(str(result).split()), report_html(result)
    for said in method: assert said in text and said in page, said
    made = result.metrics.assign(method=result.metrics["metric"].map({"auc": "drawn so.", "brier": "drawn otherwise."}))
    other = replace(result, metrics=made)
    assert "- AUC: drawn so." in str(other) and "- Brier score: drawn otherwise." in str(other)
    page = report_html(other)
    assert "AUC of each model with 95% intervals from drawn so." in page
    assert "Brier score of each model with 95% intervals from drawn otherwise." in page


def test_p_decides_and_not_the_interval(two):
    page = report_html(two)
    assert "not the interval, decides" in page and "can disagree where the resamples are skewed" in page
    assert "an interval that leaves out 0 shows" not in page


# ---- the report

class Page(HTMLParser):
    """Every address that a page would load, its tags, and its visible text."""

    def __init__(self, html):
        super().__init__()
        self.addresses, self.tags, self.text, self.inside = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data): self.text.append(data)


def test_report_loads_nothing(two):
    html = report_html(two)
    page = Page(html)
    assert len(page.addresses) >= 5 and all(a.startswith("data:image/svg+xml;base64,") for a in page.addresses)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags) and "@import" not in html and "url(" not in html
    assert all(alt for alt in re.findall(r'<img alt="([^"]*)"', html)) and html.count("<img") == len(page.addresses)


def test_report_says_what_a_reviewer_asks(two):
    text = " ".join(" ".join(Page(report_html(two)).text).split())
    for said in ("120 cases, 80 patients", "matched by row: same length, same labels, checked", "200 stratified bootstrap resamples of 80 patients (120 cases)",
                 "percentile", "Obuchowski", "Holm S.", "Davison AC", "seed 0", *two.files["fingerprint"], "How to read this"):
        assert said in text, said
    assert "No patient id" not in text


def test_many_pairs_are_counted(tmp_path):
    for name in "de": write(tmp_path, "a")[0].rename(tmp_path / f"{name}.csv")
    paths = [*write(tmp_path, "abc"), tmp_path / "d.csv", tmp_path / "e.csv"]
    result = compare_files(paths, **COLUMNS, settings=replace(FEW, metrics=("auc",)))
    rows = result.comparisons[result.comparisons["procedure"] == "paired bootstrap"]
    n = (rows["p_holm"] < .05).sum()
    assert 0 < n < 10 and f"- {n} of 10 pairs differ in AUC (P < 0.05 after Holm's correction); of the others no difference was shown." in str(result)
    few = compare_files(paths[:4], **COLUMNS, settings=replace(FEW, metrics=("auc",), reference="c"))
    assert len(module._in_words(few.comparisons)) == 3, "three sentences are still read"
    clear = rows.assign(p_holm=[.9] + 9 * [.01])
    assert module._in_words(clear) == ["9 of 10 pairs differ in AUC (P < 0.05 after Holm's correction); no difference was shown between a and b."]


def test_names_are_escaped(tmp_path):
    paths = [p.rename(p.with_name(f"<b>{p.name}")) for p in write(tmp_path)]
    html = report_html(compare_files(paths, **COLUMNS, settings=FEW))
    assert "<b>" not in html and "&lt;b&gt;" in html


def test_another_level_is_said_everywhere(tmp_path, monkeypatch):
    drawn, save = [], module.save_figure
    def note(axes, *args, **options):
        drawn.extend(text.get_text() for text in axes.figure.findobj(module.Text))
        return save(axes, *args, **options)
    monkeypatch.setattr(module, "save_figure", note)
    result = compare_files(write(tmp_path), **COLUMNS, settings=replace(FEW, level=.9))
    text = " ".join([*Page(report_html(result)).text, str(result), *drawn])
    assert "90% interval" in text and "90% bootstrap" in text and not re.search(r"95% (interval|bootstrap|pointwise)", text)


def test_the_command_makes_it_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "abc")
    settings = Settings(metrics=("auc", "accuracy"), threshold=.3, n=150, seed=3, level=.9, reference="c")
    first = write_comparison(compare_files(["a.csv", "b.csv", "c.csv"], **COLUMNS, group="patient", case_id="id", settings=settings), "first")
    record = json.loads(Path("first/record.json").read_text())
    assert main(shlex.split(record["command"].replace("DIR", "second"))[1:]) == 0
    for name in ("metrics", "comparisons", "calibration"):
        pd.testing.assert_frame_equal(pd.read_parquet(f"first/{name}.parquet"), pd.read_parquet(f"second/{name}.parquet"))
    assert first.read_text() == Path("second/report.html").read_text(), "nothing in a report depends on when or where it was made"
    assert record["command"] in first.read_text().replace("&#39;", "'")


# ---- the folder

def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def short_report(monkeypatch):
    """A page without pictures, where only the folder is looked at."""
    monkeypatch.setattr(module, "report_html", lambda result, calibration: f"<!DOCTYPE html>{result}")


def test_what_is_written(two, tmp_path):
    report = write_comparison(two, tmp_path / "new" / "out")
    assert {p.name for p in report.parent.iterdir()} == FILES
    metrics = pd.read_parquet(report.parent / "metrics.parquet")
    assert {"model", "metric", "estimate", "low", "high", "n", "n_groups"} <= set(metrics) and metrics["model"].unique().tolist() == ["a", "b"]
    record = json.loads((report.parent / "record.json").read_text())
    assert record["status"] == "finished" and record["params"]["label"] == "y_true" and record["params"]["n"] == 200
    assert list(record["inputs"].values()) == two.files["fingerprint"].tolist() and "numpy" in record["packages"]


def test_an_earlier_comparison_is_replaced(two, tmp_path, short_report):
    write_comparison(two, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    write_comparison(replace(two, comparisons=two.comparisons.iloc[:0]), tmp_path / "out")
    assert len(pd.read_parquet(tmp_path / "out" / "comparisons.parquet")) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES | {"notes.txt"}


@pytest.mark.parametrize("name, text", [("report.html", "mine"), ("metrics.parquet", "mine"), ("record.json", "not json"), ("record.json", "[1]"),
                                        ("record.json", '{"study": "imaging_clinical"}')])
def test_files_of_another_origin_are_not_touched(two, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name} of another origin"): write_comparison(two, tmp_path)
    assert contents(tmp_path) == {name: text.encode()}


def test_out_that_cannot_be(two, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="which is a file"): check_out(tmp_path / "file")
    with pytest.raises(DataError, match="file, which is a file"): check_out(tmp_path / "file" / "out")
    assert check_out(tmp_path / "new" / "out") and not (tmp_path / "new").exists(), "to look is not to make"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_all_or_none(two, tmp_path, monkeypatch, short_report, error):
    write_comparison(two, tmp_path / "out")
    before = contents(tmp_path / "out")
    def fail(record, path):
        path.write_text("{half")
        raise error
    monkeypatch.setattr(module, "write_json", fail)
    with pytest.raises((DataError, KeyboardInterrupt)) as told: write_comparison(replace(two, notes=("other",)), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    if isinstance(error, OSError): assert "record.json" in str(told.value) and "the disk is full" in str(told.value)
    with pytest.raises((DataError, KeyboardInterrupt)): write_comparison(two, tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


# ---- the pairing audit

def table(folder, models=("image_only", "table_only"), runs=2, name="predictions.parquet"):
    """A prediction table as a study writes it, with validation rows that no audit may look at."""
    made, rng = made_up(), np.random.default_rng(1)
    rows = [pd.DataFrame({"study": "s", "model": model, "run": run, "fold": 0, "case_id": made["id"] + split, "group": made["patient"], "split": split, "label": made["y_true"],
                          "score_malignant": (made[c] if split == "test" else .5) * rng.uniform(.95, 1)}) for model, c in zip(models, "abcabc") for run in range(runs) for split in ("val", "test")]
    return write_predictions(pd.concat(rows, ignore_index=True), folder / name)


@pytest.mark.parametrize("pairing, policies", [(None, ("random", "label_matched")), ("label_matched", ("random", "label_matched")), ("patient", ("patient", "random", "label_matched"))])
def test_the_audit_of_files_is_that_of_their_predictions(tmp_path, pairing, policies):
    """True pairs are audited only where they were stated; the trained model is judged by the pairing that was stated."""
    paths = write(tmp_path, "abc")
    result = audit_files(paths, **COLUMNS, group="patient", settings=AuditSettings(("a", "b"), "c", pairing, 40, 3))
    pred = read_scores(paths, **COLUMNS, group="patient")
    late = audit_predictions(pred, modalities=("a", "b"), policies=policies, n=40, seed=3)
    pd.testing.assert_frame_equal(result.audit.iloc[:-1], late, check_dtype=False)
    fused = audit_models({pairing or "patient": pred}, fused="c", modalities=("a", "b"), n=40, seed=3)
    want = fused[fused["role"] == "fused"].iloc[0]
    assert result.audit.iloc[-1].drop("policy").equals(want.drop("policy")) and result.audit.iloc[-1]["policy"] == (pairing or "not stated")
    assert result.verdicts[0] == f"The late fusion, untrained: {pairing_verdict(late)}"
    assert result.verdicts[1].startswith("The fused model, trained: c, AUC, ") and f"{want['gain']:+.3f} [{want['gain_low']:+.3f}, {want['gain_high']:+.3f}]" in result.verdicts[1]
    if pairing: assert result.verdicts[1].endswith(pairing_verdict(fused))
    assert all("ithout true pairs it may not be claimed" in said for said in result.verdicts) == (pairing != "patient")
    assert result.allowed == (pairing == "patient" and want["gain_low"] > 0)
    assert any(note.startswith("How the rows were paired was not stated") for note in result.notes) == (pairing is None)


def test_a_gain_on_true_pairs_may_be_claimed_only_if_they_were_stated(tmp_path):
    """Two independent opinions: there is a gain, which the files alone do not allow to be claimed."""
    rng, label = np.random.default_rng(0), np.arange(400) % 2
    both = pd.DataFrame({"y_true": label, **{m: 1 / (1 + np.exp(1.5 * (.5 - label) - rng.normal(size=400))) for m in "abc"}})
    paths = write(tmp_path, "ab", both)
    stated, silent = (audit_files(paths, **COLUMNS, settings=replace(SHORT, n=100, pairing=pairing)) for pairing in ("patient", None))
    assert stated.allowed and "It may be claimed that fusion helps, on true pairs." in stated.verdicts[0] and "patient" in set(stated.audit["policy"])
    assert not silent.allowed and "Without true pairs it may not be claimed" in silent.verdicts[0] and "patient" not in set(silent.audit["policy"])
    fused = AuditSettings(("a", "b"), "c", n=100)
    write(tmp_path, "c", both.assign(c=1 - (1 - both["a"]) * (1 - both["b"])))
    assert [audit_files([*paths, tmp_path / "c.csv"], **COLUMNS, settings=replace(fused, pairing=p)).allowed for p in ("patient", None, "random")] == [True, False, False]
    write(tmp_path, "c", both.assign(c=.5))
    assert not audit_files([*paths, tmp_path / "c.csv"], **COLUMNS, settings=replace(fused, pairing="patient")).allowed, "the trained model is asked about, where there is one"
    write_audit(stated, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "record.json").read_text())["claim_allowed"] is True


def test_a_prediction_table_of_a_study(tmp_path):
    path = table(tmp_path, ("image_only", "concat", "table_only", "other"))
    result = audit_files(path, settings=SHORT)
    assert result.scores.models == ("image_only", "table_only") and result.files["file"].tolist() == [str(path)] * 2 and result.columns == {}
    assert len(result.scores) == 120 and result.scores.n_groups == 80 and "Several runs of a model entered as their ensemble." in result.notes
    pd.testing.assert_frame_equal(result.audit, audit_predictions(pd.read_parquet(path), n=30))
    assert audit_files(path, settings=replace(SHORT, modalities=("concat", "other", "table_only"))).audit.query("role == 'single'")["model"].tolist() == ["concat", "other", "table_only"]
    page = write_audit(result, tmp_path / "out").read_text()
    assert "120 cases, 80 patients; 1 file of predictions" in page and page.count(result.files["fingerprint"][0]) == 1 and f"fusion-nb audit {path} --n 30" in page
    two = audit_files([table(tmp_path, ("cnn",), name="a.csv"), table(tmp_path, ("mlp",), name="b.csv")], settings=SHORT)
    assert two.scores.models == ("cnn", "mlp") and [Path(f).name for f in two.files["file"]] == ["a.csv", "b.csv"]


def test_an_audit_of_three_classes(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        p = rng.dirichlet((1, 1, 1), 90)
        pd.DataFrame({"kind": ["x", "y", "z"] * 30, **{f"score_{c}": p[:, i] for i, c in enumerate("xyz")}}).to_csv(tmp_path / f"{name}.csv", index=False)
    result = audit_files([tmp_path / "a.csv", tmp_path / "b.csv"], label="kind", score=["score_x", "score_y", "score_z"], settings=replace(SHORT, fused=None))
    assert result.audit["metric"].unique().tolist() == ["macro_auc", "auc:x", "auc:y", "auc:z"] and "--score score_x --score score_y" in write_audit(result, tmp_path / "out").read_text()


@pytest.mark.parametrize("files, options, says", [
    (lambda d: write(d, "a"), {}, r"two models or more.*the one model 'a'\. Give a file per model, or a prediction table"),
    (lambda d: write(d, "abc"), {}, r"Got the models a, b, c\. Name them: modalities=\('a', \.\.\.\), on the command line --modalities a"),
    (write, {"settings": replace(SHORT, modalities=("a", "bb"))}, r"a known model\. Got 'bb'\. "),
    (write, {"settings": replace(SHORT, modalities=("a",))}, r"two models or more, each of one modality\. Got \('a',\)"),
    (write, {"settings": replace(SHORT, modalities=("a", "b"), fused="b")}, r"a fused model that is none of the modalities\. Got 'b'"),
    (lambda d: write(d, "abc"), {"settings": replace(SHORT, modalities=("a", "b"), fused="d")}, r"a known model\. Got 'd'"),
    (write, {"score": "y_prop"}, r"Did you mean 'y_prob'"),
    (lambda d: write(d, table=made_up().assign(b=lambda t: 3 * t["b"])), {}, r"probabilities from 0 to 1.*Turn scores into probabilities"),
    (lambda d: write(d, y_true=1), {}, r"both classes"),
    (lambda d: spoilt(d, y_prob=(7, "high")), {}, r"'y_prob' of .*b\.csv.*'high' in row 9"),
    (lambda d: [], {}, r"one file or more"), (lambda d: write(d, "aa"), {}, r"a\.csv twice"),
    (write, {"label": ("months", "died")}, r"risks of survival"),
    (lambda d: [table(d), *write(d, "a")], {"label": "label", "score": "score"}, r"the column 'study'|the columns? .*'study'"),
    (lambda d: [table(d)], {}, r"no names of columns beside a prediction table.*Got label='y_true', score='y_prob' and .*predictions\.parquet"),
    (lambda d: [table(d), table(d, name="b.csv")], {"label": "label", "score": "score"}, r"each model in one file\. Got 'image_only' in several"),
])
def test_bad_files_of_an_audit_are_refused(tmp_path, recwarn, files, options, says):
    with pytest.raises(DataError, match=says): audit_files(files(tmp_path), **{**COLUMNS, "settings": SHORT, **options})
    assert not [w for w in recwarn if w.category is UserWarning], "one message is enough"


@pytest.mark.parametrize("settings, says", [({"pairing": "pateint"}, "Did you mean 'patient'"), ({"modalities": "image"}, "two models or more"), ({"n": 1}, "at least 2 resamples"),
                                            ({"seed": -1}, "as seed")])
def test_bad_settings_of_an_audit(settings, says):
    with pytest.raises(DataError, match=says): AuditSettings(**settings)


def test_the_report_of_an_audit_stands_alone_and_repeats_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "abc")
    result = audit_files(["a.csv", "b.csv", "c.csv"], **COLUMNS, group="patient", case_id="id", settings=AuditSettings(("a", "b"), "c", "label_matched", 30, 2))
    first = write_audit(result, "first")
    page, record = Page(first.read_text()), json.loads(Path("first/record.json").read_text())
    assert record["claim_allowed"] is False
    assert page.addresses and all(a.startswith("data:image/svg+xml;base64,") for a in page.addresses) and not {"script", "link", "iframe"} & set(page.tags)
    text = " ".join(" ".join(page.text).split())
    for said in ("Pairing audit of A and B", "120 cases, 80 patients", *result.verdicts, "the untrained late fusion of A and B was", "30 stratified bootstrap resamples of patients", "Su JQ"): assert said in text, said
    assert main(shlex.split(record["command"].replace("DIR", "second"))[1:]) == 0
    assert first.read_text() == Path("second/report.html").read_text() and {p.name for p in Path("second").iterdir()} == {"audit.parquet", "report.html", "record.json"}
    pd.testing.assert_frame_equal(pd.read_parquet("first/audit.parquet"), pd.read_parquet("second/audit.parquet"))


def test_an_audit_does_not_touch_a_comparison(two, tmp_path, short_report):
    write_comparison(two, tmp_path / "out")
    with pytest.raises(DataError, match="one with an earlier audit.*report.html of another origin"): check_out(tmp_path / "out", "audit")
    with pytest.raises(DataError, match="a known kind of results"): check_out(tmp_path / "out", "audits")
    assert check_out(tmp_path / "out")
