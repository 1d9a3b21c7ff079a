"""A GPU for tests on a computer without one.

Inside :func:`simulated_gpu`, PyTorch says that there is one CUDA GPU. Its tensors (:class:`GpuTensor`) say that
they are on ``cuda:0`` and compute on the CPU. They refuse to be mixed with tensors on the CPU as CUDA's do. The
log lists every copy between host and GPU, and every call that makes the host wait for the GPU:

```python
with simulated_gpu() as log:
    x = torch.ones(3).to("cuda")  # a copy, and a wait
    y = x.to("cpu")  # another copy, another wait
print(log.copies, log.waits)
```

Below Python, a GpuTensor is a tensor on the CPU, because PyTorch's CPU build has no CUDA streams for autograd. So
only Python sees ``cuda:0``, ``torch.autocast("cuda")`` casts what autocast on the CPU casts, and no gradient flows
back through a copy between host and GPU.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import thumbnet

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
STAGED = 64 * 1024  # CUDA copies this many bytes from ordinary memory without waiting
_SOURCE = str(Path(thumbnet.__file__).parent)
_HELPERS = ("/hardware.py", "/batches/upload.py")  # they copy for others
_PASSED_OVER = (str(Path(torch.__file__).parent), __file__, contextlib.__file__)
aten = torch.ops.aten
_current: _Gpu | None = None  # the GPU of the innermost simulated_gpu()


@dataclass(frozen=True)
class Copy:
    """A copy between host and GPU.

    Attributes:
        to: ``gpu`` or ``host``.
        bytes: its size.
        blocking: whether the host waits until it is done.
        shape: of the copied tensor.
        place: file and line in thumbnet (or, outside it, in the caller) that copied.
    """

    to: str
    bytes: int
    blocking: bool
    shape: tuple[int, ...]
    place: str


@dataclass(frozen=True)
class Wait:
    """A call for which the host waits until the GPU has done all its work: what it was, and where."""

    reason: str
    place: str


@dataclass
class Log:
    """What the simulated GPU has done.

    Attributes:
        copies, waits: in the order in which they happened. A blocking copy is in both.
        launches: how often each operation ran on the GPU, by its name; views are free.
        chosen: the devices passed to ``torch.cuda.set_device``.
        allocated, peak: bytes in use on the GPU now, and at most so far.
    """

    copies: list[Copy] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    launches: Counter[str] = field(default_factory=Counter)
    chosen: list[Any] = field(default_factory=list)
    allocated: int = 0
    peak: int = 0

    def clear(self) -> None:
        """Forget the copies, waits and launches so far."""
        self.copies.clear()
        self.waits.clear()
        self.launches.clear()

    def wait(self, reason: str) -> None:
        self.waits.append(Wait(reason, _place()))

    def copy(self, to: str, tensor: Tensor, blocking: bool) -> None:
        size = tensor.numel() * tensor.element_size()
        self.copies.append(Copy(to, size, blocking, tuple(tensor.shape), _place()))
        if blocking:
            self.wait(f"a copy to the {to}")


@contextlib.contextmanager
def simulated_gpu(memory: int = 8 * 2**30, fast_bf16: bool = True) -> Iterator[Log]:
    """In this block, PyTorch has one simulated GPU.

    Args:
        memory: the GPU's memory in bytes. An operation that needs more raises ``torch.OutOfMemoryError``.
        fast_bf16: whether the GPU says that it multiplies bfloat16 fast.

    Yields:
        The log of the GPU.
    """
    gpu = _Gpu(memory)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys.modules[__name__], "_current", gpu))
        for module, name, value in _patches(gpu, fast_bf16):
            stack.enter_context(mock.patch.object(module, name, value))
        threads = torch.autograd.set_multithreading_enabled(False)  # threads would not see the mode
        stack.enter_context(threads)
        stack.enter_context(_Mode(gpu))
        yield gpu.log


def gpu_tensor(tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` on the simulated GPU that is not logged."""
    assert _current is not None, "only inside simulated_gpu()"
    return GpuTensor(tensor.detach().clone(), _current)


