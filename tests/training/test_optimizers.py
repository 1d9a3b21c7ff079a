from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from thumbnet.errors import RecipeError
from thumbnet.models import ResNet, fastnet
from thumbnet.recipes.settings import GroupSettings, OptimizerSettings
from thumbnet.training.optimizers import (
    build_optimizer,
    device_rates,
    drop_device_state,
    make_device_state,
    set_learning_rate,
)


def small() -> ResNet:
    return ResNet([1, 1], [8, 8], num_classes=3)


def test_vectors_are_the_biases_and_the_weights_of_normalisation() -> None:
    groups = (GroupSettings("@head", lr=0.5), GroupSettings("@vectors", lr=0.3))
    model = small()
    optimizer = build_optimizer(OptimizerSettings(lr=0.1, groups=groups), model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["head.bias"] == found["head.weight"] == 0.5
    assert found["norm.weight"] == found["norm.bias"] == found["stages.1.0.shortcut.1.bias"] == 0.3
    assert found["stem.weight"] == found["stages.1.0.shortcut.0.weight"] == 0.1


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


def test_the_last_layer_has_a_pattern_that_does_not_depend_on_its_name() -> None:
    class Other(torch.nn.Module):
        head_name = "top.fc"

        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(4, 4)
            self.top = torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 3), "fc2": torch.nn.Linear(4, 3)})

    settings = OptimizerSettings(lr=0.1, groups=(GroupSettings("@head", lr=0.5),))
    for model, of_head in ((small(), 2), (Other(), 2)):
        first, rest = build_optimizer(settings, model).param_groups
        assert (first["lr"], len(first["params"])) == (0.5, of_head)
        assert {id(p) for p in first["params"]} == {
            id(p) for p in model.get_submodule(getattr(model, "head_name", "head")).parameters()
        }
        assert len(rest["params"]) == len(list(model.parameters())) - of_head


def test_pytorch_chooses_how_adamw_updates_unless_it_must_be_one_kernel() -> None:
    """With ``fused`` False, it would update each parameter by itself on a GPU."""
    settings = OptimizerSettings(name="adamw", lr=0.001)
    for fused, expected in ((False, None), (True, True)):
        (group,) = build_optimizer(settings, small(), fused=fused).param_groups
        assert (group["fused"], group["foreach"]) == (expected, None)


def test_the_schedule_scales_every_groups_own_rate() -> None:
    settings = OptimizerSettings(lr=0.1, groups=(GroupSettings("head.*", lr=0.5),))
    optimizer = build_optimizer(settings, small())
    for factor in (0.5, 0.25):  # from the full rate each time, not from the last one
        set_learning_rate(optimizer, factor)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5 * factor, 0.1 * factor])


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are() -> None:
    settings = OptimizerSettings(groups=(GroupSettings("classifier.*"),))
    with pytest.raises(RecipeError, match=r"classifier.*head\.weight.*--set optimizer\.groups=\[\]"):
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


KINDS = {
    "sgd": OptimizerSettings(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "plain sgd": OptimizerSettings(lr=0.1, momentum=0.0, weight_decay=0.01),
    "adamw": OptimizerSettings("adamw", lr=0.01, weight_decay=0.1),
    "muon": OptimizerSettings("muon", lr=0.1, momentum=0.6, groups=(GroupSettings("*.bias", lr=0.2),)),
}


def stepped(settings: OptimizerSettings, on_device: bool) -> tuple[ResNet, torch.optim.Optimizer]:
    """A network after three steps at falling rates."""
    torch.manual_seed(0)
    model = small()
    optimizer = build_optimizer(settings, model)
    full = [group["base_lr"] for group in optimizer.param_groups]
    if on_device:
        make_device_state(optimizer)
    for factor in (1.0, 0.5, 0.25):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 16, 16)).square().sum().backward()
        if on_device:
            with device_rates(optimizer, torch.tensor(full) * factor):
                optimizer.step()
        else:
            set_learning_rate(optimizer, factor)
            optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_rates_on_the_device_give_the_same_steps_to_within_rounding(kind: str) -> None:
    (plain, _), (made, _) = stepped(KINDS[kind], False), stepped(KINDS[kind], True)
    for (name, expected), found in zip(plain.named_parameters(), made.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_rates_on_the_device_leaves_no_trace_in_the_settings(kind: str) -> None:
    settings = KINDS[kind]
    _, optimizer = stepped(settings, True)
    fresh = build_optimizer(settings, small())
    for group, expected in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in expected.items() if k != "params"
        }


@pytest.mark.parametrize("kind", KINDS)
def test_state_that_is_made_beforehand_is_all_that_a_step_needs_and_changes_no_step(kind: str) -> None:
    settings = KINDS[kind]
    torch.manual_seed(0)
    model, images = small(), torch.randn(4, 3, 16, 16)
    expected = small()
    expected.load_state_dict(model.state_dict())
    optimizers = [build_optimizer(settings, one) for one in (model, expected)]
    make_device_state(optimizers[0])
    before = {(id(p), name): id(t) for p, s in optimizers[0].state.items() for name, t in s.items()}
    drop_device_state(optimizers[0])  # as when recording failed
    for one, optimizer in zip((model, expected), optimizers, strict=True):
        one(images).square().sum().backward()
        optimizer.step()
    after = {
        (id(p), name): id(t) for p, s in optimizers[0].state.items() for name, t in s.items() if t is not None
    }
    assert before == after
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_a_step_that_no_graph_captures_does_not_warn_of_capturable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each recording on a GPU takes some such steps. PyTorch's constructor has switched this warning off."""
    stream = SimpleNamespace(is_capturing=lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *_, **__: stream)
    model = small()
    optimizer = build_optimizer(KINDS["adamw"], model)
    make_device_state(optimizer)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    with warnings.catch_warnings(), device_rates(optimizer, torch.full((1,), 0.01)):
        warnings.simplefilter("error")
        optimizer.step()
