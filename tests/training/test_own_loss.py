from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import thumbnet
from helpers import coloured_data, coloured_labels
from thumbnet.batches.batches import NO_LABEL, Batch
from thumbnet.batches.mixing import Mixed
from thumbnet.batches.prepare import prepare
from thumbnet.errors import ModelCodeError, OwnCodeError, RecipeError
from thumbnet.recipes.own_code import source_digest
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import TrainingSettings
from thumbnet.training import graphed
from thumbnet.training.own_loss import (
    OwnLoss,
    changed_code,
    code_digests,
    find_code,
    for_own_loss,
    own_loss,
)
from thumbnet.training.range_test import learning_rate_range_test
from thumbnet.training.speed import measure_speed
from thumbnet.training.state import TrainingState
from thumbnet.training.step import accumulate_gradients, picture_losses, summed_loss
from thumbnet.training.steps import EagerSteps, choose_steps
from thumbnet.tuning.space import knobs

pytestmark = pytest.mark.usefixtures("own")  # restores what is registered
CPU = torch.device("cpu")
PLAIN = ["training.precision=fp32", "training.label_smoothing=0", "training.loss=mine"]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    if targets.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
    return F.cross_entropy(logits, targets, reduction="none")


def logits_of(count: int = 4, classes: int = 3) -> Tensor:
    return torch.randn(count, classes, requires_grad=True)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 64, 3))


def state_of(*overrides: str) -> TrainingState:
    thumbnet.register_loss("mine")(cross_entropy)
    recipe = load_recipe("tutorial", [*PLAIN, "training.epochs=4", *overrides])
    return TrainingState(linear(), recipe, 3, CPU)


# --- the function ----------------------------------------------------------------------------------------


def test_the_loss_of_each_picture_is_what_the_function_returns() -> None:
    logits, labels = logits_of(), torch.tensor([0, 2, 1, 2])
    expected = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(OwnLoss("mine", cross_entropy)(logits, labels), expected)


def test_several_labels_are_given_as_floats() -> None:
    labels = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.int8)
    seen: list[Tensor] = []

    def watching(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return cross_entropy(logits, targets)

    OwnLoss("mine", watching)(logits_of(2), labels)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], labels.float())


@pytest.mark.parametrize("several", [False, True])
def test_a_picture_that_does_not_count_has_neither_loss_nor_gradient(several: bool) -> None:
    logits = logits_of(2)
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.int8) if several else torch.tensor([2, 1])
    labels[1] = NO_LABEL
    losses = OwnLoss("mine", cross_entropy)(logits, labels)
    losses.sum().backward()
    assert losses[0] > 0
    assert losses[1] == 0
    assert logits.grad is not None
    assert logits.grad[0].any()
    assert not logits.grad[1].any()


def test_a_loss_may_change_its_logits_in_place() -> None:
    """A margin must not reach the accuracy, nor the second loss of a mixed picture."""

    def with_margin(logits: Tensor, targets: Tensor) -> Tensor:
        logits[torch.arange(len(logits)), targets] -= 5
        return cross_entropy(logits, targets)

    computed = logits_of() * 1
    before = computed.detach().clone()
    losses = OwnLoss("mine", with_margin)(computed, torch.tensor([0, 2, 1, 2]))
    assert torch.equal(computed, before)
    assert losses.requires_grad


