"""Let a command fail at its n-th call of every kind, for every n, and look at what is left.

A :class:`Scenario` is a command on a small data set, the state that it starts from, and the command that goes on
afterwards. :func:`failures` runs the command once without faults, counts its calls, and then runs it once for each
call and each way in which that call can fail. After each failure it checks that

- the command ended well, or with status 2 and one message of ours, or was killed;
- every file that was there, or is there under its final name, is what it was, or what the undisturbed command makes;
- nothing temporary is left, except by a kill;
- the command that goes on ends well, and leaves the same files with the same content as the undisturbed one.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
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

from faults.fork_server import OPERATIONS, Fault, ForkServer, Job, Outcome

# How calls fail: kinds of faults and their errors. A full disk is also tried as one that stays full.
_KILLS = (("kill-before", 0), ("kill-after", 0))
WAYS: dict[str, tuple[tuple[str, int], ...]] = {
    "open": (("fail", errno.EACCES), ("fail", errno.EIO), ("fail", errno.ENOSPC), *_KILLS),
    "read": (("fail", errno.EIO), ("short", 0), ("end", 0), ("kill-before", 0)),
    "write": (
        ("fail", errno.ENOSPC),
        ("fail", errno.EIO),
        ("full", errno.ENOSPC),
        ("short", 0),
        *_KILLS,
        ("kill-half", 0),
    ),
    "fsync": (("fail", errno.EIO), ("fail", errno.ENOSPC), *_KILLS),
    "rename": (("fail", errno.EACCES), ("fail", errno.EIO), ("fail", errno.ENOSPC), *_KILLS),
    "mkdir": (("fail", errno.EACCES), ("fail", errno.EIO), ("fail", errno.ENOSPC), *_KILLS),
    "unlink": (("fail", errno.EACCES), ("fail", errno.EIO), *_KILLS),
    "truncate": (("fail", errno.EIO), ("fail", errno.ENOSPC), *_KILLS),
    "link": (("fail", errno.EACCES), ("fail", errno.EIO), ("fail", errno.ENOSPC), *_KILLS),
    "chmod": (("fail", errno.EACCES), ("fail", errno.EIO), *_KILLS),
    "close": (("fail", errno.EIO), ("kill-before", 0)),
    "list": (("fail", errno.EACCES), ("fail", errno.EIO), ("kill-before", 0)),
    "copy": (("fail", errno.ENOSPC), ("fail", errno.EIO), ("short", 0), ("kill-half", 0)),
    "lock": (("fail", errno.EIO), *_KILLS),
    "map": (("fail", errno.ENOMEM), ("fail", errno.EIO), *_KILLS),
    "stat": (("fail", errno.EACCES), ("fail", errno.EIO)),
    "allocate": (("fail", errno.ENOMEM), ("kill-before", 0)),
}
# What a full disk refuses: what needs new blocks.
_NEEDS_SPACE = ("write", "mkdir", "copy", "link")
_TIMES = re.compile(r"second|elapsed|per_second|time|started|date|speed", re.IGNORECASE)
_TEMPORARY = re.compile(r"\.tmp$|\.writing-|\.part$|\.compiling-|\.thumbnet-part$|\.unpacking")


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
    """

    name: str
    prepare: Callable[[Bench], None]
    job: Job
    again: Callable[[Bench], Job]
    watch: tuple[str, ...] = ("",)
    operations: tuple[str, ...] = OPERATIONS


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
    path: str
    ended: str
    problem: str = ""
    message: str = ""


def failures(bench: Bench, scenario: Scenario, stride: int = 1) -> Iterator[Failure]:
    """Fail every call of ``scenario`` in every way, or every ``stride``-th of these failures."""
    bench.clear()
    scenario.prepare(bench)
    bench.keep()
    job = bench.filled(scenario.job, scenario.watch)
    before = state(bench.root)
    bench.server.warm(job)
    bench.restore()
    undisturbed = bench.server.run(job)
    assert undisturbed.status == 0, undisturbed.errors
    wanted = state(bench.root)
    number = 0
    for operation in scenario.operations:
        for at in range(1, undisturbed.counts[operation] + 1):
            for kind, error in WAYS[operation]:
                number += 1
                if number % stride:
                    continue
                yield _fail(bench, scenario, job, _fault(operation, at, kind, error), before, wanted)


def _fault(operation: str, at: int, kind: str, error: int) -> tuple[str, tuple[Fault, ...]]:
    """A name for the failure, and its faults."""
    if kind == "full":  # from this write on, nothing that needs space works
        return "disk stays full", (Fault((operation,), at, "fail", error, lasting=True),)
    way = errno.errorcode[error] if kind == "fail" else kind
    return way, (Fault((operation,), at, kind, error),)


