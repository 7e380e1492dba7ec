"""The slide twin: its regions have the shares asked for, its pixels show them, and OpenSlide, tifffile and Pillow read its files."""
import numpy as np
import pytest
import tifffile
from openslide import OpenSlide
from PIL import Image
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fusion_nb.data.slide_twin import KINDS, draw_regions, draw_slide, draw_textures, kinds_at, write_slide
from fusion_nb.data.slides import open_slide_info, tile_slide
from fusion_nb.schema import DataError

MIX = {"necrosis": 0.15, "lymphocytes": 0.2, "tumor": 0.3, "stroma": 0.35}
GRID = np.array([[x, y] for y in range(0, 512, 64) for x in range(0, 512, 64)])


@pytest.fixture(scope="module")
def textures():
    return draw_textures()


def colour_and_texture(image: np.ndarray) -> np.ndarray:
    """(64, 8) of a slide of 512 x 512: mean and standard deviation of each colour in a patch, its edges and its dark share."""
    tiles = image.reshape(8, 64, 8, 64, 3).swapaxes(1, 2).reshape(-1, 64, 64, 3).astype(np.float32)
    grey = tiles.mean(axis=3)
    return np.column_stack([tiles.mean(axis=(1, 2)), tiles.std(axis=(1, 2)), np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2)), (grey < 120).mean(axis=(1, 2))])


# ---- regions

def test_shares_are_those_asked_for_and_need_not_add_up_to_one():
    for scale in (1, 7):
        for seed in range(5):
            area = np.bincount(draw_regions({k: scale * v for k, v in MIX.items()}, size=512, tissue=0.6, seed=seed).ravel(), minlength=5)
            assert abs(area[1:].sum() - 0.6 * area.sum()) <= 1
            assert np.abs(area[1:] - area[1:].sum() * np.array([MIX[k] for k in KINDS[1:]])).max() <= 1


def test_a_kind_of_share_zero_is_not_there_and_one_alone_fills_the_tissue():
    regions = draw_regions({"tumor": 0, "stroma": 1}, size=128, tissue=1.0, seed=0)
    assert (regions == KINDS.index("stroma")).all()


def test_regions_hold_whole_patches():
    pure = [(kinds_at(draw_regions(MIX, size=512, seed=seed), GRID)[:, 1:].max(axis=1) > 0.95).mean() for seed in range(20)]
    assert np.mean(pure) > 0.15  # of 64 patches, a third of them glass


def test_kind_of_a_patch_is_a_count_of_the_cells_whose_middle_lies_in_it():
    regions, rng = draw_regions(MIX, size=(200, 333), seed=1), np.random.default_rng(0)
    assert regions.shape == (25, 42)
    corners = np.column_stack([rng.integers(0, 333, 200), rng.integers(0, 200, 200)])
    y, x = (np.arange(n) * 8 + 4 for n in regions.shape)
    for size in (8, 50, 64):
        found = kinds_at(regions, corners, size=size)
        for (left, top), shares in zip(corners, found):
            inside = regions[np.ix_((y >= top) & (y < top + size), (x >= left) & (x < left + size))].ravel()
            if len(inside): assert np.allclose(shares, np.bincount(inside, minlength=5) / len(inside))
    assert np.allclose(kinds_at(regions, corners, size=1).sum(axis=1), 1) and kinds_at(regions, np.zeros((0, 2))).shape == (0, 5)


# ---- pixels

def test_pixels_show_the_regions(textures):
    features, kind = [], []
    for seed in range(24):
        shares = kinds_at(draw_regions(MIX, size=512, seed=seed), GRID)
        clear = shares.max(axis=1) > 0.9
        features.append(colour_and_texture(draw_slide(MIX, size=512, seed=seed, stain=tuple(np.exp(np.random.default_rng(seed).normal(0, 0.06, 3))), textures=textures))[clear])
        kind.append(shares[clear].argmax(axis=1))
    model = make_pipeline(StandardScaler(), NearestCentroid()).fit(np.concatenate(features[:12]), np.concatenate(kind[:12]))
    right = model.predict(np.concatenate(features[12:])) == np.concatenate(kind[12:])
    assert right.mean() > 0.97 and len(right) > 150


def test_same_seed_same_slide_with_or_without_textures(textures):
    slide = draw_slide(MIX, size=(128, 200), seed=[3, 1], textures=textures)
    assert (slide == draw_slide(MIX, size=(128, 200), seed=[3, 1])).all() and slide.shape == (128, 200, 3)
    assert (slide != draw_slide(MIX, size=(128, 200), seed=[3, 2], textures=textures)).any()


def test_a_stain_changes_its_channel_only_and_leaves_white_white(textures):
    plain, stained = (draw_slide(MIX, size=128, seed=0, textures=textures, stain=(1.0, s, 1.0)).astype(int) for s in (1.0, 1.5))
    assert (plain[..., [0, 2]] == stained[..., [0, 2]]).all() and (stained[..., 1] < plain[..., 1]).mean() > 0.9
    white = {kind: np.full((64, 64, 3), 255, np.uint8) for kind in KINDS}
    assert (draw_slide(MIX, size=64, seed=0, stain=(3.0, 3.0, 3.0), textures=white) == 255).all()


# ---- files

