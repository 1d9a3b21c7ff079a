from __future__ import annotations

import pytest
import torch

from thumbnet.errors import RecipeError
from thumbnet.models import ResNet, fastnet
from thumbnet.recipes.settings import GroupSettings, OptimizerSettings
from thumbnet.training.optimizers import build_optimizer, set_learning_rate


def small() -> ResNet:
    return ResNet([1, 1], [8, 8], num_classes=3)


def test_parameters_go_to_the_first_group_that_matches_and_to_one_only() -> None:
    groups = (
        GroupSettings("head.*", lr=0.5, weight_decay=0.0),
        GroupSettings("*.bias", weight_decay=0.0),
    )
    model = small()
    optimizer = build_optimizer(OptimizerSettings(lr=0.1, weight_decay=0.01, groups=groups), model)
    by_id = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        group = by_id[id(parameter)]
        if name.startswith("head."):
            assert (group["lr"], group["weight_decay"]) == (0.5, 0.0), name
        elif name.endswith(".bias"):
            assert (group["lr"], group["weight_decay"]) == (0.1, 0.0), name
        else:
            assert (group["lr"], group["weight_decay"]) == (0.1, 0.01), name
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_the_schedule_scales_every_groups_own_rate() -> None:
    settings = OptimizerSettings(lr=0.1, groups=(GroupSettings("head.*", lr=0.5),))
    optimizer = build_optimizer(settings, small())
    for factor in (0.5, 0.25):  # from the full rate each time, not from the last one
        set_learning_rate(optimizer, factor)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5 * factor, 0.1 * factor])


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are() -> None:
    settings = OptimizerSettings(groups=(GroupSettings("classifier.*"),))
    with pytest.raises(RecipeError, match=r"classifier.*head\.weight"):
        build_optimizer(settings, small())


def test_what_is_not_learned_is_not_given_to_the_optimizer() -> None:
    model = fastnet()
    optimizer = build_optimizer(OptimizerSettings(), model)
    given = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert id(model.whiten.weight) not in given


def test_sgd_and_adamw_are_torchs_own_with_the_recipes_numbers() -> None:
    sgd = build_optimizer(OptimizerSettings("sgd", lr=0.3, momentum=0.8, nesterov=True), small())
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    adamw = build_optimizer(OptimizerSettings("adamw", lr=1e-3, betas=(0.8, 0.95)), small())
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.95)
