"""What the user should know about the training pictures before the training begins."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from thumbnet.batches.engines import Engine, MemoryEngine
from thumbnet.data.repeats import Repeats
from thumbnet.data.splits import Split
from thumbnet.data.survey import sample
from thumbnet.errors import memory_guard, printable
from thumbnet.hardware import autocast, compute_dtype, memory_layout
from thumbnet.models import build_model
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import SMALLEST_SIDE

FLAT = 8  # grey levels: a picture is (nearly) of one colour if no channel varies by more
MANY_FLAT = 0.01  # warn if a larger share of the pictures is flat
LOOKED_AT = 1_000  # size of the sample if pictures are decoded during the training
MUCH_LARGER = 2.0  # times the input's side, from which a note says so
TIMED = 16  # pictures per step when estimating the time of an epoch


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


def size_note(
    own: tuple[int, int],
    used: tuple[int, int],
    pictures: int,
    recipe: Recipe,
    classes: int,
    device: torch.device,
) -> str:
    """Say why the pictures are scaled down, how much time that saves, and how to keep their own size."""
    advice = "Use a narrower network: --set model.width=0.5"
    with memory_guard(str(device), "estimating the time of an epoch", advice):
        seconds = epoch_seconds(used, pictures, recipe, classes, device)
    at_own = seconds * own[0] * own[1] / (used[0] * used[1])
    flag = f"{own[0]}x{own[1]}"
    return (
        f"all pictures are {flag} (height x width); they are scaled to {used[0]}x{used[1]}. An epoch "
        f"takes about {_about(seconds)} at this size and about {_about(at_own)} at their own, which "
        f"--image-size {flag} keeps (the limit is data.largest_auto_size={recipe.data.largest_auto_size})"
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
    return [f"{text}. thumbnet tune tries out other sizes"]


def epoch_seconds(
    size: tuple[int, int], pictures: int, recipe: Recipe, classes: int, device: torch.device
) -> float:
    """Estimate the seconds per epoch from a forward and backward pass with a few pictures."""
    cuda = device.type == "cuda"
    count = min(pictures, TIMED * 8 if cuda else TIMED)
    layout = memory_layout(device, recipe.training.channels_last)
    with torch.random.fork_rng(devices=[]):
        model = build_model(recipe.model, classes, sizes=[size])
        model = model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    images = torch.zeros(count, 3, *size, device=device).contiguous(memory_format=layout)

    dtype = compute_dtype(recipe.training.precision, device)

    def step() -> float:
        started = time.perf_counter()
        with autocast(dtype, device):
            loss = model(images).float().square().mean()
        loss.backward()
        gradient = next(p.grad for p in model.parameters() if p.grad is not None)
        float(gradient.sum())  # waits for a GPU, which has only been told what to compute
        return time.perf_counter() - started

    step()  # a warm-up, which is not timed
    return min(step() for _ in range(2)) * pictures / count


def _about(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.1g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
