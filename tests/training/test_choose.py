from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured_data, write_class_folders
from thumbnet.data.held_out import VAL_FRACTION
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError, RecipeError, RunError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training import choose
from thumbnet.training.choose import FEW_PICTURES, choose_recipe, default_recipe, load_for
from thumbnet.training.listener import Listener

QUIET = Listener()


def data_of(count: int, source: str = "x") -> Data:
    images = np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (count, 16, 16, 3))
    split = ArraySplit(images, np.arange(count) % 2, "train")
    return Data(source, "made by the tests", ("cat", "dog"), {"train": split})


def test_the_default_recipe_changes_right_after_ten_thousand_pictures() -> None:
    assert default_recipe(data_of(FEW_PICTURES)) == "small"
    assert default_recipe(data_of(FEW_PICTURES + 1)) == "fast"
    assert default_recipe(data_of(10, "digits")) == "digits"


@pytest.mark.parametrize(("size", "name"), [(FEW_PICTURES, "small"), (FEW_PICTURES + 1, "fast"), (0, "fast")])
def test_the_default_recipe_suits_the_subset_that_is_trained_on(size: int, name: str) -> None:
    overrides = [f"data.subset_size={size}"]
    assert choose_recipe(data_of(FEW_PICTURES * 2), None, overrides, None, QUIET)[0].name == name


def test_without_a_recipe_the_default_one_takes_the_overrides() -> None:
    recipe, data = choose_recipe(data_of(100), None, ["training.epochs=7"], None, QUIET)
    assert (recipe.name, recipe.training.epochs) == ("small", 7)
    assert data.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("network", "name"),
    [("resnet18", "resnet18"), ("resnet34", "one-cycle"), ("resnet20", "one-cycle"), ("fastnet", "small")],
)
def test_a_network_gets_a_default_recipe_whose_rates_suit_it(network: str, name: str) -> None:
    for source in ("x", "digits"):
        recipe, data = choose_recipe(data_of(8_000, source), None, [f"model.name={network}"], None, QUIET)
        expected = "digits" if source == "digits" and network == "fastnet" else name
        assert (recipe.name, recipe.model.name) == (expected, network)
        assert (recipe.augment.flip == "none") == (source == "digits")
        assert not any("optimizer" in note for note in data.notes)
    assert choose_recipe(data_of(8_000), None, ["model.name=resnet18"], None, QUIET)[0] == load_recipe(
        "resnet18"
    )


