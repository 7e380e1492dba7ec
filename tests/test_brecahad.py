"""BreCaHAD: the real files to their counts, patches pixel by pixel, the border rules, killed and repeated runs, and every bad input."""
import csv
import json
import tracemalloc
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fusion_nb.data import brecahad
from fusion_nb.data.brecahad import (CLASSES, PATCH_CLASSES, Patches, class_table, cut_patches, cut_tiles, patch_cohort, read_boxes,
                                     read_brecahad)
from fusion_nb.schema import DataError

NAMES = ("Case_2-01", "Case_2-02", "Case_10-01")


def pixels(i: int, width: int = 200, height: int = 120) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_dots(path, **dots):
    path.write_text(json.dumps(dict.fromkeys(CLASSES, []) | {c: [{"x": x, "y": y} for x, y in at] for c, at in dots.items()}))


@pytest.fixture
def folder(tmp_path):
    """Three pictures of two cases; each with a mitosis in the middle, tumour dots in corners and near edges."""
    folder = tmp_path / "set"
    for sub in ("images", "groundTruth"):
        (folder / sub).mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.fromarray(pixels(i)).save(folder / "images" / f"{name}.png")
        write_dots(folder / "groundTruth" / f"{name}.json", mitosis=[(.5, .5)], tumor=[(0, 0), (1, 1), (.5, .1), (.3, .6)], lumen=[(.4, .4)])
    return folder


def cut(folder, out="cut", **options):
    return cut_patches(read_brecahad(folder), folder.parent / out, **{"size": 32, "progress": False} | options)


# ---- the real files

def test_real_json_to_its_counts(data_dir):
    read = read_brecahad(data_dir / "brecahad")
    for path in (data_dir / "brecahad").rglob("Case_*.json"):
        text = path.read_text()
        starts = sorted((text.index(f'"{cls}"'), cls) for cls in CLASSES)
        ends = [start for start, _ in starts[1:]] + [len(text)]
        independent = {cls: text[start:end].count('"x"') for (start, cls), end in zip(starts, ends)}  # without parsing
        found = read.dots[read.dots["image"] == path.stem]["cls"].value_counts().reindex(CLASSES, fill_value=0)
        assert found.to_dict() == independent
    total = class_table(read).loc["total"]
    assert total[["images", "mitosis", "tumor", "non_tumor", "apoptosis", "non_lumen"]].tolist() == [3, 4, 428, 16, 17, 18]
    assert any("2 images with dots but without a picture (Case_1-02, Case_1-03)" in note for note in read.notes)
    assert any("Case_1-01_equalized.jpg" in note for note in read.notes) and not read.synthetic
    assert read.images["path"].notna().tolist() == [True, False, False] and (read.images["width"] == 1360).all()


def test_real_boxes_to_their_counts(data_dir):
    path = data_dir / "brecahad" / "boxes_reannotated.csv"
    read = read_boxes(path)
    assert (len(read.dots), len(read.images), read.images["case"].nunique()) == (23_496, 162, 17)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    independent = Counter(row["class_name"] for row in rows)
    total = class_table(read).loc["total"]
    assert total["tumor"] == independent["Tumor_nuclei"] == 20_117 and total["mitosis"] == independent["Mitosis"] == 112
    assert total["non_tumor"] == independent["Non_tumor_nuclei"] == 1_917 and total["images"] == 162
    assert np.allclose(read.dots["x"], [float(row["x_center_abs"]) for row in rows], atol=0.01)  # six decimals, times 1360
    assert np.allclose(read.dots["y"], [float(row["y_center_abs"]) for row in rows], atol=0.01)
    assert class_table(read).index.tolist() == [f"Case_{k}" for k in range(1, 18)] + ["total"]


