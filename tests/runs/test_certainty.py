"""What is stored about a network's certainty."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from sorting_helpers import unlike_above
from thumbnet.runs.certainty import Threshold, Thresholds, thresholds_from, unlikeness_from

TABLE = Thresholds("val", 500, 0.9712, (Threshold(0.9, 0.5, 400, 370), Threshold(0.95, 0.7, 300, 291)))
UNLIKE = unlike_above(-1.25)


def test_thresholds_and_unlikeness_survive_json() -> None:
    assert thresholds_from(json.loads(json.dumps(asdict(TABLE)))) == TABLE
    tested = replace(TABLE, confidence=0.95)
    assert thresholds_from(json.loads(json.dumps(asdict(tested)))) == tested
    old = asdict(TABLE)
    del old["confidence"]
    assert thresholds_from(old) == TABLE, "earlier versions stored none"
    assert unlikeness_from(json.loads(json.dumps(asdict(UNLIKE)))) == UNLIKE
    assert thresholds_from(None) is None
    assert unlikeness_from(None) is None


def test_thresholds_without_groups_are_as_in_files_of_older_versions() -> None:
    assert TABLE.to_dict().keys() == {"split", "pictures", "highest", "table"}
    assert thresholds_from(json.loads(json.dumps(TABLE.to_dict()))) == TABLE
    for newer in (replace(TABLE, groups=40), replace(TABLE, also_chose="the epoch")):
        assert thresholds_from(json.loads(json.dumps(newer.to_dict()))) == newer


@pytest.mark.parametrize(
    "change",
    [
        {"groups": 0}, {"groups": 501}, {"groups": "many"}, {"confidence": 2}, {"confidence": "high"}, {"also_chose": 3},
        {"highest": 1.2}, {"highest": float("nan")}, {"pictures": 0}, {"pictures": 350}, {"table": 3}, {"table": [{}]},
        {"table": [{"precision": 2, "probability": 0.5, "accepted": 3, "right": 3}]},
        {"table": [{"precision": 0.9, "probability": -1, "accepted": 3, "right": 3}]},
        {"table": [{"precision": 0.9, "probability": 0.5, "accepted": 3, "right": 4}]},
        {"table": [{"precision": 0.9, "probability": "x", "accepted": 3, "right": 3}]},
    ],
)  # fmt: skip
def test_invalid_thresholds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        thresholds_from({**asdict(TABLE), **change})
    with pytest.raises((ValueError, KeyError, TypeError)):
        thresholds_from([])


@pytest.mark.parametrize(
    "change",
    [
        {"score": "magic"},
        {"threshold": float("inf")},
        {"threshold": None},
        {"passed": -0.1},
        {"pictures": "x"},
    ],
)
def test_an_invalid_unlikeness_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        unlikeness_from({**asdict(UNLIKE), **change})
