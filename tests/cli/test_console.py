from __future__ import annotations

import errno
import io
import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from thumbnet.cli import console
from thumbnet.cli.console import duration, json_line, note, say, say_sentence, table


def test_results_go_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("result")
    note("by the way")
    assert capsys.readouterr() == ("result\n", "by the way\n")


class Dead(io.StringIO):
    """A terminal that was closed, or a pipe whose reader has ended."""

    def __init__(self, error: int) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise OSError(self._error, os.strerror(self._error))


@pytest.mark.parametrize("error", [errno.EIO, errno.EPIPE, errno.ENOSPC])
def test_a_note_that_nobody_can_read_is_lost(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Dead(error))
    note("nobody reads this")


@pytest.mark.parametrize(("term", "live"), [("xterm-256color", True), ("dumb", False), ("unknown", False)])
def test_a_bar_is_live_only_where_the_cursor_can_be_moved(
    term: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "progress_console", Console(force_terminal=True, _environ={"TERM": term}))
    assert console.is_live() is live
    monkeypatch.setattr(console, "progress_console", Console(force_terminal=False, _environ={"TERM": term}))
    assert not console.is_live()


def test_a_sentence_is_broken_between_words_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "  calibrated on 71 pictures, error 6.32 % before"
    say_sentence(sentence)
    assert capsys.readouterr().out == f"{sentence}\n"
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    say_sentence(sentence)
    assert capsys.readouterr().out == "  calibrated on 71 pictures,\n    error 6.32 % before\n"


def test_a_table_stays_aligned_with_wide_characters_and_short_rows() -> None:
    text = table(["class", "n"], [["cat", "5"], ["\u732b", "1,000"], ["a sentence that is longer than all"]])
    lines = text.splitlines()
    assert lines[0] == "class      n"
    assert lines[1] == "-----  -----"
    assert lines[2] == "cat        5"
    assert lines[3] == "\u732b     1,000"  # two columns wide
    assert lines[4] == "a sentence that is longer than all"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (75.4, "1:15"), (3700, "1:01:40")]
)
def test_a_duration_is_formatted_by_its_length(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.dictionaries(st.text(), st.text()))
def test_json_is_one_printable_line_that_reads_back(value: dict[str, str]) -> None:
    line = json_line(value)
    assert line.isprintable()
    assert json.loads(line) == value
