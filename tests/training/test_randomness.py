"""Random numbers that a network draws while it trains."""

from __future__ import annotations

import pytest
import torch

from simulated_device import CUDA, simulated_gpu
from thumbnet.hardware import seeded
from thumbnet.training.randomness import seeded_step
from training_helpers import refuse_seeds

CPU = torch.device("cpu")


def drawn(seed: int, step: int, rank: int = 0) -> torch.Tensor:
    with seeded_step(seed, step, rank, CPU):
        return torch.rand(4)


def test_a_step_draws_the_same_numbers_whenever_it_is_done() -> None:
    first = drawn(0, 7)
    drawn(0, 8)
    assert torch.equal(drawn(0, 7), first)


def test_steps_seeds_and_processes_draw_different_numbers() -> None:
    different = [drawn(0, 0), drawn(0, 1), drawn(1, 0), drawn(0, 0, rank=1)]
    for i, one in enumerate(different):
        assert not any(torch.equal(one, other) for other in different[:i])


def test_the_callers_random_numbers_stay_as_they_were() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn(0, 0)
    assert torch.equal(torch.rand(3), expected)


def test_only_the_cpu_and_the_device_are_seeded_and_both_go_on_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_seeds(monkeypatch)
    with simulated_gpu():
        generators = [torch.default_generator, torch.cuda.default_generators[0]]
        states = [generator.get_state() for generator in generators]
        for _ in range(2):
            with seeded(3, CUDA):
                assert [generator.initial_seed() for generator in generators] == [3, 3]
                torch.rand(2)
        assert all(map(torch.equal, [generator.get_state() for generator in generators], states))
