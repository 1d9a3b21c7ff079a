from __future__ import annotations

import os
import tarfile
import time
import unicodedata
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers import noise, write_class_folders, write_picture
from sources.trees import watch_listing
from thumbnet.data.held_out import NOTHING_SET_ASIDE
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, RecipeError
from thumbnet.sources import index
from thumbnet.sources.folders import label_from_name
from thumbnet.sources.load import load_data
from thumbnet.sources.split_names import split_name


def test_train_and_test_folders_of_classes(tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path, ["train", "test"]))
    assert data.layout == "train/CLASS/* + test/CLASS/*"
    assert data.class_names == ("blue", "green", "red")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "test": 18}
    assert data.splits["train"].name(0) == "train/blue/0.png"


@pytest.mark.parametrize("alias", ["val", "valid", "validation"])
def test_val_has_several_names_and_does_not_need_test(alias: str, tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path, ["train", alias]))
    assert set(data.splits) == {"train", "val"}


def test_bare_class_folders_are_split_by_class_and_always_in_the_same_way(tmp_path: Path) -> None:
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
    with pytest.raises(DataError, match="already has a val split"):
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


def test_file_names_give_labels() -> None:
    assert label_from_name("0_frog.png") == "frog"
    assert label_from_name("12_frog.jpeg") == "frog"
    assert label_from_name("3_polar_bear.v2.png") == "polar_bear.v2"
    for bad in ("frog.png", "_frog.png", "1_frog", "a_frog.png"):
        with pytest.raises(DataError, match="NUMBER_CLASS"):
            label_from_name(bad)


