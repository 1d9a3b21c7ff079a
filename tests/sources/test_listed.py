from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import coloured, write_class_folders, write_picture
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


def test_lists_of_other_pictures_are_ignored(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path, ["train", "test"])
    (folder / "train.txt").write_text("cat/1.jpg 0\ndog/2.jpg 1\n")
    assert load_data(folder).class_names == ("blue", "green", "red")


@given(st.binary(max_size=120))
def test_lists_of_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = write_lists(tmp_path_factory.mktemp("cub"), "cub")
    for name in ("images.txt", "image_class_labels.txt", "classes.txt"):
        (folder / name).write_bytes(content)
        try:
            said = " ".join(load_data(folder).notes)
        except DataError as error:
            said = str(error)
        assert said.replace("\n", "").isprintable()
