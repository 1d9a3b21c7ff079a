"""Test-time augmentation: the mean of a network's logits over views of a picture.

Written once, for tensors and for NumPy arrays: :class:`Tensors` and :class:`Arrays` say how to mirror and
    shift each.
Imports no torch; :class:`Tensors` is in :mod:`thumbnet.classifiers.logits`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import numpy as np

# What each view counts. The two shifted views count half, so together as much as the one in the middle.
WEIGHTS = {
    "none": [1.0],
    "mirror": [0.5, 0.5],
    "mirror-shift": [0.25, 0.125, 0.125, 0.25, 0.125, 0.125],
}
# Lead of the largest logit over the second: its class is e times as likely. Four fifths of CIFAR-10's
# pictures have this lead, and six views would put one in 370 of them into another class.
SURE_LEAD = 1.0

A = TypeVar("A")


class Views(ABC, Generic[A]):
    """How pictures of one kind of array are mirrored, shifted and selected."""

    @abstractmethod
    def mirrored(self, pictures: A) -> A:
        """Left and right exchanged."""

    @abstractmethod
    def shifted(self, pictures: A) -> list[A]:
        """By one pixel down and right, and by one up and left; the border is reflected."""

    @abstractmethod
    def copy(self, logits: A) -> A:
        """A copy, on the device where the network computes."""

    @abstractmethod
    def where(self, logits: A, chosen: Callable[[np.ndarray], np.ndarray]) -> Any:
        """``chosen`` of the logits as a NumPy array, as an index into arrays of this kind."""

    def of(self, pictures: A, tta: str) -> list[A]:
        """All views of ``pictures``, the plain one first, as many as ``WEIGHTS[tta]``."""
        seen = [pictures]
        if tta == "none":
            return seen
        if tta == "mirror-shift":
            seen += self.shifted(pictures)
        return seen + [self.mirrored(view) for view in seen]

    def logits(
        self, forward: Callable[[A], A], pictures: A, plain: A, tta: str, temperature: float = 1.0
    ) -> A:
        """Logits with test-time augmentation, [B, classes].

        Args:
            forward: from pictures to logits.
            pictures: a batch.
            plain: ``forward(pictures)``; not changed.
            tta: ``none``, ``mirror``, ``mirror-shift``, or ``adaptive``: ``mirror-shift`` for the pictures on
                which the plain view is unsure, ``none`` for the others.
            temperature: by which the logits have been divided.
        """
        result = self.copy(plain)
        logits, some, compute = cast(Any, result), cast(Any, pictures), cast(Any, forward)  # both index alike
        asked: Any = slice(None)
        if tta == "adaptive":
            tta, asked = "mirror-shift", self.where(result, lambda values: unsure(values, temperature))
            if not bool(asked.any()):
                return result
        if tta == "none":
            return result
        total = logits[asked] * WEIGHTS[tta][0]
        for view, weight in zip(self.of(some[asked], tta)[1:], WEIGHTS[tta][1:], strict=True):
            total += compute(view) * weight
        logits[asked] = total
        return result


class Arrays(Views[np.ndarray]):
    """NumPy arrays: pictures are uint8 [B, H, W, C]."""

    def mirrored(self, pictures: np.ndarray) -> np.ndarray:
        return pictures[:, :, ::-1]

    def shifted(self, pictures: np.ndarray) -> list[np.ndarray]:
        height, width = pictures.shape[1:3]
        padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return [padded[:, :height, :width], padded[:, 2:, 2:]]

    def copy(self, logits: np.ndarray) -> np.ndarray:
        return logits.copy()

    def where(self, logits: np.ndarray, chosen: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return chosen(logits)


def unsure(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Which pictures ``adaptive`` looks at in all views: bool [N].

    Args:
        logits: of the plain view, float [N, classes].
        temperature: by which they have been divided. The lead counts before that.
    """
    two = np.sort(logits, axis=1)[:, -2:]
    asked: np.ndarray = (two[:, -1] - two[:, 0]) * np.float32(temperature) < SURE_LEAD
    return asked
