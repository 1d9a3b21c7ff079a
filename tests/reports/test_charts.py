"""The charts of a report."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn import metrics

pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")

from thumbnet.evaluation import micro_average, one_against_rest, reliability_bins
from thumbnet.reports import charts
from thumbnet.runs.folder import Run


def sample(classes: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, classes] that are often right, and labels; no picture has the last class."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes - 1, count)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def lines_of(classes: int) -> list[charts.Line]:
    probabilities, labels = sample(classes)
    names = [f"class {number}" for number in range(classes)]
    micro = micro_average(probabilities, labels)
    return charts.lines(names, one_against_rest(probabilities, labels), micro)


def luminance(colour: str) -> float:
    values = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("colour", charts.COLOURS)
def test_every_line_is_visible_on_a_light_and_on_a_dark_page(colour: str) -> None:
    """WCAG 1.4.11: graphics need a contrast of 3."""
    for paper in ("#ffffff", "#11161c"):
        low, high = sorted([luminance(colour), luminance(paper)])
        assert (high + 0.05) / (low + 0.05) >= 3


def test_few_classes_have_a_line_each_and_no_two_look_the_same() -> None:
    lines = lines_of(10)
    assert [line.name for line in lines] == [f"class {number}" for number in range(10)]
    assert len({(line.colour, line.dashes) for line in lines}) == 10
    probabilities, labels = sample(10)
    assert lines[0].auroc == pytest.approx(metrics.roc_auc_score(labels == 0, probabilities[:, 0]))
    assert np.isnan([lines[9].auroc, lines[9].average_precision]).all()  # it has no pictures
    assert lines[9].recalls is None
    assert lines[9].precisions is None


def test_many_classes_are_averaged() -> None:
    probabilities, labels = sample(11)
    micro, macro = lines_of(11)
    assert (micro.name, macro.name) == ("micro average", "macro average")
    one_hot = labels[:, None] == np.arange(11)
    assert micro.auroc == pytest.approx(metrics.roc_auc_score(one_hot, probabilities, average="micro"))
    assert macro.auroc == pytest.approx(
        metrics.roc_auc_score(one_hot[:, :10], probabilities[:, :10], average="macro")
    )
    assert macro.average_precision == pytest.approx(
        metrics.average_precision_score(one_hot[:, :10], probabilities[:, :10], average="macro")
    )


def test_the_drawn_curves_run_through_the_measured_points() -> None:
    probabilities, labels = sample(4)
    line = lines_of(4)[0]
    x, y, _ = metrics.roc_curve(labels == 0, probabilities[:, 0])
    assert line.recalls is not None
    for rate, recall in zip(charts.GRID, line.recalls, strict=True):
        assert recall == y[x <= rate].max()
    precision, recall, _ = metrics.precision_recall_curve(labels == 0, probabilities[:, 0])
    assert line.precisions is not None
    for share, drawn in zip(charts.GRID[1:], line.precisions[1:], strict=True):
        first = np.flatnonzero(recall >= share).max()  # recall falls from 1 to 0
        assert drawn == pytest.approx(precision[first])


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_every_bin_of_the_reliability_diagram_says_how_many_pictures_it_has() -> None:
    confidence = np.array([0.35] * 3 + [0.9] * 1200)
    bins = reliability_bins(confidence, np.arange(1203) % 2 == 0)
    shown = [text.strip() for text in texts(charts.reliability(bins))]
    assert [text for text in shown if text in ("3", "1,200")] == ["3", "1,200"]
    assert {"accuracy", "mean confidence", "pictures", "confidence"} <= set(shown)


def test_charts_are_transparent_and_use_the_text_colour_of_the_page(tiny_run: Run) -> None:
    lines = lines_of(3)
    curves = charts.learning_curves(tiny_run)
    assert [title for title, _ in curves] == ["Accuracy", "Loss", "Learning rate"]
    drawn = [*(chart for _, chart in curves), charts.roc(lines), charts.precision_recall(lines)]
    for svg in drawn:
        assert svg.startswith('<svg role="img" aria-label="')
        assert 'fill="currentColor"' in svg.split(">")[0]
        assert "#ffffff" not in svg
        assert "#000000" not in svg
        assert texts(svg)
    ids = [name for svg in drawn for name in re.findall(r'id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    widths = {re.findall(r'viewBox="0 0 ([\d.]+)', svg)[0] for svg in drawn}
    assert len(widths) == 1  # so text has the same size in all of them
    assert "final test accuracy" in " ".join(texts(drawn[0]))
