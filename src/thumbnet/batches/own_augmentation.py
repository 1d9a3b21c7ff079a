"""The augmentation that a user wrote: how it is called, and what it must return."""

from __future__ import annotations

import torch
from torch import Tensor

from thumbnet.errors import OwnCodeError
from thumbnet.hardware import seeded
from thumbnet.recipes.functions import AUGMENTATIONS, Function
from thumbnet.recipes.own_code import failing, layout_hint, type_and_shape


def own_augmentation(name: str) -> OwnAugmentation | None:
    """The augmentation that ``augment.custom`` names; None if that is empty.

    Raises:
        ModelCodeError: it is not registered, and the user has not allowed its import path.
        OwnCodeError: its module cannot be imported, or does not contain such a function.
    """
    function = AUGMENTATIONS.find(name)
    return None if function is None else OwnAugmentation(name, function)


class OwnAugmentation:
    """Calls a user's augmentation and checks what it returns.

    Args:
        name: its name in the recipe, for errors.
        function: see :func:`thumbnet.register_augmentation`.
    """

    def __init__(self, name: str, function: Function) -> None:
        self._name, self._function = name, function

    @torch.no_grad()
    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Augment ``images``, uint8 [B, 3, H, W], which the function may change in place.

        The function gets a generator with this seed. torch's global generators have it as well, because the
        transforms of torchvision draw from them. So ``seed`` alone decides the result.

        Raises:
            OwnCodeError: the function fails, or returns something of another shape or type.
        """
        shape, device = images.shape, images.device
        generator = torch.Generator().manual_seed(seed)
        what = f"the augmentation {self._name} fails on images of shape {list(shape)}"
        with failing(what, hint=_hint), seeded(seed, device):
            changed = self._function(images, generator)
        if isinstance(changed, Tensor) and (changed.shape, changed.dtype) == (shape, torch.uint8):
            return changed.to(device)
        found = type_and_shape(changed) if isinstance(changed, Tensor) else type(changed).__name__
        raise OwnCodeError(
            f"the augmentation {self._name} returns {found}: expected uint8 {list(shape)}, like the images "
            "that it is given"
        )


def _hint(text: str) -> str:
    """What may help against an exception with the message ``text``."""
    if "same device" in text:
        return ". The generator is on the CPU: move what it draws with .to(images.device)"
    return layout_hint(text)
