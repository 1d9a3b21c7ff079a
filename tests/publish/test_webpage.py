"""The page that classifies pictures in a browser, taken apart; `test_webpage_in_browser.py` runs it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured_data
from thumbnet.classifiers.load import load_run
from thumbnet.classifiers.onnx_classifier import OnnxClassifier
from thumbnet.cli import main
from thumbnet.errors import RunError
from thumbnet.publish import export as exporting
from thumbnet.publish import webpage
from thumbnet.publish.export import check_export, has_half_weights
from thumbnet.publish.web_runtime import WebRuntime
from thumbnet.publish.webpage import (
    check_web,
    described_in,
    from_planes,
    halve_weights,
    model_in,
    to_planes,
    web_page,
)
from thumbnet.runs.folder import Run
from thumbnet.runs.weights_info import WeightsInfo

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")

# Not the real runtime, which is 14 MB of WebAssembly: these tests look at what is around it.
RUNTIME = WebRuntime(
    'var a=1,b=2,c="</script>é";export{a as InferenceSession,b as Tensor,c as env};\n//# map', b"wasm"
)


@pytest.fixture(scope="module")
def info(onnx_file: Path) -> WeightsInfo:
    return OnnxClassifier(onnx_file).info


def page_of(onnx_file: Path, info: WeightsInfo) -> str:
    return web_page(onnx.load(onnx_file), info, "ab" * 32, RUNTIME)


def test_the_page_holds_the_network_and_runs_nothing_but_its_own_script(
    onnx_file: Path, info: WeightsInfo
) -> None:
    page = page_of(onnx_file, info)
    assert page.isascii()  # so that no server can claim a wrong encoding for it
    assert onnx.load_from_string(model_in(page)) == onnx.load(onnx_file)
    (script,) = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)">', page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}' 'wasm-unsafe-eval';")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    assert "const ort = (() => {" in script
    assert "return { InferenceSession: a, Tensor: b, env: c };" in script
    # Nothing is left of the service, and nothing is loaded.
    assert not re.search(r"fetch\(|X-API-Key|openapi|/hardest|<service>", page)
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []


def test_the_page_holds_the_logits_of_a_picture_to_compare_with(onnx_file: Path, info: WeightsInfo) -> None:
    height, width = info.preprocessing.size
    values = [37 * i % 256 for i in range(height * width * 3)]  # as classify.js makes them
    picture = np.array(values, dtype=np.uint8).reshape(1, height, width, 3)
    (expected,) = OnnxClassifier(onnx_file).logits(picture, tta="none")
    found = described_in(page_of(onnx_file, info))["known_logits"]
    assert found == pytest.approx(list(map(float, expected)), abs=1e-4)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_bytes_are_put_into_planes_and_back(count: int) -> None:
    content = bytes(range(count))
    assert from_planes(to_planes(content)) == content
    if count == 10:
        assert list(to_planes(content)) == [0, 4, 8, 1, 5, 9, 2, 6, 3, 7]


@pytest.mark.parametrize(("kind", "most"), [("float32", 0.93), ("float16", 0.95)])
def test_planes_make_weights_smaller(kind: str, most: float) -> None:
    weights = np.random.default_rng(0).normal(0, 0.05, 100_000).astype(kind).tobytes()
    assert len(gzip.compress(to_planes(weights))) < most * len(gzip.compress(weights))


def test_names_in_the_page_cannot_become_markup(onnx_file: Path, info: WeightsInfo) -> None:
    names = ("</script><script>alert(1)</script>", "red&lt;`${1}", "a<!--é")
    page = page_of(onnx_file, replace(info, class_names=names, run="<b>"))
    assert page.count("<script") == page_of(onnx_file, info).count("<script")
    assert [part for part in ("<!--", "<b>") if part in page] == []
    found = described_in(page)
    assert found["classes"] == list(names)
    assert found["run"] == "<b>"


def test_weights_are_stored_in_16_bits_only_if_the_page_would_be_too_large(
    onnx_file: Path, info: WeightsInfo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_run: Run
) -> None:
    full = page_of(onnx_file, info)
    assert described_in(full)["weights"] == "32 bits"
    monkeypatch.setattr(webpage, "LIMIT", len(full) - 1)
    half = page_of(onnx_file, info)
    assert described_in(half)["weights"] == "stored in 16 bits"
    assert len(half) < 0.9 * len(full)
    for page, is_half in ((full, False), (half, True)):
        out = tmp_path / "page.html"
        out.write_text(page)
        assert has_half_weights(out) == is_half
        check = check_export(tiny_run.path, out, coloured_data(), "test")
        assert check.same_class == 1
        assert (1e-6 < check.largest_difference < 0.02) == is_half


def test_a_network_that_is_too_large_is_refused_with_the_sizes_and_leaves_no_file(
    tiny_run: Run,
    onnx_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(exporting, "_onnx_model", lambda *_, **__: onnx.load(onnx_file))
    monkeypatch.setattr(webpage, "LIMIT", 100_000)
    monkeypatch.setattr(exporting, "load_runtime", lambda: RUNTIME)
    monkeypatch.setattr("thumbnet.publish.web_runtime.find_runtime", lambda: tmp_path)
    out = tmp_path / "page.html"
    assert main(["export", str(tiny_run.path), "--format", "web", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert re.search(r"the page would have 0\.\d MB, and 0\.\d MB with the weights in 16 bits", error)
    assert "This network (resnet20) has 0.1 million weights" in error
    assert list(tmp_path.iterdir()) == []


def test_weights_that_16_bits_cannot_hold_are_refused(onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    large = max(model.graph.initializer, key=lambda one: int(np.prod(one.dims)))
    values = onnx.numpy_helper.to_array(large) + np.float32(1e6)
    large.CopyFrom(onnx.numpy_helper.from_array(values, large.name))
    with pytest.raises(RunError, match="has weights too large for 16 bits"):
        halve_weights(model)


def test_a_network_for_deep_pictures_is_refused(tiny_run: Run) -> None:
    info = load_run(tiny_run.path, "cpu").info
    check_web(info)
    with pytest.raises(RunError, match="browsers decode pictures to 8 bits"):
        check_web(replace(info, preprocessing=replace(info.preprocessing, range=(0.0, 4095.0))))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<p>hello</p>", "did not write this page"),
        ('<script id="network">AAAA</script>', "the network in the page is damaged"),
        ('<script id="network">A*</script>', "the network in the page is damaged"),
        ('<script id="network">AAAA', "or it is damaged"),
    ],
)
def test_another_or_damaged_page_is_an_error(page: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        model_in(page)


def test_a_damaged_description_is_an_error(onnx_file: Path, info: WeightsInfo) -> None:
    page = page_of(onnx_file, info)
    for wrong in ('id="described">[1, ', 'id="described">[]</script>'):
        with pytest.raises(RunError, match="the page's description is damaged"):
            described_in(page.replace('id="described">', wrong))
