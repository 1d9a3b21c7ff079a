from __future__ import annotations

import json
import pickle
import shlex
import shutil
import sqlite3
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import Payload, coloured, write_class_folders, write_picture
from thumbnet.cli import main
from thumbnet.errors import DataError, is_printable
from thumbnet.sources.load import load_data

FILES = {
    "a.pdf": (b"%PDF-1.4\n", "is a PDF document. Export its pages as PNG first"),
    "a.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file. Save its arrays with numpy.savez"),
    "a.tfrecord-00000-of-00010": (bytes(40), "is a TFRecord file"),
    "a.mp4": (b"\0\0\0\x18ftypisom" + bytes(50), "is a video. Save its frames"),
    "a.mov": (bytes(40), "is a video"),
    "a.rar": (b"Rar!\x1a\x07\0", "is a RAR archive. Unpack it yourself"),
    "a.7z": (b"7z\xbc\xaf'\x1c", "is a 7z archive. Unpack it yourself"),
    "a.zip.001": (b"PK\x03\x04" + bytes(40), "is one part of an archive in several. Join all of them"),
    "a.z01": (b"PK\x07\x08PK\x03\x04", "is one part of an archive in several"),
    "a.zip.002": (bytes(range(256)), "is one part of an archive in several"),
    "a.part1.rar": (b"Rar!\x1a\x07\0", "is one part of an archive in several"),
    "a.tar.zst": (b"\x28\xb5\x2f\xfd" + bytes(9), "Zstandard-compressed file. Unpack it yourself"),
    "named.zip": (b"Rar!\x1a\x07\0", "is a RAR archive"),
    "page.zip": (b"<!DOCTYPE html><html>", "is a web page, not the data"),
    "lfs.tar.gz": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "empty.zip": (b"", "is an empty file"),
    "a.dcm": (bytes(128) + b"DICM", "is a DICOM file"),
    "notes.txt": (b"hello\n", "is a text file"),
    "a.json": (b'{"a": 1}', "is a JSON file"),
    "coco.json": (b'{"images": [], "annotations": []}', "COCO object annotations"),
    "a.xlsx": (b"PK\x03\x04" + bytes(40), "is a spreadsheet. Save it as CSV"),
    "model.safetensors": (b"\x08\0\0\0\0\0\0\0{}", "a file of network weights"),
    "a.npy_old": (b"\x93NUMPY\1\0", "is a NumPy array. Put the arrays into one folder, as x_train.npy"),
    "images-idx3-ubyte": (b"\0\0\x08\x03\0\0\0\1", "as train-images-idx3-ubyte"),
    "a.jpg_large": (b"\xff\xd8\xff\xe0" + bytes(9), "a picture, but its name does not end like one"),
    "what": (bytes(range(256)), "is a file of an unknown kind"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_error_about_an_unsupported_file_says_what_it_is_and_what_to_do(
    tmp_path: Path, name: str
) -> None:
    content, says = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data(tmp_path / name, data_dir=tmp_path / "cache")
    assert says in str(caught.value)
    assert "docs/howto/forms.md" in str(caught.value)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    for name in ("a.pkl", "a"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
        with pytest.raises(
            DataError, match="is a Python pickle. Opening it could run any code, so thumbnet never does"
        ):
            load_data(tmp_path / name)
    assert not (tmp_path / "mark").exists()


def test_the_error_recognises_a_database_and_a_single_picture(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "pictures") as database:
        database.execute("create table a (b)")
    with pytest.raises(DataError, match="is an SQLite database"):
        load_data(tmp_path / "pictures")
    with pytest.raises(DataError, match=r"is a single picture. To classify it: .*thumbnet predict RUN"):
        load_data(write_picture(tmp_path / "one.jpg", coloured(0, 0)))


@pytest.mark.parametrize("name", ["a b;$(x).jpg", "it's.png", "-o.png"])
def test_the_command_for_a_single_picture_names_it_as_the_shell_reads_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_picture(Path(name), coloured(0, 0))
    with pytest.raises(DataError, match="is a single picture") as caught:
        load_data(Path(name))
    line = str(caught.value).partition("To classify it: ")[2].partition("\n")[0]
    *_, command, run, picture = shlex.split(line)
    assert (command, run, Path(picture)) == ("predict", "RUN", Path(name))
    assert not picture.startswith("-")


def test_the_error_names_the_batches_of_cifar_that_are_missing(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match="data_batch_1, but not data_batch_3, data_batch_4, data_batch_5"):
        load_data(tmp_path)


def pictures(folder: Path, count: int = 6, start: int = 0) -> None:
    for number in range(start, start + count):
        write_picture(folder / f"{number:06}.jpg", coloured(number, number))


def test_data_sets_of_object_boxes_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "yolo" / "images" / "train")
    pictures(tmp_path / "roboflow" / "train" / "images")
    for number in range(6):
        for folder in ("yolo/labels/train", "roboflow/train/labels"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / f"{number:06}.txt").write_text("0 0.5 0.5 0.25 0.125\n3 0.1 0.1 0.2 0.2\n")
    pictures(tmp_path / "coco" / "train2017")
    pictures(tmp_path / "coco" / "val2017", start=6)
    (tmp_path / "coco" / "annotations").mkdir()
    described = {"images": [{"id": 1, "file_name": "000001.jpg"}], "annotations": []}
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text(json.dumps(described))
    pictures(tmp_path / "voc" / "JPEGImages")
    (tmp_path / "voc" / "Annotations").mkdir()
    xml = "<annotation><object><name>dog</name></object></annotation>"
    (tmp_path / "voc" / "Annotations" / "000001.xml").write_text(xml)
    for name, says in [("yolo", "YOLO"), ("roboflow", "YOLO"), ("coco", "COCO"), ("voc", "Pascal VOC")]:
        with pytest.raises(DataError, match=f"has {says} object .*thumbnet classifies whole pictures: crop"):
            load_data(tmp_path / name)
        archive = shutil.make_archive(str(tmp_path / name), "zip", tmp_path, name)
        with pytest.raises(DataError, match=f"has {says} object (annotations|labels)"):
            load_data(archive, data_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("images", "masks", "end"),
    [("images", "masks", "_mask"), ("Images", "GT", ""), ("train/images", "train/masks", "")],
)
def test_pictures_and_their_masks_are_not_two_classes(
    tmp_path: Path, images: str, masks: str, end: str
) -> None:
    pictures(tmp_path / images)
    for number in range(6):
        write_picture(tmp_path / masks / f"{number:06}{end}.png", coloured(0, 50 + number))
    with pytest.raises(DataError, match="for segmentation. thumbnet classifies whole pictures"):
        load_data(tmp_path)


def test_a_class_may_be_called_masks(tmp_path: Path) -> None:
    pictures(tmp_path / "masks")
    pictures(tmp_path / "hats", start=6)
    assert load_data(tmp_path).class_names == ("hats", "masks")


def test_the_error_about_a_folder_without_classes_says_what_is_in_it(tmp_path: Path) -> None:
    cases = {
        "empty": "is empty",
        "numbered": "6 pictures, such as 000000.jpg, but no classes for them",
    }
    (tmp_path / "empty").mkdir()
    pictures(tmp_path / "numbered")
    (tmp_path / "archives").mkdir()
    for name in "ab":
        with zipfile.ZipFile(tmp_path / "archives" / f"{name}.zip", "w") as file:
            file.writestr("x.txt", "x")
    cases["archives"] = "has 2 archives, such as a.zip, and no pictures"
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").write_bytes(bytes(99))
    cases["lmdb"] = "is an LMDB database"
    (tmp_path / "scans" / "a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "scans" / "a" / f"{number}.dcm").write_bytes(bytes(128) + b"DICM")
    cases["scans"] = (
        "has no pictures, but 3 other file(s), such as a/0.dcm, which is a DICOM file. Convert it"
    )
    for name, says in cases.items():
        with pytest.raises(DataError) as caught:
            load_data(tmp_path / name)
        assert says in str(caught.value)
        assert "docs/howto/forms.md" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("imagenet", "an account at image-net.org"),
        ("ImageNet-1k", "an account at image-net.org"),
        ("cats_and_dogs", "thumbnet train hf:microsoft/cats_vs_dogs"),
        ("svhn", "thumbnet train hf:ufldl-stanford/svhn:cropped_digits"),
        ("STL-10", "thumbnet train hf:tanganke/stl10"),
        ("tiny-imagenet", "thumbnet train hf:zh-plus/tiny-imagenet"),
        ("CIFRA-10", "Did you mean 'cifar10'?"),
        ("cifra_100", "Did you mean 'cifar100'?"),
        ("digit", "Did you mean 'digits'?"),
        ("https://huggingface.co/datasets/ylecun/mnist", "thumbnet train hf:ylecun/mnist"),
        ("https://example.org/a.zip", "does not download from addresses: download the file"),
        ("ylecun/mnist", "hf:ylecun/mnist"),
    ],
)
def test_the_error_about_an_unknown_name_says_what_to_do(name: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(name)
    assert f"there is no data set, folder or archive {name!r}" in str(caught.value)
    assert says in str(caught.value)


def test_the_error_about_a_misspelt_path_names_a_similar_one(tmp_path: Path) -> None:
    (tmp_path / "flowers" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"A similar path is '.*/flowers'"):
        load_data(tmp_path / "flower" / "train")
    with pytest.raises(DataError, match=r"has no 'cars'"):
        load_data(tmp_path / "cars")


def test_an_encrypted_zip_and_a_damaged_one_have_different_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("cat/1.png", b"x" * 50)
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + at] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is encrypted: unpack it yourself"):
        load_data(path, data_dir=tmp_path / "cache")
    path.write_bytes(content[:40])
    with pytest.raises(DataError, match="cannot unpack"):
        load_data(path, data_dir=tmp_path / "cache")


