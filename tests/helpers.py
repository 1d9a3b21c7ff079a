"""Helpers for several tests: pictures, folders of pictures, a tiny recipe, a local server."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thumbnet.data.images import load_picture, to_rgb
from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.splits import ArraySplit, Data, Split

# What turns, recolours and erases pictures.
TURNED = [
    "augment.flip_vertical=random",
    "augment.rotate=20",
    "augment.scale=[0.8, 1.2]",
    "augment.hue=0.1",
    "augment.saturation=0.3",
    "augment.erase=0.5",
]
TINY = [
    "model.name=resnet20",
    "model.width=0.5",
    "training.epochs=3",
    "training.batch_size=16",
    "training.precision=fp32",
    "evaluation.every=1",
    "data.skip_easy=0",
    "optimizer.lr=0.05",
    "augment.flip=random",
    "augment.translate=2",
]
"""Overrides that make a recipe small: about a second per epoch on :func:`coloured_data`."""


def noise(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    """Random pixels, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def open_image(source: str | bytes, name: str) -> Image.Image:
    """The picture in a file or in bytes, as RGB."""
    return to_rgb(load_picture(source, name))


def coloured(label: int, seed: int, side: int = 16) -> np.ndarray:
    """A noisy picture whose brightest channel is its label's, so it is easy to learn."""
    return _coloured(label % 3, seed, side).copy()


@functools.lru_cache(1000)  # most tests need the same hundred pictures
def _coloured(channel: int, seed: int, side: int) -> np.ndarray:
    image = noise(seed, side, side) // 3
    image[..., channel] += 120
    return image


def coloured_data(count: int = 60, side: int = 16, splits: Sequence[str] = ("train", "test")) -> Data:
    """Three classes that a network learns in a few steps."""
    made = {}
    for number, split in enumerate(splits):
        labels = np.arange(count) % 3
        images = np.stack([coloured(int(c), 10_000 * number + i, side) for i, c in enumerate(labels)])
        made[split] = ArraySplit(images, labels, split)
    return Data("coloured", "made by the tests", ("red", "green", "blue"), dict(made))


def numbered(**seeds: Sequence[int]) -> Data:
    """Splits of pictures with these seeds. The tiny run was trained on those with the seeds 0 to 59."""
    made: dict[str, Split] = {}
    for split, numbers in seeds.items():
        images = np.stack([coloured(seed % 3, seed) for seed in numbers])
        made[split] = ArraySplit(images, np.array(numbers) % 3, split)
    return Data("numbered", "made by the tests", ("red", "green", "blue"), made)


def coloured_labels(
    count: int = 120, splits: Sequence[str] = ("train", "val", "test"), side: int = 16
) -> Data:
    """Pictures with up to three labels, each of which brightens a channel; a network learns them quickly."""
    made: dict[str, Split] = {}
    for number, split in enumerate(splits):
        generator = np.random.default_rng(number)
        targets = generator.random((count, 3)) < 0.4
        dark = generator.integers(0, 85, (count, side, side, 3))
        images = (dark + 120 * targets[:, None, None, :]).astype(np.uint8)
        pictures = ArraySplit(images, np.zeros(count, dtype=np.int64), split)
        made[split] = MultiLabelSplit(pictures, targets)
    return Data("colours", "made by the tests", ("red", "green", "blue"), made)


def write_label_table(root: Path, data: Data, separator: str = ";") -> Path:
    """``root/labels.csv`` with the columns path, labels and split, and the pictures in ``root``."""
    lines = ["path,labels,split"]
    for name, split in data.splits.items():
        for index in range(len(split)):
            path = f"{name}-{index}.png"
            write_picture(root / path, np.asarray(split.load(index)))
            found = np.flatnonzero(split.targets[index])
            lines.append(f"{path},{separator.join(data.class_names[i] for i in found)},{name}")
    table = root / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def write_picture(path: Path, image: np.ndarray | Image.Image, **options: Any) -> Path:
    """Save a picture, and create its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(path, **options)
    return path


def write_class_folders(root: Path, splits: Sequence[str], per_class: int = 6, side: int = 16) -> Path:
    """``root/SPLIT/CLASS/N.png`` of coloured pictures; a split named "" means ``root/CLASS/N.png``."""
    for offset, split in enumerate(splits):
        for label, name in enumerate(("red", "green", "blue")):
            for number in range(per_class):
                image = coloured(label, 10_000 * offset + 100 * label + number, side)
                write_picture(root / split / name / f"{number}.png", image)
    return root


def of_many_sizes(root: Path) -> Data:
    """60 pictures, each of a different size, both in train and in test."""
    from thumbnet.sources.load import load_data

    for number in range(60):
        side = 10 + 7 * number
        image = Image.fromarray(coloured(number % 3, number)).resize(
            (side, 200 - number), Image.Resampling.BICUBIC
        )
        write_picture(root / "test" / ("red", "green", "blue")[number % 3] / f"{number}.png", image)
        write_picture(root / "train" / ("red", "green", "blue")[number % 3] / f"{number}.png", image)
    return load_data(root)


class Payload:
    """An object that runs a shell command, which writes a file, when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.command = f"echo gotcha > {path}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@contextmanager
def serve(handle: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Run a server on loopback that answers requests with ``handle``; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            handle(self)

        do_HEAD = do_POST = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
