"""Every picture is judged by a network that was not trained on it; what is computed once is kept on disk."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from helpers import TINY, Payload, coloured, coloured_data, write_class_folders
from thumbnet.batches.prepare import Prepared
from thumbnet.classifiers.load import load_classifier
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import FallbackWarning, RunError, ThumbnetError
from thumbnet.evaluation import log_softmax
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.reviewing import scores as scoring
from thumbnet.reviewing.scores import Scores, Scoring, _Meter, fold_recipe, score_pictures
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data
from thumbnet.training.fit import StepResult
from thumbnet.training.train import train


class Stop(Exception):
    """Raised by a progress callback."""


class Watch:
    """Notes which networks were trained, and stops before the network ``stop_at`` has taken a step."""

    def __init__(self, stop_at: int = 0) -> None:
        self.states: list[Scoring] = []
        self.stop_at = stop_at

    def __call__(self, state: Scoring) -> None:
        if self.stop_at and state.network == self.stop_at:
            raise Stop
        self.states.append(state)

    @property
    def trained(self) -> set[int]:
        return {state.network for state in self.states} - {0}


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    """A copy of the run that the tests share, so that scores can be written into it."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture(scope="module")
def watched() -> Watch:
    """What ``scored`` told while it computed."""
    return Watch()


@pytest.fixture(scope="module")
def scored(tiny_run: Run, watched: Watch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Scores]:
    """A run with the scores of two folds."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(tiny_run.path, folder)
    run = Run.open(folder)
    return run, score_pictures(run, coloured_data(), folds=2, device="cpu", progress=watched)


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.path, folder)
    return Run.open(folder)


def own_probabilities(run: Run, data: Data, split: str) -> np.ndarray:
    found = load_classifier(run.path, "cpu").classify_split(data.splits[split], data.class_names)
    return np.exp(log_softmax(found.logits)).astype(np.float32)


def with_labels(data: Data, labels: np.ndarray) -> Data:
    train = data.splits["train"]
    assert isinstance(train, ArraySplit)
    return replace(data, splits={**data.splits, "train": ArraySplit(train.images, labels, "train")})


def test_pictures_of_other_splits_are_judged_by_the_run_and_training_pictures_by_other_networks(
    scored: tuple[Run, Scores],
) -> None:
    run, scores = scored
    data = coloured_data()
    assert set(scores.probabilities) == {"train", "test"}
    for name, values in scores.probabilities.items():
        assert values.shape == (60, 3)
        assert values.dtype == np.float32
        assert values.sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert scores.held_out[name].all()
    assert np.array_equal(scores.probabilities["test"], own_probabilities(run, data, "test"))
    assert (
        not np.isclose(scores.probabilities["train"], own_probabilities(run, data, "train")).all(axis=1).any()
    )


def test_an_interrupted_scoring_goes_on_with_the_next_fold_and_gives_the_same_scores(
    run: Run, scored: tuple[Run, Scores]
) -> None:
    first, second, third = Watch(stop_at=2), Watch(), Watch()
    with pytest.raises(Stop):
        score_pictures(run, coloured_data(), folds=2, device="cpu", progress=first)
    assert first.trained == {1}
    scores = score_pictures(run, coloured_data(), folds=2, device="cpu", progress=second)
    assert second.trained == {2}
    again = score_pictures(run, coloured_data(), folds=2, device="cpu", progress=third)
    assert third.trained == set()
    for found in (scores, again):
        assert np.array_equal(found.probabilities["train"], scored[1].probabilities["train"])


@pytest.mark.usefixtures("scored")
def test_the_progress_rises_to_1_and_estimates_the_time_left(watched: Watch) -> None:
    done = [state.done for state in watched.states]
    assert (done[0], done[-1]) == (0, 1)
    assert done == sorted(done)
    training = [state for state in watched.states if state.network]
    assert training[-1].done == 1
    assert training[-1].seconds_left == 0
    assert all(state.pictures_per_second for state in training)
    assert all(state.seconds_left is not None and state.seconds_left > 0 for state in training[:-1])


def test_the_time_left_knows_that_pictures_become_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks of 100 steps, each of which takes a second per 1,000 pixels of a picture."""
    now, told = [0.0], list[Scoring]()
    monkeypatch.setattr(scoring, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    meter = _Meter(2, told.append)
    recipe, batches = load_recipe("fast"), SimpleNamespace(batch_size=10)
    prepared = cast(Prepared, SimpleNamespace(train=batches, preprocessing=SimpleNamespace(size=(32, 32))))
    sides = [20] * 25 + [24] * 25 + [32] * 50
    ends = 2 * sum(side**2 for side in sides) / 1000
    for number in (1, 2):
        count = meter.begin(number, recipe, prepared)
        for step, side in enumerate(sides, 1):
            now[0] += side**2 / 1000
            count(StepResult(1, step, 100, step, 100, 10 * step, None))
            left = told[-1].seconds_left
            assert left is not None
            assert now[0] + left == pytest.approx(ends)
        meter.networks_done += 1
    assert told[49].done == pytest.approx(0.5 * (25 * 400 + 25 * 576) / sum(side**2 for side in sides))


def test_without_folds_the_run_judges_all_pictures_and_says_so(run: Run) -> None:
    watch, data = Watch(), coloured_data()
    scores = score_pictures(run, data, folds=0, device="cpu", progress=watch)
    assert watch.trained == set()
    assert np.array_equal(scores.probabilities["train"], own_probabilities(run, data, "train"))
    assert not scores.held_out["train"].any()
    assert scores.held_out["test"].all()


def changed_label(data: Data) -> Data:
    labels = data.splits["train"].labels.copy()
    labels[0] = (labels[0] + 1) % 3
    return with_labels(data, labels)


def changed_pixel(data: Data) -> Data:
    train = data.splits["train"]
    assert isinstance(train, ArraySplit)
    images = train.images.copy()
    images[0, 0, 0, 0] ^= 1
    return replace(data, splits={**data.splits, "train": ArraySplit(images, train.labels, "train")})


@pytest.mark.parametrize("change", [changed_label, changed_pixel])
def test_scores_of_other_labels_or_pixels_are_not_used(
    change: Callable[[Data], Data], scored: tuple[Run, Scores], tmp_path: Path
) -> None:
    run, watch = copy_of(scored[0], tmp_path / "other"), Watch(stop_at=1)
    with pytest.raises(Stop):
        score_pictures(run, change(coloured_data()), folds=2, device="cpu", progress=watch)


def test_scores_of_another_number_of_folds_are_not_used(scored: tuple[Run, Scores], tmp_path: Path) -> None:
    run = copy_of(scored[0], tmp_path / "other")
    with pytest.raises(Stop):
        score_pictures(run, coloured_data(), folds=3, device="cpu", progress=Watch(stop_at=1))


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle"])
def test_a_damaged_file_is_computed_again_and_nothing_in_it_is_run(
    damage: str, scored: tuple[Run, Scores], tmp_path: Path
) -> None:
    run = copy_of(scored[0], tmp_path / "other")
    file = run.path / "scores" / "fold-1.npz"
    if damage == "pickle":
        np.savez(file, key=np.array([Payload(tmp_path / "hacked")], dtype=object), probabilities=np.zeros(1))
    else:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    if damage == "cut":
        watch = Watch()
        found = score_pictures(run, coloured_data(), folds=2, device="cpu", progress=watch)
        assert watch.trained == {1}
        assert np.array_equal(found.probabilities["train"], scored[1].probabilities["train"])
    else:
        with pytest.raises(Stop):
            score_pictures(run, coloured_data(), folds=2, device="cpu", progress=Watch(stop_at=1))
    assert not (tmp_path / "hacked").exists()


def test_a_test_picture_that_is_also_in_train_is_judged_by_the_network_that_judges_its_copy(run: Run) -> None:
    data = coloured_data()
    train, test = data.splits["train"], data.splits["test"]
    assert isinstance(train, ArraySplit)
    assert isinstance(test, ArraySplit)
    leaked = ArraySplit(
        np.concatenate([test.images, train.images[7:9]]),
        np.concatenate([test.labels, train.labels[7:9]]),
        "test",
    )
    scores = score_pictures(
        run, replace(data, splits={"train": train, "test": leaked}), folds=2, device="cpu"
    )
    assert scores.probabilities["test"][60:] == pytest.approx(scores.probabilities["train"][7:9], abs=1e-5)
    assert scores.held_out["test"].all()


def test_new_pictures_in_train_are_judged_by_the_run(run: Run) -> None:
    data = coloured_data()
    train = data.splits["train"]
    assert isinstance(train, ArraySplit)
    new = np.stack([coloured(label, 5000 + label) for label in range(3)])
    more = ArraySplit(np.concatenate([train.images, new]), np.append(train.labels, [0, 1, 2]), "train")
    grown = replace(data, splits={**data.splits, "train": more})
    scores = score_pictures(run, grown, folds=0, device="cpu")
    assert scores.held_out["train"].tolist() == [False] * 60 + [True] * 3


def test_unreadable_pictures_have_no_probabilities(run: Run, tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", ["train", "test"])
    (folder / "train" / "green" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    data = load_data(folder)
    scores = score_pictures(run, data, folds=0, device="cpu")
    missing = np.isnan(scores.probabilities["train"]).any(axis=1)
    names = [data.splits["train"].name(int(index)) for index in np.flatnonzero(missing)]
    assert [Path(name).as_posix() for name in names] == ["train/green/2.png"]
    assert not np.isnan(scores.probabilities["test"]).any()


def test_a_class_that_the_run_does_not_know_has_no_probability_from_it(run: Run) -> None:
    data = coloured_data()
    more = replace(data, class_names=("black", *data.class_names))
    more = with_labels(more, data.splits["train"].labels + 1)
    scores = score_pictures(run, more, folds=0, device="cpu")
    assert (scores.probabilities["test"][:, 0] == 0).all()
    assert np.array_equal(scores.probabilities["test"][:, 1:], own_probabilities(run, data, "test"))


def test_pictures_of_a_group_are_held_out_together(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from thumbnet.reviewing import scores as module

    seen: list[np.ndarray] = []

    def note(labels: np.ndarray, together: np.ndarray, folds: int, seed: int) -> np.ndarray:
        seen.append(together)
        raise Stop

    monkeypatch.setattr(module, "fold_numbers", note)
    groups = {"train": np.array([f"person {index // 6}" for index in range(60)], dtype=object)}
    with pytest.raises(Stop):
        score_pictures(run, replace(coloured_data(), groups=groups), folds=2, device="cpu")
    assert len(set(seen[0].tolist())) == 10
    assert all(len(set(seen[0][start : start + 6].tolist())) == 1 for start in range(0, 60, 6))


@pytest.mark.parametrize("folds", [1, -1])
def test_the_number_of_folds_is_checked(run: Run, folds: int) -> None:
    with pytest.raises(ThumbnetError, match=f"the number of folds is {folds}: expected 2 or more, or 0"):
        score_pictures(run, coloured_data(), folds=folds)


def test_an_unfinished_run_is_refused(run: Run) -> None:
    (run.path / "summary.json").unlink()
    with pytest.raises(RunError, match=r"is not finished, .* train --resume"):
        score_pictures(run, coloured_data(), folds=0)


def test_the_networks_of_the_folds_begin_with_nothing_that_was_learned_from_the_same_data(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, init = run.recipe, str(run.path)
    begun = replace(recipe, training=replace(recipe.training, init=init))
    monkeypatch.setattr(Run, "recipe", begun)
    assert fold_recipe(run, 1, knows=True).training.init == ""
    assert fold_recipe(run, 1, knows=False).training.init == init
    assert len({fold_recipe(run, fold, knows=True).seed for fold in (1, 2, 3)} | {recipe.seed}) == 4


def test_what_the_initial_weights_know_is_decided_by_the_pictures_of_all_runs_behind_them(
    tiny_run: Run, tmp_path: Path
) -> None:
    """The first and the third run have the same pictures, the second one has others."""

    def others(source: str) -> Data:
        numbers = np.arange(500, 560)
        images = np.stack([coloured(number % 3, number) for number in numbers.tolist()])
        train_split = ArraySplit(images, numbers % 3, "train")
        return replace(
            coloured_data(), source=source, splits={**coloured_data().splits, "train": train_split}
        )

    def begun(init: Run, data: Data, name: str) -> Run:
        settings = [*TINY, "training.epochs=1", f'training.init="{init.path}"']
        return train(data, "one-cycle", overrides=settings, out=tmp_path / name, device="cpu")

    def init_of_folds(run: Run, data: Data) -> str:
        return scoring._Scorer(run, data, 2, "cpu", lambda state: None)._recipe(1).training.init

    second = begun(tiny_run, others("others"), "second")
    third = begun(second, coloured_data(), "third")
    assert init_of_folds(third, coloured_data()) == ""
    assert init_of_folds(second, others("others")) == second.recipe.training.init
    assert init_of_folds(second, others("coloured")) != "", "the name of the data says nothing"


def test_the_networks_of_the_folds_begin_with_what_the_first_of_several_runs_began_with(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, init = run.recipe, str(run.path)

    def longer(knows: bool, **began: object) -> Recipe:
        values = {"pretrained": False, "init": "", "head_first": 0.0, **began}
        record = {"run": init, "epochs": 4, "began": values}
        monkeypatch.setattr(Run, "settings", {"continues": record})
        later = replace(
            recipe,
            model=replace(recipe.model, name="timm:resnet18", width=1.0),
            training=replace(recipe.training, init=init),
            schedule=replace(recipe.schedule, begin_at=0.5),
        )
        monkeypatch.setattr(Run, "recipe", later)
        return fold_recipe(run, 1, knows=knows)

    plain = longer(knows=False)
    assert (plain.training.init, plain.training.epochs) == ("", 4 + recipe.training.epochs)
    assert (plain.schedule.begin_at, plain.schedule.head_first, plain.model.pretrained) == (0, 0, False)
    pretrained = longer(knows=False, pretrained=True, head_first=0.2)
    assert (pretrained.model.pretrained, pretrained.schedule.head_first) == (True, 0.2)
    assert longer(knows=False, init=init, head_first=0.2).training.init == init
    same = longer(knows=True, init=init, head_first=0.2)  # it has learned from these pictures
    assert (same.training.init, same.schedule.head_first) == ("", 0)


def test_if_the_first_of_several_runs_is_gone_random_weights_do_only_for_thumbnets_own_networks(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = run.recipe
    gone = {"run": str(tmp_path / "gone"), "epochs": 4}
    monkeypatch.setattr(Run, "settings", {**run.settings, "continues": gone})
    assert fold_recipe(run, 1, knows=False).training.init == ""
    nothing = Scores({})
    monkeypatch.setattr(scoring, "_Scorer", lambda *_: SimpleNamespace(scores=lambda: nothing))
    with pytest.warns(
        FallbackWarning, match=r"continues .*gone.*the networks of the folds begin with random"
    ):
        assert score_pictures(run, coloured_data(), folds=2) is nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        assert score_pictures(run, coloured_data(), folds=0) is nothing
    timm = replace(recipe, model=replace(recipe.model, name="timm:resnet18", width=1.0))
    monkeypatch.setattr(Run, "recipe", timm)
    with pytest.raises(RunError, match=r"usually begins with pretrained weights.*Put the run back"):
        score_pictures(run, coloured_data(), folds=2)


def test_scores_depend_on_what_the_first_of_several_runs_began_with(run: Run) -> None:
    data, keys = coloured_data(), list[str]()
    settings = run.settings
    for began in (None, *({"pretrained": False, "init": "", "head_first": share} for share in (0.0, 0.1))):
        more = {} if began is None else {"continues": {"run": "gone", "epochs": 4, "began": began}}
        (run.path / "run.json").write_text(json.dumps({**settings, **more}))
        keys.append(scoring._Scorer(run, data, 2, "cpu", lambda state: None)._key())
    assert keys[0] == keys[1] != keys[2]  # scores of earlier versions, with random weights, stay valid


def test_a_plan_for_a_given_time_becomes_a_number_of_epochs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = run.recipe
    planned = replace(
        recipe,
        training=replace(recipe.training, steps=50, epochs=5),
        schedule=replace(recipe.schedule, planned_at=(0,), planned_steps=(50,)),
    )
    monkeypatch.setattr(Run, "recipe", planned)
    plain = fold_recipe(run, 1, knows=False)
    assert (plain.training.steps, plain.training.epochs, plain.schedule.planned_at) == (0, 5, ())
