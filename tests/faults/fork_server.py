"""Run commands of thumbnet with faults: tens of thousands of them, at the price of a fork each.

A server process imports torch and thumbnet once, with shim.c preloaded, and forks for each command. The child runs
the command in-process and ends without Python's shutdown. The shim counts the calls that work on files below
``watch``, and makes those fail that the job's faults name. How to use it:

```python
with ForkServer(scratch) as server:
    job = Job(("train", str(data), "--out", str(out)), watch=(str(root),))
    undisturbed = server.run(replace(job, log=True))
    for number in range(1, undisturbed.counts["write"] + 1):
        outcome = server.run(replace(job, faults=(Fault(("write",), at=number, error=errno.ENOSPC),)))
        assert outcome.status in (0, 2), outcome.errors
```

:meth:`ForkServer.start` starts a command and returns at once; several may run at a time, such as the two processes
of one training. They get signals from :meth:`Running.send` or from a fault of the kind ``signal``. What no
call of the C library reaches is reached by hooks: functions ``MODULE:NAME`` that the child calls before the command,
and by :func:`announce`, with which Python code counts what it does as calls.

This file is also the server's program: the client starts it, and sends and receives lines of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import mmap
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

SHIM = Path(__file__).with_name("shim.c")

# The same order as in shim.c.
OPERATIONS = (
    "open", "read", "write", "fsync", "rename", "mkdir", "unlink", "truncate", "link", "chmod", "close", "list",
    "copy", "lock", "map", "stat", "allocate", "decode", "collective",
)  # fmt: skip
KINDS = ("fail", "short", "end", "kill-before", "kill-half", "kill-after", "signal", "delay")
_FAULTS, _FOLDERS, _LOGGED, _PATH = 16, 8, 16384, 256


class _Fault(ctypes.Structure):
    _fields_ = (
        ("operations", ctypes.c_uint32),
        ("kind", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("lasting", ctypes.c_int32),
        ("at", ctypes.c_int64),
        ("contains", ctypes.c_char * _PATH),
        ("count", ctypes.c_int64),
        ("fired", ctypes.c_int64),
        ("operation", ctypes.c_int32),
        ("path", ctypes.c_char * _PATH),
    )


class _Entry(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_int32), ("path", ctypes.c_char * _PATH))


class _Control(ctypes.Structure):
    _fields_ = (
        ("armed", ctypes.c_int64),
        ("faults", ctypes.c_int64),
        ("folders", ctypes.c_int64),
        ("folder", (ctypes.c_char * _PATH) * _FOLDERS),
        ("fault", _Fault * _FAULTS),
        ("counts", ctypes.c_int64 * len(OPERATIONS)),
        ("logged", ctypes.c_int64),
        ("log", _Entry * _LOGGED),
    )


@dataclass(frozen=True)
class Fault:
    """What goes wrong with which call.

    Attributes:
        operations: which calls count, of :data:`OPERATIONS`.
        at: the number of the call that fails, from 1, among those that count.
        kind: ``fail`` returns ``error``; ``short`` reads or writes half; ``end`` makes a read find the end of the
            file; ``kill-before``, ``kill-half`` and ``kill-after`` are SIGKILL before the call, after half of its
            bytes, and after it; ``signal`` sends the signal ``error`` before the call, and ``delay`` waits ``error``
            milliseconds.
        error: an errno for ``fail``.
        lasting: whether all later calls that count fail, too: a disk that stays full.
        contains: only calls on paths that contain this text count.
    """

    operations: tuple[str, ...]
    at: int
    kind: str = "fail"
    error: int = errno.EIO
    lasting: bool = False
    contains: str = ""


@dataclass(frozen=True)
class Job:
    """A command to run in a fork of the server.

    Attributes:
        arguments: of ``thumbnet``.
        watch: the folders below which calls count, at most 8, without links in their paths.
        faults: what goes wrong, at most 16.
        environment: variables to set; None removes one.
        folder: the working folder (default: the server's).
        hooks: functions ``MODULE:NAME`` and their keyword arguments, called before the command.
        log: whether :attr:`Outcome.calls` lists all calls.
        program: the function ``MODULE:NAME`` that is run; it gets its arguments as ``sys.argv``, and returns the
            exit status.
    """

    arguments: tuple[str, ...]
    watch: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    environment: Mapping[str, str | None] = field(default_factory=dict)
    folder: str | None = None
    hooks: tuple[tuple[str, dict[str, Any]], ...] = ()
    log: bool = False
    program: str = "thumbnet.__main__:main"


@dataclass(frozen=True)
class Call:
    """A call that the shim counted; of a kernel's allocation, ``path`` is the kernel."""

    operation: str
    path: str


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: the exit status; -9 and the like after a signal, as in ``subprocess``. None: it ran past the time
            limit and was killed.
        output, errors: what it printed to stdout and stderr.
        counts: the number of calls of each operation below the watched folders.
        failed: what each fault met first; None for a fault that was not reached.
        calls: all calls in order, if the job asked for them.
        modules: the modules that the command imported and the server had not; empty after a kill.
        seconds: it took.
    """

    status: int | None
    output: str
    errors: str
    counts: dict[str, int]
    failed: tuple[Call | None, ...]
    calls: tuple[Call, ...]
    modules: tuple[str, ...]
    seconds: float


def rank_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells process ``rank`` of ``ranks`` on this machine, which meet at ``port``."""
    one, all_of_them = str(rank), str(ranks)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": one, "LOCAL_RANK": one, "WORLD_SIZE": all_of_them, **where}


def build_shim(folder: Path) -> Path:
    """Compile shim.c into ``folder``."""
    target = folder / "shim.so"
    flags = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-O2"]
    subprocess.run(["gcc", *flags, "-o", str(target), str(SHIM), "-ldl"], check=True, timeout=60)
    return target


def why_not() -> str | None:
    """Why there can be no fork server here, in a few words; None if there can."""
    if sys.platform != "linux":
        return f"the shim needs Linux, and this is {sys.platform}"
    return None if shutil.which("gcc") else "there is no gcc to compile the shim"


class ForkServer:
    """Runs jobs in forks of a process that has imported thumbnet.

    Args:
        scratch: a folder for the shim and the server's own cache; not a watched one.
        modules: what the server imports first, in addition to thumbnet's command and training.
        environment: variables for the server and all jobs.
    """

    def __init__(
        self, scratch: Path, modules: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": "1",
                "THUMBNET_CACHE": str(scratch / "cache"),
                "LD_PRELOAD": str(build_shim(scratch)),
                **(environment or {}),
            },
        )
        self.pid = self._process.pid
        self._lock = threading.Lock()
        self._ask({"import": list(modules)})

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, and every command that still runs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def load(self, modules: Iterable[str]) -> None:
        """Import modules in the server, so that no job has to. Those that cannot be imported are left out."""
        self._ask({"import": list(modules)})

    def warm(self, job: Job) -> Outcome:
        """Run ``job``, then import what it needed in the server."""
        outcome = self.run(job)
        self.load(outcome.modules)
        return outcome

    def start(self, job: Job) -> Running:
        """Start a job and return at once."""
        return Running(self, int(self._ask({"start": asdict(job)})))

    def run(self, job: Job, limit: float = 120.0) -> Outcome:
        """Run a job to its end, at most ``limit`` seconds."""
        return self.start(job).wait(limit)

    def wait(self, pid: int, limit: float) -> Outcome:
        """See :meth:`Running.wait`."""
        answer = self._ask({"wait": pid, "limit": limit})
        failed = tuple(None if one is None else Call(*one) for one in answer.pop("failed"))
        calls = tuple(Call(*one) for one in answer.pop("calls"))
        return Outcome(**answer, failed=failed, calls=calls)

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with status {self._process.wait(timeout=10)}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "problem" in answer:
            raise RuntimeError(f"the fork server failed:\n{answer['problem']}")
        return answer