def test_real_patches_centre_on_dark_nuclei(data_dir, tmp_path):
    read = read_brecahad(data_dir / "brecahad")
    patches = cut_patches(read, tmp_path / "cut", progress=False)
    assert patches.images.shape == (140, 3, 64, 64) and (patches.index["cls"] == "tumor").all()
    assert any("no dot of mitosis, non_tumor" in note for note in patches.notes)
    assert "6 dots of other classes: not cut" in patches.notes and "337 dots without a picture: not cut" in patches.notes
    at_dots = patches.images[:, :, 28:36, 28:36].mean()
    rng = np.random.default_rng(0)
    random = read.dots.iloc[[0] * 1000].assign(image="Case_1-01", cls="tumor", x=rng.uniform(0, 1360, 1000), y=rng.uniform(0, 1024, 1000))
    elsewhere = cut_patches(brecahad.Annotations(random, read.images), tmp_path / "random", progress=False).images[:, :, 28:36, 28:36].mean()
    assert at_dots < 60 < 110 < elsewhere


# ---- patches

def test_patches_are_the_pixels_around_the_dot(folder):
    patches = cut(folder)
    assert patches.images.dtype == np.uint8 and patches.images.shape == (15, 3, 32, 32) and isinstance(patches.images, np.memmap)
    for i, name in enumerate(NAMES):
        padded = np.pad(pixels(i), ((32, 32), (32, 32), (0, 0)), mode="reflect")
        for row, image in zip(patches.index.itertuples(), patches.images):
            if row.image != name: continue
            x, y = min(int(row.x), 199), min(int(row.y), 119)
            assert (image.transpose(1, 2, 0) == padded[y + 16:y + 48, x + 16:x + 48]).all()
    assert patches.index["case_id"].is_unique and patches.index["group"].tolist() == ["Case_2"] * 10 + ["Case_10"] * 5
    assert (patches.index["cls"] == np.array(PATCH_CLASSES)[patches.index["label"]]).all()


def test_border_rules(folder):
    reflect, shift, drop = (cut(folder, border, border=border) for border in ("reflect", "shift", "drop"))
    assert len(reflect) == len(shift) == 15 and len(drop) == 6 and reflect.index["at_border"].sum() == 9 and not drop.index["at_border"].any()
    for patches, words in ((reflect, "mirror"), (shift, "moved inside"), (drop, "left out")):
        assert any("9 of 15 patches (60.0%)" in note and words in note for note in patches.notes)
    corner = shift.index.query("image == 'Case_2-01' and cls == 'tumor'").index
    assert (shift.images[corner[0]].transpose(1, 2, 0) == pixels(0)[:32, :32]).all()
    assert (shift.images[corner[1]].transpose(1, 2, 0) == pixels(0)[-32:, -32:]).all()
    inside = reflect.index.index[~reflect.index["at_border"]]
    assert (drop.images == reflect.images[inside]).all()
    assert drop.index["case_id"].tolist() == reflect.index["case_id"][inside].tolist()


def test_names_do_not_depend_on_the_classes_chosen(folder):
    some, more = cut(folder, "a", classes=("tumor",)), cut(folder, "b", classes=("lumen", "tumor"))
    assert set(some.index["case_id"]) < set(more.index["case_id"]) and more.classes == ("lumen", "tumor")
    assert any("6 dots of other classes: not cut" in note for note in some.notes)


def test_jobs_change_nothing(folder):
    one, four = cut(folder, "one"), cut(folder, "four", jobs=4)
    assert (one.images == four.images).all() and one.index.equals(four.index) and one.notes == four.notes
    names = [[p.read_bytes() for p in sorted((folder.parent / out).iterdir()) if p.suffix != ".key"] for out in ("one", "four")]
    assert names[0] == names[1]


def test_rows_of_a_picture_may_be_scattered(folder):
    read = read_brecahad(folder)
    mixed = brecahad.Annotations(read.dots.sample(frac=1, random_state=0), read.images)
    patches = cut_patches(mixed, folder.parent / "mixed", size=32, progress=False)
    for row, image in zip(patches.index.itertuples(), patches.images):
        if not row.at_border:
            i, x, y = NAMES.index(row.image), int(row.x), int(row.y)
            assert (image.transpose(1, 2, 0) == pixels(i)[y - 16:y + 16, x - 16:x + 16]).all()


