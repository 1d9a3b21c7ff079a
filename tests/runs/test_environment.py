"""The versions, hardware and commit that a run records."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from thumbnet import __version__
from thumbnet.runs.environment import device_name, differences, environment, resumed


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_environment_names_versions_hardware_and_start() -> None:
    before = datetime.now().astimezone().replace(microsecond=0)
    found = environment(torch.device("cpu"))
    assert found["thumbnet"] == __version__
    assert found["packages"]["numpy"] == np.__version__
    assert set(found["packages"]) == {"torch", "numpy", "pillow", "safetensors"}
    assert found["hardware"]["cores"] >= 1
    assert before <= datetime.fromisoformat(found["started"]) <= datetime.now().astimezone()


def test_the_commit_is_marked_if_tracked_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("x")
    assert environment(torch.device("cpu"))["git_commit"] == commit
    (tmp_path / "file").write_text("two")
    assert environment(torch.device("cpu"))["git_commit"] == f"{commit}+"


def test_outside_git_or_without_git_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment(torch.device("cpu"))["git_commit"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment(torch.device("cpu"))["git_commit"] is None


def computer(
    device: str = "cpu", torch: str = "2.11", processes: int = 1, gpu: str | None = None, **hardware: object
) -> dict[str, object]:
    described = {"device": device, "processor": "x", "threads": 2, **hardware}
    described |= {} if gpu is None else {"gpu": gpu}
    return {"packages": {"torch": torch}, "hardware": described, "processes": processes}


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        (computer(), computer(memory_bytes=3), []),
        (computer(), computer(torch="2.13"), ["PyTorch 2.13 instead of 2.11"]),
        (
            computer(),
            computer(threads=4, processor="y"),
            ["processor y instead of x", "threads 4 instead of 2"],
        ),
        (computer(), computer("cuda:0", gpu="H200", threads=4), ["device H200 instead of cpu"]),
        (computer("cuda:0", gpu="H200"), computer("cuda:1", gpu="H200", processor="y"), []),
        (computer(processes=2), computer(), ["processes 1 instead of 2"]),
        (computer(kernels="tiles"), computer(kernels="none"), ["kernels none instead of tiles"]),
        (computer(kernels="tiles"), computer("mps", kernels="none"), ["device mps instead of cpu"]),
        (computer(kernels=True), computer(kernels="none"), []),
        ({"hardware": {"device": "cpu"}}, computer(), []),
        ({}, computer(), []),
        ({"hardware": 3, "packages": None}, computer(), []),
    ],
)
def test_what_changes_how_numbers_are_rounded_is_found(
    before: dict[str, object], now: dict[str, object], found: list[str]
) -> None:
    assert differences(before, now) == found


def test_a_damaged_environment_says_nothing() -> None:
    assert resumed({"resumed": [{"step": 1}, 3]}) == [{"step": 1}]
    assert resumed({"resumed": "x"}) == resumed({}) == []
    assert device_name({"hardware": []}) is device_name({}) is None


def test_a_hanging_or_failing_git_does_not_stop_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("git", 5)

    monkeypatch.setattr(subprocess, "run", hang)
    assert environment(torch.device("cpu"))["git_commit"] is None
