from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from thumbnet.errors import DivergedError, RecipeError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.epochs import EpochResult, Score
from thumbnet.training.state import TrainingState

CPU = torch.device("cpu")


def test_class_weights_that_a_recipe_asks_for_have_to_be_given() -> None:
    recipe, model = load_recipe("tutorial", ["training.class_weights=balanced"]), nn.Linear(2, 3)
    with pytest.raises(RecipeError, match=r"training\.class_weights = 'balanced' needs a weight for each"):
        TrainingState(model, recipe, 5, CPU)
    weights = torch.tensor([1.0, 2.0, 3.0])
    found = TrainingState(model, recipe, 5, CPU, class_weights=weights).class_weights
    assert found is not None
    assert torch.equal(found, weights)


def state_of(*overrides: str) -> TrainingState:
    torch.manual_seed(0)
    recipe = load_recipe("tutorial", ["training.precision=fp32", "training.epochs=4", *overrides])
    return TrainingState(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), recipe, 5, CPU)


def result_of(epoch: int, score: Score | None = None, sample: Score | None = None) -> EpochResult:
    return EpochResult(epoch, 5 * epoch, 1.0, 0.1, 2.0, 30.0, score, 0.5, sample)


def test_steps_are_counted_from_the_finished_epochs() -> None:
    state = state_of()
    state.step = 7
    state.history.append(result_of(1))
    assert (state.epoch, state.step_in_epoch, state.total_steps) == (1, 2, 20)


def test_the_mean_loss_leaves_out_skipped_steps() -> None:
    state = state_of()
    state.losses[:] = torch.tensor([1.0, math.nan, 4.0, 1.0, 4.0])
    state.step, state.skipped = 5, [2]
    assert state.mean_loss() == 2.5
    state.skipped = [1, 2, 3, 4, 5]
    assert math.isnan(state.mean_loss())


def test_the_first_loss_that_is_not_finite_is_named_by_its_step_in_the_whole_training() -> None:
    state = state_of()
    state.history.append(result_of(1))
    state.losses[:4] = torch.tensor([1.0, math.inf, math.nan, 2.0])
    state.step = 9
    with pytest.raises(DivergedError, match="loss is inf at step 7"):
        state.check_losses()
    skipping = state_of("training.on_nonfinite=skip")
    skipping.losses[:2] = torch.tensor([math.nan, 2.0])
    skipping.step = 2
    assert skipping.check_losses() == 2.0


def test_an_error_names_the_learning_rate_of_its_step() -> None:
    state = state_of("schedule.milestones=[0.5]")
    base = state.recipe.optimizer.lr
    assert (state.lr_at(9), state.lr_at(10)) == (base, base * 0.1)
    with pytest.raises(DivergedError, match=r"step 11 \(learning rate 0\.01\)"):
        state.raise_diverged(11, math.nan)


def test_a_closed_epoch_leaves_nothing_of_its_counts() -> None:
    state = state_of()
    state.losses += 1
    state.hits += 3
    state.seconds_in_epoch, state.pictures_in_epoch, state.step = 2.0, 60, 5
    state.close_epoch(result_of(1))
    assert (state.seconds_in_epoch, state.pictures_in_epoch, state.all_hits()) == (0.0, 0, 0)
    assert not state.losses.any()
    assert state.epoch == 1


def test_the_kept_weights_do_not_change_with_later_steps() -> None:
    state = state_of()
    state.close_epoch(result_of(1, Score("val", 0.9, 0.1)))
    best = {name: tensor.clone() for name, tensor in state.final_weights().items()}
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1)
    state.close_epoch(result_of(2, Score("val", 0.8, 0.1)))
    assert state.best_epoch == 1
    assert all(torch.equal(best[name], tensor) for name, tensor in state.final_weights().items())


ACCURATE = Score("val", 0.9, 0.4, 8, balanced_accuracy=0.6)
BALANCED = Score("val", 0.8, 0.5, 8, balanced_accuracy=0.7)
LIKELY = Score("val", 0.8, 0.3, 8, balanced_accuracy=0.5)


@pytest.mark.parametrize(
    ("choose_by", "scores", "best"),
    [
        ("accuracy", (BALANCED, ACCURATE, LIKELY), 2),
        ("balanced-accuracy", (ACCURATE, BALANCED, LIKELY), 2),
        ("loss", (ACCURATE, BALANCED, LIKELY), 3),
    ],
)
def test_the_kept_epoch_is_the_best_by_the_measure_that_the_recipe_names(
    choose_by: str, scores: tuple[Score, ...], best: int
) -> None:
    state = state_of(f"training.choose_by={choose_by}")
    for epoch, score in enumerate(scores, start=1):
        state.close_epoch(result_of(epoch, score))
    assert state.kept_epoch == best
    stored = io.BytesIO()
    torch.save(state.state_dict(), stored)
    stored.seek(0)
    again = state_of(f"training.choose_by={choose_by}")
    again.load_state_dict(torch.load(stored, weights_only=True))
    for one in (state, again):  # the best score so far outlasts a checkpoint
        one.close_epoch(result_of(4, scores[best - 1]))
        assert one.kept_epoch == best


@pytest.mark.parametrize(
    ("choose_by", "said"),
    [("accuracy", "accuracy"), ("balanced-accuracy", "balanced accuracy"), ("loss", "loss")],
)
def test_patience_waits_for_a_better_score_by_the_same_measure(choose_by: str, said: str) -> None:
    state = state_of(f"training.choose_by={choose_by}", "training.patience=2", "training.epochs=9")
    best = Score("val", 0.9, 0.3, balanced_accuracy=0.9)
    worse = {
        "accuracy": Score("val", 0.8, 0.2, balanced_accuracy=0.95),
        "balanced-accuracy": Score("val", 0.95, 0.2, balanced_accuracy=0.8),
        "loss": Score("val", 0.95, 0.4, balanced_accuracy=0.95),
    }[choose_by]
    ends = [
        state.close_epoch(result_of(n, one)).stopped for n, one in enumerate((best, worse, worse), start=1)
    ]
    assert ends == ["", "", f"no better val {said} since epoch 1"]


def test_a_state_loads_with_nothing_unpickled() -> None:
    state = state_of("training.ema_decay=0.9")
    state.close_epoch(result_of(1, Score("val", 0.9, 0.1)))
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    again = state_of("training.ema_decay=0.9")
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.history == state.history
    assert again.best_epoch == 1


def test_a_tensor_with_two_names_is_averaged_once() -> None:
    recipe = load_recipe(
        "tutorial", ["training.precision=fp32", "training.epochs=4", "training.ema_decay=0.5"]
    )
    layer = nn.Linear(2, 2)
    state = TrainingState(nn.Sequential(layer, layer), recipe, 5, CPU)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1)
    state.update_average()
    weight = state.newest_weight(state.step)
    found = state.evaluated_model.state_dict()
    assert torch.allclose(found["0.weight"], before + weight)
    assert found["0.weight"].data_ptr() == found["1.weight"].data_ptr()


class Cached(nn.Module):
    """Keeps a buffer that is not saved and has the size of its newest input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache = torch.ones(len(x))
        return self.layer(x)


def test_a_buffer_that_is_not_saved_is_not_averaged() -> None:
    recipe = load_recipe(
        "tutorial", ["training.precision=fp32", "training.epochs=4", "training.ema_decay=0.5"]
    )
    state = TrainingState(Cached(), recipe, 5, CPU)
    state.model(torch.zeros(3, 2))
    state.update_average()
    assert state.evaluated_model is not state.model
    assert dict(state.evaluated_model.named_buffers())["cache"].tolist() == [0.0]
