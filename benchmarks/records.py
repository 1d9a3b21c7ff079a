"""Measures every headline number of README and docs from the current commit, and keeps them as a record.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python benchmarks/records.py --reference cifar10-airbench/airbench94_muon.py
    python benchmarks/records.py --show
    python benchmarks/records.py --data cifar10     # the original pictures, downloaded

The trainings of ``fast`` take turns with the reference, each in a process of its own with an empty cache. The
record, ``docs/records/DATE-COMMIT.json``, is written after every run. If the program is interrupted, call it
again: it goes on. The whole takes one to three hours; less with fewer ``--seeds`` or without ``--reference``.
``tests/test_records.py`` compares the numbers in README and docs with the newest records of CIFAR-10 (JPEG
copy) on each kind of processor. Records of other data have the data's name in theirs.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from accuracy import train_in_child
from measure import SHARED, median

from thumbnet.cli.console import say, table
from thumbnet.files import write_file
from thumbnet.hardware import describe

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "records"
REFERENCE = "airbench94_muon"


@dataclass(frozen=True)
class Job:
    """One run: a recipe with its number of epochs and seed, or the reference."""

    what: str
    epochs: int
    seed: int


@dataclass(frozen=True)
class Summary:
    """The runs of one recipe and number of epochs in one record.

    Attributes:
        what, epochs: which runs.
        accuracies, plain: test accuracy in percent, with test-time augmentation and without, by seed.
        seconds: of the whole command, from the start of its process, by seed.
        work: seconds times the rate of a bf16 matrix product in the same process, in TFLOP, by seed.

    ``seconds`` and ``work`` leave out runs that shared the computer with other work.
    """

    what: str
    epochs: int
    accuracies: tuple[float, ...]
    plain: tuple[float, ...]
    seconds: tuple[float, ...]
    work: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.accuracies)

    @property
    def mean(self) -> float:
        return fmean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation of the accuracies, in points; 0 for a single run."""
        return stdev(self.accuracies) if self.n > 1 else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean, in points."""
        return self.deviation / self.n**0.5

    @property
    def clock(self) -> str:
        """The median time as minutes and seconds."""
        seconds = round(median(self.seconds))
        return f"{seconds // 60}:{seconds % 60:02d}"


def jobs(seeds: int, references: int, short: tuple[int, ...], short_seeds: int) -> Iterator[Job]:
    """The runs in turns: the reference is spread evenly among the seeds of ``fast``."""
    every = max(1, seeds // max(1, references))
    left = references
    for seed in range(seeds):
        yield Job("fast", 15, seed)
        if left and (seed + 1) % every == 0:
            left -= 1
            yield Job(REFERENCE, 8, references - left - 1)
    for epochs in short:
        for seed in range(short_seeds):
            yield Job("fast", epochs, seed)
    yield Job("digits", 20, 0)


def run(job: Job, data: str, reference: Path | None) -> dict[str, Any]:
    """Run a job in a process of its own."""
    if job.what == REFERENCE:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "reference.json"
            program = Path(__file__).with_name("airbench.py")
            command = [sys.executable, str(program), str(reference), "--epochs", str(job.epochs)]
            subprocess.run(
                [*command, "--data", data, "--json", str(out)], check=True, stdout=subprocess.DEVNULL
            )
            found = json.loads(out.read_text())
        kept = {"seconds": found["seconds_in_all"], "plain_accuracy": None}
        return {"accuracy": found["accuracy"], "product_tflops": found["product_tflops"], **kept}
    cold = Path(data).exists()  # with an empty cache, every run would download the data again
    options = argparse.Namespace(
        data="digits" if job.what == "digits" else data, recipe=job.what, overrides=[], cold=cold
    )
    return train_in_child(options, job.epochs, job.seed)


def record_path(commit: str, data: str) -> Path:
    """The file of this commit's record: an earlier day's, if the measuring began then."""
    name = commit if data == SHARED.name else f"{commit}-{data}"
    return next(RECORDS.glob(f"*-{name}.json"), RECORDS / f"{date.today()}-{name}.json")


def begin(commit: str, data: str) -> dict[str, Any]:
    """A new record, without runs."""
    earlier = records(data)
    changes = git("log", "--format=%h %s", f"{earlier[-1]['commit']}..", "--", "src") if earlier else ""
    return {
        "commit": commit,
        "data": data,
        "begun": datetime.now().isoformat(timespec="minutes"),
        "machine": {**describe(torch.device("cpu")), "identity": processor()},
        "software": {"python": platform.python_version(), "torch": torch.__version__},
        "since_the_last_record": changes.splitlines(),
        "runs": [],
    }


def processor() -> str:
    """Family, model and stepping of the processor, which its name does not tell."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    keys = ("vendor_id", "cpu family", "model", "stepping")
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return ", ".join(f"{key} {found[key]}" for key in keys if key in found) or platform.processor()


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def records(data: str = SHARED.name) -> list[dict[str, Any]]:
    """All records of ``data``, oldest first."""
    found = [json.loads(path.read_text("utf-8")) for path in RECORDS.glob("*.json")]
    found = [record for record in found if record["data"] == data]
    return sorted(found, key=lambda record: str(record["begun"]))


