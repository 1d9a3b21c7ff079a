"""Find the name, accuracy and recipe of the run that a weights file belongs to. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from thumbnet.errors import printable
from thumbnet.files import user_path
from thumbnet.recipes.recipe import Recipe, read_recipe
from thumbnet.recipes.settings import EvaluationSettings
from thumbnet.runs.finding import is_run
from thumbnet.runs.weights import WEIGHTS_NAME
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.sources.known_names import HUB

ONNX = ".onnx"  # how the names of exported networks end that thumbnet can use


def with_provenance(info: WeightsInfo, path: str | Path) -> WeightsInfo:
    """Add the run's name to a network's description, and its accuracy if the file does not carry it.

    Weights do not carry the name, because the same training must write the same file in any folder. Weights
    of older versions carry no accuracy.

    Args:
        info: the description in the file.
        path: where it was read: a run's folder, a file, or ``hf:OWNER/NAME[@REVISION]``. The name never
            includes the folders above the run.
    """
    if str(path).startswith(HUB):
        return replace(info, run=info.run or printable(str(path)))
    folder = run_folder(path)
    if folder is None:
        return info
    info = replace(info, run=printable(folder.resolve().name))
    return info if info.accuracy is not None else _with_accuracy(info, folder)


def run_folder(path: str | Path) -> Path | None:
    """Return the run's folder if ``path`` is one, or is the weights file in one; else None."""
    if str(path).startswith(HUB):
        return None
    place = user_path(path)
    folder = place.parent if place.name == WEIGHTS_NAME else place
    return folder if is_run(folder) else None


def recipe_of(path: str | Path) -> Recipe:
    """Return the recipe of a run's weights or exports; the default one if they are not in a run's folder.

    Args:
        path: as for :func:`with_provenance`, or an exported file.

    Raises:
        RecipeError: the run's recipe cannot be read.
    """
    folder = run_folder(path) or _folder_of_export(path)
    return Recipe() if folder is None else read_recipe(folder / "recipe.toml")


def _folder_of_export(path: str | Path) -> Path | None:
    """The run's folder if ``path`` is an ONNX file in one, where exports go by default; else None."""
    place = user_path(path)
    is_export = place.suffix.lower() == ONNX and not str(path).startswith(HUB)
    return place.parent if is_export and is_run(place.parent) else None


def batch_size_of(recipe: Recipe) -> int:
    """How many pictures a run's network classifies at a time when it is used: as its device had memory for.

    A large batch of another, larger device is not repeated.
    """
    return min(EvaluationSettings().batch_size, recipe.evaluation.batch_size)


def _with_accuracy(info: WeightsInfo, folder: Path) -> WeightsInfo:
    try:
        summary: Any = json.loads((folder / "summary.json").read_text("utf-8"))
        return replace(info, accuracy=summary["accuracy"], accuracy_split=summary["split"] or "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return info  # the description is still useful without an accuracy
