"""Patches of a set of BreCaHAD's size against decoding its pictures alone, and against cropping and saving one PNG each; a JSON line a format.

Ours is timed whole: listing, checking and fingerprinting the files, decoding, cutting, writing the array and its index, one job. The peers do
less: decoding turns each file into an RGB array and keeps nothing; the other decodes likewise, then crops and saves every patch. Synthetic
pictures of 1360 x 1024, drawn once, with 145 dots each; the default takes 24 of them, --pictures 162 the whole set (23,490 dots). CPU time
of the best of three runs, files in the page cache; wall time beside it. `decode_lazily` is Pillow's own buffer without an array of it.
The set's own format is TIFF. Where decoding is dear (PNG, LZW), decoding alone is not 20 times faster than decoding and saving: there only the
part beyond decoding can be, which is `times_beyond_decoding` (null where ours takes less than decoding: uncompressed TIFF is only mapped).
"""
import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fusion_nb.data.brecahad import CLASSES, PATCH_CLASSES, cut_patches, read_brecahad
from fusion_nb.data.histology_twin import HistologySpec, _draw_picture
from fusion_nb.runs import write_json

FORMATS = {"TIFF": (".tif", {}), "TIFF (LZW)": (".tif", {"compression": "tiff_lzw"}), "PNG": (".png", {}), "JPEG": (".jpg", {"quality": 92})}
COUNTS, SIZE = np.array([1, 132, 12]), (1360, 1024)
MOST_OF_DECODING, LEAST_FASTER = 1.3, 20


def draw(pictures: int, formats: list, folder: Path) -> None:
    """Draw each picture once and save it in every format, with its dots."""
    spec = HistologySpec(width=SIZE[0], height=SIZE[1])
    for i in range(pictures):
        k, name = i // 10 + 1, f"Case_{i // 10 + 1}-{i % 10 + 1:02d}"
        picture, places = _draw_picture(spec, k, i % 10 + 1, COUNTS)
        dots = dict.fromkeys(CLASSES, []) | {cls: [{"x": (x + .5) / SIZE[0], "y": (y + .5) / SIZE[1]} for x, y in at.tolist()]
                                             for cls, at in zip(PATCH_CLASSES, places)}
        for fmt in formats:
            suffix, options = FORMATS[fmt]
            (folder / fmt).mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / fmt / f"{name}{suffix}", **options)
            write_json(dots, folder / fmt / f"{name}.json")


def timed(work, times: int) -> tuple:
    """The least CPU and wall seconds of `times` runs."""
    runs = []
    for i in range(times):
        cpu, wall = time.process_time(), time.perf_counter()
        work(i)
        runs.append((time.process_time() - cpu, time.perf_counter() - wall))
    return tuple(map(min, zip(*runs)))


def crop_and_save(annotations, pictures: int, out: Path) -> None:
    """What a short script would do: one PNG for each dot of the first pictures."""
    out.mkdir()
    for image, rows in list(annotations.dots.groupby("image"))[:pictures]:
        picture = Image.open(annotations.images.set_index("image").at[image, "path"]).convert("RGB")
        for i, (x, y) in enumerate(zip(rows["x"].astype(int), rows["y"].astype(int))):
            picture.crop((x - 32, y - 32, x + 32, y + 32)).save(out / f"{image}_{i}.png")


def measure(folder: Path, fmt: str, scratch: Path, saved: int) -> dict:
    annotations = read_brecahad(folder)
    paths = annotations.images["path"].tolist()
    decode = timed(lambda _: [np.asarray(Image.open(p).convert("RGB")) for p in paths], 3)
    lazily = timed(lambda _: [Image.open(p).load() for p in paths], 3)
    ours = timed(lambda i: cut_patches(read_brecahad(folder), scratch / f"{fmt} cut {i}", progress=False), 3)
    again = timed(lambda i: cut_patches(read_brecahad(folder), scratch / f"{fmt} cut {i}", progress=False), 3)
    png = timed(lambda i: crop_and_save(annotations, saved, scratch / f"{fmt} png {i}"), 1)[0] * len(paths) / saved
    ratio, faster = ours[0] / decode[0], png / ours[0]
    possible = png >= LEAST_FASTER * MOST_OF_DECODING * decode[0]
    return {"format": fmt, "pictures": len(paths), "dots": len(annotations.dots), "ours_s": round(ours[0], 2), "ours_wall_s": round(ours[1], 2),
            "decode_s": round(decode[0], 2), "decode_lazily_s": round(lazily[0], 2), "one_png_each_s": round(png, 2), "png_pictures_timed": saved,
            "second_call_s": round(again[0], 2), "ratio_to_decoding": round(ratio, 2), "times_faster_than_png": round(faster, 1),
            "times_beyond_decoding": round((png - decode[0]) / (ours[0] - decode[0]), 1) if ours[0] > decode[0] else None,
            "twenty_times_possible": bool(possible), "holds": bool(ratio <= MOST_OF_DECODING and (faster >= LEAST_FASTER or not possible))}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=24, help="of 162 in the real set")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        draw(args.pictures, args.formats, Path(tmp))
        for fmt in args.formats:
            print(json.dumps({"benchmark": "patches", "synthetic": True, **measure(Path(tmp) / fmt, fmt, Path(tmp), min(4, args.pictures))}), flush=True)


if __name__ == "__main__":
    main()
