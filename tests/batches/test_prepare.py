from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import coloured_data, coloured_labels, write_class_folders
from thumbnet.batches import prepare as preparing
from thumbnet.batches.prepare import prepare, resolve_preprocessing, without_unreadable
from thumbnet.data.splits import ArraySplit, FileSplit, Split
from thumbnet.distributed import World
from thumbnet.errors import DataError, FailedReadError, OutOfMemoryError, UnreadableImagesError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.sources.load import load_data
from thumbnet.training.build import build_state

CPU = torch.device("cpu")


def test_unreadable_pictures_are_skipped_and_listed_if_the_recipe_says_so(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    for name in ("train/red/0.png", "test/blue/3.png"):
        (tmp_path / name).write_bytes(b"broken")
    prepared = prepare(load_data(tmp_path), load_recipe("tutorial", ["data.on_bad_image=skip"]), CPU)
    assert [split for split, _, _ in prepared.skipped] == ["train", "test"]
    assert prepared.skipped[0][1].endswith("red/0.png")
    assert all(reason for _, _, reason in prepared.skipped)
    assert {name: len(split) for name, split in prepared.splits.items()} == {"train": 17, "test": 17}
    assert len(prepared.train.engine.labels) == 17


def test_groups_stay_with_their_pictures_if_damaged_ones_are_skipped(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    (tmp_path / "test" / "blue" / "3.png").write_bytes(b"broken")
    data = load_data(tmp_path)
    names = {name: [split.name(i) for i in range(len(split))] for name, split in data.splits.items()}
    data = replace(data, groups={name: np.array(found, dtype=object) for name, found in names.items()})
    recipe = load_recipe("tutorial", ["data.on_bad_image=skip"])
    first = prepare(data, recipe, CPU)
    for prepared in (first, prepare(data, recipe, CPU, skipped=first.skipped)):
        assert {name: len(found) for name, found in prepared.groups.items()} == {"train": 18, "test": 17}
        split = prepared.splits["test"]
        assert prepared.groups["test"].tolist() == [split.name(i) for i in range(17)]


def test_a_class_without_readable_pictures_is_named(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train"], per_class=2)
    for number in range(2):
        (tmp_path / "train" / "green" / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"no training picture of the class\(es\) green can be read"):
        without_unreadable(load_data(tmp_path))


def test_the_device_may_be_named() -> None:
    recipe = load_recipe("tutorial", ["model.name=resnet20"])
    named, chosen = (prepare(coloured_data(), recipe, device) for device in ("cpu", CPU))
    assert torch.equal(next(named.train.epoch(0)).images, next(chosen.train.epoch(0)).images)
    assert build_state(recipe, named, ("red", "green", "blue"), "cpu").device == CPU


def test_fewer_pictures_than_processes_are_refused() -> None:
    few = coloured_data()
    few = replace(few, splits={**few.splits, "test": few.splits["test"].subset(np.arange(3))})
    with pytest.raises(DataError, match="test has 3 pictures for 4 processes: use fewer processes"):
        prepare(few, load_recipe("tutorial"), CPU, world=World(0, 4))


def test_a_given_mean_is_kept_and_an_automatic_one_is_measured() -> None:
    data = coloured_data()
    engine = prepare(data, load_recipe("tutorial"), CPU).train.engine
    named = load_recipe("tutorial", ["data.mean=[0.1, 0.2, 0.3]", "data.std='auto'"]).data
    found = resolve_preprocessing(named, (16, 16), engine)
    assert found.mean == (0.1, 0.2, 0.3)
    train = data.splits["train"]
    assert isinstance(train, ArraySplit)
    np.testing.assert_allclose(found.std, (train.images / 255).std(axis=(0, 1, 2)), atol=1e-5)


def test_large_pictures_are_scaled_down_with_a_note_that_says_how_to_keep_them() -> None:
    recipe = load_recipe(
        "tutorial", ["data.image_size='auto'", "data.largest_auto_size=16", "model.width=0.25"]
    )
    prepared = prepare(coloured_data(12, side=24), recipe, CPU)
    assert prepared.preprocessing.size == (16, 16)
    assert any("scaled to 16x16" in note and "--image-size 24x24" in note for note in prepared.notes)


@pytest.mark.parametrize(
    "refusal", [MemoryError(), RuntimeError("not enough memory: you tried to allocate 9")]
)
def test_pictures_that_do_not_fit_into_memory_suggest_the_other_engine(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise refusal

    monkeypatch.setattr(preparing, "decode_split", refuse)
    with pytest.raises(OutOfMemoryError, match=r"preparing the pictures.*\n.*data.engine=workers"):
        prepare(coloured_data(), load_recipe("tutorial", ["data.engine=memory"]), CPU)


class EnoughSeenError(Exception):
    pass


@pytest.mark.parametrize("fits", [True, False])
def test_all_splits_go_to_the_gpus_memory_or_none_does(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    asked, stores = [], []

    def fits_in_memory(splits: Iterable[Split], size: object, device: torch.device = CPU) -> bool:
        asked.append((device, sum(map(len, splits))))
        return fits or device == CPU

    def record(*arguments: object) -> None:
        stores.append(arguments[-1])
        if len(stores) == 2:
            raise EnoughSeenError

    monkeypatch.setattr(preparing, "fits_in_memory", fits_in_memory)
    monkeypatch.setattr(preparing, "build_engine", record)
    with pytest.raises(EnoughSeenError):
        prepare(coloured_data(60), load_recipe("tutorial"), gpu)
    assert asked == [(CPU, 120), (gpu, 120)]
    assert stores == [gpu if fits else CPU] * 2


def test_a_resumed_run_leaves_out_what_it_began_without_and_needs_all_else(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path, ["train", "test"])
    recipe = load_recipe("tutorial", ["data.on_bad_image=skip"])
    data = load_data(root)
    name = data.splits["train"].name(1)
    prepared = prepare(data, recipe, CPU, skipped=[("train", name, "Input/output error")])
    assert len(prepared.splits["train"]) == len(data.splits["train"]) - 1
    assert [one[1] for one in prepared.skipped] == [name]
    (root / "train" / "red" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableImagesError, match=r"0\.png"):
        prepare(load_data(root), recipe, CPU, skipped=[])


@pytest.mark.parametrize("engine", ["memory", "workers"])
def test_a_picture_that_the_system_fails_to_read_is_not_skipped(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_class_folders(tmp_path / "data", ["train", "test"])
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    (root / "train" / "red" / "0.png").write_bytes(b"no picture")
    recipe = load_recipe("tutorial", ["data.on_bad_image=skip", f"data.engine={engine}", "data.workers=1"])
    load = FileSplit.load

    def load_or_fail(self: FileSplit, index: int) -> object:
        if self.name(index) == "train/red/1.png":
            raise FailedReadError(self.name(index), "Input/output error")
        return load(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(FileSplit, "load", load_or_fail)
        with pytest.raises(FailedReadError, match=r"train/red/1\.png"):
            prepare(load_data(root), recipe, CPU)
        with pytest.raises(FailedReadError, match=r"train/red/1\.png"):  # a resumed run
            prepare(load_data(root), recipe, CPU, skipped=[("train", "train/red/0.png", "no picture")])
    prepared = prepare(load_data(root), recipe, CPU)
    assert [name for _, name, _ in prepared.skipped] == ["train/red/0.png"]


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        (("train",), (None, None, None)),
        (("train", "test"), ("test", "test", None)),
        (("train", "val"), ("val", "val", "val")),
        (("train", "val", "test"), ("val", "test", "val")),
        (("train", "test", "calibration"), ("test", "test", "calibration")),
    ],
)
def test_each_held_out_split_has_its_uses(
    splits: tuple[str, ...], found: tuple[str | None, str | None, str | None]
) -> None:
    prepared = prepare(coloured_data(12, splits=splits), load_recipe("tutorial"), CPU)
    assert (prepared.watched, prepared.measured, prepared.calibrates_on) == found


def test_a_subset_is_drawn_by_its_own_seed_if_it_has_one() -> None:
    def names(*settings: str) -> list[str]:
        recipe = load_recipe("tutorial", ["data.subset_size=20", *settings])
        train = prepare(coloured_data(60), recipe, CPU).splits["train"]
        return [train.name(at) for at in range(len(train))]

    assert names("seed=3") == names("seed=4", "data.subset_seed=3") != names("seed=4")


@pytest.mark.parametrize("several", [False, True])
def test_a_warning_names_the_classes_that_a_subset_loses(several: bool) -> None:
    data = coloured_labels(60) if several else coloured_data(60)
    counts = data.splits["train"].class_counts(3)
    assert (counts > 0).all()
    for size in (1, 50):
        prepared = prepare(data, load_recipe("tutorial", [f"data.subset_size={size}"]), CPU)
        left = prepared.splits["train"].class_counts(3)
        lost = [name for name, count in zip(data.class_names, left, strict=True) if not count]
        told = [note for note in prepared.notes if "subset_size" in note]
        assert len(told) == bool(lost) == (size == 1)
        assert all(note.startswith("warning: ") and f"classes: {', '.join(lost)}. " in note for note in told)


def test_groups_stay_with_the_pictures_of_a_random_subset(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    (tmp_path / "train/red/0.png").write_bytes(b"broken")
    data = load_data(tmp_path)
    named = {
        name: np.array([f"group of {split.name(index)}" for index in range(len(split))], dtype=object)
        for name, split in data.splits.items()
    }
    recipe = load_recipe("tutorial", ["data.on_bad_image=skip", "data.subset_size=9"])
    prepared = prepare(replace(data, groups=named), recipe, CPU)
    for name, split in prepared.splits.items():
        expected = [f"group of {split.name(index)}" for index in range(len(split))]
        assert prepared.groups[name].tolist() == expected
    assert len(prepared.groups["train"]) == 9
    assert prepare(data, recipe, CPU).groups == {}
