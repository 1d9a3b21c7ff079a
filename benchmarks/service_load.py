"""Puts `thumbnet serve` under mixed load on loopback, and stops it under load.

    python benchmarks/service_load.py cats.onnx RUN --minutes 30 --json load.json

Good, hostile, slow and disconnecting clients (service_clients.py) share the service and the processors. The
program fails with status 1 if memory grows, if an answer is 5xx that is no declared overload (503 with
Retry-After), if a client gets what it should not, or if a stop loses an accepted request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from measure import parser, report
from service_clients import GROUPS, work
from service_pictures import broken_pictures, deep_picture, good_pictures, large_picture
from service_wire import DECLARED, WORDS_OF_NO_ANSWER, Load, Picture, get, several, single

from thumbnet.cli.console import note, say, table
from thumbnet.sources.load import load_data

MEGABYTE = 1 << 20
MOST_PICTURES = 64  # in a request and in a forward pass, unless `thumbnet serve` is told otherwise
GRACE = 20.0  # seconds that a stop may take, as docs/serving.md promises
SLACK = 10.0  # seconds more for a busy machine
# Its access log, and what uvicorn says when a stop has taken as long as it may.
EXPECTED_LINE = re.compile(
    r"\S+Z \S+ \S+ \S+ \d+ pictures=\d+ ms=\S+|\S+Z dropped=\d+|ERROR: +Cancel \d+ running task\(s\).*"
)
SHARES = {"good": 12, "hostile": 8, "slow": 8, "leaving": 4}  # how many of 32 clients are of each group


class Service:
    """A running `thumbnet serve`. A thread reads its log, and keeps every line that is no access."""

    def __init__(self, model: str, options: list[str]) -> None:
        command = [
            sys.executable,
            "-m",
            "thumbnet",
            "serve",
            model,
            "--data",
            "none",
            "--port",
            "0",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines, self.others = 0, list[str]()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)", line)
        if not found:
            self._reader.join(10)
            raise SystemExit(f"the service did not start: {line}{''.join(self.others)}")
        self.place = (found[1], int(found[2]))
        self.watched = psutil.Process(self.process.pid)

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines += 1
            if not EXPECTED_LINE.fullmatch(line.rstrip("\n")) and len(self.others) < 2000:
                self.others.append(line)

    def sample(self, started: float) -> Sample:
        """What the process uses now."""
        with self.watched.oneshot():
            memory, threads = self.watched.memory_info().rss, self.watched.num_threads()
        return Sample(time.monotonic() - started, memory / MEGABYTE, self.watched.num_fds(), threads)

    def kill(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)


@dataclass(frozen=True)
class Sample:
    """What the service uses: seconds since the start, resident megabytes, open files, threads."""

    seconds: float
    memory: float
    files: int
    threads: int


@dataclass
class Stop:
    """A stop under load: requests accepted before it, those of them that got no answer, and how it ended."""

    accepted: int
    lost: list[str]
    answered_later: int
    seconds: float
    status: int | None


@dataclass
class Result:
    """One model under load.

    Attributes:
        loads: the long run, then one for each further stop.
        samples: what the service used during the long run, each second.
        stops: the stops, one for each of ``loads``.
        counted: how many answers of each status the service counted in the long run.
        deep: megabytes by which a form of large 16-bit pictures raised the memory of the idle service.
        accesses: lines of its access log.
        others: other lines that it printed.
    """

    loads: list[Load] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    deep: float = 0.0
    accesses: int = 0
    others: list[str] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Run, print tables, write JSON. Status 1 if anything is wrong."""
    options = _options(arguments)
    data = load_data("digits")
    pixels = [np.asarray(data.splits["test"].load(index)) for index in range(44)]
    pictures = good_pictures(pixels)
    template = Load(("", 0), pictures, large_picture(), broken_pictures(pictures), options.pause)
    failures: list[str] = []
    results = {}
    for model in options.models:
        result = asyncio.run(_model(model, options, template))
        found = problems(result, options.growth, options.peak)
        failures += [f"{model}: {one}" for one in found]
        results[model] = _as_json(result, found)
        _show(model, result, options)
    report(
        "failures", ["failure"], [[one] for one in failures or ["none"]], options.json, {"models": results}
    )
    return 1 if failures else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__, rounds=1)
    made.add_argument("models", nargs="+", metavar="MODEL", help="runs, or ONNX files")
    made.add_argument("--minutes", type=float, default=30.0, help="how long each model is under load")
    made.add_argument("--clients", type=int, default=32, help="clients at a time")
    made.add_argument("--pause", type=float, default=0.0, help="mean seconds between two visits of a client")
    made.add_argument("--seed", type=int, default=1, help="of what the clients do")
    made.add_argument("--stops", type=int, default=10, help="how many times to stop the service under load")
    made.add_argument(
        "--stop-after", type=float, default=4.0, help="seconds of load before each further stop"
    )
    made.add_argument("--quick-stops", action="store_true", help="no clients that keep a stop waiting")
    made.add_argument(
        "--no-warm-up",
        dest="every_batch_size",
        action="store_false",
        help="send no batch of each size before",
    )
    made.add_argument(
        "--no-deep", dest="deep", action="store_false", help="send no form of large 16-bit pictures before"
    )
    made.add_argument("--growth", type=float, default=32.0, help="megabytes that memory may grow by")
    made.add_argument("--peak", type=float, default=1000.0, help="megabytes above the start, at any moment")
    made.add_argument(
        "--serve", nargs="*", default=[], metavar="OPTION", help="for thumbnet serve, without --"
    )
    return made.parse_args(arguments)