def test_few_pictures_still_give_a_resnet_hundreds_of_steps() -> None:
    for network in ("resnet18", "resnet34"):
        recipe, _ = choose_recipe(data_of(500), None, [f"model.name={network}"], None, QUIET)
        assert recipe.training.epochs * (500 // recipe.training.batch_size) > 200


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "finetune"),
        (["model.pretrained=true"], "finetune"),
        (["model.pretrained = false"], "one-cycle"),
    ],
)
def test_a_network_of_timm_is_fine_tuned_by_default_unless_its_weights_are_random(
    overrides: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(choose, "find_code", lambda recipe: asked.append(recipe.model.name))
    monkeypatch.setattr(choose, "with_pretrained_settings", lambda recipe: (recipe, ["from afar"]))
    recipe, data = choose_recipe(data_of(100), None, ["model.name=timm:resnet18", *overrides], None, QUIET)
    assert (recipe.name, asked) == (name, ["timm:resnet18"])
    assert "from afar" in data.notes


def test_a_small_data_set_gets_small_batches_unless_the_user_names_a_size() -> None:
    asked = load_recipe("fast")
    recipe, _ = choose_recipe(data_of(100), "fast", [], None, QUIET)
    assert recipe == asked.fitted(100)
    assert recipe.training.batch_size < asked.training.batch_size
    named, _ = choose_recipe(data_of(100), "fast", [" training.batch_size = 64"], None, QUIET)
    assert (named.training.batch_size, named.training.min_steps) == (64, 0)
    assert named.optimizer == asked.optimizer
    both = ["training.batch_size=64", "training.min_steps=90"]
    kept, _ = choose_recipe(data_of(100), "fast", both, None, QUIET)
    assert (kept.training.batch_size, kept.training.min_steps) == (64, 90)


def test_it_says_that_smaller_batches_change_a_rate_that_an_option_names() -> None:
    def said(*overrides: str) -> tuple[float, list[str]]:
        recipe, told = choose_recipe(data_of(1_000), "one-cycle", overrides, None, QUIET)
        return recipe.optimizer.lr, [note for note in told.notes if "training.min_steps" in note]

    rate, notes = said("optimizer.lr=0.05")
    assert rate == pytest.approx(0.05 * (37 / 256) ** 0.5)
    assert notes == [
        "warning: batches have 37 pictures instead of 256 (training.min_steps), so all learning rates are 0.38 "
        "times as high: optimizer.lr is 0.019, not 0.05. To keep the rates that you set: --set training.min_steps=0"
    ]
    for kept in ("training.min_steps=0", "training.batch_size=256"):
        assert said("optimizer.lr=0.05", kept) == (0.05, [])
    assert said("optimizer.groups=[{match = '@head', lr = 0.4}]")[1]
    for nothing in ("seed=1", "optimizer.groups=[{match = '@head', weight_decay = 0.0}]"):
        assert not said(nothing)[1]


def test_class_names_that_forbid_mirroring_turn_it_off_and_leave_a_note() -> None:
    data = replace(data_of(100), class_names=("turn left", "turn right"))
    recipe, noted = choose_recipe(data, "fast", [], None, QUIET)
    assert recipe.augment.flip == "none"
    assert any("augment.flip = none" in note for note in noted.notes)
    kept, warned = choose_recipe(data, "fast", ["augment.flip=random"], None, QUIET)
    assert kept.augment.flip == "random"
    (note,) = warned.notes
    assert note.startswith("warning: turn left and turn right are mirror images by their names")


def test_a_recipe_object_takes_overrides_and_does_not_change() -> None:
    given = load_recipe("tutorial")
    chosen, _ = choose_recipe(coloured_data(), given, ["training.epochs=2"], None, QUIET)
    assert chosen.training.epochs == 2
    assert given == load_recipe("tutorial")


def test_classes_are_balanced_by_one_setting_at_a_time(tmp_path: Path) -> None:
    sampling, weights = "data.sampling=balanced", "training.class_weights=balanced"
    file = tmp_path / "both.toml"
    file.write_text(load_recipe("small", [sampling, weights]).to_toml())  # those of earlier runs still load
    asked: list[tuple[str | None, list[str]]] = [
        (None, [sampling, weights]), ("fast", [weights, sampling]), (str(file), []),
    ]  # fmt: skip
    for recipe, overrides in asked:
        with pytest.raises(
            RecipeError, match=r"sampling = 'balanced' and training\.class_weights = 'balanced'"
        ):
            choose_recipe(data_of(100), recipe, overrides, None, QUIET)
        choose_recipe(data_of(100), recipe, overrides, None, QUIET, continues=True)
    for kept in (sampling, weights):
        choose_recipe(data_of(100), None, [kept], None, QUIET)


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        choose_recipe(data_of(10), "fastest", [], None, QUIET)
    with pytest.raises(DataError):
        choose_recipe(tmp_path / "nothing", "fast", [], None, QUIET)


def test_data_are_loaded_with_the_recipes_settings() -> None:
    recipe = load_recipe("tutorial")
    assert load_for("digits", recipe, None, QUIET).source == "digits"


def test_without_a_recipe_a_setting_need_only_suit_the_recipe_that_is_chosen() -> None:
    for setting in ("augment.mixup=0.2", "data.sampling=balanced"):
        recipe, told = choose_recipe(data_of(100), None, [setting], None, QUIET)
        assert recipe.name == "small"
        assert not any("skip_easy" in note for note in told.notes)
        many = data_of(FEW_PICTURES + 1)
        recipe, told = choose_recipe(many, None, [setting], None, QUIET)
        assert (recipe.name, recipe.data.skip_easy) == ("fast", 0)
        said = [note for note in told.notes if "data.skip_easy = 0" in note]
        assert len(said) == 1
        assert setting.partition("=")[0] in said[0]
        _, told = choose_recipe(many, None, [setting, "data.skip_easy=0"], None, QUIET)
        assert not any("skip_easy" in note for note in told.notes)


def notes_of(recipe: str, *overrides: str) -> list[str]:
    """What is said about the settings ``overrides`` of ``recipe``."""
    data = data_of(20_000)
    _, told = choose_recipe(data, recipe, overrides, None, QUIET)
    return [note for note in told.notes if note not in data.notes]


def test_it_says_which_rates_another_optimizer_leaves_out() -> None:
    (note,) = notes_of("fast", "optimizer.name=adamw", "optimizer.lr=0.001")
    assert "('*.bias': 53, '@head': 0.83) are left out, because they were chosen for muon" in note
    (kept,) = notes_of("one-cycle", "optimizer.name=adamw")  # its only group has no weight decay
    assert kept.startswith("warning: optimizer.lr = 0.2 was chosen for sgd")
    assert "--set optimizer.lr=0.001" in kept
    assert len(notes_of("fast", "optimizer.name=adamw")) == 2
    assert not notes_of("fast", "optimizer.name=adamw", "optimizer.lr=0.001", "optimizer.groups=[]")
    assert not notes_of("fast", "optimizer.name=muon")


def test_it_says_which_groups_keep_their_own_rates() -> None:
    (note,) = notes_of("fast", "optimizer.lr=0.1")
    assert "does not change the groups of parameters" in note
    assert "('*.bias': 53, '@head': 0.83)" in note
    assert not notes_of("fast", "optimizer.lr=0.1", "optimizer.groups=[{match = '@head', lr = 0.4}]")
    assert not notes_of("one-cycle", "optimizer.lr=0.1")


def test_it_says_that_fastnets_rates_do_not_suit_another_network() -> None:
    for network, better in (("resnet18", "resnet18"), ("resnet20", "one-cycle")):
        (note,) = notes_of("fast", f"model.name={network}")
        assert note.endswith(f"which do not suit {network}; better: --recipe {better}")
    assert not notes_of("fast", "model.name=resnet20", "optimizer.groups=[]")
    assert not notes_of("resnet18", "model.name=resnet34")


def test_data_in_memory_keep_their_splits_and_get_the_val_split_that_is_asked_for() -> None:
    given = coloured_data(count=90)
    recipe, data = choose_recipe(given, "tutorial", ["data.val_fraction=0.2"], None, QUIET)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 72, "val": 18, "test": 90}
    again = load_for(given, recipe, None, QUIET)  # as a resume does
    assert again.fingerprint() == data.fingerprint()
    assert load_for(data, recipe, None, QUIET).fingerprint() == data.fingerprint()


