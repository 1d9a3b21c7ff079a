from __future__ import annotations

import ast
import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from helpers import TINY, coloured_data
from thumbnet.batches.batches import Batch, LoaderBatches, TrainBatches
from thumbnet.batches.prepare import prepare
from thumbnet.distributed import World
from thumbnet.errors import DataError, DivergedError, OutOfMemoryError, RecipeError
from thumbnet.hardware import can_compile
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training import fit as fit_module
from thumbnet.training.build import build_state
from thumbnet.training.epochs import Score
from thumbnet.training.fit import StepResult, end_early, fit
from thumbnet.training.schedules import factor_at
from thumbnet.training.state import TrainingState
from thumbnet.training.step import accumulate_gradients

CPU = torch.device("cpu")


class FixedBatches:
    """Three batches of noise, the same each epoch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            Batch(torch.randn(8, 3, 16, 16, generator=generator), torch.randint(3, (8,), generator=generator))
            for _ in range(3)
        ]

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        yield from self.batches[start:]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))


def state_of(*overrides: str, model: nn.Module | None = None) -> TrainingState:
    recipe = load_recipe("tutorial", ["training.precision=fp32", "training.epochs=4", *overrides])
    return TrainingState(model or small_model(), recipe, 3, CPU)


def test_fit_yields_a_result_an_epoch_and_tells_every_step() -> None:
    steps: list[StepResult] = []
    results = list(fit(state_of(), FixedBatches(), on_step=steps.append))
    assert [result.epoch for result in results] == [1, 2, 3, 4]
    assert [result.step for result in results] == [3, 6, 9, 12]
    assert [(s.epoch, s.step_in_epoch) for s in steps] == [(e, s) for e in range(1, 5) for s in (1, 2, 3)]
    assert results[-1].loss < results[0].loss
    assert all(result.pictures_per_second > 0 for result in results)


def loader_of(dtype: torch.dtype = torch.float32) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    pictures = (255 * torch.rand(24, 3, 16, 16, generator=generator)).to(dtype)
    return DataLoader(TensorDataset(pictures, torch.arange(24) % 3), batch_size=8)


def test_a_data_loader_trains_like_the_batches_that_wrap_it() -> None:
    losses = [
        [result.loss for result in fit(state_of(), batches)]
        for batches in (loader_of(), LoaderBatches(loader_of()))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4


def test_a_loader_of_another_length_is_refused() -> None:
    state = state_of()
    state.steps_per_epoch = 4
    with pytest.raises(DataError, match="3 batches, but the state was made for 4 steps per epoch"):
        next(fit(state, loader_of()))


def test_a_loader_is_refused_if_several_processes_train() -> None:
    for batches in (loader_of(), LoaderBatches(loader_of())):
        state = state_of()
        state.world = World(0, 2)
        with pytest.raises(
            DataError, match=r"does not divide its batches among several processes.*Train in one"
        ):
            next(fit(state, batches))


class Endless(IterableDataset[Any]):
    """Pictures with labels, of which nobody knows how many there are."""

    def __iter__(self) -> Iterator[Any]:
        return iter(loader_of().dataset[number] for number in range(24))


class Shorter(Endless):
    """Claims 24 pictures and gives as many in one epoch, but 16 in all others."""

    epochs = 0

    def __len__(self) -> int:
        return 24

    def __iter__(self) -> Iterator[Any]:
        self.epochs += 1
        return islice(super().__iter__(), 24 if self.epochs == 1 else 16)


def test_a_loader_without_a_length_is_refused() -> None:
    with pytest.raises(DataError, match=r"the loader has no length.*a method __len__"):
        next(fit(state_of(), DataLoader(Endless(), batch_size=8)))


def test_a_loader_that_ends_before_its_length_is_an_error_and_no_short_epoch() -> None:
    state = state_of()
    results = fit(state, DataLoader(Shorter(), batch_size=8))
    assert next(results).step == 3
    with pytest.raises(DataError, match=r"epoch 2 has 3 steps, but the batches ended after 2\. The length"):
        next(results)
    assert (state.step, len(state.history)) == (5, 1)


def test_a_loader_of_bytes_is_refused_and_doubles_become_floats() -> None:
    with pytest.raises(DataError, match=r"type torch.uint8, and a network needs floats"):
        next(fit(state_of(), loader_of(torch.uint8)))
    assert next(LoaderBatches(loader_of(torch.float64)).epoch(0)).images.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["training.frozen=true", "training.init=x.pt", "training.epochs=1"], "training.frozen computes"),
        (["training.init=x.pt"], "training.init names weights"),
        (["model.name='timm:resnet18'", "model.pretrained=true"], "model.pretrained names weights"),
    ],
)
def test_a_setting_that_the_loop_would_ignore_is_refused(settings: list[str], says: str) -> None:
    state = state_of(*settings)
    for batches in (FixedBatches(), loader_of()):
        with pytest.raises(RecipeError, match=says):
            next(fit(state, batches))
    assert state.step == 0


def test_a_restored_state_need_not_read_the_weights_that_it_began_with() -> None:
    begun = state_of("training.init=x.pt")
    begun.load_state_dict(stopped_at(5).state_dict())
    assert [result.step for result in fit(begun, FixedBatches())] == [6, 9, 12]


def test_batches_that_skip_pictures_are_refused_unless_the_state_tells_them_the_losses() -> None:
    state, batches = of_twelve_steps("skip_easy")
    other, recipe = of_twelve_steps("skip_easy")[0], state.recipe
    alone = TrainingState(small_model(), recipe, len(batches), CPU)
    for wrong in (alone, other):
        with pytest.raises(RecipeError, match=r"data\.skip_easy .*build_state"):
            next(fit(wrong, batches))
    by_hand = TrainingState(small_model(), recipe, len(batches), CPU, selection=batches.selection)
    for right in (state, by_hand):
        next(fit(right, batches))


def test_fit_neither_prints_nor_writes(capfd: pytest.CaptureFixture[str]) -> None:
    list(fit(state_of(), FixedBatches()))
    out, err = capfd.readouterr()
    assert out + err == ""
    for node in ast.walk(ast.parse(inspect.getsource(fit_module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "open")


def test_the_training_mode_is_set_in_training_and_eval_mode_in_evaluating() -> None:
    modes: list[bool] = []

    class Watching(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append(self.training)
            return super().forward(x)  # type: ignore[no-untyped-call]

    def evaluate(model: nn.Module) -> Score:
        assert not model.training
        return Score("test", 0.5, 1.0)

    state = state_of("training.epochs=2", model=Watching(*small_model()))  # type: ignore[misc]
    results = list(fit(state, FixedBatches(), evaluate=evaluate))
    assert modes == [True] * 6
    assert [r.score for r in results] == [Score("test", 0.5, 1.0)] * 2


@pytest.mark.parametrize(("every", "expected"), [(0, [4]), (1, [1, 2, 3, 4]), (3, [3, 4])])
def test_evaluation_comes_as_often_as_the_recipe_says(every: int, expected: list[int]) -> None:
    state = state_of(f"evaluation.every={every}")
    results = fit(state, FixedBatches(), evaluate=lambda _: Score("test", 0.0, 0.0))
    assert [result.epoch for result in results if result.score] == expected


def test_the_best_epoch_is_kept_by_val_and_never_by_test() -> None:
    for split, kept in (("val", 2), ("test", 4)):
        accuracies = iter([0.1, 0.9, 0.9, 0.3])
        state = state_of()
        weights = []
        results = fit(state, FixedBatches(), evaluate=lambda _: Score(split, next(accuracies), 1.0))  # noqa: B023
        for _ in results:
            weights.append({name: t.clone() for name, t in state.model.state_dict().items()})
        final = state.final_weights()
        assert all(torch.equal(final[name], tensor) for name, tensor in weights[kept - 1].items())
        assert state.best_epoch == (2 if split == "val" else None)


def test_of_equally_accurate_epochs_the_one_with_less_loss_is_best() -> None:
    scores = iter(
        [Score("val", 0.9, 0.5), Score("val", 0.9, 0.4), Score("val", 0.9, 0.4), Score("val", 0.8, 0.1)]
    )
    state = state_of()
    list(fit(state, FixedBatches(), evaluate=lambda _: next(scores)))
    assert state.best_epoch == 2


def scored(*accuracies: float, split: str = "val", loss: float = 1.0) -> Callable[[nn.Module], Score]:
    """Evaluations with these results, one after the other."""
    results = iter(accuracies)
    return lambda _: Score(split, next(results), loss)


def test_patience_ends_the_training_and_keeps_the_best_epoch_or_the_last() -> None:
    for keep, kept in (("auto", 2), ("best", 2), ("last", 4)):
        state = state_of("training.patience=2", "training.epochs=9", f"training.keep={keep}")
        weights, results = [], []
        for result in fit(state, FixedBatches(), evaluate=scored(0.5, 0.9, 0.8, 0.9)):
            results.append(result)
            weights.append({name: t.clone() for name, t in state.model.state_dict().items()})
        assert [result.stopped for result in results] == ["", "", "", "no better val accuracy since epoch 2"]
        assert state.history == results
        assert (state.is_over, state.step, state.best_epoch, state.kept_epoch) == (True, 12, 2, kept)
        final = state.final_weights()
        assert all(torch.equal(final[name], tensor) for name, tensor in weights[kept - 1].items())
        assert "stopped" in results[-1].row()
        assert "stopped" not in results[0].row()


def test_patience_is_about_the_scores_on_all_of_val_only() -> None:
    state = state_of("training.patience=1", "evaluation.every=3", "training.epochs=9")
    whole, sample = scored(0.9, 0.8), scored(*[0.1] * 9)
    results = list(fit(state, FixedBatches(), evaluate=whole, evaluate_sample=sample))
    assert (len(results), bool(results[-1].stopped)) == (6, True)
    on_test = state_of("training.patience=1", "training.epochs=4")
    results = list(fit(on_test, FixedBatches(), evaluate=scored(0.9, 0.8, 0.7, 0.6, split="test")))
    assert (len(results), results[-1].stopped) == (4, "")


def test_a_smaller_loss_at_the_same_accuracy_renews_the_patience() -> None:
    scores = iter([Score("val", 0.9, loss, 8, 0.9) for loss in (0.5, 0.6, 0.4, 0.5, 0.4)])
    state = state_of("training.patience=2", "training.epochs=9")
    results = list(fit(state, FixedBatches(), evaluate=lambda _: next(scores)))
    assert [result.stopped for result in results] == [*[""] * 4, "no better val mAP since epoch 3"]


def test_a_training_that_ends_as_planned_was_not_stopped_early() -> None:
    state = state_of("training.patience=2", "training.epochs=3")
    results = list(fit(state, FixedBatches(), evaluate=scored(0.9, 0.8, 0.7)))
    assert [result.stopped for result in results] == [""] * 3


def test_a_restored_training_stops_at_the_same_epoch() -> None:
    accuracies = (0.5, 0.9, 0.8, 0.7, 0.6)
    settings = ("training.patience=3", "training.epochs=9")
    state = state_of(*settings)
    training = fit(state, FixedBatches(), evaluate=scored(*accuracies))
    for _ in range(3):
        next(training)
    again = state_of(*settings)
    again.load_state_dict(copy.deepcopy(state.state_dict()))
    rest = [result.stopped for result in fit(again, FixedBatches(), evaluate=scored(*accuracies[3:]))]
    assert rest == ["", "no better val accuracy since epoch 2"]
    over = state_of(*settings)
    over.load_state_dict(again.state_dict())
    assert list(fit(over, FixedBatches())) == [], "it was over already"


@dataclass(frozen=True)
class SecondOfTwo(World):
    """The second process of two. The first one has measured a little less."""

    def from_first(self, value: Any) -> Any:
        return replace(value, accuracy=value.accuracy - 0.1)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def send_buffers(self, module: nn.Module) -> None:
        pass


def test_all_processes_stop_by_the_score_of_the_first() -> None:
    state = state_of("training.patience=1", "training.epochs=9")
    state.world = SecondOfTwo(1, 2)
    results = list(fit(state, FixedBatches(), evaluate=scored(0.9, 0.8)))
    assert [result.score.accuracy for result in results if result.score] == pytest.approx([0.8, 0.7])
    assert results[-1].stopped


class PoisonedBatches(FixedBatches):
    """From the second epoch on, the second batch is infinite."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for index, batch in enumerate(self.batches[start:], start=start):
            bad = epoch >= 1 and index == 1
            yield Batch(batch.images * math.inf, batch.labels) if bad else batch