async def _model(model: str, options: argparse.Namespace, template: Load) -> Result:
    """The long run, which a stop ends, and the further stops."""
    result, pictures = Result(), list[Picture]()
    for number in range(max(1, options.stops)):
        service = Service(model, [f"--{one}" for one in options.serve])
        try:
            load = replace(template, place=service.place)
            pictures = pictures or [await _known(load, picture) for picture in load.pictures]
            load = Load(service.place, pictures, template.large, template.broken, options.pause)
            result.loads.append(load)
            seconds = 60 * options.minutes
            if number == 0 and options.every_batch_size:
                await _every_batch_size(load)
            if number == 0 and options.deep:
                result.deep = await _deep_form(service, load)
            if number:
                draw = random.Random(f"{options.seed} {number}")
                seconds = options.stop_after * (0.5 + draw.random())
            await _under_load(service, load, options, seconds, result)
        finally:
            service.kill()
        result.accesses += service.lines - len(service.others)
        result.others += service.others
    return result


async def _known(load: Load, picture: Picture) -> Picture:
    """The picture, with what the service says about it."""
    async with load.connected() as connection:
        await connection.send(single(picture.content))
        answer = await connection.answer()
    if answer.status != 200:
        raise SystemExit(f"the service refused {picture.name}: {answer.body!r}")
    classes = json.loads(answer.body)["predictions"][0]["classes"]
    return replace(picture, expected={one["name"]: one["probability"] for one in classes[:3]})


async def _every_batch_size(load: Load) -> None:
    """Send one request with each number of pictures to the idle service.

    PyTorch keeps memory for each batch size that it has met, 150 MB in all for FastNet. Under load it takes
    minutes until each of them has occurred, which would look like a leak.
    """
    for count in range(1, MOST_PICTURES + 1):
        pictures = [load.pictures[number % len(load.pictures)] for number in range(count)]
        async with load.connected() as connection:
            await connection.send(several([(one.name, one.content) for one in pictures]))
            answer = await connection.answer()
        load.check(f"{count} pictures", answer, pictures)


async def _deep_form(service: Service, load: Load) -> float:
    """Megabytes by which memory rises while the idle service answers a form of four 16-bit pictures.

    If it decoded all of them at once, that would take 1.6 GB. Clients under load send none: a busy machine
    decodes them for longer than a stop may take.
    """
    picture, started = deep_picture(), time.monotonic()
    before = most = service.sample(started).memory
    async with load.connected() as connection:
        await connection.send(several([(f"{number}.png", picture) for number in range(4)]))
        asking = asyncio.create_task(connection.answer())
        while not asking.done():
            await asyncio.wait([asking], timeout=0.01)
            most = max(most, service.sample(started).memory)
    answer = asking.result()
    if answer.status != 200 and not answer.word.endswith(DECLARED):
        load.blame(f"a form of large 16-bit pictures: {answer.word}")
    return most - before


