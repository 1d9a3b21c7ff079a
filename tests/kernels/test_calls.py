from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from helpers import TINY, coloured_data
from kernel_helpers import kernel_names, loaded, needs_kernels, on_threads, pictures, watched
from kernels.summed import sums
from thumbnet.distributed import World
from thumbnet.errors import OutOfMemoryError, is_out_of_memory
from thumbnet.kernels import library
from thumbnet.kernels.augment import can_move, mirror_and_translate
from thumbnet.kernels.calls import agree_on_kernels, applies, available, strided_available
from thumbnet.kernels.conv import Conv3x3
from thumbnet.kernels.muon import _fit as fit_muon
from thumbnet.kernels.norm import conv_norm_act, norm_act
from thumbnet.kernels.strided import strided, strided_weight_gradient
from thumbnet.kernels.tiles import conv3x3, conv3x3_pooled, weight_gradient
from thumbnet.kernels.winograd import winograd, winograd_pooled, winograd_weight_gradient
from thumbnet.training.train import train

SUMMED = Path(__file__).with_name("summed.py")
X, DY = pictures(40, 64, 8, 8), pictures(40, 64, 8, 8, seed=1)
HALF_DY = pictures(40, 64, 4, 4, seed=1)
NARROW = pictures(64, 64, 3, 3, seed=2)
FILTERS = NARROW.float()


def move() -> list[Tensor]:
    images = torch.arange(2 * 8 * 8 * 3, dtype=torch.uint8).view(2, 8, 8, 3).permute(0, 3, 1, 2)
    return [mirror_and_translate(images, torch.tensor([True, False]), torch.full((2, 2), 3), reflect=True)]


def normalise() -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return [norm_act(X, nn.BatchNorm2d(64), "relu", pool=2)]


# The kernels that allocate: the name of each, a call, and the number of allocations.
ALLOCATING: dict[str, tuple[Callable[[], list[Tensor]], int]] = {
    "tile_conv": (lambda: [conv3x3(X, NARROW), *conv3x3_pooled(X, NARROW)], 10),
    "tile_weight_gradient": (lambda: [weight_gradient(X, DY)], 3),
    "winograd": (lambda: [winograd(X, FILTERS), *winograd_pooled(X, FILTERS)], 6),
    "winograd_weight_gradient": (lambda: [winograd_weight_gradient(X, DY)], 3),
    "strided": (lambda: [strided(X, FILTERS)], 3),
    "strided_weight_gradient": (lambda: [strided_weight_gradient(X, HALF_DY)], 3),
    "pool_and_sum": (normalise, 1),
    "mirror_and_translate": (move, 1),
}


class Memory:
    """Sets how many more allocations the kernels are granted."""

    def __init__(self, kernels: ctypes.CDLL) -> None:
        self._granted = ctypes.c_int.in_dll(kernels, "allocations_granted")

    @property
    def granted(self) -> int:
        return self._granted.value

    @granted.setter
    def granted(self, count: int) -> None:
        self._granted.value = count


@pytest.fixture
def memory(test_kernels: ctypes.CDLL) -> Iterator[Memory]:
    """Grants all allocations at first. Matrix tiles are emulated, and not used for whole convolutions."""
    controlled = Memory(test_kernels)
    controlled.granted = 1000
    with loaded(test_kernels, has_tiles=False):
        yield controlled
    controlled.granted = 1 << 30


@pytest.mark.timeout(60)  # a thread that waits for one that gave up would wait forever
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", ALLOCATING)
def test_each_refused_allocation_is_a_memory_error(name: str, threads: int, memory: Memory) -> None:
    run, blocks = ALLOCATING[name]
    with on_threads(threads):
        before = run()
        assert memory.granted == 1000 - blocks
        for count in range(blocks):
            memory.granted = count
            with pytest.raises(MemoryError, match=f"CPU kernel {name} ") as caught:
                run()
            assert is_out_of_memory(caught.value)
        memory.granted = 1000
        assert all(torch.equal(a, b) for a, b in zip(before, run(), strict=True))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("granted", [0, 1])
def test_memory_refused_in_the_backward_pass_is_a_memory_error(
    granted: int, threads: int, memory: Memory
) -> None:
    """In PyTorch's autograd, backward_sums allocates first, and then the convolution."""
    layer, norm = Conv3x3(64, 64), nn.BatchNorm2d(64)
    with on_threads(threads):
        with torch.autocast("cpu", torch.bfloat16):
            y = conv_norm_act(pictures(300, 64, 8, 8), layer, norm, "silu", pool=2)
        memory.granted = granted
        with pytest.raises(MemoryError, match="backward_sums" if granted == 0 else "winograd"):
            y.float().sum().backward()


def test_every_function_that_allocates_is_tested() -> None:
    found = set()
    for path in library.SOURCES:
        for definition in path.read_text().split("\nint ")[1:]:
            body = definition.split("\n}\n")[0]
            if "NO_MEMORY" in body:
                found.add(body.split("(")[0])
    assert found == {*ALLOCATING, "backward_sums"}


