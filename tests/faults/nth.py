"""Let a command fail at its n-th call of every kind, for every n, and look at what is left.

A :class:`Scenario` is a command on a small data set, the state that it starts from, and the command that goes on
afterwards. :class:`Trial` runs the command once without faults, counts its calls, and then runs it once for each
call and each way in which that call can fail. After each failure it checks that

- the command ended well, or with status 2 and a message of ours, or was killed;
- every file that was there, or is there under its final name, is what it was, or what the undisturbed command makes;
- nothing temporary is left, except by a kill;
- the command that goes on ends well, and leaves the same files with the same content as the undisturbed one. What
  follows depends on the files alone, so it runs once for each state of the files, not for each failure.
"""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from faults.fork_server import OPERATIONS, Fault, ForkServer, Job, Outcome, rank_variables

# How calls fail: kinds of faults and their errors. A full disk is also tried as one that stays full. Killing before a
# call leaves what killing after the former change left, so calls that change nothing are not killed after it.
_KILLS = (("kill-before", 0), ("kill-after", 0))
WAYS: dict[str, tuple[tuple[str, int], ...]] = {
    "open": (("fail", errno.EACCES), ("fail", errno.EIO)),
    "read": (("fail", errno.EIO), ("short", 0), ("end", 0), ("kill-before", 0)),
    "write": (
        ("fail", errno.ENOSPC),
        ("fail", errno.EIO),
        ("full", errno.ENOSPC),
        ("short", 0),
        ("kill-half", 0),
        ("kill-after", 0),
    ),
    "fsync": (("fail", errno.EIO), ("fail", errno.ENOSPC), ("kill-before", 0)),
    "rename": (("fail", errno.EACCES), ("fail", errno.ENOSPC), *_KILLS),
    "mkdir": (("fail", errno.EACCES), ("fail", errno.ENOSPC), *_KILLS),
    "unlink": (("fail", errno.EACCES), ("fail", errno.EIO), *_KILLS),
    "truncate": (("fail", errno.EIO), ("fail", errno.ENOSPC), *_KILLS),
    "link": (("fail", errno.EACCES), ("fail", errno.ENOSPC), *_KILLS),
    "chmod": (("fail", errno.EACCES), ("kill-before", 0)),
    "copy": (("fail", errno.ENOSPC), ("fail", errno.EIO), ("short", 0), ("kill-half", 0)),
    "lock": (("fail", errno.EIO), ("kill-after", 0)),
    "map": (("fail", errno.ENOMEM), ("fail", errno.EIO), ("kill-before", 0)),
    "allocate": (("fail", errno.ENOMEM), ("kill-before", 0)),
    "decode": (("fail", errno.EIO), ("fail", errno.ENOMEM), ("kill-before", 0)),
    "collective": (("fail", errno.ECONNRESET), *_KILLS),
    "close": (("fail", errno.EIO),),
    "list": (("fail", errno.EIO),),
    "stat": (("fail", errno.EACCES),),
}
# These fail at the first call on each path: of hundreds of calls, the others do the same again.
_ONCE_PER_PATH = ("close", "list", "stat")
_TIMES = re.compile(r"second|elapsed|per_second|time|started|date|speed", re.IGNORECASE)
_RANDOM = re.compile(r"(?<=\.)[a-z0-9_]{8}(?=\.tmp$)|(?<=\.writing-)\w+|(?<=unpacking-)\w+")
_TEMPORARY = re.compile(r"\.tmp$|\.writing-|\.part$|\.compiling-|\.thumbnet-part$|unpacking")
_SAYS_SO = "the report is not of all pictures"
_STATUS_1 = "has lost contact with the others|could not be read"  # what the exit status 1 stands for
_LIMIT = 60.0  # seconds that a command may take
_PORTS = itertools.count(20_000 + os.getpid() % 10_000)


@dataclass(frozen=True)
class Scenario:
    """A command under test.

    Attributes:
        name: what it is called in results.
        prepare: makes the state before it, in ``bench.root``.
        job: the command; ``{root}`` in its arguments stands for the root.
        again: the command that goes on after a failure.
        watch: the folders below the root whose calls count.
        operations: which calls fail.
        ranks: the processes that train together. Each of them fails in turn.
        tidies: whether the command that goes on removes what a killed one has left, except in the cache.
    """

    name: str
    prepare: Callable[[Bench], None]
    job: Job
    again: Callable[[Bench], Job]
    watch: tuple[str, ...] = ("",)
    operations: tuple[str, ...] = tuple(one for one in OPERATIONS if one != "collective")
    ranks: int = 1
    tidies: bool = False


