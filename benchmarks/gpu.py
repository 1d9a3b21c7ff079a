"""Everything to measure in a short time on a GPU, in one command.

    python benchmarks/gpu.py --data cifar10-jpeg.tar.xz --total-minutes 9 --json gpu.json \\
        --rival airbench=cifar10-airbench/airbench94_muon.py \\
        --rival hiverge=cifar10-speedrun/cifar10_speedrun.py
    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --only checks turns --json gpu.json
    python benchmarks/gpu.py --device cpu --smoke --data digits --json smoke.json

The parts run one after the other, the most valuable first. Each has a process of its own and a time limit of
its own, so a part that fails, crashes or hangs costs no other part anything. Its status and the last lines of
its output are recorded. The JSON file is rewritten, whole or not at all, whenever a part has a new result.

The scripts of the rivals are not part of thumbnet: clone KellerJordan/cifar10-airbench and
hiverge/cifar10-speedrun, and give the paths. docs/gpu.md explains the parts and how to use them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from thumbnet.cli.console import say, table
from thumbnet.errors import ThumbnetError
from thumbnet.files import write_file

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data" / "cifar10-jpeg.tar.xz"
NOTES = "THUMBNET_NOTES"  # names the file in which a part keeps its results
LIMIT = "THUMBNET_LIMIT"  # tells a part its time limit in seconds
TAIL = 30  # lines of output that are recorded of a part that did not end well
LEAST = 5.0  # seconds that must be left to start a part
POLL = 0.1  # seconds
RUNNING, DONE, FAILED, TIMED_OUT = "running", "done", "failed", "timed out"
INTERRUPTED, NO_TIME, WAITING = "interrupted", "no time left", "waiting"


@dataclass(frozen=True)
class Options:
    """What the parts need to know.

    Attributes:
        data: as in ``thumbnet train``.
        device: as in ``thumbnet train``.
        rounds: trainings of each contender in ``turns``.
        rivals: paths of the rivals' scripts, by name.
        variants: further settings of ``fast`` that take turns with it.
        overrides: settings for every training of ``fast``.
        smoke: use few pictures and a tiny network, to try out the program itself.
    """

    data: str = str(SHARED)
    device: str = "cuda"
    rounds: int = 10
    rivals: dict[str, str] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    smoke: bool = False


@dataclass(frozen=True)
class Part:
    """One part: its name, what it does, its time limit in seconds, and the command that runs it."""

    name: str
    what: str
    limit: float
    command: tuple[str, ...] = ()


PARTS = (
    Part("machine", "versions, the card, and its rate of a bf16 matrix product", 120),
    Part("checks", "PASS or FAIL: what must hold on a device", 180),
    Part("turns", "fast and its rivals in turns on the same pictures, warm", 420),
    Part("command", "`thumbnet train` from start to end, with a cold and a warm cache", 120),
    Part("speed", "pictures per second, fraction of the bf16 peak, peak memory, kernels of a step", 120),
    Part("compiled", "PASS or FAIL: fast trains with torch.compile", 180),
    Part("budgets", "fast for 3, 8 and 20 times the work: the 95 % and 96 % classes", 240),
    Part("resnet18", "resnet18 for 26, 45 and 80 epochs", 420),
)


def parts_for(options: Options, only: Sequence[str], limits: dict[str, float]) -> list[Part]:
    """The parts to run. ``machine`` is always the first."""
    asked = json.dumps(asdict(options))
    program = str(HERE / "gpu_parts.py")
    return [
        Part(part.name, part.what, limits.get(part.name, part.limit),
             (sys.executable, program, part.name, asked))
        for part in PARTS
        if not only or part.name in only or part.name == "machine"
    ]  # fmt: skip


class Running:
    """A part at work: its process, and what is known of it.

    Attributes:
        entry: the part's entry in the record: status, seconds, time limit and results, and how the part ended
            if it did not end well.
    """

    def __init__(self, part: Part, limit: float, folder: Path) -> None:
        self.log, self.notes = folder / "log", folder / "notes.json"
        self.started = time.monotonic()
        environment = {
            NOTES: str(self.notes), LIMIT: str(limit), "PYTHONUNBUFFERED": "1", "PYTHONPATH": python_path(),
        }  # fmt: skip
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                part.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._shown = 0
        self.entry: dict[str, Any] = {"status": RUNNING, "seconds": 0, "limit_seconds": limit, "results": {}}

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def follow(self) -> bool:
        """Pass on new output to stdout; return whether there are new results."""
        with self.log.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        self._shown += len(new)
        sys.stdout.write(new.decode("utf-8", errors="replace"))
        sys.stdout.flush()
        results = json.loads(self.notes.read_text("utf-8")) if self.notes.exists() else {}
        changed = bool(results != self.entry["results"])
        self.entry.update(results=results, seconds=round(self.seconds, 2))
        return changed

    def finish(self, status: str) -> None:
        """End the process if it still runs, and complete the entry."""
        end(self.process)
        self.follow()
        self.entry["status"] = status
        if status != DONE:
            lines = self.log.read_text("utf-8", errors="replace").splitlines()
            self.entry.update(exit_status=self.process.returncode, last_lines=lines[-TAIL:])


def run_part(part: Part, limit: float, publish: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run a part for at most ``limit`` seconds; return its entry.

    ``publish`` is called with the entry whenever there are new results, and at the end.
    """
    with tempfile.TemporaryDirectory(prefix="thumbnet-gpu-", ignore_cleanup_errors=True) as folder:
        running = Running(part, limit, Path(folder))
        status = TIMED_OUT
        try:
            while running.seconds < limit:
                exit_status = running.process.poll()
                if exit_status is not None:
                    status = FAILED if exit_status else DONE
                    break
                if running.follow():
                    publish(running.entry)
                time.sleep(POLL)
        except KeyboardInterrupt:
            status = INTERRUPTED
        finally:
            running.finish(status)
    publish(running.entry)
    return running.entry


