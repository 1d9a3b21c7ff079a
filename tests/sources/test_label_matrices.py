from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thumbnet.errors import DataError
from thumbnet.sources.label_matrices import label_matrices
from thumbnet.sources.load import load_data

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
MATRIX = np.random.default_rng(1).random((30, 4)) < 0.5
LISTS = [[name for name, has in zip("abcd", row, strict=True) if has] for row in MATRIX]


@pytest.mark.parametrize(
    "labels",
    [MATRIX, MATRIX.astype(np.uint8), MATRIX.astype(np.float32), torch.from_numpy(MATRIX), MATRIX.tolist()],
    ids=["bool", "uint8", "float32", "tensor", "lists"],
)
def test_a_matrix_in_python_is_several_labels(labels: Any) -> None:
    data = load_data((IMAGES, labels), test_fraction=0)
    assert data.multilabel
    assert data.class_names == ("0", "1", "2", "3")
    assert np.array_equal(data.splits["train"].targets, MATRIX)
    named = load_data({"train": (IMAGES, labels), "class_names": list("wxyz")}, test_fraction=0)
    assert named.class_names == ("w", "x", "y", "z")


def test_lists_of_names_or_positions_are_several_labels() -> None:
    data = load_data((IMAGES, LISTS), test_fraction=0)
    assert data.class_names == ("a", "b", "c", "d")
    assert np.array_equal(data.splits["train"].targets, MATRIX)
    positions = [np.flatnonzero(row).tolist() for row in MATRIX]
    again = load_data({"train": (IMAGES, positions), "class_names": list("abcd")}, test_fraction=0)
    assert np.array_equal(again.splits["train"].targets, MATRIX)


def test_names_are_known_labels_in_either_unicode_form() -> None:
    rows = [[unicodedata.normalize("NFD", "thé"), "café"], ["thé"]]
    found = label_matrices({"train": rows}, ("café", "thé"), "auto", "data")
    assert found is not None
    assert found[0] == ("café", "thé")
    assert found[1]["train"].tolist() == [[True, True], [False, True]]


def test_data_sets_may_return_rows_of_labels() -> None:
    class Pairs:
        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return IMAGES[index], MATRIX[index].astype(np.float32)

    data = load_data(Pairs(), test_fraction=0)
    assert np.array_equal(data.splits["train"].targets, MATRIX)


def test_one_hot_rows_stay_one_class_unless_the_user_says_otherwise() -> None:
    one_hot = np.eye(3, dtype=np.uint8)[np.arange(30) % 3]
    assert not load_data((IMAGES, one_hot)).multilabel
    assert load_data((IMAGES, one_hot), multilabel=True).multilabel
    with pytest.raises(DataError, match="not one-hot"):
        load_data((IMAGES, MATRIX), multilabel=False)
    none = one_hot.copy()
    none[3] = 0
    with pytest.raises(DataError, match=r"picture 3 has 0 classes.*set data.multilabel = true"):
        load_data((IMAGES, none))
    assert load_data((IMAGES, none), multilabel=True, test_fraction=0).splits["train"].targets.sum() == 29
    with pytest.raises(DataError, match="one class per picture"):
        load_data((IMAGES, np.arange(30) % 3), multilabel=True)


def test_numpy_files_may_hold_a_matrix(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=IMAGES, labels=MATRIX)
    data = load_data(tmp_path / "d.npz", test_fraction=0)
    assert data.multilabel
    assert np.array_equal(data.splits["train"].targets, MATRIX)
    assert "several labels" in data.layout


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ({"train": MATRIX, "test": MATRIX[:, :3]}, None, "3 and 4 columns"),
        ({"train": MATRIX}, ["a", "b"], "4 columns, expected one per label: 2"),
        ({"train": [["a"], ["a", "z"]]}, ["a", "b"], "the labels z are not among the 2 classes"),
        (
            {"train": [["a"], []], "test": [["a", "b"]]},
            None,
            "train lacks: b. Move pictures of them to train, or",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Any, names: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        label_matrices(labels, names, "auto", "data")


@pytest.mark.parametrize("labels", [np.ones((30, 3)), np.full((30, 3), 0.5), ["a", "b"], [[3], [5]]])
def test_other_labels_are_left_to_those_that_read_one_class(labels: Any) -> None:
    assert label_matrices({"train": labels}, None, "auto", "data") is None
