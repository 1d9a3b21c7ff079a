from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from faults.fork_server import ForkServer, Job, why_not


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Runs commands in forks of a process that has imported torch: each process of its own imports it for 4 s."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    place = tmp_path_factory.mktemp("forks")
    kernels = {"THUMBNET_CACHE": os.environ["THUMBNET_CACHE"]}  # may have them compiled
    with ForkServer(place, ("torch.distributed",), kernels) as server:
        small = ("--epochs", "1", "--set", "data.subset_size=400", "--set", "model.width=0.25")
        warmed = server.warm(Job(("train", "digits", *small, "--out", str(place / "run"))))
        assert warmed.status == 0, warmed.errors
        yield server
