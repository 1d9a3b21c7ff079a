"""Names of class folders, and files put into them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sorting_helpers import tree
from thumbnet import files
from thumbnet.classifiers import placing
from thumbnet.classifiers.placing import LONGEST, Target, folder_names
from thumbnet.errors import DataError, RunError


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cat", "cat"), ("big cat", "big cat"), ("猫", "猫"), ("a/b", "a_b"), ("..", "_"), (".", "_"), ("", "_"),
        ("../../etc", "_.._.._etc"), (".git", "_.git"), ("con", "_con"), ("NUL.txt", "_NUL.txt"), ("com1", "_com1"),
        ("console", "console"), ("end.", "end"), (" x ", "x"), ("a\\b:c*?", "a_b_c__"), ("a\x00b\n", "a_b_"),
        ("\udc80", "_"), ("unsure", "unsure-class"), ("Unlike", "Unlike-class"),
        ("سگ\u200cها", "سگ\u200cها"), ("a\u3000b", "a\u3000b"), ("a\u200cb", "a_b"),
    ],
)  # fmt: skip
def test_a_class_gets_a_folder_name_that_every_system_accepts(name: str, folder: str) -> None:
    assert folder_names([name]) == {name: folder}


def test_classes_whose_names_would_be_one_folder_get_numbers() -> None:
    found = folder_names(
        ["a/b", "a:b", "A_B", "é", unicodedata.normalize("NFD", "é"), "unsure", "unsure-class"]
    )
    assert list(found.values()) == [
        "a_b", "a_b-2", "A_B-3", "é", f"{unicodedata.normalize('NFD', 'é')}-2", "unsure-class", "unsure-class-2",
    ]  # fmt: skip


@settings(max_examples=40)
@given(st.lists(st.text(max_size=50), max_size=4, unique=True))
def test_folder_names_are_safe_and_differ_whatever_the_classes(names: list[str]) -> None:
    found = list(folder_names(names).values())
    assert len({one.casefold() for one in found} | {"unsure", "unlike"}) == len(found) + 2
    for one in found:
        assert one == os.path.basename(one)
        assert not one.startswith(".")
        assert one.rstrip(" .") == one
        assert 0 < len(one.encode()) <= LONGEST + 20


def target(root: Path, link: bool = False) -> Target:
    return Target(root, ["cat", "dog", "unsure", "unlike"], link)


def written(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def test_a_copy_has_the_content_and_the_time_of_the_original(tmp_path: Path) -> None:
    source = written(tmp_path / "in" / "x.png", b"one")
    os.utime(source, (1_000_000, 1_000_000))
    out = target(tmp_path / "out")
    with out.opened():
        out.put(source, "cat", "deep/x.png")
    copy = tmp_path / "out" / "cat" / "deep" / "x.png"
    assert copy.read_bytes() == b"one"
    assert copy.stat().st_mtime == 1_000_000
    assert not copy.samefile(source)
    assert tree(tmp_path / "out") == ["cat/deep/x.png"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_an_existing_file_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    source = written(tmp_path / "in" / "x.png", b"new")
    old = tmp_path / "out" / "cat" / "x.png"
    written(old, b"old")
    written(tmp_path / "out" / "cat" / "x-2.png", b"older")
    out = target(tmp_path / "out")
    with out.opened():
        out.put(source, "cat", "x.png")
        out.put(source, "cat", "x.png")  # the same content is there by now
    assert tree(tmp_path / "out") == ["cat/x-2.png", "cat/x-3.png", "cat/x.png"]
    assert [(tmp_path / "out" / "cat" / name).read_bytes() for name in ("x.png", "x-2.png", "x-3.png")] == [
        b"old", b"older", b"new",
    ]  # fmt: skip


def test_a_file_that_appears_while_another_is_copied_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, place = written(tmp_path / "x.png", b"new"), tmp_path / "out" / "cat" / "x.png"
    sync = os.fsync

    def appear(descriptor: int) -> None:
        sync(descriptor)
        if not place.exists():
            place.write_bytes(b"theirs")

    monkeypatch.setattr(os, "fsync", appear)
    target(tmp_path / "out").put(source, "cat", "x.png")
    assert place.read_bytes() == b"theirs"
    assert (place.parent / "x-2.png").read_bytes() == b"new"


def test_a_link_leads_to_the_original(tmp_path: Path) -> None:
    source = written(tmp_path / "in" / "x.png", b"one")
    out = target(tmp_path / "out", link=True)
    with out.opened():
        out.put(source, "dog", "x.png")
        out.put(source, "dog", "x.png")
    assert tree(tmp_path / "out") == ["dog/x.png"]
    assert os.readlink(tmp_path / "out" / "dog" / "x.png") == source


def test_a_picture_is_found_in_any_class_folder_under_its_path_or_its_number(tmp_path: Path) -> None:
    source = written(tmp_path / "in" / "x.png", b"mine")
    written(tmp_path / "out" / "cat" / "x.png", b"another")
    out = target(tmp_path / "out")
    with out.opened():
        assert out.find(tmp_path / "in", "x.png") is None
        out.put(source, "cat", "x.png")
    with out.opened():
        assert out.find(tmp_path / "in", "x.png") == "cat"
    (tmp_path / "out" / "unsure").mkdir()
    (tmp_path / "out" / "cat" / "x-2.png").rename(tmp_path / "out" / "unsure" / "x.png")
    moved = target(tmp_path / "out")
    with moved.opened():
        assert moved.find(tmp_path / "in", "x.png") == "unsure"
        assert moved.find(tmp_path / "in", "y.png") is None


def test_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "cat" / f".1234{placing.PART}"
    written(left, b"half")
    with target(tmp_path).opened():
        assert not left.exists()
    written(left, b"half")
    monkeypatch.setattr(
        placing, "sys", SimpleNamespace(platform="win32")
    )  # no lock there: another process may be writing it
    with target(tmp_path).opened():
        assert left.exists()
    old = time.time() - placing.DEAD_AFTER - 60
    os.utime(left, (old, old))
    with target(tmp_path).opened():
        assert not left.exists()


def test_a_failed_copy_leaves_nothing_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"x\.png: No space left on device.*repeat the command to go on"):
        target(tmp_path / "out").put(written(tmp_path / "x.png", b"x"), "cat", "x.png")
    assert tree(tmp_path / "out") == []


def test_a_file_in_place_of_a_class_folder_is_an_error(tmp_path: Path) -> None:
    written(tmp_path / "out" / "cat", b"a file")
    with pytest.raises(RunError, match="cannot write"):
        target(tmp_path / "out").put(written(tmp_path / "x.png", b"x"), "cat", "x.png")
    with pytest.raises(RunError, match="cannot create the folder"), target(tmp_path / "out" / "cat").opened():
        pass


def test_two_processes_cannot_sort_into_the_same_folder(tmp_path: Path) -> None:
    with (
        target(tmp_path).opened(),
        pytest.raises(RunError, match="another process is sorting into"),
        target(tmp_path).opened(),
    ):
        pass
    with target(tmp_path).opened():  # the lock is released
        pass


@pytest.mark.parametrize("out", ["in", "in/out", "in/deep/out", "link/out"])
def test_sorting_into_the_folder_that_is_sorted_is_refused(tmp_path: Path, out: str) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(DataError, match=r"is within .*in: .*Choose a folder outside"):
        target(tmp_path / out).check_apart(tmp_path / "in")


@pytest.mark.parametrize("folder", ["out/cat", "out/unsure/deep", "out/CAT", "link"])
def test_sorting_a_class_folder_into_itself_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "out" / "unsure" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "cat").mkdir()
    (tmp_path / "out" / "CAT").mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(tmp_path / "out" / "cat")
    with pytest.raises(DataError, match="is in the class folder"):
        target(tmp_path / "out").check_apart(tmp_path / folder)


def test_folders_side_by_side_or_in_another_folder_of_the_target_are_fine(tmp_path: Path) -> None:
    for folder in ("in", "out", "out/inbox"):
        (tmp_path / folder).mkdir()
    target(tmp_path / "out").check_apart(tmp_path / "in")
    target(tmp_path / "new").check_apart(tmp_path / "in")
    target(tmp_path / "out").check_apart(tmp_path / "out" / "inbox")


def test_a_link_into_a_class_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out" / "cat").mkdir(parents=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "more").symlink_to(tmp_path / "out" / "cat")
    (tmp_path / "in" / "fine").symlink_to(tmp_path)
    target(tmp_path / "out").check_links(tmp_path / "in", ["fine/x.png", "y.png"])
    with pytest.raises(DataError, match="more is in the class folder cat"):
        target(tmp_path / "out").check_links(tmp_path / "in", ["more/x.png"])


KILLED = """
import os, signal, sys
from pathlib import Path
from sorting_helpers import Grey
synced, calls = os.fsync, []
def killed(descriptor):
    synced(descriptor)
    calls.append(descriptor)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = killed
