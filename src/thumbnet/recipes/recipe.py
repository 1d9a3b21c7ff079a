"""A recipe: every setting of a training, as one frozen object or one TOML file.

The same recipe, data and seed give the same result, so a setting that changes a result must not be anywhere
else. :mod:`thumbnet.recipes.settings` has all settings and their checks.

    recipe = load_recipe("fast", ["training.epochs=4", "optimizer.lr=0.2"])
    print(recipe.to_toml())
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

from thumbnet.errors import RecipeError, nearest, printable
from thumbnet.files import read_whole, reason
from thumbnet.invocation import command, quoted
from thumbnet.recipes.networks import accept
from thumbnet.recipes.settings import (
    SMALLEST_BATCH,
    AugmentSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainingSettings,
    check,
    kept_per_epoch,
)
from thumbnet.recipes.tables import build, differences, known_keys, plain, unknown_key

_LONGEST = 1 << 20  # bytes of a recipe's file


@dataclass(frozen=True)
class Recipe:
    """A whole training except its data. ``seed`` decides every random choice."""

    name: str = "custom"
    description: str = ""
    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**63, "seed", "a number from 0 to 2**63 - 1", self.seed)
        # The loss of a mixed picture does not say whether the network has learned the picture itself.
        ok = not (self.data.skip_easy and self.augment.mixes)
        expected = "0 where augment.mixup or augment.cutmix is on (--set data.skip_easy=0)"
        check(ok, "data.skip_easy", expected, self.data.skip_easy)
        patience = self.training.patience
        ok = not patience or self.evaluation.every > 0
        check(ok, "training.patience", "0 (off) if evaluation.every is 0, only at the end", patience)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dictionaries, lists, numbers and strings, without settings that are None."""
        return typing.cast(dict[str, Any], plain(dataclasses.asdict(self)))

    def to_toml(self, *, whole: bool = True) -> str:
        """Convert to TOML text that :func:`load_recipe` reads back to an equal recipe.

        Args:
            whole: write every setting, or only those that differ from the defaults.

        Raises:
            RecipeError: a setting, such as a folder's name, has bytes that are not UTF-8. TOML has none.
        """
        import tomli_w

        settings = self.to_dict()
        text = tomli_w.dumps(settings if whole else differences(settings, Recipe().to_dict()))
        try:
            text.encode()
        except UnicodeEncodeError as error:
            line = text[: error.start].rpartition("\n")[2] + text[error.start :].partition("\n")[0]
            raise RecipeError(
                f"a recipe cannot hold a name that is not UTF-8: {line}\nRename the file or folder"
            ) from None
        return text

    def override(self, assignments: Iterable[str]) -> Recipe:
        """The recipe with ``"section.key=value"`` assignments applied. A value is TOML, or a bare string.

        Naming a network by its import path here allows it to be imported. Naming a length
        (``training.epochs`` or ``training.steps``) replaces the one that ``--minutes`` has planned.

        Raises:
            RecipeError: an assignment has no ``=``, or its key or value is invalid.
        """
        assignments = list(assignments)
        named = {assignment.partition("=")[0].strip() for assignment in assignments}
        has_length = not named.isdisjoint(("training.epochs", "training.steps"))
        settings = (self.without_plan() if has_length else self).to_dict()
        names_network = False
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                raise RecipeError(f"--set {assignment}: expected KEY=VALUE, such as optimizer.lr=0.05")
            *sections, last = key.strip().split(".")
            table = settings
            for section in sections:
                inner = table.setdefault(section, {})
                if not isinstance(inner, dict):
                    raise unknown_key(key.strip(), known_keys(Recipe))
                table = inner
            value = table[last] = _parse_value(text.strip())
            if isinstance(value, dict):
                one = next(iter(value), "KEY")
                raise RecipeError(f"--set {assignment}: set one key at a time: {key.strip()}.{one}=VALUE")
            names_network = names_network or key.strip() == "model.name"
        recipe = recipe_from_dict(settings)
        if names_network:
            accept(recipe.model.name)
        return recipe

    def without_plan(self) -> Recipe:
        """The recipe with its length in epochs only, without what a training with a time budget planned."""
        return replace(
            self,
            training=replace(self.training, steps=0),
            schedule=replace(self.schedule, planned_at=(), planned_steps=()),
        )

    def fitted(self, pictures: int) -> Recipe:
        """The recipe for this many training pictures, with smaller batches if ``training.min_steps`` asks.

        A training may still have a few steps fewer: its ``pictures`` include those that are set aside for
        calibration, and ``training.drop_last`` drops the last batch of an epoch.
        """
        training = self.training
        if not training.min_steps:
            return self
        an_epoch = kept_per_epoch(min(pictures, self.data.subset_size or pictures), self.data.skip_easy)
        size = max(training.epochs * an_epoch // training.min_steps, SMALLEST_BATCH)
        return self.with_batch_size(size) if size < training.batch_size else self

    def with_batch_size(self, size: int) -> Recipe:
        """The recipe with batches of ``size``, and learning rates that change with the square root of it."""
        training, optimizer = self.training, self.optimizer
        factor = (size / training.batch_size) ** 0.5
        groups = tuple(g if g.lr is None else replace(g, lr=g.lr * factor) for g in optimizer.groups)
        return replace(
            self,
            optimizer=replace(optimizer, lr=optimizer.lr * factor, groups=groups),
            training=replace(training, batch_size=size),
        )


def recipe_names() -> list[str]:
    """The names of the recipes that come with thumbnet."""
    folder = resources.files("thumbnet") / "recipes"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by its name or from a TOML file, and apply ``"key=value"`` overrides.

    A file may begin with ``extends = "fast"`` and list only what differs. If it names a network by its import
    path, that network may be imported from now on, so call this only with a file that the user has chosen.

    Raises:
        RecipeError: there is no such recipe or file, it is not TOML, or a key or value is invalid.
    """
    recipe = read_recipe(name_or_path).override(overrides)
    accept(recipe.model.name)
    return recipe


def read_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe from a file that need not be trusted, such as a run's.

    Unlike :func:`load_recipe`, this does not allow its network to be imported, nor does it look for it.

    Raises:
        RecipeError: as for :func:`load_recipe`.
    """
    return recipe_from_dict(_read_toml(str(name_or_path), seen=()))


def opening_comment(name: str) -> str:
    """The comment at the start of a built-in recipe: how to run it and what to expect. Each line has ``#``.

    Raises:
        RecipeError: there is no recipe of that name.
    """
    if name not in recipe_names():
        raise RecipeError(f"there is no recipe {name!r}. {nearest(name, recipe_names())}")
    text = (resources.files("thumbnet") / "recipes" / f"{name}.toml").read_text("utf-8")
    return "".join(f"{line}\n" for line in takewhile(lambda line: line.startswith("#"), text.splitlines()))


def recipe_from_dict(settings: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested dictionaries, such as those from TOML. Missing keys get their defaults.

    Raises:
        RecipeError: a key is unknown or its value invalid. The message says what was expected.
    """
    return build(Recipe, settings)


def recipe_from_toml(text: object) -> Recipe:
    """Build a recipe from the TOML that a checkpoint or a search keeps.

    Raises:
        RecipeError: the text is not the TOML of a recipe.
    """
    try:
        return recipe_from_dict(tomllib.loads(text))  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RecipeError(f"the recipe is not valid TOML: {error}") from None


def _read_toml(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    path = Path(name)
    place = name if name in recipe_names() else os.path.realpath(name)  # however the path is spelt
    if place in seen:
        raise RecipeError(f"these recipes extend each other in a circle: {' -> '.join((*seen, place))}")
    try:
        if name in recipe_names():
            text = (resources.files("thumbnet") / "recipes" / f"{name}.toml").read_text("utf-8")
        elif path.is_file():
            text = _read_text(path)
        elif path.suffix == ".toml":
            raise _no_recipe_file(path)
        else:
            hint = nearest(name, recipe_names())
            raise RecipeError(f"there is no recipe {name!r}. {hint} The name of a file must end in .toml.")
        settings = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {name}: {reason(error)}") from None
    except (ValueError, RecursionError) as error:  # also for endless numbers and lists
        raise RecipeError(f"the recipe {name} is not valid TOML: {error}") from None
    base = settings.pop("extends", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise RecipeError(f"recipe key 'extends' is {base!r}: expected a recipe's name or file")
    if base.endswith(".toml"):
        base = str(path.parent / base)
    return _merge(_read_toml(base, (*seen, place)), settings)


def _read_text(path: Path) -> str:
    """Read a recipe's file, which ``extends`` in a stranger's recipe may have named."""
    content = read_whole(path, _LONGEST + 1)
    if len(content) > _LONGEST:
        raise RecipeError(f"{path} is no recipe: it has more than {_LONGEST:,} bytes")
    return content.decode("utf-8-sig")  # editors on Windows begin files with a mark


def _no_recipe_file(path: Path) -> RecipeError:
    folder = path.parent
    files = (one for one in folder.glob("*.toml") if one.name != "pyproject.toml" and one.is_file())
    nearby = sorted(map(str, files))
    there = f" TOML files there: {', '.join(map(printable, nearby[:8]))}." if nearby else ""
    print_one = command("recipes", "show", "fast")
    if path.is_dir():
        return RecipeError(f"{path} is a folder: expected a recipe's name or file.{there}")
    return RecipeError(
        f"there is no recipe file {path}.{there} Recipes by name: {', '.join(recipe_names())}. "
        f"To start your own file: {print_one} > {quoted(str(path))}"
    )


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # `--set model.name=resnet34`: the shell would remove quotes
