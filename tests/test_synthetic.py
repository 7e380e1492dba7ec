"""The synthetic cohort holds what was planted, and nothing else; and it is the same on every run."""
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import norm, spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fusion_nb.data import synthetic
from fusion_nb.data.paired import Columns, read_paired
from fusion_nb.data.synthetic import PairedSpec, bayes_auc, draw_cases, draw_lesion, make_paired, read_synthetic, read_truth
from fusion_nb.schema import DataError


def content(folder: Path) -> dict:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Path:
    return make_paired(tmp_path_factory.mktemp("data") / "twin", n_patients=60, seed=3, size=20)


# ---- the files

def test_reads_back_through_the_common_door(twin):
    cohort = read_paired(twin, "table.csv", Columns.from_json(twin / "columns.json"))
    table, truth = cohort.table, read_truth(twin)
    assert {v.kind for v in cohort.variables} == {"continuous", "categorical", "ordinal", "multi"}
    assert table["case_id"].tolist() == truth["case_id"].tolist() and (table["label"] == truth["label"]).all()
    assert cohort.n_groups == 60 and set(table.groupby("group").size()) == {1, 2, 3}
    assert all(Image.open(p).size == (20, 20) and Image.open(p).mode == "L" for p in table["image"])
    assert "u" not in table and "p_both" not in table


def test_values_of_the_table_are_those_of_the_truth(twin):
    table, truth = read_synthetic(twin).table, read_truth(twin)
    known = table["age"].notna()
    assert np.allclose(table["age"][known], 58 + 10 * truth["age"][known], atol=0.051)
    known = table["palpable"].notna()
    assert ((table["palpable"] == "yes") == (truth["palpable"] > 0))[known].all()


def test_images_are_those_of_the_truth(twin):
    cohort, truth = read_synthetic(twin), read_truth(twin)
    for i in (0, 7):
        drawn = draw_lesion(truth["u"][i], size=20, seed=[3, 4, i])
        assert (np.asarray(Image.open(cohort.table["image"][i])) == drawn).all()


def test_says_that_it_is_synthetic_wherever_it_is_shown(twin):
    cohort = read_synthetic(twin)
    assert cohort.synthetic and cohort.subset(range(0, len(cohort), 2)).synthetic
    for shown in (cohort.title, cohort._repr_html_(), (twin / "README.txt").read_text(), (twin / "columns.json").read_text()):
        assert "synthetic" in shown.lower()


def test_same_seed_same_bytes(twin, tmp_path):
    again, other = (make_paired(tmp_path / str(seed), n_patients=60, seed=seed, size=20) for seed in (3, 4))
    assert content(again) == content(twin)
    assert not set(content(other).values()) & {v for k, v in content(twin).items() if k not in ("columns.json",)}


def test_signal_changes_labels_but_no_image(twin, tmp_path):
    strong = make_paired(tmp_path / "strong", n_patients=60, seed=3, size=20, image_signal=3, table_signal=-1)
    images = [{k: v for k, v in content(f).items() if k.startswith("images/")} for f in (twin, strong)]
    assert images[0] == images[1] and (twin / "table.csv").read_text() != (strong / "table.csv").read_text()


def test_missing_values(tmp_path):
    none = read_synthetic(make_paired(tmp_path / "none", n_patients=50, missing=0))
    half = read_synthetic(make_paired(tmp_path / "half", n_patients=300, missing=0.5))
    names = [v.name for v in none.variables]
    assert not none.table[names].isna().any().any()
    assert half.table[names].isna().mean().between(0.4, 0.6).all()


# ---- what is planted

def test_null_cohort_has_nothing_to_find():
    truth = draw_cases(PairedSpec(n_patients=10_000, cases_per_patient=1, image_signal=0, table_signal=0, interaction=0, seed=5))
    assert bayes_auc(truth) == {"image": 0.5, "table": 0.5, "both": 0.5} and truth["p_both"].nunique() == 1
    bound = norm.isf(0.0005) / np.sqrt(len(truth))  # of a correlation that is zero
    for hidden in (truth["u"], truth["v"], truth["u"] * truth["v"]):
        assert abs(np.corrcoef(hidden, truth["label"])[0, 1]) < bound


