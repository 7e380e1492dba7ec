"""The study from raw files to a report: what a run leaves, that it can be repeated bit for bit, and that no test case leaks into a fit."""
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

import fusion_nb.study
import fusion_nb.train
from fusion_nb.data.breast_lesions import read_breast_lesions
from fusion_nb.data.images import decode_images
from fusion_nb.data.paired import Columns
from fusion_nb.data.synthetic import make_paired, read_synthetic
from fusion_nb.fusion import MODELS
from fusion_nb.launch import StudyError, check_parameters, read_parameters, run_study
from fusion_nb.metrics import auc
from fusion_nb.operating_point import choose_threshold, fit_calibrator, read_fitted
from fusion_nb.predictions import prediction_rows, score_matrix
from fusion_nb.runs import read_json, run_lock
from fusion_nb.schema import DataError
from fusion_nb.splits import holdout, kfold
from fusion_nb.study import Recipe, calibrate, cross_fit, make_fold, on_validation, seed_estimates, train_model
from fusion_nb.train import TrainConfig

STUDY = "imaging_clinical"
RANKING, PROBABILITIES = {"auc", "average_precision", "specificity_at_95_sensitivity"}, {"brier", "ece", "calibration_slope"}
CALLS = {"sensitivity", "specificity", "accuracy", "f1"}
SMALL = {"n_patients": 120, "image_size": 16, "models": ["image_only", "table_only", "learned_concat"], "epochs": 30, "patience": 30,
         "seeds": [0], "seed": 1, "tta": 1, "n_resamples": 200, "n_permutations": 2, "jobs": 1}


# ---- what the default run leaves

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with every parameter at its default, <out>/imaging_clinical/<id>."""
    return run_study(STUDY, out=tmp_path_factory.mktemp("default"), progress=False)


@pytest.fixture(scope="module")
def tables(run):
    """The Parquet files of the default run, by name."""
    return {file.stem: pd.read_parquet(file) for file in run.glob("*.parquet")}


@pytest.fixture(scope="module")
def best(tables):
    """The rows of each model's best run, chosen here again: the one with the highest AUC on validation."""
    pred = tables["predictions"]
    val = pred[pred["split"] == "val"].groupby(["model", "run"])[["label", "score_malignant"]]
    auc = val.apply(lambda rows: roc_auc_score(rows["label"], rows["score_malignant"]))
    chosen = {model: auc[model].idxmax() for model in auc.index.unique("model")}
    return pred[pred["run"] == pred["model"].map(chosen)]


def parts(rows, model):
    """Label and score of one model on validation and on test."""
    rows = rows[rows["model"] == model]
    return [(part["label"].to_numpy(), part["score_malignant"].to_numpy()) for part in (rows[rows["split"] == split] for split in ("val", "test"))]


def auc_of(tables, model): return tables["metrics"].query("model == @model and metric == 'auc'").iloc[0]


def test_run_is_finished_and_complete(run):
    record = read_json(run / "record.json")
    assert record["status"] == "finished" and record["attempt"] == 1 and record["seeds"] == {"seeds": [0, 1], "seed": 0}
    files = ["executed.ipynb", "executed.html", "report.html", "summary.json"]
    files += [f"{name}.parquet" for name in (
        "predictions", "histories", "metrics", "metrics_calibrated", "metrics_ensemble", "operating_points", "seeds", "fusion_gain", "comparisons", "tests_agree", "importance")]
    files += [f"tables/{name}.{kind}" for kind in ("html", "csv", "parquet") for name in (
        "cohort", "splits", "missingness", "models", "results_best_run", "results_operating_point", "results_calibration", "results_ensemble", "fusion_gain", "comparisons_auc",
        "comparisons_specificity_at_95_sensitivity", "tests_agree", "importance", "truth")]
    files += [f"figures/{name}.{kind}" for kind in ("png", "svg") for name in (
        "training_loss", "roc", "precision_recall", "resamples", "differences", "reliability", "decision_curve", "importance", "examples")]
    assert not [name for name in files if not (run / name).is_file() or not (run / name).stat().st_size]


def test_no_cell_complains(run):
    outputs = [o for c in nbformat.read(run / "executed.ipynb", 4).cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    said = "".join(o["text"] for o in outputs if o["output_type"] == "stream")
    rest = re.sub(r"(decoding images|fits):.*", "", said.replace("\r", "\n"))  # the two progress bars
    assert rest.strip() == ""


def test_report_loads_nothing_and_shows_everything(run):
    html = (run / "report.html").read_text().replace("&nbsp;", " ").replace("\xa0", " ")  # inside an interval no line breaks
    assert not re.search(r"<(script|link|iframe)\b|@import|url\(", html)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:\w+:)?//""", html)
    assert html.count("data:image/png") == 10, "a figure is missing"
    assert "What this study cannot say" in html and "How the pairs were made" in html
    for shown in pd.read_csv(run / "tables" / "results_best_run.csv")["AUC"]: assert shown in html


def test_index_links_exist(run):
    index = run.parent.parent / "index.html"
    links = [index.parent / link for link in re.findall(r'(?:href|src)="([^"#]+)"', index.read_text())]
    assert not [link for link in links if not link.is_file()]
    assert {run / "report.html", run / "executed.html", run / "executed.ipynb", run / "figures" / "roc.svg", run / "tables" / "cohort.html"} <= set(links)


