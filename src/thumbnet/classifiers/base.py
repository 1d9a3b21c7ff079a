"""The base class of trained networks: classify pictures, and measure accuracy on a split.

One subclass computes with torch, another with onnxruntime. This module imports neither.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from thumbnet.classifiers.given import Picture, decoded, is_path, one_by_one
from thumbnet.classifiers.labels import check_fits, labels_above, log_probabilities, targets_for
from thumbnet.classifiers.reading import READ_BATCH, Unread, classify_ahead, pictures_at, read_ahead
from thumbnet.classifiers.tta import Arrays
from thumbnet.classifiers.unlike import looks, unlikeness
from thumbnet.data.images import Picture as DecodedPicture
from thumbnet.data.images import load_picture
from thumbnet.data.splits import Progress, Split
from thumbnet.data.survey import scale_problem
from thumbnet.errors import (
    DataError,
    DataWarning,
    FailedReadError,
    ThumbnetError,
    UnreadableImageError,
    memory_guard,
    unreadable,
)
from thumbnet.evaluation import Evaluation, evaluate_logits
from thumbnet.files import user_path
from thumbnet.multilabel import LabelEvaluation, evaluate_labels
from thumbnet.runs.weights_info import TTA_NAMES, WeightsInfo
from thumbnet.sources.known_names import HUB

if TYPE_CHECKING:
    from thumbnet.classifiers.sorting import Sorted


@dataclass(frozen=True)
class Prediction:
    """The prediction for one picture.

    Attributes:
        labels: the class names, most probable first.
        probabilities: their probabilities.
        unlike: whether the picture is unlike the training pictures; None if the weights do not tell.
        unlikeness: how unlike they are: 0 is usual, above 1 is unlike; None if the weights do not tell.
        found: the labels that reach their thresholds, most probable first, if the network gives several
            labels; else None.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    unlike: bool | None = None
    unlikeness: float | None = None
    found: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """The probability of that class."""
        return self.probabilities[0]


@dataclass(frozen=True)
class SplitLogits:
    """The logits of a network for a split.

    Attributes:
        split: the pictures, without those that could not be read and were skipped.
        logits: float32 [N, classes], in the order of the network's class names. Their softmax (or sigmoid,
            for several labels) gives calibrated probabilities.
        labels: int64 [N], indices into the network's class names; or bool [N, classes], whether each picture
            has each label, if the network gives several labels.
        plain: the same logits without test-time augmentation.
        tta: the test-time augmentation of ``logits``.
    """

    split: Split
    logits: np.ndarray
    labels: np.ndarray
    plain: np.ndarray
    tta: str


