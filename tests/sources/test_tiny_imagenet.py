from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import coloured, write_picture
from sources.trees import read_or_refused
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data

WNIDS = ("n01443537", "n01532829", "n03126707")
WORDS = (
    "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn01532829\tcrane\nn03126707\tcrane, lift\n"
)


def tiny_imagenet(root: Path, folder: str = "tiny-imagenet-200") -> Path:
    """The folder as it is downloaded, with three classes of four training pictures."""
    top = root / folder
    annotations = []
    for label, wnid in enumerate(WNIDS):
        for number in range(4):
            write_picture(
                top / "train" / wnid / "images" / f"{wnid}_{number}.JPEG",
                coloured(label, 10 * label + number),
            )
        boxes = "\n".join(f"{wnid}_{number}.JPEG\t0\t10\t63\t58" for number in range(4))
        (top / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes + "\n")
    for number in range(6):
        label = (2 - number) % 3  # not in the order of the names
        write_picture(top / "val" / "images" / f"val_{number}.JPEG", coloured(label, 100 + number))
        annotations.append(f"val_{number}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n")
    (top / "val" / "val_annotations.txt").write_text("".join(annotations))
    for number in range(2):
        write_picture(top / "test" / "images" / f"test_{number}.JPEG", coloured(0, 200 + number))
    (top / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(WNIDS)))
    (top / "words.txt").write_text(WORDS)
    return top


def test_val_gets_labels_from_its_annotations_and_classes_get_names_from_words(tmp_path: Path) -> None:
    data = load_data(tiny_imagenet(tmp_path))
    assert data.class_names == ("goldfish", "crane (n01532829)", "crane (n03126707)")
    assert set(data.splits) == {"train", "val"}
    assert data.splits["train"].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    val = data.splits["val"]
    found = {Path(val.name(at)).name: int(val.labels[at]) for at in range(len(val))}
    assert found == {f"val_{number}.JPEG": (2 - number) % 3 for number in range(6)}


def test_the_unlabelled_test_pictures_are_left_out_with_a_note(tmp_path: Path) -> None:
    notes = load_data(tiny_imagenet(tmp_path)).notes
    assert len(notes) == 1
    assert "test/ was left out: it has 2 pictures without labels" in notes[0]
    assert "thumbnet predict" in notes[0]


def test_the_zip_gives_the_same_data_as_its_folder(tmp_path: Path) -> None:
    folder = tiny_imagenet(tmp_path)
    archive = shutil.make_archive(str(tmp_path / "tiny-imagenet-200"), "zip", tmp_path, folder.name)
    packed, plain = load_data(archive, data_dir=tmp_path / "cache"), load_data(folder)
    assert packed.fingerprint() == plain.fingerprint()
    assert packed.splits["val"].read(3).tobytes() == plain.splits["val"].read(3).tobytes()


def test_val_sorted_into_class_folders_is_read(tmp_path: Path) -> None:
    folder = tiny_imagenet(tmp_path)
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        (folder / "val" / wnid / "images").mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / name).rename(folder / "val" / wnid / "images" / name)
    (folder / "val" / "val_annotations.txt").unlink()
    assert load_data(folder).splits["val"].labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_classes_without_training_pictures_are_left_out(tmp_path: Path) -> None:
    folder = tiny_imagenet(tmp_path)
    shutil.rmtree(folder / "train" / WNIDS[1])
    data = load_data(folder)
    assert data.class_names == ("goldfish", "crane")
    assert len(data.splits["val"]) == 4
    assert any("1 of the 3 classes have no pictures" in note for note in data.notes)
    assert any("val: 2 pictures were left out" in note for note in data.notes)


def test_without_words_the_identifiers_are_the_class_names(tmp_path: Path) -> None:
    folder = tiny_imagenet(tmp_path)
    (folder / "words.txt").unlink()
    assert load_data(folder).class_names == WNIDS


def test_the_error_names_the_line_of_a_damaged_annotation(tmp_path: Path) -> None:
    folder = tiny_imagenet(tmp_path)
    with (folder / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_9.JPEG\n")
    with pytest.raises(DataError, match=r"val_annotations.txt, line 7: expected a picture's name"):
        load_data(folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_imagenet(tmp_path_factory.mktemp("hostile"))


@given(st.binary(max_size=200))
def test_lists_of_any_bytes_are_read_or_refused(shared: Path, content: bytes) -> None:
    lists = [shared / name for name in ("words.txt", "val/val_annotations.txt", "wnids.txt")]
    read_or_refused(shared, lists, content)