async def _under_load(
    service: Service, load: Load, options: argparse.Namespace, seconds: float, result: Result
) -> None:
    """Let the clients work for so long, then stop the service while they go on."""
    number = len(result.loads) - 1
    until = lambda: load.stopping is not None and service.process.poll() is not None  # noqa: E731
    tasks = []
    for group, share in SHARES.items():
        kinds = GROUPS[group]
        if number % 2 or options.quick_stops:  # some clients hold a stop up for as long as it may take
            kinds = [one for one in kinds if one.name not in ("endless body", "no reader")]
        for client in range(max(1, round(options.clients * share / 32))):
            seed = f"{options.seed} {number} {group} {client}"
            tasks.append(asyncio.create_task(work(load, group, seed, until, kinds)))
    started, told = time.monotonic(), 0
    while (left := started + seconds - time.monotonic()) > 0 and service.process.poll() is None:
        load.keep_tickets = left < 3.0
        await asyncio.sleep(min(1.0, left))
        if number == 0:
            result.samples.append(service.sample(started))
            if time.monotonic() - started > seconds * (told + 1) / 10:
                told += 1
                note(f"{told} of 10: {result.samples[-1]}, {len(load.wrong)} wrong: {load.wrong[-3:]}")
    if number == 0:
        result.counted = await _counted(load)
    if service.process.poll() is not None:
        load.blame(f"the service ended by itself, with status {service.process.returncode}")
    load.stopping = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    while service.process.poll() is None and time.monotonic() < load.stopping + GRACE + SLACK:
        await asyncio.sleep(0.02)
    took, status = time.monotonic() - load.stopping, service.process.poll()
    service.kill()
    _, unfinished = await asyncio.wait(tasks, timeout=30)
    for task in unfinished:
        task.cancel()
    accepted = [one for one in load.tickets if one.sent < load.stopping and not one.excused]
    lost = [
        f"{one.kind}, sent {load.stopping - one.sent:.3f} s before" for one in accepted if not one.answered
    ]
    later = sum(one.answered for one in load.tickets if one.sent >= load.stopping)
    result.stops.append(Stop(len(accepted), lost, later, took, status))


async def _counted(load: Load) -> Counter[str]:
    """What the service itself has counted: its answers by status, also those to clients that had left."""
    async with load.connected() as connection:
        await connection.send(get("/metrics"))
        text = (await connection.answer()).body.decode()
    found: Counter[str] = Counter()
    for status, count in re.findall(r'thumbnet_requests_total\{.*status="(\d+)"\} ([\d.e+]+)', text):
        found[status] += int(float(count))
    return found


def problems(result: Result, growth: float, peak: float) -> list[str]:
    """What is wrong with a result, in words."""
    found = []
    allowed = {kind.name: kind.statuses for kinds in GROUPS.values() for kind in kinds}
    for number, load in enumerate(result.loads):
        where = f"before stop {number + 1}"
        found += [f"{where}: {one}" for one in load.wrong]
        for when, seen, more in (
            (where, load.seen, ()),
            (f"at stop {number + 1}", load.ending, WORDS_OF_NO_ANSWER),
        ):
            for (kind, word), count in sorted(seen.items()):
                if word not in allowed[kind] and word not in more and not word.endswith(DECLARED):
                    found.append(f"{when}: {kind}: {count} times {word}")
    failed = {
        status: count for status, count in result.counted.items() if status[0] == "5" and status != "503"
    }
    found += [f"the service counted {count} answers {status}" for status, count in failed.items()]
    if result.samples:
        grown = growth_of(result.samples)
        if grown > growth:
            found.append(f"memory grew by {grown:.0f} MB, more than {growth:.0f}")
        high = max(one.memory for one in result.samples) - result.samples[0].memory
        if high > peak:
            found.append(f"memory rose by {high:.0f} MB, more than {peak:.0f}")
    if result.deep > peak:
        found.append(f"a form of large 16-bit pictures took {result.deep:.0f} MB, more than {peak:.0f}")
    for number, stop in enumerate(result.stops, 1):
        found += [f"stop {number} lost a request: {one}" for one in stop.lost]
        if stop.status != 0:
            found.append(f"stop {number} ended with status {stop.status} after {stop.seconds:.1f} s")
    # Not the lines of a traceback, except its last.
    return (
        found + [f"the service printed: {line.rstrip()}" for line in result.others if line[:1].strip()][:40]
    )