def test_the_error_names_a_class_that_labels_txt_lacks(tmp_path: Path) -> None:
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
                zipped.write(path, path.relative_to(tmp_path))  # wrapped in another folder
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
    # The second time, the unpacked files are used again.
    before = list((tmp_path / "cache").rglob("*.png"))
    load_data(archive, data_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.png")) == before


def test_files_that_are_not_pictures_are_skipped_with_a_note(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    (tmp_path / "train" / "red" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "red" / ".DS_Store").write_bytes(b"x")
    data = load_data(tmp_path)
    assert len(data.splits["train"]) == 18
    assert any("skipped 1 file(s)" in note and "Thumbs.db" in note for note in data.notes)


def test_wrong_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set, folder or archive"):
        load_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Did you mean 'cifar10'"):
        load_data("cifra-10")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Expected one of"):
        load_data(tmp_path / "empty")
    write_class_folders(tmp_path / "only", ["test"])
    with pytest.raises(DataError, match="no train/"):
        load_data(tmp_path / "only")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(DataError, match="is a text file"):
        load_data(tmp_path / "file.txt")


def test_the_error_names_a_test_class_that_train_lacks(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    write_picture(tmp_path / "test" / "purple" / "0.png", noise(0))
    with pytest.raises(DataError, match="purple"):
        load_data(tmp_path)


def test_an_empty_class_is_left_out_and_a_single_class_is_refused(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    (tmp_path / "train" / "purple").mkdir()
    data = load_data(tmp_path)
    assert data.class_names == ("blue", "green", "red")
    assert any("purple" in note for note in data.notes)
    write_picture(tmp_path / "one" / "train" / "cat" / "0.png", noise(0))
    write_picture(tmp_path / "one" / "test" / "cat" / "0.png", noise(1))
    with pytest.raises(DataError, match="at least two classes"):
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

# Any characters that a file name can have, except control characters. No hidden names and no names of splits.
_NAMES = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=12
).filter(lambda name: not name.startswith(".") and name.isprintable() and split_name(name) is None)


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
def test_each_picture_has_the_label_of_its_folder_whatever_the_class_names(
    counts: dict[str, tuple[int, int]], layout: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("any")
    counts = {unicodedata.normalize("NFC", name): pair for name, pair in counts.items()}
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


def a_minute_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the index read its clock a minute ahead: it does not trust a folder that changed a moment ago."""
    clock = SimpleNamespace(time_ns=lambda: time.time_ns() + 60 * 10**9)
    monkeypatch.setattr(index, "time", clock)


def test_the_index_is_saved_and_follows_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_class_folders(tmp_path / "data", ["train", "test"], per_class=3)
    scanned = watch_listing(monkeypatch, root, tmp_path / "cache")
    a_minute_later(monkeypatch)

    def load() -> tuple[list[str], list[str]]:
        scanned.clear()
        return names(load_data(root), "train"), sorted(scanned)

    first, listed = load()
    assert len(listed) == 9
    assert load() == (first, [])
    (root / "train" / "red" / "0.png").unlink()
    assert load() == ([name for name in first if name != "train/red/0.png"], ["train/red"])
    monkeypatch.setattr(index, "time", time)
    write_picture(root / "train" / "red" / "0.png", noise(0))
    assert load() == (first, ["train/red"])
    assert load() == (first, ["train/red"])  # changed a moment ago: not trusted
    a_minute_later(monkeypatch)
    assert load() == (first, ["train/red"])
    assert load() == (first, [])
    (root / "train" / "blue").rename(root / "train" / "violet")
    (root / "test" / "blue").rename(root / "test" / "violet")
    assert load()[0] == sorted(name.replace("blue", "violet") for name in first)
    before = load_data(root).fingerprint()
    # Replacing a file in place does not change its folder.
    write_picture(root / "train" / "red" / "1.png", noise(5, 20, 20))
    assert load_data(root).fingerprint() != before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 1, "folders": {"train/red": 7}}', b"\xff"]
)
def test_a_damaged_index_is_rebuilt(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WORTH_KEEPING", 1)
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    root = write_class_folders(tmp_path / "data", ["train", "test"], per_class=3)
    a_minute_later(monkeypatch)
    expected = names(load_data(root), "train")
    (kept,) = (tmp_path / "cache" / "index").iterdir()
    kept.write_bytes(content)
    assert names(load_data(root), "train") == expected


# --- layouts on disk and in archives (test_layout.py tests the decisions) ----------------------------------


def packed(folder: Path, kind: str) -> Path:
    archive = folder.parent / f"{folder.name}.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in sorted(folder.rglob("*")):
                zipped.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, folder.name)
    return archive


INTEL = {"seg_train/seg_train": 3, "seg_test/seg_test": 2}
TUMOR = {"Training": 4, "Testing": 2}
TOOLS = {"train": 3, "test": 2, "train/red/.ipynb_checkpoints": 1, "__MACOSX/train": 2, "test/@eaDir": 1}


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("splits", [INTEL, TUMOR, TOOLS], ids=["intel", "tumor", "tools"])
def test_an_archive_is_read_like_its_folder(splits: dict[str, int], kind: str, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for split, count in splits.items():
        for label, name in enumerate(("blue", "red")):
            for number in range(count):
                write_picture(root / split / name / f"{number}.png", noise(100 * label + number))
    write_picture(root / "seg_pred" / "0.png", noise(7))
    plain, archived = load_data(root), load_data(packed(root, kind), data_dir=tmp_path / "cache")
    first, second = list(splits.values())[:2]
    for data in (plain, archived):
        assert data.class_names == ("blue", "red")
        assert {name: len(split) for name, split in data.splits.items()} == {
            "train": 2 * first,
            "test": 2 * second,
        }
        assert any("seg_pred/ (1 picture)" in note for note in data.notes)
        data.splits["test"].read(0)
    assert names(plain, "train") == names(archived, "train")
    assert plain.fingerprint() == archived.fingerprint()
    assert plain.notes == archived.notes


def test_an_archive_of_just_a_test_folder_is_read_as_class_folders(tmp_path: Path) -> None:
    archive = packed(write_class_folders(tmp_path / "test", [""], per_class=10), "zip")
    data = load_data(archive, data_dir=tmp_path / "cache")
    assert data.layout == "CLASS/*"
    assert data.class_names == ("blue", "green", "red")


def test_the_user_can_say_that_train_and_test_are_classes_in_folders_and_archives(tmp_path: Path) -> None:
    root = tmp_path / "trains"
    for name in ("train", "test"):
        for number in range(5):
            write_picture(root / name / f"{number}.png", noise(number))
    for source in (root, packed(root, "zip")):
        with pytest.raises(DataError, match="no labels were recognised"):
            load_data(source, data_dir=tmp_path / "cache")
        data = load_data(source, data_dir=tmp_path / "cache", classes_from="here")
        assert data.class_names == ("test", "train")


def test_a_test_fraction_of_0_trains_on_everything_with_a_note(tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path, [""], per_class=4), test_fraction=0)
    assert set(data.splits) == {"train"}
    assert len(data.splits["train"]) == 12
    assert data.notes == (NOTHING_SET_ASIDE,)
    with pytest.raises(RecipeError, match="test_fraction"):
        load_data(tmp_path, test_fraction=1)


def test_a_note_says_how_to_classify_unlabelled_pictures_in_an_archive(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", ["train"], per_class=10)
    for number in range(5):
        write_picture(root / "test" / f"{number}.png", noise(number))
    plain, archived = load_data(root), load_data(packed(root, "zip"), data_dir=tmp_path / "cache")
    for data in (plain, archived):
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "test": 6}
        assert data.set_aside == ("test",)
    assert f"thumbnet predict RUN {root / 'test'}" in plain.notes[0]
    assert "unpack the archive, then " in archived.notes[0]
    assert "thumbnet predict RUN test" in archived.notes[0]


def test_pictures_with_the_class_in_their_name_are_read(tmp_path: Path) -> None:
    for number in range(6):
        write_picture(tmp_path / "train" / f"{('cat', 'dog')[number % 2]}.{number}.jpg", noise(number))
        write_picture(tmp_path / "test" / f"{number}.jpg", noise(number))
    data = load_data(tmp_path)
    assert data.layout == "train/CLASS.NUMBER.*"
    assert data.class_names == ("cat", "dog")
    assert data.splits["train"].name(0) == "train/cat.0.jpg"
    assert len(data.splits["train"]) + len(data.splits["test"]) == 6


def test_settings_choose_the_classes_and_keep_groups_of_pictures_together(tmp_path: Path) -> None:
    for alphabet in ("Greek", "Latin"):
        for character in range(2):
            for number in range(10):
                name = f"writer{number // 2}_{number}.png"
                write_picture(tmp_path / alphabet / f"character{character}" / name, noise(number))
    data = load_data(tmp_path, classes_from="2", group_by=r"(writer\d)_")
    assert data.class_names == (
        "Greek/character0",
        "Greek/character1",
        "Latin/character0",
        "Latin/character1",
    )
    writers = {split: {name.rpartition("/")[2][:7] for name in names(data, split)} for split in data.splits}
    assert len(writers["test"]) == 1
    assert not writers["train"] & writers["test"]


def test_links_to_class_folders_are_followed_but_circular_links_are_refused(tmp_path: Path) -> None:
    store = write_class_folders(tmp_path / "store", [""], per_class=5)
    root = tmp_path / "data"
    root.mkdir()
    for name in ("red", "green"):
        (root / name).symlink_to(store / name, target_is_directory=True)
    assert load_data(root).class_names == ("green", "red")
    for first, second in (("a", "b"), ("b", "a")):
        (tmp_path / "mutual" / first).mkdir(parents=True)
        (tmp_path / "mutual" / first / "x").symlink_to(tmp_path / "mutual" / second, target_is_directory=True)
    with pytest.raises(DataError, match="link to a folder that contains it"):
        load_data(tmp_path / "mutual")


@pytest.mark.parametrize(
    ("link", "target", "why"),
    [
        ("violet", "store", "pictures lie next to it"),
        ("violet", "nowhere", "it leads nowhere"),
        ("red/more", "store", "pictures lie next to it"),
    ],
)
def test_a_link_that_is_not_followed_is_named(link: str, target: str, why: str, tmp_path: Path) -> None:
    write_picture(tmp_path / "store" / "0.png", noise(50))
    root = write_class_folders(tmp_path / "data", [""], per_class=4)
    write_picture(root / "cover.png", noise(51))
    (root / link).symlink_to(tmp_path / target)
    data = load_data(root)
    assert data.class_names == ("blue", "green", "red")
    note = f"warning: 1 link(s) were not followed, such as {link}, because {why}. "
    assert any(one.startswith(note) for one in data.notes)


def test_a_split_that_is_a_broken_link_is_named(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", ["train"], per_class=4)
    (root / "test").symlink_to(tmp_path / "nowhere")
    assert any("such as test, because it leads nowhere" in note for note in load_data(root).notes)


def test_a_flat_folder_is_not_looked_through_once_for_each_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 200
    for number in range(count):
        write_picture(tmp_path / "data" / f"{('cat', 'dog')[number % 2]}_{number}.png", noise(0, 2, 2))
    asked: list[object] = []
    original = os.stat

    def stat(path: Any, **more: Any) -> os.stat_result:
        asked.append(path)
        return original(path, **more)

    monkeypatch.setattr(os, "stat", stat)
    assert load_data(tmp_path / "data").class_names == ("cat", "dog")
    assert len(asked) < 2 * count  # looking at each file once per form makes more than 2,000
