"""The twins hold what was planted, in the files of the originals, and are the same on every run."""
import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fusion_nb.data import twins
from fusion_nb.data.brecahad import cut_patches, patch_cohort, read_brecahad
from fusion_nb.data.histology_twin import draw_patch
from fusion_nb.data.mimiciv import read_mimic
from fusion_nb.data.twins import MimicSpec, PairsSpec, bayes_auc_of, draw_admissions, draw_pairs, make_mimic, make_true_pairs
from fusion_nb.pairing import pair_cohorts
from fusion_nb.schema import DataError

TABLES = ("admissions", "d_icd_diagnoses", "d_labitems", "diagnoses_icd", "labevents", "patients", "prescriptions")


def content(folder: Path) -> dict:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def tables_of(folder: Path) -> dict:
    return {name: pd.read_csv(folder / "hosp" / f"{name}.csv.gz", dtype={"icd_code": str}, low_memory=False) for name in TABLES}


@pytest.fixture(scope="module")
def mimic(tmp_path_factory) -> Path:
    return make_mimic(tmp_path_factory.mktemp("twin") / "mimic", n_patients=300, seed=3)


@pytest.fixture(scope="module")
def hosp(mimic) -> dict:
    return tables_of(mimic)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return make_true_pairs(tmp_path_factory.mktemp("twin") / "pairs", n_patients=90, interaction=3.0, image_signal=0, table_signal=0, seed=2)


# ---- records: the files

def test_files_have_the_columns_of_the_real_ones(hosp, data_dir):
    for name, table in hosp.items():
        real = pd.read_csv(data_dir / "mimic_iv_demo" / "hosp" / f"{name}.csv.gz", nrows=0)
        assert list(table.columns) == list(real.columns), name


def test_labs_have_the_numbers_units_and_fluids_of_the_real_ones(hosp, data_dir):
    real = pd.read_csv(data_dir / "mimic_iv_demo" / "hosp" / "d_labitems.csv.gz")
    joined = hosp["d_labitems"].merge(real, on="itemid", how="left", suffixes=("", "_real"))
    assert (joined["label"] == joined["label_real"]).all() and (joined["category"] == joined["category_real"]).all() and (joined["fluid"] == joined["fluid_real"]).all()
    events = pd.read_csv(data_dir / "mimic_iv_demo" / "hosp" / "labevents.csv.gz", usecols=["itemid", "valueuom", "valuenum"])
    units, medians = events.groupby("itemid")["valueuom"].first(), events.groupby("itemid")["valuenum"].median()
    ours = hosp["labevents"].groupby("itemid")
    pd.testing.assert_series_equal(ours["valueuom"].first(), units[list(ours.groups)], check_names=False)
    ratio = ours["valuenum"].median() / medians[list(ours.groups)]
    assert ratio.between(0.6, 1.5).all()
    assert hosp["labevents"].groupby("itemid")["valueuom"].nunique(dropna=False).eq(1).all()


def test_keys_fit_together(hosp):
    patients, admissions = hosp["patients"], hosp["admissions"]
    assert patients["subject_id"].is_unique and admissions["hadm_id"].is_unique and set(admissions["subject_id"]) == set(patients["subject_id"]) and len(patients) == 300
    owner = admissions.set_index("hadm_id")["subject_id"]
    for name in ("diagnoses_icd", "labevents", "prescriptions"):
        rows = hosp[name].dropna(subset="hadm_id")
        assert (owner.loc[rows["hadm_id"]].to_numpy() == rows["subject_id"].to_numpy()).all()
    codes = set(zip(hosp["d_icd_diagnoses"]["icd_code"], hosp["d_icd_diagnoses"]["icd_version"]))
    assert set(zip(hosp["diagnoses_icd"]["icd_code"], hosp["diagnoses_icd"]["icd_version"])) <= codes
    assert hosp["labevents"]["labevent_id"].is_unique and set(hosp["labevents"]["itemid"]) <= set(hosp["d_labitems"]["itemid"])
    assert not hosp["diagnoses_icd"].duplicated(["hadm_id", "seq_num"]).any()


def test_numbers_are_none_of_mimic_and_no_name_of_a_case(hosp):
    assert hosp["patients"]["subject_id"].between(90_000_000, 99_999_999).all() and hosp["admissions"]["hadm_id"].between(80_000_000, 89_999_999).all()
    assert not any(re.match(r"Case_\d+", str(s)) for s in hosp["patients"]["subject_id"])


