"""Pictures of which the network was unsure are kept once, whole and privately, and cost no request anything."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers import coloured, write_class_folders
from serving_helpers import LIMITS, Decided, client_of, encoded, grey, served, wait_until
from thumbnet.classifiers.base import Prediction
from thumbnet.classifiers.load import load_run
from thumbnet.data.corrections import read_corrections
from thumbnet.errors import DataError, RunError, ThumbnetError
from thumbnet.files import write_private
from thumbnet.runs.folder import Run
from thumbnet.serving import keeping
from thumbnet.serving.identity import Identity
from thumbnet.serving.keeping import COLUMNS, TABLE, Keeper
from thumbnet.serving.service import build_service
from thumbnet.sources.load import load_data
from thumbnet.sources.unlabelled import find_pictures

httpx = pytest.importorskip("httpx")

IDENTITY = Identity(Decided().info, "onnx", "abc")
UNSURE, SURE = 135, 255  # grey levels: 64 % and almost 100 %
JPEG = encoded(np.full((8, 8, 3), UNSURE, np.uint8), "JPEG")


def named(content: bytes, suffix: str = ".png") -> str:
    """The name of a kept picture."""
    return hashlib.sha256(content).hexdigest()[:32] + suffix


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a folder's table."""
    with open(folder / TABLE, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pictures(folder: Path) -> list[str]:
    """The names of all files in the folder but the table."""
    return sorted(set(os.listdir(folder)) - {TABLE})


def outcomes(keeper: Keeper) -> dict[str, float]:
    """The counts that are not 0."""
    (metric,) = keeper.outcomes.collect()
    counts = {one.labels["outcome"]: one.value for one in metric.samples if one.name.endswith("_total")}
    return {outcome: count for outcome, count in counts.items() if count}


def offer(keeper: Keeper, *levels: int, answer: str = "dark", probability: float = 0.5) -> None:
    """Offer grey pictures whose most probable class is ``answer``."""
    for level in levels:
        keeper.offer(grey(level), Prediction((answer, "x"), (probability, 1 - probability)), IDENTITY)


def test_an_unsure_picture_is_kept_byte_for_byte_with_a_row(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "new" / "unsure")
    app = build_service(Decided(), LIMITS, identity=IDENTITY, keeper=keeper)
    with client_of(app) as client:
        files = [("file", ("name-of-a-client.png", grey(level))) for level in (UNSURE, SURE, UNSURE + 1)]
        answers = client.post("/predict?top=1", files=files).json()["predictions"]
        alone = client.post("/explain", files={"file": JPEG})
        assert alone.status_code == 200
        assert client.get("/model").json()["keeps_below"] == 0.8
    wait_until(lambda: outcomes(keeper) == {"kept": 3})
    expected = [
        named(grey(UNSURE)),
        named(grey(UNSURE + 1)),
        named(JPEG, ".jpg"),
    ]
    assert pictures(keeper.folder) == sorted(expected)
    assert (keeper.folder / expected[0]).read_bytes() == grey(UNSURE)
    found = rows(keeper.folder)
    assert [one["picture"] for one in found] == expected
    assert tuple(found[0]) == COLUMNS
    assert {(one["label"], one["was"], one["decision"], one["model"]) for one in found} == {
        ("", "", "unsure", "sha256:abc")
    }
    (first,) = answers[0]["classes"]
    assert found[0]["answer"] == first["name"] == "bright"
    assert float(found[0]["confidence"]) == pytest.approx(first["probability"], abs=1e-4)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found[0]["time"])
    assert "name-of-a-client" not in (keeper.folder / TABLE).read_text()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_only_this_user_can_read_what_is_kept(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keeper = Keeper(tmp_path / "unsure")
        offer(keeper, 1)
        keeper.close(30)
    finally:
        os.umask(before)
    assert keeper.folder.stat().st_mode & 0o777 == 0o700
    for name in os.listdir(keeper.folder):
        assert (keeper.folder / name).stat().st_mode & 0o777 == 0o600, name


def test_a_picture_is_kept_once_also_after_a_restart_or_when_it_has_been_moved_away(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "unsure")
    offer(keeper, 1, 1, 2)
    wait_until(lambda: sum(outcomes(keeper).values()) == 3)
    assert outcomes(keeper) == {"kept": 2, "duplicate": 1}
    (tmp_path / "unsure").rename(tmp_path / "labelled")
    offer(keeper, 1, 3)
    keeper.close(30)
    assert outcomes(keeper) == {"kept": 3, "duplicate": 2}
    again = Keeper(tmp_path / "labelled")
    offer(again, 2)
    again.close(30)
    assert outcomes(again) == {"duplicate": 1}
    assert [len(rows(tmp_path / name)) for name in ("labelled", "unsure")] == [2, 1]
    assert pictures(tmp_path / "unsure") == [named(grey(3))]


def test_a_client_can_forbid_that_its_pictures_are_kept(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    with client_of(build_service(Decided(), LIMITS, keeper=keeper)) as client:
        for path in ("/predict", "/explain"):
            answer = client.post(f"{path}?keep=false", files={"file": grey(UNSURE)})
            assert answer.status_code == 200
        assert client.post("/predict?keep=perhaps", files={"file": grey(UNSURE)}).status_code == 422
    assert pictures(tmp_path) == []
    assert outcomes(keeper) == {}


def test_by_default_nothing_is_kept_and_the_service_says_so() -> None:
    with client_of(build_service(Decided(), LIMITS)) as client:
        assert client.post("/predict", files={"file": grey(UNSURE)}).status_code == 200
        assert client.get("/model").json()["keeps_below"] is None
        assert "kept" not in client.get("/metrics").text


def test_a_folder_that_is_renamed_while_a_picture_is_written_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    write = write_private

    def rename(path: Path, content: bytes) -> None:
        monkeypatch.setattr(keeping, "write_private", write)
        path.parent.rename(tmp_path / "round-1")
        write(path, content)

    keeper = Keeper(tmp_path / "unsure", warn=said.append)
    monkeypatch.setattr(keeping, "write_private", rename)
    offer(keeper, 1)
    keeper.close(30)
    assert outcomes(keeper) == {"kept": 1}
    assert [one["picture"] for one in rows(keeper.folder)] == pictures(keeper.folder) == [named(grey(1))]
    assert said == []


def test_a_full_folder_is_said_once_and_a_renamed_one_is_filled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "CHECK_AGAIN", 0.0)
    said: list[str] = []
    keeper = Keeper(tmp_path / "unsure", at_most=2, warn=said.append)
    offer(keeper, 1, 2, 3, 4)
    wait_until(lambda: outcomes(keeper) == {"kept": 2, "full": 2})
    assert len(said) == 1
    assert "has 2 kept pictures, and --keep-at-most allows 2: no more are kept" in said[0]
    (tmp_path / "unsure").rename(tmp_path / "round-1")
    offer(keeper, 5, 6, 7)
    keeper.close(30)
    assert outcomes(keeper) == {"kept": 4, "full": 3}
    assert len(said) == 2
    assert len(rows(tmp_path / "unsure")) == len(rows(tmp_path / "round-1")) == 2


def test_a_full_folder_is_not_counted_again_for_every_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(tmp_path, at_most=1)
    offer(keeper, 1, 2)
    wait_until(lambda: outcomes(keeper) == {"kept": 1, "full": 1})
    monkeypatch.setattr(keeper, "count", lambda: pytest.fail("counted"))
    offer(keeper, 3)
    keeper.close(30)
    assert outcomes(keeper) == {"kept": 1, "full": 2}


def test_a_failing_disk_fails_no_request_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    keeper = Keeper(tmp_path, warn=said.append)

    def refuse(path: Path, content: bytes) -> None:
        raise RunError(f"cannot write {path}: No space left on device")

    with client_of(build_service(Decided(), LIMITS, keeper=keeper)) as client:
        with monkeypatch.context() as full:
            full.setattr(keeping, "write_private", refuse)
            for level in (UNSURE, UNSURE + 1):
                assert client.post("/predict", files={"file": grey(level)}).status_code == 200
            wait_until(lambda: outcomes(keeper) == {"failed": 2})
        (text,) = said
        assert text.startswith("pictures are not kept now, but every request is answered: cannot write ")
        assert client.post("/predict", files={"file": grey(UNSURE)}).status_code == 200
        wait_until(lambda: outcomes(keeper) == {"failed": 2, "kept": 1})
        metrics = client.get("/metrics").text
        assert 'thumbnet_kept_pictures_total{outcome="failed"} 2.0' in metrics
    assert pictures(tmp_path) == [named(grey(UNSURE))]


def test_a_disk_that_fails_now_and_then_is_neither_said_each_time_nor_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, said, write, is_full = [0.0], list[str](), write_private, threading.Event()

    def write_or_fail(path: Path, content: bytes) -> None:
        if is_full.is_set():
            raise RunError("the disk is full")
        write(path, content)

    monkeypatch.setattr(keeping, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(keeping, "write_private", write_or_fail)
    keeper = Keeper(tmp_path, warn=said.append)
    steps = [
        (1.0, True, 1),
        (2.0, True, 1),
        (3.0, False, 1),
        (4.0, True, 1),  # said a moment ago
        (keeping.QUIET + 5.0, True, 2),
        (2 * keeping.QUIET + 9.0, True, 2),  # the same failure
    ]
    for count, (now, fails, lines) in enumerate(steps, start=1):
        clock[0] = now
        if fails:
            is_full.set()
        else:
            is_full.clear()
        offer(keeper, count)
        wait_until(lambda count=count: sum(outcomes(keeper).values()) == count)
        assert len(said) == lines, now
    keeper.close(30)
    assert outcomes(keeper) == {"failed": 5, "kept": 1}


class Half(io.FileIO):
    """A file on a disk that has no room for a row."""

    def write(self, data: Any, /) -> int:
        return super().write(data[: len(data) // 2])


def test_a_row_is_written_whole_or_neither_it_nor_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    keeper = Keeper(tmp_path, warn=said.append)
    with monkeypatch.context() as full:

        def half(path: Path, mode: str, *, buffering: int, opener: Any) -> Half:
            return Half(path, "a+", opener=opener)

        full.setattr(keeping, "open", half, raising=False)
        offer(keeper, 1)
        wait_until(lambda: outcomes(keeper) == {"failed": 1})
    assert rows(tmp_path) == []
    assert pictures(tmp_path) == []
    assert "bytes of a row could be written" in said[0]
    offer(keeper, 1)
    keeper.close(30)
    assert [one["picture"] for one in rows(tmp_path)] == pictures(tmp_path) == [named(grey(1))]


def test_a_row_that_a_power_cut_left_in_part_does_not_spoil_the_next(tmp_path: Path) -> None:
    Keeper(tmp_path).close()
    with open(tmp_path / TABLE, "a") as table:
        table.write("0123,,tr")
    keeper = Keeper(tmp_path)
    offer(keeper, 1)
    keeper.close(30)
    assert [one["picture"] for one in rows(tmp_path)] == ["0123", named(grey(1))]


def test_several_services_keep_pictures_in_one_folder(tmp_path: Path) -> None:
    keepers = [Keeper(tmp_path / "unsure") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for number, keeper in enumerate(keepers):
            pool.submit(offer, keeper, *range(20 * number, 20 * number + 20))
    for keeper in keepers:
        keeper.close(30)
    found = [one["picture"] for one in rows(tmp_path / "unsure")]
    assert sorted(found) == pictures(tmp_path / "unsure") == sorted(named(grey(level)) for level in range(60))
    assert all(None not in one.values() for one in rows(tmp_path / "unsure"))


def test_pictures_that_the_disk_cannot_keep_up_with_are_dropped_and_no_answer_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    write = write_private

    def slow(path: Path, content: bytes) -> None:
        assert may_go_on.wait(60)
        write(path, content)

    monkeypatch.setattr(keeping, "write_private", slow)
    monkeypatch.setattr(keeping, "MOST_WAITING", 3 * len(grey(0)) + 50)
    keeper = Keeper(tmp_path)
    with client_of(build_service(Decided(), LIMITS, keeper=keeper)) as client:
        for level in range(UNSURE - 10, UNSURE):
            assert client.post("/predict", files={"file": grey(level)}).status_code == 200
        dropped = outcomes(keeper)["dropped"]
        assert 5 <= dropped <= 8
        may_go_on.set()
        wait_until(lambda: outcomes(keeper) == {"dropped": dropped, "kept": 10 - dropped})


@pytest.mark.parametrize(("below", "at_most"), [(0.0, 1), (1.01, 1), (float("nan"), 1), (0.5, 0)])
def test_limits_out_of_range_are_refused(tmp_path: Path, below: float, at_most: int) -> None:
    with pytest.raises(ThumbnetError, match="cannot keep"):
        Keeper(tmp_path / "unsure", below, at_most)
    assert not (tmp_path / "unsure").exists()


def test_a_folder_that_cannot_be_written_to_or_belongs_to_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(RunError, match="Name a folder that this user can write to"):
            Keeper(tmp_path / place)
    write_class_folders(tmp_path / "data", [""], per_class=1)
    with pytest.raises(RunError, match="it has other files, such as blue. Name a new or empty folder"):
        Keeper(tmp_path / "data")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(RunError, match="cannot keep pictures in .*unsure: Read-only file system. Name"):
        Keeper(tmp_path / "unsure")


def test_a_network_of_several_labels_is_refused(label_run: Run, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    with pytest.raises(RunError, match="several labels: leave --keep out"):
        build_service(load_run(label_run.path), LIMITS, keeper=keeper)
    keeper.close(30)


@pytest.mark.parametrize("answer", ["=1+1", "a\nb,c", "\udcff", '"quoted"', "\x1b[2J"])
def test_a_class_of_any_name_is_one_harmless_cell(tmp_path: Path, answer: str) -> None:
    keeper = Keeper(tmp_path)
    offer(keeper, 1, answer=answer)
    keeper.close(30)
    (found,) = rows(tmp_path)
    assert found["picture"] == named(grey(1))
    assert not re.search("[\x00-\x1f]", found["answer"])
    assert not found["answer"].startswith("=")


def labelled(table: Path, labels: Sequence[str]) -> None:
    """Write labels into the rows of a table, as a person would."""
    found = rows(table.parent)
    with open(table, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for one, label in zip(found, labels, strict=True):
            decided = {"label": label, "decision": "relabel"} if label else {}
            writer.writerow({**one, **decided})


def test_the_folder_is_one_of_unlabelled_pictures_and_takes_labels(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "unsure")
    offer(keeper, 1, 2, 3)
    offer(keeper, 4, answer="bright")
    keeper.close(30)
    assert find_pictures(tmp_path / "unsure") == (pictures(tmp_path / "unsure"), [])
    assert {one.decision for one in read_corrections(tmp_path / "unsure" / TABLE)} == {"unsure"}
    for place in (tmp_path / "unsure", tmp_path / "unsure" / TABLE):  # the answers are no labels
        with pytest.raises(DataError):
            load_data(place)
    data = write_class_folders(tmp_path / "data", ["train", "test"])
    table = tmp_path / "unsure" / TABLE
    before = load_data(data, labels=table)
    labelled(table, ["red", "", "blue", ""])
    after = load_data(data, labels=table)
    assert len(after.splits["train"]) == len(before.splits["train"]) + 2
    assert after.class_names == before.class_names


def test_the_command_keeps_pictures_and_says_where(tiny_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "unsure"
    options = ("--keep", str(folder), "--keep-below", "1", "--keep-at-most", "5")
    with served(tiny_run, *options) as (address, process):
        assert process.stdout
        line = f"keeping pictures that the network is less than 100 % sure of in {folder}: 0 of at most 5\n"
        assert process.stdout.readline() == line
        body = encoded(coloured(1, 5))
        answer = httpx.post(f"{address}/predict", content=body, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert pictures(folder) == [named(body)]
    (found,) = rows(folder)
    assert found["model"] == f"sha256:{hashlib.sha256(tiny_run.weights_path.read_bytes()).hexdigest()}"
