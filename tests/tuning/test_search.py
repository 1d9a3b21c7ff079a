from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
pytest.importorskip("jinja2", reason="the extra 'tune' is not installed")

from helpers import coloured_data, write_class_folders
from own_networks import OwnPackage
from thumbnet.data.splits import ArraySplit
from thumbnet.errors import (
    DivergedError,
    InterruptedRunError,
    InterruptedTuneError,
    ModelCodeError,
    NetworkError,
    RecipeError,
    RunError,
    ThumbnetError,
)
from thumbnet.files import file_digest
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.runs.any_weights import AnyWeights
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data
from thumbnet.training.choose import choose_recipe
from thumbnet.training.fit import StepResult
from thumbnet.training.listener import Listener
from thumbnet.training.mirror_names import named_keys
from thumbnet.training.pretrained import Download
from thumbnet.training.speed import Speed
from thumbnet.training.time_budget import may_watch_less
from thumbnet.training.train import train
from thumbnet.tuning import search
from thumbnet.tuning import tune as begin
from thumbnet.tuning.listener import Progress, TuneListener
from thumbnet.tuning.parts import divide, held_out_of
from thumbnet.tuning.plan import FINAL_SHARE, WRITING, Cost
from thumbnet.tuning.study import Record, paired_gain
from thumbnet.tuning.trial import Outcome
from thumbnet.tuning.tune import resume_tuning, tune
from tuning_helpers import SHORTEST, Stop, rows


@dataclass
class Pretend:
    """Stands in for the clock, the trials and the final training: nothing is computed.

    Attributes:
        now: the time, in seconds.
        seconds: how long a trial takes; None: as long as is expected.
        later: how long all but the first take, if that differs.
        training: how long the final training takes.
        gain: how much better each trial is than the one before; None: the lower the learning rate, the better.
        trials: the learning rates of the trials; ``took``, their seconds.
        final: the arguments of the final training. If the time decides its length, it has 77 epochs and is
            evaluated every 7, and its network is half as wide again if it may become wider.
        initial: the weights that the latest trial was given to start from.
    """

    now: float = 100.0
    seconds: float | None = 10.0
    later: float | None = None
    training: float = 1.0
    gain: float | None = None
    took: list[float] = field(default_factory=list)
    trials: list[float] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    initial: AnyWeights | None = None

    def perf_counter(self) -> float:
        return self.now

    def measure(self, *_: object) -> Cost:
        return Cost(Speed({(16, 16): 0.001}, 0.002, 0.0005), 0.125)

    def run_trial(self, recipe: Recipe, *arguments: Any) -> Outcome:
        self.trials.append(recipe.optimizer.lr)
        self.initial = arguments[5]
        on_step, seconds = arguments[4], self.seconds
        if seconds is None:
            seconds = self.measure().unpaced(recipe, arguments[0])
        if self.later is not None and len(self.trials) > 1:
            seconds = self.later
        self.took.append(seconds)
        for step in range(1, 11):
            self.now += seconds / 10
            on_step(StepResult(1, step, 10, step, 10, 32 * step, 1.0), 0)
        if recipe.optimizer.lr > 0.5:
            raise DivergedError(3, float("nan"), recipe.optimizer.lr)
        value = 1 - recipe.optimizer.lr if self.gain is None else 0.5 + self.gain * len(self.trials)
        return Outcome(value, (1 - value,) * sum(map(held_out_of, arguments[0])))

    def train(self, data: Any, recipe: Recipe, *, out: Path, **options: Any) -> Run:
        listener, begun = options["listener"], out.is_dir()
        out.mkdir(exist_ok=True)
        self.now += self.training / 2
        if not begun and listener.should_stop():
            raise InterruptedRunError(out, 1, 1)
        self.now += 0 if begun else self.training / 2
        self.final = {"data": data, "recipe": recipe, **options}
        if options["minutes"] is not None:
            wider = 1.5 if options["may_widen"] else 1.0
            recipe = replace(
                recipe,
                model=replace(recipe.model, width=wider * recipe.model.width),
                training=replace(recipe.training, epochs=77, steps=231),
                evaluation=replace(recipe.evaluation, every=7),
            )
        (out / "recipe.toml").write_text(recipe.to_toml())
        summary = {"split": "test", "accuracy": 0.5, "tta": "none", "epochs": 1, "kept_by": "last"}
        summary["seconds_total"] = self.training
        (out / "summary.json").write_text(json.dumps(summary))
        (out / "run.json").write_text("{}")
        return Run(out)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    made = Pretend()
    for module in (begin, search):
        monkeypatch.setattr(module, "time", made)
    for name in ("run_trial", "train"):
        monkeypatch.setattr(search, name, getattr(made, name))
    monkeypatch.setattr(begin, "load_kernels", lambda: None)
    monkeypatch.setattr(Cost, "measure", made.measure)
    monkeypatch.setattr(search, "write_page", lambda *_, **__: None)
    return made


