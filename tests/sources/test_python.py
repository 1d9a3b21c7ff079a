from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import thumbnet
from helpers import coloured, write_class_folders
from thumbnet.batches.prepare import prepare
from thumbnet.classifiers.load import load_run
from thumbnet.cli import main
from thumbnet.errors import DataError, DataWarning, RunError, ThumbnetError
from thumbnet.publish import export as exporting
from thumbnet.recipes.recipe import load_recipe
from thumbnet.sources.load import load_data
from thumbnet.sources.python import load_python
from thumbnet.training import train as training
from thumbnet.training.listener import Listener

Y = np.arange(60) % 3
X = np.stack([coloured(int(label), seed) for seed, label in enumerate(Y)])
TINY = [
    "training.epochs=2",
    "model.name=resnet20",
    "model.width=0.5",
    "training.batch_size=16",
    "augment.flip=none",
]


class Pictures:
    """A data set in torchvision's style, with pictures in the given form."""

    classes = ("red", "green", "blue")

    def __init__(self, form: str) -> None:
        self.form = form

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture: Any = Image.fromarray(X[index])
        if self.form == "tensor":
            picture = torch.from_numpy(X[index]).permute(2, 0, 1).float() / 255
        if self.form == "array":
            picture = X[index]
        return picture, int(Y[index])


def forms() -> dict[str, Any]:
    return {
        "array": (X, Y),
        "list of labels": (X, Y.tolist()),
        "tensors": (torch.from_numpy(X).permute(0, 3, 1, 2), torch.from_numpy(Y)),
        "pil": ([Image.fromarray(one) for one in X], Y),
        "list of arrays": (list(X), Y),
        "dictionary": {"train": (X, Y)},
        "dataset of pil": Pictures("pil"),
        "dataset of tensors": Pictures("tensor"),
        "dataset of arrays": Pictures("array"),
    }


@pytest.mark.parametrize("name", list(forms()))
def test_every_form_gives_the_same_pictures_and_labels(name: str) -> None:
    data = load_data(forms()[name], test_fraction=0.0)
    train = data.splits["train"]
    assert train.labels.tolist() == Y.tolist()
    assert all((np.asarray(train.read(i)) == X[i]).all() for i in range(0, 60, 7))


def test_grey_arrays_and_floats_are_read_as_pictures() -> None:
    grey = load_data((X[..., 0], Y), test_fraction=0.0).splits["train"]
    assert (np.asarray(grey.read(5)) == X[5, :, :, :1]).all()
    assert len(load_data((X / 255.0, Y)).splits["test"]) == 12


def test_splits_can_be_given_as_nested_pairs_or_by_name() -> None:
    nested = load_data(((X, Y), (X[:12], Y[:12])))
    named = load_data({"train": (X, Y), "validation": (X[:9], Y[:9])})
    assert {name: len(split) for name, split in nested.splits.items()} == {"train": 60, "test": 12}
    assert {name: len(split) for name, split in named.splits.items()} == {"train": 60, "val": 9}


class Rows:
    """A data set as the library `datasets` gives it: rows are mappings, and there is a shape, but no dtype."""

    column_names = ("img", "breed")
    shape = (60, 2)

    def __init__(self, rows: int = 60) -> None:
        self.rows = rows
        self.features = {"img": None, "breed": SimpleNamespace(names=["red", "green", "blue"])}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: Any) -> Any:
        if index == "breed":
            return Y[: self.rows].tolist()
        return {"img": Image.fromarray(X[index]), "breed": int(Y[index])}


def test_data_sets_of_the_hubs_library_are_read_alone_and_by_split() -> None:
    data = load_data(Rows(), test_fraction=0.0)
    assert data.class_names == ("red", "green", "blue")
    assert data.splits["train"].labels.tolist() == Y.tolist()
    data = load_data({"train": Rows(), "validation": Rows(9)})
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 60, "val": 9}
    assert (np.asarray(data.splits["val"].read(4)) == X[4]).all()