def test_a_loss_that_is_not_finite_stops_and_names_step_and_rate() -> None:
    state = state_of()
    results = fit(state, PoisonedBatches())
    next(results)
    with pytest.raises(DivergedError, match=r"loss is nan at step 5 \(learning rate 0\.1\)"):
        next(results)


def test_a_diverging_training_is_stopped() -> None:
    state = state_of("optimizer.lr=1e18", "training.epochs=30")
    with pytest.raises(DivergedError, match="learning rate 1e"):
        list(fit(state, FixedBatches()))


def spoil(state: TrainingState, at: int) -> None:
    """Make a gradient NaN in step ``at``, counted from 1, whose loss is finite."""
    next(state.model.parameters()).register_hook(
        lambda grad: grad * (math.nan if state.step == at - 1 else 1)
    )


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("split", ["val", "test", ""])
def test_a_gradient_of_nan_in_an_epochs_last_step_stops_before_the_evaluation(step: int, split: str) -> None:
    state, seen = state_of("training.epochs=2"), []

    def evaluate(model: nn.Module) -> Score:
        seen.append(all(bool(p.isfinite().all()) for p in model.parameters()))
        return Score(split, 0.5, 1.0)

    spoil(state, step)
    with pytest.raises(DivergedError, match=rf"the parameter 0\.weight is not finite .* at step {step} \("):
        list(fit(state, FixedBatches(), evaluate=evaluate if split else None))
    assert seen == [True] * (step // 3 - 1) * bool(split)
    assert len(state.history) == step // 3 - 1


def test_an_epoch_that_answers_with_nan_is_not_kept() -> None:
    scores = [Score("val", 0.9, math.nan), Score("val", 0.2, 1.0), Score("val", 0.8, math.nan)]
    state = state_of("training.epochs=3")
    list(fit(state, FixedBatches(), evaluate=lambda _: scores[state.epoch]))
    assert state.best_epoch == 2


class _Stop(Exception):
    pass


STOPPED = {
    "ema": ("training.ema_decay=0.9",),
    "nesterov": ("optimizer.nesterov=true", "training.label_smoothing=0.1"),
    "adamw": ("optimizer.name=adamw", "optimizer.lr=0.003"),
    "muon": ("optimizer.name=muon", "optimizer.momentum=0.6"),
    "skip_easy": ("data.skip_easy=0.15", "training.micro_batch=5"),
}


def of_twelve_steps(name: str) -> tuple[TrainingState, TrainBatches]:
    """A training of three epochs with four steps each, before its first one."""
    recipe = load_recipe("tutorial", [*TINY, "schedule.milestones=[0.5]", *STOPPED[name]])
    prepared = prepare(coloured_data(), recipe, CPU)
    return build_state(recipe, prepared, "rgb", CPU), prepared.train


@functools.cache
def uninterrupted(name: str) -> TrainingState:
    """The same training at its end."""
    state, batches = of_twelve_steps(name)
    list(fit(state, batches))
    return state


@pytest.mark.parametrize("stop_at", [1, 5, 11])  # in the first epoch, right after it, before the last step
@pytest.mark.parametrize("name", STOPPED)
def test_stopped_at_any_step_and_resumed_it_ends_bit_for_bit_the_same(stop_at: int, name: str) -> None:
    def stop(step: StepResult) -> None:
        if step.step == stop_at:
            raise _Stop

    whole = uninterrupted(name)
    stopped, batches = of_twelve_steps(name)
    with pytest.raises(_Stop):
        list(fit(stopped, batches, on_step=stop))
    resumed, batches = of_twelve_steps(name)
    resumed.load_state_dict(stopped.state_dict())
    resumed_results = list(fit(resumed, batches))

    assert [r.loss for r in whole.history] == [r.loss for r in resumed.history]
    assert len(resumed_results) == 3 - stop_at // 4
    for key, tensor in whole.final_weights().items():
        assert torch.equal(tensor, resumed.final_weights()[key]), key


def test_a_state_of_another_training_is_refused() -> None:
    recipe = load_recipe("tutorial", ["training.epochs=4"])
    other = TrainingState(small_model(), recipe, 5, CPU)
    with pytest.raises(ValueError, match="steps in an epoch"):
        state_of().load_state_dict(other.state_dict())


def test_the_average_of_the_weights_is_what_its_formula_says() -> None:
    state = state_of("training.ema_decay=0.5", "training.epochs=1")
    seen = [state.model.state_dict()["4.weight"].clone()]
    list(
        fit(
            state, FixedBatches(), on_step=lambda _: seen.append(state.model.state_dict()["4.weight"].clone())
        )
    )
    expected = seen[0]
    for step, newest in enumerate(seen[1:]):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * newest
    assert state.evaluated_model is not state.model
    assert torch.allclose(state.evaluated_model.state_dict()["4.weight"], expected, atol=1e-6)
    counts = state.evaluated_model.state_dict()["1.num_batches_tracked"]
    assert counts == 3


def test_the_first_step_has_the_schedules_first_rate_and_the_last_its_last() -> None:
    rates: list[float] = []

    class Recording(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    state = state_of("schedule.milestones=[0.5]")
    state.optimizer = Recording(
        [{"params": state.model.parameters(), "base_lr": 0.1}], lr=123.0, momentum=0.9
    )
    list(fit(state, FixedBatches()))
    assert rates == pytest.approx([0.1] * 6 + [0.01] * 6)
    assert rates == pytest.approx([0.1 * factor_at(state.recipe.schedule, s, 12) for s in range(12)])


@pytest.mark.skipif(not can_compile(CPU), reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_learns_the_same_to_within_rounding() -> None:
    plain, compiled = state_of(), state_of("training.compile=true")
    assert compiled.compiled
    expected, results = list(fit(plain, FixedBatches())), list(fit(compiled, FixedBatches()))
    assert [r.loss for r in results] == pytest.approx([r.loss for r in expected], rel=1e-3)
    assert plain.final_weights().keys() == compiled.final_weights().keys()


@pytest.mark.skipif(not can_compile(CPU), reason="torch.compile needs a C++ compiler")
def test_the_compiler_gets_the_recipes_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, ``reduce-overhead`` compiles the same code as ``default``: there are no CUDA graphs."""
    asked: list[tuple[str, bool]] = []

    def compile_in(forward: nn.Module, *, mode: str, dynamic: bool) -> nn.Module:
        asked.append((mode, dynamic))
        return forward

    monkeypatch.setattr(torch, "compile", compile_in)
    modes = ("default", "reduce-overhead", "max-autotune")
    for mode in modes:
        state = state_of("training.compile=true", f"training.compile_mode={mode}")
        assert state.compiled
        assert len(list(fit(state, FixedBatches()))) == 4
    assert asked == [(mode, False) for mode in modes]


def test_without_a_compiler_compiling_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    state = state_of("training.compile=true")
    assert not state.compiled
    assert len(list(fit(state, FixedBatches()))) == 4


def test_bf16_and_channels_last_train_too() -> None:
    recipe = load_recipe("tutorial", [*TINY, "training.precision=bf16", "data.mean=auto", "data.std=auto"])
    prepared = prepare(coloured_data(), recipe, CPU)
    state = build_state(recipe, prepared, "rgb", CPU)
    results = list(fit(state, prepared.train))
    assert state.dtype == torch.bfloat16
    assert results[-1].loss < results[0].loss
    assert all(p.dtype == torch.float32 for p in state.model.parameters())


# --- micro-batches, steps that are skipped ---------------------------------------------------------------


@pytest.mark.parametrize("micro", [2, 3, 8, 100])
def test_micro_batches_add_up_to_the_batchs_gradient(micro: int) -> None:
    def linear() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))

    batch = FixedBatches().batches[0]
    whole = state_of("training.label_smoothing=0.1", model=linear())
    parts = state_of("training.label_smoothing=0.1", f"training.micro_batch={micro}", model=linear())
    losses = [accumulate_gradients(state, batch) for state in (whole, parts)]
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)


class WithNaN(FixedBatches):
    """The second of each three batches has a picture of NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.batches[1].images[0] = math.nan


def test_a_step_whose_loss_is_not_finite_is_skipped_as_if_it_had_not_been() -> None:
    heard: list[StepResult] = []
    skipping = state_of("training.on_nonfinite=skip", "training.epochs=1", "training.ema_decay=0.9")
    results = list(fit(skipping, WithNaN(), on_step=heard.append))
    assert skipping.skipped == [2]
    assert [step.skipped for step in heard] == [False, True, False]
    assert math.isfinite(results[0].loss)

    plain = state_of("training.epochs=1", "training.ema_decay=0.9")  # the same, but for that batch
    batches = FixedBatches()
    for number in (0, 2):
        plain.step = number
        plain.optimizer.zero_grad()
        plain.model.train()
        accumulate_gradients(plain, batches.batches[number])
        plain.optimizer.step()
        plain.update_average()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, skipping.model.state_dict()[name]), name
    for name, value in plain.evaluated_model.state_dict().items():
        assert torch.equal(value, skipping.evaluated_model.state_dict()[name]), name


def test_no_more_steps_than_allowed_are_skipped() -> None:
    state = state_of("training.on_nonfinite=skip", "training.max_skips=2")
    with pytest.raises(DivergedError, match="step 8"):
        list(fit(state, WithNaN()))
    assert state.skipped == [2, 5, 8]
    assert all(bool(p.isfinite().all()) for p in state.model.parameters())


def test_skipped_steps_survive_a_checkpoint() -> None:
    state = state_of("training.on_nonfinite=skip", "training.epochs=2")
    next(fit(state, WithNaN()))
    again = state_of("training.on_nonfinite=skip", "training.epochs=2")
    again.load_state_dict(state.state_dict())
    list(fit(again, WithNaN()))
    assert again.skipped == [2, 5]


def test_memory_that_does_not_suffice_names_the_batch_and_what_to_set() -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with pytest.raises(OutOfMemoryError, match=r"8 pictures in a forward pass.*\n.*--micro-batch 4"):
        list(fit(state_of(model=Greedy()), FixedBatches()))


def stopped_at(step: int, *overrides: str) -> TrainingState:
    """A training that was interrupted after a step, at the end of an epoch before its evaluation."""
    state = state_of(*overrides)

    def on_step(done: StepResult) -> None:
        if done.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(fit(state, FixedBatches(), on_step=on_step))
    return state


@pytest.mark.parametrize(("step", "epoch"), [(1, 1), (5, 2), (6, 2)])
def test_a_training_that_is_ended_early_closes_its_epoch_with_a_whole_score(step: int, epoch: int) -> None:
    state = stopped_at(step, "evaluation.every=0")
    weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    result = end_early(state, "enough", scored(0.7))
    assert (result.epoch, result.step, result.stopped, result.score) == (
        epoch, step, "enough", Score("val", 0.7, 1.0),
    )  # fmt: skip
    assert result.loss > 0
    assert result.lr == state.recipe.optimizer.lr * factor_at(state.recipe.schedule, step - 1, 12)
    assert (state.is_over, state.best_epoch) == (True, epoch)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state.final_weights().items())
    again = state_of("evaluation.every=0")
    again.load_state_dict(copy.deepcopy(state.state_dict()))
    assert list(fit(again, FixedBatches())) == [], "it stays over"


def test_a_training_that_is_ended_between_epochs_scores_the_newest_one_unless_it_is_known() -> None:
    sampled, known = state_of("evaluation.every=0"), state_of("evaluation.every=1")
    next(fit(sampled, FixedBatches(), evaluate_sample=scored(0.2)))
    assert end_early(sampled, "enough", scored(0.6)).score == Score("val", 0.6, 1.0)
    next(fit(known, FixedBatches(), evaluate=scored(0.5)))
    assert end_early(known, "enough", scored()).score == Score("val", 0.5, 1.0)
    for state in (sampled, known):
        (only,) = state.history
        assert (only.step, only.sample, only.stopped) == (3, None, "enough")
        assert (state.is_over, state.best_epoch) == (True, 1)


def test_an_interrupted_end_changes_nothing() -> None:
    state = state_of("evaluation.every=0")
    next(fit(state, FixedBatches()))

    def interrupt(model: nn.Module) -> Score:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        end_early(state, "enough", interrupt)
    assert (len(state.history), state.is_over) == (1, False)


def test_a_training_is_not_ended_with_a_loss_that_is_not_finite() -> None:
    state = stopped_at(5)
    state.losses[0] = torch.nan
    with pytest.raises(DivergedError):
        end_early(state, "enough")
