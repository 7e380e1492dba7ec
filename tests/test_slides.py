"""Slides: where the magnification comes from, every damaged file, tiles against the drawn pixels, Otsu against scikit-image, and names from outside."""
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from fusion_nb.data import slides as module
from fusion_nb.data.slide_twin import write_slide
from fusion_nb.data.slides import Tiling, find_slides, open_slide_info, read_tiles, thumbnail, tile_grid, tile_slide, tissue_mask
from fusion_nb.schema import DataError
from fusion_nb.slide_features import extract_features, patch_pixels, read_bags, slide_files

EVERYTHING = {"min_tissue": 0, "min_contrast": 0, "max_tiles": None}


def noise(height=600, width=900, seed=0):
    """Coloured noise: no two tiles are alike, and every tile is tissue."""
    return np.random.default_rng(seed).integers((90, 40, 110), (200, 140, 190), (height, width, 3)).astype(np.uint8)


def save(path, image, *, levels=1, description=None, mpp=0.5, **options):
    """A lossless slide, so that its pixels can be compared."""
    scale = {} if mpp is None else {"resolution": tuple(1e4 / m for m in np.broadcast_to(mpp, 2)), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for i in range(levels):
            tiff.write(image[::2**i, ::2**i], tile=(64, 64), photometric="rgb", compression="deflate", subfiletype=int(i > 0), metadata=None,
                       description=description if i == 0 else None, **{**scale, **options})
    return path


def damaged(path, image):
    """A slide that opens, and has rubbish in the middle of its finest level."""
    save(path, image, levels=3)
    with tifffile.TiffFile(path) as tiff: offsets = tiff.pages[0].dataoffsets
    data = bytearray(path.read_bytes())
    at = offsets[len(offsets) // 2]
    data[at:at + 4000] = bytes(4000)
    path.write_bytes(data)
    return path


# ---- magnification

@pytest.mark.parametrize("description, mpp, expected, source", [
    (None, 0.5, 0.5, "the file"), (None, (0.5, 0.52), np.sqrt(0.26), "the file"), ("Aperio Image Library v1\r\n|AppMag = 20|MPP = 0.4990", None, 0.499, "the file"),
    ("Aperio Image Library v1\r\n|AppMag = 40", None, 0.25, "its objective of 40x"), (None, None, None, "no source"),
    (None, 353, None, "no source; the file's 353 x 353 µm is no microscope's")])
def test_magnification_is_read_or_derived_or_unknown(tmp_path, description, mpp, expected, source):
    info = open_slide_info(save(tmp_path / "a.tif", noise(200, 200), description=description, mpp=mpp))
    assert info.mpp == (None if expected is None else pytest.approx(expected, rel=1e-6)) and info.mpp_from == source
    stated = open_slide_info(tmp_path / "a.tif", fallback_mpp=1.0)
    assert stated.mpp == (info.mpp or 1.0)  # what the file says wins


def test_openslide_reads_the_magnification_of_a_synthetic_slide(tmp_path):
    for mpp in (0.25, 0.5, 1.0): assert open_slide_info(write_slide(tmp_path / "a.tif", noise(512, 512), mpp=mpp)).mpp == pytest.approx(mpp, rel=1e-4)


def test_no_magnification_needs_a_stated_fallback(tmp_path):
    path = save(tmp_path / "a.tif", noise(), mpp=None)
    with pytest.raises(DataError, match=r"microns per pixel, a\.tif\. Got no source\. State what the scanner had: fallback_mpp="): tile_slide(path, size=64)
    tiles = tile_slide(path, size=64, fallback_mpp=0.5)
    assert tiles.notes == ("a.tif: 0.5 µm per pixel from the stated fallback.",) and tiles.span == 64


def test_tiles_finer_than_the_scan_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", noise(), mpp=0.54)
    assert tile_slide(path, size=64, mpp=0.5).span == 59  # 0.54 counts as 20x
    with pytest.raises(DataError, match="cannot be finer than the scan"): tile_slide(path, size=64, mpp=0.25)


# ---- damaged files

@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_truncated_slides_are_named(tmp_path, share):
    whole = save(tmp_path / "whole.tif", noise(), levels=3).read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(DataError, match=r"cut\.tif.*Copy the file again") as error: tile_slide(cut, size=64)
    assert str(tmp_path) not in str(error.value)


def test_a_region_that_cannot_be_read_is_named(tmp_path):
    path = damaged(tmp_path / "a.tif", noise())
    tiles = tile_slide(path, size=64, **EVERYTHING)  # its contrast is measured on a coarser level, which is whole
    for read in (lambda: list(read_tiles(tiles)), lambda: thumbnail(path, side=900)):
        with pytest.raises(DataError, match=r"a whole slide in a\.tif. Got a region that cannot be read"): read()


@pytest.mark.parametrize("name, content, message", [("gone.svs", None, "a slide file. Got no file 'gone.svs'"), ("note.svs", b"hello", "Unsupported or missing"), ("empty.tif", b"", r"empty\.tif")])
def test_files_that_are_no_slides(tmp_path, name, content, message):
    if content is not None: (tmp_path / name).write_bytes(content)
    for use in (open_slide_info, tissue_mask, thumbnail, tile_slide):
        with pytest.raises(DataError, match=message): use(tmp_path / name)


def test_a_slide_without_tissue_and_one_smaller_than_a_tile(tmp_path):
    glass = save(tmp_path / "glass.tif", np.clip(np.random.default_rng(0).normal(243, 2, (600, 600, 3)), 0, 255).astype(np.uint8))
    with pytest.raises(DataError, match=r"tissue in glass\.tif. Got 0 of 81 tiles with at least 20% tissue"): tile_slide(glass, size=64)
    flat = save(tmp_path / "flat.tif", np.full((600, 600, 3), (200, 120, 170), np.uint8))
    with pytest.raises(DataError, match="81 of 81 tiles with at least 20% tissue, 0 of them of enough contrast"): tile_slide(flat, size=64)
    with pytest.raises(DataError, match=r"at least one tile of 1024 pixels at level 0, flat\.tif. Got 600 x 600"): tile_slide(flat, size=1024)


@pytest.mark.parametrize("options, message", [({"size": 4}, "size: a whole number from 8"), ({"size": 64.5}, "size: a whole number"), ({"mpp": np.nan}, "mpp: a number"),
                                              ({"min_tissue": 1.5}, "from 0 to 1"), ({"max_tiles": True}, "max_tiles"), ({"fallback_mpp": 353}, "fallback_mpp"),
                                              ({"tile": 5}, "known option of a tiling"), ({"tiling": Tiling(), "size": 64}, "both: size")])
def test_options_are_checked(tmp_path, options, message):
    with pytest.raises(DataError, match=message): tile_slide(save(tmp_path / "a.tif", noise(200, 200)), **options)


# ---- SVS

def test_an_aperio_slide_passes_the_whole_way(tmp_path):
    """A tiled TIFF of three levels with Aperio's description, under Aperio's suffix, from a folder to a bag."""
    image = np.asarray(Image.fromarray(noise(40, 60)).resize((900, 600), Image.Resampling.BICUBIC))
    path = tmp_path / "TCGA-3C-AALI-01Z-00-DX1.svs"
    about = "Aperio Image Library v12.2.2\r\n900x600 [0,0 900x600] (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = 0.4990|Filename = drawn"
    with tifffile.TiffWriter(path) as tiff:
        for i in range(3): tiff.write(image[::4**i, ::4**i], tile=(64, 64), photometric="rgb", compression="deflate", metadata=None, description=about)
    info = open_slide_info(path)
    assert (info.vendor, info.mpp, info.mpp_from, info.size, len(info.downsamples)) == ("aperio", 0.499, "the file", (900, 600), 3)
    assert np.abs(thumbnail(path, side=90).astype(int) - image.reshape(60, 10, 90, 10, 3).mean(axis=(1, 3))).mean() < 3 and tissue_mask(path).mean() > 0.9
    tiles = tile_slide(path, size=64, mpp=0.5, min_tissue=0.5)
    assert len(tiles) == 14 * 9 and (tiles.span, tiles.level, tiles.notes) == (64, 0, ())
    np.testing.assert_array_equal(next(read_tiles(tiles))[20], image[64:128, 6 * 64:7 * 64])
    files = slide_files(tmp_path)
    made = extract_features(files, tmp_path / "features", encoder="small_cnn", tiling={"size": 64}, progress=False)
    bags = read_bags(pd.DataFrame({"case_id": ["TCGA-3C-AALI"]}), made)
    assert bags.sizes.tolist() == made["n_tiles"].tolist() == [14 * 9] and bags.slides == (path.stem,)
    np.testing.assert_array_equal(patch_pixels(pd.DataFrame({"slide": path.stem, "x": bags.coords[20:21, 0], "y": bags.coords[20:21, 1]}), files, size=64)[0], image[64:128, 6 * 64:7 * 64])


@pytest.mark.skipif("FUSION_NB_SVS" not in os.environ, reason="FUSION_NB_SVS names no folder: tests/fixtures of openslide-python's source distribution on PyPI (LGPL)")
def test_slides_of_real_scanners(tmp_path):
    """small.svs is 16 x 16 pixels of CMU-1, scanned by an Aperio; unreadable.svs is the same with a broken JPEG; boxes.tiff has a pyramid and claims 72 dpi."""
    folder = Path(os.environ["FUSION_NB_SVS"])
    info = open_slide_info(folder / "small.svs")
    assert (info.vendor, info.size, info.mpp, info.mpp_from) == ("aperio", (16, 16), 0.499, "the file") and info.quickhash
    assert thumbnail(folder / "small.svs").shape == (16, 16, 3) and tissue_mask(folder / "small.svs").shape == (16, 16)
    tiles = tile_slide(folder / "small.svs", size=16, **EVERYTHING)
    assert tiles.coords.tolist() == [[0, 0]] and (next(read_tiles(tiles))[0] == thumbnail(folder / "small.svs")).all()
    with pytest.raises(DataError, match="at least one tile of 224 pixels at level 0, small.svs. Got 16 x 16"): tile_slide(folder / "small.svs")
    assert open_slide_info(folder / "unreadable.svs").mpp == 0.499
    with pytest.raises(DataError, match="region that cannot be read"): thumbnail(folder / "unreadable.svs")
    assert "352.778" in open_slide_info(folder / "boxes.tiff").mpp_from and len(tile_slide(folder / "boxes.tiff", size=50, fallback_mpp=0.5, **EVERYTHING)) == 30
    slides = pd.DataFrame({"slide": ["small", "unreadable"], "path": [folder / "small.svs", folder / "unreadable.svs"]})
    made = extract_features(slides, tmp_path, encoder="small_cnn", tiling={"size": 16, **EVERYTHING}, copies=1, progress=False)
    assert made["n_tiles"].tolist() == [1, 0] and "region that cannot be read" in made["notes"][1]


# ---- tissue

def test_otsu_is_that_of_scikit_image(repo):
    script = runpy.run_path(str(repo / "tests" / "oracles" / "slides.py"))
    expected = json.loads((repo / "tests" / "oracles" / "slides.json").read_text())["thresholds"]
    assert {name: module._otsu(script["pixels"](name)) for name in script["PICTURES"]} == expected


def test_tissue_of_any_colour_is_found_and_glass_is_not(tmp_path):
    rng = np.random.default_rng(0)
    for colour in ((225, 160, 195), (120, 80, 160), (235, 200, 215), (150, 100, 90)):
        image = rng.normal(243, 1.5, (400, 400, 3))
        image[100:300, 50:350] = rng.normal(colour, 6, (200, 300, 3))
        mask = tissue_mask(save(tmp_path / "a.tif", np.clip(image, 0, 255).astype(np.uint8)), side=100)
        inside = np.zeros((100, 100), bool)
        inside[25:75, 12:88] = True
        assert (mask == inside).mean() > 0.97, colour


def test_what_was_not_scanned_is_glass_and_black_is_no_tissue():
    region = Image.fromarray(np.full((8, 8, 4), (10, 10, 10, 0), np.uint8))
    assert (np.asarray(module._on_white(region)) == 255).all()
    assert not module._is_tissue(np.zeros((32, 32, 3), np.uint8)).any()


def test_shares_of_tissue_are_means_of_the_mask():
    mask = np.random.default_rng(0).random((60, 90)) < 0.4
    coords = np.array([[0, 0], [100, 0], [850, 500], [333, 77]])
    expected = [mask[y // 10:(y + 50) // 10, x // 10:(x + 50) // 10].mean() for x, y in np.round(coords, -1)]
    np.testing.assert_allclose(module._tissue_shares(mask, np.round(coords, -1), 50, (900, 600)), expected)


# ---- tiles

@pytest.mark.parametrize("scan, level, read_size", [(0.5, 0, 50), (0.25, 1, 50), (0.125, 2, 50), (0.192, 1, 65), (0.45, 0, 56)])
def test_tiles_show_what_was_drawn(tmp_path, scan, level, read_size):
    image = noise(800, 1000)
    tiles = tile_slide(save(tmp_path / "a.tif", image, levels=3, mpp=scan), size=50, mpp=0.5, **EVERYTHING)
    down = 2 ** level
    assert (tiles.level, tiles.read_size, tiles.span) == (level, read_size, round(50 * 0.5 / scan))
    assert len(tiles) == (800 // tiles.span) * (1000 // tiles.span)
    pixels, level_image = np.concatenate(list(read_tiles(tiles, batch_size=7))), image[::down, ::down]
    assert pixels.shape == (len(tiles), 50, 50, 3)
    for row in (0, 3, len(tiles) - 1):
        x, y = (tiles.coords[row] // down).tolist()
        expected = Image.fromarray(level_image[y:y + read_size, x:x + read_size]).resize((50, 50), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(pixels[row], np.asarray(expected))


def test_tiles_do_not_overlap_and_lie_on_the_slide(tmp_path):
    tiles = tile_slide(save(tmp_path / "a.tif", noise(611, 907)), size=64, mpp=0.7, **EVERYTHING)
    covered = np.zeros((611, 907), int)
    for x, y in tiles.coords: covered[y:y + tiles.span, x:x + tiles.span] += 1
    assert covered.max() == 1 and covered.sum() == len(tiles) * tiles.span ** 2
    assert tiles.coords.dtype == np.int64 and (np.lexsort(tiles.coords.T) == np.arange(len(tiles))).all()


def test_the_cap_is_a_seeded_draw(tmp_path):
    path = save(tmp_path / "a.tif", noise())
    every = tile_slide(path, size=32, max_tiles=None)
    some, again, other = (tile_slide(path, size=32, max_tiles=60, seed=seed) for seed in (1, 1, 2))
    def keys(tiles): return set(map(tuple, tiles.coords.tolist()))
    assert len(some) == 60 and keys(some) == keys(again) != keys(other) and keys(some) | keys(other) <= keys(every)
    assert some.flow["tiles"].tolist() == [18 * 28, 18 * 28, 60, 60] and every.flow["tiles"].iloc[-1] == len(every)


def test_the_flow_adds_up(tmp_path):
    image = noise()
    image[:, 450:], image[:300, :450] = 243, (200, 120, 170)  # half is glass, a quarter without contrast
    tiles = tile_slide(save(tmp_path / "a.tif", image), size=50)
    assert tiles.flow["tiles"].tolist() == [216, 108, 108, 54] and tiles.flow["dropped"].tolist() == [0, 108, 0, 54]
    assert (tiles.coords[:, 1] >= 300).all() and (tiles.coords[:, 0] < 450).all()


def test_given_corners_are_read_as_they_are(tmp_path):
    path = save(tmp_path / "a.tif", noise())
    tiles = tile_slide(path, size=64, coords=np.array([[13, 7], [800, 500]], np.int32))
    assert next(read_tiles(tiles)).shape == (2, 64, 64, 3) and tiles.flow["step"].tolist() == ["given"]
    for wrong, message in (([[-1, 0]], r"1 that leave it, the first at \[-1, 0\]"), ([[0, 550]], "belong to another slide"), ([["a", "b"]], "as numbers")):
        with pytest.raises(DataError, match=message): tile_slide(path, size=64, coords=wrong)


def test_reading_may_stop_early_and_order_is_kept(tmp_path):
    tiles = tile_slide(save(tmp_path / "a.tif", noise()), size=32, max_tiles=None)
    batches = read_tiles(tiles, batch_size=4)
    first = next(batches)
    batches.close()  # a caller that breaks off waits for no thread
    backwards = np.concatenate(list(read_tiles(tiles, np.arange(len(tiles))[::-1], batch_size=100)))
    np.testing.assert_array_equal(backwards[::-1][:4], first)


# ---- overviews

def test_an_overview_does_not_depend_on_pyramid_or_blocks(tmp_path, monkeypatch):
    smooth = np.asarray(Image.fromarray(noise(20, 30)).resize((900, 600), Image.Resampling.BICUBIC))
    flat, pyramid = save(tmp_path / "flat.tif", smooth), save(tmp_path / "pyramid.tif", smooth, levels=4)
    whole = thumbnail(flat, side=150).astype(int)
    expected = np.asarray(Image.fromarray(smooth).resize((150, 100), Image.Resampling.BOX))
    assert np.abs(whole - expected).max() <= 1 and np.abs(thumbnail(pyramid, side=150) - whole).max() <= 8
    monkeypatch.setattr(module, "_BLOCK", 64)
    assert np.abs(thumbnail(flat, side=150) - whole).max() <= 1
    assert thumbnail(flat, side=8000).shape == (600, 900, 3) and thumbnail(flat, side=1).shape == (1, 1, 3)
    with pytest.raises(DataError, match="a side from 1 to 8192"): thumbnail(flat, side=0)


def test_the_grid_frames_the_tiles_and_nothing_else(tmp_path):
    tiles = tile_slide(save(tmp_path / "a.tif", noise()), size=100, coords=[[300, 200]])
    plain, framed = thumbnail(tiles.path, side=450), tile_grid(tiles, side=450, colour="#00ff00")
    y, x = np.nonzero((framed != plain).any(axis=2))
    assert (x.min(), x.max(), y.min(), y.max()) == (150, 199, 100, 149) and (framed[100, 150:200] == (0, 255, 0)).all()


# ---- names from a table

def test_names_lead_to_files_inside_the_folder(tmp_path):
    folder = tmp_path / "slides"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.svs", "sub/b.tif", "c.svs"): (folder / name).write_text("")
    cases = pd.DataFrame({"case_id": [1, 2, 3, 4], "wsi": [f"{folder / 'a.svs'}; sub\\b.tif;", None, np.nan, "c.svs"]})
    found = find_slides(cases, folder, column="wsi")
    assert found["case_id"].tolist() == [1, 1, 4] and found["slide"].tolist() == ["a", "b", "c"] and all(map(os.path.isfile, found["path"]))


@pytest.mark.parametrize("name", ["../secret.svs", "sub/../../secret.svs", "..\\secret.svs", "/etc/hostname", "C:\\slides\\a.svs", "link.svs", "a\0b.svs", "x" * 5000 + "/../../../y"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "slides"
    folder.mkdir()
    (tmp_path / "secret.svs").write_text("")
    (folder / "link.svs").symlink_to(tmp_path / "secret.svs")
    with pytest.raises(DataError, match="case 'p1'"): find_slides(pd.DataFrame({"case_id": ["p1"], "image": [name]}), folder)


def test_missing_slides_are_refused_or_kept(tmp_path):
    cases = pd.DataFrame({"case_id": ["p1"], "image": ["a.svs"]})
    with pytest.raises(DataError, match=r"Got no file for 1 of 1, the first 'a\.svs' of case 'p1'"): find_slides(cases, tmp_path)
    assert find_slides(cases, tmp_path, missing="keep")["slide"].tolist() == ["a"]
    assert find_slides(cases.assign(image=None), tmp_path).empty
    for wrong in ({"column": "slide"}, {"missing": "drop"}):
        with pytest.raises(DataError): find_slides(cases, tmp_path, **wrong)


def test_slides_load_no_torch(repo):
    code = "import sys; import fusion_nb.data.slides; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo).returncode == 0
