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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

from thumbnet.errors import RecipeError, nearest, printable
from thumbnet.files import read_whole, reason
from thumbnet.invocation import command, quoted
from thumbnet.recipes.functions import AUGMENTATIONS, LOSSES
from thumbnet.recipes.networks import accept, code_options
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
    in_subset,
    kept_per_epoch,
)
from thumbnet.recipes.tables import build, by_key, differences, flattened, known_keys, plain, unknown_key

_LONGEST = 1 << 20  # bytes of a recipe's file
_WITHOUT_EFFECT = ("name", "description", "data.engine", "data.workers", "checkpoint")


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

    def override(self, assignments: Iterable[str] | Mapping[str, Any]) -> Recipe:
        """The recipe with ``"section.key=value"`` assignments applied. A value is TOML, or a bare string.

        The settings may also be a mapping, as in :func:`assignments_of`.

        Naming a network, a loss or an augmentation by its import path here allows it to be imported. Naming a
        length (``training.epochs`` or ``training.steps``) replaces the one that ``--minutes`` has planned.
        Settings that do not go with the assignments give way, unless they are assigned, too:

        - Another optimizer takes over no rates, momentum or weight decay of ``optimizer.groups``, which were
          chosen for the recipe's own; only groups without weight decay stay.
        - Balanced sampling and mixed pictures switch ``data.skip_easy`` off.

        Raises:
            RecipeError: an assignment has no ``=``, or its key or value is invalid.
        """
        changes = dict(map(_parse_assignment, assignments_of(assignments)))
        has_length = not changes.keys().isdisjoint(("training.epochs", "training.steps"))
        settings = _giving_way((self.without_plan() if has_length else self).to_dict(), changes)
        for key, value in changes.items():
            *sections, last = key.split(".")
            table = settings
            for section in sections:
                inner = table.setdefault(section, {})
                if not isinstance(inner, dict):
                    raise unknown_key(key, known_keys(Recipe))
                table = inner
            table[last] = value
        recipe = recipe_from_dict(settings)
        for key, accept_code in _ACCEPT.items():
            if key in changes:
                accept_code(recipe)
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
        an_epoch = kept_per_epoch(in_subset(pictures, self.data.subset_size), self.data.skip_easy)
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


# Accepts the code that a recipe from the user names under a key.
_ACCEPT: dict[str, Callable[[Recipe], None]] = {
    "model.name": lambda recipe: accept(recipe.model.name),
    "training.loss": lambda recipe: LOSSES.accept(recipe.training.loss),
    "augment.custom": lambda recipe: AUGMENTATIONS.accept(recipe.augment.custom),
}


def training_code(recipe: Recipe) -> tuple[str, ...]:
    """The options that allow a command to train ``recipe``; empty if it names no code of the user's own.

    Only its network is needed to use the run, see :func:`~thumbnet.recipes.networks.code_options`.
    """
    functions = LOSSES.code(recipe.training.loss), AUGMENTATIONS.code(recipe.augment.custom)
    codes = [*code_options(recipe.model.name)[1:], *(code for code in functions if code is not None)]
    return tuple(word for code in dict.fromkeys(codes) for word in ("--model-code", code))


def has_effect(key: str) -> bool:
    """Whether a setting may change the result of a training.

    >>> has_effect("optimizer.lr"), has_effect("data.workers"), has_effect("checkpoint.minutes")
    (True, False, False)

    Args:
        key: a setting such as ``optimizer.lr``, or a whole section.
    """
    return key not in _WITHOUT_EFFECT and key.partition(".")[0] not in _WITHOUT_EFFECT


def assignments_of(overrides: Iterable[str] | Mapping[str, Any]) -> list[str]:
    """Settings from Python as ``"section.key=value"`` assignments.

    >>> assignments_of({"training.epochs": 4, "model": {"name": "resnet34"}})
    ['training.epochs=4', 'model.name="resnet34"']

    Args:
        overrides: assignments, which are returned as they are; or a mapping of keys to values. A key is
            dotted, or names a section whose value is a mapping of its keys.

    Raises:
        RecipeError: it is a single string, an assignment is not a string, or no setting has such a value.
    """
    if isinstance(overrides, str):
        raise RecipeError(
            f"overrides is a string, {overrides!r}: expected a list of strings, such as [{overrides!r}], or "
            "a dictionary, such as {'training.epochs': 5}"
        )
    if isinstance(overrides, Mapping):
        return [f"{key}={_as_toml(value, key)}" for key, value in flattened(overrides).items()]
    found: list[Any] = list(overrides)
    for one in found:
        if not isinstance(one, str):
            raise RecipeError(f"overrides holds {one!r}: expected strings such as 'optimizer.lr=0.05'")
    return found


