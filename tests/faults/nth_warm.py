"""What the fork server does once for all children of the n-th-failure tests; it imports this module.

Three kinds of things, none of which touches a file of a scenario:

- pictures that are decoded and what the processes of a training tell each other are announced to the shim, so that
  they count and fail like system calls;
- what every child would compute again before it comes to a file of ours is computed here;
- the graphs of exports, which take seconds, are taken from a former child that exported the same network, and a
  report's curves are not drawn. Both only compute: they read and write no file of ours.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import typing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image, ImageFile
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from faults.fork_server import announce
from thumbnet import cli
from thumbnet.recipes.recipe import load_recipe
from thumbnet.reports import charts

# How a decode fails by the errno of its fault: Pillow finds damage, or memory runs out.
DAMAGE = "broken data stream when reading image file"


def announced(operation: str, failure: Callable[[int], Exception], call: Any) -> Any:
    """``call``, announced to the shim as an ``operation``."""

    @functools.wraps(call)
    def calling(*arguments: Any, **named: Any) -> Any:
        error = announce(operation, call.__name__)
        if error:
            raise failure(error)
        result = call(*arguments, **named)
        announce(operation, call.__name__, done=True)
        return result

    return calling


def _damaged(error: int) -> Exception:
    return MemoryError() if error == errno_of_memory else OSError(DAMAGE)


def _lost(error: int) -> Exception:
    """What gloo raises, as PyTorch 2.13 has it."""
    return dist.DistBackendError(
        f"[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:554] Read error [127.0.0.1]:1: {os.strerror(error)}"
    )


errno_of_memory = 12


def _count_decodes() -> None:
    load = ImageFile.ImageFile.load
    failing = announced("decode", _damaged, load)

    def loading(self: Any) -> Any:
        return failing(self) if self.tile else load(self)  # without tiles, it is decoded already

    ImageFile.ImageFile.load = loading  # type: ignore[method-assign]


def _count_collectives() -> None:
    for name in (
        "init_process_group",
        "all_reduce",
        "broadcast",
        "broadcast_object_list",
        "all_gather",
        "barrier",
    ):
        setattr(dist, name, announced("collective", _lost, getattr(dist, name)))
    prepare = DistributedDataParallel.__init__

    @functools.wraps(prepare)
    def preparing(self: Any, *arguments: Any, **named: Any) -> None:
        """Have Python sum the gradients as the wrapper itself would."""
        prepare(self, *arguments, **named)
        self.register_comm_hook(None, allreduce_hook)  # calls all_reduce, which is announced

    DistributedDataParallel.__init__ = preparing  # type: ignore[method-assign]


def _compute_before() -> None:
    hints = typing.get_type_hints
    known = functools.cache(hints)
    typing.get_type_hints = lambda one, *more, **named: (hints if more or named else known)(
        one, *more, **named
    )
    load_recipe("one-cycle")
    cli.parse(["train", "digits"])
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(stream, "png")
    with Image.open(io.BytesIO(stream.getvalue())) as image:
        image.load()


def _keep_graphs() -> None:
    import onnx

    folder = Path(os.environ["NTH_GRAPHS"])
    folder.mkdir(parents=True, exist_ok=True)
    to_onnx: Any = torch.onnx.export
    trace: Any = torch.export.export
    save: Any = torch.export.save

    def place(network: Any, *more: Any) -> Path:
        """Where the graph of a network is kept."""
        digest = hashlib.sha256(repr((network, *more)).encode())
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return folder / digest.hexdigest()

    class Graph:
        """What torch.onnx.export returns."""

        def __init__(self, content: bytes) -> None:
            self.model_proto = onnx.ModelProto.FromString(content)

    class Untraced:
        """What torch.export.export returns."""

        def __init__(self, network: Any, *more: Any, **named: Any) -> None:
            self.given = (network, more, named)
            self.graph = SimpleNamespace(nodes=())

    def exporting(network: Any, example: Any, **options: Any) -> Any:
        path = place(network, "onnx", example, sorted(options.items()))
        if not path.exists():
            setattr(torch.export, "export", trace)  # noqa: B010 - which this export uses
            path.write_bytes(to_onnx(network, example, **options).model_proto.SerializeToString())
        return Graph(path.read_bytes())

    def saving(program: Any, buffer: Any, extra_files: dict[str, str]) -> None:
        network, *more = program.given
        path = place(network, "pt2", more, sorted(extra_files.items()))
        if not path.exists():
            with path.open("wb") as file:
                save(trace(network, *more[0], **more[1]), file, extra_files=extra_files)
        buffer.write(path.read_bytes())

    setattr(torch.onnx, "export", exporting)  # noqa: B010 - mypy refuses the assignment
    setattr(torch.export, "export", Untraced)  # noqa: B010
    setattr(torch.export, "save", saving)  # noqa: B010


def _draw_nothing() -> None:
    setattr(charts, "as_svg", lambda figure, title="": f'<svg aria-label="{title}"></svg>')  # noqa: B010


_count_decodes()
_count_collectives()
_compute_before()
_keep_graphs()
_draw_nothing()
