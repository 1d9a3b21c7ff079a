from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")

from thumbnet.tuning.listener import Progress, TuneListener
from thumbnet.tuning.study import Record


def test_a_listener_may_ignore_every_event() -> None:
    listener, record = TuneListener(), Record(1, "complete", {}, 0.5, 1.0, 2.0, 3.0, 4.0)
    listener.on_search(Path("x"), [])
    listener.on_progress(Progress(1, 0.5, 0.1, None, 100.0, 20.0))
    listener.on_trial(record, record)
    listener.on_final(record, None)
    assert not listener.should_stop()
