from __future__ import annotations

import numpy as np
import pytest
import torch

from thumbnet.batches.statistics import Normalise, channel_statistics, count_values
from thumbnet.data.rendering import Preprocessing

CPU = torch.device("cpu")


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 4, 5), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("count", [1, 1000, 1001])
def test_every_value_is_counted_in_its_own_channel(count: int) -> None:
    images = pictures(count)
    counts = count_values(images)
    assert (counts.shape, counts.dtype) == ((3, 256), torch.int64)
    for channel in range(3):
        expected = np.bincount(images[:, channel].numpy().ravel(), minlength=256)
        assert counts[channel].tolist() == expected.tolist()


def test_mean_and_deviation_equal_numpys_in_any_order_of_the_pictures() -> None:
    images = pictures(700)
    mean, std = channel_statistics(count_values(images))
    parts = images.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(mean, parts.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(std, parts.std(axis=1), atol=1e-6)
    assert channel_statistics(count_values(images.flip(0))) == (mean, std)


def test_a_constant_channel_has_the_deviation_of_one_grey_level() -> None:
    images = pictures(3)
    images[:, 1] = 77
    mean, std = channel_statistics(count_values(images))
    assert mean[1] == round(77 / 255, 6)
    assert std[1] == round(1 / 255, 6)


def test_normalising_follows_its_formula_and_does_not_change_its_input() -> None:
    mean, std = (0.5, 0.1, 0.9), (0.2, 0.3, 0.4)
    normalise = Normalise(Preprocessing((4, 5), "pad", mean, std), CPU)
    images = pictures(6)
    before = images.clone()
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(normalise(images).double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(images, before)
    assert normalise.mean_pixel.tolist() == [128, 26, 230]


@pytest.mark.parametrize(
    "shape", [(3, 3, 5, 7), (2, 3, 32, 32), (0, 3, 4, 4), (1, 3, 1, 1), (4, 3, 20, 1)], ids=str
)
def test_normalising_gives_the_same_bits_in_any_order_in_memory(shape: tuple[int, int, int, int]) -> None:
    """Pictures that are stored channels last are normalised a row at a time."""
    normalise = Normalise(Preprocessing((4, 5), "pad", (0.49, 0.48, 0.44), (0.24, 0.23, 0.26)), CPU)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain, last = normalise(images), normalise(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)
