"""Batches: what is read, in which order, and how images are changed."""
import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from fusion_nb.bag_fusion import build_bag_model
from fusion_nb.batches import Augment, FusionData, PatchAugment, balanced_rows, seeded
from fusion_nb.data.omics import omics_cohort
from fusion_nb.expression import make_preprocessor
from fusion_nb.schema import DataError, Variable
from fusion_nb.slide_features import bags_of


def toy(n=10, images=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8) if images is None else images
    return FusionData(images, np.zeros((n, 2), "float32"), (np.arange(n) % 2).astype("float32"))


def mapped(path, n=10, shape=(1, 8, 8)):
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, *shape))


@pytest.mark.parametrize("n, batch_size", [(1, 4), (4, 4), (5, 4), (9, 4), (257, 256), (1000, 32)])
def test_batches_are_nearly_equal_and_complete(n, batch_size):
    rows = np.random.default_rng(1).permutation(n)
    parts = [b["row"].numpy() for b in toy(n).batches(rows, batch_size=batch_size)]
    sizes = [len(p) for p in parts]
    assert np.array_equal(np.concatenate(parts), rows) and max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_processes_share_each_batch_without_overlap():
    shares = [list(toy(50).batches(range(50), batch_size=8, shuffle_seed=(0, 3), rank=r, world=3)) for r in range(3)]
    whole = list(toy(50).batches(range(50), batch_size=8, shuffle_seed=(0, 3)))
    for batch, *parts in zip(whole, *shares):
        assert torch.equal(batch["row"], torch.cat([p["row"] for p in parts]))


def test_a_large_mapped_array_is_never_copied(tmp_path):
    images = mapped(tmp_path / "big.npy", n=6000, shape=(1, 224, 224))  # 300 MB, a hole in the file
    data = toy(6000, images)
    tracemalloc.start()
    for batch in data.batches(range(0, 6000, 60), batch_size=10): assert batch["image"].max() == 0
    assert tracemalloc.get_traced_memory()[1] < 5e6
    assert len(pickle.dumps(data)) < 1e5  # 6000 rows of table and label; not the images
    tracemalloc.stop()


def test_a_mapped_array_travels_by_name_and_its_view_by_value(tmp_path):
    images = mapped(tmp_path / "images.npy")
    images[:] = toy().images
    images.flush()
    for part in (images, np.load(tmp_path / "images.npy", mmap_mode="r"), images[3:], images[::2], images[:, :, ::-1]):
        back = pickle.loads(pickle.dumps(toy(len(part), part)))
        assert np.array_equal(back.images, part)
    assert pickle.loads(pickle.dumps(FusionData(None, np.zeros((2, 1), "float32"), np.zeros(2, "float32")))).images is None


@pytest.mark.parametrize("wrong, message", [
    ({"images": np.zeros((10, 8, 8), np.uint8)}, "uint8"), ({"table": np.zeros((10, 2))}, "float64"),
    ({"table": np.full((10, 2), np.nan, "float32")}, "row 0, column 0"), ({"labels": np.full(10, 2, "float32")}, "labels 0 or 1"),
    ({"labels": np.zeros(9, "float32")}, "same cases")])
def test_wrong_arrays_are_refused(wrong, message):
    with pytest.raises(DataError, match=message): FusionData(**{**toy().__dict__, **wrong})


def test_a_patient_with_an_age_but_without_rna_is_of_use_to_modality_dropout():
    """From two tables to a score: of the patient without RNA the slide is asked."""
    rng, names = np.random.default_rng(0), [f"P{i}" for i in range(12)]
    rna = pd.DataFrame(rng.normal(size=(10, 3)), columns=["TP53", "ESR1", "XIST"], index=names[:10]).astype("float32")
    clinical = pd.DataFrame({"patient": names, "age": np.arange(50.0, 62), "subtype": ["A", "B"] * 6})
    cohort = omics_cohort(rna, clinical, target="subtype", classes=("A", "B"), variables=(Variable("age", "continuous"),), keep="any")
    assert "2 of 12 patients have no expression: kept" in cohort.notes[0] and cohort.table["age"].notna().all()
    table = make_preprocessor(cohort.variables).fit(cohort.table).transform(cohort.table)
    bags = bags_of([rng.normal(size=(4, 5)) for _ in names], bag_size=2)
    data = FusionData(bags, table, cohort.table["label"].to_numpy("float32"))
    batch, = data.batches(range(12), batch_size=12)
    def score(dropout): return build_bag_model("cross_attention", token_dim=5, table_dim=4, gene_hidden=(4,), modality_dropout=dropout).eval()(batch["image"], batch["table"])["main"]
    assert torch.isfinite(score(0.3)).all()
    with pytest.raises(DataError, match="genes in every case. Got none in 2 of 12 cases, the first in row 10"): score(0.0)
    table[11, 0] = 0
    with pytest.raises(DataError, match="row 11, column 1. Impute single values. A case that lacks part of its table, such as all genes, lacks all of it"):
        FusionData(bags, table, data.labels)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_draws_for_each_image_and_leaves_the_input(channels):
    image = torch.rand(1, channels, 32, 32).expand(16, -1, -1, -1).clone()
    before = image.clone()
    with seeded(0): changed = Augment()(image)
    assert torch.equal(image, before) and changed.shape == image.shape
    assert len({tuple(x.flatten()[:99].tolist()) for x in changed}) == 16
    assert 0 <= changed.min() and changed.max() <= 1


