from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.batches.batches import NO_LABEL, Batch
from thumbnet.batches.mixing import Mixed
from thumbnet.distributed import World
from thumbnet.errors import DivergedError, OutOfMemoryError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import TrainingSettings
from thumbnet.training.state import TrainingState
from thumbnet.training.step import accumulate_gradients, pass_sizes, summed_loss, train_step
from training_helpers import Explosive

CPU = torch.device("cpu")


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 64, 3))


def state_of(*overrides: str, model: nn.Module | None = None) -> TrainingState:
    plain = ["training.precision=fp32", "training.epochs=4", "optimizer.weight_decay=0.0"]
    recipe = load_recipe("tutorial", [*plain, *overrides])
    return TrainingState(model or linear(), recipe, 3, CPU)


def batch_of(count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 3)


def test_a_step_moves_the_weights_by_the_rate_times_the_gradient() -> None:
    state, batch = (
        state_of("optimizer.momentum=0.0", "optimizer.nesterov=false", "optimizer.lr=0.4"),
        batch_of(),
    )
    twin = linear()
    expected = F.cross_entropy(twin(batch.images), batch.labels)
    expected.backward()
    loss = train_step(state, batch, factor=0.25)
    torch.testing.assert_close(loss, expected.detach())
    for mine, theirs in zip(state.model.parameters(), twin.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(mine.detach(), theirs.detach() - 0.1 * theirs.grad)


def test_a_step_forgets_the_gradient_of_the_one_before() -> None:
    state = state_of()
    train_step(state, batch_of(), 0.0)
    first = [p.grad.clone() for p in state.model.parameters() if p.grad is not None]
    train_step(state, batch_of(), 0.0)
    again = [p.grad for p in state.model.parameters() if p.grad is not None]
    assert len(first) == len(again) == 2
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_counts_right_answers_and_leaves_counting_steps_to_the_caller() -> None:
    state, batch = state_of(), batch_of()
    right = int((linear()(batch.images).argmax(dim=1) == batch.labels).sum())
    train_step(state, batch, 1.0)
    assert int(state.hits) == right
    assert state.step == 0


def test_the_network_sees_small_pictures_while_the_schedule_says_so() -> None:
    seen: list[tuple[int, ...]] = []

    class Watching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape[-2:]))
            return super().forward(x)  # type: ignore[no-untyped-call]

    state = state_of("schedule.small_until=0.5", "schedule.small_sides=[0.5]", model=Watching(*linear()))  # type: ignore[misc]
    large = Batch(torch.zeros(2, 3, 64, 64), torch.tensor([0, 1]))
    for state.step in (0, 5, 6, 11):
        train_step(state, large, 0.1)
    assert seen == [(32, 32), (32, 32), (64, 64), (64, 64)]


def test_steps_seeds_and_processes_draw_different_numbers_and_a_repeated_step_the_same() -> None:
    class Drawing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            drawn.append(torch.rand(4))
            return super().forward(x)  # type: ignore[no-untyped-call]

    drawn: list[Tensor] = []
    for seed, step, rank in ((0, 7, 0), (0, 8, 0), (1, 7, 0), (0, 7, 1), (0, 7, 0)):
        state = state_of(f"seed={seed}", model=Drawing(*linear()))  # type: ignore[misc]
        state.step, state.world = step, World(rank, 2)
        train_step(state, batch_of(), 0.1)
    *different, again = drawn
    assert torch.equal(again, different[0])
    for one, other in itertools.combinations(different, 2):
        assert not torch.equal(one, other)


