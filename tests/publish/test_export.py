from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import thumbnet
from helpers import TINY, coloured, coloured_data, noise, write_picture
from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.load import load_classifier, load_run
from thumbnet.classifiers.onnx_classifier import OnnxClassifier
from thumbnet.cli import main
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.errors import DataError, RunError, UnreadableImagesError
from thumbnet.evaluation import log_softmax
from thumbnet.publish.export import check_export, export
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data

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
    found = OnnxClassifier(onnx_file).classify_split(
        data.splits["test"], data.class_names, on_bad_image="skip", batch_size=2
    )
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
        ("{}", "cannot read the description"),
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
    assert "must end in .onnx" in capsys.readouterr().err
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


# --- pictures of any size


@pytest.fixture(scope="module")
def any_size_file(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "tiny.any-size.onnx"
    export(tiny_run.path, "onnx-any-size", out, coloured_data())
    return out


def of_many_sizes(root: Path) -> Data:
    for number in range(60):
        side = 10 + 7 * number
        image = Image.fromarray(coloured(number % 3, number)).resize(
            (side, 200 - number), Image.Resampling.BICUBIC
        )
        write_picture(root / "test" / ("red", "green", "blue")[number % 3] / f"{number}.png", image)
        write_picture(root / "train" / ("red", "green", "blue")[number % 3] / f"{number}.png", image)
    return load_data(root)


def test_the_graph_with_resizing_computes_what_the_run_does(
    tiny_run: Run, any_size_file: Path, tmp_path: Path
) -> None:
    check = check_export(tiny_run.path, any_size_file, of_many_sizes(tmp_path), "test")
    assert check.pictures == 60
    assert check.largest_difference < 0.01
    assert check.same_class > 0.98


def test_plain_onnxruntime_needs_only_the_picture(tiny_run: Run, any_size_file: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(any_size_file, providers=["CPUExecutionProvider"])
    predictor = load_run(tiny_run.path, "cpu")
    for shape in ((16, 16), (40, 90), (333, 200)):
        picture = np.asarray(Image.fromarray(coloured(2, 7)).resize(shape[::-1], Image.Resampling.BICUBIC))
        (logits,) = session.run(["logits"], {"picture": picture})
        probabilities = np.exp(log_softmax(logits))[0]
        (expected,) = predictor.predict(picture)
        assert predictor.class_names[int(probabilities.argmax())] == expected.label
        assert probabilities.max() == pytest.approx(expected.probability, abs=0.01)


def test_a_classifier_of_any_size_answers_as_the_fixed_one(
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


def test_a_run_of_deep_pictures_is_exported_with_its_range(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(515, 640, (60, 20, 24), dtype=np.uint16)
    labels = np.arange(60) % 2
    images[labels == 1] += 120
    splits: dict[str, Split] = {
        "train": ArraySplit(images, labels, "train"),
        "test": ArraySplit(images, labels, "test"),
    }
    data = Data("deep", "made by the tests", ("dark", "bright"), splits)
    result = thumbnet.train(
        data, "resnet18", overrides=[*TINY, "training.epochs=1"], out=tmp_path / "run", device="cpu"
    )
    for kind, name in (("onnx", "a.onnx"), ("onnx-any-size", "b.onnx")):
        export(result.path, kind, tmp_path / name, data)
        check = check_export(result.path, tmp_path / name, data, "test")
        assert check.largest_difference < 1e-5
        pre = OnnxClassifier(tmp_path / name).info.preprocessing
        assert pre == load_run(result.path, "cpu").info.preprocessing
        assert pre.range is not None
    classifier = OnnxClassifier(tmp_path / "b.onnx")
    mixed = [images[0], images[1].astype(np.float32), noise(1)]
    for one, other in zip(
        classifier.predict(mixed), load_run(result.path, "cpu").predict(mixed), strict=True
    ):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.02)
