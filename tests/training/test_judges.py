"""Pictures that are not new to the network choose and calibrate nothing, wherever something is chosen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import TINY, coloured_data, numbered
from thumbnet.batches import leaks
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import InterruptedRunError, RunError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.reports.summary import describe_calibration
from thumbnet.runs.folder import Run
from thumbnet.training.judges import CHOOSE_NOTHING, Judges, find_judges
from thumbnet.training.train import resume, train
from thumbnet.tuning.parts import divide
from training_helpers import Noting, StopAfter

CPU = torch.device("cpu")
SHORT = [*TINY, "training.epochs=2", "model.width=0.25"]
NEW = range(2000, 2030)
COPIES = range(1000, 1030)


def half_copied() -> Data:
    """60 training pictures, and a ``val`` of 30 copies of these, with random labels, and 30 new pictures."""
    data = numbered(train=range(1000, 1060), val=[*COPIES, *NEW])
    val = data.splits["val"]
    assert isinstance(val, ArraySplit)
    labels = val.labels.copy()
    labels[:30] = np.random.default_rng(0).integers(0, 3, 30)
    return replace(data, splits={**data.splits, "val": ArraySplit(val.images, labels, "val")})


def prepared_from(data: Data) -> Prepared:
    return prepare(data, load_recipe("one-cycle", TINY), CPU)


def run_on(data: Data, out: Path, *overrides: str) -> tuple[Run, list[str]]:
    """A short training, and its notes."""
    hearing = Noting(1000)
    settings = [*SHORT, *overrides]
    run = train(data, "one-cycle", overrides=settings, out=out, device="cpu", listener=hearing)
    return run, hearing.notes


def val_counts(run: Run) -> list[int]:
    """How many val pictures each epoch's score is of."""
    rows = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    return [row["val_pictures"] for row in rows]


# --- the same rule everywhere ----------------------------------------------------------------------------


def test_copies_of_training_pictures_choose_no_epoch_and_calibrate_nothing(tmp_path: Path) -> None:
    run, notes = run_on(half_copied(), tmp_path / "run")
    assert val_counts(run) == [30, 30]
    assert run.settings[CHOOSE_NOTHING] == {"val": [[0, 30]]}
    assert (
        "30 of the 60 val pictures are copies of training pictures or in their groups: only the 30 others choose "
        "which epoch is best"
    ) in notes
    summary = run.summary
    assert (summary["calibrated_on"], summary["calibration_pictures"]) == ("val", 30)
    assert (summary["calibration_known"], summary["calibration_copied"]) == (0, 30)
    assert summary["thresholds"]["pictures"] == summary["unlike"]["pictures"] == 30


def test_copies_of_training_pictures_choose_no_settings() -> None:
    assert divide(half_copied(), load_recipe("small"), CPU).held_out == 30


def test_copies_of_training_pictures_choose_no_l2(tiny_run: Run, tmp_path: Path) -> None:
    hearing, init = Noting(1000), [f'training.init="{tiny_run.path}"']
    train(half_copied(), "linear", overrides=init, out=tmp_path / "run", device="cpu", listener=hearing)
    assert any("chosen on 30 held-out pictures of val (30 of the 60" in note for note in hearing.notes)


def test_a_val_split_of_copies_chooses_and_calibrates_nothing(tmp_path: Path) -> None:
    data = numbered(train=range(1000, 1060), val=COPIES)
    run, notes = run_on(data, tmp_path / "run")
    assert (run.recipe.training.keep, run.summary["kept_by"], run.summary["kept_epoch"]) == (
        "last",
        "last",
        2,
    )
    assert val_counts(run) == [30, 30]
    assert any("so val chooses no epoch: the last one is kept" in note for note in notes)
    assert (run.summary["calibrated_on"], run.summary["temperature"]) == (None, 1)
    assert str(describe_calibration(run.summary)).endswith(
        "30 of the 30 pictures for it are copies of training pictures or in their groups"
    )
    with pytest.raises(
        RunError, match=r"training.patience = 1 chooses .* 30 of the 30 val .*remove the copies"
    ):
        run_on(data, tmp_path / "refused", "training.patience=1")
    assert not (tmp_path / "refused").exists()


def test_copies_among_the_pictures_that_were_set_aside_for_calibration_are_left_out(tmp_path: Path) -> None:
    """Their names decide who is set aside, so one of two copies may be."""
    whole = coloured_data(420, splits=("train",)).splits["train"]
    assert isinstance(whole, ArraySplit)
    images, labels = (np.concatenate([part[:210], part[:210]]) for part in (whole.images, whole.labels))
    data = Data(
        "twice", "made here", ("red", "green", "blue"), {"train": ArraySplit(images, labels, "train")}
    )
    run, _ = run_on(data, tmp_path / "run", "training.epochs=1", "training.batch_size=60")
    summary = run.summary
    assert summary["calibration_pictures"] + summary["calibration_copied"] == 21
    assert summary["calibration_copied"] >= 10
    assert (summary["calibrated_on"], summary["thresholds"], summary["temperature"]) == (None, None, 1)