@pytest.mark.parametrize("suffix, mode", [(".tif", "RGB"), (".png", "RGBA"), (".png", "L"), (".jpg", "RGB"), (".TIF", "RGB")])
def test_formats_and_modes(folder, suffix, mode):
    original = Image.fromarray(pixels(0)).convert(mode)
    (folder / "images" / "Case_2-01.png").unlink()
    original.save(folder / "images" / f"Case_2-01{suffix}")
    with Image.open(folder / "images" / f"Case_2-01{suffix}") as saved:
        expected = np.asarray(saved.convert("RGB"))
    assert (cut(folder).images[0].transpose(1, 2, 0) == expected[44:76, 84:116]).all()


@pytest.mark.parametrize("options, mapped", [
    ({}, True), ({"compression": "tiff_lzw"}, False), ({"exif": {0x0112: 3}}, False), ({"strip_size": 3 * 200 * 7}, True)])
def test_uncompressed_tiff_is_mapped_and_the_same(folder, options, mapped):
    if "exif" in options:
        exif = Image.Exif()
        exif.update(options["exif"])
        options = {"exif": exif}
    path = folder / "images" / "Case_2-01.tif"
    Image.fromarray(pixels(0)).save(path, **options)
    with Image.open(path) as picture:
        expected = np.asarray(picture)
    found = brecahad._decoded(path, (200, 120))
    assert isinstance(found, np.memmap) == mapped and (found == expected).all()


def test_resize_is_bicubic_and_keeps_a_flat_patch(folder):
    Image.new("RGB", (200, 120), (10, 200, 30)).save(folder / "images" / "Case_2-01.png")
    patches = cut(folder, size=(32, 48))
    assert patches.images.shape[1:] == (3, 48, 48) and patches.images.dtype == np.uint8
    assert (patches.images[0] == np.array([10, 200, 30])[:, None, None]).all()
    square = Image.fromarray(pixels(1)[44:76, 84:116]).resize((48, 48), Image.Resampling.BICUBIC)
    row = patches.index.query("image == 'Case_2-02' and cls == 'mitosis'").index[0]
    assert (patches.images[row].transpose(1, 2, 0) == np.asarray(square)).all()


def test_one_picture_in_memory_at_a_time(tmp_path):
    peaks = []
    for n in (2, 5):
        folder = tmp_path / str(n)
        folder.mkdir()
        for i in range(n):
            Image.fromarray(pixels(i, 600, 400)).save(folder / f"Case_{i + 1}-01.png", compress_level=1)
            write_dots(folder / f"Case_{i + 1}-01.json", tumor=[(.5, .5)] * 20, mitosis=[(.4, .4)])
        read = read_brecahad(folder)
        tracemalloc.start()
        cut_patches(read, tmp_path / f"cut {n}", progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0], peaks


# ---- again, and after a death

def test_second_call_reads(folder, monkeypatch):
    first = cut(folder)
    monkeypatch.setattr(brecahad, "_decoded", lambda *_: pytest.fail("decoded again"))
    again = cut(folder)
    assert (again.images == first.images).all() and again.index.equals(first.index) and again.notes == first.notes
    assert (Patches.read(folder.parent / "cut").images == first.images).all()


def test_another_picture_or_option_cuts_again(folder):
    before = np.array(cut(folder).images)
    Image.fromarray(pixels(99)).save(folder / "images" / "Case_2-01.png")
    after = cut(folder)
    assert (after.images[0] != before[0]).any() and (after.images[5:] == before[5:]).all()
    assert cut(folder, border="drop").images.shape[0] == 6 and len(cut(folder)) == 15


