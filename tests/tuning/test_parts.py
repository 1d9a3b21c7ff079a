from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import coloured, coloured_data, coloured_labels, noise, numbered, write_class_folders
from thumbnet.batches.engines import MemoryEngine, WorkerEngine
from thumbnet.batches.prepare import Prepared
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.errors import DataError, RunError
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data, where_again
from thumbnet.tuning import parts as module
from thumbnet.tuning.parts import FOLDS, divide

CPU = torch.device("cpu")
RECIPE = load_recipe("small")


def pictures(part: Prepared, split: str) -> set[bytes]:
    """The pixels of each picture that a network trains on, or is judged by."""
    engine = part.train.engine if split == "train" else part.evaluation["val"].engine
    (images,) = engine.fetch([torch.arange(len(engine.labels))])
    return {image.numpy().tobytes() for image in images}


def test_a_small_data_set_holds_out_every_picture_once_and_trains_on_all_others() -> None:
    found = divide(coloured_data(60), RECIPE, CPU)
    assert len(found.parts) == FOLDS
    assert (found.pictures, found.held_out) == (60, 60)
    every: set[bytes] = set()
    for part in found.parts:
        train, held = pictures(part, "train"), pictures(part, "val")
        assert (len(train), len(held)) == (40, 20)
        assert not train & held
        assert not every & held
        every |= held
        labels = part.evaluation["val"].engine.labels
        assert torch.bincount(labels).tolist() in ([6, 7, 7], [7, 6, 7], [7, 7, 6])
    assert len(every) == 60


def test_a_larger_data_set_holds_out_a_fifth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 50)
    found = divide(coloured_data(60), RECIPE, CPU)
    (part,) = found.parts
    assert found.held_out == len(part.evaluation["val"].engine.labels) == 12
    assert part.train.count == 48
    assert "12 of the 60 training pictures" in found.how


def test_another_fold_is_held_out_if_the_first_one_is_the_only_group_of_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SMALL", 50)
    images = np.stack([noise(number) for number in range(60)])
    groups = np.array([f"g{max(0, number // 10 - 1)}" for number in range(60)], dtype=object)
    labels = np.array([2] * 20 + [number % 2 for number in range(40)])  # g0 has 20 pictures, all of its class
    train = ArraySplit(images, labels, "t")
    data = Data("x", "made", ("a", "b", "c"), {"train": train}, groups={"train": groups})
    found = divide(data, RECIPE, CPU)
    assert found.held_out == 10
    assert found.parts[0].train.count == 50
    assert 2 not in found.parts[0].evaluation["val"].engine.labels


def test_a_val_split_of_the_data_is_used_as_it_is() -> None:
    data = coloured_data(30, splits=("train", "val", "test"))
    found = divide(data, RECIPE, CPU)
    (part,) = found.parts
    assert (part.train.count, found.held_out) == (30, 30)
    assert "val split" in found.how


class NobodyLooks(ArraySplit):
    """A test split that fails if anyone looks at a picture or a label."""

    def load(self, index: int) -> np.ndarray:
        raise AssertionError("the test split was read")

    content_stamp = stamp = load  # type: ignore[assignment]


def test_the_test_split_is_never_read() -> None:
    data = coloured_data(30)
    test = data.splits["test"]
    hidden = NobodyLooks(np.stack([np.asarray(test.load(i)) for i in range(30)]), test.labels, "test")
    found = divide(replace(data, splits={**data.splits, "test": hidden}), RECIPE, CPU)
    assert all(part.evaluation.keys() == {"val"} for part in found.parts)


def test_copies_and_groups_are_never_on_both_sides() -> None:
    train = coloured_data(60).splits["train"]
    images = np.stack([np.asarray(train.load(index)) for index in range(60)])
    images[30:33] = images[:3]  # copies
    groups = np.array([f"g{index // 6}" for index in range(60)], dtype=object)
    data = Data("x", "made", ("a", "b", "c"), {"train": ArraySplit(images, train.labels, "t")})
    copied = divide(data, RECIPE, CPU)
    for part in copied.parts:
        assert not pictures(part, "train") & pictures(part, "val")
    grouped = divide(replace(data, groups={"train": groups}), RECIPE, CPU)
    of = {image.tobytes(): group for image, group in zip(images.transpose(0, 3, 1, 2), groups, strict=True)}
    for part in grouped.parts:
        inside, outside = ({of[one] for one in pictures(part, split)} for split in ("train", "val"))
        assert not inside & (outside - {"g0", "g5"})  # g0 and g5 share copies