def test_times_are_in_order_and_deaths_agree(hosp):
    times = ["admittime", "dischtime", "deathtime", "edregtime", "edouttime"]
    a = hosp["admissions"].assign(**hosp["admissions"][times].apply(pd.to_datetime)).sort_values(["subject_id", "admittime"])
    assert (a["admittime"] < a["dischtime"]).all()
    before = a.groupby("subject_id")["dischtime"].shift()
    assert (before.isna() | (a["admittime"] > before)).all() and a["hadm_id"].size > a["subject_id"].nunique()
    died = a["hospital_expire_flag"] == 1
    assert (a["deathtime"].notna() == died).all() and ((a["discharge_location"] == "DIED") == died).all()
    assert not a["subject_id"].duplicated(keep="last")[died].any(), "nobody comes back"
    dod = a.merge(hosp["patients"], on="subject_id").assign(dod=lambda t: pd.to_datetime(t["dod"]))
    assert (dod["dod"].isna() | (dod["dod"] >= dod["dischtime"].dt.normalize())).all()
    assert (dod.loc[dod["hospital_expire_flag"] == 1, "dod"] == dod.loc[dod["hospital_expire_flag"] == 1, "deathtime"].dt.normalize()).all()
    assert 0 < hosp["patients"]["dod"].notna().sum() - died.sum(), "some die at home"


def test_both_versions_of_the_icd_one_in_an_admission(hosp):
    d = hosp["diagnoses_icd"]
    assert d.groupby("hadm_id")["icd_version"].nunique().eq(1).all() and d["icd_version"].value_counts(normalize=True).between(0.2, 0.8).all()
    assert not d["icd_code"].str.contains(".", regex=False).any()
    assert d.loc[d["icd_code"].str.match("174"), "icd_version"].eq(9).all() and d.loc[d["icd_code"].str.match("C50"), "icd_version"].eq(10).all()
    assert d.groupby("subject_id")["icd_version"].nunique().max() == 2, "some patients live through the change"


def test_cancer_is_coded_in_those_who_have_it_and_they_are_women(mimic, hosp):
    truth = pd.read_parquet(mimic / "truth.parquet")
    coded = set(hosp["diagnoses_icd"].loc[hosp["diagnoses_icd"]["icd_code"].str.match("174|C50"), "subject_id"])
    assert coded == set(truth.loc[truth["breast"], "subject_id"]) and 0.4 < len(coded) / 300 < 0.6
    assert hosp["patients"].set_index("subject_id").loc[sorted(coded), "gender"].eq("F").all()


def test_labs_are_missing_as_said(mimic, hosp):
    labs = hosp["labevents"]
    assert 0.02 < labs["hadm_id"].isna().mean() < 0.08 and 0 < labs["valuenum"].isna().mean() < 0.03
    assert (labs["value"] == "___").equals(labs["valuenum"].isna())
    assert 0 < (~hosp["admissions"]["hadm_id"].isin(labs["hadm_id"])).sum() < 0.05 * len(hosp["admissions"]), "a few admissions have no labs"
    truth = pd.read_parquet(mimic / "truth.parquet")
    lactate = truth["hadm_id"].isin(labs.loc[labs["itemid"] == 50813, "hadm_id"])
    assert truth.loc[lactate, "severity"].mean() > truth.loc[~lactate, "severity"].mean() + 0.3, "not at random"


def test_missing_takes_labs_away(tmp_path):
    few, many = (tables_of(make_mimic(tmp_path / str(m), n_patients=60, missing=m))["labevents"] for m in (0.7, 0.0))
    assert 0.2 < few.groupby(["hadm_id", "itemid"]).ngroups / many.groupby(["hadm_id", "itemid"]).ngroups < 0.4


# ---- records: what is planted

def test_the_hazard_is_as_said_and_its_auc_is_085():
    truth = draw_admissions(MimicSpec(n_patients=40_000, admissions=1.0, seed=11))
    assert abs(truth["died"].mean() - 0.1) < 0.006
    assert abs(roc_auc_score(truth["died"], truth["probability"]) - 0.85) < 0.012
    tenths = truth.groupby(pd.qcut(truth["probability"], 10, labels=False))[["probability", "died"]].agg(["mean", "size"])
    error = np.sqrt(tenths[("probability", "mean")] * (1 - tenths[("probability", "mean")]) / 4000)
    assert ((tenths[("died", "mean")] - tenths[("probability", "mean")]).abs() < norm.isf(0.0005) * error).all()


@pytest.mark.parametrize("mortality", [0.03, 0.3])
def test_mortality_is_that_asked_for(mortality):
    truth = draw_admissions(MimicSpec(n_patients=20_000, admissions=1.0, mortality=mortality, breast=0.0))
    assert abs(truth["died"].mean() / mortality - 1) < 0.08 and not truth["breast"].any()


