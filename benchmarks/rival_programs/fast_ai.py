"""fastai's Learner, xresnet18 and one-cycle schedule, as chapter 7 of its book trains from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import Clock, Probe, Task, link_pictures, main, plan, result, version_of
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.schedule import Learner
from fastai.data.transforms import Normalize, get_image_files
from fastai.metrics import accuracy
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders
from fastai.vision.models.xresnet import xresnet18

BATCH = 64  # fastai's default


class Timed(Callback):  # type: ignore[misc]
    """Time the training; skip the evaluation after each epoch."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def before_fit(self) -> None:
        self.clock.start()

    def after_batch(self) -> None:
        self.clock.stop()

    def before_validate(self) -> None:
        raise CancelValidException


class Probing(Callback):  # type: ignore[misc]
    """Stop the training once its speed is known."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def after_batch(self) -> None:
        if self.probe.tick():
            raise CancelFitException


def learner(task: Task, folder: Path) -> Any:
    loaders = ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="test",
        bs=BATCH,
        item_tfms=Resize(task.size),
        batch_tfms=[*aug_transforms(size=task.size, min_scale=0.75), Normalize.from_stats(*imagenet_stats)],
        num_workers=task.threads,
    )
    return Learner(loaders, xresnet18(n_out=loaders.c), metrics=accuracy, path=task.work)


def train(task: Task) -> dict[str, Any]:
    probe, clock = Probe(task.budget), Clock()
    trial = learner(task, task.data)
    with trial.no_bar(), trial.no_logging():
        trial.fit_one_cycle(1, 3e-3, cbs=Probing(probe))
    per_picture = probe.per_step / BATCH
    chosen = plan(per_picture, task.budget, task.pictures, BATCH)
    learn = learner(task, link_pictures(task.data, task.work / "pictures", chosen.pictures))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(chosen.epochs, 3e-3, cbs=Timed(clock))
        test = learn.dls.test_dl(get_image_files(task.data / "test"), with_labels=True)
        _, right = learn.validate(dl=test)
    return result(clock.seconds, float(right), chosen, version_of("fastai", "torch"), per_picture)


if __name__ == "__main__":
    main(train)