def growth_of(samples: list[Sample]) -> float:
    """By how many megabytes memory grew: the median of the last tenth less that of the second.

    The first tenth warms up: threads, buffers, and the largest of everything are new then.
    """
    tenths = in_tenths(samples)
    return median(one.memory for one in tenths[-1]) - median(
        one.memory for one in tenths[min(1, len(tenths) - 1)]
    )


def in_tenths(samples: list[Sample]) -> list[list[Sample]]:
    """The samples in ten parts of equal length, or fewer if there are fewer samples."""
    parts = min(10, len(samples))
    return [samples[len(samples) * n // parts : len(samples) * (n + 1) // parts] for n in range(parts)]


def _show(model: str, result: Result, options: argparse.Namespace) -> None:
    load = result.loads[0]
    title = f"{Path(model).name}: {options.minutes:g} minutes, {options.clients} clients, seed {options.seed}"
    rows = []
    for group, kinds in GROUPS.items():
        for kind in kinds:
            statuses = {word: n for (name, word), n in sorted(load.seen.items()) if name == kind.name}
            if statuses:
                times = _times(load.seconds.get(kind.name, []))
                told = ", ".join(f"{word}: {count:,}" for word, count in statuses.items())
                rows.append([group, kind.name, f"{sum(statuses.values()):,}", told, *times])
    say(title)
    say(table(["clients", "kind", "requests", "answers", "p50, ms", "p99, ms", "most, ms"], rows))
    rows = [
        [
            f"{part[0].seconds / 60:.1f} to {part[-1].seconds / 60:.1f}",
            f"{median(one.memory for one in part):.0f}",
            f"{max(one.memory for one in part):.0f}",
            f"{median(one.files for one in part):.0f}",
            f"{max(one.files for one in part)}",
            f"{max(one.threads for one in part)}",
        ]
        for part in in_tenths(result.samples)
    ]
    say(table(["minutes", "memory, MB", "most", "open files", "most", "threads"], rows))
    rows = [
        [
            str(number),
            str(one.accepted),
            str(len(one.lost)),
            str(one.answered_later),
            f"{one.seconds:.1f}",
            str(one.status),
        ]
        for number, one in enumerate(result.stops, 1)
    ]
    say(table(["stop", "accepted", "lost", "answered that came later", "seconds", "status"], rows))
    if result.deep:
        say(f"a form of four 16-bit pictures of 25 megapixels took {result.deep:.0f} MB")
    counts = ", ".join(f"{status}: {count:,}" for status, count in sorted(result.counted.items()))
    say(f"the service's own count of answers: {counts}; {result.accesses:,} lines in its access log")


def _times(values: list[float]) -> list[str]:
    if not values:
        return ["", "", ""]
    p50, p99, most = (1000 * float(one) for one in np.quantile(values, [0.5, 0.99, 1]))
    return [f"{p50:.1f}", f"{p99:.1f}", f"{most:.0f}"]


def _as_json(result: Result, found: list[str]) -> dict[str, Any]:
    load = result.loads[0]
    return {
        "answers": {f"{kind}: {word}": count for (kind, word), count in sorted(load.seen.items())},
        "milliseconds": {
            kind: {f"p{one}": 1000 * float(np.percentile(values, one)) for one in (50, 90, 99, 100)}
            for kind, values in load.seconds.items()
        },
        "tenths": [
            {"memory": median(one.memory for one in part), "most_memory": max(one.memory for one in part),
             "files": max(one.files for one in part), "threads": max(one.threads for one in part)}
            for part in in_tenths(result.samples)
        ],
        "grown": growth_of(result.samples),
        "deep": result.deep,
        "stops": [asdict(one) for one in result.stops],
        "counted": dict(result.counted),
        "failures": found,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
