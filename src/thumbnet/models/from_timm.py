"""Networks of timm (https://github.com/huggingface/pytorch-image-models), an optional library.

:func:`timm_builder` makes a builder for ``timm:NAME``. It runs only the code of the installed timm and never
loads weights; :mod:`thumbnet.training.pretrained` does that.

Most of timm's networks were made for pictures of 224 pixels. They halve the resolution five times, so a
picture of 32 pixels would end as a single position. With ``model.stem = "small"`` the first layers keep the
resolution. Pretrained weights fit all the same:

- convolutional networks (``STEMS``): the first convolution has half its stride, and the pooling right after
  it is left out;
- vision transformers: patches become so small that eight of them fit along the shorter side. timm resamples
  pretrained patch and position embeddings.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from thumbnet.errors import MissingExtraError, NetworkError
from thumbnet.recipes.networks import TIMM
from thumbnet.recipes.settings import AUTO, ModelSettings

SMALL_SIDE = 64  # `model.stem = "auto"` adapts the first layers up to this shorter side, in pixels
PATCHES = 8  # along the shorter side, at least
LARGEST_PATCH = SMALL_SIDE // PATCHES

# timm's modules whose networks thumbnet can adapt, and the pooling that follows their first convolution.
STEMS: dict[str, tuple[str, ...]] = {
    "resnet": ("maxpool",),
    "resnetv2": ("stem.pad", "stem.pool"),
    "densenet": ("features.pool0",),
    "regnet": (),
    "efficientnet": (),
    "mobilenetv3": (),
    "convnext": (),
}
TRANSFORMERS = ("vision_transformer", "deit")


def import_timm() -> Any:
    """Import and return timm.

    Raises:
        MissingExtraError: it is not installed.
        NetworkError: it is installed and cannot be imported, for example because torchvision was made for
            another torch.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name not in ("timm", "torchvision"):
            raise
        raise MissingExtraError("a network of timm", "timm") from None
    except Exception as error:  # torchvision's C library fails in many ways
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NetworkError(
            f"timm cannot be imported: {text}\ntimm needs the torchvision that was made for the installed "
            "torch. Install both from one place, as on https://pytorch.org/get-started"
        ) from error
    return timm


