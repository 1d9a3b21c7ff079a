"""Simulate trainings from a seed: train, fail, resume, fail again, finish, evaluate.

    make simulate SEEDS=1000
    make simulate SEED=17

Everything follows from the seed: the data, the recipe, the number of processes, and what goes wrong when: calls that
fail, files that are written in part, signals, power cuts, clocks that jump or stand still, slow or killed decoding
processes, slow ranks. After each command the run's files are examined, and at the end everything is compared with
the same training undisturbed; see :func:`Simulation.run`. A seed that fails prints how to replay it.

The idea is FoundationDB's and TigerBeetle's. Here, processes, signals and files are real, so what lies between two
calls of the C library is not drawn from the seed, and threads and processes run when the system lets them; the faults
are placed where their order makes no difference.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.disk_model import Disk
from faults.fork_server import Fault, ForkServer, Job, Outcome, build_shim, rank_variables
from helpers import coloured, coloured_labels, write_label_table

RECIPES = 150  # different ones; each is trained once undisturbed and then kept
DATA = ("folders", "one-folder", "sizes", "arrays", "zip", "several-labels", "unreadable")
SEVERAL_PROCESSES = 0.03  # of the recipes
LIMIT = 60.0  # seconds that a command may take
CHANGES = ("write", "fsync", "rename", "mkdir", "unlink", "truncate", "chmod")
READS = ("open", "read", "close", "list", "lock", "map")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EROFS)
KINDS = ("fail", "fail", "fail", "short", "end", "kill-before", "kill-half", "kill-after", "signal")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
TROUBLE = re.compile(r"Traceback|Exception ignored|Fatal|Segmentation|terminate called|core dumped")
TIMES = ("seconds", "pictures_per_second", "seconds_training", "seconds_total")


class Violation(Exception):
    """A promise was broken."""


@dataclass(frozen=True)
class Recipe:
    """What is trained, drawn from a number.

    Attributes:
        number: the number.
        data: one of :data:`DATA`.
        settings: of ``--set``.
        ranks: processes.
        in_workers: whether other processes decode.
    """

    number: int
    data: str
    settings: tuple[str, ...]
    ranks: int
    in_workers: bool


def draw_recipe(number: int) -> Recipe:
    """Draw a recipe that trains in a fraction of a second."""
    draw = random.Random(f"recipe {number}")
    data = draw.choice(DATA)
    several = data == "several-labels"
    ranks = 2 if draw.random() < SEVERAL_PROCESSES else 1
    in_workers = draw.random() < (0.0 if ranks > 1 else 0.06) and data != "arrays"
    batch = draw.choice((6, 8, 12, 16))
    values: dict[str, Any] = {
        "model.name": draw.choice(("fastnet",) * 7 + ("resnet20",)),
        "model.width": 0.05,
        "training.epochs": draw.choice((1, 2, 2, 3)),
        "training.batch_size": batch,
        "training.min_steps": 0,
        "training.precision": draw.choice(("fp32", "fp32", "fp32", "bf16")),
        "training.drop_last": draw.random() < 0.3,
        "training.ema_decay": draw.choice((0, 0, 0.9)),
        "training.micro_batch": draw.choice((0, 0, 0, 4)),
        "training.label_smoothing": draw.choice((0, 0.1)),
        "training.patience": draw.choice((0, 0, 0, 1)),
        "training.keep": draw.choice(("auto", "auto", "last", "best")),
        "training.class_weights": "none" if several else draw.choice(("none", "none", "balanced")),
        "data.image_size": draw.choice(("18", "18", "18", "20x18", "auto")),
        "data.val_fraction": draw.choice((0, 0, 0.2)),
        "data.calibration_pictures": draw.choice((0, 500)),
        "data.skip_easy": draw.choice((0, 0, 0.3, 0.5)),
        "data.engine": "workers" if in_workers else draw.choice(("auto", "memory")),
        "data.workers": draw.randint(1, 2),
        "data.on_bad_image": "skip" if data == "unreadable" else draw.choice(("stop", "stop", "skip")),
        "evaluation.every": draw.choice((0, 1, 1, 2)),
        "evaluation.sample": draw.choice((0, 6, 1000)),
        "evaluation.tta": draw.choice(("none", "mirror", "mirror-shift", "adaptive")),
        "evaluation.batch_size": draw.choice((7, 500)),
        "augment.flip": draw.choice(("none", "random", "alternating")),
        "augment.translate": draw.choice((0, 2)),
        "augment.cutout": draw.choice((0, 0, 4)),
        "augment.brightness": draw.choice((0, 0.2)),
        "augment.rotate": draw.choice((0, 0, 15)),
        "augment.hue": draw.choice((0, 0, 0.1)),
        "augment.erase": draw.choice((0, 0, 0.5)),
        "augment.mixup": draw.choice((0, 0, 0, 1)),
        "augment.cutmix": draw.choice((0, 0, 0, 1)),
        "optimizer.lr": 0.02,
        "checkpoint.min_seconds": draw.choice((0, 5, 10)),
        "checkpoint.steps": draw.choice((0, 1, 1, 2, 3)),
        "checkpoint.minutes": draw.choice((0, 0.1, 10)),
        "seed": draw.randint(0, 99),
    }
    if not values["evaluation.every"]:
        values["training.patience"] = 0
    if (values["training.patience"] or values["training.keep"] == "best") and not values["data.val_fraction"]:
        del values["data.val_fraction"]  # a tenth of train is then set aside
    if values["augment.mixup"] or values["augment.cutmix"]:
        values["data.skip_easy"] = 0
    if values["training.micro_batch"] or values["training.batch_size"] == 8:
        values["training.drop_last"] = True  # or a pass may have one picture, which small networks refuse
    if not several and not values["data.skip_easy"] and draw.random() < 0.15:
        values["data.sampling"] = "balanced"
    if draw.random() < 0.25:
        values["schedule.small_until"] = 0.5
        values["data.image_size"] = "28"
    recipe = draw.choice(("one-cycle", "one-cycle", "fast"))
    if recipe == "one-cycle":
        values["optimizer.name"] = draw.choice(("sgd", "adamw"))
        values["optimizer.nesterov"] = False
        values["schedule.name"] = draw.choice(("constant", "cosine", "linear", "one-cycle"))
    settings = tuple(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()
    )
    return Recipe(number, data, (recipe, *settings), ranks, in_workers)


def recipe_number(seed: int) -> int:
    """The number of the recipe that a seed's simulation trains."""
    return random.Random(f"schedule {seed}").randrange(RECIPES)  # the first draw of Simulation