def fails(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (F.cross_entropy, r"the loss mine returns float32 \[\]: .*floating point \[4\].*reduction='none'"),
        (lambda logits, _: logits, r"returns float32 \[4, 3\]: expected the loss of each picture"),
        (lambda logits, _: logits.argmax(dim=1), r"returns int64 \[4\]"),
        (lambda logits, _: 1.5, "returns a float: expected the loss of each picture"),
        (lambda logits, _: logits.detach().sum(dim=1), "without a gradient"),
        (lambda logits, _: logits.sum(dim=1).to("meta"), "on meta: expected them on cpu"),
        (fails, r"mine fails on logits of shape \[4, 3\] and targets of shape \[4\]: .*test_own_loss.py, line \d+\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_loss_is_said(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(OwnCodeError, match=says) as caught:
        OwnLoss("mine", function)(logits_of(), torch.zeros(4, dtype=torch.int64))
    assert (caught.value.__cause__ is not None) == (function is fails)  # its traceback is shown in Python


def test_losses_without_a_gradient_are_fine_where_none_is_asked_for() -> None:
    with torch.no_grad():
        assert OwnLoss("mine", cross_entropy)(logits_of(), torch.zeros(4, dtype=torch.int64)).shape == (4,)


# --- in a step -------------------------------------------------------------------------------------------


def test_a_step_with_the_cross_entropy_as_ones_own_loss_is_that_of_thumbnet() -> None:
    own = state_of()
    plain = TrainingState(linear(), own.recipe.override(["training.loss=cross-entropy"]), 3, CPU)
    assert (own.own_loss is None, plain.own_loss is None) == (False, True)
    images = torch.randn(8, 3, 16, 16)
    batch = Batch(images, torch.arange(8) % 3)
    torch.testing.assert_close(accumulate_gradients(own, batch), accumulate_gradients(plain, batch))
    for one, other in zip(own.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    whole, parts = state_of(), state_of("training.micro_batch=3")
    batch = Batch(torch.randn(8, 3, 16, 16), torch.arange(8) % 3)
    torch.testing.assert_close(accumulate_gradients(whole, batch), accumulate_gradients(parts, batch))
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_class_weights_and_mixing_mean_what_they_do_for_the_cross_entropy() -> None:
    logits, labels, settings = logits_of(), torch.tensor([0, 2, 1, 2]), TrainingSettings()
    mixed = Mixed(labels.roll(1), torch.tensor([0.1, 0.5, 0.9, 1.0]))
    loss = OwnLoss("mine", cross_entropy)
    for weights in (None, torch.tensor([0.5, 3.0, 1.0])):
        for mixture in (None, mixed):
            expected = summed_loss(logits, labels, settings, weights, mixture)
            torch.testing.assert_close(
                summed_loss(logits, labels, settings, weights, mixture, loss), expected
            )


def test_which_pictures_are_easy_is_decided_by_the_cross_entropy() -> None:
    state = state_of()
    state.own_loss = OwnLoss("mine", lambda logits, targets: -logits.sum(dim=1))
    noted: list[Tensor] = []

    class Noting:
        def note(self, positions: Tensor, losses: Tensor) -> None:
            noted.append(losses)

    state.selection = Noting()  # type: ignore[assignment]
    batch = Batch(torch.randn(4, 3, 16, 16), torch.arange(4) % 3, positions=torch.arange(4))
    accumulate_gradients(state, batch)
    with torch.no_grad():
        expected = picture_losses(state.model(batch.images), batch.labels)
    torch.testing.assert_close(noted[0], expected)


def test_several_labels_train_with_it() -> None:
    state = state_of()
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.int8)
    batch = Batch(torch.randn(2, 3, 16, 16), labels)
    plain = replace(state.recipe.training, loss="cross-entropy")
    expected = summed_loss(state.model(batch.images), labels, plain, None) / 2
    torch.testing.assert_close(accumulate_gradients(state, batch), expected.detach())


# --- settings --------------------------------------------------------------------------------------------


def test_label_smoothing_of_a_recipe_becomes_0_and_a_note_says_so() -> None:
    thumbnet.register_loss("mine")(cross_entropy)
    recipe = load_recipe("small", ["training.loss=mine"])
    assert recipe.training.label_smoothing > 0
    fitted, notes = for_own_loss(recipe, frozenset())
    assert fitted == replace(recipe, training=replace(recipe.training, label_smoothing=0.0))
    assert notes == ["training.label_smoothing is 0 instead of 0.1, because the loss mine is your own"]
    assert for_own_loss(fitted, frozenset({"training.label_smoothing"})) == (fitted, [])
    assert for_own_loss(load_recipe("small"), frozenset()) == (load_recipe("small"), [])


def test_label_smoothing_that_the_user_asks_for_is_refused() -> None:
    thumbnet.register_loss("mine")(cross_entropy)
    recipe = load_recipe("small", ["training.loss=mine", "training.label_smoothing=0.2"])
    for refused in (lambda: for_own_loss(recipe, {"training.label_smoothing"}), lambda: own_loss(recipe)):
        with pytest.raises(
            RecipeError, match=r"label_smoothing is 0\.2, but .* set training.label_smoothing=0"
        ):
            refused()


def test_a_last_layer_that_is_fitted_alone_needs_the_cross_entropy() -> None:
    thumbnet.register_loss("mine")(cross_entropy)
    with pytest.raises(RecipeError, match="expected 'cross-entropy' where training.frozen is true"):
        load_recipe("linear", ["training.loss=mine"])


@pytest.mark.parametrize("key", ["training.loss", "augment.custom"])
def test_missing_code_is_found_out_before_the_data_are_read(key: str) -> None:
    from thumbnet.recipes.recipe import recipe_from_dict

    settings = load_recipe("small").to_dict()
    find_code(recipe_from_dict(settings))
    section, name = key.split(".")
    settings[section][name] = "mine"
    with pytest.raises(ModelCodeError, match="mine is not part of thumbnet"):
        find_code(recipe_from_dict(settings))


def test_a_search_for_settings_leaves_label_smoothing_alone() -> None:
    thumbnet.register_loss("mine")(cross_entropy)
    found = {}
    for loss in ("cross-entropy", "mine"):
        recipe = load_recipe("small", [f"training.loss={loss}"])
        varied = knobs(recipe, frozenset(), 1000, (32, 32), own=[(32, 32)], takes_width=True, epochs=True)
        found[loss] = {knob.name for knob in varied}
    assert found["cross-entropy"] - found["mine"] == {"smoothing"}


# --- around the loop -------------------------------------------------------------------------------------


def test_graphs_are_left_out_and_a_note_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "DEVICES", ("cpu",))
    thumbnet.register_loss("mine")(cross_entropy)
    thumbnet.register_augmentation("same")(lambda images, generator: images)
    for override in ("training.loss=mine", "augment.custom=same"):
        recipe = load_recipe("small", [override, *PLAIN[:2], "data.image_size=16", "data.skip_easy=0"])
        prepared = prepare(coloured_data(), recipe, CPU)
        model = thumbnet.build_model(recipe.model, 3)
        state = TrainingState(model, recipe, len(prepared.train), CPU)
        notes: list[str] = []
        assert type(choose_steps(state, prepared.train, notes.append)) is EagerSteps
        (note,) = notes
        kind = "loss" if "loss" in override else "augmentation"
        assert note.startswith(f"no CUDA graphs, which would be faster: the {kind} is your own")


@pytest.mark.parametrize("shift", [100, -100])  # a loss may be negative
def test_the_range_test_measures_it(shift: int) -> None:
    state = state_of()
    state.own_loss = OwnLoss("mine", lambda logits, targets: cross_entropy(logits, targets) + shift)
    batches = [Batch(torch.randn(8, 3, 16, 16), torch.arange(8) % 3)] * 3
    repeated: Any = SimpleNamespace(epoch=lambda epoch: batches)
    found = learning_rate_range_test(state, repeated, lowest=1e-3, highest=1.0, steps=30)
    assert len(found.losses) == 30
    assert shift - 1 < min(found.losses) < found.losses[0] < shift + 10


@pytest.mark.parametrize("several", [False, True])
def test_the_speed_is_measured_with_labels_of_the_datas_kind(several: bool) -> None:
    shapes = set()

    @thumbnet.register_loss("mine")
    def mine(logits: Tensor, targets: Tensor) -> Tensor:
        shapes.add((targets.ndim, targets.dtype))
        return cross_entropy(logits, targets)

    data = coloured_labels(40) if several else coloured_data(40)
    recipe = load_recipe(
        "tutorial", [*PLAIN, "model.name=resnet20", "model.width=0.25", "data.image_size=16"]
    )
    measure_speed(recipe, prepare(data, recipe, CPU), 3, CPU, longest=0.0)
    assert shapes == {(2, torch.float32) if several else (1, torch.int64)}


def test_the_digests_are_those_of_the_users_code_alone() -> None:
    thumbnet.register_loss("mine")(cross_entropy)
    here = source_digest(cross_entropy)
    assert here is not None
    assert code_digests(load_recipe("fast", PLAIN)) == {"training.loss": here}
    assert code_digests(load_recipe("fast")) == {}
    thumbnet.register_model("own-linear")(OwnLinear)
    own_network = load_recipe("one-cycle", ["model.name=own-linear"])
    assert code_digests(own_network) == {"model.name": here}
    unknown = replace(own_network, model=replace(own_network.model, name="nowhere.nets:Net"))
    assert code_digests(unknown) == {}


class OwnLinear(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.LazyLinear(num_classes)


def test_code_has_changed_only_if_both_digests_are_known() -> None:
    before, now = {"model.name": "a", "training.loss": "b"}, {"training.loss": "c", "augment.custom": "d"}
    assert changed_code(before, now) == ["training.loss"]
    assert changed_code(before, before) == changed_code({}, now) == changed_code(before, {}) == []
    assert changed_code({"training.loss": "text:a"}, now) == []  # it was in a script, and is in a module
    assert changed_code({"training.loss": "text:a"}, {"training.loss": "text:b"}) == ["training.loss"]
