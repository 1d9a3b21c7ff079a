from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
pytest.importorskip("jinja2", reason="the extra 'tune' is not installed")

from helpers import of_many_sizes, write_class_folders
from thumbnet.errors import DataError, InterruptedTuneError, RunError, ThumbnetError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.train import train
from thumbnet.tuning import search
from thumbnet.tuning.search import Tuned
from thumbnet.tuning.study import JOURNAL
from thumbnet.tuning.tune import resume_tuning, tune
from tuning_helpers import SHORTEST, Stop, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), ["train", "test"], per_class=8)


@pytest.fixture(scope="module")
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    out = tmp_path_factory.mktemp("tune") / "search"
    return tune(folder, "small", trials=2, overrides=SHORTEST, out=out, device="cpu")


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
    assert tuned.run.settings["search"] == {"judged_on": "train"}
    assert summary["split"] == "test"
    table = rows(tuned.path)
    assert [row["trial"] for row in table] == ["1", "2"]
    assert float(table[0]["optimizer.lr"]) == load_recipe("small", SHORTEST).optimizer.lr
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
    monkeypatch.setattr(search, "write_page", lambda *_, **__: None)
    out = tmp_path / "search"
    first = Stop(2)
    with pytest.raises(InterruptedTuneError, match=r"1 finished trial\(s\) are kept") as stopped:
        tune(folder, "small", trials=2, overrides=SHORTEST, out=out, device="cpu", listener=first)
    assert "tune --resume" in str(stopped.value)
    assert first.finished == [1]
    leftover = out / ".tune.json.abc.tmp"
    leftover.write_text("half")
    second = Stop(0)
    with pytest.raises(InterruptedTuneError, match=r"2 finished trial\(s\) are kept"):
        resume_tuning(out, device="cpu", listener=second)
    assert second.finished == [2]
    assert not leftover.exists()
    found = resume_tuning(out, device="cpu", listener=(third := Stop(9)))
    assert third.finished == []
    assert rows(out) == rows(tuned.path)
    assert found.recipe == tuned.recipe
    assert found.run.weights_path.read_bytes() == tuned.run.weights_path.read_bytes()


