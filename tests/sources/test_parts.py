from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from helpers import coloured, write_picture
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data
from thumbnet.sources.parts import check_parts, gaps


def paths(*names: str) -> list[Path]:
    return [Path("data", name) for name in names]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train-00000-of-00002.parquet"],
            r"data has 1 of the 2 files of train, and lacks train-00001-of-00002\.parquet\. Repeat the download",
        ),
        (
            ["train-00000-of-00001.parquet", "test-00002-of-00006.parquet"],
            r"1 of the 6 files of test, .*test-00000-of-00006.parquet, .*, test-00003-of-00006.parquet and 2 more",
        ),
        (["train-00001-of-00002-3f2a.parquet"], r"lacks train-00000-of-00002\*"),
        (["00000-of-00002.tar"], "1 of the 2 files of the data"),
    ],
)
def test_parts_that_are_lacking_are_named(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_parts(paths(*names))


def test_all_parts_may_have_hashes_and_folders_of_their_own() -> None:
    check_parts(paths("train-00000-of-00002-aa.parquet", "train-00001-of-00002-bb.parquet", "train.parquet"))
    check_parts(paths("a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"))
    with pytest.raises(DataError):
        check_parts(paths("a/train-00000-of-00002.parquet", "b/train-00001-of-00002.parquet"))


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (["train-000000.tar", "train-000002.tar"], "1 file(s) .*such as train-000001.tar"),
        (["1.tar", "5.tar", "6.tar"], "3 file(s) are lacking between 1.tar and 6.tar, such as 2.tar"),
        (["train-0.tar", "train-1.tar", "val-0.tar", "val-3.tar"], "2 file(s) .*such as val-1.tar"),
        (["train-0.tar", "train-1.tar"], ""),
        (["train-000007.tar"], ""),
        (["20240101.tar", "20240105.tar"], ""),
        (["cats.tar", "dogs.tar"], ""),
    ],
)
def test_gaps_in_numbers_are_noted(names: list[str], lacking: str) -> None:
    notes = gaps(paths(*names))
    assert len(notes) == bool(lacking)
    for note in notes:
        assert note.startswith("warning: ")
        start, _, end = lacking.partition(" .*")
        assert start in note
        assert end in note


def test_a_folder_of_parquet_files_that_lacks_some_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'formats' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_picture(tmp_path / "x.png", coloured(0, 0))
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").unlink()
    rows = {"image": [{"bytes": content, "path": ""}] * 8, "label": [0, 1] * 4}
    (tmp_path / "data").mkdir()
    for number in range(2):
        path = tmp_path / "data" / f"train-0000{number}-of-00002.parquet"
        parquet.write_table(pyarrow.table(rows), path)
    assert len(load_data(tmp_path, test_fraction=0).splits["train"]) == 16
    path.unlink()
    with pytest.raises(DataError, match=f"lacks {path.name}"):
        load_data(tmp_path)
    (alone,) = (tmp_path / "data").iterdir()
    assert len(load_data(alone, test_fraction=0).splits["train"]) == 8


def test_a_folder_of_shards_with_a_gap_is_noted(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="the extra 'formats' is not installed")
    write_picture(tmp_path / "x.png", coloured(0, 0))
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").unlink()
    for number in (0, 2):
        with tarfile.open(tmp_path / f"train-{number:06}.tar", "w") as tar:
            for n in range(4):
                for suffix, value in (("png", content), ("cls", b"01"[n % 2 : n % 2 + 1])):
                    info = tarfile.TarInfo(f"{number}_{n}.{suffix}")
                    info.size = len(value)
                    tar.addfile(info, io.BytesIO(value))
    assert any("such as train-000001.tar" in note for note in load_data(tmp_path).notes)
    (tmp_path / "train-000000.tar").unlink()
    (tmp_path / "train-000002.tar").rename(tmp_path / "train-00001-of-00003.tar")
    with pytest.raises(DataError, match="1 of the 3 files of train"):
        load_data(tmp_path)
