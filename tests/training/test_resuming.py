from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers import TINY, coloured_data, write_class_folders
from kernel_helpers import needs_kernels
from thumbnet.data.splits import Data
from thumbnet.errors import InterruptedRunError
from thumbnet.kernels import library
from thumbnet.runs.folder import Run
from thumbnet.training.choose import load_for
from thumbnet.training.listener import Listener
from thumbnet.training.train import resume, train
from training_helpers import Noting, StopAfter

SMALLEST = [*TINY, "model.name=fastnet", "model.width=0.1", "training.min_steps=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), ["train", "val", "test"], per_class=20)


def test_the_folder_for_downloads_may_be_another_one_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a scheduler's local disk, which each job has at another place."""
    data = coloured_data()
    used: list[object] = []

    def recorded(source: Any, recipe: Any, data_dir: Any, *rest: Any) -> Data:
        used.append(data_dir)
        return load_for(source, recipe, data_dir, *rest)

    monkeypatch.setattr("thumbnet.training.resuming.load_for", recorded)
    job = partial(train, data, "fast", overrides=SMALLEST, out=tmp_path / "run", device="cpu")
    with pytest.raises(InterruptedRunError):
        job(auto_resume=True, data_dir=tmp_path / "1", listener=StopAfter(1))
    with pytest.raises(InterruptedRunError):
        job(auto_resume=True, data_dir=tmp_path / "2", listener=StopAfter(2))
    assert Run(tmp_path / "run").settings["data_dir"] == str((tmp_path / "2").resolve())
    with pytest.raises(InterruptedRunError):
        resume(tmp_path / "run", data=data, data_dir=tmp_path / "3", device="cpu", listener=StopAfter(3))
    run = resume(tmp_path / "run", data=data, device="cpu")
    assert used == [tmp_path / "2", tmp_path / "3", str((tmp_path / "3").resolve())]
    assert run.settings["data_dir"] == str((tmp_path / "3").resolve())
    more = resume(
        run.path, data=data, data_dir=tmp_path / "4", more_epochs=1, out=tmp_path / "more", device="cpu"
    )
    assert more.settings["data_dir"] == str((tmp_path / "4").resolve())


def test_a_run_that_goes_on_elsewhere_says_so(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(folder, "fast", overrides=SMALLEST, out=out, device="cpu", listener=StopAfter(1))
    with pytest.raises(InterruptedRunError):
        resume(out, device="cpu", listener=(same := Noting(2)))
    assert "resumed" not in Run(out).environment
    assert not any("resumed with" in note for note in same.notes)
    first = Run(out).environment
    first["packages"]["torch"] = "2.0"
    (out / "environment.json").write_text(json.dumps(first))
    with pytest.raises(InterruptedRunError):
        resume(out, device="cpu", listener=(other := Noting(3)))
    (note,) = (note for note in other.notes if "resumed with" in note)
    assert re.match(r"resumed with PyTorch \S+ instead of 2\.0: .*to within rounding$", note)
    (added,) = Run(out).environment["resumed"]
    assert added["step"] == 2
    assert Run(out).environment == {**first, "resumed": [added]}


@needs_kernels
def test_a_run_that_goes_on_without_the_kernels_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(folder, "fast", overrides=SMALLEST, out=out, device="cpu", listener=StopAfter(1))
    before = Run(out).environment["hardware"]["kernels"]
    assert before in ("winograd", "tiles")
    off = library._Kernels(why_off="there is no gcc")
    monkeypatch.setattr(library, "_loaded", {False: off, True: off})
    with pytest.raises(InterruptedRunError):
        resume(out, device="cpu", listener=(other := Noting(2)))
    (note,) = (note for note in other.notes if "resumed with" in note)
    assert note.startswith(f"resumed with kernels none instead of {before}: ")
    (added,) = Run(out).environment["resumed"]
    assert added["hardware"]["kernels"] == "none"


def test_a_run_that_begins_again_records_where_it_begins(folder: Path, tmp_path: Path) -> None:
    class Stop(Listener):
        def on_start(self, *_: object) -> None:
            raise KeyboardInterrupt  # before the first checkpoint

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(folder, "fast", overrides=SMALLEST, out=out, device="cpu", listener=Stop())
    first = Run(out).environment
    moved = {**first, "packages": {**first["packages"], "torch": "2.0"}}
    (out / "environment.json").write_text(json.dumps(moved))
    run = resume(out, device="cpu")
    assert run.environment["packages"] == first["packages"]
    assert "resumed" not in run.environment
