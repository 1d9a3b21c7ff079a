"""A step that a CUDA graph can repeat, called directly: on the CPU it must do what ``fit`` does without graphs."""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thumbnet
from helpers import coloured_data
from thumbnet.batches.engines import MemoryEngine
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.errors import DivergedError, InterruptedRunError, OutOfMemoryError
from thumbnet.hardware import deterministic
from thumbnet.models import FastNet
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.weights import read_weights
from thumbnet.training import graphed
from thumbnet.training.build import build_state
from thumbnet.training.epochs import EpochResult, Score
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.graphed import GraphedSteps, why_not_graphed
from thumbnet.training.recording import Recorder
from thumbnet.training.state import TrainingState
from training_helpers import StopAfter

CPU = torch.device("cpu")
FAST = [
    "training.epochs=4",
    "training.batch_size=16",
    "training.min_steps=0",
    "training.precision=fp32",
    "model.width=0.125",
]
SGD = [
    "model.name=resnet20",
    "model.width=0.5",
    "data.image_size=16",
    "training.epochs=3",
    "training.batch_size=16",
    "training.drop_last=false",
    "training.precision=fp32",
]
ADAMW = [*SGD, "optimizer.name=adamw", "optimizer.lr=0.003", "optimizer.weight_decay=0.01"]
RECIPES = {
    "fast": ("fast", FAST),
    "fast in bf16": ("fast", [*FAST, "training.precision=bf16"]),
    "average, weights, cutout": (
        "fast",
        [
            *FAST,
            "training.ema_decay=0.9",
            "training.class_weights=balanced",
            "augment.cutout=8",
            "augment.hue=0.1",
        ],
    ),
    "all pictures": ("fast", [*FAST, "data.skip_easy=0", "augment.translate_fill=zero"]),
    "sgd": (
        "one-cycle",
        [
            *SGD,
            "augment.flip=random",
            "augment.rotate=15",
            "augment.mixup=0.4",
            "augment.cutmix=1.0",
            "training.label_smoothing=0.1",
        ],
    ),
    "balanced, adamw": ("one-cycle", [*ADAMW, "data.sampling=balanced", "training.ema_decay=0.9"]),
}
every_recipe = pytest.mark.parametrize("name", RECIPES)


@dataclass
class Trained:
    """A training and what it said on the way."""

    state: TrainingState
    results: list[EpochResult]
    steps: list[StepResult]
    losses: list[float]
    notes: list[str]


def fresh(name: str, *more: str, device: torch.device = CPU) -> tuple[TrainingState, Prepared]:
    recipe = load_recipe(RECIPES[name][0], [*RECIPES[name][1], *more])
    data = coloured_data(70, side=32)
    prepared = prepare(data, recipe, device)
    return build_state(recipe, prepared, data.class_names, device), prepared


def train(
    state: TrainingState, prepared: Prepared, on_step: Callable[[StepResult], None] = lambda step: None
) -> Trained:
    made = Trained(state, [], [], [], [])

    def told(step: StepResult) -> None:
        made.steps.append(step)
        made.losses.append(float(state.losses[step.step_in_epoch - 1]))
        on_step(step)

    for result in fit(state, prepared.train, on_step=told, on_note=made.notes.append):
        made.results.append(result)
    return made


@functools.cache
def finished(name: str, recorded: bool) -> Trained:
    """A whole training, with graphs that are called directly or without graphs. Tests only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphed, "DEVICES", ("cpu",) if recorded else ())
        patch.setattr(graphed, "FEWEST_STEPS", 0)
        return train(*fresh(name))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the CPU for a device with graphs; what is recorded is then called directly."""
    monkeypatch.setattr(graphed, "DEVICES", ("cpu",))
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 0)


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(graphed, "DEVICES", ())


def round_as_graphs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ordinary loop's optimizer take its rates as tensors, which rounds differently in the last bit."""

    def set_as_tensors(optimizer: torch.optim.Optimizer, factor: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["base_lr"] * factor)
            if isinstance(optimizer, torch.optim.SGD | torch.optim.AdamW):
                group["fused"] = True

    monkeypatch.setattr("thumbnet.training.step.set_learning_rate", set_as_tensors)


def flat(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries and lists, by name."""
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in pairs:
            yield from flat(value, f"{name}.{key}")
    else:
        yield name, tree


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Two checkpoints are equal to the bit, but for times and the optimizer's settings."""
    left, right = dict(flat(first)), dict(flat(second))
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, right[name]), name
        elif "second" not in name and "param_groups" not in name:
            both_nan = value != value and right[name] != right[name]
            assert value == right[name] or both_nan, name


# --- the same training -----------------------------------------------------------------------------------


