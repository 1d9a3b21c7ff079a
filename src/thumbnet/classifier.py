"""What every trained network can do, wherever it runs: classify pictures, and be measured on a split.

:class:`thumbnet.predictor.Predictor` computes with torch, :class:`thumbnet.onnx_model.OnnxClassifier` with
onnxruntime. This module imports neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from thumbnet.data.images import open_image
from thumbnet.data.splits import Data, Split
from thumbnet.errors import DataError
from thumbnet.evaluation import Evaluation, evaluate_logits, log_softmax
from thumbnet.weights_info import WeightsInfo

if TYPE_CHECKING:
    from torch import Tensor

Count = Callable[[int, int], None]
Picture: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"


@dataclass(frozen=True)
class Prediction:
    """For one picture: the class names and their probabilities, the likeliest first."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """Of the likeliest class."""
        return self.probabilities[0]


@dataclass(frozen=True)
class SplitLogits:
    """What a network says of a split.

    Attributes:
        split: the pictures, without those that could not be read and were left out.
        logits: float32 [N, classes], by the network's own class names. Their softmax gives the calibrated
            probabilities.
        labels: int64 [N], positions in them.
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
        info: what is known of it.
        class_names: what the columns of its logits mean.
    """

    def __init__(self, info: WeightsInfo) -> None:
        self.info = info
        self.class_names = info.class_names

    @abstractmethod
    def logits(self, pixels: np.ndarray, *, tta: str | None = None) -> np.ndarray:
        """Logits, float32 [B, classes], of preprocessed pictures, uint8 [B, height, width, 3].

        They are divided by the network's temperature: their softmax gives the calibrated probabilities.

        Args:
            pixels: from :meth:`thumbnet.data.images.Preprocessing.pixels`.
            tta: test-time augmentation: ``none``, ``mirror``, ``mirror-shift`` or ``adaptive``; by default
                the one by which the network's accuracy was measured.
        """

    @abstractmethod
    def _logits_of(
        self, split: Split, tta: str, batch_size: int, on_bad_image: str, on_decode: Count | None
    ) -> tuple[Split, np.ndarray, np.ndarray]:
        """A split without the pictures that were left out, its logits with ``tta``, and those without."""

    def predict(
        self, pictures: Picture | Sequence[Picture], *, tta: str | None = None, batch_size: int = 256
    ) -> list[Prediction]:
        """Classify pictures.

        >>> import numpy as np
        >>> predictor = load_run(run.path)
        >>> prediction, = predictor.predict(np.zeros((28, 28), dtype=np.uint8))
        >>> sorted(prediction.labels) == sorted(predictor.class_names)
        True

        Args:
            pictures: one or many of: a path; a PIL image of any mode; an array uint8 [H, W] or
                [H, W, 1, 3 or 4]; a tensor uint8, or float in [0, 1], [C, H, W]. Also an array
                [B, H, W, C] or a tensor [B, C, H, W].
            tta: test-time augmentation, see :meth:`logits`.
            batch_size: pictures a forward pass.

        Raises:
            UnreadableImageError: a picture cannot be decoded.
            DataError: an array or tensor has another shape or type.
        """
        images = list(_one_by_one(pictures))
        predictions = []
        for start in range(0, len(images), batch_size):
            pixels = [self.info.preprocessing.pixels(image) for image in images[start : start + batch_size]]
            predictions += self.predict_pixels(np.stack(pixels), tta=tta)
        return predictions

    def predict_pixels(self, pixels: np.ndarray, *, tta: str | None = None) -> list[Prediction]:
        """Classify pictures that are preprocessed already: uint8 [B, height, width, 3]."""
        probabilities = np.exp(log_softmax(self.logits(pixels, tta=tta)))
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=1)
        return [
            Prediction(tuple(self.class_names[i] for i in places), tuple(values))
            for places, values in zip(order.tolist(), ranked.tolist(), strict=True)
        ]

    def evaluate(
        self,
        data: Data,
        split: str,
        *,
        tta: str | None = None,
        batch_size: int = 500,
        on_bad_image: str = "stop",
        on_decode: Count | None = None,
    ) -> Evaluation:
        """Measure the network on a split of ``data``; see :meth:`classify_split`."""
        found = self.classify_split(
            data, split, tta=tta, batch_size=batch_size, on_bad_image=on_bad_image, on_decode=on_decode
        )
        return evaluate_logits(found.logits, found.labels, self.class_names)

    def classify_split(
        self,
        data: Data,
        split: str,
        *,
        tta: str | None = None,
        batch_size: int = 500,
        on_bad_image: str = "stop",
        on_decode: Count | None = None,
    ) -> SplitLogits:
        """The logits of every picture in a split of ``data``, whose class names are matched by name.

        Pictures that cannot be read are left out with ``on_bad_image="skip"``.

        Raises:
            UnreadableImagesError: lists all pictures of the split that cannot be read.
            DataError: there is no such split, or it has classes that the network does not know.
        """
        pictures = data.split(split)
        unknown = [name for name in data.class_names if name not in self.class_names]
        if unknown:
            raise DataError(
                f"{data.source} has classes that the network does not know: {', '.join(unknown[:10])}. "
                f"It knows {', '.join(self.class_names[:10])}{', ...' if len(self.class_names) > 10 else ''}"
            )
        views = self.info.tta if tta is None else tta
        chosen, logits, plain = self._logits_of(pictures, views, batch_size, on_bad_image, on_decode)
        if len(chosen) == 0:
            raise DataError(f"the split {split!r} of {data.source} has no pictures")
        position = np.array([self.class_names.index(name) for name in data.class_names])
        return SplitLogits(chosen, logits, position[chosen.labels], plain, views)


def load_classifier(path: str | Path, device: str = "auto") -> Classifier:
    """A classifier from a ``MODEL.onnx``, or from what :func:`thumbnet.predictor.load_run` takes.

    Raises:
        RunError: no such run or model, not complete, or damaged.
        MissingExtraError: what computes it is not installed.
    """
    if Path(path).suffix.lower() == ".onnx":
        from thumbnet.onnx_model import OnnxClassifier

        return OnnxClassifier(path)
    from thumbnet.predictor import load_run

    return load_run(path, device)


def _one_by_one(pictures: Any) -> Iterator[Image.Image]:
    if getattr(pictures, "ndim", 0) == 4:
        pictures = list(pictures)
    many = isinstance(pictures, Sequence) and not isinstance(pictures, str)
    for picture in pictures if many else [pictures]:
        yield _to_image(picture)


def _to_image(picture: Any) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | Path):
        return open_image(str(picture), str(picture))
    if hasattr(picture, "detach"):  # a tensor; torch itself need not be there
        is_float = picture.is_floating_point()
        array = picture.detach().cpu().float().numpy() if is_float else picture.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
        picture = np.clip(np.rint(array * 255), 0, 255).astype(np.uint8) if is_float else array
    if not isinstance(picture, np.ndarray):
        raise DataError(f"a {type(picture).__name__} is no picture: give a path, PIL image, array or tensor")
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[:, :, 0]
    ok = picture.dtype == np.uint8 and (
        picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))
    )
    if not ok or 0 in picture.shape:
        raise DataError(
            f"an array of {picture.dtype} {list(picture.shape)} is no picture: expected uint8 [H, W] or "
            "[H, W, 1, 3 or 4]; or a tensor [C, H, W], uint8 or float in [0, 1]"
        )
    return Image.fromarray(picture)
