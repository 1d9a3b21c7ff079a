from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thumbnet.errors import RecipeError
from thumbnet.recipes.recipe import (
    Recipe,
    assignments_of,
    load_recipe,
    opening_comment,
    recipe_from_dict,
    recipe_names,
)
from thumbnet.recipes.settings import GroupSettings, parse_image_size


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_survives_being_written_and_read(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "mine.toml"
    path.write_text(recipe.to_toml())
    assert load_recipe(path) == recipe
    assert recipe.name == name
    assert recipe.description


def test_a_name_that_toml_cannot_hold_is_refused_when_the_recipe_is_written() -> None:
    recipe = Recipe().override(["data.images=" + os.fsdecode(b"/p\xff")])
    with pytest.raises(RecipeError, match=r'not UTF-8: images = "/p\\udcff"\nRename the file or folder$'):
        recipe.to_toml()


def test_the_tutorial_recipe_has_every_number_of_the_tutorial() -> None:
    recipe = load_recipe("tutorial")
    assert recipe.model.name == "resnet18"
    assert (recipe.training.batch_size, recipe.training.epochs) == (128, 200)
    assert recipe.data.mean == (0.4914, 0.4822, 0.4465)
    assert recipe.data.std == (0.2023, 0.1994, 0.2010)
    assert recipe.augment.flip == "random"
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.momentum) == ("sgd", 0.1, 0.9)
    assert recipe.optimizer.weight_decay == 5e-4
    assert recipe.schedule.name == "multistep"
    assert recipe.schedule.factor == 0.1
    assert [m * recipe.training.epochs for m in recipe.schedule.milestones] == [150]


def test_overrides_are_applied_with_their_types() -> None:
    recipe = load_recipe(
        "fast", ["optimizer.lr=0.05", "model.name=resnet34", "schedule.milestones=[0.5, 0.75]"]
    )
    assert recipe.optimizer.lr == 0.05
    assert recipe.model.name == "resnet34"
    assert recipe.schedule.milestones == (0.5, 0.75)
    assert load_recipe("fast", ["optimizer.lr=1"]).optimizer.lr == 1.0
    assert load_recipe("fast", ["data.image_size=32"]).data.image_size == "32"


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("optimizer.learning_rate=0.1", ["optimizer.learning_rate", "optimizer.lr"]),
        ("lr=0.1", ["'lr'", "optimizer.lr"]),
        ("optimiser.lr=0.1", ["optimiser", "did you mean", "optimizer"]),
        ("training.epoch=3", ["training.epochs"]),
        ("training.epochs=3.5", ["training.epochs", "3.5", "whole number"]),
        ("training.epochs=true", ["training.epochs", "whole number"]),
        ("training.epochs=0", ["training.epochs", "1 or more"]),
        ("training.min_steps=-1", ["training.min_steps", "0 (off) or more"]),
        ("training.compile=1", ["training.compile", "true or false"]),
        ("optimizer.lr=fast", ["optimizer.lr", "'fast'", "a number"]),
        ("optimizer.lr=nan", ["optimizer.lr"]),
        ("optimizer.lr=-1", ["optimizer.lr", "positive"]),
        ("optimizer.name=adam", ["optimizer.name", "'adamw'"]),
        ("optimizer.lr.x=1", ["optimizer.lr.x"]),
        ("model.name=resnet19", ["model.name", "resnet18"]),
        ("schedule.milestones=[150, 200]", ["schedule.milestones", "fractions"]),
        ("schedule.milestones=0.5", ["schedule.milestones", "a list of numbers"]),
        ("data.mean=[0.5]", ["data.mean", "three numbers"]),
        ("data.std=[0.5, 0.5, 0.0]", ["data.std"]),
        ("data.image_size=8", ["8", "16"]),
        ("data.image_size=32x", ["32x"]),
        ("training=3", ["training", "a table"]),
        ("optimizer.groups=[{lr = 1}]", ["optimizer.groups.match", "missing"]),
        ("optimizer.groups=[{match = '*', rate = 1}]", ["optimizer.groups.rate"]),
        ("optimizer.lr", ["KEY=VALUE"]),
    ],
)
def test_the_error_for_a_wrong_setting_names_the_key_and_what_was_expected(
    assignment: str, words: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tutorial", [assignment])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "pictures", "size"),
    [
        (["training.epochs=16"], 50_000, 1000),  # 528 steps: enough, so nothing changes
        (["training.epochs=1"], 50_000, 257),  # 33,500 pictures in 130 steps
        (["training.epochs=1", "data.skip_easy=0"], 50_000, 384),
        (["training.epochs=2", "data.subset_size=10000"], 50_000, 103),
        (["training.epochs=1"], 100, 32),
        (["training.epochs=1", "training.batch_size=16"], 100, 16),
        (["training.epochs=1", "training.min_steps=0"], 50_000, 1000),
    ],
)
def test_batch_size_and_learning_rates_are_fitted_to_the_minimum_number_of_steps(
    overrides: list[str], pictures: int, size: int
) -> None:
    recipe = load_recipe("fast", overrides)
    fitted = recipe.fitted(pictures)
    assert fitted.training.batch_size == size
    assert fitted.fitted(pictures) == fitted
    factor = (size / recipe.training.batch_size) ** 0.5
    assert fitted.optimizer.lr == pytest.approx(0.2 * factor)
    assert [g.lr for g in fitted.optimizer.groups] == pytest.approx([53 * factor, 0.83 * factor])
    same = replace(fitted, optimizer=recipe.optimizer, training=recipe.training)
    assert same == recipe