@pytest.mark.parametrize("dies_at", ["_decoded", "_write_blocks", "write_json"])
def test_a_killed_run_leaves_nothing_to_mistake(folder, monkeypatch, dies_at):
    whole = np.array(cut(folder, border="drop").images)  # the folder holds something older
    def die(*_): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(brecahad, dies_at, die)
        with pytest.raises(KeyboardInterrupt): cut(folder)
    assert not list((folder.parent / "cut").glob(".*.part*"))
    with pytest.raises(DataError, match="no patches.json.*Cut the patches again"): Patches.read(folder.parent / "cut")
    assert len(cut(folder)) == 15 and (cut(folder, border="drop").images == whole).all()


def test_a_lost_or_broken_part(folder):
    out = folder.parent / "cut"
    images = np.array(cut(folder).images)
    (out / "patches.npy").unlink()
    assert (cut(folder).images == images).all()
    (out / "patches.npy").write_bytes((out / "patches.npy").read_bytes()[:1000])
    with pytest.raises(DataError, match="whole array in cut/patches.npy"): Patches.read(out)
    other = cut(folder, "other", border="drop")
    (out / "patches.npy").write_bytes((folder.parent / "other" / "patches.npy").read_bytes())
    with pytest.raises(DataError, match=f"15 and {len(other)}"): Patches.read(out)


# ---- tiles, cohort, export

def test_tiles_are_named_by_the_rarest_class(folder):
    write_dots(folder / "groundTruth" / "Case_2-01.json", mitosis=[(.1, .1)], tumor=[(.11, .1), (.12, .12), (.5, .5)])
    tiles = cut_tiles(read_brecahad(folder), folder.parent / "tiles", size=40, progress=False)
    assert tiles.images.shape[1:] == (3, 40, 40) and tiles.index["case_id"].is_unique
    first = tiles.index.query("image == 'Case_2-01'")
    assert first[["case_id", "cls", "x", "y"]].values.tolist() == [["Case_2-01_r00c00", "mitosis", 20, 20], ["Case_2-01_r01c02", "tumor", 100, 60]]
    assert (tiles.images[first.index[0]].transpose(1, 2, 0) == pixels(0)[:40, :40]).all()
    assert any("1 tile with dots of several classes" in note for note in tiles.notes)
    assert any(f"{45 - len(tiles)} of 45 tiles without a dot" in note for note in tiles.notes)
    assert any("2 dots of 14 beyond the last whole tile" in note for note in tiles.notes)


def test_cohort(folder):
    cohort = patch_cohort(cut(folder))
    assert cohort.variables == () and cohort.classes == PATCH_CLASSES and cohort.n_groups == 2 and not cohort.synthetic
    assert cohort.table["image"].str.endswith(".png").all() and "CC BY 4.0" in cohort.source
    assert any("over the border" in note for note in cohort.notes) and any("no dot of" in note for note in cohort.notes)
    with pytest.raises(DataError, match="at least two classes"): patch_cohort(cut(folder, "one", classes=("tumor",)))


def test_export_for_image_folder(folder):
    datasets = pytest.importorskip("torchvision.datasets")
    patches = cut(folder)
    found = datasets.ImageFolder(patches.export_image_folder(folder.parent / "classes"))
    assert len(found) == len(patches) and found.classes == ["mitosis", "tumor"]
    path, label = found.samples[0]
    row = patches.index.set_index("case_id").index.get_loc(path.split("/")[-1].removesuffix(".png"))
    assert found.classes[label] == patches.index["cls"][row] and (np.asarray(found[0][0]) == patches.images[row].transpose(1, 2, 0)).all()
    with pytest.raises(DataError, match="a new folder.*'classes', which exists"): patches.export_image_folder(folder.parent / "classes")


# ---- bad input

def test_missing_picture_and_missing_dots_are_counted(folder):
    (folder / "images" / "Case_2-01.png").unlink()
    (folder / "groundTruth" / "Case_10-01.json").unlink()
    read = read_brecahad(folder)
    assert any("1 image with dots but without a picture (Case_2-01): pixels by 1360 x 1024" in note for note in read.notes)
    assert any("1 picture without a file of dots (Case_10-01)" in note for note in read.notes)
    assert read.dots.query("image == 'Case_2-01' and cls == 'mitosis'")[["x", "y"]].values.tolist() == [[680, 512]]
    patches = cut(folder)
    assert set(patches.index["image"]) == {"Case_2-02"} and any("6 dots without a picture: not cut" in note for note in patches.notes)


