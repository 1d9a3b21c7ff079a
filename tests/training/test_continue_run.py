"""A finished run is trained for longer: exactly resumable, honestly recorded, and without harm to the first."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import TINY, coloured_data, write_class_folders
from thumbnet.batches.prepare import Prepared
from thumbnet.errors import InterruptedRunError, RecipeError, RunError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import Run
from thumbnet.training.continue_run import Beginning, beginning, continuation
from thumbnet.training.listener import Listener
from thumbnet.training.schedules import done_at, factor_at, resize_at
from thumbnet.training.state import TrainingState
from thumbnet.training.train import resume, train
from training_helpers import StopAfter


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("first")
    data = write_class_folders(place / "data", ["train", "test"], per_class=20)
    return train(data, "one-cycle", overrides=TINY, out=place / "run")


def contents(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}


def test_it_goes_on_in_a_new_run_and_leaves_the_first_as_it_was(first: Run, tmp_path: Path) -> None:
    before = contents(first)
    second = resume(first.path, more_epochs=2, out=tmp_path / "second")
    assert contents(first) == before
    assert second.path != first.path
    assert second.summary["epochs"] == 2
    began = {"pretrained": False, "init": "", "head_first": 0.0}
    assert second.settings["continues"] == {"run": str(first.path.resolve()), "epochs": 3, "began": began}
    assert second.recipe.schedule.begin_at == pytest.approx(3 / 5)
    assert second.recipe.seed != first.recipe.seed
    assert second.recipe.data.split_seed == first.recipe.data.split_seed
    assert second.summary["accuracy"] >= first.summary["accuracy"] - 0.05
    third = continuation(second.path, 5)
    assert (third.record["epochs"], third.record["began"]) == (5, began)
    assert third.recipe.schedule.begin_at == pytest.approx(5 / 10)


def test_its_rate_is_that_of_the_last_part_of_the_longer_schedule(first: Run) -> None:
    planned = continuation(first.path, 2).recipe
    longer = load_recipe("one-cycle", TINY).schedule
    for step in range(40):
        assert factor_at(planned.schedule, step, 40) == pytest.approx(
            factor_at(longer, 60 + step, 100), abs=0.02
        )


def test_a_schedule_that_begins_later_has_less_of_everything_before_it() -> None:
    schedule = load_recipe("fast", ["schedule.begin_at=0.75"]).schedule
    assert done_at(schedule, 0, 10) == 0.75
    assert factor_at(schedule, 0, 10) == pytest.approx(0.25)
    import torch

    images = torch.rand(1, 3, 32, 32)
    assert resize_at(schedule, images, 0, 10) is images  # the small pictures are behind it
    with pytest.raises(RecipeError, match="begin_at"):
        load_recipe("fast", ["schedule.begin_at=1"])


def test_stopped_in_the_second_phase_it_resumes_to_the_very_same_weights(first: Run, tmp_path: Path) -> None:
    whole = resume(first.path, more_epochs=2, out=tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        resume(first.path, more_epochs=2, out=tmp_path / "stopped", listener=StopAfter(5))
    assert not Run(tmp_path / "stopped").is_complete
    again = resume(tmp_path / "stopped")
    assert again.weights_path.read_bytes() == whole.weights_path.read_bytes()
    assert again.settings["continues"] == whole.settings["continues"]


def test_an_unfinished_run_is_to_be_finished_first(first: Run, tmp_path: Path) -> None:
    data = first.settings["data"]
    with pytest.raises(InterruptedRunError):
        train(data, "one-cycle", overrides=TINY, out=tmp_path / "run", listener=StopAfter(3))
    with pytest.raises(RunError, match=r"not finished.*First finish it: .*train --resume"):
        resume(tmp_path / "run", more_epochs=2)


def test_settings_may_change_and_data_may_not(first: Run, tmp_path: Path) -> None:
    planned = continuation(first.path, 2, ["optimizer.lr=0.01", "schedule.begin_at=0"])
    assert (planned.recipe.optimizer.lr, planned.recipe.schedule.begin_at) == (0.01, 0.0)
    with pytest.raises(RecipeError, match="--more-epochs 0"):
        continuation(first.path, 0)
    data = write_class_folders(tmp_path / "data", ["train", "test"], per_class=4)
    run = train(data, "one-cycle", overrides=[*TINY, "training.epochs=1"], out=tmp_path / "run")
    (data / "train" / "red" / "0.png").unlink()
    with pytest.raises(RunError, match=r"have changed.*--init"):
        resume(run.path, more_epochs=1, out=tmp_path / "second")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("training.epochs=50", "how long to train"),
        ("training.steps=3", "how long to train"),
        ("training.init=runs/other", "starts from the weights of"),
        ("model.pretrained=auto", "starts from the weights of"),
    ],
)
def test_the_length_and_the_initial_weights_are_not_for_settings(setting: str, why: str, first: Run) -> None:
    with pytest.raises(RecipeError, match=rf"{setting.partition('=')[0]} = .*--more-epochs.*{why}"):
        continuation(first.path, 2, [setting])
    assert continuation(first.path, 2, ["training.epochs=2"]).recipe.training.epochs == 2


def test_from_the_command_line_it_says_what_the_rate_does(
    first: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from thumbnet.cli import main

    out = tmp_path / "second"
    words = ["train", "--resume", str(first.path), "--more-epochs", "1", "--out", str(out), "--set", "seed=9"]
    assert main(words) == 0
    shown = capsys.readouterr().err
    assert f"continues {first.path.resolve()} after 3 epoch(s)" in shown
    assert "the learning rate starts again at" in shown
    assert Run(out).recipe.seed == 9
    assert json.loads((out / "run.json").read_text())["continues"]["epochs"] == 3


def test_the_digits_do_not_collapse(tmp_path: Path) -> None:
    """A real small network at its real rates: more epochs do not throw away what it knew."""
    few = ["training.epochs=2", "data.subset_size=600", "model.width=0.5"]
    run = train("digits", "digits", overrides=few, out=tmp_path / "run")
    more = resume(run.path, more_epochs=1, out=tmp_path / "more")
    assert more.summary["accuracy"] > run.summary["accuracy"] - 0.02


def test_a_run_that_was_planned_for_a_time_is_continued_for_whole_epochs(first: Run, tmp_path: Path) -> None:
    plan = ["training.steps=8", "schedule.planned_at=[0,4]", "schedule.planned_steps=[9,8]"]
    timed = train(
        str(first.settings["data"]),
        "one-cycle",
        overrides=[*TINY, *plan],
        out=tmp_path / "timed",
        device="cpu",
    )
    assert timed.summary["epochs"] == 3
    planned = continuation(timed.path, 2).recipe
    assert (planned.training.steps, planned.training.epochs) == (0, 2)
    assert planned.schedule.planned_at == planned.schedule.planned_steps == ()
    assert planned.schedule.begin_at == pytest.approx(3 / 5)


def test_patience_is_refused_where_every_picture_of_a_val_split_was_trained_on(
    first: Run, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"training\.patience = 2 needs a val split.*already trained on"):
        resume(first.path, more_epochs=2, out=tmp_path / "second", overrides=["training.patience=2"])
    assert not (tmp_path / "second").exists()


class Seeing(StopAfter):
    """Keeps the names of the training pictures."""

    def __init__(self, steps: int = 1000) -> None:
        super().__init__(steps)
        self.names: list[str] = []

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        train = prepared.splits["train"]
        self.names = [train.name(at) for at in range(len(train))]


def test_a_random_subset_of_the_pictures_stays_the_same(tmp_path: Path) -> None:
    data, few = coloured_data(90), [*TINY, "training.epochs=1", "data.subset_size=30", "seed=3"]
    first, stopped, again, third = Seeing(), Seeing(1), Seeing(), Seeing()
    run = train(data, "one-cycle", overrides=few, out=tmp_path / "1", device="cpu", listener=first)
    with pytest.raises(InterruptedRunError):
        resume(run.path, more_epochs=1, out=tmp_path / "2", data=data, device="cpu", listener=stopped)
    second = resume(tmp_path / "2", data=data, device="cpu", listener=again)
    resume(second.path, more_epochs=1, out=tmp_path / "3", data=data, device="cpu", listener=third)
    assert len(first.names) == 30
    assert first.names == stopped.names == again.names == third.names
    assert (run.recipe.data.subset_seed, second.recipe.data.subset_seed) == (None, 3)
    assert second.recipe.seed != 3


def test_all_pictures_need_no_seed(first: Run) -> None:
    assert continuation(first.path, 2).recipe.data == first.recipe.data


def test_what_the_user_wants_about_mirroring_is_done_whatever_the_classes_are_called(tmp_path: Path) -> None:
    data = replace(coloured_data(), class_names=("left", "right", "other"))
    own = [*TINY, "training.epochs=1", "evaluation.tta=mirror"]  # which name augment.flip as well
    run = train(data, "one-cycle", overrides=own, out=tmp_path / "1", device="cpu")
    more = resume(run.path, more_epochs=1, out=tmp_path / "2", data=data, device="cpu")
    asked = ["augment.flip=alternating"]
    other = resume(run.path, more_epochs=1, out=tmp_path / "3", data=data, device="cpu", overrides=asked)
    found = [(one.recipe.augment.flip, one.recipe.evaluation.tta) for one in (run, more, other)]
    assert found == [("random", "mirror"), ("random", "mirror"), ("alternating", "mirror")]


def test_a_choice_of_the_epoch_that_is_asked_for_now_evaluates_every_epoch(tmp_path: Path) -> None:
    data, seldom = coloured_data(splits=("train", "val")), ["training.epochs=1", "evaluation.every=8"]
    run = train(data, "one-cycle", overrides=[*TINY, *seldom], out=tmp_path / "run", device="cpu")
    assert continuation(run.path, 9).recipe.evaluation.every == 8
    for asked in ("training.patience=2", "training.keep=best"):
        assert continuation(run.path, 9, [asked]).recipe.evaluation.every == 1
        assert continuation(run.path, 9, [asked, "evaluation.every=3"]).recipe.evaluation.every == 3


def test_it_says_what_new_settings_leave_out_of_the_finished_runs_recipe(first: Run, tmp_path: Path) -> None:
    assert continuation(first.path, 1, ["seed=3"]).notes == ()
    groups = ["optimizer.groups=[{match = '@head', lr = 0.1}]"]
    heard: list[str] = []

    class Hearing(Listener):
        def on_note(self, text: str) -> None:
            heard.append(text)

    run = resume(first.path, more_epochs=1, out=tmp_path / "own", overrides=groups)
    adamw = ["optimizer.name=adamw", "optimizer.lr=0.001"]
    more = resume(run.path, more_epochs=1, out=tmp_path / "adamw", overrides=adamw, listener=Hearing())
    assert more.recipe.optimizer.groups == ()
    assert any("('@head': 0.1) are left out" in text for text in heard)


def changed(run: Run, folder: Path, continues: dict[str, object] | None, *overrides: str) -> Run:
    """A copy of a run with another recipe, which continues another run."""
    copy = Run(Path(shutil.copytree(run.path, folder)))
    copy.write_recipe(copy.recipe.override(overrides))
    settings = {**copy.settings, **({} if continues is None else {"continues": continues})}
    (copy.path / "run.json").write_text(json.dumps(settings))
    return copy


def test_what_the_first_run_began_with_is_found_through_those_that_continue_it(
    first: Run, tmp_path: Path
) -> None:
    one = changed(first, tmp_path / "1", None, "training.init=runs/other", "schedule.head_first=0.2")
    expected = Beginning(False, "runs/other", 0.2)
    assert beginning(one) == expected
    two = changed(first, tmp_path / "2", {"run": str(one.path), "epochs": 3})  # as earlier versions wrote it
    three = changed(first, tmp_path / "3", {"run": str(two.path), "epochs": 6})
    assert beginning(three) == expected
    four = changed(first, tmp_path / "4", continuation(three.path, 2).record)
    shutil.rmtree(one.path)
    assert beginning(three) is None
    assert "began" not in continuation(three.path, 2).record
    assert beginning(four) == expected  # it is recorded


def test_runs_that_continue_each_other_in_a_circle_have_no_beginning(first: Run, tmp_path: Path) -> None:
    one = changed(first, tmp_path / "1", {"run": str(tmp_path / "2"), "epochs": 3})
    changed(first, tmp_path / "2", {"run": str(one.path), "epochs": 3})
    assert beginning(one) is None


@pytest.mark.parametrize(
    "began",
    [
        [],
        {},
        {"pretrained": 1, "init": "", "head_first": 0},
        {"pretrained": True, "init": 5, "head_first": 0},
        {"pretrained": True, "init": "", "head_first": 1},
    ],
)
def test_a_damaged_beginning_is_an_error(began: object, first: Run, tmp_path: Path) -> None:
    run = changed(first, tmp_path / "1", {"run": "gone", "epochs": 3, "began": began})
    with pytest.raises(RunError, match=r"cannot read .*run.json: continues.began"):
        beginning(run)
