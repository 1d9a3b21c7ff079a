"""Where a training step's time goes, layer by layer: PyTorch's operations compared with the kernels.

    python benchmarks/operations.py --network resnet18 --json operations.json

Times each operation alone, on bf16 pictures stored channels last; both ways take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from measure import matrix_rate, median, parser, report, take_turns
from torch import Tensor, nn

from thumbnet.hardware import keep_freed_memory
from thumbnet.kernels import calls
from thumbnet.kernels import norm as norms
from thumbnet.kernels.conv import Conv3x3
from thumbnet.kernels.library import load_kernels
from thumbnet.kernels.norm import Activation, conv_norm_act, norm_act, plain_norm_act
from thumbnet.models import build_model
from thumbnet.recipes.settings import ModelSettings


def layers(name: str, batch: int, side: int) -> list[tuple[Any, tuple[int, ...], dict[str, Any]]]:
    """Each distinct 3x3 convolution and normalisation, with its input's shape and how often it occurs.

    If the network calls both at once (``conv_norm_act``), they are one layer, a pair of modules.
    """
    seen: dict[str, list[Any]] = {}
    model = build_model(ModelSettings(name=name), 10)
    joined = False

    def note(module: Any, shape: tuple[int, ...], extra: dict[str, Any]) -> None:
        if joined:
            return
        first: Any = module[0] if isinstance(module, nn.ModuleList) else module
        key = f"{type(module).__name__} {list(shape)} {first.weight.shape[0]} {extra}"
        entry = seen.setdefault(key, [module, shape, {"times": 0, **extra}])
        entry[2]["times"] += 1

    def watch_both(
        x: Tensor, conv: Conv3x3, norm: nn.BatchNorm2d, act: Activation = "relu", *, pool: int = 1
    ) -> Tensor:
        nonlocal joined
        note(nn.ModuleList([conv, norm]), tuple(x.shape), {"act": act, "pool": pool, "adds": False})
        joined = True
        result = conv_norm_act(x, conv, norm, act, pool=pool)
        joined = False
        return result

    def watch(x: Tensor, norm: nn.BatchNorm2d, act: Activation = "relu", **more: Any) -> Tensor:
        extra = {"act": act, "pool": more.get("pool", 1), "adds": more.get("add") is not None}
        note(norm, tuple(x.shape), extra)
        return plain_norm_act(x, norm, act, **more)

    hooks = [
        module.register_forward_pre_hook(lambda m, inputs: note(m, tuple(inputs[0].shape), {}))
        for module in model.modules()
        if isinstance(module, Conv3x3)
    ]
    with (
        mock.patch.object(norms, "plain_norm_act", watch),
        mock.patch.object(import_module("thumbnet.models.fastnet"), "conv_norm_act", watch_both),
        torch.no_grad(),
    ):
        model(torch.randn(batch, 3, side, side))
    for hook in hooks:
        hook.remove()
    return [(module, shape, extra) for module, shape, extra in seen.values()]


def step_of(module: Any, shape: tuple[int, ...], extra: dict[str, Any]) -> Callable[[bool], None]:
    """A function that runs one layer forwards and backwards, with or without the kernels."""
    x = torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    module.to(memory_format=torch.channels_last).train()
    more: dict[str, Any] = {}
    if "act" in extra:
        more = {"act": extra["act"], "pool": extra["pool"]}
        if extra["adds"]:
            more["add"] = torch.randn_like(x).requires_grad_()

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if isinstance(module, nn.BatchNorm2d):
                return norm_act(x, module, **more)
            if isinstance(module, nn.ModuleList):
                return conv_norm_act(x, *module, **more)
            return module(x)

    gradient = torch.randn_like(forward())

    def step(kernels: bool) -> None:
        with mock.patch.object(calls, "load_kernels", load_kernels if kernels else lambda **_: None):
            forward().backward(gradient)
        module.zero_grad()
        x.grad = None

    return step


def main() -> None:
    """Measure, print a table, and write JSON."""
    arguments = parser(__doc__, rounds=5)
    arguments.add_argument("--network", default="fastnet")
    arguments.add_argument("--batch", type=int, default=500)
    arguments.add_argument("--side", type=int, default=32, help="side of the pictures in pixels")
    options = arguments.parse_args()
    keep_freed_memory()
    rows, results = [], {}
    totals = {"PyTorch": 0.0, "kernels": 0.0}
    for module, shape, extra in layers(options.network, options.batch, options.side):
        step = step_of(module, shape, extra)
        ways = {"PyTorch": partial(step, False), "kernels": partial(step, True)}
        times = take_turns(ways, options.rounds)
        what, rate = [], ""
        conv = module[0] if isinstance(module, nn.ModuleList) else module
        if isinstance(conv, Conv3x3):
            stride = conv.stride[0]
            what.append(f"convolve to {conv.weight.shape[0]}" + (f", stride {stride}" if stride != 1 else ""))
            flops = 6 * shape[0] * shape[2] * shape[3] / stride**2 * conv.weight.numel()
            rate = f"{flops / median(times['kernels']) / 1e12:.2f}"
        if "act" in extra:
            what += ["pool"] * (extra["pool"] > 1) + ["normalise", extra["act"]] + ["add"] * extra["adds"]
        name = ", ".join(what)
        middle = {way: median(values) for way, values in times.items()}
        for way, seconds in middle.items():
            totals[way] += seconds * extra["times"]
        gain = middle["PyTorch"] / middle["kernels"]
        rows.append([
            name, "x".join(map(str, shape[1:])), str(extra["times"]), f"{middle['PyTorch'] * 1e3:.1f}",
            f"{middle['kernels'] * 1e3:.1f}", f"{gain:.1f}", rate,
        ])  # fmt: skip
        results[f"{name} {shape}"] = times
    rows.append(["all", "", "", f"{totals['PyTorch'] * 1e3:.0f}", f"{totals['kernels'] * 1e3:.0f}",
                 f"{totals['PyTorch'] / totals['kernels']:.1f}", ""])  # fmt: skip
    title = (
        f"{options.network}, {options.batch} pictures of {options.side}x{options.side}, "
        f"forwards and backwards in ms; product {matrix_rate():.2f} TFLOP/s; n = {options.rounds}"
    )
    header = ["operation", "on", "times", "PyTorch", "kernels", "gain", "TFLOP/s"]
    report(title, header, rows, options.json, {"seconds": results})


if __name__ == "__main__":
    main()
