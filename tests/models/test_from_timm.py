"""Networks of timm become networks of thumbnet, adapted to small pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from thumbnet.errors import MissingExtraError, NetworkError, RecipeError
from thumbnet.models import build_model, register_model
from thumbnet.models.from_timm import import_timm, pretrained_config, resolve_stem
from thumbnet.models.registry import find_builder, is_of_head, provide, same_network
from thumbnet.recipes.networks import is_timm
from thumbnet.recipes.settings import ModelSettings
from timm_helpers import timm_or_skip

# --- without timm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["timm", "torchvision"])
def test_without_timm_the_error_names_the_extra(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(f"raise ModuleNotFoundError('No module', name={missing!r})", tmp_path, monkeypatch)
    with pytest.raises(MissingExtraError, match=r"a network of timm needs the extra 'timm'.*\[timm\]"):
        build_model(ModelSettings("timm:resnet18"), 3)
    with pytest.raises(MissingExtraError):
        find_builder("timm:resnet18")


def test_a_torchvision_for_another_torch_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend("raise RuntimeError('operator torchvision::nms does not exist')", tmp_path, monkeypatch)
    with pytest.raises(
        NetworkError, match=r"timm cannot be imported: operator .*nms.*\n.*the torchvision that was"
    ):
        import_timm()


def test_names_of_timm_belong_to_timm() -> None:
    with pytest.raises(NetworkError, match="'timm:mine' belongs to timm"):
        register_model("timm:mine")
    with pytest.raises(NetworkError, match="which comes with timm"):
        provide("timm:resnet18", lambda num_classes: torch.nn.Linear(1, num_classes))
    assert same_network("timm:resnet18", "timm:resnet18.a1_in1k")
    assert not same_network("timm:resnet18", "timm:resnet34")
    assert not same_network("timm:resnet18", "resnet18")


def _pretend(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module that runs ``body`` stand in place of timm."""
    (folder / "timm.py").write_text(body)
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)


# --- with timm --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm() -> Any:
    return timm_or_skip()


def last_side(model: torch.nn.Module, side: int) -> int:
    """The side of the last map of features that ``model`` makes from a picture of ``side`` pixels."""
    found: Any = model.eval().forward_features(torch.zeros(1, 3, side, side))  # type: ignore[operator]
    assert found.ndim == 4
    return int(found.shape[-1])


def test_every_name_of_timm_is_a_name_for_a_recipe(timm: Any) -> None:
    names = [*timm.list_models(), *timm.list_pretrained()]
    assert len(names) > 1000
    assert all(is_timm(f"timm:{name}") for name in names)


@pytest.mark.parametrize(
    ("name", "head", "original", "small"),
    [
        ("resnet10t", "fc", 1, 4),
        ("test_resnet", "fc", 1, 4),
        ("resnetv2_18d", "head.fc", 1, 4),
        ("densenet121", "classifier", 1, 4),
        ("regnety_002", "head.fc", 1, 2),
        ("test_efficientnet", "classifier", 1, 2),
        ("mobilenetv3_small_050", "classifier", 1, 2),
        ("convnext_atto", "head.fc", 1, 2),
        ("test_convnext", "head.fc", 1, 2),
    ],
)
def test_the_first_layers_of_a_convolutional_network_keep_the_resolution_of_small_pictures(
    timm: Any, name: str, head: str, original: int, small: int
) -> None:
    settings = ModelSettings(f"timm:{name}")
    adapted = build_model(settings, 7, sizes=[(32, 32), (24, 24)])
    plain = build_model(ModelSettings(settings.name, stem="original"), 7, sizes=[(32, 32)])
    assert (last_side(plain, 32), last_side(adapted, 32)) == (original, small)
    shapes = {key: tensor.shape for key, tensor in plain.state_dict().items()}
    assert {key: tensor.shape for key, tensor in adapted.state_dict().items()} == shapes
    assert {key for key in shapes if is_of_head(adapted, key)} == {f"{head}.weight", f"{head}.bias"}
    stem, note = resolve_stem(settings, (32, 32))
    assert stem == "small"
    assert "half its stride" in note


@pytest.mark.parametrize(("size", "patch"), [((32, 32), 4), ((28, 28), 2), ((32, 48), 4), ((64, 64), 8)])
def test_a_vision_transformer_is_built_for_the_size_with_smaller_patches(
    timm: Any, size: tuple[int, int], patch: int
) -> None:
    model: Any = build_model(ModelSettings("timm:test_vit"), 3, sizes=[size])
    assert model.patch_embed.patch_size == (patch, patch)
    assert f"patches have {patch}x{patch} pixels" in resolve_stem(ModelSettings("timm:test_vit"), size)[1]


def test_larger_pictures_and_other_families_keep_the_first_layers(timm: Any) -> None:
    assert resolve_stem(ModelSettings("timm:test_resnet"), (96, 65))[0] == "original"
    assert resolve_stem(ModelSettings("timm:test_resnet"), (96, 64))[0] == "small"
    assert resolve_stem(ModelSettings("timm:test_resnet", stem="small"), (96, 96))[0] == "small"
    assert resolve_stem(ModelSettings("timm:test_resnet", stem="original"), (32, 32))[0] == "original"
    stem, note = resolve_stem(ModelSettings("timm:repvgg_a0"), (32, 32))
    assert (stem, "only of timm's families resnet, resnetv2" in note) == ("original", True)
    with pytest.raises(NetworkError, match=r"model\.stem is 'small', but timm:repvgg_a0 is another kind"):
        build_model(ModelSettings("timm:repvgg_a0", stem="small"), 3, sizes=[(32, 32)])
    large = build_model(ModelSettings("timm:test_resnet"), 3, sizes=[(96, 96)])
    assert last_side(large, 96) == 3


def test_what_timm_does_not_have_is_refused_with_what_is_near(timm: Any) -> None:
    with pytest.raises(
        NetworkError, match=r"timm [\d.]+ has no network 'resnet81'. Did you mean timm:resnet"
    ):
        find_builder("timm:resnet81")
    with pytest.raises(NetworkError, match=r"no weights 'mine' for resnet18. Known: a1_in1k, a2_in1k"):
        find_builder("timm:resnet18.mine")
    with pytest.raises(NetworkError, match=r"no network 'os'"):  # nothing is imported
        find_builder("timm:os.system")
    with pytest.raises(NetworkError, match="several last layers"):
        find_builder("timm:deit_tiny_distilled_patch16_224")
    assert pretrained_config("timm:resnet18.a2_in1k").hf_hub_id == "timm/resnet18.a2_in1k"


def test_a_size_that_a_network_cannot_take_is_refused(timm: Any) -> None:
    settings = ModelSettings("timm:test_vit", stem="original")  # patches of 16 pixels
    with pytest.raises(NetworkError, match=r"timm:test_vit.*\(40.*16"):
        build_model(settings, 3, sizes=[(40, 40)])
    with pytest.raises(RecipeError, match=r"model\.width"):
        ModelSettings("timm:test_vit", width=2)
