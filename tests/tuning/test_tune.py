from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
pytest.importorskip("jinja2", reason="the extra 'tune' is not installed")

from helpers import coloured_data, write_class_folders
from thumbnet.errors import DivergedError, InterruptedTuneError, RunError, ThumbnetError
from thumbnet.recipes.recipe import Recipe, load_recipe, read_recipe
from thumbnet.runs.folder import Run
from thumbnet.training.fit import StepResult
from thumbnet.training.time_budget import Speed
from thumbnet.training.train import train
from thumbnet.tuning import tune as module
from thumbnet.tuning.listener import Progress, TuneListener
from thumbnet.tuning.plan import Cost
from thumbnet.tuning.study import JOURNAL, Record
from thumbnet.tuning.trial import Outcome
from thumbnet.tuning.tune import Tuned, resume_tuning, tune
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
    return tune(folder, "small", trials=2, overrides=SETTINGS, out=out, device="cpu")


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
    assert (summary["trials"], summary["judged_by"]) == (2, "3 folds of the 24 training pictures")
    assert summary["best"] >= summary["start"]
    assert summary["accuracy"] == tuned.run.summary["accuracy"]
    assert summary["split"] == "test"
    table = rows(tuned.path)
    assert [row["trial"] for row in table] == ["1", "2"]
    assert float(table[0]["optimizer.lr"]) == load_recipe("small", SETTINGS).optimizer.lr
    assert max(float(row["value"]) for row in table) == pytest.approx(summary["best"], abs=1e-6)


def test_train_with_the_recipe_that_was_found_repeats_the_final_training(
    tuned: Tuned, folder: Path, tmp_path: Path
) -> None:
    again = train(folder, tuned.path / "recipe.toml", out=tmp_path / "run", device="cpu")
    assert again.weights_path.read_bytes() == tuned.run.weights_path.read_bytes()
    assert len(json.loads((again.path / "metrics.jsonl").read_text().splitlines()[0])) > 3


def test_a_search_that_is_stopped_twice_ends_like_one_that_was_not(
    tuned: Tuned, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "write_page", lambda *_, **__: None)
    out = tmp_path / "search"
    first = Stop(2)
    with pytest.raises(InterruptedTuneError, match=r"1 finished trial\(s\) are kept") as stopped:
        tune(folder, "small", trials=2, overrides=SETTINGS, out=out, device="cpu", listener=first)
    assert "tune --resume" in str(stopped.value)
    assert first.finished == [1]
    second = Stop(0)
    with pytest.raises(InterruptedTuneError, match=r"2 finished trial\(s\) are kept"):
        resume_tuning(out, device="cpu", listener=second)
    assert second.finished == [2]
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


@dataclass
class Pretend:
    """Stands in for the clock, the trials and the final training: nothing is computed.

    Attributes:
        now: the time, in seconds.
        seconds: how long a trial takes.
        trials: the learning rates of the trials.
        final: the arguments of the final training.
    """

    now: float = 100.0
    seconds: float = 10.0
    trials: list[float] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)

    def perf_counter(self) -> float:
        return self.now

    def measure(self, *_: object) -> Cost:
        return Cost(Speed({(16, 16): 0.001}, 0.002, 0.0005), 0.125)

    def run_trial(self, recipe: Recipe, *arguments: Any) -> Outcome:
        self.trials.append(recipe.optimizer.lr)
        on_step = arguments[-1]
        for step in range(1, 11):
            self.now += self.seconds / 10
            on_step(StepResult(1, step, 10, step, 10, 32 * step, 1.0), 0)
        if recipe.optimizer.lr > 0.5:
            raise DivergedError(3, float("nan"), recipe.optimizer.lr)
        return Outcome(1 - recipe.optimizer.lr, 1.0)

    def train(self, data: Any, recipe: Recipe, *, out: Path, **options: Any) -> Run:
        self.final = {"data": data, "recipe": recipe, **options}
        out.mkdir()
        summary = {"split": "test", "accuracy": 0.5}
        (out / "summary.json").write_text(json.dumps(summary))
        return Run(out)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    made = Pretend()
    monkeypatch.setattr(module, "time", made)
    for name in ("run_trial", "train"):
        monkeypatch.setattr(module, name, getattr(made, name))
    monkeypatch.setattr(Cost, "measure", made.measure)
    monkeypatch.setattr(module, "write_page", lambda *_, **__: None)
    return made