def test_a_regression_finds_the_planted_strengths():
    truth = draw_cases(PairedSpec(n_patients=30_000, image_signal=0.8, table_signal=-0.5, interaction=2, prevalence=0.3, seed=6))
    inputs = np.c_[truth["u"], truth["v"], truth["u"] * truth["v"]]
    found = LogisticRegression(C=np.inf).fit(inputs, truth["label"]).coef_[0]
    assert np.allclose(found, [0.8, -0.5, 2], atol=0.1)
    assert abs(truth["label"].mean() - 0.3) < 0.01


@pytest.mark.parametrize("planted", [(1.5, 0, 0), (0, 1.5, 0), (1, 1, 0), (0.8, 0.8, 2)])
def test_bayes_auc_by_another_route(planted):
    """P(y|u) from the labels alone: their mean in 100 narrow bands of u, learned from one half and tried on the other."""
    spec = PairedSpec(n_patients=40_000, cases_per_patient=1, **dict(zip(("image_signal", "table_signal", "interaction"), planted)))
    truth = draw_cases(spec)
    auc = bayes_auc(truth)
    for name, hidden in (("image", "u"), ("table", "v")):
        band, first = pd.qcut(truth[hidden], 100, labels=False), truth.index < 20_000
        by_band = band.map(truth["label"][first].groupby(band[first]).mean())
        assert abs(roc_auc_score(truth["label"][~first], by_band[~first]) - auc[name]) < 0.015
        means = truth.groupby(band // 5)[["label", f"p_{name}"]].mean()  # 20 bands of 2,000 cases: standard error 0.011
        assert (means["label"] - means[f"p_{name}"]).abs().max() < 0.045
    assert abs(np.corrcoef(truth["p_both"], truth["label"])[0, 1] ** 2 - truth["p_both"].var() / truth["label"].var()) < 0.02


def test_interaction_is_invisible_to_one_modality():
    auc = bayes_auc(draw_cases(PairedSpec(n_patients=20_000, image_signal=0, table_signal=0, interaction=2)))
    assert auc["image"] < 0.55 and auc["table"] < 0.55 and auc["both"] > 0.8


def test_image_and_table_are_independent_and_patients_alike():
    truth = draw_cases(PairedSpec(n_patients=20_000, cases_per_patient=2, seed=7))
    assert abs(np.corrcoef(truth["u"], truth["v"])[0, 1]) < 0.02
    first, second = (truth.groupby("patient").nth(i).set_index("patient") for i in (0, 1))
    pairs = first.join(second, rsuffix="_2", how="inner")
    assert 0.4 < pairs["u"].corr(pairs["u_2"]) < 0.6 and pairs["v"].corr(pairs["v_2"]) > 0.5


def test_the_image_shows_u_beyond_brightness():
    """Where in the image the dark is finds u, even when brightness and contrast are taken away; and so it does in the mirror."""
    u = np.random.default_rng(0).uniform(-2, 2, 600)
    images = np.stack([draw_lesion(v, seed=[1, i]) for i, v in enumerate(u)]).astype(float)

    def found(x):  # out-of-fold rank correlation of a ridge regression on the mean over rings around the middle
        x = (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
        ring = np.hypot(*np.mgrid[-15.5:16, -15.5:16]).astype(int)
        rings = np.stack([f(x[:, ring == r], axis=1) for r in range(16) for f in (np.mean, np.std, np.min)], axis=1)
        return spearmanr(cross_val_predict(make_pipeline(StandardScaler(), Ridge(10)), rings, u), u)[0]

    assert abs(spearmanr(images.mean((1, 2)), u)[0]) < 0.5
    assert found(images) > 0.8 and abs(found(images[:, :, ::-1]) - found(images)) < 1e-6


def test_table_alone_is_learned_as_well_as_can_be(tmp_path):
    folder = make_paired(tmp_path / "t", n_patients=800, image_signal=0, table_signal=2, missing=0, size=16)
    table, truth = read_synthetic(folder).table, read_truth(folder)
    inputs = StandardScaler().fit_transform(np.c_[table["age"], table["palpable"] == "yes", table["density"].map("ABCD".index)])
    model = LogisticRegression().fit(inputs[:600], table["label"][:600])
    held_out = roc_auc_score(table["label"][600:], model.decision_function(inputs[600:]))
    assert abs(held_out - bayes_auc(truth[600:])["table"]) < 0.015
    age, palpable, density = model.coef_[0]
    assert palpable > age > density > 0


# ---- refusals

def test_the_same_cohort_is_left_alone(twin):
    before = {p: p.stat().st_mtime_ns for p in twin.rglob("*")}
    make_paired(twin, n_patients=60, seed=3, size=20)
    assert before == {p: p.stat().st_mtime_ns for p in twin.rglob("*")}


def test_a_cohort_of_older_code_is_made_anew(tmp_path, monkeypatch):
    folder = make_paired(tmp_path / "twin", n_patients=10, size=16)
    good = content(folder)
    (folder / "table.csv").write_text("")
    monkeypatch.setattr(synthetic, "code_fingerprint", lambda *_: "newer")
    make_paired(folder, n_patients=10, size=16)
    made = content(folder)
    assert made.pop("truth.json") != good.pop("truth.json") and made == good and len(list(folder.iterdir())) == 5


@pytest.mark.parametrize("name", ["thesis.txt", "images/annotated.png", "models/best.pt"])
def test_a_cohort_of_older_code_with_other_peoples_files_is_left_alone(tmp_path, monkeypatch, name):
    folder = make_paired(tmp_path / "twin", n_patients=10, size=16)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("precious")
    before = content(folder)
    monkeypatch.setattr(synthetic, "code_fingerprint", lambda *_: "newer")
    with pytest.raises(DataError, match=f"nothing but the synthetic cohort in 'twin'.*{name.split('/')[0]}"): make_paired(folder, n_patients=10, size=16)
    assert content(folder) == before


def test_an_empty_folder_is_filled_and_stays_the_same_folder(tmp_path, monkeypatch):
    for place, name in ((tmp_path / "here", "."), (tmp_path / "there", str(tmp_path / "there"))):
        place.mkdir()
        monkeypatch.chdir(place)
        inode = place.stat().st_ino
        assert make_paired(name, n_patients=10, size=16) == Path(name) and place.stat().st_ino == inode
        assert len(read_synthetic(name)) == len(read_truth(name)) and len(list(Path.cwd().iterdir())) == 5
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"{tmp_path.name}.*other files"): make_paired(".", n_patients=10, size=16)


@pytest.mark.parametrize("planted, words", [
    ({"n_patient": 10}, "Did you mean 'n_patients'"), ({"missing": 1.5}, "from 0 to 0.9"), ({"image_signal": float("nan")}, "nan"),
    ({"n_patients": 10.0}, "whole number"), ({"seed": "1"}, "whole number"), ({"cases_per_patient": 4}, "from 1 to 3")])
def test_wrong_parameters(tmp_path, planted, words):
    with pytest.raises(DataError, match=words): make_paired(tmp_path / "x", **planted)
    assert not list(tmp_path.iterdir())


def test_other_peoples_files_are_never_touched(twin, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="other files"): make_paired(tmp_path, n_patients=10)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    with pytest.raises(DataError, match="another cohort"): make_paired(twin, n_patients=61, seed=3, size=20)


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    for folder in (tmp_path / "twin", tmp_path):  # a new one, and an empty one
        with pytest.raises(DataError, match="disk is full"): make_paired(folder, n_patients=10, size=16)
        assert not list(tmp_path.iterdir())