def test_everything_is_marked_as_synthetic(run):
    assert read_json(run / "summary.json")["synthetic"] is True
    pages = [run / "report.html", run / "executed.html", run.parent.parent / "index.html", *run.glob("tables/*.html"), *run.glob("figures/*.svg")]
    stamp = re.compile("(>|<!-- )synthetic data")  # a badge, or a text in a figure
    assert len(pages) > 15 and not [page.name for page in pages if not stamp.search(page.read_text())]


@pytest.mark.parametrize("name, metrics", [("metrics", RANKING | CALLS | PROBABILITIES), ("metrics_ensemble", RANKING | CALLS), ("metrics_calibrated", PROBABILITIES)])
def test_every_model_has_every_metric_with_an_interval(tables, name, metrics):
    rows = tables[name]
    assert {"model", "metric", "estimate", "low", "high", "low_mc", "high_mc", "n", "n_groups"} <= set(rows.columns)
    assert set(zip(rows["model"], rows["metric"])) == {(m, k) for m in (*MODELS, "late_fusion") for k in metrics} and not rows.duplicated(["model", "metric"]).any()
    assert np.isfinite(rows[["estimate", "low", "high"]]).all(axis=None) and (rows["low"] < rows["high"]).all() and not rows["n_undefined"].any()
    assert rows[rows["metric"] != "calibration_slope"][["low", "high"]].stack().between(0, 1).all()
    inside = rows[rows["metric"] != "ece"]  # chance adds to the error of every resample: the report says so
    assert inside["estimate"].between(inside["low"], inside["high"]).all()
    assert set(rows["method"].str.split().str[0]) <= {"20,000", "5,000"} and (rows[["low_mc", "high_mc"]].max(axis=1) < .05 * (rows["high"] - rows["low"])).all()


def test_metrics_are_those_of_the_predictions(tables, best):
    """Again by scikit-learn, from the rows of the prediction table."""
    for model, rows in best[best["split"] == "test"].groupby("model"):
        known = tables["metrics"][tables["metrics"]["model"] == model].set_index("metric")
        for name, metric in {"auc": roc_auc_score, "average_precision": average_precision_score, "brier": brier_score_loss}.items():
            assert known["estimate"][name] == pytest.approx(metric(rows["label"], rows["score_malignant"]), abs=1e-12)
        assert set(known["n"]) == {len(rows)} and set(known["n_groups"]) == {rows["group"].nunique()}
    assert rows["group"].nunique() < len(rows), "several cases of a patient, so that the two counts differ"


@pytest.mark.parametrize("model", MODELS)
def test_thresholds_come_from_validation(tables, best, model):
    """By hand, on the scores as trained: a rising line changes no call."""
    (label, score), (test_label, test_score) = parts(best, model)
    sensitivity = {t: (score[label == 1] >= t).mean() for t in score}
    called = test_score >= max(t for t, share in sensitivity.items() if share >= .95)
    known = tables["metrics"][tables["metrics"]["model"] == model].set_index("metric")["estimate"]
    assert known["sensitivity"] == pytest.approx(called[test_label == 1].mean()) and known["specificity"] == pytest.approx(1 - called[test_label == 0].mean())
    youden = {t: share - (score[label == 0] >= t).mean() for t, share in sensitivity.items()}
    right = {((test_score >= t) == test_label).mean().round(9) for t, j in youden.items() if j > max(youden.values()) - 1e-12}
    assert known["accuracy"].round(9) in right


def test_calibration_comes_from_validation(run, tables, best):
    """Platt's line by scikit-learn; and the saved calibrator and threshold give the calls of the report."""
    model = tables["fusion_gain"]["model_a"].iloc[0]
    (label, score), (test_label, test_score) = parts(best, model)
    line = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(score)[:, None], label)
    known = tables["metrics_calibrated"][tables["metrics_calibrated"]["model"] == model].set_index("metric")["estimate"]
    assert known["brier"] == pytest.approx(brier_score_loss(test_label, line.predict_proba(logit(test_score)[:, None])[:, 1]), abs=1e-5)
    calibrator, threshold = (read_fitted(run / "operating_point" / f"{model}-fold0-{what}.json") for what in ("calibrator", "threshold"))
    called = calibrator.apply(test_score) >= threshold.value
    known = tables["metrics"][tables["metrics"]["model"] == model].set_index("metric")["estimate"]
    assert known["sensitivity"] == called[test_label == 1].mean() and known["specificity"] == pytest.approx(1 - called[test_label == 0].mean())
    assert threshold.target == .95 and threshold.n == calibrator.n == len(label)


def test_report_shows_the_metrics(run, tables):
    shown = pd.read_csv(run / "tables" / "results_best_run.csv")["AUC"]
    auc = tables["metrics"].query("metric == 'auc'")
    assert list(shown) == ["{estimate:.3f} [{low:.3f}, {high:.3f}]".format(**row) for row in auc.to_dict("records")]