@every_recipe
def test_only_the_optimizers_rounding_differs_from_the_ordinary_loop(
    name: str, no_graphs: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = finished(name, recorded=True)
    no_graphs()
    round_as_graphs_do(monkeypatch)
    plain = train(*fresh(name))
    assert made.losses == plain.losses
    assert_same(made.state.state_dict(), plain.state.state_dict())
    assert [replace(step, loss=None) for step in made.steps] == [replace(s, loss=None) for s in plain.steps]
    assert made.steps[-1].loss == plain.steps[-1].loss
    assert "replayed as CUDA graphs" in made.notes[0]
    assert plain.notes == []


@pytest.mark.parametrize("name", ["fast", "sgd", "balanced, adamw"])
def test_the_losses_are_those_of_the_ordinary_loop(name: str) -> None:
    made, plain = finished(name, recorded=True), finished(name, recorded=False)
    assert made.losses[0] == plain.losses[0]
    # On some CPUs the first update already rounds differently.
    assert made.losses[1] == pytest.approx(plain.losses[1], rel=1e-6)
    assert made.losses[:4] == pytest.approx(plain.losses[:4], rel=5e-3)
    assert len(made.losses) == len(plain.losses)
    assert [r.train_accuracy for r in made.results] == pytest.approx(
        [r.train_accuracy for r in plain.results], abs=0.15
    )


@pytest.mark.parametrize(
    ("name", "stop_at"),
    [("fast", 1), ("fast", 4), *((name, 3) for name in RECIPES if name != "all pictures")],
)
def test_stopped_at_any_step_and_resumed_it_ends_bit_for_bit_the_same(
    name: str, stop_at: int, graphs: None
) -> None:
    class Stop(Exception):
        pass

    def stop(step: StepResult) -> None:
        if step.step == stop_at:
            raise Stop

    whole = finished(name, recorded=True)
    stopped, prepared = fresh(name)
    with pytest.raises(Stop):
        train(stopped, prepared, stop)
    saved = stopped.state_dict()
    resumed, prepared = fresh(name)
    resumed.load_state_dict(saved)
    assert train(resumed, prepared).losses == whole.losses[stop_at:]
    assert_same(resumed.state_dict(), whole.state.state_dict())


def test_a_training_that_stopped_near_its_end_resumes_as_it_began_to_the_bit(
    graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 8)  # it has 8
    saved: list[dict[str, Any]] = []

    def save(step: StepResult) -> None:
        if step.step == 5:
            saved.append(copy.deepcopy(stopped.state_dict()))

    stopped, prepared = fresh("fast")
    whole = train(stopped, prepared, save)
    resumed, prepared = fresh("fast")
    resumed.load_state_dict(saved[0])
    made = train(resumed, prepared)
    assert "replayed as CUDA graphs" in made.notes[0]
    assert made.losses == whole.losses[5:]
    assert_same(resumed.state_dict(), stopped.state_dict())


def test_a_training_that_began_with_graphs_can_go_on_without(
    graphs: None, no_graphs: Callable[[], None]
) -> None:
    for name in ("fast", "sgd", "balanced, adamw"):
        begun, prepared = fresh(name)
        next(fit(begun, prepared.train))
        saved = begun.state_dict()
        settings = saved["optimizer"]["param_groups"]
        assert all(type(group["lr"]) is float and not group.get("fused") for group in settings)
        resumed, prepared = fresh(name)
        resumed.load_state_dict(saved)
        no_graphs()
        assert len(list(fit(resumed, prepared.train))) == resumed.recipe.training.epochs - 1


def test_a_plan_that_changes_within_an_epoch_is_followed(
    graphs: None, no_graphs: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> Trained:
        state, prepared = fresh("fast", "training.epochs=6")

        def change(step: StepResult) -> None:
            if step.step in (3, 8):  # in the middle and at the end of an epoch
                state.replan({3: 17, 8: 11}[step.step])

        return train(state, prepared, change)

    made = trained()
    no_graphs()
    round_as_graphs_do(monkeypatch)
    plain = trained()
    assert len(made.losses) == 11
    assert made.losses == plain.losses
    assert_same(made.state.state_dict(), plain.state.state_dict())


def test_a_whole_run_learns_and_resumes_to_the_bit_with_evaluations_between(
    graphs: None, tmp_path: Path
) -> None:
    data = coloured_data(70, side=32)
    overrides = [*FAST, "training.epochs=12", "evaluation.every=3"]
    whole = thumbnet.train(data, "fast", overrides=overrides, out=tmp_path / "whole", device="cpu")
    with pytest.raises(InterruptedRunError):
        thumbnet.train(
            data, "fast", overrides=overrides, out=tmp_path / "two", device="cpu", listener=StopAfter(17)
        )
    resumed = thumbnet.resume(tmp_path / "two", data=data, device="cpu")
    assert whole.summary["accuracy"] > 0.9
    assert resumed.summary["accuracy"] == whole.summary["accuracy"]
    first, second = (read_weights(run.path / "model.safetensors")[0] for run in (whole, resumed))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# --- recording -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["average, weights, cutout", "balanced, adamw"])
def test_recording_changes_nothing(name: str, graphs: None) -> None:
    state, prepared = fresh(name)
    untouched, _ = fresh(name)
    steps = GraphedSteps(state, prepared.train)
    before, after = untouched.state_dict(), state.state_dict()
    for one in after["optimizer"]["state"].values():  # it exists now, and is zero
        assert not any(bool(value.any()) for value in one.values())
    for saved in (before, after):
        saved["optimizer"].pop("state")
        if saved["selection"] is not None:  # the first epoch's pictures have been chosen
            saved["selection"] = saved["selection"]["noted"]
    assert_same(before, after)
    assert all(parameter.grad is None for parameter in state.model.parameters())
    del steps


def test_there_is_a_graph_for_each_size_that_is_still_to_come(
    graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded(state: TrainingState, prepared: Prepared) -> int:
        calls = []

        def counted(self: Recorder, work: Callable[[], None]) -> Callable[[], None]:
            calls.append(work)
            return work

        monkeypatch.setattr(Recorder, "record", counted)
        GraphedSteps(state, prepared.train)
        return len(calls)

    assert recorded(*fresh("fast")) == 3
    late, prepared = fresh("fast")
    late.step = 5  # of 8: the pictures have their full size from now on
    late.history = [EpochResult(number, 2 * number, 1.0, 0.1, 1.0, 1.0, None) for number in (1, 2)]
    assert recorded(late, prepared) == 1
    assert recorded(*fresh("sgd")) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore"), "is capturing"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), r"\(out of memory\)"),
    ],
)
@pytest.mark.parametrize("name", ["fast", "balanced, adamw"])
def test_if_recording_fails_the_ordinary_loop_trains_and_a_note_says_so(
    name: str,
    error: Exception,
    reason: str,
    graphs: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = []
    step = GraphedSteps._step

    def failing(self: GraphedSteps, size: tuple[int, int], count: int) -> None:
        step(self, size, count)  # the weights have changed by the time that it fails
        done.append(size)
        raise error

    monkeypatch.setattr(GraphedSteps, "_step", failing)
    made = train(*fresh(name))
    assert len(done) == 1
    (note,) = made.notes
    assert re.search(reason, note)
    assert "training.graph=off" in note
    plain = finished(name, recorded=False)
    assert plain.notes == []
    assert made.losses == plain.losses
    assert_same(made.state.state_dict(), plain.state.state_dict())


def test_memory_that_does_not_suffice_in_a_later_step_is_our_error(
    graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Recorder, "record", lambda self, work: greedy)
    with pytest.raises(OutOfMemoryError, match=r"16 pictures in a forward pass.*\n.*--micro-batch 8"):
        train(*fresh("fast"))


# --- progress --------------------------------------------------------------------------------------------


def test_progress_tells_the_loss_of_the_look_before_and_at_the_end_of_an_epoch_the_newest(
    graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thumbnet.training.fit.LOOK_EVERY", 1)
    made = train(*fresh("sgd"))
    losses = made.losses
    assert [step.loss for step in made.steps[:5]] == [None, losses[0], losses[1], losses[2], losses[4]]
    assert made.steps[5].loss == losses[4]  # the next epoch's first loss is not known yet


def test_a_loss_that_is_not_finite_stops_and_names_the_step(
    graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thumbnet.training.fit.LOOK_EVERY", 1)
    state, prepared = fresh("sgd")

    def poison(step: StepResult) -> None:
        if step.step == 2:
            with torch.no_grad():
                next(state.model.parameters()).fill_(math.nan)

    with pytest.raises(DivergedError, match="loss is nan at step 3"):
        train(state, prepared, poison)
    assert state.step == 4  # one look later


# --- where it applies ------------------------------------------------------------------------------------


def test_on_the_cpu_nothing_is_recorded() -> None:
    assert why_not_graphed(*_given(*fresh("fast"))) == "the device is cpu"


def _given(state: TrainingState, prepared: Prepared) -> tuple[TrainingState, Any]:
    return state, prepared.train


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.graph=off", "training.graph = off"),
        ("training.micro_batch=8", "training.micro_batch"),
        ("training.on_nonfinite=skip", "on_nonfinite"),
        ("data.engine=workers", "not in the device's memory"),
    ],
)
def test_settings_that_a_graph_cannot_honour_keep_the_ordinary_loop(
    override: str, reason: str, graphs: None
) -> None:
    assert why_not_graphed(*_given(*fresh("fast"))) is None
    assert why_not_graphed(*_given(*fresh("fast", "training.micro_batch=16"))) is None  # the whole batch
    assert reason in str(why_not_graphed(*_given(*fresh("fast", override))))


def test_what_is_not_thumbnets_own_keeps_the_ordinary_loop(
    graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, prepared = fresh("fast")

    class Own(FastNet):
        """May draw random numbers in every step."""

    class Optimizer(torch.optim.SGD):
        """May read numbers from the device."""

    def reason(**changed: object) -> str:
        with monkeypatch.context() as patch:
            for name, value in changed.items():
                patch.setattr(state, name, value)
            return str(why_not_graphed(state, prepared.train))

    assert "network" in reason(model=Own([8, 8, 8]))
    assert "network" in reason(model=nn.Sequential(nn.Dropout()))
    assert "optimizer" in reason(optimizer=Optimizer(state.model.parameters()))
    assert "torch.compile" in reason(compiled=True)
    monkeypatch.setattr(state, "scaler", torch.amp.GradScaler("cpu"), raising=False)
    assert "float16" in reason()
    monkeypatch.setattr(state, "scaler", torch.amp.GradScaler("cpu", enabled=False))
    assert reason() == "None"
    assert "processes" in reason(world=replace(state.world, size=2))
    assert "batches" in str(why_not_graphed(state, [1, 2]))  # type: ignore[arg-type]
    engine = prepared.train.engine
    assert isinstance(engine, MemoryEngine)
    elsewhere = MemoryEngine(engine.images.to("meta"), engine.labels)
    monkeypatch.setattr(prepared.train, "engine", elsewhere)
    assert "memory" in str(why_not_graphed(state, prepared.train))


def test_a_short_training_is_not_worth_recording(graphs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 9)  # it has 8
    assert "fewer than 9 steps" in str(why_not_graphed(*_given(*fresh("fast"))))


def test_a_plan_that_changes_does_not_change_how_a_resumed_training_takes_its_steps(
    graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 8)
    longer, prepared = fresh("fast", "training.epochs=3")  # 6 steps
    shorter, _ = fresh("fast")
    for state, steps in ((longer, 9), (shorter, 5)):
        state.step = 2
        state.replan(steps)
    assert "fewer than 8 steps" in str(why_not_graphed(longer, prepared.train))
    assert why_not_graphed(shorter, prepared.train) is None


def test_a_training_without_steps_left_records_nothing(graphs: None) -> None:
    state, prepared = fresh("fast")
    train(state, prepared)
    assert why_not_graphed(state, prepared.train) == "no steps are left"


# --- on a real GPU ---------------------------------------------------------------------------------------

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@on_cuda
@every_recipe
def test_replayed_graphs_do_what_the_ordinary_loop_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 0)
    device = torch.device("cuda", 0)
    with deterministic():
        made = train(*fresh(name, device=device))
        assert "replayed as CUDA graphs" in made.notes[0]
        plain = train(*fresh(name, "training.graph=off", device=device))
        assert made.losses[:2] == pytest.approx(plain.losses[:2], rel=1e-4)
        assert made.losses[:4] == pytest.approx(plain.losses[:4], rel=2e-2)
        called = fresh(name, device=device)
        monkeypatch.setattr(Recorder, "record", lambda self, work: work)
        assert train(*called).losses == made.losses  # the same step without a graph, to the bit


@on_cuda
@every_recipe
def test_on_the_same_gpu_a_graphed_training_repeats_and_resumes_to_the_bit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 0)
    device = torch.device("cuda", 0)
    saved: list[dict[str, Any]] = []
    with deterministic():
        whole = train(*fresh(name, device=device))
        stopped, prepared = fresh(name, device=device)

        def save(step: StepResult) -> None:
            if step.step == 3:
                saved.append(copy.deepcopy(stopped.state_dict()))

        assert train(stopped, prepared, save).losses == whole.losses
        resumed, prepared = fresh(name, device=device)
        resumed.load_state_dict(saved[0])
        assert train(resumed, prepared).losses == whole.losses[3:]


@on_cuda
def test_no_step_waits_for_a_real_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 0)
    state, prepared = fresh("fast", device=torch.device("cuda", 0))
    steps = GraphedSteps(state, prepared.train).epoch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in steps:
            state.step += 1
            if state.epoch_is_over:
                break
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_replayed_steps_end_with_an_early_stop(graphs: None) -> None:
    state, prepared = fresh("fast", "training.patience=1", "evaluation.every=1", "training.epochs=9")
    notes, accuracies = list[str](), iter([0.6, 0.6])

    def evaluate(_: nn.Module) -> Score:
        return Score("val", next(accuracies), 1.0)

    results = list(fit(state, prepared.train, evaluate=evaluate, on_note=notes.append))
    assert [result.stopped for result in results] == ["", "no better val accuracy since epoch 1"]
    assert (state.step, "CUDA graphs" in notes[0]) == (2 * state.steps_per_epoch, True)
