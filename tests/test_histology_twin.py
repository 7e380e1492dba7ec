"""The histology twin: its files, its counts, that its nuclei show their class, and that a split by patch leaks while one by case does not."""
import json

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import uniform_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fusion_nb.data.brecahad import CLASSES, PATCH_CLASSES, class_table, cut_patches, patch_cohort, read_boxes, read_brecahad
from fusion_nb.data.histology_twin import HistologySpec, _looks_like, _mix, draw_patch, make_histology
from fusion_nb.schema import DataError

SMALL = {"n_cases": 3, "images_per_case": 2, "scale": 0.002, "at_least": 5, "width": 240, "height": 200}
LEAKY = {"images_per_case": 3, "scale": 0.07, "at_least": 100, "width": 480, "height": 360}


def colour_and_texture(images: np.ndarray) -> np.ndarray:
    """(n, 36) what a simple method would compute of (n, 3, 64, 64): colours of the middle and of the whole, greys, edges, dark area."""
    x = images.astype(np.float32)
    colours = [f(x[:, :, part, part], axis=(2, 3)) for part in (slice(None), slice(14, 50), slice(22, 42)) for f in (np.mean, np.std)]
    grey = x.mean(axis=1)[:, 12:52, 12:52]
    dark = (grey < grey.mean(axis=(1, 2), keepdims=True) - 25).mean(axis=(1, 2))
    edges = np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2))
    return np.column_stack([*colours, np.percentile(grey.reshape(len(x), -1), [1, 5, 15, 30, 50, 70], axis=1).T, edges, dark])


def macro_auc(patches, split, groups=None) -> float:
    """Five-fold macro one-vs-rest AUC of a logistic regression, predictions pooled."""
    label = patches.index["label"].to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, class_weight="balanced"))
    score = cross_val_predict(model, colour_and_texture(np.asarray(patches.images)), label, groups=groups, cv=split, method="predict_proba")
    return roc_auc_score(label, score, multi_class="ovr", average="macro")