def only(**kw):
    return Augment(**{**dict(flip=0, blur_or_contrast=0, elastic=0, scale=0, rotation=0), **kw})


@pytest.mark.parametrize("kind", ["flip", "blur_or_contrast", "elastic"])
def test_probabilities(kind):
    image = torch.rand(400, 1, 16, 16)
    with seeded(5): changed = only(**{kind: 0.5})(image)
    share = ((changed - image).abs().amax((1, 2, 3)) > 0.02).float().mean()
    assert abs(share - 0.5) < 0.08
    if kind == "flip": assert torch.allclose(changed[(changed - image).abs().amax((1, 2, 3)) > 0.02],
                                             image.flip(-1)[(changed - image).abs().amax((1, 2, 3)) > 0.02], atol=1e-3)


def test_scale_and_rotation_stay_within_their_range():
    """The area of a square changes with the square of the scale, the direction of a bar with the angle."""
    image = torch.zeros(300, 1, 64, 64)
    image[:, :, 24:40, 24:40] = 1
    with seeded(1): scaled = only(scale=0.2)(image).sum((1, 2, 3)).div(256).sqrt()
    assert 0.78 < scaled.min() < 0.83 and 1.17 < scaled.max() < 1.22
    bar = torch.zeros(300, 1, 64, 64)
    bar[:, :, 30:34, 10:54] = 1
    with seeded(1): turned = only(rotation=20.0)(bar)[:, 0]
    y, x = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(64.0) - 31.5, indexing="ij")
    angle = torch.rad2deg((turned * x * y).sum((1, 2)) / (turned * x * x).sum((1, 2)).clamp(min=1)).abs()
    assert 15 < angle.max() < 22


# ---- several classes

def test_labels_of_several_classes():
    data = FusionData(None, np.zeros((10, 2), "float32"), np.arange(10) % 4)
    assert data.n_classes == 4 and toy().n_classes == 2 and pickle.loads(pickle.dumps(data)).n_classes == 4
    labels = torch.cat([b["label"] for b in data.batches([7, 0, 2], batch_size=2)])
    assert labels.dtype == torch.int64 and labels.tolist() == [3, 0, 2]


@pytest.mark.parametrize("labels", [np.arange(10) % 2, np.arange(10) - 1, (np.arange(10) % 3).astype("int32"), (np.arange(10) % 3).astype("float32"),
                                    np.array(list("abcdefghij"))])
def test_labels_of_another_kind_are_refused(labels):
    with pytest.raises(DataError, match="labels 0 or 1 as float32, or 0 to C - 1 of three or more classes as int64"):
        FusionData(None, np.zeros((10, 2), "float32"), labels)


def test_balanced_rows_draw_every_class_as_often_and_only_rows_named():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    rows = np.r_[0:800, 900:960, 990:995]
    drawn = np.concatenate([balanced_rows(labels, rows, (0, epoch)) for epoch in range(50)])
    counts = np.bincount(labels[drawn])
    expected = len(drawn) / 3
    assert np.isin(drawn, rows).all() and (abs(counts - expected) < 4 * np.sqrt(expected)).all()
    within = np.bincount(drawn, minlength=1000)[990:995]
    assert (abs(within - counts[2] / 5) < 4 * np.sqrt(counts[2] / 5)).all()
    assert not np.array_equal(drawn[:865], drawn[865:2 * 865]) and np.array_equal(drawn[:865], balanced_rows(labels, rows, (0, 0)))


