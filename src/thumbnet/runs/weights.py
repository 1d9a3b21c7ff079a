"""Find, fetch, read, verify and write weights files (``model.safetensors``)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.errors import RecipeError, RunError, is_out_of_memory, needs_extra, printable
from thumbnet.files import user_path, write_file
from thumbnet.invocation import command
from thumbnet.recipes.networks import MODEL_NAMES
from thumbnet.runs.finding import is_run, no_run
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.sources.known_names import HUB

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_NAME = "model.safetensors"
WEIGHTS_ENDINGS = (".safetensors", ".pt", ".pth")


def find_weights(path: str | Path) -> Path:
    """Return the path of the weights of a run's folder, an ``hf:OWNER/NAME[@REVISION]``, or a file.

    Raises:
        RunError: there are no weights there.
        MissingExtraError: huggingface_hub is not installed.
    """
    if str(path).startswith(HUB):
        return fetch_weights(str(path))
    place = user_path(path)
    if place.is_dir():
        if (place / WEIGHTS_NAME).is_file():
            return place / WEIGHTS_NAME
        raise no_run(place)
    if not place.exists():
        if place.suffix in WEIGHTS_ENDINGS:
            raise RunError(f"there is no file {place}")
        raise no_run(place)
    return place


def fetch_weights(source: str) -> Path:
    """Download the ``model.safetensors`` of ``hf:OWNER/NAME[@REVISION]`` into huggingface_hub's cache.

    Raises:
        RunError: the file does not exist, or the Hub cannot be reached.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = import_hub()
    name, _, revision = source.removeprefix(HUB).partition("@")
    try:
        return Path(hub.hf_hub_download(name, WEIGHTS_NAME, revision=revision or None))
    except Exception as error:
        raise RunError(f"cannot fetch {source}: {hub_reason(error)}") from None


def read_weights(path: Path) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Read the tensors and their description from a ``model.safetensors``.

    Raises:
        RunError: the file does not exist, is damaged, or was not written by thumbnet.
    """
    from safetensors import SafetensorError

    try:
        with open_safetensors(path) as file:
            text = (file.metadata() or {}).get("thumbnet")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:  # safetensors raises it whatever the system says
        raise _not_opened(path) from None
    except SafetensorError as error:
        raise _damaged(
            path,
            f"cannot read {path} as weights ({error}): expected a run's folder, its {WEIGHTS_NAME}, or an "
            "exported MODEL.onnx",
        ) from None
    except (OSError, ValueError, RuntimeError) as error:  # torch maps the file, and reports a bad disk itself
        if is_out_of_memory(error):
            raise
        reason = str(error).split("\n")[0]
        raise RunError(f"cannot read {path}: {reason}") from None
    if text is None:
        raise RunError(f"{path} was not written by thumbnet: its weights have no description")
    try:
        values = json.loads(text)
        digest = values.pop("digest", None) if isinstance(values, dict) else None  # older versions wrote none
        if digest is not None and digest != weights_digest(tensors, values):
            raise _damaged(path, f"{path} is damaged: its content does not match its digest")
        info = WeightsInfo.from_json(json.dumps(values))
    except (ValueError, RecursionError, RecipeError) as error:
        raise RunError(f"cannot read the description in {path}: {error}") from None
    _check_tensors(tensors, info, path)
    return tensors, info


def _damaged(path: Path, otherwise: str) -> RunError:
    """The error for a damaged file: how to restore it if a run's checkpoint can, else ``otherwise``."""
    folder = path.parent
    if path.name != WEIGHTS_NAME or not (is_run(folder) and (folder / "checkpoint.pt").is_file()):
        return RunError(otherwise)
    return RunError(
        f"{path} is damaged. The run's checkpoint can restore it: remove the file, then run "
        f"{command('train', '--resume', folder)}"
    )


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; errors are those of ``safetensors.safe_open``.

    safetensors takes only paths in UTF-8, so a file with another path is opened through its descriptor.
    """
    from safetensors import safe_open

    with contextlib.ExitStack() as stack:
        place: str | Path = path
        try:
            str(path).encode()
        except UnicodeEncodeError:
            place = f"/dev/fd/{stack.enter_context(path.open('rb')).fileno()}"
        yield stack.enter_context(safe_open(place, framework="pt"))


def _not_opened(path: Path) -> RunError:
    """The error for a file that safetensors cannot open."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return RunError(f"there is no file {path}")
    except OSError as error:
        return RunError(f"cannot read {path}: {error.strerror or error}")
    return RunError(f"cannot read {path}: the system did not open it at first. Run the command again")


