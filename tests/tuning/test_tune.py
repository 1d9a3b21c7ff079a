from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
pytest.importorskip("jinja2", reason="the extra 'tune' is not installed")

from helpers import coloured_data, write_class_folders
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import InterruptedTuneError, RunError, ThumbnetError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import Run
from thumbnet.training.train import train
from thumbnet.tuning.study import JOURNAL, Record
from thumbnet.tuning.tune import Progress, Tuned, TuneListener, resume_tuning, tune
from tuning_helpers import TINY_SEARCH

SETTINGS = [*TINY_SEARCH, "training.epochs=1", "optimizer.weight_decay=0"]


class Stop(TuneListener):
    """Asks to stop in a step of trial ``trial``, or (0) in a step of the final training."""

    def __init__(self, trial: int) -> None:
        self.trial, self.now = trial, -1
        self.finished: list[int] = []

    def on_progress(self, progress: Progress) -> None:
        self.now = progress.trial

    def on_trial(self, record: Record, best: Record | None) -> None:
        self.finished.append(record.number)

    def on_final(self, best: Record, minutes: float | None) -> None:
        self.now = 0

    def should_stop(self) -> bool:
        return self.now == self.trial


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), ["train", "test"], per_class=8)


@pytest.fixture(scope="module")
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    out = tmp_path_factory.mktemp("tune") / "search"
    return tune(folder, "small", trials=3, overrides=SETTINGS, out=out, device="cpu")


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "trials.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    return [{key: text for key, text in row.items() if key not in ("seconds", "elapsed")} for row in found]


def test_a_search_leaves_a_recipe_a_run_a_page_a_table_and_a_summary(tuned: Tuned, folder: Path) -> None:
    names = {path.name for path in tuned.path.iterdir()}
    expected = {
        "recipe.toml",
        "run",
        "tune.html",
        "trials.csv",
        "summary.json",
        "tune.json",
        JOURNAL,
        ".lock",
    }
    assert names == expected
    summary = tuned.summary
    assert (summary["trials"], summary["judged_by"]) == (3, "3 folds of the 24 training pictures")
    assert summary["best"] >= summary["start"]
    assert summary["accuracy"] == tuned.run.summary["accuracy"]
    assert summary["split"] == "test"
    table = rows(tuned.path)
    assert [row["trial"] for row in table] == ["1", "2", "3"]
    assert float(table[0]["optimizer.lr"]) == load_recipe("small", SETTINGS).optimizer.lr
    assert max(float(row["value"]) for row in table) == pytest.approx(summary["best"], abs=1e-6)


def test_train_with_the_recipe_that_was_found_repeats_the_final_training(
    tuned: Tuned, folder: Path, tmp_path: Path
) -> None:
    again = train(folder, tuned.path / "recipe.toml", out=tmp_path / "run", device="cpu")
    assert again.weights_path.read_bytes() == tuned.run.weights_path.read_bytes()
    assert len(json.loads((again.path / "metrics.jsonl").read_text().splitlines()[0])) > 3


