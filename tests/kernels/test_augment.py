from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernel_helpers import needs_kernels, on_threads
from thumbnet.batches.augment import mirror, translate
from thumbnet.kernels.augment import can_move, mirror_and_translate

pytestmark = needs_kernels


def draw(count: int, height: int, width: int, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, height, width, 3), generator=generator, dtype=torch.uint8)
    flip = torch.rand(count, generator=generator) < 0.5
    shift = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
    return images.permute(0, 3, 1, 2), flip, shift


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("reflect", [True, False])
@pytest.mark.parametrize("size", [(60, 16, 20, 5), (7, 9, 1, 3), (1, 1, 6, 8), (3, 5, 5, 20)], ids=str)
def test_moved_pictures_equal_those_of_the_reference(
    size: tuple[int, int, int, int], reflect: bool, threads: int
) -> None:
    images, flip, shift = draw(*size)
    assert can_move(images)
    with on_threads(threads):
        moved = mirror_and_translate(images, flip, shift, reflect)
    assert torch.equal(moved, translate(mirror(images, flip), shift, reflect))


def test_a_row_too_wide_for_a_stack_is_moved() -> None:
    images, flip, shift = draw(2, 1, 3_000_000, 5)  # 12 MB of columns, but a stack has only 8 MB
    moved = mirror_and_translate(images, flip, shift, reflect=True)
    assert torch.equal(moved, translate(mirror(images, flip), shift, reflect=True))


def test_the_kernel_moves_only_rgb_bytes_stored_channels_last() -> None:
    images, _, _ = draw(2, 4, 4, 1)
    assert can_move(images)
    assert not can_move(images.contiguous())
    assert not can_move(images.float())
    assert not can_move(images[:, :1])
    assert not can_move(images[:0])
    assert not can_move(images.to("meta"))
    assert not can_move(images.as_subclass(Marked))


class Marked(Tensor):
    """A subclass may keep its values elsewhere."""
