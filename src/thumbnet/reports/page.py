"""Write a run's report, a single self-contained HTML file. Needs the extra ``report``."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.classifiers.base import Classifier, SplitLogits
from thumbnet.classifiers.explain import highlight, likely_label_errors, occlusion_map
from thumbnet.classifiers.load import load_run
from thumbnet.data.corrections import describe_corrections
from thumbnet.data.images import Preprocessing, as_data_address
from thumbnet.data.splits import Data, Progress, Split
from thumbnet.errors import MissingExtraError, UnreadableImageError
from thumbnet.evaluation import evaluate_logits, log_softmax, reliability_bins
from thumbnet.files import write_file
from thumbnet.models import count_parameters
from thumbnet.reports.comparison import read_metrics
from thumbnet.reports.figures import INK, draw_accuracies, new_figure
from thumbnet.reports.summary import NOTHING_MEASURED, OPTIMISTIC, describe_calibration, is_optimistic
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.training.schedules import learning_rates
from thumbnet.version import __version__

MATRIX_CLASSES = 20  # with at most this many classes, the page shows the whole confusion matrix
CELL_PICTURES = 8  # pictures per cell of the confusion matrix
LISTED_CELLS = 60  # with more classes, the page lists this many of the most frequent confusions
LISTED = 24  # pictures in the list of mistakes, and in the list of doubtful labels
HEAT_MAPS = 20
SAMPLES = 8  # training pictures per class
SHOWN_CLASSES = 100
PICTURE_BYTES = 3_500_000  # for all pictures together; once they are used up, pictures are left out


BLUE, ORANGE = "#3b82c4", "#d97706"  # visible on white and on black


@dataclass(frozen=True)
class _Shown:
    """A picture on the page, as a data URL, with its caption."""

    source: str
    text: str


class _Album:
    """Encodes pictures as data URLs, until ``PICTURE_BYTES`` are used up."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self._room = PICTURE_BYTES

    def pixels(self, split: Split, index: int) -> np.ndarray:
        """Return a picture as the network sees it."""
        return self._preprocessing.pixels(split.load(index))

    def encode(self, pixels: np.ndarray) -> str | None:
        """Return a picture as a data URL, or None if there is no room left."""
        if self._room < 0:
            return None
        source = as_data_address(pixels)
        self._room -= len(source)
        return source