def test_an_array_without_labels_is_not_a_data_set() -> None:
    for array in (X, torch.from_numpy(X)):
        with pytest.raises(DataError, match="an array alone has no labels"):
            load_data(array)


def test_files_are_read_from_lists_of_paths(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path, [""], per_class=4)
    paths = sorted(folder.rglob("*.png"))
    data = load_data((paths, [path.parent.name for path in paths]), test_fraction=0.0)
    assert data.class_names == ("blue", "green", "red")
    assert data.splits["train"].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_files_without_a_folder_in_common_keep_their_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_two_drives(paths: list[str]) -> str:
        raise ValueError("Paths don't have the same drive")

    paths = sorted(write_class_folders(tmp_path, [""], per_class=4).rglob("*.png"))
    monkeypatch.setattr("os.path.commonpath", on_two_drives)
    train = load_data((paths, [path.parent.name for path in paths]), test_fraction=0.0).splits["train"]
    assert [train.name(i) for i in range(len(train))] == list(map(str, paths))
    assert train.read(0).size == (16, 16)


def test_a_data_set_whose_pictures_change_causes_a_warning() -> None:
    class Changing(Pictures):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            return np.random.default_rng().integers(0, 256, (16, 16, 3), dtype=np.uint8), int(Y[index])

    assert any(note.startswith("warning: ") for note in load_data(Changing("")).notes)


def test_a_lack_of_memory_is_not_taken_for_a_data_set_that_fails() -> None:
    class Large(Pictures):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            raise MemoryError

    with pytest.raises(MemoryError):
        load_data(Large(""))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((X, Y[:5]), "60 pictures but 5 labels"),
        ((X,), "Expected"),
        (5, "Expected"),
        ((X[..., :2], Y), r"\[60, 16, 16, 2\]"),
        ((X, Y + 0.5), "fractions"),
        ((X, [None] * 60), "label 0 is None"),
        ({"test": (X, Y)}, "no split 'train'"),
        (([], []), "empty"),
        ((["nowhere.png"], ["a"]), "1 of 1 files do not exist"),
    ],
)
def test_errors_about_other_objects_say_what_was_expected(given: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_data(given)


def test_the_error_about_nan_names_the_picture(tmp_path: Path) -> None:
    broken = X / 255.0
    broken[7] = np.nan
    with pytest.raises(ThumbnetError, match=r"\[7\]"):
        training.train(
            (broken, Y),
            "one-cycle",
            overrides=[*TINY, "data.test_fraction=0"],
            out=tmp_path / "run",
            device="cpu",
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> thumbnet.Run:
    out = tmp_path_factory.mktemp("memory") / "run"
    return training.train((X, Y), "one-cycle", overrides=TINY, out=out, device="cpu")


def test_a_run_trained_on_arrays_can_be_evaluated_on_arrays(trained: thumbnet.Run) -> None:
    predictor = load_run(trained.path, "cpu")
    found = predictor.evaluate((X, Y))
    assert found.pictures == 60
    own = predictor.predict(list(X))
    assert found.accuracy == pytest.approx(
        np.mean([one.label == str(y) for one, y in zip(own, Y, strict=True)])
    )
    one_class = predictor.evaluate((X[Y == 1], Y[Y == 1]))
    assert one_class.pictures == 20


def test_names_are_the_networks_classes_in_either_unicode_form() -> None:
    words = [unicodedata.normalize("NFD", name) for name in ("thé", "café", "thé")]
    data = load_python((X[:3], words), ("café", "thé"))
    assert data.class_names == ("café", "thé")
    assert data.splits["train"].labels.tolist() == [1, 0, 1]


def test_a_run_trained_on_arrays_can_be_exported_and_is_checked_on_random_pixels(
    trained: thumbnet.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    out = tmp_path / "model.onnx"
    assert main(["export", str(trained.path), "--out", str(out)]) == 0
    assert "pictures of random pixels" in capsys.readouterr().out
    assert out.is_file()
    monkeypatch.setattr(exporting, "_onnx_model", lambda *_, **__: onnx.load(out))
    assert (
        main(["export", str(trained.path), "--format", "onnx-int8", "--out", str(tmp_path / "a.int8.onnx")])
        == 2
    )
    assert "--data DATA" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["evaluate"], ["report"]])
def test_commands_that_need_the_data_say_that_it_was_in_memory(
    command: list[str], trained: thumbnet.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, str(trained.path)]) == 2
    assert "in memory" in capsys.readouterr().err


