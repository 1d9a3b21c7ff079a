"""A package with the user's own network. It shows whether it was imported, and the process can forget it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from thumbnet.models import registry
from thumbnet.recipes import networks
from thumbnet.recipes.functions import AUGMENTATIONS, LOSSES

NETS = """
from pathlib import Path

import torch
from torch import Tensor, nn

import thumbnet

Path({trace!r}).touch()


class TinyNet(nn.Module):
    head_name = "fc"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        )
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).amax(dim=(2, 3)))


@thumbnet.register_model("wide-tiny")
def wide(num_classes: int, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    channels = int(8 * width)
    net = nn.Sequential()
    net.body = nn.Sequential(nn.Conv2d(in_channels, channels, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    net.head = nn.Linear(channels, num_classes)
    return net
"""


class OwnPackage:
    """``mypackage/nets.py`` in the current folder, with ``TinyNet`` and the registered ``wide-tiny``."""

    path = "mypackage.nets:TinyNet"

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.trace = folder, folder / "imported"
        self._monkeypatch = monkeypatch
        self.write("mypackage/__init__.py", "")
        self.write("mypackage/nets.py", NETS.format(trace=str(self.trace)))
        monkeypatch.chdir(folder)
        # Bytecode would go stale if a test changes a module twice within a second.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        self.forget()

    def write(self, name: str, text: str) -> Path:
        """Write a file in the current folder."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def import_it(self) -> Any:
        """Import ``mypackage.nets`` as the user's program would."""
        self._monkeypatch.setattr(sys, "path", [str(self.folder), *sys.path])
        return importlib.import_module("mypackage.nets")

    def import_own(self) -> Any:
        """Import ``mypackage.own``, which a test has written, as the user's program would."""
        self._monkeypatch.setattr(sys, "path", [str(self.folder), *sys.path])
        return importlib.import_module("mypackage.own")

    def forget(self) -> None:
        """Pretend to be a new process: nothing of the package is imported, registered or allowed."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
            del sys.modules[name]
        built_in = {name: one for name, one in registry._BUILDERS.items() if _is_built_in(name)}
        self._monkeypatch.setattr(registry, "_BUILDERS", built_in)
        self._monkeypatch.setattr(networks, "_known", set(networks.MODEL_NAMES))
        self._monkeypatch.setattr(networks, "_allowed", set())
        for functions in (LOSSES, AUGMENTATIONS):
            self._monkeypatch.setattr(functions, "_functions", {})
        self._monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(self.folder)])
        self.trace.unlink(missing_ok=True)

    def was_imported(self) -> bool:
        """Whether the module has run since :meth:`forget`."""
        return self.trace.exists() or "mypackage.nets" in sys.modules


def _is_built_in(name: str) -> bool:
    return name in networks.MODEL_NAMES or name.startswith("thumbnet.")
