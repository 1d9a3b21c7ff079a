from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from thumbnet.batches.batches import Batch
from thumbnet.errors import OutOfMemoryError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.state import TrainingState
from thumbnet.training.steps import EagerSteps, choose_steps

CPU = torch.device("cpu")


class Three:
    """Three batches of 2, 2 and 1 pictures."""

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for count in (2, 2, 1)[start:]:
            yield Batch(torch.randn(count, 3, 16, 16), torch.zeros(count, dtype=torch.int64))


def state_of() -> TrainingState:
    recipe = load_recipe("tutorial", ["training.precision=fp32", "training.epochs=2"])
    return TrainingState(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), recipe, 3, CPU)


def test_on_the_cpu_each_operation_is_launched_by_itself() -> None:
    notes: list[str] = []
    assert type(choose_steps(state_of(), Three(), notes.append)) is EagerSteps
    assert notes == []


def test_an_epoch_takes_the_steps_left_and_says_how_many_pictures_each_had() -> None:
    state = state_of()
    counts = []
    for count in EagerSteps(state, Three()).epoch():
        counts.append(count)
        state.step += 1
        if state.step == 2:
            break
    assert counts == [2, 2]
    for count in EagerSteps(state, Three()).epoch():  # as after a resume
        counts.append(count)
        state.step += 1
    assert counts == [2, 2, 1]
    assert state.losses.count_nonzero() == 3
    assert EagerSteps(state, Three()).look() == float(state.losses[2])


def test_memory_that_does_not_suffice_for_a_batch_is_our_error() -> None:
    class Greedy(Three):
        def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
            if epoch == 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield from super().epoch(epoch, start)

    with pytest.raises(OutOfMemoryError, match=r"preparing a batch of 128 pictures.*\n.*--batch-size 64"):
        list(EagerSteps(state_of(), Greedy()).epoch())
