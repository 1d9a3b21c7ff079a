"""Random numbers that a network draws while it trains."""

from __future__ import annotations

import torch

from thumbnet.training.randomness import seeded_step

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
