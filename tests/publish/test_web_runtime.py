"""Where ONNX Runtime Web comes from: the package, the cache, or the npm registry."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import re
import tarfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from helpers import serve
from thumbnet.errors import RunError
from thumbnet.publish import web_runtime
from thumbnet.publish.web_runtime import (
    PACKAGE,
    SCRIPT,
    VARIABLE,
    WASM,
    WebRuntime,
    fetch_runtime,
    find_runtime,
    install,
    is_in,
    load_runtime,
    registry,
    unpack,
)

FILES = {
    "package/dist/ort.all.js": b"not needed",
    "package/dist/ort.wasm.bundle.min.mjs": b"export{a as env}",
    "package/dist/ort-wasm-simd-threaded.wasm": b"\0asm" * 1000,
}


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Registry:
    """A stand-in for the npm registry, which has ``content`` as every package, and notes the paths asked for."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.asked: list[str] = []

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        if not self.content:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(self.content)))
        request.end_headers()
        request.wfile.write(self.content)


def integrity_of(content: bytes) -> str:
    return f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in the cache, empty; no npm, no proxies, and nothing in the package."""
    for name in list(os.environ):
        if name.upper() in (VARIABLE, "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(web_runtime, "packaged_folder", lambda: tmp_path / "none")
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnxruntime-web"


def install_npm(tmp_path: Path, script: str) -> None:
    """A stand-in for npm."""
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_the_runtime_is_downloaded_once_verified_and_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = packed(FILES)
    monkeypatch.setattr(web_runtime, "INTEGRITY", integrity_of(package))
    npm = Registry(package)
    with serve(npm) as address:
        monkeypatch.setenv(VARIABLE, f"{address}/npm/")
        for _ in range(2):
            found = load_runtime()
    assert (found.script, gzip.decompress(found.wasm)) == ("export{a as env}", b"\0asm" * 1000)
    assert npm.asked == [f"/npm/onnxruntime-web/-/{PACKAGE}"]
    assert {path.name for path in folder.iterdir()} == {SCRIPT, WASM}
    assert find_runtime() == folder


def test_the_progress_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = packed(FILES)
    monkeypatch.setattr(web_runtime, "INTEGRITY", integrity_of(package))
    seen: list[tuple[int, int | None]] = []
    with serve(Registry(package)) as address:
        monkeypatch.setenv(VARIABLE, address)
        fetch_runtime(folder, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(package), len(package))


def test_a_package_with_another_digest_is_refused_and_nothing_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(Registry(packed(FILES))) as address:
        monkeypatch.setenv(VARIABLE, address)
        with pytest.raises(RunError, match=r"has SHA-512 \w+, expected ab4cbe.*It was deleted"):
            load_runtime()
    assert list(folder.iterdir()) == []


def test_without_a_network_or_the_package_the_error_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice = rf"\n.*set {VARIABLE} to it\. Or get {PACKAGE} .*`npm pack .*into the folder .*onnxruntime-web$"
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"cannot download http://127\.0\.0\.1:9/.*refused.*" + advice):
        load_runtime()
    with serve(Registry()) as address:
        monkeypatch.setenv(VARIABLE, address)
        with pytest.raises(RunError, match="Not Found.*" + advice):
            load_runtime()


@pytest.mark.parametrize(
    "address", [f"http://127.0.0.1:{10**20}", "http://a..b", f"http://{'a' * 70}.example"]
)
def test_a_registry_that_cannot_be_one_is_an_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, address)
    with pytest.raises(RunError, match=f"cannot download {re.escape(address)}/onnxruntime-web/"):
        load_runtime()


def test_a_full_disk_is_an_error_and_the_package_need_not_be_downloaded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = packed(FILES)
    monkeypatch.setattr(web_runtime, "INTEGRITY", integrity_of(package))

    def full(path: Path, content: bytes) -> None:
        raise RunError(f"cannot write {path}: No space left on device")

    npm = Registry(package)
    with serve(npm) as address, monkeypatch.context() as patch:
        monkeypatch.setenv(VARIABLE, address)
        patch.setattr(web_runtime, "write_file", full)
        with pytest.raises(RunError, match="No space left on device"):
            load_runtime()
    assert find_runtime() is None
    assert load_runtime().script == "export{a as env}"
    assert len(npm.asked) == 1


def test_a_package_that_the_user_fetched_is_verified_and_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True)
    (folder / PACKAGE).write_bytes(packed(FILES))
    with pytest.raises(RunError, match=r"has SHA-512 \w+, expected ab4cbe.*It was deleted"):
        load_runtime()
    assert list(folder.iterdir()) == []
    package = packed(FILES)
    monkeypatch.setattr(web_runtime, "INTEGRITY", integrity_of(package))
    (folder / PACKAGE).write_bytes(package)
    assert load_runtime().script == "export{a as env}"
    assert {path.name for path in folder.iterdir()} == {SCRIPT, WASM}


def test_another_process_may_have_fetched_it_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(package: Path, _: object) -> None:
        for name in (SCRIPT, WASM):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"by the other one, which has removed the package")

    monkeypatch.setattr(web_runtime, "_download", taken)
    fetch_runtime(folder)
    assert is_in(folder)


def test_the_registry_is_that_of_the_variable_or_of_npm_or_the_public_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry() == "https://registry.npmjs.org"
    install_npm(tmp_path, 'test "$*" = "config get registry" && echo https://npm.example/all/')
    assert registry() == "https://npm.example/all"
    for name in (VARIABLE, VARIABLE.lower()):
        with monkeypatch.context() as patch:
            patch.setenv(name, "http://127.0.0.1:4873/")
            assert registry() == "http://127.0.0.1:4873"
    install_npm(tmp_path, "echo https://npm.example; exit 1")
    assert registry() == "https://registry.npmjs.org"
    install_npm(tmp_path, "echo undefined")
    with pytest.raises(RunError, match="what `npm config get registry` prints is not an address"):
        registry()


@pytest.mark.parametrize(
    "address",
    ["file:///etc/passwd", "npm.example", "https://me:secret@npm.example", "https://npm.example/?a=b"],
)
def test_an_address_that_is_not_of_the_web_or_has_a_password_is_refused_and_not_shown(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, address)
    with pytest.raises(RunError, match=f"environment variable {VARIABLE} is not an address") as caught:
        load_runtime()
    assert address not in str(caught.value)


def test_the_runtime_in_the_package_needs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tgz").write_bytes(packed(FILES))
    unpack(tmp_path / "a.tgz", tmp_path)
    assert is_in(tmp_path)
    monkeypatch.setattr(web_runtime, "packaged_folder", lambda: tmp_path)
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9")
    assert load_runtime() == WebRuntime("export{a as env}", (tmp_path / WASM).read_bytes())
    (tmp_path / "ort-0.1.mjs").write_text("an older version")
    install(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tgz", SCRIPT, WASM}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(FILES)[:60], "cannot unpack"),
        (b"no archive", "cannot unpack"),
        (packed({"package/dist/ort.all.js": b""}), "does not contain ONNX Runtime Web"),
    ],
    ids=["cut short", "no archive", "another package"],  # packed() holds the time, so it is no name
)
def test_a_damaged_package_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(RunError, match=message):
        unpack(tmp_path / "a.tgz", tmp_path)
    assert not is_in(tmp_path)
