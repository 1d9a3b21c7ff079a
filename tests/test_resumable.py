"""Results that an interrupted benchmark continues: only with the same settings, commit and processor."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import resumable  # noqa: E402
from resumable import Results, settings_of  # noqa: E402

RECORDS = [
    path
    for name in ("minutes", "tuning")
    for path in sorted((ROOT / "docs" / "records" / name).iterdir())
    if "commits" not in json.loads(path.read_text("utf-8"))
]
CPU = {"device": "cpu", "processor": "AMD EPYC"}
FOUND = {"accuracy": 0.5}


def here(monkeypatch: pytest.MonkeyPatch, commit: str, identity: str, hardware: dict[str, Any] = CPU) -> None:
    """Let the benchmark run at this commit and on this computer."""
    monkeypatch.setattr(resumable, "source_commit", lambda: commit)
    monkeypatch.setattr(resumable, "processor", lambda: identity)
    monkeypatch.setattr(resumable, "describe", lambda _: hardware)


def test_another_commit_is_refused_until_the_file_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.json"
    here(monkeypatch, "aaa", "model 1")
    Results(file, {}).once("one", lambda: FOUND)
    here(monkeypatch, "bbb", "model 1")
    assert Results(file, {}).once("one", dict) == FOUND  # what is there can be shown
    with pytest.raises(SystemExit, match='commit aaa, and src/ is at bbb now: .* add "bbb" to "commits"'):
        Results(file, {}).once("two", lambda: FOUND)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "commits": [*content["commits"], "bbb"]}))
    Results(file, {}).once("two", lambda: FOUND)
    after = json.loads(file.read_text())
    assert after["commits"] == ["aaa", "bbb"]
    assert after["begun"] == content["begun"]
    assert set(after["results"]) == {"one", "two"}


@pytest.mark.parametrize(
    ("identity", "hardware"),
    [
        ("vendor_id A, model 18, stepping 1", CPU),
        ("vendor_id A, model 17, stepping 1", {**CPU, "processor": "Xeon"}),
        ("vendor_id A, model 17, stepping 1", {**CPU, "device": "cuda:0"}),
    ],
)
def test_another_computer_is_refused_and_another_stepping_is_not(
    identity: str, hardware: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.json"
    here(monkeypatch, "aaa", "vendor_id A, model 17, stepping 1")
    Results(file, {}).once("one", lambda: FOUND)
    here(monkeypatch, "aaa", identity, hardware)
    with pytest.raises(SystemExit, match="has results of another computer .* choose another --json"):
        Results(file, {}).once("two", lambda: FOUND)
    here(monkeypatch, "aaa", "vendor_id A, model 17, stepping 2")
    assert Results(file, {}).once("two", lambda: FOUND) == FOUND


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_that_names_no_commit_continues(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(shutil.copy(record, tmp_path))
    before: dict[str, Any] = json.loads(file.read_text("utf-8"))
    here(monkeypatch, "aaa", "any model", before["hardware"])
    results = Results(file, before["settings"])
    results.once("a new one", lambda: FOUND)
    after = json.loads(file.read_text("utf-8"))
    assert after["commits"] == [None, "aaa"]
    assert after["results"] == {**before["results"], "a new one": FOUND}
    here(monkeypatch, "bbb", "any model", before["hardware"])
    with pytest.raises(SystemExit, match="has results of commit"):
        Results(file, before["settings"]).once("another new one", lambda: FOUND)


def test_the_settings_name_the_data_without_their_folder(tmp_path: Path) -> None:
    options = argparse.Namespace(data="/elsewhere/pictures.tar.xz", epochs=3, seeds=2)
    settings = settings_of(options, "data", "epochs")
    assert settings == {"data": "pictures.tar.xz", "epochs": 3}
    file = tmp_path / "results.json"
    Results(file, {**settings, "data": options.data}).once("one", lambda: FOUND)  # as older programs did
    assert Results(file, settings).found == {"one": FOUND}
    with pytest.raises(SystemExit, match="other settings"):
        Results(file, {**settings, "data": "others.tar.xz"})


def test_outside_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resumable.source_commit() is None
