"""Tiling a slide: memory against the slide's size, and tiles a second against OpenSlide's own DeepZoomGenerator; a JSON line a slide.

Synthetic slides of 1,000, 8,000 and 30,000 pixels a side with a pyramid, and one of 8,000 without (--flat: of 30,000 too, a minute): an ellipse of
textured tissue on glass, put together from a few tiles that are encoded once. Each is cut and its tiles (at most 2,000) are read, in a process of its
own; what counts is the highest memory of that process above the one after its imports (Linux). The peer reads the same tiles one by one from
the same grid. CPU and wall time.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import openslide
import tifffile
from openslide.deepzoom import DeepZoomGenerator
from scipy.ndimage import gaussian_filter

from fusion_nb.data.slides import open_slide_info, read_tiles, tile_slide

TILE, SIZE, MOST_GROWTH_MB = 256, 224, 32


def variants() -> list:
    """Glass and six tiles of tissue, compressed."""
    rng = np.random.default_rng(0)
    dark = [gaussian_filter(rng.normal(size=(TILE, TILE)), 3, mode="wrap") > 0 for _ in range(6)]
    pictures = [np.full((TILE, TILE, 3), 243), *(np.where(d[..., None], (110, 70, 150), (225, 160, 195)) for d in dark)]
    return [zlib.compress(p.astype(np.uint8).tobytes(), 1) for p in pictures]


def tiles_of(side: int, tiles: list):
    """The compressed tiles of a level, row by row."""
    n = -(-side // TILE)
    rng, middle = np.random.default_rng(1), (n - 1) / 2
    for i in range(n):
        for j in range(n):
            inside = ((i - middle) / (0.35 * n)) ** 2 + ((j - middle) / (0.45 * n)) ** 2 < 1
            yield tiles[rng.integers(1, len(tiles)) if inside or n == 1 else 0]


def write(path: Path, side: int, pyramid: bool) -> Path:
    tiles = variants()
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for i, level in enumerate([side, side // 4, side // 16] if pyramid else [side]):
            tiff.write(tiles_of(level, tiles), shape=(level, level, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb", compression="zlib",
                       subfiletype=int(i > 0), metadata=None, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    return path


def peak_mb() -> float:
    """The most memory this program has held; getrusage would count the parent's too."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) / 1024


def timed(work):
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return found, time.process_time() - cpu, time.perf_counter() - wall


def ours(path: str) -> dict:
    """Cut and read one slide in this process, and what it took."""
    open_slide_info(path)
    before = peak_mb()
    tiles, cut, _ = timed(lambda: tile_slide(path))
    n, cpu, wall = timed(lambda: sum(len(batch) for batch in read_tiles(tiles)))
    cells = int(tiles.flow["tiles"].iloc[0])
    return {"tiles": n, "cells": cells, "memory_mb": round(peak_mb() - before, 1), "cut_s": round(cut, 2), "read_s": round(cpu, 3), "read_wall_s": round(wall, 3)}


def deep_zoom(path: Path) -> dict:
    """The same tiles, one by one."""
    tiles = tile_slide(path)
    with openslide.OpenSlide(path) as slide:
        zoom = DeepZoomGenerator(slide, tile_size=SIZE, overlap=0)
        _, cpu, wall = timed(lambda: [np.asarray(zoom.get_tile(zoom.level_count - 1, (x // SIZE, y // SIZE))) for x, y in tiles.coords.tolist()])
    return {"deepzoom_s": round(cpu, 3), "deepzoom_wall_s": round(wall, 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[1000, 8000, 30000])
    parser.add_argument("--flat", action="store_true", help="a slide of the largest side without a pyramid too")
    parser.add_argument("--measure", help="of one slide, in this process (used by the benchmark itself)")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(ours(args.measure)))
        return
    memory = {}
    with tempfile.TemporaryDirectory() as tmp:
        flat = sorted(args.sides)[-2:][:1 + args.flat]
        for side, pyramid in [*((side, True) for side in args.sides), *((side, False) for side in flat)]:
            path = write(Path(tmp) / "slide.tif", side, pyramid)
            done = subprocess.run([sys.executable, __file__, "--measure", path], capture_output=True, text=True, check=True)
            row = {"benchmark": "slides", "synthetic": True, "side": side, "pyramid": pyramid, "file_mb": round(path.stat().st_size / 2**20), **json.loads(done.stdout)}
            row |= deep_zoom(path)
            row |= {"tiles_per_s": round(row["tiles"] / row["read_wall_s"]), "ratio_cpu": round(row["deepzoom_s"] / row["read_s"], 2),
                    "ratio_wall": round(row["deepzoom_wall_s"] / row["read_wall_s"], 2)}
            memory[side, pyramid] = row["memory_mb"]
            print(json.dumps(row), flush=True)
    large = [mb for (side, _), mb in memory.items() if side >= sorted(args.sides)[-2]]
    print(json.dumps({"benchmark": "slides", "memory_grows_by_mb": round(max(large) - min(large), 1), "most_mb": MOST_GROWTH_MB,
                      "of sides": sorted({side for side, _ in memory})[-2:], "holds": max(large) - min(large) <= MOST_GROWTH_MB}))


if __name__ == "__main__":
    main()
