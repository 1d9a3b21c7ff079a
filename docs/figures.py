"""Draws the figures of the documentation, as SVG that fits light and dark pages.

    python docs/figures.py [NAME ...]

The figures are written to docs/images. `pareto` and `faults` show the numbers in the pages' tables. `report`
needs Chromium and its driver.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import thumbnet
from thumbnet.batches.prepare import prepare
from thumbnet.cli import main as run
from thumbnet.reports.augmented import preview_augmentation
from thumbnet.reports.figures import INK, augmented_figure, grid_figure, new_figure, save

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
BENCHMARKS = DOCS.parent / "benchmarks"
AIRBENCH = [1367.0, 90.74]  # seconds and percent, from docs/results.md


def residual_block() -> None:
    """A residual block: its layers, and the shortcut around them."""
    figure = new_figure(8, 2.3)
    figure.set_layout_engine("none")
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 10.4)
    axes.set_ylim(0, 3)
    names = ("conv 3x3", "BatchNorm", "ReLU", "conv 3x3", "BatchNorm")
    boxes = [(1.5 + 1.45 * number, 0.8, name, "#3b82c4", "round") for number, name in enumerate(names)]
    boxes += [(8.5, 0.8, "+", "#d97706", "circle"), (9.4, 0.8, "ReLU", "#3b82c4", "round")]
    boxes += [(4.4, 2.4, "identity, or conv 1x1 and BatchNorm", "#7d8794", "round")]
    drawn = []
    for x, y, text, colour, shape in boxes:
        box = {"boxstyle": f"{shape},pad=0.4", "facecolor": f"{colour}38", "edgecolor": INK}
        drawn.append(axes.text(x, y, text, ha="center", va="center", bbox=box, fontsize=9))
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()  # the boxes' places are known only then
    ends = [(0.1, 0.1)]
    for text in drawn[:-1]:
        corners = text.get_bbox_patch().get_window_extent().transformed(axes.transData.inverted())
        ends.append((corners.x0, corners.x1))
    arrow = {"arrowstyle": "->", "color": INK, "shrinkA": 0, "shrinkB": 0}
    for (_, left), (right, _) in zip(ends, [*ends[1:], (10.3, 10.3)], strict=True):
        axes.annotate("", (right, 0.8), (left, 0.8), arrowprops=arrow)
    identity = drawn[-1].get_bbox_patch().get_window_extent().transformed(axes.transData.inverted())
    plus = drawn[5].get_bbox_patch().get_window_extent().transformed(axes.transData.inverted())
    axes.plot([0.4, 0.4, identity.x0], [0.8, 2.4, 2.4], color=INK, linewidth=1)
    axes.plot([identity.x1, 8.5], [2.4, 2.4], color=INK, linewidth=1)
    axes.annotate("", (8.5, plus.y1), (8.5, 2.42), arrowprops=arrow)
    save(figure, IMAGES / "residual-block.svg")


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
        IMAGES / "batches.svg",
    )


def commands() -> None:
    """The figures of `thumbnet data`, `recipes show` and `lr-find`, by the guide's commands."""
    run(["data", "digits", "--plot", str(IMAGES / "samples.svg")])
    run(["recipes", "show", "one-cycle", "--plot", str(IMAGES / "one-cycle.svg")])
    run(["lr-find", "digits", "--plot", str(IMAGES / "lr-find.svg")])


def augment() -> None:
    """A few digits, and what augmentation makes of them."""
    changes = ["rotate=15", "scale=[0.8, 1.2]", "erase=0.3", "mixup=0.4"]
    recipe = thumbnet.load_recipe("digits", [f"augment.{change}" for change in changes])
    data = thumbnet.load_data("digits")
    found = prepare(data, recipe, torch.device("cpu")).preprocessing
    rows = preview_augmentation(data, recipe, found.size, found.mean, found.std)
    save(augmented_figure(rows[:4], "digits: what the network sees in training"), IMAGES / "augment.svg")


def report() -> None:
    """The confusion matrix and the report of a training on the digits."""
    with tempfile.TemporaryDirectory() as folder:
        trained = str(Path(folder) / "digits")
        run(["train", "digits", "--out", trained, "--quiet"])
        run(["evaluate", trained, "--plot", str(IMAGES / "confusion.svg")])
        run(["report", trained])
        for scheme, name in (("light", "report.png"), ("dark", "report-dark.png")):
            photograph(Path(trained) / "report.html", scheme, IMAGES / name)


def photograph(page: Path, scheme: str, out: Path) -> None:
    """Write what a browser shows of a page, in a light or a dark scheme."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for option in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(option)
    service = webdriver.ChromeService(shutil.which("chromedriver"))  # or Selenium looks for one on the web
    browser: Any = webdriver.Chrome(options=options, service=service)
    try:
        browser.set_window_size(1100, 1200)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(page.as_uri())
        browser.save_screenshot(str(out))
    finally:
        browser.quit()


def pareto() -> None:
    """Accuracy against time by epochs, from the table in the notebook."""
    sys.path.insert(0, str(BENCHMARKS))
    from accuracy import plot

    points = {}
    for cells in table(DOCS / "notebook" / "fast.md", "| epochs | n | test accuracy with TTA"):
        if cells[0] != "16":  # its label would cover that of 15
            points[int(cells[0])] = [{"accuracy": float(cells[2]) / 100, "seconds": float(cells[4])}]
    plot(points, AIRBENCH, str(IMAGES / "pareto.svg"), "two CPU cores")


def faults() -> None:
    """Each fault's accuracies, from the guide's table: the third of three seeds follows from their mean."""
    sys.path.insert(0, str(BENCHMARKS))
    from tutorial_faults import draw

    found = {}
    for name, mean, span, *_ in table(DOCS / "guide" / "faults.md", "| | test accuracy, % (mean)"):
        least, most = (float(number) for number in span.split(" to "))
        found[name] = [[least], [most], [3 * float(mean) - least - most]]
    draw(found, str(IMAGES / "faults.svg"))


def table(page: Path, head: str) -> list[list[str]]:
    """The rows of the table in a page whose first line begins with ``head``."""
    text = page.read_text()
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()
    return [re.split(r" *\| *", line.strip("| ").replace("−", "-")) for line in lines[2:]]


DRAWN = (residual_block, batches, commands, augment, report, pareto, faults)

if __name__ == "__main__":
    for draw in DRAWN:
        if not sys.argv[1:] or draw.__name__ in sys.argv[1:]:
            draw()
