"""Measures the headline numbers of README and docs from the current commit, and keeps them as a record.

These are accuracy and time of ``fast``, of its reference, of ``digits`` and, with ``--resnet18 3``, of
``resnet18``. Speeds, starting times and exports have programs of their own, which docs/results.md names.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python benchmarks/records.py --reference cifar10-airbench/airbench94_muon.py
    python benchmarks/records.py --show
    python benchmarks/records.py --data cifar10     # the original pictures, downloaded

The trainings of ``fast`` take turns with the reference, each in a process of its own with an empty cache.
Data that are given by name are downloaded before. The record, ``docs/records/DATE-COMMIT.json``, is written
after every run. If the program is interrupted, call it again on the same processor: it goes on. The whole
takes one to three hours; less with fewer ``--seeds`` or without ``--reference``.
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
from accuracy import train_by_command
from measure import SHARED, median
from resumable import git, model_of, processor, source_commit

from thumbnet.cli.console import say, table
from thumbnet.files import write_file
from thumbnet.hardware import describe

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "records"
REFERENCE = "airbench94_muon"
TIMED = "the command thumbnet train, with an empty cache and without a download"


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
        accuracies, plain: test accuracy in percent, with test-time augmentation and without, by seed. (The
            reference sets no seed: its runs are only numbered.)
        seconds: from the start of the process to its end; in records without ``timed``, to the end of the
            call of ``thumbnet.train`` in a process that does nothing else.
        work: seconds times the rate of a bf16 matrix product right afterwards, in TFLOP.

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


def jobs(
    seeds: int, references: int, short: tuple[int, ...], short_seeds: int, resnets: int = 0
) -> Iterator[Job]:
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
    for seed in range(resnets):
        yield Job("resnet18", 15, seed)


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
            found: dict[str, Any] = json.loads(out.read_text())
        return {**found, "seconds": found["seconds_in_all"]}
    options = argparse.Namespace(
        data="digits" if job.what == "digits" else data, recipe=job.what, overrides=[], cold=True
    )
    return train_by_command(options, job.epochs, job.seed)


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
        "timed": TIMED,
        "machine": {**describe(torch.device("cpu")), "identity": processor()},
        "software": {"python": platform.python_version(), "torch": torch.__version__},
        "since_the_last_record": changes.splitlines(),
        "runs": [],
    }


def check_processor(record: dict[str, Any], path: Path) -> None:
    """Check that a record continues on the processor on which it was begun.

    Raises:
        SystemExit: this is another one.
    """
    there, here = processor_of(record), model_of(processor())
    if there != here:
        raise SystemExit(
            f"{path} was measured on another processor ({there}; here: {here}): continue it there"
        )


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


def processor_of(record: dict[str, Any]) -> str:
    """Vendor, family and model of a record's processor. Different ones share a name, such as "AMD EPYC"."""
    machine = record["machine"]
    return model_of(machine.get("identity") or machine["processor"])


def processors() -> list[str]:
    """The processors that have records, as :func:`processor_of` gives them; the newest first."""
    return list(dict.fromkeys(processor_of(record) for record in reversed(records())))


def newest(on: str) -> dict[tuple[str, int], Summary]:
    """For each recipe and number of epochs, the runs of the newest record of this processor that has them."""
    there = [record for record in records() if processor_of(record) == on]
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
        f"{found.deviation:.2f}" if found.n > 1 else "",
        f"{fmean(found.plain):.2f} %" if found.plain else "",
        f"{median(found.seconds):,.0f}" if found.seconds else "",
        f"{median(found.work):,.0f}" if found.work else "",
    ]


HEADER = [
    "training", "n", "accuracy with TTA", "deviation", "without TTA", "seconds in all", "machine work, TFLOP",
]  # fmt: skip


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
    arguments.add_argument(
        "--resnet18", type=int, default=0, metavar="N", help="seeds of resnet18, each half an hour"
    )
    arguments.add_argument("--busy", action="store_true", help="other work is running: times do not count")
    arguments.add_argument("--show", action="store_true", help="print the newest numbers, measure nothing")
    options = arguments.parse_args()
    if options.show:
        show()
        return
    commit = source_commit()
    if commit is None or commit.endswith("+"):
        raise SystemExit(
            "a record is of a commit: clone the repository with git, and commit the changes in src/"
        )
    data = Path(options.data).name
    path = record_path(commit, data)
    record = json.loads(path.read_text("utf-8")) if path.exists() else begin(commit, data)
    check_processor(record, path)
    done = {Job(one["what"], one["epochs"], one["seed"]) for one in record["runs"]}
    references = options.references if options.reference else 0
    short = tuple(options.epochs)
    for job in jobs(options.seeds, references, short, options.short_seeds, options.resnet18):
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