def both_splits(folder, **drawn) -> tuple:
    """(by patch, by case) macro AUC of one twin."""
    patches = cut_patches(read_brecahad(make_histology(folder / "twin", **LEAKY | drawn)), folder / "cut", progress=False)
    by_case = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    return macro_auc(patches, StratifiedKFold(5, shuffle=True, random_state=0)), macro_auc(patches, by_case, patches.index["group"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_histology(tmp_path_factory.mktemp("histology") / "small", **SMALL)


# ---- what it was built to show

def test_a_split_by_patch_leaks_and_one_by_case_does_not(tmp_path):
    by_patch, by_case = both_splits(tmp_path, seed=0)
    assert by_patch > by_case + 0.03 and by_case > 0.7, (by_patch, by_case)


@pytest.mark.slow
def test_the_leak_comes_from_the_cases(tmp_path):
    leaks = {v: [np.subtract(*both_splits(tmp_path / f"{v} {seed}", seed=seed, case_variation=v, scale=0.1)) for seed in range(4)] for v in (0.0, 1.0)}
    assert np.mean(leaks[0.0]) < 0.015 and min(leaks[1.0]) > 0.015 and np.mean(leaks[1.0]) > 0.035, leaks


def test_patches_of_unseen_cases_show_their_class():
    def draw(cases): return np.array([draw_patch(a, case_seed=case, seed=[case, a]) for case in cases for a in (0, 1, 2)]).transpose(0, 3, 1, 2)
    label = np.tile([0, 1, 2], 150)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(colour_and_texture(draw(range(150))), label)
    score = model.predict_proba(colour_and_texture(draw(range(150, 300))))
    assert 0.75 < roc_auc_score(label, score, multi_class="ovr") < 0.945  # 0.94 is the most that anyone can reach


def test_no_look_tells_more_than_it_may():
    label = np.repeat([0, 1, 2], 20_000)
    seen = np.eye(3)[_looks_like(np.random.default_rng(0), label)]
    assert roc_auc_score(label, seen, multi_class="ovr") == pytest.approx(0.94, abs=0.003)


def test_colours_are_those_of_h_and_e():
    patches = np.array([draw_patch(1, case_seed=case, seed=case) for case in range(60)]).astype(float)
    nucleus, around = patches[:, 28:36, 28:36].mean(axis=(0, 1, 2)), patches[:, :8].mean(axis=(0, 1, 2))
    assert nucleus[2] > nucleus[0] > nucleus[1] and around[0] > around[1] and around[2] > around[1]  # blue; pink
    assert nucleus.mean() < 0.8 * around.mean()


def test_patches_of_a_case_share_its_stain():
    colour = np.array([[draw_patch(1, case_seed=case, seed=[case, i]).mean(axis=(0, 1)) for i in range(12)] for case in range(12)])
    by_chance = colour.std(axis=1).mean(axis=0) / np.sqrt(12)  # sd of a case's mean colour, were all cases alike
    assert (colour.mean(axis=1).std(axis=0) > 2.5 * by_chance).all()


def test_a_crowded_picture_still_has_all_its_dots(tmp_path):
    read = read_brecahad(make_histology(tmp_path / "twin", n_cases=2, images_per_case=1, scale=0.002, at_least=3, width=240, height=200, seed=2))
    assert read.dots.groupby("image").size().max() > 30  # more than places without overlap
    assert len(read.dots) == 47 and not read.dots.duplicated().any() and read.dots["x"].between(0, 240).all()


# ---- files

def test_files_are_those_of_the_real_set(small):
    names = [f"Case_{k}-{i:02d}" for k in (1, 2, 3) for i in (1, 2)]
    files = {p.relative_to(small).as_posix() for p in small.rglob("*") if p.is_file()}
    assert files == {"synthetic.json", *(f"images/{n}.png" for n in names), *(f"groundTruth/{n}.json" for n in names)}
    document = json.loads((small / "groundTruth" / "Case_1-01.json").read_text())
    assert tuple(document) == CLASSES and all(set(dot) == {"x", "y"} for dots in document.values() for dot in dots)
    with Image.open(small / "images" / "Case_1-01.png") as picture:
        assert picture.mode == "RGB" and picture.size == (240, 200)


def test_the_mark_goes_all_the_way(small, tmp_path):
    read = read_brecahad(small)
    patches = cut_patches(read, tmp_path / "cut", progress=False)
    cohort = patch_cohort(patches, name="Twin")
    assert read.synthetic and patches.synthetic and cohort.synthetic and cohort.title == "Twin (synthetic data)"
    assert "no patient" in cohort.source and any("synthetic" in note for note in cohort.notes) and "synthetic" in repr(patches)
    assert (patches.export_image_folder(tmp_path / "classes") / "SYNTHETIC.txt").exists()
    (tmp_path / "boxes.csv").write_text("filename,class_name,x_center,y_center\nCase_1-01,Mitosis,0.5,0.5\n")
    assert read_boxes(tmp_path / "boxes.csv", pictures=small).synthetic


def test_counts(small):
    assert class_table(read_brecahad(small)).loc["total", list(PATCH_CLASSES)].tolist() == [5, 40, 5]
    mix = _mix(HistologySpec())
    assert mix.sum(axis=0).tolist() == [112, 20_000, 1_900] and len(mix) == 170
    share = mix.reshape(17, 10, 3).sum(axis=1) / mix.reshape(17, 10, 3).sum(axis=(1, 2))[:, None]
    assert share[:, 2].max() > 3 * share[:, 2].min()  # the mix of classes differs by case


def test_dots_lie_on_the_nuclei(small, tmp_path):
    grey = cut_patches(read_brecahad(small), tmp_path / "cut", progress=False).images.mean(axis=(0, 1))  # the mean patch
    darkest = np.unravel_index(uniform_filter(grey, 9)[8:-8, 8:-8].argmin(), (48, 48))
    assert max(abs(24 - at) for at in darkest) <= 3 and grey[28:36, 28:36].mean() < 0.8 * grey.mean()


def test_same_spec_same_files_other_seed_others(small, tmp_path):
    again, other = make_histology(tmp_path / "again", HistologySpec(**SMALL)), make_histology(tmp_path / "other", **SMALL, seed=1)
    for path in small.rglob("*.*"):
        assert (again / path.relative_to(small)).read_bytes() == path.read_bytes()
    first = "images/Case_1-01.png"
    assert (other / first).read_bytes() != (small / first).read_bytes()


def test_a_set_that_is_there_is_left_alone_and_one_of_other_code_is_drawn_anew(tmp_path):
    folder = make_histology(tmp_path / "twin", **SMALL)
    mark, when = folder / "synthetic.json", (folder / "synthetic.json").stat().st_mtime_ns
    make_histology(folder, **SMALL)
    assert mark.stat().st_mtime_ns == when
    mark.write_text(mark.read_text().replace('"code": "', '"code": "x'))
    make_histology(folder, **SMALL)
    assert '"code": "x' not in mark.read_text()
    mark.write_text(mark.read_text().replace('"code": "', '"code": "x'))
    (folder / "mine.txt").write_text("a note")
    with pytest.raises(DataError, match="'twin' with other files"): make_histology(folder, **SMALL)
    assert (folder / "mine.txt").exists()


# ---- bad input

@pytest.mark.parametrize("wrong, message", [
    ({"n_cases": 1}, "n_cases: a whole number from 2"), ({"scale": float("nan")}, "scale: a number from 0.001"), ({"seed": 1.5}, "seed: a whole number"),
    ({"lookalikes": 2}, "lookalikes: a number from 0 to 1"), ({"width": 100, "height": 100}, "at most 3 dots in a picture of 100 x 100"),
    ({"cases": 3}, "a known parameter of synthetic pictures. Got 'cases'. Did you mean 'n_cases'"),
])
def test_bad_specs(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message): make_histology(tmp_path / "twin", **wrong)
    assert not (tmp_path / "twin").exists()


def test_bad_calls(tmp_path, small):
    with pytest.raises(DataError, match="a spec or its fields. Got both: seed"): make_histology(tmp_path / "twin", HistologySpec(**SMALL), seed=1)
    with pytest.raises(DataError, match="with another set. Choose another folder"): make_histology(small, **SMALL | {"seed": 9})
    for appearance in (3, -1, "tumor"):
        with pytest.raises(DataError, match="an appearance of 0"): draw_patch(appearance, case_seed=0, seed=0)