PATIENT = ["training.patience=3"]


@pytest.mark.parametrize("asked", [PATIENT, ["training.keep=best"], ["training.choose_by=balanced-accuracy"]])
def test_a_choice_of_the_epoch_sets_val_aside_and_leaves_test_alone(asked: list[str]) -> None:
    given = coloured_data(count=90)
    recipe, data = choose_recipe(given, "tutorial", asked, None, QUIET)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 81, "val": 9, "test": 90}
    assert recipe.data.val_fraction == VAL_FRACTION
    assert any("10% of train was set aside as val" in note for note in data.notes)
    again = load_for(given, recipe, None, QUIET)  # as a resume does
    assert again.fingerprint() == data.fingerprint()
    _, unchanged = choose_recipe(given, "tutorial", [], None, QUIET)
    assert unchanged.splits.keys() == given.splits.keys()


def test_patience_watches_the_val_split_that_the_data_have(tmp_path: Path) -> None:
    place = write_class_folders(tmp_path, ["train", "val", "test"])
    recipe, data = choose_recipe(place, "tutorial", PATIENT, None, QUIET)
    assert (recipe.data.val_fraction, len(data.splits["val"])) == (0, 18)
    assert not any("set aside" in note for note in data.notes)


def test_a_folder_is_read_again_with_the_fraction_that_its_recipe_records(tmp_path: Path) -> None:
    place = write_class_folders(tmp_path, ["train", "test"], per_class=20)
    recipe, data = choose_recipe(place, "small", PATIENT, None, QUIET)
    assert len(data.splits["val"]) == 6
    assert load_for(place, recipe, None, QUIET).fingerprint() == data.fingerprint()