class Watch(TuneListener):
    """Keeps what a search tells."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.minutes: list[float | None] = []
        self.notes: list[str] = []

    def on_progress(self, progress: Progress) -> None:
        self.progress.append(progress)

    def on_final(self, best: Record, minutes: float | None) -> None:
        self.minutes.append(minutes)

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def test_a_search_uses_its_time_and_keeps_enough_for_the_final_training(
    pretend: Pretend, tmp_path: Path
) -> None:
    watch, data = Watch(), coloured_data(24)
    out = tmp_path / "search"
    found = tune(data, "small", minutes=5, overrides=SHORTEST, out=out, listener=watch, device="cpu")
    assert 18 <= len(pretend.trials) <= 19  # of 10 s each, in two thirds of 300 s
    assert pretend.now - 100 < 200
    left = [one.seconds_left for one in watch.progress]
    assert left[0] > 180
    assert all(one.pictures_per_second == pytest.approx(32) for one in watch.progress)
    assert watch.minutes == [None]  # the user has set the number of epochs
    assert pretend.final["recipe"] == found.recipe
    assert pretend.final["data"] is data


def test_a_search_keeps_enough_for_a_long_final_training_of_a_given_length(
    pretend: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cost, "final", lambda *_: 150.0)
    pretend.training = 150.0
    tune(coloured_data(24), "small", minutes=5, overrides=SHORTEST, out=tmp_path / "search", device="cpu")
    assert 13 <= len(pretend.trials) <= 14  # of 10 s each, in half of 300 s
    assert pretend.now - 100 <= 300


def test_a_trial_that_would_end_late_is_given_up_and_does_not_count(pretend: Pretend, tmp_path: Path) -> None:
    out = tmp_path / "search"
    pretend.later = 400
    found = tune(coloured_data(24), "small", minutes=5, overrides=SHORTEST, out=out, device="cpu")
    assert found.summary["trials"] == 1
    assert len(pretend.trials) == 2
    assert pretend.now - 100 < 300 * search.LATE + 400 / 10  # one more step


def test_all_trials_take_the_same_time_and_the_final_training_has_what_is_left(
    pretend: Pretend, tmp_path: Path
) -> None:
    settings = [one for one in SHORTEST if not one.startswith(("training.epochs", "model.width"))]
    pretend.seconds, pretend.gain, out = None, 0.01, tmp_path / "x"
    found = tune(coloured_data(90), "small", minutes=60, overrides=settings, out=out, device="cpu")
    widths = [float(row["model.width"]) for row in rows(out)]
    assert max(widths) > 1.3 * min(widths)
    for row, took in zip(rows(out), pretend.took, strict=True):
        assert took == pytest.approx(pretend.took[0], rel=0.25), row
    spent, for_trials = sum(pretend.took), 3600 * (1 - FINAL_SHARE) - WRITING
    assert for_trials - 1.2 * pretend.took[0] < spent <= for_trials
    assert 60 * pretend.final["minutes"] == pytest.approx(3600 - spent, abs=2 * WRITING)
    assert pretend.final["may_widen"]
    assert found.start.training.epochs == load_recipe("small").training.epochs


def test_the_recipe_that_a_search_leaves_trains_as_long_as_its_final_training(
    pretend: Pretend, tmp_path: Path
) -> None:
    asked = [one for one in SHORTEST if not one.startswith(("training.epochs", "model.width"))]
    pretend.gain, data, out = -0.01, coloured_data(24), tmp_path / "x"
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", minutes=5, trials=2, overrides=asked, out=out, device="cpu", listener=Stop(0))
    before = load_recipe(out / "recipe.toml")
    found = resume_tuning(out, data=data, device="cpu")
    kept = load_recipe(out / "recipe.toml")
    assert kept == found.recipe
    assert (kept.model.width, kept.training.epochs, kept.training.steps) == (1.5, 77, 0)
    assert kept.evaluation.every == 7
    assert before == found.trial == pretend.final["recipe"]
    assert (before.model.width, before.training.epochs) == (1, int(rows(out)[0]["training.epochs"]))
    assert before.training.epochs != 77
    assert kept.optimizer == before.optimizer


def test_the_recipe_of_a_search_without_a_time_is_that_of_its_best_trial(
    pretend: Pretend, tmp_path: Path
) -> None:
    found = tune(coloured_data(24), "small", trials=2, overrides=SHORTEST, out=tmp_path / "x", device="cpu")
    assert load_recipe(found.path / "recipe.toml") == found.recipe == found.trial == pretend.final["recipe"]


@pytest.mark.parametrize("fixed", ["model.width=0.125", "training.epochs=1"])
def test_what_the_user_has_set_keeps_the_final_network_from_becoming_wider(
    pretend: Pretend, tmp_path: Path, fixed: str
) -> None:
    settings = [one for one in SHORTEST if not one.startswith(("training.epochs", "model.width"))]
    found = tune(
        coloured_data(24), "small", minutes=5, trials=1, overrides=[*settings, fixed], out=tmp_path / "x"
    )
    assert not pretend.final["may_widen"]
    assert found.summary["trials"] == 1


def test_a_search_that_finds_nothing_better_leaves_its_time_to_the_final_training(
    pretend: Pretend, tmp_path: Path
) -> None:
    settings = [one for one in SHORTEST if not one.startswith("training.epochs")]
    pretend.gain, watch, data = -0.01, Watch(), coloured_data(90)
    out = tmp_path / "search"
    found = tune(data, "small", minutes=60, overrides=settings, out=out, listener=watch, device="cpu")
    assert len(pretend.trials) == 1 + search.PATIENCE
    assert found.summary["best_trial"] == 1
    assert watch.notes == [
        "the last 7 trials found nothing better: the rest of the time is for the final training"
    ]
    assert 60 * pretend.final["minutes"] == pytest.approx(3600 - 10 * len(pretend.trials), abs=2 * WRITING)


def test_as_many_trials_as_the_user_asked_for_are_run_even_if_they_find_nothing(
    pretend: Pretend, tmp_path: Path
) -> None:
    pretend.gain, out = -0.01, tmp_path / "search"
    settings = [one for one in SHORTEST if not one.startswith("training.epochs")]
    tune(coloured_data(90), "small", minutes=60, trials=12, overrides=settings, out=out, device="cpu")
    assert len(pretend.trials) == 12


def test_a_recipe_that_ends_after_a_number_of_steps_is_searched_in_epochs_and_the_user_is_told(
    pretend: Pretend, tmp_path: Path
) -> None:
    planned, watch = load_recipe("small", [*SHORTEST, "training.steps=7"]), Watch()
    found = tune(coloured_data(24), planned, trials=1, out=tmp_path / "x", listener=watch, device="cpu")
    assert found.start.training.steps == 0
    assert watch.notes == ["training.steps = 7 of the recipe is left out: trials have whole epochs"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are not UTF-8")
def test_a_recipe_found_for_a_folder_whose_name_is_not_utf8_can_be_read(
    pretend: Pretend, tmp_path: Path
) -> None:
    folder = write_class_folders(tmp_path / os.fsdecode(b"p\xff"), ["train", "test"], per_class=8)
    found = tune(folder, "small", trials=1, overrides=SHORTEST, out=tmp_path / "search", device="cpu")
    assert load_recipe(found.path / "recipe.toml") == found.recipe
    assert "p\\udcff" in found.recipe.description


def test_a_path_in_the_recipe_that_is_not_utf8_is_refused_before_the_search(
    pretend: Pretend, tmp_path: Path
) -> None:
    asked, out = [*SHORTEST, "training.init=" + os.fsdecode(b"w\xff.pt")], tmp_path / "search"
    with pytest.raises(RecipeError, match=r"not UTF-8: init = "):
        tune(coloured_data(24), "small", trials=1, overrides=asked, out=out, device="cpu")
    with pytest.raises(RecipeError, match=r"not UTF-8: init = "):
        train(coloured_data(24), "small", overrides=asked, out=out, device="cpu")
    assert not out.exists()


def test_a_trial_that_diverges_is_failed_and_the_search_goes_on(pretend: Pretend, tmp_path: Path) -> None:
    out = tmp_path / "search"
    found = tune(coloured_data(24), "small", trials=14, overrides=SHORTEST, out=out, device="cpu")
    wild = [rate > 0.5 for rate in pretend.trials]
    assert 0 < sum(wild) < 14
    assert found.summary["failed"] == sum(wild)
    assert [row["state"] == "failed" for row in rows(out)] == wild
    assert found.recipe.optimizer.lr == min(pretend.trials)


def test_a_recipe_that_does_not_work_at_all_is_an_error(pretend: Pretend, tmp_path: Path) -> None:
    wild = [*SHORTEST, "optimizer.lr=0.6"]
    with pytest.raises(ThumbnetError, match="diverged"):
        tune(coloured_data(24), "small", trials=2, overrides=wild, out=tmp_path / "x", device="cpu")


@pytest.mark.parametrize("stopped", [False, True])
def test_the_time_of_a_search_includes_all_of_its_final_training(
    stopped: bool, pretend: Pretend, tmp_path: Path
) -> None:
    pretend.training, data, out = 40.0, coloured_data(24), tmp_path / "search"
    listener = Stop(0) if stopped else TuneListener()
    with pytest.raises(InterruptedTuneError) if stopped else nullcontext():
        tune(data, "small", trials=2, overrides=SHORTEST, out=out, device="cpu", listener=listener)
    if stopped:
        pretend.now += 1000
        resume_tuning(out, data=data, device="cpu")
    assert json.loads((out / "summary.json").read_text())["seconds_total"] == 2 * 10 + 40


@pytest.mark.parametrize("error", [NetworkError("cannot build it"), RecipeError("a pass of 1 picture")])
def test_a_point_at_which_no_network_can_be_trained_is_a_failed_trial(
    error: ThumbnetError, pretend: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_as_it_is(*arguments: Any) -> Outcome:
        if pretend.trials:
            raise error
        return pretend.run_trial(*arguments)

    monkeypatch.setattr(search, "run_trial", only_as_it_is)
    out = tmp_path / "search"
    found = tune(coloured_data(24), "small", trials=3, overrides=SHORTEST, out=out, device="cpu")
    assert [(row["state"], row["reason"]) for row in rows(out)] == [
        ("complete", ""),
        *2 * [("failed", str(error))],
    ]
    assert found.summary["best_trial"] == 1
    with pytest.raises(type(error), match=str(error)):
        tune(coloured_data(24), "small", trials=3, overrides=SHORTEST, out=tmp_path / "x", device="cpu")


def test_a_search_whose_trials_all_fail_ends_although_they_take_no_time(
    pretend: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_as_it_is(*arguments: Any) -> Outcome:
        if pretend.trials:
            raise NetworkError("not with this width")
        return pretend.run_trial(*arguments)

    monkeypatch.setattr(search, "run_trial", only_as_it_is)
    out = tmp_path / "search"
    tune(coloured_data(24), "small", minutes=5, overrides=SHORTEST, out=out, device="cpu")
    assert [row["state"] for row in rows(out)] == ["complete", *search.PATIENCE * ["failed"]]


@pytest.mark.parametrize(("pictures", "again"), [(24, False), (120, True)])
def test_an_older_search_that_judged_by_too_few_pictures_for_a_temperature_is_not_mixed_with_new_trials(
    pictures: int, again: bool, pretend: Pretend, tmp_path: Path
) -> None:
    data, out = coloured_data(pictures), tmp_path / "search"
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=1, overrides=SHORTEST, out=out, device="cpu", listener=Stop(0))
    settings = json.loads((out / "tune.json").read_text())
    del settings["named"]
    (out / "tune.json").write_text(json.dumps(settings))
    with nullcontext() if again else pytest.raises(RunError, match="begun by an earlier version"):
        resume_tuning(out, data=data, device="cpu")


def test_the_final_training_keeps_what_the_search_has_decided_and_what_the_user_has_set(
    pretend: Pretend, tmp_path: Path
) -> None:
    data, out = replace(coloured_data(24), class_names=("left", "right", "green")), tmp_path / "search"
    asked = [*SHORTEST, "augment.flip=random", "evaluation.every=2"]
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=1, overrides=asked, out=out, device="cpu", listener=Stop(0))
    resume_tuning(out, data=data, device="cpu")
    found, overrides = pretend.final["recipe"], pretend.final["overrides"]
    recipe, _ = choose_recipe(data, found, overrides, None, Listener())
    assert recipe.augment.flip == found.augment.flip == "random"
    assert not may_watch_less(named_keys(found, overrides), recipe)
    assert may_watch_less(named_keys(found, overrides[:2]), recipe)


def test_a_search_of_an_earlier_version_measures_the_pixels_of_its_final_training_like_those_of_its_trials(
    pretend: Pretend, tiny_run: Run, tmp_path: Path
) -> None:
    data, out = coloured_data(80), tmp_path / "search"
    asked = [*SHORTEST, f'training.init="{tiny_run.path}"', "schedule.head_first=0.2"]
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=1, overrides=asked, out=out, device="cpu", listener=Stop(0))
    settings, begun = json.loads((out / "tune.json").read_text()), tmp_path / "begun.toml"
    begun.write_text(settings["recipe"])
    assert load_recipe(begun).data.mean != "auto"
    older = load_recipe(begun, [f"data.{key}=auto" for key in ("mean", "std", "background")])
    (out / "tune.json").write_text(json.dumps({**settings, "recipe": older.to_toml()}))
    resume_tuning(out, data=data, device="cpu")
    found, overrides = pretend.final["recipe"], pretend.final["overrides"]
    recipe, _ = choose_recipe(data, found, overrides, None, Listener())
    assert (recipe.data.mean, recipe.data.std, recipe.data.background) == ("auto", "auto", "auto")


@pytest.mark.parametrize("trial", [1, 0])
def test_the_command_to_go_on_with_allows_a_network_of_ones_own(
    trial: int, pretend: Pretend, own: OwnPackage
) -> None:
    asked = [one for one in SHORTEST if not one.startswith("model.width")]
    with pytest.raises(InterruptedTuneError, match=f"tune --resume search --model-code {OwnPackage.path}$"):
        tune(
            coloured_data(24),
            "one-cycle",
            trials=1,
            overrides=[*asked, f"model.name={OwnPackage.path}"],
            out="search",
            device="cpu",
            listener=Stop(trial),
        )


def test_a_search_with_a_network_of_ones_own_goes_on_with_its_class(
    pretend: Pretend, own: OwnPackage
) -> None:
    data, net = coloured_data(24), own.import_it().TinyNet
    asked = [one for one in SHORTEST if not one.startswith("model.width")]
    asked.append(f"model.name={OwnPackage.path}")
    with pytest.raises(InterruptedTuneError):
        tune(data, "one-cycle", trials=2, overrides=asked, out="search", device="cpu", listener=Stop(2))
    own.forget()
    with pytest.raises(ModelCodeError, match="pass model=TinyNet"):
        resume_tuning("search", data=data, device="cpu")
    assert resume_tuning("search", data=data, device="cpu", model=net).summary["trials"] == 2


@pytest.mark.parametrize("trial", [1, 2, 0])
def test_a_search_goes_on_with_other_code_unless_new_trials_would_follow_finished_ones(
    trial: int, pretend: Pretend, own: OwnPackage
) -> None:
    data, nets = coloured_data(24), own.folder / "mypackage" / "nets.py"
    asked = [one for one in SHORTEST if not one.startswith("model.width")]
    asked.append(f"model.name={OwnPackage.path}")
    with pytest.raises(InterruptedTuneError):
        tune(data, "one-cycle", trials=2, overrides=asked, out="search", device="cpu", listener=Stop(trial))
    shutil.copytree("search", "same")
    begun = json.loads(Path("same/tune.json").read_text())
    resume_tuning("same", data=data, device="cpu")
    assert json.loads(Path("same/tune.json").read_text()) == begun
    own.forget()
    own.write("mypackage/nets.py", nets.read_text() + "# edited\n")
    net = own.import_it().TinyNet
    changed = (
        rf"the file with {OwnPackage.path} \(model.name\) has changed since the search search began: new"
    )
    with pytest.raises(RunError, match=changed) if trial == 2 else nullcontext():
        resume_tuning("search", data=data, device="cpu", model=net)
    code = {"model.name": file_digest(nets)} if trial == 1 else begun["code"]
    assert json.loads(Path("search/tune.json").read_text()) == {**begun, "code": code}


@pytest.mark.parametrize(
    ("trial", "grouped", "again"), [(2, True, False), (2, False, True), (1, True, True), (0, True, True)]
)
def test_an_older_search_that_took_copies_for_independent_pictures_is_not_mixed_with_new_trials(
    trial: int, grouped: bool, again: bool, pretend: Pretend, tmp_path: Path
) -> None:
    data, out = coloured_data(24), tmp_path / "search"
    groups = {"train": np.array([f"p{number // 3}" for number in range(24)], dtype=object)}
    data = replace(data, groups=groups) if grouped else data
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=2, overrides=SHORTEST, out=out, device="cpu", listener=Stop(trial))
    settings = json.loads((out / "tune.json").read_text())
    assert settings.pop("independent_sets")
    (out / "tune.json").write_text(json.dumps(settings))
    with nullcontext() if again else pytest.raises(RunError, match=r"took copies .* for independent ones"):
        resume_tuning(out, data=data, device="cpu")
    now = json.loads((out / "tune.json").read_text())
    assert now.get("independent_sets", False) == (trial == 1)  # all its trials are of the new kind


def test_data_in_memory_need_to_be_given_again(pretend: Pretend, tmp_path: Path) -> None:
    data, out = coloured_data(24), tmp_path / "search"
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=2, overrides=SHORTEST, out=out, device="cpu", listener=Stop(2))
    with pytest.raises(RunError, match="were in memory"):
        resume_tuning(out, device="cpu")
    assert resume_tuning(out, data=data, device="cpu").summary["trials"] == 2


def test_the_downloads_of_a_search_that_goes_on_may_be_in_another_folder(
    pretend: Pretend, tmp_path: Path
) -> None:
    data, out = coloured_data(24), tmp_path / "search"
    old, new = tmp_path / "old", tmp_path / "new"
    with pytest.raises(InterruptedTuneError):
        tune(
            data, "small", trials=2, overrides=SHORTEST, out=out, device="cpu", data_dir=old, listener=Stop(2)
        )
    found = resume_tuning(out, data=data, device="cpu", data_dir=new)
    assert found.summary["trials"] == 2
    assert pretend.final["data_dir"] == str(new.resolve())
    assert json.loads((out / "tune.json").read_text())["data_dir"] == str(new.resolve())


def test_no_interval_is_recorded_for_pictures_that_belong_together(pretend: Pretend, tmp_path: Path) -> None:
    data = coloured_data(24)
    groups = {"train": np.array([f"p{number // 3}" for number in range(24)], dtype=object)}
    train = data.splits["train"]
    twice = ArraySplit(np.stack([np.asarray(train.load(at % 12)) for at in range(24)]), train.labels, "train")
    copied = replace(data, splits={**data.splits, "train": twice})
    grouped = replace(data, groups=groups)
    for name, one in (("plain", data), ("grouped", grouped), ("copied", copied)):
        found = tune(one, "small", trials=2, overrides=SHORTEST, out=tmp_path / name, device="cpu")
        assert (found.summary["best_interval"] is None) == (name != "plain")


def pictures_and_corrections(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of 48 pictures, half of them for the test, and a file that drops one of train's."""
    labels = tmp_path / "labels.csv"
    labels.write_text("picture,label,split,was,decision\ntrain/red/0.png,,train,red,drop\n")
    return write_class_folders(tmp_path / "pictures", ["train", "test"], per_class=8), labels


