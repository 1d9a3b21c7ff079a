"""Start a network of timm from pretrained weights.

timm knows for each network the repository on the Hugging Face Hub that has its weights. thumbnet downloads
the safetensors file from there itself and hands the tensors to timm, which renames and resamples them where
the network needs that. timm alone would fall back to a pickle if a repository has no safetensors; thumbnet
refuses such a repository, so nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thumbnet.errors import RecipeError, RunError, is_out_of_memory
from thumbnet.files import file_digest
from thumbnet.hardware import seeded
from thumbnet.models.from_timm import create, import_timm, pretrained_config, resolve_stem
from thumbnet.models.registry import is_of_head
from thumbnet.recipes.networks import is_timm
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import AUTO, ModelSettings
from thumbnet.runs.weights import hub_reason, import_hub

_SAFE_NAMES = {
    "": "model.safetensors",
    "pytorch_model.bin": "model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}


@dataclass(frozen=True)
class Download:
    """Pretrained weights on this computer: their file, and where they come from, for ``run.json``."""

    path: Path
    record: dict[str, str]


def with_pretrained_settings(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with ``model.pretrained`` resolved, and the normalisation that its weights expect.

    ``data.mean`` and ``data.std`` that the recipe sets stay as they are.

    Returns:
        The recipe, and notes for the user.

    Raises:
        RecipeError: the recipe names two places to start from.
        NetworkError: timm has no such network.
        RunError: there are no pretrained weights of it that thumbnet reads.
        MissingExtraError: timm is not installed.
    """
    model, init = recipe.model, recipe.training.init
    if model.pretrained is True and init:
        raise RecipeError(
            f"recipe key 'model.pretrained' is true, but training.init also says where to start ({init}): "
            "leave out one of them"
        )
    wanted = is_timm(model.name) and not init if model.pretrained == AUTO else bool(model.pretrained)
    recipe = replace(recipe, model=replace(model, pretrained=wanted))
    if not wanted:
        return recipe, []
    config = pretrained_config(model.name)
    _safe_file(model.name, config)
    mean, std = (tuple(map(float, values)) for values in (config.mean, config.std))
    data = replace(
        recipe.data,
        mean=mean if recipe.data.mean == AUTO else recipe.data.mean,
        std=std if recipe.data.std == AUTO else recipe.data.std,
    )
    height, width = config.input_size[1:]
    note = (
        f"{model.name} begins with the weights {config.hf_hub_id}, pretrained on pictures of {height}x{width}"
    )
    if data != recipe.data:
        note += f", and normalises pictures as these were: mean {_shown(data.mean)}, std {_shown(data.std)}"
    return replace(recipe, data=data), [note]


def with_stem(recipe: Recipe, size: tuple[int, int]) -> tuple[Recipe, list[str]]:
    """The recipe with ``model.stem`` resolved for pictures of ``size`` (height, width), and notes.

    Raises:
        NetworkError: the recipe asks for first layers that the network cannot have.
    """
    if not is_timm(recipe.model.name):
        return recipe, []
    stem, note = resolve_stem(recipe.model, size)
    return replace(recipe, model=replace(recipe.model, stem=stem)), [note]


def begin_pretrained(
    model: nn.Module, settings: ModelSettings, num_classes: int, size: tuple[int, int]
) -> dict[str, str]:
    """Copy pretrained weights into ``model``, in place. The last layer keeps its random ones.

    Args:
        model: the network that ``settings`` describe.
        settings: the recipe's model settings.
        num_classes: length of the logits.
        size: height and width in pixels of the pictures.

    Returns:
        Where the weights come from, for ``run.json``.

    Raises:
        RunError: they cannot be downloaded or read, or do not fit the network.
        MissingExtraError: timm or huggingface_hub is not installed.
    """
    download = fetch(settings.name)
    tensors = _read(download.path, settings.name)
    overlay = {"state_dict": tensors, "custom_load": False}
    with seeded(0):
        drawn = create(settings, num_classes, size).state_dict()
    with seeded(0):
        try:
            begun = create(
                settings, num_classes, size, pretrained=True, pretrained_cfg_overlay=overlay
            ).state_dict()
        except (RuntimeError, KeyError, ValueError, AttributeError, IndexError) as error:
            reason = str(error).strip().split("\n")[-1].strip()
            raise RunError(
                f"the pretrained weights in {download.path} do not fit {settings.name}: {reason}"
            ) from None
    own = {name: tensor for name, tensor in model.state_dict().items() if not is_of_head(model, name)}
    _check_all_came(
        own, begun, drawn, f"the pretrained weights in {download.path} do not fit {settings.name}"
    )
    for name, tensor in own.items():
        tensor.copy_(begun[name])
    return download.record