def pretrained_config(name: str) -> Any:
    """timm's ``PretrainedCfg`` of the network ``timm:NAME`` or ``timm:NAME.TAG``: where its weights are, ...

    Raises:
        NetworkError: timm has no such network, or no such weights of it.
        MissingExtraError: timm is not installed.
    """
    timm = import_timm()
    network, _, tag = name.removeprefix(TIMM).partition(".")
    if not timm.is_model(network):
        close = difflib.get_close_matches(network, timm.list_models(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(TIMM + one for one in close)}?" if close else ""
        raise NetworkError(
            f"timm {timm.__version__} has no network {network!r}.{hint} timm.list_models() lists all names"
        )
    found = timm.models.get_pretrained_cfg(network)
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{network}.*")]
    if found is None or (tag and tag not in tags):
        what = f"weights {tag!r} for {network}" if tag else f"description of {network}, an old name"
        known = f". Known: {', '.join(tags)}" if tags else ""
        raise NetworkError(f"timm {timm.__version__} has no {what}{known}")
    return timm.models.get_pretrained_cfg(f"{network}.{tag}") if tag else found


def resolve_stem(settings: ModelSettings, size: tuple[int, int]) -> tuple[str, str]:
    """What ``model.stem`` is for a network of timm and pictures of ``size``, and a sentence about it.

    Args:
        settings: the recipe's model settings.
        size: height and width in pixels.

    Returns:
        ``small`` or ``original``; and what that means, for the user.

    Raises:
        NetworkError: the recipe asks for ``small``, and thumbnet cannot adapt this network.
        MissingExtraError: timm is not installed.
    """
    family = _family(settings.name)
    shown = f"{size[0]}x{size[1]}"
    if settings.stem == "original" or (settings.stem == AUTO and min(size) > SMALL_SIDE):
        return "original", f"{settings.name} keeps its first layers as timm made them (model.stem=original)"
    if family is None:
        known = ", ".join((*STEMS, *TRANSFORMERS))
        why = f"thumbnet can adapt the first layers only of timm's families {known}"
        if settings.stem == "small":
            raise NetworkError(
                f"model.stem is 'small', but {settings.name} is another kind of network: {why}"
            )
        note = f"{settings.name} keeps its first layers, made for larger pictures than {shown}: {why}"
        return "original", note
    if family in TRANSFORMERS:
        patch = _patch_size(size)
        return "small", (
            f"{settings.name} is adapted to pictures of {shown}: its patches have {patch}x{patch} pixels "
            "(model.stem=small)"
        )
    return "small", (
        f"{settings.name} is adapted to pictures of {shown}: its first convolution has half its stride, and "
        "no pooling follows (model.stem=small)"
    )


def timm_builder(settings: ModelSettings, size: tuple[int, int] | None = None) -> Callable[..., nn.Module]:
    """A builder of the network that ``settings`` name, which draws random weights.

    Args:
        settings: the recipe's model settings.
        size: height and width in pixels of the pictures. Some networks take only the size for which they are
            built. By default, that for which timm made the network.

    Raises:
        NetworkError: timm has no such network, or thumbnet cannot use it.
        MissingExtraError: timm is not installed.
    """
    config = pretrained_config(settings.name)
    if not isinstance(config.classifier, str):
        raise NetworkError(
            f"{settings.name} has several last layers or none: thumbnet needs a network with one"
        )

    def build(num_classes: int, in_channels: int = 3) -> nn.Module:
        return create(settings, num_classes, size, in_chans=in_channels)

    return build


def create(settings: ModelSettings, num_classes: int, size: tuple[int, int] | None, **more: Any) -> nn.Module:
    """Build a network with timm, and adapt it to ``size`` (height, width) as ``model.stem`` says.

    ``more`` are further arguments of ``timm.create_model``.
    """
    timm = import_timm()
    config, family = pretrained_config(settings.name), _family(settings.name)
    small = size is not None and resolve_stem(settings, size)[0] == "small"
    if size is not None and config.fixed_input_size:
        more["img_size"] = size
    if size is not None and small and family in TRANSFORMERS:
        more["patch_size"] = _patch_size(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # meant for timm's own users
        model: nn.Module = timm.create_model(
            settings.name.removeprefix(TIMM), num_classes=num_classes, **more
        )
    if small and family in STEMS:
        first = config.first_conv
        for name in (*([first] if isinstance(first, str) else first or ()), *STEMS[family]):
            _keep_resolution(model, name)
    model.head_name = config.classifier
    return model


def _family(name: str) -> str | None:
    """The module of timm that ``name`` comes from, if thumbnet can adapt its networks."""
    timm = import_timm()
    network = name.removeprefix(TIMM)
    families = (*STEMS, *TRANSFORMERS)
    return next((one for one in families if timm.models.is_model_in_modules(network, [one])), None)


def _patch_size(size: tuple[int, int]) -> int:
    """The longest side of a patch that divides both sides and leaves ``PATCHES`` along the shorter one."""
    most = min(min(size) // PATCHES, LARGEST_PATCH)
    return max(side for side in range(1, most + 1) if math.gcd(*size) % side == 0)


def _keep_resolution(model: nn.Module, name: str) -> None:
    """Let the layer ``name``, if there is one, shrink its maps half as much.

    Convolutions in it get half their stride. A layer without weights, such as a pooling, is left out.
    """
    modules = dict(model.named_modules())
    layer = modules.get(name)
    if layer is None:
        return
    if not list(layer.parameters()):
        parent, _, last = name.rpartition(".")
        setattr(modules[parent], last, nn.Identity())
        return
    for part in layer.modules():
        if isinstance(part, nn.Conv2d) and max(part.stride) > 1:
            if part.kernel_size == part.stride:  # patches side by side, as in ConvNeXt, now overlap
                part.padding = (part.kernel_size[0] // 4, part.kernel_size[1] // 4)
            part.stride = (part.stride[0] // 2, part.stride[1] // 2)