def test_a_class_without_dots_is_counted(folder):
    patches = cut(folder)
    assert "no dot of non_tumor: no patch of that class" in patches.notes and patches.classes == PATCH_CLASSES
    with pytest.raises(DataError, match="at least one patch.*no dot of apoptosis"): cut(folder, classes=("apoptosis",))


def test_a_picture_that_went_away_or_changed(folder):
    read = read_brecahad(folder)
    Image.fromarray(pixels(0, 100, 100)).save(folder / "images" / "Case_2-01.png")
    with pytest.raises(DataError, match=r"a picture of 200 x 120 in Case_2-01.png. Got \(100, 100\). It has changed"):
        cut_patches(read, folder.parent / "cut", progress=False)
    (folder / "images" / "Case_2-01.png").unlink()
    with pytest.raises(DataError, match="no file 'Case_2-01.png'. Read them again"): cut_patches(read, folder.parent / "cut", progress=False)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_truncated_picture(folder, suffix, jobs):
    (folder / "images" / "Case_2-02.png").unlink()
    path = folder / "images" / f"Case_2-02{suffix}"
    Image.fromarray(pixels(1)).save(path)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(DataError, match=f"a whole image .* in Case_2-02{suffix}.*Copy the file again"): cut(folder, jobs=jobs)
    assert [p.name for p in (folder.parent / "cut").iterdir()] == []


