"""The simulated GPU of the other tests refuses, copies and waits as CUDA does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simulated_device import CUDA, STAGED, GpuTensor, gpu_tensor, simulated_gpu


def test_a_tensor_says_that_it_is_on_the_gpu_and_computes_what_the_cpu_computes() -> None:
    values = torch.randn(4, 3)
    with simulated_gpu():
        moved = values.to("cuda")
        assert moved.device == CUDA
        assert moved.is_cuda
        assert not moved.is_cpu
        assert torch.zeros(2, device="cuda").device == (moved @ moved.T).device == CUDA
        assert torch.equal((moved @ moved.T).cpu(), values @ values.T)
        assert values.device.type == (values + 1).device.type == "cpu"


def test_a_network_learns_the_same_there_as_on_the_cpu() -> None:
    def learn(device: torch.device) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        )
        model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images, labels = torch.randn(5, 3, 8, 8).to(device), torch.arange(5).remainder(3).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        return [tensor.detach().cpu() for tensor in model.state_dict().values()]

    expected = learn(torch.device("cpu"))
    with simulated_gpu():
        assert all(torch.equal(a, b) for a, b in zip(learn(CUDA), expected, strict=True))


@pytest.mark.parametrize(
    "mix",
    [
        lambda gpu, cpu: gpu + cpu,
        lambda gpu, cpu: cpu.mul_(gpu),
        lambda gpu, cpu: torch.cat([gpu, cpu]),
        lambda gpu, cpu: torch.where(gpu > 0, gpu, cpu),
        lambda gpu, cpu: F.linear(gpu[None], cpu[None]),
        lambda gpu, cpu: cpu[gpu.long()],
        lambda gpu, cpu: torch._foreach_add([gpu], [cpu]),
    ],
)
def test_tensors_of_different_devices_do_not_mix(mix: Callable[[Tensor, Tensor], object]) -> None:
    with simulated_gpu(), pytest.raises(RuntimeError, match="same device.*cuda:0 and cpu"):
        mix(torch.ones(3).to("cuda"), torch.ones(3))


def test_a_number_on_the_cpu_mixes_with_a_tensor_on_the_gpu() -> None:
    with simulated_gpu() as log:
        x = gpu_tensor(torch.ones(3))
        assert torch.equal((x * torch.tensor(2.0)).cpu(), torch.full((3,), 2.0))
        assert [c.to for c in log.copies] == ["host"]


def test_copies_have_a_size_a_direction_and_a_place() -> None:
    with simulated_gpu() as log:
        x = torch.ones(3).to("cuda", non_blocking=True)
        x.cpu()
        torch.tensor([1, 2], device="cuda")
        x.copy_(torch.zeros(3))
        x[torch.tensor([0])]
    assert [(c.to, c.bytes, c.blocking) for c in log.copies] == [
        ("gpu", 12, False), ("host", 12, True), ("gpu", 16, True), ("gpu", 12, True), ("gpu", 8, True),
    ]  # fmt: skip
    assert len(log.waits) == 4
    assert all(c.place.startswith("test_simulated_device.py:") for c in log.copies)


def test_a_large_copy_waits_unless_its_source_is_pinned() -> None:
    with simulated_gpu() as log:
        large = torch.zeros(STAGED + 1, dtype=torch.uint8)
        large.to("cuda", non_blocking=True)
        pinned = large.pin_memory()
        assert pinned.is_pinned()
        assert not large.is_pinned()
        pinned.to("cuda", non_blocking=True)
        pinned.to("cuda")
    assert [c.blocking for c in log.copies] == [True, False, True]


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: torch.cuda.synchronize(),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_what_waits_on_cuda_is_logged_as_a_wait(ask: Callable[[Tensor], object], inference: bool) -> None:
    with simulated_gpu() as log, torch.inference_mode(inference):
        ask(gpu_tensor(torch.ones(3)))
        assert len(log.waits) == 1


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: F.softmax(x, dim=0),
        lambda x: x.argmax(),
        lambda x: x.sort(stable=True),
        lambda x: x[x.argsort()],
        lambda x: x.index_add_(0, torch.zeros(3, dtype=torch.int64, device="cuda"), x.clone()),
        lambda x: torch.where(x > 0, x, 0),
        lambda x: x.masked_fill_(x > 0, 2.0),
        lambda x: torch._foreach_mul_([x], 2.0),
        lambda x: x.to("cuda"),
    ],
)
def test_what_does_not_wait_on_cuda_is_not_logged(compute: Callable[[Tensor], object]) -> None:
    with simulated_gpu() as log:
        compute(gpu_tensor(torch.ones(3)))
        assert not log.waits
        assert not log.copies


def test_numpy_has_no_access_to_the_gpu() -> None:
    with simulated_gpu(), pytest.raises(TypeError, match=r"Tensor\.cpu\(\)"):
        gpu_tensor(torch.ones(3)).numpy()


def test_changes_in_place_and_through_views_reach_the_tensor() -> None:
    with simulated_gpu() as log:
        x = gpu_tensor(torch.zeros(2, 3))
        x[0].add_(1)
        x.T[2].fill_(5)
        assert x.add_(0) is x
        assert not log.copies
        assert torch.equal(x.cpu(), torch.tensor([[1.0, 1, 5], [0, 0, 5]]))


def test_slices_can_be_taken_and_filled_in_inference_mode() -> None:
    with simulated_gpu():
        outside = gpu_tensor(torch.zeros(3))
        with torch.inference_mode():
            outside[:][1:].fill_(2)
            inside = outside + 1
            inside[:2].add_(1)
            assert inside.is_inference()
            assert inside[:].is_inference()
            assert not outside[:].is_inference()
        assert torch.equal(inside.cpu(), torch.tensor([2.0, 4, 3]))


def test_autocast_computes_in_bfloat16() -> None:
    with simulated_gpu(), torch.autocast("cuda", dtype=torch.bfloat16):
        x = gpu_tensor(torch.ones(2, 2))
        assert (x @ x).dtype == torch.bfloat16


def test_a_network_on_the_gpu_is_copied_and_saved_like_any_other(tmp_path: Path) -> None:
    with simulated_gpu():
        model = nn.Linear(3, 2).to("cuda")
        again = copy.deepcopy(model)
        assert isinstance(model.weight, GpuTensor)
        assert isinstance(again.weight, nn.Parameter)
        assert again.weight.device == CUDA
        torch.save(model.state_dict(), tmp_path / "model.pt")
        kept = torch.load(tmp_path / "model.pt", weights_only=True)
        assert type(kept["weight"]) is Tensor
        again.load_state_dict(kept)
        assert torch.equal(again.weight, model.weight)


def test_memory_is_counted_and_runs_out() -> None:
    with simulated_gpu(memory=1000) as log:
        x = torch.zeros(100, device="cuda")
        view = x[:10]
        assert torch.cuda.mem_get_info() == (600, 1000)
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            torch.zeros(200, device="cuda")
        del x
        assert log.allocated == 400
        del view
        assert (log.allocated, log.peak) == (0, 400)


def test_afterwards_there_is_no_gpu_again() -> None:
    before, untouched = torch.cuda.is_available(), torch.Tensor.to
    with simulated_gpu():
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 1
    assert torch.cuda.is_available() is before
    assert torch.ones(1).to(torch.float64).device.type == "cpu"
    assert torch.Tensor.to is untouched
