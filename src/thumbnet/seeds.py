"""Derive a separate seed for every random choice from the recipe's seed, so no random state is kept."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *path: str | int) -> int:
    """Derive an independent seed, 0 to 2**63 - 1, for the purpose that ``path`` names.

    The seed is a hash, so neighbouring seeds have nothing in common.
    """
    text = ":".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