def write_data(kind: str, place: Path) -> Path:
    """Write the pictures of ``kind`` below ``place``, unless they are there; return what to train on."""
    suffix = {"arrays": "/arrays.npz", "zip": "/pictures.zip"}.get(kind, "")
    if not place.exists():
        making = Path(tempfile.mkdtemp(dir=place.parent))
        _write_data(kind, making)
        for path in [making, *making.rglob("*")]:
            os.utime(path, (1_700_000_000, 1_700_000_000))  # long ago
        making.rename(place)
    return Path(f"{place}{suffix}")


def _write_data(kind: str, place: Path) -> None:
    if kind == "several-labels":
        write_label_table(place, coloured_labels(30, ("train", "test"), 18))
        return
    if kind == "arrays":
        labels = np.arange(36) % 3
        images = np.stack([coloured(int(label), at, 18) for at, label in enumerate(labels)])
        np.savez(
            place / "arrays.npz",
            x_train=images[:24],
            y_train=labels[:24],
            x_test=images[24:],
            y_test=labels[24:],
        )
        return
    root = place / "inside" if kind == "zip" else place
    splits = ("",) if kind == "one-folder" else ("train", "test")
    for offset, split in enumerate(splits):
        for label, name in enumerate(("red", "green", "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(10 - 5 * offset):
                side = 18 if kind != "sizes" else 13 + number
                image = coloured(label, 10_000 * offset + 100 * label + number, side)
                Image.fromarray(image).save(folder / f"{number}.png")
    if kind == "unreadable":
        (root / "train" / "red" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    if kind == "zip":
        with zipfile.ZipFile(place / "pictures.zip", "w") as archive:
            for path in sorted(root.rglob("*.png")):
                archive.writestr(zipfile.ZipInfo(str(path.relative_to(root))), path.read_bytes())
        shutil.rmtree(root)


@dataclass(frozen=True)
class Reference:
    """The undisturbed training of a recipe: what has to come out, and which calls it made."""

    weights: str
    skipped: str
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluation: str
    files: list[str]
    steps: int
    calls: list[tuple[str, str]]
    evaluation_calls: list[tuple[str, str]]


@dataclass
class Attempt:
    """One command with the faults drawn for it.

    Attributes:
        faults: for each rank.
        events: see :func:`simulate_hooks.install`.
        clock: likewise.
        delays, chunk: likewise.
        cut: whether the power is cut after the command.
    """

    faults: list[tuple[Fault, ...]] = field(default_factory=lambda: [(), ()])
    events: list[tuple[int, int, str, int]] = field(default_factory=list)
    clock: dict[str, Any] = field(default_factory=dict)
    delays: int = 0
    chunk: int = 0
    cut: bool = False


class World:
    """What all simulations share: the server, the data and the references, in a folder ``place``."""

    def __init__(self, place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place = place
        journal = place / "journal.so"
        source = Path(__file__).with_name("journal.c")
        command = [
            "gcc",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-O2",
            "-o",
            str(journal),
            str(source),
            "-ldl",
        ]
        subprocess.run(command, check=True, timeout=60)
        preload = f"{build_shim(place)} {journal}"
        environment = {"LD_PRELOAD": preload, "THUMBNET_TIMEOUT": "30", "COLUMNS": "100"}
        if "THUMBNET_CACHE" in os.environ:  # it may have the compiled kernels, of which each job has a copy
            environment["THUMBNET_CACHE"] = os.environ["THUMBNET_CACHE"]
        self.server = ForkServer(place, ("simulate_hooks", "torch.distributed"), environment)
        self.hooks: tuple[tuple[str, dict[str, Any]], ...] = ()  # more of them in each process
        self._references: dict[int, Reference] = {}
        self._warm()

    def close(self) -> None:
        """End the server, and remove the folder."""
        self.server.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def _warm(self) -> None:
        """Import in the server what commands import on their way. Folders of other pictures need nothing more."""
        for number, kind in enumerate(("unreadable", "zip", "several-labels")):
            recipe = replace(draw_recipe(0), data=kind, ranks=1)
            with self.folder(f"warm-{number}") as folder:
                simulation = Simulation(self, 0, folder, recipe)
                job = simulation.job(simulation.training(auto=True), 0, Attempt(clock=steady()))
                outcome = self.server.warm(job)
                if outcome.status != 0:
                    raise RuntimeError(f"{kind}: {outcome.errors}")
                if number == 0:
                    for more in (("evaluate", "runs/run", "--json"), ("train", "--resume", "runs/run")):
                        self.server.warm(replace(job, arguments=more))

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A folder with this name for one simulation."""
        path = self.place / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def data(self, kind: str) -> Path:
        """The pictures of ``kind``."""
        (self.place / "data").mkdir(exist_ok=True)
        return write_data(kind, self.place / "data" / kind)

    def reference(self, recipe: Recipe) -> Reference:
        """The undisturbed training of ``recipe``."""
        if recipe.number not in self._references:
            with self.folder(f"reference-{recipe.number}-{os.getpid()}") as folder:
                self._references[recipe.number] = Simulation(self, -1, folder, recipe).undisturbed()
        return self._references[recipe.number]


def steady() -> dict[str, Any]:
    """A clock that runs as clocks do."""
    return {"base": 1000.0, "wall": 0.0, "tick": 1e-5, "per_step": 0.05, "jumps": {}}


class Simulation:
    """One seed's training, in ``folder``."""

    def __init__(self, world: World, seed: int, folder: Path, recipe: Recipe | None = None) -> None:
        self.world, self.seed, self.folder = world, seed, folder
        self.draw = random.Random(f"schedule {seed}")
        number = self.draw.randrange(RECIPES)
        self.recipe = draw_recipe(number) if recipe is None else recipe
        self.data = world.data(self.recipe.data)
        self.log: list[str] = []
        self.commands = 0
        self.claimed: dict[str, int] = {}
        self.floor = -1  # steps of the newest checkpoint that was seen
        self.certain_floor = -1  # of the newest one that a power cut cannot take away
        self.may_leave = False
        (folder / "disk" / "runs").mkdir(parents=True)
        (folder / "disk" / "cache").mkdir()
        self.run_folder = folder / "disk" / "runs" / "run"
        self.disk = Disk(folder / "disk", folder / "journal", folder / "kept")
        (folder / "shared").write_bytes(bytes(256))

    # ------------------------------------------------------------------------------------------ commands

    def training(self, auto: bool) -> tuple[str, ...]:
        """The arguments of the training's command; with ``--auto-resume`` if ``auto``."""
        name, *settings = self.recipe.settings
        flags = [word for setting in settings for word in ("--set", setting)]
        first = ("train", str(self.data), "--recipe", name, "--out", str(self.run_folder), "--device", "cpu")
        return (*first, *flags, *(("--auto-resume",) if auto else ()))

    def job(
        self, arguments: tuple[str, ...], rank: int, attempt: Attempt, port: int = 0, log: bool = False
    ) -> Job:
        """A command as rank ``rank``."""
        environment: dict[str, str | None] = {"THUMBNET_CACHE": str(self.folder / "disk" / "cache")}
        if port:
            environment |= rank_variables(rank, self.recipe.ranks, port)
        values = {
            "rank": rank,
            "clock": attempt.clock,
            "events": attempt.events,
            "delays": attempt.delays,
            "chunk": attempt.chunk,
            "shared": str(self.folder / "shared"),
            "claims": str(self.folder / "claims"),
            "journal": (str(self.folder / "disk"), str(self.folder / "journal"), str(self.folder / "kept")),
        }
        return Job(
            arguments=arguments,
            watch=(str(self.folder / "disk"), str(self.world.place / "data" / self.recipe.data)),
            faults=attempt.faults[rank],
            environment=environment,
            folder=str(self.folder / "disk"),
            hooks=(("simulate_hooks:install", values), *self.world.hooks),
            log=log,
        )

    def command(
        self, arguments: tuple[str, ...], attempt: Attempt, ranks: int = 1, log: bool = False
    ) -> list[Outcome]:
        """Run a command in all ranks."""
        self.commands += 1
        (self.folder / "shared").write_bytes(bytes(256))
        port = _free_port() if ranks > 1 else 0
        running = [
            self.world.server.start(self.job(arguments, rank, attempt, port, log)) for rank in range(ranks)
        ]
        return [one.wait(LIMIT) for one in running]

    def undisturbed(self) -> Reference:
        """Train and evaluate without faults."""
        attempt = Attempt(clock=steady())
        trained = self.command(self.training(auto=True), attempt, self.recipe.ranks, log=True)
        if any(one.status != 0 for one in trained):
            raise RuntimeError(f"recipe {self.recipe} does not train: {trained[0].errors}")
        evaluated = self.command(self.evaluation, attempt, log=True)[0]
        if evaluated.status != 0:
            raise RuntimeError(f"recipe {self.recipe} cannot be evaluated: {evaluated.errors}")
        found = self.examine()
        return Reference(
            weights=_digest(self.run_folder / "model.safetensors"),
            skipped=self.skipped,
            rows=_without_times(found["rows"]),
            summary=_without_times([found["summary"]])[0],
            evaluation=evaluated.output,
            files=found["files"],
            steps=found["step"],
            calls=[(call.operation, self.plain(call.path)) for call in trained[0].calls],
            evaluation_calls=[(call.operation, self.plain(call.path)) for call in evaluated.calls],
        )

    @property
    def evaluation(self) -> tuple[str, ...]:
        """The arguments of the evaluation's command."""
        return ("evaluate", str(self.run_folder), "--json", "--device", "cpu")

    # ---------------------------------------------------------------------------------------- the simulation

    def run(self) -> str:
        """Run the simulation and return the digest of its log.

        Raises:
            Violation: a promise was broken: what was whole before is not any more, a message is not ours, an exit
                status is not documented, a file that was written is lost, something temporary is left at the end,
                or the result is not that of the undisturbed training, to the bit.
        """
        reference = self.world.reference(self.recipe)
        draw = self.draw
        auto = draw.random() < 0.5
        disturbed = draw.choice((1, 1, 2, 2, 3))
        self.note(f"recipe {self.recipe.number}: {self.recipe.data}, {self.recipe.ranks} rank(s)")
        for number in range(disturbed + 1):
            attempt = (
                self.attempt(reference.calls, reference.steps)
                if number < disturbed
                else Attempt(clock=self.clock())
            )
            if self.train(attempt, auto):
                break
        else:
            raise Violation("it is not complete after a command without faults")
        if self.skipped != reference.skipped:  # a disk that fails is no reason to go on without a picture
            raise Violation(f"other pictures were skipped: {self.skipped!r}, not {reference.skipped!r}")
        self.compare(reference)
        if draw.random() < 0.5:
            self.evaluate(reference)
        if draw.random() < 0.1:
            self.again(auto)
        return self.digest

    def train(self, attempt: Attempt, auto: bool) -> bool:
        """Run one command of the training, and maybe a power cut; tell whether the run is complete."""
        begun = (self.run_folder / "run.json").is_file() and (self.run_folder / "recipe.toml").is_file()
        resumes = begun and not auto
        arguments = (
            ("train", "--resume", str(self.run_folder), "--device", "cpu") if resumes else self.training(auto)
        )
        self.note(f"{'resume' if resumes else 'train'}: {_described(attempt)}")
        outcomes = self.command(arguments, attempt, self.recipe.ranks)
        self.judge(outcomes, attempt)
        self.after_command(attempt, outcomes)
        return self.is_complete

    def after_command(self, attempt: Attempt, outcomes: list[Outcome]) -> None:
        """Examine the files; cut the power if the attempt says so, and examine them again."""
        stopped = any(one.status in (130, 143) and "--resume" in one.errors for one in outcomes)
        self.disk.follow()
        self.take_claims()
        found = self.examine()
        # Its listing of the folder, or a removal, has failed: the next command removes what is temporary.
        self.may_leave = any(
            call is not None and call.operation in ("list", "unlink")
            for one in outcomes
            for call in one.failed
        )
        if stopped and found["step"] < 1:
            raise Violation("a training that was asked to stop has not saved")
        checkpoint = self.run_folder / "checkpoint.pt"
        if checkpoint.is_file() and self.claimed.get(str(checkpoint)) == checkpoint.stat().st_ino:
            self.certain_floor = self.floor
        if attempt.cut:
            self.floor = self.certain_floor
            self.note(f"power cut: {'; '.join(self.disk.cut_power(self.draw))}")
            self.check_claims()
            found = self.examine()
            self.certain_floor = self.floor
        elif self.draw.random() < 0.3:
            self.disk.write_back()
            self.certain_floor = self.floor
        self.note(f"step {found['step']}, files {' '.join(found['files'])}")

    @property
    def skipped(self) -> str:
        """The names of the pictures that the run has left out."""
        path = self.run_folder / "skipped.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return " ".join(f"{row['split']}/{row['name']}" for row in map(json.loads, lines))

    @property
    def is_complete(self) -> bool:
        """Whether the training has finished."""
        return (self.run_folder / "summary.json").is_file() and (
            self.run_folder / "model.safetensors"
        ).is_file()

    def evaluate(self, reference: Reference) -> None:
        """Evaluate, perhaps with a fault first; the result has to be the undisturbed one."""
        if self.draw.random() < 0.4:
            attempt = Attempt(clock=self.clock())
            attempt.faults[0] = (self.fault(reference.evaluation_calls),)
            self.note(f"evaluate: {_described(attempt)}")
            outcomes = self.command(self.evaluation, attempt)
            self.judge(outcomes, attempt)
            if outcomes[0].status == 0 and outcomes[0].output != reference.evaluation:
                raise Violation("an evaluation with a fault gave another result without an error")
            self.after_command(attempt, outcomes)
        outcome = self.command(self.evaluation, Attempt(clock=self.clock()))[0]
        if outcome.status != 0:
            raise Violation(f"the evaluation failed: {outcome.errors}")
        if outcome.output != reference.evaluation:
            raise Violation(f"the evaluation differs:\n{outcome.output}\n{reference.evaluation}")
        self.note("evaluated")

    def again(self, auto: bool) -> None:
        """A complete run stays as it is when its command is repeated."""
        before = _content(self.run_folder)
        arguments = self.training(True) if auto else ("train", "--resume", str(self.run_folder))
        outcomes = self.command(arguments, Attempt(clock=self.clock()), self.recipe.ranks)
        if auto != (outcomes[0].status == 0) or (not auto and "complete already" not in outcomes[0].errors):
            raise Violation(f"a complete run, once more: status {outcomes[0].status}: {outcomes[0].errors}")
        if _content(self.run_folder) != before:
            raise Violation("a complete run has changed")
        self.note("again")

    # ------------------------------------------------------------------------------------------ drawing faults

    def clock(self) -> dict[str, Any]:
        """Draw how a process's clock behaves."""
        draw = self.draw
        jumps = {}
        for _ in range(draw.choice((0, 0, 1, 2))):
            forward = draw.choice((0.0, 0.0, 11.0, 700.0, 90_000.0))
            jumps[str(draw.randint(1, 12))] = (forward, draw.choice((0.0, -3600.0, 200_000.0, -1e8)))
        return {
            "base": draw.choice((0.0, 5.0, 1e6)),
            "wall": draw.choice((0.0, 0.0, -1e8, 200_000.0)),
            "tick": draw.choice((0.0, 1e-5, 1e-5, 0.01, 1.0)),
            "per_step": draw.choice((0.0, 0.05, 3.0, 11.0)),
            "jumps": jumps,
        }

    def attempt(self, calls: list[tuple[str, str]], steps: int) -> Attempt:
        """Draw what goes wrong in one command."""
        draw = self.draw
        attempt = Attempt(clock=self.clock(), cut=draw.random() < 0.35)
        if draw.random() < 0.5:
            attempt.delays = draw.randrange(1, 1 << 30)
            attempt.chunk = draw.choice((0, 3, 7))
        if draw.random() < 0.65:
            rank = draw.randrange(self.recipe.ranks)
            attempt.faults[rank] = tuple(self.fault(calls) for _ in range(draw.choice((1, 1, 2))))
        else:
            rank, step = draw.randrange(self.recipe.ranks), draw.randint(1, max(1, steps))
            if self.recipe.in_workers and draw.random() < 0.3:
                attempt.events.append((rank, step, "worker", signal.SIGKILL))
            else:
                what, which = draw.choice(("before", "after")), draw.choice(SIGNALS)
                attempt.events += [(rank, step, what, which)] * draw.choice((1, 1, 1, 2))
        if self.recipe.ranks > 1:
            for _ in range(draw.randint(0, 4)):
                rank, step = draw.randrange(self.recipe.ranks), draw.randint(1, max(1, steps))
                attempt.events.append((rank, step, "slow", draw.randint(1, 20)))
        return attempt

    def fault(self, calls: list[tuple[str, str]]) -> Fault:
        """Draw a call, and how it goes wrong."""
        draw = self.draw
        # Decoding processes read pictures, and which of them reads when is up to the system.
        alone = not self.recipe.in_workers
        chosen = [
            (operation, path)
            for operation, path in calls
            if operation in CHANGES or (operation in READS and (alone or path.startswith("/runs/run/")))
            if _area(path) != "/" and (operation != "close" or _area(path) != "/data/")  # no loss
        ]
        operations = sorted({operation for operation, _ in chosen})
        operation = draw.choice(operations)
        areas = sorted({_area(path) for what, path in chosen if what == operation})
        area = draw.choice(areas)
        number = draw.randint(1, sum(what == operation and _area(path) == area for what, path in chosen))
        kind = draw.choice(KINDS)
        if (kind == "short" and operation not in ("read", "write")) or (
            kind == "end" and operation != "read"
        ):
            kind = "fail"
        error = draw.choice(ERRORS)
        if kind == "signal":
            error = draw.choice((signal.SIGINT, signal.SIGTERM))
        lasting = kind == "fail" and draw.random() < 0.4
        return Fault((operation,), number, kind, int(error), lasting, area)

    # ------------------------------------------------------------------------------------------------ judging

    def judge(self, outcomes: list[Outcome], attempt: Attempt) -> None:
        """Check exit statuses and messages."""
        for rank, outcome in enumerate(outcomes):
            met = [
                (fault, call)
                for fault, call in zip(attempt.faults[rank], outcome.failed, strict=True)
                if call is not None
            ]
            for fault, call in met:
                self.note(f"  rank {rank}: {fault.kind} at {call.operation} {self.plain(call.path)}")
            errors = self.plain(outcome.errors)
            self.note(f"  rank {rank}: status {outcome.status}: {errors.strip()}")
            if outcome.status is None:
                raise Violation(f"rank {rank} hangs: {errors}")
            if TROUBLE.search(errors):
                raise Violation(f"rank {rank} has no message of ours: {errors}")
            allowed = self.allowed(rank, met, attempt, outcomes)
            if outcome.status not in allowed:
                raise Violation(
                    f"rank {rank} has status {outcome.status}, not one of {sorted(allowed)}: {errors}"
                )
            if outcome.status in (1, 2) and "thumbnet" not in errors:
                raise Violation(f"rank {rank} fails without a message: {errors}")
            if outcome.status == 0 and not errors.isprintable() and "\0" in errors:
                raise Violation(f"rank {rank} prints nonsense: {errors}")

    def allowed(self, rank: int, met: list[Any], attempt: Attempt, outcomes: list[Outcome]) -> set[int]:
        """The exit statuses that the faults allow."""
        allowed = {0}
        for fault, _ in met:
            if fault.kind.startswith("kill"):
                allowed.add(-signal.SIGKILL)
            elif fault.kind == "signal":
                allowed |= {128 + fault.error, -fault.error}
            else:
                allowed.add(2)
        for victim, _, what, which in attempt.events:
            if what == "worker":
                allowed.add(2)
            elif what in ("before", "after") and victim == rank:
                allowed |= {128 + which} if which != signal.SIGKILL else {-signal.SIGKILL}
            elif what in ("before", "after"):
                allowed |= {130, 143}  # all ranks stop together
        others = [one.status for other, one in enumerate(outcomes) if other != rank]
        if any(status != 0 for status in others):
            allowed |= {1, 130}
            if attempt.faults[1 - rank]:
                allowed |= {130, 143}
        return allowed

    def take_claims(self) -> None:
        """Read which files thumbnet has finished writing."""
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "claims").read_text().splitlines():
                number, _, path = line.partition("\t")
                self.claimed[path] = int(number)
            (self.folder / "claims").unlink()

    def check_claims(self) -> None:
        """After a power cut: what thumbnet has finished writing is there, or a later version of it."""
        for path in self.claimed:
            if not Path(path).is_file():
                raise Violation(f"{self.plain(path)} was written and is lost after a power cut")
        self.claimed = {}

    def examine(self) -> dict[str, Any]:
        """Check that each file of the run is whole, and that nothing has gone back.

        Returns:
            The names of the files, the rows of the metrics, the summary, and the number of steps in the checkpoint.
        """
        folder = self.run_folder
        found: dict[str, Any] = {"files": [], "rows": [], "summary": None, "step": -1}
        if not folder.is_dir():
            if self.floor >= 0:
                raise Violation("the run's folder has disappeared")
            return found
        names = sorted(path.name for path in folder.iterdir())
        found["files"] = [name for name in map(_plain_name, names) if name != ".lock"]
        try:
            for name in ("run.json", "environment.json", "summary.json"):
                if name in names:
                    found[name] = json.loads((folder / name).read_text(), parse_constant=_no_constant)
            if "recipe.toml" in names:
                tomllib.loads((folder / "recipe.toml").read_text())
            if "metrics.jsonl" in names:
                lines = (folder / "metrics.jsonl").read_text().splitlines()
                found["rows"] = [json.loads(line, parse_constant=_no_constant) for line in lines]
            if "checkpoint.pt" in names:
                found["step"] = _checkpoint_step(folder / "checkpoint.pt")
            if "model.safetensors" in names:
                _check_weights(folder / "model.safetensors")
        except Exception as error:
            raise Violation(f"a file of the run is not whole: {type(error).__name__}: {error}") from None
        epochs = [row["epoch"] for row in found["rows"]]
        if epochs != list(range(1, len(epochs) + 1)):
            raise Violation(f"the epochs in metrics.jsonl are {epochs}")
        if found["step"] < self.floor:
            raise Violation(f"the checkpoint has gone back from step {self.floor} to {found['step']}")
        self.floor = found["step"]
        found["summary"] = found.get("summary.json")
        return found

    def compare(self, reference: Reference) -> None:
        """Compare a complete run with the undisturbed one."""
        found = self.examine()
        if _digest(self.run_folder / "model.safetensors") != reference.weights:
            raise Violation("the weights differ from those of the undisturbed training")
        if _without_times(found["rows"]) != reference.rows:
            raise Violation(f"metrics.jsonl differs:\n{found['rows']}\n{reference.rows}")
        with (self.run_folder / "metrics.csv").open() as file:
            table = list(csv.DictReader(file))
        as_text = [
            {key: "" if value is None else str(value) for key, value in row.items()} for row in found["rows"]
        ]
        if [{key: value for key, value in row.items() if value != ""} for row in table] != [
            {key: value for key, value in row.items() if value != ""} for row in as_text
        ]:
            raise Violation(f"metrics.csv differs from metrics.jsonl:\n{table}\n{as_text}")
        if _without_times([found["summary"]])[0] != reference.summary:
            raise Violation(f"summary.json differs:\n{found['summary']}\n{reference.summary}")
        files = [name for name in found["files"] if not (self.may_leave and name.endswith(".tmp"))]
        if files != reference.files:
            raise Violation(f"the run has other files: {found['files']}, not {reference.files}")
        for row in [*found["rows"], found["summary"]]:
            for key in TIMES:
                value = row.get(key)
                if value is not None and not (math.isfinite(value) and value >= 0):
                    raise Violation(f"{key} is {value}")

    # ---------------------------------------------------------------------------------------------------- the log

    def note(self, line: str) -> None:
        """Write an event down."""
        self.log.append(line)

    @property
    def digest(self) -> str:
        """The digest of all events."""
        return hashlib.sha256("\n".join(self.log).encode()).hexdigest()[:16]

    def plain(self, text: str) -> str:
        """``text`` without names that differ from run to run."""
        text = text.replace(str(self.folder / "disk"), "").replace(str(self.world.place), "")
        text = re.sub(r"(lost contact with the others) \(.*?\)\. ", r"\1. ", text)  # names a port
        text = re.sub(r"DataLoader worker \(pid \d+\)", "DataLoader worker", text)
        text = re.sub(r"\.[a-z0-9_]{8}\.tmp", ".*.tmp", text)
        text = re.sub(r"\.(writing|unpacking)-[a-z0-9_]{8}", r".\1-*", text)
        return re.sub(r"(decoded/|-)[0-9a-f]{16,32}\b", r"\1*", text)


def _area(path: str) -> str:
    """A part of paths whose calls are counted together."""
    for area in (
        "/runs/run/.checkpoint.pt",
        "/runs/run/checkpoint.pt",
        "/runs/run/.metrics",
        "/runs/run/",
        "/cache/",
    ):
        if path.startswith(area):
            return area
    return "/data/" if path.startswith("/data/") else "/"


def _plain_name(name: str) -> str:
    return re.sub(r"\.[a-z0-9_]{8}\.tmp$", ".*.tmp", name)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _content(folder: Path) -> dict[str, str]:
    return {
        path.name: _digest(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != ".lock"
    }


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _checkpoint_step(path: Path) -> int:
    """The number of steps in a checkpoint; its checksums are right."""
    import torch

    with zipfile.ZipFile(path) as parts:
        damaged = parts.testzip()
    if damaged is not None:
        raise ValueError(f"checksum of {damaged}")
    return int(torch.load(path, map_location="cpu", weights_only=True)["state"]["step"])


def _check_weights(path: Path) -> None:
    from safetensors.numpy import load_file

    load_file(path)


def _without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def _described(attempt: Attempt) -> str:
    faults = [
        f"rank {rank}: {fault.kind} {fault.error}{' from' if fault.lasting else ''} at {fault.operations[0]} "
        f"{fault.at} of {fault.contains}"
        for rank, faults in enumerate(attempt.faults)
        for fault in faults
    ]
    events = [f"rank {rank}: {what} step {step}: {value}" for rank, step, what, value in attempt.events]
    rest = f"clock {json.dumps(attempt.clock)}, delays {attempt.delays}, chunk {attempt.chunk}"
    return "; ".join([*faults, *events, rest])


@dataclass(frozen=True)
class Result:
    """What came of a seed.

    Attributes:
        digest: of the events; None if a promise was broken.
        log: the events.
        commands: how many commands of thumbnet ran.
    """

    digest: str | None
    log: list[str]
    commands: int


def simulate(world: World, seed: int) -> Result:
    """Run one seed."""
    with world.folder(f"seed-{seed}-{os.getpid()}") as folder:
        simulation = Simulation(world, seed, folder)
        try:
            return Result(simulation.run(), simulation.log, simulation.commands)
        except Violation as error:
            simulation.note(f"VIOLATION: {simulation.plain(str(error))}")
        except Exception:
            simulation.note(f"VIOLATION: the simulation itself failed: {traceback.format_exc()}")
        return Result(None, simulation.log, simulation.commands)


def scratch() -> Path:
    """A folder in memory, where there is one: the simulation syncs very often."""
    memory = Path("/dev/shm")
    return Path(
        tempfile.mkdtemp(prefix="thumbnet-simulate-", dir=memory if os.access(memory, os.W_OK) else None)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="only this one, with all that happens")
    parser.add_argument("--verbose", action="store_true", help="print all that happens")
    options = parser.parse_args()
    place = scratch()
    failed, commands = [], 0
    begun = time.monotonic()
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    try:
        world = World(place)
        for number, seed in enumerate(seeds, start=1):
            result = simulate(world, seed)
            commands += result.commands
            if options.verbose or options.seed is not None:
                print("\n".join(result.log))
            if result.digest is None:
                failed.append(seed)
                print(f"seed {seed}: {result.log[-1]}\nreplay: make simulate SEED={seed}", flush=True)
            elif options.seed is not None:
                print(f"seed {seed}: events {result.digest}")
            if number % 100 == 0:
                print(f"{number} seeds, {len(failed)} failed, {time.monotonic() - begun:.0f} s", flush=True)
        world.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    took, used = time.monotonic() - begun, sum(os.times()[:4])
    print(
        f"seeds {seeds[0]} to {seeds[-1]}, {commands} commands: {len(failed)} failed {failed or ''} "
        f"({took:.0f} s, {used:.0f} s of a core)"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
