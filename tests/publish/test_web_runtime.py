"""Where ONNX Runtime Web comes from: the package, the cache, or npm's registry."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from helpers import serve
from thumbnet.errors import DataError, RunError
from thumbnet.publish import web_runtime
from thumbnet.publish.web_runtime import (
    SCRIPT,
    WASM,
    WebRuntime,
    fetch_runtime,
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


def test_the_runtime_is_fetched_once_verified_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, asked = packed(FILES), []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        request.send_response(200)
        request.end_headers()
        request.wfile.write(package)

    digest = base64.b64encode(hashlib.sha512(package).digest()).decode()
    monkeypatch.setattr(web_runtime, "packaged_folder", lambda: tmp_path / "none")
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    with serve(answer) as address:
        monkeypatch.setenv("npm_config_registry", f"{address}/")
        with pytest.raises(DataError, match=r"has SHA-512 [0-9a-f]{128}, expected .*\n.*copy the folder"):
            load_runtime()
        monkeypatch.setattr(web_runtime, "INTEGRITY", f"sha512-{digest}")
        for _ in range(2):
            found = load_runtime()
    assert (found.script, gzip.decompress(found.wasm)) == ("export{a as env}", b"\0asm" * 1000)
    assert asked == [f"/onnxruntime-web/-/onnxruntime-web-{web_runtime.VERSION}.tgz"] * 2
    folder = tmp_path / "cache" / "onnxruntime-web"
    assert {path.name for path in folder.iterdir()} == {SCRIPT, WASM}


def test_the_runtime_in_the_package_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tgz").write_bytes(packed(FILES))
    unpack(tmp_path / "a.tgz", tmp_path)
    assert is_in(tmp_path)
    monkeypatch.setattr(web_runtime, "packaged_folder", lambda: tmp_path)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    assert load_runtime() == WebRuntime("export{a as env}", (tmp_path / WASM).read_bytes())
    (tmp_path / "ort-0.1.mjs").write_text("an older version")
    install(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tgz", SCRIPT, WASM}
    with pytest.raises(DataError, match="copy the folder"):
        fetch_runtime(tmp_path / "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(FILES)[:60], "cannot unpack"),
        (b"no archive", "cannot unpack"),
        (packed({"package/dist/ort.all.js": b""}), "is not ONNX Runtime Web"),
    ],
)
def test_a_damaged_package_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(RunError, match=message):
        unpack(tmp_path / "a.tgz", tmp_path)
    assert not is_in(tmp_path)
