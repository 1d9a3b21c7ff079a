"""Test-time augmentation: average a network's logits over several views of a picture.

The averaging is written once, in :class:`Views`. The subclasses :class:`Arrays` for NumPy arrays and
:class:`thumbnet.classifiers.logits.Tensors` for tensors mirror and shift pictures. Imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import numpy as np

# The weight of each view. The two shifted views together weigh as much as the centred one.
WEIGHTS = {
    "none": [1.0],
    "mirror": [0.5, 0.5],
    "mirror-shift": [0.25, 0.125, 0.125, 0.25, 0.125, 0.125],
}
# If the largest logit leads the second by this much, its class is e times as probable, and `adaptive` looks
# at one view only. Four fifths of CIFAR-10's pictures have this lead; six views would change the class of
# only one in 370 of them.
SURE_LEAD = 1.0

A = TypeVar("A")


class Views(ABC, Generic[A]):
    """Mirrors, shifts and selects pictures held in one kind of array."""

    @abstractmethod
    def mirrored(self, pictures: A) -> A:
        """Swap left and right."""

    @abstractmethod
    def shifted(self, pictures: A) -> list[A]:
        """Shift by one pixel down and right, and by one up and left; reflect at the border."""

    @abstractmethod
    def copy(self, logits: A) -> A:
        """Copy logits to the network's device."""

    @abstractmethod
    def where(self, logits: A, chosen: Callable[[np.ndarray], np.ndarray]) -> Any:
        """The positions at which ``chosen`` is true for the logits as a NumPy array: an index for ``A``."""

    def of(self, pictures: A, tta: str) -> list[A]:
        """Return all views of ``pictures``, the plain one first; one per weight of ``WEIGHTS[tta]``."""
        seen = [pictures]
        if tta == "none":
            return seen
        if tta == "mirror-shift":
            seen += self.shifted(pictures)
        return seen + [self.mirrored(view) for view in seen]

    def logits(
        self, forward: Callable[[A], A], pictures: A, plain: A, tta: str, temperature: float = 1.0
    ) -> A:
        """Compute logits with test-time augmentation, [B, classes].

        Args:
            forward: computes the logits of pictures.
            pictures: a batch.
            plain: ``forward(pictures)``; it is not changed.
            tta: ``none``, ``mirror``, ``mirror-shift`` or ``adaptive``, which is ``mirror-shift`` for
                pictures of uncertain class (see :func:`unsure`) and ``none`` for the others.
            temperature: the temperature by which ``forward`` divides its logits.
        """
        result = self.copy(plain)
        logits, some, compute = (
            cast(Any, result),
            cast(Any, pictures),
            cast(Any, forward),
        )  # both kinds index alike
        asked: Any = slice(None)
        if tta == "adaptive":
            tta, asked = "mirror-shift", self.where(result, lambda values: unsure(values, temperature))
            if not len(asked):
                return result
        if tta == "none":
            return result
        total = logits[asked] * WEIGHTS[tta][0]
        for view, weight in zip(self.of(some[asked], tta)[1:], WEIGHTS[tta][1:], strict=True):
            total += compute(view) * weight
        logits[asked] = total
        return result


class Arrays(Views[np.ndarray]):
    """Views of NumPy arrays: pictures are uint8 [B, H, W, C]."""

    def mirrored(self, pictures: np.ndarray) -> np.ndarray:
        return pictures[:, :, ::-1]

    def shifted(self, pictures: np.ndarray) -> list[np.ndarray]:
        height, width = pictures.shape[1:3]
        padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return [padded[:, :height, :width], padded[:, 2:, 2:]]

    def copy(self, logits: np.ndarray) -> np.ndarray:
        return logits.copy()

    def where(self, logits: np.ndarray, chosen: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.flatnonzero(chosen(logits))


def unsure(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Which pictures ``adaptive`` looks at in all views: bool [N].

    Args:
        logits: logits of the plain view, float [N, classes].
        temperature: the temperature by which they were divided. The lead is that of the undivided logits.
    """
    two = np.sort(logits, axis=1)[:, -2:]
    return (two[:, -1] - two[:, 0]) * np.float32(temperature) < SURE_LEAD
