from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from thumbnet.classifiers.base import Prediction
from thumbnet.cli.predictions import Shape, label_printer, prediction_printer

FOUND = Prediction(("cat", "dog"), (0.75, 0.25))
SEVERAL = Prediction(("cat", "dog", "hat"), (0.9, 0.6, 0.1), found=("cat", "dog"))
NONE = Prediction(("cat", "dog", "hat"), (0.2, 0.1, 0.1), found=())


def test_predictions_as_json_csv_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    results: list[tuple[str, Prediction | str]] = [("a.png", FOUND), ("b\x1b.png", "cut short")]
    prediction_printer("json", 1)(results)
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["predictions"] == [{"class": "cat", "probability": 0.75}]
    assert second["error"] == "cut short"
    prediction_printer("csv", 2)(results)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (rows[0]["class_1"], rows[0]["probability_2"], rows[1]["error"]) == (
        "cat",
        "0.250000",
        "cut short",
    )
    prediction_printer("table", 2)(results)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "cannot be read: cut short" in shown


def test_the_table_says_in_words_how_sure_the_answer_is_and_names_the_runner_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("frog", "toad\x1b", "newt")
    found = [Prediction(names, (p, 1 - p, 0.0)) for p in (0.97, 0.8, 0.6)]
    found.append(Prediction(names, (0.39, 0.31, 0.3)))
    prediction_printer("table", 1)([(f"{n}.png", one) for n, one in enumerate(found)])
    lines = capsys.readouterr().out.splitlines()
    assert [re.split("  +", line) for line in lines[2:]] == [
        ["0.png", "frog", "frog", "97.0 %"],
        ["1.png", "probably frog, or else toad\\x1b", "frog", "80.0 %"],
        ["2.png", "perhaps frog, or else toad\\x1b", "frog", "60.0 %"],
        ["3.png", "not sure: frog or toad\\x1b", "frog", "39.0 %"],
    ]


def test_predictions_as_csv_are_safe_to_open_in_a_spreadsheet(capsys: pytest.CaptureFixture[str]) -> None:
    prediction_printer("csv", 1)(
        [("=1+1.png", Prediction(("@cat",), (1.0,))), ("-", "cut short"), ("+.png", "bad")]
    )
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["path"] for row in rows] == ["./=1+1.png", "-", "./+.png"]
    assert rows[0]["class_1"] == "'@cat"


def test_a_picture_unlike_the_training_pictures_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    usual, odd = replace(FOUND, unlike=False, unlikeness=-3.5), replace(FOUND, unlike=True, unlikeness=2.25)
    results: list[tuple[str, Prediction | str]] = [("a.png", usual), ("b.png", odd), ("c.png", "cut short")]
    prediction_printer("json", 1, tells_unlike=True)(results)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("unlike") for line in lines] == [False, True, None]
    assert lines[1]["unlikeness"] == 2.25
    prediction_printer("csv", 2, tells_unlike=True)(results)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["unlike"] for row in rows] == ["false", "true", ""]
    assert [row["error"] for row in rows] == ["", "", "cut short"]
    prediction_printer("table", 2, tells_unlike=True)(results)
    shown = capsys.readouterr().out.splitlines()
    assert ["unlike the training pictures" in line for line in shown] == [False, False, False, True, False]


def test_without_a_score_nothing_is_said_about_unlike_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    for shape in ("json", "csv", "table"):
        prediction_printer(shape, 2)([("a.png", FOUND)])
    assert "unlike" not in capsys.readouterr().out
    prediction_printer("table", 2, tells_unlike=True)(
        [("a.png", replace(FOUND, unlike=False, unlikeness=0.0))]
    )
    assert "unlike" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "lines"),
    [
        (
            "json",
            [
                '{"path": "a.png", "labels": [{"label": "cat", "probability": 0.9}, '
                '{"label": "dog", "probability": 0.6}]}',
                '{"path": "b.png", "labels": []}',
                '{"path": "c.png", "error": "damaged"}',
            ],
        ),
        (
            "csv",
            [
                "path,labels,probabilities,error",
                "a.png,cat;dog,0.900000;0.600000,",
                "b.png,,,",
                "c.png,,,damaged",
            ],
        ),
        (
            "table",
            [
                "picture  labels",
                "-------  -----------------------",
                "a.png    cat 90.0 %, dog 60.0 %",
                "b.png    -",
                "c.png    cannot be read: damaged",
            ],
        ),
    ],
)
def test_labels_as_json_csv_and_a_table(
    shape: Shape, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    show = label_printer(shape)
    show([("a.png", SEVERAL), ("b.png", NONE), ("c.png", "damaged")])
    assert capsys.readouterr().out.splitlines() == lines
