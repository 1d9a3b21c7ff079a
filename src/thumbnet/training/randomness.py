"""Random numbers of torch's global generators in a step, such as those that a network's dropout draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from thumbnet.hardware import seeded
from thumbnet.seeds import derive_seed


@contextmanager
def seeded_step(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """Seed the random numbers that a network draws in one step, such as dropout's; see
    :func:`~thumbnet.hardware.seeded`.

    Every step has its own seed, so a resumed training draws the same numbers as an uninterrupted one.

    Args:
        seed: the recipe's seed.
        step: counted from 0.
        rank: the process's rank. Each process has other pictures, so it needs other numbers.
        device: where the network computes.
    """
    with seeded(derive_seed(seed, "step", step, rank), device):
        yield
