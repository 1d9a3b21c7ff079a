"""The folder of one training: what is in it, how it is written, how it is read back.

recipe.toml        every setting, resolved
run.json           the data and their fingerprint: what a resume needs beside the recipe
environment.json   versions, hardware, git commit
metrics.jsonl      a line an epoch; metrics.csv is the same for a spreadsheet
checkpoint.pt      what a resume starts from (tensors and plain values: loads with weights_only=True)
skipped.jsonl      the pictures that were left out, and why; there only when some were
model.safetensors  the weights; its metadata is all that a reader needs
summary.json       the outcome; there only when the training is complete
.lock              locked by the process that trains here
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thumbnet.errors import RunError
from thumbnet.files import write_file, write_with
from thumbnet.invocation import command
from thumbnet.recipes.recipe import Recipe, read_recipe
from thumbnet.runs.environment import environment
from thumbnet.runs.finding import is_finished, is_run, no_run
from thumbnet.runs.weights import WEIGHTS_NAME, write_weights
from thumbnet.runs.weights_info import WeightsInfo

LOCK_NAME = ".lock"
LEFTOVERS = ".*.tmp"  # see thumbnet.files.write_with


class Run:
    """A run's folder. Make one with :meth:`create`, open one with :meth:`open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, out: str | Path | None, data_name: str, recipe_name: str) -> Run:
        """A new, empty folder: ``out``, or a readable new name below ``runs/``.

        Raises:
            RunError: ``out`` exists and is not empty, or it cannot be made.
        """
        try:
            if out is not None:
                cls.check_free(out)
                path = Path(out).expanduser()
                path.mkdir(parents=True, exist_ok=True)
                return cls(path)
            word = re.sub(r"[^\w.-]+", "-", Path(data_name.split(":")[-1]).name.split(".")[0]) or "data"
            stem = f"{datetime.now():%Y-%m-%d}-{word}-{recipe_name}"
            for number in itertools.count(1):
                path = Path("runs") / f"{stem}-{number}"
                try:
                    path.mkdir(parents=True)
                    return cls(path)
                except FileExistsError:
                    continue
        except OSError as error:
            raise RunError(f"cannot make the run's folder {out or 'runs/'}: {error.strerror}") from None
        raise AssertionError("unreachable")

    @staticmethod
    def check_free(out: str | Path) -> None:
        """See that a run may begin in ``out``.

        Raises:
            RunError: there is something in it.
        """
        path = Path(out).expanduser()
        if not path.exists() or (path.is_dir() and _is_unbegun(path)):
            return
        if not path.is_dir():
            raise RunError(f"{path} is a file: --out names a folder, which is made for the run")
        if not is_run(path):
            raise RunError(f"{path} exists already and is not empty: name another folder, --out DIR")
        further = ["--more-epochs", "10"] if is_finished(path) else []
        raise RunError(
            f"{path} exists already and holds a run: name another --out, "
            f"or go on with it: {command('train', '--resume', path, *further)}"
        )

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run's folder.

        Raises:
            RunError: it is none.
        """
        folder = Path(path).expanduser()
        if not is_run(folder):
            raise no_run(folder)
        return cls(folder)

    @contextlib.contextmanager
    def locked(self, wait: float = 0.0) -> Iterator[None]:
        """No other process may train in this folder meanwhile; what a killed one left is cleaned away.

        The lock is the system's, on the file ``.lock``: it goes with the process that has it.

        Args:
            wait: seconds that another process is given to end.

        Raises:
            RunError: another process has it, or the folder cannot be written.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / LOCK_NAME, timeout=wait)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"another process is training in {self.path}: wait for it, or stop it first"
            ) from None
        except OSError as error:
            raise RunError(f"cannot write in {self.path}: {error.strerror or error}") from None
        try:
            for leftover in self.path.glob(LEFTOVERS):
                with contextlib.suppress(OSError):
                    leftover.unlink()
            yield
        finally:
            lock.release()

    @property
    def weights_path(self) -> Path:
        """Where the weights are, once the training is complete."""
        return self.path / WEIGHTS_NAME

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return read_recipe(self.path / "recipe.toml")

    @property
    def settings(self) -> dict[str, Any]:
        """``run.json``."""
        return self._read_json("run.json")

    @property
    def summary(self) -> dict[str, Any]:
        """``summary.json``.

        Raises:
            RunError: the training is not complete.
        """
        if not (self.path / "summary.json").is_file():
            raise RunError(
                f"{self.path} is not complete. Go on with it: {command('train', '--resume', self.path)}"
            )
        return self._read_json("summary.json")

    @property
    def environment(self) -> dict[str, Any]:
        """``environment.json``."""
        return self._read_json("environment.json")

    @property
    def is_complete(self) -> bool:
        """Whether the training has come to its end."""
        return (self.path / "summary.json").is_file() and self.weights_path.is_file()

    def begin(self, recipe: Recipe, settings: dict[str, Any], device: torch.device) -> None:
        """Write what is known before the first step."""
        write_file(self.path / "recipe.toml", recipe.to_toml())
        write_file(self.path / "environment.json", _pretty(environment(device)))
        write_file(self.path / "run.json", _pretty(settings))

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """``metrics.jsonl`` and ``.csv`` anew: they always agree with the checkpoint, also after a resume."""
        plain = [{key: None if value != value else value for key, value in row.items()} for row in rows]
        write_file(self.path / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in plain))
        write_file(self.path / "metrics.csv", _as_csv(plain))

    def write_skipped(self, skipped: Sequence[tuple[str, str, str]]) -> None:
        """``skipped.jsonl``: split, name and reason of each picture that was left out."""
        keys = ("split", "name", "reason")
        lines = [json.dumps(dict(zip(keys, one, strict=True)), ensure_ascii=False) for one in skipped]
        if lines:
            write_file(self.path / "skipped.jsonl", "".join(f"{line}\n" for line in lines))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; the former one stays until the new one is complete."""
        write_with(self.path / "checkpoint.pt", lambda file: torch.save(state, file))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """What :meth:`save_checkpoint` was given, its tensors on the CPU; None before the first one.

        Raises:
            RunError: it is damaged or not of this kind.
        """
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        try:
            with zipfile.ZipFile(path) as parts:
                damaged = parts.testzip()  # torch.load looks at no checksum
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong: the file is damaged")
            state = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # torch's safe unpickler raises nearly anything on damaged files
            reason = str(error).split("\n")[0] or type(error).__name__
            raise RunError(f"cannot read {path}: {reason}") from None
        if not isinstance(state, dict) or not isinstance(state.get("recipe"), str):
            raise RunError(f"{path} is not a checkpoint of thumbnet")
        if state["recipe"] != self.recipe.to_toml():
            raise RunError(
                f"{self.path / 'recipe.toml'} is not the recipe that this run was begun with: put it back, "
                "or begin a new run with the changed one"
            )
        return state

    def save_weights(self, weights: dict[str, Tensor], info: WeightsInfo) -> None:
        """``model.safetensors``."""
        write_weights(self.weights_path, weights, info)

    def save_summary(self, summary: dict[str, Any]) -> None:
        """``summary.json``, the last thing that a training writes."""
        write_file(self.path / "summary.json", _pretty(summary))

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            values = json.loads((self.path / name).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"cannot read {self.path / name}: {error}") from None
        if not isinstance(values, dict):
            raise RunError(f"{self.path / name} does not hold what a run's does")
        return values


def _is_unbegun(folder: Path) -> bool:
    """Whether a folder is empty, or holds no more than a training killed before its first step leaves."""
    if (folder / "run.json").exists():
        return False
    known = {LOCK_NAME, "recipe.toml", "environment.json", *(path.name for path in folder.glob(LEFTOVERS))}
    return all(path.name in known for path in folder.iterdir())


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """For a spreadsheet; a column for every key of any row, empty where a row lacks it."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _pretty(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