def test_labs_and_age_find_much_of_the_hazard_and_no_more(tmp_path):
    folder = make_mimic(tmp_path / "m", n_patients=1500, admissions=1.0, mortality=0.2, seed=5)
    truth, labs = pd.read_parquet(folder / "truth.parquet").set_index("hadm_id"), tables_of(folder)["labevents"]
    table = labs.dropna(subset="hadm_id").pivot_table(index="hadm_id", columns="itemid", values="valuenum").reindex(truth.index)
    table = np.log1p(table.fillna(table.median())).assign(age=truth["age"]).set_axis([str(c) for c in [*table.columns, "age"]], axis=1)
    found = cross_val_predict(make_pipeline(StandardScaler(), LogisticRegression()), table, truth["died"], method="predict_proba", cv=5)[:, 1]
    best = roc_auc_score(truth["died"], truth["probability"])
    assert 0.72 < roc_auc_score(truth["died"], found) < best


def test_reader_of_the_real_tables_reads_the_twin(mimic):
    truth = pd.read_parquet(mimic / "truth.parquet").set_index("hadm_id")
    records = read_mimic(mimic)
    cohort = records.cohort
    assert cohort.synthetic and set(cohort.table["group"].astype(int)) <= set(truth.loc[truth["breast"], "subject_id"])
    assert (cohort.table["label"].to_numpy() == truth.loc[cohort.table["case_id"].astype(int), "died"].to_numpy()).all()
    assert len(cohort) > 150 and cohort.n_groups > 100 and "synthetic" in cohort.title


# ---- true pairs: the signal

def auc_of(columns, label):
    "Macro AUC of a regression on one-hot columns and their products, out of fold."
    model = make_pipeline(OneHotEncoder(), LogisticRegression(C=100))
    return roc_auc_score(label, cross_val_predict(model, columns, label, method="predict_proba", cv=5), multi_class="ovr")


def test_an_interaction_is_in_neither_modality_and_in_both():
    truth = draw_pairs(PairsSpec(n_patients=6000, image_signal=0, table_signal=0, interaction=4.0, seed=1))
    both = (3 * truth["appearance"] + truth["phenotype"]).to_frame()
    assert abs(auc_of(truth[["appearance"]], truth["label"]) - 0.5) < 0.02 and abs(auc_of(truth[["phenotype"]], truth["label"]) - 0.5) < 0.02
    assert auc_of(both, truth["label"]) > 0.95
    additive = auc_of(truth[["appearance", "phenotype"]], truth["label"])
    assert abs(additive - 0.5) < 0.03, "a model that adds up finds nothing"


def test_without_an_interaction_adding_up_is_all_there_is():
    truth = draw_pairs(PairsSpec(n_patients=12_000, image_signal=1.5, table_signal=1.0, seed=2))
    both = (3 * truth["appearance"] + truth["phenotype"]).to_frame()
    one, two = auc_of(truth[["appearance"]], truth["label"]), auc_of(truth[["appearance", "phenotype"]], truth["label"])
    assert two > one + 0.03 and abs(two - auc_of(both, truth["label"])) < 0.005
    best = bayes_auc_of(truth)
    assert abs(one - best["image"]) < 0.012 and abs(two - best["both"]) < 0.012


@pytest.mark.parametrize("planted", [(0, 0, 0), (2, 0, 0), (0, 1.5, 0), (1.5, 1, 0), (0, 0, 3), (1, 0.5, 2), (-1, 2, -1)])
def test_bayes_auc_agrees_with_a_simulation(planted):
    spec = PairsSpec(n_patients=60_000, seed=4, **dict(zip(("image_signal", "table_signal", "interaction"), planted)))
    truth = draw_pairs(spec)
    best = bayes_auc_of(truth)
    assert best == bayes_auc_of(truth.iloc[:7]), "some of the rows are enough"
    for what in ("image", "table", "both"):
        p = truth.filter(regex=f"^p_{what}_").to_numpy()
        assert np.allclose(p.sum(axis=1), 1)
        assert abs(roc_auc_score(truth["label"], p.round(12), multi_class="ovr") - best[what]) < 0.007  # standard error about 0.002
        shares = truth.groupby(["appearance", "phenotype"] if what == "both" else {"image": "appearance", "table": "phenotype"}[what])["label"]
        told = shares.transform(lambda y: (y == 1).mean())
        assert np.abs(told - p[:, 1]).max() < 0.03, "the probability is the share of that class"


def test_cells_are_as_frequent_and_independent():
    cells = draw_pairs(PairsSpec(n_patients=90_000)).groupby(["appearance", "phenotype"]).size()
    assert len(cells) == 9 and np.abs(cells - 10_000).max() < 400