class Watch(TuneListener):
    """Keeps what a search tells."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.minutes: list[float | None] = []

    def on_progress(self, progress: Progress) -> None:
        self.progress.append(progress)

    def on_final(self, best: Record, minutes: float | None) -> None:
        self.minutes.append(minutes)


def test_a_search_uses_its_time_and_keeps_enough_for_the_final_training(
    pretend: Pretend, tmp_path: Path
) -> None:
    watch, data = Watch(), coloured_data(24)
    out = tmp_path / "search"
    found = tune(data, "small", minutes=5, overrides=SETTINGS, out=out, listener=watch, device="cpu")
    # The final training of one epoch takes seconds, so nearly all of the 300 s are for trials of 10 s.
    assert 25 <= len(pretend.trials) <= 29
    assert pretend.now - 100 < 300
    left = [one.seconds_left for one in watch.progress]
    assert left[0] > 180
    assert all(one.pictures_per_second == pytest.approx(32) for one in watch.progress)
    assert watch.minutes == [None]  # as many epochs as the best trial had
    assert pretend.final["recipe"] == found.recipe
    assert pretend.final["data"] is data


def test_a_search_with_short_trials_leaves_the_rest_of_the_time_to_the_final_training(
    pretend: Pretend, tmp_path: Path
) -> None:
    watch, out = Watch(), tmp_path / "search"
    pretend.seconds = 1.5
    settings = [one for one in SETTINGS if "epochs" not in one] + ["model.width=0.125"]
    tune(coloured_data(90), "small", minutes=0.5, overrides=settings, out=out, listener=watch, device="cpu")
    (minutes,) = watch.minutes
    assert minutes is not None
    assert 60 * minutes == pytest.approx(30 - (pretend.now - 100) - 2, abs=0.1)
    assert 60 * minutes > 10
    assert pretend.final["minutes"] == minutes
    assert 5 <= len(pretend.trials) <= 11
    assert found_epochs(out) < load_recipe("small").training.epochs


def found_epochs(out: Path) -> int:
    return read_recipe(out / "recipe.toml").training.epochs


def test_a_trial_that_would_end_late_is_given_up_and_does_not_count(pretend: Pretend, tmp_path: Path) -> None:
    out = tmp_path / "search"
    pretend.seconds = 130
    found = tune(coloured_data(24), "small", minutes=5, overrides=SETTINGS, out=out, device="cpu")
    assert found.summary["trials"] == 2
    assert pretend.now - 100 < 300 * 1.1


def test_a_trial_that_diverges_is_failed_and_the_search_goes_on(pretend: Pretend, tmp_path: Path) -> None:
    out = tmp_path / "search"
    found = tune(coloured_data(24), "small", trials=14, overrides=SETTINGS, out=out, device="cpu")
    wild = [rate > 0.5 for rate in pretend.trials]
    assert 0 < sum(wild) < 14
    assert found.summary["failed"] == sum(wild)
    assert [row["state"] == "failed" for row in rows(out)] == wild
    assert found.recipe.optimizer.lr == min(pretend.trials)


def test_a_recipe_that_does_not_work_at_all_is_an_error(pretend: Pretend, tmp_path: Path) -> None:
    wild = [*SETTINGS, "optimizer.lr=0.6"]
    with pytest.raises(ThumbnetError, match="diverged"):
        tune(coloured_data(24), "small", trials=2, overrides=wild, out=tmp_path / "x", device="cpu")


def test_data_in_memory_need_to_be_given_again(pretend: Pretend, tmp_path: Path) -> None:
    data, out = coloured_data(24), tmp_path / "search"
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=2, overrides=SETTINGS, out=out, device="cpu", listener=Stop(2))
    with pytest.raises(RunError, match="were in memory"):
        resume_tuning(out, device="cpu")
    assert resume_tuning(out, data=data, device="cpu").summary["trials"] == 2


def test_corrections_of_labels_reach_the_trials_and_the_final_training(
    pretend: Pretend, folder: Path, tmp_path: Path
) -> None:
    labels, out = tmp_path / "labels.csv", tmp_path / "search"
    labels.write_text("picture,label,split,was,decision\ntrain/red/0.png,,train,red,drop\n")
    with pytest.raises(InterruptedTuneError):
        tune(
            folder,
            "small",
            trials=2,
            overrides=SETTINGS,
            out=out,
            labels=labels,
            device="cpu",
            listener=Stop(2),
        )
    labels.unlink()
    found = resume_tuning(out, device="cpu")
    assert found.summary["held_out_pictures"] == 23
    assert [one.decision for one in pretend.final["labels"]] == ["drop"]


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
