"""The survival twin: what was planted comes out by other means (lifelines, statsmodels, scikit-learn), from pixels and RNA too; nothing comes out of a null."""
import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from lifelines import CoxPHFitter
from openslide import OpenSlide
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

from fusion_nb.data.omics import patient_of, read_expression, read_survival
from fusion_nb.data.slide_twin import KINDS
from fusion_nb.data.slides import find_slides, open_slide_info
from fusion_nb.data.survival_twin import SUBTYPES, SurvivalSpec, bayes_c_of, draw_genes, draw_survival, make_survival_twin, read_survival_twin, region_of
from fusion_nb.schema import DataError
from fusion_nb.survival import harrell_c

SMALL = {"n_patients": 40, "n_genes": 40, "slide_size": 128, "missing_rna": 0.1, "missing_slides": 0.15, "outliers": 0.05, "seed": 3}


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The default cohort, but with slides of a quarter of the area."""
    return make_survival_twin(tmp_path_factory.mktemp("survival") / "twin", slide_size=256, slides_per_patient=(1, 1))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_survival_twin(tmp_path_factory.mktemp("survival") / "small", **SMALL)


def large(**planted): return draw_survival(SurvivalSpec(n_patients=9999, **planted))


def truth_of(folder): return pd.read_parquet(folder / "truth.parquet")


def factors(truth, *columns): return pd.DataFrame({c: truth[c] for c in columns}).assign(product=truth["image_factor"] * truth["gene_factor"])


# ---- what was planted

def test_true_beats_additive_beats_each_alone_at_the_default():
    for outcome in ("survival", "subtype"):
        drawn = pd.DataFrame([bayes_c_of(draw_survival(SurvivalSpec(seed=seed)), outcome=outcome) for seed in range(20)])
        mean = drawn.mean()
        assert mean["full"] > mean["additive"] + 0.15 and mean["additive"] > mean[["image", "gene"]].max() + 0.03 and mean[["image", "gene"]].min() > 0.58, mean
        assert (drawn["full"] > drawn["additive"] + 0.1).all()  # in every cohort of 300


def test_the_hazard_is_the_one_written_down():
    truth = large(image_signal=0.5, gene_signal=-0.4, interaction=0.8, seed=1)
    fitted = CoxPHFitter().fit(factors(truth, "image_factor", "gene_factor", "time", "event"), "time", "event")
    assert (np.abs(fitted.params_[["image_factor", "gene_factor", "product"]] - [0.5, -0.4, 0.8]) < 3.5 * fitted.standard_errors_[["image_factor", "gene_factor", "product"]]).all()
    assert np.allclose(truth["risk_full"], 0.5 * truth["image_factor"] - 0.4 * truth["gene_factor"] + 0.8 * truth["image_factor"] * truth["gene_factor"])
    logistic = sm.Logit(truth["subtype"], sm.add_constant(factors(truth, "image_factor", "gene_factor"))).fit(disp=0)
    assert (np.abs(logistic.params - [0, 0.5, -0.4, 0.8]) < 3.5 * logistic.bse).all()


def test_no_sum_of_curves_comes_near_the_interaction():
    truth = large(seed=2)
    curves = pd.DataFrame(SplineTransformer(n_knots=4, degree=2, include_bias=False).fit_transform(truth[["image_factor", "gene_factor"]])).add_prefix("s")
    table = curves.assign(time=truth["time"], event=truth["event"])
    fitted = CoxPHFitter(penalizer=1e-4).fit(table[::2], "time", "event")
    additive = harrell_c(truth["time"][1::2], truth["event"][1::2], fitted.predict_log_partial_hazard(table[1::2]))
    best = bayes_c_of(truth[1::2])
    assert abs(additive - best["additive"]) < 0.03 and best["full"] > additive + 0.15


def test_concordance_is_that_of_the_project():
    truth = draw_survival(SurvivalSpec(seed=5))
    assert bayes_c_of(truth)["full"] == pytest.approx(harrell_c(truth["time"], truth["event"], truth["risk_full"]), abs=1e-12)


def test_nothing_comes_out_of_a_null():
    null = large(null=True, seed=4)
    assert set(bayes_c_of(null).values()) == {0.5} and set(bayes_c_of(null, outcome="subtype").values()) == {0.5}
    table = factors(null, "image_factor", "gene_factor", "time", "event")
    fitted = CoxPHFitter().fit(table[::2], "time", "event")
    assert abs(harrell_c(null["time"][1::2], null["event"][1::2], fitted.predict_log_partial_hazard(table[1::2])) - 0.5) < 0.025
    assert abs(null["subtype"].mean() - 0.5) < 0.02 and np.abs(table.corrwith(null["subtype"]).drop(["time", "event"])).max() < 0.04


def test_a_null_has_the_same_patients():
    drawn, null = draw_survival(SurvivalSpec(seed=6)), draw_survival(SurvivalSpec(seed=6, null=True))
    same = ["patient", "site", "age", "image_factor", "gene_factor", "share_tumor", "has_rna", "has_slide", "outlier", "n_slides"]
    assert drawn[same].equals(null[same]) and not drawn["time"].equals(null["time"])


def test_age_and_site_tell_nothing():
    truth = large(seed=7)
    assert abs(harrell_c(truth["time"], truth["event"], truth["age"]) - 0.5) < 0.02 and truth.groupby("site")["risk_full"].mean().std() < 0.2


@pytest.mark.parametrize("censoring", [0.0, 0.3, 0.9])
def test_share_without_an_event(censoring):
    truth = large(censoring=censoring)
    assert 1 - truth["event"].mean() == pytest.approx(censoring, abs=1e-3) and truth["time"].min() >= 0.03


# ---- pixels and genes

def test_the_image_factor_shows_in_the_pixels(twin):
    truth, slides = truth_of(twin), find_slides(read_survival_twin(twin).table, twin)
    assert len(slides) == 300
    rows = []
    for path in slides["path"]:
        with OpenSlide(path) as slide: pixels = np.asarray(slide.read_region((0, 0), 0, (256, 256)).convert("RGB"))
        tiles = pixels.reshape(4, 64, 4, 64, 3).swapaxes(1, 2).reshape(16, -1, 3).astype(np.float32)
        tiles = tiles[tiles.mean(axis=(1, 2)) < 225]
        grey = tiles.mean(axis=2)
        rows.append(np.r_[tiles.mean(axis=(0, 1)), tiles.std(axis=1).mean(axis=0), (grey < 110).mean(), (grey < 140).mean()])
    by_patient = pd.DataFrame(rows).groupby(slides["case_id"].to_numpy()).mean().loc[truth["patient"]]
    found = cross_val_predict(make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13))), by_patient, truth["image_factor"], cv=5)
    assert np.corrcoef(found, truth["image_factor"])[0, 1] > 0.9


def test_the_gene_factor_shows_in_the_rna(twin):
    truth, rna = truth_of(twin), read_expression(twin / "rna.tsv")
    x = np.log2(rna.loc[truth["patient"]] + 1)
    found = cross_val_predict(make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11))), x, truth["gene_factor"], cv=5)
    assert np.corrcoef(found, truth["gene_factor"])[0, 1] > 0.9
    distance = ((x - x.median()).abs() / x.std()).mean(axis=1).to_numpy()
    assert truth["outlier"].sum() == 6 and distance[truth["outlier"]].min() > distance[~truth["outlier"]].max()


def test_only_the_set_follows_the_gene_factor(twin):
    truth, genes = truth_of(twin), pd.read_parquet(twin / "genes.parquet")
    x = np.log2(read_expression(twin / "rna.tsv").loc[truth["patient"], genes["gene"]] + 1)[~truth["outlier"].to_numpy()]
    r = np.array([np.corrcoef(column, truth.loc[~truth["outlier"], "gene_factor"])[0, 1] for column in x.to_numpy().T])
    in_set = (genes["module"] == 0).to_numpy()
    assert in_set.sum() == 50 and r[in_set].min() > 0.5 > np.abs(r[~in_set]).max() and not in_set[:10].all()
    module = np.corrcoef(x.loc[:, (genes["module"] == 3).to_numpy()].T)  # correlated, whichever way
    assert np.abs(module).min() > 0.3


def test_a_patch_is_of_the_kind_that_its_pixels_show(twin):
    coords = np.array([[x, y] for y in range(0, 256, 64) for x in range(0, 256, 64)])
    seen = []
    for path in sorted((twin / "slides").iterdir())[:60]:
        with OpenSlide(path) as slide: grey = [np.asarray(slide.read_region(tuple(c), 0, (64, 64)).convert("L")).mean() for c in coords.tolist()]
        seen.append(pd.DataFrame({"kind": region_of(twin, path.stem, coords), "grey": grey}))
    grey = pd.concat(seen).groupby("kind")["grey"].mean()
    assert list(grey.sort_values().index) == ["lymphocytes", "tumor", "stroma", "necrosis", "background"]
    assert len(region_of(twin, path.stem, np.zeros((0, 2)))) == 0


def test_the_share_of_tumour_is_in_the_region_maps(twin):
    truth = truth_of(twin).set_index("patient")
    for path in sorted((twin / "regions").iterdir())[:40]:
        area = np.bincount(np.load(path, allow_pickle=False).ravel(), minlength=5)
        assert abs(area[KINDS.index("tumor")] / area[1:].sum() - truth.loc[path.stem[:12], "share_tumor"]) < 0.005


# ---- files

def test_files_are_as_an_atlas_gives_them(small):
    truth = truth_of(small)
    names = {f"{row.patient}-01Z-00-DX{k}" for row in truth.itertuples() for k in range(1, row.n_slides + 1)}
    assert {p.stem for p in (small / "slides").iterdir()} == {p.stem for p in (small / "regions").iterdir()} == names
    assert {p.name for p in small.iterdir()} == {"slides", "regions", "rna.tsv", "clinical.csv", "truth.parquet", "genes.parquet", "synthetic.json", "README.txt"}
    assert open_slide_info(next((small / "slides").iterdir())).mpp == 0.5
    rna = pd.read_csv(small / "rna.tsv", sep="\t", index_col=0)
    assert rna.shape == (36, 40) and rna.index.str.fullmatch(r"TCGA-[A-F]0-\d{4}-01A-11R-S000-07").all() and (rna >= 0).all(axis=None)
    assert rna.index.tolist() != sorted(rna.index, key=lambda b: b[8:12])  # nobody may join by position
    assert set(patient_of(rna.index)) == set(truth.loc[truth["has_rna"], "patient"])


def test_the_clinical_table_codes_events_as_it_says(small):
    truth, clinical = truth_of(small), pd.read_csv(small / "clinical.csv")
    assert (clinical["censorship"] == 1 - truth["event"]).all() and (clinical["vital_status"] == np.where(truth["event"] == 1, "Dead", "Alive")).all()
    found = read_survival(small / "clinical.csv", time="survival_months", event="censorship", coded="censored")
    assert (found["event"] == truth["event"]).all() and np.allclose(found["time"], truth["time"])
    with pytest.raises(DataError): read_survival(small / "clinical.csv", time="survival_months", event="censorship", coded="event")


def test_missing_modalities_are_empty_and_counted(small):
    truth, cohort = truth_of(small), read_survival_twin(small)
    genes = cohort.table[[v.name for v in cohort.variables]]
    assert (~truth["has_rna"]).sum() == 4 and (~truth["has_slide"]).sum() == 6 and (truth["has_rna"] | truth["has_slide"]).all()
    assert (genes.isna().all(axis=1) == ~truth["has_rna"]).all() and (genes.isna().any(axis=1) == ~truth["has_rna"]).all()
    assert (cohort.table["image"].isna() == ~truth["has_slide"]).all() and ((truth["n_slides"] > 0) == truth["has_slide"]).all()
    assert any("4 of 40 patients have no expression" in note for note in cohort.notes) and "6 of 40 patients have no slide." in cohort.notes
    found = find_slides(cohort.table, small)["case_id"].value_counts()
    assert found.sort_index().to_dict() == truth[truth["has_slide"]].set_index("patient")["n_slides"].sort_index().to_dict()


def test_the_cohort_is_marked_and_holds_no_truth(small):
    for outcome, classes in (("survival", ("censored", "event")), ("subtype", SUBTYPES)):
        cohort = read_survival_twin(small, outcome=outcome)
        assert cohort.synthetic and cohort.title == "Survival twin (synthetic data)" and cohort.classes == classes and cohort.survival == (outcome == "survival")
        assert {v.kind for v in cohort.variables} == {"expression"} and len(cohort.variables) == 40
        assert not {"image_factor", "gene_factor", "risk_full", "share_tumor", "outlier"} & set(cohort.table)
    assert json.loads((small / "synthetic.json").read_text())["spec"]["n_patients"] == 40 and "SYNTHETIC" in (small / "README.txt").read_text()
    assert json.loads((small / "synthetic.json").read_text())["made_by"] == "fusion_nb.data.survival_twin" and "Made by fusion_nb.data.survival_twin with" in (small / "README.txt").read_text()


def test_same_spec_same_files_other_seed_others(small, tmp_path):
    again, other = make_survival_twin(tmp_path / "again", **SMALL), make_survival_twin(tmp_path / "other", **SMALL | {"seed": 4})
    for path in small.rglob("*.*"):
        if path.is_file(): assert (again / path.relative_to(small)).read_bytes() == path.read_bytes(), path.name
    assert (other / "rna.tsv").read_bytes() != (small / "rna.tsv").read_bytes()


def test_a_cohort_that_is_there_is_left_alone(small):
    when = (small / "synthetic.json").stat().st_mtime_ns
    assert make_survival_twin(small, **SMALL | {"slides_per_patient": [1, 2]}) == small and (small / "synthetic.json").stat().st_mtime_ns == when
    with pytest.raises(DataError, match="'small' with another one"): make_survival_twin(small, **SMALL | {"null": True})


def test_a_name_gives_no_gene_away():
    sets = [frozenset(np.flatnonzero(draw_genes(200, seed=seed)["module"] == 0)) for seed in range(3)]
    assert len(set(sets)) == 3 and draw_genes(20, seed=0)["gene"].is_unique


# ---- bad input

@pytest.mark.parametrize("wrong, message", [
    ({"n_patients": 10}, "n_patients: a whole number from 30 to 9999. Got 10"), ({"interaction": float("nan")}, "interaction: a number from -5.0"), ({"censoring": 1.0}, "censoring"),
    ({"slides_per_patient": 2}, r"slides_per_patient=\(fewest, most\), from 1 to 9. Got 2"), ({"slides_per_patient": (0, 1)}, "slides_per_patient"), ({"slides_per_patient": (1, True)}, "slides_per"),
    ({"null": 1}, "null=True or null=False. Got 1"), ({"interactions": 1}, "Did you mean 'interaction'"), ({"n_sites": 27}, "n_sites"), ({"missing_rna": 0.6}, "missing_rna"),
])
def test_bad_specs(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message): make_survival_twin(tmp_path / "twin", **wrong)
    assert not (tmp_path / "twin").exists()


def test_bad_calls(small, tmp_path):
    with pytest.raises(DataError, match="a known outcome. Got 'subtypes'. Did you mean 'subtype'"): read_survival_twin(small, outcome="subtypes")
    with pytest.raises(DataError, match="the folder of a survival twin"): read_survival_twin(tmp_path)
    with pytest.raises(DataError, match="a known slide of the twin"): region_of(small, "TCGA-A0-9999-01Z-00-DX1", [[0, 0]])
    with pytest.raises(DataError, match="coords within the slide of 128 x 128"): region_of(small, next((small / "regions").iterdir()).stem, [[128, 0]])
    truth = truth_of(small)
    with pytest.raises(DataError, match="the column 'risk_full'"): bayes_c_of(truth.drop(columns="risk_full"))
    with pytest.raises(DataError, match="one can be said to come before another"): bayes_c_of(truth[truth["event"] == 0])
    with pytest.raises(DataError, match="a known outcome"): bayes_c_of(truth, outcome="")
