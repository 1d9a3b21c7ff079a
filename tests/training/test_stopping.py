"""The first signal stops a training after its step; former handlers return."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from thumbnet.errors import InterruptedRunError
from thumbnet.training.listener import StoppableListener
from thumbnet.training.stopping import Terminated, stopping

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the handlers of a test that fails. Under nohup, SIGHUP is ignored."""
    before = {one: signal.getsignal(one) for one in HANDLED}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def step(listener: StoppableListener, *signals: signal.Signals) -> None:
    """A step of a training in which signals arrive."""
    for one in signals:
        signal.raise_signal(one)
    if listener.should_stop():
        raise InterruptedRunError(Path("run"), 1, 1)


def ready() -> StoppableListener:
    """A listener of a training that has something to save."""
    listener = StoppableListener()
    listener.started = True
    return listener


def test_a_second_sigterm_does_not_keep_a_training_from_saving_but_a_second_ctrl_c_ends_it() -> None:
    listener = StoppableListener()
    with pytest.raises(Terminated), stopping(listener, print, ends_process=True):
        signal.raise_signal(signal.SIGTERM)  # before the first step there is nothing to save
    said: list[str] = []
    listener = ready()
    with (
        pytest.raises(InterruptedRunError) as stopped,
        stopping(listener, said.append, ends_process=True),
    ):
        step(listener, *[signal.SIGTERM] * 3)  # a scheduler's, and torchrun's to its own processes
    signal.raise_signal(signal.SIGTERM)  # while the command says how to go on
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # Python's shutdown leaves only this in place
    assert stopped.value.exit_status == 143
    assert said == ["\nstopping after this step, and saving; SIGTERM received"]
    with pytest.raises(KeyboardInterrupt), stopping(listener, print):
        signal.raise_signal(signal.SIGINT)


def test_a_closed_terminal_stops_a_training_that_writes_no_more_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[bool] = []
    monkeypatch.setattr("thumbnet.training.stopping._leave_terminal", lambda: left.append(True))

    def say(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(Terminated) as ended, stopping(StoppableListener(), say, ends_process=True):
        signal.raise_signal(signal.SIGHUP)
    assert ended.value.exit_status == 129
    listener = ready()
    with pytest.raises(InterruptedRunError) as stopped, stopping(listener, say, ends_process=True):
        step(listener, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP)  # the shell's, and the system's
    assert stopped.value.exit_status == 129
    assert len(left) == 3
    assert {signal.getsignal(one) for one in (signal.SIGHUP, signal.SIGTERM)} == {signal.SIG_IGN}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(InterruptedRunError), stopping(listener := ready(), say):
        step(listener, signal.SIGHUP)
    assert len(left) == 3  # a program that goes on keeps its output


def test_without_a_terminal_only_files_are_written_to(tmp_path: Path) -> None:
    code = (
        "import sys; from thumbnet.training.stopping import _leave_terminal; _leave_terminal()\n"
        "print('lost', flush=True); print('kept', file=sys.stderr)"
    )
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=log, check=True)
    assert done.stdout == b""
    assert (tmp_path / "log").read_text() == "kept\n"


def test_in_a_program_that_goes_on_the_former_handlers_return() -> None:
    before = [signal.getsignal(one) for one in HANDLED]
    for one, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        listener = ready()
        with pytest.raises(InterruptedRunError) as stopped, stopping(listener, lambda text: None):
            step(listener, one)
        assert stopped.value.exit_status == status
        assert [signal.getsignal(one) for one in HANDLED] == before


@pytest.mark.parametrize("one", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(one: signal.Signals) -> None:
    signal.signal(one, signal.SIG_IGN)  # as a shell script does for its background jobs, and nohup
    listener = ready()
    with stopping(listener, print, ends_process=True):
        signal.raise_signal(one)
    assert not listener.stop_requested
    assert signal.getsignal(one) == signal.SIG_IGN


@pytest.mark.parametrize("one", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_keeps_its_own_handler(one: signal.Signals) -> None:
    received: list[int] = []

    def own(signum: int, frame: Any) -> None:
        received.append(signum)

    signal.signal(one, own)
    listener = ready()
    with stopping(listener, print):
        signal.raise_signal(one)
    assert received == [one]
    assert not listener.stop_requested


def test_before_there_is_something_to_save_a_signal_does_what_it_did_before() -> None:
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda signum, frame: received.append(signum))
    listener = StoppableListener()
    with stopping(listener, print):
        step(listener, signal.SIGINT, signal.SIGINT)
    assert received == [signal.SIGINT] * 2
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), stopping(listener, print):
        step(listener, signal.SIGINT)


def test_another_thread_trains_without_handlers() -> None:
    seen: list[bool] = []

    def work(handler: Callable[[], Any]) -> None:
        before = handler()
        with stopping(StoppableListener(), print):
            seen.append(handler() == before)

    thread = threading.Thread(target=work, args=[lambda: signal.getsignal(signal.SIGINT)])
    thread.start()
    thread.join()
    assert seen == [True]
