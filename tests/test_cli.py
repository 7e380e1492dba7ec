"""The command `fusion-nb` as a person types it."""
import json
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fusion_nb.cli import _MAKE, main
from fusion_nb.data.fetch import SOURCES, _File
from fusion_nb.data.synthetic import PairedSpec
from test_launch import make_study
from test_runs import small_disk

COMMAND = Path(sys.executable).with_name("fusion-nb")


@pytest.fixture(scope="module")
def study(tmp_path_factory): return make_study(tmp_path_factory.mktemp("studies"))


def test_help_is_quick_to_import_and_teaches(capsys):
    with pytest.raises(SystemExit) as stop: main(["--help"])
    assert stop.value.code == 0 and "fusion-nb run imaging_clinical" in capsys.readouterr().out
    code = "import sys, fusion_nb.cli; sys.exit(str({'torch', 'papermill', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == "set()"


def test_installed_command_runs_a_study(study, tmp_path):
    (tmp_path / "p.yaml").write_text("seed: 1\nlr: 1e-3\n")
    done = subprocess.run([COMMAND, "run", study, "-f", tmp_path / "p.yaml", "-p", "seed", "2", "--out", tmp_path / "runs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report, index = (Path(line.split(maxsplit=1)[1]) for line in done.stdout.splitlines())
    assert report.is_file() and index == tmp_path / "runs" / "index.html"
    record = json.loads((report.parent / "record.json").read_text())
    assert record["params"] == {"seed": 2, "lr": 1e-3, "mode": "good"}, "-p goes before the file"
    assert "Executing" in done.stderr and "WARNING" not in done.stderr


@pytest.mark.parametrize("words, said", [
    (["-p", "sede", "1"], "Did you mean 'seed'"), (["-p", "seed", "ten"], "Expected int"), (["-f", "absent.yaml"], "absent.yaml"),
    (["-p", "out_dir", "x"], "--out")])
def test_bad_input_is_one_message_and_exit_2(study, tmp_path, capsys, words, said):
    assert main(["run", str(study), "--out", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and list(tmp_path.iterdir()) == []


def test_yaml_with_an_unknown_key(study, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text("modee: good\n")
    assert main(["run", str(study), "-f", str(tmp_path / "p.yaml")]) == 2
    assert "Did you mean 'mode'" in capsys.readouterr().err


def test_failed_study_is_exit_1(study, tmp_path, capsys):
    assert main(["run", str(study), "--out", str(tmp_path), "--quiet", "-p", "mode", "fail"]) == 1
    error = capsys.readouterr().err
    assert "ValueError in cell" in error and "executed.html" in error and "Traceback" not in error and "Executing" not in error


@pytest.mark.parametrize("mode, code, said", [("fill", 2, "the disk is full"), ("fill and tidy", 1, "the disk is full")])
def test_disk_that_fills_up_during_a_study(study, tmp_path, mode, code, said):
    """In the first the study's half-written file stays, so that nothing more can be written; in the second its cell fails and makes room."""
    with small_disk(tmp_path, 2**20) as disk:
        done = subprocess.run([COMMAND, "run", study, "--out", disk, "--quiet", "-p", "mode", mode], capture_output=True, text=True)
        record = json.loads(next(disk.glob("toy/*/record.json")).read_text())
        assert not list(disk.rglob("*.part*"))
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert record["status"] == ("failed" if code == 1 else "running"), "with no room left the record stays as it was"


def test_unknown_study(capsys, tmp_path, monkeypatch):
    (tmp_path / "nbs" / "studies").mkdir(parents=True)
    make_study(tmp_path / "nbs" / "studies")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "toi"]) == 2
    assert "Did you mean 'toy'" in capsys.readouterr().err


def test_list_shows_every_parameter(capsys, tmp_path, monkeypatch):
    (tmp_path / "nbs" / "studies").mkdir(parents=True)
    make_study(tmp_path / "nbs" / "studies")
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "toy" in said and "learning rate" in said and "0.0001" in said and "out_dir" not in said


def test_data_make(tmp_path, capsys):
    assert main(["data", "make", str(tmp_path / "twin"), "--n-patients", "12", "--seed", "3"]) == 0
    assert str(tmp_path / "twin") in capsys.readouterr().out and (tmp_path / "twin" / "table.csv").is_file()


def test_data_make_has_the_defaults_of_the_cohort():
    assert {name: default for name, (_, default, _) in _MAKE.items()}.items() <= asdict(PairedSpec()).items()


def test_data_list_and_unknown_source(tmp_path, capsys):
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert "breast-lesions-usg" in said and "CC BY 4.0" in said and "mimic-iv-demo" in said
    assert main(["data", "fetch", "brecahd", "--to", str(tmp_path)]) == 2
    assert "Did you mean 'brecahad'" in capsys.readouterr().err


def test_data_that_needs_an_account_is_explained(tmp_path, capsys):
    assert main(["data", "fetch", "mimic-iv", "--to", str(tmp_path)]) == 2
    assert "physionet.org" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_data_fetch(tmp_path, capsys, monkeypatch):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.txt").write_text("public")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "served"))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    here = replace(SOURCES["mimic-iv-demo"], base=f"http://127.0.0.1:{server.server_port}/", files=(_File("a.txt"),))
    monkeypatch.setitem(SOURCES, "mimic-iv-demo", here)
    try: assert main(["data", "fetch", "mimic-iv-demo", "--to", str(tmp_path / "data"), "--quiet"]) == 0
    finally:
        server.shutdown()
        server.server_close()
    folder = Path(capsys.readouterr().out.strip().partition(" in ")[2])
    assert (folder / "a.txt").read_text() == "public" and folder.is_relative_to(tmp_path / "data")


def test_a_reader_that_stops_reading_is_no_error(repo):
    done = subprocess.run(f"{Path(sys.executable).parent}/fusion-nb list | head -1", shell=True, capture_output=True, text=True, cwd=repo)
    assert "imaging_clinical" in done.stdout and not done.stderr