# ---- patches

def only_patch(**kw): return PatchAugment(**{**dict(flip=0, rotation=0, crop=1, colour=0), **kw})


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_changed_one_by_one_and_the_input_stays(channels):
    image = torch.rand(1, channels, 32, 32).expand(16, -1, -1, -1).clone()
    before = image.clone()
    with seeded(0): changed = PatchAugment()(image)
    with seeded(0): again = PatchAugment()(image)
    assert torch.equal(image, before) and changed.shape == image.shape and torch.equal(changed, again)
    assert len({tuple(x.flatten()[:99].tolist()) for x in changed}) == 16 and 0 <= changed.min() and changed.max() <= 1


def test_patches_are_mirrored_both_ways():
    image = torch.rand(1, 3, 16, 16).expand(400, -1, -1, -1)
    with seeded(2): changed = only_patch(flip=0.5)(image)
    kinds = torch.stack([(changed - version).abs().amax((1, 2, 3)) < 1e-4 for version in (image, image.flip(-1), image.flip(-2), image.flip(-1, -2))], 1)
    assert (kinds.sum(1) == 1).all() and (abs(kinds.float().mean(0) - 0.25) < 0.08).all()


def test_patches_are_cropped_and_turned_within_their_range():
    """A ramp over the width shows which part of it is seen; a bar shows the angle. The middle stays inside."""
    ramp = torch.linspace(0, 1, 64).expand(300, 1, 64, 64)
    with seeded(1): seen = only_patch(crop=0.8)(ramp)
    left, right = seen[:, 0, 32, 1], seen[:, 0, 32, -2]
    side = (right - left) / (61 / 63)
    assert 0.79 < side.min() < 0.82 and 0.98 < side.max() < 1.01
    assert 0 <= left.min() and 0.12 < left.max() < 0.23 and (left < 0.5).all() and (right > 0.5).all()
    bar = torch.zeros(300, 1, 64, 64)
    bar[:, :, 30:34, 10:54] = 1
    with seeded(1): turned = only_patch(rotation=20.0)(bar)[:, 0]
    y, x = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(64.0) - 31.5, indexing="ij")
    angle = torch.rad2deg((turned * x * y).sum((1, 2)) / (turned * x * x).sum((1, 2)))
    assert 17 < angle.abs().max() < 22 and angle.min() < -15 and angle.max() > 15


def test_colours_change_gently_and_positions_stay():
    image = torch.rand(1, 3, 16, 16).expand(64, -1, -1, -1)
    with seeded(0): changed = only_patch(colour=0.1)(image)
    assert 0.01 < (changed - image).abs().mean() < 0.15
    assert all(np.corrcoef(a.mean(0).flatten(), image[0].mean(0).flatten())[0, 1] > 0.95 for a in changed)


def test_nothing_black_is_turned_in():
    with seeded(0): changed = only_patch(rotation=45.0)(torch.full((20, 3, 32, 32), 0.8))
    assert changed.min() > 0.79


@pytest.mark.parametrize("batch_size", [2, 16, 64, 500])
def test_the_cases_of_a_patient_are_of_one_batch(batch_size):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 90, 150).astype(np.int64)
    time, event = rng.random(90).astype(np.float32) + 1, rng.integers(0, 2, 90).astype(np.float32)
    data = FusionData(None, np.zeros((150, 1), np.float32), np.stack([time, event], axis=1)[groups], groups)
    rows = rng.permutation(150)[:140]
    batches = [b["row"].numpy() for b in data.batches(rows, batch_size=batch_size, shuffle_seed=(1, 2))]
    assert sorted(np.concatenate(batches)) == sorted(rows) and all(len(b) for b in batches)
    of_batch = [set(groups[b]) for b in batches]
    assert sum(map(len, of_batch)) == len(set.union(*of_batch)) and max(map(len, batches)) <= batch_size + 2 * np.bincount(groups[rows]).max()
    again, other = ([b["row"].tolist() for b in data.batches(rows, batch_size=batch_size, shuffle_seed=seed)] for seed in ((1, 2), (1, 3)))
    assert again == [b.tolist() for b in batches] != other
    assert np.concatenate([b["row"] for b in data.batches(rows, batch_size=batch_size)]).tolist() == rows.tolist()  # evaluated in the order asked for