@pytest.mark.parametrize("truth, words", [
    (pd.DataFrame({"label": [0]}), "the column 'image_signal'"), (draw_pairs(PairsSpec()).iloc[:0], "0 kinds of signals in 0 rows"),
    (pd.concat([draw_pairs(PairsSpec()), draw_pairs(PairsSpec(interaction=1.0))]), "2 kinds of signals in 600 rows")])
def test_truth_of_another_kind(truth, words):
    with pytest.raises(DataError, match=words): bayes_auc_of(truth)


# ---- true pairs: the files

def test_pictures_are_read_as_brecahad_and_show_the_appearance(pairs, tmp_path):
    truth, found = pd.read_parquet(pairs / "truth.parquet"), read_brecahad(pairs)
    assert found.synthetic and len(found.dots) == len(truth) == 90 and (found.dots[["x", "y"]] == 48).all(axis=None)
    dots = found.dots.set_index("case")["cls"]
    assert (dots[truth["group"]].to_numpy() == np.array(["mitosis", "tumor", "non_tumor"])[truth["label"]]).all()
    patches = cut_patches(found, tmp_path / "patches", size=64, progress=False)
    cohort = patch_cohort(patches)
    assert cohort.synthetic and not patches.index["at_border"].any()
    joined = cohort.table.merge(truth, on="case_id", suffixes=("", "_truth"))
    assert len(joined) == 90 and (joined["label"] == joined["label_truth"]).all() and (joined["group"] == joined["group_truth"]).all()
    for i in (0, 41):
        drawn = draw_patch(int(truth["appearance"][i]), case_seed=[2, 21], seed=[2, 22, i], size=96)
        assert (np.asarray(Image.open(pairs / "images" / f"Case_{i + 1}-01.png")) == drawn).all()
        row = patches.index.index[patches.index["case_id"] == f"Case_{i + 1}-01_0001"][0]
        assert (patches.images[row] == np.moveaxis(drawn[16:80, 16:80], -1, 0)).all(), "the patch is the middle of the picture"


def test_pictures_and_records_of_a_patient_are_joined_as_true_pairs(pairs, tmp_path):
    truth, joined = pd.read_parquet(pairs / "truth.parquet"), pd.read_csv(pairs / "pairs.csv", dtype=str)
    images = patch_cohort(cut_patches(read_brecahad(pairs), tmp_path / "patches", progress=False))
    records = read_mimic(pairs).cohort
    assert list(joined.columns) == ["case_id", "hadm_id"] and len(records) == records.n_groups == 90 and records.synthetic, "no record is left out"
    parts = pd.DataFrame({"case_id": images.table["case_id"], "fold": 0, "split": np.resize(["train", "val", "test"], 90)})
    cohort, _ = pair_cohorts(images, records, policy="patient", parts=(parts, None), pairs=joined)
    merged = cohort.table.merge(truth, on="case_id", suffixes=("", "_truth"))
    assert len(merged) == 90 and (merged["record_id"] == merged["hadm_id"].astype(str)).all() and (merged["record_group"] == merged["subject_id"].astype(str)).all()
    assert cohort.synthetic and (merged["label"] == merged["label_truth"]).all()


def test_the_record_shows_the_phenotype_and_the_picture_does_not(tmp_path):
    folder = make_true_pairs(tmp_path / "p", n_patients=500, size=16, seed=9)
    truth, labs = pd.read_parquet(folder / "truth.parquet"), tables_of(folder)["labevents"]
    table = labs.dropna(subset="hadm_id").pivot_table(index="hadm_id", columns="itemid", values="valuenum").reindex(truth["hadm_id"])
    table = np.log1p(table.fillna(table.median())).set_axis([str(c) for c in table.columns], axis=1)
    def macro(label):
        found = cross_val_predict(make_pipeline(StandardScaler(), LogisticRegression()), table, label, method="predict_proba", cv=5)
        return roc_auc_score(label, found, multi_class="ovr")
    assert 0.85 < macro(truth["phenotype"]) < 0.995 and abs(macro(truth["appearance"]) - 0.5) < 0.06


def test_signals_change_the_classes_and_no_picture_or_lab(pairs, tmp_path):
    other = make_true_pairs(tmp_path / "p", n_patients=90, interaction=0.0, image_signal=3, table_signal=0, seed=2)
    same = [{k: v for k, v in content(f).items() if k.startswith(("images/", "hosp/"))} for f in (pairs, other)]
    assert same[0] == same[1] and len(same[0]) == 97
    assert (pd.read_parquet(pairs / "truth.parquet")["label"] != pd.read_parquet(other / "truth.parquet")["label"]).any()


