from __future__ import annotations

import csv
import shutil
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from correction_helpers import HEADER, drop, labels_by_name, relabel, unsure
from helpers import coloured, coloured_data, coloured_labels, write_class_folders, write_picture
from thumbnet.data.calibration import with_calibration_split
from thumbnet.data.correct import apply_corrections
from thumbnet.data.corrections import (
    Correction,
    corrections_of,
)
from thumbnet.data.splits import ArraySplit, Data, FileSplit, Split
from thumbnet.errors import DataError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.load import load_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), ["train", "test"], per_class=4)


def test_pictures_are_relabelled_dropped_and_left_out(folder: Path, tmp_path: Path) -> None:
    before = load_data(folder)
    decided = [
        relabel("train/red/0.png", "blue", "red"),
        relabel("test/red/1.png", "green", "red", "test"),
        drop("train/green/2.png", "green"),
        drop("test/blue/2.png", "blue", "test"),
        unsure("train/blue/3.png", "blue"),
        unsure("test/blue/3.png", "blue", "test"),
        Correction("train/red/1.png", "train", "red", "red", "confirm"),
    ]
    after = apply_corrections(before, decided, tmp_path)
    expected = labels_by_name(before, "train")
    expected["train/red/0.png"] = "blue"
    del expected["train/green/2.png"], expected["train/blue/3.png"]
    assert labels_by_name(after, "train") == expected
    assert list(labels_by_name(after, "train")) == list(expected)  # in the same order
    expected = labels_by_name(before, "test")
    expected["test/red/1.png"] = "green"
    del expected["test/blue/2.png"]  # the unsure picture stays: without it, the accuracy would be too good
    assert labels_by_name(after, "test") == expected
    assert after.notes[-1] == (
        "corrected labels: 2 relabelled and 2 dropped, 2 of these in test or val; 1 unsure and left out of train; "
        "1 unsure but kept in test or val; 1 confirmed"
    )
    assert after.corrected is not None
    assert after.corrected.counts() == {
        "relabelled": 2, "dropped": 2, "unsure": 1, "unsure_kept": 1, "added": 0, "confirmed": 1, "held_out": 2,
        "missing": 0,
    }  # fmt: skip
    assert after.fingerprint() != before.fingerprint()
    assert labels_by_name(before, "train")["train/red/0.png"] == "red"  # the former data stay as they are


def test_confirmations_alone_change_nothing(folder: Path, tmp_path: Path) -> None:
    before = load_data(folder)
    after = apply_corrections(
        before, [Correction("train/red/1.png", "train", "red", "", "confirm")], tmp_path
    )
    assert after.fingerprint() == before.fingerprint()
    assert after.splits["test"] is before.splits["test"]
    assert load_data(folder, labels=[]).fingerprint() == before.fingerprint()


def test_a_name_in_two_splits_means_the_picture_of_the_corrections_split(tmp_path: Path) -> None:
    images = np.stack([coloured(0, seed) for seed in range(4)])
    splits: dict[str, Split] = {
        name: ArraySplit(images, np.array([0, 1, 0, 1]), "both") for name in ("train", "test")
    }
    data = Data("x", "x", ("a", "b"), splits)
    after = apply_corrections(data, [relabel("both[2]", "b", "a", "test")], tmp_path)
    assert after.splits["train"].labels.tolist() == [0, 1, 0, 1]
    assert after.splits["test"].labels.tolist() == [0, 1, 1, 1]
    # A val split that no longer exists was set aside from train.
    after = apply_corrections(data, [relabel("both[2]", "b", "a", "val")], tmp_path)
    assert after.splits["train"].labels.tolist() == [0, 1, 1, 1]
    assert after.splits["test"] is data.splits["test"]


