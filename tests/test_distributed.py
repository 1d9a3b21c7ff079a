"""Which pictures each of several processes gets. tests/faults starts real processes; here there are none."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import coloured_data
from simulated_device import CUDA, gpu_tensor, simulated_gpu
from thumbnet import distributed
from thumbnet.batches.batches import NO_LABEL, Batch, EvalBatches, TrainBatches
from thumbnet.batches.engines import MemoryEngine
from thumbnet.batches.statistics import Normalise
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.splits import ArraySplit
from thumbnet.distributed import (
    ALONE,
    Meetings,
    SyncBatchNorm2d,
    World,
    _forget_frames,
    joined,
    synchronise_norms,
)
from thumbnet.errors import InterruptedRunError, ThumbnetError
from thumbnet.models import build_model
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import AugmentSettings, ModelSettings, TrainingSettings

AUGMENT = AugmentSettings(flip="random", translate=2, cutout=4)
NORMALISE = Normalise(Preprocessing((16, 16), "pad", (0.4,) * 3, (0.2,) * 3), torch.device("cpu"))


def engine(count: int) -> MemoryEngine:
    split = coloured_data(count).splits["train"]
    assert isinstance(split, ArraySplit)
    images = torch.from_numpy(np.ascontiguousarray(split.images)).permute(0, 3, 1, 2)
    return MemoryEngine(images, torch.arange(count))  # the label is the index of the picture


def train_batches(
    count: int, batch_size: int, world: World, augment: AugmentSettings = AUGMENT
) -> TrainBatches:
    training = TrainingSettings(batch_size=batch_size)
    recipe = Recipe(seed=3, augment=augment, training=training)
    return TrainBatches(engine(count), NORMALISE, recipe, (16, 16), world)


def merged(batches: list[Batch]) -> Batch:
    """Put the shares of a batch together again, without the padding."""
    labels = torch.cat([batch.labels for batch in batches])
    images = torch.cat([batch.images for batch in batches])
    return Batch(images[labels != NO_LABEL], labels[labels != NO_LABEL], batches[0].total)


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize(("count", "batch_size"), [(60, 16), (61, 20), (33, 32)])
def test_the_shares_of_all_processes_together_are_the_batch_of_a_single_process(
    size: int, count: int, batch_size: int
) -> None:
    alone = list(train_batches(count, batch_size, ALONE).epoch(1))
    shares = [list(train_batches(count, batch_size, World(rank, size)).epoch(1)) for rank in range(size)]
    assert {len(own) for own in shares} == {len(alone)}
    for whole, *parts in zip(alone, *shares, strict=True):
        together = merged(parts)
        assert torch.equal(together.images, whole.images)
        assert torch.equal(together.labels, whole.labels)
        assert {part.total for part in parts} == {len(whole.labels)}
        assert all(len(part.labels) >= 1 for part in parts), (
            "a process without a picture would have no gradient"
        )


@pytest.mark.parametrize(("size", "count", "batch_size"), [(2, 60, 16), (8, 33, 32)])
def test_pictures_are_mixed_across_processes_as_in_a_single_one(
    size: int, count: int, batch_size: int
) -> None:
    mixing = AugmentSettings(flip="alternating", rotate=10, mixup=0.4, cutmix=1.0)
    alone = list(train_batches(count, batch_size, ALONE, mixing).epoch(1))
    shares = [
        list(train_batches(count, batch_size, World(rank, size), mixing).epoch(1)) for rank in range(size)
    ]
    for whole, *parts in zip(alone, *shares, strict=True):
        together = merged(parts)
        assert torch.equal(together.images, whole.images)
        assert torch.equal(together.labels, whole.labels)
        assert whole.mixed is not None
        partners, weights = [], []
        for part in parts:
            assert part.mixed is not None
            assert len(part.images) == len(part.labels) == len(part.mixed.labels) == len(part.mixed.share)
            absent = part.labels == NO_LABEL
            assert (part.mixed.labels[absent] == NO_LABEL).all()  # or padding would have a loss
            partners.append(part.mixed.labels[~absent])
            weights.append(part.mixed.share[~absent])
        assert torch.equal(torch.cat(partners), whole.mixed.labels)
        assert torch.equal(torch.cat(weights), whole.mixed.share)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_each_picture_is_evaluated_once(size: int) -> None:
    seen = []
    for rank in range(size):
        for batch in EvalBatches(engine(23), NORMALISE, batch_size=4, world=World(rank, size)).epoch():
            seen += batch.labels.tolist()
    assert seen == list(range(23))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_sample_is_shared_by_the_processes_that_evaluate(size: int) -> None:
    seen = []
    for rank in range(size):
        whole = EvalBatches(engine(23), NORMALISE, batch_size=4, world=World(rank, size))
        for batch in whole.sample(12).epoch():
            seen += batch.labels.tolist()
    assert seen == list(range(0, 23, 2))


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with joined() as world:
        assert world == ALONE
        assert world.is_first
        assert world.any(True)
        assert not world.any(False)
        assert world.from_first("x") == "x"


def test_norms_are_synchronised_in_place_and_keep_their_tensors() -> None:
    model = build_model(ModelSettings("resnet20", 0.5), 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    synchronise_norms(model, torch.device("cpu"))
    assert not [m for m in model.modules() if type(m) is nn.BatchNorm2d]
    assert [m for m in model.modules() if isinstance(m, SyncBatchNorm2d)]
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet20", "fastnet"])
def test_on_a_gpu_synchronised_norms_do_not_make_the_host_wait(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[Tensor] = []
    monkeypatch.setattr(dist, "all_reduce", sums.append)
    with simulated_gpu() as log:
        model = build_model(ModelSettings(name, 0.5), 3).to(CUDA).train()
        norms = [m for m in synchronise_norms(model, CUDA).modules() if isinstance(m, nn.BatchNorm2d)]
        images = gpu_tensor(torch.randn(4, 3, 32, 32))
        log.clear()
        model(images).sum().backward()
        assert (log.waits, log.copies) == ([], [])
        assert all(
            int(norm.num_batches_tracked) == 1 for norm in norms if norm.num_batches_tracked is not None
        )
    assert len(norms) >= 6
    assert all(type(norm) is SyncBatchNorm2d for norm in norms)
    assert len(sums) == 2 * len(norms)  # forwards and backwards


def test_on_a_gpu_norms_of_other_dimensions_are_synchronised_too_and_classes_of_ones_own_stay() -> None:
    class Active(nn.BatchNorm2d):
        """Also applies an activation, like timm's BatchNormAct2d."""

    def model() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(3), Active(3), nn.Flatten(), nn.BatchNorm1d(48))

    def types(device: torch.device) -> list[type]:
        return [type(layer) for layer in synchronise_norms(model(), device).children()]

    assert types(CUDA) == [SyncBatchNorm2d, Active, nn.Flatten, nn.SyncBatchNorm]
    assert types(torch.device("cpu")) == [SyncBatchNorm2d, Active, nn.Flatten, nn.BatchNorm1d]


