"""What the user should know about the training pictures before the training begins."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from thumbnet.batches.engines import Engine, MemoryEngine
from thumbnet.data.rendering import Rendering
from thumbnet.data.repeats import Repeats
from thumbnet.data.splits import Split
from thumbnet.data.survey import sample, scale_problem
from thumbnet.errors import printable
from thumbnet.invocation import command
from thumbnet.recipes.settings import SMALLEST_SIDE

FLAT = 8  # grey levels: a picture is (nearly) of one colour if no channel varies by more
MANY_FLAT = 0.01  # warn if a larger share of the pictures is flat
LOOKED_AT = 1_000  # size of the sample if pictures are decoded during the training
MUCH_LARGER = 2.0  # times the input's side, from which a note says so


def picture_notes(engine: Engine, split: Split) -> list[str]:
    """Notes about training pictures that are of one colour when the network sees them.

    Args:
        engine: delivers the pictures. If it decodes them during the training, only a sample is checked.
        split: the same pictures, for their names.
    """
    whole = engine.workers == 0
    positions = np.arange(len(engine.labels)) if whole else sample(len(engine.labels), LOOKED_AT)
    parts = _in_parts(engine, torch.from_numpy(positions))
    flat = np.concatenate([is_flat(images.permute(0, 2, 3, 1).cpu().numpy()) for images in parts])
    return flat_note(flat, [split.name(int(i)) for i in positions[flat][:1]])


def scale_notes(splits: Mapping[str, Split], rendering: Rendering) -> list[str]:
    """Warnings about held-out splits whose values are on another scale than those of the training pictures.

    Args:
        splits: all splits in use, by name.
        rendering: measured on the training pictures.
    """
    held_out = {name: split for name, split in splits.items() if name != "train"}
    problems = {name: scale_problem(split, rendering.range)[0] for name, split in held_out.items()}
    return [
        f"warning: the pictures of {name} have {problem}. Many of their pixels become black or white: "
        "give all splits the same scale"
        for name, problem in problems.items()
        if problem
    ]


def _in_parts(engine: Engine, positions: torch.Tensor) -> Iterable[torch.Tensor]:
    """The pictures at ``positions``, in parts; all pictures, without a copy, if they are in memory."""
    if isinstance(engine, MemoryEngine):
        return engine.images.split(1000)
    return engine.fetch(positions.split(1000))


def is_flat(images: np.ndarray) -> np.ndarray:
    """Which pictures (uint8 [N, H, W, 3]) are (nearly) of one colour: bool [N]."""
    height, width = images.shape[1:3]
    few = images[:, :: max(1, height // 4), :: max(1, width // 4)]  # a few pixels rule out most pictures
    flat = _varies_little(few)
    flat[flat] = _varies_little(images[flat])
    return flat


def _varies_little(images: np.ndarray) -> np.ndarray:
    # NumPy compares whole rows much faster than many short ones, so the pixels come first: [H * W, N * 3].
    count, height, width, channels = images.shape
    pixels = np.ascontiguousarray(images.transpose(1, 2, 0, 3)).reshape(height * width, count * channels)
    spread = pixels.max(axis=0) - pixels.min(axis=0)
    return np.asarray((spread <= FLAT).reshape(count, channels).all(axis=1))


def flat_note(flat: np.ndarray, example: Sequence[str]) -> list[str]:
    """A note about flat pictures (bool [N]), which is a warning if their share exceeds ``MANY_FLAT``."""
    count = int(flat.sum())
    if not count:
        return []
    warning = "warning: " if count > max(1, MANY_FLAT * len(flat)) else ""
    return [
        f"{warning}{count:,} of {len(flat):,} training pictures are (nearly) all of one colour when the "
        f"network sees them, such as {printable(example[0])}"
    ]


def copied_notes(repeats: Repeats, class_names: Sequence[str]) -> list[str]:
    """A warning per class that is a copy of another class."""
    return [
        f"warning: the class {printable(class_names[one.label])!r} is a copy of "
        f"{printable(class_names[one.original])!r}: {one.shared:,} of its {one.pictures:,} pictures in "
        f"{one.split} are also in that class, so no network can tell them apart"
        for one in repeats.copied_classes
    ]


def size_note(own: tuple[int, int], used: tuple[int, int], limit: int) -> str:
    """Say that pictures of one size are scaled down, and what it takes to keep their own size.

    Args:
        own, used: height and width of the pictures, and of the input.
        limit: the recipe's ``data.largest_auto_size``.
    """
    flag = f"{own[0]}x{own[1]}"
    times = own[0] * own[1] / (used[0] * used[1])
    return (
        f"all pictures are {flag} (height x width); for training they are scaled to {used[0]}x{used[1]}. "
        f"--image-size {flag} keeps their own size (the limit is data.largest_auto_size={limit}); an epoch "
        f"then takes about {times:,.1f} times as long"
    )


def shrunk_note(sizes: Sequence[tuple[int, int]], used: tuple[int, int], fit: str) -> list[str]:
    """A note about pictures of several sizes that are much larger than the network's input.

    Args:
        sizes: height and width of some pictures, as they are stored.
        used: height and width of the input.
        fit: how pictures of another shape fit into it.
    """
    typical = statistics.median(max(size) for size in sizes) if sizes else 0
    if typical < MUCH_LARGER * max(used):
        return []
    double, half = ([round(factor * side) for side in used] for factor in (2, 0.5))
    text = (
        f"the pictures have several sizes, typically {typical:.0f} pixels, and are scaled to "
        f"{used[0]}x{used[1]} ({fit}). --image-size {double[0]}x{double[1]} lets the network see more, in "
        "four times the time"
    )
    if min(half) >= SMALLEST_SIDE:
        text += f"; {half[0]}x{half[1]} takes a quarter of it"
    if fit == "pad":
        text += "; --fit crop uses all of the input"
    return [f"{text}. {command('tune', 'DATA', '--minutes', '20')} tries out other sizes"]


def scaling_notes(
    shared: tuple[int, int] | None,
    sizes: Sequence[tuple[int, int]],
    used: tuple[int, int],
    fit: str,
    limit: int,
) -> list[str]:
    """What the user should know about the size to which pictures are scaled.

    Args:
        shared: height and width of all pictures; None if they differ.
        sizes: those of some pictures, if they differ.
        used: height and width of the input.
        fit: how pictures of another shape fit into it.
        limit: the recipe's ``data.largest_auto_size``.
    """
    if shared is None:
        return shrunk_note(sizes, used, fit)
    return [size_note(shared, used, limit)] if max(shared) > max(used) else []