class _Answers:
    """The network's predictions for a split, and the split's pictures."""

    def __init__(self, classifier: Classifier, found: SplitLogits, album: _Album) -> None:
        self.split, self.labels, self.names = found.split, found.labels, classifier.class_names
        self.probabilities = np.exp(log_softmax(found.logits))
        self.predicted = found.logits.argmax(axis=1)
        self.confidence = self.probabilities.max(axis=1)
        self.evaluation = evaluate_logits(found.logits, found.labels, self.names)
        self._classifier, self._album = classifier, album
        self._encoded: dict[int, str | None] = {}

    def show(self, index: int) -> _Shown | None:
        """Return a picture with its caption, or None if there is no room left."""
        if index not in self._encoded:
            self._encoded[index] = self._album.encode(self._album.pixels(self.split, index))
        source = self._encoded[index]
        actual, guess = self.names[self.labels[index]], self.names[self.predicted[index]]
        names = actual if actual == guess else f"{actual} → {guess}"
        text = f"{names}, {100 * self.confidence[index]:.0f}\u00a0%"
        return None if source is None else _Shown(source, text)

    def gallery(self, indices: np.ndarray) -> list[_Shown]:
        return [picture for index in indices if (picture := self.show(int(index)))]

    def most_confident(self, where: np.ndarray, most: int) -> np.ndarray:
        """Return the indices of up to ``most`` pictures where ``where`` is true, most confident first."""
        chosen = np.flatnonzero(where)
        return chosen[np.argsort(-self.confidence[chosen], kind="stable")][:most]

    def confusions(self) -> list[tuple[int, int, int]]:
        """Return (pictures, true class, predicted class) for each cell to show, most pictures first."""
        cells = [
            (pictures, actual, guess)
            for actual, row in enumerate(self.evaluation.confusion)
            for guess, pictures in enumerate(row)
            if pictures and (actual != guess or len(self.names) <= MATRIX_CLASSES)
        ]
        return sorted(cells, reverse=True)[
            : MATRIX_CLASSES**2 if len(self.names) <= MATRIX_CLASSES else LISTED_CELLS
        ]

    def cell(self, actual: int, guess: int) -> list[tuple[str, str]]:
        """Return the data URLs and captions of a cell's most confident pictures."""
        inside = self.most_confident((self.labels == actual) & (self.predicted == guess), CELL_PICTURES)
        return [(picture.source, picture.text) for picture in self.gallery(inside)]

    def heat_maps(self, progress: Progress | None) -> list[tuple[_Shown, str]]:
        """Return pictures, mistakes first, each with a copy that is bright where the network looks."""
        right = self.predicted == self.labels
        classes = range(len(self.names))
        by_class = [self.most_confident(right & (self.labels == label), 1) for label in classes]
        correct = np.concatenate(by_class)[: HEAT_MAPS // 2]
        chosen = np.concatenate([self.most_confident(~right, HEAT_MAPS // 2), correct])
        maps = []
        for number, index in enumerate(chosen):
            pixels = self._album.pixels(self.split, int(index))
            heat = occlusion_map(self._classifier, pixels, int(self.predicted[index]))
            plain, lit = self.show(int(index)), self._album.encode(highlight(pixels, heat))
            if plain and lit:
                maps.append((plain, lit))
            if progress:
                progress(number + 1, len(chosen))
        return maps


def write_report(run: Run, data: Data, split: str, out: Path, *, progress: Progress | None = None) -> None:
    """Write the report of a run atomically.

    Args:
        run: a complete run.
        data: the run's data, with the run's splits.
        split: the split to report on: ``test`` or ``val``.
        out: the HTML file to write.
        progress: called with the number of heat maps done and their total.

    Raises:
        RunError: the run is not complete, or the file cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("writing a report", "report") from None
    summary = {"accuracy_plain": None, "parameters": None, **run.summary}  # older runs lack these two
    weights, info = read_weights(run.weights_path)
    predictor = load_run(run.path)
    album = _Album(predictor.info.preprocessing)
    found = predictor.classify_split(
        data.split(split), data.class_names, tta=summary["tta"], on_bad_image="skip"
    )
    answers = _Answers(predictor, found, album)
    right = answers.predicted == answers.labels
    doubted = likely_label_errors(answers.probabilities, answers.labels)
    confusions = answers.confusions()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = (resources.files("thumbnet.reports") / "report.html").read_text("utf-8")
    page = environment.from_string(
        template
    ).render(
        version=__version__,
        run=run.path.resolve().name,
        summary=summary,
        recipe=run.recipe,
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
        preprocessing=predictor.info.preprocessing,
        data=data,
        counts={
            name: np.bincount(one.labels, minlength=len(data.class_names)).tolist()
            for name, one in data.splits.items()
            if name != "train" or "all" not in data.splits  # "all" holds the same pictures
        },
        split=split,
        names=answers.names,
        evaluation=answers.evaluation,
        accuracy_plain=float((found.plain.argmax(axis=1) == found.labels).mean()),
        tta=found.tta,
        nothing_measured=NOTHING_MEASURED if summary["accuracy"] is None else None,
        optimistic=OPTIMISTIC if is_optimistic({**summary, "split": split}) else None,
        calibration=describe_calibration(summary),
        notes=[
            *([describe_corrections(summary["labels"])] if summary.get("labels") else []),
            *(summary.get("repeats") or {}).get("lines", ()),
            *summary.get("warnings", ()),
        ],
        parameters=summary["parameters"] or count_parameters(weights, info.model, len(info.class_names)),
        curves=_curves(run),
        schedule=_schedule(run),
        reliability=_reliability(answers.confidence, right),
        # The most useful pictures come first, because pictures are left out once the room is used up.
        mistakes=answers.gallery(answers.most_confident(~right, LISTED)),
        doubted=answers.gallery(doubted[:LISTED]),
        doubted_count=len(doubted),
        heat_maps=answers.heat_maps(progress),
        samples=_samples(data, album),
        matrix=len(answers.names) <= MATRIX_CLASSES,
        confusions=confusions,
        cells={f"{actual}-{guess}": answers.cell(actual, guess) for _, actual, guess in confusions},
    )
    write_file(out, page)


def _samples(data: Data, album: _Album) -> list[tuple[str, list[str]]]:
    """Return the first readable training pictures of each class."""
    split, rows = data.splits["train"], []
    for label, name in enumerate(data.class_names[:SHOWN_CLASSES]):
        row: list[str] = []
        for index in np.flatnonzero(split.labels == label)[: 2 * SAMPLES]:
            try:
                source = album.encode(album.pixels(split, int(index))) if len(row) < SAMPLES else None
            except UnreadableImageError:
                continue
            if source:
                row.append(source)
        rows.append((name, row))
    return rows


def _curves(run: Run) -> str:
    metrics = read_metrics(run)
    figure = new_figure(6.4, 4.6)
    axes: Any = figure.subplots(2, 1, sharex=True)
    epochs = [line["epoch"] for line in metrics]
    for split in ("val", "test"):
        scored = [line for line in metrics if f"{split}_accuracy" in line]
        if scored:
            at = [line["epoch"] for line in scored]
            values = [100 * line[f"{split}_accuracy"] for line in scored]
            axes[0].plot(at, values, marker=".", color=BLUE, label=split)
            axes[1].plot(at, [line[f"{split}_loss"] for line in scored], marker=".", color=BLUE, label=split)
    draw_accuracies(axes[0], run.summary, metrics, ORANGE, BLUE)
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(frameon=False, labelcolor=INK)
    axes[1].plot(epochs, [line["loss"] for line in metrics], marker=".", color=ORANGE, label="training")
    axes[1].set_ylabel("loss")
    axes[1].set_xlabel("epoch")
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    axes[1].legend(frameon=False, labelcolor=INK)
    return _svg(figure, f"Learning curves over {len(metrics)} epochs")


def _schedule(run: Run) -> str:
    recipe = run.recipe
    times, rates = learning_rates(recipe, 400)
    figure = new_figure(6.4, 2.6)
    axes = figure.add_subplot()
    axes.plot(times, rates, color=BLUE)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    return _svg(figure, f"Learning rate, {recipe.schedule.name}: at most {max(rates):.3g}")


def _reliability(confidence: np.ndarray, right: np.ndarray) -> str:
    bins = reliability_bins(confidence, right)
    figure = new_figure(4.4, 4.2)
    axes = figure.add_subplot()
    width = 1 / len(bins)
    for number, one in enumerate(bins):
        if one.pictures:
            axes.bar((number + 0.5) * width, one.accuracy, width * 0.92, color=BLUE)
            axes.plot([number * width, (number + 1) * width], [one.confidence] * 2, color=ORANGE, linewidth=2)
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy (bars), mean confidence (lines)")
    return _svg(figure, "Reliability diagram: accuracy of the predictions by their confidence")


def _svg(figure: Any, title: str) -> str:
    """Return a figure as inline SVG in the page's text colour; screen readers read ``title``."""
    import matplotlib

    for axes in figure.axes:
        axes.grid(alpha=0.25, color=INK)
        axes.set_facecolor("none")
        axes.tick_params(colors=INK)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = re.sub(r"\W", "", title)[:12]  # ids must be unique on the page
    text = re.sub(r'(id="|"#|url\(#)(?=[^"]*["\)])', rf"\g<1>{prefix}-", text)
    label = title.replace("&", "&amp;").replace('"', "&quot;")
    return re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt"|width="[\d.]+pt"', "", text, count=2
    ).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