@pytest.mark.parametrize("shape", [(512, 512), (333, 517), (256, 2000), (64, 64)])
def test_openslide_tifffile_and_pillow_read_the_file(tmp_path, textures, shape):
    image = draw_slide(MIX, size=shape, seed=1, textures=textures)
    path = write_slide(tmp_path / "slide.tif", image, mpp=0.25, quality=95)
    with OpenSlide(path) as slide:
        assert slide.dimensions == shape[::-1] and float(slide.properties["openslide.mpp-x"]) == float(slide.properties["openslide.mpp-y"]) == 0.25
        assert max(slide.level_dimensions[-1]) <= 256 and np.allclose(slide.level_downsamples, 2.0 ** np.arange(slide.level_count), rtol=0.02)
        whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        slide_levels = slide.level_count
        small = np.asarray(slide.read_region((0, 0), slide.level_count - 1, slide.level_dimensions[-1]).convert("RGB"))
    assert np.abs(whole.astype(int) - image).mean() < 2.5
    factor = 2 ** (slide_levels - 1)
    height, width = (n // factor for n in shape)
    reduced = image[:height * factor, :width * factor].reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    assert np.abs(small[:height, :width] - reduced).mean() < 2.5
    with Image.open(path) as pillow: assert pillow.size == shape[::-1] and (np.asarray(pillow.convert("RGB")) == whole).all()
    with tifffile.TiffFile(path) as tiff: assert all(page.is_tiled and page.compression.name == "JPEG" for page in tiff.pages)


def test_the_project_s_reader_takes_it_with_and_without_magnification(tmp_path, textures):
    image = draw_slide(MIX, size=256, seed=2, textures=textures)
    assert open_slide_info(write_slide(tmp_path / "with.tif", image)).mpp == 0.5
    without = write_slide(tmp_path / "without.tif", image, mpp=None)
    assert open_slide_info(without).mpp is None
    with pytest.raises(DataError, match="fallback_mpp"): tile_slide(without, size=64)
    found = tile_slide(tmp_path / "with.tif", size=64, min_tissue=0.5).coords
    tissue = 1 - kinds_at(draw_regions(MIX, size=256, seed=2), np.array([[x, y] for y in range(0, 256, 64) for x in range(0, 256, 64)]))[:, 0]
    assert abs(len(found) - (tissue > 0.5).sum()) <= 2


def test_the_file_is_the_same_each_time_and_whole_or_absent(tmp_path, textures):
    image = draw_slide(MIX, size=128, seed=2, textures=textures)
    assert write_slide(tmp_path / "a.tif", image).read_bytes() == write_slide(tmp_path / "b.tiff", image).read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="a file of that name is in the way"): write_slide(tmp_path / "file" / "a.tif", image)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "b.tiff", "file"]


# ---- bad input

@pytest.mark.parametrize("wrong, message", [
    ({"composition": {"tumour": 1}}, "a known kind of tissue. Got 'tumour'. Did you mean 'tumor'"), ({"composition": {"background": 1}}, "a known kind of tissue"),
    ({"composition": {"tumor": -0.1}}, "a share of tumor from 0 up. Got -0.1"), ({"composition": {"tumor": float("nan")}}, "a share of tumor"),
    ({"composition": {"tumor": 0}}, "shares of which one is above 0"), ({"composition": {}}, "a composition such as"), ({"composition": "tumor"}, "a composition such as"),
    ({"size": 32}, "a size from 64 to 16384"), ({"size": (128, 128.5)}, "a size from 64"), ({"size": (1, 2, 3)}, "a size from 64"),
    ({"tissue": 0}, "a share of tissue above 0"), ({"tissue": float("nan")}, "a share of tissue"), ({"stain": (1, 1)}, "three factors"), ({"stain": (1, 1, float("nan"))}, "three factors"),
])
def test_bad_slides(textures, wrong, message):
    with pytest.raises(DataError, match=message): draw_slide(**{"composition": MIX, "size": 64, "seed": 0, "textures": textures} | wrong)


@pytest.mark.parametrize("wrong, message", [
    ({"image": np.zeros((64, 64), np.uint8)}, r"an image of uint8 \(H, W, 3\). Got uint8 \(64, 64\)"), ({"image": np.zeros((64, 64, 3))}, "Got float64"), ({"image": None}, "Got NoneType"),
    ({"mpp": 0}, "microns per pixel from 0.01"), ({"mpp": float("nan")}, "microns per pixel"), ({"side": 100}, "a multiple of 16"), ({"path": "slide.png"}, "ends in .tif or .tiff. Got 'slide.png'"),
])
def test_bad_files(tmp_path, wrong, message):
    wrong = {"path": tmp_path / wrong.get("path", "slide.tif"), "image": wrong.get("image", np.zeros((64, 64, 3), np.uint8))} | {k: v for k, v in wrong.items() if k in ("mpp", "side")}
    if message.endswith("NoneType"): wrong["image"] = None
    with pytest.raises(DataError, match=message): write_slide(**wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("coords, size, message", [
    ([[128, 0]], 64, "coords within the slide of 128 x 64 pixels. Got .128, 0. in row 0"), ([[0, 0], [0, -1]], 64, "in row 1"), ([[float("nan"), 0]], 64, "coords within"),
    ([[1, 2, 3]], 64, "the shape .1, 3."), ([[0, 0]], 0, "a size of patches of at least 1 pixel"),
])
def test_bad_corners(coords, size, message):
    with pytest.raises(DataError, match=message): kinds_at(np.zeros((8, 16), np.uint8), coords, size=size)