def test_mixed_pictures_and_balanced_sampling_switch_the_skipping_of_easy_pictures_off(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.toml"
    for setting in ("augment.mixup=0.2", "augment.cutmix=1", "data.sampling=balanced"):
        recipe = load_recipe("fast", [setting])
        assert recipe.data.skip_easy == 0
        assert recipe == load_recipe("fast", [setting, "data.skip_easy=0"])
        with pytest.raises(RecipeError, match=r"'data.skip_easy' is 0.3: expected 0 where"):
            load_recipe("fast", [setting, "data.skip_easy=0.3"])
        section, _, rest = setting.replace("balanced", "'balanced'").partition(".")
        path.write_text(f'extends = "fast"\nname = "fast"\n[{section}]\n{rest}\n')
        assert load_recipe(path).data.skip_easy == 0
    assert load_recipe("fast", ["augment.mixup=0", "data.sampling=uniform"]) == load_recipe("fast")


def test_another_optimizer_has_none_of_the_rates_that_were_chosen_for_the_recipes_own(tmp_path: Path) -> None:
    own = load_recipe("fast").optimizer
    assert all(group.lr for group in own.groups)
    adamw = load_recipe("fast", ["optimizer.name=adamw", "optimizer.lr=0.001"])
    assert (adamw.optimizer.lr, adamw.optimizer.groups) == (0.001, ())
    assert load_recipe("fast", ["optimizer.name=muon"]).optimizer == own
    tuned = load_recipe("finetune", ["optimizer.name = sgd"]).optimizer
    assert tuned.groups == (GroupSettings("*.bias", weight_decay=0.0),)
    named = load_recipe("fast", ["optimizer.groups=[{match = '@head', lr = 2}]", "optimizer.name=adamw"])
    assert named.optimizer.groups == (GroupSettings("@head", lr=2.0),)
    path = tmp_path / "mine.toml"
    path.write_text('extends = "fast"\n[optimizer]\nname = "adamw"\nlr = 0.001\n')
    assert load_recipe(path).optimizer == adamw.optimizer
    path.write_text('extends = "fast"\n[optimizer]\nname = "muon"\nlr = 0.1\n')
    assert load_recipe(path).optimizer.groups == own.groups


def test_the_error_for_an_unknown_recipe_suggests_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'tutorial'"):
        load_recipe("tutorail")
    with pytest.raises(RecipeError, match=r"there is no recipe file nowhere\.toml"):
        load_recipe("nowhere.toml")


def test_a_recipe_file_may_extend_another_recipe(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "fast"\nname = "base"\n[training]\nepochs = 3\n')
    (tmp_path / "top.toml").write_text('extends = "base.toml"\n[optimizer]\nlr = 0.25\n')
    recipe = load_recipe(tmp_path / "top.toml")
    assert (recipe.name, recipe.training.epochs, recipe.optimizer.lr) == ("base", 3, 0.25)
    assert recipe.model.name == load_recipe("fast").model.name


def test_a_recipe_file_may_begin_with_the_mark_of_windows_editors(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "fast"\n[training]\nepochs = 3\n', "utf-8-sig")
    assert load_recipe(path) == load_recipe("fast", ["training.epochs=3"])


def test_a_folder_is_not_called_a_missing_recipe_file_and_is_not_listed_as_one(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "mine.toml").write_text("")
    mine = f"TOML files there: {tmp_path / 'mine.toml'}."
    with pytest.raises(RecipeError, match=f"folder.toml is a folder: expected .* {mine}$"):
        load_recipe(tmp_path / "folder.toml")
    with pytest.raises(RecipeError, match=f"there is no recipe file .*your.toml. {mine} Recipes by name"):
        load_recipe(tmp_path / "your.toml")


def test_a_recipe_that_extends_itself_by_another_path_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f'extends = "../{tmp_path.name}/a.toml"\n')
    with pytest.raises(RecipeError, match="circle") as caught:
        load_recipe(tmp_path / "a.toml")
    assert str(caught.value).count("a.toml") == 2


def test_a_huge_file_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "huge.toml").write_bytes(b"#" * (2 << 20))
    (tmp_path / "a.toml").write_text('extends = "huge.toml"\n')
    with pytest.raises(RecipeError, match=r"huge\.toml is no recipe: it has more than 1,048,576 bytes"):
        load_recipe(tmp_path / "a.toml")


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f'extends = "{tmp_path}/b.toml"\n')
    (tmp_path / "b.toml").write_text(f'extends = "{tmp_path}/a.toml"\n')
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(tmp_path / "a.toml")