@pytest.mark.timeout(120)
def test_a_training_whose_kernel_gets_no_memory_raises_out_of_memory_error(
    memory: Memory, tmp_path: Path
) -> None:
    memory.granted = 3
    settings = [*TINY, "training.precision=bf16", "model.width=2", "augment.translate=0"]
    with pytest.raises(OutOfMemoryError, match="16 pictures in a forward pass"):
        train(coloured_data(), "one-cycle", overrides=settings, out=tmp_path / "run", device="cpu")


LIMITED = """
import ctypes, json, resource, sys, torch
from thumbnet.kernels import library
from thumbnet.kernels.augment import mirror_and_translate
from thumbnet.kernels.strided import strided, strided_weight_gradient
from thumbnet.kernels.tiles import conv3x3, weight_gradient
from thumbnet.kernels.winograd import winograd, winograd_weight_gradient

library._loaded.update(dict.fromkeys([False, True], library._Kernels(ctypes.CDLL(sys.argv[1]))))
torch.set_num_threads(4)
channels = 1024
def pictures(side):
    return torch.zeros(8, channels, side, side, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
def moved(width):
    images = torch.zeros(4, 1, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    return lambda: mirror_and_translate(images, torch.zeros(4, dtype=torch.bool), torch.zeros(4, 2).long(), True)
x, dy, filters = pictures(4), pictures(4), torch.zeros(channels, channels, 3, 3)
wide = torch.zeros(4 * channels, channels, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)
runs = {
    "winograd": lambda: winograd(x, filters),
    "winograd_weight_gradient": lambda: winograd_weight_gradient(x, dy),
    "tile_conv": lambda: conv3x3(x, wide),
    "tile_weight_gradient": lambda: weight_gradient(x, dy),
    "strided": lambda: strided(x, filters),
    "strided_weight_gradient": lambda: strided_weight_gradient(x, pictures(2)),
    "mirror_and_translate": moved(4_000_000),
}
moved(10)()  # starts all threads
winograd(x[:, :32].contiguous(memory_format=torch.channels_last), filters[:32, :32])
said = {}
for name, run in runs.items():
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * resource.getpagesize() + 60 * 2**20  # enough for the result, but not for the scratch memory
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    try:
        run()
        said[name] = "enough"
    except MemoryError as error:
        said[name] = str(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(said))
"""