@pytest.mark.parametrize("start", ["", "elsewhere/"])
def test_a_name_in_another_unicode_form_means_the_picture(start: str, tmp_path: Path) -> None:
    composed = ["caf\u00e9/0.png", "caf\u00e9/1.png", "th\u00e9/0.png"]
    names = [unicodedata.normalize("NFD", name) for name in composed]
    split = FileSplit(tmp_path / "elsewhere", names, np.array([0, 0, 1]))
    data = Data("x", "x", ("caf\u00e9", "th\u00e9"), {"train": split})
    after = apply_corrections(data, [relabel(start + composed[1], "th\u00e9", "caf\u00e9")], tmp_path)
    assert after.splits["train"].labels.tolist() == [0, 1, 1]


def test_the_picture_of_the_very_name_comes_before_one_in_another_unicode_form(tmp_path: Path) -> None:
    names = ["caf\u00e9.png", "cafe\u0301.png", "tea.png", "water.png"]
    data = Data("x", "x", ("a", "b"), {"train": FileSplit(tmp_path, names, np.array([0, 0, 0, 1]))})
    after = apply_corrections(data, [relabel(names[0], "b", "a")], tmp_path)
    assert after.splits["train"].labels.tolist() == [1, 0, 0, 1]


def test_a_picture_is_found_in_whichever_split_it_is_now(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", [""], per_class=10)
    reviewed = load_data(folder, val_fraction=0.2)
    names = {split: reviewed.splits[split].name(0) for split in ("val", "test", "train")}
    was = {split: labels_by_name(reviewed, split)[name] for split, name in names.items()}
    other = {"red": "green", "green": "blue", "blue": "red"}
    decided = [relabel(names[split], other[was[split]], was[split], split) for split in names]
    for changes in ({"val_fraction": 0.2}, {"test_fraction": 0.0}, {"split_seed": 5}):
        data = load_data(folder, labels=decided, **changes)
        found = {name: label for split in data.splits for name, label in labels_by_name(data, split).items()}
        assert [found[names[split]] for split in names] == [other[was[split]] for split in names]
        assert data.corrected is not None
        assert data.corrected.relabelled == 3


def test_two_rows_about_one_picture_from_different_splits_are_two_reviews(
    folder: Path, tmp_path: Path
) -> None:
    decided = [relabel("train/red/0.png", "blue", "red", "val"), relabel("train/red/0.png", "green", "blue")]
    data = apply_corrections(load_data(folder), decided, tmp_path)
    assert labels_by_name(data, "train")["train/red/0.png"] == "green"
    assert not any(note.startswith("warning") for note in data.notes)
    assert data.corrected is not None
    assert data.corrected.relabelled == 1


def test_the_held_out_pictures_stay_the_same_when_labels_change(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", [""], per_class=10)
    plain = load_data(folder, val_fraction=0.2)
    wrong = [name for name, label in labels_by_name(plain, "train").items() if label == "red"][:5]
    data = load_data(folder, val_fraction=0.2, labels=[relabel(name, "blue", "red") for name in wrong])
    for split in ("train", "val", "test"):
        assert list(labels_by_name(data, split)) == list(labels_by_name(plain, split))
    assert data.fingerprint("test") == plain.fingerprint("test")


def test_pictures_of_arrays_are_found_by_the_names_that_a_review_shows() -> None:
    reviewed = with_calibration_split(load_data("digits"), DataSettings())
    split = reviewed.splits["train"]
    index = 700
    given = reviewed.class_names[split.labels[index]]
    label = "3" if given != "3" else "8"
    pixels = split.content(index)
    data = with_calibration_split(
        load_data("digits", labels=[relabel(split.name(index), label, given)]), DataSettings()
    )
    changed = [
        (one.content(i), data.class_names[one.labels[i]])
        for name, one in data.splits.items()
        for i in range(len(one))
        if one.name(i) == split.name(index)
    ]
    assert changed == [(pixels, label)]


def test_pictures_that_are_gone_are_counted_in_a_warning(folder: Path, tmp_path: Path) -> None:
    gone = [drop(f"train/red/{number}.png", "red") for number in (77, 78)]
    data = apply_corrections(load_data(folder), [relabel("train/red/0.png", "blue", "red"), *gone], tmp_path)
    note = "warning: 2 correction(s) name pictures that the data do not have, such as train/red/77.png"
    assert note in data.notes
    assert data.corrected is not None
    assert data.corrected.missing == 2
    with pytest.raises(DataError, match=r"no correction names a picture of .* to other data"):
        apply_corrections(load_data(folder), gone, tmp_path)


def test_a_class_that_changed_since_the_review_is_told(folder: Path, tmp_path: Path) -> None:
    decided = [relabel("train/red/0.png", "blue", "green"), relabel("train/red/1.png", "red", "green")]
    data = apply_corrections(load_data(folder), decided, tmp_path)
    assert labels_by_name(data, "train")["train/red/0.png"] == "blue"
    told = [note for note in data.notes if "than when they were reviewed" in note]
    assert len(told) == 1
    assert "1 corrected picture(s)" in told[0]
    assert "train/red/0.png (red, and green when it was reviewed)" in told[0]


def test_an_unknown_class_is_an_error_with_near_names(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(HEADER + "train/red/0.png,gren,train,red,relabel\n")
    expected = (
        r"corrections, line 2: train/red/0.png gets the class 'gren'.*Did you mean 'green'\? The classes: "
    )
    with pytest.raises(DataError, match=expected):
        load_data(folder, labels=tmp_path / "labels.csv")
    many = Data("x", "x", tuple(f"class {n}" for n in range(50)), {"train": coloured_data().splits["train"]})
    with pytest.raises(DataError, match="The nearest of its 50 classes: class 7") as caught:
        apply_corrections(many, [relabel("train[0]", "clas 7", "class 0")], tmp_path)
    assert str(caught.value).count("class ") < 20


def test_a_class_without_pictures_is_no_longer_a_class(folder: Path, tmp_path: Path) -> None:
    before = load_data(folder)
    merged = [
        relabel(name, "blue", "red", split)
        for split in ("train", "test")
        for name, label in labels_by_name(before, split).items()
        if label == "red"
    ]
    after = apply_corrections(before, merged, tmp_path)
    assert after.class_names == ("blue", "green")
    assert "no picture is left of red: no longer a class" in after.notes
    for split in ("train", "test"):
        expected = {k: "blue" if v == "red" else v for k, v in labels_by_name(before, split).items()}
        assert labels_by_name(after, split) == expected
    with pytest.raises(DataError, match="no training picture of the class 'red', but 4 to measure on"):
        apply_corrections(before, merged[:4], tmp_path)


def test_a_split_without_pictures_and_a_single_class_are_errors(folder: Path, tmp_path: Path) -> None:
    data = load_data(folder)
    everything = [drop(name, "", "test") for name in labels_by_name(data, "test")]
    with pytest.raises(DataError, match="leave no picture in test"):
        apply_corrections(data, everything, tmp_path)
    one = [
        relabel(name, "blue", label, split)
        for split in ("train", "test")
        for name, label in labels_by_name(data, split).items()
    ]
    with pytest.raises(DataError, match="at least two classes"):
        load_data(folder, labels=one)


def test_groups_follow_their_pictures(tmp_path: Path) -> None:
    data = coloured_data(6)
    groups = {"train": np.array(["p", "p", "q", "q", "r", "r"])}
    path = write_picture(tmp_path / "new.png", coloured(0, 500))
    decided = [drop("train[2]", "blue"), Correction(str(path), "train", "", "red", "relabel")]
    after = apply_corrections(replace(data, groups=groups), decided, tmp_path)
    assert after.groups["train"].tolist() == ["p", "p", "q", "r", "r", f"\0{path}"]
    assert len(after.groups["train"]) == len(after.splits["train"])


def test_corrections_are_applied_once(folder: Path, tmp_path: Path) -> None:
    decided = [relabel("train/red/0.png", "blue", "red")]
    once = apply_corrections(load_data(folder), decided, tmp_path)
    assert apply_corrections(once, decided, tmp_path) is once
    with pytest.raises(DataError, match="corrected already"):
        apply_corrections(once, [drop("train/red/0.png", "red")], tmp_path)


def test_corrections_of_pictures_with_several_labels_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="colours has several labels per picture: corrections are for single"):
        apply_corrections(coloured_labels(12), [relabel("train[0]", "red", "blue")], tmp_path)


# --- pictures that the data lack --------------------------------------------------------------------------


@pytest.fixture
def reviewed(tmp_path: Path) -> Path:
    """A folder of unlabelled pictures with the labels.csv of their review."""
    new = tmp_path / "new"
    for number in range(5):
        write_picture(new / f"{number}.png", coloured(0, 700 + number))
    rows = ["0.png,red,train,,relabel", f"{new / '1.png'},green,test,,confirm", "2.png,,train,,drop",
            "3.png,,all,,unsure", "4.png,blue,,,relabel"]  # fmt: skip
    (new / "labels.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return new


def expected_additions(reviewed: Path) -> dict[str, str]:
    return {str(reviewed / f"{n}.png"): label for n, label in ((0, "red"), (1, "green"), (4, "blue"))}


@pytest.mark.parametrize("form", ["folder", "archive", "table", "arrays"])
def test_new_pictures_join_train_whatever_the_data_are(
    form: str, folder: Path, reviewed: Path, tmp_path: Path
) -> None:
    source: object = folder
    if form == "archive":
        source = tmp_path / "data.zip"
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as zipped:
            for path in sorted(folder.rglob("*.png")):
                zipped.write(path, path.relative_to(folder))
    elif form == "table":
        shutil.copytree(folder, tmp_path / "copy")
        source = tmp_path / "copy" / "all.csv"
        with source.open("w", newline="") as file:
            rows = [
                (path.relative_to(tmp_path / "copy"), path.parent.name, path.parent.parent.name)
                for path in sorted((tmp_path / "copy").rglob("*.png"))
            ]
            csv.writer(file).writerows([("path", "label", "split"), *rows])
    elif form == "arrays":
        arrays = {name: (one.images, one.labels) for name, one in coloured_data(12).splits.items()}  # type: ignore[attr-defined]
        source = {**arrays, "class_names": ["red", "green", "blue"]}
    before = load_data(source, data_dir=tmp_path / "cache")
    after = load_data(source, data_dir=tmp_path / "cache", labels=reviewed / "labels.csv")
    added = expected_additions(reviewed)
    assert labels_by_name(after, "train") == labels_by_name(before, "train") | added
    assert list(labels_by_name(after, "train"))[-3:] == list(added)
    assert labels_by_name(after, "test") == labels_by_name(before, "test")
    train = after.splits["train"]
    assert np.array_equal(np.asarray(train.read(len(train) - 1)), coloured(0, 704))
    assert "corrected labels: 3 added to train" in after.notes
    assert after.corrected is not None
    assert after.corrected.missing == 0


def test_the_copy_of_the_corrections_gives_the_same_data_in_any_folder(
    folder: Path, reviewed: Path, tmp_path: Path
) -> None:
    after = load_data(folder, labels=reviewed)  # the folder of a labels.csv will do
    assert after.corrected is not None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "corrections.csv").write_bytes(after.corrected.content)
    again = load_data(folder, labels=tmp_path / "run" / "corrections.csv")
    assert again.fingerprint() == after.fingerprint()
    assert again.corrected == after.corrected


def test_a_new_picture_can_be_corrected_by_a_later_review(
    folder: Path, reviewed: Path, tmp_path: Path
) -> None:
    first = corrections_of(reviewed)
    names = [str(reviewed / f"{number}.png") for number in (0, 1)]
    later = [*first, relabel(names[0], "blue", "red"), drop(names[1], "green")]
    data = load_data(folder, labels=later)
    found = labels_by_name(data, "train")
    assert found[names[0]] == "blue"
    assert names[1] not in found
    # Even if the earlier row is lost, the absolute path names the picture.
    data = load_data(folder, labels=[relabel(names[0], "blue", "red")])
    assert labels_by_name(data, "train")[names[0]] == "blue"


def test_a_file_that_the_data_have_is_relabelled_and_not_added_again(folder: Path) -> None:
    split = load_data(folder).splits["train"]
    assert isinstance(split, FileSplit)
    path = folder / "train" / "red" / "0.png"
    for decided in (
        [Correction(str(path), "train", "", "blue", "relabel")],
        [relabel(str(path), "blue", "red")],
    ):
        data = load_data(folder, labels=decided)
        assert len(data.splits["train"]) == len(split)
        assert labels_by_name(data, "train")["train/red/0.png"] == "blue"


def test_a_new_picture_named_like_one_of_the_data_is_another_picture(folder: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "train" / "red" / "0.png", coloured(1, 900))
    (tmp_path / "labels.csv").write_text(HEADER + "train/red/0.png,green,train,,relabel\n")
    data = load_data(folder, labels=tmp_path / "labels.csv")
    found = labels_by_name(data, "train")
    assert found["train/red/0.png"] == "red"
    assert found[str(tmp_path / "train" / "red" / "0.png")] == "green"


def test_a_new_picture_of_a_group_in_test_is_a_warning(tmp_path: Path) -> None:
    for person in range(8):
        for number in range(3):
            name = ("red", "green")[person % 2]
            write_picture(tmp_path / "data" / name / f"p{person}-{number}.png", coloured(person % 2, person))
    by_person: dict[str, Any] = {"group_by": "(p[0-9]+)-"}
    tested = str(load_data(tmp_path / "data", **by_person).groups["test"][0])
    new = [
        Correction(
            str(write_picture(tmp_path / "new" / f"{person}-9.png", coloured(0, 3))),
            "train",
            "",
            "red",
            "relabel",
        )
        for person in (tested, "p77")
    ]
    data = load_data(tmp_path / "data", labels=new, **by_person)
    assert data.groups["train"].tolist()[-2:] == [tested, "p77"]
    assert any(
        f"1 group(s) have pictures in more than one of test and train, such as {tested}" in note
        for note in data.notes
    )


# --- pictures that the data name from another folder ------------------------------------------------------


def table_of(root: Path, *folders: str) -> Path:
    """``root/all.csv``, whose rows name the pictures in ``root/FOLDER/CLASS/`` from ``root``."""
    table = root / "all.csv"
    with table.open("w", newline="") as file:
        rows = [
            (path.relative_to(root), path.parent.name, "test" if path.stem == "3" else "train")
            for folder in folders
            for path in sorted((root / folder).rglob("*.png"))
        ]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return table


def test_corrections_of_a_folder_hold_for_a_table_of_its_pictures(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", [""], per_class=4)
    table = table_of(tmp_path, "pictures")
    older = [
        relabel("red/0.png", "blue", "red"),
        relabel("red/3.png", "green", "red"),  # it was in train then
        drop("green/1.png", "green"),
    ]
    newer = [relabel("pictures/red/0.png", "green", "blue"), relabel("pictures/red/1.png", "blue", "red")]
    data = load_data(table, labels=[*older, *newer])
    found = labels_by_name(data, "train")
    assert found["pictures/red/0.png"] == "green"  # the later one counts
    assert found["pictures/red/1.png"] == "blue"
    assert "pictures/green/1.png" not in found
    assert labels_by_name(data, "test")["pictures/red/3.png"] == "green"
    assert data.corrected is not None
    assert data.corrected.missing == 0
    assert not any(note.startswith("warning") for note in data.notes)
    told = next(note for note in data.notes if "from another folder than the data do" in note)
    assert told.startswith("3 correction(s), such as that of red/0.png,")
    assert told.endswith(str(tmp_path / "pictures"))


@pytest.mark.parametrize("name", ["pictures/red/0.png", "../pictures/red/0.png"])
def test_corrections_of_a_table_hold_for_the_folder_of_its_pictures(name: str, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=4)
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    for folder in (root, tmp_path / "link"):
        data = load_data(folder, test_fraction=0.0, labels=[relabel(name, "blue", "red")])
        assert labels_by_name(data, "train")["red/0.png"] == "blue"


def test_a_correction_that_fits_pictures_in_several_folders(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "a", [""], per_class=4)
    write_class_folders(tmp_path / "b", [""], per_class=4)
    table = table_of(tmp_path, "a", "b")
    decided = [relabel("red/0.png", "blue", "red"), relabel("red/1.png", "blue", "red")]
    with pytest.raises(DataError, match=r"of red/0\.png fits pictures in several folders, .*/a and .*/b"):
        load_data(table, labels=decided)
    (tmp_path / "b" / "red" / "1.png").unlink()  # so the corrections can only be those of a
    found = labels_by_name(load_data(table_of(tmp_path, "a", "b"), labels=decided), "train")
    assert (found["a/red/0.png"], found["a/red/1.png"], found["b/red/0.png"]) == ("blue", "blue", "red")


def test_a_picture_of_another_class_is_not_taken_for_the_one_of_a_correction(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", [""], per_class=4)
    table = table_of(tmp_path, "pictures")
    for odd in (
        relabel("red/0.png", "blue", "green"),
        relabel("ed/0.png", "blue", "red"),
        Correction("red/0.png", "train", "", "blue", "relabel"),  # a new file that is gone
    ):
        with pytest.raises(DataError, match="to other data"):
            load_data(table, labels=[odd])


# --- pictures of a test split that folds replace ----------------------------------------------------------


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("was", ["red", ""])
def test_with_folds_no_picture_of_the_unused_test_split_joins_train(
    absolute: bool, was: str, folder: Path
) -> None:
    name = str(folder / "test" / "red" / "1.png") if absolute else "test/red/1.png"
    used = relabel("train/red/0.png", "blue", "red")
    decided = [
        used,
        Correction(name, "test", was, "green", "relabel"),
        drop("test/blue/2.png", "blue", "test"),
    ]
    for fold in (1, 2):
        plain, data = (load_data(folder, labels=labels, folds=2, fold=fold) for labels in ([used], decided))
        assert data.fingerprint() == plain.fingerprint()
        assert (
            f"2 correction(s) are about pictures of the test split, which is not used, such as {name}"
            in data.notes
        )
        assert not any("warning" in note for note in data.notes)
        assert data.corrected is not None
        assert (data.corrected.added, data.corrected.missing, data.corrected.relabelled) == (0, 0, 1)
        loaded = load_data(folder, folds=2, fold=fold)
        assert apply_corrections(loaded, decided, folder).fingerprint() == plain.fingerprint()


def test_with_folds_corrections_of_the_unused_test_split_alone_change_nothing(tmp_path: Path) -> None:
    pictures = write_class_folders(tmp_path / "pictures", [""], per_class=4)
    table = tmp_path / "all.csv"
    with table.open("w", newline="") as file:
        rows = [
            (path, path.parent.name, "test" if path.stem == "3" else "train")
            for path in pictures.rglob("*.png")
        ]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    plain = load_data(table, folds=2, fold=1)
    for name in (str(pictures / "red" / "3.png"), "red/3.png"):  # by its path, and by the end of its path
        data = load_data(table, folds=2, fold=1, labels=[relabel(name, "blue", "red", "test")])
        assert data.fingerprint() == plain.fingerprint()
    assert load_data(table, labels=[relabel(name, "blue", "red", "test")]).fingerprint("test") != (
        load_data(table).fingerprint("test")
    )


def test_a_file_in_train_and_in_the_unused_test_split_is_corrected_in_train(
    folder: Path, tmp_path: Path
) -> None:
    before = load_data(folder)
    twice = replace(before, unused_test=before.splits["train"])
    name = str(folder / "train" / "red" / "0.png")
    data = apply_corrections(twice, [relabel(name, "blue", "red")], tmp_path)
    assert labels_by_name(data, "train")["train/red/0.png"] == "blue"
    assert not any("not used" in note for note in data.notes)
