"""Classifying with an exported model and onnxruntime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured, of_many_sizes
from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.load import load_classifier, load_run
from thumbnet.classifiers.onnx_classifier import EXACT_PRODUCTS, OnnxClassifier
from thumbnet.errors import DataError, MissingExtraError, RunError, UnreadableImagesError
from thumbnet.runs.folder import Run

WITHOUT_TORCH = (
    "import sys; sys.modules.update(torch=None, safetensors=None, psutil=None, filelock=None); "
    "from thumbnet.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror-shift", "adaptive"])
def test_onnx_and_torch_agree_with_every_augmentation(tiny_run: Run, onnx_file: Path, tta: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    size = load_run(tiny_run.path).info.preprocessing.size
    pixels = np.tile(pixels, (1, size[0] // 16, size[1] // 16, 1))
    ours, theirs = (one.logits(pixels, tta=tta) for one in _both(tiny_run, onnx_file))
    np.testing.assert_allclose(ours, theirs, atol=0.05)  # the run may compute in bf16
    alone = OnnxClassifier(onnx_file).logits(pixels[:1], tta=tta)
    np.testing.assert_allclose(alone, theirs[:1], atol=1e-4)


def test_onnxruntime_reports_nothing_and_leaves_no_identifier(onnx_file: Path, tmp_path: Path) -> None:
    code = f"import thumbnet; thumbnet.load_classifier({str(onnx_file)!r})"
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    for name in ("CI", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        environment.pop(name, None)  # CI switches the telemetry off, too
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def _both(run: Run, onnx_file: Path) -> tuple[Classifier, Classifier]:
    return load_classifier(run.path), load_classifier(onnx_file)


def test_unreadable_pictures_are_skipped_or_listed(onnx_file: Path, tmp_path: Path) -> None:
    from PIL import Image

    from thumbnet.sources.load import load_data

    names = OnnxClassifier(onnx_file).class_names
    for name in names:
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 30)).save(tmp_path / split / name / "a.png")
    (tmp_path / "test" / names[0] / "b.png").write_bytes(b"not a picture")
    data = load_data(tmp_path)
    with pytest.raises(UnreadableImagesError, match=r"b\.png"):
        OnnxClassifier(onnx_file).evaluate(data, "test")
    found = OnnxClassifier(onnx_file).classify_split(
        data.splits["test"], data.class_names, on_bad_image="skip", batch_size=2
    )
    assert len(found.split) == len(found.logits) == len(found.labels) == len(names)
    with pytest.raises(DataError, match="no split 'val'"):
        OnnxClassifier(onnx_file).evaluate(data, "val")


def test_an_exported_model_predicts_and_evaluates_without_torch(onnx_file: Path, tmp_path: Path) -> None:
    """After `pip install 'thumbnet[onnx]'`, both work. A training names the extra that it needs."""
    from PIL import Image

    names = OnnxClassifier(onnx_file).class_names
    for name in names:
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), "red").save(tmp_path / "train" / name / "a.png")
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), "red").save(tmp_path / "test" / name / "a.png")
    picture = str(tmp_path / "test" / names[0] / "a.png")

    def thumbnet(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    done = thumbnet("predict", str(onnx_file), picture, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == picture
    done = thumbnet("evaluate", str(onnx_file), str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pictures"] == len(names)
    done = thumbnet("train", "digits")
    assert done.returncode == 2
    assert done.stderr.startswith("thumbnet: this command needs the extra 'train': ")
    assert "pip install" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_is_not_an_exported_model_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    import onnx

    with pytest.raises(RunError, match="there is no file"):
        OnnxClassifier(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    content = onnx_file.read_bytes()
    for damaged in (b"", b"rubbish", content[: len(content) // 2]):
        broken.write_bytes(damaged)
        with pytest.raises(RunError):
            OnnxClassifier(broken)
    model = onnx.load(onnx_file)
    text = model.metadata_props[0].value
    for other, message in [
        (None, "no description"),
        ("{}", "cannot read the description"),
        (text.replace("[", "[[[", 1), "not"),
    ]:
        del model.metadata_props[:]
        if other is not None:
            onnx.helper.set_model_props(model, {"thumbnet": other})
        onnx.save(model, broken)
        with pytest.raises(RunError, match=message):
            OnnxClassifier(broken)


def test_a_model_for_any_size_agrees_with_one_for_a_fixed_size(
    onnx_file: Path, any_size_file: Path, tmp_path: Path
) -> None:
    fixed, any_size = OnnxClassifier(onnx_file), OnnxClassifier(any_size_file)
    assert any_size.any_size
    assert not fixed.any_size
    pictures = [coloured(i % 3, i, side=13 + 5 * i) for i in range(6)]
    for tta in ("none", "mirror", "mirror-shift", "adaptive"):
        for one, other in zip(
            fixed.predict(pictures, tta=tta), any_size.predict(pictures, tta=tta), strict=True
        ):
            assert one.labels == other.labels
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    data = of_many_sizes(tmp_path)
    both = [
        one.classify_split(data.splits["test"], data.class_names, tta="mirror").logits
        for one in (fixed, any_size)
    ]
    assert np.abs(both[0] - both[1]).max() < 1e-4


def test_without_onnxruntime_the_extra_is_named(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="onnx"):
        OnnxClassifier(onnx_file)


def test_a_graph_that_does_not_match_its_description_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(onnx_file)
    values = json.loads(model.metadata_props[0].value)
    values["class_names"] = ["red", "green"]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"thumbnet": json.dumps(values)})
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(RunError, match="does not match its description"):
        OnnxClassifier(tmp_path / "two.onnx")


def test_one_thread_gives_the_same_logits(onnx_file: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    one, all_cores = OnnxClassifier(onnx_file, threads=1), OnnxClassifier(onnx_file)
    np.testing.assert_allclose(one.logits(pixels), all_cores.logits(pixels), atol=1e-5)


def test_no_more_threads_are_started_than_this_process_may_use_cores(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thumbnet.classifiers.onnx_classifier.library_threads", lambda: 2)
    assert OnnxClassifier(onnx_file).threads == 2
    assert OnnxClassifier(onnx_file, threads=5).threads == 5


@pytest.mark.parametrize(
    ("flags", "asked"),
    [("", True), ("avx2 fma", True), ("avx2 avx512_vnni", False), ("avx2 avx_vnni", False)],
)
def test_exact_sums_are_asked_for_unless_the_processor_has_vnni(
    flags: str, asked: bool, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thumbnet.classifiers.onnx_classifier.instructions", lambda: set(flags.split()))
    options = OnnxClassifier(onnx_file)._session.get_session_options()
    key, value = EXACT_PRODUCTS
    if asked:
        assert options.get_session_config_entry(key) == value
    else:
        with pytest.raises(RuntimeError, match=key):
            options.get_session_config_entry(key)


def test_the_option_makes_sums_of_8_bit_products_exact() -> None:
    """A processor with VNNI passes without it, too; any other x86 processor clips these sums."""
    pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    constants = [
        numpy_helper.from_array(np.full((64, 16), 127, dtype=np.int8), "weights"),
        numpy_helper.from_array(np.array(0, dtype=np.uint8), "zero of given"),
        numpy_helper.from_array(np.array(0, dtype=np.int8), "zero of weights"),
    ]
    given = helper.make_tensor_value_info("given", TensorProto.UINT8, [1, 64])
    sums = helper.make_tensor_value_info("sums", TensorProto.INT32, [1, 16])
    node = helper.make_node("MatMulInteger", ["given", *(one.name for one in constants)], ["sums"])
    graph = helper.make_graph([node], "sums", [given], [sums], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*EXACT_PRODUCTS)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"given": np.full((1, 64), 255, dtype=np.uint8)})
    assert found.tolist() == [[64 * 255 * 127] * 16]


def test_pixels_that_are_not_preprocessed_are_refused(tiny_run: Run, onnx_file: Path) -> None:
    pixels = np.stack([coloured(i % 3, i) for i in range(4)])
    wrong = [pixels / 255, pixels.astype(np.int64), pixels[:, :8], pixels[..., 0], pixels[0]]
    for classifier in _both(tiny_run, onnx_file):
        for ask in (classifier.logits, classifier.predict_pixels):
            for given in wrong:
                with pytest.raises(DataError, match=r"uint8 \[B, 16, 16, 3\], got .*: predict takes"):
                    ask(given)
        turned = pixels[:, :, ::-1]  # its strides are negative
        assert np.array_equal(classifier.logits(turned), classifier.logits(turned.copy()))
