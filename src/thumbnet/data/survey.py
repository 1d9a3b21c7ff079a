"""Measure the value range and choose the background of a data set, on a sample of its training pictures.

Pictures of more than 8 bits, and floats, need one range of values that becomes 0..255. Transparent pictures
need a background that they stand out from. Both are measured once on the training split, stored with the
preprocessing, and used for every later picture. Opaque 8-bit pictures need neither, and they are not decoded
here if the first bytes of their files show that they are opaque and 8-bit.

Other splits, and pictures that a network is used on, have to be on the scale that was measured.

The sample is random but fixed, up to ``SURVEYED`` pictures, the same for every engine and process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from thumbnet.data.images import Picture, is_plain
from thumbnet.data.rendering import ALPHA_MODES, BY_TYPE, Rendering, is_deep, with_alpha
from thumbnet.data.splits import ArraySplit, EncodedSplit, FileSplit, Split
from thumbnet.errors import UnreadableImageError, printable
from thumbnet.recipes.settings import AUTO, BACKGROUNDS, DataSettings

SURVEYED = 5_000  # pictures looked at
MEASURED = 1_000  # up to this many deep ones are measured, and as many transparent ones
HOT = 4.0  # hot pixels stretch the range to more than this many times that of 99 % of the pixels
USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 4095.0), (0.0, 65535.0))
FILLED = 0.8  # share of a usual range that the values must fill; 200 of 256 levels remain at least
FAINT = 24.0  # a picture whose RMS distance to its background, out of 255, is smaller vanishes
VANISHING = 0.05  # largest share of pictures that may vanish on a background
QUANTILES = 1025  # how many quantiles of all sampled values are kept, to count lost levels
SCALED = 50  # pictures whose scale is compared with that of the training pictures
OUTLIERS = 0.005  # share of a picture's smallest values, and of its largest, that do not tell its scale
TOLERANCE = 0.1  # by which floats of pictures may leave [0, 1] because they were resized or sharpened
ODD = 0.05  # share of the pictures that may be odd before the whole split is


@dataclass(frozen=True)
class Survey:
    """What was measured on the sample.

    Attributes:
        pictures: how many pictures the sample has.
        deep, transparent: how many have more than 8 bits (or floats); how many have transparent pixels.
        range: the measured range of the deep pictures.
        hot: whether that range leaves out hot pixels or other rare extremes.
        values: quantiles of the deep pictures' values.
        vanishing: the share of transparent pictures that vanishes on each of ``BACKGROUNDS``.
        example: the name of a transparent picture that vanishes on white, or "".
    """

    pictures: int = 0
    deep: int = 0
    transparent: int = 0
    range: tuple[float, float] | None = None
    hot: bool = False
    values: tuple[float, ...] = ()
    vanishing: tuple[float, ...] = ()
    example: str = ""

    def to_json(self) -> str:
        """Encode as JSON, for the cache."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Survey:
        """Decode what :meth:`to_json` returned.

        Raises:
            ValueError, TypeError, KeyError: the text is something else.
        """
        found = json.loads(text)
        limits = found["range"]
        found["range"] = None if limits is None else (float(limits[0]), float(limits[1]))
        found["values"], found["vanishing"] = tuple(found["values"]), tuple(found["vanishing"])
        return cls(**found)