@pytest.mark.parametrize("text", ["[training\nepochs = 1", "\x00", "epochs = = 2"])
def test_a_file_that_is_not_toml_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="broken.toml"):
        load_recipe(path)


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(AttributeError):
        load_recipe("fast").seed = 1  # type: ignore[misc]


def test_image_sizes_are_height_by_width() -> None:
    assert parse_image_size("32") == (32, 32)
    assert parse_image_size("32x64") == (32, 64)
    for bad in ("", "x", "32x64x3", "-32", "3.2", "15", "2048", "³²"):
        with pytest.raises(RecipeError):
            parse_image_size(bad)


def test_recipes_need_no_torch() -> None:
    code = "import sys; from thumbnet.recipes.recipe import load_recipe; load_recipe('fast'); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(["name", "seed", "data", "augment", "model", "optimizer", "schedule", "training"])


@given(st.dictionaries(_KEYS, _JSON, max_size=3))
def test_anything_is_either_a_recipe_that_round_trips_or_a_recipe_error(settings: dict[str, object]) -> None:
    try:
        recipe = recipe_from_dict(settings)
    except RecipeError:
        return
    assert recipe_from_dict(recipe.to_dict()) == recipe


@given(
    lr=st.floats(min_value=1e-8, max_value=1e3),
    epochs=st.integers(1, 10_000),
    seed=st.integers(0, 2**63 - 1),
    decay=st.floats(0, 1),
)
def test_a_valid_recipe_round_trips_through_toml(lr: float, epochs: int, seed: int, decay: float) -> None:
    import tomllib

    recipe = load_recipe(
        "fast",
        [
            f"optimizer.lr={lr!r}",
            f"training.epochs={epochs}",
            f"seed={seed}",
            f"optimizer.weight_decay={decay!r}",
        ],
    )
    again = recipe_from_dict(tomllib.loads(recipe.to_toml()))
    assert again == recipe
    assert math.isclose(again.optimizer.lr, lr, rel_tol=0)
    assert isinstance(again, Recipe)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_can_be_written_as_only_its_differences_from_the_defaults(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    short = tmp_path / "short.toml"
    short.write_text(recipe.to_toml(whole=False))
    assert load_recipe(short) == recipe
    assert len(short.read_text().splitlines()) < len(recipe.to_toml().splitlines()) / 2
    assert "[checkpoint]" not in short.read_text()  # it has only defaults


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_opens_with_its_command_and_what_to_expect(name: str) -> None:
    opening = opening_comment(name)
    assert all(line.startswith("#") for line in opening.splitlines())
    (line,) = [line for line in opening.splitlines() if "thumbnet train" in line]
    words = line.removeprefix("#").split()
    if "--recipe" in words:
        assert words[words.index("--recipe") + 1] == name
    assert "easured" in opening
    assert "%" in opening or "No accuracy has been measured" in opening


def test_only_the_recipes_that_come_with_thumbnet_have_an_opening() -> None:
    with pytest.raises(RecipeError, match="there is no recipe 'fsat'. Did you mean 'fast'"):
        opening_comment("fsat")


def test_a_seed_is_a_63_bit_number_and_0_by_default() -> None:
    assert Recipe().seed == 0
    assert [Recipe(seed=seed).seed for seed in (0, 2**63 - 1)] == [0, 2**63 - 1]
    for seed in (-1, 2**63):
        with pytest.raises(RecipeError, match=r"recipe key 'seed' is .*from 0 to 2\*\*63 - 1"):
            Recipe(seed=seed)


def test_the_error_for_a_missing_recipe_file_lists_up_to_eight_others(tmp_path: Path) -> None:
    for name in ("pyproject", *(f"mine{number}" for number in range(9))):
        (tmp_path / f"{name}.toml").write_text("")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "missing.toml")
    there = str(caught.value).partition("TOML files there: ")[2].partition(". Recipes by name")[0]
    assert [Path(one).stem for one in there.split(", ")] == [f"mine{number}" for number in range(8)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "empty" / "missing.toml")
    assert "TOML files there" not in str(caught.value)


