from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import nn

from helpers import TINY, coloured_data
from simulated_device import CUDA, simulated_gpu
from thumbnet.batches.prepare import prepare
from thumbnet.errors import DivergedError, OutOfMemoryError, RecipeError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training import state as state_module
from thumbnet.training.state import (
    EpochResult,
    Score,
    TrainingState,
    balanced_weights,
    build_state,
    epoch_result_from_dict,
    first_pictures,
)
from training_helpers import refuse_seeds

CPU = torch.device("cpu")


def state_of(*overrides: str) -> TrainingState:
    torch.manual_seed(0)
    recipe = load_recipe("tutorial", ["training.precision=fp32", "training.epochs=4", *overrides])
    return TrainingState(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), recipe, 5, CPU)


def result_of(epoch: int, score: Score | None = None, sample: Score | None = None) -> EpochResult:
    return EpochResult(epoch, 5 * epoch, 1.0, 0.1, 2.0, 30.0, score, 0.5, sample)


def test_a_results_row_names_the_split_of_its_score_or_of_its_sample() -> None:
    row = result_of(1, Score("val", 0.75, 0.3, 40)).row()
    assert (row["val_accuracy"], row["val_loss"], row["val_pictures"]) == (0.75, 0.3, 40)
    assert not {"score", "sample"} & row.keys()
    sampled = result_of(1, None, Score("test", 0.5, 0.9, 10)).row()
    assert sampled["test_accuracy"] == 0.5
    assert not [key for key in result_of(1).row() if key.endswith("_pictures")]


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


def test_equal_scores_are_told_apart_by_the_loss_and_equal_losses_by_the_accuracy() -> None:
    a, b = Score("val", 0.9, 0.4, balanced_accuracy=0.7), Score("val", 0.9, 0.5, balanced_accuracy=0.7)
    for choose_by in ("accuracy", "balanced-accuracy", "loss"):
        assert a.rank(choose_by) > b.rank(choose_by)
    assert Score("val", 0.9, 0.4).rank("loss") > Score("val", 0.8, 0.4).rank("loss")
    unknown = Score("val", 0.9, math.nan, balanced_accuracy=0.7)
    for choose_by in ("accuracy", "balanced-accuracy", "loss"):
        assert unknown.rank(choose_by) < b.rank(choose_by)


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


def test_a_score_of_an_earlier_version_has_no_balanced_accuracy() -> None:
    state = state_of()
    state.close_epoch(result_of(1, Score("val", 0.9, 0.1, 4)))
    (saved,) = state.state_dict()["history"]
    del saved["score"]["balanced_accuracy"]
    again = epoch_result_from_dict(saved)
    assert again == state.history[0]
    assert "val_balanced_accuracy" not in again.row()
    assert result_of(1, ACCURATE).row()["val_balanced_accuracy"] == 0.6


def test_a_result_survives_being_a_dictionary() -> None:
    state = state_of()
    for result in (result_of(1, Score("val", 0.9, 0.1, 4)), result_of(2, None, Score("val", 0.8, 0.2, 2))):
        state.close_epoch(result)
    assert [epoch_result_from_dict(saved) for saved in state.state_dict()["history"]] == state.history


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


def test_classes_without_pictures_have_finite_weights() -> None:
    weights = balanced_weights(torch.tensor([0, 0, 0, 2]), 4)
    assert bool(weights.isfinite().all())
    torch.testing.assert_close(weights[[0, 2]], torch.tensor([4 / 6, 2.0]))


def test_building_a_state_is_decided_by_the_seed_and_leaves_the_callers_generator_alone() -> None:
    data = coloured_data()

    def weights(seed: int) -> torch.Tensor:
        recipe = load_recipe("tutorial", [*TINY, f"seed={seed}"])
        state = build_state(recipe, prepare(data, recipe, CPU), "rgb", CPU)
        return torch.cat([p.detach().flatten() for p in state.model.parameters()])

    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = weights(0)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_a_state_on_a_gpu_is_decided_by_the_seed_and_leaves_the_gpus_generator_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_seeds(monkeypatch)
    recipe, drawn = load_recipe("tutorial", TINY), list[torch.Tensor]()
    build_model = vars(state_module)["build_model"]

    def draws(*given: Any, **more: Any) -> nn.Module:
        drawn.append(torch.rand(3, generator=torch.cuda.default_generators[0]))
        return build_model(*given, **more)

    monkeypatch.setattr(state_module, "build_model", draws)
    with simulated_gpu():
        prepared = prepare(coloured_data(), recipe, CUDA)
        (generator,) = torch.cuda.default_generators
        for seed in (5, 6):
            generator.manual_seed(seed)
            before = generator.get_state()
            build_state(recipe, prepared, "rgb", CUDA)
            assert torch.equal(generator.get_state(), before)
    assert torch.equal(drawn[0], drawn[1])


def test_the_first_pictures_are_training_pictures_without_augmentation() -> None:
    recipe = load_recipe("tutorial", [*TINY, "augment.cutout=8"])
    prepared = prepare(coloured_data(), recipe, CPU)
    pictures = first_pictures(prepared)
    engine = prepared.train.engine
    (everything,) = engine.fetch([torch.arange(len(engine.labels))])
    plain = prepared.train.normalise(everything)
    assert pictures.shape == plain.shape
    assert sorted(pictures.sum(dim=(1, 2, 3)).tolist()) == pytest.approx(
        sorted(plain.sum(dim=(1, 2, 3)).tolist()), abs=1e-2
    )


def test_memory_refused_to_a_new_network_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("tutorial", TINY)
    prepared = prepare(coloured_data(), recipe, CPU)

    def refuse(*_: object, **__: object) -> nn.Module:
        raise MemoryError

    monkeypatch.setattr(state_module, "build_model", refuse)
    with pytest.raises(OutOfMemoryError, match="building the network.*\n.*model.width"):
        build_state(recipe, prepared, "rgb", CPU)


def test_a_pass_of_one_picture_that_the_network_cannot_normalise_is_refused_with_a_size_that_works() -> None:
    data = coloured_data(count=25)
    settings = [*TINY, "model.name=fastnet", "training.batch_size=12", "training.drop_last=false"]
    recipe = load_recipe("one-cycle", settings)
    cpu = torch.device("cpu")
    with pytest.raises(RecipeError, match="--batch-size 13"):
        state_module.build_state(recipe, prepare(data, recipe, cpu), data.class_names, cpu)
    recipe = load_recipe("one-cycle", [*settings, "training.batch_size=13"])
    assert (
        state_module.build_state(recipe, prepare(data, recipe, cpu), data.class_names, cpu).steps_per_epoch
        == 2
    )


def test_passes_are_those_of_full_batches_and_of_the_rest() -> None:
    recipe = load_recipe(
        "one-cycle", ["training.batch_size=8", "training.micro_batch=4", "training.drop_last=false"]
    )
    assert state_module.passes(recipe, 21) == {4, 1}
    assert state_module.passes(recipe, 22) == {4, 2}
    assert state_module.passes(load_recipe("one-cycle", ["training.batch_size=8"]), 16) == {8}


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
