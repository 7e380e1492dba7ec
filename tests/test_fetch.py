"""Downloads against a server on this machine: whole, resumed, refused, broken; the publishers themselves are never asked."""
import errno
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fusion_nb.data import fetch as module
from fusion_nb.data.fetch import SOURCES, Source, explain, fetch
from fusion_nb.schema import DataError

BODY = bytes(range(256)) * 4096  # 1 MiB
NAME = "hosp/big.csv.gz"


class Publisher(SimpleHTTPRequestHandler):
    """Serves a folder, with `Range`; counts what it sends, and can hang up or refuse."""
    ranges, cut_after, status, delay = True, None, None, 0
    asked: list = []

    def log_message(self, *_): pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range") if self.ranges else None
        type(self).asked.append((path.name, wanted))
        if self.status or not path.is_file(): return self.send_error(self.status or 404)
        body = path.read_bytes()
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if wanted and start >= len(body): return self.send_error(416)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if wanted: self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.send(path, body[start:])

    def send(self, path, body):
        if self.cut_after is not None and path.name == Path(NAME).name: body = body[:self.cut_after]
        for i in range(0, len(body), 1 << 16):
            self.wfile.write(body[i:i + (1 << 16)])
            time.sleep(self.delay)


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """(handler class, its folder, address) of a publisher of the MIMIC-IV demo in small."""
    monkeypatch.setenv("NO_PROXY", "*")
    home = tmp_path / "publisher"
    (home / "hosp").mkdir(parents=True)
    (home / NAME).write_bytes(BODY)
    (home / "README.txt").write_text("read me")
    write_sums(home)
    monkeypatch.setitem(SOURCES, "toy", Source(title="Toy", folder="toy", home="https://publisher.example", licence="CC0", citation="-", base="unused/",
                                               files=(module._File("SHA256SUMS.txt", lists=module._sha256sums),)))
    handler = type("Handler", (Publisher,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=home))
    Thread(target=server.serve_forever, daemon=True).start()
    yield handler, home, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def write_sums(home: Path, **wrong):
    files = [p for p in home.rglob("*") if p.is_file() and p.name != "SHA256SUMS.txt"]
    sums = {p.relative_to(home).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files} | wrong
    (home / "SHA256SUMS.txt").write_text("".join(f"{digest} {name}\n" for name, digest in sums.items()))


def get(address, data, name="toy"):
    return fetch(name, data, base_url=address, progress=False)


def archive(members: dict) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as z:
        for name, content in members.items(): z.writestr(name, content)
    return memory.getvalue()


# ---- well

def test_whole(publisher, tmp_path):
    folder = get(publisher[2], tmp_path / "data")
    assert (folder / NAME).read_bytes() == BODY and (folder / "README.txt").read_text() == "read me"
    record = json.loads((folder / "checksums.json").read_text())
    assert record[NAME]["sha256"] == f"sha256:{hashlib.sha256(BODY).hexdigest()}" == record[NAME]["published"]
    assert record["SHA256SUMS.txt"]["published"] is None
    assert not [p for p in folder.rglob("*") if "part" in p.name]