def test_a_choice_of_the_epoch_evaluates_every_epoch_unless_the_user_says_otherwise() -> None:
    assert load_recipe("fast").evaluation.every > 1
    for asked in (PATIENT, ["training.keep=best"], ["training.choose_by=loss"]):
        recipe, _ = choose_recipe(coloured_data(), "fast", asked, None, QUIET)
        assert recipe.evaluation.every == 1
        named, _ = choose_recipe(coloured_data(), "fast", [*asked, "evaluation.every=2"], None, QUIET)
        assert named.evaluation.every == 2
        with pytest.raises(RecipeError, match=r"training\.\w+.*evaluation\.every is 0"):
            choose_recipe(coloured_data(), "fast", [*asked, "evaluation.every=0"], None, QUIET)
    recipe, _ = choose_recipe(coloured_data(splits=("train", "val")), "fast", [], None, QUIET)
    assert recipe.evaluation.every == load_recipe("fast").evaluation.every


def test_a_whole_recipe_that_evaluates_only_the_last_epoch_has_none_to_choose_from() -> None:
    recipe = load_recipe("fast", ["training.keep=best", "evaluation.every=0"])
    with pytest.raises(RecipeError, match=r"training\.keep = .best. needs epochs.*--set evaluation\.every=1"):
        choose_recipe(coloured_data(), recipe, [], None, QUIET)
    chosen, _ = choose_recipe(coloured_data(), recipe, ["evaluation.every=1"], None, QUIET)
    assert chosen.evaluation.every == 1


def test_patience_evaluates_every_epoch_of_the_default_recipe_too() -> None:
    many = data_of(FEW_PICTURES * 6 // 5)
    recipe, _ = choose_recipe(many, None, PATIENT, None, QUIET)
    assert (recipe.name, recipe.evaluation.every) == ("fast", 1)
    named, _ = choose_recipe(many, None, [*PATIENT, "evaluation.every=2"], None, QUIET)
    assert (named.name, named.evaluation.every) == ("fast", 2)
    without, _ = choose_recipe(many, None, [], None, QUIET)
    assert without == load_recipe("fast").fitted(len(many.splits["train"]))


def test_a_finished_runs_mirroring_is_kept_when_it_continues() -> None:
    data = replace(data_of(100), class_names=("turn left", "turn right"))
    finished = load_recipe("fast", ["augment.flip=random", "evaluation.tta=mirror"])
    recipe, told = choose_recipe(data, finished, [], None, QUIET, continues=True)
    assert (recipe.augment.flip, recipe.evaluation.tta) == ("random", "mirror")
    assert [note[:9] for note in told.notes] == ["warning: "]
    anew, _ = choose_recipe(data, finished, [], None, QUIET)
    assert (anew.augment.flip, anew.evaluation.tta) == ("none", "none")


def test_patience_without_any_val_split_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"needs a val split.*val_fraction is 0"):
        choose_recipe(coloured_data(), "fast", [*PATIENT, "data.val_fraction=0"], None, QUIET)
    with pytest.raises(RunError, match=r"has already trained on(.|\n)*--patience"):
        choose_recipe(coloured_data(), load_recipe("fast", PATIENT), [], None, QUIET, continues=True)


def test_it_says_where_early_stopping_rarely_helps() -> None:
    for recipe, helps in (("fast", False), ("resnet18", False), ("one-cycle", False), ("tutorial", True)):
        _, data = choose_recipe(coloured_data(), recipe, PATIENT, None, QUIET)
        assert any("rarely helps" in note for note in data.notes) is not helps
