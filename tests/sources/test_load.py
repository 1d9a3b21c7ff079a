from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from thumbnet.data.splits import ArraySplit
from thumbnet.sources.load import load_data


def test_digits_are_scikit_learns_enlarged_to_32x32_rgb() -> None:
    data = load_data("digits")
    expected = load_digits()
    pairs = []
    for split in data.splits.values():
        assert isinstance(split, ArraySplit)
        assert split.images.shape[1:] == (32, 32, 3)
        small = split.images[:, ::4, ::4, 0]
        assert np.array_equal(
            split.images, np.repeat(np.kron(small, np.ones((4, 4), np.uint8))[..., None], 3, 3)
        )
        pairs += [(p.tobytes(), int(c)) for p, c in zip(small, split.labels, strict=True)]
    levels = np.minimum(expected.images * 16, 255).astype(np.uint8)
    assert sorted(pairs) == sorted(
        (p.tobytes(), int(c)) for p, c in zip(levels, expected.target, strict=True)
    )


def test_the_digits_split_is_fixed_and_stratified() -> None:
    data = load_data("digits")
    shares = np.bincount(data.splits["test"].labels) / np.bincount(load_digits().target)
    assert np.allclose(shares, 0.2, atol=0.01)
    assert data.fingerprint() == load_data("digits").fingerprint()


def test_a_fingerprint_changes_with_any_pixel_or_label() -> None:
    data = load_data("digits")
    before = data.fingerprint()
    split = data.splits["train"]
    assert isinstance(split, ArraySplit)
    split.images = split.images.copy()
    split.images[3, 5, 5, 1] ^= 1
    assert data.fingerprint() != before
    split.images[3, 5, 5, 1] ^= 1
    assert data.fingerprint() == before
    split.labels[0] = (split.labels[0] + 1) % 10
    assert data.fingerprint() != before
