from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")

from thumbnet.tuning.listener import Progress, TuneListener, TuneListeners
from thumbnet.tuning.study import Record


def test_a_listener_may_ignore_every_event() -> None:
    listener, record = TuneListener(), Record(1, "complete", {}, 0.5, 1.0, 2.0, 3.0, 4.0)
    listener.on_search(Path("x"), [])
    listener.on_progress(Progress(1, 0.5, 0.1, None, 100.0, 20.0))
    listener.on_trial(record, record)
    listener.on_final(record, None)
    assert not listener.should_stop()


def test_several_listeners_receive_every_event() -> None:
    seen: list[tuple[str, str]] = []

    class Recording(TuneListener):
        def __init__(self, name: str, stops: bool = False) -> None:
            self.name, self.stops = name, stops

        def on_search(self, folder: Path, notes: Sequence[str]) -> None:
            seen.append((self.name, "search"))

        def on_progress(self, progress: Progress) -> None:
            seen.append((self.name, "progress"))

        def on_trial(self, record: Record, best: Record | None) -> None:
            seen.append((self.name, "trial"))

        def on_final(self, best: Record, minutes: float | None) -> None:
            seen.append((self.name, "final"))

        def on_note(self, text: str) -> None:
            seen.append((self.name, text))

        def should_stop(self) -> bool:
            return self.stops

    record = Record(1, "complete", {}, 0.5, 1.0, 2.0, 3.0, 4.0)
    both = TuneListeners(Recording("first"), Recording("second"))
    both.on_search(Path("x"), [])
    both.on_progress(Progress(1, 0.5, 0.1, None, 100.0, 20.0))
    both.on_trial(record, None)
    both.on_final(record, None)
    both.on_note("note")
    events = ("search", "progress", "trial", "final", "note")
    assert seen == [(name, event) for event in events for name in ("first", "second")]
    assert not both.should_stop()
    assert TuneListeners(Recording("first"), Recording("second", stops=True)).should_stop()