def test_every_pair_is_compared(tables):
    rows, auc = (tables[name].query("metric == 'auc'") for name in ("comparisons", "metrics"))
    auc = auc.set_index("model")["estimate"]
    assert {frozenset(pair) for pair in zip(rows["model_a"], rows["model_b"])} == {frozenset(p) for p in combinations(auc.index, 2)} and len(rows) == 45
    assert np.allclose(rows["difference"], auc[rows["model_a"]].to_numpy() - auc[rows["model_b"]].to_numpy(), atol=1e-12)
    assert rows["difference"].between(rows["low"], rows["high"]).all()
    assert (rows["p"] <= rows["p_bh"]).all() and (rows["p_bh"] <= rows["p_holm"]).all() and (rows["p"] < rows["p_holm"]).any()
    assert (rows["p_max_t"] < rows["p_holm"] + .02).all() and (rows["p_max_t"] < rows["p_holm"] - .1).any()


def test_fusion_is_set_against_what_validation_chose(run, tables, best):
    on_val = {model: roc_auc_score(*parts(best, model)[0]) for model in MODELS}
    single, fused = (max(names, key=on_val.get) for names in (["image_only", "table_only"], [m for m in MODELS if m not in ("image_only", "table_only")]))
    gain = tables["fusion_gain"]
    assert gain[["model_a", "model_b"]].values.tolist() == [[fused, single], [fused, "late_fusion"]] and set(gain["n_seeds"]) == {2}
    auc = tables["metrics"].query("metric == 'auc'").set_index("model")["estimate"]
    assert np.allclose(gain["difference"], auc[fused] - auc[gain["model_b"]].to_numpy(), atol=1e-12)
    runs = tables["predictions"].query("split == 'test'").groupby(["model", "run"])[["label", "score_malignant"]]
    auc = runs.apply(lambda rows: roc_auc_score(rows["label"], rows["score_malignant"]))
    by_seed = [auc[fused] - auc[other] for other in gain["model_b"]]
    assert np.allclose(gain[["seeds_mean", "seeds_sd"]], [[d.mean(), d.std()] for d in by_seed], atol=1e-12)
    assert list(pd.read_csv(run / "tables" / "fusion_gain.csv")["Over seeds, mean ± sd"]) == [f"{d.mean():+.3f} ± {d.std():.3f} (2)" for d in by_seed]


def test_tests_agree(tables):
    rows = tables["tests_agree"].set_index("by")
    assert list(rows.index) == ["Bootstrap, z", "Bootstrap, percentiles", "DeLong", "Permutation of ranks"]
    assert np.ptp(rows["difference"]) < 1e-12 and (rows["p"] < .001).all() and rows.loc[["Bootstrap, z", "DeLong"], "z"].pct_change().abs().iloc[1] < .1
    assert rows.loc["DeLong", ["low", "high"]].astype(float).to_numpy() == pytest.approx(rows.loc["Bootstrap, z", ["low", "high"]].astype(float).to_numpy(), abs=.01)


def test_prediction_table_keeps_patients_apart(tables):
    pred = tables["predictions"]
    assert (pred.groupby("group")["split"].nunique() == 1).all()
    assert set(pred["model"]) == {*MODELS, "late_fusion"} and set(pred["run"]) == {0, 1}
    assert (pred.groupby(["model", "run"])["case_id"].nunique() == pred["case_id"].nunique()).all() and not pred.duplicated(["model", "run", "case_id"]).any()


def test_importance_of_every_variable(tables):
    rows = tables["importance"]
    assert set(rows["model"]) == set(MODELS) - {"image_only"}
    assert set(rows["variable"]) == {"age", "bmi", "palpable", "referral", "density", "symptoms"}
    assert (rows.groupby(["model", "variable"]).size() == 30).all()
    # each case is asked of the network that made its row in the prediction table; without augmentation, so not to the last digit
    for model in ("table_only",): assert set(rows[rows["model"] == model]["baseline"].round(12)) == {round(auc_of(tables, model)["estimate"], 12)}
    drop = rows.groupby(["model", "variable"])["drop_percent"].median()["learned_concat"]
    assert drop.idxmax() == "palpable", "the variable that carries most of what was planted"


def test_planted_interaction_is_found(run, tables):
    """Only a model that sees both can know the product; its interval lies above those of both modalities."""
    truth = pd.read_csv(run / "tables" / "truth.csv").set_index("Modality")
    chosen = truth.loc["Both", "Model"].lower().replace(" ", "_")
    assert list(truth.index) == ["Image", "Table", "Both"] and chosen in MODELS
    for fused in {chosen, "learned_concat", "learned_multiply"}:
        for single in ("image_only", "table_only"): assert auc_of(tables, fused)["low"] > auc_of(tables, single)["high"]
        assert auc_of(tables, fused)["low"] < truth.loc["Both", "Best possible AUC"], "better than possible: the label has leaked"
    headline = read_json(run / "summary.json")["headline"]
    single, = tables["fusion_gain"].query("against == 'best single modality'")["model_b"]
    other, = {"image_only", "table_only"} - {single}
    said = f"{chosen} has a higher auc than {single}, the best single modality on validation, and than {other}; it was shown to be better".replace("_", " ")
    assert said in headline.lower() and headline in (run.parent.parent / "index.html").read_text().replace("&#39;", "'")


# ---- the same again

