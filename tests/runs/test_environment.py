"""The versions, hardware and commit that a run records."""

from __future__ import annotations

import os
import subprocess
import sys
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


def begin_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a repository with one commit in ``folder``, and go there."""
    monkeypatch.chdir(folder)
    git("init", "-q")
    (folder / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")


def test_the_commit_is_marked_if_tracked_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_repository(tmp_path, monkeypatch)
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("x")
    assert environment(torch.device("cpu"))["git_commit"] == commit
    (tmp_path / "file").write_text("two")
    assert environment(torch.device("cpu"))["git_commit"] == f"{commit}+"


def make_program(path: Path) -> None:
    """A program that leaves a file ``ran`` in the current folder."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\ntouch ran\ncat\n")
    path.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="the programs are shell scripts")
@pytest.mark.parametrize("how", ["filter", "included filter", "monitor", "hook", "transport"])
def test_no_program_that_a_repository_names_is_run(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_repository(tmp_path, monkeypatch)
    commit, program = git("rev-parse", "HEAD"), tmp_path / "program"
    make_program(program)
    if "filter" in how:
        (tmp_path / ".git" / "info" / "attributes").write_text("* filter=f\n")
        where = [] if how == "filter" else ["--file", ".git/more"]
        git("config", *where, "filter.f.clean", str(program))
        if where:
            git("config", "include.path", "more")
        (tmp_path / "file").write_text("two")
    elif how == "monitor":
        git("config", "core.fsmonitor", str(program))
    elif (
        how == "hook"
    ):  # it runs when git writes the index, for a file with another time and the same content
        make_program(tmp_path / ".git" / "hooks" / "post-index-change")
        os.utime(tmp_path / "file", (1, 1))
    else:  # by which a missing object would be fetched
        tree = git("rev-parse", "HEAD^{tree}")
        (tmp_path / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
        for key, value in (
            ("core.repositoryformatversion", "1"),
            ("extensions.partialclone", "origin"),
            ("remote.origin.promisor", "true"),
            ("remote.origin.url", f"ext::{program}"),
            ("protocol.ext.allow", "always"),
        ):
            git("config", key, value)
    assert environment(torch.device("cpu"))["git_commit"] == commit
    assert not (tmp_path / "ran").exists()


def test_a_changed_file_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.quotePath")  # as in many users' own settings
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "false")
    git("init", "-q")
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).write_text("one")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / name).write_text("two")
    assert environment(torch.device("cpu"))["git_commit"] == git("rev-parse", "HEAD") + "+"


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
