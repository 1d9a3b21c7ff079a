from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from correction_helpers import relabel
from helpers import TINY, coloured_data, write_class_folders
from thumbnet.data.corrections import write_corrections
from thumbnet.errors import DataError, RecipeError, RunError
from thumbnet.files import write_json
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import CORRECTIONS_NAME
from thumbnet.training.asked import what_was_asked
from thumbnet.training.repeat import (
    ComparedSplit,
    Planned,
    check_unchanged,
    folder_name,
    plan,
    split_values,
    varied_settings,
)
from thumbnet.training.train import train


def begin(planned: Planned, recipe: str) -> None:
    """Leave in the folder of a training what its begin leaves."""
    planned.path.mkdir(parents=True)
    (planned.path / "recipe.toml").write_text(load_recipe(recipe, planned.overrides).to_toml())
    write_json(planned.path / "run.json", {"asked": what_was_asked(recipe, planned.overrides)})


def test_each_combination_is_trained_with_each_seed_one_seed_after_the_other(tmp_path: Path) -> None:
    vary = ["augment.cutout=0,8", "optimizer.momentum=0.8,0.9"]
    planned = plan(tmp_path, "one-cycle", ["training.epochs=2"], vary, [0, 4])
    assert [str(one.path.relative_to(tmp_path)) for one in planned] == [
        f"cutout-{cutout}_momentum-{momentum}_seed-{seed}"
        for seed in (0, 4)
        for cutout in (0, 8)
        for momentum in (0.8, 0.9)
    ]
    expected = ("training.epochs=2", "augment.cutout=8", "optimizer.momentum=0.9", "seed=4")
    assert planned[-1].overrides == expected
    assert list(tmp_path.iterdir()) == []


def test_a_study_whose_folder_cannot_be_written_to_is_refused(read_only: Path) -> None:
    with pytest.raises(RunError, match="is not writable"):
        plan(read_only / "study", None, [], [], [0])


def test_without_varied_settings_only_the_seed_varies(tmp_path: Path) -> None:
    planned = plan(tmp_path, None, [], [], [3, 5])
    assert [(one.path.name, one.overrides) for one in planned] == [
        ("seed-3", ("seed=3",)),
        ("seed-5", ("seed=5",)),
    ]


