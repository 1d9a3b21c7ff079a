"""A damaged or hostile summary.json is refused by the name of the wrong entry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from thumbnet.errors import RunError
from thumbnet.runs.folder import Run
from thumbnet.runs.summaries import check_summary, headline_key, headline_name

MISSING = object()


def test_the_summaries_of_trainings_are_accepted(tiny_run: Run, label_run: Run) -> None:
    check_summary(tiny_run.summary)
    check_summary(label_run.summary)


def test_the_main_measure_is_map_for_several_labels_and_otherwise_accuracy(
    tiny_run: Run, label_run: Run
) -> None:
    for run, key, name in ((tiny_run, "accuracy", "accuracy"), (label_run, "map", "mAP")):
        assert (headline_key(run.summary), headline_name(run.summary)) == (key, name)
        assert f" {name} {100 * run.summary[key]:.2f} %" in repr(run)


ODD: tuple[Any, ...] = ([[]], "x", True)
WRONG: list[tuple[str, Any]] = [
        *((key, MISSING) for key in ("split", "accuracy", "tta", "epochs", "seconds_total", "kept_by")),
        *[("accuracy", value) for value in (*ODD, 1.5, float("nan"), float("inf"), 10**400)],
        ("accuracy_interval", True), ("accuracy_interval", [1]), ("accuracy_plain", [[]]), ("tta", [[]]), ("tta", None),
        ("epochs", 1.5), ("epochs", None), ("seconds_total", []), ("seconds_total", "1"), ("split", 3),
        ("warnings", "text"), ("warnings", [3]), ("multilabel", 1), ("repeats", []), ("temperature", {}),
        ("val", 0.5), ("val", {}), ("val", {"accuracy": 2}), ("val", {"accuracy": 0.5, "accuracy_interval": [1]}),
        ("val", {"accuracy": 0.5, "measured_groups": -1}), ("measured_groups", 1.5),
        ("repeats", {"lines": 3}), ("labels", {"dropped": "x"}), ("parameters", -1), ("kept_by", None),
        ("stopped_early", "yes"), ("stopped_early", {"epoch": 1}),
        ("stopped_early", {"epoch": 1, "planned_epochs": 2, "patience": 0, "why": "x", "watched": None}),
        ("stopped_early", {"epoch": 1, "planned_epochs": 2, "patience": 0, "why": []}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_entry_is_named(key: str, value: Any, tiny_run: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny_run.path / "run.json", run)
    summary = dict(tiny_run.summary)
    if value is MISSING:
        del summary[key]
    else:
        summary[key] = value
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RunError, match=rf"summary\.json: .*{key}"):
        _ = Run(run).summary
