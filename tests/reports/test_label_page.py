from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured_labels
from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.splits import Data, Split
from thumbnet.reports import label_page, pictures
from thumbnet.reports.label_page import write_label_report
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, write_weights


@pytest.fixture(scope="module")
def page(label_run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_label_report(label_run, coloured_labels(), "test", out)
    return out.read_text("utf-8")


def test_the_page_shows_map_and_every_label(page: str, label_run: Run) -> None:
    assert f"{100 * label_run.summary['map']:.2f} %" in page
    for heading in ("Learning curves", "Labels together", "Mistakes per label", "Recipe"):
        assert heading in page
    for name in ("red", "green", "blue"):
        assert f'<th scope="row">{name}</th>' in page
        assert f"<h3>{name}</h3>" in page
    together = int((coloured_labels().splits["test"].targets[:, :2]).all(axis=1).sum())
    assert f">{together}</td>" in re.sub(r"\s+<", "<", page)


@pytest.mark.usefixtures("quick_page")
def test_the_page_says_whether_thresholds_were_chosen_on_the_pictures_that_it_measures(
    label_run: Run, page: str, tmp_path: Path
) -> None:
    assert label_run.summary["calibrated_on"] == "val"
    assert "highest F1 on val, not on the pictures measured here." in page
    for data, here in ((coloured_labels(), True), (coloured_labels(24), False)):
        write_label_report(label_run, data, "val", tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text("utf-8")
        assert ("highest F1 on val, the pictures measured here." in text) is here
        assert ("The val F1 is optimistic, because the same pictures chose the thresholds." in text) is here


@pytest.mark.usefixtures("quick_page")
def test_the_page_names_the_groups_that_the_interval_allows_for(
    label_run: Run, page: str, tmp_path: Path
) -> None:
    groups = {"test": np.array([f"p{number // 4}" for number in range(120)], dtype=object)}
    out = tmp_path / "report.html"
    write_label_report(label_run, replace(coloured_labels(), groups=groups), "test", out)
    text = out.read_text("utf-8")
    assert "<dd>120 in 30 groups</dd>" in text
    assert "The interval allows for 120 pictures in 30 groups" in text
    assert "<dd>120</dd>" in page
    assert "The interval allows" not in page


def with_wrong_labels(count: int = 24) -> Data:
    """Pictures whose labels are the opposite of what they show; the last label is on none of them."""
    made = coloured_labels(count)
    splits: dict[str, Split] = {}
    for name, split in made.splits.items():
        assert isinstance(split, MultiLabelSplit)
        targets = ~split.targets
        targets[:, 2] = False
        splits[name] = MultiLabelSplit(split.pictures, targets)
    return replace(made, splits=splits)


@pytest.mark.usefixtures("quick_page")
def test_mistakes_whose_pictures_have_no_room_are_counted_and_so_are_labels_left_out(
    label_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    write_label_report(label_run, with_wrong_labels(), "test", out)
    text = out.read_text("utf-8")
    counts = re.findall(r"(?:not in the data|but not given): (\d+)\. The (?:most|least) probable ones:", text)
    assert counts
    assert "left out to keep" not in text
    assert "Only the mistakes" not in text
    monkeypatch.setattr(pictures, "PICTURE_BYTES", -1)
    write_label_report(label_run, with_wrong_labels(), "test", out)
    text = out.read_text("utf-8")
    left = "These pictures were left out to keep the page small."
    assert re.findall(rf"(?:not in the data|but not given): (\d+)\. {left}", text) == counts
    assert "probable ones:" not in text
    monkeypatch.setattr(label_page, "SHOWN_LABELS", 2)
    write_label_report(label_run, with_wrong_labels(), "test", out)
    text = out.read_text("utf-8")
    assert "Only the mistakes of the first 2 of 3 labels are shown." in text
    assert text.count("<h3>blue</h3>") == 0


@pytest.mark.usefixtures("quick_page")
def test_what_cannot_be_measured_of_a_label_is_a_dash(label_run: Run, tmp_path: Path) -> None:
    write_label_report(label_run, with_wrong_labels(), "test", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    table = text[text.index('aria-label="Labels, a table"') :].partition("</table>")[0]
    (row,) = re.findall(r'<th scope="row">blue</th>(.*)', table)
    count, ap, _, _, *rest = re.findall("<td>(.*?)</td>", row)
    assert (count, ap, rest) == ("0", "–", ["–"] * 3)


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    assert not re.search(r"(?:src|href|action)=\"(?!#|data:)|@import|url\((?!#)", page)
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    names = re.findall(r'id="([^"]+)"', page)
    assert len(names) == len(set(names))
    for target in re.findall(r'(?:href="#|url\(#|xlink:href="#)([^")]+)', page):
        assert target in names
    assert "<script" not in page


def test_label_names_are_escaped(label_run: Run, tmp_path: Path) -> None:
    evil = "</style><img src=x onerror=alert(1)>"
    names = (evil, "green", "blue")
    data = Data(evil, evil, names, coloured_labels(24).splits)
    run = Run(tmp_path / "run")
    shutil.copytree(label_run.path, run.path)
    weights, info = read_weights(run.weights_path)
    write_weights(run.weights_path, weights, replace(info, class_names=names))
    write_label_report(run, data, "test", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert evil not in page
    assert "&lt;img src=x" in page
    assert page.count("<img") == page.count('<img src="data:')


@pytest.mark.usefixtures("quick_page")
def test_the_run_is_measured_in_batches_of_its_own_size(
    label_run: Run, tmp_path: Path, batch_sizes: list[int]
) -> None:
    run = Run(Path(shutil.copytree(label_run.path, tmp_path / "run")))
    run.write_recipe(run.recipe.override(["evaluation.batch_size=7"]))
    write_label_report(run, coloured_labels(24), "test", tmp_path / "report.html")
    assert batch_sizes == [7]
