"""Studies run headless: bad parameters, failing cells, kills, and the pages that a run leaves."""
import re
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from fusion_nb.launch import StudyError, check_parameters, inspect_parameters, read_parameters, run_study
from fusion_nb.pages import write_index
from fusion_nb.runs import read_json, start_record
from fusion_nb.schema import DataError

PARAMETERS = """
seed: int = 0  # of every random draw
lr: float = 1e-4  # learning rate
mode: str = "good"  # good, fail, die, wait, fill, fill and tidy
out_dir: str = ""  # folder of the run
"""
STAGES = """
import json, os, time
from pathlib import Path
import pandas as pd
from fusion_nb.runs import atomic_path, cached, fingerprint
out = Path(out_dir)
for name in ("tables", "figures"): (out/name).mkdir(exist_ok=True)
def make():
    with open(out/"made.txt", "a") as f: f.write("made ")
    return pd.DataFrame({"model": ["a & b", "c"], "auc": [0.75, 0.5 + seed / 100]})
table = cached(out/"tables"/"results.csv", fingerprint(seed), make, read=pd.read_csv, write=lambda df, p: df.to_csv(p, index=False))
table.to_html(out/"tables"/"results.html")
json.dump({"title": "A toy study", "cohort": "twin", "synthetic": True, "headline": "Fusion 0.75",
           "inputs": {"table": fingerprint(table)}}, open(out/"summary.json", "w"))
table
"""
END = """
if mode == "fail": raise ValueError("no good")
if mode == "die": os.kill(os.getpid(), 9)
if mode == "fill": (out/"big.bin").write_bytes(bytes(2**22))
if mode == "fill and tidy":
    with atomic_path(out/"big.bin") as tmp: tmp.write_bytes(bytes(2**22))
while mode == "wait" and not (out/"go").exists(): time.sleep(.05)
"""
FIGURE = """
import matplotlib.pyplot as plt
fig, ax = plt.subplots(figsize=(4, 3)); ax.plot([0, 1]); ax.set_xlabel("x"); fig.savefig(out/"figures"/"line.png"); print("drawn")
"""


def make_study(folder):
    code = nbformat.v4.new_code_cell
    cells = [nbformat.v4.new_markdown_cell("# A toy study\n\nIt asks nothing, with $z = d / s$ and <b>words</b>."), code(PARAMETERS, metadata={"tags": ["parameters"]}),
             nbformat.v4.new_markdown_cell("## Results"), code(STAGES), code(FIGURE), code(END)]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "toy.ipynb")
    return folder / "toy.ipynb"


