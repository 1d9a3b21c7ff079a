"""Decode every picture of a split once, and keep the result on disk.

The cache is the folder ``decoded`` in :func:`thumbnet.files.cache_folder`. Each entry is named by a digest of
everything that it depends on: the files' names, sizes and times (or their bytes), the size in pixels, and how
pictures are rendered and fitted. The features that a frozen network computes from a split have entries, too.
An entry is written to a temporary folder and then renamed, so it is always complete, even if several
processes write it at the same time. Deleted entries are created again when needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
import torch
from torch import Tensor

from thumbnet.batches import forked
from thumbnet.batches.cores import usable_cores
from thumbnet.batches.engines import MANY, fits_in_memory, sample_positions
from thumbnet.batches.statistics import CHANNELS, count_values
from thumbnet.data import plugins
from thumbnet.data.images import NOT_FINITE
from thumbnet.data.rendering import BY_TYPE, Fit, Rendering, fit_pixels
from thumbnet.data.splits import ArraySplit, Progress, Split
from thumbnet.data.survey import Survey, sample, survey
from thumbnet.errors import FailedReadError, UnreadableImageError, UnreadableImagesError, unreadable
from thumbnet.files import cache_folder, new_folder, sync_below
from thumbnet.recipes.settings import LARGEST_SIDE, SMALLEST_SIDE, DataSettings

LEAST_SIDE = 32  # pixels, of the square for pictures of several sizes, or of a size below 16
SAMPLE = 200  # pictures whose own sizes are looked at
_CHUNK = 256  # pictures per task of a decoding thread
# Seconds per picture. Threads that decode faster mostly wait for the interpreter lock: CIFAR-10's 60,000
# small JPEGs take 3.5 s with one thread and 12 s with two.
_WORTH_A_THREAD = 5e-4
_WORTH_A_PROCESS = 0.1  # seconds of work; starting one takes 0.01 to 0.02 s
_VERSION = 2  # raise it when the cache's format or the decoding changes

T = TypeVar("T")


@dataclass(frozen=True)
class Decoded:
    """A decoded split.

    Attributes:
        images: uint8 [N, 3, H, W], stored as [N, H, W, 3]; may be a memory-mapped file.
        counts: how often each of the 256 values occurs per channel, int64 [3, 256].
    """

    images: Tensor
    counts: Tensor


def decode_split(
    split: Split,
    size: tuple[int, int],
    fit: Fit,
    progress: Progress | None = None,
    rendering: Rendering = BY_TYPE,
) -> Decoded:
    """Decode all pictures of a split to ``size`` (height, width), or take them from the cache.

    Raises:
        UnreadableImagesError: lists every damaged picture.
        FailedReadError, UnreadableFilesError: the system failed to read a picture, or several.
    """
    split = split.reader()
    if isinstance(split, ArraySplit) and split.images.shape[1:3] == size:
        images = torch.from_numpy(_whole_array(split, rendering, progress)).permute(0, 3, 1, 2)
        return Decoded(images, count_values(images))
    entry = _entry(split, _name(size, fit, rendering))
    kept = _load(entry, (len(split), *size, CHANNELS))
    if kept is not None:
        return kept
    fresh = _decode(split, size, fit, rendering, progress)
    assert fresh is not None
    decoded = Decoded(fresh, count_values(fresh))
    _keep(entry, decoded)
    return decoded


def _whole_array(split: ArraySplit, rendering: Rendering, progress: Progress | None) -> np.ndarray:
    """Pictures that already have the right size, as uint8 [N, height, width, 3]. Copies only if it must."""
    images = split.images
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == CHANNELS:
        return np.ascontiguousarray(images)
    bad = find_unreadable(split)
    if bad:
        raise UnreadableImagesError(list(bad.values()))
    rendered = np.empty((*images.shape[:3], CHANNELS), dtype=np.uint8)
    for start in range(0, len(images), _CHUNK):
        part = slice(start, start + _CHUNK)
        rendered[part] = rendering.arrays(images[part], colour=images.ndim == 4)
        if progress:
            progress(min(start + _CHUNK, len(images)), len(images))
    return rendered


def surveyed(split: Split) -> Survey:
    """The result of :func:`thumbnet.data.survey.survey` for a split, cached."""
    split = split.reader()
    if isinstance(split, ArraySplit):
        return survey(split)
    entry = _entry(split, "survey")
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return Survey.from_json((entry / "survey.json").read_text("utf-8"))
    found = survey(split)
    _write(entry, lambda folder: (folder / "survey.json").write_text(found.to_json(), "utf-8"))
    return found


def capped_size(own: tuple[int, int], largest: int) -> tuple[int, int]:
    """Scale ``own`` (height, width) so that the longer side is at most ``largest``.

    If ``own`` shrinks, its shorter side becomes a multiple of 8, at least 16. A ``largest`` of 0 means no
    limit but the one of every image size, ``LARGEST_SIDE``.

    >>> capped_size((480, 640), 96)
    (72, 96)
    """
    largest = min(largest or LARGEST_SIDE, LARGEST_SIDE)
    if max(own) <= largest:
        return own
    factor = largest / max(own)
    height, width = (
        largest if side == max(own) else max(SMALLEST_SIDE, 8 * round(side * factor / 8)) for side in own
    )
    return height, width


def shared_size(
    split: Split,
    fit: Fit,
    progress: Progress | None = None,
    *,
    largest: int = 0,
    rendering: Rendering = BY_TYPE,
) -> tuple[int, int] | None:
    """The size (height, width) that all pictures share, as :func:`common_size`, and kept in the cache.

    The cheapest check is to decode them: if the size is uniform, the pictures are then in the cache for
    :func:`decode_split`. If a split is too large for memory, only the headers are read; if it is very large,
    only the headers of a sample.

    Args:
        split: the training pictures.
        fit, rendering: how they will be decoded.
        progress: called with the number of pictures done and their total.
        largest: upper limit of the longer side for decoding, see :func:`capped_size`.

    Raises:
        UnreadableImagesError: lists every damaged picture.
        FailedReadError, UnreadableFilesError: the system failed to read a picture, or several.
    """
    split = split.reader()
    if isinstance(split, ArraySplit):
        return common_size(split)
    entry = _entry(split, "shared size")  # entries called "size" say 32 by 32 where pictures share none
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        kept = json.loads((entry / "size.json").read_text())
        return None if kept is None else (int(kept[0]), int(kept[1]))
    if len(split) > MANY:
        chosen = split.subset(sample_positions(len(split)).numpy())
        return _remember(entry, common_size(chosen))
    with contextlib.suppress(UnreadableImageError):  # reported below with all others
        first = split.peek(0)[0]
        used = capped_size(first, largest)
        if min(first) >= SMALLEST_SIDE and fits_in_memory([split], used):
            images = _decode(split, used, fit, rendering, progress, own=first)
            if images is not None:
                _keep(_entry(split, _name(used, fit, rendering)), Decoded(images, count_values(images)))
            return _remember(entry, first if images is not None else None)
    return _remember(entry, common_size(split))


def _remember(entry: Path, size: tuple[int, int] | None) -> tuple[int, int] | None:
    _write(entry, lambda folder: (folder / "size.json").write_text(json.dumps(size)))
    return size


def auto_size(
    shared: tuple[int, int] | None, sizes: Sequence[tuple[int, int]], settings: DataSettings
) -> tuple[int, int]:
    """The input size (height, width) that ``image_size = "auto"`` stands for.

    If the pictures share a size with no side below 16 pixels, it is that size, as :func:`capped_size` scales
    it. Otherwise it is a square that does not enlarge a typical picture, with a side that is a multiple of 8,
    at least 32 and at most ``largest_mixed_size`` (if that is not 0) and ``largest_auto_size``.

    Args:
        shared: the size that all pictures share, if they do.
        sizes: the sizes of some pictures.
        settings: the upper limits.

    >>> auto_size(None, [(375, 500), (50, 40), (100, 60)], DataSettings())
    (56, 56)
    """
    if shared is not None and min(shared) >= SMALLEST_SIDE:
        return capped_size(shared, settings.largest_auto_size)
    typical = statistics.median_low(min(size) for size in sizes) if sizes else 0
    side = max(LEAST_SIDE, typical - typical % 8)
    return capped_size(capped_size((side, side), settings.largest_mixed_size), settings.largest_auto_size)


def some_sizes(split: Split) -> list[tuple[int, int]]:
    """Height and width, as they are stored, of up to ``SAMPLE`` pictures; damaged ones are left out.

    Raises:
        FailedReadError: the system failed to read a picture.
    """
    found = []
    for index in sample(len(split), SAMPLE).tolist():
        with contextlib.suppress(UnreadableImageError):
            found.append(split.peek(index)[0])
    return found


def common_size(split: Split) -> tuple[int, int] | None:
    """The size (height, width) that all pictures share; None if they differ or there are no pictures.

    Raises:
        UnreadableImagesError: lists every picture whose header is damaged.
        FailedReadError: the system failed to read a picture.
    """
    sizes: set[tuple[int, int]] = set()
    errors: list[UnreadableImageError] = []
    for index in range(len(split)):
        if isinstance(split, ArraySplit) and index:
            break
        try:
            sizes.add(split.peek(index)[0])
        except UnreadableImageError as error:
            errors.append(error)
        if len(sizes) > 1:
            return None
    if errors:
        raise UnreadableImagesError(errors)
    return sizes.pop() if sizes else None


def find_unreadable(split: Split, progress: Progress | None = None) -> dict[int, UnreadableImageError]:
    """The errors of all pictures that cannot be decoded, by position. The cache keeps the result.

    Raises:
        FailedReadError, UnreadableFilesError: the system failed to read a picture, or several. Nothing is
            cached.
    """
    split = split.reader()
    if isinstance(split, ArraySplit):
        if split.images.dtype.kind != "f":
            return {}
        finite = [bool(np.isfinite(image).all()) for image in split.images]
        bad = np.flatnonzero(~np.array(finite, dtype=bool)).tolist()
        return {index: UnreadableImageError(split.name(index), NOT_FINITE) for index in bad}
    entry = _entry(split, "unreadable")
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, IndexError, RecursionError):
        kept = json.loads((entry / "unreadable.json").read_text("utf-8"))
        return {int(at): UnreadableImageError(split.name(int(at)), str(why)) for at, why in kept.items()}

    def look(index: int) -> UnreadableImageError | FailedReadError | None:
        try:
            split.load(index)
        except (UnreadableImageError, FailedReadError) as error:
            return error
        return None

    found: dict[int, UnreadableImageError | FailedReadError] = _in_parallel(look, split, progress)
    if any(isinstance(error, FailedReadError) for error in found.values()):
        raise unreadable(list(found.values()))
    errors = {index: UnreadableImageError(split.name(index), error.reason) for index, error in found.items()}
    text = json.dumps({index: error.reason for index, error in errors.items()})
    _write(entry, lambda folder: (folder / "unreadable.json").write_text(text, "utf-8"))
    return errors


def readable(split: Split, progress: Progress | None = None) -> tuple[Split, list[UnreadableImageError]]:
    """``split`` without the pictures that cannot be decoded, and an error for each of those."""
    bad = find_unreadable(split, progress)
    if not bad:
        return split, []
    return split.subset(np.setdiff1d(np.arange(len(split)), list(bad))), list(bad.values())


def _in_parallel(work: Callable[[int], T | None], split: Split, progress: Progress | None) -> dict[int, T]:
    """Do ``work`` for each position in a split, and return its results that are not None, in order.

    It uses threads or processes if the split allows them, and if the first pictures show that they are worth
    it. What ``work`` leaves in memory has to be in a :func:`thumbnet.batches.forked.shared_array`, and be the
    same if it is done again.
    """
    total = len(split)
    if not total:  # a split whose pictures were all left out
        return {}
    size = max(_CHUNK, math.ceil(total / forked.MOST_PARTS))
    found: dict[int, T] = {}

    def do(part: int) -> bool:
        positions = range(part * size, min((part + 1) * size, total))
        results = {at: result for at in positions if (result := work(at)) is not None}
        found.update(results)
        return not results

    started = time.perf_counter()
    do(0)
    done = min(size, total)
    each = (time.perf_counter() - started) / done
    rest = math.ceil(total / size) - 1
    with ThreadPoolExecutor(usable_cores()) as pool, contextlib.ExitStack() as stack:
        parts: Iterable[object]
        if split.threadable and each > _WORTH_A_THREAD:
            parts = pool.map(lambda part: do(part + 1), range(rest))
        else:
            helpers = _helpers(split, each * (total - done))
            shared = forked.do_parts(lambda part: do(part + 1), rest, helpers)
            stack.callback(shared.close)  # ends the helpers if `progress` raises an exception
            parts = shared
        for _ in itertools.chain([None], parts):
            if progress:
                progress(done, total)
            done = min(done + size, total)
    return dict(sorted(found.items()))


def _helpers(split: Split, seconds: float) -> int:
    """How many more processes are worth starting for ``seconds`` of work."""
    if not split.forkable or not forked.can_fork():
        return 0
    return min(usable_cores() - 1, int(seconds / _WORTH_A_PROCESS))


def _decode(
    split: Split,
    size: tuple[int, int],
    fit: Fit,
    rendering: Rendering,
    progress: Progress | None,
    own: tuple[int, int] | None = None,
) -> Tensor | None:
    """Decode a split to uint8 [N, 3, H, W]; None if ``own`` is given and a picture has another size.

    Raises:
        UnreadableImagesError, FailedReadError, UnreadableFilesError: as for :func:`decode_split`.
    """
    images = _shared((len(split), *size, CHANNELS))
    others: list[int] = []

    def decode(index: int) -> UnreadableImageError | FailedReadError | int | None:
        if others:
            return others[0]
        try:
            picture = split.load(index)
        except (UnreadableImageError, FailedReadError) as error:
            return error
        found = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size[::-1]
        if own is not None and found != own:
            others.append(index)
            return index
        images[index] = fit_pixels(picture, size, fit, rendering)
        return None

    def report(done: int, total: int) -> None:
        if progress and not others:
            progress(done, total)

    problems: dict[int, UnreadableImageError | FailedReadError | int] = _in_parallel(decode, split, report)
    if others:
        return None
    errors = [problem for problem in problems.values() if not isinstance(problem, int)]
    if errors:
        raise unreadable(errors)
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _shared(shape: tuple[int, ...]) -> np.ndarray:
    """An array of uint8 for this process, and for others that it forks if that is possible."""
    return forked.shared_array(shape) if forked.can_fork() else np.empty(shape, dtype=np.uint8)


def cached_array(
    split: Split, what: str, shape: tuple[int, ...], make: Callable[[], np.ndarray]
) -> np.ndarray:
    """An array that was computed from a split's pictures, from the cache or by ``make``.

    Args:
        split: the pictures.
        what: names everything that the array depends on, except the pictures.
        shape: the array's shape; its type is float32.
        make: computes it. A damaged entry is computed again.
    """
    entry = _entry(split.reader(), what)
    with contextlib.suppress(Exception):  # NumPy raises almost any exception for a damaged file
        kept = np.load(entry / "array.npy", allow_pickle=False)
        digest = (entry / "digest.txt").read_text("ascii")
        if kept.shape == shape and kept.dtype == np.float32 and _array_digest(kept) == digest:
            return kept
    made = np.ascontiguousarray(make(), dtype=np.float32)

    def write(folder: Path) -> None:
        if made.nbytes < shutil.disk_usage(folder).free // 4:
            np.save(folder / "array.npy", made)
            (folder / "digest.txt").write_text(_array_digest(made), "ascii")

    _write(entry, write)
    return made


def _array_digest(array: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()


def _name(size: tuple[int, int], fit: Fit, rendering: Rendering) -> str:
    how = "" if rendering == BY_TYPE else f"-{rendering.range}-{rendering.background}"
    return f"{size[0]}x{size[1]}-{fit}{how}"


def _entry(split: Split, what: str) -> Path:
    """The cache's folder for ``what`` of ``split``."""
    depends = f"{_VERSION} {PIL.__version__} {plugins.fingerprint()} {what} {split.content_key()}"
    return cache_folder() / "decoded" / hashlib.blake2b(depends.encode(), digest_size=16).hexdigest()


