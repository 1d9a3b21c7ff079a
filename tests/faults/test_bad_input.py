"""Three hundred broken pictures and twenty broken folders: each gives a clear error or is handled as documented.

Everything runs with limits: five seconds per picture, and 1 GiB of additional memory.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest
from PIL import Image

from faults.broken import LARGEST, corpus
from helpers import TINY, coloured, noise, open_image, write_class_folders, write_picture
from thumbnet.cli import main
from thumbnet.errors import UnreadableImageError, printable
from thumbnet.runs.folder import Run

SECONDS = 5  # per picture
COMMAND_SECONDS = 20  # per command, which may train a network and decode hundreds of pictures
GIBIBYTE = 1 << 30
FILES = dict(corpus())
NAMES = [*FILES, *LARGEST]
TRAINING = ["--recipe", "one-cycle", *(f"--set={setting}" for setting in TINY), "--set=training.epochs=1"]


@dataclass
class Outcome:
    status: int
    out: str
    errors: str


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """Let the garbage collections in :func:`limits` look only at objects that these tests create."""
    # PyTorch imports it for its first optimizer, for seconds where the computer is busy. An import that a time
    # limit interrupts would make all later tests of this process fail.
    importlib.import_module("torch._dynamo")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@contextlib.contextmanager
def limits(seconds: int = SECONDS) -> Iterator[None]:
    """Fail if the code in the context takes too much time or memory."""

    def too_slow(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done after {seconds} s")

    gc.collect()
    before = memory("VmRSS") if forget_peak() else None
    former = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
    if before is not None:
        used = memory("VmHWM") - before
        assert used < GIBIBYTE, f"{used / GIBIBYTE:.2f} GiB of memory"


def forget_peak() -> bool:
    """Reset this process's peak memory, see proc(5). Return False if that is impossible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return memory("VmHWM") < memory("VmRSS") + (64 << 20)