def test_a_process_at_its_memory_limit_gets_the_error_and_continues(test_kernels: ctypes.CDLL) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, test_kernels._name],
        env={**os.environ, "OMP_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.keys() == ALLOCATING.keys() - {"pool_and_sum"}  # whose sums are too small to fail
    for name, error in said.items():
        assert f"CPU kernel {name} could not allocate" in error


@pytest.mark.parametrize(
    ("threads", "device"),
    [
        pytest.param("3", "cpu", id="fewer threads than requested"),
        pytest.param("4", "meta", id="tensors have no memory by default"),
    ],
)
def test_the_bits_depend_only_on_the_number_of_threads_that_are_requested(
    threads: str, device: str, test_kernels: ctypes.CDLL
) -> None:
    """OpenMP may start fewer because of OMP_THREAD_LIMIT, or inside another parallel region."""
    with loaded(test_kernels, has_tiles=False), on_threads(4):
        expected = sums()
    done = subprocess.run(
        [sys.executable, str(SUMMED), test_kernels._name, device],
        env={**os.environ, "OMP_NUM_THREADS": "4", "OMP_THREAD_LIMIT": threads},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == expected


def test_these_bits_are_of_every_kernel(test_kernels: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    names = watched(monkeypatch)
    with loaded(test_kernels, has_tiles=False):
        sums()
    assert set(names) == set(kernel_names())


def test_the_default_type_of_tensors_changes_no_bit(test_kernels: ctypes.CDLL) -> None:
    with loaded(test_kernels, has_tiles=False):
        expected = sums()
        torch.set_default_dtype(torch.float64)
        try:
            assert sums() == expected
        finally:
            torch.set_default_dtype(torch.float32)


def state_of_the_process() -> dict[str, Any]:
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    umask = os.umask(0)
    os.umask(umask)
    return {
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "mkldnn": (mkldnn.enabled, mkldnn.deterministic),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "denormals": float(torch.tensor(1e-40) * 1),
        "random": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": umask,
    }


@needs_kernels
@pytest.mark.usefixtures("quick")
def test_kernels_do_not_change_the_state_of_the_process(
    test_kernels: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, flag, not getattr(torch.backends.cudnn, flag))
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path))
    layer, norm = Conv3x3(64, 64), nn.BatchNorm2d(64)
    before = state_of_the_process()
    library.forget()
    assert library.load_kernels() is not None  # calls gcc
    library.forget()
    for tiles in (False, True):
        with loaded(test_kernels, has_tiles=tiles):
            for run, _ in ALLOCATING.values():
                run()
            with torch.autocast("cpu", torch.bfloat16):
                x = pictures(300, 64, 8, 8).requires_grad_()
                conv_norm_act(x, layer, norm, "silu", pool=2).float().sum().backward()
    assert state_of_the_process() == before


@needs_kernels
def test_kernels_run_only_under_bfloat16_autocast_on_pictures_stored_channels_last() -> None:
    x = pictures(2, 32, 4, 4)
    assert not applies(x)
    with torch.autocast("cpu", torch.float16):
        assert not applies(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert applies(x)
        assert applies(x.float())
        assert not applies(x.contiguous())
        assert not applies(x[0])
        assert not applies(x[:0])
        assert not applies(pictures(1, 4100, 2, 2))
        assert not applies(None)  # type: ignore[arg-type]
        assert not applies(x.double())  # which autocast leaves as it is
        assert not applies(x.to(torch.uint8))
        assert not applies(x.to("meta"))
        assert not applies(x.as_subclass(Marked))


class Marked(Tensor):
    """A subclass may keep its values elsewhere."""


def in_make_fx(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    make_fx(run)(x)


def in_compile(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch.compile(run, backend="eager", fullgraph=True)(x)


def in_trace(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch.jit.trace(run, x, check_trace=False)


def in_a_counter(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with FlopCounterMode(display=False):
        run(x)


def in_a_fake_mode(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        run(x)


def in_grad(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch.func.grad(lambda z: run(z).sum())(x)


def in_vmap(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch.func.vmap(run)(x[None])


def in_a_dual_level(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with forward_ad.dual_level():
        run(x)


@needs_kernels
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.parametrize(
    "inside",
    [in_make_fx, in_compile, in_trace, in_a_counter, in_a_fake_mode, in_grad, in_vmap, in_a_dual_level],
)
def test_kernels_do_not_run_where_pytorch_would_not_see_them(
    inside: Callable[[Callable[[Tensor], Tensor], Tensor], None],
) -> None:
    """A graph would lack what they compute, a count their operations, and a derivative their part."""
    x, images = pictures(2, 32, 4, 4).float(), pictures(2, 3, 8, 8).to(torch.uint8)
    bank = FILTERS.clone(memory_format=torch.channels_last)
    found: list[list[bool]] = []

    def run(z: Tensor) -> Tensor:
        found.append([applies(z), applies(x), can_move(images), fit_muon([bank], [bank])])
        return z * 1

    with torch.autocast("cpu", torch.bfloat16):
        run(x)
        inside(run, x)
        run(x)
    first, *others, last = found
    assert first == last == [True] * 4
    assert others
    assert not any(any(answers) for answers in others)


# Without the checks, most of these end the process.
CRASHERS = """
import json, sys, torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from thumbnet.kernels.calls import call, empty
from thumbnet.kernels.norm import norm_act
from thumbnet.kernels.whiten import whiten_act
from thumbnet.models.fastnet import fastnet
from thumbnet.models.resnet import resnet18

torch.manual_seed(0)
x = torch.randn(32, 64, 8, 8).contiguous(memory_format=torch.channels_last)
images = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)

def faked(make):
    network = make(width=0.5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return str(tuple(network(images).shape))

def traced(make):
    network = make(width=0.5).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        trace = torch.jit.trace(network, images)
        return str(bool((trace(images + 1) - network(images + 1)).abs().max() < 0.01))

tries = {
    "call": lambda: call("scale_and_activate", x.to("meta"), None, empty(1, 32, 1, 1), x, x, 1, 1, 1, 32, 1, 0),
    "norm": lambda: norm_act(x, nn.BatchNorm2d(64).to("meta")),
    "evaluated norm": lambda: norm_act(x, nn.BatchNorm2d(64).to("meta").eval()),
    "added": lambda: norm_act(x, nn.BatchNorm2d(64), add=x.to("meta")),
    "whiten": lambda: whiten_act(images, nn.Conv2d(3, 24, 2).requires_grad_(False).to("meta")),
    "faked fastnet": lambda: faked(fastnet),
    "faked resnet": lambda: faked(resnet18),
    "traced fastnet": lambda: traced(fastnet),
    "traced resnet": lambda: traced(resnet18),
}
said = {}
for name, run in tries.items():
    try:
        with torch.autocast("cpu", torch.bfloat16):
            said[name] = run()
    except (RuntimeError, NotImplementedError) as error:
        said[name] = "error"
    print(name, file=sys.stderr)
print(json.dumps(said, default=repr))
"""


@needs_kernels
def test_tensors_without_memory_do_not_end_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CRASHERS], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        **dict.fromkeys(["call", "norm", "evaluated norm", "added", "whiten"], "error"),
        "faked fastnet": "(32, 10)",
        "faked resnet": "(32, 10)",
        "traced fastnet": "True",
        "traced resnet": "True",
    }


@needs_kernels
def test_kernels_that_cannot_run_in_one_process_of_a_training_run_in_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "_loaded", dict(library._loaded))
    monkeypatch.setattr(World, "sum", lambda self, values: values)  # the others have them, too
    agree_on_kernels(World(0, 2))
    assert available()
    monkeypatch.setattr(World, "sum", lambda self, values: values + 1)
    agree_on_kernels(World(0, 2))
    assert not available()
    assert not strided_available()
    assert library.why_off() == "they cannot run in another process of this training"