def test_pictures_without_a_label_count_neither_in_loss_nor_gradient() -> None:
    whole, masked = state_of(), state_of()
    images, labels = batch_of(4).images, batch_of(4).labels
    loss = accumulate_gradients(whole, Batch(images, labels))
    hidden = Batch(torch.cat([images, images]), torch.cat([labels, torch.full((4,), NO_LABEL)]), total=4)
    torch.testing.assert_close(accumulate_gradients(masked, hidden), loss)
    for one, other in zip(whole.model.parameters(), masked.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_class_weight_multiplies_the_loss_of_its_pictures() -> None:
    logits, labels = torch.randn(4, 2), torch.tensor([0, 0, 0, 1])
    settings = TrainingSettings(label_smoothing=0.0)
    plain = [summed_loss(logits[i : i + 1], labels[i : i + 1], settings, None) for i in range(4)]
    weighted = summed_loss(logits, labels, settings, torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(weighted, 0.5 * sum(plain[:3]) + 3.0 * plain[3])


def mixed_batch(count: int = 8) -> Batch:
    batch = batch_of(count)
    share = torch.linspace(0, 1, count)
    return replace(batch, mixed=Mixed(batch.labels.roll(1), share))


def test_the_loss_of_a_mixed_picture_is_the_cross_entropy_with_both_classes() -> None:
    logits, own, other = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    share = torch.tensor([0.1, 0.5, 0.9, 1.0])
    settings = TrainingSettings(label_smoothing=0.2)
    targets = share[:, None] * F.one_hot(own, 3) + (1 - share)[:, None] * F.one_hot(other, 3)
    expected = F.cross_entropy(logits, targets, label_smoothing=0.2, reduction="sum")
    mixed = Mixed(other, share)
    torch.testing.assert_close(summed_loss(logits, own, settings, None, mixed), expected)
    weights = torch.tensor([0.5, 3.0, 1.0])
    plain = TrainingSettings(label_smoothing=0.0)
    surprise = -(targets * weights * logits.log_softmax(dim=1)).sum()
    torch.testing.assert_close(summed_loss(logits, own, plain, weights, mixed), surprise)


def test_the_loss_of_mixed_pictures_with_several_labels_is_that_of_their_mixed_labels() -> None:
    logits = torch.randn(3, 2)
    own = torch.tensor([[1, 0], [1, 1], [0, 0]], dtype=torch.int8)
    share, other = torch.tensor([0.3, 0.8, 0.5]), own.roll(1, dims=0)
    targets = share[:, None] * own + (1 - share)[:, None] * other
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    found = summed_loss(logits, own, TrainingSettings(label_smoothing=0.0), None, Mixed(other, share))
    torch.testing.assert_close(found, expected)


def test_mixed_pictures_give_the_same_gradient_in_parts() -> None:
    whole, parts = state_of(), state_of("training.micro_batch=3")
    batch = mixed_batch()
    loss = accumulate_gradients(whole, batch)
    torch.testing.assert_close(accumulate_gradients(parts, batch), loss)
    assert not torch.isclose(accumulate_gradients(state_of(), replace(batch, mixed=None)), loss)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert torch.equal(whole.hits, parts.hits)


def test_a_hit_on_a_mixed_picture_is_the_class_with_the_larger_share() -> None:
    state, batch = state_of(), mixed_batch()
    accumulate_gradients(state, batch)
    assert batch.mixed is not None
    leading = torch.cat([batch.labels.roll(1)[:4], batch.labels[4:]])
    assert int(state.hits) == int((state.model(batch.images).argmax(dim=1) == leading).sum())


def test_a_gradient_that_is_not_finite_is_skipped_although_the_loss_is() -> None:
    state = state_of(
        "training.on_nonfinite=skip", "training.max_skips=1", model=nn.Sequential(linear(), Explosive())
    )
    before = [p.detach().clone() for p in state.model.parameters()]
    assert bool(train_step(state, batch_of(), 1.0).isfinite())
    assert state.skipped == [1]
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    state.step = 1
    with pytest.raises(DivergedError, match="step 2"):
        train_step(state, batch_of(), 1.0)


@pytest.mark.parametrize(
    "refusal",
    [
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
)
def test_memory_refused_to_the_optimizer_is_our_error(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_of("training.micro_batch=6")

    def refuse() -> None:
        raise refusal

    monkeypatch.setattr(state.optimizer, "step", refuse)
    with pytest.raises(OutOfMemoryError, match=r"6 pictures in a forward pass.*\n.*--micro-batch 3"):
        train_step(state, batch_of(), 1.0)


def test_other_errors_of_a_network_pass_through() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train_step(state_of(model=Wrong()), batch_of(), 1.0)


def test_all_processes_make_as_many_passes_and_none_has_more_pictures_than_it_may() -> None:
    for total, processes, micro in itertools.product(range(1, 40), (1, 2, 3, 8), (0, 2, 3, 5, 32)):
        shares = [World(rank, processes).share(torch.arange(total)) for rank in range(processes)]
        own = [max(1, len(share)) for share in shares]  # one that does not count, if there is none
        sizes = [pass_sizes(one, total, micro, processes) for one in own]
        assert len({len(one) for one in sizes}) == 1
        assert [sum(one) for one in sizes] == own
        assert all(0 < size <= (micro or total) for one in sizes for size in one)


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [
        ([65], [[32, 32, 1]]),
        ([35, 34], [[32, 3], [32, 2]]),
        ([33, 32], [[32, 1], [16, 16]]),
        ([5, 4], [[5], [4]]),
    ],
)
def test_a_share_is_divided_otherwise_only_where_it_needs_another_pass(
    shares: list[int], sizes: list[list[int]]
) -> None:
    assert [pass_sizes(own, sum(shares), 32, len(shares)) for own in shares] == sizes


def test_a_share_that_is_smaller_by_a_picture_takes_as_many_passes_as_the_others() -> None:
    passes: list[list[int]] = [[], []]
    for rank, own in enumerate((5, 4)):
        state = state_of("training.micro_batch=4")
        state.world = World(rank, 2)
        state.model.register_forward_hook(lambda *args, rank=rank: passes[rank].append(len(args[-1])))
        accumulate_gradients(state, replace(mixed_batch(own), total=9))
    assert passes == [[4, 1], [2, 2]]
