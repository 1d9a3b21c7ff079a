"""The figures that commands draw."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")

from thumbnet.errors import MissingExtraError, ThumbnetError
from thumbnet.evaluation import Evaluation, evaluate_logits
from thumbnet.recipes.recipe import load_recipe
from thumbnet.reports import figures
from thumbnet.reports.comparison import group_runs
from thumbnet.runs.folder import Run
from thumbnet.training.range_test import RangeTest


def drawn(line: Any) -> tuple[list[float], list[float]]:
    """The x and y values of a line."""
    return [float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()]


def evaluation_of(classes: int) -> Evaluation:
    labels = np.arange(3 * classes) % classes
    logits = 4.0 * np.eye(classes)[(labels + (np.arange(3 * classes) < classes)) % classes]
    return evaluate_logits(logits, labels, tuple(f"class {i}" for i in range(classes)))


def test_every_known_suffix_gives_a_file_of_that_format(tmp_path: Path) -> None:
    figure = figures.new_figure(2, 1)
    for name, head in (("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")):
        figures.save(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(head)


def test_an_svg_is_transparent_and_its_text_follows_the_colour_scheme(tmp_path: Path) -> None:
    figures.save(figures.confusion_figure(evaluation_of(3), "a & b"), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.get("fill") == "currentColor"
    assert "a & b" in [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "@media (prefers-color-scheme: dark)" in text
    for colour in ("#ffffff", "#000000", figures.INK.upper()):
        assert colour not in text.replace("fill: #ffffff", "")  # white numbers on full cells
    assert text.count(figures.INK) == 1  # in the style


def test_names_with_dollar_signs_are_drawn_as_they_are() -> None:
    """Between two dollar signs, matplotlib expects a formula, and fails if it is none."""
    names = (r"$\oops$", "a$b$c", "100 $")
    evaluation = evaluate_logits(np.eye(3), np.arange(3), names)
    svg = figures.as_svg(figures.confusion_figure(evaluation, r"in $\oops$"))
    shown = {one.text for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {*names, r"in $\oops$"} <= shown


def test_an_empty_cell_is_transparent() -> None:
    (axes,) = figures.confusion_figure(evaluation_of(3), "").axes
    colours = axes.images[0].get_cmap()
    assert colours(0.0)[3] == 0
    assert colours(1.0)[3] == 1


def test_a_figure_shows_itself_in_a_notebook() -> None:
    assert figures.new_figure(2, 1)._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "message"), [("a.bmp", "must end in .png, .svg, .pdf"), ("no/such/a.png", "there is no folder")]
)
def test_a_path_that_cannot_be_written_is_refused_before_the_work(
    name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ThumbnetError, match=message):
        figures.check_plot_path(tmp_path / name)
    assert figures.check_plot_path(tmp_path / "a.png") == tmp_path / "a.png"


def test_without_matplotlib_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="plot"):
        figures.check_plot_path(tmp_path / "a.png")


@pytest.mark.parametrize(("classes", "numbers"), [(3, True), (26, False), (60, False)])
def test_a_confusion_matrix_shows_counts_if_they_fit(classes: int, numbers: bool) -> None:
    evaluation = evaluation_of(classes)
    (axes,) = figures.confusion_figure(evaluation, "a title").axes
    shares = np.asarray(axes.images[0].get_array())
    counts = np.array(evaluation.confusion)
    assert np.allclose(shares, counts / counts.sum(axis=1, keepdims=True))
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    expected = {(r, c): str(counts[r, c]) for r, c in np.argwhere(counts)} if numbers else {}
    assert written == expected
    assert axes.get_title() == "a title"


def test_with_many_classes_only_some_names_are_shown() -> None:
    (axes,) = figures.confusion_figure(evaluation_of(120), "").axes
    assert [one.get_text() for one in axes.get_xticklabels()] == [f"class {i}" for i in range(0, 120, 3)]


def test_curves_have_one_line_per_run_and_one_legend_entry_per_group(tiny_run: Run, tmp_path: Path) -> None:
    for seed in (1, 2):
        shutil.copytree(tiny_run.path, tmp_path / str(seed))
        Run(tmp_path / str(seed)).write_recipe(replace(tiny_run.recipe, seed=seed))
    (group,) = group_runs([tiny_run, Run(tmp_path / "1"), Run(tmp_path / "2")])
    accuracies, losses = figures.curves_figure([group]).axes
    metrics = [json.loads(line) for line in (tiny_run.path / "metrics.jsonl").read_text().splitlines()]
    runs = [one for one in accuracies.lines if len(drawn(one)[0]) == 3 and one.get_linestyle() == "-"]
    assert len(runs) == 3
    assert drawn(runs[0])[1] == pytest.approx([100 * one["test_accuracy"] for one in metrics])
    labels = accuracies.get_legend_handles_labels()[1]
    assert labels.count("one-cycle (n = 3)") == 1
    stars = [line for line in accuracies.lines if line.get_marker() == "*"]
    assert [drawn(star)[1][0] for star in stars] == [100 * tiny_run.summary["accuracy"]] * 3
    dashed = [line for line in losses.lines if line.get_linestyle() == "--"]
    assert drawn(dashed[0])[1] == pytest.approx([one["loss"] for one in metrics])
    assert losses.get_legend_handles_labels()[1] == ["test", "training"]


def test_a_run_without_a_final_accuracy_has_no_star(tiny_run: Run) -> None:
    axes = figures.new_figure(2, 2).add_subplot()
    summary = {**tiny_run.summary, "accuracy": None}
    figures.draw_accuracies(axes, summary, [{"epoch": 1}, {"epoch": 2, "train_accuracy": 0.5}], "red", "blue")
    (line,) = axes.lines
    assert drawn(line) == ([2], [50.0])


def test_the_training_accuracy_says_whether_easy_pictures_were_skipped(tiny_run: Run) -> None:
    metrics = [{"epoch": 1, "train_accuracy": 0.5}]
    for skips, label in (
        (False, "training, on augmented pictures"),
        (True, "training, on augmented pictures not skipped"),
    ):
        axes = figures.new_figure(2, 2).add_subplot()
        figures.draw_accuracies(axes, tiny_run.summary, metrics, "red", "blue", skips=skips)
        assert axes.get_legend_handles_labels()[1][0] == label


def test_a_range_test_marks_the_suggested_rate() -> None:
    test = RangeTest([1e-4, 1e-3, 1e-2, 1e-1], [2.0, 1.5, 1.0, 9.0], suggestion=1e-3, least=1e-2)
    (axes,) = figures.range_test_figure(test).axes
    assert axes.get_xscale() == "log"
    assert drawn(axes.lines[0])[1] == [2.0, 1.5, 1.0, 9.0]
    assert drawn(axes.lines[1])[0] == [1e-3, 1e-3]
    assert axes.get_ylim()[1] == 3.0  # the divergence at the end is cut off
    assert axes.texts[0].get_text() == " suggestion: 0.001"


def test_a_schedule_is_drawn_over_the_epochs_up_to_the_peak_rate() -> None:
    recipe = load_recipe("one-cycle")
    (axes,) = figures.schedule_figure(recipe).axes
    times, rates = drawn(axes.lines[0])
    assert times[0] == 0
    assert recipe.training.epochs * 0.99 < times[-1] < recipe.training.epochs
    assert max(rates) == pytest.approx(recipe.optimizer.lr, rel=0.01)


def test_a_grid_has_a_row_per_class_and_empty_cells_if_pictures_are_missing() -> None:
    cell = np.zeros((4, 4, 3), dtype=np.uint8)
    figure = figures.grid_figure({"a": [cell, cell], "b" * 30: [cell], "c": []}, "samples")
    shown = [len(axes.images) for axes in figure.axes]
    assert shown == [1, 1, 1, 0, 0, 0]
    names = [axes.get_ylabel() for axes in figure.axes]
    assert names == ["a", "", "b" * 19 + "…", "", "c", ""]
