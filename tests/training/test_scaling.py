from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import TINY, coloured_data
from thumbnet.batches.batches import Batch
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.errors import DivergedError, InterruptedRunError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import OptimizerSettings
from thumbnet.training.fit import fit
from thumbnet.training.optimizers import build_optimizer
from thumbnet.training.scaling import scaled_step
from thumbnet.training.state import TrainingState
from thumbnet.training.step import train_step, update_weights
from thumbnet.training.train import resume, train
from training_helpers import Explosive, StopAfter

CPU = torch.device("cpu")
FP16 = [
    *TINY, "training.precision=fp16", "model.name=fastnet", "model.width=0.1", "training.min_steps=0",
]  # fmt: skip
OPTIMIZERS = {
    "sgd": OptimizerSettings(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd without momentum": OptimizerSettings(lr=0.1, momentum=0.0),
    "adamw": OptimizerSettings(name="adamw", lr=0.01),
    "muon": OptimizerSettings(name="muon", lr=0.05, momentum=0.6, weight_decay=0.01),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 2, 3), nn.Flatten())


def gradients(model: nn.Module, step: int, overflow: bool) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = 1024 * torch.randn(parameter.shape, generator=generator)
    if overflow:
        next(model.parameters()).grad.view(-1)[3] = math.inf if step % 2 else math.nan  # type: ignore[union-attr]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_gradscalers_to_the_bit_also_where_gradients_overflow_in_the_first(
    name: str, fused: bool
) -> None:
    """GradScaler decides on the CPU. AdamW's fused kernel rounds differently, so both use the same one."""
    ours, theirs = network(), network()
    mine, reference = (build_optimizer(OPTIMIZERS[name], model, fused=fused) for model in (ours, theirs))
    # Without its own support of scaling, GradScaler would leave SGD's fused momentum undefined.
    reference.__dict__["_step_supports_amp_scaling"] = False
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3) for _ in range(2)]
    for step, overflow in enumerate([True, False, False, True, True, False, False, False, False]):
        for model, scaler in zip((ours, theirs), scalers, strict=True):
            scaler.scale(torch.ones(()))
            gradients(model, step, overflow)
        before = [p.detach().clone() for p in ours.parameters()]
        scaled_step(mine, scalers[0])
        scalers[1].step(reference)
        scalers[1].update()
        after = list(ours.parameters())
        assert all(torch.equal(a, b) for a, b in zip(after, theirs.parameters(), strict=True))
        assert all(torch.equal(a, b) == overflow for a, b in zip(after, before, strict=True))
        assert scalers[0].get_scale() == scalers[1].get_scale()
    assert scalers[0].get_scale() == 1024.0 / 8 * 2


class Waits(TorchDispatchMode):
    """Counts what would make the computer wait for a GPU: a value that is read from a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_reads_nothing_from_the_device(name: str) -> None:
    model = network()
    optimizer = build_optimizer(OPTIMIZERS[name], model, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with Waits() as theirs:
        gradients(model, 0, overflow=False)
        scaler.unscale_(optimizer)
        scaler._maybe_opt_step(optimizer, scaler._per_optimizer_states[id(optimizer)])
    assert theirs.count == 1, "the count sees GradScaler's own wait"
    scaler.update()
    for step in (1, 2):
        gradients(model, step, overflow=step == 1)
        with Waits() as ours:
            scaled_step(optimizer, scaler)
        assert ours.count == 0


@pytest.mark.parametrize(
    "more",
    [
        ["optimizer.name=sgd", "optimizer.groups=[]", "training.ema_decay=0.5"],
        ["training.micro_batch=8"],
        ["optimizer.name=adamw", "optimizer.groups=[]", "training.on_nonfinite=skip"],
    ],
    ids=["sgd, average", "muon, micro-batches", "adamw, skip"],
)
def test_fp16_trains_on_the_cpu_and_resumes_to_the_bit(more: list[str], tmp_path: Path) -> None:
    """A narrow network, because few processors multiply float16 fast."""
    data, overrides = coloured_data(), [*FP16, *more]
    whole = train(data, "fast", overrides=overrides, out=tmp_path / "whole", device="cpu")
    rows = [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]
    assert rows[2]["loss"] < rows[0]["loss"]
    assert whole.summary["skipped_steps"] == []
    with pytest.raises(InterruptedRunError):
        train(data, "fast", overrides=overrides, out=tmp_path / "cut", device="cpu", listener=StopAfter(5))
    checkpoint: Any = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    assert checkpoint["state"]["scaler"]["_growth_tracker"] <= 5
    again = resume(tmp_path / "cut", data=data, device="cpu")
    assert (again.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    logits = Predictor.load(whole.path, "cpu")
    assert logits.dtype == torch.float16
    assert logits.evaluate(data, "test").accuracy == pytest.approx(whole.summary["accuracy"])


def linear(inner: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 64, 3), inner or nn.Identity())


def state_of(*overrides: str, model: nn.Module | None = None) -> TrainingState:
    plain = ["training.precision=fp16", "training.epochs=4", "optimizer.weight_decay=0.0"]
    return TrainingState(model or linear(), load_recipe("tutorial", [*plain, *overrides]), 30, CPU)


def batch_of(count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 3)


def test_a_scaled_step_moves_the_weights_as_an_unscaled_one_does() -> None:
    half, single = state_of(), state_of("training.precision=fp32")
    for state in (half, single):
        train_step(state, batch_of(), 0.1)
    assert half.scaler.get_scale() == 65536.0
    for a, b in zip(half.model.parameters(), single.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-2)


class Repeated:
    def __len__(self) -> int:
        return 30

    def epoch(self, epoch: int, start: int = 0) -> list[Batch]:
        return [batch_of()] * (30 - start)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_gradients_that_overflow_at_every_scale_end_the_training(on_nonfinite: str) -> None:
    state = state_of(f"training.on_nonfinite={on_nonfinite}", model=linear(Explosive()))
    before = [p.detach().clone() for p in state.model.parameters()]
    with pytest.raises(
        DivergedError, match="gradients overflow float16 at every scale at step 20 .*\n.*fp32"
    ):
        list(fit(state, Repeated()))  # type: ignore[arg-type]
    assert state.skipped == []
    assert state.step == 20
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))


def test_a_loss_that_is_not_finite_is_a_skipped_step_and_leaves_the_scale() -> None:
    state = state_of("training.on_nonfinite=skip")
    broken = batch_of()
    broken.images[0] = math.nan
    train_step(state, broken, 1.0)
    assert state.skipped == [1]
    train_step(state, batch_of(), 1.0)
    assert state.scaler.get_scale() == 65536.0
    assert all(bool(p.isfinite().all()) for p in state.model.parameters())


def test_the_scale_survives_a_checkpoint_and_others_need_none() -> None:
    state, fresh, single = state_of(), state_of(), state_of("training.precision=fp32")
    state.scaler.scale(torch.ones(()))
    gradients(state.model, 0, overflow=True)
    update_weights(state)
    assert state.scaler.get_scale() == 32768.0
    fresh.load_state_dict(state.state_dict())
    assert fresh.scaler.get_scale() == 32768.0
    single.load_state_dict(state.state_dict())
    earlier = {key: value for key, value in single.state_dict().items() if key != "scaler"}
    state_of().load_state_dict(earlier)