@dataclass
class Bench:
    """The folder where scenarios happen: ``root/data`` and the like stay, ``root/work`` is made anew each time."""

    server: ForkServer
    root: Path
    template: Path = field(init=False)

    def __post_init__(self) -> None:
        self.template = self.root.with_name(f"{self.root.name}-template")

    @property
    def work(self) -> Path:
        return self.root / "work"

    def filled(self, job: Job, watch: tuple[str, ...] = ()) -> Job:
        """The job with the root in its arguments, and the scenario's cache."""
        return replace(
            job,
            arguments=tuple(word.replace("{root}", str(self.root)) for word in job.arguments),
            watch=tuple(str(self.root / one) if one else str(self.root) for one in watch),
            environment={"THUMBNET_CACHE": str(self.work / "cache"), **job.environment},
            folder=str(self.root),
        )

    def run(self, *arguments: str) -> Outcome:
        """Run a command that must succeed."""
        outcome = self.server.run(self.filled(Job(arguments)))
        assert outcome.status == 0, outcome.errors
        return outcome

    def run_ranks(
        self, job: Job, ranks: int, faults: tuple[Fault, ...] = (), failing: int = 0
    ) -> list[Outcome]:
        """Run a command in ``ranks`` processes, of which ``failing`` meets the faults."""
        if ranks == 1:
            return [self.server.run(replace(job, faults=faults), limit=_LIMIT)]
        port = next(_PORTS)
        running = [
            self.server.start(
                replace(
                    job,
                    faults=faults if rank == failing else (),
                    environment={**job.environment, **rank_variables(rank, ranks, port)},
                )
            )
            for rank in range(ranks)
        ]
        return [one.wait(_LIMIT) for one in running]

    def clear(self) -> None:
        for folder in (self.root, self.template):
            shutil.rmtree(folder, ignore_errors=True)
        self.work.mkdir(parents=True)

    def keep(self) -> None:
        """Take the present state as the one to restore."""
        shutil.copytree(self.work, self.template, symlinks=True)

    def restore(self) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self.template, self.work, symlinks=True)


@dataclass(frozen=True)
class Failure:
    """One failure of one call, and what was wrong afterwards; nothing if ``problem`` is empty."""

    scenario: str
    operation: str
    at: int
    way: str
    rank: int = 0
    path: str = ""
    ended: str = ""
    problem: str = ""
    message: str = ""

    @property
    def key(self) -> tuple[str, str, int, str, int]:
        """Which failure it is."""
        return self.scenario, self.operation, self.at, self.way, self.rank


