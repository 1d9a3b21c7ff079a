"""Read and write a run's folder, which holds everything about one training.

```text
recipe.toml        every setting, resolved
run.json           the data, their fingerprint, what was asked, digests of the user's own code; a resume
                   needs it and the recipe
environment.json   versions, hardware, git commit; other ones with which the training was resumed
corrections.csv    the corrections of labels, if the run was trained with any
metrics.jsonl      one line per epoch; metrics.csv holds the same rows for a spreadsheet
checkpoint.pt      the state to resume from (tensors and plain values, loaded with weights_only=True)
skipped.jsonl      the pictures that were skipped, and why; exists only if there were any
leaks.jsonl        pictures that are in two splits or in two classes; exists only if there are any
digests.npy        a digest of each training picture, by which `evaluate` finds those in new data
model.safetensors  the weights; the metadata holds everything needed to use them
summary.json       the outcome; exists only when the training is complete
scores/            probabilities of all pictures, for a review of the labels (see thumbnet.reviewing.scores)
labels.csv         what a person decided about pictures in `thumbnet review`
.lock              locked by the process that trains here
```
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thumbnet.data.corrections import Correction, read_corrections
from thumbnet.data.listings import csv_text
from thumbnet.errors import RecipeError, RunError, printable
from thumbnet.files import (
    LEFTOVERS,
    check_folder,
    check_links,
    finite,
    locked,
    make_folder,
    open_zip,
    read_json,
    read_whole,
    reason,
    remove_file,
    remove_partial,
    sync_folder,
    user_path,
    write_file,
    write_json,
    write_with,
)
from thumbnet.invocation import command
from thumbnet.recipes.recipe import Recipe, read_recipe, recipe_from_toml
from thumbnet.runs.environment import differences, environment, resumed
from thumbnet.runs.finding import RUNS, is_finished, is_run, no_run, ways_on
from thumbnet.runs.summaries import check_metrics, check_settings, check_summary, headline_key, headline_name
from thumbnet.runs.weights import WEIGHTS_NAME, write_weights
from thumbnet.runs.weights_info import WeightsInfo

LOCK_NAME = ".lock"
CORRECTIONS_NAME = "corrections.csv"
SKIPPED_NAME = "skipped.jsonl"


class Run:
    """A run's folder. Create a new one with :meth:`create`; open an existing one with :meth:`open`.

    A run stands for its path wherever Python takes one: ``thumbnet.load_classifier(run)``, ``Path(run)``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(os.fspath(path))

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<Run {printable(str(self.path))}: {self._state()}>"

    def _state(self) -> str:
        """What became of the run, for people: its recipe and its result, or why it has none."""
        try:
            if not is_run(self.path):
                return "not a run's folder" if self.path.exists() else "there is no such folder"
            name = printable(self.recipe.name)
            if not self.is_complete:
                return f"{name}, not complete"
            summary = self.summary
        except (RunError, RecipeError, OSError):
            return "cannot be read"
        key, measure = headline_key(summary), headline_name(summary)
        if summary.get(key) is None:
            return f"{name}, complete"
        return f"{name}, {summary['split']} {measure} {100 * summary[key]:.2f} %"

    @classmethod
    def create(cls, out: str | Path | None, data_name: str, recipe_name: str) -> Run:
        """Create an empty folder for a run: ``out``, or a new one below ``runs/`` named by date and data.

        Raises:
            RunError: ``out`` exists and is not empty, or the folder cannot be created.
        """
        cls.check_free(out)
        try:
            if out is not None:
                path = user_path(out)
                make_folder(path)
                return cls(path)
            make_folder(RUNS)  # here, so that FileExistsError below is about the run's own name
            word = re.sub(r"[^\w.-]+", "-", Path(data_name.split(":")[-1]).name.split(".")[0]) or "data"
            stem = f"{datetime.now():%Y-%m-%d}-{word}-{recipe_name}"
            for number in itertools.count(1):
                with contextlib.suppress(FileExistsError):
                    path = RUNS / f"{stem}-{number}"
                    make_folder(path, exist_ok=False)
                    return cls(path)
        except OSError as error:
            raise RunError(f"cannot create the run's folder {out or 'runs/'}: {error.strerror}") from None
        raise AssertionError("unreachable")

    @staticmethod
    def check_free(out: str | Path | None) -> None:
        """Check that a new run may start in ``out``, or below ``runs/``. Call this before long work.

        Raises:
            RunError: ``out`` is a file, or a folder that is not empty; or nothing can be written there.
        """
        path = RUNS if out is None else user_path(out)
        try:
            if out is None or not path.exists() or (path.is_dir() and _is_unused(path)):
                check_folder(path)
                return
        except OSError as error:
            raise RunError(f"cannot look into {path}: {error.strerror or error}") from None
        if not path.is_dir():
            raise RunError(f"{path} is a file: --out must name a new folder for the run")
        if not is_run(path):
            raise RunError(f"{path} already exists and is not empty: choose another folder with --out DIR")
        further = ["--more-epochs", "10"] if is_finished(path) else []
        raise RunError(
            f"{path} already exists and holds a run: choose another --out, "
            f"or continue it: {command('train', '--resume', path, *further)}"
        )

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run's folder.

        Raises:
            RunError: ``path`` is not a run's folder.
        """
        folder = user_path(path)
        if not is_run(folder):
            raise no_run(folder)
        return cls(folder)

    @contextlib.contextmanager
    def locked(self, wait: float = 0.0) -> Iterator[None]:
        """Lock the folder so that no other process trains in it, and delete what killed processes left.

        Args:
            wait: seconds to wait for another process to release the lock.

        Raises:
            RunError: another process holds the lock, or the folder is not writable or has a link that leads
                out of it.
        """
        check_links(self.path)
        busy = f"another process is training in {self.path}: wait for it, or stop it first"
        with locked(self.path / LOCK_NAME, busy, wait):
            try:
                sync_folder(self.path)  # no power cut may leave other files but not the lock: see _is_unused
            except OSError as error:
                raise RunError(f"cannot write in {self.path}: {error.strerror or error}") from None
            remove_partial(self.path)
            yield

    @property
    def weights_path(self) -> Path:
        """The path of the weights, which exist once the training is complete."""
        return self.path / WEIGHTS_NAME

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe.

        Raises:
            RunError: its file is missing, because someone deleted the run or a part of it.
        """
        path = self.path / "recipe.toml"
        if not path.is_file():
            raise RunError(f"cannot read {path}: {os.strerror(errno.ENOENT)}")
        return read_recipe(path)

    @property
    def settings(self) -> dict[str, Any]:
        """The contents of ``run.json``.

        Raises:
            RunError: the file is damaged.
        """
        return self._checked("run.json", check_settings)

    @property
    def corrections(self) -> list[Correction] | None:
        """The corrections of labels that the run was trained with; None if it was trained without any.

        Raises:
            RunError: their file is missing.
            DataError: their file is damaged.
        """
        path = self.path / CORRECTIONS_NAME
        if path.is_file():
            return read_corrections(path)
        if self.settings.get("labels"):
            raise RunError(f"{path} is missing: without the corrections, these are not the run's data")
        return None

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of ``summary.json``.

        Raises:
            RunError: the training is not complete, or the file is damaged.
        """
        if not (self.path / "summary.json").is_file():
            raise RunError(f"{self.path} is not complete. {ways_on(self.path)}")
        return self._checked("summary.json", check_summary)

    def _checked(self, name: str, check: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The contents of a file of JSON; ``check`` raises a ``ValueError`` if they are damaged."""
        values = read_json(self.path / name)
        try:
            check(values)
        except ValueError as error:
            raise RunError(f"cannot read {self.path / name}: {error}") from None
        return values

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The contents of ``metrics.jsonl``: one dictionary per epoch, with a key per number.

        Raises:
            RunError: the file cannot be read. A training writes it with its first checkpoint.
        """
        path = self.path / "metrics.jsonl"
        try:
            lines = [json.loads(line) for line in read_whole(path).decode().splitlines()]
            if not all(isinstance(line, dict) for line in lines):
                raise ValueError("it does not hold one JSON object per epoch")
            for line in lines:
                check_metrics(line)
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"cannot read {path}: {reason(error)}") from None
        return lines

    @property
    def environment(self) -> dict[str, Any]:
        """The contents of ``environment.json``."""
        return read_json(self.path / "environment.json")

    @property
    def is_complete(self) -> bool:
        """Whether the training has finished."""
        return (self.path / "summary.json").is_file() and self.weights_path.is_file()

    def remove_leftovers(self) -> None:
        """Remove what a training left that ended before it wrote ``run.json``: it may have had other data.

        Raises:
            RunError: a file cannot be removed.
        """
        for name in (SKIPPED_NAME, CORRECTIONS_NAME):  # a new training may not write them
            remove_file(self.path / name)

    def begin(self, recipe: Recipe, settings: dict[str, Any], device: torch.device) -> None:
        """Write the recipe, the environment and ``run.json``, before the first step."""
        self.write_recipe(recipe)
        self.write_environment(device)
        self.write_settings(settings)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write or replace ``run.json``."""
        write_json(self.path / "run.json", settings)

    def write_environment(self, device: torch.device) -> None:
        """Write or replace ``environment.json``, for a training that begins."""
        write_json(self.path / "environment.json", environment(device))

    def add_environment(self, device: torch.device, step: int) -> list[str]:
        """Add the environment of a training that is resumed, if it may round numbers in another way.

        Args:
            device: the device.
            step: the step from which the training goes on.

        Returns:
            What differs from the environment before; see :func:`~thumbnet.runs.environment.differences`.
        """
        try:
            recorded = self.environment
        except RunError:
            return []  # the file was removed or is damaged, and the training does not need it
        earlier, now = resumed(recorded), environment(device)
        found = differences([recorded, *earlier][-1], now)
        if found:
            added = {**recorded, "resumed": [*earlier, {**now, "step": step}]}
            write_json(self.path / "environment.json", added)
        return found

    def write_recipe(self, recipe: Recipe) -> None:
        """Write or replace ``recipe.toml``."""
        write_file(self.path / "recipe.toml", recipe.to_toml())

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite ``metrics.jsonl`` and ``metrics.csv``, so that they always match the checkpoint."""
        plain = finite(list(rows))
        write_file(self.path / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in plain))
        write_file(self.path / "metrics.csv", _as_csv(plain))

    def write_skipped(self, skipped: Sequence[tuple[str, str, str]]) -> None:
        """Write ``skipped.jsonl``: the split, name and reason of each skipped picture."""
        keys = ("split", "name", "reason")
        lines = [json.dumps(dict(zip(keys, one, strict=True)), ensure_ascii=False) for one in skipped]
        if lines:
            write_file(self.path / SKIPPED_NAME, "".join(f"{line}\n" for line in lines))

    @property
    def skipped(self) -> list[tuple[str, str, str]]:
        """What :meth:`write_skipped` wrote.

        Raises:
            RunError: the file is damaged.
        """
        path = self.path / SKIPPED_NAME
        try:
            # A name may have U+2028 or U+0085, where splitlines would break the line.
            lines = read_whole(path).decode().split("\n")
            rows = [json.loads(line) for line in lines if line.strip()]
            return [(str(row["split"]), str(row["name"]), str(row["reason"])) for row in rows]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"cannot read {path}: {reason(error)}") from None

    def write_corrections(self, content: bytes) -> None:
        """Write ``corrections.csv``, the corrections that :attr:`corrections` returns."""
        write_file(self.path / CORRECTIONS_NAME, content)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; the old one stays until the new one is complete."""
        write_with(self.path / "checkpoint.pt", lambda file: torch.save(state, file))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the state from :meth:`save_checkpoint`, tensors on the CPU; None if there is no checkpoint.

        Raises:
            RunError: the checkpoint is damaged, is not thumbnet's, or belongs to another recipe.
        """
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        try:
            with open_zip(path) as parts:
                damaged = parts.testzip()  # torch.load does not check the checksums
            if damaged is not None:
                raise ValueError(f"the file is damaged: the checksum of {damaged} is wrong")
            state = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # torch's safe unpickler can raise almost anything on a damaged file
            why = reason(error).split("\n")[0] or type(error).__name__
            raise RunError(f"cannot read {path}: {why}") from None
        if not isinstance(state, dict) or not isinstance(state.get("recipe"), str):
            raise RunError(f"{path} is not a checkpoint of thumbnet")
        try:
            begun = recipe_from_toml(state["recipe"])
        except RecipeError:
            raise RunError(f"{path} is not a checkpoint of this version of thumbnet") from None
        own = self.recipe
        if begun != own and self.settings.get("minutes") is not None:  # the clock may have changed its length
            begun, own = without_length(begun), without_length(own)
        if begun != own:
            raise RunError(
                f"{self.path / 'recipe.toml'} has changed since this run started: restore it, "
                "or start a new run with the changed recipe"
            )
        return state

    def save_weights(self, weights: dict[str, Tensor], info: WeightsInfo) -> None:
        """Write ``model.safetensors``."""
        write_weights(self.weights_path, weights, info)

    def save_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``, the last file of a training."""
        write_json(self.path / "summary.json", summary)


def without_length(recipe: Recipe) -> Recipe:
    """The recipe without the settings that a training with a time budget changes on its way."""
    if not recipe.training.steps:
        return recipe
    plain = recipe.without_plan()
    return replace(plain, training=replace(plain.training, epochs=1))


def _is_unused(folder: Path) -> bool:
    """Tell whether a folder is empty, or holds only files of a training killed before its first step.

    Such a training has left its lock. Without it, a ``recipe.toml`` or ``corrections.csv`` is the user's own.
    On Windows, the lock is deleted when a training fails, so a folder that one left so early is not reused.
    """
    found = list(folder.iterdir())
    known = {LOCK_NAME, CORRECTIONS_NAME, SKIPPED_NAME, "recipe.toml", "environment.json"}
    is_known = all(path.name in known or path.match(LEFTOVERS) for path in found)
    return not found or (is_known and folder / LOCK_NAME in found)


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows as CSV with one column per key of any row; a cell is empty where its row lacks the key."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    return csv_text([heads, *([row.get(head) for head in heads] for row in rows)])