def test_pictures_that_the_weights_may_know_calibrate_nothing(tiny_run: Run, tmp_path: Path) -> None:
    data = numbered(train=range(1000, 1060), val=NEW)
    asked = [*SHORT, "model.width=0.5", f'training.init="{tiny_run.path}"']
    with pytest.raises(InterruptedRunError):
        train(data, "one-cycle", overrides=asked, out=tmp_path / "run", device="cpu", listener=StopAfter(1))
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    settings["init"]["perhaps_known"] = ["val"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    run = resume(tmp_path / "run", data=data, device="cpu")
    assert (run.summary["calibrated_on"], run.summary["calibration_unsure"]) == (None, True)


# --- which pictures they are -----------------------------------------------------------------------------


def fair_seeds(judges: Judges, seeds: Sequence[int]) -> list[int]:
    return [seeds[position] for position in judges.pictures]


def test_a_known_picture_that_is_also_in_train_now_chooses_nothing(tiny_run: Run, tmp_path: Path) -> None:
    """It is a leak of the data, so it is not called known, but the network has seen it twice."""
    data = numbered(train=[*range(10), *range(1000, 1050)], val=[*range(10), *NEW])
    run, _ = run_on(data, tmp_path / "run", f'training.init="{tiny_run.path}"', "model.width=0.5")
    assert "known" not in run.settings["init"]
    assert run.settings[CHOOSE_NOTHING] == {"val": [[0, 10]]}
    assert val_counts(run) == [30, 30]
    assert (run.summary["calibration_pictures"], run.summary["calibration_copied"]) == (30, 10)


def test_a_picture_in_a_group_of_a_known_one_chooses_nothing() -> None:
    seeds = range(2000, 2030)
    groups = np.array([f"g{number // 3}" for number in range(30)], dtype=object)
    known = np.zeros(30, dtype=bool)
    known[[0, 4]] = True
    data = numbered(train=seeds, val=range(3000, 3030))
    for split in ("train", "val"):
        prepared = replace(prepared_from(data), groups={split: groups}, known={split: known})
        judges = find_judges(prepared, split)
        assert judges.pictures.tolist() == list(range(6, 30))
        assert (judges.asked, judges.known, judges.belonging) == (30, 2, 4)
        others = "these" if split == "train" else "training pictures"
        assert judges.reasons("runs/a") == (
            f"the network in runs/a was trained on 2 of the 30 {split} pictures, and 4 of the others are copies of "
            f"{others} or in their groups"
        )


def test_only_the_pictures_that_are_asked_count() -> None:
    seeds = [*COPIES[:5], *NEW]
    prepared = prepared_from(numbered(train=range(1000, 1060), val=seeds))
    judges = find_judges(prepared, "val", np.arange(35) < 10)
    assert fair_seeds(judges, seeds) == list(NEW[:5])
    assert (judges.asked, judges.known, judges.belonging, judges.unsure) == (10, 0, 5, False)
    assert find_judges(replace(prepared, perhaps_known=("val",)), "val").unsure


@pytest.mark.parametrize(
    ("left", "asked", "enough"),
    [(20, 1000, True), (19, 1000, False), (10, 10, True), (6, 10, True), (5, 10, False), (0, 0, False)],
)
def test_twenty_pictures_are_enough_and_so_are_most_of_a_small_split(
    left: int, asked: int, enough: bool
) -> None:
    judges = Judges("val", np.arange(asked) < left, 0, asked - left, False)
    assert judges.enough == enough


# --- runs that go on -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on :func:`half_copied` that was stopped after its first step. Tests copy it."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(InterruptedRunError):
        train(half_copied(), "one-cycle", overrides=SHORT, out=out, device="cpu", listener=StopAfter(1))
    return out


def copy_of(run: Path, out: Path) -> dict[str, object]:
    """Copy a run, and return its ``run.json``."""
    shutil.copytree(run, out)
    settings: dict[str, object] = json.loads((out / "run.json").read_text())
    return settings


def test_a_resumed_run_scores_the_same_pictures_even_if_it_cannot_compare_them(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(stopped, tmp_path / "run")
    monkeypatch.setattr(leaks, "engine_digests", lambda engine: None)  # as if they did not fit into memory
    assert val_counts(resume(tmp_path / "run", data=half_copied(), device="cpu")) == [30, 30]


def test_a_run_of_an_earlier_version_goes_on_as_it_began(stopped: Path, tmp_path: Path) -> None:
    settings = copy_of(stopped, tmp_path / "run")
    del settings[CHOOSE_NOTHING]
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    assert val_counts(resume(tmp_path / "run", data=half_copied(), device="cpu")) == [60, 60]


@pytest.mark.parametrize("damaged", [[], {"val": "all"}, {"odd": []}, {"val": [[0, 99]]}])
def test_a_damaged_record_is_an_error(damaged: object, stopped: Path, tmp_path: Path) -> None:
    settings = copy_of(stopped, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({**settings, CHOOSE_NOTHING: damaged}))
    with pytest.raises(RunError, match=r"cannot read .*run.json: .*choose_nothing"):
        resume(tmp_path / "run", data=half_copied(), device="cpu")
