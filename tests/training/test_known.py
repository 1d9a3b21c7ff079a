"""Pictures that the initial weights were trained on judge nothing, and are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import TINY, coloured_data, numbered, write_class_folders
from thumbnet.batches.leaks import DIGESTS_NAME
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import InterruptedRunError, RunError
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, write_weights
from thumbnet.sources.load import load_data, where_again
from thumbnet.training.judges import CHOOSE_NOTHING, choose_by_val
from thumbnet.training.known import known_at_start, masks_from_record, record_of_masks
from thumbnet.training.listener import Listener
from thumbnet.training.resuming import KNOWN_CHOOSE_NOTHING
from thumbnet.training.train import resume, train
from thumbnet.training.transfer import read_initial
from training_helpers import StopAfter

CPU = torch.device("cpu")


class Notes(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def recipe_from(init: Path, *overrides: str, name: str = "one-cycle") -> Recipe:
    tiny = TINY if name == "one-cycle" else []
    return load_recipe(name, [*tiny, f'training.init="{init}"', *overrides])


def found(data: Data, recipe: Recipe) -> tuple[Prepared, dict[str, np.ndarray], list[str]]:
    """The prepared pictures, which of them the weights know, and the notes."""
    prepared = prepare(data, recipe, CPU)
    initial = read_initial(recipe.training.init)
    known, perhaps, notes = known_at_start(recipe, prepared, data, data.fingerprint(), initial)
    assert bool(perhaps) == any("may have been trained on" in note for note in notes)
    return prepared, known, notes


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.path, folder)
    return Run(folder)


VAL_KNOWN = {"train": range(100, 160), "val": range(40, 90), "test": range(200, 220)}


@pytest.mark.parametrize("overrides", [[], ["data.image_size=24"]], ids=["its size", "another size"])
def test_known_pictures_are_named_whatever_size_they_have_now(overrides: list[str], tiny_run: Run) -> None:
    _, known, notes = found(numbered(**VAL_KNOWN), recipe_from(tiny_run.path, *overrides))
    assert known.keys() == {"val"}
    assert known["val"].tolist() == [True] * 20 + [False] * 30
    assert notes == [
        f"warning: the network in {tiny_run.path} was trained on 20 of the 50 val pictures: the accuracy there "
        "may be too high, and probabilities are not calibrated on these"
    ]


def test_if_too_few_calibration_pictures_are_left_the_note_says_what_to_do(tiny_run: Run) -> None:
    data = numbered(train=range(100, 160), calibration=range(30))
    _, known, notes = found(data, recipe_from(tiny_run.path))
    assert known["calibration"].all()
    assert notes == [
        f"the network in {tiny_run.path} was trained on all 30 calibration pictures: probabilities are not "
        "calibrated. --set data.calibration_pictures=0 trains on them, too"
    ]


def test_a_copy_of_a_picture_that_is_in_train_now_is_a_leak_of_the_data(tiny_run: Run) -> None:
    assert found(numbered(train=range(60), val=range(40, 90)), recipe_from(tiny_run.path))[1:] == ({}, [])


def test_only_a_frozen_training_asks_about_its_training_pictures(tiny_run: Run) -> None:
    data = numbered(train=range(40, 100))
    assert found(data, recipe_from(tiny_run.path))[1] == {}
    _, known, notes = found(data, recipe_from(tiny_run.path, name="linear"))
    assert known["train"].tolist() == [True] * 20 + [False] * 40
    assert notes == []


def test_corrected_labels_are_no_reason_for_a_note(tiny_run: Run) -> None:
    data = coloured_data()
    train_split = data.splits["train"]
    assert isinstance(train_split, ArraySplit)
    labels = train_split.labels.copy()
    labels[:3] = labels[1:4]
    corrected = ArraySplit(train_split.images, labels, "train")
    data = replace(data, splits={**data.splits, "train": corrected}, set_aside=("test",))
    assert data.fingerprint() != tiny_run.settings["fingerprint"]
    assert found(data, recipe_from(tiny_run.path))[1:] == ({}, [])


def test_the_run_that_a_run_began_with_counts_too(tiny_run: Run, tmp_path: Path) -> None:
    second = copied(tiny_run, tmp_path / "second")
    np.save(second.path / DIGESTS_NAME, np.empty((0, 2), dtype=np.uint64))
    recipe = recipe_from(second.path)
    assert found(numbered(**VAL_KNOWN), recipe)[1] == {}
    second.write_recipe(second.recipe.override([f'training.init="{tiny_run.path}"']))
    assert found(numbered(**VAL_KNOWN), recipe)[1]["val"].sum() == 20
    second.write_recipe(second.recipe.override([f'training.init="{second.path}"']))  # in a circle
    assert found(numbered(**VAL_KNOWN), recipe)[1] == {}


def test_weights_outside_of_a_run_know_the_data_with_their_fingerprint(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copy(tiny_run.weights_path, tmp_path / "weights.safetensors")
    recipe = recipe_from(tmp_path / "weights.safetensors", name="linear")
    assert found(coloured_data(), recipe)[1]["train"].all()
    assert found(numbered(**VAL_KNOWN), recipe)[1] == {}


def weights_of(run: Run, file: Path, source: str) -> Path:
    """The weights of a run in a file elsewhere, as trained on unknown data that are called ``source``."""
    weights, info = read_weights(run.weights_path)
    write_weights(file, weights, replace(info, source=source, fingerprint="0"))
    return file


def test_weights_outside_of_a_run_may_know_data_of_the_same_name(tiny_run: Run, tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path / "ants", [""]), val_fraction=0.25)
    names = {}
    for name in ("ants", "bees"):
        file = weights_of(tiny_run, tmp_path / f"{name}.safetensors", source=name)
        names[name] = found(data, recipe_from(file))[1:]
    assert names["bees"] == ({}, [])
    (note,) = names["ants"][1]
    assert "may have been trained on pictures that are now in val and test" in note
    in_memory = replace(numbered(train=range(60), val=range(100, 120)), set_aside=("val",))
    same = weights_of(tiny_run, tmp_path / "same.safetensors", source=in_memory.source)
    assert found(in_memory, recipe_from(same))[1:] == ({}, [])


def test_the_weights_that_the_earliest_run_began_with_count_too(tiny_run: Run, tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path / "ants", ["train", "test"]), val_fraction=0.25)
    file = weights_of(tiny_run, tmp_path / "x.safetensors", source="ants")
    begun = copied(tiny_run, tmp_path / "begun")
    begun.write_recipe(begun.recipe.override([f'training.init="{file}"']))
    recipe = recipe_from(begun.path)
    (note,) = found(data, recipe)[2]
    assert f"the network in {begun.path} may have been trained on pictures that are now in val" in note
    file.unlink()
    assert found(data, recipe)[2] == []


def without_digests(run: Run, folder: Path, **settings: object) -> Run:
    """A copy of a run that stored no digests, with other settings in ``run.json``."""
    copy = copied(run, folder)
    (copy.path / DIGESTS_NAME).unlink()
    (copy.path / "run.json").write_text(json.dumps({**copy.settings, **settings}))
    return copy


def test_a_run_without_digests_is_recognised_by_the_place_of_its_data(tiny_run: Run, tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path / "data", ["train", "test"]), val_fraction=0.25)
    place = where_again(data.source)
    other = without_digests(tiny_run, tmp_path / "other", data=place, fingerprint="0")
    assert found(data, recipe_from(other.path))[1:] == (
        {},
        [
            f"warning: the network in {other.path} may have been trained on pictures that are now in val, "
            "because its data were divided in another way: what is measured there may be too good"
        ],
    )
    same = without_digests(tiny_run, tmp_path / "same", data=place, fingerprint=data.fingerprint())
    assert found(data, recipe_from(same.path))[1:] == ({}, [])
    elsewhere = without_digests(tiny_run, tmp_path / "elsewhere", data="/elsewhere", fingerprint="0")
    assert found(data, recipe_from(elsewhere.path))[1:] == ({}, [])


def test_a_run_without_digests_that_calibrated_on_other_pictures_knows_these(
    tiny_run: Run, tmp_path: Path
) -> None:
    data = numbered(train=range(100, 160), calibration=range(200, 230))
    run = without_digests(tiny_run, tmp_path / "run", fingerprint=data.fingerprint())
    assert found(data, recipe_from(run.path))[1] == {}
    asked = recipe_from(run.path, "data.calibration_pictures=30")
    assert found(data, asked)[1]["calibration"].all()


def test_damaged_digests_are_an_error(tiny_run: Run, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path / "run")
    (run.path / DIGESTS_NAME).write_bytes(b"broken")
    with pytest.raises(RunError, match=r"cannot read .*digests.npy"):
        found(numbered(**VAL_KNOWN), recipe_from(run.path))


def test_what_is_recorded_is_read_again(tiny_run: Run) -> None:
    data = numbered(train=range(100, 160), val=[0, 1, 90, 2, 91])
    prepared, known, _ = found(data, recipe_from(tiny_run.path))
    record = record_of_masks(known)
    assert record == {"val": [[0, 2], [3, 4]]}
    again = masks_from_record(json.loads(json.dumps(record)), "init.known", prepared)
    assert again.keys() == known.keys()
    assert np.array_equal(again["val"], known["val"])


@pytest.mark.parametrize(
    "damaged", [[], {"val": [[0, 99]]}, {"odd": []}, {"val": [3]}, {"val": [[0, "1"]]}, {"val": 5}]
)
def test_a_damaged_record_is_an_error(damaged: object, tiny_run: Run) -> None:
    data = numbered(train=range(100, 160), val=range(100, 110))
    prepared = prepare(data, recipe_from(tiny_run.path), CPU)
    with pytest.raises(ValueError, match=r"init.known|a range"):
        masks_from_record(damaged, "init.known", prepared)


def chosen(val: Sequence[int], init: Path, *overrides: str) -> tuple[str, list[str]]:
    """``training.keep`` of a training with the val pictures of these seeds, and the notes about it."""
    recipe = recipe_from(init, *overrides)
    prepared, known, _ = found(numbered(train=range(100, 160), val=val), recipe)
    recipe, _, notes = choose_by_val(recipe, replace(prepared, known=known))
    return recipe.training.keep, notes


def test_the_epoch_is_chosen_by_the_val_pictures_that_the_weights_do_not_know(tiny_run: Run) -> None:
    some, few = range(40, 80), range(40, 79)
    assert chosen(some, tiny_run.path) == (
        "auto",
        [
            f"the network in {tiny_run.path} was trained on 20 of the 40 val pictures: only the 20 others choose "
            "which epoch is best"
        ],
    )
    keep, (note,) = chosen(few, tiny_run.path)
    assert keep == "last"
    assert "was trained on 20 of the 39 val pictures, so val chooses no epoch: the last one is kept" in note
    assert chosen(few, tiny_run.path, "training.keep=last") == ("last", [])
    assert chosen(range(200, 220), tiny_run.path) == ("auto", [])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("training.patience=5", "training.patience = 5"),
        ("training.keep=best", "training.keep = .best."),
        ("training.choose_by=loss", "training.choose_by = .loss."),
    ],
)
def test_a_choice_that_only_known_pictures_could_make_is_refused(
    asked: str, said: str, tiny_run: Run
) -> None:
    expected = f"{said} chooses the epoch by val, but .* on 20 of the 39 val .*19 others are too few"
    with pytest.raises(RunError, match=expected):
        chosen(range(40, 79), tiny_run.path, asked)
    with pytest.raises(RunError, match="on all 20 val pictures.*the wrong epoch. Without that setting"):
        chosen(range(40, 60), tiny_run.path, asked)
    assert chosen(range(40, 80), tiny_run.path, asked)[1]


def test_the_refusal_names_every_setting_that_asks_for_a_choice(tiny_run: Run) -> None:
    asked = ("training.patience=5", "training.keep=best", "training.choose_by=loss")
    with pytest.raises(RunError) as caught:
        chosen(range(40, 60), tiny_run.path, *asked)
    said = str(caught.value)
    assert (
        "training.patience = 5 and training.keep = 'best' and training.choose_by = 'loss' choose the epoch"
        in said
    )
    usual = ("training.patience=0", "training.keep=auto", "training.choose_by=accuracy")
    assert " ".join(f"--set {one}" for one in usual) in said
    assert chosen(range(40, 60), tiny_run.path, *usual)[0] == "last"


def test_pictures_that_the_weights_may_know_choose_no_epoch_unless_asked(tiny_run: Run) -> None:
    recipe = recipe_from(tiny_run.path)
    data = numbered(train=range(100, 160), val=range(200, 230))
    prepared = replace(prepare(data, recipe, CPU), perhaps_known=("val",))
    kept, _, (note,) = choose_by_val(recipe, prepared)
    assert kept.training.keep == "last"
    assert "may have been trained on some of the 30 val pictures, so val chooses no epoch" in note
    for asked in ("training.patience=1", "training.keep=best", "training.choose_by=loss"):
        asking = recipe.override([asked])
        kept, _, (note,) = choose_by_val(asking, prepared)
        assert kept == asking
        assert note.endswith("some of the 30 val pictures: the epoch that val chooses may be too early")
    kept, _, none = choose_by_val(recipe, replace(prepared, perhaps_known=("test",)))
    assert (kept, none) == (recipe, [])


# --- whole trainings -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many() -> Data:
    """So many pictures that some are set aside for calibration."""
    return coloured_data(420, splits=("train",))


SHORT = [*TINY, "training.epochs=1", "training.batch_size=60", "model.width=0.25"]


@pytest.fixture(scope="module")
def knows_all(many: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was trained on all pictures."""
    out = tmp_path_factory.mktemp("all") / "run"
    return train(many, "one-cycle", overrides=[*SHORT, "data.calibration_pictures=0"], out=out, device="cpu")


