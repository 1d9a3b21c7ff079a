from __future__ import annotations

import os
from pathlib import Path

import pytest

from thumbnet.cli import main
from thumbnet.runs.folder import Run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "model.pt"], "must end in .onnx"),
        (["--format", "onnx-int8", "--out", "model.txt"], "must end in .onnx"),  # as a.onnx does
        (["--format", "safetensors", "--out", "OWN"], "the run's own file"),
        (["--format", "safetensors", "--out", "ANOTHER_NAME"], "the run's own file"),
        (["--out", "no/model.onnx"], "there is no folder"),
        (["--format", "onnx-int8"], "--data"),
        (["--data", "digits"], "classes that the network does not know: 0, 1, 2"),
    ],
)
def test_an_impossible_export_is_explained_and_writes_nothing(
    words: list[str],
    message: str,
    tiny_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tiny_run.weights_path
    places = {"OWN": str(own), "ANOTHER_NAME": os.path.relpath(own)}
    before = tiny_run.weights_path.read_bytes()
    assert main(["export", str(tiny_run.path), *(places.get(word, word) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert tiny_run.weights_path.read_bytes() == before
