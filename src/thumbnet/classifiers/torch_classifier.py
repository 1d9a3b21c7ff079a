"""Classify pictures with torch, from a run or a file of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from thumbnet.batches.batches import EvalBatches
from thumbnet.batches.decoding import find_unreadable, readable
from thumbnet.batches.engines import CPU, Engine, fits_in_memory
from thumbnet.batches.prepare import build_engine
from thumbnet.batches.statistics import Normalise
from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.logits import collect_views, predict_logits
from thumbnet.classifiers.temperature import calibrated
from thumbnet.data.splits import Progress, Split
from thumbnet.errors import (
    RunError,
    UnreadableImageError,
    UnreadableImagesError,
    memory_guard,
    printable,
)
from thumbnet.hardware import choose_device, compute_dtype, memory_layout, usual_defaults
from thumbnet.models import build_model
from thumbnet.models.registry import head_name, is_built_in
from thumbnet.recipes.settings import DataSettings
from thumbnet.runs.weights import find_weights, read_weights
from thumbnet.runs.weights_info import WeightsInfo


class Predictor(Classifier):
    """A trained network with its preprocessing and class names, which computes with torch.

    Attributes:
        model: the network itself, an ``nn.Module`` in eval mode on ``device``. Its logits are not divided by
            the temperature, ``info.temperature``.
        normalise: turns preprocessed pictures into the network's input: uint8 [B, 3, height, width] →
            float32 on ``device``.
        device: where the network computes.
        dtype: the type in which :meth:`logits` and all predictions compute convolutions and products.
        info, class_names, place: as of every :class:`~thumbnet.classifiers.base.Classifier`.

    Args:
        weights: the network's tensors.
        info: the network's description.
        device: ``auto``, ``cpu``, ``cuda``, ..., or a ``torch.device``.
        model: a class or function that builds the network, in place of the one that ``info`` names.

    Raises:
        RunError: the weights do not fit the network, or the network is not part of thumbnet and its code is
            not allowed.
        NetworkError: the network's own code fails.
        OutOfMemoryError: the network does not fit the device's memory.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        info: WeightsInfo,
        device: str | torch.device = "auto",
        *,
        model: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__(info)
        self.device = choose_device(device)
        self.dtype = compute_dtype(info.precision, self.device)
        layout = memory_layout(self.device)
        with self._memory():
            if model is None and is_built_in(info.model.name):
                with torch.device("meta"):  # takes no memory, so a wrong width cannot exhaust it
                    _check_fit(build_model(info.model, len(info.class_names)), weights, info)
            network = build_model(
                info.model, len(info.class_names), sizes=[info.preprocessing.size], builder=model
            )
            _check_fit(network, weights, info)
            network.load_state_dict(weights)
            self.model = network.to(device=self.device, memory_format=layout).eval()  # type: ignore[call-overload]
            self.normalise = Normalise(info.preprocessing, self.device)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        *,
        model: Callable[..., nn.Module] | None = None,
    ) -> Predictor:
        """Load a run's folder, a ``model.safetensors``, or ``hf:OWNER/NAME[@REVISION]`` from the Hub.

        Raises:
            RunError: the run does not exist, is incomplete, or is damaged.
        """
        with usual_defaults():
            weights, info = read_weights(find_weights(path))
        return cls(weights, info, device, model=model).loaded_from(path)

    def logits(self, pixels: np.ndarray, *, tta: str | None = None) -> np.ndarray:
        """Calibrated logits, float32 [B, classes], of preprocessed pictures, uint8 [B, height, width, 3].

        ``tta`` replaces the network's own test-time augmentation.
        """
        tta = self._tta(tta)
        with self._memory():
            writable = np.require(self._preprocessed(pixels), requirements="W")
            batch = self.normalise(torch.from_numpy(writable).permute(0, 3, 1, 2))
            found = predict_logits(self.model, batch, dtype=self.dtype, tta=tta).cpu().numpy()
        return calibrated(found, self.info.temperature)

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        return self.logits(pixels, tta="none")

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Also lets PyTorch compute by its usual defaults, whatever the surrounding program has set."""
        guard = super()._memory()
        if self.device.type != "cpu":
            guard = memory_guard(
                str(self.device), "classifying pictures", "Use the CPU instead: --device cpu"
            )
        with guard, usual_defaults():
            yield

    def engine(self, split: Split, progress: Progress | None = None) -> Engine:
        """Build the engine that delivers a split's pictures with this network's preprocessing."""
        pre = self.info.preprocessing
        in_memory = fits_in_memory([split], pre.size)
        store = self.device if fits_in_memory([split], pre.size, self.device) else CPU
        settings = DataSettings(fit=pre.fit)
        with self._memory():
            return build_engine(
                split, settings, pre.size, in_memory, self.device, progress, pre.rendering, store
            )

    def _logits_of(
        self, split: Split, tta: str, batch_size: int, on_bad_image: str, progress: Progress | None
    ) -> tuple[Split, np.ndarray, np.ndarray]:
        if on_bad_image == "skip":
            split, _ = readable(split, progress)
        if len(split) == 0:
            return split, self._no_logits(), self._no_logits()
        try:
            batches = EvalBatches(self.engine(split, progress), self.normalise, batch_size=batch_size)
            logits, plain, _ = collect_views(self.model, batches, dtype=self.dtype, tta=tta)
        except UnreadableImageError as error:  # a worker reports only its first one: find all of them
            errors = list(find_unreadable(split, progress).values())
            raise UnreadableImagesError(errors or [error]) from None
        temperature = self.info.temperature
        return split, calibrated(logits.numpy(), temperature), calibrated(plain.numpy(), temperature)

    def features(self, split: Split, *, batch_size: int = 500) -> np.ndarray:
        """Compute what the network's last layer sees of each picture, float32 [N, features].

        If the last layer sees maps, [channels, height, width], the features are the means over each map.

        Raises:
            UnreadableImageError, UnreadableImagesError, FailedReadError: a picture cannot be read.
            OutOfMemoryError: a batch does not fit the device's memory.
        """
        found: list[np.ndarray] = []

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].float()
            found.append((seen.flatten(2).mean(dim=2) if seen.ndim > 2 else seen).cpu().numpy())

        hook = self.model.get_submodule(head_name(self.model)).register_forward_pre_hook(keep)
        try:
            with self._memory():
                batches = EvalBatches(self.engine(split), self.normalise, batch_size=batch_size)
                collect_views(self.model, batches, dtype=self.dtype, tta="none")
        finally:
            hook.remove()
        return np.concatenate(found)


def _check_fit(network: nn.Module, weights: dict[str, Tensor], info: WeightsInfo) -> None:
    """Check that ``weights`` have the names, shapes and types of the network's own tensors.

    Raises:
        RunError: they do not.
    """
    own = network.state_dict()
    for name in (*own, *weights):
        described = [
            f"{list(side[name].shape)} of {side[name].dtype}" if name in side else "no such tensor"
            for side in (own, weights)
        ]
        if described[0] != described[1] and not (name in own and is_lazy(own[name])):
            raise RunError(
                f"the weights do not fit the network {info.model.name}: {printable(name)}: the network has "
                f"{described[0]}, the weights have {described[1]}"
            )
