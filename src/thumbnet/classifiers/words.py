"""Put a prediction into words that claim no more than its probability. Imports no torch.

The words assume calibrated probabilities: of all pictures for which a network says 80 %, about 80 % are of
the class that it names. The bands follow from that:

=============  ============  ===================================  ==============================
certainty      probability   words                                wrong, on average
=============  ============  ===================================  ==============================
``sure``       95 % or more  frog                                 at most 1 in 20 per picture
``probable``   75 % to 95 %  probably frog, or else toad          at most 1 in 4
``possible``   50 % to 75 %  perhaps frog, or else toad           at most 1 in 2
``unsure``     below 50 %    not sure: frog or toad               more often than right
=============  ============  ===================================  ==============================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

Certainty: TypeAlias = Literal["sure", "probable", "possible", "unsure"]

SURE, PROBABLE, POSSIBLE = 0.95, 0.75, 0.5  # the lowest probability of each band


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


def in_words(labels: Sequence[str], probabilities: Sequence[float], *, unlike: bool = False) -> str:
    """Say which class a picture has, or may have. The runner-up is named unless the answer is sure.

    >>> in_words(["frog", "toad"], [0.39, 0.31])
    'not sure: frog or toad'

    Args:
        labels: class names, most probable first.
        probabilities: their probabilities, 0 to 1.
        unlike: whether the picture is unlike the training pictures. It may then be of another class, and its
            probability means little.
    """
    first = labels[0]
    if unlike:
        return f"unlike the training pictures; most like {first}"
    if len(labels) == 1:
        return first
    runner_up = labels[1]
    return {
        "sure": first,
        "probable": f"probably {first}, or else {runner_up}",
        "possible": f"perhaps {first}, or else {runner_up}",
        "unsure": f"not sure: {first} or {runner_up}",
    }[certainty(probabilities[0])]