def test_a_report_of_such_a_run_can_read_the_same_data_from_disk(
    trained: thumbnet.Run, tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    np.savez(tmp_path / "same.npz", x_train=X, y_train=Y, x_test=X[:12], y_test=Y[:12])
    page = tmp_path / "page.html"
    assert main(["report", str(trained.path), str(tmp_path / "same.npz"), "--out", str(page)]) == 0
    assert "accuracy" in page.read_text()


def test_such_a_run_resumes_only_with_its_own_data(trained: thumbnet.Run, tmp_path: Path) -> None:
    class Stop(Listener):
        def should_stop(self) -> bool:
            return True

    with pytest.raises(ThumbnetError, match="stopped"):
        training.train(
            (X, Y), "one-cycle", overrides=TINY, out=tmp_path / "run", device="cpu", listener=Stop()
        )
    with pytest.raises(RunError, match="in memory"):
        thumbnet.resume(tmp_path / "run", progress=False)
    with pytest.raises(RunError, match="have changed"):
        thumbnet.resume(tmp_path / "run", data=(X[::-1].copy(), Y), device="cpu", progress=False)
    resumed = thumbnet.resume(tmp_path / "run", data=(X, Y), device="cpu", progress=False)
    assert resumed.weights_path.read_bytes() == trained.weights_path.read_bytes()


def test_pictures_of_numbered_classes_are_flipped_only_if_they_are_in_colour(tmp_path: Path) -> None:
    settings = [*TINY[:-1], "training.epochs=1"]
    colour = training.train((X, Y), "one-cycle", overrides=settings, out=tmp_path / "a", device="cpu")
    grey = training.train((X[..., 0], Y), "one-cycle", overrides=settings, out=tmp_path / "b", device="cpu")
    assert colour.recipe.augment.flip == "random"
    assert grey.recipe.augment.flip == "none"


class Named:
    """A data set in torchvision's style: labels are positions in its own class names."""

    target_transform: Any = None

    def __init__(self, names: str, labels: list[Any]) -> None:
        self.class_to_idx = {name: number for number, name in enumerate(names)}
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        label = self.labels[index]
        return X[index], label if self.target_transform is None else self.target_transform(label)


class Around:
    """A data set around another one, such as one that transforms its pictures."""

    def __init__(self, dataset: Any, change: Callable[[Any], Any] = lambda label: label) -> None:
        self.dataset, self.change = dataset, change

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        item = self.dataset[index]
        picture, label = item.values() if isinstance(item, dict) else item
        return picture, self.change(label)


class Part(Around):
    """Some items of another data set, like PyTorch's Subset."""

    indices = (5, 4, 0, 1)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        picture, label = self.dataset[self.indices[index]]
        return picture, self.change(label)


class Twice(Around):
    """Each item of another data set twice."""

    def __len__(self) -> int:
        return 2 * len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        picture, label = self.dataset[index % len(self.dataset)]
        return picture, label


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        ("abc", [0, 1, 2], [0, 1, 2]),
        ("ac", [0, 1], [0, 2]),
        ("cab", [0, 1, 2], [2, 0, 1]),
        ("ac", ["c"], [2]),
    ],
)
def test_each_data_sets_labels_are_positions_in_its_own_class_names(
    names: str, labels: list[Any], expected: list[int]
) -> None:
    train = Named("abc", ["a", "b", "c"] if isinstance(labels[0], str) else [0, 1, 2])
    for given in ((train, Named(names, labels)), {"test": Named(names, labels), "train": train}):
        data = load_data(given)
        assert data.class_names == ("a", "b", "c")
        assert data.splits["train"].labels.tolist() == [0, 1, 2]
        assert data.splits["test"].labels.tolist() == expected


