"""Share work among forked processes, for work that threads do not speed up.

Threads that decode small pictures mostly wait for the interpreter, which only one of them can use at a time.
A forked process begins with all that this one has in memory, so nothing is sent to it but the number of a
part of the work. What it computes goes to a :func:`shared_array`. Nothing depends on it: a part that fails in
another process, or that it never ends, is done again in this one, where errors are reported.
"""

from __future__ import annotations

import contextlib
import gc
import math
import mmap
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Generator

import numpy as np

MOST_PARTS = 1000  # their numbers, four bytes each, fit into any pipe at once
PATIENCE = 10.0  # seconds without a part done, after which the other processes are taken to hang
_NUMBER = 4  # bytes


def ignore_terminal() -> None:
    """Ignore Ctrl-C, and the SIGHUP of a terminal that is closed. The parent of this process handles them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def can_fork() -> bool:
    """Whether a process can be forked safely. macOS forbids it to processes that have used its frameworks."""
    return sys.platform == "linux"


def shared_array(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array of zeros that processes forked from this one also write to.

    Raises:
        MemoryError: there is not enough memory.
    """
    size = math.prod(shape)
    try:
        memory = mmap.mmap(-1, max(1, size))
    except OSError:
        raise MemoryError(f"{size:,} bytes for an array of shape {list(shape)}") from None
    return np.frombuffer(memory, np.uint8, size).reshape(shape)


def do_parts(work: Callable[[int], bool], parts: int, helpers: int) -> Generator[int, None, None]:
    """Do ``work`` for each number below ``parts``, here and in ``helpers`` forked processes.

    Each process takes the next number when it is free. Numbers are yielded as their work is done.

    Args:
        work: does a part, and returns whether all went well. If not, a helper's part is done again here.
        parts: how many there are, at most ``MOST_PARTS`` if there are helpers.
        helpers: the number of other processes. They end with the iteration. A caller that gives it up closes
            the generator.
    """
    if not helpers:
        for number in range(parts):
            work(number)
            yield number
        return
    left = set(range(parts))
    with contextlib.ExitStack() as stack:
        waiting, told, processes = _start(work, parts, helpers, stack)
        while token := os.read(waiting, _NUMBER):
            number = int.from_bytes(token, "little")
            work(number)
            for done in [number, *_told(told, 0.0)]:
                left.discard(done)
                yield done
        while left and (others := _told(told, PATIENCE)):
            left.difference_update(others)
            yield from others
        _end(processes)  # one that hangs might still write
        for number in sorted(left):
            work(number)
            yield number


def _start(
    work: Callable[[int], bool], parts: int, helpers: int, stack: contextlib.ExitStack
) -> tuple[int, int, list[int]]:
    """Start the helpers: two pipes, one with the numbers that are waiting, one with those that are done.

    Returns:
        The ends of the pipes to read from, and the processes' numbers. ``stack`` closes and ends them.
    """
    waiting, put = os.pipe()
    stack.callback(os.close, waiting)
    with open(put, "wb") as numbers:  # closed before the forks, so that the pipe has an end
        numbers.write(b"".join(number.to_bytes(_NUMBER, "little") for number in range(parts)))
    told, tell = os.pipe()
    stack.callback(os.close, told)
    processes: list[int] = []
    stack.callback(_end, processes)
    this = os.getpid()
    try:
        with contextlib.suppress(OSError), warnings.catch_warnings():  # OSError: no process or memory is left
            # Python warns of forks while threads run: a lock that one of them holds is never released in the
            # fork. A helper that waits for one is ended, and its part done here.
            warnings.simplefilter("ignore", DeprecationWarning)
            for _ in range(helpers):
                process = os.fork()
                if not process:
                    _help(work, waiting, tell, this)
                    break  # a helper must not start helpers of its own
                processes.append(process)
    finally:
        if os.getpid() != this:
            os._exit(0)  # a helper ends here, whatever it has met
        os.close(tell)
    return waiting, told, processes


def _help(work: Callable[[int], bool], waiting: int, tell: int, parent: int) -> None:
    """Do parts until none is waiting, or the parent is gone."""
    ignore_terminal()  # the parent ends its helpers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # it would copy memory that both share
    while os.getppid() == parent and (token := os.read(waiting, _NUMBER)):
        if work(int.from_bytes(token, "little")):
            os.write(tell, token)


def _told(pipe: int, seconds: float) -> list[int]:
    """The numbers in the pipe; empty if there are none within ``seconds``, or all writers have ended."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if not poll.poll(1000 * seconds):
        return []
    data = os.read(pipe, _NUMBER * MOST_PARTS)
    return [int.from_bytes(data[at : at + _NUMBER], "little") for at in range(0, len(data), _NUMBER)]


def _end(processes: list[int]) -> None:
    """End the processes, and wait until they have."""
    while processes:
        process = processes.pop()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # a program that ignores SIGCHLD
            os.waitpid(process, 0)
