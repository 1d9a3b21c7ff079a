"""What a simulated training meets within its process: a clock, signals at steps, slow decoding, slow ranks.

The fork server calls :func:`install` in the child, before the command. Everything follows from its arguments, so the
same arguments give the same run.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import random
import signal
import struct
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

RANKS = 2
_REACHED, _PID, _FIELDS = 0, 1, 2  # numbers per rank in the shared file


class Clock(types.ModuleType):
    """Takes the place of the module ``time`` in thumbnet's modules.

    ``monotonic`` and ``perf_counter`` never go back within a process, as the system guarantees; they may stand still,
    jump, and begin anywhere. ``time`` may also go back.

    Args:
        base: the first reading of ``monotonic`` and ``perf_counter``, in seconds.
        wall: seconds that ``time`` is off.
        tick: seconds from one reading to the next.
        per_step: seconds from one step to the next.
        jumps: step: (seconds that all clocks jump forward, seconds that ``time`` jumps, with its sign).
    """

    def __init__(
        self,
        base: float,
        wall: float,
        tick: float,
        per_step: float,
        jumps: dict[int, tuple[float, float]],
    ) -> None:
        super().__init__("time")
        self._now, self._wall, self._tick = base, time.time() + wall - base, tick
        self._per_step, self._jumps = per_step, jumps

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        """Seconds; see the class."""
        self._now += self._tick
        return self._now

    perf_counter = monotonic

    def time(self) -> float:
        """Seconds since 1970; see the class."""
        return self.monotonic() + self._wall

    def time_ns(self) -> int:
        """The same in nanoseconds."""
        return int(self.time() * 1e9)

    def step(self, number: int) -> None:
        """The training has done its step ``number`` in this process."""
        forward, wall = self._jumps.get(number, (0.0, 0.0))
        self._now += self._per_step + forward
        self._wall += wall


def install(
    *,
    rank: int,
    clock: dict[str, Any],
    events: list[tuple[int, int, str, int]],
    delays: int,
    chunk: int,
    shared: str,
    claims: str,
    journal: tuple[str, str, str],
) -> None:
    """Prepare this process.

    Args:
        rank: of the process.
        clock: arguments of :class:`Clock`; keys of ``jumps`` are text.
        events: (rank, step, what, signal): what happens in which rank after which of its steps. ``what`` is
            ``before`` or ``after`` (a signal to the process before or after the training reacts to the step),
            ``worker`` (a signal to a decoding process), or ``slow`` (milliseconds of sleep).
        delays: seed of the milliseconds that each picture takes to decode and each rank to do a step; 0 for none.
        chunk: pictures per task of a decoding thread; 0 leaves it.
        shared: a file with numbers of all ranks.
        claims: a file that gets the path and the inode of each file that thumbnet has finished writing.
        journal: the folder to watch, the journal and the folder of kept files; see journal.c.
    """
    from thumbnet import distributed, files
    from thumbnet.batches import decoding
    from thumbnet.data.splits import FileSplit
    from thumbnet.training.session import Session

    jumps = {int(step): tuple(jump) for step, jump in clock.pop("jumps").items()}
    virtual = Clock(**clock, jumps=jumps)
    for name, module in list(sys.modules.items()):
        if name.startswith("thumbnet.") and getattr(module, "time", None) is time:
            module.time = virtual  # type: ignore[attr-defined]
    defaults = distributed.Meetings.__init__.__defaults__
    assert defaults is not None
    distributed.Meetings.__init__.__defaults__ = (*defaults[:-1], virtual.monotonic)

    _claim_what_is_written(files, claims)
    if delays:
        _delay_decoding(FileSplit, delays)
    if chunk:
        decoding._CHUNK = chunk
    _meet_events(Session, _Ranks(shared, rank), virtual, events)
    begin = ctypes.CDLL(None).journal_begin
    if begin(*map(os.fsencode, journal)):
        raise OSError("the journal cannot be written")


def sync_nothing() -> None:
    """Break thumbnet on purpose: fsync does nothing."""
    os.fsync = lambda _: None  # type: ignore[assignment]


def _claim_what_is_written(files: Any, claims: str) -> None:
    write_with = files.write_with
    to = os.open(claims, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)

    def claimed(path: Path, write: Callable[[Any], object]) -> None:
        write_with(path, write)
        os.write(to, f"{os.stat(path).st_ino}\t{path}\n".encode())

    _replace(write_with, claimed)


def _replace(old: object, new: object) -> None:
    """Replace a function in each module of thumbnet that has imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("thumbnet."):
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, new)


def _delay_decoding(kind: Any, delays: int) -> None:
    load = kind.load

    def slowly(self: Any, index: int) -> Any:
        time.sleep(random.Random(f"{delays} {index}").choice((0, 0, 0, 0.0005, 0.002)))
        return load(self, index)

    kind.load = slowly


class _Ranks:
    """Numbers that the ranks of a training share."""

    def __init__(self, path: str, rank: int) -> None:
        with open(path, "r+b") as file:
            self._numbers = mmap.mmap(file.fileno(), 8 * RANKS * _FIELDS)
        self.rank = rank
        self._set(_PID, os.getpid())

    def _set(self, what: int, value: int) -> None:
        struct.pack_into("q", self._numbers, 8 * (self.rank * _FIELDS + what), value)

    def _get(self, rank: int, what: int) -> int:
        return int(struct.unpack_from("q", self._numbers, 8 * (rank * _FIELDS + what))[0])

    def reach(self, step: int) -> None:
        """This rank has done ``step``."""
        self._set(_REACHED, step)

    def meet(self, step: int) -> None:
        """Wait until all ranks have done ``step``, or have ended."""
        for rank in range(RANKS):
            while (
                self._get(rank, _PID)
                and self._get(rank, _REACHED) < step
                and _is_alive(self._get(rank, _PID))
            ):
                time.sleep(0.0005)

    def outlive(self, rank: int) -> None:
        """Wait for the end of ``rank``."""
        while _is_alive(self._get(rank, _PID)):
            time.sleep(0.0005)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _meet_events(session: Any, ranks: _Ranks, clock: Clock, events: list[tuple[int, int, str, int]]) -> None:
    on_step = session._on_step
    done = 0

    def meet(what: str) -> None:
        for rank, step, kind, value in events:
            if step != done or kind != what:
                continue
            if value == signal.SIGKILL and kind in ("before", "after"):
                ranks.meet(done)  # each rank has done this step, and none the next
                if rank != ranks.rank:
                    ranks.outlive(rank)
            if rank != ranks.rank:
                continue
            if kind == "slow":
                time.sleep(value / 1000)
            elif kind == "worker":
                workers = sorted(multiprocessing.active_children(), key=lambda one: one.pid or 0)
                if workers and workers[0].pid:
                    os.kill(workers[0].pid, value)
                    time.sleep(0.2)  # PyTorch's handler of SIGCHLD raises here
            else:
                os.kill(os.getpid(), value)

    def step_and_events(self: Any, step: Any) -> None:
        nonlocal done
        done += 1
        clock.step(done)
        ranks.reach(done)
        for what in ("slow", "worker", "before"):
            meet(what)
        on_step(self, step)
        meet("after")

    session._on_step = step_and_events