def memory(which: str) -> int:
    """The memory of this process in bytes: now (VmRSS), or at its peak (VmHWM)."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def run(*arguments: str | Path) -> Outcome:
    out, errors = io.StringIO(), io.StringIO()
    with limits(COMMAND_SECONDS), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
    outcome = Outcome(status, out.getvalue(), errors.getvalue())
    assert "Traceback" not in outcome.errors
    assert outcome.status in (0, 1, 2)
    if outcome.status:
        assert "thumbnet: " in outcome.errors
    return outcome


def test_the_corpus_is_large_enough() -> None:
    assert len(NAMES) >= 300
    assert len({name.partition("-")[0] for name in NAMES}) >= 20


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[1:60] for name in NAMES])
def test_a_broken_picture_is_read_or_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name] if name in FILES else LARGEST[name]())
    with limits():
        found = outcome_of(path, name)
    if isinstance(found, UnreadableImageError):
        assert found.name == name
        assert 0 < len(found.reason) < 500
    else:
        assert found.mode == "RGB"
        assert 0 < found.width * found.height <= 64_000_000


def outcome_of(path: Path, name: str) -> Image.Image | UnreadableImageError:
    try:
        return open_image(str(path), name)
    except UnreadableImageError as error:
        return error


@pytest.fixture(scope="module")
def unreadable() -> set[str]:
    """The names of the files that cannot be read. The largest are not among them, and not tried again."""
    found = set()
    for name, content in FILES.items():
        try:
            open_image(content, name)
        except UnreadableImageError:
            found.add(name)
    assert len(found) > 200
    return found


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory, unreadable: set[str]) -> Path:
    """Three classes. One has the whole corpus except for the largest pictures; ``test`` has a few files of it."""
    root = write_class_folders(tmp_path_factory.mktemp("bad") / "data", ["train", "test"], per_class=4)
    for name, content in FILES.items():
        (root / "train" / "red" / name).write_bytes(content)
    for name in sorted(unreadable)[:7]:
        (root / "test" / "blue" / name).write_bytes(FILES[name])
    return root


def test_by_default_training_stops_and_lists_all_unreadable_pictures(
    bad_folder: Path, unreadable: set[str], tmp_path: Path
) -> None:
    outcome = run("train", bad_folder, *TRAINING, "--out", tmp_path / "run")
    assert outcome.status == 2
    missing = [name for name in unreadable if printable(name) not in outcome.errors]
    assert not missing
    assert f"{len(unreadable) + 7} picture(s)" in outcome.errors
    assert "--on-bad-image skip" in outcome.errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", ["memory", "workers"])
def test_unreadable_pictures_can_be_skipped_and_are_recorded(
    bad_folder: Path, unreadable: set[str], tmp_path: Path, engine: str
) -> None:
    out = tmp_path / "run"
    options = ["--on-bad-image", "skip", f"--set=data.engine={engine}", "--image-size", "16"]
    outcome = run("train", bad_folder, *TRAINING, *options, "--out", out)
    assert outcome.status == 0, outcome.errors
    assert "picture(s) skipped" in outcome.errors
    records = [json.loads(line) for line in (out / "skipped.jsonl").read_text("utf-8").splitlines()]
    trained = {Path(record["name"]).name for record in records if record["split"] in ("train", "calibration")}
    assert trained == unreadable
    assert sum(record["split"] == "test" for record in records) == 7
    assert all(record["reason"] for record in records)
    assert Run(out).summary["skipped_pictures"] == len(unreadable) + 7
    again = run("evaluate", out)  # with the settings of the training
    assert again.status == 0, again.errors
    assert "7 unreadable picture(s) were skipped" in again.errors
    assert run("evaluate", out, "--on-bad-image", "stop").status == 2


def test_predict_continues_after_unreadable_pictures(
    bad_folder: Path, unreadable: set[str], tiny_run: Run
) -> None:
    outcome = run("predict", tiny_run.path, bad_folder / "train" / "red", "--json")
    assert outcome.status == 1
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert {Path(line["path"]).name for line in lines if "error" in line} == unreadable


def test_data_lists_unreadable_pictures(bad_folder: Path, unreadable: set[str]) -> None:
    outcome = run("data", bad_folder, "--json")
    assert outcome.status == 0
    assert len(json.loads(outcome.out)["unreadable"]) == len(unreadable) + 7


def test_a_class_without_readable_pictures_is_named(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path, ["train", "test"], per_class=3)
    for path in (root / "train" / "green").iterdir():
        path.write_bytes(b"x")
    outcome = run("train", root, *TRAINING, "--on-bad-image", "skip", "--out", tmp_path / "run")
    assert outcome.status == 2
    assert "green" in outcome.errors


# --- folders ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "data", ["train", "test"], per_class=3)


def refused(folder: Path, *words: str) -> None:
    """Check that both commands that read a folder refuse it with these words."""
    for outcome in (run("data", folder), run("train", folder, *TRAINING, "--out", folder.parent / "run")):
        assert outcome.status == 2
        assert all(word in outcome.errors for word in words), outcome.errors


def accepted(folder: Path, *words: str, train: int = 9) -> None:
    """Check that both commands accept a folder, with these words in the notes."""
    outcome = run("data", folder, "--json")
    assert outcome.status == 0, outcome.errors
    found = json.loads(outcome.out)
    assert all(word in str(found) for word in words), found["notes"]
    outcome = run("train", folder, *TRAINING, "--out", folder.parent / "run")
    assert outcome.status == 0, outcome.errors
    assert f"{train} train" in outcome.errors


def test_a_link_to_a_parent_folder_is_refused(folder: Path) -> None:
    (folder / "train" / "loop").symlink_to(folder / "train", target_is_directory=True)
    refused(folder, "loop", "link")


def test_circular_links_in_a_class_are_not_followed(folder: Path) -> None:
    (folder / "train" / "red" / "loop").symlink_to(folder / "train" / "red", target_is_directory=True)
    (folder / "train" / "red" / "a.png").symlink_to("b.png")
    (folder / "train" / "red" / "b.png").symlink_to("a.png")
    outcome = run("train", folder, *TRAINING, "--out", folder.parent / "run")
    assert outcome.status == 2
    assert "2 picture(s) cannot be read" in outcome.errors


def test_a_broken_link_is_an_unreadable_picture(folder: Path) -> None:
    (folder / "train" / "red" / "gone.png").symlink_to(folder / "nowhere.png")
    outcome = run("train", folder, *TRAINING, "--out", folder.parent / "run")
    assert outcome.status == 2
    assert "gone.png: there is no such file" in outcome.errors


def test_links_to_pictures_are_followed(folder: Path) -> None:
    (folder / "train" / "red" / "linked.png").symlink_to(folder / "train" / "red" / "0.png")
    accepted(folder, train=10)


def test_pipes_sockets_and_devices_are_skipped(folder: Path) -> None:
    os.mkfifo(folder / "train" / "red" / "pipe.png")
    (folder / "train" / "red" / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        former = Path.cwd()
        os.chdir(folder / "train" / "red")  # the path of a socket must be short
        try:
            listening.bind("socket.png")
        finally:
            os.chdir(former)
        accepted(folder, "skipped 3 file(s)")


def test_predict_refuses_a_pipe_or_a_device(folder: Path, tiny_run: Run) -> None:
    os.mkfifo(folder / "pipe.png")
    outcome = run(
        "predict", tiny_run.path, folder / "pipe.png", "/dev/zero", folder / "train" / "red" / "0.png"
    )
    assert outcome.status == 1
    assert outcome.out.count("not an ordinary file") == 2


def test_an_empty_class_is_named_and_skipped(folder: Path) -> None:
    (folder / "train" / "purple").mkdir()
    accepted(folder, "purple", "no pictures")


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "data" / "train" / "cat" / "0.png", noise(0))
    write_picture(tmp_path / "data" / "test" / "cat" / "0.png", noise(1))
    refused(tmp_path / "data", "two classes")


def test_classes_that_differ_only_in_case_are_kept_apart_with_a_note(folder: Path) -> None:
    for number in range(3):
        write_picture(folder / "train" / "Red" / f"{number}.png", coloured(1, number))
    accepted(folder, "differ only in case", train=12)


def test_a_class_that_only_test_has_is_named(folder: Path) -> None:
    write_picture(folder / "test" / "purple" / "0.png", noise(0))
    refused(folder, "purple")


def test_a_picture_in_two_splits_is_found(folder: Path) -> None:
    shutil.copy(folder / "train" / "red" / "0.png", folder / "test" / "red" / "again.png")
    outcome = run("data", folder, "--json")
    assert outcome.status == 0
    assert "again.png" in json.dumps(json.loads(outcome.out)["duplicates"])


def test_an_empty_folder_a_file_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("empty", "file", "nowhere", "a\nb", "x" * 300, "\0", ""):
        outcome = run("data", tmp_path / name if name else "")
        assert outcome.status == 2, name


def test_names_in_any_script_and_deep_folders_are_accepted(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for label, name in enumerate(("猫", "собака", "grüne Äpfel", "with space")):
        for number in range(3):
            write_picture(root / "train" / name / f"{number} – é.png", coloured(label, number))
    deep = root / "train" / "猫" / Path(*["d"] * 60)
    write_picture(deep / "x.png", coloured(0, 7))
    shutil.copytree(root / "train", root / "test")
    accepted(root, train=13)


@pytest.mark.parametrize("name", [b"b\xff\xfe", b"a\nb", b"\x1b[31m"])
def test_class_names_that_are_not_text_are_refused(name: bytes, folder: Path) -> None:
    write_picture(folder / "train" / os.fsdecode(name) / "0.png", noise(0))
    refused(folder, "Rename", printable(os.fsdecode(name)))


def test_a_file_name_may_contain_bytes_that_are_not_text(folder: Path) -> None:
    name = os.fsdecode(b"\xff\xfe\x80.png")
    write_picture(folder / "train" / "red" / name, coloured(0, 50))
    accepted(folder, train=10)
    (folder / "train" / "red" / name).write_bytes(b"x")
    shutil.rmtree(folder.parent / "run")
    assert run("train", folder, *TRAINING, "--out", folder.parent / "run").status == 2
    skipping = run("train", folder, *TRAINING, "--on-bad-image", "skip", "--out", folder.parent / "run")
    assert skipping.status == 0, skipping.errors


def test_hidden_and_other_files_are_skipped(folder: Path) -> None:
    for name in (".hidden.png", "Thumbs.db", "notes.txt", "._0.png"):
        (folder / "train" / "red" / name).write_bytes(b"x")
    accepted(folder, "skipped 2 file(s)")


def test_a_folder_with_the_name_of_a_picture_is_ignored(folder: Path) -> None:
    (folder / "train" / "red" / "folder.png").mkdir()
    accepted(folder)


def test_a_file_in_the_place_of_a_class_is_ignored(folder: Path) -> None:
    (folder / "train" / "purple").write_bytes(b"x")
    accepted(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"red\nred\n", b"\n\n\n", b"x" * 1_000_000])
def test_broken_label_files_are_refused(content: bytes, tmp_path: Path) -> None:
    for number in range(6):
        write_picture(
            tmp_path / "data" / "train" / f"{number}_{('red', 'green')[number % 2]}.png", noise(number)
        )
    (tmp_path / "data" / "labels.txt").write_bytes(content)
    assert run("data", tmp_path / "data").status == 2


def test_pictures_of_extreme_shapes_can_be_trained_on(tmp_path: Path) -> None:
    for label, name in enumerate(("a", "b")):
        for number, size in enumerate([(1, 1), (5000, 1), (1, 5000), (16, 16), (3, 700)]):
            write_picture(
                tmp_path / "data" / name / f"{number}.png", Image.new("RGB", size, (99 * label, 0, 9))
            )
    accepted(tmp_path / "data", train=8)