def test_a_search_is_finished_only_when_its_page_is(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, page = tmp_path / "search", (tuned.path / "tune.html").read_text()
    shutil.copytree(tuned.path, out, ignore=shutil.ignore_patterns("summary.json", "tune.html"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(search, "write_page", full)
        with pytest.raises(OSError, match="No space left"):
            resume_tuning(out, device="cpu")
    assert not (out / "summary.json").exists()
    resume_tuning(out, device="cpu")
    assert (out / "summary.json").exists()
    accuracy = f"{100 * tuned.run.summary['accuracy']:.2f}"
    assert (out / "tune.html").read_text().count(accuracy) == page.count(accuracy) > 0


def test_pictures_of_many_sizes_are_also_seen_squashed_and_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "write_page", lambda *_, **__: None)
    data, whole, parts = of_many_sizes(tmp_path / "data"), tmp_path / "whole", tmp_path / "parts"
    settings = [one for one in SHORTEST if not one.startswith("augment.translate")]
    found = tune(data, "small", trials=3, overrides=settings, out=whole, device="cpu")
    table = rows(whole)
    assert [(row["data.image_size"], row["data.fit"]) for row in table] == [
        ("auto", "crop"),
        ("96x96", "crop"),
        ("96x96", "squash"),
    ]
    best = table[found.summary["best_trial"] - 1]
    assert found.run.recipe.data.fit == best["data.fit"]
    assert found.run.recipe.data.image_size == best["data.image_size"]
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=3, overrides=settings, out=parts, device="cpu", listener=Stop(3))
    again = resume_tuning(parts, device="cpu", data=data)
    assert rows(parts) == table
    assert again.run.weights_path.read_bytes() == found.run.weights_path.read_bytes()


def test_a_search_that_starts_from_trained_weights_keeps_their_width(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "write_page", lambda *_, **__: None)
    other = write_class_folders(tmp_path / "other", ["train", "test"], per_class=8, side=20)
    first = train(other, "small", overrides=SHORTEST, out=tmp_path / "first", device="cpu")
    recipe = load_recipe("small", [*SHORTEST, f"training.init={first.path}"])  # a recipe fixes no setting
    found = tune(folder, recipe, trials=2, out=tmp_path / "search", device="cpu")
    assert "width" not in found.summary["changed"]
    assert found.run.recipe.model.width == first.recipe.model.width
    assert found.run.settings["init"]["source"] == str(first.path)


def test_a_search_that_starts_from_a_network_that_knows_the_pictures_is_refused(
    tuned: Tuned, folder: Path, tmp_path: Path
) -> None:
    asked = [*SHORTEST, f'training.init="{tuned.run.path}"']
    with pytest.raises(DataError, match="was trained on all 24 train pictures"):
        tune(folder, "small", trials=1, overrides=asked, out=tmp_path / "search", device="cpu")
    assert not (tmp_path / "search").exists()


def test_a_finished_search_says_what_to_do_with_it(tuned: Tuned, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"is finished. .*train {folder} --recipe .*recipe.toml"):
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


@pytest.mark.parametrize("key", ["may_widen", "same_time", "independent_sets"])
def test_a_recorded_answer_that_is_neither_true_nor_false_is_damaged(unfinished: Path, key: str) -> None:
    settings = json.loads((unfinished / "tune.json").read_text())
    (unfinished / "tune.json").write_text(json.dumps({**settings, key: 3}))
    with pytest.raises(RunError, match=f"tune.json is damaged \\({key} is 3: expected true or false"):
        resume_tuning(unfinished)


def test_data_that_have_changed_stop_a_search_that_goes_on(unfinished: Path) -> None:
    settings = json.loads((unfinished / "tune.json").read_text())
    (unfinished / "tune.json").write_text(json.dumps({**settings, "fingerprint": "0"}))
    with pytest.raises(RunError, match="have changed since the search"):
        resume_tuning(unfinished, device="cpu")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "say how long to search"),
        ({"minutes": 0}, "--minutes 0: expected"),
        ({"trials": 0}, "--trials 0: expected 1 or more"),
        ({"minutes": 0.02}, "--minutes 0.02 is too short for a search: a trial takes about"),
        ({"minutes": 0.03}, r"thumbnet train \S+/data\d+ --minutes 0.03"),
    ],
)
def test_a_length_that_makes_no_search_is_an_error(
    folder: Path, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ThumbnetError, match=message):
        tune(folder, "small", overrides=SHORTEST, out=tmp_path / "search", device="cpu", **asked)
    assert not (tmp_path / "search").exists()


def test_a_folder_that_is_in_use_is_an_error(tuned: Tuned, folder: Path) -> None:
    with pytest.raises(RunError, match="already exists and is not empty"):
        tune(folder, "small", trials=1, overrides=SHORTEST, out=tuned.path)


def test_a_folder_that_cannot_be_written_to_is_an_error_before_the_data_are_read(
    read_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="is not writable"):
        tune("no-such-data", "small", trials=1, out=read_only / "search")
    monkeypatch.chdir(read_only)
    with pytest.raises(RunError, match="cannot write in runs"):
        tune("no-such-data", "small", trials=1)


def test_a_length_in_steps_is_refused_before_pictures_are_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thumbnet.tuning.tune.divide", lambda *_: pytest.fail("decoded"))
    asked = [*SHORTEST, "training.steps=7"]
    with pytest.raises(ThumbnetError, match=r"training.steps is 7: a search counts in epochs"):
        tune(folder, "small", trials=1, overrides=asked, out=tmp_path / "search", device="cpu")
    assert not (tmp_path / "search").exists()


def test_a_recipe_that_leaves_nothing_to_search_is_refused_before_pictures_are_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thumbnet.tuning.tune.divide", lambda *_: pytest.fail("decoded"))
    with pytest.raises(
        ThumbnetError, match=f"linear computes its only layer directly.*train {folder} --recipe linear"
    ):
        tune(folder, "linear", trials=1, out=tmp_path / "search", device="cpu")
    assert not (tmp_path / "search").exists()