@pytest.fixture(scope="module")
def study(tmp_path_factory): return make_study(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    """The folder of a finished run, <out>/toy/<id>."""
    return run_study(study, params={"seed": 3}, out=tmp_path_factory.mktemp("out"), progress=False)


def test_unknown_parameter_suggests_the_near_name(study, tmp_path):
    with pytest.raises(DataError, match="Did you mean 'seed'"): run_study(study, params={"sede": 1}, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["ten", 1.5, True, None, [1]])
def test_wrong_type_is_refused(study, value):
    with pytest.raises(DataError, match="Expected int for the parameter 'seed'"): check_parameters({"seed": value}, study)


def test_text_is_read_as_the_declared_type(study):
    assert check_parameters({"seed": "3", "lr": "1e-3", "mode": "3"}, study) == {"seed": 3, "lr": 1e-3, "mode": "3"}


def test_expression_as_default_is_kept_as_text(tmp_path):
    notebook = make_study(tmp_path)
    book = nbformat.read(notebook, 4)
    book.cells[1].source += "data: str = os.environ.get('X', '')  # folder, or = nothing\n"
    nbformat.write(book, notebook)
    assert inspect_parameters(notebook)["data"].default == "os.environ.get('X', '')"
    assert inspect_parameters(notebook)["data"].help == "folder, or = nothing"


@pytest.mark.parametrize("text, said", [("seed: 1\n  lr: 2\n", "line 2, column"), ("- seed\n", "a list"), ("a: [1\n", "line 2"), ("a: 1\nb: \a\n", "line 2"), ("seed: \"1\n", "line 2")])
def test_malformed_yaml_names_the_line(tmp_path, text, said):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(DataError, match=said): read_parameters(tmp_path / "p.yaml")


def test_file_of_parameters_that_is_not_utf8(tmp_path):
    (tmp_path / "p.yaml").write_bytes("mode: größe\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"): read_parameters(tmp_path / "p.yaml")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xe4", b'{"nbformat": 4, "nbformat_minor": 5, "cells": 3}'])
def test_file_that_is_no_notebook(tmp_path, content):
    (tmp_path / "broken.ipynb").write_bytes(content)
    with pytest.raises(DataError, match="broken.ipynb"): run_study(tmp_path / "broken.ipynb", out=tmp_path / "out")


def test_notebook_without_parameters_or_out_dir(study, tmp_path):
    notebook = make_study(tmp_path)
    book = nbformat.read(notebook, 4)
    book.cells[1].source = "seed: int = 0"
    nbformat.write(book, notebook)
    with pytest.raises(DataError, match="out_dir"): run_study(notebook, out=tmp_path)
    book.cells[1].metadata = {}
    nbformat.write(book, notebook)
    with pytest.raises(DataError, match="tagged 'parameters'"): run_study(notebook, out=tmp_path)


def test_unwritable_out(study, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="not a folder|in the way"): run_study(study, out=tmp_path / "file")


def test_disk_that_fills_up_during_the_run(study, tmp_path, monkeypatch):
    import papermill

    def full(nb, path, *args, **kw): raise OSError(28, "No space left on device", str(path))
    monkeypatch.setattr(papermill, "execute_notebook", full)
    with pytest.raises(DataError, match="disk is full"): run_study(study, out=tmp_path, progress=False)


def test_a_run_leaves_all_that_the_index_links(run):
    record = read_json(run / "record.json")
    assert record["status"] == "finished" and record["params"] == {"seed": 3, "lr": 1e-4, "mode": "good"} and record["seeds"] == {"seed": 3}
    index = run.parent.parent / "index.html"
    links = re.findall(r'(?:href|src)="([^"]+)"', index.read_text())
    assert all((index.parent / link).is_file() for link in links)
    names = {link.rpartition("/")[2] for link in links}
    assert {"report.html", "executed.html", "executed.ipynb", "record.json", "results.csv", "results.html", "line.png"} <= names
    assert "synthetic data" in index.read_text() and "Fusion 0.75" in index.read_text()


def test_record_and_pages_have_the_fingerprints_that_the_study_took(run):
    inputs = read_json(run / "record.json")["inputs"]
    assert set(inputs) == {"notebook", "table"} and inputs["table"] == read_json(run / "summary.json")["inputs"]["table"]
    assert "fingerprint of table" in (run / "report.html").read_text() and inputs["table"] in (run / "report.html").read_text()


@pytest.mark.parametrize("file, content", [("record.json", ""), ("record.json", "[]"), ("record.json", '{"study": "toy", "status": "finished"}'),
                                           ("summary.json", "{"), ("summary.json", "[]")])
def test_one_unreadable_run_does_not_stop_the_index(tmp_path, file, content):
    for name in ("good", "bad"): start_record(tmp_path / "toy" / name, "toy", {"seed": 1})
    (tmp_path / "toy" / "bad" / file).write_text(content)
    index = write_index(tmp_path).read_text()
    assert index.count("unreadable record<") == 1 and 'id="good"' in index and 'href="toy/bad/record.json"' in index


def test_pages_stand_alone(run):
    for page in (run / "report.html", run / "executed.html", run.parent.parent / "index.html"):
        html = page.read_text()
        assert not re.search(r"<(script|link|iframe)\b", html) and not re.search(r"url\(|@import", html)
        assert not [s for s in re.findall(r'<img[^>]*src="([^"]*)"', html) if re.match(r"(https?:)?//", s)]


def test_report_hides_inputs_and_shows_results(run):
    report, with_code = (run / "report.html").read_text(), (run / "executed.html").read_text()
    assert '<details class="code"><summary>' in report and '<details class="code" open' in with_code
    assert "<title>A toy study</title>" in report and "0.53" in report and 'class="badge synthetic"' in report
    assert report.count("data:image/png") == 1, "MPLBACKEND=agg of the test process must not take the figures away"
    assert 'alt="Results"' in report and "$z" not in report


def test_same_parameters_lead_to_the_same_folder(run, study):
    before = (run / "made.txt").read_text()
    assert run_study(study, params={"seed": "3"}, out=run.parent.parent, progress=False) == run
    assert (run / "made.txt").read_text() == before == "made ", "a finished stage is not made again"
    assert read_json(run / "record.json")["attempt"] == 2


def test_folder_does_not_depend_on_the_environment(run, study, monkeypatch):
    monkeypatch.setenv("FUSION_NB_DATA", "")
    assert run_study(study, params={"seed": 3}, out=run.parent.parent, progress=False) == run


def test_failed_run_does_not_show_the_results_of_an_earlier_one(tmp_path):
    notebook = make_study(tmp_path)
    folder = run_study(notebook, out=tmp_path / "out", progress=False)
    book = nbformat.read(notebook, 4)
    book.cells[3].source = "1 / 0"
    nbformat.write(book, notebook)
    with pytest.raises(StudyError): run_study(notebook, out=tmp_path / "out", progress=False)
    assert set(read_json(folder / "record.json")["inputs"]) == {"notebook"} and not (folder / "summary.json").exists()


@pytest.mark.parametrize("mode, said", [("fail", "ValueError in cell .*no good"), ("die", "kernel died")])
def test_failed_study_keeps_what_it_has(study, tmp_path, mode, said):
    with pytest.raises(StudyError, match=said): run_study(study, params={"mode": mode}, out=tmp_path, progress=False)
    folder, = (tmp_path / "toy").iterdir()
    record = read_json(folder / "record.json")
    assert record["status"] == "failed" and re.search(said, record["error"])
    assert "0.75" in (folder / "executed.html").read_text() and (folder / "tables" / "results.csv").exists()
    assert re.search("badge failed", (tmp_path / "index.html").read_text())


def _wait_for(path, process):
    for _ in range(1200):
        if path() or process.poll() is not None: break
        time.sleep(.1)
    assert process.poll() is None and path()


def test_killed_run_is_taken_up_in_its_folder(study, tmp_path):
    code = "import sys; from fusion_nb.launch import run_study; run_study(sys.argv[1], params={'mode': 'wait'}, out=sys.argv[2], progress=False)"
    launcher = subprocess.Popen([sys.executable, "-c", code, study, tmp_path])
    try:
        _wait_for(lambda: list(tmp_path.glob("toy/*/figures/line.png")), launcher)
        folder, = (tmp_path / "toy").iterdir()
        with pytest.raises(DataError, match="at work"): run_study(study, params={"mode": "wait"}, out=tmp_path, progress=False)
        kernels = psutil.Process(launcher.pid).children()
    finally:
        launcher.kill()
        launcher.wait()
    _, orphans = psutil.wait_procs(kernels, timeout=30)
    assert kernels and not orphans, "an orphan would go on writing beside the run that takes its folder up"
    assert read_json(folder / "record.json")["status"] == "running" and not (folder / "executed.ipynb").exists()
    assert "interrupted" in write_index(tmp_path).read_text()
    (folder / ".cohort.0123abcd.part").mkdir()
    (folder / ".cohort.0123abcd.part" / ".x.89abcdef.part.csv").touch()
    (folder / "go").touch()
    assert run_study(study, params={"mode": "wait"}, out=tmp_path, progress=False) == folder
    record = read_json(folder / "record.json")
    assert record["status"] == "finished" and record["attempt"] == 2
    assert (folder / "made.txt").read_text() == "made " and list(folder.glob(".*.part*")) == []