def fetch(name: str) -> Download:
    """Download the pretrained weights of ``timm:NAME`` into huggingface_hub's cache, unless they are there.

    Raises:
        RunError: there are none in safetensors, or the Hub cannot be reached.
        MissingExtraError: timm or huggingface_hub is not installed.
    """
    timm, hub, config = import_timm(), import_hub(), pretrained_config(name)
    file = _safe_file(name, config)
    repository, _, revision = config.hf_hub_id.partition("@")
    try:
        path = Path(
            hub.hf_hub_download(
                repository,
                file,
                revision=revision or None,
                library_name="timm",
                library_version=timm.__version__,
            )
        )
    except hub.errors.EntryNotFoundError as error:
        if isinstance(error, hub.errors.LocalEntryNotFoundError):
            raise _cannot_fetch(name, repository, error) from None
        raise _no_safetensors(name, f"the repository {repository} has no {file}") from None
    except Exception as error:  # huggingface_hub and its HTTP client raise many unrelated classes
        raise _cannot_fetch(name, repository, error) from None
    record = {
        "timm": timm.__version__,
        "tag": config.tag or "",
        "repository": repository,
        "revision": path.parent.name,
        "file": file,
        "sha256": file_digest(path),
    }
    return Download(path, record)


def check_same(found: dict[str, str] | None, recorded: Any) -> None:
    """Check that a run that begins again has the weights with which it began before.

    Args:
        found: what :func:`begin_pretrained` returned; None without pretrained weights.
        recorded: what ``run.json`` says about them.

    Raises:
        RunError: the weights have changed.
    """
    digest = recorded.get("sha256") if isinstance(recorded, dict) else None
    if found is not None and found["sha256"] != digest:
        raise RunError(
            f"the weights in {found['repository']} have changed since the run began (sha256 "
            f"{found['sha256']}, then {digest}): start a new run"
        )


def _cannot_fetch(name: str, repository: str, error: Exception) -> RunError:
    return RunError(
        f"cannot fetch the pretrained weights of {name} from {repository} on the Hugging Face Hub: "
        f"{hub_reason(error)}\nWithout access to the Hub, copy its cache from a computer that has the "
        "weights (~/.cache/huggingface, or HF_HOME), or start from random weights: "
        "--set model.pretrained=false"
    )


def _no_safetensors(name: str, why: str) -> RunError:
    return RunError(
        f"there are no pretrained weights of {name} in safetensors: {why}. thumbnet reads no others, because "
        "loading a pickle can run code. Use another network or tag, or random weights: "
        "--set model.pretrained=false"
    )


def _safe_file(name: str, config: Any) -> str:
    """The name of the safetensors file with the weights in the repository that ``config`` names.

    Raises:
        RunError: ``config`` names no repository, or a file without a safetensors twin.
    """
    if not config.hf_hub_id:
        raise _no_safetensors(name, "timm names no repository for them")
    file = config.hf_hub_filename or ""
    if file in _SAFE_NAMES:
        return _SAFE_NAMES[file]
    stem, _, ending = file.rpartition(".")
    if ending not in ("bin", "safetensors"):
        raise _no_safetensors(name, f"timm names the file {file}")
    return f"{stem}.safetensors"


def _read(path: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: a bad disk
        if is_out_of_memory(error):
            raise
        raise RunError(f"cannot read the pretrained weights of {name} in {path}: {error}") from None


def _check_all_came(
    own: dict[str, Tensor], begun: dict[str, Tensor], drawn: dict[str, Tensor], problem: str
) -> None:
    """Check that timm has replaced every random matrix, because it only logs those that the file lacks.

    Args:
        own: the network's tensors, without those of the last layer.
        begun, drawn: a network with the weights from the file, and one with the same random weights without.
        problem: begins the error's message.

    Raises:
        RunError: a tensor is as random as before.
    """
    missing = [name for name in own if begun[name].ndim > 1 and torch.equal(begun[name], drawn[name])]
    missing = [
        name for name in missing if begun[name].is_floating_point() and begun[name].unique().numel() > 1
    ]
    if missing:
        raise RunError(f"{problem}: {len(missing)} tensors are not in the file, such as {missing[0]}")


def _shown(values: str | Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values) if not isinstance(values, str) else values
