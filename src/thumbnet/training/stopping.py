"""Stop a training by Ctrl-C, SIGTERM, SIGHUP or a notebook's stop button, and save it first.

Imports no torch.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from thumbnet.errors import InterruptedRunError

if TYPE_CHECKING:
    from types import FrameType

    from thumbnet.training.listener import StoppableListener


# Signals that end a process: of a scheduler, and of a terminal that was closed (not on Windows).
_ENDING = (signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived when there was nothing to save.

    Attributes:
        exit_status: what the command returns.
    """

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__(signum)
        self.exit_status = 128 + signum


@contextmanager
def stopping(
    listener: StoppableListener, say: Callable[[str], None], *, ends_process: bool = False
) -> Iterator[None]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP stop the training after its step, and a second Ctrl-C at once.

    A second SIGTERM changes nothing: schedulers send it to all processes of a job, and torchrun passes it on
    to its own again. A scheduler that cannot wait sends SIGKILL. SIGHUP, which arrives when the terminal is
    closed, is the same. A signal that is ignored stays ignored, as SIGINT is in jobs that a script starts in
    the background, and SIGHUP under nohup.

    Only the main thread receives signals, so in another thread this does nothing. The former handlers return
    at the end. Before there is anything to save, a signal does what it did before. A program's own handler of
    SIGTERM or SIGHUP is left alone, because the program may stop the training itself.

    Args:
        listener: is asked to stop. Its ``started`` says whether there is something to save.
        say: called with the line that tells the user that the request has arrived.
        ends_process: whether the process ends with the training, as the command's does. SIGTERM and SIGHUP
            then raise :class:`Terminated` if there is nothing to save, and the process ignores them after the
            training has stopped. From a SIGHUP on, it writes only to files, because its terminal is gone.

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
        for signum in (signal.SIGINT, *_ENDING)
        if _is_free(signum, ends_process)
    }

    def handle(signum: int, frame: FrameType | None) -> None:
        name = signal.Signals(signum).name
        if ends_process and name == "SIGHUP":
            _leave_terminal()
        if listener.started and listener.stop_requested and signum != signal.SIGINT:
            return
        received.append(signum)
        if listener.started and listener.stop_requested:
            raise KeyboardInterrupt
        if not listener.started:
            if ends_process and signum != signal.SIGINT:
                raise Terminated(signum)
            if ends_process:
                raise KeyboardInterrupt
            former = before[signal.Signals(signum)]
            if callable(former):
                former(signum, frame)
            else:  # the system ends the process
                signal.signal(signum, former)
                signal.raise_signal(signum)
            return
        listener.stop_requested = True
        again = "Ctrl-C again to stop at once" if signum == signal.SIGINT else f"{name} received"
        with suppress(OSError):  # the terminal, or the reader of a pipe, may be gone
            say(f"\nstopping after this step, and saving; {again}")

    for signum in before:
        signal.signal(signum, handle)
    try:
        yield
    except InterruptedRunError as error:
        error.exit_status = 128 + (received[-1] if received else signal.SIGINT)
        for one in _ENDING if received and ends_process else ():
            # A second one must not end the process while it says how to go on, nor while Python shuts down
            # and puts the system's action in place of any handler.
            if before.pop(one, None) is not None:
                signal.signal(one, signal.SIG_IGN)
        raise
    finally:
        for signum, former in before.items():
            signal.signal(signum, former)


def _leave_terminal() -> None:
    """Write what comes next nowhere, except into files.

    A terminal that is gone fails each write, and so does a pipe to a program that the same SIGHUP has ended
    (``| tee log``). Such an error must not end the training before it is saved.
    """
    with suppress(OSError), open(os.devnull, "wb") as nowhere:
        for descriptor in (1, 2):
            with suppress(OSError):  # it is closed
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere.fileno(), descriptor)


def _is_free(signum: signal.Signals, ends_process: bool) -> bool:
    """Whether a signal may be handled here. Python cannot restore a handler that it did not install."""
    former = signal.getsignal(signum)
    if former is None or former == signal.SIG_IGN:
        return False
    return ends_process or signum == signal.SIGINT or former == signal.SIG_DFL
