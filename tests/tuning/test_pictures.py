from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("matplotlib", reason="the extra 'tune' is not installed")

from thumbnet.tuning import pictures
from thumbnet.tuning.space import Knob, Point
from thumbnet.tuning.study import Record

RATE = Knob("learning rate", "float", 0.25, 4.0, 1.0, True, ("optimizer.lr",))
EPOCHS = Knob("epochs", "int", 10, 80, 20, True, ("training.epochs",))


def record(number: int, loss: float, state: str = "complete") -> Record:
    point: Point = {"learning rate": 0.5 * number, "epochs": 10 * number}
    return Record(number, state, point, 0.5, loss, 2.0, 60.0 * number, 2.0)


RECORDS = [record(1, 0.5), record(2, 0.4), record(3, 0.3, "stopped"), record(4, 0.7)]


def test_charts_name_their_axes_and_colours_follow_the_page() -> None:
    found = pictures.history(RECORDS)
    assert found.startswith("<svg")
    assert 'aria-label="Loss of 4 trials over time"' in found
    assert ">minutes<" in found
    assert ">loss<" in found
    assert "stopped early" in found
    assert "currentColor" in found


def test_a_setting_that_counts_by_ratio_has_an_axis_of_ratios_and_whole_numbers_stay_whole() -> None:
    rate = pictures.slices(RATE, RECORDS, RECORDS[3])
    assert ">learning rate, times the recipe's<" in rate.replace("&apos;", "'")
    assert all(f">{tick}<" in rate for tick in ("0.25", "0.5", "1", "2", "4"))
    epochs = pictures.slices(EPOCHS, RECORDS, RECORDS[3])
    assert all(f">{tick}<" in epochs for tick in ("10", "17", "28", "48", "80"))


def test_every_knob_is_an_axis_of_the_lines_with_its_limits() -> None:
    found = pictures.parallel([RATE, EPOCHS], RECORDS, RECORDS[3])
    assert all(f">{text}<" in found for text in ("learning rate", "epochs", "0.25", "4", "10", "80"))


def test_a_choice_has_its_options_on_the_axis_in_their_order() -> None:
    fit = Knob("fit", "choice", 0, 2, 0, False, ("data.fit",), ("pad", "crop", "squash"))
    records = [replace(one, point={**one.point, "fit": fit.options[one.number % 3]}) for one in RECORDS]
    found = pictures.slices(fit, records, records[3])
    places = [found.index(f">{option}<") for option in fit.options]
    assert places == sorted(places)
    lines = pictures.parallel([RATE, fit], records, records[3])
    assert ">pad<" in lines
    assert ">squash<" in lines


def test_importances_are_drawn_by_name() -> None:
    found = pictures.importances({"learning rate": 0.9, "epochs": 0.1})
    assert ">learning rate<" in found
    assert ">importance, %<" in found
