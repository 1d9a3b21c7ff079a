"""Compute logits with torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.batches.batches import Batches
from thumbnet.classifiers.tta import Views, unsure
from thumbnet.hardware import autocast, memory_layout, send

HELD_BYTES = 128 * 2**20  # 10,000 normalised pictures of 32x32 are 123 MB


class Tensors(Views[Tensor]):
    """Views of tensors: pictures are float [B, C, H, W]; logits are kept on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mirrored(self, pictures: Tensor) -> Tensor:
        return pictures.flip(-1)

    def shifted(self, pictures: Tensor) -> list[Tensor]:
        padded = F.pad(pictures, (1, 1, 1, 1), mode="reflect")
        height, width = pictures.shape[-2:]
        return [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]

    def copy(self, logits: Tensor) -> Tensor:
        return logits.clone() if logits.device == self.device else send(logits, self.device)

    def where(self, logits: Tensor, chosen: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        return send(torch.from_numpy(np.flatnonzero(chosen(logits.cpu().numpy()))), self.device)


def predict_logits(
    model: nn.Module, images: Tensor, *, dtype: torch.dtype, tta: str = "none", plain: Tensor | None = None
) -> Tensor:
    """Compute the logits of a normalised batch, float32 [B, classes].

    Args:
        model: the network, in eval mode.
        images: float [B, C, H, W].
        dtype: the type to compute in.
        tta: test-time augmentation, see :meth:`thumbnet.classifiers.tta.Views.logits`.
        plain: the logits without test-time augmentation, if they are known.
    """

    layout = memory_layout(images.device)

    def forward(view: Tensor) -> Tensor:
        return model(view.contiguous(memory_format=layout)).float()

    with torch.inference_mode(), autocast(dtype, images.device):
        known = forward(images) if plain is None else plain
        return known if tta == "none" else Tensors(images.device).logits(forward, images, known, tta)


def collect_views(
    model: nn.Module, batches: Batches, *, dtype: torch.dtype, tta: str, plain: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a split's logits with and without ``tta``, reading each picture once. Sets eval mode.

    Args:
        model: the network.
        batches: the split.
        dtype: in which to compute convolutions and matrix products.
        tta: test-time augmentation, see :meth:`thumbnet.classifiers.tta.Views.logits`.
        plain: the split's logits without ``tta``, if they are known.

    Returns:
        Logits with ``tta`` and logits without, float32 [N, classes] (one tensor if ``tta`` is ``none``), and
        the labels, int64 [N], or for several labels per picture int8 [N, classes]; all on the CPU.
    """
    model.eval()
    collector = _Collector(model, dtype, tta)
    labels: list[Tensor] = []
    done = 0
    for batch in batches.epoch(0):
        known = None if plain is None else plain[done : done + len(batch.images)]
        collector.add(batch.images, known)
        labels.append(batch.labels)
        done += len(batch.images)
    logits, alone = collector.finish()
    return logits, alone, torch.cat(labels).cpu()


def collect_logits(
    model: nn.Module, batches: Batches, *, dtype: torch.dtype, tta: str = "none"
) -> tuple[Tensor, Tensor]:
    """Compute a split's logits, float32 [N, classes], and its labels; see :func:`collect_views`."""
    logits, _, labels = collect_views(model, batches, dtype=dtype, tta=tta)
    return logits, labels


class _Collector:
    """Computes the logits of one batch after another.

    ``adaptive`` looks at all views of a fifth of the pictures. If each batch looked at its own, a GPU would
    get six small batches for a large one, and the host would wait for each batch's logits to choose among its
    pictures. So batches are held, up to ``HELD_BYTES``, and the pictures chosen from all of them share
    batches. Within other batches, a picture's logits may differ in the last bit. A CPU gains nothing from
    waiting less often, so it chooses after each batch.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, tta: str) -> None:
        self._model, self._dtype, self._tta = model, dtype, tta
        self._logits: list[Tensor] = []
        self._plain: list[Tensor] = []
        self._images: list[Tensor] = []  # held batches; self._plain[-len(self._images):] are their logits

    def add(self, images: Tensor, plain: Tensor | None) -> None:
        """Compute the logits of the next batch, or hold its pictures until there are more."""
        alone = predict_logits(self._model, images, dtype=self._dtype) if plain is None else plain
        self._plain.append(alone)
        if self._tta != "adaptive":
            self._logits.append(self._with_views(images, alone, self._tta))
            return
        self._images.append(images)
        held = sum(one.numel() * one.element_size() for one in self._images)
        if images.device.type == "cpu" or held >= HELD_BYTES:
            self._choose()

    def finish(self) -> tuple[Tensor, Tensor]:
        """The logits of all batches with and without ``tta``, on the CPU."""
        self._choose()
        plain = torch.cat(self._plain).cpu()
        return plain if self._tta == "none" else torch.cat(self._logits).cpu(), plain

    def _choose(self) -> None:
        """Look at all views of the held pictures whose class is uncertain."""
        if not self._images:
            return
        device, size = self._images[0].device, len(self._images[0])
        plain = torch.cat(self._plain[-len(self._images) :])
        chosen = torch.from_numpy(np.flatnonzero(unsure(plain.cpu().numpy())))
        with torch.inference_mode():
            logits, positions = Tensors(device).copy(plain), send(chosen, device)
            parts, start = [], 0
            for images in self._images:
                first, last = torch.searchsorted(chosen, torch.tensor([start, start + len(images)])).tolist()
                parts.append(images[positions[first:last] - start])
                start += len(images)
            self._images.clear()
            if len(chosen):
                for where, images in zip(positions.split(size), torch.cat(parts).split(size), strict=True):
                    logits[where] = self._with_views(images, logits[where], "mirror-shift")
        self._logits.append(logits)

    def _with_views(self, images: Tensor, plain: Tensor, tta: str) -> Tensor:
        return predict_logits(self._model, images, dtype=self._dtype, tta=tta, plain=plain)
