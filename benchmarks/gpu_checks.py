"""PASS or FAIL: what must hold when thumbnet trains on a device.

Each check trains ``fast`` on a few thousand pictures for a few epochs. A check that finds something wrong
raises an exception; what it returns is noted with its PASS. A check that does not apply to the device is
skipped. A check fails if CUDA refuses to record a training that can run as graphs: thumbnet then trains
without them, and only says so.
After an error that makes CUDA unusable in this process, or that may leave a capture half done, the remaining
checks run in a new one.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gpu import Options
from gpu_trainer import Taken, Trainer, loaded, watched_steps
from measure import wait
from torch import Tensor

from thumbnet.classifiers.load import load_run
from thumbnet.data.splits import Data
from thumbnet.errors import InterruptedRunError, OutOfMemoryError
from thumbnet.hardware import choose_device, deterministic, why_not_compile
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.training import graphed as graphed_module
from thumbnet.training.fit import LOOK_EVERY, StepResult, fit
from thumbnet.training.listener import Listener
from thumbnet.training.range_test import learning_rate_range_test
from thumbnet.training.recording import Recorder
from thumbnet.training.train import resume, train

FEW = ("data.subset_size=6000", "training.epochs=4", "training.batch_size=250", "training.min_steps=0")
FEWER = ("training.epochs=4", "training.batch_size=50", "training.min_steps=0", "model.width=0.125")
FIRST = 4  # steps whose losses are compared with the CPU's; later, rounding errors have grown
CLOSE = 5e-3  # relative
STEPS_LEFT = 4  # where a training is stopped, within its last epoch: fewer than are worth recording
EAGER = "training.graph=off"
MINUTES = 0.1
LATE = 15.0  # seconds that a training for a given time may take longer
TINY_MEMORY = 0.004  # of the card's memory: 0.3 of 80 GB
BLOCK = 1 << 30  # bytes
GRAPHS = "fast runs as CUDA graphs, with the losses of single operations"


class SkipCheck(Exception):  # noqa: N818 - no error
    """A check does not apply to this device; the text says why."""


@dataclass(frozen=True)
class Bench:
    """What the checks work on: pictures, a device, settings for a small training, and a folder for runs."""

    data: Data
    device: torch.device
    settings: tuple[str, ...]
    folder: Path

    def train(self, name: str, *more: str, listener: Listener | None = None) -> Run:
        """Train ``fast`` with these settings into the folder ``name``."""
        overrides = [*self.settings, *more]
        return train(
            self.data, "fast", overrides=overrides, out=self.folder / name, device=str(self.device),
            listener=listener,
        )  # fmt: skip

    def trainer(self, *more: str, device: torch.device | None = None) -> Trainer:
        """A trainer of ``fast`` with these settings."""
        return Trainer(load_recipe("fast", [*self.settings, *more]), self.data, device or self.device)


Check = Callable[[Bench], str]
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """List a function in ``CHECKS`` under a name that says what must hold."""

    def put(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return put


@check("the first losses in float32 are the CPU's")
def first_losses(bench: Bench) -> str:
    with exact_convolutions(), exact_muon():
        here, there = (
            losses(bench.trainer("training.precision=fp32", device=device), FIRST)
            for device in (bench.device, torch.device("cpu"))
        )
    return close(here, there)


@check(GRAPHS)
def graphed(bench: Bench) -> str:
    if bench.device.type != "cuda":
        raise SkipCheck("only CUDA has graphs")
    trainer = bench.trainer()
    reason = graphed_module.why_not_graphed(trainer.state, trainer.prepared.train)
    assert reason is None, f"it does not: {reason}"
    with deterministic():  # a failure is CUDA's own error, with the line of the call that it refused
        graphed_module.GraphedSteps(trainer.state, trainer.prepared.train)
    with exact_convolutions():
        found = (losses(bench.trainer("training.precision=fp32", *more), FIRST) for more in ((), (EAGER,)))
        return close(*found)


@check("no step waits for the device")
def no_waits(bench: Bench) -> str:
    if bench.device.type != "cuda":
        raise SkipCheck("only CUDA tells of its waits")
    trainer = bench.trainer()
    steps: list[int] = []
    places: list[tuple[int, str]] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")

        def on_step(step: StepResult) -> None:
            places.extend((len(steps), place_of(one)) for one in seen if "synchroniz" in str(one.message))
            seen.clear()
            steps.append(step.step)

        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in fit(trainer.state, trainer.prepared.train, on_step=on_step):
                pass
        finally:
            torch.cuda.set_sync_debug_mode("default")
    per_epoch = trainer.state.steps_per_epoch
    within = [place for done, place in places if is_within(done, per_epoch)]
    assert not within, f"{len(within)} waits within {len(steps)} steps, at {', '.join(sorted(set(within)))}"
    return f"{len(places)} waits in {len(steps)} steps, all of them between epochs or to look at the losses"


def place_of(warning: warnings.WarningMessage) -> str:
    """The file and line that a warning names."""
    return f"{Path(warning.filename).name}:{warning.lineno}"


def is_within(done: int, per_epoch: int) -> bool:
    """Whether a wait after ``done`` steps delays a step without need.

    The first epoch may wait: kernels are loaded and graphs recorded. So may the beginning and the end of each
    epoch, and the steps after which the losses are looked at.
    """
    next_step = done % per_epoch + 1
    return done >= per_epoch and 1 < next_step < per_epoch and next_step % LOOK_EVERY != 0


@check("the same training twice gives the same weights to the bit")
def repeatable(bench: Bench) -> str:
    first, second = bench.train("first"), bench.train("second")
    assert_equal(weights(first), weights(second))
    return f"accuracy {first.summary['accuracy']:.3f} twice"


@check("a stopped training resumes to the same weights to the bit")
def resumes(bench: Bench) -> str:
    class Stop(Listener):
        def __init__(self) -> None:
            self.step: StepResult | None = None

        def on_step(self, step: StepResult) -> None:
            self.step = step

        def should_stop(self) -> bool:
            return self.step is not None and self.step.step >= self.step.total_steps - STEPS_LEFT

    stop = Stop()
    try:
        bench.train("stopped", listener=stop)
    except InterruptedRunError:
        pass
    else:
        raise AssertionError("the training did not stop when it was asked to")
    resumed = resume(bench.folder / "stopped", device=str(bench.device), data=bench.data)
    whole = Run(bench.folder / "first")
    assert_equal(weights(whole if whole.is_complete else bench.train("whole")), weights(resumed))
    assert stop.step is not None
    return f"stopped after {stop.step.step} of {stop.step.total_steps} steps"


@check("predict and evaluate agree with the training")
def predicts(bench: Bench) -> str:
    run = bench.train("predicted")
    classifier = load_run(run.path, str(bench.device))
    accuracy = classifier.evaluate(bench.data, "test").accuracy
    assert accuracy == run.summary["accuracy"], f"{accuracy} and, by the training, {run.summary['accuracy']}"
    label = classifier.predict([bench.data.splits["test"].load(0)])[0].label
    assert label in bench.data.class_names, label
    return f"accuracy {accuracy:.3f}, first picture: {label}"


COMPILED = "torch.compile"
VARIANTS = {
    "averaged weights (EMA) and cutout": ("training.ema_decay=0.99", "augment.cutout=4"),
    "no skipping of easy pictures (skip_easy=0)": ("data.skip_easy=0",),
    "steps that are not finite are skipped": ("training.on_nonfinite=skip",),
    "micro-batches": ("training.micro_batch=25",),
    "AdamW": ("optimizer.name=adamw", "optimizer.lr=0.001", "optimizer.groups=[]"),
    "class-balanced sampling": ("data.sampling=balanced", "data.skip_easy=0"),
    "mixed pictures (mixup, CutMix)": ("augment.mixup=0.4", "augment.cutmix=1.0", "data.skip_easy=0"),
    "float16 with loss scaling": ("training.precision=fp16",),
    "pictures decoded by workers": ("data.engine=workers", "training.epochs=1"),
    "resnet18": ("model.name=resnet18", "optimizer.name=sgd", "optimizer.lr=0.05", "optimizer.groups=[]"),
    COMPILED: ("training.compile=true",),
}  # fmt: skip


def learns(bench: Bench, name: str) -> str:
    """Train with one of ``VARIANTS``, and check that the network is better than guessing."""
    if name == COMPILED and bench.device.type == "cpu":
        raise SkipCheck("takes too long on a CPU")
    with watched_steps(bench.device) as taken:
        summary = bench.train(name.replace(" ", "-").replace("/", "-"), *VARIANTS[name]).summary
    if name == COMPILED:
        assert any(one.compiled for one in taken), f"it was not compiled: {why_not_compile(bench.device)}"
    chance = 1 / len(bench.data.class_names)
    few = bench.settings == FEWER  # too few to learn from
    assert few or summary["accuracy"] > 1.5 * chance, (
        f"accuracy {summary['accuracy']:.3f}, by chance {chance:.3f}"
    )
    return f"accuracy {summary['accuracy']:.3f} in {summary['seconds_training']:.1f} s"


@check("a training plans for a given time, and ends in time")
def in_time(bench: Bench) -> str:
    settings = [one for one in bench.settings if not one.startswith("training.epochs=")]
    started = time.perf_counter()
    run = train(
        bench.data, "fast", overrides=settings, out=bench.folder / "minutes", device=str(bench.device),
        minutes=MINUTES,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    assert seconds < 60 * MINUTES + LATE, f"{seconds:.1f} s instead of {60 * MINUTES:.0f}"
    return f"{seconds:.1f} of {60 * MINUTES:.0f} s, {run.summary['epochs']} epochs"


@check("the range test finds a learning rate")
def finds_rate(bench: Bench) -> str:
    trainer = bench.trainer()
    found = learning_rate_range_test(trainer.state, trainer.prepared.train)
    return f"steepest at {found.suggestion:.2g}, lowest at {found.least:.2g}"


@check("a last layer on frozen features is fitted")
def fits_last_layer(bench: Bench) -> str:
    start = bench.train("start")
    settings = [f'training.init="{start.path}"', *(one for one in bench.settings if one.startswith("data."))]
    run = train(
        bench.data, "linear", overrides=settings, out=bench.folder / "linear", device=str(bench.device)
    )
    found, before = run.summary["accuracy"], start.summary["accuracy"]
    few = bench.settings == FEWER  # too few to learn from
    assert few or found > before - 0.05, f"accuracy {found:.3f} after {before:.3f}"
    return f"accuracy {found:.3f} after {before:.3f}"


for _name in VARIANTS:
    CHECKS[f"trains: {_name}"] = lambda bench, name=_name: learns(bench, name)  # type: ignore[misc]


@check("out of memory is an error of ours that says what to do")
def out_of_memory(bench: Bench) -> str:
    if bench.device.type != "cuda":
        raise SkipCheck("only CUDA can be given less memory")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(TINY_MEMORY, bench.device)
    try:
        bench.train("memory", "training.batch_size=5000", "model.width=4")
    except OutOfMemoryError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
    raise AssertionError(f"it fitted into {TINY_MEMORY:.1%} of the memory")


@check("after a capture that CUDA refused, memory can be freed and random numbers drawn")
def refused_capture(bench: Bench) -> str:
    if bench.device.type != "cuda":
        raise SkipCheck("only CUDA has graphs")
    ones = torch.ones(1, device=bench.device)

    def waiting() -> None:
        ones.item()

    torch.cuda.empty_cache()
    try:
        Recorder(bench.device, []).record(waiting)
    except RuntimeError as error:
        refusal = str(error).splitlines()[0]
    else:
        raise AssertionError("CUDA recorded a call that waits for the device")
    torch.rand(1, device=bench.device)
    block = torch.empty(BLOCK, dtype=torch.uint8, device=bench.device)
    before = torch.cuda.memory_reserved(bench.device)
    del block
    torch.cuda.empty_cache()
    freed = before - torch.cuda.memory_reserved(bench.device)
    assert freed >= BLOCK, f"{freed:,} of {BLOCK:,} bytes were freed after: {refusal}"
    return f"refused: {refusal}"


# In a part of its own, because it may take longer than all others together.
COMPILE_CHECKS = {name: CHECKS.pop(name) for name in (f"trains: {COMPILED}",)}


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """In this block, cuDNN computes float32 convolutions in float32, not in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def exact_muon() -> Iterator[None]:
    """In this block, Muon computes in float32 on every device.

    Otherwise it uses bfloat16 where that is fast, whatever the recipe's precision: on the GPU, and on one CPU
    but not on the other.
    """
    with mock.patch("thumbnet.training.muon.has_fast_bf16", return_value=False):
        yield


