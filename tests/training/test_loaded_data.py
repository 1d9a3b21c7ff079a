"""Data that were loaded in Python with settings of their own, and the runs that are trained on them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import TINY, coloured_data, write_class_folders
from thumbnet.cli import build_parser
from thumbnet.cli.run_data import data_of_run
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, RecipeError
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.sources.load import load_data
from thumbnet.training.choose import choose_recipe
from thumbnet.training.listener import Listener
from thumbnet.training.loaded_data import with_loaded_settings
from thumbnet.training.train import resume, train

QUIET = Listener()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("pictures"), [""], per_class=20)


@pytest.fixture(scope="module")
def with_splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("splits"), ["train", "test"])


def chosen(data: Data, *overrides: str, recipe: Any = "small") -> tuple[Recipe, Data]:
    return choose_recipe(data, recipe, list(overrides), None, QUIET)


def test_load_data_keeps_its_settings_in_the_data(place: Path) -> None:
    data = load_data(place, split_seed=3, test_fraction=0.3)
    assert data.settings is not None
    assert (data.settings.split_seed, data.settings.test_fraction) == (3, 0.3)
    assert replace(data, notes=()).settings == data.settings
    assert replace(data, settings=None).fingerprint() == data.fingerprint()
    assert coloured_data().settings is None


@pytest.mark.parametrize("recipe", ["small", None])
def test_the_recipe_takes_the_settings_of_loaded_data(recipe: str | None, place: Path) -> None:
    asked: dict[str, Any] = {
        "split_seed": 3,
        "test_fraction": 0.3,
        "val_fraction": 0.1,
        "classes_from": "leaf",
    }
    found, data = chosen(load_data(place, **asked), recipe=recipe)
    assert {key: getattr(found.data, key) for key in asked} == asked
    again = load_data(place, settings=found.data)
    assert again.fingerprint() == data.fingerprint() != load_data(place).fingerprint()


def test_other_settings_and_data_of_other_origin_leave_the_recipe_alone(place: Path) -> None:
    given = load_recipe("small", ["data.split_seed=5", "data.group_by='x'"])
    for data in (coloured_data(), str(place), replace(load_data(place), settings=None)):
        assert with_loaded_settings(given, data, frozenset(("data.split_seed",))) is given
    sized = load_data(place, image_size="48", subset_size=7)
    assert with_loaded_settings(load_recipe("small"), sized, frozenset()) == load_recipe("small")


@pytest.mark.parametrize(
    "override",
    [
        "data.group_by='/(.)'",
        "data.split_seed=0",
        "data.test_fraction=0.4",
        "data.val_fraction=0",
        "data.multilabel=true",
    ],
)
def test_a_setting_that_comes_too_late_is_refused_with_the_way_on(override: str, place: Path) -> None:
    data = load_data(place, split_seed=3, val_fraction=0.1)
    key = override.partition("=")[0]
    with pytest.raises(RecipeError, match=rf"{key} = .* has no effect.*\n?.*thumbnet\.load_data\(\.\.\., "):
        chosen(data, override)


def test_a_recipe_that_asks_for_another_setting_is_refused_too(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "small"\n[data]\nsplit_seed = 0\n')
    with pytest.raises(RecipeError, match=r"data\.split_seed = 0 has no effect"):
        chosen(load_data(place, split_seed=3), recipe=file)
    whole = load_recipe("small", ["data.split_seed=5"])
    with pytest.raises(RecipeError, match=r"data\.split_seed = 5 has no effect.*with 3"):
        chosen(load_data(place, split_seed=3), recipe=whole)
    assert chosen(load_data(place, split_seed=3), recipe=load_recipe("small"))[0].data.split_seed == 3
    assert chosen(load_data(place, split_seed=5), recipe=whole)[0].data.split_seed == 5


def test_val_can_still_be_set_aside_from_loaded_data(place: Path) -> None:
    found, data = chosen(load_data(place, split_seed=3), "data.val_fraction=0.2")
    assert (found.data.val_fraction, found.data.split_seed) == (0.2, 3)
    assert data.settings is not None
    assert data.settings.val_fraction == 0.2
    assert load_data(place, settings=found.data).fingerprint() == data.fingerprint()
    patient, data = chosen(load_data(place, split_seed=3), "training.patience=2")
    assert load_data(place, settings=patient.data).fingerprint() == data.fingerprint()


def test_the_folder_of_the_pictures_is_recorded_with_its_whole_path(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{path.relative_to(place).as_posix()},{path.parent.name}" for path in place.rglob("*.png")]
    (tmp_path / "all.csv").write_text("path,label\n" + "\n".join(rows))
    monkeypatch.chdir(place.parent)
    data = load_data(tmp_path / "all.csv", images=place.name)
    for asked in ([], [f"data.images={place.name}"]):
        assert chosen(data, *asked)[0].data.images == str(place)
    assert chosen(replace(data, settings=None), f"data.images={place.name}")[0].data.images == place.name
    with pytest.raises(RecipeError, match=r"data\.images = 'other' has no effect"):
        chosen(data, "data.images=other")


def test_where_nothing_is_set_aside_yet_the_seed_can_still_be_chosen(with_splits: Path) -> None:
    late = ["data.split_seed=4", "data.val_fraction=0.2", "data.test_fraction=0.5"]
    found, data = chosen(load_data(with_splits), *late)
    assert (found.data.split_seed, found.data.val_fraction) == (4, 0.2)
    assert load_data(with_splits, settings=found.data).fingerprint() == data.fingerprint()


def test_pictures_that_were_skipped_at_loading_stay_skipped(tmp_path: Path) -> None:
    write_class_folders(tmp_path, [""], per_class=4)
    rows = [f"{name}/{number}.png,{name}" for name in ("red", "green", "blue") for number in range(4)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label", *rows, "red/99.png,red"]) + "\n")
    data = load_data(table, on_bad_image="skip")
    found, _ = chosen(data)
    assert found.data.on_bad_image == "skip"
    assert load_data(table, settings=found.data).fingerprint() == data.fingerprint()
    with pytest.raises(RecipeError, match=r"data\.on_bad_image = 'stop' has no effect"):
        chosen(data, "data.on_bad_image=stop")
    assert chosen(load_data(tmp_path), "data.on_bad_image=skip")[0].data.on_bad_image == "skip"


def test_val_is_not_set_aside_after_the_labels_are_corrected(place: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("picture,label,split,was,decision\nred/0.png,blue,train,red,relabel\n")
    data = load_data(place, labels=labels)
    for late in ("data.val_fraction=0.2", "training.patience=2"):
        with pytest.raises(
            DataError, match=r"val has to be set aside before that: thumbnet\.load_data\(\.\.\., "
        ):
            chosen(data, late)
    found, whole = chosen(load_data(place, labels=labels, val_fraction=0.2))
    assert load_data(place, settings=found.data, labels=labels).fingerprint() == whole.fingerprint()


def test_a_run_on_loaded_data_is_resumed_and_measured_on_the_same_split(place: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "pictures"))
    data = load_data(copy, split_seed=3, test_fraction=0.3)
    short = [*TINY, "training.epochs=1"]
    run = train(data, "one-cycle", overrides=short, out=tmp_path / "run", device="cpu")
    options = build_parser().parse_args(["evaluate", str(run.path)])
    again = data_of_run(options, run.recipe.data)
    assert again.fingerprint("test") == data.fingerprint("test") == run.settings["measured_fingerprint"]
    weights, accuracy = run.weights_path.read_bytes(), run.summary["accuracy"]
    (run.path / "summary.json").unlink()  # as if the process had been killed at the end
    resumed = resume(run.path, device="cpu")
    assert resumed.summary["accuracy"] == accuracy
    assert resumed.weights_path.read_bytes() == weights


def test_the_recipe_takes_the_fold_of_loaded_data(place: Path) -> None:
    found, data = chosen(load_data(place, folds=3, fold=2))
    assert found.data.test_fold == (2, 3)
    assert load_data(place, settings=found.data).fingerprint() == data.fingerprint()
    with pytest.raises(RecipeError, match=r"data\.fold = 1 has no effect"):
        chosen(load_data(place, folds=3, fold=2), "data.folds=3", "data.fold=1")


def test_folds_of_data_with_splits_of_their_own_origin_are_refused() -> None:
    with pytest.raises(RecipeError, match="no effect on a Data object of your own.*with_test_fold"):
        chosen(coloured_data(), "data.folds=3", "data.fold=1")
