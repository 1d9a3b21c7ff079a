"""``benchmarks/rivals.py``: its plan, its results file, and what it does with a rival that fails.

No rival is installed here, so stand-ins take their place.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "rival_programs")]
import common  # noqa: E402
import resumable  # noqa: E402
import rivals  # noqa: E402

RECORDS = ROOT / "docs" / "records" / "rivals"
GOOD = """
import common
clock = common.Clock()
clock.start(); clock.stop()
common.main(lambda task: common.result(clock.seconds, 0.5, common.Plan(2, 25_000), "good 1.0", task.budget))
"""
HANGING = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("per_picture", "budget", "expected"),
    [
        (0.001, 500, common.Plan(10, 50_000)),  # ten epochs exactly
        (0.001, 530, common.Plan(10, 50_000)),  # little time left over
        (0.001, 90, common.Plan(2, 45_000)),  # 1.8 epochs
        (0.001, 54, common.Plan(1, 50_000)),  # 1.08 epochs
        (0.001, 20, common.Plan(1, 20_000)),  # less than one epoch
        (10.0, 1, common.Plan(1, 64)),  # not even a batch
    ],
)
def test_the_plan_fills_the_time(per_picture: float, budget: float, expected: common.Plan) -> None:
    assert common.plan(per_picture, budget, 50_000, 64) == expected


@pytest.mark.parametrize("epochs", [0.07, 0.5, 0.99, 1.05, 1.3, 2.5, 7.2, 9.99, 33.3])
def test_the_plan_is_never_too_long_and_leaves_at_most_a_tenth(epochs: float) -> None:
    made = common.plan(1e-3, 50 * epochs, 50_000, 64)
    used = made.epochs * made.pictures / 50_000
    assert 0.9 * epochs - 1e-3 <= used <= epochs + 1e-9
    assert made.pictures <= 50_000


def test_the_first_steps_do_not_count_for_the_speed() -> None:
    assert common.seconds_per_step([9.0, 19.0, 20.0, 20.5, 21.0], warmup=2) == 0.5


def test_a_probe_that_ended_too_early_says_so() -> None:
    with pytest.raises(ValueError, match="ended after 3 steps, but needs 4"):
        common.seconds_per_step([1.0, 2.0, 3.0], warmup=2)


def test_a_probe_stops_after_a_sixth_of_a_short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter(range(1000))
    clock = SimpleNamespace(perf_counter=lambda: float(next(ends)))
    monkeypatch.setattr(common, "time", clock)
    probe = common.Probe(30)  # leaves out one step, measures more than 5 seconds
    steps = 1
    while not probe.tick():
        steps += 1
    assert steps == 1 + 7
    assert probe.per_step == 1.0


def test_a_training_without_a_step_has_no_time() -> None:
    clock = common.Clock()
    clock.start()
    with pytest.raises(ValueError, match="ended without a step"):
        _ = clock.seconds


def test_a_part_of_the_pictures_has_all_classes_alike(tmp_path: Path) -> None:
    for split, each in (("train", 20), ("test", 3)):
        for name in "abcd":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(each):
                (tmp_path / split / name / f"{number:02}.jpg").write_text(f"{split} {name} {number}")
    part = common.link_pictures(tmp_path, tmp_path / "part", train=8)
    assert [len(list((part / "train" / name).iterdir())) for name in "abcd"] == [2, 2, 2, 2]
    assert len(list((part / "test").glob("*/*"))) == 12
    for link in part.glob("*/*/*"):
        assert link.read_text() == f"{link.parts[-3]} {link.parts[-2]} {int(link.stem)}"


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What ``main`` reads; programs are looked for in ``tmp_path``, which has a copy of common.py."""
    (tmp_path / "common.py").write_text(Path(common.__file__).read_text("utf-8"))
    monkeypatch.setattr(rivals, "PROGRAMS", tmp_path)
    monkeypatch.setattr(rivals, "BUILD", tmp_path)
    return argparse.Namespace(clones=tmp_path, data=tmp_path / "archive.tar.xz", threads=1)


