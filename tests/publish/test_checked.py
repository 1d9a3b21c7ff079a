"""An export replaces its file only if it computes what the run does."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import coloured_data
from thumbnet.cli import main
from thumbnet.data.splits import Progress
from thumbnet.errors import RunError, ThumbnetError
from thumbnet.publish import checked
from thumbnet.publish import export as exporting
from thumbnet.publish.checked import export_checked, target
from thumbnet.publish.export import ExportCheck, loses_accuracy
from thumbnet.runs.folder import Run


def uncounted(what: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done, total: None)


@pytest.mark.parametrize("difference", [0.01, float("nan")])
def test_a_refused_export_leaves_the_former_file(
    difference: float,
    tiny_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = ExportCheck(1, 0.0, difference, 1.0, 1.0, 1.0, 1.0, "none")
    monkeypatch.setattr(checked, "check_export", lambda *arguments, **options: found)
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"before")
    assert main(["export", str(tiny_run.path), "--format", "safetensors", "--out", str(out)]) == 2
    assert f"differ by {difference:g}, and at most 0.001 is allowed" in capsys.readouterr().err
    assert out.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [out]


def test_a_network_that_8_bits_spoil_is_refused_and_the_former_file_stays(
    tiny_run: Run, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    def mixed_up(model: Any, *_: object) -> Any:
        """The network with its classes in another order."""
        for node in model.graph.node:
            for at, name in enumerate(node.output):
                if name == "logits":
                    node.output[at] = "ordered"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, 0]), "order"))
        model.graph.node.append(onnx.helper.make_node("Gather", ["ordered", "order"], ["logits"], axis=1))
        return model

    monkeypatch.setattr(exporting, "_onnx_model", lambda *_, **__: onnx.load(onnx_file))
    monkeypatch.setattr(exporting, "_quantised", mixed_up)
    out = tmp_path / "a.int8.onnx"
    out.write_bytes(b"before")
    with pytest.raises(RunError, match=r"in 8 bits, the accuracy falls .* at most 5 points may be lost"):
        export_checked(target(str(tiny_run.path), "onnx-int8", out), coloured_data(), uncounted)
    assert out.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("pictures", "accuracy", "loses"),
    [(100, 0.85, False), (100, 0.84, True), (10, 0.7, False), (10, 0.6, True)],
)
def test_8_bits_may_cost_5_points_of_accuracy_or_two_pictures(
    pictures: int, accuracy: float, loses: bool
) -> None:
    found = ExportCheck(pictures, 0.5, 0.5, 0.9, 0.9, accuracy, accuracy, "none")
    assert loses_accuracy(found) == loses


def test_an_export_tells_what_was_written_and_compared(tiny_run: Run, tmp_path: Path) -> None:
    wanted = target(str(tiny_run.path), "safetensors", tmp_path / "a.safetensors")
    found = export_checked(wanted, coloured_data(), uncounted)
    assert found.path.stat().st_size == found.bytes == tiny_run.weights_path.stat().st_size
    assert (found.format, found.source, found.split, found.half) == (
        "safetensors",
        "coloured",
        "test",
        False,
    )
    assert found.check.pictures == 60
    assert found.check.accuracy_run == pytest.approx(tiny_run.summary["accuracy"])


def test_without_data_it_compares_pictures_of_random_pixels(tiny_run: Run, tmp_path: Path) -> None:
    found = export_checked(
        target(str(tiny_run.path), "safetensors", tmp_path / "a.safetensors"), None, uncounted
    )
    assert found.source == ""
    assert found.check.largest_difference == 0


def test_an_unknown_format_is_named_with_the_nearest_one(tiny_run: Run) -> None:
    with pytest.raises(ThumbnetError, match="there is no format 'onxn'. Did you mean 'onnx'"):
        target(str(tiny_run.path), "onxn", None)


def test_a_network_on_the_hub_needs_the_name_of_a_file_before_it_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checked, "find_weights", None)
    with pytest.raises(
        ThumbnetError, match=r"on the Hub: name the file to write, such as --out cats\.int8\.onnx$"
    ):
        target("hf:me/cats@v1", "onnx-int8", None)
    assert main(["export", "hf:me/cats"]) == 2
    assert (
        "hf:me/cats is on the Hub: name the file to write, such as --out cats.onnx\n"
        in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_does_not_exist_is_an_error_before_its_data_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run"):
        target(str(tmp_path / "run"), "onnx", None)
