from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thumbnet.models.resnet import resnet18
from thumbnet.training.renaming import match

WIDTH = 0.125


def network() -> dict[str, Tensor]:
    return resnet18(num_classes=3, width=WIDTH).state_dict()


def body(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}


def is_head(name: str) -> bool:
    return name.startswith("head.")


def stranger(form: str) -> dict[str, Tensor]:
    """The network's own tensors, named as another program names them."""
    layer, shortcut, last = {
        "torchvision": ("layer", "downsample", "fc"),
        "pytorch-cifar": ("layer", "shortcut", "linear"),
        "tutorial": ("block", "shortcut", "linear"),
    }[form]
    renamed = {}
    for name, tensor in network().items():
        parts = name.split(".")
        if parts[0] == "stages":
            parts = [f"{layer}{int(parts[1]) + 1}", *parts[2:]]
            parts = [one.replace("norm", "bn").replace("shortcut", shortcut) for one in parts]
        else:
            parts[0] = {"stem": "conv1", "norm": "bn1", "head": last}[parts[0]]
        renamed[".".join(parts)] = tensor
    return renamed


@pytest.mark.parametrize("form", ["torchvision", "pytorch-cifar", "tutorial"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.backbone."])
def test_the_names_of_other_programs_lead_to_the_same_tensors(form: str, prefix: str) -> None:
    file = {prefix + name: tensor for name, tensor in stranger(form).items()}
    mine = body(network())
    found = match(mine, file, is_head, is_resnet=True)
    assert found.pairs.keys() == mine.keys()
    assert list(found.pairs.values()) == list(file)[: len(mine)]  # both are in the order of the network
    assert found.how == "by the usual names of a ResNet's layers"
    assert found.unused == []
    assert len(found.head) == 2


def test_equal_names_need_no_other_way() -> None:
    found = match(body(network()), network(), is_head, is_resnet=True)
    assert found.how == "by name"
    assert all(mine == theirs for mine, theirs in found.pairs.items())


def test_unknown_names_are_matched_by_order_and_shape_or_not_at_all() -> None:
    mine = body(network())
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in network()))
    unknown = {
        f"part{layers.index(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": tensor
        for name, tensor in network().items()
    }
    found = match(mine, unknown, is_head)
    assert found.how == "by order and shape"
    assert list(found.pairs.values()) == list(unknown)[: len(mine)]
    assert len(found.head) == 2
    assert match(mine, unknown, is_head, in_order=False).pairs == {}  # blocks of equal shapes

    swapped = dict(unknown)
    wide = next(name for name, tensor in unknown.items() if tensor.shape[:1] == (16,))
    swapped = {wide: swapped.pop(wide), **swapped}
    assert match(mine, swapped, is_head).pairs == {}


def test_layers_of_different_shapes_need_no_order() -> None:
    mine = {"a.weight": torch.zeros(4, 3, 3, 3), "b.weight": torch.zeros(5, 4, 3, 3)}
    file = {"x.weight": torch.zeros(4, 3, 3, 3), "y.weight": torch.zeros(5, 4, 3, 3)}
    assert match(mine, file, is_head, in_order=False).pairs == {
        "a.weight": "x.weight",
        "b.weight": "y.weight",
    }


def test_a_weight_and_a_bias_of_equal_shape_are_never_exchanged() -> None:
    mine = {"norm.weight": torch.zeros(8), "norm.bias": torch.zeros(8)}
    file = {"x.bias": torch.zeros(8), "x.weight": torch.zeros(8)}
    assert match(mine, file, is_head).pairs == {"norm.weight": "x.weight", "norm.bias": "x.bias"}


def test_a_first_convolution_of_another_size_stays_new_in_every_way() -> None:
    mine = body(network())
    for form, in_names in (("torchvision", True), ("unknown", False)):
        file = stranger("torchvision")
        file["conv1.weight"] = torch.zeros(8, 3, 7, 7)
        if not in_names:
            file = {f"net{name}": tensor for name, tensor in file.items()}
        found = match(mine, file, is_head, is_resnet=in_names)
        assert found.stem == ("stem.weight", "conv1.weight" if in_names else "netconv1.weight"), form
        assert found.missing == []
        assert len(found.pairs) == len(mine) - 1


def test_floats_do_not_replace_whole_numbers() -> None:
    mine = {"a.weight": torch.zeros(4, 4)}
    assert match(mine, {"a.weight": torch.zeros(4, 4, dtype=torch.int8)}, is_head).pairs == {}
