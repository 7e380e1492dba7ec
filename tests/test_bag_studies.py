"""The studies of slides and gene expression from end to end, small: on a twin, on a folder of files, with what is missing, on real genes, and on bad input."""
import re
import shutil

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from fusion_nb.data.survival_twin import make_survival_twin
from fusion_nb.launch import check_parameters, find_studies, read_parameters, run_study
from fusion_nb.runs import read_json
from fusion_nb.schema import DataError
from fusion_nb.slide_features import extract_features
from fusion_nb.survival import harrell_c

GLIOMA, SUBTYPE = "glioma_survival", "subtype_expression"
STUDIES = (GLIOMA, SUBTYPE)
TILES = {"size": 32, "mpp": 0.5, "max_tiles": 2000, "seed": 0}
TWIN = {"n_patients": 60, "n_genes": 20, "slide_size": 128}
PATIENTS = {GLIOMA: 60, SUBTYPE: 80}  # that many leave six cases of each class to a validation part, which late regression needs
FITS = {"tile_size": 32, "bag_size": 4, "folds": 2, "val_fraction": .5, "epochs": 2, "n_resamples": 100, "seeds": [0], "jobs": 1}
SINGLES, PAIR = ["bag_attention", "genes"], ["genes", "cross_attention"]
NEAR_END = "limits = ["  # what follows is the truth, which files do not tell
TRAINED, LAST = "write_predictions(pred", "write_json({"  # stand in the cell that trains, and in the last


def carried_out(study, until, **params):
    """What the cells of a study define, as far as the one with `until` in it; without a kernel of its own, which takes longer than the cells."""
    book, names = nbformat.read(find_studies()[study], 4), {}
    given = {name: value for name, value in (FITS | params | {"out_dir": str(params["out_dir"])}).items() if value is not None}  # None: the study's default
    given = check_parameters(given, find_studies()[study])
    try:
        for cell in (c for c in book.cells if c.cell_type == "code"):
            exec(compile(cell.source, study, "exec"), names)
            if "parameters" in cell.metadata.get("tags", []): names |= given
            if "keep" in names and until != LAST: names["keep"] = lambda *drawn: None  # to save figures takes most of the time
            if until in cell.source: return names
    finally: plt.close("all")
    raise AssertionError(f"no cell of {study} has {until!r}")


def ended(study, out, **params):
    """The folder of a whole run."""
    return run_study(study, params=FITS | params, out=out, progress=False)


def scores(predictions, *models):
    """The predictions of some models in an order that does not depend on the run."""
    return predictions[predictions["model"].isin(models)].sort_values(["model", "fold", "case_id"], ignore_index=True).drop(columns="study")


def study_of(run): return read_json(run / "record.json")["study"]


def twin_of(run): return next(run.glob("twin-*"))


def features_of(twin, out):
    """The features of a twin's slides, extracted without a study."""
    slides = sorted((twin / "slides").iterdir())
    extract_features(pd.DataFrame({"slide": [p.stem for p in slides], "path": slides}), out, encoder="small_cnn", tiling=TILES, progress=False)
    return str(out)


@pytest.fixture(scope="module")
def glioma_run(tmp_path_factory):
    return ended(GLIOMA, tmp_path_factory.mktemp("glioma"), **TWIN, models=[*SINGLES, "bag_early", "cross_attention", "cross_attention_gated"], sweep_bags=[2], sweep_batches=[32], sweep_seeds=[0, 1])


@pytest.fixture(scope="module")
def subtype_run(tmp_path_factory):
    return ended(SUBTYPE, tmp_path_factory.mktemp("subtype"), **TWIN | {"n_patients": PATIENTS[SUBTYPE]}, models=[*SINGLES, "cross_attention"], augmented=1, shap_patients=3)


@pytest.fixture(scope="module", params=STUDIES)
def run(request): return request.getfixturevalue("glioma_run" if request.param == GLIOMA else "subtype_run")


