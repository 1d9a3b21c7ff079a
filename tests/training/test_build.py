"""A training's state at the start: its weights, class weights and first pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers import TINY, coloured_data
from simulated_device import CUDA, simulated_gpu
from thumbnet.batches.prepare import prepare
from thumbnet.errors import OutOfMemoryError, RecipeError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training import build as build_module
from thumbnet.training.build import balanced_weights, build_state, initial_pictures, passes
from training_helpers import refuse_seeds

CPU = torch.device("cpu")


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
    build_model = vars(build_module)["build_model"]

    def draws(*given: Any, **more: Any) -> nn.Module:
        drawn.append(torch.rand(3, generator=torch.cuda.default_generators[0]))
        return build_model(*given, **more)

    monkeypatch.setattr(build_module, "build_model", draws)
    with simulated_gpu():
        prepared = prepare(coloured_data(), recipe, CUDA)
        (generator,) = torch.cuda.default_generators
        for seed in (5, 6):
            generator.manual_seed(seed)
            before = generator.get_state()
            build_state(recipe, prepared, "rgb", CUDA)
            assert torch.equal(generator.get_state(), before)
    assert torch.equal(drawn[0], drawn[1])


def test_the_initial_pictures_are_training_pictures_without_augmentation() -> None:
    recipe = load_recipe("tutorial", [*TINY, "augment.cutout=8"])
    prepared = prepare(coloured_data(), recipe, CPU)
    pictures = initial_pictures(prepared)
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

    monkeypatch.setattr(build_module, "build_model", refuse)
    with pytest.raises(OutOfMemoryError, match="building the network.*\n.*model.width"):
        build_state(recipe, prepared, "rgb", CPU)


def test_a_pass_of_one_picture_that_the_network_cannot_normalise_is_refused_with_a_size_that_works() -> None:
    data = coloured_data(count=25)
    settings = [*TINY, "model.name=fastnet", "training.batch_size=12", "training.drop_last=false"]
    recipe = load_recipe("one-cycle", settings)
    with pytest.raises(RecipeError, match="--batch-size 13"):
        build_state(recipe, prepare(data, recipe, CPU), data.class_names, CPU)
    recipe = load_recipe("one-cycle", [*settings, "training.batch_size=13"])
    assert build_state(recipe, prepare(data, recipe, CPU), data.class_names, CPU).steps_per_epoch == 2


def test_passes_are_those_of_full_batches_and_of_the_rest() -> None:
    recipe = load_recipe(
        "one-cycle", ["training.batch_size=8", "training.micro_batch=4", "training.drop_last=false"]
    )
    assert passes(recipe, 21) == {4, 1}
    assert passes(recipe, 22) == {4, 2}
    assert passes(load_recipe("one-cycle", ["training.batch_size=8"]), 16) == {8}
