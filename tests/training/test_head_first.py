"""``schedule.head_first``: at first only the last layer learns, exactly as the step says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import TINY, coloured_data
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.errors import InterruptedRunError
from thumbnet.models.registry import is_of_head
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.training import graphed, session
from thumbnet.training.build import build_state
from thumbnet.training.continue_run import continuation
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.graphed import why_not_graphed
from thumbnet.training.schedules import factor_at
from thumbnet.training.state import TrainingState
from thumbnet.training.train import resume, train
from training_helpers import StopAfter

CPU = torch.device("cpu")
DATA = coloured_data(48)
# 12 steps, of which the first 6 train only the last layer; that phase ends in the middle of an epoch.
HALF = [
    *TINY,
    "model.width=0.25",
    "training.epochs=4",
    "schedule.head_first=0.5",
    "optimizer.weight_decay=0.1",
    "evaluation.every=0",
    "evaluation.sample=0",
]
STEPS, FROZEN = 12, 6


@pytest.fixture(autouse=True, scope="module")
def _no_probe() -> Iterator[None]:
    """No second training, which looks for mirrored classes, in the tests of the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "find_mirrored", lambda *_: [])
        yield


def fresh(recipe: str, *more: str) -> tuple[TrainingState, Prepared]:
    made = load_recipe(recipe, [*HALF, *more])
    prepared = prepare(DATA, made, CPU)
    return build_state(made, prepared, DATA.class_names, CPU), prepared


def tensors(state: TrainingState, model: torch.nn.Module | None = None) -> dict[str, Tensor]:
    found = (state.model if model is None else model).state_dict()
    return {name: tensor.clone() for name, tensor in found.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def trained(state: TrainingState, prepared: Prepared, on_step: Callable[[StepResult], None]) -> None:
    for _ in fit(state, prepared.train, on_step=on_step):
        pass


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("one-cycle", ["training.ema_decay=0.9"]),
        ("one-cycle", ["optimizer.name=adamw", "optimizer.lr=0.01", "optimizer.groups=[]", "training.micro_batch=8"]),
        ("one-cycle", ["training.precision=bf16", "training.on_nonfinite=skip"]),  # by the kernels, where there are some
        ("fast", ["model.name=fastnet", "model.width=0.125", "training.min_steps=0"]),  # Muon
    ],
)  # fmt: skip
def test_only_the_last_layer_changes_at_first_and_batchnorm_does_not_either(
    recipe: str, more: list[str]
) -> None:
    state, prepared = fresh(recipe, *more)
    body = {name for name in tensors(state) if not is_of_head(state.model, name)}
    learning = {name for name, p in state.model.named_parameters() if p.requires_grad}
    begun, averaged = tensors(state), tensors(state, state.evaluated_model)
    after: dict[int, set[str]] = {}

    def note(step: StepResult) -> None:
        after[step.step] = changed(begun, tensors(state))
        if step.step == FROZEN:
            assert not changed(averaged, tensors(state, state.evaluated_model)) & body

    trained(state, prepared, note)
    heads = {name for name in learning if is_of_head(state.model, name)}
    assert heads
    for step in range(1, FROZEN + 1):
        assert after[step] == heads, step
    assert after[FROZEN + 1] >= learning | {name for name in body if "running" in name}
    assert {name for name, p in state.model.named_parameters() if p.requires_grad} == learning


@pytest.mark.parametrize("stop", [FROZEN - 2, FROZEN, FROZEN + 1])
def test_a_resume_within_at_the_end_of_and_after_the_phase_gives_the_same_weights_to_the_bit(
    stop: int, whole: Run, tmp_path: Path
) -> None:
    with pytest.raises(InterruptedRunError):
        train(DATA, "one-cycle", overrides=HALF, out=tmp_path / "run", device="cpu", listener=StopAfter(stop))
    part = resume(tmp_path / "run", data=DATA, device="cpu")
    assert not changed(*(read_weights(run.weights_path)[0] for run in (whole, part)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("whole") / "run"
    return train(DATA, "one-cycle", overrides=HALF, out=out, device="cpu")


def test_a_training_from_another_runs_weights_keeps_them_at_first(tiny_run: Run) -> None:
    state, prepared = fresh(
        "finetune", "model.width=0.5", f"training.init={tiny_run.path}", "training.min_steps=0"
    )
    given, _ = read_weights(tiny_run.weights_path)

    def check(step: StepResult) -> None:
        if step.step == FROZEN:
            found = changed(given, tensors(state))
            assert found == {"head.weight", "head.bias"}

    trained(state, prepared, check)
    assert state.step == STEPS
    assert len(changed(given, tensors(state))) > 20


def test_more_epochs_train_all_layers_from_the_first_step(whole: Run) -> None:
    longer = continuation(whole.path, 2).recipe
    assert longer.schedule.head_first == 0
    assert longer.schedule.begin_at == pytest.approx((4 / 6 - 0.5) / 0.5)


def test_the_first_rate_of_more_epochs_is_that_of_one_long_training(whole: Run, tmp_path: Path) -> None:
    more = resume(whole.path, more_epochs=2, out=tmp_path / "more", data=DATA, device="cpu")
    for run, epochs, total in ((whole, 2, 6), (more, 6, 12)):
        planned = continuation(run.path, epochs).recipe.schedule
        for step in range(30):
            here = factor_at(planned, step, 30)
            start = 30 * (total - epochs) // epochs
            assert here == pytest.approx(factor_at(whole.recipe.schedule, start + step, start + 30), abs=0.02)
    assert continuation(whole.path, 9).recipe.schedule.begin_at == 0  # one long training is not so far yet


def test_such_a_training_is_not_recorded_as_a_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "DEVICES", ("cpu",))
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 0)
    state, prepared = fresh("one-cycle")
    reason = why_not_graphed(state, prepared.train)
    assert reason is not None
    assert "schedule.head_first" in reason
    state, prepared = fresh("one-cycle", "schedule.head_first=0")
    assert why_not_graphed(state, prepared.train) is None
