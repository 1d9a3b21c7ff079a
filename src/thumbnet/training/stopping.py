"""Stop a training by Ctrl-C, SIGTERM or a notebook's stop button, and save it first. Imports no torch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thumbnet.errors import InterruptedRunError

if TYPE_CHECKING:
    from types import FrameType

    from thumbnet.training.listener import StoppableListener


class Terminated(BaseException):
    """SIGTERM arrived when there was nothing to save."""


@contextmanager
def stopping(
    listener: StoppableListener, say: Callable[[str], None], *, ends_process: bool = False
) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM stop the training after its step, and a second Ctrl-C at once.

    A second SIGTERM changes nothing: schedulers send it to all processes of a job, and torchrun passes it on
    to its own again. A scheduler that cannot wait sends SIGKILL. A signal that is ignored stays ignored, as
    SIGINT is in jobs that a script starts in the background.

    Only the main thread receives signals, so in another thread this does nothing. The former handlers return
    at the end. Before there is anything to save, a signal does what it did before. A program's own handler of
    SIGTERM is left alone, because the program may stop the training itself.

    Args:
        listener: is asked to stop. Its ``started`` says whether there is something to save.
        say: called with the line that tells the user that the request has arrived.
        ends_process: whether the process ends with the training, as the command's does. SIGTERM then raises
            :class:`Terminated` if there is nothing to save, and the process ignores it after the training has
            stopped.

    Raises:
        InterruptedRunError: the training has stopped. Its exit status is 128 + the signal's number, the
            convention of shells and schedulers.
        KeyboardInterrupt: after a second Ctrl-C, or before there was anything to save.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {
        signum: signal.getsignal(signum)
        for signum in (signal.SIGINT, signal.SIGTERM)
        if _is_free(signum, ends_process)
    }

    def handle(signum: int, frame: FrameType | None) -> None:
        if listener.started and listener.stop_requested and signum == signal.SIGTERM:
            return
        received.append(signum)
        if listener.started and listener.stop_requested:
            raise KeyboardInterrupt
        if not listener.started:
            if ends_process:
                raise KeyboardInterrupt if signum == signal.SIGINT else Terminated
            former = before[signal.Signals(signum)]
            if callable(former):
                former(signum, frame)
            else:  # the system ends the process
                signal.signal(signum, former)
                signal.raise_signal(signum)
            return
        listener.stop_requested = True
        again = "Ctrl-C again to stop at once" if signum == signal.SIGINT else "SIGTERM received"
        say(f"\nstopping after this step, and saving; {again}")

    for signum in before:
        signal.signal(signum, handle)
    try:
        yield
    except InterruptedRunError as error:
        error.exit_status = 128 + (received[-1] if received else signal.SIGINT)
        if received and ends_process and before.pop(signal.SIGTERM, None) is not None:
            # A second one must not end the process while it says how to go on, nor while Python shuts down
            # and puts the system's action in place of any handler.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        for signum, former in before.items():
            signal.signal(signum, former)


def _is_free(signum: signal.Signals, ends_process: bool) -> bool:
    """Whether a signal may be handled here. Python cannot restore a handler that it did not install."""
    former = signal.getsignal(signum)
    if former is None or former == signal.SIG_IGN:
        return False
    return ends_process or signum == signal.SIGINT or former == signal.SIG_DFL
