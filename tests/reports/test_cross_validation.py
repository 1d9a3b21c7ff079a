from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from correction_helpers import relabel, unsure
from helpers import TINY, coloured_data, coloured_labels, write_class_folders, write_label_table
from thumbnet.classifiers.base import SplitLogits
from thumbnet.classifiers.load import load_classifier
from thumbnet.data.corrections import Labels, write_corrections
from thumbnet.errors import RunError
from thumbnet.evaluation import Evaluation, grouped_interval, wilson_interval
from thumbnet.files import write_json
from thumbnet.multilabel import LabelEvaluation, sigmoid
from thumbnet.reports.cross_validation import CrossValidation, Fold, _together, cross_validate
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, write_weights
from thumbnet.sources.load import load_data
from thumbnet.training.asked import what_was_asked
from thumbnet.training.train import train


def trained(data: Any, out: Path, *settings: str, labels: Labels | None = None) -> list[Run]:
    """A run of each of two folds."""
    runs = []
    for fold in (1, 2):
        own = [*TINY, "training.epochs=1", "data.folds=2", f"data.fold={fold}", *settings]
        place = out / str(fold)
        runs.append(train(data, "one-cycle", overrides=own, out=place, device="cpu", labels=labels))
    return runs


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("own"), [""], per_class=12)


