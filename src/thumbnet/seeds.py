"""Random choices that need no memory: each has a seed of its own, made of the recipe's and what it is for."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *path: str | int) -> int:
    """An independent seed for a named purpose: a hash, so that neighbouring seeds share nothing."""
    text = ":".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