@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a small run, every fit in one process and undisturbed."""
    return run_study(STUDY, params=SMALL, out=tmp_path_factory.mktemp("small"), progress=False)


def test_plain_papermill_in_two_processes_gives_the_same_bytes(small, repo, tmp_path):
    words = [w for name, value in {**SMALL, "jobs": 2, "out_dir": str(tmp_path / "run")}.items() for w in ("-y", f"{name}: {value}")]
    done = subprocess.run([Path(sys.executable).with_name("papermill"), repo / "nbs" / "studies" / f"{STUDY}.ipynb", tmp_path / "out.ipynb", *words],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.ipynb", "run"]
    for name in ("predictions", "metrics", "comparisons", "importance"):
        assert (tmp_path / "run" / f"{name}.parquet").read_bytes() == (small / f"{name}.parquet").read_bytes(), name


def kill_tree(process):
    """SIGKILL a process and all that it has started, and wait until they are gone."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family: member.kill()
    process.wait()
    assert not psutil.wait_procs(family, timeout=30)[1]


def test_killed_in_a_fit_and_started_again_gives_the_same_bytes(small, tmp_path):
    code = f"import sys; from fusion_nb.launch import run_study; run_study({STUDY!r}, params={SMALL!r}, out=sys.argv[1], progress=False)"
    launcher = subprocess.Popen([sys.executable, "-c", code, tmp_path], start_new_session=True)
    try:
        for _ in range(6000):
            if list(tmp_path.glob("*/*/fits/learned_concat-*/last.safetensors")) or launcher.poll() is not None: break
            time.sleep(.02)
        assert launcher.poll() is None
    finally: kill_tree(launcher)
    folder, = tmp_path.glob(f"{STUDY}/*")
    done = {f: f.stat().st_mtime_ns for f in folder.glob("fits/*/predictions.parquet")}
    assert len(done) == 2 and not (folder / "predictions.parquet").exists() and read_json(folder / "record.json")["status"] == "running"
    assert list(folder.glob("fits/learned_concat-*/last.safetensors")), "the kill came too late: give SMALL more epochs"
    assert run_study(STUDY, params=SMALL, out=tmp_path, progress=False) == folder
    assert read_json(folder / "record.json")["attempt"] == 2
    assert all(f.stat().st_mtime_ns == when for f, when in done.items()), "a finished fit is not made again"
    for name in ("predictions", "histories", "metrics"):
        assert (folder / f"{name}.parquet").read_bytes() == (small / f"{name}.parquet").read_bytes(), name


# ---- no test case leaks

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A cohort of 60 patients, its images and one split."""
    folder = tmp_path_factory.mktemp("tiny")
    people = read_synthetic(make_paired(folder / "cohort", n_patients=60, interaction=3.0, size=16))
    images = decode_images([Path(p) for p in people.table["image"]], folder / "images.npy", size=16, progress=False)
    return people, images, holdout(people.table, fractions=(.5, .2, .3))


def corrupt(people, images, rows):
    """The same cohort with everything about some of its cases replaced: label, image, and every variable by extremes, unseen or missing values."""
    rng, table, images = np.random.default_rng(0), people.table.copy(), images.copy()
    images[rows] = rng.integers(0, 256, images[rows].shape, dtype=np.uint8)
    wrong = {"continuous": [1e9, -1e9, np.nan], "categorical": ["unheard of", None, "no"], "multi": [("unheard of", "pain"), None, ()]}
    for v in people.variables:
        values = wrong.get(v.kind, [v.levels and v.levels[-1], None])
        column = table[v.name].astype(object)
        for i, row in enumerate(rows): column.iloc[row] = values[i % len(values)]
        table[v.name] = column.astype(float) if v.kind == "continuous" else column
    table.loc[table.index[rows], "label"] = 1 - table["label"].to_numpy()[rows]
    return replace(people, table=table), images


def everything_fitted(people, images, splits, folder):
    """What a fold learns: the preprocessing, and each model's history and weights; and what it says about the test cases."""
    fold = make_fold(people, images, splits, 0)
    recipe = Recipe(config=TrainConfig(lr=.01, batch_size=32, epochs=2), hidden=(8, 8))
    fits = {name: train_model(recipe, name, fold, seed=0, folder=folder) for name in MODELS}
    return fold, {name: (history, {k: t.clone() for k, t in model.state_dict().items()}) for name, (model, history) in fits.items()}


def same_fit(a, b):
    (history, weights), (other_history, other_weights) = a, b
    return history.equals(other_history) and weights.keys() == other_weights.keys() and all(torch.equal(w, other_weights[k]) for k, w in weights.items())


def test_corrupt_test_cases_change_nothing_that_is_fitted(tiny, tmp_path):
    people, images, splits = tiny
    fold, fits = everything_fitted(*tiny, tmp_path / "clean")
    test = fold.rows("test")
    bad_fold, bad_fits = everything_fitted(*corrupt(people, images, test), splits, tmp_path / "corrupt")
    assert (bad_fold.data.labels[test] != fold.data.labels[test]).all() and (bad_fold.data.images[test] != fold.data.images[test]).any(axis=(1, 2, 3)).all()
    assert (bad_fold.data.table[test] != fold.data.table[test]).any(axis=1).mean() > .9
    assert bad_fold.preprocessor.to_json() == fold.preprocessor.to_json()
    rest = np.setdiff1d(np.arange(len(people)), test)
    assert np.array_equal(bad_fold.data.table[rest], fold.data.table[rest])
    assert not [name for name in MODELS if not same_fit(fits[name], bad_fits[name])]