def test_what_is_there_is_not_fetched_again(publisher, tmp_path):
    handler, _, address = publisher
    folder = get(address, tmp_path / "data")
    asked = list(handler.asked)
    get(address, tmp_path / "data")
    assert handler.asked == asked
    (folder / "README.txt").unlink()
    get(address, tmp_path / "data")
    assert handler.asked == [*asked, ("README.txt", None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_half_way_and_resumed(publisher, tmp_path, ranges):
    handler, _, address = publisher
    handler.cut_after, handler.ranges = 600_000, ranges
    with pytest.raises(DataError, match="goes on where it stopped"): get(address, tmp_path / "data")
    part = tmp_path / "data" / "toy" / (NAME + ".part")
    have = part.stat().st_size
    assert 0 < have <= 600_000 and not (tmp_path / "data" / "toy" / NAME).exists()
    handler.cut_after = None
    folder = get(address, tmp_path / "data")
    assert (folder / NAME).read_bytes() == BODY and not part.exists()
    assert ("big.csv.gz", f"bytes={have}-" if ranges else None) in handler.asked


def test_killed_and_resumed(publisher, tmp_path):
    handler, home, address = publisher
    (home / NAME).write_bytes(BODY * 8)
    write_sums(home)
    handler.delay = 0.02
    code = ("import sys; from fusion_nb.data.fetch import *; from fusion_nb.data.fetch import _File, _sha256sums\n"
            "SOURCES['toy'] = Source(title='', folder='toy', home='', licence='', citation='', base='x', files=(_File('SHA256SUMS.txt', lists=_sha256sums),))\n"
            "fetch('toy', sys.argv[1], base_url=sys.argv[2], progress=False)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "data"), address])
    part = tmp_path / "data" / "toy" / (NAME + ".part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 500_000) and time.monotonic() < deadline: time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have, handler.delay = part.stat().st_size, 0
    assert 500_000 < have < len(BODY) * 8
    folder = get(address, tmp_path / "data")
    assert (folder / NAME).read_bytes() == BODY * 8
    assert ("big.csv.gz", f"bytes={have}-") in handler.asked


def test_a_whole_part_needs_nothing_more(publisher, tmp_path):
    part = tmp_path / "data" / "toy" / (NAME + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)
    assert (get(publisher[2], tmp_path / "data") / NAME).read_bytes() == BODY


def test_a_file_without_checksum_begins_anew_and_is_held_to_the_record(publisher, tmp_path):
    handler, _, address = publisher
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    (folder / "SHA256SUMS.txt.part").write_text("an older beginning")
    get(address, tmp_path / "data")
    assert handler.asked[0] == ("SHA256SUMS.txt", None)
    (folder / "SHA256SUMS.txt").write_text("")
    with pytest.raises(DataError, match="It was changed"): get(address, tmp_path / "data")


def test_progress_is_shown(publisher, tmp_path, capsys):
    fetch("toy", tmp_path / "data", base_url=publisher[2])
    assert "big.csv.gz" in capsys.readouterr().err


# ---- badly

def test_wrong_checksum(publisher, tmp_path):
    write_sums(publisher[1], **{NAME: "0" * 64})
    with pytest.raises(DataError, match="sha256 0000.*It was not kept"): get(publisher[2], tmp_path / "data")
    left = sorted(p.name for p in (tmp_path / "data").rglob("*") if p.is_file())
    assert not [name for name in left if "big" in name]
    assert NAME not in json.loads((tmp_path / "data/toy/checksums.json").read_text())


def test_a_part_of_another_version_is_thrown_away(publisher, tmp_path):
    part = tmp_path / "data" / "toy" / (NAME + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"another version")
    with pytest.raises(DataError, match="It was not kept"): get(publisher[2], tmp_path / "data")
    assert (get(publisher[2], tmp_path / "data") / NAME).read_bytes() == BODY


def test_a_changed_file_is_neither_used_nor_overwritten(publisher, tmp_path):
    folder = get(publisher[2], tmp_path / "data")
    (folder / NAME).write_bytes(b"edited")
    with pytest.raises(DataError, match="It was changed"): get(publisher[2], tmp_path / "data")
    assert (folder / NAME).read_bytes() == b"edited"


@pytest.mark.parametrize("status, words", [(404, "HTTP 404 Not Found"), (403, "HTTP 403"), (202, "HTTP 202"), (503, "see https://publisher.example")])
def test_an_answer_that_is_no_file(publisher, tmp_path, status, words):
    publisher[0].status = status
    with pytest.raises(DataError, match=words): get(publisher[2], tmp_path / "data")
    assert not list((tmp_path / "data" / "toy").glob("SHA256SUMS*"))


def test_a_file_that_is_listed_but_not_there(publisher, tmp_path):
    (publisher[1] / NAME).unlink()
    with pytest.raises(DataError, match="big.csv.gz. Got HTTP 404"): get(publisher[2], tmp_path / "data")


def test_no_connection(tmp_path, publisher):
    with pytest.raises(DataError, match="Connection refused.*Check the network"): get("http://127.0.0.1:9", tmp_path / "data")
    with pytest.raises(DataError, match="to download http://publisher.invalid/SHA256SUMS.txt"): get("http://publisher.invalid", tmp_path / "data")


def test_disk_full(publisher, tmp_path, monkeypatch):
    real = open

    class Full(io.FileIO):
        def write(self, piece):
            if self.tell() > 300_000: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(piece)

    monkeypatch.setattr(module, "open", lambda path, mode="r": Full(path, mode) if str(path).endswith("big.csv.gz.part") else real(path, mode), raising=False)
    with pytest.raises(DataError, match="the disk is full"): get(publisher[2], tmp_path / "data")
    assert not (tmp_path / "data" / "toy" / NAME).exists()
    monkeypatch.undo()
    monkeypatch.setitem(SOURCES, "toy", Source(title="", folder="toy", home="", licence="", citation="", base="x/",
                                               files=(module._File("SHA256SUMS.txt", lists=module._sha256sums),)))
    assert (get(publisher[2], tmp_path / "data") / NAME).read_bytes() == BODY


def test_a_folder_that_cannot_be(publisher, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataError, match="not a folder"): get(publisher[2], tmp_path / "data")


def test_a_list_that_leaves_the_folder(publisher, tmp_path):
    write_sums(publisher[1], **{"../../escaped.txt": "0" * 64})
    with pytest.raises(DataError, match="stay inside"): get(publisher[2], tmp_path / "data")
    assert not (tmp_path / "escaped.txt").exists()


# ---- archives

@pytest.fixture
def figshare(publisher):
    """A publisher like figshare: put(archive bytes) lists them as BreCaHAD.zip."""
    handler, home, address = publisher

    def put(content: bytes, md5: str | None = None):
        (home / "BreCaHAD.zip").write_bytes(content)
        listed = {"name": "BreCaHAD.zip", "download_url": "BreCaHAD.zip", "computed_md5": hashlib.md5(content).hexdigest() if md5 is None else md5}
        (home / "files").write_text(json.dumps([listed]))
        return address
    return put


def test_archive_is_unpacked_without_its_outer_folder(figshare, tmp_path):
    address = figshare(archive({"BreCaHAD/images/Case_1-01.tif": "x", "BreCaHAD/groundTruth/Case_1-01.json": "{}", "__MACOSX/._x": ""}))
    folder = get(address, tmp_path / "data", "brecahad")
    assert folder == tmp_path / "data" / "brecahad" and (folder / "images/Case_1-01.tif").read_text() == "x"
    assert not (folder / "__MACOSX").exists() and not (folder / "BreCaHAD").exists()
    (folder / "images/Case_1-01.tif").unlink()
    assert (get(address, tmp_path / "data", "brecahad") / "images/Case_1-01.tif").read_text() == "x"


def test_archive_without_outer_folder(figshare, tmp_path):
    folder = get(figshare(archive({"images/a.tif": "x", "readme.txt": "r"})), tmp_path / "data", "brecahad")
    assert (folder / "images/a.tif").exists() and (folder / "readme.txt").exists()


@pytest.mark.parametrize("evil", ["../evil.txt", "BreCaHAD/../../evil.txt", "{tmp_path}/evil.txt"])
def test_archive_that_leaves_the_folder(figshare, tmp_path, evil):
    members = {"BreCaHAD/good.txt": "", evil.format(tmp_path=tmp_path): "evil"}
    with pytest.raises(DataError, match="stay inside"): get(figshare(archive(members)), tmp_path / "data", "brecahad")
    assert not list(tmp_path.rglob("evil.txt")) and not list(tmp_path.rglob("good.txt"))


def test_archive_that_leaves_the_folder_by_way_of_its_outer_one(figshare, tmp_path):
    with pytest.raises(DataError, match="stay inside"): get(figshare(archive({"BreCaHAD/b": "", "BreCaHAD/../evil.txt": ""})), tmp_path / "data", "brecahad")
    assert not list(tmp_path.rglob("evil.txt")) and not (tmp_path / "data" / "brecahad" / "b").exists()


def test_archive_through_a_link_that_leaves_the_folder(figshare, tmp_path):
    (tmp_path / "data" / "brecahad").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "data" / "brecahad" / "images").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="stay inside"): get(figshare(archive({"images/a": "", "b": ""})), tmp_path / "data", "brecahad")
    assert not list((tmp_path / "outside").iterdir())


def test_error_page_in_place_of_an_archive(figshare, tmp_path):
    with pytest.raises(DataError, match="a zip archive in BreCaHAD.zip. Got something else"):
        get(figshare(b"<html>Are you a robot?</html>", md5=""), tmp_path / "data", "brecahad")
    assert not list(tmp_path.joinpath("data").rglob("*.zip*"))


@pytest.mark.parametrize("page", ["<html>Are you a robot?</html>", '{"message": "busy"}', '[{"id": 1}]', "[1]"])
def test_error_page_in_place_of_a_list_of_files(figshare, publisher, tmp_path, page):
    address = figshare(archive({"images/a.tif": "x"}))
    files = (publisher[1] / "files").read_text()
    (publisher[1] / "files").write_text(page)
    with pytest.raises(DataError, match="a list of files in figshare_files.json.*see https://figshare.com"): get(address, tmp_path / "data", "brecahad")
    assert [p.name for p in (tmp_path / "data").rglob("*") if p.is_file()] == [".lock"]
    (publisher[1] / "files").write_text(files)
    assert (get(address, tmp_path / "data", "brecahad") / "a.tif").exists()


def test_damaged_archive(figshare, tmp_path):
    content = archive({"images/a.tif": "pixels " * 99, "b": ""})
    with pytest.raises(DataError, match="images/a.tif: Bad CRC"): get(figshare(content.replace(b"pixels", b"pixelz", 1)), tmp_path / "data", "brecahad")
    assert not list(tmp_path.rglob("a.tif"))


def test_breast_lesions_come_as_their_reader_wants_them(publisher, tmp_path, monkeypatch):
    """Names and folders as TCIA has them; only the checksums are those of the stand-ins."""
    from dataclasses import replace

    from fusion_nb.data.breast_lesions import BREAST_LESIONS

    handler, home, address = publisher
    source = SOURCES["breast-lesions-usg"]
    workbook, pictures = (f.name for f in source.files)
    (home / workbook).write_bytes(b"workbook")
    (home / pictures).write_bytes(archive({"BrEaST-Lesions_USG-images_and_masks/case001.png": "x"}))
    stand_ins = tuple(replace(f, checksum=f"sha256:{hashlib.sha256((home / f.name).read_bytes()).hexdigest()}") for f in source.files)
    with pytest.raises(DataError, match="sha256 89a8874496a6f1f9"): get(address, tmp_path / "data", "breast-lesions-usg")
    monkeypatch.setitem(SOURCES, "breast-lesions-usg", replace(source, files=stand_ins))
    folder = get(address, tmp_path / "data", "breast-lesions-usg")
    assert (folder / BREAST_LESIONS.image_folder / "case001.png").is_file() and len(list(folder.glob("*clinical-data*.xlsx"))) == 1


# ---- the registry

def test_every_source_says_its_terms():
    for name, source in SOURCES.items():
        assert source.title and source.licence and source.citation and source.home.startswith("https://")
        assert bool(source.base) == bool(source.files) != bool(source.access)
        assert source.home in explain(name)
        assert all(re.fullmatch(r"(sha256:[0-9a-f]{64})?", f.checksum) for f in source.files)


@pytest.mark.parametrize("name", ["mimic-iv", "tcga-controlled"])
def test_data_behind_an_account_are_never_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.setattr(module.requests, "get", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(DataError, match="needs an account.*Open an"): fetch(name, tmp_path)
    assert not list(tmp_path.iterdir()) and "account" in explain(name)


def test_unknown_name(tmp_path):
    for call in (explain, partial(fetch, folder=tmp_path)):
        with pytest.raises(DataError, match="Did you mean 'mimic-iv-demo'"): call("mimic-iv-dmo")


def test_the_demo_at_hand_is_the_one_that_the_checksums_name(data_dir):
    demo = data_dir / SOURCES["mimic-iv-demo"].folder
    sums = SOURCES["mimic-iv-demo"].files[0]
    module._check(demo / sums.name, sums.checksum, "")
    here = [f for f in sums.lists((demo / sums.name).read_text()) if (demo / f.name).exists()]
    assert len(here) >= 9
    for f in here: module._check(demo / f.name, f.checksum, "")
