"""The functions of thumbnet do what its commands do: they show progress, and save what is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

import thumbnet
from helpers import TINY, coloured_data, write_class_folders
from own_networks import OwnPackage
from thumbnet.data.splits import Data
from thumbnet.errors import InterruptedRunError, ModelCodeError, NetworkError, RecipeError, ThumbnetError
from thumbnet.models import registry
from thumbnet.runs.folder import Run
from thumbnet.training.epochs import EpochResult
from thumbnet.training.fit import StepResult
from thumbnet.training.listener import Listener, StoppableListener
from training_helpers import StopAfter

ONE = [*TINY, "training.epochs=1"]


def test_training_in_python_shows_one_line_per_epoch_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = thumbnet.train(coloured_data(), "one-cycle", overrides=ONE, out=tmp_path / "run")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "epoch 1/1  loss" in captured.err
    assert f"run     {run.path}" in captured.err


def test_without_progress_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = thumbnet.train(coloured_data(), "one-cycle", overrides=ONE, out=tmp_path / "run", progress=False)
    assert run.is_complete
    assert capsys.readouterr() == ("", "")


class Keep(Listener):
    """Keeps the numbers of the epochs."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_epoch(self, result: EpochResult) -> None:
        self.epochs.append(result.epoch)


@pytest.mark.parametrize("progress", [False, True])
def test_a_listener_does_not_replace_the_display(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    keep, data = Keep(), coloured_data()
    thumbnet.train(data, "one-cycle", overrides=ONE, out=tmp_path / "run", listener=keep, progress=progress)
    assert keep.epochs == [1]
    assert ("epoch 1/1" in capsys.readouterr().err) is progress


class Interrupt(Listener):
    """Sends signals in a step, as Ctrl-C, a scheduler or a notebook's stop button does."""

    def __init__(self, step: int, *signals: signal.Signals) -> None:
        self._step, self._signals = step, signals

    def on_step(self, step: StepResult) -> None:
        if step.step == self._step:
            for one in self._signals:
                signal.raise_signal(one)


@pytest.mark.parametrize(("one", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_is_saved_and_resumes_to_the_same_result(
    tmp_path: Path, one: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data, settings = coloured_data(), [*TINY, "training.epochs=2"]
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    whole = thumbnet.train(data, "one-cycle", overrides=settings, out=tmp_path / "whole", progress=False)

    def start() -> Run:
        return thumbnet.train(
            data, "one-cycle", overrides=settings, out=tmp_path / "run", listener=Interrupt(2, one)
        )

    with pytest.raises(InterruptedRunError, match="at step 2; everything is saved") as stopped:
        start()
    assert stopped.value.exit_status == status
    assert f"thumbnet.resume({str(tmp_path / 'run')!r}, data=DATA)" in str(stopped.value)
    assert "stopping after this step, and saving" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(InterruptedRunError, match="at step 4"):
        thumbnet.resume(stopped.value.path, data=data, listener=Interrupt(4, one), progress=False)
    run = thumbnet.resume(stopped.value.path, data=data, progress=False)
    assert run.weights_path.read_bytes() == whole.weights_path.read_bytes()


def test_a_folder_for_downloads_that_is_not_recorded_has_to_be_given_again(tmp_path: Path) -> None:
    data, out, new = coloured_data(), tmp_path / "run", str(tmp_path / "new")
    with pytest.raises(InterruptedRunError) as stopped:
        thumbnet.train(
            data, "one-cycle", overrides=ONE, out=out, data_dir="old", listener=StopAfter(1), progress=False
        )
    assert f"thumbnet.resume({str(out)!r}, data=DATA)\n" in str(stopped.value)
    with pytest.raises(InterruptedRunError) as stopped:
        thumbnet.resume(out, data=data, data_dir=new, listener=StopAfter(2), progress=False)
    assert f"thumbnet.resume({str(out)!r}, data=DATA, data_dir={new!r})\n" in str(stopped.value)


def test_loaded_data_need_not_be_given_again(tmp_path: Path) -> None:
    pictures = write_class_folders(tmp_path / "pictures", [""], per_class=20)
    data, out = thumbnet.load_data(pictures, split_seed=3, classes_from="leaf"), tmp_path / "run"
    with pytest.raises(InterruptedRunError) as stopped:
        thumbnet.train(data, "one-cycle", overrides=ONE, out=out, listener=StopAfter(1), progress=False)
    assert f"thumbnet.resume({str(out)!r})\n" in str(stopped.value)
    run = thumbnet.resume(out, progress=False)
    file = tmp_path / "a.safetensors"
    found = thumbnet.export(run, format="safetensors", out=file, data=data, progress=False)
    assert (found.source, found.check.pictures) == (data.source, len(data.splits["test"]))


def test_a_second_interrupt_ends_a_training_at_once(tmp_path: Path) -> None:
    twice = Interrupt(1, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        thumbnet.train(coloured_data(), "one-cycle", overrides=ONE, out=tmp_path / "run", listener=twice)
    assert not Run(tmp_path / "run").is_complete


def test_settings_may_be_a_dictionary(tmp_path: Path) -> None:
    typed: dict[str, Any] = {
        "model": {"name": "resnet20", "width": np.float32(0.5)},
        "training": {"epochs": 1, "batch_size": 16, "precision": "fp32"},
        "evaluation.every": 1,
        "data.skip_easy": 0,
        "optimizer.lr": 0.05,
        "augment.flip": "random",
        "augment.translate": 2,
    }
    run = thumbnet.train(coloured_data(), "one-cycle", overrides=typed, out=tmp_path / "run", progress=False)
    expected = thumbnet.load_recipe("one-cycle", ONE)
    assert thumbnet.load_recipe("one-cycle", typed) == expected
    assert run.recipe == expected.override(["training.min_steps=0"])  # the batch size is named


def test_a_single_string_is_no_list_of_settings() -> None:
    with pytest.raises(RecipeError, match=r"such as \['training.epochs=5'\], or a dictionary"):
        thumbnet.train("digits", overrides="training.epochs=5")
    with pytest.raises(RecipeError, match="overrides holds 5"):
        thumbnet.load_recipe("fast", [5])  # type: ignore[list-item]


class OwnNet(nn.Module):
    """A network that nothing has registered."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@pytest.mark.usefixtures("own")  # restores the registry of networks afterwards
def test_a_network_of_ones_own_is_trained_by_its_class(tmp_path: Path) -> None:
    settings = [one for one in ONE if not one.startswith("model.")]
    data = coloured_data()
    run = thumbnet.train(
        data, "one-cycle", overrides=settings, out=tmp_path / "run", progress=False, model=OwnNet
    )
    assert run.recipe.model.name == f"{OwnNet.__module__}:OwnNet"
    assert thumbnet.load_classifier(run, "cpu", model=OwnNet).class_names == data.class_names
    with pytest.raises(RecipeError, match="both name a network"):
        thumbnet.train(data, overrides=["model.name=resnet20"], model=OwnNet)
    with pytest.raises(RecipeError, match="both name a network"):
        thumbnet.tune(data, trials=1, overrides={"model": {"name": "resnet20"}}, model=OwnNet)
    with pytest.raises(ThumbnetError, match="model has no name"):
        thumbnet.train(data, model=lambda num_classes: OwnNet(num_classes))
    assert registry.find_builder(run.recipe.model.name) is OwnNet


def test_a_run_of_ones_own_network_is_exported_in_another_process(own: OwnPackage) -> None:
    settings = [one for one in ONE if not one.startswith("model.")]
    run = thumbnet.train(
        coloured_data(), "one-cycle", overrides=settings, out="run", progress=False, model=OwnNet
    )
    own.forget()
    file = own.folder / "a.safetensors"
    with pytest.raises(ModelCodeError, match="pass model=OwnNet"):
        thumbnet.export(run, "safetensors", file, progress=False)
    assert thumbnet.export(run, "safetensors", file, progress=False, model=OwnNet).path == file
    with pytest.raises(NetworkError, match="expected an nn.Module class"):
        thumbnet.export(run, "safetensors", file, progress=False, model=OwnNet(2))


def test_a_search_shows_its_progress_and_goes_on_where_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    pytest.importorskip("matplotlib", reason="the extra 'tune' is not installed")
    pytest.importorskip("jinja2", reason="the extra 'tune' is not installed")
    from thumbnet.tuning.listener import Progress, TuneListener
    from tuning_helpers import SHORTEST

    class StopSecond(TuneListener):
        def on_progress(self, progress: Progress) -> None:
            if progress.trial == 2 and not stopped:
                stopped.append(2)
                signal.raise_signal(signal.SIGINT)

    stopped: list[int] = []
    data = coloured_data()

    def start() -> object:
        return thumbnet.tune(
            data,
            "small",
            trials=2,
            overrides=SHORTEST,
            out=tmp_path / "t",
            device="cpu",
            listener=StopSecond(),
        )

    with pytest.raises(InterruptedRunError, match="1 finished trial") as caught:
        start()
    assert f"thumbnet.resume_tuning({str(tmp_path / 't')!r}, data=DATA)" in str(caught.value)
    shown = capsys.readouterr().err
    assert "trial   1" in shown
    assert "stopping after this step" in shown
    found = thumbnet.resume_tuning(caught.value.path, data=data, device="cpu", progress=False)
    assert capsys.readouterr() == ("", "")
    assert found.summary["trials"] == 2
    assert found.run.is_complete


def test_a_run_is_exported_and_compared_with_the_file(tiny_run: Run, tmp_path: Path) -> None:
    data: Data = coloured_data()
    found = thumbnet.export(
        tiny_run, format="safetensors", out=tmp_path / "a.safetensors", data=data, progress=False
    )
    assert found.path.is_file()
    assert (found.source, found.check.pictures) == ("coloured", 60)
    found = thumbnet.export(tiny_run, format="safetensors", out=tmp_path / "b.safetensors", progress=False)
    assert found.source == ""  # the run's data were in memory
    with pytest.raises(ThumbnetError, match="classes that the network does not know"):
        thumbnet.export(tiny_run, format="safetensors", out=tmp_path / "c.safetensors", data="digits")
    assert not (tmp_path / "c.safetensors").exists()


def test_only_the_first_process_shows_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from thumbnet.api import shown
    from thumbnet.cli.progress import TrainingDisplay

    with shown(progress=True) as listener:
        assert isinstance(listener, TrainingDisplay)
    monkeypatch.setenv("RANK", "1")
    with shown(progress=True) as listener:
        assert type(listener) is StoppableListener


def test_resuming_in_python_shows_progress_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = thumbnet.train("digits", "digits", out=tmp_path / "run", progress=False,
                         overrides=["training.epochs=1", "data.subset_size=200", "model.width=0.25"])  # fmt: skip
    assert capsys.readouterr() == ("", "")
    again = thumbnet.resume(run.path, more_epochs=1, out=tmp_path / "more")
    assert "epoch 1/1  loss" in capsys.readouterr().err
    thumbnet.resume(run.path, more_epochs=1, out=tmp_path / "silent", progress=False)
    assert capsys.readouterr() == ("", "")
    assert again.settings["continues"]["epochs"] == 1


def test_a_run_can_be_ended_early_in_python(tmp_path: Path) -> None:
    data, out = coloured_data(), tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        thumbnet.train(data, "one-cycle", overrides=ONE, out=out, device="cpu", listener=StopAfter(1))
    run = thumbnet.resume(out, data=data, device="cpu", progress=False, finish=True)
    assert run.summary["stopped_early"]["step"] == 1


def test_a_terminal_shows_a_progress_bar(tmp_path: Path) -> None:
    """Run it in a pseudo-terminal, as from Python's prompt."""
    import os
    import pty

    code = (
        "import thumbnet; thumbnet.train('digits', 'digits', out='run', "
        "overrides=['training.epochs=1', 'data.subset_size=600', 'model.width=0.25'])"
    )
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.environ.update(TERM="xterm-256color", COLUMNS="100")
        os.execv(sys.executable, [sys.executable, "-c", code])
    seen = b""
    while True:
        try:
            block = os.read(descriptor, 65536)
        except OSError:
            break
        if not block:
            break
        seen += block
    assert os.waitpid(pid, 0)[1] == 0, seen.decode(errors="replace")
    assert b"\x1b[" in seen  # control sequences that redraw the line
    assert b"epoch 1/1" in seen


def test_importing_thumbnet_still_imports_no_torch_and_no_console() -> None:
    code = "import sys, thumbnet; print(sorted(m for m in ('torch', 'rich', 'thumbnet.api') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_export_finds_the_runs_data_or_says_how_to_name_their_new_place(tmp_path: Path) -> None:
    pictures = write_class_folders(tmp_path / "pictures", ["train", "test"], per_class=8)
    run = thumbnet.train(pictures, "one-cycle", overrides=ONE, out=tmp_path / "run", progress=False)
    out = tmp_path / "a.safetensors"
    assert thumbnet.export(run, "safetensors", out, progress=False).source == str(pictures)
    moved = pictures.rename(tmp_path / "moved")
    with pytest.raises(ThumbnetError, match=r"name their new place: thumbnet\.export\('.*run', data=DATA\)$"):
        thumbnet.export(run, "safetensors", out, progress=False)
    assert thumbnet.export(run, "safetensors", out, data=moved, progress=False).source == str(moved)
