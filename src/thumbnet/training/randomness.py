"""Random numbers of torch's global generators: a network's first weights, and what it draws in a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from thumbnet.seeds import derive_seed

CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of ``device``, and restore their states afterwards.

    ``torch.manual_seed`` would also look for all other devices, for 0.3 ms, and seed them. Their numbers are
    the caller's.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    for generator in generators:
        generator.manual_seed(seed)
    if on_mps is not None:
        torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)


@contextmanager
def seeded_step(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """Seed the random numbers that a network draws in one step, such as dropout's; see :func:`seeded`.

    Every step has its own seed, so a resumed training draws the same numbers as an uninterrupted one.

    Args:
        seed: the recipe's seed.
        step: counted from 0.
        rank: the process's rank. Each process has other pictures, so it needs other numbers.
        device: where the network computes.
    """
    with seeded(derive_seed(seed, "step", step, rank), device):
        yield