def test_one_corrupt_training_case_changes_all_that_is_fitted(tiny, tmp_path):
    """So that the test above can fail."""
    people, images, splits = tiny
    fold, fits = everything_fitted(*tiny, tmp_path / "clean")
    bad_fold, bad_fits = everything_fitted(*corrupt(people, images, fold.rows("train")[:1]), splits, tmp_path / "corrupt")
    assert bad_fold.preprocessor.to_json() != fold.preprocessor.to_json()
    assert not [name for name in MODELS if same_fit(fits[name], bad_fits[name])]


def test_a_fit_is_not_taken_for_that_of_other_data(tiny, tmp_path):
    """Clean and corrupt data share a folder here, and each finds its own fits."""
    people, images, splits = tiny
    recipe = Recipe(models=("table_only",), config=TrainConfig(lr=.01, batch_size=32, epochs=2), hidden=(8, 8))
    first, _ = cross_fit(people, images, splits, recipe, folder=tmp_path, progress=False)
    rows = np.flatnonzero(people.table["case_id"].isin(splits.loc[splits["split"] == "test", "case_id"]))
    second, _ = cross_fit(*corrupt(people, images, rows), splits, recipe, folder=tmp_path, progress=False)
    again, _ = cross_fit(people, images, splits, recipe, folder=tmp_path, progress=False)
    test = first["split"] == "test"
    assert first[~test].equals(second[~test]) and (first.loc[test, "label"] != second.loc[test, "label"]).all()
    assert first.equals(again) and len(list(tmp_path.iterdir())) == 2


def toy_predictions(split=("val", "test"), n=40, seed=0):
    """Two folds of one model; in fold 1 validation ranks the cases the wrong way round."""
    rng, tables = np.random.default_rng(seed), []
    for fold, sign in enumerate((1, -1)):
        for part in split:
            label = rng.integers(0, 2, n)
            cases = pd.DataFrame({"case_id": [f"{fold}{part}{i:02d}" for i in range(n)], "label": label, "split": part})
            tables.append(prediction_rows(cases, expit(sign * (2 * label - 1) + rng.normal(size=n)), model="toy", fold=fold))
    return pd.concat(tables, ignore_index=True)


def test_the_test_part_has_no_say_in_calibration_and_thresholds():
    pred = toy_predictions()
    test = pred["split"] == "test"
    wrong = pred.assign(label=pred["label"].where(~test, 1 - pred["label"]), score_positive=pred["score_positive"].where(~test, .5))
    assert calibrate(wrong)[1] == calibrate(pred)[1] and on_validation(wrong, choose_threshold) == on_validation(pred, choose_threshold)
    val = wrong.assign(label=wrong["label"].where(wrong.index > 0, 1 - wrong["label"]))  # so that this can fail
    assert calibrate(val)[1] != calibrate(pred)[1]


def test_scores_stay_where_validation_cannot_teach():
    pred = toy_predictions()
    parted = pred.assign(score_positive=pred["score_positive"].where(pred["fold"] == 1, .2 + .6 * pred["label"]))
    for table, taught in ((pred, [True, False]), (parted, [False, False])):
        done, fitted = calibrate(table)
        assert [fitted["toy", fold] is not None for fold in (0, 1)] == taught
        for fold in (0, 1): assert done.loc[done["fold"] == fold, "score_positive"].equals(table.loc[table["fold"] == fold, "score_positive"]) != taught[fold]


def test_calibrated_rows_are_those_of_their_fold():
    pred = toy_predictions().sample(frac=1, random_state=0)  # in any order, with any index
    pred.index = np.zeros(len(pred), int)
    done, fitted = calibrate(pred)
    mine = (pred["fold"] == 0).to_numpy()
    assert done["case_id"].equals(pred["case_id"]) and np.array_equal(done["score_positive"].to_numpy()[mine], fitted["toy", 0].apply(pred["score_positive"].to_numpy()[mine]))


@pytest.mark.parametrize("change, got", [(lambda p: pd.concat([p, p.assign(run=1)]), "2 runs of 'toy' in fold 0"),
                                         (lambda p: p[(p["split"] == "test") | (p["fold"] == 0)], "no validation of 'toy' in fold 1")])
def test_one_run_with_validation_is_asked_for(change, got):
    with pytest.raises(DataError, match=got): on_validation(change(toy_predictions()), auc)


# ---- several classes, one modality, and a fusion of trained branches

QUICK = TrainConfig(lr=.01, batch_size=32, epochs=3, augment=False, accelerator="cpu")
IMAGE, RECORD = Recipe(models=("image_only",), hidden=(), tta=0, config=QUICK), Recipe(models=("table_only",), hidden=(16, 8), batch_norm=True, tta=0, config=QUICK)
JOINED = Recipe(models=("embedding_concat",), hidden=(16, 8), branches=(IMAGE, RECORD), tta=0, config=QUICK)
SCORES = ["score_a", "score_b", "score_c"]


@pytest.fixture(scope="module")
def three(tiny):
    """The tiny cohort in three classes: the positive cases are parted by age."""
    people, images, _ = tiny
    label = people.table["label"] * (1 + (people.table["age"] > people.table["age"].median()))
    people = replace(people, table=people.table.assign(label=label), classes=("a", "b", "c"))
    return people, images, kfold(people.table, n_splits=2, val_fraction=.3)