def _check_tensors(tensors: dict[str, Tensor], info: WeightsInfo, path: Path) -> None:
    """Check the types and values of the tensors, and the number of classes, before a network is built.

    Raises:
        RunError: a tensor has a wrong type or is not finite, or the last layer has other classes.
    """
    import torch

    ours = info.model.name in MODEL_NAMES
    for name, tensor in tensors.items():
        expected = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        if ours and tensor.dtype != expected:
            raise RunError(f"{path}: the tensor {printable(name)} holds {tensor.dtype}: expected {expected}")
        # The file does not say which tensors are buffers.
        check_finite(name, tensor, path, is_buffer=True, network=info.model.name)
    classes = len(info.class_names)
    rows = {tensor.shape[:1] for name, tensor in tensors.items() if not ours or name.startswith("head.")}
    if rows and (classes,) not in rows:
        raise RunError(f"{path} names {classes:,} classes, but its last layer does not have that many rows")


def check_finite(name: str, tensor: Tensor, source: str | Path, *, is_buffer: bool, network: str) -> None:
    """Check that a tensor can be part of a trained network.

    Parameters must be finite. Buffers of users' networks may hold infinity, as masks do, but no NaN; those of
    thumbnet's networks hold neither.

    Args:
        name: the tensor's name.
        tensor: the tensor.
        source: where it is from, for the message.
        is_buffer: whether it is, or may be, a buffer.
        network: the network's name.

    Raises:
        RunError: it has such a value.
    """
    bad = tensor.isnan() if is_buffer and network not in MODEL_NAMES else ~tensor.isfinite()
    if bad.any():
        raise RunError(
            f"{source}: the tensor {printable(name)} has the value {tensor[bad][0].item()}, so the network "
            "cannot predict. Its training may have diverged"
        )


def write_weights(path: Path, weights: dict[str, Tensor], info: WeightsInfo) -> None:
    """Write tensors and their description atomically."""
    write_file(path, weights_content(weights, info))


def weights_content(weights: dict[str, Tensor], info: WeightsInfo) -> bytes:
    """The content of a ``model.safetensors``."""
    from safetensors.torch import save

    # Copies: safetensors refuses tensors that share memory, as those of a layer with two names do.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    values = json.loads(info.to_json())
    # One key: safetensors writes several in random order, but the same weights must give the same file.
    text = json.dumps({**values, "digest": weights_digest(tensors, values)}, sort_keys=True)
    content: bytes = save(tensors, metadata={"thumbnet": text})
    return content


def weights_digest(tensors: dict[str, Tensor], description: dict[str, Any]) -> str:
    """Compute a digest of tensors and description. It detects damage, not tampering."""
    import torch

    digest = hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def import_hub() -> Any:
    """Import and return the library ``huggingface_hub``.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needs_extra("the Hugging Face Hub", "hub"):
        import huggingface_hub
    return huggingface_hub


def hub_reason(error: Exception) -> str:
    """Return why a request to the Hub failed, in one line."""
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) == 401 or "Token" in type(error).__name__:
        return "it does not exist, or you have no access: log in with `hf auth login`, or set HF_TOKEN"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return json.dumps(lines[0])[1:-1] if lines else type(error).__name__
