"""Which settings a search varies, between which limits, and the recipe for a point of that space.

A search starts from a recipe. Learning rates and weight decays are factors on the recipe's own, because a
recipe may have several of each, and their ratios matter. All other knobs are the settings themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias

from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import SMALLEST_BATCH, AugmentSettings, OptimizerSettings
from thumbnet.runs.fields import items, number, shown, table, text

Point: TypeAlias = dict[str, float | int]
"""A value for every knob, by its name."""

RATES = 4.0  # learning rates are searched between a quarter and four times the recipe's
DECAYS = 8.0
WIDTHS = (0.5, 1.5)  # factors on the recipe's width
EPOCHS = (0.5, 8.0)  # factors on the recipe's number of epochs
GROWTH = 1.7  # a training takes as many times as long as this power of the width
STRONGEST_LIGHT = 0.5
MOST_SHIFT = 8  # pixels
MOST_SMOOTHING = 0.3


@dataclass(frozen=True)
class Knob:
    """A setting that a search varies.

    Attributes:
        name: its name in the tables and on the page.
        kind: whether its values are whole numbers.
        low, high: its limits, inclusive.
        start: the recipe's own value.
        log: whether ratios count, not differences.
        keys: the recipe's keys that it changes. It is left out if the user set one of them.
    """

    name: str
    kind: Literal["int", "float"]
    low: float
    high: float
    start: float
    log: bool
    keys: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {**asdict(self), "keys": list(self.keys)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Knob:
        """Rebuild a knob from the output of :meth:`to_dict`.

        Raises:
            ValueError: an entry is missing, unknown or of a wrong kind.
        """
        given = table(values, "a knob", [known.name for known in fields(cls)])
        low, high, start = (number(given[key], key) for key in ("low", "high", "start"))
        if given["kind"] not in ("int", "float") or type(given["log"]) is not bool or low > high:
            raise ValueError(f"a knob is {shown(values)}")
        keys = tuple(text(one, "keys") for one in items(given["keys"], "keys"))
        return cls(text(given["name"], "name"), given["kind"], low, high, start, given["log"], keys)


def knobs(
    recipe: Recipe,
    named: frozenset[str],
    pictures: int,
    size: tuple[int, int],
    *,
    takes_width: bool,
    epochs: bool,
) -> tuple[Knob, ...]:
    """List what a search that starts from ``recipe`` varies.

    Args:
        recipe: where the search starts.
        named: keys that the user set, which stay as they are.
        pictures: training pictures.
        size: height and width of the network's input, in pixels.
        takes_width: whether the network's width can be chosen.
        epochs: whether to search the number of epochs.
    """
    training, augment, width = recipe.training, recipe.augment, recipe.model.width
    side = min(size)
    rates = ("optimizer.lr", "optimizer.groups")
    found = [_number("learning rate", 1 / RATES, RATES, 1.0, rates, log=True)]
    if _decays(recipe.optimizer):
        keys = ("optimizer.weight_decay", "optimizer.groups")
        found.append(_number("weight decay", 1 / DECAYS, DECAYS, 1.0, keys, log=True))
    if takes_width:
        low, high = (min(8.0, factor * width) for factor in WIDTHS)
        found.append(_number("width", low, high, width, ("model.width",), log=True))
    found.append(_whole("shift", 0, min(MOST_SHIFT, side // 4), augment.translate, ("augment.translate",)))
    found.append(_whole("cutout", 0, side // 2, augment.cutout, ("augment.cutout",)))
    if augment.brightness == augment.contrast:
        keys = ("augment.brightness", "augment.contrast")
        found.append(_number("light", 0.0, STRONGEST_LIGHT, augment.brightness, keys))
    smoothing = training.label_smoothing
    found.append(_number("smoothing", 0.0, MOST_SMOOTHING, smoothing, ("training.label_smoothing",)))
    least, most = max(SMALLEST_BATCH, training.batch_size // 2), min(2 * training.batch_size, pictures // 4)
    batch = ("training.batch_size",)
    found.append(_whole("batch size", least, most, training.batch_size, batch, log=True))
    if epochs:
        least, most = (max(1, int(factor * training.epochs)) for factor in EPOCHS)
        found.append(_whole("epochs", least, most, training.epochs, ("training.epochs",), log=True))
    return tuple(one for one in found if one.low < one.high and not named.intersection(one.keys))


def _number(
    name: str, low: float, high: float, start: float, keys: tuple[str, ...], log: bool = False
) -> Knob:
    return Knob(name, "float", min(low, start), max(high, start), start, log, keys)


def _whole(name: str, low: int, high: int, start: int, keys: tuple[str, ...], log: bool = False) -> Knob:
    return Knob(name, "int", min(low, start), max(high, start), start, log, keys)


def start_of(varied: Sequence[Knob]) -> Point:
    """The point that leaves the recipe unchanged."""
    return {knob.name: int(knob.start) if knob.kind == "int" else knob.start for knob in varied}


def recipe_at(recipe: Recipe, point: Mapping[str, float], same_time: bool = False) -> Recipe:
    """The recipe with the settings of ``point``. The point of :func:`start_of` changes nothing.

    Learning rates also change with the square root of the batch size, as in
    :meth:`~thumbnet.recipes.recipe.Recipe.with_batch_size`.

    Args:
        recipe: where the search started.
        point: a value for every knob.
        same_time: let wider networks have fewer epochs, and narrower ones more, so that they take as long.
    """
    size = int(point.get("batch size", recipe.training.batch_size))
    if size != recipe.training.batch_size:
        recipe = recipe.with_batch_size(size)
    width = _rounded(point.get("width", recipe.model.width))
    epochs = point.get("epochs", recipe.training.epochs)
    if same_time:
        epochs = max(1, round(epochs / slowdown(width, recipe.model.width)))
    training = replace(
        recipe.training,
        epochs=int(epochs),
        label_smoothing=_rounded(point.get("smoothing", recipe.training.label_smoothing)),
    )
    return replace(
        recipe,
        training=training,
        augment=_augment(recipe.augment, point),
        model=replace(recipe.model, width=width),
        optimizer=_scaled(recipe.optimizer, point.get("learning rate", 1.0), point.get("weight decay", 1.0)),
    )


def slowdown(width: float, before: float) -> float:
    """How many times as long a training takes with a network of ``width`` instead of ``before``."""
    return float((width / before) ** GROWTH)


def _augment(augment: AugmentSettings, point: Mapping[str, float]) -> AugmentSettings:
    light = point.get("light")
    if light is not None:
        augment = replace(augment, brightness=_rounded(light), contrast=_rounded(light))
    return replace(
        augment,
        translate=int(point.get("shift", augment.translate)),
        cutout=int(point.get("cutout", augment.cutout)),
    )


def _scaled(optimizer: OptimizerSettings, rate: float, decay: float) -> OptimizerSettings:
    """The optimizer with all learning rates times ``rate`` and all weight decays times ``decay``."""
    groups = tuple(
        replace(
            group,
            lr=None if group.lr is None else _times(group.lr, rate),
            weight_decay=None if group.weight_decay is None else _times(group.weight_decay, decay),
        )
        for group in optimizer.groups
    )
    return replace(
        optimizer,
        lr=_times(optimizer.lr, rate),
        weight_decay=_times(optimizer.weight_decay, decay),
        groups=groups,
    )


def _decays(optimizer: OptimizerSettings) -> bool:
    """Whether any parameter has a weight decay. Muon's filters have none."""
    own = optimizer.weight_decay > 0 and optimizer.name != "muon"
    return own or any(group.weight_decay for group in optimizer.groups)


def _times(value: float, factor: float) -> float:
    return value if factor == 1 else _rounded(value * factor)


def _rounded(value: float) -> float:
    """Four significant digits: enough for any setting, and readable in a recipe."""
    return float(f"{value:.4g}")
