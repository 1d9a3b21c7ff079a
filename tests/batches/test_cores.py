"""How many cores a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from helpers import TINY, coloured_data
from kernel_helpers import on_threads
from thumbnet.batches import cores
from thumbnet.batches.cores import check_threads, cpu_quota, library_threads, quota_threads, usable_cores
from thumbnet.errors import ThumbnetError
from thumbnet.training.train import train


def group(root: Path, name: str, cpu_max: str) -> None:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(f"{cpu_max}\n")


def quota(tmp_path: Path, membership: str) -> float | None:
    (tmp_path / "membership").write_text(membership)
    return cpu_quota(tmp_path / "membership", tmp_path)


def test_the_quota_of_a_container_is_that_of_the_root_group(tmp_path: Path) -> None:
    group(tmp_path, "", "200000 100000")
    assert quota(tmp_path, "0::/\n") == 2
    assert quota(tmp_path, "0::/../elsewhere\n") == 2
    assert quota(tmp_path, "0::/not/mounted/here\n") == 2
    group(tmp_path, "", "max 100000")
    assert quota(tmp_path, "0::/\n") is None


def test_the_smallest_quota_of_a_group_and_those_above_it_counts(tmp_path: Path) -> None:
    group(tmp_path, "user", "150000 100000")
    group(tmp_path, "user/job", "max 100000")
    assert quota(tmp_path, "0::/user/job\n") == 1.5
    group(tmp_path, "user/job", "50000 100000")
    assert quota(tmp_path, "12:cpu:/other\n0::/user/job\n") == 0.5
    assert quota(tmp_path, "0::/\n") is None


@pytest.mark.parametrize("cpu_max", ["", "max", "1 2 3", "x 100000", "100000 0", "0 100000", "-1 100000"])
def test_a_quota_that_makes_no_sense_is_ignored(tmp_path: Path, cpu_max: str) -> None:
    group(tmp_path, "", cpu_max)
    assert quota(tmp_path, "0::/\n") is None


def test_without_cgroup_v2_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "nowhere", tmp_path) is None
    group(tmp_path, "", "100000 100000")
    assert quota(tmp_path, "4:cpu,cpuacct:/docker/abc\n") is None


@pytest.mark.parametrize(
    ("allowed", "limit", "usable", "threads"),
    [(64, None, 64, 0), (64, 2.0, 2, 2), (64, 1.5, 2, 2), (64, 0.1, 1, 1), (4, 8.0, 4, 4), (64, 64.0, 64, 0)],
)
def test_threads_are_limited_by_affinity_and_quota_on_a_computer_of_64_cores(
    allowed: int, limit: float | None, usable: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: limit)
    assert (usable_cores(), library_threads()) == (usable, threads)


def test_a_number_of_threads_that_means_nothing_is_refused() -> None:
    check_threads(0)
    check_threads(3)
    for bad in (-1, 1.5, "2"):
        with pytest.raises(ThumbnetError, match="threads: expected a whole number from 1, or 0"):
            check_threads(bad)  # type: ignore[arg-type]


def test_a_training_starts_no_more_threads_than_its_quota_and_restores_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: 1.5)
    with on_threads(8):
        settings = [*TINY, "training.epochs=1"]
        run = train(coloured_data(), "one-cycle", overrides=settings, out=tmp_path / "run", device="cpu")
        assert run.environment["hardware"]["threads"] == 2
        assert torch.get_num_threads() == 8


def test_without_a_quota_or_with_a_chosen_number_the_threads_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for quota, chosen in ((None, None), (1.5, "8")):
        monkeypatch.setattr(cores, "cpu_quota", lambda quota=quota: quota)
        if chosen is None:
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", chosen)
        assert quota_threads() == 0
