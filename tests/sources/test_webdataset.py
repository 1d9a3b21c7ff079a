from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers import Payload, coloured
from thumbnet.errors import DataError, MissingExtraError, is_printable
from thumbnet.sources import webdataset
from thumbnet.sources.load import load_data

wds: Any = pytest.importorskip("webdataset", reason="the extra 'formats' is not installed")

NAMES = ("red", "green", "blue")


def jpeg(label: int, seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(coloured(label, seed)).save(buffer, kind)
    return buffer.getvalue()


def bmp(shade: int) -> bytes:
    """A picture whose file has the same size for every shade."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade,) * 3).save(buffer, "bmp")
    return buffer.getvalue()


def write_shard(path: Path, samples: list[dict[str, Any]]) -> Path:
    """Write a shard with the library's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path)) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{number:06}", **sample})
    return path


def classes(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"jpg": jpeg(i % 3, i), "cls": i % 3} for i in range(start, start + count)]


def shards(root: Path) -> Path:
    """Two shards for train and one for val, with a list of the classes."""
    for number in range(2):
        write_shard(root / f"train-{number:06}.tar", classes(9, 9 * number))
    write_shard(root / "val-000000.tar", classes(6, 51))
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def test_the_names_of_the_shards_give_the_splits(tmp_path: Path) -> None:
    data = load_data(shards(tmp_path))
    assert data.class_names == NAMES
    assert {name: split.labels.tolist() for name, split in data.splits.items()} == {
        "train": [0, 1, 2] * 6,
        "val": [0, 1, 2] * 2,
    }
    by_library = list(wds.WebDataset(str(tmp_path / "val-000000.tar"), shardshuffle=False))
    assert [data.splits["val"].content(at) for at in range(6)] == [sample["jpg"] for sample in by_library]
    assert data.splits["train"].peek(17) == ((16, 16), "RGB")
    assert data.splits["train"].subset(data.splits["train"].labels.argsort()).content(0) == jpeg(0, 0)


def test_shards_in_folders_named_after_splits_are_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "train" / "0.tar", classes(9))
    write_shard(tmp_path / "test" / "0.tar", classes(3, 20))
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    data = load_data(tmp_path)
    assert (data.class_names, len(data.splits["train"]), len(data.splits["test"])) == (NAMES, 9, 3)


def test_shards_of_train_and_val_together_do_not_join_train(tmp_path: Path) -> None:
    shards(tmp_path)
    write_shard(tmp_path / "trainval-000000.tar", classes(24))
    data = load_data(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "val": 6}
    note = "1 shard(s) were left out, such as trainval-000000.tar, because 'train' is the plainer name of the split"
    assert any(
        found.startswith(note) and found.endswith("a number: train_0, train_1") for found in data.notes
    )
    both = load_data(f"{tmp_path}/{{train-000000,trainval-000000}}.tar", test_fraction=0.0)
    assert len(both.splits["train"]) == 33


def test_shards_with_hexadecimal_numbers_are_all_read(tmp_path: Path) -> None:
    for number, name in enumerate(("3f2a", "4839", "00ff")):
        write_shard(tmp_path / f"train-{name}.tar", classes(6, 6 * number))
    assert len(load_data(tmp_path, test_fraction=0.0).splits["train"]) == 18


def test_a_single_shard_is_not_unpacked_and_part_of_it_becomes_the_test_split(tmp_path: Path) -> None:
    data = load_data(write_shard(tmp_path / "shard-000000.tar", classes(30)))
    assert data.class_names == ("0", "1", "2")
    assert (len(data.splits["train"]), len(data.splits["test"])) == (24, 6)


def test_braces_stand_for_several_shards(tmp_path: Path) -> None:
    shards(tmp_path)
    data = load_data(f"{tmp_path}/{{train-{{000000..000001}},val-000000}}.tar")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "val": 6}
    with pytest.raises(
        DataError, match=r"stands for 4 shards, but 2 of them do not exist, such as .*train-000002"
    ):
        load_data(f"{tmp_path}/train-{{000000..000003}}.tar")


@pytest.mark.parametrize(
    ("member", "values", "names"),
    [
        ("cls", [0, 1, 2], ("0", "1", "2")),
        ("txt", ["frog", "cat", "dog"], ("cat", "dog", "frog")),
        ("json", [{"label": 4}, {"label": 2}, {"label": 11}], ("2", "4", "11")),
        ("json", [{"class": "b", "id": 1}, {"class": "a", "id": 2}, {"class": "c"}], ("a", "b", "c")),
    ],
)
def test_labels_are_integers_words_or_values_in_json(
    tmp_path: Path, member: str, values: list[Any], names: tuple[str, ...]
) -> None:
    samples = [{"png": jpeg(i % 3, i, "PNG"), member: values[i % 3]} for i in range(12)]
    data = load_data(write_shard(tmp_path / "a.tar", samples))
    assert data.class_names == names
    split = data.splits["train"]
    for at in range(len(split)):
        key = int(split.name(at).partition("/")[2].partition(".")[0])
        value = values[key % 3]
        value = value.get("label", value.get("class")) if isinstance(value, dict) else value
        assert names[split.labels[at]] == str(value)


