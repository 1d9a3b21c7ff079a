"""Random numbers that a network draws in a training step, such as dropout's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from thumbnet.seeds import derive_seed


@contextmanager
def seeded_step(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for one step, and restore their states afterwards.

    Every step has its own seed, so a resumed training draws the same numbers as an uninterrupted one, and the
    caller's generators do not change.

    Args:
        seed: the recipe's seed.
        step: counted from 0.
        rank: the process's rank. Each process has other pictures, so it needs other numbers.
        device: where the network computes.
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