def stand_in(folder: Path, program: str, **more: Any) -> rivals.Rival:
    (folder / "program.py").write_text(program)
    return rivals.Rival("it", "It", "program.py", "it --fast", "https://example.org", **more)


def test_a_result_has_accuracy_seconds_and_memory(
    options: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        rivals, "SAMPLE_SECONDS", 0.05
    )  # the first sample may be from before Python has started
    run = rivals.train(stand_in(tmp_path, f"import time\ntime.sleep(0.5)\n{GOOD}"), 0.5, options, tmp_path)
    assert run["accuracy"] == 0.5
    assert run["measured_seconds_per_picture"] == 30  # the program got the minutes
    assert run["memory_bytes"] > 1_000_000


def test_a_rival_that_fails_is_recorded_with_its_last_line(
    options: argparse.Namespace, tmp_path: Path
) -> None:
    run = rivals.train(stand_in(tmp_path, "raise ValueError('no luck')"), 1, options, tmp_path)
    assert run == {"failed": "status 1: ValueError: no luck"}


def test_a_rival_that_writes_no_result_is_recorded_as_failed(
    options: argparse.Namespace, tmp_path: Path
) -> None:
    run = rivals.train(stand_in(tmp_path, "print('done')"), 1, options, tmp_path)
    assert "result.json" in run["failed"]