class _Gpu:
    """The state of one simulated GPU."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.log = Log()
        self.pinned: dict[int, Tensor] = {}  # by address; kept alive, so that no address is used again
        self._blocks: dict[int, list[int]] = {}  # address → number of tensors that use the block, its bytes

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def pin(self, tensor: Tensor, device: Any = None) -> Tensor:
        if isinstance(tensor, GpuTensor):
            raise RuntimeError("cannot pin a tensor on the GPU: only dense CPU tensors can be pinned")
        if self.is_pinned(tensor):
            return tensor
        copy = tensor.clone()
        self.pinned[copy.untyped_storage().data_ptr()] = copy
        return copy

    def hold(self, tensor: GpuTensor) -> None:
        """Count the memory of a new tensor until it dies.

        Raises:
            torch.OutOfMemoryError: the GPU's memory does not suffice.
        """
        storage = tensor.on_cpu.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        block = self._blocks.setdefault(address, [0, size])
        if not block[0]:
            if self.log.allocated + size > self.memory:
                del self._blocks[address]
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size} bytes. GPU 0 has a total capacity of "
                    f"{self.memory} bytes of which {self.memory - self.log.allocated} bytes are free."
                )
            self.log.allocated += size
            self.log.peak = max(self.log.peak, self.log.allocated)
        block[0] += 1
        weakref.finalize(tensor, self._release, address)

    def _release(self, address: int) -> None:
        block = self._blocks[address]
        block[0] -= 1
        if not block[0]:
            self.log.allocated -= block[1]
            del self._blocks[address]


class GpuTensor(torch.Tensor):
    """A tensor that says that it is on ``cuda:0``; ``on_cpu`` holds its values on the CPU."""

    on_cpu: Tensor
    gpu: _Gpu

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: _Gpu) -> GpuTensor:
        made: GpuTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,
        )
        made.on_cpu, made.gpu = inner, gpu
        gpu.hold(made)
        return made

    def __init__(self, inner: Tensor, gpu: _Gpu) -> None:
        super().__init__()

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"GpuTensor({self.on_cpu})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a tensor on the CPU."""
        return self.cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _METHODS.get(func, func)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        gpu = next(
            tensor.gpu for tensor in _tensors((args, *kwargs.values())) if isinstance(tensor, GpuTensor)
        )
        return _run(gpu, func, args, kwargs)


# --- methods that PyTorch would answer for a tensor on the CPU ---------------------------------------------

_TO = torch.Tensor.to


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``Tensor.to`` if the tensor or its target is on the GPU."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    rest = [value for value in args if isinstance(value, bool)]  # non_blocking, copy
    for value in args:
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, str | int | torch.device) and not isinstance(value, bool):
            device = value
        elif isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
    non_blocking = kwargs.get("non_blocking", rest[0] if rest else False)
    layout = kwargs.get("memory_format", torch.preserve_format)
    copy = kwargs.get("copy", rest[1] if len(rest) > 1 else False)
    target = tensor.device if device is None else torch.device(device)
    dtype = dtype or tensor.dtype
    if not isinstance(tensor, GpuTensor):
        if target.type == "cuda":
            target = CUDA  # PyTorch would ask CUDA which GPU is the current one
        return _TO(tensor, target, dtype, non_blocking, copy, memory_format=layout)
    with torch._C.DisableTorchFunctionSubclass():
        moved: Tensor = _TO(tensor, dtype, copy=copy, memory_format=layout)  # still on the GPU
        return _to_host(moved, non_blocking) if target.type == "cpu" else moved


def _to_host(tensor: Any, non_blocking: bool = False, **_: Any) -> Tensor:
    """A copy on the host. PyTorch pins the memory of one that does not block, so the host need not wait."""
    tensor.gpu.log.copy("host", tensor, blocking=not non_blocking)
    copied: Tensor = tensor.detach().on_cpu.clone()
    return copied


def _new_tensor(tensor: Any, data: Any, **kwargs: Any) -> Tensor:
    made = torch.tensor(data, dtype=kwargs.pop("dtype", tensor.dtype))
    return made.to(kwargs.pop("device", CUDA))


def _tolist(tensor: Any) -> Any:
    tensor.gpu.log.wait("tolist")
    return tensor.on_cpu.tolist()


def _numpy(tensor: Any, *_: Any, **__: Any) -> Any:
    raise TypeError(
        "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory."
    )


_METHODS: dict[Any, Callable[..., Any]] = {
    _TO: _to,
    torch.Tensor.cpu: _to_host,
    torch.Tensor.cuda: lambda tensor, *_, **__: tensor,
    torch.Tensor.type_as: _to,
    torch.Tensor.new_tensor: _new_tensor,
    torch.Tensor.tolist: _tolist,
    torch.Tensor.numpy: _numpy,
    torch.Tensor.__array__: _numpy,
    torch.Tensor.data_ptr: lambda tensor: tensor.on_cpu.data_ptr(),
    torch.Tensor.is_pinned: lambda tensor, *_: False,
}


# --- operations --------------------------------------------------------------------------------------------