def test_a_table_in_a_file_is_merged_with_the_one_it_extends_and_cannot_become_a_number(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.toml").write_text('extends = "fast"\n[training]\nepochs = 3\n')
    assert load_recipe(tmp_path / "mine.toml").training.label_smoothing == 0.2
    (tmp_path / "mine.toml").write_text('extends = "fast"\ntraining = 3\n')
    with pytest.raises(RecipeError, match="expected a table"):
        load_recipe(tmp_path / "mine.toml")


PLAN = ["training.steps=60", "schedule.planned_at=[0, 30]", "schedule.planned_steps=[50, 60]"]


def test_without_its_plan_a_recipe_has_a_length_in_epochs_only() -> None:
    assert load_recipe("fast", PLAN).without_plan() == load_recipe("fast")
    assert load_recipe("fast").without_plan() == load_recipe("fast")


@pytest.mark.parametrize(
    ("overrides", "steps", "at"),
    [
        (["seed=3"], 60, (0, 30)),
        (["training.epochs=3"], 0, ()),
        ([" training.epochs = 3"], 0, ()),
        (["training.steps=40"], 40, ()),
        (["training.epochs=9", *PLAN], 60, (0, 30)),
    ],
)
def test_a_length_that_is_named_replaces_the_one_that_was_planned(
    overrides: list[str], steps: int, at: tuple[int, ...], tmp_path: Path
) -> None:
    planned = load_recipe("small", ["training.epochs=6", *PLAN])
    (tmp_path / "recipe.toml").write_text(planned.to_toml())
    for recipe in (planned.override(overrides), load_recipe(tmp_path / "recipe.toml", overrides)):
        assert (recipe.training.steps, recipe.schedule.planned_at) == (steps, at)


def test_settings_in_a_mapping_become_assignments() -> None:
    settings = {
        "seed": 3,
        "model": {"name": "resnet34", "width": 0.5},
        "training.compile": False,
        "training.init": Path("runs") / 'a"b',
        "augment.scale": (0.8, 1.2),
        "optimizer.groups": [{"match": "head", "lr": 0.1}],
    }
    assert assignments_of(settings) == [
        "seed=3",
        'model.name="resnet34"',
        "model.width=0.5",
        "training.compile=false",
        'training.init="runs/a\\"b"' if os.sep == "/" else 'training.init="runs\\\\a\\"b"',
        "augment.scale=[0.8, 1.2]",
        'optimizer.groups=[{match = "head", lr = 0.1}]',
    ]
    changed = load_recipe("fast", {"model.width": 0.5, "augment.scale": (0.8, 1.2)})
    assert changed == load_recipe("fast", ["model.width=0.5", "augment.scale=[0.8, 1.2]"])
    assert changed == load_recipe("fast").override({"model": {"width": 0.5}, "augment.scale": [0.8, 1.2]})


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\x7fb", "a\\b", "true", "3", "𝄞"])
def test_a_text_in_a_mapping_stays_that_text(name: str) -> None:
    assert Recipe().override({"data.images": name}).data.images == name


@pytest.mark.parametrize("value", [None, object(), {1, 2}, [None]])
def test_a_value_that_no_setting_has_is_refused_by_its_key(value: object) -> None:
    with pytest.raises(RecipeError, match=r"overrides: training\.init is "):
        assignments_of({"training": {"init": value}})