@pytest.fixture(scope="module")
def usual(many: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that set some of them aside."""
    out = tmp_path_factory.mktemp("usual") / "run"
    return train(many, "one-cycle", overrides=SHORT, out=out, device="cpu")


def test_probabilities_are_calibrated_only_on_pictures_that_the_weights_do_not_know(
    many: Data, knows_all: Run, usual: Run, tmp_path: Path
) -> None:
    summaries = {}
    for first in (knows_all, usual):
        notes, out = Notes(), tmp_path / f"linear-{first is usual}"
        init = [f'training.init="{first.path}"']
        run = train(many, "linear", overrides=init, out=out, device="cpu", listener=notes)
        summaries[first.path] = run.summary
        known = run.settings["init"]["known"]
        assert known["train"] == [[0, 399]]
        assert known.get("calibration") == (None if first is usual else [[0, 21]])
        assert any("was trained on all 21 calibration pictures" in note for note in notes.notes) == (
            first is knows_all
        )
        assert any("so L2 is 0.0032" in note for note in notes.notes)
    none = summaries[knows_all.path]
    assert (none["calibrated_on"], none["temperature"], none["calibration_known"]) == (None, 1, 21)
    assert summaries[usual.path]["calibrated_on"] == "calibration"
    assert summaries[usual.path]["calibration_pictures"] == 21
    assert summaries[usual.path]["calibration_known"] == 0


def test_the_summary_warns_of_an_accuracy_on_known_pictures(knows_all: Run, tmp_path: Path) -> None:
    data = numbered(train=range(1000, 1060), test=range(30, 60))
    init = [*SHORT, f'training.init="{knows_all.path}"']
    run = train(data, "one-cycle", overrides=init, out=tmp_path / "run", device="cpu")
    assert run.summary["warnings"][0] == (
        f"warning: the network in {knows_all.path.name} was trained on all 30 test pictures: the accuracy there "
        "may be too high"
    )
    both = numbered(train=range(1000, 1060), val=range(40, 90), test=range(2000, 2030))
    run = train(both, "one-cycle", overrides=init, out=tmp_path / "both", device="cpu")
    assert run.summary["warnings"][0] == (
        f"warning: the network in {knows_all.path.name} was trained on all 50 val pictures: the accuracy there "
        "may be too high"
    ), "the summary has the accuracy on val as well"
    unknown = numbered(train=range(1000, 1060), test=range(2000, 2030))
    run = train(unknown, "one-cycle", overrides=init, out=tmp_path / "unknown", device="cpu")
    assert not any("was trained on" in text for text in run.summary["warnings"])


def test_what_the_weights_may_know_is_recorded_and_a_warning_of_the_summary(
    knows_all: Run, tmp_path: Path
) -> None:
    folder = write_class_folders(tmp_path / "ants", [""], per_class=20)
    file = weights_of(knows_all, tmp_path / "x.safetensors", source="ants")
    init, out = [*SHORT, f'training.init="{file}"'], tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(folder, "one-cycle", overrides=init, out=out, device="cpu", listener=StopAfter(1))
    assert json.loads((out / "run.json").read_text())["init"]["perhaps_known"] == ["test"]
    run = resume(out, device="cpu")
    assert run.summary["warnings"][0] == (
        "warning: the network in x.safetensors may have been trained on pictures that are now in test, because "
        "its data were divided in another way: what is measured there may be too good"
    )
    settings = json.loads((run.path / "run.json").read_text())
    for name in ("summary.json", "model.safetensors"):
        (run.path / name).unlink()
    for damaged in ("test", ["odd"], [3]):
        settings["init"]["perhaps_known"] = damaged
        (run.path / "run.json").write_text(json.dumps(settings))
        with pytest.raises(RunError, match=r"cannot read .*run.json: init.perhaps_known"):
            resume(run.path, device="cpu")


def test_a_resumed_training_knows_the_same_without_the_first_run(
    many: Data, knows_all: Run, tmp_path: Path
) -> None:
    first = copied(knows_all, tmp_path / "first")
    init = [*SHORT, f'training.init="{first.path}"']
    with pytest.raises(InterruptedRunError):
        train(many, "one-cycle", overrides=init, out=tmp_path / "run", device="cpu", listener=StopAfter(2))
    shutil.rmtree(first.path)
    run = resume(tmp_path / "run", data=many, device="cpu")
    assert run.summary["calibrated_on"] is None
    settings = json.loads((run.path / "run.json").read_text())
    settings["init"]["known"] = {"calibration": "all"}
    (run.path / "run.json").write_text(json.dumps(settings))
    for name in ("summary.json", "model.safetensors"):
        (run.path / name).unlink()
    with pytest.raises(RunError, match=r"cannot read .*run.json: init.known.calibration is 'all'"):
        resume(run.path, data=many, device="cpu")


def test_a_finished_run_that_is_continued_knows_nothing_that_is_held_out(
    many: Data, usual: Run, tmp_path: Path
) -> None:
    notes = Notes()
    more = resume(usual.path, more_epochs=1, out=tmp_path / "more", data=many, device="cpu", listener=notes)
    assert "known" not in more.settings["init"]
    assert more.summary["calibrated_on"] == "calibration"
    assert not any("was trained on" in note for note in notes.notes)


def val_counts(run: Run) -> list[int]:
    """How many val pictures each epoch's score is of."""
    rows = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    return [row["val_pictures"] for row in rows]


def test_scores_of_epochs_are_of_unknown_pictures(knows_all: Run, tmp_path: Path) -> None:
    data = numbered(train=range(1000, 1060), val=[*range(10), *range(2000, 2020)], test=range(3000, 3012))
    asked = [*SHORT, "training.epochs=3", f'training.init="{knows_all.path}"']
    sampled = [*asked, "evaluation.every=2", "evaluation.sample=25"]
    run = train(data, "one-cycle", overrides=sampled, out=tmp_path / "run", device="cpu")
    assert val_counts(run) == [20, 20, 20]
    assert run.summary["kept_by"] == "best on val"
    # A run that an earlier version began goes on as it began.
    for name, earlier, scored in (("first", False, 30), ("second", True, 20)):
        out = tmp_path / name
        with pytest.raises(InterruptedRunError):
            train(data, "one-cycle", overrides=asked, out=out, device="cpu", listener=StopAfter(1))
        settings = json.loads((out / "run.json").read_text())
        assert settings.pop(CHOOSE_NOTHING) == {"val": [[0, 10]]}
        if earlier:
            settings[KNOWN_CHOOSE_NOTHING] = True
        (out / "run.json").write_text(json.dumps(settings))
        assert val_counts(resume(out, data=data, device="cpu")) == [scored] * 3


def test_with_too_few_unknown_pictures_the_last_epoch_is_kept(knows_all: Run, tmp_path: Path) -> None:
    data = numbered(train=range(1000, 1060), val=range(30), test=range(3000, 3012))
    asked = [*SHORT, "training.epochs=2", f'training.init="{knows_all.path}"']
    run = train(data, "one-cycle", overrides=asked, out=tmp_path / "run", device="cpu")
    assert (run.recipe.training.keep, run.summary["kept_by"], run.summary["kept_epoch"]) == (
        "last",
        "last",
        2,
    )
    assert val_counts(run) == [30, 30]
    with pytest.raises(RunError, match="training.patience = 1 chooses"):
        train(
            data,
            "one-cycle",
            overrides=[*asked, "training.patience=1"],
            out=tmp_path / "refused",
            device="cpu",
        )
    assert not (tmp_path / "refused").exists()
