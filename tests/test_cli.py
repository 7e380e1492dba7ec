"""The command `fusion-nb` as a person types it."""
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest

import fusion_nb.compare_files
from fusion_nb.cli import _MAKE, main
from fusion_nb.compare_files import AuditSettings, Settings
from fusion_nb.data.fetch import SOURCES, _File
from fusion_nb.data.synthetic import PairedSpec
from fusion_nb.resample import METRICS
from test_compare_files import FILES, contents, write
from test_launch import make_study
from test_runs import small_disk

COMMAND = Path(sys.executable).with_name("fusion-nb")


@pytest.fixture(scope="module")
def study(tmp_path_factory): return make_study(tmp_path_factory.mktemp("studies"))


def test_help_is_quick_to_import_and_teaches(capsys):
    with pytest.raises(SystemExit) as stop: main(["--help"])
    assert stop.value.code == 0 and "fusion-nb run imaging_clinical" in capsys.readouterr().out
    code = "import sys, fusion_nb.cli; sys.exit(str({'torch', 'papermill', 'matplotlib', 'numpy', 'pandas'} & set(sys.modules)))"
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
    assert re.fullmatch(r"\w+  \(nbs/studies/\w+\.ipynb\)\n", done.stdout) and not done.stderr


# ---- compare

NAMES = ["--label", "y_true", "--score", "y_prob"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three models' files in the working folder."""
    monkeypatch.chdir(tmp_path)
    return [p.name for p in write(tmp_path, "abc")]


def test_compare_help_teaches_and_names_every_metric(capsys):
    with pytest.raises(SystemExit) as stop: main(["compare", "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "fusion-nb compare a.csv b.csv" in said
    assert [name for name in METRICS if not re.search(rf"^  {name} ", said, re.M)] == []


def test_compare_has_the_defaults_of_the_settings(files, monkeypatch):
    asked = []
    def note(*args, **options):
        asked.append(options)
        raise KeyboardInterrupt
    monkeypatch.setattr(fusion_nb.compare_files, "compare_files", note)
    main(["compare", "a.csv"])
    assert asked == [{"label": "label", "score": "score", "group": None, "case_id": None, "positive": None, "settings": Settings()}]


def test_installed_command_compares_and_prints_the_same_numbers(files):
    done = subprocess.run([COMMAND, "compare", *files[:2], *NAMES, "--group", "patient", "--n", "200", "--out", "out"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert {p.name for p in Path("out").iterdir()} == FILES and f"report  {Path('out/report.html').resolve()}" in done.stdout
    row = pd.read_parquet("out/metrics.parquet").set_index(["model", "metric"]).loc[("b", "auc")]
    assert re.search(rf"^ +b +{row['estimate']:.3f} \[{row['low']:.3f}, {row['high']:.3f}\] +120 +80$", done.stdout, re.M)
    assert "matched by row: same length, same labels, checked" in done.stdout and "A is a, B is b" in done.stdout


def test_compare_without_out_writes_nothing(files, capsys):
    assert main(["compare", *files, *NAMES, "--n", "50", "--reference", "b", "--metric", "auc", "--metric", "f1"]) == 0
    said = capsys.readouterr().out
    assert "No patient id was given" in said and "F1" in said and sorted(p.name for p in Path().iterdir()) == files


@pytest.mark.parametrize("words, said", [
    (["a.csv", "b.csv", *NAMES, "--metric", "acu"], "Did you mean 'auc'"), (["a.csv", "no.csv", *NAMES], "no.csv"),
    (["a.csv", "a.csv", *NAMES], "a.csv twice. Leave it out"),
    (["a.csv", *NAMES, "--level", "95"], "Write 0.95 for 95%"), (["a.csv", *NAMES, "--n", "1"], "at least 2 resamples"),
    (["a.csv", "--label", "y_true"], "'score' in a.csv"), (["a.csv", "--score", "y_prob"], "'label' in a.csv"),
    (["a.csv", *NAMES, "--time", "months"], "--label, or --time with --event"), (["a.csv", "--time", "months"], "--label, or --time with --event"),
    (["a.csv", "b.csv", *NAMES, "--reference", "d"], "a known model"), (["a.csv", *NAMES, "--out", "a.csv/out"], "a.csv, which is a file")])
def test_bad_comparisons_are_one_message_exit_2_and_nothing_written(files, capsys, words, said):
    assert main(["compare", *words, *(["--out", "out"] if "--out" not in words else [])]) == 2
    heard = capsys.readouterr()
    assert said in heard.err and "Traceback" not in heard.err and not heard.out and sorted(p.name for p in Path().iterdir()) == files


def refused(capsys, *words):
    """What the command says where it refuses."""
    assert main(["compare", *words, *NAMES, "--n", "50", "--out", "out"]) == 2 and not Path("out").exists()
    said = capsys.readouterr().err
    assert "Traceback" not in said and not re.search(r"scores\.at|model=|: case_id", said), "these are words of Python, not of the command line"
    return said


def test_hints_are_in_the_words_of_the_command_line(files, capsys):
    table = pd.read_csv("b.csv")
    table.iloc[::-1].to_csv("b.csv", index=False)
    assert "that names the case: --case-id." in refused(capsys, "a.csv", "b.csv")
    table.iloc[1:].to_csv("b.csv", index=False)
    assert "that names the case: --case-id." in refused(capsys, "a.csv", "b.csv")
    assert "a.csv twice" in refused(capsys, "a.csv", "./a.csv")
    table.assign(case_id=table["id"]).drop(columns="id").to_csv("b.csv", index=False)
    assert "Did you mean 'case_id'" in refused(capsys, "b.csv", "--case-id", "casd_id"), "a column keeps its name"


def test_a_threshold_must_be_given_for_scores_that_are_no_probabilities(files, capsys):
    table = pd.read_csv("a.csv")
    table.assign(y_prob=10 * table["y_prob"]).to_csv("a.csv", index=False)
    assert "Set it: --threshold." in refused(capsys, "a.csv", "--metric", "accuracy")
    assert main(["compare", "a.csv", *NAMES, "--n", "50", "--metric", "accuracy", "--threshold", "3"]) == 0
    assert "Called positive at 3 or above: for Accuracy" in capsys.readouterr().out
    assert main(["compare", "a.csv", *NAMES, "--n", "50", "--metric", "all"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Accuracy was left out." in said and "Set it: --threshold." in said and "scores.at" not in said


def test_one_patient_cannot_be_drawn_from(files, capsys):
    pd.read_csv("a.csv").assign(patient="p0").to_csv("a.csv", index=False)
    for metric in ("auc", "all"): assert "at least two units to draw" in refused(capsys, "a.csv", "--group", "patient", "--metric", metric)


def test_a_perfect_model_has_a_report(files, capsys):
    table = pd.read_csv("a.csv")
    table.assign(y_prob=.1 + .8 * table["y_true"]).to_csv("a.csv", index=False)
    table.assign(y_prob=.5).to_csv("c.csv", index=False)
    assert main(["compare", "a.csv", "b.csv", "c.csv", *NAMES, "--n", "50", "--out", "out"]) == 0
    assert {p.name for p in Path("out").iterdir()} == FILES and "Monte Carlo standard error of a limit at most" in capsys.readouterr().out


def test_out_is_looked_at_before_the_work(files, capsys, monkeypatch):
    monkeypatch.setattr(fusion_nb.compare_files, "compare_files", lambda *a, **k: pytest.fail("worked first"))
    Path("out").mkdir()
    Path("out/report.html").write_text("mine")
    assert main(["compare", "a.csv", *NAMES, "--out", "out"]) == 2
    assert "of another origin" in capsys.readouterr().err and contents(Path("out")) == {"report.html": b"mine"}


def test_compare_that_is_stopped(files, capsys, monkeypatch):
    def stop(*args, **options): raise KeyboardInterrupt
    monkeypatch.setattr(fusion_nb.compare_files, "bootstrap_metrics", stop)
    assert main(["compare", *files, *NAMES, "--out", "out"]) == 130
    assert "stopped; nothing was written" in capsys.readouterr().err and not Path("out").exists()


def test_compare_on_a_full_disk(files, tmp_path, capsys):
    with small_disk(tmp_path, 2**16) as disk:
        assert main(["compare", "a.csv", *NAMES, "--n", "50", "--out", str(disk / "out")]) == 2
        assert not list((disk / "out").iterdir())
    error = capsys.readouterr().err
    assert "report.html" in error and "the disk is full" in error and "Traceback" not in error


def test_names_of_classes_need_the_positive_one(files, capsys):
    table = pd.read_csv("a.csv")
    table.assign(y_true=table["y_true"].map({0: "benign", 1: "malignant"})).to_csv("named.csv", index=False)
    assert "Say which is the positive class: --positive '" in refused(capsys, "named.csv")
    assert main(["compare", "named.csv", *NAMES, "--n", "50", "--positive", "malignant"]) == 0
    named = capsys.readouterr().out
    assert main(["compare", "a.csv", *NAMES, "--n", "50"]) == 0
    assert named.replace("named", "a").splitlines()[-3:] == capsys.readouterr().out.splitlines()[-3:]


# ---- audit

def test_audit_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop: main(["audit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "fusion-nb audit image.csv record.csv" in said and "--pairing patient" in said and "no gain of fusion may be claimed" in said
    with pytest.raises(SystemExit): main(["--help"])
    assert "fusion-nb audit image.csv record.csv" in capsys.readouterr().out


def test_audit_has_the_defaults_of_the_settings_and_hands_on_every_option(files, monkeypatch):
    asked = []
    def note(*args, **options):
        asked.append(options)
        raise KeyboardInterrupt
    monkeypatch.setattr(fusion_nb.compare_files, "audit_files", note)
    assert main(["audit", "a.csv"]) == 130
    columns = {"label": "label", "score": "score", "group": None, "case_id": None, "positive": None}
    assert asked == [{**columns, "settings": AuditSettings()}]
    main(["audit", "a.csv", *NAMES, "--group", "patient", "--case-id", "id", "--positive", "yes", "--modalities", "a", "b", "--fused", "c", "--pairing", "random", "--n", "9", "--seed", "4"])
    assert asked[1] == {"label": "y_true", "score": "y_prob", "group": "patient", "case_id": "id", "positive": "yes", "settings": AuditSettings(("a", "b"), "c", "random", 9, 4)}


def test_installed_command_audits_and_writes(files):
    done = subprocess.run([COMMAND, "audit", *files[:2], *NAMES, "--group", "patient", "--n", "50", "--out", "out"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert {p.name for p in Path("out").iterdir()} == {"audit.parquet", "report.html", "record.json"} and f"report  {Path('out/report.html').resolve()}" in done.stdout
    row = pd.read_parquet("out/audit.parquet").set_index("policy").loc["label_matched"]
    assert f"label-matched records  late_fusion               {row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in done.stdout
    assert "Without true pairs it may not be claimed that fusion helps" in " ".join(done.stdout.split()) and not json.loads(Path("out/record.json").read_text())["claim_allowed"]


def test_audit_on_real_predictions(data_dir, capsys, monkeypatch):
    """Two models of one image: the known answers, and no gain on the true pairs."""
    monkeypatch.chdir(data_dir / "breast_mri_fusion")
    words = ["audit", "image-only/preds.csv", "learned-feature-fusion/preds.csv", *NAMES, "--n", "60"]
    def estimates():
        said = capsys.readouterr().out
        return re.findall(r"^(?:AUC)? +(alone|true pairs|records at random|label-matched records) +\S.*? +(\d\.\d{3}) \[", said, re.M), " ".join(said.split())
    assert main(words) == 0
    found, said = estimates()
    assert found == [("alone", "0.849"), ("alone", "0.898"), ("alone", "0.949"), ("records at random", "0.778"), ("label-matched records", "0.950")]
    assert "It is a leak of the label, not fusion. Without true pairs it may not be claimed that fusion helps" in said
    assert main([*words, "--pairing", "patient"]) == 0
    found, said = estimates()
    assert ("true pairs", "0.897") in found and "No gain was shown with true pairs" in said and said.endswith("It may not be claimed that fusion helps.")


@pytest.mark.parametrize("words, said", [
    (["a.csv", *NAMES], "Got the one model 'a'"), (["a.csv", "b.csv", "c.csv", *NAMES], "Got the models a, b, c. Name them: --modalities a ..."),
    (["a.csv", "b.csv", *NAMES, "--modalities", "a", "bb"], "a known model. Got 'bb'. Did you mean 'b'"), (["a.csv", "b.csv", "--score", "y_prob"], "'label' in a.csv"),
    (["a.csv", "b.csv", *NAMES, "--pairing", "patients"], "Did you mean 'patient'"), (["a.csv", "b.csv", *NAMES, "--n", "1"], "at least 2 resamples"),
    (["a.csv", "b.csv", "--label", "y_true", "--score", "patient"], "'patient' of a.csv"), (["a.csv", "no.csv", *NAMES], "no.csv"),
    (["a.csv", "b.csv", "--label", "y_true", "--score", "months"], "probabilities from 0 to 1 for a mean logit"), (["a.csv", "b.csv", *NAMES, "--out", "a.csv/out"], "which is a file")])
def test_bad_audits_are_one_message_exit_2_and_nothing_written(files, capsys, words, said):
    assert main(["audit", *words, *(["--out", "out"] if "--out" not in words else [])]) == 2
    heard = capsys.readouterr()
    assert said in heard.err and "Traceback" not in heard.err and not heard.out and sorted(p.name for p in Path().iterdir()) == files
