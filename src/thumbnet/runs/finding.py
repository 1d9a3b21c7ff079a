"""Find the runs in a folder, and explain why a path is not a run. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from thumbnet.errors import DataError, RecipeError, RunError, nearest, printable
from thumbnet.invocation import command

RUNS = Path("runs")  # `thumbnet train` creates its runs here
SEARCH = "tune.json"  # a folder with this file holds a search of `thumbnet tune`
FINAL_RUN = "run"  # the final training in such a folder
_SHOWN = 8


def is_run(folder: Path) -> bool:
    """Tell whether ``folder`` is a run's folder, complete or not."""
    return (folder / "recipe.toml").is_file() and (folder / "run.json").is_file()


def is_finished(folder: Path) -> bool:
    """Tell whether ``folder`` is a run whose training has finished."""
    return is_run(folder) and (folder / "summary.json").is_file()


def is_search(folder: Path) -> bool:
    """Tell whether ``folder`` is that of a search by `thumbnet tune`, complete or not."""
    return (folder / SEARCH).is_file()


def runs_in(folder: Path) -> list[Path]:
    """List the runs directly below ``folder``, newest first; an unreadable folder gives an empty list."""
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and is_run(path)]
        return sorted(found, key=lambda path: (path / "run.json").stat().st_mtime, reverse=True)
    except OSError:
        return []


def are_gone(data: str | None) -> bool:
    """Tell whether a run's ``data`` were in a place that is no longer there, or not on this machine."""
    return data is not None and os.path.isabs(data) and not os.path.exists(data)


@contextmanager
def explaining_gone(source: object, advice: Callable[[], str]) -> Iterator[None]:
    """Within, an error about data that are gone also says what to do.

    Args:
        source: the place where a run has its data; anything but text is no place.
        advice: makes the sentence that says what to do.
    """
    try:
        yield
    except DataError as error:
        if not isinstance(source, str) or not are_gone(source):
            raise
        raise DataError(f"{error}\n{advice()}") from None


def ways_on(folder: Path, verb: str = "Resume") -> str:
    """Say how to complete the unfinished run in ``folder``: two sentences with commands, or one.

    Only a run that has a checkpoint can be ended there, and none whose last layer is fitted as a whole.
    """
    resumed = f"{verb} it: {command('train', '--resume', folder)}"
    if not has_end(folder):
        return resumed
    ended = command("train", "--resume", folder, "--finish")
    return f"{resumed}\nOr end it where its newest checkpoint is: {ended}"


def has_end(folder: Path) -> bool:
    """Tell whether the run in ``folder`` has a checkpoint to go on from, or to end at by ``--finish``.

    A run whose last layer is fitted as a whole begins again in any case.
    """
    from thumbnet.recipes.recipe import read_recipe

    if not (folder / "checkpoint.pt").is_file():
        return False
    try:
        return not read_recipe(folder / "recipe.toml").training.frozen
    except RecipeError:
        return False


def same_source(first: str, second: str) -> bool:
    """Tell whether two names refer to the same data."""
    if first == second:
        return True
    return os.path.exists(first) and os.path.realpath(first) == os.path.realpath(second)


def no_run(place: Path) -> RunError:
    """Build the error for a ``place`` that should be a run or a weights file but is not."""
    if is_run(place):
        return RunError(f"{place} is not complete. {ways_on(place)}")
    if place.is_dir():
        inside = runs_in(place)
        if inside:
            return RunError(f"{place} is a folder of runs: choose one of them.\n{_listed(inside)}")
        return RunError(
            f"{place} is not a run's folder: recipe.toml or run.json is missing. {_others(place)}"
        )
    if place.exists():
        return RunError(f"{place} is a file, not a run's folder. {_others(place)}")
    if place.suffix.lower() == ".onnx":
        export = command("export", "RUN", "--out", place)
        return RunError(f"there is no file {place}. Export it from a run: {export}")
    return RunError(f"there is no run {place}. {_others(place)}")


def _others(place: Path) -> str:
    """List the runs that the user may have meant, or say how to train the first one."""
    for folder in dict.fromkeys((place.parent, RUNS)):
        runs = runs_in(folder)
        if runs:
            names = {run.name: run for run in runs}
            close = nearest(place.name, names).partition("?")[0]
            guess = f"{close}? " if close.startswith("Did you mean") else ""
            return f"{guess}Runs found, newest first:\n{_listed(runs)}"
    return f"There are no runs here yet. Train one: {command('train', 'DATA', '--out', place)}"


def _listed(runs: list[Path]) -> str:
    lines = [
        f"  {printable(str(run))}{'' if is_finished(run) else '  (not complete)'}" for run in runs[:_SHOWN]
    ]
    return "\n".join([*lines, *([f"  and {len(runs) - _SHOWN} more"] if len(runs) > _SHOWN else [])])
