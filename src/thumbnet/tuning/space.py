"""Which settings a search varies, between which limits, and the recipe for a point of that space.

A search starts from a recipe. Learning rates and weight decays are factors on the recipe's own, because a
recipe may have several of each, and their ratios matter. Shift and cutout are pixels at the size where the
search starts. All other knobs are the settings themselves.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias, get_args

from thumbnet.data.rendering import Fit
from thumbnet.recipes.functions import LOSSES
from thumbnet.recipes.networks import MODEL_NAMES
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import (
    AUTO,
    MOST_TRANSLATE,
    SMALLEST_BATCH,
    SMALLEST_SIDE,
    AugmentSettings,
    DataSettings,
    OptimizerSettings,
    parse_image_size,
)
from thumbnet.runs.fields import items, number, shown, table, text
from thumbnet.training.speed import slowdown

Point: TypeAlias = dict[str, float | int | str]
"""A value for every knob, by its name. A choice is the option itself."""

Size: TypeAlias = tuple[int, int]

RATES = 4.0  # learning rates are searched between a quarter and four times the recipe's
DECAYS = 8.0
WIDTHS = (0.5, 1.5)  # factors on the recipe's width; in a given time, no narrower than the recipe
EPOCHS = (0.5, 8.0)  # factors on the recipe's number of epochs
FITS: tuple[str, ...] = get_args(Fit)
SIDES = (32, 48, 64, 96)  # pixels, of the longest side
SIZE_KEYS = ("data.image_size", "data.largest_auto_size", "data.largest_mixed_size")
UNLIKE = 0.05  # relative difference between aspect ratios that are not the same
FEW = 0.1  # share of pictures with another aspect ratio from which the search varies how they are fitted
STRONGEST_LIGHT = 0.5
MOST_SHIFT = 8  # pixels
MOST_SMOOTHING = 0.3


@dataclass(frozen=True)
class Knob:
    """A setting that a search varies.

    Attributes:
        name: its name in the tables and on the page.
        kind: whether its values are whole numbers, any numbers, or options.
        low, high: its limits, inclusive. For options, their positions.
        start: the recipe's own value.
        log: whether ratios count, not differences.
        keys: the recipe's keys that it changes. It is left out if the user set one of them.
        options: what there is to choose from.
    """

    name: str
    kind: Literal["int", "float", "choice"]
    low: float
    high: float
    start: float
    log: bool
    keys: tuple[str, ...]
    options: tuple[str, ...] = ()

    def at(self, point: Mapping[str, float | str]) -> float:
        """Its value in ``point``, as a number between ``low`` and ``high``."""
        value = point[self.name]
        return self.options.index(value) if isinstance(value, str) else value

    def shown(self, value: float, digits: int = 3) -> str:
        """A value for people, with so many significant digits."""
        return self.options[round(value)] if self.kind == "choice" else f"{value:.{digits}g}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {**asdict(self), "keys": list(self.keys), "options": list(self.options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Knob:
        """Rebuild a knob from the output of :meth:`to_dict`.

        Raises:
            ValueError: an entry is missing, unknown or of a wrong kind.
        """
        given = table(values, "a knob", [known.name for known in fields(cls)])
        low, high, start = (number(given[key], key) for key in ("low", "high", "start"))
        kind, log = given["kind"], given["log"]
        keys, options = (
            tuple(text(one, key) for one in items(given[key], key)) for key in ("keys", "options")
        )
        choice = kind == "choice" and (low, high) == (0, len(options) - 1)
        if not (choice or (kind in ("int", "float") and not options)) or type(log) is not bool or low > high:
            raise ValueError(f"a knob is {shown(values)}")
        return cls(text(given["name"], "name"), kind, low, high, start, log, keys, options)


def knobs(
    recipe: Recipe,
    named: frozenset[str],
    pictures: int,
    size: Size,
    *,
    own: Sequence[Size],
    takes_width: bool,
    epochs: bool,
) -> tuple[Knob, ...]:
    """List what a search that starts from ``recipe`` varies.

    In a given time, the final training is several times as long as a trial. A narrower network or a smaller
    input wins in short trials, because it has more epochs, and loses in a long training
    (docs/notebook/tuning.md). So these are searched only together with the number of epochs, which trials
    and the final training then share.

    Args:
        recipe: where the search starts.
        named: keys that the user set, which stay as they are.
        pictures: training pictures.
        size: height and width of the network's input, in pixels.
        own: height and width of some pictures as they are stored, in pixels.
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
        narrowest, widest = WIDTHS
        low, high = (min(8.0, factor * width) for factor in (narrowest if epochs else 1.0, widest))
        found.append(_number("width", low, high, width, ("model.width",), log=True))
    found.append(_whole("shift", 0, min(MOST_SHIFT, side // 4), augment.translate, ("augment.translate",)))
    found.append(_whole("cutout", 0, side // 2, augment.cutout, ("augment.cutout",)))
    if augment.brightness == augment.contrast:
        keys = ("augment.brightness", "augment.contrast")
        found.append(_number("light", 0.0, STRONGEST_LIGHT, augment.brightness, keys))
    if not LOSSES.is_own(training.loss):
        smoothing = training.label_smoothing
        found.append(_number("smoothing", 0.0, MOST_SMOOTHING, smoothing, ("training.label_smoothing",)))
    least, most = max(SMALLEST_BATCH, training.batch_size // 2), min(2 * training.batch_size, pictures // 4)
    batch = ("training.batch_size", *rates)
    found.append(_whole("batch size", least, most, training.batch_size, batch, log=True))
    sizes = _sizes(recipe, size, own, smaller=epochs)
    found.append(_choice("size", sizes, _size_text(size), SIZE_KEYS))
    if _do_not_fit(own, size) > FEW:
        found.append(_choice("fit", FITS, recipe.data.fit, ("data.fit",)))
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


def _choice(name: str, options: Sequence[str], start: str, keys: tuple[str, ...]) -> Knob:
    return Knob(name, "choice", 0, len(options) - 1, options.index(start), False, keys, tuple(options))


def _sizes(recipe: Recipe, size: Size, own: Sequence[Size], *, smaller: bool) -> list[str]:
    """The input sizes to choose from, in order: ``size``, and others up to the pictures' own."""
    if recipe.data.image_size != AUTO or recipe.model.name not in MODEL_NAMES:  # others may take only one
        return [_size_text(size)]
    longest = max(size)
    typical = statistics.median(max(one) for one in own) if own else 0
    least = min(SIDES) if smaller else longest
    sides = sorted({longest, *(side for side in SIDES if least <= side <= max(longest, typical))})
    return [
        _size_text(tuple(max(SMALLEST_SIDE, round(one * side / longest)) for one in size)) for side in sides
    ]


def _do_not_fit(own: Sequence[Size], size: Size) -> float:
    """The share of the pictures whose aspect ratio is not that of ``size``."""
    ratios = [height * size[1] / (width * size[0]) for height, width in own]
    return statistics.fmean(max(one, 1 / one) > 1 + UNLIKE for one in ratios) if ratios else 0.0


def _size_text(size: Sequence[int]) -> str:
    """A size as ``data.image_size`` has it."""
    return f"{size[0]}x{size[1]}"


def start_of(varied: Sequence[Knob]) -> Point:
    """The point that leaves the recipe unchanged."""
    return {knob.name: _valued(knob, knob.start) for knob in varied}


def _valued(knob: Knob, value: float) -> float | int | str:
    """A number, brought between the limits, as a point has it."""
    within = min(max(value, knob.low), knob.high)
    if knob.kind == "float":
        return within
    return knob.options[round(within)] if knob.kind == "choice" else round(within)


def guesses(varied: Sequence[Knob]) -> list[Point]:
    """The points that a search tries first: where it starts, and what is likely to be better.

    That photographs should be cropped and larger was measured (docs/notebook/tuning.md). The others were
    chosen by judgement.
    """
    known = {knob.name: knob for knob in varied}

    def from_start(name: str, change: Callable[[float], float]) -> Point:
        knob = known.get(name)
        return {} if knob is None else {name: _valued(knob, change(knob.start))}

    cropped = from_start("fit", lambda _: FITS.index("crop"))
    squashed = from_start("fit", lambda _: FITS.index("squash"))
    smaller = from_start("size", lambda start: start - 1)
    larger = from_start("size", lambda start: start + 1)
    largest = from_start("size", lambda start: start + 2)
    narrow = from_start("width", lambda start: 0.7 * start)
    stronger = {
        **from_start("shift", lambda start: start + 1),
        **from_start("cutout", lambda start: start + known["cutout"].high / 2),
        **from_start("light", lambda start: start + 0.15),
    }
    faster = from_start("learning rate", lambda start: 1.5 * start)
    start = start_of(varied)
    found = [start]
    for changes in (
        {**cropped, **larger},
        {**squashed, **larger},
        {**cropped, **largest, **narrow},
        smaller,
        stronger,
        narrow,
        faster,
    ):
        point = {**start, **changes}
        if point not in found:
            found.append(point)
    return found


def recipe_at(
    recipe: Recipe,
    point: Mapping[str, float | str],
    *,
    size: Size | None = None,
    same_time: bool = False,
) -> Recipe:
    """The recipe with the settings of ``point``. The point of :func:`start_of` changes nothing.

    Learning rates also change with the square root of the batch size, as in
    :meth:`~thumbnet.recipes.recipe.Recipe.with_batch_size`.

    Args:
        recipe: where the search started.
        point: a value for every knob.
        size: height and width of the network's input where the search started, if ``point`` has one.
        same_time: let a wider network, or one that sees larger pictures, have fewer epochs, so that it takes
            as long.
    """

    def of(name: str, otherwise: float) -> float:
        return float(point.get(name, otherwise))

    def rounded(name: str, own: float) -> float:
        value = of(name, own)
        return own if value == own else _rounded(value)

    batch = int(of("batch size", recipe.training.batch_size))
    if batch != recipe.training.batch_size:
        recipe = recipe.with_batch_size(batch)
    width = rounded("width", recipe.model.width)
    data, scale = recipe.data, 1.0
    if size is not None and point.get("size", _size_text(size)) != _size_text(size):
        data = replace(data, image_size=str(point["size"]))
        scale = enlargement(data, size) ** 0.5
    data = replace(data, fit=point.get("fit", data.fit))  # type: ignore[arg-type]
    epochs = of("epochs", recipe.training.epochs)
    if same_time:
        epochs = max(1, round(epochs / slowdown(width, recipe.model.width) / scale**2))
    training = replace(
        recipe.training,
        epochs=int(epochs),
        label_smoothing=rounded("smoothing", recipe.training.label_smoothing),
    )
    return replace(
        recipe,
        data=data,
        training=training,
        augment=_augment(recipe.augment, point, rounded("light", recipe.augment.brightness), scale),
        model=replace(recipe.model, width=width),
        optimizer=_scaled(recipe.optimizer, of("learning rate", 1.0), of("weight decay", 1.0)),
    )


def enlargement(data: DataSettings, size: Size) -> float:
    """How many times as many pixels the input has as one of ``size``, where the search started."""
    height, width = size if data.image_size == AUTO else parse_image_size(data.image_size)
    return height * width / (size[0] * size[1])


def _augment(
    augment: AugmentSettings, point: Mapping[str, float | str], light: float, scale: float
) -> AugmentSettings:
    """The augmentation of a point whose pictures are ``scale`` times as large as where the search started."""
    if "light" in point:
        augment = replace(augment, brightness=light, contrast=light)
    if "shift" in point:
        augment = replace(augment, translate=min(MOST_TRANSLATE, round(scale * float(point["shift"]))))
    if "cutout" in point:
        augment = replace(augment, cutout=round(scale * float(point["cutout"])))
    return augment


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
