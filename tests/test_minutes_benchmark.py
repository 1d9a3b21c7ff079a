"""The benchmark of `thumbnet train --minutes`: what it measures, and that it continues where it was interrupted."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from benchmark_helpers import interrupt_and_continue
from helpers import write_class_folders

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import minutes as benchmark  # noqa: E402
from measure import SHARED  # noqa: E402

PAGE = ROOT / "docs" / "notebook" / "minutes.md"
RECORDS = ROOT / "docs" / "records"
# The commits of the records on the page.
OLDER, SHORT, LONG, SHARED_CORES = "3906664", "7919ce7", "03b3f67", "0e26cd0"
FOLDER, XEON = "fa9153e", "95cc62d"
TIMES = [0.5, 1, 2, 5, 10]


def test_a_training_is_the_whole_command_with_an_empty_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THUMBNET_KERNELS", "0")  # compiling them takes longer than this training
    monkeypatch.setattr(benchmark, "matrix_rate", lambda _: 2.0)
    cache = tmp_path / "cache"
    monkeypatch.setenv("THUMBNET_CACHE", str(cache))
    folder = write_class_folders(tmp_path / "data", ["train", "test"], per_class=9, side=20)
    found = benchmark.trained(str(folder), 0.03, 0, "cpu", "nothing")
    assert 0 <= found["accuracy"] <= 1
    assert 0 < found["seconds_training"] < found["seconds"] < 60
    assert found["epochs"] >= 1
    assert found["product_tflops"] == 2.0
    assert not cache.exists()


def test_every_time_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(source: str, minutes: float, seed: int, device: str, other: str) -> dict[str, float]:
        seconds = 60 * minutes + 3 * seed - 2 + 10 * (other == "stays")
        return {
            "accuracy": 0.7 + 0.1 * seed,
            "seconds": seconds,
            "epochs": 2,
            "width": 0.5,
            "product_tflops": 2.0,
        }

    words = ["photos/", "pictures/", "--minutes", "0.5", "2", "--seeds", "2"]
    words += ["--other-training", "nothing", "stays"]
    file = tmp_path / "found.json"
    assert interrupt_and_continue(benchmark, "trained", trained, words, file, monkeypatch) == 16
    table = " ".join(capsys.readouterr().out.split())
    assert "photos 0.5 75.00 ± 7.07 29.5 (28.0 to 31.0) 98 % +1.0 2 0.5 2.00" in table
    assert "pictures 2 75.00 ± 7.07 119.5 (118.0 to 121.0) 100 % +1.0" in table
    assert "n = 2, another training: stays" in table
    assert "pictures 2 75.00 ± 7.07 129.5 (128.0 to 131.0) 108 % +11.0" in table


@pytest.mark.parametrize(
    ("moment", "acts"),
    [
        ("nothing", ["in", "stop"]),
        ("begins", ["in", "start", "stop"]),
        ("ends", ["start", "in", "stop", "stop"]),
        ("stays", ["start", "in", "stop"]),
    ],
)
def test_another_training_runs_when_it_should(
    moment: str, acts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    class Timer:
        """One whose time passes within the block."""

        def __init__(self, seconds: float, act: Callable[[], None]) -> None:
            assert seconds == pytest.approx(0.4 * 120)
            self.start, self.cancel = lambda: due.append(act), due.clear

    due: list[Callable[[], None]] = []
    monkeypatch.setattr("threading.Timer", Timer)
    monkeypatch.setattr("time.sleep", lambda _: None)
    another = mock.Mock(start=lambda: done.append("start"), stop=lambda: done.append("stop"))
    with benchmark.other_work(moment, another, 2.0):
        done.append("in")
        for act in due:
            act()
    assert done == acts


def test_another_training_ends_with_its_folder(tmp_path: Path) -> None:
    another = benchmark.Another(str(tmp_path / "no such data"), "cpu", tmp_path)
    another.stop()
    another.start()
    assert another._process is None, "it was over before it began"
    another = benchmark.Another(str(tmp_path / "no such data"), "cpu", tmp_path)
    another.start()
    another.stop()
    assert another._process is not None
    assert another._process.returncode is not None


def recorded(folder: str, commit: str) -> dict[str, Any]:
    """The record of a commit."""
    (file,) = (RECORDS / folder).glob(f"*-{commit}.json")
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


def table(
    commit: str,
    minutes: list[float],
    other: str = benchmark.ALONE,
    source: str = SHARED.name,
    seeds: int = 3,
) -> list[list[str]]:
    """The benchmark's rows of a record, without the name of the data."""
    options = Namespace(minutes=minutes, seeds=seeds)
    found = recorded("minutes", commit)["results"]
    return [row[1:] for row in benchmark.rows(found, [source], options, other)]


def test_every_record_is_on_the_page() -> None:
    files = [path.stem.split("-")[3] for path in (RECORDS / "minutes").iterdir()]
    assert sorted(files) == sorted([OLDER, SHORT, LONG, SHARED_CORES, FOLDER, XEON]), (
        "add the new record to the page and to this test"
    )
    assert all(commit in PAGE.read_text("utf-8") for commit in files)


def test_the_tables_of_all_times_are_those_of_the_records() -> None:
    page = PAGE.read_text("utf-8")
    found = [*table(SHORT, TIMES[:4]), *table(LONG, [10]), *table(XEON, [*TIMES, 3])]
    for minutes, accuracy, seconds, part, over, epochs, width, _ in found:
        row = f"{minutes} | {seconds} | {part} | {over} | {epochs} | {width} | {accuracy} |"
        assert f"\n| CIFAR-10 (JPEG copy) | {row}\n" in page


def test_the_table_of_a_folder_is_that_of_the_record() -> None:
    page = PAGE.read_text("utf-8")
    for minutes, seeds in ((TIMES[:3], 3), (TIMES[3:], 1)):
        for time, accuracy, *found, _ in table(FOLDER, minutes, source="two-thousand", seeds=seeds):
            assert f"\n| {time} | {seeds} | {' | '.join(found)} | {accuracy} |\n" in page


def test_the_table_with_another_training_is_that_of_the_record() -> None:
    page = PAGE.read_text("utf-8")
    for other in ("begins", "ends", "stays"):
        [(_, accuracy, *found, _)] = table(SHARED_CORES, [2], other)
        assert f"\n| {other} | {' | '.join(found)} | {accuracy} |\n" in page


def test_the_table_of_then_and_now_is_that_of_the_records() -> None:
    page = PAGE.read_text("utf-8")
    for (minutes, then, *_), (_, now, *_) in zip(table(OLDER, TIMES), table(SHORT, TIMES), strict=True):
        note = r"( \([^)]*\))?"  # on the width
        assert re.search(rf"\n\| {minutes}{note} \| {then}{note} \| {now} \|\n", page), (minutes, then, now)


def test_the_table_of_the_xeon_is_that_of_the_comparison_with_other_libraries() -> None:
    page = PAGE.read_text("utf-8")
    for minutes, run in recorded("rivals", "736621f")["runs"]["thumbnet"].items():
        part = f"{100 * run['seconds'] / 60 / float(minutes):.0f} %"
        row = f"{minutes} | {run['seconds']:.1f} | {part} | {run['epochs']} epochs | {100 * run['accuracy']:.2f} |"
        assert f"\n| CIFAR-10 (JPEG copy) | {row}\n" in page
