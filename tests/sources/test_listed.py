from __future__ import annotations

import tarfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import coloured, write_class_folders, write_picture
from sources.trees import read_or_refused
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data

NAMES = ("cat", "dog", "frog")


def write_lists(root: Path, form: str) -> Path:
    """Write four training and two test pictures per class in the form of a well-known data set."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    cub: list[tuple[str, str, int]] = []
    for label, name in enumerate(NAMES):
        for number in range(6):
            split = "train" if number < 4 else "test"
            at = 100 * label + number
            path, line = {
                "food": (f"images/{name}/{at}.jpg", f"{name}/{at}"),
                "pets": (f"images/{name}_terrier_{at}.jpg", f"{name}_terrier_{at} {label + 1} 1 2"),
                "aircraft": (f"data/images/{at:07}.jpg", f"{at:07} {name} 7{label}7"),
                "dtd": (f"images/{name}/{name}_{at}.jpg", f"{name}/{name}_{at}.jpg"),
                "imagenet": (f"{name}/{at}.jpg", f"{name}/{at}.jpg {label + 7}"),
                "cub": (f"images/{label + 1:03}.{name}/{at}.jpg", f"{label + 1:03}.{name}/{at}.jpg"),
            }[form]
            write_picture(root / path, coloured(label, at))
            lines[split].append(line)
            cub.append((line, str(label + 1), int(split == "train")))
    if form == "cub":
        files = {
            "images.txt": [f"{n} {line}" for n, (line, _, _) in enumerate(cub, 1)],
            "image_class_labels.txt": [f"{n} {label}" for n, (_, label, _) in enumerate(cub, 1)],
            "train_test_split.txt": [f"{n} {train}" for n, (_, _, train) in enumerate(cub, 1)],
            "classes.txt": [f"{n} {n:03}.{name}" for n, name in enumerate(NAMES, 1)],
        }
    else:
        train, test = {
            "food": ("meta/train.txt", "meta/test.txt"),
            "pets": ("annotations/trainval.txt", "annotations/test.txt"),
            "aircraft": ("data/images_variant_train.txt", "data/images_variant_test.txt"),
            "dtd": ("labels/train1.txt", "labels/test1.txt"),
            "imagenet": ("train.txt", "test.txt"),
        }[form]
        files = {train: lines["train"], test: lines["test"]}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("\n".join(content) + "\n")
    return root


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("food", NAMES),
        ("pets", ("cat_terrier", "dog_terrier", "frog_terrier")),
        ("aircraft", ("cat 707", "dog 717", "frog 727")),
        ("dtd", NAMES),
        ("imagenet", NAMES),
        ("cub", NAMES),
    ],
)
def test_lists_decide_the_splits_and_classes(tmp_path: Path, form: str, names: tuple[str, ...]) -> None:
    data = load_data(write_lists(tmp_path / form, form))
    assert data.class_names == names
    assert {name: split.labels.tolist() for name, split in data.splits.items()} == {
        "train": [0] * 4 + [1] * 4 + [2] * 4,
        "test": [0] * 2 + [1] * 2 + [2] * 2,
    }
    for split in data.splits.values():
        for index in range(len(split)):
            assert (
                int(split.name(index).rpartition("/")[2].rpartition("_")[2][:-4]) // 100
                == split.labels[index]
            )


@pytest.mark.parametrize("form", ["food", "cub", "pets"])
def test_an_archive_gives_the_same_data_as_its_folder(tmp_path: Path, form: str) -> None:
    folder = write_lists(tmp_path / form, form)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(folder, form)
    packed = load_data(tmp_path / "a.tar.gz", data_dir=tmp_path / "cache")
    assert packed.fingerprint() == load_data(folder).fingerprint()


def test_one_of_several_lists_can_be_chosen(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, "aircraft")
    for split in ("train", "test"):
        text = (folder / "data" / f"images_variant_{split}.txt").read_text()
        coarse = "\n".join(
            line[:7] + (" bird" if line.endswith("727") else " mammal") for line in text.splitlines()
        )
        (folder / "data" / f"images_family_{split}.txt").write_text(coarse)
    assert load_data(folder, label_column="family").class_names == ("bird", "mammal")
    assert load_data(folder, label_column="variant").class_names == ("cat 707", "dog 717", "frog 727")


def test_missing_and_unlisted_pictures_are_counted(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, "food")
    with (folder / "meta" / "train.txt").open("a") as file:
        file.write("cat/900\n")
    write_picture(folder / "images" / "cat" / "77.jpg", coloured(0, 77))
    data = load_data(folder)
    assert len(data.splits["train"]) == 12
    assert "warning: 1 picture(s) in the lists do not exist" in data.notes
    assert "skipped 1 picture(s) that no list names" in data.notes


def write_lines(root: Path, **lists: list[str]) -> Path:
    """Write lists, and a picture ``images/NUMBER.png`` for each of the numbers up to 29."""
    for number in range(30):
        write_picture(root / "images" / f"{number}.png", coloured(number % 3, number))
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(("one", "zero"), [("1", "0"), ("1", "-1")])
def test_columns_of_zeros_and_ones_are_several_labels(tmp_path: Path, one: str, zero: str) -> None:
    rows = [[one if label in (n % 3, (n + 1) % 3) else zero for label in range(4)] for n in range(30)]
    lines = [f"images/{n}.png {' '.join(row)}" for n, row in enumerate(rows)]
    folder = write_lines(tmp_path, train=lines[:20], test=lines[20:])
    data = load_data(folder)
    assert data.multilabel
    assert data.class_names == ("0", "1", "2", "3")
    assert data.splits["test"].label_text(0, data.class_names) == "0, 2"  # 20 % 3 is 2
    with pytest.raises(DataError, match="2 classes, expected one"):
        load_data(folder, multilabel=False)


def test_a_single_one_in_each_line_is_the_class(tmp_path: Path) -> None:
    lines = [f"images/{n}.png " + " ".join(str(int(label == n % 3)) for label in range(3)) for n in range(30)]
    data = load_data(write_lines(tmp_path, train=lines))
    assert not data.multilabel
    train = data.splits["train"]
    assert [
        int(train.name(i).rpartition("/")[2][:-4]) % 3 for i in range(len(train))
    ] == train.labels.tolist()


@pytest.mark.parametrize(
    "form",
    [
        "images/{n}.png {x} 20 60 80 {c}",
        "images/{n}.png {x},20,60,80,{c}",
        "images/{n}.png {c} {n}",
        "images/{n}.png,word{c},{x}",
        "images/{n}.png {c} {x}",
    ],
)
def test_several_columns_are_refused_unless_the_first_decides_the_others(tmp_path: Path, form: str) -> None:
    lines = [form.format(n=n, x=10 + n % 2, c=n % 3 + 2) for n in range(30)]
    with pytest.raises(DataError, match="it is unclear which is the class"):
        load_data(write_lines(tmp_path, train=lines[:20], test=lines[20:]))


def test_a_list_without_labels_is_left_out_if_that_of_train_has_labels(tmp_path: Path) -> None:
    lines = [f"images/{n}.png {n % 3}" for n in range(20)]
    folder = write_lines(tmp_path, train=lines, test=[f"images/{n}.png" for n in range(20, 30)])
    data = load_data(folder, test_fraction=0.0)
    assert list(data.splits) == ["train"]
    assert (
        "test.txt has no labels, so its 10 picture(s), such as images/20.png, are not used as test"
        in data.notes
    )


def test_an_unlabelled_list_of_a_flat_folder_is_left_out_if_train_has_class_folders(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, "dtd")
    for number in range(3):
        write_picture(folder / "test" / f"{number}.jpg", coloured(0, number))
    (folder / "labels" / "test1.txt").write_text("test/0.jpg\ntest/1.jpg\ntest/2.jpg\n")
    data = load_data(folder, test_fraction=0.0)
    assert data.class_names == NAMES
    assert (
        "test1.txt has no labels, so its 3 picture(s), such as test/0.jpg, are not used as test" in data.notes
    )


def test_the_class_may_stand_before_the_path(tmp_path: Path) -> None:
    data = load_data(write_lines(tmp_path, train=[f"{n % 3} images/{n}.png" for n in range(30)]))
    assert data.class_names == ("0", "1", "2")


def test_lists_of_other_pictures_are_ignored(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path, ["train", "test"])
    (folder / "train.txt").write_text("cat/1.jpg 0\ndog/2.jpg 1\n")
    assert load_data(folder).class_names == ("blue", "green", "red")


@pytest.fixture(scope="module")
def cub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lists(tmp_path_factory.mktemp("cub"), "cub")


@given(st.binary(max_size=120))
def test_lists_of_any_bytes_are_read_or_refused(cub: Path, content: bytes) -> None:
    lists = [cub / name for name in ("images.txt", "image_class_labels.txt", "classes.txt")]
    read_or_refused(cub, lists, content)


def test_pictures_that_differ_only_in_their_suffix_are_different_pictures(tmp_path: Path) -> None:
    for label, name in enumerate(NAMES):
        for number in range(4):
            for seed, suffix in enumerate(("jpg", "png")):
                write_picture(tmp_path / name / f"{number}.{suffix}", coloured(label, 10 * number + seed))
    stems = [f"{name}/{number}" for name in NAMES for number in range(4)]
    for split, suffix in (("train", ".jpg"), ("test", ".png")):
        (tmp_path / f"{split}.txt").write_text("\n".join(stem + suffix for stem in stems))
    data = load_data(tmp_path)
    for split, suffix in (("train", ".jpg"), ("test", ".png")):
        found = data.splits[split]
        assert [found.name(i) for i in range(len(found))] == [stem + suffix for stem in stems]
    assert data.notes == ()
    (tmp_path / "test.txt").write_text("\n".join(stems))
    (note,) = [note for note in load_data(tmp_path).notes if note.startswith("warning: ")]
    assert note.startswith("warning: 12 name(s) in the lists fit several pictures")
    assert "such as cat/0.png for cat/0." in note


def test_the_picture_of_the_listed_path_comes_before_one_of_another_suffix(tmp_path: Path) -> None:
    lines = [f"images/{n}.png {n % 3}" for n in range(30)]
    folder = write_lines(tmp_path, train=[line.removeprefix("images/") for line in lines])
    write_picture(folder / "7.jpg", coloured(0, 70))
    train = load_data(folder, test_fraction=0.0).splits["train"]
    assert train.name(7) == "images/7.png"


def test_lists_may_have_another_unicode_form_than_the_pictures(tmp_path: Path) -> None:
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(("café", "thé")):
        for number in range(6):
            path = f"{name}/{label}{number}.jpg"
            write_picture(tmp_path / unicodedata.normalize("NFD", path), coloured(label, number))
            lines["train" if number < 4 else "test"].append(path)
    for split, names in lines.items():
        (tmp_path / f"{split}.txt").write_text("\n".join(names), "utf-8")
    data = load_data(tmp_path)
    assert data.layout.startswith("lists of pictures")
    assert data.class_names == ("café", "thé")
    assert {split: len(found) for split, found in data.splits.items()} == {"train": 8, "test": 4}
