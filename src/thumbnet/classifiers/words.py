"""Put a prediction into words that claim no more than its probability. Imports no torch.

The words assume calibrated probabilities: of all pictures for which a network says 80 %, about 80 % are of
the class that it names. The bands follow from that:

```text
certainty   probability    words                          wrong, on average
sure        95 % or more   frog                           at most 1 in 20 pictures
probable    75 % to 95 %   probably frog, or else toad    at most 1 in 4
possible    50 % to 75 %   perhaps frog, or else toad     at most 1 in 2
unsure      below 50 %     not sure: frog or toad         more often than right
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

Certainty: TypeAlias = Literal["sure", "probable", "possible", "unsure"]

SURE, PROBABLE, POSSIBLE = 0.95, 0.75, 0.5  # the lowest probability of each band
_ADVERBS: dict[Certainty, str] = {
    "sure": "",
    "probable": "probably ",
    "possible": "perhaps ",
    "unsure": "perhaps ",
}


def certainty(probability: float) -> Certainty:
    """Return the band of the most probable class's probability, from 0 to 1.

    >>> certainty(0.97), certainty(0.39)
    ('sure', 'unsure')
    """
    if probability >= SURE:
        return "sure"
    if probability >= PROBABLE:
        return "probable"
    return "possible" if probability >= POSSIBLE else "unsure"  # also if it is NaN


def in_words(
    labels: Sequence[str],
    probabilities: Sequence[float],
    *,
    unlike: bool = False,
    found: Sequence[str] | None = None,
) -> str:
    """Say which class a picture has, or may have. The runner-up is named unless the answer is sure.

    >>> in_words(["frog", "toad"], [0.39, 0.31])
    'not sure: frog or toad'

    Args:
        labels: class names, most probable first.
        probabilities: their probabilities, 0 to 1.
        unlike: whether the picture is unlike the training pictures. It may then be of another class, and its
            probability means little.
        found: if the network gives a picture several labels, those that it gives this one; else None.
    """
    first = labels[0]
    if unlike:
        return f"unlike the training pictures; most like {first}"
    if found is not None:
        shares = dict(zip(labels, probabilities, strict=False))
        return (
            ", ".join(f"{_ADVERBS[certainty(shares[name])]}{name}" for name in found) or "none of the labels"
        )
    if len(labels) == 1:
        return first
    band = certainty(probabilities[0])
    if band == "sure":
        return first
    if band == "unsure":
        return f"not sure: {first} or {labels[1]}"
    return f"{_ADVERBS[band]}{first}, or else {labels[1]}"