# Operations whose result's size, or whose error, the host has to read back.
_WAITING = {
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten.equal: "equal",
    aten.bincount: "bincount",
    aten.repeat_interleave: "repeat_interleave",
    aten._linalg_eigh: "eigh",
    aten.linalg_inv_ex: "inv",
    aten._linalg_svd: "svd",
}
_INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


class _Mode(TorchDispatchMode):
    """Sees the operations without a GpuTensor among their arguments: uploads, and ``torch.zeros(device=...)``."""

    def __init__(self, gpu: _Gpu) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gpu = gpu

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and hiding each operation from the compiler takes time."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(self.gpu, func, args, kwargs or {}, self)


def _run(gpu: _Gpu, func: Any, args: Any, kwargs: dict[str, Any], mode: _Mode | None = None) -> Any:
    """Run an operation where its arguments are."""
    if _consists_of_others(func):
        with mode or contextlib.nullcontext():
            return func.decompose(*args, **kwargs)
    tensors = list(_tensors((args, *kwargs.values())))
    here = any(isinstance(tensor, GpuTensor) for tensor in tensors)
    if func is aten.copy_.default and here:
        return _copy(gpu, *args)
    device = kwargs.get("device")
    on_gpu = here if device is None else torch.device(device).type == "cuda"
    if func is aten._to_copy.default and here:
        on_gpu = True  # only _to_host copies to the host
    if not here and not on_gpu:
        return func(*args, **kwargs)
    if here:
        args = _check(gpu, func, args, kwargs, tensors)
        _note_waits(gpu, func, args)
    return _compute(gpu, func, args, kwargs, on_gpu, uploads=not here)


@functools.cache
def _consists_of_others(func: Any) -> bool:
    """Whether an operation is made of others. Inference mode passes it whole, but its parts must be seen."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel(func.name(), "CompositeImplicitAutograd") and not has_kernel(func.name(), "CPU")


def _compute(gpu: _Gpu, func: Any, args: Any, kwargs: dict[str, Any], on_gpu: bool, uploads: bool) -> Any:
    """Run ``func`` on the CPU's values of its arguments, and return its result as on the GPU."""
    plain = {key: value for key, value in kwargs.items() if key not in ("non_blocking", "pin_memory")}
    if plain.get("device") is not None:
        plain["device"] = CPU
    result = func(*_each(_inner, args), **{key: _each(_inner, value) for key, value in plain.items()})
    if func is aten._to_copy.default and uploads:
        source = args[0]
        size = source.numel() * source.element_size()
        waits = not kwargs.get("non_blocking") or (size > STAGED and not gpu.is_pinned(source))
        gpu.log.copy("gpu", source, blocking=waits)
        return GpuTensor(result, gpu)
    name, writes, is_view = _described(func)
    if not is_view:
        gpu.log.launches[name] += 1
    if writes:
        return _written(func, args, kwargs)
    # Whether a view belongs to inference mode depends on its source, not on where it is taken.
    inference = args[0].is_inference() if is_view else torch.is_inference_mode_enabled()
    with torch.inference_mode(inference):
        return _each(lambda x: GpuTensor(x, gpu) if isinstance(x, Tensor) and on_gpu else x, result)


@functools.cache
def _described(func: Any) -> tuple[str, bool, bool]:
    """The name of an operation, whether it writes to an argument, and whether its result is a view of one."""
    aliases = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
    writes = [alias.is_write for alias in aliases]
    return func.name().removeprefix("aten::"), any(writes), not all(writes)


# torch.utils._pytree does this, too, but takes a third of the whole simulation.
def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments, which are in lists at most."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with ``change`` applied to everything that is no list or tuple."""
    if isinstance(value, list | tuple):
        return type(value)([_each(change, one) for one in value])
    return change(value)


def _inner(value: Any) -> Any:
    return value.on_cpu if isinstance(value, GpuTensor) else value


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The arguments that ``func`` has changed, which are what it returns."""
    changed = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed.append(kwargs.get(argument.name, args[number] if number < len(args) else None))
    for tensor in changed:
        if isinstance(tensor, GpuTensor) and tensor.on_cpu.shape != tensor.shape:
            raise NotImplementedError(f"{func} changes a shape in place, which is not simulated")
    return changed[0] if len(func._schema.returns) == 1 else tuple(changed)


def _copy(gpu: _Gpu, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``Tensor.copy_`` with at least one of the two on the GPU."""
    if not isinstance(source, GpuTensor):
        size = source.numel() * source.element_size()
        waits = not non_blocking or (size > STAGED and not gpu.is_pinned(source))
        gpu.log.copy("gpu", source, blocking=waits)
    elif not isinstance(target, GpuTensor):
        gpu.log.copy("host", source, blocking=not (non_blocking and gpu.is_pinned(target)))
    else:
        gpu.log.launches["copy_"] += 1
    _inner(target).copy_(_inner(source))
    return target


