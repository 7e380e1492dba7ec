"""README.md from nbs/index.ipynb: its markdown, its code and its text outputs. `--check` only compares."""
import json
import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def cell_text(cell: dict) -> str:
    """A cell as markdown; directives and hidden cells stay out."""
    source = "".join(cell["source"])
    if source.startswith("---\n") or "#| hide" in source or "#| default_exp" in source:
        return ""
    if cell["cell_type"] == "markdown":
        return re.sub(r"\]\((?!\w+:)([^)]+\.ipynb)\)", r"](nbs/\1)", source)
    code = re.sub(r"^#\|.*\n", "", source, flags=re.M)
    texts = [o.get("text") or o.get("data", {}).get("text/plain", []) for o in cell["outputs"]]
    shown = "".join("".join(t) for t in texts).rstrip()
    return f"```python\n{code}\n```" + (f"\n\n```\n{shown}\n```" if shown else "")


def readme() -> str:
    """The whole page."""
    cells = json.loads((REPO / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(filter(None, map(cell_text, cells))) + "\n"


if __name__ == "__main__":
    path = REPO / "README.md"
    if "--check" not in sys.argv:
        path.write_text(readme(), encoding="utf-8")
    elif path.read_text(encoding="utf-8") != readme():
        sys.exit("README.md is not what nbs/index.ipynb says: run `make readme`")
