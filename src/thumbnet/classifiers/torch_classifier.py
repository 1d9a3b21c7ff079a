"""Weights at work: from pictures to classes.

predictor = thumbnet.load_run("runs/2026-11-23-cifar10-fast-1")
for prediction in predictor.predict(["cat.png", "dog.jpg"]):
    print(prediction.label, prediction.probability)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from thumbnet.batches.batches import EvalBatches
from thumbnet.batches.decoding import find_unreadable, readable
from thumbnet.batches.engines import Engine, fits_in_memory
from thumbnet.batches.prepare import build_engine
from thumbnet.batches.statistics import Normalise
from thumbnet.classifiers.base import Classifier, Count
from thumbnet.classifiers.logits import collect_views, predict_logits
from thumbnet.classifiers.temperature import calibrated
from thumbnet.data.splits import Split
from thumbnet.errors import RunError, UnreadableImageError, UnreadableImagesError
from thumbnet.hardware import choose_device, keep_freed_memory, use_bf16
from thumbnet.models import build_model
from thumbnet.recipes.settings import DataSettings
from thumbnet.runs.weights_info import WeightsInfo


class Predictor(Classifier):
    """A trained network with its preprocessing and class names, computed by torch.

    Args:
        weights: the network's tensors.
        info: what is known of it.
        device: ``auto``, ``cpu``, ``cuda``, ...
        model: a class or function that builds the network, in place of the one that ``info`` names.

    Raises:
        RunError: the weights do not fit the network, or the network is not part of thumbnet and its code is
            not allowed.
        NetworkError: the network's own code fails.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        info: WeightsInfo,
        device: str = "auto",
        *,
        model: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__(info)
        self.device = choose_device(device)
        self.bf16 = use_bf16(info.precision, self.device)
        network = build_model(
            info.model, len(info.class_names), sizes=[info.preprocessing.size], builder=model
        )
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
            raise RunError(f"the weights do not fit the network {info.model.name}: {reason}") from None
        keep_freed_memory()
        self.model = network.to(device=self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.normalise = Normalise(info.preprocessing, self.device)

    def logits(self, pixels: np.ndarray, *, tta: str | None = None) -> np.ndarray:  # noqa: D102
        views = self.info.tta if tta is None else tta
        batch = self.normalise(torch.from_numpy(np.require(pixels, requirements="W")).permute(0, 3, 1, 2))
        found = predict_logits(self.model, batch, bf16=self.bf16, tta=views).cpu().numpy()
        return calibrated(found, self.info.temperature)

    def engine(self, split: Split, on_decode: Count | None = None) -> Engine:
        """What delivers the pictures of a split as this network sees them."""
        pre = self.info.preprocessing
        in_memory = fits_in_memory(split, pre.size)
        settings = DataSettings(fit=pre.fit)
        return build_engine(split, settings, pre.size, in_memory, self.device, on_decode, pre.rendering)

    def _logits_of(
        self, split: Split, tta: str, batch_size: int, on_bad_image: str, on_decode: Count | None
    ) -> tuple[Split, np.ndarray, np.ndarray]:
        if on_bad_image == "skip":
            split, _ = readable(split, on_decode)
        if len(split) == 0:
            nothing = np.empty((0, len(self.class_names)), dtype=np.float32)
            return split, nothing, nothing
        try:
            batches = EvalBatches(self.engine(split, on_decode), self.normalise, batch_size=batch_size)
            logits, plain, _ = collect_views(self.model, batches, bf16=self.bf16, tta=tta)
        except UnreadableImageError:  # from a worker: the first of perhaps many
            raise UnreadableImagesError(list(find_unreadable(split, on_decode).values())) from None
        temperature = self.info.temperature
        return split, calibrated(logits.numpy(), temperature), calibrated(plain.numpy(), temperature)
