from __future__ import annotations

import pytest
import torch

from thumbnet.batches.mixing import Mixed, draw_mixing, inside_box, mix
from thumbnet.recipes.settings import AugmentSettings


def drawn(
    settings: AugmentSettings, count: int = 4000, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return draw_mixing(settings, count, (32, 24), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_of_mixup_follow_the_beta_distribution(alpha: float) -> None:
    partner, share, box = drawn(AugmentSettings(mixup=alpha))
    assert sorted(partner.tolist()) == list(range(4000))
    assert not box.any()
    assert abs(float(share.mean()) - 0.5) < 0.03
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(share.var()) == pytest.approx(variance, rel=0.1)


def test_a_tiny_alpha_mixes_nothing_and_is_finite() -> None:
    _, share, _ = drawn(AugmentSettings(mixup=1e-9))
    assert share.isfinite().all()
    assert ((share < 1e-3) | (share > 1 - 1e-3)).all()


def test_the_share_of_cutmix_is_the_area_that_stays() -> None:
    _, share, box = drawn(AugmentSettings(cutmix=1.0))
    top, left, bottom, right = box.unbind(dim=1)
    assert float(torch.minimum(top, left).min()) >= 0
    assert int(bottom.max()) <= 32
    assert int(right.max()) <= 24
    area = inside_box(box, 32, 24).sum(dim=(1, 2))
    torch.testing.assert_close(share, 1 - area / (32 * 24))
    assert float(share.min()) < 0.1 < 0.9 < float(share.max())


def test_with_both_every_picture_gets_one_of_the_two() -> None:
    _, share, box = drawn(AugmentSettings(mixup=8.0, cutmix=1.0))
    pasted = inside_box(box, 32, 24).sum(dim=(1, 2)) > 0
    assert 0.4 < float(pasted.float().mean()) < 0.6
    assert float(share[~pasted].var()) < 0.03  # the empty rectangles of CutMix are few


def test_the_same_generator_draws_the_same_mixture() -> None:
    settings = AugmentSettings(mixup=0.4, cutmix=1.0)
    for one, other in zip(drawn(settings, 9, 5), drawn(settings, 9, 5), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(drawn(settings, 9, 5)[1], drawn(settings, 9, 6)[1])


def test_pictures_are_blended_or_get_a_rectangle_of_their_partner() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 6).contiguous()
    partner, share = torch.tensor([2, 3, 1]), torch.tensor([0.25, 0.75, 0.5])
    blended = mix(images, partner, share, None)
    assert blended[:, 0, 0, 0].tolist() == [0.25 * 0 + 0.75 * 2, 0.75 * 1 + 0.25 * 3, 0.5 * 2 + 0.5 * 1]
    box = torch.tensor([[1, 2, 3, 6], [0, 0, 0, 0], [0, 0, 8, 6]])
    both = mix(images, partner, share, box)
    assert both[0, 0].unique().tolist() == [0, 2]
    assert (both[0, 0, 1:3, 2:6] == 2).all()
    assert int((both[0, 0] == 2).sum()) == 8
    assert (both[1] == 1.5).all()  # no rectangle, so it is blended
    assert (both[2] == 1).all()


def test_the_leading_label_has_the_larger_share() -> None:
    own = torch.tensor([0, 1, 2])
    mixed = Mixed(torch.tensor([5, 6, 7]), torch.tensor([0.9, 0.5, 0.1]))
    assert mixed.leading(own).tolist() == [0, 1, 7]
    several = Mixed(torch.zeros(3, 2, dtype=torch.int8), mixed.share)
    assert several.leading(torch.ones(3, 2, dtype=torch.int8)).tolist() == [[1, 1], [1, 1], [0, 0]]


def test_a_mixture_is_split_like_its_batch() -> None:
    parts = Mixed(torch.arange(5), torch.linspace(0, 1, 5)).split([2, 2, 1])
    assert [part.labels.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [len(part.share) for part in parts] == [2, 2, 1]