def test_pictures_that_are_decoded_during_the_training_are_divided_alike() -> None:
    memory = divide(coloured_data(30), RECIPE, CPU)
    workers = divide(coloured_data(30), RECIPE.override(["data.engine=workers", "data.workers=1"]), CPU)
    for one, other in zip(memory.parts, workers.parts, strict=True):
        assert isinstance(one.train.engine, MemoryEngine)
        assert isinstance(other.train.engine, WorkerEngine)
        assert torch.equal(one.train.engine.labels, other.train.engine.labels)


def test_several_labels_per_picture_are_balanced_by_the_rarest_one() -> None:
    data = coloured_labels(60, splits=("train",))
    found = divide(data, RECIPE, CPU)
    counts = torch.stack([part.evaluation["val"].engine.labels.sum(dim=0) for part in found.parts])
    assert counts.shape == (FOLDS, 3)
    rarest = counts.sum(dim=0).argmin()
    assert counts[:, rarest].max() - counts[:, rarest].min() <= 1


def test_too_few_pictures_or_only_copies_are_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="has 12 training pictures: at least 20"):
        divide(coloured_data(12), RECIPE, CPU)
    images = np.zeros((30, 16, 16, 3), np.uint8)
    images[15:] = 200
    same = Data("x", "made", ("a", "b"), {"train": ArraySplit(images, np.arange(30) // 15, "t")})
    with pytest.raises(DataError, match="copies of each other or belong to one group"):
        divide(same, RECIPE, CPU)


def test_another_size_is_divided_alike_and_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = coloured_data(60)
    found = divide(data, RECIPE, CPU)
    assert found.own == ((16, 16),) * 60
    assert found.for_recipe(RECIPE) is found.parts
    larger = found.for_recipe(RECIPE.override(["data.image_size=24", "data.fit=squash"]))
    assert len(larger) == len(found.parts)
    for one, other in zip(found.parts, larger, strict=True):
        assert (one.preprocessing.size, other.preprocessing.size) == ((16, 16), (24, 24))
        assert other.preprocessing.fit == "squash"
        for engine, again in (
            (one.train.engine, other.train.engine),
            (one.evaluation["val"].engine, other.evaluation["val"].engine),
        ):
            assert torch.equal(engine.labels, again.labels)
            (small,), (large,) = (some.fetch([torch.arange(len(some.labels))]) for some in (engine, again))
            resized = torch.nn.functional.interpolate(small.float(), (24, 24), mode="bilinear")
            assert (resized - large.float()).abs().mean() < 10  # the same pictures in the same order
    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare", lambda *_: pytest.fail("decoded again"))
        assert found.for_recipe(RECIPE.override(["data.image_size=24", "data.fit=squash"])) is larger
        assert found.for_recipe(RECIPE.override(["seed=5"])) is found.parts
    assert found.for_recipe(RECIPE.override(["data.image_size=20"]))[0].preprocessing.size == (20, 20)
    decoded = found.for_recipe(RECIPE.override(["data.image_size=24", "data.fit=squash"]))
    assert decoded is not larger  # only the latest other size is kept in memory


# --- pictures that belong together ----------------------------------------------------------------------


def in_order(part: Prepared) -> list[bytes]:
    """The pixels of the pictures that judge a network, in the order in which they do."""
    engine = part.evaluation["val"].engine
    (images,) = engine.fetch([torch.arange(len(engine.labels))])
    return [image.numpy().tobytes() for image in images]


def pixels(seed: int) -> bytes:
    """A picture of :func:`helpers.numbered` as :func:`pictures` gives it."""
    return coloured(seed % 3, seed).transpose(2, 0, 1).tobytes()


def test_each_group_has_its_number_in_the_order_of_the_pictures_that_judge() -> None:
    group = {pixels(seed): f"g{seed % 12 // 2}" for seed in range(60)}
    groups = np.array(list(group.values()), dtype=object)
    found = divide(replace(numbered(train=range(60)), groups={"train": groups}), RECIPE, CPU)
    judging = [group[one] for part in found.parts for one in in_order(part)]
    assert len(judging) == found.held_out == 60
    pairs = set(zip(judging, found.together, strict=True))
    assert [len(pairs), len(set(judging)), len(set(found.together))] == [6, 6, 6]
    assert found.how == "3 folds of the 60 training pictures, in 6 independent sets"


def twofold(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """All pictures of a split twice, uint8 [2 N, H, W, 3], and their labels."""
    images = np.stack([np.asarray(split.load(index)) for index in range(len(split))])
    return np.concatenate([images, images]), np.concatenate([split.labels, split.labels])


def test_copies_have_one_number_and_pictures_that_are_all_different_have_none() -> None:
    assert divide(numbered(train=range(60)), RECIPE, CPU).together == ()
    found = divide(numbered(train=range(60), val=range(100, 130)), RECIPE, CPU)
    assert (found.together, found.how) == ((), "the val split, 30 pictures")
    data = numbered(train=range(60), val=range(100, 130))
    twice = ArraySplit(*twofold(data.splits["val"]), "val")
    found = divide(replace(data, splits={**data.splits, "val": twice}), RECIPE, CPU)
    assert found.together == (*range(30), *range(30))
    assert found.how == "the val split, 60 pictures, in 30 independent sets"
    assert found.left_out == ""


def test_pictures_of_val_that_are_also_in_train_judge_no_trial() -> None:
    found = divide(numbered(train=range(60), val=range(50, 100)), RECIPE, CPU)
    assert (found.held_out, found.how) == (40, "the val split, 40 pictures")
    assert found.left_out == "10 of the 50 val pictures are copies of training pictures or in their groups"
    assert found.notes[-1] == f"{found.left_out}: these judge nothing"
    for recipe in (RECIPE, RECIPE.override(["data.image_size=24"])):
        (part,) = found.for_recipe(recipe)
        assert len(part.evaluation["val"].engine.labels) == 40
        assert part.train.count == 60
    assert set(in_order(found.parts[0])) == {pixels(seed) for seed in range(60, 100)}


def test_pictures_of_val_in_a_group_of_train_judge_no_trial_nor_do_others_of_a_copy_s_group() -> None:
    data = numbered(train=range(60), val=range(59, 110))  # the first picture of val is a copy
    train = np.array([f"g{seed}" for seed in range(60)], dtype=object)
    val = np.array(["h", "h", "g3", *(f"v{seed // 2}" for seed in range(62, 110))], dtype=object)
    found = divide(replace(data, groups={"train": train, "val": val}), RECIPE, CPU)
    assert set(in_order(found.parts[0])) == {pixels(seed) for seed in range(62, 110)}
    assert found.how == "the val split, 48 pictures, in 24 independent sets"


def test_a_val_split_most_of_which_is_also_in_train_is_refused() -> None:
    with pytest.raises(DataError, match=r"31 of the 50 val pictures are copies.*at least 20 others"):
        divide(numbered(train=range(60), val=range(29, 79)), RECIPE, CPU)
    assert divide(numbered(train=range(60), val=range(30, 80)), RECIPE, CPU).held_out == 20
    assert divide(numbered(train=range(60), val=range(60, 70)), RECIPE, CPU).held_out == 10  # few, but honest
    assert divide(numbered(train=range(60), val=range(56, 66)), RECIPE, CPU).held_out == 6  # most of them


# --- weights to start from -------------------------------------------------------------------------------


def beginning_with(run: Run) -> Recipe:
    return RECIPE.override([f'training.init="{run.path}"'])


def test_pictures_that_the_first_network_knows_judge_no_trial(tiny_run: Run) -> None:
    found = divide(numbered(train=range(20, 120)), beginning_with(tiny_run), CPU)
    known = {pixels(seed) for seed in range(20, 60)}
    assert (found.pictures, found.held_out) == (100, 60)
    assert found.how == "60 of the 100 training pictures"
    assert found.left_out == f"the network in {tiny_run.path} was trained on 40 of the 100 train pictures"
    assert f"{found.left_out}: these judge nothing" in found.notes
    for part in found.parts:
        assert known <= pictures(part, "train")
        assert not known & pictures(part, "val")
    larger = found.for_recipe(beginning_with(tiny_run).override(["data.image_size=24"]))
    assert sum(len(part.evaluation["val"].engine.labels) for part in larger) == 60


def test_pictures_of_val_that_the_first_network_knows_judge_no_trial(tiny_run: Run) -> None:
    data = numbered(train=range(100, 160), val=range(40, 90))
    found = divide(data, beginning_with(tiny_run), CPU)
    assert (found.held_out, found.how) == (30, "the val split, 30 pictures")
    for recipe in (beginning_with(tiny_run), beginning_with(tiny_run).override(["data.image_size=24"])):
        (part,) = found.for_recipe(recipe)
        assert len(part.evaluation["val"].engine.labels) == 30
        assert part.train.count == 60


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (
            {"train": range(60)},
            "trained on all 60 train pictures, and at least 20 others",
        ),
        ({"train": range(100, 160), "val": range(45, 75)}, "trained on 15 of the 30 val pictures"),
    ],
)
def test_a_first_network_that_knows_too_many_pictures_is_refused(
    splits: dict[str, range], words: str, tiny_run: Run
) -> None:
    with pytest.raises(DataError, match=f"{words}.*Leave out --init"):
        divide(numbered(**splits), beginning_with(tiny_run), CPU)


def test_the_refusal_names_both_reasons_if_pictures_are_known_and_copied(tiny_run: Run) -> None:
    data = numbered(train=range(100, 160), val=[*range(5), *range(100, 118), *range(200, 217)])
    with pytest.raises(DataError) as caught:
        divide(data, beginning_with(tiny_run), CPU)
    said = str(caught.value)
    assert (
        f"the network in {tiny_run.path} was trained on 5 of the 40 val pictures, and 18 of the others are copies "
        "of training pictures or in their groups, and at least 20 others are needed" in said
    )
    assert "Leave out --init" in said
    assert "Remove the copies from one of the two splits" in said


def test_pictures_in_a_group_of_a_known_one_judge_no_trial_either(tiny_run: Run) -> None:
    seeds = range(50, 110)  # ten of them are known
    groups = np.array([f"g{seed % 40}" for seed in seeds], dtype=object)
    known = {f"g{seed % 40}" for seed in range(50, 60)}
    data = replace(numbered(train=seeds), groups={"train": groups})
    found = divide(data, beginning_with(tiny_run), CPU)
    fair = {pixels(seed) for seed in seeds if f"g{seed % 40}" not in known}
    assert {one for part in found.parts for one in in_order(part)} <= fair
    assert "and 10 of the others are copies of these or in their groups" in found.left_out


def test_a_first_network_that_may_know_the_pictures_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path / "data", ["train"], per_class=8))
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    (run.path / "digests.npy").unlink()
    settings = {**run.settings, "data": where_again(data.source), "fingerprint": "0"}
    (run.path / "run.json").write_text(json.dumps(settings))
    with pytest.raises(RunError, match=r"may have been trained on the pictures.*Leave out --init"):
        divide(data, beginning_with(run), CPU)


def test_a_val_split_of_the_data_themselves_was_never_trained_on(tiny_run: Run, tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path / "data", ["train", "val"], per_class=8))
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    (run.path / "digests.npy").unlink()
    settings = {**run.settings, "data": where_again(data.source), "fingerprint": "0"}
    (run.path / "run.json").write_text(json.dumps(settings))
    found = divide(data, beginning_with(run), CPU)
    assert (found.how, found.left_out) == ("the val split, 24 pictures", "")


def test_few_unknown_pictures_are_all_held_out_once(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 40)
    found = divide(numbered(train=range(90)), beginning_with(tiny_run), CPU)
    assert (len(found.parts), found.held_out) == (FOLDS, 30)
    assert found.left_out == f"the network in {tiny_run.path} was trained on 60 of the 90 train pictures"
    many = divide(numbered(train=range(40, 240)), beginning_with(tiny_run), CPU)  # a fold is 40 pictures
    assert len(many.parts) == 1
    assert 20 <= many.held_out <= 40
