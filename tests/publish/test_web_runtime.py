"""Where ONNX Runtime Web comes from: the package, the cache, or npm."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from thumbnet.errors import RunError
from thumbnet.publish import web_runtime
from thumbnet.publish.web_runtime import (
    SCRIPT,
    WASM,
    WebRuntime,
    find_runtime,
    install,
    is_in,
    load_runtime,
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


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for npm, which notes its arguments in this file and copies tmp_path/package.tgz."""
    calls = tmp_path / "calls"
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {calls}
test -f {tmp_path}/package.tgz || {{ echo 'npm error network' >&2; exit 1; }}
cp {tmp_path}/package.tgz onnxruntime-web-{web_runtime.VERSION}.tgz
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(web_runtime, "packaged_folder", lambda: tmp_path / "none")
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    return calls


def test_npm_fetches_the_runtime_once_and_it_is_verified_and_kept(
    npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = packed(FILES)
    (tmp_path / "package.tgz").write_bytes(package)
    folder = tmp_path / "cache" / "onnxruntime-web"
    with pytest.raises(RunError, match=r"has the digest sha512-\S+, expected .*\n.*copy the folder"):
        load_runtime()
    assert find_runtime() is None
    digest = base64.b64encode(hashlib.sha512(package).digest()).decode()
    monkeypatch.setattr(web_runtime, "INTEGRITY", f"sha512-{digest}")
    for _ in range(2):
        found = load_runtime()
    assert (found.script, gzip.decompress(found.wasm)) == ("export{a as env}", b"\0asm" * 1000)
    pack = f"pack onnxruntime-web@{web_runtime.VERSION} --ignore-scripts --silent"
    assert npm.read_text().splitlines() == [pack, pack]
    assert {path.name for path in folder.iterdir()} == {SCRIPT, WASM}
    assert find_runtime() == folder


def test_without_npm_or_a_network_the_error_says_what_to_do(
    npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"npm cannot fetch .*: npm error network\.\n.*Install npm, or copy"):
        load_runtime()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match=r"there is no npm on this computer\.\n.*copy the folder"):
        load_runtime()


def test_the_runtime_in_the_package_needs_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tgz").write_bytes(packed(FILES))
    unpack(tmp_path / "a.tgz", tmp_path)
    assert is_in(tmp_path)
    monkeypatch.setattr(web_runtime, "packaged_folder", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_runtime() == WebRuntime("export{a as env}", (tmp_path / WASM).read_bytes())
    (tmp_path / "ort-0.1.mjs").write_text("an older version")
    install(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tgz", SCRIPT, WASM}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(FILES)[:60], "cannot unpack"),
        (b"no archive", "cannot unpack"),
        (packed({"package/dist/ort.all.js": b""}), "is not ONNX Runtime Web"),
    ],
    ids=["cut short", "no archive", "another package"],  # packed() holds the time, so it is no name
)
def test_a_damaged_package_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(RunError, match=message):
        unpack(tmp_path / "a.tgz", tmp_path)
    assert not is_in(tmp_path)
