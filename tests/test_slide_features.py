"""Feature files: what they hold, what is refused, and extractions that were killed; bags: what is drawn, padded, counted and cached."""
import errno
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import chisquare
from torch import nn

from fusion_nb import slide_features as module
from fusion_nb.data.slides import Tiling, find_slides, read_tiles, tile_slide
from fusion_nb.encoders import image_encoder
from fusion_nb.runs import fingerprint
from fusion_nb.schema import DataError
from fusion_nb.slide_features import Bags, bags_of, extract_features, patch_pixels, read_bags, read_features, slide_files
import killed_extraction
from test_slides import damaged, noise, save

TILING = {"size": 32, "max_tiles": 20}


class Colours(nn.Module):
    """Mean colours, and the number of calls."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, image):
        self.calls += 1
        return image.mean(dim=(2, 3))


def slides_in(folder, *names):
    for i, name in enumerate(names): save(folder / f"{name}.tif", noise(200, 300, seed=i), levels=2)
    return pd.DataFrame({"slide": names, "path": [str(folder / f"{n}.tif") for n in names]})


def extract(slides, out, encoder=None, **options):
    return extract_features(slides, out, **{"encoder": encoder or Colours(), "tiling": TILING, "progress": False, **options})


def h5_file(path, **parts):
    with h5py.File(path, "w") as h5:
        for name, array in parts.items(): h5[name] = array
    return path


def features_of(n, dim=4, seed=0): return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def write_bag_files(folder, sizes, dim=4, copies=0):
    """A file of n features for each n, and the table of files: case i has file i. Copy c of a feature is the feature + 100 c."""
    def parts(i, n):
        features, steps = features_of(n, dim, i), 100 * np.arange(1, copies + 1, dtype=np.float32)[:, None, None]
        return {"features": features, "coords": np.full((n, 2), i), **({"augmented": features + steps} if copies else {})}
    files = [h5_file(folder / f"s{i}.h5", **parts(i, n)) for i, n in enumerate(sizes)]
    return pd.DataFrame({"case_id": [f"p{i}" for i in range(len(sizes))], "file": [str(f) for f in files]})


# ---- extraction

def test_features_are_the_encoder_on_the_tiles_whatever_the_batch(tmp_path, monkeypatch):
    slides = slides_in(tmp_path, "a", "b")
    monkeypatch.setattr(module, "_BATCH", 3)
    found = extract(slides, tmp_path / "out")
    tiles = tile_slide(tmp_path / "b.tif", **TILING)
    features, coords = read_features(found["file"][1], dim=3)
    np.testing.assert_allclose(features, np.concatenate(list(read_tiles(tiles))).mean(axis=(1, 2)) / 255, atol=1e-6)
    np.testing.assert_array_equal(coords, tiles.coords)
    monkeypatch.setattr(module, "_BATCH", 64)
    other = extract(slides, tmp_path / "other")
    np.testing.assert_allclose(features, read_features(other["file"][1])[0], atol=1e-6)
    assert found["n_tiles"].tolist() == [20, 20] and list(found.columns) == ["slide", "file", "n_tiles", "notes"]


def test_files_have_the_layout_of_clam_and_trident(tmp_path):
    found = extract(slides_in(tmp_path, "a"), tmp_path / "out", tiling={**TILING, "mpp": 1.0})
    with h5py.File(found["file"][0]) as h5:
        assert set(h5) == {"features", "coords"} and h5["features"].dtype == np.float32 and h5["coords"].dtype == np.int64
        about = dict(h5["coords"].attrs)
    assert about == {"patch_size": 32, "patch_size_level0": 64, "patch_level": 1, "read_size": 32, "overlap": 0, "mpp": 1.0, "level0_mpp": 0.5, "name": "a",
                     "target_magnification": 10.0, "level0_magnification": 20.0, "level0_width": 300, "level0_height": 200}


def test_finished_slides_are_not_encoded_again_unless_something_changed(tmp_path):
    slides, encoder = slides_in(tmp_path, "a", "b"), Colours()
    first = extract(slides, tmp_path / "out", encoder)
    assert encoder.calls == 2
    pd.testing.assert_frame_equal(extract(slides, tmp_path / "out", encoder), first)
    assert encoder.calls == 2
    save(tmp_path / "b.tif", noise(200, 300, seed=7), levels=2)  # of the same size
    extract(slides, tmp_path / "out", encoder)
    assert encoder.calls == 3
    extract(slides, tmp_path / "out", encoder, tiling=Tiling(size=32, max_tiles=19))
    assert encoder.calls == 5
    encoder.register_buffer("bias", torch.ones(1))
    extract(slides, tmp_path / "out", encoder, tiling=Tiling(size=32, max_tiles=19))
    assert encoder.calls == 7


def test_a_killed_extraction_goes_on_where_it_was(tmp_path, repo, monkeypatch):
    slides_in(tmp_path, *"abcd")  # three batches each, and of each batch the plain patches and a copy: six calls a slide
    out, whole = tmp_path / "out", tmp_path / "whole"
    done = subprocess.run([sys.executable, repo / "tests" / "killed_extraction.py", tmp_path, out, "16"], capture_output=True, text=True, cwd=repo)
    assert done.stdout.split() == ["9", "a.h5", "b.h5", "12", "0"], done.stderr  # then two slides of four, six calls each
    monkeypatch.setattr(module, "_BATCH", 8)
    killed_extraction.extract(tmp_path, whole, killed_extraction.Doomed())
    for name in "abcd":
        with h5py.File(out / f"{name}.h5") as ours, h5py.File(whole / f"{name}.h5") as theirs:
            assert set(ours) == set(theirs) == {"features", "coords", "augmented"}
            for part in ours: np.testing.assert_array_equal(ours[part][:], theirs[part][:])


# ---- augmented copies

class Corner(nn.Module):
    """The colour of a pixel at a corner: it changes with mirror, turn and colour."""

    dim = 3

    def forward(self, image): return image[:, :, 2, 3]


def copied(slides, out, copies=2, **options):
    with h5py.File(extract(slides, out, Corner(), copies=copies, **options)["file"].iloc[-1]) as h5: return {name: part[:] for name, part in h5.items()}


def test_copies_stand_beside_the_plain_features(tmp_path):
    slides = slides_in(tmp_path, "a", "b")
    plain, beside = copied(slides, tmp_path / "plain", 0), copied(slides, tmp_path / "beside", 2)
    assert set(plain) == {"features", "coords"} and beside["augmented"].shape == (2, 20, 3) and beside["augmented"].dtype == np.float32
    for name in plain: np.testing.assert_array_equal(beside[name], plain[name])
    versions = np.concatenate([beside["features"][None], beside["augmented"]])
    assert (np.ptp(versions, axis=0) > 1e-3).any(axis=1).all()  # no patch stayed as it is in all copies
    np.testing.assert_array_equal(copied(slides, tmp_path / "again", 2)["augmented"], beside["augmented"])
    np.testing.assert_array_equal(copied(slides, tmp_path / "more", 3)["augmented"][:2], beside["augmented"])
    np.testing.assert_array_equal(copied(slides.iloc[[1]], tmp_path / "alone", 2)["augmented"], beside["augmented"])  # the slides before do not matter
    other = copied(slides, tmp_path / "other", 2, tiling={**TILING, "seed": 1, "max_tiles": None})["augmented"]
    assert not np.isin(beside["augmented"], other).all()
    (tmp_path / "c.tif").write_bytes((tmp_path / "b.tif").read_bytes())
    same_pixels = pd.DataFrame({"slide": ["c"], "path": [tmp_path / "c.tif"]})
    assert (copied(same_pixels, tmp_path / "name", 2)["augmented"] != beside["augmented"]).any()  # each slide draws its own


def test_copies_keep_the_whole_patch_and_its_stain():
    image = torch.zeros(200, 3, 32, 32)
    image[:, :, 8:24, 12:20] = torch.tensor([0.6, 0.3, 0.7]).view(3, 1, 1)  # within the circle that no turn can lose
    changed = module._changed(image, 0, 1)
    area = (changed[:, 0] > 0.2).float().sum(dim=(1, 2))
    assert 0 <= changed.min() and changed.max() <= 1 and ((area - 128).abs() < 25).all()  # neither cropped nor enlarged
    colour = changed[:, :, 16, 16]
    assert colour.std(dim=0).min() > 0.005 and (colour.mean(dim=0) - torch.tensor([0.6, 0.3, 0.7])).abs().max() < 0.03
    wide = (changed[:, 0] > 0.2).float().sum(dim=1).max(dim=1).values  # the extent upright, which is 16 before the turn
    assert (wide < 11).any() and (wide > 14).any()


def test_another_number_of_copies_is_made_anew_and_kept(tmp_path):
    slides, encoder = slides_in(tmp_path, "a"), Colours()
    for copies, calls in ((0, 1), (2, 4), (2, 4), (1, 6)):  # a batch: the plain one and each copy
        extract(slides, tmp_path / "out", encoder, copies=copies)
        assert encoder.calls == calls
    for wrong in (-1, 1.5, True):
        with pytest.raises(DataError, match="a number of copies, 0 or more"): extract(slides, tmp_path / "out", copies=wrong)


def test_training_sees_plain_patches_and_copies_alike_and_evaluation_the_plain_ones(tmp_path):
    files = write_bag_files(tmp_path, (60, 40, 5), copies=3)
    cases = pd.DataFrame({"case_id": ["p2", "none", "p1", "p0"]})
    bags = read_bags(cases, files, bag_size=16, cache=tmp_path / "cache")
    plain = replace(bags, augmented=None)
    assert bags.copies == 3 and plain.copies == 0 and isinstance(bags.augmented, np.memmap) and not bags.augmented.flags.writeable
    assert bags.notes[-1] == "Augmented copies of every patch, among which and the plain one training draws: 3."
    for whole, again in zip(bags.draw(np.arange(4)), plain.draw(np.arange(4))): np.testing.assert_array_equal(whole, again)
    seen = Counter()
    for seed in range(200):
        (tokens, mask), (base, real) = bags.draw([0, 1, 2, 3], seed), plain.draw([0, 1, 2, 3], seed)
        np.testing.assert_array_equal(mask, real)  # the same patches
        assert (tokens[~mask] == 0).all()
        copy = np.round((tokens - base)[mask]).astype(int)  # copy c of a feature is the feature + 100 c
        assert (copy == copy[:, :1]).all()
        seen.update((copy[:, 0] // 100).tolist())
    assert set(seen) == {0, 1, 2, 3} and chisquare(list(seen.values())).pvalue > 0.001
    np.testing.assert_array_equal(bags.draw([3], 9)[0][0], bags.draw([0, 3, 2], 9)[0][1])  # the batch does not matter
    wholes = replace(bags, bag_size=None)
    np.testing.assert_array_equal(wholes.draw([0], 9)[0][0], wholes.draw([3, 0], 9)[0][1, :5])
    sent = pickle.loads(pickle.dumps(bags))
    assert len(pickle.dumps(bags)) < bags.augmented.nbytes and isinstance(sent.augmented, np.memmap)
    np.testing.assert_array_equal(sent.draw([3, 2], 5)[0], bags.draw([3, 2], 5)[0])


def test_bags_without_copies_are_what_they_were(tmp_path):
    """Draws and keys from before there were copies."""
    bags = bags_of([features_of(n, seed=n) for n in (30, 50, 3, 0, 16)], bag_size=4)
    assert bags.key == "0c30b98aae6b5622" and fingerprint(*bags.draw(np.arange(5), seed=(3, 1))) == "de2ebd0de2c980f6"
    files = write_bag_files(tmp_path, (9, 4))
    assert read_bags(files[["case_id"]], files).key == "9121c91dd6820236"


def test_the_key_of_bags_holds_the_copies(tmp_path):
    files = write_bag_files(tmp_path, (9, 4), copies=2)
    def key(**options): return read_bags(files[["case_id"]], files, **options).key
    two = key()
    assert two == key(cache=tmp_path / "cache") == key(cache=tmp_path / "cache")
    assert {p.name.split("_")[0] for p in (tmp_path / "cache").iterdir()} == {"bags", "copies"}
    with h5py.File(tmp_path / "s1.h5", "r+") as h5: h5["augmented"][1, 3] += 1
    changed = key(cache=tmp_path / "cache")
    write_bag_files(tmp_path, (9, 4))
    assert len({two, changed, key()}) == 3


def test_files_with_and_without_copies_do_not_mix(tmp_path):
    files = write_bag_files(tmp_path, (9, 4, 5), copies=2)
    for other in (None, 1):
        h5_file(tmp_path / "s1.h5", features=features_of(4), coords=np.zeros((4, 2)), **({"augmented": np.zeros((1, 4, 4), np.float32)} if other else {}))
        with pytest.raises(DataError, match=rf"one number of augmented copies. Got 2 in s0.h5; {other or 0} in s1.h5. Extract all slides with the same number"):
            read_bags(files[["case_id"]], files)
    for wrong, message in ((np.zeros((2, 3, 4), np.float32), r"augmented as floats \(copies, 4, 4\) in s1.h5. Got \(2, 3, 4\)"), (np.full((2, 4, 4), np.nan, np.float32), "finite features in s1.h5. Got NaN or infinite ones in 4 of 4 rows")):
        h5_file(tmp_path / "s1.h5", features=features_of(4), coords=np.zeros((4, 2)), augmented=wrong)
        with pytest.raises(DataError, match=message): read_bags(files[["case_id"]], files)


def test_half_a_file_is_made_again(tmp_path):
    slides, encoder = slides_in(tmp_path, "a"), Colours()
    file = Path(extract(slides, tmp_path / "out", encoder)["file"][0])
    file.write_bytes(file.read_bytes()[:1000])
    assert read_features(extract(slides, tmp_path / "out", encoder)["file"][0])[0].shape == (20, 3) and encoder.calls == 2


def test_failed_slides_are_reported_and_the_others_done(tmp_path):
    slides = slides_in(tmp_path, "good", "cut", "hurt", "glass", "silent", "gone")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "good.tif").read_bytes()[:5000])
    damaged(tmp_path / "hurt.tif", noise(200, 300))
    save(tmp_path / "glass.tif", np.full((200, 300, 3), 243, np.uint8))
    save(tmp_path / "silent.tif", noise(200, 300), mpp=None)
    (tmp_path / "gone.tif").unlink()
    found = extract(slides.assign(case_id=[1, 1, 2, 3, 4, 5]), tmp_path / "out", tiling={"size": 32, "max_tiles": None}).set_index("slide")
    assert found["file"].notna().tolist() == [True] + 5 * [False] and (found["n_tiles"] > 0).tolist() == [True] + 5 * [False]
    for name, message in (("cut", "whole slide of a format"), ("hurt", "region that cannot be read"), ("glass", "tissue in glass.tif"), ("silent", "fallback_mpp"),
                          ("gone", "no file 'gone.tif'")): assert message in found.at[name, "notes"], name
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.h5"]
    bags = read_bags(pd.DataFrame({"case_id": [1, 2]}), found)
    assert bags.sizes.tolist() == [54, 0] and "Slides without features, because they could not be read or had no tissue: 2." in bags.notes


def test_the_stated_fallback_is_in_the_notes(tmp_path):
    save(tmp_path / "a.tif", noise(200, 300), mpp=None)
    slides = pd.DataFrame({"slide": ["a"], "path": [tmp_path / "a.tif"]})
    for _ in range(2):  # made, and found
        assert extract(slides, tmp_path / "out", tiling={**TILING, "fallback_mpp": 0.5})["notes"].tolist() == ["a.tif: 0.5 µm per pixel from the stated fallback."]


def test_a_full_disk_stops_all(tmp_path, monkeypatch):
    def full(path, *_, **__): raise OSError(errno.ENOSPC, "No space left on device", str(path))
    monkeypatch.setattr(module, "_write_features", full)
    with pytest.raises(DataError, match="the disk is full"): extract(slides_in(tmp_path, "a", "b"), tmp_path / "out")


def test_files_of_other_programs_are_left_alone(tmp_path):
    slides = slides_in(tmp_path, "a")
    theirs = h5_file(tmp_path / "a.h5", features=features_of(5), coords=np.zeros((5, 2)))
    before = theirs.read_bytes()
    assert "made by another program" in extract(slides, tmp_path)["notes"][0] and theirs.read_bytes() == before


def test_weights_are_read_from_a_file_and_random_ones_are_the_same_each_time(tmp_path):
    slides, path = slides_in(tmp_path, "a"), tmp_path / "weights.safetensors"
    torch.manual_seed(5)
    encoder = image_encoder("resnet18", channels=3)
    save_file(encoder.state_dict(), path)
    found = extract(slides, tmp_path / "out", "resnet18", weights=path)
    with torch.inference_mode():
        encoder.standardise = True
        tile = torch.from_numpy(next(read_tiles(tile_slide(tmp_path / "a.tif", **TILING)))).permute(0, 3, 1, 2) / 255
        np.testing.assert_allclose(read_features(found["file"][0], dim=512)[0], encoder.eval()(tile), rtol=1e-3, atol=1e-4)
    with h5py.File(found["file"][0]) as h5: assert h5.attrs["encoder"] == "resnet18, weights.safetensors weights"
    random = [read_features(extract(slides, tmp_path / str(i), "small_cnn")["file"][0])[0] for i in range(2)]
    np.testing.assert_array_equal(*random)


@pytest.mark.parametrize("change, message", [({"slide": ["../a"]}, "leads out of it"), ({"slide": ["x/../../a"]}, "leads out of it"), ({"slide": ["/a"]}, "leads out of it")])
def test_names_of_slides_stay_in_the_folder(tmp_path, change, message):
    with pytest.raises(DataError, match=message): extract(slides_in(tmp_path, "a").assign(**change), tmp_path / "out")
    assert not list(tmp_path.rglob("*.h5"))


# ---- reading

@pytest.mark.parametrize("features, coords", [(features_of(5), np.zeros((5, 2), np.int32)), (features_of(5)[None], np.zeros((1, 5, 2))), (features_of(5)[None].astype(np.float16), np.zeros((5, 2)))])
def test_layouts_of_other_programs_are_read(tmp_path, features, coords):
    got, corners = read_features(h5_file(tmp_path / "a.h5", features=features, coords=coords))
    np.testing.assert_allclose(got, features_of(5), atol=2e-3)
    assert got.dtype == np.float32 and corners.shape == (5, 2) and corners.dtype == np.int64
    assert read_bags(pd.DataFrame({"case_id": ["p"]}), pd.DataFrame({"case_id": ["p"], "file": [tmp_path / "a.h5"]})).sizes.tolist() == [5]


@pytest.mark.parametrize("parts, message", [
    ({"features": features_of(5)}, r"the data set 'coords' in a\.h5\. Got 'features'.*Extract the slide again"),
    ({"coords": np.zeros((5, 2))}, "the data set 'features'"), ({}, "Got an empty file"), ({"features/x": features_of(5), "coords": np.zeros((5, 2))}, "the data set 'features'"),
    ({"features": features_of(5, 3), "coords": np.zeros((5, 2))}, r"features of width 4 in a\.h5\. Got width 3"),
    ({"features": features_of(5), "coords": np.zeros((4, 2))}, r"coords \(5, 2\)"), ({"features": features_of(5), "coords": np.zeros((5, 3))}, r"coords \(5, 2\)"),
    ({"features": np.zeros((5, 4), int), "coords": np.zeros((5, 2))}, r"features as floats \(N, D\)"), ({"features": np.zeros((2, 5, 4)), "coords": np.zeros((5, 2))}, "features as floats"),
    ({"features": np.where(np.eye(5, 4) > 0, np.inf, 0), "coords": np.zeros((5, 2))}, "NaN or infinite ones in 4 of 5 rows, the first 0")])
def test_other_files_are_refused(tmp_path, parts, message):
    with pytest.raises(DataError, match=message): read_features(h5_file(tmp_path / "a.h5", **parts), dim=4)


def test_files_that_are_no_hdf5(tmp_path):
    whole = h5_file(tmp_path / "a.h5", features=features_of(500), coords=np.zeros((500, 2))).read_bytes()
    for name, content in (("cut.h5", whole[:4000]), ("a.pt", b"PK\3\4"), ("empty.h5", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}. Got one that does not open.*h5_files") as error: read_features(tmp_path / name)
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(DataError, match="no file 'gone.h5'"): read_features(tmp_path / "gone.h5")


# ---- drawing

def test_draws_depend_on_seed_and_row_alone():
    bags = bags_of([features_of(n, seed=n) for n in (30, 50, 3, 0, 16)], bag_size=16)
    tokens, mask = bags.draw([0, 1, 2, 3, 4], seed=(3, 1))
    for rows in ([4, 2], [1], [3, 0, 1, 2, 4]):
        again, real = bags.draw(rows, seed=(3, 1))
        np.testing.assert_array_equal(again, tokens[rows])
        np.testing.assert_array_equal(real, mask[rows])
    assert mask.sum(axis=1).tolist() == [16, 16, 3, 0, 16] and tokens.dtype == np.float32 and mask.dtype == bool
    assert (bags.draw([0], seed=(3, 2))[0] != tokens[0]).any() and (bags.draw([0], seed=3)[0] != tokens[0]).any()
    assert {tuple(t) for t in tokens[4].tolist()} == {tuple(t) for t in bags.features[-16:].tolist()}  # as many as the bag: all of them


def test_draws_are_subsets_and_all_subsets_are_as_likely():
    sizes = np.full(60_000, 6)
    picks = module._subsets(sizes, np.arange(60_000), 11, 3)
    assert (np.diff(picks, axis=1) > 0).all() and picks.min() == 0 and picks.max() == 5
    counts = Counter(map(tuple, picks.tolist()))
    assert len(counts) == 20 and chisquare(list(counts.values())).pvalue > 0.001
    over_seeds = np.concatenate([module._subsets(np.array([200]), np.array([4]), (seed, 5), 20) for seed in range(2000)])
    assert chisquare(np.bincount(over_seeds.ravel(), minlength=200)).pvalue > 0.001


def test_whole_bags_are_padded_to_the_longest_of_the_rows():
    bags = bags_of([features_of(n, seed=n) for n in (30, 50, 3, 0)], bag_size=16)
    tokens, mask = bags.draw([2, 0])
    assert tokens.shape == (2, 30, 4) and mask.sum(axis=1).tolist() == [3, 30] and (tokens[~mask] == 0).all()
    np.testing.assert_array_equal(tokens[1], features_of(30, seed=30))
    assert bags.draw([3])[0].shape == (1, 1, 4) and bags.draw([])[0].shape == (0, 1, 4)
    assert bags.draw([0, 1], 0, size=40)[1].sum(axis=1).tolist() == [30, 40]
    every = replace(bags, bag_size=None)
    np.testing.assert_array_equal(every.draw([1], seed=5)[0], bags.draw([1])[0])


@pytest.mark.parametrize("change, message", [({"features": np.zeros((5, 4))}, "float64"), ({"offsets": np.array([0, 6])}, "offsets that rise from 0 to the 5"), ({"offsets": np.array([0])}, "offsets"),
                                             ({"offsets": np.array([0, 4, 3, 5])}, "offsets"), ({"augmented": np.zeros((2, 4, 4), np.float32)}, r"augmented as float32 \(copies, 5, 4\)"), ({"coords": np.zeros((4, 2), int)}, "coords and slide of 5"), ({"bag_size": 0}, "bag_size of at least 1")])
def test_parts_of_bags_are_checked(change, message):
    with pytest.raises(DataError, match=message): replace(bags_of([features_of(5)]), **change)


# ---- reading bags

def test_bags_follow_the_cases_and_count_what_is_short_or_absent(tmp_path):
    files = write_bag_files(tmp_path, (9, 2, 20, 4))
    files = pd.concat([files, files.iloc[[3]].assign(case_id="p0", file=str(h5_file(tmp_path / "again.h5", features=features_of(5), coords=np.zeros((5, 2)))))])
    cases = pd.DataFrame({"case_id": ["p2", "none", "p1", "p0"]})
    bags = read_bags(cases, files, bag_size=8)
    assert bags.sizes.tolist() == [20, 0, 2, 14] and bags.slides == ("s2", "s1", "s0", "again") and len(bags) == 4
    np.testing.assert_array_equal(bags.features[22:31], features_of(9, seed=0))
    np.testing.assert_array_equal(bags.slide, np.repeat([0, 1, 2, 3], [20, 2, 9, 5]))
    np.testing.assert_array_equal(bags.coords[:, 0], np.repeat([2, 1, 0, 0], [20, 2, 9, 5]))
    assert bags.notes == ("Feature files of none of the cases, left aside: 1.", "Cases with several slides: 1.",
                          "4 cases, 36 patches: 2 to 20 a case with slides, median 14.",
                          "Cases without slide: 1 of 4. Their bags are empty: only models that accept a missing modality can use them.",
                          "Cases with fewer patches than the bag of 8: 1 of 4. They are padded, none is left out.")
    tokens, mask = bags.draw(np.arange(4), seed=0)
    assert tokens.shape == (4, 8, 4) and mask.sum(axis=1).tolist() == [8, 0, 2, 8]  # none is dropped


def test_another_width_or_encoder_is_named(tmp_path):
    files, cases = write_bag_files(tmp_path, (3, 3)), pd.DataFrame({"case_id": ["p0", "p1"]})
    with pytest.raises(DataError, match=r"width 8 in s0\.h5\. Got width 4"): read_bags(cases, files, dim=8)
    h5_file(tmp_path / "s1.h5", features=features_of(3, 5), coords=np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"width 4 in s1\.h5\. Got width 5. It was made by another encoder"): read_bags(cases, files)
    h5_file(tmp_path / "s1.h5", features=features_of(3))
    with pytest.raises(DataError, match=r"'coords' in s1\.h5"): read_bags(cases, files)


@pytest.mark.parametrize("name", ["../s0.h5", "/etc/hostname", "link.h5", "..\\s0.h5"])
def test_names_of_files_stay_in_the_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    write_bag_files(tmp_path, (3,))
    (tmp_path / "in" / "link.h5").symlink_to(tmp_path / "s0.h5")
    with pytest.raises(DataError, match="leads out of it"): read_bags(pd.DataFrame({"case_id": ["p0"]}), pd.DataFrame({"case_id": ["p0"], "file": [name]}), folder=tmp_path / "in")


def test_tables_are_checked(tmp_path):
    files, cases = write_bag_files(tmp_path, (3,)), pd.DataFrame({"case_id": ["p0"]})
    for wrong, message in (((cases, files.rename(columns={"file": "path"})), "column 'file'"), ((pd.concat([cases, cases]), files), "one row per case_id"),
                           ((cases, pd.concat([files, files])), "one row per file"), ((cases.assign(case_id="x"), files), "at least one case with a feature file")):
        with pytest.raises(DataError, match=message): read_bags(*wrong)
    assert read_bags(cases, files.assign(file=Path(files["file"][0]).name), folder=tmp_path).sizes.tolist() == [3]


def test_the_cache_is_one_mapped_file_that_follows_the_files(tmp_path):
    files, cases, cache = write_bag_files(tmp_path, (300, 200), dim=64), pd.DataFrame({"case_id": ["p0", "p1"]}), tmp_path / "cache"
    bags = read_bags(cases, files, bag_size=4, cache=cache)
    assert isinstance(bags.features, np.memmap) and not bags.features.flags.writeable
    made = {p: p.stat().st_mtime_ns for p in cache.iterdir()}
    again, memory = read_bags(cases, files, bag_size=4, cache=cache), read_bags(cases, files, bag_size=4)
    assert made == {p: p.stat().st_mtime_ns for p in cache.iterdir()} and len(made) == 2
    assert bags.key == again.key == memory.key and fingerprint(bags) == fingerprint(memory)
    np.testing.assert_array_equal(bags.features, memory.features)
    sent = pickle.dumps(bags)
    assert len(sent) < 20_000 < bags.features.nbytes and isinstance(pickle.loads(sent).features, np.memmap)
    np.testing.assert_array_equal(pickle.loads(sent).draw([1, 0], 9)[0], bags.draw([1, 0], 9)[0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(memory)).features, memory.features)
    h5_file(tmp_path / "s1.h5", features=features_of(200, 64, 99), coords=np.zeros((200, 2)))
    changed = read_bags(cases, files, cache=cache)
    assert changed.key != bags.key and (changed.features[300:] == features_of(200, 64, 99)).all() and (bags.features[300:] != changed.features[300:]).any()


def test_a_cache_that_could_not_be_made_leaves_nothing(tmp_path):
    files, cases, cache = write_bag_files(tmp_path, (3, 3)), pd.DataFrame({"case_id": ["p0", "p1"]}), tmp_path / "cache"
    h5_file(tmp_path / "s1.h5", features=np.full((3, 4), np.nan), coords=np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"finite features in s1\.h5"): read_bags(cases, files, cache=cache)
    assert not list(cache.iterdir())


def test_from_a_cohorts_table_to_bags(tmp_path):
    slides_in(tmp_path, "a", "b", "c")
    table = pd.DataFrame({"case_id": ["p0", "p1", "p2"], "image": ["a.tif; c.tif", None, "b.tif"]})
    bags = read_bags(table, extract(find_slides(table, tmp_path), tmp_path / "out"), bag_size=16, cache=tmp_path / "cache")
    assert isinstance(bags, Bags) and bags.sizes.tolist() == [40, 0, 20] and bags.slides == ("a", "c", "b")


# ---- from a folder to bags, and back to pixels

def test_files_are_found_at_any_depth_and_belong_to_patients(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    for name in ("x/TCGA-E2-A10A-01Z-00-DX1.1B.svs", "x/y/tcga-3c-aali-01Z-00-DX1.TIF", "x/y/TCGA-3C-AALI-01Z-00-DX2.mrxs", "notes.txt", "x/TCGA-E2-A10A-01Z-00-DX1.h5"): (tmp_path / name).write_text("")
    found = slide_files(tmp_path)
    assert found["case_id"].tolist() == ["TCGA-E2-A10A", "TCGA-3C-AALI", "TCGA-3C-AALI"] and list(found) == ["case_id", "slide", "path"]
    assert found["slide"].tolist() == ["TCGA-E2-A10A-01Z-00-DX1.1B", "TCGA-3C-AALI-01Z-00-DX2", "tcga-3c-aali-01Z-00-DX1"] and all(Path(p).is_file() for p in found["path"])
    assert slide_files(tmp_path, features=True)["path"].tolist() == [str(tmp_path / "x" / "TCGA-E2-A10A-01Z-00-DX1.h5")]
    with pytest.raises(DataError, match=r"feature files \(.h5\) in 'y'. Got none"): slide_files(tmp_path / "x" / "y", features=True)
    (tmp_path / "TCGA-3C-AALI-01Z-00-DX2.svs").write_text("")
    with pytest.raises(DataError, match="one row per slide in the files in"): slide_files(tmp_path)
    (tmp_path / "a.svs").write_text("")
    with pytest.raises(DataError, match="TCGA barcodes, such as .* Got 'a'"): slide_files(tmp_path)


def test_pixels_are_those_of_the_tiles_in_the_order_asked(tmp_path):
    slides = slides_in(tmp_path, "a", "b")
    tiles = {name: tile_slide(tmp_path / f"{name}.tif", **TILING) for name in "ab"}
    places = pd.DataFrame([(name, *tiles[name].coords[row]) for name, row in (("b", 3), ("a", 7), ("b", 0))], columns=["slide", "x", "y"], index=[9, 9, 4])
    expected = [next(read_tiles(tiles[name], [row]))[0] for name, row in (("b", 3), ("a", 7), ("b", 0))]
    np.testing.assert_array_equal(patch_pixels(places, slides, **TILING), expected)
    assert patch_pixels(places.iloc[:0], slides, **TILING).shape == (0, 32, 32, 3)
    for wrong, message in (({"places": places.assign(slide="c")}, "known slide. Got 'c'"), ({"places": places.assign(x=290)}, "that leave it"), ({"files": slides.iloc[[0, 0]]}, "one row per slide"),
                           ({"places": places.drop(columns="y")}, "column 'y'"), ({"patch": 5}, "known option of a tiling")):
        with pytest.raises(DataError, match=message): patch_pixels(**{"places": places, "files": slides, **TILING, **wrong})
