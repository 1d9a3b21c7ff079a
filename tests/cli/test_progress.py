from __future__ import annotations

import io
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from cli_helpers import SETTINGS, epochs
from helpers import TINY, coloured_data
from thumbnet import hardware
from thumbnet.cli import progress
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import TrainingSettings
from thumbnet.runs.folder import Run
from thumbnet.training.epochs import EpochResult
from thumbnet.training.fit import StepResult
from thumbnet.training.schedules import done_at, replanned, size_at
from thumbnet.training.train import train


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a Python process with these arguments shows in a pseudo-terminal of 80 columns."""
    import pty

    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="80", **environment)
        os.execv(sys.executable, [sys.executable, *arguments])
    shown = b""
    while True:
        try:
            block = os.read(descriptor, 65536)
        except OSError:
            break
        if not block:
            break
        shown += block
    assert os.waitpid(pid, 0)[1] == 0
    return shown.decode(errors="replace")


COLOUR = r"\x1b\[[0-9;]*3[0-9]"


def test_the_live_bar_fits_in_80_columns(folder: Path, tmp_path: Path) -> None:
    command = ["-m", "thumbnet", "train", str(folder), "--recipe", "tutorial", *SETTINGS, *epochs(8)]
    text = on_a_terminal(*command, "--out", str(tmp_path / "run"))
    for word in ("pictures/s", "loss ", "0:00:0", "epoch 8/8", "  test "):
        assert word in text
    assert "\x1b[" in text  # the bar moves the cursor
    assert re.search(COLOUR, text)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))
    own = [line for line in lines if str(tmp_path) not in line]  # a long path may be wider
    assert max(map(len, own)) <= 80


COUNTED = """
from thumbnet.cli.progress import counting
with counting("measuring") as count:
    count(1, 3)
    count(2, 3)
"""


@pytest.mark.parametrize("no_colour", [False, True])
def test_a_bar_has_no_colour_if_the_user_wants_none(no_colour: bool) -> None:
    """All bars are on one console, so this one, which needs no torch, stands for all."""
    text = on_a_terminal("-c", COUNTED, **({"NO_COLOR": "1"} if no_colour else {}))
    assert "measuring" in text
    assert "\x1b[" in text  # the bar moves the cursor
    assert bool(re.search(COLOUR, text)) is not no_colour


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    term: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": term})
    for module in ("console", "progress"):
        monkeypatch.setattr(f"thumbnet.cli.{module}.progress_console", terminal)
    monkeypatch.setattr(progress, "PLAIN_EVERY", -1.0)
    with progress.counting("measuring", plain=True) as count:
        count(1, 3)
        count(2, 3)
    told = capsys.readouterr().err
    assert told.startswith("measuring 2 of 3  ") is (term == "dumb")
    displays = (progress.TrainingDisplay(), progress.ScoringDisplay())
    assert [display.live for display in displays] == [term != "dumb"] * 2


def test_the_display_says_why_kernels_are_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from thumbnet.cli.progress import TrainingDisplay
    from thumbnet.kernels import library

    def shown(name: str) -> str:
        library.forget()
        with TrainingDisplay() as display:
            run = train(
                coloured_data(),
                "one-cycle",
                overrides=[*TINY, "training.epochs=1"],
                out=tmp_path / name,
                listener=display,
            )
        assert isinstance(run, Run)
        return capsys.readouterr().err

    try:
        if library.why_off() is None:
            assert "without the faster CPU kernels: they compute in bf16" in shown("fp32")
            monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))  # where no compiled ones are
            monkeypatch.setattr("shutil.which", lambda name, **_: None)
            assert "there is no gcc" in shown("gcc")
            monkeypatch.undo()
        monkeypatch.setattr(library, "instructions", set)
        assert "no AVX-512 BF16" in shown("old")
        monkeypatch.setenv("THUMBNET_KERNELS", "0")
        assert "THUMBNET_KERNELS=0" in shown("off")
    finally:
        monkeypatch.undo()
        library.forget()


def test_the_display_says_that_skipped_pictures_do_not_count_in_the_training_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from thumbnet.cli.progress import TrainingDisplay

    for skip in (0, 0.2):
        with TrainingDisplay() as display:
            train(
                coloured_data(),
                "one-cycle",
                overrides=[*TINY, "training.epochs=1", f"data.skip_easy={skip}"],
                out=tmp_path / str(skip),
                listener=display,
            )
        told = "training accuracy: on the pictures that an epoch does not skip" in capsys.readouterr().err
        assert told is (skip > 0)


def test_the_display_says_why_kernels_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from thumbnet.cli.progress import TrainingDisplay
    from thumbnet.kernels import library

    if library.why_off() is not None:
        pytest.skip("no kernels here")
    settings = [*TINY, "training.epochs=1", "training.precision=bf16"]
    for reason in (None, "other users can write to /cache/kernels"):
        monkeypatch.setattr(library, "why_not_kept", lambda reason=reason: reason)
        with TrainingDisplay() as display:
            train(
                coloured_data(),
                "one-cycle",
                overrides=settings,
                out=tmp_path / str(reason)[:4],
                listener=display,
            )
        shown = capsys.readouterr().err
        assert (f"each start compiles the CPU kernels anew: {reason}" in shown) is (reason is not None)


@pytest.mark.parametrize(
    ("precision", "tf32", "text"),
    [
        ("fp32", True, "fp32 (convolutions in TF32) on cuda:0"),
        ("fp32", False, "fp32 on cuda:0"),
        ("fp16", True, "fp16 on cuda:0"),
    ],
)
def test_the_display_says_in_which_precision_a_gpu_computes(
    precision: str, tf32: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "uses_tf32", lambda device: tf32)
    gpu = torch.device("cuda", 0)
    state: Any = SimpleNamespace(precision=precision, device=gpu, uses_kernels=False, compiled=False)
    assert progress._how(state) == text
    monkeypatch.setattr(hardware, "why_not_compile", lambda device: "Triton is not installed")
    assert progress._whether_compiled(state) == "not in use, because Triton is not installed"


def test_counting_prints_lines_with_the_time_left_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for plain in (True, False):
        with progress.counting("sorting", plain=plain) as count:
            count(1000, 9000)  # these were there before
            for done in (2000, 3000, 4000):
                clock.now += 8
                count(done, 9000)
        lines = capsys.readouterr().err.splitlines()
        assert lines == (["sorting 3,000 of 9,000  48.0 s left"] if plain else [])


@pytest.mark.parametrize("first", [0, 30])
def test_the_time_left_knows_that_pictures_become_larger(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Each step takes as long as its pictures have pixels, and the plan changes after step 40."""
    recipe = load_recipe("fast")
    assert recipe.schedule.small_until == 0.5  # else this test shows nothing
    changed = replace(recipe, schedule=replanned(recipe.schedule, 40, 100, 140))

    def seconds(state: Any, step: int, total: int) -> int:
        schedule = state.recipe.schedule
        height, width = size_at(schedule, done_at(schedule, step, total), (32, 32))
        return height * width

    state: Any = SimpleNamespace(recipe=recipe, step=first)
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pace = progress._Pace(state, (32, 32))
    for step in range(first, 140):
        total = 100 if step < 40 else 140
        state.recipe = recipe if step < 40 else changed
        now[0] += seconds(state, step, total)
        left = pace.left(StepResult(1, step + 1, total, step + 1, total, 1000 * step, 1.0))
        expected = sum(seconds(state, later, total) for later in range(step + 1, total))
        assert left == pytest.approx(expected, rel=0.03, abs=32**2)


