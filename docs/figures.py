"""Draws two of the guide's figures. Commands next to the other figures draw those.

    python docs/figures.py

The figures are written to docs/images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import thumbnet
from thumbnet.batches.prepare import prepare
from thumbnet.reports.figures import INK, grid_figure, new_figure, save

IMAGES = Path(__file__).with_name("images")


def residual_block() -> None:
    """A residual block: its layers, and the shortcut around them."""
    figure = new_figure(8, 2.3)
    figure.set_layout_engine("none")
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 10.4)
    axes.set_ylim(0, 3)
    arrow = {"arrowstyle": "->", "color": INK}
    axes.annotate("", (10.3, 0.8), (0.1, 0.8), arrowprops=arrow)
    axes.plot([0.5, 0.5, 8.5], [0.8, 2.4, 2.4], color=INK, linewidth=1)
    axes.annotate("", (8.5, 1.05), (8.5, 2.43), arrowprops=arrow)
    steps = ("conv 3x3", "BatchNorm", "ReLU", "conv 3x3", "BatchNorm")
    boxes = [(1.5 + 1.45 * number, 0.8, name, "#dce9f5", "round") for number, name in enumerate(steps)]
    boxes += [(8.5, 0.8, "+", "#fbe3d3", "circle"), (9.4, 0.8, "ReLU", "#dce9f5", "round")]
    boxes += [(4.4, 2.4, "identity, or conv 1x1 and BatchNorm", "white", "round")]
    for x, y, text, colour, shape in boxes:
        box = {"boxstyle": f"{shape},pad=0.4", "facecolor": colour, "edgecolor": INK}
        axes.text(x, y, text, ha="center", va="center", bbox=box, fontsize=9)
    save(figure, IMAGES / "residual-block.png")


def batches() -> None:
    """The first digits of three epochs, as the network sees them."""
    settings = ["augment.translate=4", "augment.cutout=8", "training.epochs=3"]
    recipe = thumbnet.load_recipe("digits", settings)
    prepared = prepare(thumbnet.load_data("digits"), recipe, torch.device("cpu"))
    mean, std = (torch.tensor(values) for values in (prepared.preprocessing.mean, prepared.preprocessing.std))
    shown = {}
    for epoch in range(3):
        images = next(prepared.train.epoch(epoch)).images[:10].permute(0, 2, 3, 1).float()
        shown[f"epoch {epoch + 1}"] = list(
            ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        )
    save(
        grid_figure(shown, "the first pictures of three epochs: shuffled, shifted, with cutout"),
        IMAGES / "batches.png",
    )


if __name__ == "__main__":
    residual_block()
    batches()
