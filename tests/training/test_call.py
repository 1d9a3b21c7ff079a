"""Several processes agree on their device and their data, or one of them says what differs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch

from simulated_device import simulated_gpu
from thumbnet.distributed import World
from thumbnet.errors import DataError, FallbackWarning, OutOfMemoryError, ThumbnetError
from thumbnet.runs.folder import Run
from thumbnet.training import call as call_module
from thumbnet.training.call import Call, memory_of
from thumbnet.training.listener import Listener


def call_of(device: str = "auto", size: int = 1) -> Call:
    return Call(device, Listener(), World(0, size), 0.0)


def test_several_processes_cannot_be_told_to_share_a_gpu() -> None:
    for device in ("cuda:0", torch.device("cuda:0")):
        call = Call(device, Listener(), World(1, 2, 1), 0.0)
        with pytest.raises(
            ThumbnetError, match=r"^--device cuda:0: process 1 has cuda:1, .*: --device cuda$"
        ):
            call.choose_device()


def test_apples_gpu_trains_in_one_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module, "choose_device", lambda name, number: torch.device("mps"))
    monkeypatch.setattr(World, "from_first", lambda world, value: value)
    assert call_of("auto").choose_device() == call_of("mps").choose_device() == torch.device("mps")
    with pytest.warns(FallbackWarning, match="^mps cannot train in several processes: using cpu$"):
        assert call_of("auto", 2).choose_device() == torch.device("cpu")
    for name in ("mps", "gpu"):
        with pytest.raises(ThumbnetError, match=f"--device {name}: Apple's GPU .* torchrun, .* --device cpu"):
            call_of(name, 2).choose_device()


def test_a_training_that_resumes_waits_for_processes_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def locked(run: Run, wait: float) -> AbstractContextManager[None]:
        waits.append(wait)
        return nullcontext()

    monkeypatch.setattr(Run, "locked", locked)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    run = Run(tmp_path)
    call_of().lock(run)
    call_of().lock(run, resumes=True)
    call_of(size=2).lock(run)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    call_of().lock(run, resumes=True)
    assert waits == [0.0, call_module.ENDING, 30.0, 30.0]


def test_a_process_with_other_data_than_the_first_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [("train", "cat/1.png", "damaged")]
    monkeypatch.setattr(World, "from_first", lambda world, value: "a" if isinstance(value, str) else first)
    call = call_of(size=2)
    call.check_same_data("a", "pictures")
    with pytest.raises(DataError, match="^pictures holds other data here than where the first process runs$"):
        call.check_same_data("b", "pictures")
    call.check_same_skipped([("train", "cat/1.png", "missing")], "pictures")
    with pytest.raises(
        DataError, match=r"^pictures holds other damaged pictures .* example train: cat/1\.png\. "
    ):
        call.check_same_skipped([], "pictures")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. GPU 3 has a total capacity of 4 GiB"), "cuda:3"),
        (RuntimeError("CUDA error: out of memory"), "cuda"),
        (RuntimeError("MPS backend out of memory"), "mps"),
        (MemoryError(), "this computer"),
    ],
    ids=["cuda:3", "cuda", "mps", "this computer"],
)
def test_the_guard_around_a_whole_training_names_the_memory_that_ran_out(
    error: Exception, named: str
) -> None:
    with (
        pytest.raises(OutOfMemoryError, match=f"^out of memory on {named} during the training") as caught,
        memory_of("training"),
    ):
        raise error
    assert "--batch-size" in str(caught.value)


@pytest.mark.parametrize("size", [1, 2])
def test_a_process_makes_its_gpu_the_current_one_unless_it_is_alone(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, each of several processes would also take memory on the first GPU."""
    gpu = torch.device("cuda", size - 1)
    monkeypatch.setattr(call_module, "choose_device", lambda name, number: torch.device("cuda", number))
    monkeypatch.setattr(World, "from_first", lambda world, value: value)
    with simulated_gpu() as log:
        assert Call("cuda", Listener(), World(size - 1, size, size - 1), 0.0).choose_device() == gpu
    assert log.chosen == [gpu] * (size - 1)
