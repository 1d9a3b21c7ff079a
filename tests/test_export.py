from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured_data
from thumbnet.classifier import Classifier, load_classifier
from thumbnet.cli import main
from thumbnet.errors import DataError, RunError, UnreadableImagesError
from thumbnet.export import check_export, export
from thumbnet.onnx_model import OnnxClassifier
from thumbnet.predictor import load_run
from thumbnet.runs import Run

WITHOUT_TORCH = (
    "import sys; sys.modules.update(torch=None, safetensors=None, psutil=None, filelock=None); "
    "from thumbnet.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def onnx_file(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    export(tiny_run.path, "onnx", out, coloured_data())
    return out


@pytest.mark.parametrize(
    ("kind", "name"), [("onnx", "a.onnx"), ("torch-export", "a.pt2"), ("safetensors", "a.safetensors")]
)
def test_an_export_computes_what_the_run_does(tiny_run: Run, tmp_path: Path, kind: str, name: str) -> None:
    data = coloured_data()
    export(tiny_run.path, kind, tmp_path / name, data)
    check = check_export(tiny_run.path, tmp_path / name, data, "test")
    assert check.pictures == len(data.splits["test"])
    assert check.largest_difference < 1e-5
    assert check.accuracy_run == check.accuracy_export


def test_eight_bits_are_smaller_and_nearly_the_same(tiny_run: Run, tmp_path: Path, onnx_file: Path) -> None:
    data = coloured_data()
    out = tmp_path / "small.onnx"
    export(tiny_run.path, "onnx-int8", out, data)
    check = check_export(tiny_run.path, out, data, "test")
    assert out.stat().st_size < onnx_file.stat().st_size
    assert 0 < check.largest_difference < 0.3
    assert check.same_class > 0.9


def test_a_check_sees_another_network(tiny_run: Run, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = load_file(tiny_run.weights_path)
    weights["head.weight"] = torch.roll(weights["head.weight"], 1, dims=0)
    other = Run(tmp_path)
    other.save_weights(weights, load_run(tiny_run.path).info)
    assert check_export(tiny_run.path, other.weights_path, coloured_data(), "test").largest_difference > 0.01


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror-shift", "adaptive"])
def test_onnx_and_torch_agree_on_every_view(tiny_run: Run, onnx_file: Path, tta: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    size = load_run(tiny_run.path).info.preprocessing.size
    pixels = np.tile(pixels, (1, size[0] // 16, size[1] // 16, 1))
    ours, theirs = (one.logits(pixels, tta=tta) for one in _both(tiny_run, onnx_file))
    np.testing.assert_allclose(ours, theirs, atol=0.05)  # the run may compute in bf16
    alone = OnnxClassifier(onnx_file).logits(pixels[:1], tta=tta)
    np.testing.assert_allclose(alone, theirs[:1], atol=1e-4)


def _both(run: Run, onnx_file: Path) -> tuple[Classifier, Classifier]:
    return load_classifier(run.path), load_classifier(onnx_file)


def test_onnx_leaves_out_what_cannot_be_read_or_lists_it(onnx_file: Path, tmp_path: Path) -> None:
    from PIL import Image

    from thumbnet.sources.load import load_data

    names = OnnxClassifier(onnx_file).class_names
    for name in names:
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 30)).save(tmp_path / split / name / "a.png")
    (tmp_path / "test" / names[0] / "b.png").write_bytes(b"no picture")
    data = load_data(tmp_path)
    with pytest.raises(UnreadableImagesError, match=r"b\.png"):
        OnnxClassifier(onnx_file).evaluate(data, "test")
    found = OnnxClassifier(onnx_file).classify_split(data, "test", on_bad_image="skip", batch_size=2)
    assert len(found.split) == len(found.logits) == len(found.labels) == len(names)
    with pytest.raises(DataError, match="no split 'val'"):
        OnnxClassifier(onnx_file).evaluate(data, "val")


def test_without_torch(onnx_file: Path, tmp_path: Path) -> None:
    """What `pip install 'thumbnet[onnx]'` has: predict, in under a second, and evaluate."""
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

    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = thumbnet("predict", str(onnx_file), picture, "--json")
        seconds.append(time.perf_counter() - started)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == picture
    assert min(seconds) < 1.0
    done = thumbnet("evaluate", str(onnx_file), str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pictures"] == len(names)
    done = thumbnet("train", "digits")
    assert done.returncode == 2
    assert done.stderr.startswith("thumbnet: this command needs the extra 'train': ")
    assert "pip install" in done.stderr
    assert len(done.stderr.splitlines()) == 1


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


def test_the_command_writes_checks_and_says_so(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny_run.path), "--out", str(tmp_path / "x.pt")]) == 2
    assert "ends in .onnx" in capsys.readouterr().err
    names = load_run(tiny_run.path).class_names
    from PIL import Image

    for split in ("train", "test"):
        for name in names:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16), "blue").save(tmp_path / "data" / split / name / "a.png")
    out = tmp_path / "x.onnx"
    arguments = ["export", str(tiny_run.path), "--out", str(out), "--data", str(tmp_path / "data")]
    assert main([*arguments, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["bytes"] == out.stat().st_size
    assert described["pictures"] == len(names)
    assert described["accuracy_run"] == described["accuracy_export"] == pytest.approx(1 / len(names))
    assert main(["export", str(tiny_run.path), "--format", "safetensors", "--data", "digits"]) == 2
    assert "the run's own" in capsys.readouterr().err