def _load(entry: Path, shape: tuple[int, ...]) -> Decoded | None:
    """Map a cache entry into memory; None if it is missing or damaged."""
    try:
        images = np.load(entry / "images.npy", mmap_mode="c", allow_pickle=False)
        counts = np.load(entry / "counts.npy", allow_pickle=False)
    except Exception:  # NumPy raises almost any exception for a damaged file
        return None
    whole = images.shape == shape and images.dtype == np.uint8 and counts.shape == (CHANNELS, 256)
    if not whole or counts.sum() != images.size:
        return None
    return Decoded(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(counts))


def _keep(entry: Path, decoded: Decoded) -> None:
    """Write an entry if it takes less than a quarter of the free disk space.

    A whole one that another process was faster to write stays: trainings may have mapped it into memory.
    """
    images = decoded.images.permute(0, 2, 3, 1).numpy()

    def is_whole() -> bool:
        return _load(entry, images.shape) is not None

    def write(folder: Path) -> None:
        if images.nbytes < shutil.disk_usage(folder).free // 4:
            np.save(folder / "images.npy", images)
            np.save(folder / "counts.npy", decoded.counts.numpy())

    if not is_whole():
        _write(entry, write, is_whole)


def _write(
    entry: Path, write: Callable[[Path], object], is_whole: Callable[[], bool] = lambda: False
) -> None:
    """Fill a temporary folder and rename it to ``entry``, unless that ``is_whole`` by then.

    If the cache cannot be written, do without it.
    """
    with contextlib.suppress(OSError), new_folder(entry, ".writing-") as whole:
        write(whole)
        sync_below(whole)
        if not is_whole():
            shutil.rmtree(entry, ignore_errors=True)  # a damaged entry
            whole.rename(entry)