@pytest.mark.parametrize("suffix", ["tar.bz2", "tbz2"])
def test_bzip2_archives_are_read(tmp_path: Path, suffix: str) -> None:
    folder = write_class_folders(tmp_path / "data", ["train", "test"])
    archive = shutil.make_archive(str(tmp_path / "made"), "bztar", folder)
    path = Path(archive).rename(tmp_path / f"data.{suffix}")
    assert load_data(path, data_dir=tmp_path / "cache").fingerprint() == load_data(folder).fingerprint()


def test_predict_says_why_a_folder_or_file_has_no_pictures(
    tmp_path: Path, tiny_run: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tiny_run.path)  # type: ignore[attr-defined]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    assert main(["predict", run, str(tmp_path / "a"), "--device", "cpu"]) == 2
    assert "a DICOM file" in capsys.readouterr().err
    assert main(["predict", run, str(tmp_path / "a" / "scan.dcm"), "--device", "cpu"]) == 1
    assert "a DICOM file; convert it to PNG first" in capsys.readouterr().out
    write_picture(tmp_path / "a" / "b.png", coloured(0, 0))
    assert main(["predict", run, str(tmp_path / "a"), "--device", "cpu"]) == 0
    found = capsys.readouterr()
    assert "b.png" in found.out
    assert "1 file(s) skipped, each a DICOM file by its name" in found.err