def test_three_classes_in_every_form_of_cohort(three, tmp_path):
    people, images, splits = three
    pictures, seen = replace(people, variables=()), []
    for who, picture, recipe in ((people, images, JOINED), (people, None, RECORD), (pictures, images, IMAGE)):
        pred, history = cross_fit(who, picture, splits, recipe, folder=tmp_path, progress=False)
        assert list(pred.columns[-3:]) == SCORES and np.allclose(pred[SCORES].sum(axis=1), 1) and set(pred["label"]) == {0, 1, 2}
        assert len(pred) == 2 * len(people) and history.groupby("fold")["val_macro_f1"].count().eq(3).all()
        seen.append(pred)
    pred = pd.concat(seen, ignore_index=True)
    scores, macro = score_matrix(pred), seed_estimates(pred).set_index("model")["estimate"]
    assert scores.classes == ("a", "b", "c") and scores.scores.shape == (len(people), 3, 3)
    for i, model in enumerate(scores.models):
        assert macro[model] == pytest.approx(roc_auc_score(scores.label, scores.scores[:, i], multi_class="ovr"), abs=1e-12)
    assert on_validation(pred, lambda label, score: score.shape[1]) == {(m, f): 3 for m in scores.models for f in (0, 1)}


def test_branches_side_by_side_or_one_after_the_other_are_the_same(three, tmp_path):
    people, images, splits = three
    alone, _ = cross_fit(people, images, splits, JOINED, folder=tmp_path / "one", progress=False)
    recipe = replace(JOINED, models=("image_only", "embedding_concat"), hidden=(16, 8))  # this image_only has another head: it is no branch
    aside, _ = cross_fit(people, images, splits, recipe, folder=tmp_path / "two", jobs=2, progress=False)
    fused = aside[aside["model"] == "embedding_concat"].reset_index(drop=True)
    assert alone.equals(fused) and len(list((tmp_path / "one").iterdir())) == 6 and len(list((tmp_path / "two").iterdir())) == 8


@pytest.mark.parametrize("freeze", [True, False])
def test_fusion_starts_from_the_branches_of_its_fold_and_seed(three, tmp_path, freeze):
    people, images, splits = three
    recipe = replace(JOINED, freeze=freeze, config=replace(QUICK, lr=1e-7))
    for number, seed in ((0, 0), (0, 1), (1, 0)):
        fold = make_fold(people, images, splits, number)
        image, record = (train_model(r, r.models[0], fold, seed=seed, folder=tmp_path)[0].state_dict() for r in (IMAGE, RECORD))
        fused = train_model(recipe, "embedding_concat", fold, seed=seed, folder=tmp_path)[0].state_dict()
        weights = [(fused[f"encoder.{k.removeprefix('encoder.')}"], t) for k, t in image.items() if k.startswith("encoder.")]
        weights += [(fused[f"table_encoder.{k.removeprefix('head.0.')}"], t) for k, t in record.items() if k.startswith("head.0.")]
        weights = [(a, b) for a, b in weights if a.is_floating_point()]
        assert all(torch.equal(a, b) for a, b in weights) == freeze and len(weights) == 15 + 12
        near = [torch.allclose(a, b, atol=1e-5) for a, b in weights if a.ndim > 1]
        assert all(near) and len(near) == 3 + 2  # fine-tuned at a rate of next to nothing they are the same too, but for the last digits


def test_who_asks_for_a_fit_that_another_is_at_waits(three, tmp_path, monkeypatch):
    people, images, splits = three
    fold, fit, begun, fits = make_fold(people, images, splits, 0), fusion_nb.study.fit, threading.Event(), []

    def told(*args, **how):
        begun.set()
        return fit(*args, **how)

    monkeypatch.setattr(fusion_nb.study, "fit", told)
    place, _ = fusion_nb.study._fit_folder(tmp_path, RECORD, fold, "table_only", 0)
    asking = threading.Thread(target=lambda: fits.append(train_model(RECORD, "table_only", fold, seed=0, folder=tmp_path)))
    place.mkdir()
    with run_lock(place):
        asking.start()
        assert not begun.wait(2)
    asking.join()
    assert begun.is_set() and len(fits) == 1 and len(fits[0][1])


def test_killed_fusion_goes_on_and_its_branches_stay(three, tmp_path, monkeypatch):
    people, images, splits = three
    whole, _ = cross_fit(people, images, splits, JOINED, folder=tmp_path / "whole", progress=False)
    save, epochs = fusion_nb.train._save, []

    def killed(task, *args):
        save(task, *args)
        epochs.append("embedding_concat" in str(task.folder))
        if sum(epochs) == 2: raise KeyboardInterrupt

    monkeypatch.setattr(fusion_nb.train, "_save", killed)
    with pytest.raises(KeyboardInterrupt): cross_fit(people, images, splits, JOINED, folder=tmp_path / "killed", progress=False)
    monkeypatch.setattr(fusion_nb.train, "_save", save)
    done = {f: f.stat().st_mtime_ns for f in (tmp_path / "killed").glob("*_only-*/best.safetensors")}
    assert len(done) == 4 and list((tmp_path / "killed").glob("embedding_concat-*/last.safetensors"))
    resumed, _ = cross_fit(people, images, splits, JOINED, folder=tmp_path / "killed", progress=False)
    assert resumed.equals(whole) and all(f.stat().st_mtime_ns == when for f, when in done.items())


