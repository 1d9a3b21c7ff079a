"""Settings that make a search take seconds."""

from __future__ import annotations

TINY_SEARCH = [
    "model.width=0.125",
    "training.epochs=2",
    "training.batch_size=16",
    "training.precision=fp32",
    "evaluation.tta=none",
    "augment.translate=1",
    "augment.cutout=0",
    "augment.contrast=0.1",
    "training.label_smoothing=0.1",
]
"""A small network for small pictures. What is named here is not searched, so the page has few charts."""
