from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured_data, coloured_labels
from thumbnet.data.calibration import CALIBRATION, with_calibration_split
from thumbnet.data.held_out import with_held_out
from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.splits import ArraySplit, Data, FileSplit, Split
from thumbnet.errors import DataError, SeveralLabelsError
from thumbnet.recipes.settings import DataSettings


def some(targets: np.ndarray, prefix: str = "train") -> MultiLabelSplit:
    images = np.arange(len(targets) * 48, dtype=np.uint8).reshape(-1, 4, 4, 3)
    return MultiLabelSplit(ArraySplit(images, np.zeros(len(targets), dtype=np.int64), prefix), targets)


TARGETS = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]])


def test_asking_for_one_class_per_picture_is_an_error_and_not_nonsense() -> None:
    split = some(TARGETS)
    with pytest.raises(SeveralLabelsError, match="several labels each"):
        _ = split.labels
    assert split.multilabel
    assert not coloured_data().multilabel
    assert coloured_labels().multilabel


def test_pictures_are_those_of_the_wrapped_split() -> None:
    split = some(TARGETS)
    inner = split.reader()
    assert inner is split.pictures
    assert inner.reader() is inner
    assert len(split) == 4
    assert split.name(2) == "train[2]"
    assert split.content(1) == inner.content(1)
    assert split.peek(0) == ((4, 4), "RGB")
    assert split.content_key() == inner.content_key()
    assert np.array_equal(np.asarray(split.read(3)), np.asarray(inner.read(3)))
    assert split.head(0) == b""


def test_labels_are_counted_found_and_named() -> None:
    split = some(TARGETS)
    names = ("cat", "dog", "hat")
    assert split.class_counts(3).tolist() == [2, 2, 3]
    assert split.members(0).tolist() == [0, 3]
    assert split.label_text(0, names) == "cat, hat"
    assert split.label_text(1, names) == "no label"
    assert split.single_classes().tolist() == [-1] * 4
    chosen = split.subset(np.array([3, 1]))
    assert chosen.targets.tolist() == [[True] * 3, [False] * 3]
    assert chosen.name(0) == "train[3]"  # its place in the whole split


def test_one_class_per_picture_offers_the_same() -> None:
    split = coloured_data(6).splits["train"]
    assert split.targets is split.labels
    assert split.class_counts(4).tolist() == [2, 2, 2, 0]
    assert split.members(1).tolist() == [1, 4]
    assert split.single_classes().tolist() == [0, 1, 2, 0, 1, 2]
    assert split.label_text(2, ("a", "b", "c")) == "c"


def test_the_fingerprint_depends_on_every_label() -> None:
    def fingerprint(targets: np.ndarray) -> str:
        return Data("x", "y", ("a", "b", "c"), {"train": some(targets)}).fingerprint()

    changed = TARGETS.copy()
    changed[1, 2] = 1
    assert fingerprint(TARGETS) == fingerprint(TARGETS.astype(bool))
    assert fingerprint(TARGETS) != fingerprint(changed)
    assert pickle.loads(pickle.dumps(some(TARGETS))).targets.tolist() == some(TARGETS).targets.tolist()  # noqa: S301


@pytest.mark.parametrize("targets", [TARGETS[:3], TARGETS[:, 0], 2 * TARGETS, TARGETS / 2])
def test_a_matrix_of_another_shape_or_other_values_is_refused(targets: np.ndarray) -> None:
    pictures = some(TARGETS).pictures
    with pytest.raises(DataError, match=r"shape|0 and 1"):
        MultiLabelSplit(pictures, targets)


def test_splits_of_both_kinds_are_refused() -> None:
    splits: dict[str, Split] = {"train": some(TARGETS), "test": coloured_data(6).splits["train"]}
    with pytest.raises(DataError, match="one class per picture, others several"):
        Data("x", "y", ("a", "b", "c"), splits)


def labelled(count: int, shares: tuple[float, ...]) -> Data:
    targets = np.random.default_rng(0).random((count, len(shares))) < shares
    paths = [f"{n}.png" for n in range(count)]
    split = MultiLabelSplit(FileSplit(Path("nowhere"), paths, np.zeros(count, dtype=np.int64)), targets)
    return Data("x", "y", tuple(f"label {n}" for n in range(len(shares))), {"train": split})


def test_each_label_gives_its_share_to_the_held_out_pictures() -> None:
    data = labelled(1000, (0.5, 0.2, 0.03, 0.01))
    held = with_held_out(data, 0.2, 0.0, seed=0)
    before, test = data.splits["train"].class_counts(4), held.splits["test"].class_counts(4)
    assert np.abs(test / before - 0.2).max() < 0.05
    assert len(held.splits["test"]) == pytest.approx(200, abs=20)
    assert any("20% of each label was set aside as test" in note for note in held.notes)
    again = with_held_out(data, 0.2, 0.0, seed=0)
    assert again.fingerprint() == held.fingerprint()
    assert with_held_out(data, 0.2, 0.0, seed=1).fingerprint() != held.fingerprint()


def test_every_label_keeps_pictures_in_train() -> None:
    for seed in range(5):
        held = with_held_out(labelled(40, (0.05,) * 8), 0.5, 0.0, seed=seed)
        before = labelled(40, (0.05,) * 8).splits["train"].class_counts(8)
        assert (held.splits["train"].class_counts(8)[before > 0] > 0).all()


def test_pictures_of_a_group_stay_together() -> None:
    data = labelled(300, (0.5, 0.2))
    held = with_held_out(data, 0.2, 0.0, seed=0, group_by=r"^(\d)")
    groups = {name: {split.name(i)[0] for i in range(len(split))} for name, split in held.splits.items()}
    assert not groups["train"] & groups["test"]
    assert groups["test"]


def test_groups_without_any_label_give_their_share_to_test() -> None:
    names = [f"{n:03}.png" for n in range(400)]
    targets = np.zeros((400, 2), dtype=bool)
    targets[:100, 0], targets[100:200, 1] = True, True
    pictures = FileSplit(Path("nowhere"), names, np.zeros(400, dtype=np.int64))
    data = Data("x", "y", ("a", "b"), {"train": MultiLabelSplit(pictures, targets)})
    held = with_held_out(data, 0.2, 0.0, seed=0, group_by=r"^(\d\d)")  # groups of ten pictures
    counts = {name: (~split.targets.any(axis=1)).sum() for name, split in held.splits.items()}
    assert counts == {"train": 160, "test": 40}
    assert held.splits["test"].class_counts(2).tolist() == [20, 20]
    groups = {name: {split.name(i)[:2] for i in range(len(split))} for name, split in held.splits.items()}
    assert not groups["train"] & groups["test"]


def test_with_a_label_for_every_picture_groups_are_divided_by_their_labels_only() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    names = [f"{n}.png" for n in range(300)]
    groups = {"train": rng.integers(40, size=300).astype(str).astype(object)}
    one = FileSplit(Path("nowhere"), names, labels)
    several = MultiLabelSplit(one, np.eye(3, dtype=bool)[labels])
    held = [
        with_held_out(Data("x", "y", ("a", "b", "c"), {"train": split}, groups=groups), 0.2, 0.0, 0)
        for split in (one, several)
    ]
    first, second = ([data.splits["test"].name(i) for i in range(len(data.splits["test"]))] for data in held)
    assert first == second


def test_calibration_pictures_are_set_aside_without_regard_to_labels() -> None:
    data = with_calibration_split(labelled(1000, (0.5, 0.2)), DataSettings())
    assert len(data.splits[CALIBRATION]) == 50
    assert len(data.splits["train"]) == 950
