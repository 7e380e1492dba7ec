"""Decoding: every mode of image, every kind of broken file, and the cache."""
import os
import struct

import numpy as np
import pytest
from PIL import Image

from fusion_nb.data.images import check_image, decode_image, decode_images
from fusion_nb.schema import DataError

RAMP = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))  # 16 x 16, dark to bright


def save(folder, array, name="x.png", **options):
    Image.fromarray(array).save(folder / name, **options)
    return folder / name


def plain(path, **options):
    return decode_image(path, **{"size": 16, "clip_percent": 0, **options})


def test_every_mode_gives_the_same_grey(tmp_path):
    expected = np.round(RAMP * (255 / 240)).astype(int)
    rgb, opaque = np.repeat(RAMP[..., None], 3, 2), np.full((16, 16, 1), 255, np.uint8)
    modes = {"L": RAMP, "RGB": rgb, "RGBA": np.concatenate([rgb, opaque], 2), "LA": np.stack([RAMP, opaque[..., 0]], 2), "I;16": RAMP.astype(np.uint16) * 200}
    for mode, array in modes.items():
        path = save(tmp_path, array)
        assert check_image(path) == (mode, (16, 16))
        grey, colour = plain(path), plain(path, channels=3)
        assert grey.shape == (1, 16, 16) and colour.shape == (3, 16, 16) and grey.dtype == np.uint8
        assert np.abs(grey[0] - expected).max() <= 1 and np.abs(colour - expected).max() <= 1
    Image.fromarray(RAMP).convert("P").save(tmp_path / "p.png")
    Image.fromarray(RAMP.astype(np.float32) / 7).save(tmp_path / "f.tif")
    for name in ("p.png", "f.tif"): assert np.abs(plain(tmp_path / name)[0] - expected).max() <= 1


def test_transparent_is_black_whatever_stands_below(tmp_path):
    white, black = np.full((16, 16, 4), 255, np.uint8), np.full((16, 16, 4), 255, np.uint8)
    for image in (white, black): image[:, :8, :3] = RAMP[:, :8, None]
    white[:, 8:, 3] = 0
    black[:, 8:] = 0
    a, b = plain(save(tmp_path, white, "a.png")), plain(save(tmp_path, black, "b.png"))
    np.testing.assert_array_equal(a, b)
    assert (a[0, :, 8:] == 0).all() and a[0, :, 7].max() == 255


def test_clipping_is_that_of_the_percentile(tmp_path):
    image = np.random.default_rng(0).integers(0, 200, (64, 64)).astype(np.uint8)
    image[0, :4] = 255
    high = np.percentile(image, 99.5)
    expected = np.round(np.minimum(image, high) * (255 / high))
    np.testing.assert_array_equal(decode_image(save(tmp_path, image), size=64)[0], expected)


def test_flat_and_almost_flat_images(tmp_path):
    assert (decode_image(save(tmp_path, np.full((16, 16), 77, np.uint8)), size=16) == 0).all()
    dot = np.zeros((32, 32), np.uint8)
    dot[5, 5] = 9
    assert decode_image(save(tmp_path, dot), size=32)[0, 5, 5] == 255


def test_aspect_ratio_is_kept_and_shrinking_averages(tmp_path):
    wide = np.full((20, 80), 200, np.uint8)
    wide[:, ::2] = 0  # stripes of one pixel: without antialiasing they would come out black or white
    square = decode_image(save(tmp_path, wide), size=20, clip_percent=0)[0]
    assert (square[:7] == 0).all() and (square[-7:] == 0).all() and (abs(square[8:12, 2:-2].astype(int) - 127) < 25).all()


def test_orientation_tag_is_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, RAMP, "x.png", exif=exif)
    assert plain(path)[0, 0].max() < 20 and plain(path)[0, -1].min() > 235


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif"])
def test_truncated_and_foreign_files_are_named(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    path = save(tmp_path, noise, name)
    whole = path.read_bytes()
    for length in (0, 10, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=f"a whole image .* in {name}.*again from its source") as error: decode_image(path, size=16)
        assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("tag, kind, at", [(256, 4, 0), (259, 3, 8)])  # no width: TypeError; an unknown compression: KeyError
def test_a_broken_second_frame(tmp_path, tag, kind, at):
    path = tmp_path / "x.tif"
    Image.fromarray(RAMP).save(path, save_all=True, append_images=[Image.fromarray(RAMP)])
    content = bytearray(path.read_bytes())
    content[content.rindex(struct.pack("<HHI", tag, kind, 1)) + at] = 0xE1  # the last one: of the second frame
    path.write_bytes(content)
    with pytest.raises(DataError, match="a whole image .* in x.tif"): check_image(path)


def test_formats_that_start_other_programs_are_not_opened(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(DataError, match="PNG, JPEG"): check_image(tmp_path / "x.png")


def test_other_bad_input(tmp_path, monkeypatch):
    path = save(tmp_path, RAMP)
    for options, words in [(dict(expect_mode="RGB"), "mode RGB in x.png. Got mode L"), (dict(expect_size=(9, 9)), r"size \(9, 9\) in x.png"),
                           (dict(channels=2), "1 or 3"), (dict(clip_percent=100), "clip_percent"), (dict(size=0), "side")]:
        with pytest.raises(DataError, match=words): plain(path, **options)
    with pytest.raises(DataError, match="no file 'none.png'"): plain(tmp_path / "none.png")
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1])]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="one image in stack.tif. Got 2 frames"): plain(tmp_path / "stack.tif")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(DataError, match="finite intensities in nan.tif"): plain(tmp_path / "nan.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="x.png.*pixels"): plain(path)


def test_array_file_is_made_once_and_again_when_anything_changes(tmp_path):
    paths = [save(tmp_path, RAMP + i, f"{i}.png") for i in range(5)]
    out = tmp_path / "cache" / "images.npy"

    def made(**options):
        images = decode_images(paths, out, progress=False, **{"size": 8, **options})
        expected = [decode_image(p, **{"size": 8, **options}) for p in paths]
        np.testing.assert_array_equal(images, expected)
        assert isinstance(images, np.memmap) and not images.flags.writeable
        return out.stat().st_ino

    first = made()
    assert made() == first
    os.utime(paths[0])
    assert made() == first  # a copy with another date is the same image
    assert made(size=9) != first
    second = made()
    save(tmp_path, RAMP[::-1], "3.png")
    third = made()
    assert third != second
    paths.reverse()
    assert made() != third


def test_broken_image_leaves_no_array_file(tmp_path):
    paths = [save(tmp_path, RAMP, f"{i}.png") for i in range(4)]
    paths[2].write_bytes(paths[2].read_bytes()[:45])
    with pytest.raises(DataError, match="2.png"): decode_images(paths, tmp_path / "out" / "images.npy", size=8, progress=False)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(DataError, match="at least one image"): decode_images([], tmp_path / "images.npy", size=8)
    with pytest.raises(DataError, match="none.png"): decode_images([tmp_path / "none.png"], tmp_path / "images.npy", size=8)
