"""Random numbers that a network draws in a training step, such as dropout's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from thumbnet.seeds import derive_seed


@contextmanager
def seeded_step(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """Within, torch's global generators are seeded for one step. After it, they are as they were before.

    Every step has a seed of its own, so a resumed training draws what the uninterrupted one would have drawn,
    and the caller's random numbers stay the caller's.

    Args:
        seed: the recipe's.
        step: from 0.
        rank: of the process: each one draws for other pictures.
        device: on which the network computes.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "step", step, rank))
        yield