def test_corrections_of_labels_reach_the_trials_and_the_final_training(
    pretend: Pretend, tmp_path: Path
) -> None:
    (folder, labels), out = pictures_and_corrections(tmp_path), tmp_path / "search"
    with pytest.raises(InterruptedTuneError):
        tune(
            folder,
            "small",
            trials=2,
            overrides=SHORTEST,
            out=out,
            labels=labels,
            device="cpu",
            listener=Stop(2),
        )
    labels.unlink()
    found = resume_tuning(out, device="cpu")
    assert found.summary["held_out_pictures"] == 23
    assert [one.decision for one in pretend.final["labels"]] == ["drop"]


def test_data_that_are_corrected_already_are_read_again_with_their_corrections(
    pretend: Pretend, tmp_path: Path
) -> None:
    (folder, labels), out = pictures_and_corrections(tmp_path), tmp_path / "search"
    data = load_data(folder, labels=labels)
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=2, overrides=SHORTEST, out=out, device="cpu", listener=Stop(2))
    labels.unlink()
    found = resume_tuning(out, device="cpu")
    assert found.summary["held_out_pictures"] == 23
    assert [one.decision for one in pretend.final["labels"]] == ["drop"]


@pytest.mark.parametrize(
    ("splits", "judge"), [(("train", "val", "test"), "val"), (("train", "test"), "train")]
)
def test_the_final_run_records_which_pictures_judged_the_trials(
    pretend: Pretend, tmp_path: Path, splits: tuple[str, ...], judge: str
) -> None:
    data = coloured_data(splits=splits)
    tune(data, "small", trials=1, overrides=SHORTEST, out=tmp_path / "search", device="cpu")
    assert len(pretend.trials) == 1
    assert pretend.final["judged_on"] == judge