def test_a_synchronised_norm_learns_and_remembers_like_an_ordinary_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one process, the sum over all processes is its own."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    plain, synced = nn.BatchNorm2d(4, momentum=0.3).double(), SyncBatchNorm2d(4, momentum=0.3).double()
    x, direction = torch.randn(2, 5, 4, 3, 3, dtype=torch.float64)
    found = []
    for norm in (plain, synced):
        images = x.clone().requires_grad_()
        (norm(images) * direction).sum().backward()
        tensors = [*norm.state_dict().values(), images.grad, norm.weight.grad, norm.bias.grad]
        found.append(tensors)
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected)


@dataclass(frozen=True)
class ThreadWorld(World):
    """A process of a world whose processes are threads."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    given: list[Tensor] = field(default_factory=list)

    def sum(self, values: Tensor) -> Tensor:
        self.given[self.rank] = values.clone()
        self.barrier.wait(60)
        total = torch.stack(self.given).sum(dim=0)
        self.barrier.wait(60)
        return values.copy_(total)


@dataclass
class Walk:
    """What one process saw: the steps of its meetings, when it was asked to stop, and where it stopped."""

    meetings: list[int] = field(default_factory=list)
    asked: float = 0.0
    stopped: tuple[int, float] = (0, 0.0)


def walk(world: World, pace: Callable[[int], float], ask_at: int, steps_per_epoch: int) -> Walk:
    """Walk through steps that take ``pace(step)`` seconds until a meeting says to stop."""
    now, seen = 1000.0 * world.rank, Walk()
    meetings = Meetings(world, 0, clock=lambda: now)
    asked = False
    for step in range(1, 3000):
        now += pace(step)
        if step == ask_at:
            asked, seen.asked = True, now
        if meetings.is_due(step, step % steps_per_epoch == 0):
            seen.meetings.append(step)
            other, stop = meetings.hold(step, False, asked)
            assert not other
            if stop:
                seen.stopped = (step, now)
                return seen
    raise AssertionError("it never stopped")


@pytest.mark.parametrize(
    ("pace", "most"),
    [
        (lambda step: 0.002, 30),
        (lambda step: 0.05, 220),
        (lambda step: 0.002 if step < 1000 else 0.0036, 40),
        (lambda step: 3.0, 2001),
    ],
    ids=["fast", "slow", "slower when pictures grow", "very slow"],
)
@pytest.mark.parametrize("size", [2, 3])
def test_processes_meet_seldom_and_stop_after_the_same_step(
    pace: Callable[[int], float], most: int, size: int
) -> None:
    barrier, given = threading.Barrier(size), [torch.zeros(0)] * size
    worlds = [ThreadWorld(rank, size, rank, barrier, given) for rank in range(size)]
    ask = [10_000] * (size - 1) + [2001]  # only the last one is asked to stop
    with ThreadPoolExecutor(size) as pool:
        walks = list(pool.map(walk, worlds, [pace] * size, ask, [700] * size))
    assert all(one.meetings == walks[0].meetings for one in walks)
    assert len({one.stopped[0] for one in walks}) == 1
    asked = walks[-1]
    assert asked.stopped[1] - asked.asked <= max(1.0, pace(2001))
    assert len(asked.meetings) <= most
    assert {700, 1400} <= set(asked.meetings), "they also meet at the end of an epoch"


def test_a_process_that_is_alone_asks_nobody_and_decides_after_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(World, "sum", None)
    meetings = Meetings(ALONE, 0)
    assert all(meetings.is_due(step, False) for step in range(1, 5))
    assert meetings.hold(3, True, False) == [True, False]


def test_a_synchronised_norm_evaluates_like_an_ordinary_one() -> None:
    plain, synced = nn.BatchNorm2d(4).eval(), SyncBatchNorm2d(4).eval()
    with torch.no_grad():
        for norm in (plain, synced):
            assert norm.running_mean is not None
            norm.running_mean.fill_(0.3)
    x = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(x), synced(x))
    assert F.mse_loss(synced(x), x) > 0


UNUSUAL: list[dict[str, Any]] = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}]


@pytest.mark.parametrize("settings", UNUSUAL, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_synchronised_norm_does_in_one_process_what_the_ordinary_one_does(
    settings: dict[str, Any], has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda _: None)
    plain = nn.BatchNorm2d(4, **settings)
    if not has_bias:
        plain.register_parameter("bias", None)
    model = nn.Sequential(copy.deepcopy(plain))
    synchronise_norms(model, torch.device("cpu"))
    synced = model[0]
    assert isinstance(synced, SyncBatchNorm2d)
    generator = torch.Generator().manual_seed(0)
    for training in (True, True, False):
        x = torch.randn(5, 4, 3, 3, generator=generator)
        torch.testing.assert_close(synced.train(training)(x), plain.train(training)(x))
    torch.testing.assert_close(synced.state_dict(), plain.state_dict())


def test_a_norm_with_two_names_is_synchronised_under_both() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.ModuleDict({"norm": norm, "again": norm})
    synchronise_norms(model, torch.device("cpu"))
    assert all(isinstance(one, SyncBatchNorm2d) for one in model.values())
    assert all(one.running_mean is norm.running_mean for one in model.values())


def test_after_a_loss_of_contact_no_frame_keeps_the_network() -> None:
    """The network must be freed before the group: see _forget_frames."""
    networks: list[weakref.ref[nn.Module]] = []

    def train() -> None:
        network = nn.Linear(2, 2)
        networks.append(weakref.ref(network))

        def measure() -> None:
            raise RuntimeError(f"gloo: the other side is gone, with {network}")

        try:
            measure()
        except RuntimeError as first:
            raise RuntimeError("gloo: so is the last message") from first

    with pytest.raises(RuntimeError) as caught:
        train()
    assert networks[0]() is not None
    _forget_frames(caught.value)
    assert networks[0]() is None


FULL = ThumbnetError("the disk is full")


@pytest.mark.parametrize(
    ("gpu", "error", "ended"),
    [
        (True, FULL, 0),
        (True, None, 1),
        (True, InterruptedRunError(Path("run"), 1, 4), 1),  # in all processes, after the same step
        (False, FULL, 1),
    ],
)
def test_after_an_error_a_process_with_a_gpu_does_not_wait_for_the_others(
    gpu: bool, error: ThumbnetError | None, ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL's groups end together: the process that failed would never tell its error."""
    begun: list[str] = []
    calls: list[str] = []
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(distributed, "_end_with_parent", lambda: None)
    monkeypatch.setattr(distributed, "_agree", lambda *_: "key")
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(None, 1, 2)]))
    monkeypatch.setattr(dist, "PrefixStore", lambda *_: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: begun.append("begun"))
    monkeypatch.setattr(dist, "new_group", lambda **_: None)
    monkeypatch.setattr(dist, "is_initialized", lambda: bool(begun))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))

    def train() -> None:
        with joined():
            if error is not None:
                raise error

    if error is not None:
        with pytest.raises(type(error)):
            train()
    else:
        train()
    assert len(calls) == ended