class Trial:
    """A scenario that is ready: run once without faults, so that its calls are known."""

    def __init__(self, bench: Bench, scenario: Scenario) -> None:
        self.bench, self.scenario = bench, scenario
        bench.clear()
        scenario.prepare(bench)
        bench.keep()
        self._before = state(bench.root)
        self._job = replace(bench.filled(scenario.job, scenario.watch), log=True)
        for outcome in bench.run_ranks(self._job, scenario.ranks):
            bench.server.load(outcome.modules)
        bench.restore()
        self._undisturbed = bench.run_ranks(self._job, scenario.ranks)
        assert all(one.status == 0 for one in self._undisturbed), [one.errors for one in self._undisturbed]
        self._job = replace(self._job, log=False)
        self._wanted = state(bench.root)
        self._gone_on: dict[str, str] = {}

    def failures(self) -> Iterator[tuple[Failure, Fault]]:
        """Every failure of every call."""
        for rank, undisturbed in enumerate(self._undisturbed):
            for operation in self.scenario.operations:
                for at in _calls(undisturbed, operation):
                    for kind, error in WAYS[operation]:
                        fault = Fault(
                            (operation,), at, "fail" if kind == "full" else kind, error, kind == "full"
                        )
                        yield Failure(self.scenario.name, operation, at, _way(kind, error), rank), fault

    def fail(self, failure: Failure, fault: Fault) -> Failure:
        """Let it happen, and look at what is left."""
        bench, root = self.bench, self.bench.root
        bench.restore()
        outcomes = bench.run_ranks(self._job, self.scenario.ranks, (fault,), failure.rank)
        outcome = outcomes[failure.rank]
        first = outcome.failed[0]
        made = replace(
            failure,
            path="" if first is None else first.path.replace(str(root), ""),
            ended={0: "done", 1: "refused", 2: "refused", -9: "killed", None: "hung"}.get(
                outcome.status, f"status {outcome.status}"
            ),
        )
        if first is None and outcome.status == 0:
            made = replace(made, ended="not reached")
        message = _message(outcome.errors, root)
        if made.ended == "refused":
            made = replace(made, message=message)
        killed = outcome.status == -9
        damaged = failure.operation == "decode" and failure.way == "EIO"
        before, after = self._before, state(root)
        if damaged:
            before, after = (_without_verdicts(one, self._wanted) for one in (before, after))
        problem = _ending(outcome, failure.way, message) or self._others(outcomes, failure.rank)
        incomplete = _SAYS_SO in outcome.errors  # a report may leave out what cannot be read if it says so
        problem = problem or _left(
            after, before, self._wanted, killed or failure.operation == "unlink", incomplete
        )
        if not problem and (incomplete or any(one.status != 0 for one in outcomes)):
            problem = self._go_on(after, killed, damaged)
        elif not problem:
            different = _differences(after, self._wanted, killed or failure.operation == "unlink", done=True)
            problem = f"it ended well, and these differ: {different}" if different else ""
        return replace(made, problem=problem)

    def _others(self, outcomes: list[Outcome], failing: int) -> str:
        """What is wrong with how the processes have ended that met no fault."""
        for rank, one in enumerate(outcomes):
            if (
                rank != failing
                and one.status != 0
                and (one.status != 1 or "has lost contact" not in one.errors)
            ):
                return f"process {rank} ended with status {one.status}: {one.errors[-1500:]}"
        return ""

    def _go_on(self, after: State, killed: bool, damaged: bool) -> str:
        """What is wrong after the command that goes on. It runs once for each state of the files."""
        key = json.dumps([killed, damaged, after], sort_keys=True)
        if key not in self._gone_on:
            self._gone_on[key] = self._go_on_from_here(killed, damaged)
        return self._gone_on[key]

    def _go_on_from_here(self, killed: bool, damaged: bool) -> str:
        job = self.bench.filled(self.scenario.again(self.bench))
        for outcome in self.bench.run_ranks(job, self.scenario.ranks):
            if outcome.status != 0 and "complete already" not in outcome.errors:
                return f"going on ended with status {outcome.status}: {outcome.errors[-600:]}"
        after, wanted = state(self.bench.root), self._wanted
        if damaged:
            after, wanted = _without_verdicts(after, wanted), _without_verdicts(wanted, wanted)
        different = _differences(after, wanted, killed and not self.scenario.tidies)
        return f"after going on, these differ: {different}" if different else ""


def _calls(undisturbed: Outcome, operation: str) -> list[int]:
    """The numbers of the calls that are to fail."""
    if operation not in _ONCE_PER_PATH:
        return list(range(1, undisturbed.counts[operation] + 1))
    paths = [_RANDOM.sub("", call.path) for call in undisturbed.calls if call.operation == operation]
    return sorted({path: at for at, path in reversed(list(enumerate(paths, 1)))}.values())


def _way(kind: str, error: int) -> str:
    if kind == "full":  # from this write on, none works
        return "disk stays full"
    return errno.errorcode[error] if kind == "fail" else kind


def _message(errors: str, root: Path) -> str:
    """The message of an error, without what differs from case to case."""
    start = errors.rfind("thumbnet: ")
    text = errors[start:] if start >= 0 else errors[-300:]
    return re.sub(r"\b[0-9a-f]{16,}\b|(?<=\.writing-)\w+", "...", text.replace(str(root), "")).strip()


def _ending(outcome: Outcome, way: str, message: str) -> str:
    """What is wrong with how a command ended."""
    if outcome.status not in (0, 2, -9) and not (
        outcome.status == 1 and re.search(_STATUS_1, outcome.errors)
    ):
        return f"ended with status {outcome.status}: {outcome.errors[-1500:]}"
    if outcome.status == -9 and not way.startswith("kill"):
        return "was killed"
    for word in ("Traceback", "Exception ignored", "Warning:"):
        if word in outcome.errors:
            return f"printed {word}: {outcome.errors[-1500:]}"
    return (
        ""
        if outcome.status not in (1, 2) or message.startswith("thumbnet")
        else f"no message of ours: {message}"
    )


State = dict[str, Any]


