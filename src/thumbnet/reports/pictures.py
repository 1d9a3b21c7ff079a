"""The pictures of a report: encoded for the page, with captions, names and links to their files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np

from thumbnet.classifiers.base import Classifier, SplitLogits
from thumbnet.classifiers.explain import confident_classes, highlight, likely_label_errors, occlusion_map
from thumbnet.data.images import as_data_address
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.splits import Data, Progress, Split
from thumbnet.errors import UnreadableImageError, printable
from thumbnet.evaluation import evaluate_logits, log_softmax

MATRIX_CLASSES = 20  # with at most this many classes, the page shows the whole confusion matrix
CELL_PICTURES = 8  # pictures per cell of the confusion matrix
LISTED_CELLS = 60  # with more classes, the page lists this many of the most frequent confusions
HEAT_MAPS = 20
SAMPLES = 8  # training pictures per class
SHOWN_CLASSES = 100
PICTURE_BYTES = 3_500_000  # for all pictures together; once they are used up, pictures are left out


@dataclass(frozen=True)
class Shown:
    """A picture on the page.

    Attributes:
        source: the picture as a data URL.
        text: its caption.
        name: its name, with control characters escaped.
        link: the address of its file, relative to the page; empty if it has no file.
    """

    source: str
    text: str
    name: str
    link: str

    def to_dict(self) -> dict[str, str]:
        """Return plain values, for the page's script."""
        return {"source": self.source, "text": self.text, "name": self.name, "link": self.link}


def link_to(file: Path | None, folder: Path) -> str:
    """Return the address of ``file`` relative to a page in ``folder``, quoted; empty without such a file.

    Symbolic links are not followed, because a browser takes ``..`` to be the folder before it in the address.
    """
    if file is None or not os.path.isfile(file):
        return ""
    absolute = os.path.abspath(file)
    try:
        relative = os.path.relpath(absolute, os.path.abspath(folder))
    except ValueError:  # the file is on another drive of Windows
        return Path(absolute).as_uri()
    return quote(os.fsencode(relative.replace(os.sep, "/")))


class Album:
    """Encodes pictures as data URLs, until ``PICTURE_BYTES`` are used up. ``folder`` is the page's folder.

    ``unreadable`` counts the training pictures that :meth:`samples` could not read.
    """

    def __init__(self, preprocessing: Preprocessing, folder: Path) -> None:
        self._preprocessing, self._folder = preprocessing, folder
        self._room = PICTURE_BYTES
        self.unreadable = 0
        self._encoded: dict[tuple[Split, int], str] = {}

    def pixels(self, split: Split, index: int) -> np.ndarray:
        """Return a picture as the network sees it."""
        return self._preprocessing.pixels(split.load(index))

    def encode(self, pixels: np.ndarray) -> str | None:
        """Return a picture as a data URL, or None if there is no room left."""
        if self._room < 0:
            return None
        source = as_data_address(pixels)
        self._room -= len(source)
        return source

    def show(self, split: Split, index: int, text: str) -> Shown | None:
        """Return a picture of a split with its caption, or None if there is no room left."""
        if self._room < 0:
            return None
        if (split, index) not in self._encoded:
            self._encoded[split, index] = as_data_address(self.pixels(split, index))
        name, link = printable(split.name(index)), link_to(split.file(index), self._folder)
        shown = Shown(self._encoded[split, index], text, name, link)
        self._room -= sum(map(len, (shown.source, text, name, link)))  # a page may show a picture repeatedly
        return shown

    def samples(self, data: Data) -> list[tuple[str, list[str]]]:
        """Return the first readable training pictures of each of the first ``SHOWN_CLASSES`` classes.

        Returns:
            The name of every class, with its pictures as data URLs.
        """
        split = data.splits["train"]
        rows: list[tuple[str, list[str]]] = []
        for label, name in enumerate(data.class_names[:SHOWN_CLASSES]):
            row: list[str] = []
            for index in np.flatnonzero(split.labels == label)[: 2 * SAMPLES]:
                try:
                    source = self.encode(self.pixels(split, int(index))) if len(row) < SAMPLES else None
                except UnreadableImageError:
                    self.unreadable += 1
                    continue
                if source:
                    row.append(source)
            rows.append((name, row))
        rows += [(name, []) for name in data.class_names[SHOWN_CLASSES:]]
        return rows