def test_a_line_of_a_training_says_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", -1.0)
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    lines: list[str] = []
    display = progress.TrainingDisplay(lines.append)
    state: Any = SimpleNamespace(recipe=load_recipe("fast"), step=0)
    display.live, display._pace = False, progress._Pace(state, (32, 32))
    now[0] += 7
    display.on_step(StepResult(1, 3, 4, 3, 12, 300, 1.5))
    # A quarter of the steps is done, with 20x20 pixels; then come 24x24 and half of the steps with 32x32.
    left = 7.0 * (0.25 * 24**2 + 0.5 * 32**2) / (0.25 * 20**2)
    assert lines == [f"epoch 1/3  step 3/4  43 pictures/s  loss 1.500  {left:.1f} s left"]


def test_of_several_trainings_only_lines_that_are_new_are_shown() -> None:
    lines: list[str] = []
    shown: set[str] = set()
    for note in ("a note", "another note"):
        display = progress.RepeatedDisplay(shown, lines.append)
        display.live = False
        display.on_note("a note")
        display.on_note(note)
        display.on_epoch(EpochResult(1, 3, 1.5, 0.1, 1.0, 9.0, None))
    assert lines == ["        a note", "        another note"]


def test_the_display_of_a_scoring_prints_lines_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from thumbnet.reviewing.scores import Scoring

    monkeypatch.setattr(progress, "PLAIN_EVERY", -1.0)
    lines: list[str] = []
    with progress.ScoringDisplay(lines.append) as display:
        display(Scoring(0, 3, 0.0, None, None))
        display(Scoring(1, 3, 0.1, 1234.0, 75.0))
        display(Scoring(2, 3, 0.5, 1234.0, 40.0))
    assert len(lines) == 3
    assert lines[0] == "training 3 networks to judge the labels; the next review reuses the scores"
    assert lines[1] == "network 1 of 3  10 % of all  1,234 pictures/s  1:15 left"
    assert lines[2] == "network 2 of 3  50 % of all  1,234 pictures/s  40.0 s left"


@pytest.mark.parametrize(
    ("settings", "measured", "told"),
    [
        ({}, {"val", "test"}, "the best epoch on val is kept; test is looked at once, at the end"),
        ({"keep": "last"}, {"val", "test"}, "the last epoch is kept; test is looked at once, at the end"),
        ({"keep": "last"}, {"val"}, "the last epoch is kept"),
        (
            {"patience": 3, "keep": "last"},
            {"val"},
            "the last epoch is kept; the training stops after 3 epoch(s) without a better one on val; its accuracy "
            "is optimistic, as it was chosen by it",
        ),
        (
            {"frozen": True, "epochs": 1},
            {"val", "test"},
            "val chooses L2; test is looked at once, at the end",
        ),
        ({}, {"test"}, "no val split: the last epoch is kept; test accuracies are only reported"),
    ],
)
def test_the_display_says_how_the_epoch_is_chosen(
    settings: dict[str, Any], measured: set[str], told: str
) -> None:
    assert progress._how_chosen(TrainingSettings(**settings), measured) == told


def test_the_display_says_that_and_why_a_training_stopped() -> None:
    lines: list[str] = []
    display = progress.TrainingDisplay(lines.append)
    display.live, display._epochs = False, 12
    display.on_epoch(
        EpochResult(8, 80, 0.5, 0.1, 1.0, 9.0, None, stopped="no better val accuracy since epoch 6")
    )
    assert lines[-1].strip() == "stopped after epoch 8 of 12: no better val accuracy since epoch 6"