def test_a_rival_that_hangs_is_ended_with_its_children(
    options: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "SAMPLE_SECONDS", 0.05)
    monkeypatch.setattr(rivals, "SET_UP_SECONDS", 5.0)
    started = time.monotonic()
    run = rivals.train(stand_in(tmp_path, HANGING), 0.0, options, tmp_path)
    assert run == {"failed": "still running after 5 s"}
    assert time.monotonic() - started < 60
    child = int((tmp_path / "it-0.log").read_text())
    deadline = time.monotonic() + 30
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def running(process: int) -> bool:
    """Whether a process exists and is not just waiting to be reaped."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_rival_that_is_not_installed_is_skipped_with_the_reason(
    options: argparse.Namespace, tmp_path: Path
) -> None:
    absent = stand_in(tmp_path, GOOD, packages=("no_such_package",))
    assert rivals.train(absent, 1, options, tmp_path) == {
        "skipped": "the package no_such_package is not installed"
    }
    absent = stand_in(tmp_path, GOOD, clones=("no-such-clone",))
    assert "no no-such-clone in" in rivals.train(absent, 1, options, tmp_path)["skipped"]


def test_only_what_has_no_accuracy_is_trained_and_the_shortest_first() -> None:
    one, two = rivals.RIVALS[:2]
    runs = {
        one.name: {"1": {"accuracy": 0.9}, "4": {"failed": "status 1"}},
        two.name: {"1": {"skipped": "x"}},
    }
    assert rivals.pending({"runs": runs}, [one, two], [4, 1]) == [(two, 1), (one, 4), (two, 4)]


def test_an_interrupted_call_goes_on_where_it_stopped(
    options: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def fake(rival: rivals.Rival, minutes: float, *_: Any) -> dict[str, Any]:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(f"{rival.name} {minutes:g}")
        return {"accuracy": 0.5, "seconds": 60.0, "epochs": 1, "pictures_per_epoch": 50_000} | {
            "version": "1",
            "memory_bytes": 2**30,
        }

    monkeypatch.setattr(rivals, "train", fake)
    monkeypatch.setattr(rivals, "unpack", lambda archive, folder: folder)
    monkeypatch.setattr(resumable, "source_commit", lambda: "aaa")
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    words = [
        "rivals.py",
        "--only",
        "timm",
        "keras",
        "--minutes",
        "1",
        "4",
        "--json",
        str(tmp_path / "r.json"),
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(KeyboardInterrupt):
        rivals.main()
    assert trained == ["timm 1", "keras 1", "timm 4"]
    trained.clear()
    rivals.main()
    assert trained == ["keras 4"]
    written = json.loads((tmp_path / "r.json").read_text())
    assert set(written["runs"]["keras"]) == {"1", "4"}
    assert written["commits"] == ["aaa"]
    assert written["hardware"]["identity"] == resumable.processor()
    trained.clear()
    monkeypatch.setattr(resumable, "source_commit", lambda: "bbb")
    rivals.main()  # nothing is missing, so nothing is mixed
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "15"])
    with pytest.raises(SystemExit, match="has results of commit aaa, and src/ is at bbb now"):
        rivals.main()
    assert trained == []


def test_results_with_other_threads_are_not_mixed(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"threads": 2, "data": "a.tar.xz", "runs": {}}))
    assert rivals.begin(file, 2, Path("a.tar.xz"))["runs"] == {}
    with pytest.raises(SystemExit, match="other --threads or --data"):
        rivals.begin(file, 1, Path("a.tar.xz"))


def test_the_table_shows_accuracies_and_what_went_wrong() -> None:
    run = {
        "accuracy": 0.8765,
        "seconds": 59.0,
        "epochs": 3,
        "pictures_per_epoch": 40_000,
        "version": "timm abc",
        "memory_bytes": 3 * 2**30,
    }
    runs = {"timm": {"1": run, "4": run | {"seconds": 290.0}}, "keras": {"1": {"failed": "status 1"}}}
    lines = rivals.markdown({"runs": runs}).splitlines()
    assert lines[0] == "| library | 1 min | 4 min | epochs | a user writes | memory, GiB | version |"
    timm = next(line for line in lines if "timm" in line)
    assert "| 87.65 % | 87.65 % (290 s) | 2.4, 2.4 |" in timm
    assert timm.endswith("| 3.0 | timm abc |")
    assert "| failed | - | - |" in next(line for line in lines if "Keras" in line)


@pytest.mark.parametrize("record", sorted(RECORDS.iterdir()), ids=lambda path: path.stem)
def test_the_page_has_the_tables_of_the_records(record: Path) -> None:
    """The table of another processor than the first leaves out some columns."""
    page = (ROOT / "docs" / "notebook" / "rivals.md").read_text("utf-8")
    assert record.stem.split("-")[3] in page  # the commit
    table = [
        line.split(" | ") for line in rivals.markdown(json.loads(record.read_text("utf-8"))).splitlines()
    ]
    few = [at for at, name in enumerate(table[0]) if name not in ("a user writes", "version |")]
    whole = "\n".join(" | ".join(line) for line in table)
    part = "\n".join(" | ".join(line[at] for at in few) + " |" for line in table)
    assert whole in page or part in page, f"docs/notebook/rivals.md lacks this table:\n{whole}"


def test_flags_and_lines_are_counted() -> None:
    effort = {rival.name: rival.effort for rival in rivals.RIVALS}
    assert effort["thumbnet"] == "1 flag"
    assert effort["ultralytics-32"] == "10 flags"
    assert effort["fastai"] == "5 lines"


def without_breaks(text: str) -> str:
    """The text without white space, backslashes at the ends of lines, and commas before a bracket."""
    return re.sub(r"\\\n|\s|,\s*(?=\))", "", text)


@pytest.mark.parametrize("rival", rivals.RIVALS, ids=lambda rival: rival.name)
def test_each_rival_has_its_program_and_its_place_on_the_page(rival: rivals.Rival) -> None:
    assert (ROOT / "benchmarks" / "rival_programs" / rival.program).exists()
    page = (ROOT / "docs" / "notebook" / "rivals.md").read_text("utf-8")
    assert f"| {rival.title} |" in page
    assert rival.source in page
    for line in rival.user.splitlines():
        assert without_breaks(line) in without_breaks(page)