def survey(split: Split) -> Survey:
    """Measure a sample of ``split``. Damaged pictures are skipped: decoding reports them later.

    Raises:
        FailedReadError: the system failed to read a picture.
    """
    split = split.reader()
    if isinstance(split, ArraySplit) and split.images.dtype == np.uint8 and not _has_alpha(split.images[:1]):
        return Survey(pictures=len(split))
    extremes: list[np.ndarray] = []
    values: list[np.ndarray] = []
    faint: list[np.ndarray] = []
    deep = transparent = 0
    example = ""
    for index, picture in _unusual(split, SURVEYED):
        if is_deep(picture):
            deep += 1
            if deep <= MEASURED:
                extremes.append(_extremes(colours(picture)))
                values.append(_some(colours(picture)))
        shown = _visible(picture)
        if shown is not None:
            transparent += 1
            if transparent <= MEASURED:
                contrast = _contrasts(*shown)
                faint.append(contrast < FAINT)
                if faint[-1][0] and not example:
                    example = split.name(index)
    limits, hot = measured_range(np.array(extremes)) if extremes else (None, False)
    pooled = np.quantile(np.concatenate(values), np.linspace(0, 1, QUANTILES)) if values else np.empty(0)
    vanishing = np.mean(faint, axis=0) if faint else np.empty(0)
    pictures = min(len(split), SURVEYED)
    return Survey(
        pictures, deep, transparent, limits, hot, tuple(pooled.tolist()), tuple(vanishing.tolist()), example
    )


def _unusual(split: Split, most: int) -> Iterator[tuple[int, Picture]]:
    """Those of up to ``most`` pictures that may be deep or transparent: position, and picture at full depth.

    Damaged pictures are skipped.
    """
    for index in sample(len(split), most).tolist():
        if is_plain(split.head(index)):
            continue
        try:
            picture = split.load(index)
        except UnreadableImageError:
            continue
        yield index, picture


def sample(count: int, most: int) -> np.ndarray:
    """Positions of a random sample of at most ``most`` pictures, always the same: int64, in rising order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def colours(picture: Picture) -> np.ndarray:
    """A decoded picture's values without alpha: [H, W] or [H, W, channels]."""
    values = np.asarray(picture)
    return values[..., :3] if values.ndim == 3 else values


def _extremes(values: np.ndarray) -> np.ndarray:
    """Minimum, 0.5 % quantile, 99.5 % quantile and maximum of a picture's values: float64 [4]."""
    return np.asarray(np.quantile(values, (0, 0.005, 0.995, 1)), dtype=np.float64)


def _some(values: np.ndarray) -> np.ndarray:
    """Up to 1,000 values of a picture, evenly spaced."""
    flat = values.reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(flat.size, 1000)).astype(np.int64)].astype(np.float64)


def measured_range(extremes: np.ndarray) -> tuple[tuple[float, float], bool]:
    """The range of a data set from the extremes of its pictures, and whether it clips values.

    The range goes from the 1st percentile of the minima to the 99th percentile of the maxima, so a few broken
    pictures do not matter. If most pictures have extremes far beyond 99 % of their pixels (a sensor's hot
    pixels, cosmic rays), it is twice the range of the middle 99 % of pixels instead. A range that nearly
    fills a usual one, such as 0 to 255, becomes the usual one.
    """
    low, high = np.quantile(extremes[:, 0], 0.01), np.quantile(extremes[:, 3], 0.99)
    inner = np.quantile(extremes[:, 1], 0.01), np.quantile(extremes[:, 2], 0.99)
    span = inner[1] - inner[0]
    hot = bool(0 < span and high - low > HOT * span)
    if hot:
        low, high = max(low, inner[0] - span / 2), min(high, inner[1] + span / 2)
    for least, most in USUAL:
        if least <= low and high <= most and high - low >= FILLED * (most - least):
            return (least, most), hot
    if (extremes[:, [0, 3]] % 1 == 0).all():  # whole numbers
        low, high = np.floor(low), np.ceil(high)
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0), hot


def _has_alpha(images: np.ndarray) -> bool:
    return images.ndim == 4 and images.shape[3] == 4


def _visible(picture: Picture) -> tuple[np.ndarray, np.ndarray] | None:
    """Colours and alpha of the visible pixels, float32 [pixels, 3] and [pixels]; None if all are opaque."""
    if isinstance(picture, np.ndarray):
        if not _has_alpha(picture[None]):
            return None
        layer = np.dstack([BY_TYPE.levels(picture[..., :3]), BY_TYPE.levels(picture[..., 3])])
    elif picture.mode in ALPHA_MODES or "transparency" in picture.info:
        if is_deep(picture):
            return None  # 16-bit grey with one transparent value: not measured
        layer = np.asarray(with_alpha(picture))
    else:
        return None
    pixels = layer.reshape(-1, 4)
    if pixels[:, 3].min() == 255:
        return None
    pixels = pixels[pixels[:, 3] > 0]
    return pixels[:, :3].astype(np.float32), pixels[:, 3].astype(np.float32)