@pytest.mark.parametrize("given", ["10m", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("THUMBNET_TIMEOUT", given)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_end_with_parent", lambda: None)
    with pytest.raises(ThumbnetError, match=f"THUMBNET_TIMEOUT={given}: expected a number"), joined():
        pass


def test_a_script_with_a_group_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_end_with_parent", lambda: None)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda *_, **__: pytest.fail("the group was touched"))
    with (
        pytest.raises(ThumbnetError, match="has a process group already.*destroy_process_group"),
        joined(),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")  # a process alone needs no group
    with joined() as world:
        assert world.size == 1


@pytest.mark.parametrize(("size", "words"), [(None, "'WORLD_SIZE'"), ("two", "'two'")])
def test_variables_of_torchrun_that_are_missing_or_no_numbers_are_named(
    size: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with (
        pytest.raises(ThumbnetError, match=rf"{words}.*Start the script with torchrun, or unset RANK"),
        joined(),
    ):
        pass


def test_on_a_gpu_a_synchronised_norm_has_a_bounded_number_of_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each operation is a launch, and several processes train without CUDA graphs: see docs/scaling.md."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    launched: list[int] = []
    with simulated_gpu() as log:
        for synchronised in (False, True):
            model: nn.Module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(CUDA).train()
            if synchronised:
                synchronise_norms(model, CUDA)
            images = gpu_tensor(torch.randn(4, 3, 8, 8))
            log.clear()
            model(images).sum().backward()
            launched.append(sum(log.launches.values()))
    assert launched[1] - launched[0] <= 65
