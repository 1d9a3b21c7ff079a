from __future__ import annotations

import os
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers import noise, write_class_folders, write_picture
from thumbnet.data.splits import Data
from thumbnet.errors import DataError
from thumbnet.sources import index
from thumbnet.sources.folders import label_from_name
from thumbnet.sources.load import load_data


def test_train_and_test_folders_of_classes(tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path, ["train", "test"]))
    assert data.layout == "train/CLASS/* + test/CLASS/*"
    assert data.class_names == ("blue", "green", "red")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "test": 18}
    assert data.splits["train"].name(0) == "train/blue/0.png"


@pytest.mark.parametrize("alias", ["val", "valid", "validation"])
def test_val_has_several_names_and_needs_no_test(alias: str, tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path, ["train", alias]))
    assert set(data.splits) == {"train", "val"}


def test_bare_class_folders_are_split_stratified_and_always_alike(tmp_path: Path) -> None:
    write_class_folders(tmp_path, [""], per_class=10)
    data = load_data(tmp_path)
    assert data.layout == "CLASS/*"
    assert np.bincount(data.splits["test"].labels).tolist() == [2, 2, 2]
    assert np.bincount(data.splits["train"].labels).tolist() == [8, 8, 8]
    assert names(data, "test") == names(load_data(tmp_path), "test")
    assert names(data, "test") != names(load_data(tmp_path, split_seed=1), "test")
    assert not set(names(data, "test")) & set(names(data, "train"))
    assert any("set aside" in note for note in data.notes)


def test_a_new_picture_does_not_move_the_others_between_splits(tmp_path: Path) -> None:
    write_class_folders(tmp_path, [""], per_class=10)
    before = set(names(load_data(tmp_path), "test"))
    write_picture(tmp_path / "red" / "new.png", noise(99))
    after = set(names(load_data(tmp_path), "test"))
    assert len(before & after) >= len(before) - 1


def test_val_can_be_set_aside(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"], per_class=10)
    data = load_data(tmp_path, val_fraction=0.2)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "test": 30, "val": 6}
    write_class_folders(tmp_path, ["val"])
    with pytest.raises(DataError, match="val split of its own"):
        load_data(tmp_path, val_fraction=0.2)


def write_tutorial(root: Path, suffix: str = "png") -> Path:
    for split, count in (("train", 9), ("test", 3)):
        for number in range(count):
            name = ("frog", "cat", "traffic_light")[number % 3]
            write_picture(root / split / f"{number}_{name}.{suffix}", noise(number))
    (root / "labels.txt").write_text("traffic_light\nfrog\ncat\n")
    return root


def test_the_tutorials_layout(tmp_path: Path) -> None:
    data = load_data(write_tutorial(tmp_path))
    assert "tutorial" in data.layout
    assert data.class_names == ("traffic_light", "frog", "cat")
    assert data.splits["train"].labels.tolist() == [1, 2, 0] * 3
    assert data.splits["train"].name(4) == "train/4_cat.png"


def test_the_tutorials_layout_with_another_suffix_or_without_labels_file(tmp_path: Path) -> None:
    (write_tutorial(tmp_path, "jpeg") / "labels.txt").unlink()
    data = load_data(tmp_path)
    assert data.class_names == ("cat", "frog", "traffic_light")
    assert any("labels.txt" in note for note in data.notes)


def test_labels_come_from_file_names() -> None:
    assert label_from_name("0_frog.png") == "frog"
    assert label_from_name("12_frog.jpeg") == "frog"
    assert label_from_name("3_polar_bear.v2.png") == "polar_bear.v2"
    for bad in ("frog.png", "_frog.png", "1_frog", "a_frog.png"):
        with pytest.raises(DataError, match="NUMBER_CLASS"):
            label_from_name(bad)


def test_a_class_that_labels_txt_lacks_is_named(tmp_path: Path) -> None:
    write_tutorial(tmp_path)
    (tmp_path / "labels.txt").write_text("frog\ncat\n")
    with pytest.raises(DataError, match="traffic_light"):
        load_data(tmp_path)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