def python_path() -> str:
    """``PYTHONPATH`` of everything that is started: this copy of thumbnet, and what was there, all absolute.

    The contenders of `turns` work in a folder of their own, where a relative entry names nothing.
    """
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(map(str, [HERE.parent / "src", *(Path(entry).absolute() for entry in given)]))


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: its process group, where the system has such groups."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:  # pragma: no cover - Windows
        process.kill()
    process.wait()


def run_parts(parts: Sequence[Part], record: dict[str, Any], file: Path | None, total: float) -> bool:
    """Run ``parts`` within ``total`` seconds, and keep ``record`` in ``file`` up to date.

    Returns:
        Whether all parts ended well and no check failed.

    Raises:
        ThumbnetError: ``file`` cannot be written.
        KeyboardInterrupt: the user interrupted a part. ``file`` has its results.
        SystemExit: ``machine`` reported a mistake in the options, so nothing else can work.
    """
    started = time.monotonic()
    record["parts"] = {part.name: {"status": WAITING} for part in parts}

    def save() -> None:
        record["seconds"] = round(time.monotonic() - started, 2)
        if file is not None:
            write_file(file, json.dumps(record, indent=2) + "\n")

    def publish(name: str, entry: dict[str, Any]) -> None:
        record["parts"][name] = entry
        save()

    save()  # a file that cannot be written is known before anything runs
    for part in parts:
        left = total - (time.monotonic() - started)
        if left < LEAST:
            publish(part.name, {"status": NO_TIME})
            continue
        limit = min(part.limit, left)
        say(f"== {part.name}: {part.what} (at most {limit:.0f} s)")
        entry = run_part(part, limit, lambda entry, name=part.name: publish(name, entry))  # type: ignore[misc]
        say(f"== {part.name}: {entry['status']} after {entry['seconds']:.1f} s")
        if entry["status"] == INTERRUPTED:
            raise KeyboardInterrupt
        if part.name == "machine" and entry.get("exit_status") == 2:
            raise SystemExit(2)
    return all(ended_well(entry) for entry in record["parts"].values())


def ended_well(entry: dict[str, Any]) -> bool:
    """Whether a part is done and none of its checks failed."""
    checks = entry.get("results", {}).get("checks", {})
    return entry["status"] == DONE and all(check["passed"] for check in checks.values())


def commit() -> str | None:
    """The commit of this copy of thumbnet, with "+" if tracked files differ; None outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    return None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        SystemExit: an option is wrong.
    """
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default=str(SHARED), help="as in thumbnet train (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="as in thumbnet train (default: cuda)")
    parser.add_argument("--total-minutes", type=_positive, default=9.0, metavar="M", help="for everything")
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        type=_limit,
        metavar="PART=SECONDS",
        help="another time limit for a part",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        default=[],
        metavar="PART",
        help="run only these parts (and machine)",
    )
    parser.add_argument("--list", action="store_true", help="list the parts and their limits")
    parser.add_argument("--rounds", type=int, default=10, help="trainings of each contender in turns")
    parser.add_argument(
        "--rival",
        action="append",
        default=[],
        type=_rival,
        metavar="NAME=SCRIPT",
        help="airbench94_muon.py or cifar10_speedrun.py, from a clone of your own",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="SETTINGS",
        help="one more contender: fast with KEY=VALUE settings, separated by spaces",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="a setting for every training of fast",
    )
    parser.add_argument("--commit", help="what to record if this copy of thumbnet is not in git")
    parser.add_argument("--smoke", action="store_true", help="few pictures, a tiny network: try the program")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file as they come")
    found = parser.parse_args(arguments)
    for name, _ in found.limit:
        if name not in names:
            parser.error(f"--limit {name}: there is no such part; choose from {', '.join(names)}")
    if found.json and not Path(found.json).resolve().parent.is_dir():
        parser.error(f"--json {found.json}: there is no such folder")
    return found


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _limit(text: str) -> tuple[str, float]:
    name, _, seconds = text.partition("=")
    return name, _positive(seconds or "0")


def _rival(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not path or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=SCRIPT, with the path of a Python script")
    return name, str(Path(path).resolve())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 if all ended well, 1 if not, 2 for a mistake, 130 if interrupted."""
    found = parse(arguments)
    if found.list:
        say(table(["part", "at most, s", "what"], [[p.name, f"{p.limit:.0f}", p.what] for p in PARTS]))
        return 0
    data = str(Path(found.data).resolve()) if Path(found.data).exists() else found.data
    options = Options(
        data, found.device, found.rounds, dict(found.rival), tuple(found.variant), tuple(found.overrides),
        found.smoke,
    )  # fmt: skip
    record: dict[str, Any] = {
        "title": "thumbnet on a GPU",
        "commit": found.commit or commit(),
        "begun": datetime.now().astimezone().isoformat(timespec="seconds"),
        "total_minutes": found.total_minutes,
        "options": asdict(options),
    }
    file = Path(found.json).resolve() if found.json else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the part at work, as Ctrl-C does
    try:
        well = run_parts(
            parts_for(options, found.only, dict(found.limit)), record, file, 60 * found.total_minutes
        )
    except ThumbnetError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    entries = record["parts"]
    say(table(
        ["part", "status", "seconds"],
        [[name, entry["status"], f"{entry.get('seconds', 0):.1f}"] for name, entry in entries.items()],
    ))  # fmt: skip
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
