"""Export and clean every notebook, and fail if that changed a file: then the notebooks and the modules disagreed."""
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def state() -> dict:
    """Content of every notebook and exported module."""
    files = [p for folder in ("nbs", "fusion_nb") for p in (REPO / folder).rglob("*")
             if p.suffix in (".ipynb", ".py") and ".ipynb_checkpoints" not in p.parts]
    return {p.relative_to(REPO): p.read_bytes() for p in files}


def main() -> int:
    """Name what drifted; the exit status is 1 if anything did."""
    before = state()
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([command], cwd=REPO, check=True)
    after = state()
    drifted = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    for path in drifted:
        print(f"drift: {path} was not what its notebook exports, or was not clean; it is now: commit it")
    return int(bool(drifted))


if __name__ == "__main__":
    sys.exit(main())