def summaries(record: dict[str, Any]) -> dict[tuple[str, int], Summary]:
    """The runs of a record by recipe and number of epochs, each by seed."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in sorted(record["runs"], key=lambda one: int(one["seed"])):
        found.setdefault((one["what"], one["epochs"]), []).append(one)
    return {
        key: Summary(
            *key,
            accuracies=tuple(100 * one["accuracy"] for one in runs),
            plain=tuple(100 * one["plain_accuracy"] for one in runs if one["plain_accuracy"] is not None),
            seconds=tuple(one["seconds"] for one in runs if one.get("quiet", True)),
            work=tuple(
                one["seconds"] * one["product_tflops"]
                for one in runs
                if one.get("quiet", True) and one["product_tflops"]
            ),
        )
        for key, runs in found.items()
    }


def processors() -> list[str]:
    """The names of the processors that have records, as their systems give them; the newest first."""
    names = [record["machine"]["processor"] for record in reversed(records())]
    return list(dict.fromkeys(names))


def newest(on: str) -> dict[tuple[str, int], Summary]:
    """For each recipe and number of epochs, the runs of the newest record of this processor that has them."""
    there = [record for record in records() if record["machine"]["processor"] == on]
    return {key: found for record in there for key, found in summaries(record).items()}


def row(found: Summary) -> list[str]:
    """A row of the table in docs/results.md."""
    name = {REFERENCE: f"{REFERENCE} ({found.epochs} epochs), for comparison"}.get(
        found.what,
        f"`{found.what}`" if found.epochs in (15, 20) else f"`{found.what} --epochs {found.epochs}`",
    )
    every = ", ".join(f"{value:.2f}" for value in found.accuracies)
    spread = f" ± {found.error:.2f}" if found.n > 1 else ""
    return [
        name,
        str(found.n),
        f"{found.mean:.2f}{spread} %" + (f" ({every})" if found.n > 1 else ""),
        f"{fmean(found.plain):.2f} %" if found.plain else "",
        f"{median(found.seconds):,.0f}" if found.seconds else "",
        f"{median(found.work):,.0f}" if found.work else "",
    ]


HEADER = ["training", "n", "accuracy with TTA", "without TTA", "seconds in all", "machine work, TFLOP"]


def show() -> None:
    """Print the newest numbers of each processor as the tables in docs/results.md."""
    for name in processors():
        say(f"{name}\n\n| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
        for _, found in sorted(newest(name).items(), key=lambda item: (item[0][0] != "fast", -item[0][1])):
            say(f"| {' | '.join(row(found))} |")
        say("")


def main() -> None:
    """Measure what is missing in this commit's record, and print the table."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--data", default=str(SHARED))
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--reference", type=Path, metavar="SCRIPT", help="airbench94_muon.py in a clone")
    arguments.add_argument("--references", type=int, default=3, metavar="N", help="runs of the reference")
    arguments.add_argument("--epochs", type=int, nargs="*", default=[1, 4], help="of shorter trainings")
    arguments.add_argument("--short-seeds", type=int, default=3, help="seeds of the shorter trainings")
    arguments.add_argument("--busy", action="store_true", help="other work is running: times do not count")
    arguments.add_argument("--show", action="store_true", help="print the newest numbers, measure nothing")
    options = arguments.parse_args()
    if options.show:
        show()
        return
    if git("status", "--porcelain", "--untracked-files=no", "--", "src"):
        raise SystemExit("src/ has changes that are not committed: a record is of a commit")
    commit = git("log", "-1", "--format=%h", "--", "src")
    data = Path(options.data).name
    path = record_path(commit, data)
    record = json.loads(path.read_text("utf-8")) if path.exists() else begin(commit, data)
    done = {Job(one["what"], one["epochs"], one["seed"]) for one in record["runs"]}
    references = options.references if options.reference else 0
    for job in jobs(options.seeds, references, tuple(options.epochs), options.short_seeds):
        if job in done:
            continue
        measured = run(job, options.data, options.reference)
        one = {"what": job.what, "epochs": job.epochs, "seed": job.seed}
        for key in ("accuracy", "plain_accuracy", "seconds", "product_tflops"):
            one[key] = None if measured[key] is None else round(measured[key], 4)
        record["runs"].append({**one, "quiet": False} if options.busy else one)
        RECORDS.mkdir(parents=True, exist_ok=True)
        write_file(path, to_text(record))
        sys.stderr.write(f"{json.dumps(one)}\n")
    say(str(path))
    say(table(HEADER, [row(found) for found in summaries(record).values()]))


def to_text(record: dict[str, Any]) -> str:
    """JSON with one line per run."""
    runs = ",\n".join(f"    {json.dumps(one)}" for one in record["runs"])
    head = json.dumps({key: value for key, value in record.items() if key != "runs"}, indent=2)
    return f'{head[:-2]},\n  "runs": [\n{runs}\n  ]\n}}\n'


if __name__ == "__main__":
    main()