def test_archives_of_a_folder_give_the_folders_pictures(kind: str, tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "pictures", ["train", "test"], per_class=2)
    archive = tmp_path / f"pictures.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in sorted(folder.rglob("*.png")):
                zipped.write(path, path.relative_to(tmp_path))  # wrapped in one more folder
    else:
        with tarfile.open(archive, f"w:{kind.partition('.')[2]}") as tar:  # type: ignore[call-overload]
            tar.add(folder, ".")
    data = load_data(archive, data_dir=tmp_path / "cache")
    plain = load_data(folder)
    assert data.class_names == plain.class_names
    for split in ("train", "test"):
        assert names(data, split) == names(plain, split)
        for number in range(6):
            assert data.splits[split].content(number) == plain.splits[split].content(number)
    # Unpacked once, found again.
    before = list((tmp_path / "cache").rglob("*.png"))
    load_data(archive, data_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.png")) == before


def test_files_that_are_no_pictures_are_passed_over_and_reported(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    (tmp_path / "train" / "red" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "red" / ".DS_Store").write_bytes(b"x")
    data = load_data(tmp_path)
    assert len(data.splits["train"]) == 18
    assert any("1 file(s) passed over" in note and "Thumbs.db" in note for note in data.notes)


def test_wrong_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set, folder or archive"):
        load_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Did you mean 'cifar10'"):
        load_data("cifar-10")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Expected one of"):
        load_data(tmp_path / "empty")
    write_class_folders(tmp_path / "only", ["test"])
    with pytest.raises(DataError, match="no train/"):
        load_data(tmp_path / "only")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(DataError, match="is a text file"):
        load_data(tmp_path / "file.txt")


def test_a_test_class_missing_in_train_is_named(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    write_picture(tmp_path / "test" / "purple" / "0.png", noise(0))
    with pytest.raises(DataError, match="purple"):
        load_data(tmp_path)


def test_an_empty_class_and_a_single_class_are_refused(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    (tmp_path / "train" / "purple").mkdir()
    with pytest.raises(DataError, match="purple"):
        load_data(tmp_path)
    write_picture(tmp_path / "one" / "train" / "cat" / "0.png", noise(0))
    write_picture(tmp_path / "one" / "test" / "cat" / "0.png", noise(1))
    with pytest.raises(DataError, match="two classes or more"):
        load_data(tmp_path / "one")


def test_class_names_may_be_in_any_script(tmp_path: Path) -> None:
    for name in ("猫", "狗", "grüne äpfel"):
        for number in range(3):
            write_picture(tmp_path / name / f"{number} – é.png", noise(number))
    data = load_data(tmp_path)
    assert set(data.class_names) == {"猫", "狗", "grüne äpfel"}
    data.splits["train"].read(0)


def names(data: Data, split: str) -> list[str]:
    chosen = data.splits[split]
    return [chosen.name(index) for index in range(len(chosen))]


# --- properties ------------------------------------------------------------------------------------------

# Any character that a file's name may have, but for control characters; not hidden, no folder of CIFAR's.
_NAMES = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=12
).filter(lambda name: not name.startswith((".", "__")) and name.isprintable())


@given(number=st.integers(0, 10**12), label=_NAMES, suffix=st.sampled_from(["png", "jpeg", "JPG"]))
def test_a_name_of_the_tutorials_form_gives_its_label(number: int, label: str, suffix: str) -> None:
    assert label_from_name(f"{number}_{label}.{suffix}") == label


@given(st.text(max_size=30))
def test_any_name_gives_a_label_or_a_clear_error(name: str) -> None:
    try:
        label = label_from_name(name)
    except DataError as error:
        assert "NUMBER_CLASS" in str(error)  # noqa: PT017
    else:
        assert label
        assert name.split("_", 1)[1].startswith(label)


@settings(max_examples=40)
@given(
    counts=st.dictionaries(_NAMES, st.tuples(st.integers(2, 4), st.integers(0, 3)), min_size=2, max_size=5),
    layout=st.sampled_from(["class folders", "bare"]),
)
def test_whatever_the_classes_are_called_each_picture_has_its_folders_label(
    counts: dict[str, tuple[int, int]], layout: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("any")
    reserved = {"train", "training", "val", "valid", "validation", "test", "testing"}
    counts = {name: pair for name, pair in counts.items() if name not in reserved}
    assume(len(counts) >= 2)
    for name, (train, test) in counts.items():
        for number in range(train):
            folder = root / "train" / name if layout == "class folders" else root / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").touch()
        for number in range(test if layout == "class folders" else 0):
            (root / "test" / name).mkdir(parents=True, exist_ok=True)
            (root / "test" / name / f"{number}.png").touch()
    data = load_data(root)
    assert data.class_names == tuple(sorted(counts))
    seen: dict[str, int] = dict.fromkeys(counts, 0)
    for split in data.splits.values():
        for number in range(len(split)):
            label = data.class_names[split.labels[number]]
            assert Path(split.name(number)).parent.name == label
            seen[label] += 1
    whole = {
        name: train + (test if layout == "class folders" else 0) for name, (train, test) in counts.items()
    }
    assert seen == whole


# --- the index -------------------------------------------------------------------------------------------


def aged(root: Path) -> Path:
    """Folders changed a minute ago: too recent a time is not relied on."""
    past = time.time() - 60
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        os.utime(folder, (past, past))
    return root


def test_the_index_is_kept_and_follows_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WORTH_KEEPING", 1)
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    scanned: list[str] = []
    original = index._scan

    def scan(path: str) -> tuple[list[str], list[str], list[str]]:
        scanned.append(os.path.relpath(path, root))
        return original(path)

    monkeypatch.setattr(index, "_scan", scan)
    root = aged(write_class_folders(tmp_path / "data", ["train", "test"], per_class=3))

    def load() -> tuple[list[str], list[str]]:
        scanned.clear()
        return names(load_data(root), "train"), sorted(scanned)

    first, listed = load()
    assert len(listed) == 6
    assert load() == (first, [])
    (root / "train" / "red" / "0.png").unlink()
    assert load() == ([name for name in first if name != "train/red/0.png"], ["train/red"])
    write_picture(root / "train" / "red" / "0.png", noise(0))
    assert load() == (first, ["train/red"])
    assert load() == (first, ["train/red"])  # changed a moment ago: not relied on
    aged(root)
    assert load()[1] != []
    assert load() == (first, [])
    (root / "train" / "blue").rename(root / "train" / "violet")
    (root / "test" / "blue").rename(root / "test" / "violet")
    assert load()[0] == sorted(name.replace("blue", "violet") for name in first)
    before = load_data(root).fingerprint()
    write_picture(
        root / "train" / "red" / "1.png", noise(5, 20, 20)
    )  # the same name: the folder does not change
    assert load_data(root).fingerprint() != before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 1, "folders": {"train/red": 7}}', b"\xff"]
)
def test_a_damaged_index_is_made_anew(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "WORTH_KEEPING", 1)
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    root = aged(write_class_folders(tmp_path / "data", ["train", "test"], per_class=3))
    expected = names(load_data(root), "train")
    (kept,) = (tmp_path / "cache" / "index").iterdir()
    kept.write_bytes(content)
    assert names(load_data(root), "train") == expected
