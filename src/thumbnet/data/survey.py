"""The value range and the background of a data set, measured on a sample of its training pictures.

Pictures of more than 8 bits, or of floats, need one range of values that becomes 0..255. Transparent
ones need a background that they can be told from. Both are measured once over the training split, stored with
the preprocessing, and used for every picture from then on. 8-bit pictures without transparency need neither.
Where the first bytes of their files show that they are such, they are not even decoded for this.

A fixed random sample of up to ``SURVEYED`` pictures is looked at, the same one for every engine and process.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np

from thumbnet.data.images import ALPHA_MODES, BY_TYPE, Picture, Rendering, is_deep, is_plain, with_alpha
from thumbnet.data.splits import ArraySplit, Split
from thumbnet.errors import UnreadableImageError, printable
from thumbnet.recipes.settings import AUTO, BACKGROUNDS, DataSettings

SURVEYED = 5_000  # pictures looked at
MEASURED = 1_000  # deep or transparent ones, of each kind, that are measured
HOT = 4.0  # extremes that stretch the range this many times beyond 99 % of the pixels are hot pixels
USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 4095.0), (0.0, 65535.0))
FILLED = 0.8  # a usual range is taken where the values fill this share of it: at least 200 of 256 levels
FAINT = 24.0  # of 255: a picture nearer to its background than this, on (quadratic) average, vanishes
VANISHING = 0.05  # share of vanishing pictures that a background may have
QUANTILES = 1025  # of all sampled values: by these, lost levels are counted


@dataclass(frozen=True)
class Survey:
    """The measurements on the sample.

    Attributes:
        pictures: how many were looked at.
        deep, transparent: how many have more than 8 bits (or floats); how many have transparent pixels.
        range: the measured range of the deep ones.
        hot: whether hot pixels, or other rare extremes, were left out of it.
        values: quantiles of the deep ones' values.
        vanishing: of the transparent ones, by the names of ``BACKGROUNDS``, the share that vanishes on it.
        example: name of a transparent picture that vanishes on white, or "".
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
        """As text, for the cache."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Survey:
        """Back from :meth:`to_json`.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        found = json.loads(text)
        limits = found["range"]
        found["range"] = None if limits is None else (float(limits[0]), float(limits[1]))
        found["values"], found["vanishing"] = tuple(found["values"]), tuple(found["vanishing"])
        return cls(**found)


def survey(split: Split) -> Survey:
    """Measure a sample of ``split``. Unreadable pictures are skipped, because decoding reports them."""
    if isinstance(split, ArraySplit) and split.images.dtype == np.uint8 and not _has_alpha(split.images[:1]):
        return Survey(pictures=len(split))
    positions = sample(len(split), SURVEYED)
    extremes: list[np.ndarray] = []
    values: list[np.ndarray] = []
    faint: list[np.ndarray] = []
    deep = transparent = pictures = 0
    example = ""
    for index in positions.tolist():
        pictures += 1
        if is_plain(split.head(index)):
            continue
        try:
            picture = split.load(index)
        except UnreadableImageError:
            continue
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
    return Survey(
        pictures, deep, transparent, limits, hot, tuple(pooled.tolist()), tuple(vanishing.tolist()), example
    )


def sample(count: int, most: int) -> np.ndarray:
    """All positions of up to ``most`` pictures, else always the same random ones: int64, rising."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def colours(picture: Picture) -> np.ndarray:
    """The values of a decoded picture without its alpha channel, [H, W] or [H, W, channels]."""
    values = np.asarray(picture)
    return values[..., :3] if values.ndim == 3 else values


def _extremes(values: np.ndarray) -> np.ndarray:
    """Minimum, 0.5 % quantile, 99.5 % quantile and maximum of a picture's values: float64 [4]."""
    return np.asarray(np.quantile(values, (0, 0.005, 0.995, 1)), dtype=np.float64)