def test_class_names_in_dataset_info_are_used(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "classes.txt").unlink()
    info = {
        "features": {"image": {"_type": "Image"}, "label": {"names": ["r", "g", "b"], "_type": "ClassLabel"}}
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    assert load_data(tmp_path).class_names == ("r", "g", "b")


def test_pickled_members_are_never_read(tmp_path: Path) -> None:
    for ending in ("pyd", "pickle"):
        samples = [{**sample, ending: Payload(tmp_path / "mark")} for sample in classes(12)]
        if ending == "pickle":
            samples = [{**sample, ending: b"cos\nsystem\n(S'touch mark'\ntR."} for sample in classes(12)]
        data = load_data(write_shard(tmp_path / f"{ending}.tar", samples))
        assert len(data.splits["train"]) + len(data.splits["test"]) == 12
        assert any(f".{ending}" in note and "pickle" in note for note in data.notes)
    assert not (tmp_path / "mark").exists()


def test_samples_without_a_label_or_a_picture_are_counted(tmp_path: Path) -> None:
    samples = [*classes(12), {"jpg": jpeg(0, 99)}, {"cls": 1}, {"jpg": jpeg(0, 98), "json": {"id": 3}}]
    notes = load_data(write_shard(tmp_path / "a.tar", samples)).notes
    assert "2 sample(s) were left out: no label" in notes
    assert "1 sample(s) were left out: no picture" in notes


def test_captions_are_refused_as_classes(tmp_path: Path) -> None:
    samples = [{"jpg": jpeg(0, i), "txt": f"a photo of {i} things"} for i in range(40)]
    with pytest.raises(DataError, match="captions"):
        load_data(write_shard(tmp_path / "00000.tar", samples))


def test_an_archive_of_class_folders_is_not_taken_for_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "pictures.tar"
    with tarfile.open(path, "w") as tar:
        for label, name in enumerate(NAMES):
            for number in range(5):
                content = jpeg(label, 10 * label + number)
                info = tarfile.TarInfo(f"{name}/{number}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data = load_data(path, data_dir=tmp_path / "cache")
    assert data.layout == "CLASS/*"


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("sorted_by_class", [True, False])
@pytest.mark.parametrize(
    "sidecar", [("txt", "sharp"), ("txt", "photo {} of a thing"), ("json", '{{"title": {}}}')]
)
def test_a_tar_of_class_folders_is_read_as_its_unpacked_folder(
    tmp_path: Path, sidecar: tuple[str, str], sorted_by_class: bool
) -> None:
    members = {}
    numbers = range(24) if not sorted_by_class else [n for label in range(3) for n in range(label, 24, 3)]
    for number in numbers:
        members[f"{NAMES[number % 3]}/{number}.jpg"] = jpeg(number % 3, number)
        members[f"{NAMES[number % 3]}/{number}.{sidecar[0]}"] = sidecar[1].format(number).encode()
    packed = load_data(write_tar(tmp_path / "a.tar", members), data_dir=tmp_path / "cache")
    with tarfile.open(tmp_path / "a.tar") as tar:
        tar.extractall(tmp_path / "a", filter="data")
    assert packed.layout == "CLASS/*"
    assert packed.fingerprint() == load_data(tmp_path / "a").fingerprint()


@pytest.mark.parametrize(
    ("folders", "label"), [(("b", "a"), "cls"), (("a",), "txt"), (("train", "test"), "txt")]
)
def test_a_shard_may_have_folders(tmp_path: Path, folders: tuple[str, ...], label: str) -> None:
    members = {}
    for number in range(24):
        folder = folders[number % len(folders)]
        members[f"{folder}/{number}.jpg"] = jpeg(number % 3, number)
        members[f"{folder}/{number}.{label}"] = NAMES[number % 3].encode()
    data = load_data(write_tar(tmp_path / "a.tar", members))
    assert data.layout == "WebDataset, 1 shard(s)"
    assert data.class_names == tuple(sorted(NAMES))


def test_another_shard_of_the_same_size_and_time_has_another_key(tmp_path: Path) -> None:
    keys = []
    for shade in (1, 2):
        samples = [{"bmp": bmp(shade), "cls": number % 2} for number in range(8)]
        shard = write_shard(tmp_path / "train-000000.tar", samples)
        os.utime(shard, (1, 1))
        split = load_data(tmp_path).splits["train"]
        keys.append((shard.stat().st_size, split.content_key()))
        assert split.content_key() == load_data(tmp_path).splits["train"].content_key()
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]


def test_the_error_names_a_shard_that_is_cut_short(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "train-0.tar", classes(12))
    path.write_bytes(path.read_bytes()[:9_000])
    with pytest.raises(DataError, match=r"cannot read the shard .*train-0.tar"):
        load_data(path)


def test_without_the_library_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shard(tmp_path / "a.tar", classes(12))
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(MissingExtraError, match=r"formats"):
        load_data(path)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_shard(tmp_path_factory.mktemp("whole") / "a.tar", classes(12)).read_bytes()


@given(st.binary(min_size=1, max_size=40), st.integers(0, 20_000))
def test_hostile_bytes_in_a_shard_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, shard: bytes, noise: bytes, at: int
) -> None:
    content = bytearray(shard)
    content[at : at + len(noise)] = noise
    path = tmp_path_factory.mktemp("shard") / "b.tar"
    path.write_bytes(content)
    try:
        data = webdataset.read_shards([path], "b.tar")
    except DataError as error:
        said = str(error)
    else:
        said = ""
        for split in data.splits.values():
            assert all(len(split.content(index)) < 20_480 for index in range(len(split)))
    assert is_printable(said)