def test_data_sets_whose_classes_cannot_be_matched_are_refused() -> None:
    train = Named("abc", [0, 1, 2])
    with pytest.raises(DataError, match="test has classes that train lacks: d"):
        load_data((train, Named("ad", [0, 1])))
    with pytest.raises(DataError, match="test: the class names .* its labels are not positions in them"):
        load_data((train, Named("ac", [0, 2])))


def test_notes_tell_how_class_names_were_used() -> None:
    data = load_data((Named("abcd", [0, 1, 2]), (X[:3], Y[:3])))
    assert data.splits["test"].labels.tolist() == Y[:3].tolist()
    assert any("test: its labels are numbers without names, read as positions" in note for note in data.notes)
    assert "1 of the 4 classes have no training pictures: d" in data.notes


def turned(label: int) -> int:
    return 2 - label


def test_a_data_set_around_another_one_keeps_its_class_names_if_the_labels_are_the_same() -> None:
    named, same = Named("abc", [0, 1, 2] * 3), Named("abc", [0, 1, 2] * 3)
    same.target_transform = int
    plain = load_data(named, test_fraction=0.0)
    for given in (named, Around(named), Around(Around(named)), same):
        data = load_data(given, test_fraction=0.0)
        assert data.fingerprint() == plain.fingerprint()  # a run that was trained on it can be resumed
        assert not any("class names" in note for note in data.notes)
    unknown = Pictures("array")  # keeps no labels
    for given, labels in (
        (Part(named), [2, 1, 0, 1]),
        (Around(Part(named)), [2, 1, 0, 1]),
        (Part(Around(named)), [2, 1, 0, 1]),
        (Part(unknown), [2, 1, 0, 1]),
        (Around(named, "abc".__getitem__), [0, 1, 2] * 3),
        (Around(Rows(9)), [0, 1, 2] * 3),
    ):
        data = load_data(given, test_fraction=0.0)
        assert data.class_names in (("a", "b", "c"), ("red", "green", "blue"))
        assert data.splits["train"].labels.tolist() == labels
        assert not any("class names" in note for note in data.notes)


def test_class_names_of_labels_that_may_have_been_changed_are_not_used() -> None:
    named, changed = Named("abc", [0, 1, 2] * 3), Named("abc", [0, 1, 2] * 3)
    changed.target_transform = turned
    for given in (
        changed,
        Around(changed),
        Part(changed),
        Around(named, turned),
        Part(Around(named, turned)),
        Part(named, turned),
        Around(Rows(9), turned),
        Around(Pictures("array")),  # there is nothing to compare with
        Twice(named),
    ):
        data = load_data(given, test_fraction=0.0)
        assert data.class_names == ("0", "1", "2")
        assert any("the class names of its data set are not used" in note for note in data.notes)
    for pair in ((Around(named, turned), named), (changed, named)):
        assert load_data(pair).class_names == ("0", "1", "2")
    assert load_data((named, changed)).class_names == ("a", "b", "c")
    data = load_data({"train": Around(named, turned), "class_names": ["c", "b", "a"]}, test_fraction=0.0)
    assert data.class_names == ("c", "b", "a")
    assert not any("are not used" in note for note in data.notes)


def test_class_names_of_a_test_set_count_only_if_they_occur() -> None:
    data = load_data((Named("abc", [0, 1, 2]), Named("dacb", [1, 2, 3])))
    assert data.class_names == ("a", "b", "c")
    assert data.splits["test"].labels.tolist() == [0, 2, 1]


class Column(Sequence[Any]):
    """A column of a Dataset of the Hub."""

    def __init__(self, cells: list[Any]) -> None:
        self.cells = cells

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: Any) -> Any:
        return self.cells[index]


