from __future__ import annotations

import errno
import json
import math
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import filelock
import pytest

from thumbnet import files
from thumbnet.errors import RunError
from thumbnet.files import (
    cache_folder,
    check_folder,
    check_new,
    check_output,
    clear_leftovers,
    locked,
    read_json,
    read_whole,
    reason,
    remove_file,
    user_path,
    write_file,
    write_private,
    write_with,
)


def test_a_file_is_replaced_and_has_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_file(path, "first")
    write_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_readable_for_its_user_only(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_file(path, "open")
    write_private(path, b"private")
    assert path.read_text() == "private"
    assert path.stat().st_mode & 0o777 == 0o600


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_threads_that_write_files_leave_the_umask_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The umask belongs to the process: whatever changes it to read it, changes it for all threads."""

    def change(mask: int) -> int:
        changed.append(mask)
        return 0o027

    changed: list[int] = []
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch, ThreadPoolExecutor(3) as threads:
            patch.setattr(os, "umask", change)
            list(threads.map(lambda number: write_file(tmp_path / f"{number}.txt", "text"), range(9)))
    finally:
        left = os.umask(before)
    assert (changed, left) == ([], 0o027)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("disk full")])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(
    error: Exception, tmp_path: Path
) -> None:
    path = tmp_path / "x.txt"
    write_file(path, "before")

    def fail(file: object) -> None:
        raise error

    with pytest.raises(RunError, match=r"cannot write .*x\.txt: .*The former file is kept"):
        write_with(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_with(tmp_path / "x", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_error_is_reported_even_if_the_temporary_file_is_gone(tmp_path: Path) -> None:
    def remove_and_fail(file: IO[bytes]) -> None:
        Path(file.name).unlink()
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left on device"):
        write_with(tmp_path / "x", remove_and_fail)


def test_the_error_is_reported_even_if_the_temporary_file_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    def fail(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunError, match="No space left on device"):
        write_with(tmp_path / "x", fail)
    with pytest.raises(RunError, match="cannot remove .*x: Permission denied"):
        remove_file(tmp_path / "x")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write .*nowhere/x: No such file"):
        write_file(tmp_path / "nowhere" / "x", "text")
    with pytest.raises(RunError, match="cannot write .*nowhere/x: there is no folder .*nowhere"):
        check_output(tmp_path / "nowhere" / "x")


def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    real, link, dangling = tmp_path / "kept" / "real.txt", tmp_path / "link.txt", tmp_path / "new.txt"
    real.write_text("before")
    link.symlink_to(Path("kept", "real.txt"))
    dangling.symlink_to(Path("kept", "made.txt"))
    write_file(link, "after")
    write_file(dangling, "new")
    assert (link.is_symlink(), dangling.is_symlink()) == (True, True)
    assert real.read_text() == "after"
    assert sorted(path.name for path in real.parent.iterdir()) == ["made.txt", "real.txt"]


def test_what_is_not_a_file_is_never_replaced_by_one(tmp_path: Path) -> None:
    pipe, folder, link = tmp_path / "pipe", tmp_path / "folder", tmp_path / "link"
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to(pipe)
    for place, why in ((pipe, "a device or a pipe"), (link, "a device or a pipe"), (folder, "a folder")):
        with pytest.raises(RunError, match=f"cannot write {place}: it is {why}"):
            write_file(place, "text")
    assert pipe.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder", "link"}


def test_bytes_of_a_file_name_that_are_not_utf_8_can_be_written(tmp_path: Path) -> None:
    write_file(tmp_path / "x", "a\udcffb")
    assert (tmp_path / "x").read_bytes() == b"a\\udcffb"


def test_the_file_is_synced_to_disk_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    synced, replaced = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        events.append("sync")
        synced(descriptor)

    def rename(self: Path, to: Path) -> Path:
        events.append("rename")
        return replaced(self, to)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    write_file(tmp_path / "x", "text")
    assert events == ["sync", "rename", "sync"]  # sync the file, rename it, sync the folder


def test_the_cache_folder_is_that_of_the_environment_variable_or_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("THUMBNET_CACHE")
    assert cache_folder().name == "thumbnet"
    assert cache_folder() != tmp_path


def test_only_old_folders_with_the_prefix_are_removed(tmp_path: Path) -> None:
    for name, age in (("part-old", 24 * 3600 + 60), ("part-new", 24 * 3600 - 60), ("other-old", 25 * 3600)):
        (tmp_path / name / "inside").mkdir(parents=True)
        past = time.time() - age
        os.utime(tmp_path / name, (past, past))
    clear_leftovers(tmp_path, "part-")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other-old", "part-new"]


def test_a_lock_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, "busy"), pytest.raises(RunError, match="^busy$"), locked(path, "busy"):
        pass
    with locked(path, "busy"):
        pass
    path.write_text("a file, not a folder")
    with pytest.raises(RunError, match="cannot write in .*lock"), locked(path / "inside", "busy"):
        pass


def test_a_new_folder_and_its_parents_are_synced_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    files.make_folder(tmp_path / "a" / "b")
    assert set(synced) == {tmp_path, tmp_path / "a"}
    synced.clear()
    files.make_folder(tmp_path / "a" / "b")  # an earlier process may have been killed before it synced
    assert synced == [tmp_path / "a"]


def test_everything_below_a_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"content")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    files.sync_below(tmp_path)
    paths = (tmp_path, tmp_path / "inner", tmp_path / "inner" / "file")
    assert set(synced) == {path.stat().st_ino for path in paths}


def test_json_has_no_numbers_that_are_not_finite(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"a": math.inf, "b": [math.nan, 1.5], "c": {"d": -math.inf}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


class EndsEarly:
    """Stands for ``os`` where the file system knows of more bytes than can be read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fstat(self, descriptor: int) -> SimpleNamespace:
        return SimpleNamespace(st_size=os.fstat(descriptor).st_size + 7)


def test_a_file_that_ends_early_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": 1}')
    assert read_whole(path) == b'{"a": 1}'
    assert read_whole(path, limit=3) == b'{"a'
    monkeypatch.setattr(files, "os", EndsEarly())
    with pytest.raises(OSError, match=r"only 8 of its 15 bytes could be read.*x\.json"):
        read_whole(path)
    assert read_whole(path, limit=8) == b'{"a": 1}'
    with pytest.raises(RunError, match=r"cannot read .*x\.json.*only 8 of its 15 bytes"):
        read_json(path)


def test_an_error_in_the_middle_of_a_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        read_whole(tmp_path)


def test_a_full_disk_is_named_even_if_a_library_names_something_else(tmp_path: Path) -> None:
    def write(file: IO[bytes]) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(RunError, match=r"cannot write .*x: No space left on device$"):  # no former file
        write_with(tmp_path / "x", write)
    assert reason(ValueError("of another kind")) == "of another kind"


def test_a_typed_path_may_begin_with_the_home_folder_or_with_a_tilde_that_means_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/pets") == tmp_path / "pets"
    for name in ("~nobody-is-called-this/pets", "pets~", "/data/~pets", ""):
        assert user_path(name) == Path(name)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other locks")
def test_without_locks_of_the_system_the_error_names_the_file_that_a_killed_process_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "lock"
    path.touch()  # also what a process leaves that had a lock of the system
    with (
        pytest.warns(UserWarning, match="flock"),
        pytest.raises(RunError, match=f"^busy. If there is none, .*{path}: remove it"),
        locked(path, "busy"),
    ):
        pass
    path.unlink()
    with pytest.warns(UserWarning, match="flock"), locked(path, "busy"):
        assert path.exists()
    assert not path.exists()

    def not_known(lock: object) -> None:
        raise NotImplementedError("use SoftFileLock")  # older versions of filelock

    monkeypatch.setattr(filelock.FileLock, "acquire", not_known)
    with (
        pytest.raises(RunError, match="cannot lock .*lock: the file system has no locks"),
        locked(path, "busy"),
    ):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked only on Unix")
def test_a_lock_is_free_once_all_processes_of_a_killed_training_have_ended(tmp_path: Path) -> None:
    """With filelock before version 4, a forked process keeps the lock of its parent."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from thumbnet.files import locked\n"
        "with locked(Path(sys.argv[1]), 'busy'):\n"
        "    if not os.fork():\n"
        "        time.sleep(1)\n"  # outlives its parent
        "    os._exit(0)\n"  # without releasing the lock
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=True)
    with locked(tmp_path / "lock", "busy", wait=30):
        pass


class FolderTrouble:
    """Stands for ``os`` where syncing or opening a folder fails."""

    def __init__(self, fsync: int = 0, opened: int = 0, listable: bool = True) -> None:
        self._fsync, self._opened, self._listable = fsync, opened, listable

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def access(self, folder: Path, mode: int) -> bool:
        return self._listable

    def open(self, folder: Path, flags: int) -> int:
        if self._opened:
            raise OSError(self._opened, os.strerror(self._opened), str(folder))
        return os.open(folder, flags)

    def fsync(self, descriptor: int) -> None:
        if self._fsync and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(self._fsync, os.strerror(self._fsync))


@pytest.mark.parametrize(
    "trouble",
    [
        FolderTrouble(fsync=errno.EINVAL),
        FolderTrouble(fsync=errno.ENOTSUP),
        FolderTrouble(opened=errno.EACCES, listable=False),
    ],
)
def test_a_file_system_that_cannot_sync_folders_can_be_written_to(
    trouble: FolderTrouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "os", trouble)
    files.make_folder(tmp_path / "a" / "b")
    write_file(tmp_path / "a" / "b" / "x", "text")
    files.sync_below(tmp_path)
    assert (tmp_path / "a" / "b" / "x").read_text() == "text"


@pytest.mark.parametrize(
    "trouble",
    [
        FolderTrouble(fsync=errno.EIO),
        FolderTrouble(fsync=errno.ENOSPC),
        FolderTrouble(opened=errno.EACCES),
        FolderTrouble(opened=errno.EIO),
    ],
)
def test_an_error_after_the_rename_does_not_say_that_the_former_file_is_kept(
    trouble: FolderTrouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    write_file(path, "former")
    monkeypatch.setattr(files, "os", trouble)
    with pytest.raises(RunError, match="cannot write .*x: .* The new file is in its place") as caught:
        write_file(path, "new")
    assert "former" not in str(caught.value)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_replaces_nothing_not_even_a_broken_link(tmp_path: Path) -> None:
    check_new(tmp_path / "new.csv")
    (tmp_path / "old.csv").write_text("kept")
    (tmp_path / "link.csv").symlink_to("nowhere")
    for name in ("old.csv", "link.csv", ""):
        with pytest.raises(RunError, match="already exists: choose another name, or remove it"):
            check_new(tmp_path / name)
    with pytest.raises(RunError, match="there is no folder"):
        check_new(tmp_path / "nowhere" / "x.csv")


def test_whether_a_folder_can_be_written_to_is_known_before_it_exists(
    tmp_path: Path, read_only: Path
) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    for path in (read_only, read_only / "a" / "b"):
        with pytest.raises(RunError, match=r"the folder .*read-only is not writable"):
            check_folder(path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name, what in (("file", "a file"), ("link", "a link to nothing")):
        with pytest.raises(RunError, match=f"cannot write in .*{name}/a: .*{name} is {what}"):
            check_folder(tmp_path / name / "a")
