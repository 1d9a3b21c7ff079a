"""Seeds for random choices: each purpose gets its own, derived from the recipe's, so no state is kept."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *path: str | int) -> int:
    """An independent seed for the purpose that ``path`` names: 0 to 2**63 - 1.

    It is a hash, so neighbouring seeds have nothing in common.
    """
    text = ":".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
