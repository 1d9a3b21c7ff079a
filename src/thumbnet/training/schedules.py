"""The learning-rate factor and the size of the pictures, as pure functions of the training's progress.

Nothing here counts calls, so the schedule cannot get out of step: the first step has the first rate.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import SMALLEST_SIDE, ScheduleSettings


def factor_at(settings: ScheduleSettings, step: int, total_steps: int) -> float:
    """The factor on every learning rate at ``step`` (from 0) of ``total_steps``.

    The last step lies just before the end of the schedule, so its factor is near ``settings.end`` and does
    not reach it.
    """
    done = done_at(settings, step, total_steps)
    # Taken at the middle of the step, so that a warm-up from 0 does not waste its first step on a rate of 0.
    middle = done_at(settings, step + 0.5, total_steps)
    if settings.head_first:
        if trains_head_only(settings, step, total_steps):
            return 1.0
        done, middle = (after_head(settings, part) for part in (done, middle))
    if middle < settings.warmup:
        risen = middle / settings.warmup
        if settings.name == "one-cycle":
            risen = (1 - math.cos(math.pi * risen)) / 2
        return settings.start + (1 - settings.start) * risen
    if settings.name == "constant":
        return 1.0
    if settings.name == "multistep":
        # Rounded, so that a milestone of 0.7 in 10 steps is step 7 even if 7 / 10 < 0.7 in binary.
        return settings.factor ** sum(round(done, 12) >= milestone for milestone in settings.milestones)
    fallen = (done - settings.warmup) / (1 - settings.warmup)
    fallen = min(max(fallen, 0.0), 1.0)
    height = 1 - fallen if settings.name == "linear" else (1 + math.cos(math.pi * fallen)) / 2
    return settings.end + (1 - settings.end) * height


def trains_head_only(settings: ScheduleSettings, step: int, total_steps: int) -> bool:
    """Whether only the last layer learns at ``step``, see ``schedule.head_first``."""
    return round(done_at(settings, step, total_steps), 12) < settings.head_first


def after_head(settings: ScheduleSettings, done: float) -> float:
    """The part of the schedule that is over when ``done`` of the training is; it begins after the head."""
    return max(0.0, (done - settings.head_first) / (1 - settings.head_first))


def learning_rates(recipe: Recipe, points: int) -> tuple[list[float], list[float]]:
    """The learning rate at evenly spaced ``points`` of a training, for a figure: epochs and rates."""
    total = (recipe.schedule.planned_steps or (points,))[-1]
    steps = [total * point // points for point in range(points)]
    epochs = [recipe.training.epochs * step / total for step in steps]
    return epochs, [recipe.optimizer.lr * factor_at(recipe.schedule, step, total) for step in steps]


def done_at(settings: ScheduleSettings, step: float, total_steps: int) -> float:
    """The part of the schedule that is over at ``step``, in [0, 1]."""
    done = step / total_steps
    if settings.planned_at:
        done = 0.0
        for start, end, until in zip(
            settings.planned_at, settings.planned_steps, (*settings.planned_at[1:], math.inf), strict=True
        ):
            done += (1 - done) * (min(step, until) - start) / (end - start)
            if step <= until:
                break
    return settings.begin_at + (1 - settings.begin_at) * done if settings.begin_at else done


def replanned(settings: ScheduleSettings, step: int, total_steps: int, new_total: int) -> ScheduleSettings:
    """The schedule for a training that at ``step`` decides to end after ``new_total`` steps instead.

    Up to ``step`` nothing changes. From there on, the rest of the schedule is spread over the steps left, so
    that the training still ends at its last learning rate.

    Args:
        settings: the schedule until now.
        step: the number of steps done.
        total_steps: the number of steps that the training had until now.
        new_total: its number of steps from now on, greater than ``step``.
    """
    at, steps = settings.planned_at or (0,), settings.planned_steps or (total_steps,)
    if at[-1] == step:
        at, steps = at[:-1], steps[:-1]
    return replace(settings, planned_at=(*at, step), planned_steps=(*steps, new_total))


def resize_at(settings: ScheduleSettings, images: Tensor, step: int, total_steps: int) -> Tensor:
    """Scale a batch (float [B, C, H, W]) down to the size that pictures have at ``step``, antialiased."""
    done = done_at(settings, step, total_steps)
    height, width = images.shape[-2:]
    return resize(images, size_at(settings, done, (height, width)))


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale ``images`` (float [B, C, H, W]) to ``size`` (height, width), antialiased."""
    if size == tuple(images.shape[-2:]):
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def size_at(settings: ScheduleSettings, done: float, size: tuple[int, int]) -> tuple[int, int]:
    """The size (height, width) of pictures of ``size`` when the part ``done`` of the schedule is over."""
    if done >= settings.small_until:
        return size
    sides = settings.small_sides
    number = min(int(done / settings.small_until * len(sides)), len(sides) - 1)
    return _scaled(sides[number], *size)


def sizes_after(
    settings: ScheduleSettings, done: float, size: tuple[int, int]
) -> list[tuple[float, tuple[int, int]]]:
    """Which sizes (height, width) pictures of ``size`` have after the part ``done`` of the schedule.

    Returns:
        Each size with its share of the rest of the schedule, in order. The shares add up to 1.
    """
    parts, rest, found = len(settings.small_sides), 1 - done, []
    for end in (*(settings.small_until * (part + 1) / parts for part in range(parts)), 1.0):
        if end > done:
            found.append(((end - done) / rest, size_at(settings, (done + end) / 2, size)))
            done = end
    return found or [(1.0, size_at(settings, done, size))]


def pixels_after(settings: ScheduleSettings, step: float, total_steps: int, size: tuple[int, int]) -> float:
    """The work left after ``step``: the sum over all later steps of the pixels of one of their pictures."""
    sizes = sizes_after(settings, done_at(settings, step, total_steps), size)
    return (total_steps - step) * sum(share * height * width for share, (height, width) in sizes)


def smaller_sizes(settings: ScheduleSettings, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes (height, width) below ``size`` that :func:`resize_at` gives pictures during a training."""
    if settings.small_until <= settings.begin_at:
        return []
    sizes = [_scaled(side, *size) for side in settings.small_sides]
    return [one for one in dict.fromkeys(sizes) if one != size]


def _scaled(side: float, height: int, width: int) -> tuple[int, int]:
    """Both sides times ``side``, but none below ``SMALLEST_SIDE``, and at most the full ones."""
    side = max(side, SMALLEST_SIDE / min(height, width))
    return (height, width) if side >= 1 else (round(height * side), round(width * side))
