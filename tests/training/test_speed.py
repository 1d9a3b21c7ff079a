from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from helpers import coloured_data
from thumbnet.batches.batches import Batch
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.distributed import World
from thumbnet.models import build_model
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import SMALLEST_SIDE
from thumbnet.training import graphed
from thumbnet.training import speed as module
from thumbnet.training.recording import Recorder
from thumbnet.training.speed import _Timer, measure_speed
from thumbnet.training.state import TrainingState
from training_helpers import Clock

CPU = torch.device("cpu")
QUICK = ["model.width=0.125", "data.engine=memory", "training.precision=fp32"]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(coloured_data(400, 32), load_recipe("fast", ["training.batch_size=20"]), CPU)


class FakeTime(Clock):
    """Time that passes only where ``sleep`` is called: other work on this computer does not matter."""

    perf_counter = Clock.__call__

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Priced(_Timer):
    """Each work takes what it costs: by the number of pixels, and twice as much forwards and backwards."""

    clock: FakeTime

    def train_on(self, batch: Batch) -> None:
        super().train_on(batch)
        self.clock.sleep(2e-6 * batch.images.numel())

    def classify(self, batch: Batch) -> None:
        super().classify(batch)
        self.clock.sleep(1e-6 * batch.images.numel())

    def optimize(self, batch: Batch) -> None:
        super().optimize(batch)
        self.clock.sleep(0.03)


@pytest.mark.parametrize(("batch_size", "weights"), [(20, "none"), (300, "none"), (20, "balanced")])
def test_measuring_gives_the_cost_of_a_picture_and_leaves_random_numbers_alone(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, batch_size: int, weights: str
) -> None:
    Priced.clock = FakeTime()
    monkeypatch.setattr(module, "time", Priced.clock)
    monkeypatch.setattr(module, "_Timer", Priced)
    settings = [f"training.batch_size={batch_size}", f"training.class_weights={weights}"]
    recipe = load_recipe("fast", [*QUICK, *settings])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    speed = measure_speed(recipe, prepared, 3, CPU)
    assert torch.equal(torch.rand(2), expected)
    assert speed.per_picture == pytest.approx({(side, side): 2e-6 * 3 * side**2 for side in (20, 24, 32)})
    assert speed.evaluating == pytest.approx(1e-6 * 3 * 32**2)
    assert speed.per_step == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("override", "size", "records", "replayed", "optimizer"),
    [
        ("training.graph=auto", 1, True, True, "muon"),
        ("training.graph=auto", 1, True, True, "adamw"),
        ("training.graph=auto", 1, False, False, "muon"),
        ("training.graph=auto", 1, False, False, "adamw"),
        # The optimizer is not asked for anything that a graph needs.
        ("training.graph=off", 1, True, False, "muon"),
        ("training.micro_batch=10", 1, True, False, "muon"),
        ("training.graph=auto", 2, True, False, "muon"),
    ],
    ids=[
        "as graphs, muon",
        "as graphs, adamw",
        "no recording, muon",
        "no recording, adamw",
        "no graphs",
        "in parts",
        "two processes",
    ],
)
def test_steps_that_will_be_replayed_are_timed_as_replays(
    override: str,
    size: int,
    records: bool,
    replayed: bool,
    optimizer: str,
    prepared: Prepared,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replay takes a tenth of the time that it takes to launch the operations one by one."""
    Priced.clock = clock = FakeTime()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "_Timer", Priced)
    monkeypatch.setattr(graphed, "DEVICES", ("cpu",))
    monkeypatch.setattr(prepared.train, "world", World(0, size))

    def record(self: Recorder, work: Callable[[], None]) -> Callable[[], None]:
        if not records:
            raise RuntimeError("operation not permitted when stream is capturing")

        started = clock.now
        work()  # here, and not in a replay
        took, clock.now = clock.now - started, started
        return partial(clock.sleep, took / 10)

    monkeypatch.setattr(Recorder, "record", record)
    learning = ["optimizer.name=adamw", "optimizer.lr=0.001", "optimizer.groups=[]"]
    settings = [*QUICK, "training.batch_size=20", override, *(learning if optimizer == "adamw" else [])]
    speed = measure_speed(load_recipe("fast", settings), prepared, 3, CPU)
    share = 0.1 if replayed else 1
    expected = {(side, side): share * 2e-6 * 3 * side**2 for side in (20, 24, 32)}
    assert speed.per_picture == pytest.approx(expected)
    assert speed.per_step == pytest.approx(share * 0.03)
    assert speed.evaluating == pytest.approx(1e-6 * 3 * 32**2)  # an evaluation is not recorded


def test_measuring_takes_a_moment(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    Priced.clock = clock = FakeTime()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "_Timer", Priced)
    begun = clock.now
    speed = measure_speed(load_recipe("fast", [*QUICK, "training.batch_size=20"]), prepared, 3, CPU)
    assert clock.now - begun < 5
    assert set(speed.per_picture) == {(20, 20), (24, 24), (32, 32)}


class Watched(_Timer):
    """Keeps how many pictures each timed batch has. All have the smallest size, which is the fastest to compute."""

    counts: list[int]

    def batch(self, size: tuple[int, int], count: int) -> Batch:
        self.counts.append(count)
        return super().batch((SMALLEST_SIDE, SMALLEST_SIDE), count)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (["training.batch_size=150", "evaluation.batch_size=70"], {32, 150, 70}),
        (["training.batch_size=150", "training.micro_batch=20", "evaluation.batch_size=10"], {32, 20, 10}),
        # There are 400 pictures, and an epoch has 268. More at once would take memory that the training does not need.
        (["training.batch_size=9000", "evaluation.batch_size=9000"], {32, 268, 400}),
    ],
)
def test_speed_is_measured_with_the_batches_of_the_training(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, settings: list[str], allowed: set[int]
) -> None:
    Watched.counts = []
    monkeypatch.setattr(module, "_Timer", Watched)
    recipe = load_recipe("fast", [*QUICK, *settings])
    measure_speed(recipe, prepared, 3, CPU, longest=1e6)
    assert set(Watched.counts) == allowed
    Watched.counts = []
    measure_speed(recipe, prepared, 3, CPU, longest=0.0)  # as on a slow computer
    assert max(Watched.counts) <= 32


def test_speed_is_measured_with_the_share_of_one_process(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    Watched.counts = []
    monkeypatch.setattr(module, "_Timer", Watched)
    monkeypatch.setattr(prepared.train, "world", World(0, 3))
    settings = ["training.batch_size=150", "evaluation.batch_size=40"]
    measure_speed(load_recipe("fast", [*QUICK, *settings]), prepared, 3, CPU, longest=1e6)
    assert set(Watched.counts) == {32, 50, 40}


def test_work_that_ends_while_the_speed_is_measured_makes_no_size_look_slow(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeTime()
    monkeypatch.setattr(module, "time", clock)
    recipe = load_recipe("fast", QUICK)
    state = TrainingState(build_model(recipe.model, 3), recipe, 1, CPU)
    calls: list[int] = []

    def work(batch: Batch) -> None:
        calls.append(batch.images.shape[2])
        clock.sleep(0.1 if len(calls) < 6 else 0.002)  # call 5 is the first of the two rounds

    found = _Timer(state, 3, 1.0).per_picture(work, [(20, 20), (32, 32)], 4)
    assert found == pytest.approx({(20, 20): 0.0005, (32, 32): 0.0005})
    assert calls[-4:] == [20, 32, 20, 32]
