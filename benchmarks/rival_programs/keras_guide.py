"""Keras on PyTorch: the network, batch and learning rate of its guide "Image classification from scratch".

They are read from the guide's program, which the user downloads: its function ``make_model`` is run, the rest
is not.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
from common import PROBE_PICTURES, Clock, Probe, Task, link_pictures, main, plan, result, version_of
from keras import layers

GUIDE = "image_classification_from_scratch.py"


class Timed(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.on_train_begin, self.on_train_batch_end = clock.start, clock.stop


class Probing(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe = probe

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.probe.tick():
            raise StopIteration


class Guide:
    """What the guide's program says."""

    def __init__(self, file: Path) -> None:
        text = file.read_text("utf-8")
        functions = [node for node in ast.parse(text).body if getattr(node, "name", "") == "make_model"]
        names: dict[str, Any] = {"keras": keras, "layers": layers}
        exec(compile(ast.Module(functions, []), str(file), "exec"), names)
        self.make_model = names["make_model"]
        self.batch = int(re.findall(r"^batch_size = (\d+)", text, re.M)[0])
        self.rate = float(re.findall(r"Adam\(([\d.e-]+)\)", text)[0])

    def network(self, size: int) -> Any:
        """A new network, with the guide's augmentation in front, ready to train."""
        inner = self.make_model((size, size, 3), 10)
        augmented = [layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)]
        network = keras.Sequential([keras.Input((size, size, 3)), *augmented, inner])
        logits = getattr(inner.layers[-1].activation, "__name__", "linear") == "linear"
        network.compile(
            optimizer=keras.optimizers.Adam(self.rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
            metrics=["accuracy"],
        )
        return network

    def pictures(self, folder: Path, size: int, shuffle: bool) -> Any:
        return keras.utils.image_dataset_from_directory(
            folder, image_size=(size, size), batch_size=self.batch, shuffle=shuffle, seed=0, format="grain"
        )


def train(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    guide, probe, clock = Guide(task.clones / GUIDE), Probe(task.budget), Clock()
    few = link_pictures(task.data, task.work / "few", 4 * PROBE_PICTURES, 100)
    with contextlib.suppress(StopIteration):
        guide.network(task.size).fit(
            guide.pictures(few / "train", task.size, True), callbacks=[Probing(probe)], verbose=0
        )
    per_picture = probe.per_step / guide.batch
    chosen = plan(per_picture, task.budget, task.pictures, guide.batch)
    folder = link_pictures(task.data, task.work / "pictures", chosen.pictures)
    network = guide.network(task.size)
    network.fit(
        guide.pictures(folder / "train", task.size, True),
        epochs=chosen.epochs,
        callbacks=[Timed(clock)],
        verbose=0,
    )
    _, right = network.evaluate(guide.pictures(task.data / "test", task.size, False), verbose=0)
    return result(clock.seconds, float(right), chosen, version_of("keras", "torch"), per_picture)


if __name__ == "__main__":
    main(train)