def test_corrupt_test_cases_change_no_branch_and_no_fusion(tiny, tmp_path):
    people, images, splits = tiny
    fold = make_fold(people, images, splits, 0)

    def weights(who, pictures, folder):
        model, history = train_model(JOINED, "embedding_concat", make_fold(who, pictures, splits, 0), seed=0, folder=folder)
        return history, {k: t.clone() for k, t in model.state_dict().items()}

    clean = weights(people, images, tmp_path / "clean")
    assert same_fit(clean, weights(*corrupt(people, images, fold.rows("test")), tmp_path / "bad"))
    assert not same_fit(clean, weights(*corrupt(people, images, fold.rows("train")[:1]), tmp_path / "other"))  # so that this can fail


@pytest.mark.parametrize("lacking, recipe, message", [
    ("images", JOINED, "need no images.*Got embedding_concat. Give models=\\('table_only',\\)"),
    ("images", replace(IMAGE, models=("table_only", "image_only")), "Got image_only"),
    ("variables", RECORD, "need no variables.*Got table_only. Give models=\\('image_only',\\)")])
def test_models_of_what_is_not_there_are_refused_before_anything_is_trained(three, tmp_path, lacking, recipe, message):
    people, images, splits = three
    who, seen = (people, None) if lacking == "images" else (replace(people, variables=()), images)
    with pytest.raises(DataError, match=message): cross_fit(who, seen, splits, recipe, folder=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_class_without_a_case_is_refused(three, tmp_path):
    people, images, splits = three
    with pytest.raises(DataError, match="a case of every class. Got none of d"):
        cross_fit(replace(people, classes=("a", "b", "c", "d")), images, splits, IMAGE, folder=tmp_path, progress=False)
    lacks = splits.assign(split=splits["split"].mask(splits["case_id"].isin(people.table.query("label == 2")["case_id"]), "test"))
    with pytest.raises(DataError, match=r"training cases of every class. Got \[\d+, \d+, 0\]"):
        cross_fit(people, images, lacks, IMAGE, folder=tmp_path, progress=False)


@pytest.mark.parametrize("branches", [(RECORD, IMAGE), (IMAGE, IMAGE), (IMAGE, replace(RECORD, models=("image_only", "table_only")))])
def test_branches_that_cannot_be_are_refused(branches):
    with pytest.raises(DataError, match="models=\\('image_only',\\), one with models=\\('table_only',\\)"): replace(JOINED, branches=branches)


def toy_classes(n=90, seed=0):
    """Predictions of three classes in two folds; in fold 1 the first class is ranked the wrong way round."""
    rng, tables = np.random.default_rng(seed), []
    for fold, sign in enumerate((1, -1)):
        for part in ("val", "test"):
            label = np.r_[0, 1, 2, rng.integers(0, 3, n - 3)]
            z = 2 * np.eye(3)[label] * [sign, 1, 1] + rng.normal(size=(n, 3))
            cases = pd.DataFrame({"case_id": [f"{fold}{part}{i:02d}" for i in range(n)], "label": label, "split": part})
            tables.append(prediction_rows(cases, pd.DataFrame(softmax(z, axis=1), columns=list("abc")), model="toy", fold=fold))
    return pd.concat(tables, ignore_index=True)


def test_classes_share_a_temperature_learned_on_validation():
    pred = toy_classes()
    done, fitted = calibrate(pred)
    for fold in (0, 1):
        mine, val = (pred["fold"] == fold).to_numpy(), pred.query("fold == @fold and split == 'val'")
        alone = fit_calibrator(val["label"].to_numpy(), val[SCORES].to_numpy(), method="temperature")
        assert fitted["toy", fold] == alone and np.allclose(done.loc[mine, SCORES], alone.apply(pred.loc[mine, SCORES].to_numpy()), atol=1e-12)
    assert np.allclose(done[SCORES].sum(axis=1), 1)
    test = pred["split"] == "test"
    wrong = pred.assign(label=pred["label"].where(~test, 2 - pred["label"]))
    assert calibrate(wrong)[1] == fitted != calibrate(pred.assign(label=pred["label"].where(test, 2 - pred["label"])))[1]


def test_scores_of_several_classes_stay_where_they_tell_nothing():
    pred = toy_classes()
    turned = pred.assign(**dict(zip(SCORES, np.roll(pred[SCORES].to_numpy(), 1, axis=1).T)))
    done, fitted = calibrate(turned)
    assert fitted["toy", 0] is None and done.loc[done["fold"] == 0].equals(turned.loc[turned["fold"] == 0])


# ---- real data

@pytest.fixture(scope="module")
def lesions(data_dir): return data_dir / "breast_lesions_usg"


@pytest.fixture(scope="module")
def real(repo, lesions, tmp_path_factory):
    """The folder of a five-fold run on BrEaST, with the parameters of the checkout but fewer models, smaller images and less patience."""
    quick = {"models": ["image_only", "table_only"], "image_size": 32, "epochs": 20, "lr": .003, "augment": False, "tta": 0, "n_resamples": 500, "n_permutations": 2, "jobs": 1}
    params = read_parameters(repo / "nbs" / "studies" / "params" / "breast_lesions.yaml") | quick | {"data_dir": str(lesions)}
    return run_study(STUDY, params=params, out=tmp_path_factory.mktemp("real"), progress=False)


def test_real_cases_are_all_predicted_out_of_fold(real):
    pred = pd.read_parquet(real / "predictions.parquet")
    test = pred[pred["split"] == "test"]
    assert set(test["model"]) == {"image_only", "table_only", "late_fusion"} and set(test["fold"]) == set(range(5))
    for _, rows in test.groupby("model"): assert len(rows) == rows["case_id"].nunique() == rows["group"].nunique() == 252
    assert (pred.groupby(["model", "fold", "case_id"])["split"].nunique() == 1).all()
    assert (test.groupby("fold")["label"].nunique() == 2).all()


def test_real_record_predicts_as_published(real):
    """A plain logistic regression reaches 0.79 (test_breast_lesions.py)."""
    metrics = pd.read_parquet(real / "metrics.parquet").query("metric == 'auc'").set_index("model")
    assert .73 <= metrics.loc["table_only", "estimate"] <= .85 and set(metrics["n"]) == {252}
    pred = pd.read_parquet(real / "predictions.parquet")
    rows = pred[(pred["split"] == "test") & (pred["model"] == "table_only")]
    assert metrics.loc["table_only", "estimate"] == pytest.approx(roc_auc_score(rows["label"], rows["score_malignant"]), abs=1e-12)


def test_real_data_is_not_called_synthetic(real):
    pages = [real / "report.html", real.parent.parent / "index.html", *real.glob("tables/*.html"), *real.glob("figures/*.svg")]
    stamp = re.compile("(>|<!-- )synthetic data")  # a badge, or a text in a figure; the report's code speaks of it too
    assert len(pages) > 8 and not [page.name for page in pages if stamp.search(page.read_text())]
    assert not (real / "tables" / "truth.html").exists() and read_json(real / "summary.json")["synthetic"] is False


def test_leaks_are_no_inputs(real):
    assert set(pd.read_parquet(real / "importance.parquet")["variable"]) == {"Age", "Tissue_composition", "Signs", "Symptoms"}
    assert not [leak for leak in ("BIRADS", "Interpretation", "Verification", "Diagnosis") if leak in (real / "tables" / "cohort.html").read_text()]


def test_descriptors_predict_as_published(lesions, tmp_path):
    people = read_breast_lesions(lesions, features="descriptors")
    recipe = Recipe(models=("table_only",), config=TrainConfig(lr=.003, batch_size=32, epochs=20))
    pred, _ = cross_fit(people, None, kfold(people.table, n_splits=5), recipe, folder=tmp_path, progress=False)
    scores = score_matrix(pred)
    assert len(scores) == 252 and .86 <= roc_auc_score(scores.label, scores.scores[:, 0]) <= .95


# ---- parameters

@pytest.mark.parametrize("file", ["breast_lesions", "null_cohort", "paper_scale"])
def test_committed_parameters_are_known(repo, file):
    studies = repo / "nbs" / "studies"
    assert check_parameters(read_parameters(studies / "params" / f"{file}.yaml"), studies / f"{STUDY}.ipynb")


def test_no_committed_parameters_are_forgotten_here(repo):
    assert {f.stem for f in (repo / "nbs" / "studies" / "params").iterdir()} == {"breast_lesions", "null_cohort", "paper_scale", "breast_mri_fusion", "full_coverage", "brecahad_mimiciv", "mimic_demo", "mimic_families",
                                                                                "tcga_brca_subtype", "tcga_brca_survival", "glioma_paper_scale", "subtype_paper_scale", "survival_null", "subtype_null", "histopathology_paper_networks"}


def test_unknown_feature_set_suggests_the_near_name(tmp_path):
    data = make_paired(tmp_path / "data", n_patients=20, size=16)
    columns = Columns.from_json(data / "columns.json")
    replace(columns, feature_sets={"clinical": ("age", "palpable")}).to_json(data / "columns.json")
    with pytest.raises(StudyError, match="Did you mean 'clinical'"):
        run_study(STUDY, params={"cohort": "paired", "data_dir": str(data), "features": "clinicl"}, out=tmp_path / "runs", progress=False)
    record = read_json(next(tmp_path.glob("runs/*/*/record.json")))
    assert record["status"] == "failed" and "Did you mean 'clinical'" in record["error"] and "DataError in cell" in record["error"]


# ---- no signal, no finding

@pytest.mark.slow
def test_null_cohort_shows_nothing(repo, tmp_path):
    params = read_parameters(repo / "nbs" / "studies" / "params" / "null_cohort.yaml")
    folder = run_study(STUDY, params=params, out=tmp_path, progress=False)
    rows = pd.read_parquet(folder / "comparisons.parquet")
    assert (rows["metric"] == "auc").sum() == 45 and rows["p_holm"].min() > .05
    auc = pd.read_parquet(folder / "metrics.parquet").query("metric == 'auc'")
    assert auc["estimate"].between(.38, .62).all()
    assert re.search(r"was not shown to be better than (image|table) only, the best single modality on validation; it was not shown to be better than untrained late fusion",
                     read_json(folder / "summary.json")["headline"])