def _as_toml(value: Any, key: str) -> str:
    """A value as TOML in one line.

    Raises:
        RecipeError: TOML has no such value.
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(_as_toml(one, key) for one in value)}]"
    if isinstance(value, Mapping):
        inner = (f"{name} = {_as_toml(one, key)}" for name, one in value.items())
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif hasattr(value, "tolist"):  # numbers of NumPy or PyTorch
        return _as_toml(value.tolist(), key)
    if not isinstance(value, bool | int | float | str):
        expected = "a number, a string, true or false, or a list of these"
        raise RecipeError(f"overrides: {key} is {value!r}: expected {expected}")
    import tomli_w

    return tomli_w.dumps({"value": value}).partition("=")[2].strip()


def recipe_names() -> list[str]:
    """The names of the recipes that come with thumbnet."""
    folder = resources.files("thumbnet") / "recipes"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Load a recipe by its name or from a TOML file, and apply overrides.

    Overrides are ``"section.key=value"`` strings, or a mapping such as ``{"training.epochs": 4}``.

    A file may begin with ``extends = "fast"`` and list only what differs. If it names a network, a loss or an
    augmentation by its import path, that may be imported from now on, so call this only with a file that the
    user has chosen.

    Raises:
        RecipeError: there is no such recipe or file, it is not TOML, or a key or value is invalid.
    """
    recipe = read_recipe(name_or_path).override(overrides)
    for accept_code in _ACCEPT.values():
        accept_code(recipe)
    return recipe


def read_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe from a file that need not be trusted, such as a run's.

    Unlike :func:`load_recipe`, this does not allow its code to be imported, nor does it look for it.

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
    inherited = _read_toml(base, (*seen, place))
    return _merge(_giving_way(inherited, by_key(settings)), settings)


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


def _giving_way(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings ``base`` without those that do not go with ``changes``; see :meth:`Recipe.override`.

    Args:
        base: nested tables of valid or invalid settings.
        changes: new settings by their whole key.
    """
    own = by_key(base)
    before = own.get("optimizer.name", OptimizerSettings.name)
    if changes.get("optimizer.name", before) != before and "optimizer.groups" not in changes:
        base = _merge(base, {"optimizer": {"groups": _without_rates(own.get("optimizer.groups", []))}})
    shows_all = changes.get("data.sampling") == "balanced" or any(
        changes.get(f"augment.{key}") for key in ("mixup", "cutmix")
    )
    if shows_all and own.get("data.skip_easy") and "data.skip_easy" not in changes:
        base = _merge(base, {"data": {"skip_easy": 0.0}})
    return base


def _without_rates(groups: Any) -> Any:
    """The parameter groups that have a weight decay of 0, with nothing else; what is no list stays."""
    if not isinstance(groups, list | tuple):
        return groups
    tables = [group for group in groups if isinstance(group, dict)]
    kept = [group for group in tables if group.get("weight_decay") == 0]
    return [{key: group[key] for key in ("match", "weight_decay") if key in group} for group in kept]


def _parse_assignment(assignment: str) -> tuple[str, Any]:
    """``"optimizer.lr=0.05"`` → its key and its value."""
    key, equals, text = assignment.partition("=")
    if not equals:
        raise RecipeError(f"--set {assignment}: expected KEY=VALUE, such as optimizer.lr=0.05")
    key, value = key.strip(), _parse_value(text.strip())
    if isinstance(value, dict):
        one = next(iter(value), "KEY")
        raise RecipeError(f"--set {assignment}: set one key at a time: {key}.{one}=VALUE")
    return key, value


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # `--set model.name=resnet34`: the shell would remove quotes
