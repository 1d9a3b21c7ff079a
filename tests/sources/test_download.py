from __future__ import annotations

import hashlib
import os
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from helpers import serve
from sources.test_cifar import PER_FILE, write_binary10
from thumbnet.errors import DataError
from thumbnet.sources import cifar, download
from thumbnet.sources.load import load_data

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves ``content``. ``cut`` ends the first response early; ``ranges`` allows requests for a part."""

    def __init__(self, content: bytes = CONTENT, cut: int | None = None, ranges: bool = True) -> None:
        self.content, self.cut, self.ranges = content, cut, ranges
        self.requests: list[str | None] = []

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.requests.append(wanted)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if first >= len(self.content):
            request.send_error(416)
            return
        body = self.content[first:]
        request.send_response(206 if first else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        cut, self.cut = self.cut, None
        request.wfile.write(body[:cut])


def test_a_file_is_downloaded_with_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with serve(Server()) as address:
        path = download.download(
            f"{address}/f", tmp_path / "a" / "f", SHA256, lambda done, total: seen.append((done, total))
        )
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in path.parent.iterdir()] == ["f"]


def test_an_interrupted_download_is_continued(tmp_path: Path) -> None:
    server = Server(cut=300_000)
    with serve(server) as address:
        with pytest.raises(DataError, match="300,000 bytes are kept"):
            download.download(f"{address}/f", tmp_path / "f", SHA256)
        assert not (tmp_path / "f").exists()
        download.download(f"{address}/f", tmp_path / "f", SHA256)
    assert server.requests == [None, "bytes=300000-"]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_file_again(tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    with serve(Server(ranges=False)) as address:
        download.download(f"{address}/f", tmp_path / "f", SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_complete_part_is_used(tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT)
    with serve(Server()) as address:
        download.download(f"{address}/f", tmp_path / "f", SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_wrong_checksum_is_an_error_and_nothing_is_kept(tmp_path: Path) -> None:
    with serve(Server(content=CONTENT[:-1] + b"!")) as address, pytest.raises(DataError, match="SHA-256"):
        download.download(f"{address}/f", tmp_path / "f", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_or_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot download"):
        download.download("http://127.0.0.1:9/f", tmp_path / "f", SHA256)

    def missing(request: BaseHTTPRequestHandler) -> None:
        request.send_error(404)

    with serve(missing) as address, pytest.raises(DataError, match="Not Found"):
        download.download(f"{address}/f", tmp_path / "f", SHA256)


def test_a_download_that_stalls_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    release = threading.Event()

    def stall(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"x" * 10)
        request.wfile.flush()
        release.wait(10)

    with serve(stall) as address:
        with pytest.raises(DataError, match="timed out"):
            download.download(f"{address}/f", tmp_path / "f", SHA256)
        release.set()


def test_cifar10_is_downloaded_once_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_binary10(tmp_path)
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as tar:
        tar.add(folder, folder.name)
    content = (tmp_path / "made.tar.gz").read_bytes()
    server = Server(content)
    with serve(server) as address:
        made = replace(
            cifar.ARCHIVES["cifar10"],
            url=f"{address}/cifar-10-binary.tar.gz",
            sha256=hashlib.sha256(content).hexdigest(),
        )
        monkeypatch.setitem(cifar.ARCHIVES, "cifar10", made)
        first = load_data("cifar10", data_dir=tmp_path / "cache")
        second = load_data("cifar10", data_dir=tmp_path / "cache")
    assert len(server.requests) == 1
    assert len(first.splits["train"]) == 5 * PER_FILE
    assert first.fingerprint() == second.fingerprint()


def test_the_error_offers_a_mirror_if_the_official_host_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = replace(cifar.ARCHIVES["cifar100"], url="http://127.0.0.1:9/cifar-100-binary.tar.gz")
    monkeypatch.setitem(cifar.ARCHIVES, "cifar100", away)
    with pytest.raises(DataError, match="hf:uoft-cs/cifar100"):
        load_data("cifar100", data_dir=tmp_path)


def test_a_folder_that_cannot_be_made_or_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused = pytest.raises(DataError, match="cannot download .*: .*(File exists|Not a directory)")
    with serve(Server()) as address, refused:
        download.download(f"{address}/f", tmp_path / "file" / "f", SHA256)


def test_two_downloads_of_one_file_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    begun, both = threading.Event(), threading.Barrier(2)
    ranges: list[str | None] = []

    def slow(request: BaseHTTPRequestHandler) -> None:
        ranges.append(request.headers.get("Range"))
        request.send_response(200)
        request.send_header("Content-Length", str(len(CONTENT)))
        request.end_headers()
        request.wfile.write(CONTENT[:600_000])
        request.wfile.flush()
        both.wait(10)
        request.wfile.write(CONTENT[600_000:])

    with serve(slow) as address, ThreadPoolExecutor(2) as pool:
        call = partial(download.download, f"{address}/f", tmp_path / "f", SHA256)
        first = pool.submit(call, lambda done, total: begun.set())
        assert begun.wait(10)
        second = pool.submit(call)
        assert first.result() == second.result() == tmp_path / "f"
    assert ranges == [None, None]
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_the_part_of_a_killed_process_is_continued_and_that_of_a_running_one_is_not(tmp_path: Path) -> None:
    for name, age in (("running", 0), ("killed", 2 * download.ABANDONED)):
        part = tmp_path / f"f.part-{name}"
        part.write_bytes(CONTENT[:1000])
        os.utime(part, (time.time() - age,) * 2)
    server = Server()
    with serve(server) as address:
        download.download(f"{address}/f", tmp_path / "f", SHA256)
    assert server.requests == ["bytes=1000-"]
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "f.part-running"]