def test_a_search_that_is_stopped_twice_ends_like_one_that_was_not(
    tuned: Tuned, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "search"
    first = Stop(2)
    with pytest.raises(InterruptedTuneError, match=r"1 finished trial\(s\) are kept") as stopped:
        tune(folder, "small", trials=3, overrides=SETTINGS, out=out, device="cpu", listener=first)
    assert "tune --resume" in str(stopped.value)
    assert first.finished == [1]
    second = Stop(0)
    with pytest.raises(InterruptedTuneError, match=r"3 finished trial\(s\) are kept"):
        resume_tuning(out, device="cpu", listener=second)
    assert second.finished == [2, 3]
    found = resume_tuning(out, device="cpu", listener=(third := Stop(9)))
    assert third.finished == []
    assert rows(out) == rows(tuned.path)
    assert found.recipe == tuned.recipe
    assert found.run.weights_path.read_bytes() == tuned.run.weights_path.read_bytes()


def test_a_finished_search_says_what_to_do_with_it(tuned: Tuned, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is finished. .*train DATA --recipe .*recipe.toml"):
        resume_tuning(tuned.path)
    with pytest.raises(RunError, match=r"there is no folder .*nowhere: tune.json is missing"):
        resume_tuning(tmp_path / "nowhere")


@pytest.fixture
def unfinished(tuned: Tuned, tmp_path: Path) -> Path:
    out = tmp_path / "copy"
    shutil.copytree(tuned.path, out, ignore=shutil.ignore_patterns("summary.json", "run"))
    return out


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot read"), ("[]", "JSON object"), ("{}", "is damaged"), ('{"recipe": 5}', "is damaged")],
)
def test_damaged_settings_are_an_error_that_names_the_file(
    unfinished: Path, content: str, message: str
) -> None:
    (unfinished / "tune.json").write_text(content)
    with pytest.raises(RunError, match=message):
        resume_tuning(unfinished)


def test_data_that_have_changed_stop_a_search_that_goes_on(unfinished: Path) -> None:
    settings = json.loads((unfinished / "tune.json").read_text())
    (unfinished / "tune.json").write_text(json.dumps({**settings, "fingerprint": "0"}))
    with pytest.raises(RunError, match="have changed since the search"):
        resume_tuning(unfinished, device="cpu")


def with_test_labels(data: Data, labels: Sequence[int]) -> Data:
    split = data.splits["test"]
    images = np.stack([np.asarray(split.load(index)) for index in range(len(split))])
    return replace(data, splits={**data.splits, "test": ArraySplit(images, np.asarray(labels), "test")})


def test_the_test_split_chooses_nothing(tmp_path: Path) -> None:
    data = coloured_data(24)
    wrong = with_test_labels(data, (data.splits["test"].labels + 1) % 3)
    found = [
        tune(one, "small", trials=2, overrides=SETTINGS, out=tmp_path / name, device="cpu")
        for name, one in (("right", data), ("wrong", wrong))
    ]
    assert rows(found[0].path) == rows(found[1].path)
    assert found[0].recipe == found[1].recipe


def test_data_in_memory_need_to_be_given_again(tmp_path: Path) -> None:
    data, out = coloured_data(24), tmp_path / "search"
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=2, overrides=SETTINGS, out=out, device="cpu", listener=Stop(2))
    with pytest.raises(RunError, match="were in memory"):
        resume_tuning(out, device="cpu")
    assert resume_tuning(out, data=data, device="cpu").summary["trials"] == 2


def test_a_recipe_that_does_not_work_at_all_is_an_error(folder: Path, tmp_path: Path) -> None:
    wild = [*SETTINGS, "optimizer.name=sgd", "optimizer.groups=[]", "optimizer.lr=1e30"]
    with pytest.raises(ThumbnetError, match="diverged"):
        tune(folder, "small", trials=2, overrides=wild, out=tmp_path / "search", device="cpu")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "say how long to search"),
        ({"minutes": 0}, "--minutes 0: expected"),
        ({"trials": 0}, "--trials 0: expected 1 or more"),
        ({"minutes": 0.02}, "--minutes 0.02 is too short: one trial takes about"),
    ],
)
def test_a_length_that_makes_no_search_is_an_error(
    folder: Path, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ThumbnetError, match=message):
        tune(folder, "small", overrides=SETTINGS, out=tmp_path / "search", device="cpu", **asked)
    assert not (tmp_path / "search").exists()


def test_a_folder_that_is_in_use_is_an_error(tuned: Tuned, folder: Path) -> None:
    with pytest.raises(RunError, match="already exists and is not empty"):
        tune(folder, "small", trials=1, overrides=SETTINGS, out=tuned.path)


def test_a_search_ends_in_its_time_and_tells_how_long_is_left(folder: Path, tmp_path: Path) -> None:
    class Watch(TuneListener):
        left: list[float] = []  # noqa: RUF012

        def on_progress(self, progress: Progress) -> None:
            assert progress.seconds_left is not None
            self.left.append(progress.seconds_left)
            assert progress.pictures_per_second > 0

    watch = Watch()
    minutes = 0.3
    out = tmp_path / "search"
    overrides = [*TINY_SEARCH, "training.epochs=1"]
    found = tune(
        folder, "small", minutes=minutes, trials=2, overrides=overrides, out=out, device="cpu", listener=watch
    )
    assert watch.left[0] <= 60 * minutes * 2 / 3
    assert watch.left == sorted(watch.left, reverse=True)
    assert found.summary["seconds_total"] < 60 * minutes
    assert isinstance(found.run, Run)
