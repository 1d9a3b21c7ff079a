"""pytorch-cifar's ResNet-18, trained as its main.py trains: SGD, lr 0.1, cosine, crops and mirroring."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import Clock, Plan, Probe, Task, commit_of, main, result
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

BATCH = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def loader(task: Task, split: str) -> DataLoader[Any]:
    normal = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    crops = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    training = split == "train"
    pictures = datasets.ImageFolder(
        task.data / split, transforms.Compose(crops + normal if training else normal)
    )
    return DataLoader(pictures, BATCH, shuffle=training, num_workers=task.threads)


def forever(batches: DataLoader[Any]) -> Iterator[Any]:
    for _ in itertools.count():
        yield from batches


def train_steps(network: nn.Module, batches: DataLoader[Any], steps: int, tick: Callable[[], object]) -> None:
    """Train for ``steps`` steps, or until ``tick`` returns True."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    network.train()
    for images, labels in itertools.islice(forever(batches), steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        schedule.step()
        if tick():
            return


@torch.no_grad()
def accuracy(network: nn.Module, batches: DataLoader[Any]) -> float:
    network.eval()
    right = [network(images).argmax(1) == labels for images, labels in batches]
    return torch.cat(right).float().mean().item()


def train(task: Task) -> dict[str, Any]:
    clone = task.clones / "pytorch-cifar"
    sys.path.insert(0, str(clone))
    make = importlib.import_module("models").ResNet18
    batches = loader(task, "train")
    probe = Probe(task.budget)
    train_steps(make(), batches, 10_000, probe.tick)
    steps = max(1, int(task.budget / probe.per_step))
    network, clock = make(), Clock()
    clock.start()
    train_steps(network, batches, steps, lambda: None)
    clock.stop()
    shown = steps * BATCH
    epochs = -(-steps // len(batches))
    return result(
        clock.seconds,
        accuracy(network, loader(task, "test")),
        Plan(epochs, shown // epochs),
        f"pytorch-cifar {commit_of(clone)}",
        probe.per_step / BATCH,
    )


if __name__ == "__main__":
    main(train)