def test_a_search_whose_trials_were_judged_by_other_pictures_does_not_go_on(
    pretend: Pretend, tiny_run: Run, tmp_path: Path
) -> None:
    """The first 60 of the 80 pictures are those that the network knows."""
    data, out = coloured_data(80), tmp_path / "search"
    asked = [*SHORTEST, f'training.init="{tiny_run.path}"']
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=2, overrides=asked, out=out, device="cpu", listener=Stop(2))
    settings = json.loads((out / "tune.json").read_text())
    assert settings["held_out"] == 20
    of_earlier_version = {key: value for key, value in settings.items() if key != "held_out"}
    for other in (of_earlier_version, {**settings, "held_out": 80}):
        (out / "tune.json").write_text(json.dumps(other))
        with pytest.raises(RunError, match="has judged its trials by other pictures"):
            resume_tuning(out, data=data, device="cpu")
    (out / "tune.json").write_text(json.dumps(settings))
    assert resume_tuning(out, data=data, device="cpu").summary["trials"] == 2


def test_a_search_whose_first_weights_have_changed_does_not_go_on(
    pretend: Pretend, tiny_run: Run, tmp_path: Path
) -> None:
    data, out = coloured_data(80), tmp_path / "search"
    asked = [*SHORTEST, f'training.init="{tiny_run.path}"']
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=2, overrides=asked, out=out, device="cpu", listener=Stop(2))
    assert pretend.initial is not None
    settings = json.loads((out / "tune.json").read_text())
    assert settings["weights_sha256"] == pretend.initial.digest == file_digest(tiny_run.weights_path)
    (out / "tune.json").write_text(json.dumps({**settings, "weights_sha256": "0"}))
    with pytest.raises(RunError, match=f"the weights of {tiny_run.path} have changed since the search {out}"):
        resume_tuning(out, data=data, device="cpu")
    of_earlier_version = {key: value for key, value in settings.items() if key != "weights_sha256"}
    (out / "tune.json").write_text(json.dumps(of_earlier_version))
    assert resume_tuning(out, data=data, device="cpu").summary["trials"] == 2


