"""Ultralytics' classification training of yolo11n-cls from scratch, as its page on CIFAR-10 shows."""

from __future__ import annotations

import os
from typing import Any

import torch
from common import PROBE_PICTURES, Clock, Probe, Task, link_pictures, main, plan, result, version_of

os.environ["YOLO_OFFLINE"] = "True"  # no updates, no statistics, no downloads

from ultralytics import YOLO, settings

BATCH = 64  # a step's size also with the default of 16, which then accumulates gradients, and is slower


def fit(task: Task, data: str, name: str, callbacks: dict[str, Any], **chosen: Any) -> Any:
    """Train a new network with the given callbacks; return the metrics of its last evaluation."""
    network = YOLO("yolo11n-cls.yaml")

    def use_all_cores(_: Any) -> None:  # ultralytics leaves one core idle, also of two
        torch.set_num_threads(task.threads)

    network.add_callback("on_train_start", use_all_cores)
    for event, function in callbacks.items():
        network.add_callback(event, function)
    return network.train(
        data=data,
        imgsz=task.size,
        batch=BATCH,
        device="cpu",
        pretrained=False,
        cache="ram",
        val=False,
        plots=False,
        project=str(task.work),
        name=name,
        **chosen,
    )


def train(task: Task) -> dict[str, Any]:
    settings.update({"sync": False})
    probe, clock = Probe(task.budget), Clock()

    def tick(trainer: Any) -> None:
        trainer.stop = trainer.stop or probe.tick()

    few = link_pictures(task.data, task.work / "few", PROBE_PICTURES, 100)
    fit(task, str(few), "probe", {"on_train_batch_end": tick}, epochs=1)
    per_picture = probe.per_step / BATCH
    chosen = plan(per_picture, task.budget, task.pictures, BATCH)
    pictures = link_pictures(task.data, task.work / "pictures", chosen.pictures)
    metrics = fit(
        task,
        str(pictures),
        "run",
        {"on_train_start": clock.start, "on_train_epoch_end": clock.stop},
        epochs=chosen.epochs,
        warmup_epochs=0.03 * chosen.epochs,  # the default is 3 of 100 epochs
    )
    return result(clock.seconds, float(metrics.top1), chosen, version_of("ultralytics", "torch"), per_picture)


if __name__ == "__main__":
    main(train)