@pytest.mark.parametrize(
    ("overrides", "vary", "minutes", "message"),
    [
        (["seed=1"], [], None, "--seeds"),
        ([], ["seed=1,2"], None, "--seeds"),
        (["augment.cutout=2"], ["augment.cutout=0,8"], None, "augment.cutout is varied and also set"),
        ([], ["augment.cutout=8,8"], None, "two trainings are the same.*augment.cutout=8, seed=0"),
        ([], ["optimizer.momentum=0.9,0.90"], None, "two trainings are the same"),
        ([], ["augment.cutout"], None, "expected KEY=VALUE,VALUE"),
        ([], ["augment.cutout=0,"], None, "expected KEY=VALUE,VALUE"),
        ([], ["=1"], None, "expected KEY=VALUE,VALUE"),
        ([], ["training.epochs=1,0"], None, "'training.epochs' is 0"),
        ([], ["optimizer.learning_rate=1,2"], None, "optimizer.lr"),
        ([], ["training.epochs=1,2"], 3.0, "training.epochs and --minutes cannot go together"),
        ([], [], -1.0, "--minutes -1"),
        ([], ["data.fold=1,2"], None, "different values of data.fold.*give it one value.*--folds 5"),
        ([], ["data.folds=2,3"], None, "different values of data.folds.*give it one value.*--folds 5"),
        (
            ["data.sampling=balanced"],
            ["training.class_weights=none,balanced"],
            None,
            "both make up for classes of unequal size",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    overrides: list[str], vary: list[str], minutes: float | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(tmp_path, "one-cycle", overrides, vary, [0, 1], minutes)


def test_trainings_that_have_begun_go_on_only_with_the_same_settings(tmp_path: Path) -> None:
    vary = ["augment.cutout=0,8"]
    planned = plan(tmp_path, "one-cycle", ["training.epochs=2"], vary, [0, 1])
    begin(planned[1], "one-cycle")
    assert plan(tmp_path, "one-cycle", ["training.epochs=2"], vary, [0, 1]) == planned
    more = plan(tmp_path, "one-cycle", ["training.epochs=2"], ["augment.cutout=0,4,8"], [0, 1, 2])
    assert set(planned) < set(more)
    with pytest.raises(RunError, match=r"cutout-8_seed-0 was begun with other settings.*\n.*was 2, now 3"):
        plan(tmp_path, "one-cycle", ["training.epochs=3"], vary, [0, 1])
    with pytest.raises(RunError, match="minutes: was not set, now 2"):
        plan(tmp_path, "one-cycle", [], vary, [0, 1], minutes=2)


def test_only_trainings_that_have_not_begun_need_the_weights_to_start_from(tmp_path: Path) -> None:
    init, study = f"training.init='{tmp_path / 'gone.pt'}'", tmp_path / "study"
    with pytest.raises(RunError, match=r"there is no file .*gone\.pt"):
        plan(study, "one-cycle", [init], [], [0])
    begun = Planned(study / "seed-0", (init, "seed=0"), ("seed=0",))
    begin(begun, "one-cycle")
    assert plan(study, "one-cycle", [init], [], [0]) == [begun]
    with pytest.raises(RunError, match="there is no file"):
        plan(study, "one-cycle", [init], [], [0, 1])


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (planned,) = plan(tmp_path / "study", "one-cycle", [], [], [0])
    begin(planned, "one-cycle")
    with pytest.raises(RunError, match="is a run: --out must name a folder for all runs"):
        plan(planned.path, "one-cycle", [], [], [0])
    with pytest.raises(RunError, match="is a file: --out"):
        plan(planned.path / "run.json", "one-cycle", [], [], [0])
    (planned.path / "run.json").rename(planned.path / "notes.txt")
    with pytest.raises(RunError, match="not empty"):
        plan(tmp_path / "study", "one-cycle", [], [], [0])


def test_a_key_that_comes_again_gets_further_values() -> None:
    texts = ["a.b=1", "c=[1, 2],[3]", "a.b=2,3"]
    assert varied_settings(texts) == {"a.b": ["1", "2", "3"], "c": ["[1, 2]", "[3]"]}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2", ["1", "2"]),
        (" a , b ", ["a", "b"]),
        ("[0.02,0.4],[0.1,[2,3]],5", ["[0.02,0.4]", "[0.1,[2,3]]", "5"]),
        ('"a,b","c]"', ['"a,b"', '"c]"']),
        ("it's,b", ["it's", "b"]),
        ("a),b", ["a)", "b"]),
        ("{x = 1, y = 2}", ["{x = 1, y = 2}"]),
        ("1,,2", ["1", "", "2"]),
    ],
)
def test_only_commas_outside_brackets_and_quotes_separate_values(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_the_names_of_folders_are_safe_and_different_for_different_values() -> None:
    values = [
        "8", "-8", "[0.02, 0.4]", "[0.1, 0.2]", "pkg.losses:mine", "a/b", "a b/c", "../a", "a\\b", "[[1, 2], [3]]",
        "[[1], [2, 3]]", "x" * 100, "x" * 101, "ä", "ö", "\udcff",
    ]  # fmt: skip
    names = [folder_name(["augment.cutout"], [value], 0) for value in values]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"cutout-[A-Za-z0-9.,+_-]+_seed-0", name), name
        assert len(name) < 80
    assert names[2] == "cutout-0.02,0.4_seed-0"
    assert names[4] == "cutout-pkg.losses-mine_seed-0"


def test_keys_with_the_same_end_keep_their_sections_in_the_name() -> None:
    name = folder_name(["optimizer.name", "schedule.end", "augment.end"], ["sgd", "0", "1"], 2)
    assert name == "optimizer-sgd_schedule.end-0_augment.end-1_seed-2"


def test_each_combination_is_trained_with_each_fold_before_the_next_seed(tmp_path: Path) -> None:
    planned = plan(tmp_path, "one-cycle", [], ["augment.cutout=0,8"], [0, 4], folds=2)
    assert [one.path.name for one in planned] == [
        f"cutout-{cutout}_seed-{seed}_fold-{fold}-of-2"
        for seed in (0, 4)
        for fold in (1, 2)
        for cutout in (0, 8)
    ]
    assert planned[-1].overrides == ("augment.cutout=8", "seed=4", "data.folds=2", "data.fold=2")
    assert planned[-1].settings == planned[-3].settings == ("augment.cutout=8", "seed=4")
    begin(planned[1], "one-cycle")
    assert plan(tmp_path, "one-cycle", [], ["augment.cutout=0,8"], [0, 4], folds=2) == planned


@pytest.mark.parametrize("key", ["data.folds", "data.fold", "data.test_fraction"])
def test_with_folds_nothing_else_may_choose_the_test_pictures(key: str, tmp_path: Path) -> None:
    for overrides, vary in (([f"{key}=0"], []), ([], [f"{key}=0,1"])):
        with pytest.raises(RecipeError, match=f"the folds decide which pictures are test: leave out {key}"):
            plan(tmp_path, "one-cycle", overrides, vary, [0], folds=3)


def test_data_without_the_split_that_a_study_is_compared_by_are_refused() -> None:
    for split in (None, "test"):
        ComparedSplit(split).on_data(coloured_data(6))
    with pytest.raises(DataError, match=r"no val split to compare by\. .*--val-fraction 0\.1"):
        ComparedSplit("val").on_data(coloured_data(6))
    with pytest.raises(DataError, match=r"no test split to compare by\. Leave out --split test"):
        ComparedSplit("test").on_data(coloured_data(6, splits=("train", "val")))


@pytest.mark.parametrize(
    ("given", "set_aside", "split", "varied", "refused"),
    [
        (("train", "test"), (), None, "data.split_seed=0,1", False),  # only val depends on it
        (("train", "test"), (), None, "data.test_fraction=0.1,0.2", False),
        (("train", "test"), ("test",), None, "data.split_seed=0,1", True),
        (("train", "test"), ("test",), None, "data.split_seed=1", False),
        (("train", "test"), ("test",), None, "data.test_fraction=0.1,0.2", True),
        (("train", "test"), ("test",), None, "data.group_by=a,b", True),
        (("train", "test"), ("test",), None, "augment.cutout=0,8", False),
        (("train", "test", "val"), ("test", "val"), None, "data.val_fraction=0.1,0.2", False),
        (("train", "test", "val"), ("test", "val"), "val", "data.val_fraction=0.1,0.2", True),
        (("train", "test", "val"), ("val",), "val", "data.split_seed=0,1", True),
        (("train", "test", "val"), ("val",), "val", "data.test_fraction=0.1,0.2", False),
        (("train", "val"), ("val",), None, "data.val_fraction=0.1,0.2", True),
        (("train", "val"), (), None, "data.split_seed=0,1", False),
    ],
)
def test_a_setting_that_chooses_the_measured_pictures_does_not_vary(
    given: tuple[str, ...], set_aside: tuple[str, ...], split: str | None, varied: str, refused: bool
) -> None:
    data = replace(coloured_data(6, splits=given), set_aside=set_aside)
    listener = ComparedSplit(split, varied_settings([varied]))
    if not refused:
        listener.on_data(data)
        return
    key = varied.partition("=")[0]
    with pytest.raises(RecipeError, match=f"{key} varies, and it changes the pictures .*--folds 5"):
        listener.on_data(data)


def test_trainings_that_have_begun_go_on_only_with_the_same_corrections(tmp_path: Path) -> None:
    study, labels = tmp_path / "study", tmp_path / "labels.csv"
    mine, other = [relabel("train[0]", "red", "blue")], [relabel("train[0]", "green", "blue")]
    write_corrections(labels, mine)
    plain, corrected = plan(study, "one-cycle", [], [], [0, 1])
    begin(plain, "one-cycle")
    with pytest.raises(RunError, match=r"seed-0 was begun without corrected labels.*leave out --labels"):
        plan(study, "one-cycle", [], [], [0, 1], labels=labels)
    plain.path.rename(tmp_path / "away")
    begin(corrected, "one-cycle")
    write_corrections(corrected.path / CORRECTIONS_NAME, mine)
    assert plan(study, "one-cycle", [], [], [0, 1], labels=labels) == [plain, corrected]
    assert plan(study, "one-cycle", [], [], [0, 1], labels=corrected.path / CORRECTIONS_NAME)
    with pytest.raises(
        RunError, match=rf"begun with corrected labels.*--labels .*{CORRECTIONS_NAME}, or name"
    ):
        plan(study, "one-cycle", [], [], [0, 1])
    with pytest.raises(RunError, match="begun with other corrections of labels"):
        plan(study, "one-cycle", [], [], [0, 1], labels=other)


def test_data_that_changed_are_noticed_before_the_other_folds_are_trained(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", [""], per_class=4)
    planned = plan(tmp_path / "study", "one-cycle", [*TINY, "training.epochs=1"], [], [0], folds=2)
    check_unchanged(planned, tmp_path / "no such data")  # nothing is complete, so nothing is read
    first = planned[0]
    train(data, "one-cycle", overrides=first.overrides, out=first.path, device="cpu")
    check_unchanged(planned, data)
    (data / "red" / "0.png").rename(data / "red" / "9.png")
    with pytest.raises(
        RunError, match=rf"have changed since {first.path} was trained.*train all folds again"
    ):
        check_unchanged(planned, data)
    check_unchanged(planned[:1], data)  # nothing is left to train: the measurement notices it
