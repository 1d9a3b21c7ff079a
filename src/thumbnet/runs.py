"""The folder of one training: what is in it, how it is written, how it is read back.

```text
recipe.toml        every setting, resolved
run.json           the data and their fingerprint: what a resume needs beside the recipe
environment.json   versions, hardware, git commit
metrics.jsonl      a line an epoch; metrics.csv is the same for a spreadsheet
checkpoint.pt      what a resume starts from (tensors and plain values: loads with weights_only=True)
skipped.jsonl      the pictures that were left out, and why; there only when some were
model.safetensors  the weights; its metadata is all that a reader needs
summary.json       the outcome; there only when the training is complete
.lock              locked by the process that trains here
```
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import platform
import re
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thumbnet import __version__
from thumbnet.errors import RecipeError, RunError, ThumbnetError
from thumbnet.files import write_file, write_with
from thumbnet.finding import is_finished, is_run, no_run
from thumbnet.hardware import describe
from thumbnet.invocation import command
from thumbnet.recipe import Recipe, load_recipe
from thumbnet.training.fit import EpochResult
from thumbnet.weights_info import WeightsInfo

WEIGHTS_NAME = "model.safetensors"
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
        return load_recipe(self.path / "recipe.toml")

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

    def write_metrics(self, history: Sequence[EpochResult]) -> None:
        """``metrics.jsonl`` and ``.csv`` anew: they always agree with the checkpoint, also after a resume."""
        lines = []
        for result in history:
            values = asdict(result)
            score, sample = values.pop("score"), values.pop("sample")
            score = score or sample
            if score:
                split = score.pop("split")
                values |= {f"{split}_{key}": value for key, value in score.items()}
            lines.append(
                json.dumps({key: None if value != value else value for key, value in values.items()})
            )
        write_file(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in lines))
        write_file(self.path / "metrics.csv", _as_csv([json.loads(line) for line in lines]))

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
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        values = json.loads(info.to_json())
        # Under one key: safetensors writes several in any order, and the same weights must be the same file.
        text = json.dumps({**values, "digest": weights_digest(tensors, values)}, sort_keys=True)
        write_file(self.weights_path, save(tensors, metadata={"thumbnet": text}))

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


def read_weights(path: Path) -> tuple[dict[str, Tensor], WeightsInfo]:
    """The tensors and their description from a ``model.safetensors``.

    Raises:
        RunError: no such file, damaged, or not written by thumbnet.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("thumbnet")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise RunError(f"there is no file {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from None
    if text is None:
        raise RunError(f"{path} holds weights, but not a thumbnet model's: the description is missing")
    try:
        values = json.loads(text)
        digest = values.pop("digest", None)  # older ones have none
        if digest is not None and digest != weights_digest(tensors, values):
            raise RunError(f"{path} is damaged: its content does not have the digest written with it")
        return tensors, WeightsInfo.from_json(json.dumps(values))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RecipeError) as error:
        raise RunError(f"the description in {path} is not understood: {error}") from None


def weights_digest(tensors: dict[str, Tensor], description: dict[str, Any]) -> str:
    """A digest of tensors and description. It shows damage; whoever means harm can make it anew."""
    digest = hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_unbegun(folder: Path) -> bool:
    """Whether a folder is empty, or holds no more than a training killed before its first step leaves."""
    if (folder / "run.json").exists():
        return False
    known = {LOCK_NAME, "recipe.toml", "environment.json", *(path.name for path in folder.glob(LEFTOVERS))}
    return all(path.name in known for path in folder.iterdir())


def find_weights(path: str | Path) -> Path:
    """The weights of a run's folder, or ``path`` itself where it is a file.

    Raises:
        RunError: neither.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        if (place / WEIGHTS_NAME).is_file():
            return place / WEIGHTS_NAME
        raise no_run(place)
    if not place.exists():
        raise no_run(place)
    return place


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and git commit, for ``environment.json``."""
    versions = {}
    for package in ("torch", "numpy", "pillow", "safetensors"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # pragma: no cover - a dependency
            continue
    return {
        "thumbnet": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "hardware": describe(device),
        "git_commit": _git_commit(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """The commit checked out where the command runs, "+" where files differ from it; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


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


class InterruptedRunError(ThumbnetError):
    """The user stopped the training; its checkpoint is saved."""

    exit_status = 130  # 128 + SIGINT, as shells have it

    def __init__(self, run: Run, epoch: int, step: int) -> None:
        super().__init__(
            f"stopped in epoch {epoch} at step {step}; everything is saved.\n"
            f"Go on to the very same result: {command('train', '--resume', run.path)}"
        )
        self.run = run