def close(found: Tensor, expected: Tensor) -> str:
    """Check that losses, float32 [steps], agree with those expected; return by how much."""
    worst = float(((found - expected).abs() / expected.abs()).max())
    assert worst < CLOSE, f"relative difference {worst:.1e}: {found.tolist()}, not {expected.tolist()}"
    return f"largest relative difference in {len(found)} steps: {worst:.1e}"


def losses(trainer: Trainer, steps: int) -> Tensor:
    """The losses of the first ``steps`` steps of the trainer's first epoch: float32 [steps], on the CPU."""
    found: list[Tensor] = []

    class Enough(Exception):  # noqa: N818 - no error
        pass

    def on_step(step: StepResult) -> None:
        if step.step == steps:
            found.append(trainer.state.losses[:steps].clone())
            raise Enough

    try:
        for _ in fit(trainer.state, trainer.prepared.train, on_step=on_step):
            pass
    except Enough:
        pass
    return found[0].cpu()


def weights(run: Run) -> dict[str, Tensor]:
    """The weights of a finished run."""
    return read_weights(run.weights_path)[0]


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Check that two networks have the same weights to the bit."""
    differ = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    assert not differ, f"{len(differ)} of {len(first)} tensors differ, first {differ[0]}"


def run_checks(
    options: Options,
    folder: Path,
    checks: Mapping[str, Check],
    done: dict[str, dict[str, Any]],
    publish: Callable[[], None],
) -> None:
    """Run those of ``checks`` that are not in ``done`` yet, and note each there.

    Each has ``passed``, ``result``, ``said``, ``seconds``, ``steps`` (how its trainings took them) and, if it
    failed, ``traceback``. ``publish`` is called after each. If CUDA is unusable after a check, or graphs
    failed, this process is replaced by a new one, which goes on: a capture that failed keeps some memory.
    """
    bench = Bench(loaded(options), choose_device(options.device), FEWER if options.smoke else FEW, folder)
    for name, function in checks.items():
        if name in done:
            continue
        started = time.perf_counter()
        result, trace = "FAIL", ""
        with watched_steps(bench.device) as taken:
            try:
                said = function(bench)
                assert_recorded(taken)
                result = "PASS"
            except SkipCheck as reason:
                said, result = str(reason), "SKIP"
            except Exception as error:
                said, trace = f"{type(error).__name__}: {error}".strip(), traceback.format_exc()
                traceback.print_exc(limit=-5)
        seconds = time.perf_counter() - started
        done[name] = {
            "passed": result != "FAIL",
            "result": result,
            "said": said,
            "seconds": round(seconds, 2),
            "steps": sorted({str(one) for one in taken}),
            **({"traceback": trace} if trace else {}),
        }
        publish()
        print(f"{result} {name}: {said.splitlines()[0] if said else ''} ({seconds:.1f} s)", flush=True)
        spoilt = name == GRAPHS or any(one.refused for one in taken)
        if result == "FAIL" and (spoilt or not usable(bench.device)):
            print("the device may be unusable after that; going on in a new process", flush=True)
            os.execv(sys.executable, [sys.executable, *sys.argv])


def assert_recorded(taken: list[Taken]) -> None:
    """Check that CUDA recorded the steps of all trainings that can run as graphs."""
    for one in taken:
        assert not one.refused, one.why_eager


def usable(device: torch.device) -> bool:
    """Whether the device still computes. After some errors, CUDA refuses everything in the same process."""
    try:
        wait(device)
        return bool(torch.ones(1, device=device).item() == 1)
    except RuntimeError:
        return False