# ---- both: determinism, marker, refusals

@pytest.mark.parametrize("make, few", [(make_mimic, {"n_patients": 40}), (make_true_pairs, {"n_patients": 30, "size": 16})])
def test_same_seed_same_bytes_and_another_seed_others(tmp_path, make, few):
    one, two, other = (content(make(tmp_path / name, seed=seed, **few)) for name, seed in (("one", 1), ("two", 1), ("other", 2)))
    assert one == two and set(one) == set(other)
    varied = [k for k in one if not k.startswith(("hosp/d_", "groundTruth/"))]
    assert not [k for k in varied if one[k] == other[k]]


@pytest.mark.parametrize("make, few", [(make_mimic, {"n_patients": 40}), (make_true_pairs, {"n_patients": 30, "size": 16})])
def test_marker_readme_and_a_second_call(tmp_path, make, few):
    folder = make(tmp_path / "twin", **few)
    marker = json.loads((folder / "synthetic.json").read_text())
    assert sorted(content(folder)) == sorted(marker["files"]) and marker["spec"]["n_patients"] == few["n_patients"]
    assert (folder / "README.txt").read_text().startswith("SYNTHETIC DATA")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    make(folder, **few)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(DataError, match="'twin' with another one"): make(folder, **few, seed=5)


def test_disjoint_from_another_twin_by_its_seed(mimic, tmp_path):
    other = make_mimic(tmp_path / "m", n_patients=300, seed=4)
    numbers = [set(pd.read_parquet(f / "truth.parquet")["subject_id"]) for f in (mimic, other)]
    assert len(numbers[0] & numbers[1]) <= 1  # 300 of ten million each: expected 0.009


def test_a_cohort_of_older_code_is_made_anew_unless_somebody_put_files_there(tmp_path, monkeypatch):
    folder = make_mimic(tmp_path / "twin", n_patients=30)
    good = content(folder)
    (folder / "hosp" / "patients.csv.gz").write_bytes(b"")
    monkeypatch.setattr(twins, "code_fingerprint", lambda *_: "newer")
    make_mimic(folder, n_patients=30)
    made = content(folder)
    assert made.pop("synthetic.json") != good.pop("synthetic.json") and made == good
    (folder / "hosp" / "thesis.txt").write_text("precious")
    make_mimic(folder, n_patients=30)
    monkeypatch.setattr(twins, "code_fingerprint", lambda *_: "newest")
    with pytest.raises(DataError, match="only the synthetic cohort in 'twin'.*thesis.txt"): make_mimic(folder, n_patients=30)
    assert (folder / "hosp" / "thesis.txt").read_text() == "precious"


def test_an_empty_folder_is_filled_and_other_peoples_files_are_not_touched(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert make_mimic(".", n_patients=30) == Path(".") and len(list(Path.cwd().iterdir())) == 4
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="other files"): make_mimic(".", n_patients=30)


@pytest.mark.parametrize("make, planted, words", [
    (make_mimic, {"n_patient": 40}, "Did you mean 'n_patients'"), (make_mimic, {"n_patients": 29}, "n_patients: a whole number from 30 to 100000. Got 29"),
    (make_mimic, {"n_patients": 40.0}, "whole number"), (make_mimic, {"mortality": 0.6}, "mortality: a number from 0.01 to 0.5"),
    (make_mimic, {"breast": -0.1}, "breast"), (make_mimic, {"admissions": 0.5}, "admissions"), (make_mimic, {"missing": float("nan")}, "nan"),
    (make_mimic, {"seed": -1}, "seed"), (make_true_pairs, {"interactions": 1}, "Did you mean 'interaction'"), (make_true_pairs, {"size": 8}, "size: a whole number from 16"),
    (make_true_pairs, {"interaction": "2"}, "interaction: a number from -10.0 to 10.0. Got '2'"), (make_true_pairs, {"n_patients": True}, "n_patients")])
def test_wrong_parameters(tmp_path, make, planted, words):
    with pytest.raises(DataError, match=words): make(tmp_path / "x", **planted)
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    for folder in (tmp_path / "twin", tmp_path):  # a new one, and an empty one
        with pytest.raises(DataError, match="disk is full"): make_mimic(folder, n_patients=30)
        assert not list(tmp_path.iterdir())


def test_two_thousand_admissions_take_a_few_seconds(tmp_path):
    start = time.process_time()
    folder = make_mimic(tmp_path / "m", n_patients=1000)
    assert len(pd.read_parquet(folder / "truth.parquet")) > 1500 and time.process_time() - start < 6
