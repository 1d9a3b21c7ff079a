from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from helpers import coloured, coloured_data, noise, write_class_folders, write_picture
from thumbnet.batches import decoding, forked
from thumbnet.batches.decoding import auto_size, decode_split, shared_size
from thumbnet.batches.statistics import channel_statistics
from thumbnet.data.joined import with_files
from thumbnet.data.splits import ArraySplit, FileSplit, Split
from thumbnet.errors import FailedReadError, UnreadableFilesError, UnreadableImagesError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.load import load_data


def test_statistics_agree_with_numpy() -> None:
    data = coloured_data()
    split = data.splits["train"]
    assert isinstance(split, ArraySplit)
    mean, std = channel_statistics(decode_split(split, (16, 16), "pad").counts)
    values = split.images.reshape(-1, 3) / 255
    assert np.allclose(mean, values.mean(0), atol=1e-6)
    assert np.allclose(std, values.std(0), atol=1e-6)


def test_pictures_share_a_size_if_all_have_it(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"], side=20)
    assert shared_size(load_data(tmp_path).splits["train"], "crop") == (20, 20)
    write_picture(tmp_path / "train" / "red" / "wide.png", noise(0, 20, 40))
    assert shared_size(load_data(tmp_path).splits["train"], "crop") is None
    write_class_folders(tmp_path / "tiny", ["train", "test"], side=8)
    assert shared_size(load_data(tmp_path / "tiny").splits["train"], "crop") == (8, 8)


def test_that_pictures_share_no_size_is_kept_and_what_earlier_versions_kept_is_not_taken_for_it(
    cache: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(pictures / "train" / "red" / "wide.png", noise(0, 20, 40))
    earlier = decoding._entry(train_split(pictures).reader(), "size")
    earlier.mkdir(parents=True)
    (earlier / "size.json").write_text("[32, 32]")
    assert shared_size(train_split(pictures), "crop") is None
    monkeypatch.setattr(decoding, "_decode", refuse)
    monkeypatch.setattr(decoding, "common_size", refuse)
    assert shared_size(train_split(pictures), "crop") is None


PHOTOS = [(375, 500), (500, 333), (40, 30)]


@pytest.mark.parametrize(
    ("shared", "sizes", "settings", "expected"),
    [
        ((20, 20), [], {}, (20, 20)),
        ((200, 400), [], {}, (48, 96)),
        ((200, 400), [], {"largest_auto_size": 0}, (200, 400)),
        ((8, 8), [], {}, (32, 32)),
        (None, PHOTOS, {}, (64, 64)),
        (None, [(375, 500), (500, 50), (40, 30)], {}, (48, 48)),
        (None, [(375, 500), (40, 30)], {}, (32, 32)),  # the smaller of the middle two
        (None, [(20, 20), (20, 21)], {}, (32, 32)),
        (None, PHOTOS, {"largest_mixed_size": 48}, (48, 48)),
        (None, PHOTOS, {"largest_mixed_size": 24}, (24, 24)),
        (None, PHOTOS, {"largest_mixed_size": 0}, (96, 96)),
        (None, PHOTOS, {"largest_auto_size": 40}, (40, 40)),
        (None, PHOTOS, {"largest_mixed_size": 0, "largest_auto_size": 0}, (328, 328)),
        (None, [], {}, (32, 32)),  # there are no pictures
    ],
)
def test_the_automatic_size(
    shared: tuple[int, int] | None,
    sizes: list[tuple[int, int]],
    settings: dict[str, int],
    expected: tuple[int, int],
) -> None:
    assert auto_size(shared, sizes, DataSettings(**settings)) == expected  # type: ignore[arg-type]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "pictures", ["train", "test"], side=20)


def train_split(pictures: Path) -> Split:
    return load_data(pictures).splits["train"]


def refuse(*_: object) -> None:
    raise AssertionError("decoded although it is in the cache")


def test_a_cached_split_opens_no_file(cache: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = shared_size(train_split(pictures), "pad")
    first = decode_split(train_split(pictures), (20, 20), "pad")
    monkeypatch.setattr(decoding, "_decode", refuse)
    monkeypatch.setattr(decoding, "common_size", refuse)
    again = decode_split(train_split(pictures), (20, 20), "pad")
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.counts, again.counts)
    assert shared_size(train_split(pictures), "pad") == size == (20, 20)


@pytest.mark.parametrize("change", ["content", "new", "gone", "fit", "size"])
def test_a_changed_split_is_decoded_again(cache: Path, pictures: Path, change: str) -> None:
    decode_split(train_split(pictures), (20, 20), "pad")
    victim = sorted((pictures / "train").rglob("*.png"))[0]
    size, fit = (20, 20), "pad"
    if change == "content":
        before = victim.stat()
        victim.write_bytes(victim.read_bytes())
        os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "new":
        shutil.copy(victim, victim.with_name("zz.png"))
    elif change == "gone":
        victim.unlink()
    elif change == "fit":
        fit = "crop"
    else:
        size = (16, 20)
    decoded = decode_split(train_split(pictures), size, fit)  # type: ignore[arg-type]
    assert len(list(cache.iterdir())) == 2
    assert decoded.images.shape == (len(train_split(pictures)), 3, *size)


def test_other_pictures_of_the_same_size_and_time_are_decoded_again(cache: Path, tmp_path: Path) -> None:
    """As ``rsync -t`` leaves them, and archives that are built reproducibly."""
    for label, name in enumerate(("red", "green")):
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.fromarray(coloured(label, number, 8)).save(tmp_path / name / f"{number}.bmp")
    first = decode_split(load_data(tmp_path).splits["train"], (8, 8), "pad")
    for path in tmp_path.rglob("*.bmp"):
        before = path.stat()
        with Image.open(path) as picture:
            picture.rotate(180).save(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = decode_split(load_data(tmp_path).splits["train"], (8, 8), "pad")
    assert torch.equal(again.images, first.images.flip(2, 3))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_other_users_may_read_an_entry_if_the_umask_allows_that(cache: Path, pictures: Path) -> None:
    for umask, fit in ((0o022, "pad"), (0o077, "crop")):
        before = os.umask(umask)
        try:
            decode_split(train_split(pictures), (20, 20), fit)  # type: ignore[arg-type]
        finally:
            os.umask(before)
    modes = sorted(entry.stat().st_mode & 0o777 for entry in cache.iterdir())
    assert modes == [0o700, 0o755]


@pytest.mark.parametrize("damage", ["truncated", "empty", "other shape", "pickle", "no counts"])
def test_a_damaged_entry_is_replaced(cache: Path, pictures: Path, damage: str) -> None:
    right = decode_split(train_split(pictures), (20, 20), "pad")
    (entry,) = cache.iterdir()
    file = entry / "images.npy"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "other shape":
        np.save(file, np.zeros((3, 20, 20, 3), np.uint8))
    elif damage == "pickle":
        np.save(file, np.array([print], dtype=object), allow_pickle=True)
    else:
        (entry / "counts.npy").unlink()
    assert torch.equal(decode_split(train_split(pictures), (20, 20), "pad").images, right.images)
    assert decoding._load(entry, (len(right.images), 20, 20, 3)) is not None


def test_decoding_works_without_a_writable_cache(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a folder")
    monkeypatch.setenv("THUMBNET_CACHE", str(blocked))
    assert decode_split(train_split(pictures), (20, 20), "pad").images.shape[2:] == (20, 20)


def test_an_interrupted_writer_leaves_no_entry(
    cache: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save

    def die(path: Path, array: np.ndarray) -> None:
        if path.name == "counts.npy":
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(np, "save", die)
    with pytest.raises(KeyboardInterrupt):
        decode_split(train_split(pictures), (20, 20), "pad")
    assert list(cache.iterdir()) == []


def test_pictures_of_an_array_followed_by_files_are_decoded_as_each_would_be_alone(tmp_path: Path) -> None:
    arrays = coloured_data(6).splits["train"]
    paths = [str(write_picture(tmp_path / f"{n}.png", coloured(n % 3, 50 + n, side=24))) for n in range(2)]
    files = FileSplit(tmp_path, paths, np.array([0, 1]))
    joined = with_files(arrays, paths, files.labels)
    for size in ((16, 16), (20, 20)):
        parts = [decode_split(split, size, "pad").images for split in (arrays, files)]
        assert torch.equal(decode_split(joined, size, "pad").images, torch.cat(parts))


def test_a_failed_read_is_an_error_and_nothing_about_it_is_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = load_data(write_class_folders(tmp_path / "data", ["train", "test"])).splits["train"]
    load, failing = FileSplit.load, {2}

    def load_or_fail(self: FileSplit, index: int) -> object:
        if index in failing:
            raise FailedReadError(self.name(index), "Input/output error")
        return load(self, index)

    monkeypatch.setattr(FileSplit, "load", load_or_fail)
    work: list[Callable[[], object]] = [
        lambda: decoding.find_unreadable(split),
        lambda: decoding.readable(split),
        lambda: decode_split(split, (16, 16), "pad"),
        lambda: decoding.shared_size(split, "pad"),
    ]
    for each in work:
        with pytest.raises(FailedReadError, match=r"train/.*: Input/output error"):
            each()
    failing.add(4)
    for each in work:
        with pytest.raises(UnreadableFilesError, match="2 files cannot be read"):
            each()
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    failing.clear()
    assert not decoding.find_unreadable(split)


def test_damaged_pictures_next_to_a_failed_read_are_not_what_the_error_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_class_folders(tmp_path, ["train", "test"])
    split = load_data(root).splits["train"]
    (root / split.name(0)).write_bytes(b"no picture")
    with pytest.raises(UnreadableImagesError, match="1 picture"):
        decode_split(split, (16, 16), "pad")
    load = FileSplit.load

    def load_or_fail(self: FileSplit, index: int) -> object:
        if index == 3:
            raise FailedReadError(self.name(index), "Input/output error")
        return load(self, index)

    monkeypatch.setattr(FileSplit, "load", load_or_fail)
    with pytest.raises(FailedReadError, match=split.name(3)):
        decode_split(split, (16, 16), "pad")


def test_an_empty_split_has_no_unreadable_pictures(tmp_path: Path) -> None:
    split = load_data(write_class_folders(tmp_path, ["train", "test"])).splits["train"]
    assert decoding.find_unreadable(split.subset(np.array([], dtype=np.int64))) == {}


def test_a_whole_entry_stays_because_another_process_may_have_mapped_it(cache: Path, pictures: Path) -> None:
    decoded = decode_split(train_split(pictures), (20, 20), "pad")
    (entry,) = cache.iterdir()
    file = entry / "images.npy"
    before = file.stat()
    decoding._keep(entry, decoded)  # a slower process
    decoding._write(entry, lambda folder: (folder / "other").touch(), lambda: True)  # whole only by then
    assert file.stat() == before
    file.write_bytes(file.read_bytes()[:-1000])
    decoding._keep(entry, decoded)
    assert file.stat().st_size == before.st_size
    assert [path.name for path in cache.iterdir()] == [entry.name]


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Parts of four pictures, worth two more processes; the list has the processes that were forked."""
    started: list[int] = []

    def fork() -> int:
        process = really()
        if process:
            started.append(process)
        return process

    really = os.fork
    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(decoding, "_CHUNK", 4)
    monkeypatch.setattr(decoding, "_WORTH_A_THREAD", math.inf)  # however slow the first pictures are
    monkeypatch.setattr(decoding, "_WORTH_A_PROCESS", 1e-9)
    monkeypatch.setattr(decoding, "usable_cores", lambda: 3)
    return started


@pytest.mark.skipif(not forked.can_fork(), reason="processes are forked on Linux only")
class TestForked:
    """Decoding in several processes."""

    def test_the_pixels_are_the_same(
        self, cache: Path, pictures: Path, forks: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared = decode_split(train_split(pictures), (16, 16), "pad").images
        assert len(forks) == 2
        shutil.rmtree(cache)
        monkeypatch.setattr(forked, "can_fork", lambda: False)
        alone = decode_split(train_split(pictures), (16, 16), "pad").images
        assert len(forks) == 2
        assert torch.equal(shared, alone)

    def test_all_damaged_pictures_are_listed_in_order(self, pictures: Path, forks: list[int]) -> None:
        split = train_split(pictures)
        assert isinstance(split, FileSplit)
        damaged = [1, 5, 6, len(split) - 1]
        for index in damaged:
            split.file(index).write_bytes(split.file(index).read_bytes()[:50])
        with pytest.raises(UnreadableImagesError) as caught:
            decode_split(train_split(pictures), (16, 16), "pad")
        assert [error.name for error in caught.value.errors] == [str(split.file(index)) for index in damaged]
        assert list(decoding.find_unreadable(train_split(pictures))) == damaged
        assert len(forks) == 4

    def test_a_picture_of_another_size_is_found(self, pictures: Path, forks: list[int]) -> None:
        split = train_split(pictures)
        assert isinstance(split, FileSplit)
        write_picture(split.file(len(split) - 1), noise(0, 20, 40))
        assert shared_size(train_split(pictures), "crop") is None
        assert forks

    def test_progress_counts_every_picture(self, pictures: Path, forks: list[int]) -> None:
        told: list[tuple[int, int]] = []
        split = train_split(pictures)
        decode_split(split, (16, 16), "pad", lambda done, total: told.append((done, total)))
        counts = [done for done, _ in told]
        assert counts == sorted(set(counts))
        assert told[-1] == (len(split), len(split))

    def test_no_process_is_left_after_ctrl_c_in_the_display(self, pictures: Path, forks: list[int]) -> None:
        this = psutil.Process()
        before = this.children()

        def interrupt(done: int, total: int) -> None:
            if forks:
                raise KeyboardInterrupt

        kept: list[BaseException] = []  # like a notebook, which keeps the last error and its frames
        try:
            decode_split(train_split(pictures), (16, 16), "pad", interrupt)
        except KeyboardInterrupt as error:
            kept.append(error)
        assert this.children() == before
        assert len(forks) == 2
        assert kept

    def test_pictures_read_by_a_users_own_code_stay_in_this_process(self, forks: list[int]) -> None:
        class Own(FileSplit):
            forkable = False

        assert decoding._helpers(Own(Path(), [], np.zeros(0)), 60.0) == 0
        assert decoding._helpers(FileSplit(Path(), [], np.zeros(0)), 60.0) == 2