def test_pretrained_weights_are_recognised_by_their_file(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = divide(coloured_data(24), load_recipe("small"), torch.device("cpu"))
    monkeypatch.setattr(begin, "fetch", lambda name: Download(Path(name), {"sha256": f"that of {name}"}))
    pretrained = load_recipe("finetune", ["model.name=timm:test_resnet", "model.pretrained=true"])
    assert begin._weights_digest(pretrained, parts) == "that of timm:test_resnet"
    assert begin._weights_digest(pretrained.override(["model.pretrained=false"]), parts) is None


def test_a_search_of_an_earlier_version_keeps_the_width_of_its_final_network(
    pretend: Pretend, tmp_path: Path
) -> None:
    asked = [one for one in SHORTEST if not one.startswith(("training.epochs", "model.width"))]
    data, out = coloured_data(24), tmp_path / "search"
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", minutes=5, trials=1, overrides=asked, out=out, device="cpu", listener=Stop(0))
    settings = json.loads((out / "tune.json").read_text())
    assert settings.pop("may_widen")
    (out / "tune.json").write_text(json.dumps(settings))
    resume_tuning(out, data=data, device="cpu")
    assert not pretend.final["may_widen"]


def test_a_choice_of_the_epoch_is_for_the_final_training_and_the_user_is_told(
    pretend: Pretend, tmp_path: Path
) -> None:
    watch, asked = Watch(), [*SHORTEST, "training.patience=2", "training.choose_by=balanced-accuracy"]
    tune(
        coloured_data(60),
        "small",
        trials=1,
        overrides=asked,
        out=tmp_path / "x",
        listener=watch,
        device="cpu",
    )
    assert watch.notes == [
        "training.patience = 2, training.choose_by = 'balanced-accuracy': for the final training only. Trials "
        "run to their last epoch and are compared by its loss"
    ]
    assert pretend.final["recipe"].training.patience == 2


def test_a_search_that_was_judged_by_copies_of_training_pictures_does_not_go_on(
    pretend: Pretend, tmp_path: Path
) -> None:
    data, out = coloured_data(40, splits=("train", "val")), tmp_path / "search"
    images = np.stack([np.asarray(data.splits["val"].load(index)) for index in range(40)])
    images[:5] = [np.asarray(data.splits["train"].load(index)) for index in range(5)]
    data = replace(data, splits={**data.splits, "val": ArraySplit(images, data.splits["val"].labels, "val")})
    with pytest.raises(InterruptedTuneError):
        tune(data, "small", trials=2, overrides=SHORTEST, out=out, device="cpu", listener=Stop(2))
    settings = json.loads((out / "tune.json").read_text())
    assert settings["held_out"] == 35
    (out / "tune.json").write_text(json.dumps({**settings, "held_out": 40}))
    with pytest.raises(
        RunError, match=r"by other pictures than it would now, because 5 of the 40 val pictures"
    ):
        resume_tuning(out, data=data, device="cpu")


def test_the_gain_of_a_trial_is_as_uncertain_as_groups_of_pictures_make_it(
    pretend: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {"train": np.array([f"p{number // 3}" for number in range(24)], dtype=object)}
    data = replace(coloured_data(24), groups=groups)
    together = divide(data, load_recipe("small"), torch.device("cpu")).together
    better = [0.8 - 0.01 * (one % 7) for one in together]

    def judged(*arguments: Any) -> Outcome:
        pretend.run_trial(*arguments)
        return Outcome(0.5, (1.0,) * 24 if len(pretend.trials) == 1 else tuple(better))

    monkeypatch.setattr(search, "run_trial", judged)
    found = tune(data, "small", trials=2, overrides=SHORTEST, out=tmp_path / "x", device="cpu").summary
    gain, error = paired_gain(better, [1.0] * 24, together)
    assert (found["best_trial"], found["gain"], found["gain_error"]) == (2, gain, error)
    assert error > 1.5 * paired_gain(better, [1.0] * 24)[1]
    assert found["judged_by"] == "3 folds of the 24 training pictures, in 8 independent sets"
