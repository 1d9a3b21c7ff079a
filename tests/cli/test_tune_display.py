from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import coloured_data
from thumbnet.cli.tune_display import QuietTuning, TuneDisplay
from thumbnet.tuning.listener import Progress
from thumbnet.tuning.study import Record


def record(number: int, value: float, state: str = "complete", reason: str = "") -> Record:
    return Record(number, state, {}, value, 1.0, 75.0, 80.0, 1.0, reason)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def display(lines: list[str]) -> TuneDisplay:
    return TuneDisplay(say_line=lines.append)


def test_every_trial_gets_a_line_with_its_time_and_how_it_ended(
    display: TuneDisplay, lines: list[str]
) -> None:
    first, better = record(1, 0.5), record(2, 0.625)
    with display:
        display.on_search(Path("runs/search"), ["one note"])
        display.on_trial(first, first)
        display.on_trial(better, better)
        display.on_trial(record(3, 0.25, "stopped"), better)
        display.on_trial(record(4, 0.0, "failed", "the loss is nan"), better)
        display.on_final(better, 0.5)
    assert lines == [
        "        one note",
        "search  runs/search",
        "trial   1     1:15  50.00 %  loss 1.000  the recipe as it is",
        "trial   2     1:15  62.50 %  loss 1.000  best so far",
        "trial   3     1:15  stopped early at loss 1.000",
        "trial   4     1:15  failed: the loss is nan",
        "final   trains with the settings of trial 2 on all training pictures, for the 30.0 s that are left",
    ]
    assert display.started  # so that Ctrl-C stops after a step


def test_progress_tells_the_rate_and_the_time_left(
    display: TuneDisplay, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("thumbnet.cli.tune_display.time.monotonic", lambda: now[0])
    display._last_line = now[0]
    progress = Progress(3, 0.5, 0.25, record(1, 0.5), 1234.0, 90.0)
    display.on_progress(progress)
    assert lines == []
    now[0] += 11
    display.on_progress(progress)
    assert lines == ["trial 3  50 %  1,234 pictures/s  best 50.00 %  1:30 left"]


def test_the_bars_of_what_is_done_disappear(display: TuneDisplay) -> None:
    display.live = True
    starts: list[Callable[[], None]] = [
        lambda: display.on_search(Path("runs/search"), []),
        lambda: display.on_final(record(1, 0.5), None),
    ]
    for then in starts:
        display.on_decode(1, 2)
        assert len(display.progress.tasks) == 1
        then()
        assert (display.tasks, display.progress.tasks) == ({}, [])


def test_the_data_are_shown_once(display: TuneDisplay, lines: list[str]) -> None:
    display.on_data(coloured_data(6))
    before = list(lines)
    assert before
    display.on_data(coloured_data(6))
    assert lines == before


def test_a_quiet_search_can_be_stopped() -> None:
    quiet = QuietTuning()
    before = quiet.started
    quiet.on_search(Path("x"), [])
    assert (before, quiet.started) == (False, True)
    quiet.stop_requested = True
    assert quiet.should_stop()
