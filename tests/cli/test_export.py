from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from thumbnet.cli import main
from thumbnet.cli.export import fetch_web_runtime
from thumbnet.data.splits import Progress
from thumbnet.publish import web_runtime
from thumbnet.runs.folder import Run
from thumbnet.sources.download import DownloadProgress


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


def test_the_runtime_of_a_page_is_fetched_once_with_its_progress_in_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(folder: Path, progress: DownloadProgress) -> None:
        progress(2_000_000, None)
        progress(33_106_585, 33_106_585)

    seen: list[tuple[str, int, int]] = []

    def counting(what: str) -> AbstractContextManager[Progress]:
        return nullcontext(lambda done, total: seen.append((what, done, total)))

    monkeypatch.setattr(web_runtime, "fetch_runtime", fetch)
    monkeypatch.setattr(web_runtime, "find_runtime", lambda: None)
    fetch_web_runtime(counting)
    assert seen == [("downloading (MB)", 2, 2), ("downloading (MB)", 33, 33)]
    assert capsys.readouterr().err == "thumbnet: downloading ONNX Runtime Web (33 MB, once)\n"
    monkeypatch.setattr(web_runtime, "find_runtime", lambda: tmp_path)
    fetch_web_runtime(counting)
    assert len(seen) == 2
    assert capsys.readouterr().err == ""