def test_two_columns_of_a_data_set_are_pictures_and_labels() -> None:
    pictures, labels = Column([Image.fromarray(one) for one in X]), Column(Y.tolist())
    train = load_data((pictures, labels), test_fraction=0.0).splits["train"]
    assert train.labels.tolist() == Y.tolist()
    assert (np.asarray(train.read(5)) == X[5]).all()


def test_a_frame_of_pixels_with_a_column_of_labels_is_read() -> None:
    pandas = pytest.importorskip("pandas")
    rows = X[:, :14, :14].reshape(60, -1)[:, : 14 * 14]
    data = load_data((pandas.DataFrame(rows), pandas.Series([f"c{label}" for label in Y])), test_fraction=0.0)
    assert data.class_names == ("c0", "c1", "c2")
    assert data.splits["train"].labels.tolist() == Y.tolist()
    assert (np.asarray(data.splits["train"].load(5)) == rows[5].reshape(14, 14)).all()


FORMS: dict[str, Any] = {
    "uint8": X,
    "int64": X.astype(np.int64),
    "floats of whole numbers": X.astype(np.float32),
    "floats from 0 to 1": X / 255,
    "bool": X > 127,
    "uint16": X.astype(np.uint16) * 257,
}


@pytest.mark.parametrize("form", list(FORMS))
def test_evaluate_and_predict_take_every_type_and_scale_that_can_be_trained_on(
    form: str, trained: thumbnet.Run
) -> None:
    predictor, images = load_run(trained.path, "cpu"), FORMS[form]
    assert load_data((images, Y)).splits
    own = [int(one.label) for one in predictor.predict(list(images), tta="none")]
    assert predictor.evaluate((images, Y), tta="none").accuracy == pytest.approx(np.mean(np.array(own) == Y))


@pytest.mark.parametrize(
    "images", [X * 16.5, X.astype(np.int64) * 16, X / 64 - 2], ids=["wide", "whole", "centred"]
)
def test_evaluate_refuses_values_that_predict_refuses(images: np.ndarray, trained: thumbnet.Run) -> None:
    predictor = load_run(trained.path, "cpu")
    for refused in (lambda: predictor.predict(list(images)), lambda: predictor.evaluate((images, Y))):
        with pytest.raises(DataError, match=r"values from .*: expected uint8 or other whole numbers"):
            refused()


def test_deep_pictures_that_are_all_dark_are_read_on_the_networks_scale(trained: thumbnet.Run) -> None:
    predictor = load_run(trained.path, "cpu")
    pre = replace(predictor.info.preprocessing, range=(0.0, 300.0))
    predictor.info = replace(predictor.info, preprocessing=pre)
    dark = (X // 2).astype(np.uint16)
    own = [int(one.label) for one in predictor.predict(list(dark), tta="none")]
    assert predictor.evaluate((dark, Y), tta="none").accuracy == pytest.approx(np.mean(np.array(own) == Y))
    loaded = load_python((dark, Y), predictor.class_names, limits=(0.0, 300.0)).splits["train"]
    assert np.asarray(loaded.load(3)).dtype == np.uint16
    with pytest.raises(DataError, match="where 0 is black and 300 white"):
        predictor.evaluate((X / 255, Y))
    for brighter in (X.astype(np.uint16) * 20, X.astype(np.uint16) * 257):  # a warning: they may be right
        with pytest.warns(DataWarning, match="where 0 is black and 300 white. Many of their pixels become"):
            predictor.evaluate((brighter, Y))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        predictor.evaluate((X.astype(np.uint16) // 100, Y))
        predictor.evaluate((X.astype(np.uint16) * 3, Y))


def test_splits_on_different_scales_give_a_warning() -> None:
    data = load_data(((X / 255, Y), (X + 0.25, Y)))
    found = prepare(data, load_recipe("small", ["training.min_steps=0"]), torch.device("cpu"))
    assert any(note.startswith("warning: the pictures of test have values from ") for note in found.notes)
    same = load_data(((X / 255, Y), (X / 255, Y)))
    found = prepare(same, load_recipe("small", ["training.min_steps=0"]), torch.device("cpu"))
    assert not any("the pictures of test have" in note for note in found.notes)
