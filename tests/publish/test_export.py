from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import thumbnet
from helpers import TINY, coloured, coloured_data, noise, of_many_sizes, write_picture
from thumbnet.classifiers.load import load_run
from thumbnet.classifiers.onnx_classifier import OnnxClassifier
from thumbnet.cli import main
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.splits import ArraySplit, BytesSplit, Data, Split
from thumbnet.errors import DataError, RunError
from thumbnet.evaluation import log_softmax
from thumbnet.publish import export as publish_export
from thumbnet.publish.export import TOLERANCE_ANY_SIZE, check_export, export
from thumbnet.publish.onnx_resize import with_any_size
from thumbnet.runs.folder import Run


@pytest.fixture(scope="module")
def program_file(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_run``, exported as a program of PyTorch."""
    out = tmp_path_factory.mktemp("program") / "tiny.pt2"
    export(tiny_run.path, "torch-export", out, coloured_data())
    return out


@pytest.fixture(scope="module")
def weights_file(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_run``, exported to safetensors."""
    out = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    export(tiny_run.path, "safetensors", out, coloured_data())
    return out


@pytest.mark.parametrize("name", ["onnx_file", "program_file", "weights_file"])
def test_an_export_computes_the_same_as_its_run(
    tiny_run: Run, name: str, request: pytest.FixtureRequest
) -> None:
    out: Path = request.getfixturevalue(name)
    data = coloured_data()
    check = check_export(tiny_run.path, out, data, "test")
    assert check.pictures == len(data.splits["test"])
    assert check.largest_difference < 1e-5
    assert check.accuracy_run == check.accuracy_export
    code = str(Path(publish_export.__file__).parents[1])  # where it is installed is private
    assert code.encode() not in out.read_bytes()


def test_an_int8_export_is_smaller_and_predicts_nearly_the_same(
    tiny_run: Run, tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    monkeypatch.setattr(publish_export, "_onnx_model", lambda *_, **__: onnx.load(onnx_file))
    data = coloured_data()
    out = tmp_path / "small.onnx"
    export(tiny_run.path, "onnx-int8", out, data)
    check = check_export(tiny_run.path, out, data, "test")
    assert out.stat().st_size < onnx_file.stat().st_size
    assert 0 < check.largest_difference < 0.3
    assert check.same_class > 0.9
    for path, kind in ((out, "onnx-int8"), (onnx_file, "onnx")):
        info = OnnxClassifier(path).info
        assert (info.run, info.exported) == (tiny_run.path.name, kind)
        measured = (tiny_run.summary["accuracy"], "test", 60) if kind == "onnx" else (None, "", None)
        assert (info.accuracy, info.accuracy_split, info.accuracy_pictures) == measured
        assert info.fingerprint == tiny_run.settings["fingerprint"]


def test_the_check_detects_other_weights(tiny_run: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(tiny_run.weights_path)
    weights["head.weight"] = torch.roll(weights["head.weight"], 1, dims=0)
    other = Run(tmp_path)
    other.save_weights(weights, load_run(tiny_run.path).info)
    assert check_export(tiny_run.path, other.weights_path, coloured_data(), "test").largest_difference > 0.01


def test_the_check_takes_as_many_pictures_at_a_time_as_the_run(
    small_batches: Run, tmp_path: Path, batch_sizes: list[int]
) -> None:
    export(small_batches.path, "safetensors", tmp_path / "a.safetensors")
    check_export(small_batches.path, tmp_path / "a.safetensors", coloured_data(), "test")
    assert batch_sizes == [7, 7]


def test_the_command_writes_checks_and_reports_the_result(
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


def test_the_graph_with_resizing_computes_the_same_as_the_run(
    tiny_run: Run, any_size_file: Path, tmp_path: Path
) -> None:
    check = check_export(tiny_run.path, any_size_file, of_many_sizes(tmp_path), "test")
    assert check.pictures == 60
    assert check.largest_difference < 0.01
    assert check.same_class > 0.98


@pytest.mark.parametrize("tta", ["none", "adaptive"])
def test_the_check_looks_at_the_graphs_own_resizing(
    tta: str, tiny_run: Run, onnx_file: Path, tmp_path: Path
) -> None:
    import onnx
    from safetensors.torch import load_file

    info = replace(load_run(tiny_run.path).info, tta=tta)
    other = Run(tmp_path)
    other.save_weights(load_file(tiny_run.weights_path), info)
    files = [write_picture(tmp_path / "a.png", noise(k, 9 + 30 * k, 40)).read_bytes() for k in range(6)]
    split: Split = BytesSplit(files, np.zeros(6, dtype=np.int64), [str(k) for k in range(6)])
    data = Data("mine", "made", info.class_names, {"train": split, "test": split})
    assert info.preprocessing.fit == "crop"
    largest = []
    for fit in ("crop", "pad"):
        resized: Preprocessing = replace(info.preprocessing, fit=fit)  # pad is not what the run does
        model = with_any_size(onnx.load(onnx_file), resized, "pixels")
        model.metadata_props[0].value = info.to_json()
        onnx.save(model, tmp_path / "a.onnx")
        largest.append(check_export(other.weights_path, tmp_path / "a.onnx", data, "test").largest_plain)
    assert largest[0] < TOLERANCE_ANY_SIZE < largest[1]


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


def test_the_program_of_the_export_page_gives_the_answer_of_predict_to_a_turned_picture(
    tiny_run: Run,
    any_size_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = Path(__file__).parents[2] / "docs" / "howto" / "export.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    (program,) = [block for block in blocks if "cats.any-size.onnx" in block]
    shutil.copy(any_size_file, tmp_path / "cats.any-size.onnx")
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera that was held upright
    lying = Image.fromarray(coloured(1, 7)).resize((90, 40), Image.Resampling.BICUBIC)
    write_picture(tmp_path / "cat.jpg", lying, exif=exif, quality=95)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["picture"].size == (40, 90)
    label, probability = capsys.readouterr().out.split()
    (expected,) = load_run(tiny_run.path, "cpu").predict("cat.jpg", tta="none")
    assert label == expected.label
    assert float(probability) == pytest.approx(expected.probability, abs=0.01)


def test_eight_bits_are_calibrated_on_the_pictures_that_can_be_read(onnx_file: Path, tmp_path: Path) -> None:
    import onnx

    model, info = onnx.load(onnx_file), OnnxClassifier(onnx_file).info
    whole = write_picture(tmp_path / "a.png", coloured(0, 0)).read_bytes()

    def data(*files: bytes) -> Data:
        labels, names = np.zeros(len(files), dtype=np.int64), [f"{at}.png" for at in range(len(files))]
        return Data("mine", "made", info.class_names, {"train": BytesSplit(files, labels, names)})

    split = publish_export._calibration_pictures(data(whole[:500], whole))
    assert len(split) == 1
    assert publish_export._quantised(model, split, info, None).graph.node
    with pytest.raises(DataError, match="none of mine can be read"):
        publish_export._calibration_pictures(data(whole[:500]))


def test_without_pictures_for_eight_bits_the_network_is_not_translated(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_export, "_onnx_model", lambda *_, **__: pytest.fail("translated"))
    with pytest.raises(DataError, match="name them with --data DATA"):
        export(tiny_run.path, "onnx-int8", tmp_path / "a.onnx")
    damaged = BytesSplit([b"no picture"], np.zeros(1, dtype=np.int64), ["a.png"])
    data = Data("mine", "made", ("red", "green", "blue"), {"train": damaged})
    with pytest.raises(DataError, match="none of mine can be read"):
        export(tiny_run.path, "onnx-int8", tmp_path / "a.onnx", data)


def cache_of_one(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which is called once and then returns the same again, whatever it is given."""
    returned: list[Any] = []

    def called(*given: Any, **more: Any) -> Any:
        if not returned:
            returned.append(call(*given, **more))
        return returned[0]

    return called


def test_a_run_of_deep_pictures_is_exported_with_its_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        data, "one-cycle", overrides=[*TINY, "training.epochs=1"], out=tmp_path / "run", device="cpu"
    )
    # Both graphs are made from the same program, so PyTorch translates the network once.
    monkeypatch.setattr(torch.onnx, "export", cache_of_one(torch.onnx.export))
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


def test_an_export_that_cannot_be_read_back_is_an_error(
    tiny_run: Run, program_file: Path, tmp_path: Path
) -> None:
    out, content = tmp_path / "a.pt2", program_file.read_bytes()
    for damaged in (content[: len(content) // 2], b""):
        out.write_bytes(damaged)
        with pytest.raises(RunError, match=r"cannot read .*a\.pt2 back"):
            check_export(tiny_run.path, out, coloured_data(), "test")


def test_weights_that_cannot_be_read_whole_replace_nothing(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def early(path: Path) -> bytes:
        raise OSError(errno.EIO, "the file ended after 1 of 2 bytes", str(path))

    monkeypatch.setattr(publish_export, "read_whole", early)
    (tmp_path / "a.safetensors").write_bytes(b"before")
    with pytest.raises(
        RunError, match=r"cannot read .*model\.safetensors: the file ended after 1 of 2 bytes"
    ):
        export(tiny_run.path, "safetensors", tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == b"before"