Grey().sort(sys.argv[1], sys.argv[2])
"""


def test_a_killed_sort_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    from sorting_helpers import DARK, Grey, picture

    for number in range(12):
        picture(tmp_path / "in" / f"{number:02}.png", DARK)
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "in", tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == -9
    left = tree(tmp_path / "out")
    whole = [name for name in left if not name.endswith(placing.PART)]
    assert len(whole) < 12
    assert len(left) > len(whole)  # unfinished copies
    for name in whole:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / Path(name).name).read_bytes()
    found = Grey().sort(tmp_path / "in", tmp_path / "out")
    assert tree(tmp_path / "out") == [f"dark/{number:02}.png" for number in range(12)]
    assert (found.counts["dark"], found.present["dark"]) == (12 - len(whole), len(whole))


def test_a_picture_whose_copy_ends_early_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size_of_more = SimpleNamespace(fspath=os.fspath, fstat=lambda file: SimpleNamespace(st_size=15))
    monkeypatch.setattr(files, "os", size_of_more)
    source = written(tmp_path / "x.png", b"picture")
    with pytest.raises(
        RunError, match=r"cannot read .*x\.png: only 7 of its 15 bytes.*repeat the command to go on"
    ):
        target(tmp_path / "out").put(source, "cat", "x.png")
    assert tree(tmp_path / "out") == []