class Answers:
    """The network's predictions for a split, and the split's pictures.

    Attributes:
        split, labels: the pictures and their labels, int64 [N].
        names: the class names.
        probabilities: float64 [N, classes].
        predicted, confidence: the most probable class, int64 [N], and its probability, float64 [N].
        evaluation: the measures.

    ``groups`` is each picture's group, str [N], if the pictures have groups.
    """

    def __init__(
        self, classifier: Classifier, found: SplitLogits, album: Album, groups: np.ndarray | None = None
    ) -> None:
        self.split, self.labels, self.names = found.split, found.labels, classifier.class_names
        self.probabilities = np.exp(log_softmax(found.logits))
        self.predicted = found.logits.argmax(axis=1)
        self.confidence = self.probabilities.max(axis=1)
        self.evaluation = evaluate_logits(found.logits, found.labels, self.names, groups)
        self._classifier, self._album = classifier, album

    @property
    def right(self) -> np.ndarray:
        """Whether each prediction is correct, bool [N]."""
        return self.predicted == self.labels

    @cached_property
    def mistakes(self) -> np.ndarray:
        """The indices of all wrong predictions, most confident first."""
        return self.most_confident(~self.right)

    @cached_property
    def doubted(self) -> np.ndarray:
        """The indices of all doubtful labels, most doubtful first."""
        return likely_label_errors(self.probabilities, self.labels)

    @cached_property
    def suggested(self) -> np.ndarray:
        """The class that each picture most probably shows, int64 [N]; its label if that is not doubted."""
        return confident_classes(self.probabilities, self.labels)

    def show(self, index: int) -> Shown | None:
        """Return a picture with its classes as the caption, or None if there is no room left."""
        actual, guess = self.names[self.labels[index]], self.names[self.predicted[index]]
        names = actual if actual == guess else f"{actual} → {guess}"
        return self._album.show(self.split, index, f"{names}, {100 * self.confidence[index]:.0f}\u00a0%")

    def gallery(self, indices: np.ndarray) -> list[Shown]:
        """Return pictures with their classes, as far as there is room."""
        return [picture for index in indices if (picture := self.show(int(index)))]

    def suspects(self, indices: np.ndarray) -> list[Shown]:
        """Return pictures with the class that their label should perhaps be, as far as there is room."""
        shown = [
            self._album.show(
                self.split, int(i), f"{self.names[self.labels[i]]} → {self.names[self.suggested[i]]}?"
            )
            for i in indices
        ]
        return [picture for picture in shown if picture]

    def most_confident(self, where: np.ndarray, most: int | None = None) -> np.ndarray:
        """Return the indices of up to ``most`` pictures where ``where`` is true, most confident first."""
        chosen = np.flatnonzero(where)
        return chosen[np.argsort(-self.confidence[chosen], kind="stable")][:most]

    def confusions(self) -> list[tuple[int, int, int]]:
        """Return (pictures, true class, predicted class) for each cell to show, most pictures first."""
        cells = [
            (pictures, actual, guess)
            for actual, row in enumerate(self.evaluation.confusion)
            for guess, pictures in enumerate(row)
            if pictures and (actual != guess or len(self.names) <= MATRIX_CLASSES)
        ]
        return sorted(cells, reverse=True)[
            : MATRIX_CLASSES**2 if len(self.names) <= MATRIX_CLASSES else LISTED_CELLS
        ]

    def cell(self, actual: int, guess: int) -> list[dict[str, str]]:
        """Return a cell's most confident pictures, as plain values."""
        inside = self.most_confident((self.labels == actual) & (self.predicted == guess), CELL_PICTURES)
        return [picture.to_dict() for picture in self.gallery(inside)]

    def heat_maps(self, progress: Progress | None, batch_size: int) -> list[tuple[Shown, str]]:
        """Return pictures, mistakes first, each with a copy that is bright where the network looks.

        ``batch_size`` is the most pictures per forward pass.
        """
        classes = range(len(self.names))
        by_class = [self.most_confident(self.right & (self.labels == label), 1) for label in classes]
        best = np.concatenate(by_class)
        correct = best[np.argsort(-self.confidence[best], kind="stable")][: HEAT_MAPS // 2]
        chosen = np.concatenate([self.mistakes[: HEAT_MAPS // 2], correct])
        maps = []
        for number, index in enumerate(chosen):
            pixels = self._album.pixels(self.split, int(index))
            label = int(self.predicted[index])
            heat = occlusion_map(self._classifier, pixels, label, batch_size=batch_size)
            plain, lit = self.show(int(index)), self._album.encode(highlight(pixels, heat))
            if plain and lit:
                maps.append((plain, lit))
            if progress:
                progress(number + 1, len(chosen))
        return maps
