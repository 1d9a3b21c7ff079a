"""The versions, hardware and commit that a run records."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from thumbnet import __version__
from thumbnet.runs.environment import environment


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


def test_a_hanging_or_failing_git_does_not_stop_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("git", 5)

    monkeypatch.setattr(subprocess, "run", hang)
    assert environment(torch.device("cpu"))["git_commit"] is None
