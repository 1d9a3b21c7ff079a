"""Weights at work: from pictures to classes.

predictor = thumbnet.load_run("runs/2026-11-23-cifar10-fast-1")
for prediction in predictor.predict(["cat.png", "dog.jpg"]):
    print(prediction.label, prediction.probability)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from thumbnet.data.batches import EvalBatches, Normalise, fits_in_memory
from thumbnet.data.decoding import Count, find_unreadable, readable
from thumbnet.data.images import open_image
from thumbnet.data.prepare import build_engine
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, RunError, UnreadableImageError, UnreadableImagesError
from thumbnet.evaluation import Evaluation, collect_logits, evaluate_logits, predict_logits
from thumbnet.hardware import choose_device, keep_freed_memory, use_bf16
from thumbnet.models import build_model
from thumbnet.recipe import DataSettings
from thumbnet.runs import WeightsInfo, find_weights, read_weights

Picture = str | Path | Image.Image | np.ndarray | Tensor


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


class Predictor:
    """A trained network with its preprocessing and class names.

    Args:
        weights: the network's tensors.
        info: what is known of it.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    def __init__(self, weights: dict[str, Tensor], info: WeightsInfo, device: str = "auto") -> None:
        self.info = info
        self.class_names = info.class_names
        self.device = choose_device(device)
        self.bf16 = use_bf16(info.precision, self.device)
        model = build_model(info.model, len(info.class_names))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
            raise RunError(f"the weights do not fit the network {info.model.name}: {reason}") from None
        keep_freed_memory()
        self.model = model.to(device=self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.normalise = Normalise(info.preprocessing, self.device)

    def predict(
        self, pictures: Picture | Sequence[Picture], *, tta: str = "none", batch_size: int = 256
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
            tta: test-time augmentation, see :mod:`thumbnet.evaluation`.
            batch_size: pictures a forward pass.

        Raises:
            UnreadableImageError: a picture cannot be decoded.
            DataError: an array or tensor has another shape or type.
        """
        images = list(_one_by_one(pictures))
        predictions = []
        for start in range(0, len(images), batch_size):
            pixels = np.stack(
                [self.info.preprocessing.pixels(image) for image in images[start : start + batch_size]]
            )
            predictions += self.predict_pixels(pixels, tta=tta)
        return predictions

    def predict_pixels(self, pixels: np.ndarray, *, tta: str = "none") -> list[Prediction]:
        """Classify pictures that are preprocessed already: uint8 [B, height, width, 3]."""
        batch = self.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        logits = predict_logits(self.model, batch, bf16=self.bf16, tta=tta)
        ranked = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
        return [
            Prediction(tuple(self.class_names[i] for i in order), tuple(values))
            for order, values in zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
        ]

    def evaluate(
        self,
        data: Data,
        split: str,
        *,
        tta: str = "none",
        batch_size: int = 500,
        on_bad_image: str = "stop",
        on_decode: Count | None = None,
    ) -> Evaluation:
        """Measure the network on a split of ``data``, whose class names are matched by name.

        Pictures that cannot be read are left out with ``on_bad_image="skip"``.

        Raises:
            UnreadableImagesError: lists all pictures of the split that cannot be read.
            DataError: there is no such split, or it has classes that the network does not know.
        """
        if split not in data.splits:
            raise DataError(f"{data.source} has no split {split!r}, only {', '.join(data.splits)}")
        chosen = data.splits[split]
        unknown = [name for name in data.class_names if name not in self.class_names]
        if unknown:
            raise DataError(
                f"{data.source} has classes that the network does not know: {', '.join(unknown[:10])}. "
                f"It knows {', '.join(self.class_names[:10])}{', ...' if len(self.class_names) > 10 else ''}"
            )
        if on_bad_image == "skip":
            chosen, _ = readable(chosen, on_decode)
        if len(chosen) == 0:
            raise DataError(f"the split {split!r} of {data.source} has no pictures")
        pre = self.info.preprocessing
        settings = DataSettings(fit=pre.fit)
        in_memory = fits_in_memory(chosen, pre.size)
        try:
            engine = build_engine(chosen, settings, pre.size, in_memory, self.device, on_decode)
            batches = EvalBatches(engine, self.normalise, batch_size=batch_size)
            logits, labels = collect_logits(self.model, batches, bf16=self.bf16, tta=tta)
        except UnreadableImageError:  # from a worker: the first of perhaps many
            raise UnreadableImagesError(list(find_unreadable(chosen, on_decode).values())) from None
        position = torch.tensor([self.class_names.index(name) for name in data.class_names])
        return evaluate_logits(logits, position[labels], self.class_names)


def load_run(path: str | Path, device: str = "auto") -> Predictor:
    """A predictor from a run's folder or a ``model.safetensors``.

    >>> load_run(run.path).class_names[:3]
    ('0', '1', '2')

    Raises:
        RunError: no such run, not complete, or damaged.
    """
    weights, info = read_weights(find_weights(path))
    return Predictor(weights, info, device)


def _one_by_one(pictures: Any) -> Iterator[Image.Image]:
    if isinstance(pictures, np.ndarray | Tensor) and pictures.ndim == 4:
        pictures = list(pictures)
    many = isinstance(pictures, Sequence) and not isinstance(pictures, str)
    for picture in pictures if many else [pictures]:
        yield _to_image(picture)


def _to_image(picture: Any) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | Path):
        return open_image(str(picture), str(picture))
    if isinstance(picture, Tensor):
        array = picture.detach().cpu()
        if array.ndim == 3:
            array = array.permute(1, 2, 0)
        if array.is_floating_point():
            array = (array * 255).round().clamp(0, 255).to(torch.uint8)
        picture = array.numpy()
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