@pytest.fixture(scope="module")
def runs(own: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return trained(own, tmp_path_factory.mktemp("runs"))


def test_every_picture_counts_once_with_the_answer_of_the_network_that_did_not_see_it(
    own: Path, runs: list[Run]
) -> None:
    found = cross_validate(runs[::-1], own, device="cpu")
    assert isinstance(found.result, Evaluation)
    assert found.result.pictures == 36
    assert [score.pictures for score in found.result.classes] == [12, 12, 12]
    assert [(fold.number, fold.run.path) for fold in found.folds] == [(1, runs[0].path), (2, runs[1].path)]
    assert [fold.value for fold in found.folds] == [run.summary["accuracy"] for run in runs]
    right = sum(round(fold.value * fold.pictures) for fold in found.folds)
    assert found.value == right / 36
    assert found.interval == wilson_interval(right, 36)
    assert found.mean == pytest.approx(np.mean([fold.value for fold in found.folds]))
    assert found.deviation == pytest.approx(abs(found.folds[0].value - found.folds[1].value) / math.sqrt(2))
    assert found.notes == ()
    described = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (described["accuracy"], described["pictures"]) == (found.value, 36)
    assert [fold["run"] for fold in described["folds"]] == [str(run.path) for run in runs]


def test_runs_that_are_not_those_of_all_folds_are_refused(own: Path, runs: list[Run], tiny_run: Run) -> None:
    for several in (runs[:1], [runs[0], runs[0]], [tiny_run, runs[1]], []):
        with pytest.raises(RunError, match="needs a run of each fold"):
            cross_validate(several, own, device="cpu")


def test_folds_of_different_divisions_are_refused(own: Path, runs: list[Run], tmp_path: Path) -> None:
    other = Run(shutil.copytree(runs[1].path, tmp_path / "other"))
    other.write_recipe(other.recipe.override(["data.split_seed=1"]))
    with pytest.raises(RunError, match=r"differ in data\.split_seed.*train all folds with the same settings"):
        cross_validate([runs[0], other], own, device="cpu")


def test_folds_with_different_corrections_are_refused(own: Path, runs: list[Run], tmp_path: Path) -> None:
    other = Run(shutil.copytree(runs[0].path, tmp_path / "other"))
    write_corrections(other.path / "corrections.csv", [relabel("red/0.png", "blue", "red")])
    message = f"{other.path} and {runs[1].path} were trained with different corrections of labels"
    with pytest.raises(RunError, match=message):
        cross_validate([other, runs[1]], own, device="cpu")


def test_folds_of_different_recipes_are_refused(own: Path, runs: list[Run], tmp_path: Path) -> None:
    other = Run(shutil.copytree(runs[1].path, tmp_path / "other"))

    def asking(*settings: str) -> None:
        """Let the run be one of a call with these settings."""
        overrides = [*TINY, "training.epochs=1", "data.folds=2", "data.fold=2", *settings]
        other.write_recipe(runs[1].recipe.override(settings))
        write_json(
            other.path / "run.json", {**runs[1].settings, "asked": what_was_asked("one-cycle", overrides)}
        )

    asking("optimizer.momentum=0.8")
    with pytest.raises(
        RunError, match=r"differ in optimizer\.momentum, so the folds do not measure one recipe"
    ):
        cross_validate([runs[0], other], own, device="cpu")
    asking("seed=5", "data.workers=1")  # these may differ
    assert cross_validate([runs[0], other], own, device="cpu").result.pictures == 36


def test_a_fold_that_was_ended_early_is_noted(own: Path, runs: list[Run], tmp_path: Path) -> None:
    other = Run(shutil.copytree(runs[1].path, tmp_path / "other"))
    stop = {
        "epoch": 1, "planned_epochs": 9, "step": 3, "planned_steps": 1200, "watched": None, "patience": 0,
        "why": "ended on request",
    }  # fmt: skip
    write_json(other.path / "summary.json", {**runs[1].summary, "stopped_early": stop})
    found = cross_validate([runs[0], other], own, device="cpu")
    assert found.notes == ("fold 2: the training was ended early, at step 3 of 1,200",)


def test_data_that_have_changed_since_a_fold_was_trained_are_refused(
    own: Path, runs: list[Run], tmp_path: Path
) -> None:
    data = Path(shutil.copytree(own, tmp_path / "data"))
    assert cross_validate(runs, data, device="cpu").result.pictures == 36
    (data / "red" / "0.png").rename(data / "red" / "99.png")
    with pytest.raises(
        RunError, match=rf"have changed since {runs[0].path} was trained.*train all folds again"
    ):
        cross_validate(runs, data, device="cpu")


def test_pictures_that_are_never_tested_are_noted(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", [""], per_class=8)
    (data / "alone").mkdir()
    (data / "red" / "0.png").rename(data / "alone" / "0.png")
    # Pictures of unsure class are test pictures, but no training pictures.
    labels = [unsure(f"{name}/{number}.png", name) for name in ("red", "green", "blue") for number in (1, 2)]
    found = cross_validate(trained(data, tmp_path / "runs", labels=labels), data, device="cpu")
    assert found.result.pictures == 23
    assert found.result.groups is None
    assert found.notes[0].startswith("1 picture(s) were never test pictures")


def test_the_interval_allows_for_groups_whose_pictures_were_read(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", [""], per_class=8)
    (data / "red" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    grouped = trained(data, tmp_path / "runs", "data.group_by='/([0-7])[.]'", "data.on_bad_image=skip")
    found = cross_validate(grouped, data, device="cpu")
    right, groups = [], []
    for run in grouped:
        loaded, classifier = load_data(data, settings=run.recipe.data), load_classifier(run.path, "cpu")
        part = classifier.classify_split(loaded.split("test"), loaded.class_names, on_bad_image="skip")
        right.append(part.logits.argmax(axis=1) == part.labels)
        groups += [Path(part.split.name(index)).stem for index in range(len(part.split))]
    assert (found.result.pictures, found.result.groups) == (23, 8)
    assert found.interval == grouped_interval(np.concatenate(right), np.array(groups))
    assert not any("group" in note for note in found.notes)


def test_copies_in_train_and_test_are_told_with_the_fold(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", [""], per_class=6)
    for number in range(6):
        (data / "red" / f"{number}.png").write_bytes((data / "red" / "0.png").read_bytes())
    found = cross_validate(trained(data, tmp_path / "runs"), data, device="cpu")
    assert [note.partition(": ")[0] for note in found.notes] == ["fold 1", "fold 1", "fold 2", "fold 2"]
    assert all("are also in train" in note for note in found.notes[::2])
    assert all("the 95 % interval is too narrow" in note for note in found.notes[1::2])


def test_test_pictures_that_the_initial_weights_know_are_told_with_the_fold(
    own: Path, runs: list[Run], tmp_path: Path
) -> None:
    begun = trained(own, tmp_path / "runs", f'training.init="{runs[0].path}"')
    found = cross_validate(begun, own, device="cpu")
    (note,) = found.notes  # the first network was trained on the test pictures of the second fold
    assert note.startswith("fold 2: warning: the network in ")
    assert note.endswith(" test pictures: the accuracy there may be too high")


def test_test_pictures_that_the_initial_weights_may_know_are_told_with_each_fold(
    own: Path, runs: list[Run], tmp_path: Path
) -> None:
    weights, info = read_weights(runs[0].weights_path)
    write_weights(tmp_path / "x.safetensors", weights, replace(info, fingerprint="0"))
    begun = trained(own, tmp_path / "runs", f'training.init="{tmp_path}/x.safetensors"')
    notes = cross_validate(begun, own, device="cpu").notes
    assert [note.partition(" may ")[0] for note in notes] == [
        f"fold {number}: warning: the network in x.safetensors" for number in range(1, len(runs) + 1)
    ]


def test_several_labels_per_picture_give_map_over_all_pictures(tmp_path: Path) -> None:
    table = write_label_table(tmp_path / "data", coloured_labels(40, splits=("train",)))
    runs = trained(table, tmp_path / "runs")
    found = cross_validate(runs, table, device="cpu")
    assert isinstance(found.result, LabelEvaluation)
    assert found.result.pictures == 40
    assert [fold.value for fold in found.folds] == [pytest.approx(run.summary["map"]) for run in runs]
    assert found.interval == found.result.map_interval
    assert found.to_dict()["map"] == found.value
    assert found.to_dict()["multilabel"] is True


def test_labels_are_given_at_the_thresholds_of_each_folds_network(label_run: Run) -> None:
    info = load_classifier(label_run.path, "cpu").info
    infos = [replace(info, label_thresholds=(0.2, 0.5, 0.9)), replace(info, label_thresholds=())]
    split = coloured_labels(50, splits=("train",)).splits["train"]
    generator = np.random.default_rng(0)
    logits = [generator.normal(size=(50, 3)).astype(np.float32) for _ in infos]
    parts = [SplitLogits(split, one, split.targets, one, "none") for one in logits]
    found = _together(parts, infos, None)
    assert isinstance(found, LabelEvaluation)
    given = np.concatenate(
        [
            sigmoid(one) >= np.array(cuts)
            for one, cuts in zip(logits, ([0.2, 0.5, 0.9], [0.5] * 3), strict=True)
        ]
    )
    truth = np.concatenate([split.targets, split.targets])
    right = (given == truth).all(axis=1)
    assert found.accuracy == pytest.approx(right.mean())
    assert found.interval == wilson_interval(int(right.sum()), 100)
    for label, score in enumerate(found.labels):
        hits = (given & truth)[:, label].sum()
        assert score.recall == pytest.approx(hits / truth[:, label].sum())
        assert score.precision == pytest.approx(hits / given[:, label].sum())
        assert score.predicted == given[:, label].sum()
    assert [score.threshold for score in found.labels] == pytest.approx([0.35, 0.5, 0.7])
    groups = np.array([f"p{number // 5}" for number in range(100)], dtype=object)
    grouped = _together(parts, infos, groups)
    assert isinstance(grouped, LabelEvaluation)
    assert (grouped.groups, grouped.interval) == (20, grouped_interval(right, groups))
    assert grouped.map == found.map
    assert grouped.map_interval != found.map_interval


def test_a_fold_without_any_label_has_no_value_and_leaves_json_valid(label_run: Run) -> None:
    result = load_classifier(label_run.path, "cpu").evaluate_labels(coloured_labels(20, splits=("train",)))
    folds = (Fold(1, label_run, 10, math.nan), Fold(2, label_run, 10, 0.5))
    found = CrossValidation("colours", folds, result, "none", ())
    described = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (
        described["mean_of_folds"] is described["deviation_of_folds"] is described["folds"][0]["map"] is None
    )


def test_data_in_memory_are_divided_too(tmp_path: Path) -> None:
    split = coloured_data(24).splits["train"]
    data = (np.stack([np.asarray(split.load(index)) for index in range(24)]), split.labels)
    assert cross_validate(trained(data, tmp_path), data, device="cpu").result.pictures == 24
