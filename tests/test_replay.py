"""Published numbers, set beside recomputed ones: what counts as agreement, what is refused, and the study from files to report."""
import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score, roc_curve

from fusion_nb.compare import compare_models
from fusion_nb.delong import delong_compare, delong_intervals
from fusion_nb.launch import StudyError, check_parameters, read_parameters, run_study
from fusion_nb.predictions import read_scores, score_matrix
from fusion_nb.published import Published, make_published, missing_table, read_published, replay, replay_claim, replay_table
from fusion_nb.resample import bootstrap_metrics, intervals
from fusion_nb.runs import read_json
from fusion_nb.schema import DataError

STUDY = "replay_published_predictions"
FAST = {"n_resamples": 600, "n_calibration": 40}


def read_folder(folder, names=None):
    paths = sorted(folder.glob("*/preds.csv"))
    return score_matrix(read_scores(paths, label="y_true", score="y_prob", model=names or [p.parent.name for p in paths]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of synthetic predictions, their claims, and resamples of them."""
    folder = tmp_path_factory.mktemp("made")
    claims = read_published(make_published(folder, n=500))
    return folder, claims, bootstrap_metrics(read_folder(folder), claims.metrics, n=2000)


def table_of(tmp_path, text) -> Published:
    (tmp_path / "table.yaml").write_text(f"title: Them\nsource: Somewhere\n{text}")
    return read_published(tmp_path / "table.yaml")


# ---- what was printed

@pytest.mark.parametrize("text, reported, half_unit", [
    ("0.849 [0.834, 0.864]", [.849, .834, .864], .0005), ("0.85 (0.83-0.87)", None, None), ("0.85 (0.83 to 0.87)", [.85, .83, .87], .005),
    ("0.890", [.89], .0005), (".89", [.89], .005), ("30.1% [23.1, 37.0]", [.301, .231, .370], .0005), ("30.1% [23.1%; 37.0%]", [.301, .231, .370], .0005),
    ("0.85 (0.83–0.87)", [.85, .83, .87], .005), ("−0.02 [−0.04, 0.01]", [-.02, -.04, .01], .005)])
def test_numbers_are_read_as_they_are_printed(tmp_path, text, reported, half_unit):
    def read(): return table_of(tmp_path, f"models: {{a: {{auc: '{text}'}}}}").rows
    if reported is None:  # a hyphen between limits could be a minus
        with pytest.raises(DataError, match="as it is printed"): read()
        return
    rows = read()
    assert rows["reported"].tolist() == pytest.approx(reported) and rows["half_unit"].tolist() == pytest.approx([half_unit] * len(reported))
    assert rows["number"].tolist() == ["estimate", "low", "high"][:len(reported)]


@pytest.mark.parametrize("text, says", [
    ("models: {a: {auc: 0.89}}", "quotes"), ("models: {a: {auc: high}}", "as it is printed"), ("models: {a: {auc: '0.9 [0.5, 0.8]'}}", "between its limits"),
    ("models: {a: {auc: '84.9'}}", "write the sign too"), ("models: {a: {auk: '0.9'}}", "Did you mean 'auc'"), ("models: {a: '0.9'}", "metrics of 'a'"),
    ("models: {}", "the key 'models'"), ("modells: {}", "Did you mean 'models'"), ("models: {a: {auc: '0.9'}}\ncases: many", "'cases'"),
    ("models: {a: {auc: '0.9'}}\nresamples: 0", "'resamples'"), ("models: {a: {auc: '0.9'}}\nmethod: delongs", "Did you mean 'delong'"),
    ("models: {a: {auc: '0.9'}}\ncomparisons: [{a: a, b: b, metric: auc}]", "a difference or p"),
    ("models: {a: {auc: '0.9'}}\ncomparisons: [{a: a, b: b, p: '0.1'}]", "the key 'metric'"),
    ("models: {a: {auc: '0.9'}}\ncomparisons: [{a: a, b: b, metric: auc, p: '1.2'}]", "from 0 to 1"),
    ("models: {a: {auc: '0.9'}}\ncomparisons: [{a: a, b: b, metric: auc, q: '0.1'}]", "key of a comparison"),
    ("models: [", "YAML in")])
def test_a_bad_table_is_refused(tmp_path, text, says):
    with pytest.raises(DataError, match=re.escape(says)): table_of(tmp_path, text)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="Check the path"): read_published(tmp_path / "none.yaml")
    with pytest.raises(DataError, match="holste_2021"): read_published("holste_2012")
    (tmp_path / "latin.yaml").write_bytes("title: Müller".encode("latin-1"))
    with pytest.raises(DataError, match="YAML in"): read_published(tmp_path / "latin.yaml")


def test_committed_table_is_whole():
    table = read_published("holste_2021")
    models = table.rows[table.rows["other"].isna()]
    assert models.groupby(["model", "metric"]).size().eq(3).all() and models["model"].nunique() == 14
    assert (table.cases, table.positives, table.resamples, table.method, table.synthetic) == (4909, 1006, 5000, "bootstrap", False)
    assert models["half_unit"].eq(.0005).all(), "three decimals, or one of a percentage"


# ---- what counts as agreement

def verdicts(published, resamples):
    rows = replay(published, resamples)
    return rows[rows["recomputed"].notna() & ~rows["metric"].isin(["cases", "positives"])].set_index(["model", "metric", "number"])


def test_recomputed_numbers_are_those_of_other_software(made):
    folder, claims, resamples = made
    found = verdicts(claims, resamples)
    for file in folder.glob("*/preds.csv"):
        rows = pd.read_csv(file)
        wrong, right, _ = roc_curve(rows["y_true"], rows["y_prob"], drop_intermediate=False)
        assert found.loc[(file.parent.name, "auc", "estimate"), "recomputed"] == pytest.approx(roc_auc_score(rows["y_true"], rows["y_prob"]), abs=1e-12)
        assert found.loc[(file.parent.name, "specificity_at_95_sensitivity", "estimate"), "recomputed"] == pytest.approx(1 - wrong[right >= .95].min(), abs=1e-12)
    known = intervals(resamples).set_index(["model", "metric"])
    for (model, metric, number), row in found.drop(index="p", level="number").iterrows():
        assert row["recomputed"] == known.loc[(model, metric), number] and row["difference"] == row["recomputed"] - row["reported"]


def test_the_planted_misprint_and_nothing_else_is_found(made):
    _, claims, resamples = made
    rows = replay(claims, resamples)
    assert rows.loc[rows["verdict"] == "differs", ["model", "metric", "number"]].values.tolist() == [["non-image-only", "auc", "estimate"]]
    assert set(rows.loc[rows["verdict"] == "no predictions", "model"]) == {"probability-fusion"} and len(missing_table(rows)) == 1
    assert "Not so: Non-image-only, AUC" in replay_claim(rows)


@pytest.mark.parametrize("number, name", [("estimate", "estimate"), ("low", "lower limit"), ("high", "upper limit")])
def test_a_wrong_number_is_flagged(made, number, name):
    _, claims, resamples = made
    one = (claims.rows["model"] == "image-only") & (claims.rows["metric"] == "auc") & (claims.rows["number"] == number)
    off = replace(claims, rows=claims.rows.assign(reported=claims.rows["reported"] + .02 * one))
    assert verdicts(off, resamples).loc[("image-only", "auc", number), "verdict"] == "differs"
    shown = replay_table(replay(off, resamples)).query("Model == 'Image-only' and Number == 'AUC'")
    assert shown["Agrees"].tolist() == [f"NO: {name}"]


def test_an_estimate_agrees_to_the_last_printed_digit(made, tmp_path):
    resamples = made[2]
    area = intervals(resamples).set_index(["model", "metric"]).loc[("image-only", "auc"), "estimate"]
    def verdict(value, digits): return verdicts(table_of(tmp_path, f"models: {{Image_Only: {{auc: '{value:.{digits}f}'}}}}"), resamples)["verdict"].iloc[0]
    for digits in (1, 2, 3, 4, 6):
        assert verdict(area, digits) == "as printed"
        for step in (-1, 1): assert verdict(round(area, digits) + step * 10.0 ** -digits, digits) == "differs"


def test_limits_may_differ_by_the_monte_carlo_error_of_both(made, tmp_path):
    """The errors shrink with the resamples of either; where theirs are not told, they are taken to be as many as ours."""
    resamples = made[2]
    row = intervals(resamples).set_index(["model", "metric"]).loc[("image-only", "auc")]
    def allowed(more=""):
        text = f"models: {{image-only: {{auc: '{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]'}}}}\n{more}"
        found = verdicts(table_of(tmp_path, text), resamples)
        assert set(found["verdict"]) == {"as printed"}
        return found.droplevel([0, 1])["allowed"]
    assert allowed()["estimate"] == pytest.approx(.0005)
    assert allowed()["low"] == pytest.approx(.0005 + 3 * np.sqrt(2) * row["low_mc"])
    assert allowed("resamples: 500")["high"] == pytest.approx(.0005 + 3 * np.sqrt(1 + 2000 / 500) * row["high_mc"])
    low = f"{row['low'] + 2 * row['low_mc'] + .0005:.3f}"
    text = f"models: {{image-only: {{auc: '{row['estimate']:.3f} [{low}, {row['high']:.3f}]'}}}}"
    assert verdicts(table_of(tmp_path, text), resamples).loc[("image-only", "auc", "low"), "verdict"] == "within Monte Carlo error"


@pytest.mark.parametrize("a, p, verdict", [
    ("learned-feature-fusion", "<0.001", "as printed"), ("learned-feature-fusion", ">0.5", "differs"), ("learned-feature-fusion", "0.000", "as printed"),
    ("learned-feature-fusion", "P = 0.002", "differs"), ("non-image-only", "<0.001", "differs"), ("non-image-only", "<0.9", "as printed")])
def test_p_values_and_their_bounds(made, tmp_path, a, p, verdict):
    text = f"models: {{image-only: {{auc: '0.5'}}}}\ncomparisons: [{{a: {a}, b: image-only, metric: auc, p: '{p}'}}]"
    assert verdicts(table_of(tmp_path, text), made[2]).loc[(a, "auc", "p"), "verdict"] == verdict


def test_a_difference_has_the_sign_of_the_order_in_which_it_was_printed(made, tmp_path):
    resamples = made[2]
    there = compare_models(resamples, reference="image-only").set_index("model_a").loc["learned-feature-fusion"]
    for a, b, sign in (("learned-feature-fusion", "image-only", 1), ("image-only", "learned-feature-fusion", -1)):
        d, low, high = (sign * there[k] for k in ("difference", *(("low", "high") if sign > 0 else ("high", "low"))))
        text = f"models: {{image-only: {{auc: '0.5'}}}}\ncomparisons: [{{a: {a}, b: {b}, metric: auc, difference: '{d:.3f} [{low:.3f}, {high:.3f}]'}}]"
        assert verdicts(table_of(tmp_path, text), resamples)["verdict"].tolist() == ["differs", *["as printed"] * 3]


def test_delong_is_set_beside_delong(made, tmp_path):
    """Nothing is drawn, so there is no error but that of rounding; other metrics keep the bootstrap."""
    resamples = made[2]
    model, pair = delong_intervals(resamples.scores).set_index("model").loc["image-only"], delong_compare(resamples.scores, reference="image-only")
    pair = pair.set_index("model_a").loc["non-image-only"]
    text = (f"method: delong\nmodels: {{image-only: {{auc: '{model['estimate']:.4f} [{model['low']:.4f}, {model['high']:.4f}]', specificity_at_95_sensitivity: '1.0%'}}}}\n"
            f"comparisons: [{{a: non-image-only, b: image-only, metric: auc, difference: '{pair['difference']:.4f}', p: '{pair['p']:.4f}'}}]")
    rows = verdicts(table_of(tmp_path, text), resamples)
    assert (rows.loc[(slice(None), "auc"), "verdict"] == "as printed").all() and len(rows) == 6
    assert (rows.loc[(slice(None), "auc"), "allowed"] < .000051).all()
    wrong = verdicts(table_of(tmp_path, text.replace(f"{model['low']:.4f}", f"{model['low'] - .0002:.4f}")), resamples)
    assert wrong.loc[("image-only", "auc", "low"), "verdict"] == "differs"


def test_other_cases_are_found_by_their_number(made):
    _, claims, resamples = made
    rows = replay(replace(claims, cases=501, positives=None), resamples)
    assert rows.loc[rows["metric"].isin(["cases", "positives"]), ["recomputed", "verdict"]].values.tolist() == [[500.0, "differs"]]


def test_what_replay_refuses(made):
    folder, claims, resamples = made
    with pytest.raises(DataError, match="all of published.metrics"): replay(claims, bootstrap_metrics(resamples.scores, "auc", n=10))
    twins = replace(resamples.scores, models=("image-only", "Image_only", "c"))
    with pytest.raises(DataError, match="hyphens and capitals"): replay(claims, bootstrap_metrics(twins, claims.metrics, n=10))
    strangers = bootstrap_metrics(replace(resamples.scores, models=("x", "y", "z")), claims.metrics, n=10)
    with pytest.raises(DataError, match="Call the files as the models"): replay_table(replay(claims, strangers))
    assert "No published number can be recomputed" in replay_claim(replay(claims, strangers))


def test_predictions_that_are_made_again_are_the_same(made, tmp_path):
    again = make_published(tmp_path, n=500)
    assert again.read_text() == (made[0] / "published.yaml").read_text()
    assert all((tmp_path / file.relative_to(made[0])).read_bytes() == file.read_bytes() for file in made[0].glob("*/preds.csv"))


# ---- the real predictions

@pytest.mark.parametrize("seed", [0, 1, 2])
def test_published_rows_of_holste_2021(data_dir, seed):
    published = read_published("holste_2021")
    rows = replay(published, bootstrap_metrics(read_folder(data_dir / "breast_mri_fusion"), published.metrics, n=5000, seed=seed))
    again = rows[rows["verdict"] != "no predictions"]
    assert set(again["verdict"]) <= {"as printed", "within Monte Carlo error"} and len(again) == 2 + 12 + 2
    assert (again.loc[again["number"] == "estimate", "verdict"] == "as printed").all()
    found = again.set_index(["model", "metric", "number"])["recomputed"]
    for model, auc, specificity in (("image-only", .849, 30.1), ("learned-feature-fusion", .898, 49.1)):
        assert round(found[model, "auc", "estimate"], 3) == auc and round(100 * found[model, "specificity_at_95_sensitivity", "estimate"], 1) == specificity
    limits = again[again["number"].isin(["low", "high"])]
    assert (limits.loc[limits["metric"] == "auc", "difference"].abs() < .002).all()
    assert (rows["verdict"] == "no predictions").sum() == 80 and len(missing_table(rows)) == 16


def test_a_misprint_in_a_copy_of_the_table_is_found(data_dir, repo, tmp_path):
    text = (repo / "nbs" / "studies" / "published" / "holste_2021.yaml").read_text()
    (tmp_path / "misprint.yaml").write_text(text.replace("0.898 [0.885, 0.909]", "0.889 [0.885, 0.909]").replace("[38.8%, 55.3%]", "[38.8%, 53.5%]"))
    published = read_published(tmp_path / "misprint.yaml")
    rows = replay(published, bootstrap_metrics(read_folder(data_dir / "breast_mri_fusion"), published.metrics, n=5000))
    assert rows.loc[rows["verdict"] == "differs", ["model", "printed"]].values.tolist() == [["learned-feature-fusion", "0.889"], ["learned-feature-fusion", "53.5"]]


# ---- the study

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on the synthetic stand-in, with few resamples."""
    return run_study(STUDY, params=FAST, out=tmp_path_factory.mktemp("default"), progress=False)


def test_run_is_complete(run):
    files = ["report.html", "executed.html", "summary.json", "replayed.parquet", "predictions.parquet", "metrics.parquet", "comparisons.parquet",
             "calibration.parquet", "calibration_platt.parquet", "fusion_gain.parquet", "calibrators/image-only.json"]
    files += [f"tables/{name}.{kind}" for kind in ("html", "csv", "parquet") for name in (
        "files", "replayed", "replayed_tests", "not_recomputable", "metrics", "comparisons_auc", "comparisons_specificity_at_95_sensitivity", "fusion_gain",
        "calibration", "calibration_platt", "useful_thresholds")]
    files += [f"figures/{name}.{kind}" for kind in ("png", "svg") for name in (
        "roc", "precision_recall", "resampled_difference", "reliability", "reliability_platt", "decision_curve", "decision_curve_platt")]
    assert not [name for name in files if not (run / name).is_file() or not (run / name).stat().st_size]
    assert read_json(run / "record.json")["status"] == "finished"
    outputs = [o for c in nbformat.read(run / "executed.ipynb", 4).cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] in ("error", "stream")]


def test_synthetic_numbers_are_never_set_beside_published_ones(run):
    assert read_json(run / "summary.json")["synthetic"] is True and "synthetic" in read_json(run / "summary.json")["cohort"].lower()
    pages = [run / "report.html", run / "executed.html", *run.glob("tables/*.html"), *run.glob("figures/*.svg")]
    stamp = re.compile("(>|<!-- )synthetic data")
    assert len(pages) == 2 + 11 + 7 and not [page.name for page in pages if not stamp.search(page.read_text())]
    assert not re.search(r"0\.849|0\.898|4,909", (run / "report.html").read_text())


def test_report_loads_nothing_and_shows_the_misprint(run):
    html = (run / "report.html").read_text()
    assert not re.search(r"""<(script|link|iframe)\b|@import|url\(|(?:src|href)\s*=\s*["']?(?:\w+:)?//""", html)
    assert html.count("data:image/png") == 7 and "NO: estimate" in html and "no patient id was published" in html
    assert read_json(run / "summary.json")["headline"].startswith("Of the published numbers 5 of 6 estimates agree")
    shown = pd.read_csv(run / "tables" / "replayed.csv")
    assert shown["Agrees"].str.startswith("NO").sum() == 1


def test_late_fusion_is_added_where_both_modalities_are_there(run):
    pred = pd.read_parquet(run / "predictions.parquet").pivot(index="case_id", columns="model", values="score_positive")
    assert list(pred) == ["image-only", "late_fusion", "learned-feature-fusion", "non-image-only"]
    np.testing.assert_allclose(pred["late_fusion"], expit((logit(pred["image-only"]) + logit(pred["non-image-only"])) / 2), atol=1e-6)
    rows = pd.read_parquet(run / "comparisons.parquet")
    assert rows[rows["metric"] == "auc"].groupby("procedure").size().to_dict() == {"bootstrap": 6, "DeLong": 6, "permutation of ranks": 6}
    gain = pd.read_parquet(run / "fusion_gain.parquet")
    assert gain["model_b"].tolist() == ["image-only", "late_fusion"] and "highest AUC on these cases" in gain["against"].iloc[0]


def test_calibration_is_fitted_on_one_half_and_tested_on_the_other(run):
    tested = pd.read_parquet(run / "calibration_platt.parquet")
    error = tested[tested["metric"] == "ece"].set_index("model")["estimate"]
    fitted = [json.loads(file.read_text()) for file in run.glob("calibrators/*.json")]
    assert len(fitted) == 4 and {f["n"] for f in fitted} == {1500 - tested["n"].iloc[0]} == {750} and {f["n_positive"] for f in fitted} == {165}
    for model in ("image-only", "non-image-only", "late_fusion", "learned-feature-fusion"): assert error[f"{model}, Platt"] < .06 < .13 < error[model]


def test_study_on_the_real_predictions(data_dir, repo, tmp_path):
    studies = repo / "nbs" / "studies"
    params = check_parameters(read_parameters(studies / "params" / "breast_mri_fusion.yaml"), studies / f"{STUDY}.ipynb")
    run = run_study(STUDY, params={**params, **FAST, "data_dir": str(data_dir / "breast_mri_fusion")}, out=tmp_path, progress=False)
    summary, html = read_json(run / "summary.json"), (run / "report.html").read_text()
    assert summary["synthetic"] is False and ">synthetic data" not in html
    assert summary["headline"].startswith("Of the published numbers 4 of 4 estimates agree; 8 of 8 limits")
    assert "Of the single modalities only image-only is among the files" in html and "predictions of non-image-only it is added by itself" in html
    shown = pd.read_csv(run / "tables" / "replayed.csv").set_index(["Model", "Number"])
    assert shown.loc[("Image-only", "AUC"), "Recomputed"].startswith("0.849 [") and shown.loc[("Learned-feature-fusion", "AUC"), "Recomputed"].startswith("0.898 [")
    assert shown.loc[("Image-only", "Specificity at 95% sensitivity (%)"), "Recomputed"].startswith("30.1 [")
    assert shown.loc[("Learned-feature-fusion", "Specificity at 95% sensitivity (%)"), "Recomputed"].startswith("49.1 [")
    error = pd.read_parquet(run / "calibration_platt.parquet").query("metric == 'ece'").set_index("model")["estimate"]
    for model in ("image-only", "learned-feature-fusion"): assert error[model] > .25 and error[f"{model}, Platt"] < .04
    assert len(pd.read_csv(run / "tables" / "not_recomputable.csv")) == 16


@pytest.mark.slow
def test_other_files_of_patients_with_a_table_of_their_own(tmp_path):
    """Three files by name, with other columns, patients and case ids in another order, beside a table that prints DeLong's intervals."""
    rng = np.random.default_rng(3)
    patient = np.repeat(np.arange(60), 3)
    label = (rng.normal(size=60)[patient] + rng.normal(size=180) > .8).astype(int)
    cases = pd.DataFrame({"case": [f"c{i}" for i in range(180)], "patient": patient, "cancer": label})
    models = {"image-only": 1.0, "non-image-only": .8, "both": 1.4}
    scores = {m: expit(d * label + rng.normal(size=180)).round(6) for m, d in models.items()}
    for m, p in scores.items(): cases.assign(risk=p).sample(frac=1, random_state=len(m)).to_csv(tmp_path / f"{m}.csv", index=False)
    claims = {m: {"auc": f"{roc_auc_score(label, p):.3f}"} for m, p in scores.items()}
    (tmp_path / "them.yaml").write_text(yaml.safe_dump({"title": "Them", "source": "A test.", "method": "delong", "models": claims, "cases": 180}))
    params = {**FAST, "files": [str(tmp_path / f"{m}.csv") for m in models], "label": "cancer", "score": "risk", "group": "patient", "case_id": "case",
              "published": str(tmp_path / "them.yaml")}
    run = run_study(STUDY, params=params, out=tmp_path / "runs", progress=False)
    assert read_json(run / "summary.json")["headline"].startswith("Of the published numbers 3 of 3 estimates agree. Calibration error")
    metrics = pd.read_parquet(run / "metrics.parquet")
    assert set(metrics["model"]) == {*models, "late_fusion"} and set(metrics["n_groups"]) == {60}
    assert "Patients were drawn whole (60 of them)" in (run / "report.html").read_text()
    assert {json.loads(f.read_text())["n"] for f in run.glob("calibrators/*.json")} <= set(range(81, 100)), "patients are kept whole"


def shorter(folder): pd.read_csv(folder / "image-only" / "preds.csv").iloc[:-1].to_csv(folder / "image-only" / "preds.csv", index=False)


@pytest.mark.parametrize("spoil, published, says", [(shorter, "", "files of the same length"), pytest.param(None, "holste_2021", "Name the folder", marks=pytest.mark.slow)])
def test_what_the_study_refuses(tmp_path, spoil, published, says):
    if spoil: spoil(make_published(tmp_path / "made", n=200).parent)
    params = {**FAST, "data_dir": str(tmp_path / "made") if spoil else "", "published": published}
    with pytest.raises(StudyError, match=says): run_study(STUDY, params=params, out=tmp_path / "runs", progress=False)
