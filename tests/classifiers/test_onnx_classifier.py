from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import coloured_data
from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.load import load_classifier, load_run
from thumbnet.classifiers.onnx_classifier import OnnxClassifier
from thumbnet.errors import DataError, RunError, UnreadableImagesError
from thumbnet.publish.export import export
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data


@pytest.fixture(scope="module")
def onnx_file(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    export(tiny_run.path, "onnx", out, coloured_data())
    return out


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror-shift", "adaptive"])
def test_onnx_and_torch_agree_on_every_view(tiny_run: Run, onnx_file: Path, tta: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    size = load_run(tiny_run.path).info.preprocessing.size
    pixels = np.tile(pixels, (1, size[0] // 16, size[1] // 16, 1))
    ours, theirs = (one.logits(pixels, tta=tta) for one in _both(tiny_run, onnx_file))
    np.testing.assert_allclose(ours, theirs, atol=0.05)  # the run may compute in bf16
    alone = OnnxClassifier(onnx_file).logits(pixels[:1], tta=tta)
    np.testing.assert_allclose(alone, theirs[:1], atol=1e-4)


def test_onnx_leaves_out_what_cannot_be_read_or_lists_it(onnx_file: Path, tmp_path: Path) -> None:

    names = OnnxClassifier(onnx_file).class_names
    for name in names:
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 30)).save(tmp_path / split / name / "a.png")
    (tmp_path / "test" / names[0] / "b.png").write_bytes(b"no picture")
    data = load_data(tmp_path)
    with pytest.raises(UnreadableImagesError, match=r"b\.png"):
        OnnxClassifier(onnx_file).evaluate(data, "test")
    found = OnnxClassifier(onnx_file).classify_split(
        data.splits["test"], data.class_names, on_bad_image="skip", batch_size=2
    )
    assert len(found.split) == len(found.logits) == len(found.labels) == len(names)
    with pytest.raises(DataError, match="no split 'val'"):
        OnnxClassifier(onnx_file).evaluate(data, "val")


def test_what_is_no_exported_model(onnx_file: Path, tmp_path: Path) -> None:
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
        ("{}", "not understood"),
        (text.replace("[", "[[[", 1), "not"),
    ]:
        del model.metadata_props[:]
        if other is not None:
            onnx.helper.set_model_props(model, {"thumbnet": other})
        onnx.save(model, broken)
        with pytest.raises(RunError, match=message):
            OnnxClassifier(broken)


def _both(run: Run, onnx_file: Path) -> tuple[Classifier, Classifier]:
    return load_classifier(run.path), load_classifier(onnx_file)