class Classifier(ABC):
    """A trained network with its preprocessing and class names.

    Attributes:
        info: the network's description.
        class_names: the classes, in the order of the logits' columns.
        place: where the network was loaded from, which tells how its own data are split: an absolute path or
            ``hf:OWNER/NAME``; empty if that is not known.
    """

    def __init__(self, info: WeightsInfo) -> None:
        self.info = info
        self.class_names = info.class_names
        self.place = ""

    def loaded_from(self, path: str | Path) -> Self:
        """This classifier, which remembers that it was loaded from ``path``."""
        self.place = str(path) if str(path).startswith(HUB) else str(user_path(path).absolute())
        return self

    @abstractmethod
    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        """Compute the logits of one view of preprocessed pictures; see :meth:`logits`."""

    def logits(self, pixels: np.ndarray, *, tta: str | None = None) -> np.ndarray:
        """Compute logits, float32 [B, classes], of preprocessed pictures, uint8 [B, height, width, 3].

        The logits are divided by the network's temperature, so their softmax gives calibrated probabilities.

        Args:
            pixels: from :meth:`thumbnet.data.rendering.Preprocessing.pixels`.
            tta: test-time augmentation: ``none``, ``mirror``, ``mirror-shift`` or ``adaptive``; by default
                the one with which the network's accuracy was measured.

        Raises:
            DataError: ``pixels`` are not preprocessed pictures.
            OutOfMemoryError: the pictures do not fit the device's memory.
        """
        with self._memory():
            checked = self._preprocessed(pixels)
            return self._with_views(checked, self._forward(checked), self._tta(tta))

    def _preprocessed(self, pixels: np.ndarray) -> np.ndarray:
        """Preprocessed pictures as a contiguous array, uint8 [B, height, width, 3].

        Raises:
            DataError: ``pixels`` are something else.
        """
        values, size = np.asarray(pixels), self.info.preprocessing.size
        if values.dtype != np.uint8 or values.ndim != 4 or values.shape[1:] != (*size, 3):
            raise DataError(
                f"expected preprocessed pictures, uint8 [B, {size[0]}, {size[1]}, 3], got {values.dtype} "
                f"{list(values.shape)}: predict takes pictures of other sizes and types"
            )
        return np.ascontiguousarray(values)

    def _tta(self, asked: str | None) -> str:
        """The test-time augmentation to use.

        For several labels ``adaptive`` means ``mirror-shift``: it asks which pictures have no leading class.
        """
        if asked is not None and asked not in TTA_NAMES:
            raise ThumbnetError(f"tta: expected one of {', '.join(TTA_NAMES)}, got {asked!r}")
        chosen = self.info.tta if asked is None else asked
        return "mirror-shift" if self.info.multilabel and chosen == "adaptive" else chosen

    def _memory(self) -> AbstractContextManager[None]:
        """In this block, a failed allocation becomes an :class:`~thumbnet.errors.OutOfMemoryError`."""
        return memory_guard("cpu", "classifying pictures", "Close other programs that use much memory")

    def _with_views(self, pixels: np.ndarray, plain: np.ndarray, tta: str) -> np.ndarray:
        return Arrays().logits(self._forward, pixels, plain, tta, self.info.temperature)

    def _classify(self, pictures: Sequence[DecodedPicture], tta: str) -> tuple[np.ndarray, np.ndarray]:
        """Compute the logits of decoded pictures with ``tta``, and those without."""
        pixels = np.stack([self.info.preprocessing.pixels(picture) for picture in pictures])
        plain = self._forward(pixels)
        return self._with_views(pixels, plain, tta), plain

    def _logits_of(
        self, split: Split, tta: str, batch_size: int, on_bad_image: str, progress: Progress | None
    ) -> tuple[Split, np.ndarray, np.ndarray]:
        """Return a split without its skipped pictures, its logits with ``tta``, and those without.

        This default works batch by batch; a subclass may have a faster way.
        """
        kept: list[int] = []
        errors: list[UnreadableImageError | FailedReadError] = []
        logits, plain = [self._no_logits()], [self._no_logits()]
        for start in range(0, len(split), batch_size):
            stop = min(start + batch_size, len(split))
            pictures = []
            for index in range(start, stop):
                try:
                    pictures.append(split.load(index))
                    kept.append(index)
                except (UnreadableImageError, FailedReadError) as error:
                    errors.append(error)
            if pictures and (not errors or on_bad_image == "skip"):
                found = self._classify(pictures, tta)
                logits.append(found[0])
                plain.append(found[1])
            if progress:
                progress(stop, len(split))
        if errors and (on_bad_image != "skip" or any(isinstance(one, FailedReadError) for one in errors)):
            raise unreadable(errors)
        chosen = split.subset(np.array(kept, dtype=np.int64)) if errors else split
        return chosen, np.concatenate(logits), np.concatenate(plain)

    def _no_logits(self) -> np.ndarray:
        return np.empty((0, len(self.class_names)), dtype=np.float32)

    def predict(
        self, pictures: Picture | Iterable[Picture], *, tta: str | None = None, batch_size: int = READ_BATCH
    ) -> list[Prediction]:
        """Classify pictures.

        Threads read the pictures at paths, and only a few batches are in memory at a time, shrunk to the
        network's size. So any number of large files can be classified. :meth:`predict_files` also takes
        folders, goes on after a file that cannot be read, and gives each answer with its path.

        >>> import numpy as np
        >>> classifier = load_classifier(run.path)
        >>> prediction, = classifier.predict(np.zeros((28, 28), dtype=np.uint8))
        >>> sorted(prediction.labels) == sorted(classifier.class_names)
        True

        Args:
            pictures: one picture, or several in a list, generator or other iterable with an order, such as
                ``Path("new").glob("*.jpg")``. A picture is a path; a PIL image of any mode; an
                array [H, W] or [H, W, 1, 3 or 4]; or a tensor [C, H, W]. A batch may also be an array
                [B, H, W, C], a tensor [B, C, H, W], or grey pictures [B, H, W] if B cannot be mistaken for
                channels. Values are uint8 (or other whole numbers from 0 to 255), uint16 from 0 to 65535,
                booleans, or floats in [0, 1]. A network trained on pictures of more than 8 bits expects the
                scale of its training pictures instead.
            tta: test-time augmentation, see :meth:`logits`.
            batch_size: pictures per forward pass.

        Raises:
            UnreadableImageError: a picture cannot be decoded; the first of them, if there are several.
            FailedReadError: the system failed to read a picture.
            DataError: a path is a folder, or an array or tensor has an unknown shape or type, or values out
                of range.
            ThumbnetError: ``tta`` or ``batch_size`` is none of the allowed values.
        """
        _check_batch_size(batch_size)
        tta = self._tta(tta)
        preprocessing = self.info.preprocessing

        def read(picture: Any) -> np.ndarray:
            return preprocessing.pixels(decoded(picture, preprocessing.range))

        predictions: list[Prediction] = []
        # Pillow decodes an image at its first use, which is not safe in several threads at once.
        for batch in read_ahead(one_by_one(pictures), read, batch_size, in_thread=is_path):
            pixels = []
            for _, found in batch:
                if not isinstance(found, np.ndarray):
                    raise found
                pixels.append(found)
            predictions += self.predict_pixels(np.stack(pixels), tta=tta)
        return predictions

    def predict_files(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        tta: str | None = None,
        batch_size: int = READ_BATCH,
        tell: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[str, Prediction | Unread]]:
        """Classify files batch by batch, as ``thumbnet predict`` does: memory does not grow with their count.

        Yields each picture's path with its prediction, in the order of the paths. For a picture that cannot
        be read, the error stands in place of the prediction, and the others are classified all the same.

        ```python
        for path, found in classifier.predict_files("new"):
            print(path, found.label if isinstance(found, Prediction) else found.reason)
        ```

        Args:
            paths: files, folders (with all pictures below them) and globs such as ``new/*.jpg``; one, or
                several in any iterable.
            tta: test-time augmentation, see :meth:`logits`.
            batch_size: pictures per forward pass. Threads read the next batch meanwhile.
            tell: called with a line about files in the folders that are left out because they need a
                plug-in; by default, the line is a warning.

        Raises:
            DataError: a folder has no pictures. This error and those below come while iterating.
            FailedReadError: a folder cannot be listed.
            ThumbnetError: a glob matches nothing; or, at once, ``tta`` or ``batch_size`` is not allowed.
        """
        _check_batch_size(batch_size)
        given = [paths] if isinstance(paths, str | Path) else paths
        names = pictures_at(given, tell or _warn)
        found = classify_ahead(
            self, names, lambda path: load_picture(path, path), tta=self._tta(tta), size=batch_size
        )
        return chain.from_iterable(found)

    def predict_pixels(self, pixels: np.ndarray, *, tta: str | None = None) -> list[Prediction]:
        """Classify pictures that are preprocessed already: uint8 [B, height, width, 3].

        Raises:
            DataError: they are something else. :meth:`predict` takes pictures of any size.
        """
        pixels = self._preprocessed(pixels)
        logits = self.logits(pixels, tta=tta)
        probabilities = np.exp(log_probabilities(logits, self.info))
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=1)
        verdicts = self._unlike(pixels, logits)
        predictions = [
            Prediction(tuple(self.class_names[i] for i in places), tuple(values), *verdict)
            for places, values, verdict in zip(order.tolist(), ranked.tolist(), verdicts, strict=True)
        ]
        if not self.info.multilabel:
            return predictions
        above = np.take_along_axis(labels_above(probabilities, self.info), order, axis=1)
        return [
            replace(
                one, found=tuple(name for name, is_above in zip(one.labels, row, strict=True) if is_above)
            )
            for one, row in zip(predictions, above.tolist(), strict=True)
        ]

    def _unlike(self, pixels: np.ndarray, logits: np.ndarray) -> list[tuple[bool | None, float | None]]:
        """Whether each picture is unlike the training pictures, and its score, from calibrated logits."""
        how = self.info.unlike
        if how is None:  # the weights of older versions do not tell
            return [(None, None)] * len(logits)
        scores = unlikeness(logits, looks(pixels), self.info.temperature, how)
        return [(score > 1, score) for score in scores.tolist()]

    def sort(
        self,
        folder: str | Path,
        into: str | Path,
        *,
        threshold: float | None = None,
        precision: float | None = None,
        link: bool = False,
        tta: str | None = None,
        progress: Progress | None = None,
    ) -> Sorted:
        """Copy the pictures below a folder into one folder per class.

        See :func:`thumbnet.classifiers.sorting.sort_folder`, which explains the arguments and the errors.
        """
        from thumbnet.classifiers.sorting import sort_folder

        return sort_folder(
            self,
            folder,
            into,
            threshold=threshold,
            precision=precision,
            link=link,
            tta=tta,
            progress=progress,
        )

    def evaluate(
        self,
        data: Any,
        split: str | None = None,
        *,
        tta: str | None = None,
        batch_size: int = 500,
        on_bad_image: str | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Measure the network on a split of ``data``; see :meth:`classify_split`.

        A network that gives several labels is measured by :meth:`evaluate_labels` instead.

        Args:
            data: a path or a name such as ``"pictures"`` or ``"cifar10"``; a data set that
                :func:`thumbnet.load_data` has returned; or data in memory such as ``(images, labels)``. A
                path or name is read as ``thumbnet evaluate`` reads it: the network's own data are split and
                corrected as in its training.
            split: the split to measure on; by default ``test``, or else ``val``, or else all pictures.
            tta, batch_size, progress: see :meth:`classify_split`.
            on_bad_image: ``stop`` or ``skip`` if a picture cannot be read. By default, the setting by which
                the data were loaded: for a path or name, that of the network's recipe; else ``stop``.

        Raises:
            DataError: the data cannot be loaded, do not fit the network (see :meth:`classify_split`), or are
                certainly on another scale of values than the training pictures.

        Warns:
            DataWarning: some of the pictures may have been trained on, because the network's own data have
                changed, or were loaded in another way than for the training.
            DataWarning: the pictures may be on another scale.
        """
        if self.info.multilabel:
            raise DataError("this network gives a picture several labels: measure it with evaluate_labels")
        found, groups = self._measured(data, split, tta, batch_size, on_bad_image, progress)
        return evaluate_logits(found.logits, found.labels, self.class_names, groups)

    def evaluate_labels(
        self,
        data: Any,
        split: str | None = None,
        *,
        tta: str | None = None,
        batch_size: int = 500,
        on_bad_image: str | None = None,
        progress: Progress | None = None,
    ) -> LabelEvaluation:
        """Measure a network that gives a picture several labels.

        Arguments, errors and warnings are those of :meth:`evaluate`.
        """
        if not self.info.multilabel:
            raise DataError("this network gives a picture one class: measure it with evaluate")
        found, groups = self._measured(data, split, tta, batch_size, on_bad_image, progress)
        return evaluate_labels(
            found.logits, found.labels, self.class_names, self.info.label_thresholds, groups
        )

    def _measured(
        self,
        data: Any,
        split: str | None,
        tta: str | None,
        batch_size: int,
        on_bad_image: str | None,
        progress: Progress | None,
    ) -> tuple[SplitLogits, np.ndarray | None]:
        """Compute the logits of a split, and return them with each picture's group, if there are any.

        Arguments are those of :meth:`evaluate`. Warns if the split may have pictures of the training.
        """
        from thumbnet.runs.data import data_to_measure

        told: list[str] = []
        loaded = data_to_measure(data, self.place, self.info, split, told.append)
        for text in told:
            if text.startswith("warning: "):
                # The user's own line is two calls up: they called evaluate or evaluate_labels.
                warnings.warn(text.removeprefix("warning: "), DataWarning, stacklevel=3)
        if on_bad_image is None:
            on_bad_image = "stop" if loaded.settings is None else loaded.settings.on_bad_image
        name = split or loaded.measured_split()
        self.check_scale(loaded.split(name))
        found = self.classify_split(
            loaded.split(name),
            loaded.class_names,
            tta=tta,
            batch_size=batch_size,
            on_bad_image=on_bad_image,
            progress=progress,
        )
        return found, loaded.groups_of(name, found.split)

    def check_scale(self, split: Split) -> None:
        """Check that a sample of a split's pictures is on the scale of the training pictures.

        Raises:
            DataError: it is certainly on another one.
            FailedReadError: the system failed to read a picture.

        Warns:
            DataWarning: it may be on another one.
        """
        with self._memory():
            problem, certain = scale_problem(split, self.info.preprocessing.range)
        if certain:
            raise DataError(f"the pictures have {problem}")
        if problem:
            text = f"the pictures have {problem}. Many of their pixels become black or white"
            warnings.warn(text, DataWarning, stacklevel=4)  # see _measured

    def classify_split(
        self,
        split: Split,
        class_names: Sequence[str],
        *,
        tta: str | None = None,
        batch_size: int = 500,
        on_bad_image: str = "stop",
        progress: Progress | None = None,
    ) -> SplitLogits:
        """Compute the logits of every picture in a split.

        Args:
            split: the pictures and their labels.
            class_names: the classes of the split's labels, matched with the network's classes by name.
            tta: test-time augmentation, see :meth:`logits`.
            batch_size: pictures per forward pass.
            on_bad_image: ``stop`` or ``skip`` if a picture cannot be read.
            progress: called with the number of pictures done and their total.

        Raises:
            UnreadableImagesError: some pictures are damaged; lists all of them.
            FailedReadError, UnreadableFilesError: the system failed to read a picture, or several, whatever
                ``on_bad_image`` says.
            DataError: the split is empty, has classes that the network does not know, or has several labels
                per picture where the network gives one class, or the other way round.
            OutOfMemoryError: a batch does not fit the device's memory.
            ThumbnetError: ``tta``, ``batch_size`` or ``on_bad_image`` is none of the allowed values.
        """
        _check_batch_size(batch_size)
        if on_bad_image not in ("stop", "skip"):
            raise ThumbnetError(f"on_bad_image: expected stop or skip, got {on_bad_image!r}")
        check_fits(split, class_names, self.info)
        tta = self._tta(tta)
        with self._memory():
            chosen, logits, plain = self._logits_of(split, tta, batch_size, on_bad_image, progress)
        if len(chosen) == 0:
            raise DataError("there are no pictures to classify: the split is empty, or none can be read")
        return SplitLogits(chosen, logits, targets_for(chosen, class_names, self.info), plain, tta)


def _check_batch_size(size: Any) -> None:
    if not isinstance(size, int | np.integer) or size < 1:
        raise ThumbnetError(f"batch_size: expected a whole number from 1, got {size!r}")


def _warn(text: str) -> None:
    warnings.warn(text.removeprefix("warning: "), stacklevel=2)
