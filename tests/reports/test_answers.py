"""The table of a network's answers, picture by picture."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sorting_helpers import Grey
from thumbnet.classifiers.base import SplitLogits
from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.splits import BytesSplit
from thumbnet.errors import RunError
from thumbnet.reports import answers
from thumbnet.reports.answers import write_answers
from thumbnet.runs.weights_info import WeightsInfo

NAMES = ("cats/1.png", "=1+1.png", "\x1b[2J.png")
LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]], dtype=np.float32))


def info_of(*names: str, multilabel: bool = False) -> WeightsInfo:
    thresholds = (0.5, 0.25, 0.9) if multilabel else ()
    return replace(Grey().info, class_names=names, multilabel=multilabel, label_thresholds=thresholds)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def one_class() -> SplitLogits:
    labels = np.array([0, 1, 1])
    return SplitLogits(BytesSplit([b""] * 3, labels, NAMES), LOGITS, labels, LOGITS, "none")


def several_labels() -> SplitLogits:
    truth = np.array([[True, True, False], [False, False, False], [False, False, True]])
    split = MultiLabelSplit(BytesSplit([b""] * 3, np.zeros(3), NAMES), truth)
    odds = np.exp(LOGITS.astype(np.float64))
    logits = np.log(odds / (1 - odds)).astype(np.float32)
    return SplitLogits(split, logits, truth, logits, "none")


@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_each_picture_has_its_class_the_answer_and_all_probabilities(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "ROWS", at_once)
    write_answers(one_class(), info_of("1", "=cmd", "a,b"), "test", tmp_path / "a.csv")
    rows = rows_of(tmp_path / "a.csv")
    assert rows[0] == {
        "path": "cats/1.png",
        "split": "test",
        "true_class": "1",
        "class_1": "1",
        "probability_1": "0.700000",
        "p(1)": "0.700000",
        "p(=cmd)": "0.200000",
        "p(a,b)": "0.100000",
    }
    assert [row["path"] for row in rows] == ["cats/1.png", "./=1+1.png", "\\x1b[2J.png"]
    assert [row["true_class"] for row in rows] == ["1", "'=cmd", "'=cmd"]
    assert [row["class_1"] for row in rows] == ["1", "a,b", "'=cmd"]


@pytest.mark.parametrize("at_once", [1, 1000])
def test_pictures_with_groups_have_them_in_a_column(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "ROWS", at_once)
    groups = np.array(["p1", "=p2", "\0cats/2.png"], dtype=object)
    for name, found, several in (("a.csv", one_class(), False), ("b.csv", several_labels(), True)):
        info = info_of("hat", "dog", "cat", multilabel=several)
        write_answers(found, info, "test", tmp_path / name, groups)
        rows = rows_of(tmp_path / name)
        assert list(rows[0])[:3] == ["path", "split", "group"]
        assert [row["group"] for row in rows] == ["p1", "'=p2", ""]
        assert rows[0]["p(hat)"] == "0.700000"


def test_several_labels_share_a_cell_the_most_probable_first(tmp_path: Path) -> None:
    info = info_of("hat", "dog", "cat", multilabel=True)
    write_answers(several_labels(), info, "val", tmp_path / "a.csv")
    rows = rows_of(tmp_path / "a.csv")
    assert list(rows[0]) == ["path", "split", "true_labels", "labels", "p(hat)", "p(dog)", "p(cat)"]
    assert [row["true_labels"] for row in rows] == ["hat;dog", "", "cat"]
    assert [row["labels"] for row in rows] == ["hat", "dog", "dog"]
    assert [float(rows[1][f"p({name})"]) for name in info.class_names] == pytest.approx([0.1, 0.3, 0.6])
    lower = replace(info, label_thresholds=(0.05, 0.05, 0.05))
    write_answers(several_labels(), lower, "val", tmp_path / "b.csv")
    assert [row["labels"] for row in rows_of(tmp_path / "b.csv")][1] == "cat;dog;hat"


def test_no_file_is_replaced_and_none_is_left_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labels.csv").write_text("kept")
    with pytest.raises(RunError, match=r"labels\.csv already exists"):
        write_answers(one_class(), info_of("1", "2", "3"), "test", tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_text() == "kept"

    def full(rows: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answers, "_as_lines", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_answers(one_class(), info_of("1", "2", "3"), "test", tmp_path / "new.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]
