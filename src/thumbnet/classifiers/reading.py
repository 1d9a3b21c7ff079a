"""Read pictures ahead: threads decode the next batch while the network classifies this one."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from thumbnet.batches.cores import usable_cores
from thumbnet.data.images import Picture
from thumbnet.errors import FailedReadError, ThumbnetError, UnreadableImageError, printable

if TYPE_CHECKING:
    from thumbnet.classifiers.base import Classifier, Prediction

T = TypeVar("T")
READ_BATCH = 256  # pictures
Unread: TypeAlias = UnreadableImageError | FailedReadError
"""Why a picture cannot be read."""


def read_ahead(
    pictures: Iterable[T],
    read: Callable[[T], np.ndarray],
    size: int = READ_BATCH,
    in_thread: Callable[[T], bool] = lambda picture: True,
) -> Iterator[list[tuple[T, np.ndarray | Unread]]]:
    """Yield batches of pictures, each with its pixels or the error that says why it cannot be read.

    At most three batches of pixels are in memory (one being used, one ready, one being read), and one whole
    picture per thread.

    Args:
        pictures: the pictures' names, or the pictures. They are taken one batch before they are needed.
        read: returns a picture's pixels, uint8 [height, width, 3], or raises an ``UnreadableImageError`` or a
            ``FailedReadError``.
        size: pictures per batch.
        in_thread: whether a thread may read this picture. Others are read by the caller's own thread.
    """

    def pixels_of(picture: T) -> np.ndarray | Unread:
        try:
            return read(picture)
        except (UnreadableImageError, FailedReadError) as error:
            return error

    def start(picture: T) -> Future[np.ndarray | Unread] | np.ndarray | Unread:
        return pool.submit(pixels_of, picture) if in_thread(picture) else pixels_of(picture)

    remaining = iter(pictures)
    pool = ThreadPoolExecutor(usable_cores(), "read")
    try:
        batch = [(one, start(one)) for one in islice(remaining, size)]
        while batch:
            following = [(one, start(one)) for one in islice(remaining, size)]
            yield [(one, work.result() if isinstance(work, Future) else work) for one, work in batch]
            batch = following
    finally:
        pool.shutdown(cancel_futures=True)  # so that a caller that stops early waits for no whole batch


def classify_ahead(
    classifier: Classifier,
    names: Iterable[str],
    load: Callable[[str], Picture],
    *,
    tta: str | None = None,
    size: int = READ_BATCH,
) -> Iterator[list[tuple[str, Prediction | Unread]]]:
    """Yield batches of names, each with the picture's prediction or the error that says why it has none.

    Args:
        classifier: the trained network.
        names: the pictures' names.
        load: decodes the picture of that name. Threads call it.
        tta: test-time augmentation, see :meth:`Classifier.logits`.
        size: pictures per batch.
    """

    def read(name: str) -> np.ndarray:
        return classifier.info.preprocessing.pixels(load(name))

    for batch in read_ahead(names, read, size):
        pixels = [found for _, found in batch if isinstance(found, np.ndarray)]
        predictions = iter(classifier.predict_pixels(np.stack(pixels), tta=tta) if pixels else [])
        yield [(name, next(predictions) if isinstance(one, np.ndarray) else one) for name, one in batch]


def pictures_at(paths: Iterable[str | Path], tell: Callable[[str], None]) -> Iterator[str]:
    """Yield named files, the pictures in named folders, and the matches of globs such as ``new/*.jpg``.

    A path that leads to nothing is yielded too: reading it says that there is no such file.

    Args:
        paths: files, folders and globs.
        tell: called with a line about pictures in a folder that need a plug-in, and so are left out.

    Raises:
        DataError: a folder has no pictures.
        FailedReadError: a folder cannot be listed.
        ThumbnetError: a glob matches nothing.
    """
    for path in map(str, paths):
        if os.path.isfile(path):
            yield path
        elif os.path.isdir(path):
            yield from _pictures_in(path, tell)
        elif glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise ThumbnetError(f"no file matches {printable(path)}")
            yield from pictures_at(matches, tell)
        else:
            yield path


def _pictures_in(folder: str, tell: Callable[[str], None]) -> list[str]:
    """The pictures below a folder, sorted."""
    from thumbnet.sources.unlabelled import find_pictures

    found, notes = find_pictures(folder)
    for text in notes:
        tell(text)
    return [os.path.join(folder, path) for path in found]