@pytest.mark.parametrize("document, message", [
    ([], "an object with the classes .* in Case_2-01.json. Got a list"),
    ({"dots": []}, "only the classes .* in Case_2-01.json. Got 'dots'"),
    ({c: [] for c in CLASSES[:-1]}, "the class 'non_lumen' in Case_2-01.json"),
    (dict.fromkeys(CLASSES, []) | {"tumour": []}, "Got 'tumour'. Did you mean 'tumor'"),
    (dict.fromkeys(CLASSES, []) | {"tumor": {"x": 1, "y": 1}}, "a list of dots for 'tumor' in Case_2-01.json"),
    (dict.fromkeys(CLASSES, []) | {"tumor": [{"x": .1, "y": .1}, {"x": 1.01, "y": .1}]}, "Case_2-01.json, tumor, dot 2. Got x = 1.01. They are fractions"),
    (dict.fromkeys(CLASSES, []) | {"tumor": [{"x": .1, "y": -.1}]}, "from 0 to 1 .* Got y = -0.1"),
    (dict.fromkeys(CLASSES, []) | {"tumor": [{"x": float("nan"), "y": .1}]}, "Got x = nan"),
    (dict.fromkeys(CLASSES, []) | {"tumor": [{"x": True, "y": .1}]}, "Got x = True"),
    (dict.fromkeys(CLASSES, []) | {"tumor": [{"x": "0.5", "y": .1}]}, "Got x = 0.5"),
    (dict.fromkeys(CLASSES, []) | {"tumor": [{"x": .5}]}, "Got y = None"),
])
def test_dots_of_another_schema(folder, document, message):
    (folder / "groundTruth" / "Case_2-01.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=message): read_brecahad(folder)


def test_truncated_json(folder):
    path = folder / "groundTruth" / "Case_2-01.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match="JSON in .*Case_2-01.json. Got line 1, column"): read_brecahad(folder)


def test_two_files_of_one_stem(folder):
    Image.fromarray(pixels(0)).save(folder / "Case_2-01.tif")
    with pytest.raises(DataError, match="one file for Case_2-01 below 'set'. Got Case_2-01.tif and images.Case_2-01.png. Move one"): read_brecahad(folder)


def test_what_is_left_out(folder):
    (folder / "groundTruth_display").mkdir()
    for name in ("groundTruth_display/Case_2-01.png", "._Case_2-01.png", "overview.png"):
        Image.fromarray(pixels(0)).save(folder / name)
    (folder / "license.json").write_text("{}")
    read = read_brecahad(folder)
    assert len(read.images) == 3 and any("1 picture left out, not named Case_K-NN (overview.png)" in note for note in read.notes)


def test_a_link_that_leaves_the_folder(folder):
    outside = folder.parent / "elsewhere.png"
    Image.fromarray(pixels(0)).save(outside)
    (folder / "images" / "Case_3-01.png").symlink_to(outside)
    with pytest.raises(DataError, match="files inside the folder 'set'. Got images.Case_3-01.png, a link that leaves it"): read_brecahad(folder)


def test_sixteen_bits_are_refused(folder):
    Image.fromarray(np.zeros((120, 200), np.uint16)).save(folder / "images" / "Case_2-01.png")
    with pytest.raises(DataError, match="8 bits a channel in Case_2-01.png. Got mode I;16"): read_brecahad(folder)


def test_no_folder_and_no_dots(tmp_path):
    with pytest.raises(DataError, match="no folder 'nowhere'"): read_brecahad(tmp_path / "nowhere")
    with pytest.raises(DataError, match="files like Case_1-01.json"): read_brecahad(tmp_path)


@pytest.mark.parametrize("column, value, message", [
    ("class_name", "Nucleus", "the classes Mitosis.* in the column 'class_name'. Got 'Nucleus' in row 3"),
    ("filename", "../../Case_1-01", "names like Case_1-01 in the column 'filename'"),
    ("filename", "/data/Case_1-01", "names like Case_1-01 in the column 'filename'"),
    ("x_center", "1.5", "numbers from 0 to 1 in the column 'x_center'. Got '1.5' in row 3"),
    ("y_center", "", "numbers from 0 to 1 in the column 'y_center'"),
    (None, "x_center", "the column 'x_center' in boxes.csv"),
])
def test_bad_boxes(tmp_path, column, value, message):
    table = pd.DataFrame({"filename": ["Case_1-01"] * 3, "class_name": ["Mitosis"] * 3, "x_center": ["0.5"] * 3, "y_center": ["0.5"] * 3})
    if column: table.loc[1, column] = value
    else: table = table.drop(columns=value)
    table.to_csv(tmp_path / "boxes.csv", index=False)
    with pytest.raises(DataError, match=message): read_boxes(tmp_path / "boxes.csv")


def test_boxes_with_pictures(folder):
    pd.DataFrame({"filename": ["Case_2-02", "Case_5-01"], "class_name": "Mitosis", "x_center": 0.5, "y_center": 0.5}).to_csv(folder / "b.csv", index=False)
    read = read_boxes(folder / "b.csv", pictures=folder)
    assert read.dots[["x", "y"]].values.tolist() == [[100, 60], [680, 512]] and len(read.images) == 4
    assert any("2 pictures without a file of dots" in note for note in read.notes)
    with pytest.raises(DataError, match="no folder 'nowhere'"): read_boxes(folder / "b.csv", pictures=folder / "nowhere")


@pytest.mark.parametrize("options, message", [
    ({"border": "wrap"}, "a known border rule. Got 'wrap'"), ({"size": 0}, "a side from 2"),
    ({"size": (64, 64, 64)}, "a side from 2"), ({"size": 32.0}, "a side from 2"),
    ({"classes": ("mitoses",)}, "a known class. Got 'mitoses'. Did you mean 'mitosis'"), ({"classes": ()}, "each class once"),
    ({"classes": ("tumor", "tumor")}, "each class once"), ({"jobs": 0}, "jobs=0"), ({"border": "shift", "size": 150}, "pictures of at least 150 x 150"),
])
def test_bad_options(folder, options, message):
    with pytest.raises(DataError, match=message): cut(folder, **options)
