"""Read the tensors of any weights file: thumbnet's own, other safetensors, or what torch.save wrote.

Nothing in the file is run or imported. Pickles are read with ``weights_only=True``, which refuses everything
but tensors and plain values.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thumbnet.errors import RunError, printable
from thumbnet.files import file_digest
from thumbnet.runs.weights import open_safetensors, read_weights
from thumbnet.runs.weights_info import WeightsInfo

# Where programs put the state_dict in a checkpoint; the first one that is there counts.
NESTED = ("state_dict", "model", "net", "model_state_dict", "state", "ema")
_DEEPEST = 4  # levels of such keys


@dataclass(frozen=True)
class AnyWeights:
    """The content of a weights file.

    Attributes:
        path: the file.
        digest: SHA-256 of the file, as hexadecimal digits.
        tensors: the tensors by name, in the file's order.
        info: what thumbnet wrote about the network; None in a file of another program.
        in_order: whether the order of the tensors is the network's. safetensors sorts them by name.
    """

    path: Path
    digest: str
    tensors: dict[str, Tensor]
    info: WeightsInfo | None
    in_order: bool


def read_any_weights(path: Path) -> AnyWeights:
    """Read a weights file of any origin.

    Raises:
        RunError: the file does not exist, is damaged, has no tensors, or has objects that only code in the
            file could restore.
    """
    try:
        digest = file_digest(path)
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    # safetensors begins with a length of 8 bytes, which may look like anything, and then JSON. torch.save
    # writes a zip archive or, long ago, bare pickles.
    if start[8:] != b"{" and (start.startswith(b"PK") or start.startswith(b"\x80")):
        tensors = _tensors_in(_unpickled(path), path)
        return AnyWeights(path, digest, tensors, None, in_order=True)
    foreign = _foreign_safetensors(path)
    if foreign is not None:
        return AnyWeights(path, digest, foreign, None, in_order=False)
    tensors, info = read_weights(path)
    return AnyWeights(path, digest, tensors, info, in_order=True)


def _foreign_safetensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of another program's safetensors file; None if thumbnet wrote it, or it cannot be read."""
    from safetensors import SafetensorError

    try:
        with open_safetensors(path) as file:
            if "thumbnet" in (file.metadata() or {}):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return None  # read_weights reports it


def _unpickled(path: Path) -> Any:
    """What ``torch.save`` wrote, if it is only tensors and plain values.

    Raises:
        RunError: it is anything else, or the file is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript, which is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch's safe unpickler can raise almost anything on a damaged file
        text = str(error)
        if "TorchScript" in text:
            raise RunError(f"{path} is a TorchScript program, not weights. {_ADVICE}") from None
        found = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"class ([\w.]+)", text)
        if isinstance(error, pickle.UnpicklingError) and found:
            raise RunError(
                f"{path} has more in it than tensors ({printable(found[1])}). Reading that could run code "
                f"from the file, so thumbnet refuses it. {_ADVICE}"
            ) from None
        reason = text.split("\n")[0].rstrip(".") or type(error).__name__
        raise RunError(f"cannot read {path} as weights: {reason}") from None


_ADVICE = 'Where the file comes from, save only the tensors: torch.save(model.state_dict(), "weights.pt")'


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict in a checkpoint, which may be below one of the usual keys.

    Raises:
        RunError: there are no named tensors in it.
    """
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise RunError(f"{path} holds a {type(content).__name__}, not tensors with names. {_ADVICE}")
    found = {
        name: tensor.detach()
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, Tensor) and _is_plain(tensor)
    }
    if not found:
        keys = ", ".join(printable(str(key)) for key in list(content)[:6]) or "nothing"
        usual = ", ".join(NESTED)
        raise RunError(
            f"{path} has no tensors with names. It holds: {keys}. They may be below one of these keys: "
            f"{usual}"
        )
    return found


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
