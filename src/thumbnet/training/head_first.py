"""The first part of a training in which only the last layer learns, see ``schedule.head_first``.

A new last layer sends meaningless gradients into layers that are trained already. So at first these layers
stay as they are: no gradient, no update, no weight decay. They are in eval mode, so that BatchNorm uses the
statistics that it has and does not change them.
"""

from __future__ import annotations

from torch import Tensor

from thumbnet.models.registry import head_name
from thumbnet.training.schedules import trains_head_only
from thumbnet.training.state import TrainingState


def set_phase(state: TrainingState) -> None:
    """Freeze all layers but the last one for the step ``state.step``, or let them learn.

    The step alone decides, so a resumed training does the same.
    """
    schedule = state.recipe.schedule
    if not schedule.head_first:
        return
    frozen = trains_head_only(schedule, state.step, state.total_steps)
    head = state.model.get_submodule(head_name(state.model))
    state.model.train(not frozen)
    head.train()
    for parameter in _body(state, set(head.parameters())):
        parameter.requires_grad_(not frozen)


def _body(state: TrainingState, head: set[Tensor]) -> list[Tensor]:
    """The parameters that the optimizer updates, without those of the last layer."""
    groups = state.optimizer.param_groups
    return [parameter for group in groups for parameter in group["params"] if parameter not in head]