def _some(values: np.ndarray) -> np.ndarray:
    """Up to 1,000 of a picture's values, evenly chosen."""
    flat = values.reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(flat.size, 1000)).astype(np.int64)].astype(np.float64)


def measured_range(extremes: np.ndarray) -> tuple[tuple[float, float], bool]:
    """The range of a data set from the extremes of its pictures, and whether it clips values.

    It reaches from the 1st percentile of the minima to the 99th of the maxima, so that one broken picture
    does not decide. Where these lie far beyond nearly all pixels in most pictures (hot pixels of a sensor,
    cosmic rays), the range is twice that of the 99 % of pixels in the middle. A range that nearly fills a
    usual one, such as 0 to 255, becomes that.
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
    """Colours and alpha of a picture with transparent pixels, float32 [pixels, 3] and [pixels]; else None."""
    if isinstance(picture, np.ndarray):
        if not _has_alpha(picture[None]):
            return None
        layer = np.dstack([BY_TYPE.levels(picture[..., :3]), BY_TYPE.levels(picture[..., 3])])
    elif picture.mode in ALPHA_MODES or "transparency" in picture.info:
        if is_deep(picture):
            return None  # a single transparent value of 16-bit grey
        layer = np.asarray(with_alpha(picture))
    else:
        return None
    pixels = layer.reshape(-1, 4)
    if pixels[:, 3].min() == 255:
        return None
    pixels = pixels[pixels[:, 3] > 0]
    return pixels[:, :3].astype(np.float32), pixels[:, 3].astype(np.float32)


def _contrasts(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """How far visible pixels are from each of ``BACKGROUNDS``: root mean square, weighted by alpha."""
    if not len(rgb):
        return np.full(len(BACKGROUNDS), np.inf)  # nothing is visible on any background
    distances = [((rgb - ground) ** 2).mean(axis=1) for ground in np.array(list(BACKGROUNDS.values()))]
    return np.asarray(np.sqrt(np.array([(alpha * one).sum() for one in distances]) / alpha.sum()))


def choose_rendering(found: Survey, settings: DataSettings) -> Rendering:
    """The rendering that a recipe asks for, or that was measured."""
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
    sampled = f"{found.pictures:,} training pictures looked at"
    if found.deep and rendering.range is not None:
        low, high = rendering.range
        how = "measured" if settings.range == AUTO else "as data.range says"
        notes.append(
            f"{found.deep:,} of {sampled} have more than 8 bits: values {low:g} to {high:g} become 0 to 255 "
            f"({how}, for every picture alike)"
        )
        if found.hot and settings.range == AUTO:
            notes.append(
                f"rare values beyond {low:g} to {high:g}, such as hot pixels, are clipped; to keep them set "
                'the range: --set data.range="[LOW, HIGH]"'
            )
        notes += _lost_levels(found, rendering)
        if found.deep < found.pictures:
            notes.append(
                f"warning: pictures of 8 bits ({found.pictures - found.deep:,}) and of more ({found.deep:,}) "
                "are mixed; the range applies to the latter only, so the two kinds may differ in brightness"
            )
    if found.transparent:
        name = next((k for k, v in BACKGROUNDS.items() if v == rendering.background), None)
        name = name or str(rendering.background)
        lost = _vanishing_on(found, rendering)
        if lost > VANISHING:
            notes.append(
                f"warning: {100 * lost:.0f} % of the transparent pictures can hardly be told from their "
                f'background, {name}: choose another one, --set data.background="[R, G, B]"'
            )
        elif name != "white" and settings.background == AUTO:
            notes.append(
                f"{found.transparent:,} of {sampled} have transparent pixels, and "
                f"{100 * found.vanishing[0]:.0f} % of them would vanish on white, such as "
                f"{printable(found.example)}: they are laid on {name}"
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
        f"warning: most levels are lost: {before:,} distinct values become {after}. The pictures' values lie "
        f'from {values[0]:g} to {values[-1]:g}: --set data.range=auto, or --set data.range="[LOW, HIGH]"'
    ]