def _fail(
    bench: Bench,
    scenario: Scenario,
    job: Job,
    fault: tuple[str, tuple[Fault, ...]],
    before: State,
    wanted: State,
) -> Failure:
    bench.restore()
    way, faults = fault
    outcome = bench.server.run(replace(job, faults=faults), limit=60)
    first = outcome.failed[0]
    made = Failure(
        scenario.name,
        faults[0].operations[0],
        faults[0].at,
        way,
        "" if first is None else first.path.replace(str(bench.root), ""),
        {0: "done", 2: "refused", -9: "killed", None: "hung"}.get(outcome.status, f"status {outcome.status}"),
    )
    if first is None and outcome.status == 0:
        made = replace(made, ended="not reached")
    message = _message(outcome.errors, bench.root)
    made = replace(made, message=message if made.ended == "refused" else "")
    problem = _ending(outcome, way, message) or _left(state(bench.root), before, wanted, outcome.status)
    if not problem and outcome.status != 0:
        again = bench.server.run(bench.filled(scenario.again(bench)), limit=60)
        if again.status != 0 and "complete already" not in again.errors:
            problem = f"going on ended with status {again.status}: {again.errors[-600:]}"
    if not problem:
        different = _differences(state(bench.root), wanted, allow_temporary=outcome.status == -9)
        problem = f"afterwards, these differ: {different}" if different else ""
    return replace(made, problem=problem)


def _message(errors: str, root: Path) -> str:
    """The message of an error, without what differs from case to case."""
    start = errors.rfind("thumbnet: ")
    text = errors[start:] if start >= 0 else errors[-300:]
    return re.sub(r"\b[0-9a-f]{16,}\b|(?<=\.writing-)\w+", "...", text.replace(str(root), "")).strip()


def _ending(outcome: Outcome, way: str, message: str) -> str:
    """What is wrong with how a command ended."""
    if outcome.status not in (0, 2, -9):
        return f"ended with status {outcome.status}: {outcome.errors[-1500:]}"
    if outcome.status == -9 and not way.startswith("kill"):
        return "was killed"
    for word in ("Traceback", "Exception ignored", "Warning:"):
        if word in outcome.errors:
            return f"printed {word}: {outcome.errors[-1500:]}"
    return "" if outcome.status != 2 or message.startswith("thumbnet: ") else f"no message of ours: {message}"


State = dict[str, Any]


def state(root: Path) -> State:
    """The content of every file below a folder, without what a clock decides; None for a folder."""
    found: State = {}
    for folder, folders, files in os.walk(root):
        for name in folders:
            found[os.path.relpath(os.path.join(folder, name), root)] = None
        for name in files:
            path = Path(folder, name)
            found[str(path.relative_to(root))] = content(path)
    return found


def content(path: Path) -> Any:
    """A file's content, without what a clock decides; the error if a reader cannot read it."""
    data = path.read_bytes() if not path.is_symlink() else os.readlink(path).encode()
    try:
        if path.name == "checkpoint.pt":
            return _plain(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        if path.suffix in (".json", ".jsonl"):
            lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
            return _plain([json.loads(line) for line in lines])
        if path.name == "metrics.csv":
            return _plain(list(csv.DictReader(io.StringIO(data.decode()))))
    except Exception as error:
        return f"cannot be read: {error}"
    return hashlib.sha256(data).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items() if not _TIMES.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw).hexdigest()}"
    return repr(value) if isinstance(value, float) else value


def _left(after: State, before: State, wanted: State, status: int | None) -> str:
    """What is wrong with the files that a command has left."""
    for path, was in before.items():
        if path not in after:
            if path in wanted:
                return f"{path} is gone"
        elif after[path] not in (was, wanted.get(path)) and not _grows(path):
            return f"{path} is neither what it was nor what it becomes: {str(after[path])[:200]}"
    for path, now in after.items():
        if _TEMPORARY.search(path):
            if status != -9:
                return f"{path} is left over"
        elif isinstance(now, str) and now.startswith("cannot be read"):
            return f"{path} {now[:200]}"
        elif path not in wanted and path not in before:
            return f"{path} is unexpected"
        elif path not in before and now != wanted[path] and not _grows(path):
            return f"{path} is not what it becomes: {str(now)[:200]}"
    return ""


def _grows(path: str) -> bool:
    """Whether a file has several contents in the course of a command."""
    return os.path.basename(path) in (
        "checkpoint.pt",
        "metrics.jsonl",
        "metrics.csv",
        "digests.npy",
        "labels.csv",
    )


def _differences(after: State, wanted: State, allow_temporary: bool) -> str:
    names = [
        path
        for path in sorted(after.keys() | wanted.keys())
        if after.get(path, "missing") != wanted.get(path, "missing")
        and not (allow_temporary and _TEMPORARY.search(path) and "/cache/" in f"/{path}")
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
        ends = Counter(one.ended for one in of_it)
        lines.append(f"{scenario}: {len(of_it)} failures; {dict(ends)}")
        for operation in dict.fromkeys(one.operation for one in of_it):
            ways = Counter(one.way for one in of_it if one.operation == operation)
            lines.append(f"  {operation}: {dict(ways)}")
    return "\n".join(lines)
