"""Files that are whole or absent, whatever the system does; what a notebook cannot show of `fusion_nb.runs`."""
import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fusion_nb.runs import atomic_path, cached, check_writable, fingerprint, read_json, run_lock, start_record, write_json
from fusion_nb.schema import DataError


@pytest.mark.parametrize("number, word", [(errno.ENOSPC, "full"), (errno.EACCES, "permission"), (errno.EROFS, "read-only"),
                                          (errno.ENOTDIR, "not a folder"), (errno.EDQUOT, "quota")])
def test_system_errors_are_said_in_words(tmp_path, number, word):
    with pytest.raises(DataError, match=word) as caught:
        with atomic_path(tmp_path / "a.txt") as tmp:
            tmp.write_text("half")
            raise OSError(number, os.strerror(number), str(tmp))
    assert str(tmp_path) in str(caught.value) and caught.value.todo
    assert list(tmp_path.iterdir()) == []


def test_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_path(tmp_path / "cohort") as tmp:
            tmp.mkdir()
            (tmp / "a.png").touch()
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with atomic_path(tmp_path / "cohort") as tmp: tmp.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["cohort"]


@contextmanager
def small_disk(folder, size):
    """A file system of `size` bytes; the test is skipped where none may be mounted (only root may)."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    try: yield disk
    finally: subprocess.run(["umount", disk], check=True)


@pytest.fixture
def full_disk(tmp_path):
    """A file system with no room left."""
    with small_disk(tmp_path, 65536) as disk:
        (disk / "filler").write_bytes(b"\0" * 65536)
        yield disk


def test_full_disk_for_real(full_disk):
    for write in (lambda p: p.write_bytes(b"\0" * 9999), lambda p: np.save(p, np.zeros(9999)),
                  lambda p: pd.DataFrame({"x": np.random.default_rng(0).random(9999)}).to_parquet(p)):
        with pytest.raises(DataError, match="full"):
            with atomic_path(full_disk / "a.npy") as tmp: write(tmp)
    with pytest.raises(DataError, match="full"): check_writable(full_disk / "new")
    assert {p.name for p in full_disk.iterdir()} <= {"filler", "new"}


def test_check_writable_touches_no_file_of_the_user(tmp_path):
    (tmp_path / "try").write_text("mine")
    check_writable(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["try"] and (tmp_path / "try").read_text() == "mine"


def test_check_writable_of_many_processes_at_once(tmp_path):
    code = "import sys; from fusion_nb.runs import check_writable\nfor _ in range(1000): check_writable(sys.argv[1])"
    both = [subprocess.Popen([sys.executable, "-c", code, tmp_path], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate()[1] for p in both] == ["", ""] and list(tmp_path.iterdir()) == []


def test_folder_without_permission(tmp_path):
    """Root may write anywhere, so the check runs in a process of another user."""
    (tmp_path / "private").mkdir(mode=0o700)
    before = "import os, sys; from pathlib import Path; from fusion_nb.runs import check_writable\n"
    become = "os.setuid(65534)\n" if os.getuid() == 0 else "os.chmod(sys.argv[1], 0)\n"
    tried = "try: check_writable(Path(sys.argv[1])/'a'/'b')\nexcept ValueError as e: print(e)"
    said = subprocess.run([sys.executable, "-c", before + become + tried, tmp_path / "private"], capture_output=True, text=True)
    assert "permission is denied" in said.stdout, said


def test_errors_about_other_files_pass_through(tmp_path):
    with pytest.raises(PermissionError):
        with atomic_path(tmp_path / "a.txt"): raise PermissionError(errno.EACCES, "denied", "/elsewhere/input.csv")


def test_killed_writer_leaves_the_old_file(tmp_path):
    write_json({"n": 1}, tmp_path / "a.json")
    code = ("import os, signal, sys; from fusion_nb.runs import atomic_path\n"
            "with atomic_path(sys.argv[1]) as tmp: tmp.write_text('{'); os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"]).returncode == -signal.SIGKILL
    assert read_json(tmp_path / "a.json") == {"n": 1}


def test_kill_between_value_and_key_makes_the_stage_again(tmp_path):
    """A new file under the old key would be taken for the old value: the old key must go first."""
    text = {"read": Path.read_text, "write": lambda value, path: path.write_text(value)}
    cached(tmp_path / "stage.txt", "old", lambda: "old", **text)
    sidecar = tmp_path / "stage.txt.key"

    def killed_after_replace(value, path):
        path.write_text(value)
        sidecar.unlink()
        os.replace(path, tmp_path / "stage.txt")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt): cached(tmp_path / "stage.txt", "new", lambda: "new", read=Path.read_text, write=killed_after_replace)
    assert cached(tmp_path / "stage.txt", "old", lambda: "old", **text) == "old"


def test_failed_stage_keeps_the_last_good_value(tmp_path):
    text = {"read": Path.read_text, "write": lambda value, path: path.write_text(value)}
    cached(tmp_path / "stage.txt", "1", lambda: "one", **text)
    with pytest.raises(ZeroDivisionError): cached(tmp_path / "stage.txt", "2", lambda: 1 / 0, **text)
    assert cached(tmp_path / "stage.txt", "1", lambda: pytest.fail("made again"), **text) == "one"


def test_lock_is_gone_with_its_process(tmp_path):
    code = "import sys, time; from fusion_nb.runs import run_lock\nwith run_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataError, match="at work"):
            with run_lock(tmp_path): pass
    finally:
        holder.kill()
        holder.wait()
    with run_lock(tmp_path): pass


def test_lock_that_waits(tmp_path):
    code = ("import pathlib, sys, time\nfrom fusion_nb.runs import run_lock\n"
            "with run_lock(sys.argv[1]):\n    print('held', flush=True); time.sleep(1); pathlib.Path(sys.argv[1], 'done').touch()")
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n" and not (tmp_path / "done").exists()
    with run_lock(tmp_path, wait=True): assert (tmp_path / "done").exists()
    assert holder.wait() == 0


def test_file_system_without_locks(tmp_path, monkeypatch):
    import fcntl

    def none(*args): raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(DataError, match="a file system with locks at .*No locks available"):
        with run_lock(tmp_path): pass


def test_import_without_fcntl():
    """As on Windows, where the module does not exist."""
    code = "import sys; sys.modules['fcntl'] = None; import fusion_nb.predictions"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_lock_on_windows(tmp_path, monkeypatch):
    def held(*args): raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=held))
    with pytest.raises(DataError, match="at work"):
        with run_lock(tmp_path): pass
    sys.modules["msvcrt"].locking = lambda *args: None
    with run_lock(tmp_path): pass
    tries = []

    def busy(*args):
        tries.append(args)
        if len(tries) < 3: held()

    sys.modules["msvcrt"].locking = busy
    with run_lock(tmp_path, wait=True): assert len(tries) == 3


def test_json_that_is_a_folder(tmp_path):
    with pytest.raises(DataError, match="[Dd]irectory"): read_json(tmp_path)


def test_fingerprint_tells_like_things_apart(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.csv").write_text("1")
    before = fingerprint(tmp_path)
    os.utime(tmp_path / "a" / "x.csv", (0, 0))
    assert fingerprint(tmp_path) == before
    (tmp_path / "a" / "x.csv").rename(tmp_path / "a" / "y.csv")
    assert fingerprint(tmp_path) != before
    things = [1, "1", 1.0, True, None, [1], [[1]], {"a": 1}, np.array([1]), np.array([[1]]), np.array(["1"], object), pd.DataFrame({"a": [1]}),
              pd.DataFrame({"b": [1]}), pd.DataFrame({"a": ["1"]}), pd.DataFrame({"a": [("x", "y")]}), pd.DataFrame({"a": ["x&y"]})]
    assert len({fingerprint(t) for t in things}) == len(things)
    with pytest.raises(DataError, match="does not exist"): fingerprint(tmp_path / "absent")


def test_fingerprint_is_the_same_in_another_process():
    code = "import numpy as np, pandas as pd; from fusion_nb.runs import fingerprint; print(fingerprint({'b': 1, 'a': ['x', None]}, np.arange(3), pd.DataFrame({'s': [('a',), None]})))"
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}).stdout
            for seed in ("1", "2")}
    assert len(runs) == 1


def test_record_survives_malformed_json(tmp_path):
    (tmp_path / "record.json").write_text('{"attempt": ')
    with pytest.raises(DataError, match="line 1, column"): start_record(tmp_path, "toy", {})


def test_record_of_a_checkout_has_its_revision(tmp_path, repo):
    head = subprocess.run(["git", "-C", repo, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode: pytest.skip("not a git checkout")
    assert start_record(tmp_path, "toy", {})["git"]["revision"] == head.stdout.strip()
