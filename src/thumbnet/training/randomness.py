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
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    own = derive_seed(seed, "step", step, rank)
    for generator in generators:
        generator.manual_seed(own)  # torch.manual_seed also looks for other devices, for 0.3 ms
    if on_mps is not None:
        torch.mps.manual_seed(own)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)