def state(root: Path) -> State:
    """The content of every file below a folder, without what a clock decides; None for a folder."""
    found: State = {}
    for folder, folders, files in os.walk(root):
        for name in folders:
            found[_RANDOM.sub("...", os.path.relpath(os.path.join(folder, name), root))] = None
        for name in files:
            path = Path(folder, name)
            data = path.read_bytes() if not path.is_symlink() else os.readlink(path).encode()
            found[_RANDOM.sub("...", str(path.relative_to(root)))] = content(name, data)
    return found


@functools.lru_cache(100_000)
def content(name: str, data: bytes) -> Any:
    """A file's content, without what a clock decides; the error if a reader cannot read it."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        if name == "checkpoint.pt":
            return _plain(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        if name.endswith((".json", ".jsonl")):
            lines = data.decode().splitlines() if name.endswith(".jsonl") else [data.decode()]
            return _plain([json.loads(line) for line in lines])
        if name == "metrics.csv":
            return _plain(list(csv.DictReader(io.StringIO(data.decode()))))
    except Exception as error:
        return f"cannot be read: {error} ({digest})"
    return digest


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items() if not _TIMES.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw).hexdigest()}"
    return repr(value) if isinstance(value, float) else value


def _left(after: State, before: State, wanted: State, leftovers: bool, incomplete: bool) -> str:
    """What is wrong with the files that a command has left.

    Args:
        after, before, wanted: the files after it, before it, and after it without faults.
        leftovers: whether something temporary may be left.
        incomplete: whether the command has said that its results are not of all pictures.
    """
    for path, was in before.items():
        if path not in after:
            if path in wanted:
                return f"{path} is gone"
        elif after[path] not in (was, wanted.get(path)) and not _grows(path) and not incomplete:
            return f"{path} is neither what it was nor what it becomes: {str(after[path])[:200]}"
    for path, now in after.items():
        if _TEMPORARY.search(path):
            if not leftovers:
                return f"{path} is left over"
        elif isinstance(now, str) and now.startswith("cannot be read"):
            return f"{path} {now[:200]}"
        elif path not in wanted and path not in before:
            return f"{path} is unexpected"
        elif path not in before and now != wanted[path] and not _grows(path):
            return f"{path} is not what it becomes: {str(now)[:200]}"
    return ""


def _without_verdicts(found: State, wanted: State) -> State:
    """Without what the cache knows of damaged pictures, and of their splits without these pictures.

    A decoder's verdict is kept, unlike a disk's failure.
    """

    def is_verdict(path: str) -> bool:
        alone = f"{path}/unreadable.json" in found or os.path.basename(path) == "unreadable.json"
        return alone or ("/decoded/" in path and path not in wanted)

    return {path: one for path, one in found.items() if not is_verdict(path)}


def _grows(path: str) -> bool:
    """Whether a file has several contents in the course of a command."""
    return os.path.basename(path) in (
        "checkpoint.pt",
        "metrics.jsonl",
        "metrics.csv",
        "digests.npy",
        "labels.csv",
    )


def _differences(after: State, wanted: State, leftovers: bool, done: bool = False) -> str:
    """The files that differ, at most six of them.

    Something temporary may be in the cache, and with ``leftovers`` anywhere. A command that is ``done`` may have gone
    without the cache.
    """
    names = [
        path
        for path in sorted(after.keys() | wanted.keys())
        if after.get(path, "missing") != wanted.get(path, "missing")
        and not (_TEMPORARY.search(path) and (leftovers or "/cache/" in f"/{path}"))
        and not (done and path not in after and "/cache/" in f"/{path}")
    ]
    return ", ".join(
        f"{path} ({'missing' if path not in after else 'extra' if path not in wanted else 'other content'})"
        for path in names[:6]
    )


def table(found: list[Failure]) -> str:
    """Counts by scenario, operation and end."""
    lines = []
    for scenario in dict.fromkeys(one.scenario for one in found):
        of_it = [one for one in found if one.scenario == scenario]
        lines.append(f"{scenario}: {_counted(of_it)}")
        for operation in dict.fromkeys(one.operation for one in of_it):
            lines.append(f"  {operation}: {_counted([one for one in of_it if one.operation == operation])}")
    return "\n".join([*lines, f"all: {_counted(found)}"])


def _counted(found: list[Failure]) -> str:
    ends = Counter("wrong" if one.problem else one.ended for one in found)
    return f"{len(found)} failures: " + ", ".join(f"{count} {end}" for end, count in ends.most_common())