def _contrasts(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """RMS distance of the visible pixels from each of ``BACKGROUNDS``, weighted by alpha."""
    if not len(rgb):
        return np.full(len(BACKGROUNDS), np.inf)  # nothing is visible on any background
    distances = [((rgb - ground) ** 2).mean(axis=1) for ground in np.array(list(BACKGROUNDS.values()))]
    return np.asarray(np.sqrt(np.array([(alpha * one).sum() for one in distances]) / alpha.sum()))


def choose_rendering(found: Survey, settings: DataSettings) -> Rendering:
    """The rendering that the recipe sets, with measured values for what is ``auto``."""
    limits = found.range if isinstance(settings.range, str) else (settings.range[0], settings.range[1])
    return Rendering(limits, _background(found, settings))


def _background(found: Survey, settings: DataSettings) -> tuple[int, int, int]:
    asked = settings.background
    if not isinstance(asked, str):
        red, green, blue = asked
        return red, green, blue
    if asked != AUTO:
        return BACKGROUNDS[asked]
    if not found.vanishing:
        return BACKGROUNDS["white"]
    good = [share <= VANISHING for share in found.vanishing]
    chosen = good.index(True) if any(good) else int(np.argmin(found.vanishing))
    return list(BACKGROUNDS.values())[chosen]


def rendering_notes(found: Survey, rendering: Rendering, settings: DataSettings) -> list[str]:
    """Notes for the user on how pictures are rendered."""
    notes = []
    sampled = f"{found.pictures:,} sampled training pictures"
    if found.deep and rendering.range is not None:
        low, high = rendering.range
        how = "measured" if settings.range == AUTO else "as data.range says"
        notes.append(
            f"{found.deep:,} of {sampled} have more than 8 bits: values {low:g} to {high:g} become 0 to 255 "
            f"({how}, the same for every picture)"
        )
        if found.hot and settings.range == AUTO:
            notes.append(
                f"rare values outside {low:g} to {high:g}, such as hot pixels, are clipped. To keep them: "
                '--set data.range="[LOW, HIGH]"'
            )
        notes += _lost_levels(found, rendering)
        if found.deep < found.pictures:
            notes.append(
                f"warning: 8-bit pictures ({found.pictures - found.deep:,}) and deeper ones "
                f"({found.deep:,}) are mixed. The range applies only to the deeper ones, so the two kinds "
                "may differ in brightness"
            )
    if found.transparent:
        name = next((k for k, v in BACKGROUNDS.items() if v == rendering.background), None)
        name = name or str(rendering.background)
        lost = _vanishing_on(found, rendering)
        if lost > VANISHING:
            notes.append(
                f"warning: {100 * lost:.0f} % of the transparent pictures hardly stand out from their "
                f'background, {name}. Choose another: --set data.background="[R, G, B]"'
            )
        elif name != "white" and settings.background == AUTO:
            notes.append(
                f"{found.transparent:,} of {sampled} have transparent pixels, and "
                f"{100 * found.vanishing[0]:.0f} % of them would vanish on white, such as "
                f"{printable(found.example)}: the background is {name}"
            )
    return notes


def _vanishing_on(found: Survey, rendering: Rendering) -> float:
    places = list(BACKGROUNDS.values())
    if rendering.background not in places or not found.vanishing:
        return 0.0
    return found.vanishing[places.index(rendering.background)]


def _lost_levels(found: Survey, rendering: Rendering) -> list[str]:
    values = np.array(found.values)
    before, after = len(np.unique(values)), len(np.unique(rendering.levels(values)))
    if before < 16 or after >= min(before, 256) / 4:
        return []
    return [
        f"warning: most levels are lost: {before:,} distinct values become {after}. The pictures' values go "
        f'from {values[0]:g} to {values[-1]:g}. Try --set data.range=auto or --set data.range="[LOW, HIGH]"'
    ]


def expected_values(limits: tuple[float, float] | None) -> str:
    """The values that a network takes, in words; ``limits`` is its range for pictures of more than 8 bits."""
    if limits is None:
        return "uint8 or other whole numbers from 0 to 255, uint16 from 0 to 65535, or floats in [0, 1]"
    low, high = limits
    return (
        f"uint8, or values on the scale of the training pictures, where {low:g} is black and {high:g} white"
    )


def is_off_scale(least: float, most: float, limits: tuple[float, float], *, floats: bool) -> bool:
    """Whether a picture is certainly on another scale than a network's training pictures.

    Darker and brighter pictures than those of the training are on its scale.

    Args:
        least, most: the picture's smallest and largest value.
        limits: the values that become 0 and 255.
        floats: whether its values are floats, which may be in [0, 1] instead of raw values.
    """
    low, high = limits
    span = high - low
    is_unit = floats and span > 8 and least >= 0 and 0 < most <= 1
    return is_unit or most < low - span or least > high + span


def scale_problem(split: Split, limits: tuple[float, float] | None) -> tuple[str, bool]:
    """What is wrong with the scale of a split's values, by a sample of its pictures.

    Single odd pictures, and rare extremes in any of them, do not count.

    Args:
        split: the pictures. Those of 8 bits have no scale of their own.
        limits: see :func:`expected_values`. If it is None, the types of files and of uint16 tell their scale.

    Returns:
        The problem in words, or "" if there is none; and whether it is certain. If it is not, the pictures
        may just be much brighter or darker than those of the training.

    Raises:
        FailedReadError: the system failed to read a picture.
    """
    split = split.reader()
    if not len(split) or (limits is None and isinstance(split, FileSplit | EncodedSplit)):
        return "", False
    if isinstance(split, ArraySplit) and split.images.dtype.kind == "i" and limits is None:
        # One value outside 0 to 255 is enough: then the whole array is rendered by its type, as 16 bits.
        lowest, highest = float(split.images.min()), float(split.images.max())
        wrong = lowest < 0 or highest > 255
        return (_unexpected({split.images.dtype.name}, lowest, highest, None) if wrong else ""), wrong
    low, high = (-TOLERANCE, 1 + TOLERANCE) if limits is None else limits
    far = 0.0 if limits is None else HOT * (high - low)
    types: set[str] = set()
    extremes: list[tuple[float, float]] = []
    off = odd = 0
    for _, picture in _unusual(split, SCALED):
        values = colours(picture)
        floats = values.dtype.kind == "f"
        if not is_deep(picture) or (limits is None and not floats):
            continue
        some = _some(values)
        usual = np.quantile(some, (OUTLIERS, 1 - OUTLIERS))
        is_odd = bool(usual[0] < low - far or usual[1] > high + far)
        least, most = float(values.min()), float(values.max())
        fractions = floats and bool((some % 1 != 0).any())  # whole numbers up to 1 may be counts
        is_off = is_odd if limits is None else is_off_scale(least, most, limits, floats=fractions)
        types.add(values.dtype.name)
        extremes.append((least, most))
        off += is_off
        odd += is_odd or is_off
    if odd <= ODD * len(extremes):
        return "", False
    least, most = min(one[0] for one in extremes), max(one[1] for one in extremes)
    return _unexpected(types, least, most, limits), off > len(extremes) / 2


def _unexpected(types: set[str], least: float, most: float, limits: tuple[float, float] | None) -> str:
    kinds = " and ".join(sorted(types))
    return f"values from {least:g} to {most:g} in {kinds}: expected {expected_values(limits)}"