@given(st.binary(max_size=400), st.sampled_from(["a", "a.json", "a.txt", "a.h5", "a.zip", "a.xml", "a.npyz"]))
def test_any_unsupported_bytes_give_a_printable_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data(folder / name, data_dir=folder / "cache")
    assert is_printable(str(caught.value).replace("\n", ""))


NASTY = "e\x1b]0;PWNED\x07\x1b[2J\nx\x9b31m"


@pytest.mark.skipif(sys.platform == "win32", reason="names cannot have such characters")
@pytest.mark.parametrize("form", ["ignored", "empty class", "stray class", "heic", "unknown", "file", "name", "shard",
                                  "lists", "picture", "tiny", "archive", "pattern"])  # fmt: skip
def test_control_characters_in_names_never_reach_the_terminal(
    tmp_path: Path, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_class_folders(tmp_path / "data", ["train", "test"])
    source = str(folder)
    if form == "ignored":
        (folder / "train" / "red" / f"{NASTY}.txt").write_text("x")
    elif form == "empty class":
        (folder / "train" / NASTY).mkdir()
    elif form == "stray class":
        write_picture(folder / "test" / NASTY / "a.png", coloured(0, 0))
    elif form == "heic":
        (folder / "train" / "red" / f"{NASTY}.jxl").write_bytes(b"x")
    elif form == "unknown":
        source = str(tmp_path / NASTY)
        Path(source).mkdir()
        (Path(source) / f"{NASTY}.pdf").write_bytes(b"%PDF-")
    elif form == "file":
        source = str(tmp_path / NASTY)
        Path(source).write_bytes(b"\x89HDF\r\n\x1a\n")
    elif form in ("name", "pattern"):
        source = NASTY + ("{0..2}.tar" if form == "pattern" else "")
    elif form == "shard":
        pytest.importorskip("webdataset")
        source = str(tmp_path / f"{NASTY}.tar")
        _shard(Path(source))
    elif form == "lists":
        (folder / "images.txt").write_text(f"1 {NASTY}\n")
        for name in ("image_class_labels.txt", "train_test_split.txt", "classes.txt"):
            (folder / name).write_text("1 \x1b[2J\n")
    elif form == "picture":
        write_picture(folder / "train" / "red" / f"{NASTY}.png", coloured(0, 0)).write_bytes(b"no")
        write_picture(folder / "test" / "red" / f"{NASTY}b.png", coloured(0, 1))
        shutil.copy(folder / "test" / "red" / f"{NASTY}b.png", folder / "train" / "red" / f"{NASTY}c.png")
    elif form == "tiny":
        (folder / "wnids.txt").write_text("n00000001\n")
        source = str(folder.rename(tmp_path / NASTY))
    elif form == "archive":
        source = str(tmp_path / f"{NASTY}.zip")
        with zipfile.ZipFile(source, "w") as file:
            file.writestr(f"../{NASTY}.png", b"x")
    status = main(["data", source, "--data-dir", str(tmp_path / "cache")])
    shown = capfd.readouterr()
    assert status in (0, 2)
    assert (
        form in ("empty class", "unknown", "name", "pattern")
        or "\\x1b" in shown.out + shown.err
        or status == 2
    )
    for text in (shown.out, shown.err):
        assert is_printable(text.replace("\n", "")), ascii(text)
        assert not any(line.startswith("x\\x9b") for line in text.splitlines()), "a name starts a line"


def _shard(path: Path) -> None:
    import io
    import tarfile

    from PIL import Image

    with tarfile.open(path, "w") as tar:
        for number in range(12):
            buffer = io.BytesIO()
            Image.fromarray(coloured(number, number)).save(buffer, "PNG")
            for end, content in (
                ("png", buffer.getvalue()),
                ("cls", f"{number % 3}".encode()),
                (NASTY, b"x"),
            ):
                info = tarfile.TarInfo(f"{NASTY}{number}.{end}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