def _check(gpu: _Gpu, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
    """Refuse tensors on the CPU as CUDA does; return the arguments, with indices moved to the GPU.

    A tensor on the CPU without dimensions counts as a number, and indices are copied to the indexed tensor.
    """
    strangers = [t for t in tensors if not isinstance(t, GpuTensor) and t.ndim > 0]
    if not strangers:
        return args
    if func._overloadpacket in _INDEXING and isinstance(args[0], GpuTensor):
        indices = args[1]
        for index in indices:
            if index is not None and not isinstance(index, GpuTensor):
                gpu.log.copy("gpu", index, blocking=True)
        strangers = [t for t in strangers if not any(t is index for index in indices)]
    if strangers:
        shapes = ", ".join(str(tuple(t.shape)) for t in strangers)
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({func.name()}: {shapes} on the cpu, in {_place()})"
        )
    return args


def _note_waits(gpu: _Gpu, func: Any, args: Any) -> None:
    reason = _WAITING.get(func._overloadpacket)
    if func._overloadpacket in _INDEXING:
        masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        # One number behind a mask needs no positions: PyTorch fills it in.
        if masked and (func._overloadpacket is aten.index or args[2].numel() > 1):
            reason = "a mask as an index"
    if reason is not None:
        gpu.log.wait(reason)


def _place() -> str:
    """The line of thumbnet that asked for it, else the line of the caller."""
    outside = ""
    frame: FrameType | None = sys._getframe(1)
    while frame:
        name = frame.f_code.co_filename
        if name.startswith(_SOURCE) and not name.endswith(_HELPERS):
            return f"{name.removeprefix(_SOURCE + '/')}:{frame.f_lineno}"
        if not outside and not name.startswith(_PASSED_OVER):
            outside = f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return outside


# --- torch.cuda --------------------------------------------------------------------------------------------


def _patches(gpu: _Gpu, fast_bf16: bool) -> list[tuple[Any, str, Any]]:
    """What of PyTorch has to change, and how."""
    log, autocast = gpu.log, torch.autocast
    properties = SimpleNamespace(
        name="simulated GPU", total_memory=gpu.memory, major=9, minor=0, multi_processor_count=132
    )

    def wait() -> None:
        log.wait("synchronize")

    generator = torch.Generator()
    stream = SimpleNamespace(is_capturing=lambda: False, synchronize=wait)

    def built_on_the_host(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def build(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
            return make(data, **kwargs) if device is None else make(data, **kwargs).to(device)

        return build

    def cpu_autocast(device_type: str, *args: Any, **kwargs: Any) -> torch.autocast:
        return autocast("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    cuda: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: False,
        "device": lambda device: contextlib.nullcontext(),
        "set_device": log.chosen.append,
        "default_generators": (generator,),
        "get_rng_state": lambda device=None: generator.get_state(),
        "set_rng_state": lambda state, device=None: generator.set_state(state),
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: fast_bf16,
        "mem_get_info": lambda device=None: (gpu.memory - log.allocated, gpu.memory),
        "memory_allocated": lambda device=None: log.allocated,
        "memory_reserved": lambda device=None: log.allocated,
        "max_memory_allocated": lambda device=None: log.peak,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: wait(),
        "current_stream": lambda device=None: stream,
    }
    return [
        *((torch.cuda, name, value) for name, value in cuda.items()),
        (torch, "autocast", cpu_autocast),
        (torch, "tensor", built_on_the_host(torch.tensor)),
        (torch, "as_tensor", built_on_the_host(torch.as_tensor)),
        (torch.accelerator, "is_available", lambda check_available=False: True),
        (torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")),
        (torch.accelerator, "current_device_index", lambda: 0),
        (torch.accelerator, "set_device_index", lambda device: None),
        (torch.accelerator, "current_stream", lambda device=None: stream),
        (torch.Tensor, "to", _to),
        (
            torch.Tensor,
            "cuda",
            lambda tensor, device=None, non_blocking=False: _to(tensor, CUDA, None, non_blocking),
        ),
        (torch.Tensor, "pin_memory", lambda tensor, device=None: gpu.pin(tensor, device)),
        (torch.Tensor, "is_pinned", lambda tensor, device=None: gpu.is_pinned(tensor)),
        # A converted parameter is a new one: a tensor cannot change its class.
        (torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True),
    ]