@dataclass(frozen=True)
class Running:
    """A command that runs; ``pid`` is also the number of its process group."""

    server: ForkServer
    pid: int

    @property
    def is_alive(self) -> bool:
        """Whether it still runs. One that has ended is a zombie until :meth:`wait`."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, limit: float = 120.0) -> Outcome:
        """Wait for its end; after ``limit`` seconds, kill it. Then kill the workers that it has left behind."""
        return self.server.wait(self.pid, limit)


# ------------------------------------------------------------------------------------------------- in a child of it


def announce(operation: str, name: str, done: bool = False) -> int:
    """Count something that no call of the C library does; return an errno if it is to fail, else 0.

    ``done`` announces the end of one that went well. Either may kill the process.
    """
    return int(ctypes.CDLL(None).shim_call(OPERATIONS.index(operation), os.fsencode(name), int(done)))


# ----------------------------------------------------------------------------------------------- the server itself


@dataclass
class _Child:
    control: _Control
    started: float
    log: bool
    output: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    errors: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    modules: IO[bytes] = field(default_factory=tempfile.TemporaryFile)


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a module prints on import must not be taken for a reply
    shim = ctypes.CDLL(None)
    shim.shim_size.restype = ctypes.c_size_t
    assert shim.shim_size() == ctypes.sizeof(_Control), (
        "struct control differs between shim.c and fork_server.py"
    )
    _import(("thumbnet.__main__", "thumbnet.cli", "thumbnet.training.train"))
    from thumbnet.kernels.library import load_kernels

    load_kernels()
    load_kernels(strided=True)
    children: dict[int, _Child] = {}
    for line in sys.stdin:
        question = json.loads(line)
        answer: Any
        try:
            if "import" in question:
                _import(question["import"])
                answer = True
            elif "start" in question:
                pid, child = _fork(question["start"], shim)
                children[pid] = child
                answer = pid
            else:
                answer = _wait(question["wait"], children.pop(question["wait"]), question["limit"])
        except Exception:
            answer = {"problem": traceback.format_exc()}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
    for pid in children:
        _kill_group(pid)


def _import(names: Iterable[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"fork server: cannot import {name}: {error}", file=sys.stderr)
    gc.freeze()  # or each child's collections would copy all of the server's memory


def _fork(job: dict[str, Any], shim: ctypes.CDLL) -> tuple[int, _Child]:
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        raise RuntimeError(
            f"{len(threads)} threads run in the server: their locks would stay locked in a fork"
        )
    memory = mmap.mmap(-1, ctypes.sizeof(_Control))  # shared with the child, and zero
    control = _Control.from_buffer(memory)
    _fill(control, job)
    child = _Child(control, time.monotonic(), job["log"])
    pid = os.fork()
    if pid:
        return pid, child
    try:
        os.setpgid(0, 0)
        status = _run(job, child, shim)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def _fill(control: _Control, job: dict[str, Any]) -> None:
    control.folders = len(job["watch"])
    for index, folder in enumerate(job["watch"]):
        control.folder[index].value = os.fsencode(folder)
    control.faults = len(job["faults"])
    for index, fault in enumerate(job["faults"]):
        place = control.fault[index]
        place.operations = sum(1 << OPERATIONS.index(name) for name in fault["operations"])
        place.kind = KINDS.index(fault["kind"])
        place.error, place.lasting, place.at = fault["error"], fault["lasting"], fault["at"]
        place.contains = os.fsencode(fault["contains"])


def _run(job: dict[str, Any], child: _Child, shim: ctypes.CDLL) -> int:
    """The child: run the command, and return its exit status."""
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((null, 0), (child.output.fileno(), 1), (child.errors.fileno(), 2)):
        os.dup2(descriptor, target)
    for name, value in job["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if job["folder"] is not None:
        os.chdir(job["folder"])
    for hook, values in job["hooks"]:
        _named(hook)(**values)
    program = _named(job["program"])
    before = set(sys.modules)
    sys.argv = ["thumbnet", *job["arguments"]]
    shim.shim_attach(ctypes.byref(child.control))
    child.control.armed = 1
    try:
        status = program()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(bool(error.code))
    finally:
        child.control.armed = 0
    sys.stdout.flush()
    child.modules.write(json.dumps(sorted(set(sys.modules) - before)).encode())
    child.modules.flush()
    return status


def _named(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    named: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return named


def _wait(pid: int, child: _Child, limit: float) -> dict[str, Any]:
    descriptor = os.pidfd_open(pid)
    try:
        ended = bool(select.select([descriptor], [], [], limit)[0])
    finally:
        os.close(descriptor)
    if not ended:
        _kill_group(pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = time.monotonic() - child.started
    _kill_group(pid)
    control = child.control
    faults = [control.fault[index] for index in range(control.faults)]
    logged = min(control.logged, _LOGGED) if child.log else 0
    modules = _content(child.modules)
    return {
        "status": status if ended else None,
        "output": _content(child.output),
        "errors": _content(child.errors),
        "counts": dict(zip(OPERATIONS, control.counts, strict=True)),
        "failed": [_call(fault) if fault.fired else None for fault in faults],
        "calls": [_call(control.log[index]) for index in range(logged)],
        "modules": json.loads(modules) if modules else [],
        "seconds": seconds,
    }


def _call(place: _Fault | _Entry) -> tuple[str, str]:
    return OPERATIONS[place.operation], os.fsdecode(place.path)


def _content(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="backslashreplace")


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