@pytest.fixture(scope="module")
def files(glioma_run, tmp_path_factory):
    """Parameters by which the glioma twin is read as a folder without slides, with features that were made before; both studies can."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("rna.tsv", "clinical.csv"): shutil.copy(twin_of(glioma_run) / name, folder)
    (folder / "strangers").mkdir()
    (folder / "strangers" / "TCGA-ZZ-9999-01Z-00-DX1.svs").write_bytes(b"no slide")
    return {"cohort": "files", "data_dir": str(folder), "features": str(glioma_run / "features")}


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    """The same of 40 patients, of whom six have no RNA and six others no slide; one more has neither."""
    folder = make_survival_twin(tmp_path_factory.mktemp("gaps") / "twin", **TWIN | {"n_patients": 40}, slides_per_patient=(1, 1), missing_rna=.15, missing_slides=.15)
    made = features_of(folder, folder.parent / "features")
    clinical = pd.read_csv(folder / "clinical.csv")
    pd.concat([clinical, clinical.iloc[:1].assign(patient="TCGA-A0-9999")]).to_csv(folder / "clinical.csv", index=False)
    return {"cohort": "files", "data_dir": str(folder), "features": made}


# ---- whole runs on the twin

def test_no_patient_is_in_two_parts(run):
    pred = pd.read_parquet(run / "predictions.parquet")
    assert set(pred["split"]) == {"train", "val", "test"} and pred["fold"].nunique() == 2
    assert (pred.groupby(["model", "run", "fold", "group"])["split"].nunique() == 1).all()
    assert (pred[pred["split"] == "test"].groupby(["model", "run", "case_id"]).size() == 1).all()  # each case is tested once
    n_patients, n_slides = PATIENTS[study_of(run)], len(list((twin_of(run) / "slides").iterdir()))
    assert n_patients < n_slides and pred["group"].nunique() == n_patients and pred["case_id"].nunique() == (n_slides if study_of(run) == GLIOMA else n_patients)


def test_every_number_has_interval_and_n(run):
    results = pd.read_parquet(run / "results.parquet")
    assert (results["low"] <= results["estimate"]).all() and (results["estimate"] <= results["high"]).all() and (results["n_groups"] == PATIENTS[study_of(run)]).all() and (results["n"] >= results["n_groups"]).all()
    cell = r"[+−]?\d\.\d+ \[[+−]?\d\.\d+, [+−]?\d\.\d+\]"
    for name in ("results", "gains", "against_late", "missing", "beyond_c", "brier", "sites", "truth"):
        if not (run / "tables" / f"{name}.csv").exists(): continue
        rows = pd.read_csv(run / "tables" / f"{name}.csv")
        if name == "beyond_c": rows = rows.set_index("Measure, per patient").drop(columns="synthetic data").T.reset_index(drop=True)
        asked = [c for c in rows if re.search(r"\bC\b|AUC|Brier|Reached|F1|Accuracy|Average|\[95%|^Difference", c) and not re.search("Published|over 1 seed|planted", c)]
        assert asked and all(rows[c].str.fullmatch(cell).all() for c in asked), (name, asked, rows[asked].iloc[0].tolist())
        page = (run / "tables" / f"{name}.html").read_text()
        assert re.search(r"\d+ (test )?(patients|cases|slides)", page) or "Patients" in rows, f"the table {name!r} does not say of how many"


def test_both_studies_leave_their_tables_figures_and_rows(glioma_run, subtype_run):
    both = {"outliers", "split", "results", "gains", "against_late", "sites", "truth"}
    drawn = {"outliers", "tiles", "training_loss", "training_score", "attention_map", "top_patches", "genes"}
    parquets = {"predictions", "histories", "results", "sites", "attention", "genes"}
    of_survival = ({"folds", "beyond_c", "brier", "logrank", "random_loss", "sweep", "published", "missing"},
                   {"c_per_patient", "dynamic_auc", "brier_curve", "kaplan_meier", "calibration", "sweep", "attention_inside"}, {"sweep", "attention_inside"})
    of_classes = ({"genes_shap"}, {"auc", "roc", "precision_recall", "confusion"}, {"genes_shap"})
    for run, (tables, figures, rows) in ((glioma_run, of_survival), (subtype_run, of_classes)):
        assert both | tables <= {p.stem for p in (run / "tables").glob("*.csv")} and drawn | figures <= {p.stem for p in (run / "figures").glob("*.svg")}
        assert parquets | rows <= {p.stem for p in run.glob("*.parquet")}


def test_synthetic_is_said_everywhere(run):
    summary = read_json(run / "summary.json")
    assert summary["synthetic"] is True and "synthetic" in summary["cohort"]
    for page in (run / "tables").glob("*.html"): assert ("synthetic data</span>" in page.read_text()) == (page.stem != "published"), page.name
    for figure in (run / "figures").glob("*.svg"): assert "synthetic data" in figure.read_text(), figure.name
    report = (run / "report.html").read_text()
    assert "<li>It says nothing about patients: the cohort was made by a program." in report and "synthetic data" in (run / "tables" / "results.html").read_text().rpartition("stand beside")[2]


def test_headline_says_which_fusion_gained_or_that_none_was_shown(run):
    said = read_json(run / "summary.json")["headline"]
    rows = pd.read_parquet(run / "results.parquet")
    assert re.match(r"A gain over (bag attention|genes|age|ridge) was shown for|No fusion was shown to gain over (bag attention|genes|age|ridge) alone; that is no proof that none does\.", said)
    assert said in (run / "report.html").read_text() and set(rows["model"]) >= {*SINGLES, "cross_attention", "late_mean", "late_regression"}


def test_published_values_stand_beside_as_those_of_other_data(run):
    rows = pd.read_csv(run / "tables" / "results.csv").set_index("Model")
    published, = (c for c in rows if c.startswith("Published"))
    printed = {GLIOMA: ("Cross attention gated", "0.62 / 0.5806"), SUBTYPE: ("Cross attention", "0.9379, 0.9948")}
    model, numbers = printed[study_of(run)]
    assert rows.loc[model, published] == numbers and set(rows.drop(index=model)[published]) <= {"– / –", "–, –"}
    assert re.search("Published values are of (other data|another task)", (run / "tables" / "results.html").read_text())


def test_what_the_glioma_study_published_of_other_settings_stands_in_a_table_of_its_own(glioma_run):
    rows = pd.read_csv(glioma_run / "tables" / "published.csv", dtype=str).set_index("Model")
    assert rows.loc["Cross attention gated at a learning rate of 0.01"].tolist() == ["0.55", "0.51"] and rows.loc["Bag joint mean with batches of 256"].tolist() == ["0.656", "0.610"]
    assert len(rows) == 5 and "not results of this run" in (glioma_run / "tables" / "published.html").read_text()


def test_shap_stands_beside_integrated_gradients(subtype_run):
    found, said = pd.read_parquet(subtype_run / "genes_shap.parquet"), (subtype_run / "tables" / "genes_shap.html").read_text()
    assert len(found) == TWIN["n_genes"] and found["SHAP"].corr(found["Integrated gradients"], method="spearman") > .5
    assert re.search(r"3 test patients; SHAP from \d+ patients of the training part.*correlate with 0\.\d+ \(Spearman\)", said)


def test_training_draws_augmented_copies_and_the_report_says_so(subtype_run, files, tmp_path):
    assert "a patch or its mirrored, turned and recoloured copy is drawn" in (subtype_run / "report.html").read_text()
    data = files | {"data_dir": str(twin_of(subtype_run)), "features": str(subtype_run / "features")}
    assert carried_out(SUBTYPE, "bags = read_bags(", **data, out_dir=tmp_path)["bags"].copies == 1


def test_gains_are_against_the_better_single_modality_on_validation(glioma_run):
    rows = pd.read_parquet(glioma_run / "results.parquet").query("level == 'patient'").set_index("model")
    val = pd.read_parquet(glioma_run / "predictions.parquet").query("split == 'val' and model in ['bag_attention', 'genes', 'age']")
    c = val.groupby(["model", "fold"])[["time", "event", "score_risk"]].apply(lambda part: harrell_c(*part.to_numpy().T))
    best = c.groupby("model").mean().idxmax()
    assert set(rows["reference"]) == {best} and rows.drop(index=best)[["difference_low", "difference_high", "p_holm"]].notna().all(axis=None)


@pytest.mark.parametrize("study, file", [(SUBTYPE, "tcga_brca_subtype"), (GLIOMA, "tcga_brca_survival"), (GLIOMA, "glioma_paper_scale"), (SUBTYPE, "subtype_paper_scale"), (GLIOMA, "survival_null"), (SUBTYPE, "subtype_null")])
def test_committed_parameters_are_known(repo, study, file):
    studies = repo / "nbs" / "studies"
    assert check_parameters(read_parameters(studies / "params" / f"{file}.yaml"), studies / f"{study}.ipynb")


# ---- a folder of one's own

@pytest.mark.parametrize("kind", STUDIES)
def test_a_twin_read_as_files_gives_the_same_predictions(kind, request, tmp_path):
    run = request.getfixturevalue("glioma_run" if kind == GLIOMA else "subtype_run")
    shutil.copytree(run / "features", tmp_path / "features")  # they are known by slide and settings: nothing is encoded again
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "features").iterdir()}
    names = carried_out(kind, TRAINED, cohort="files", data_dir=str(twin_of(run)), models=PAIR, **{"augmented": 1} if kind == SUBTYPE else {}, out_dir=tmp_path)
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "features").iterdir()}
    pd.testing.assert_frame_equal(scores(names["pred"], *PAIR), scores(pd.read_parquet(run / "predictions.parquet"), *PAIR))


@pytest.mark.parametrize("kind", STUDIES)
def test_features_made_before_need_no_slides(kind, files, glioma_run, tmp_path):
    names = carried_out(kind, TRAINED, **files, models=PAIR, out_dir=tmp_path)
    assert not (tmp_path / "features").exists() and names["bags"].sizes.min() > 0
    if kind == SUBTYPE: assert (names["bags"].sizes > 16).any() and len(names["bags"]) == 60  # patients with two slides have one bag
    else: pd.testing.assert_frame_equal(scores(names["pred"], *PAIR), scores(pd.read_parquet(glioma_run / "predictions.parquet"), *PAIR))


@pytest.mark.parametrize("kind", STUDIES)
def test_the_folder_of_a_twin_is_known_as_synthetic(kind, glioma_run, tmp_path):
    names = carried_out(kind, "with_slides =", cohort="files", data_dir=str(twin_of(glioma_run)), slides="", out_dir=tmp_path)
    assert names["people"].synthetic and "synthetic data</span>" in (tmp_path / "tables" / "outliers.html").read_text()


@pytest.mark.parametrize("kind", STUDIES)
def test_without_slides_the_genes_are_asked(kind, files, tmp_path):
    names = carried_out(kind, TRAINED, **files | {"features": ""}, slides="", models=[*SINGLES, "cross_attention"], out_dir=tmp_path)
    assert names["bags"] is None and set(names["pred"]["model"]) == {"genes", "age"} if kind == GLIOMA else {"genes", "ridge"}


def test_censored_may_be_what_is_coded(files, tmp_path):
    by_status, by_censorship = (carried_out(GLIOMA, "months, event =", **files, **coding, out_dir=tmp_path)["people"].table
                                for coding in ({}, {"event_column": "censorship", "event_coded": ["censored"]}))
    pd.testing.assert_frame_equal(by_status[["case_id", "time", "event"]], by_censorship[["case_id", "time", "event"]])


@pytest.mark.parametrize("kind", STUDIES)
def test_genes_may_stand_in_rows(kind, files, tmp_path):
    as_columns = carried_out(kind, "people =", **files, out_dir=tmp_path)["people"].table
    turned = shutil.copytree(files["data_dir"], tmp_path / "data") / "rna.tsv"
    pd.read_csv(turned, sep="\t", index_col=0).T.to_csv(turned, sep="\t")
    pd.testing.assert_frame_equal(carried_out(kind, "people =", **files | {"data_dir": str(turned.parent)}, genes_in="rows", out_dir=tmp_path)["people"].table, as_columns)


def test_plain_and_site_preserving_folds_stand_side_by_side(files, tmp_path):
    names = carried_out(GLIOMA, "at = pd.concat(", **files, models=["genes"], site_seeds=[0, 1], sweep_seeds=[], out_dir=tmp_path)
    for (how, _), (cases, _, parts, _) in names["dealt"].items():
        at_sites = parts.merge(cases.table[["case_id", "site"]], on="case_id").groupby(["fold", "site"])["split"].nunique()
        assert (at_sites == 1).all() == (how == "site-preserving")
    found = names["at"].set_index(["model", "folds", "deal"]).sort_index()
    assert len(found) == 8 and set(found.index.get_level_values(0)) == {"genes", "age"} and found["estimate"].between(found["low"], found["high"]).all()
    first = pd.read_parquet(tmp_path / "results.parquet").set_index("level")["estimate"]  # the first deal of plain folds is that of the study
    assert first["patient"].round(12).isin([round(found.loc[(m, "plain", 0), "estimate"], 12) for m in ("genes", "age")]).all()


def test_hazards_of_bins_are_an_alternative_to_cox(files, tmp_path):
    names = carried_out(GLIOMA, TRAINED, **files, loss="hazard", models=PAIR, out_dir=tmp_path)
    risks = names["pred"].query("model != 'age'")["score_risk"]
    assert risks.between(-names["config"].hazard_bins, 0).all() and risks.nunique() > 100  # minus the sum of survival over the bins


UNASKED = {"one hospital": (1, {}, "site-preserving folds: .*2 folds for sites 1 of label"), "two": (2, {}, "There are no site-preserving folds: "), "none known": (0, {}, "not every patient's hospital is known"),
           "no deal": (3, {"site_seeds": []}, "not asked for"), "no model": (3, {"site_models": ["bag_mean"]}, "not asked for")}


@pytest.mark.parametrize("kind", STUDIES)
@pytest.mark.parametrize("sites, params, said", UNASKED.values(), ids=UNASKED)
def test_without_site_preserving_folds_the_report_says_why(sites, params, said, kind, files, tmp_path):
    shutil.copytree(files["data_dir"], tmp_path / "data")
    clinical = pd.read_csv(tmp_path / "data" / "clinical.csv")
    clinical.assign(site=[f"H{i % sites}" if sites else None for i in range(len(clinical))]).to_csv(tmp_path / "data" / "clinical.csv", index=False)
    names = carried_out(kind, "if not unasked:", **files | {"data_dir": str(tmp_path / "data")}, models=["genes"], epochs=1, n_resamples=20, out_dir=tmp_path / "out", **params, **{"sweep_seeds": []} if kind == GLIOMA else {})
    assert re.search(said, names["unasked"]) and not (tmp_path / "out" / "tables" / "sites.csv").exists()


@pytest.mark.parametrize("kind", STUDIES)
def test_a_fusion_alone_is_compared_with_what_needs_no_network(kind, files, tmp_path):
    names = carried_out(kind, "headline =", **files, models=["cross_attention"], out_dir=tmp_path)
    assert re.search("gain over (age|ridge)", names["headline"])


# ---- what is missing

@pytest.mark.parametrize("dropout", [0.0, .3])
def test_patients_with_one_modality_are_left_out_or_kept_and_counted(dropout, gaps, tmp_path):
    names = carried_out(GLIOMA, TRAINED, **gaps, models=PAIR, modality_dropout=dropout, out_dir=tmp_path)
    table, said = names["cases"].table, " ".join([*names["cases"].notes, *names["said"]])
    genes = table[[v.name for v in names["cases"].variables]]
    assert table["case_id"].is_unique and "TCGA-A0-9999" not in set(table["group"])  # with neither there is nothing to learn from
    if dropout:
        assert len(table) == 40 and genes.isna().all(axis=1).sum() == 6 and (names["bags"].sizes == 0).sum() == 6
        assert "7 of 41 patients have no expression: kept with an empty row of genes" in said and "Cases without slide: 6 of 40." in said
    else:
        assert len(table) == 28 and genes.notna().all(axis=None) and names["bags"].sizes.min() > 0
        assert "7 of 41 patients have no expression: left out" in said and "6 patients without a slide were left out." in said
    rows = names["pred"][names["pred"]["model"] == "cross_attention"]
    assert set(rows["case_id"]) == set(table["case_id"]) and np.isfinite(rows["score_risk"]).all()


def test_subtypes_need_both_and_count_who_is_left_out(gaps, tmp_path):
    names = carried_out(SUBTYPE, "with_slides =", **gaps, models=PAIR, out_dir=tmp_path)
    said = " ".join(names["people"].notes)
    assert len(names["people"]) == 28 == len(names["bags"]) and "7 of 41 patients have no expression: left out" in said and "6 patients without a slide were left out." in said


@pytest.mark.parametrize("kind, params", [(GLIOMA, {"sweep_seeds": [0]}), (SUBTYPE, {"augmented": 1, "shap_patients": 0})], ids=STUDIES)
def test_a_slide_that_does_not_open_is_counted_not_fatal(kind, params, request, tmp_path):
    run = request.getfixturevalue("glioma_run" if kind == GLIOMA else "subtype_run")
    data = shutil.copytree(twin_of(run), tmp_path / "data")
    shutil.copytree(run / "features", tmp_path / "out" / "features")
    slide = sorted((data / "slides").iterdir())[0]
    slide.write_bytes(b"no slide")
    names = carried_out(kind, NEAR_END, cohort="files", data_dir=str(data), models=["bag_attention"], epochs=1, site_seeds=[], **params, out_dir=tmp_path / "out")
    assert any(slide.name in text for text in names["said"]) and names["example"]["slide"] != slide.stem and slide.stem not in set(names["looked"]["slide"])
    assert "ranked" not in names and "by_shap" not in names  # nobody asked for a network that looks at genes


def test_a_sweep_of_one_seed_claims_no_spread(files, tmp_path):
    names = carried_out(GLIOMA, NEAR_END, **files, models=["genes"], epochs=1, sweep_bags=[2], sweep_batches=[32], sweep_seeds=[0], out_dir=tmp_path)
    row, = pd.read_csv(tmp_path / "tables" / "sweep.csv").to_dict("records")
    assert re.fullmatch(r"0\.\d{3}", f"{row['C per patient']:.3f}") and "nan" not in (tmp_path / "tables" / "sweep.html").read_text()
    assert any(line.endswith("with one seed its size is not known.") for line in names["limits"])
    counted = names["cases"].table.merge(names["splits"], on="case_id").query("split == 'val' and event == 1").groupby("fold")["group"].nunique()
    assert f"has {counted.min()} patients with an event" in " ".join(names["limits"])


@pytest.mark.parametrize("models", [["bag_joint_mean"], ["bag_early"]], ids="".join)
def test_models_without_attention_are_explained_by_genes_alone(models, files, tmp_path):
    names = carried_out(SUBTYPE, NEAR_END, **files, models=models, epochs=1, site_seeds=[], shap_patients=2, out_dir=tmp_path)
    assert names["explained"] == models[0] and "looked" not in names and len(names["by_shap"]) == 2


# ---- bad input says what to do

BAD = {
    "no such cohort": (STUDIES, {"cohort": "file"}, "known cohort.*Did you mean 'files'"),
    "no folder": (STUDIES, {"data_dir": "nowhere"}, "clinical.csv.*Check the name and the folder"),
    "no folder of genes": (STUDIES, {"cohort": "tcga_brca", "data_dir": "nowhere"}, r"tcga_brca_all_clean\.csv\.zip.*Check the name and the folder"),
    "no slides there": (STUDIES, {"features": "", "slides": "elsewhere"}, "in 'elsewhere'.*none.*Check the name of the folder"),
    "slides of nobody": (STUDIES, {"features": "", "slides": "strangers"}, "slides of patients of the cohort.*none in 'strangers'.*begin with the patient's TCGA barcode"),
    "unknown model": (STUDIES, {"models": ["genes", "cross_atention"]}, "Did you mean 'cross_attention'"),
    "model of pixels": (STUDIES, {"models": ["genes", "image_only"]}, "image_only"),
    "no model": (STUDIES, {"models": []}, r"(?i)model"),
    "no model that the genes alone can feed": (STUDIES, {"features": "", "slides": "", "models": ["cross_attention"]}, r"(?i)genes"),
    "another column of patients": (STUDIES, {"patient_column": "pid"}, "the column 'pid'"),
    "values that are not in the column": (GLIOMA, {"event_coded": ["Deceased:1", "Living:0"]}, "'Deceased' or 'Living' in the column 'vital_status'.*'Dead' in row 0"),
    "a coding that is none": (GLIOMA, {"event_coded": ["Dead=1", "Alive=0"]}, r"(?i)event_coded|VALUE:EVENT"),
    "a coding without numbers": (GLIOMA, {"event_coded": ["Dead:yes", "Alive:no"]}, r"(?i)event_coded|VALUE:EVENT"),
    "no coding": (GLIOMA, {"event_coded": []}, "for each value of coded"),
    "a coding against the name": (GLIOMA, {"event_column": "censorship", "event_coded": ["event"]}, "agrees with the name 'censorship'"),
    "a coding turned round": (GLIOMA, {"event_coded": ["Dead:0", "Alive:1"]}, "0 for 'Dead'.*Turn it round"),
    "no such column of events": (GLIOMA, {"event_column": "vital"}, "the column 'vital'"),
    "unknown loss": (GLIOMA, {"loss": "coxx"}, "Did you mean 'cox'"),
    "no such target": (SUBTYPE, {"target": "subtyp"}, "Did you mean 'subtype'"),
    "no such class": (SUBTYPE, {"classes": ["Luminal", "Basal"]}, "Did you mean 'Basal/Her2'"),
    "one class": (SUBTYPE, {"classes": ["Luminal"]}, "Of two, the second is the positive one"),
    "one fold": (SUBTYPE, {"folds": 1}, "two folds or more"),
}
CASES = [pytest.param(study, params, said, id=f"{study}: {name}") for name, (studies, params, said) in BAD.items() for study in ([studies] if isinstance(studies, str) else studies)]


@pytest.mark.parametrize("study, params, said", CASES)
def test_bad_input_says_what_to_do(study, params, said, files, tmp_path):
    with pytest.raises(DataError, match=f"(?s){said}"): carried_out(study, "headline =", **{**files, "models": ["genes"], **params}, out_dir=tmp_path)


def test_too_few_events_to_weigh_two_models_leave_the_rest_of_the_study(files, tmp_path):
    names = carried_out(GLIOMA, TRAINED, **files | {"val_fraction": .1}, models=SINGLES, out_dir=tmp_path)
    assert {"late_mean", *SINGLES} <= set(names["pred"]["model"])


# ---- slow: whole runs of every way, what was planted, a null, and real rows

ENDS = {"features": {}, "every model": {"models": ["bag_mean", *SINGLES, "bag_early", "bag_concat", "bag_joint_mean", "cross_attention", "cross_attention_gated", "co_attention", "gated_product"], "seeds": [0, 1]},
        "no slides": {"features": "", "slides": ""}, "genes": {"models": ["genes"]}, "slides alone": {"models": ["bag_attention"]}, "selected genes": {"n_expressed": 7, "clip": 0.0}}
SURVIVAL_ENDS = {"hazard": {"loss": "hazard"}, "hospitals": {"site_models": ["genes", "cross_attention"], "site_seeds": [0, 1]}, "one split": {"folds": 1, "fractions": [.4, .3, .3]},
                 "censored": {"event_column": "censorship", "event_coded": ["censored"]}, "sweep": {"sweep_seeds": [0, 1], "sweep_bags": [2, 4], "sweep_batches": [16]}}


@pytest.mark.slow
@pytest.mark.parametrize("study, params", [pytest.param(study, params, id=f"{study}: {name}") for study, more in ((GLIOMA, SURVIVAL_ENDS), (SUBTYPE, {})) for name, params in (ENDS | more).items()])
def test_every_way_leads_to_the_end(study, params, files, tmp_path):
    known = {"sweep_seeds": []} if study == GLIOMA else {}
    names = carried_out(study, LAST, **{**files, **known, "models": [*SINGLES, "cross_attention"], **params}, out_dir=tmp_path)
    assert read_json(tmp_path / "summary.json")["headline"] == names["headline"]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cox", "hazard"])
def test_missing_modalities_lead_to_the_end(loss, gaps, tmp_path):
    carried_out(GLIOMA, LAST, **gaps, loss=loss, models=[*SINGLES, "bag_early", "cross_attention"], modality_dropout=.3, sweep_seeds=[], out_dir=tmp_path)
    rows = pd.read_csv(tmp_path / "tables" / "missing.csv")
    assert rows["Given"].tolist() == ["slides + genes", "slides alone", "genes alone"]


@pytest.mark.slow
def test_the_twin_shows_what_was_planted(tmp_path):
    default_run = run_study(GLIOMA, out=tmp_path, progress=False)
    rows = pd.read_parquet(default_run / "results.parquet").query("level == 'patient'").set_index("model")
    late = pd.read_csv(default_run / "tables" / "against_late.csv").set_index("Model")
    for name in ("Cross attention", "Gated product"):  # which can learn that slides and genes act together
        assert float(late.loc[name, "P (Holm)"].lstrip("<")) < .05 and late.iloc[:, 0][name].startswith("+"), late
    seeing_both = rows.loc[["cross_attention", "gated_product"], "difference"]
    assert (rows.loc[["late_mean", "late_regression"], "difference"].fillna(0) < seeing_both.min() - .03).all(), rows["difference"]


@pytest.mark.slow
def test_the_twin_of_subtypes_shows_what_was_planted(tmp_path):
    names = carried_out(SUBTYPE, "against = ", **dict.fromkeys(FITS), site_seeds=[], out_dir=tmp_path)
    late = names["against"].set_index("model_a")
    assert (late.loc[["cross_attention", "gated_product"], "low"] > 0).all() and (late.loc[["cross_attention", "gated_product"], "p_holm"] < .05).all(), late
    assert {"bag_concat", "cross_attention", "gated_product"} <= set(names["shown"]) and "late_regression" not in names["shown"]


@pytest.mark.slow
@pytest.mark.parametrize("study, null, metric", [(GLIOMA, "survival_null", "level == 'patient'"), (SUBTYPE, "subtype_null", "metric == 'auc'")])
def test_nothing_comes_out_of_a_null_cohort(study, null, metric, repo, tmp_path):
    null = read_parameters(repo / "nbs" / "studies" / "params" / f"{null}.yaml")
    small = {"n_patients": 200, "slide_size": 256, "epochs": 6, "n_resamples": 1000}
    rows = pd.read_parquet(run_study(study, params=null | small, out=tmp_path, progress=False) / "results.parquet").query(metric)
    missed = rows[(rows["low"] > .5) | (rows["high"] < .5)]
    assert len(rows) >= 8 and len(missed) <= np.ceil(len(rows) / 10), missed


@pytest.fixture(scope="module")
def brca(data_dir):
    if not (data_dir / "tcga_brca_tabular").is_dir(): pytest.skip("no tcga_brca_tabular in FUSION_NB_DATA")
    return str(data_dir / "tcga_brca_tabular")


def checked_sites(run):
    """The rows of the comparison of folds, which are finite and of both ways."""
    rows = pd.read_parquet(run / "sites.parquet")
    assert (rows.groupby("model")["folds"].agg(set) == {"plain", "site-preserving"}).all() and "genes" in set(rows["model"])
    assert np.isfinite(rows[["low", "estimate", "high"]]).all(axis=None) and (rows["low"] <= rows["high"]).all()
    return rows


@pytest.mark.slow
def test_real_genes_tell_ductal_from_lobular(brca, repo, tmp_path):
    params = read_parameters(repo / "nbs" / "studies" / "params" / "tcga_brca_subtype.yaml") | {"data_dir": brca, "epochs": 10, "seeds": [0], "n_resamples": 200}
    run = run_study(SUBTYPE, params=params, out=tmp_path, progress=False)
    auc = pd.read_parquet(run / "results.parquet").query("metric == 'auc'").set_index("model")
    assert auc.loc["genes", "estimate"] > .86 and abs(auc.loc["ridge", "estimate"] - .90) < .02, auc["estimate"]
    assert read_json(run / "summary.json")["synthetic"] is False and "synthetic data</span>" not in (run / "tables" / "results.html").read_text()
    sited = checked_sites(run)
    assert (sited[sited["model"] == "genes"]["estimate"] > .8).all(), sited
    assert (auc["n_groups"] > 800).all() and (run / "tables" / "sites.csv").exists() and "synthetic" not in (run / "tables" / "results.html").read_text().rpartition("stand beside")[2]


@pytest.mark.slow
def test_real_genes_and_age_come_to_a_c_of_survival(brca, repo, tmp_path):
    params = read_parameters(repo / "nbs" / "studies" / "params" / "tcga_brca_survival.yaml") | {"data_dir": brca, "epochs": 5, "seeds": [0], "n_resamples": 200}
    run = run_study(GLIOMA, params=params, out=tmp_path, progress=False)
    checked_sites(run)
    rows = pd.read_parquet(run / "results.parquet").query("level == 'patient'").set_index("model")
    assert set(rows.index) == {"genes", "age"} and abs(rows.loc["age", "estimate"] - .64) < .03 and rows.loc["genes", "estimate"] > .5
    assert (rows["low"] < rows["estimate"]).all() and (rows["n_groups"] > 900).all()
