"""Write results after every measurement, so that an interrupted benchmark can continue."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from thumbnet.files import write_file
from thumbnet.hardware import describe

CPU = torch.device("cpu")


class Results:
    """The measurements of one benchmark, by name.

    Args:
        file: where to keep them; None to keep them only in memory.
        settings: what they depend on. A file with other settings is refused.
        device: the device that is measured.

    Raises:
        SystemExit: the file has other settings, or is not a file of results.
    """

    def __init__(self, file: Path | None, settings: dict[str, Any], device: torch.device = CPU) -> None:
        self._file, self._settings, self._device = file, settings, device
        self.found: dict[str, dict[str, Any]] = {}
        if file is None or not file.exists():
            return
        try:
            kept = json.loads(file.read_text("utf-8"))
            before, self.found = kept["settings"], kept["results"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"cannot read {file} as results ({error}): choose another --json") from None
        if before != json.loads(json.dumps(settings)):
            raise SystemExit(f"{file} has results of other settings ({before}): choose another --json")

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The measurement called ``name``; measure it now if it is missing."""
        if name not in self.found:
            self.found[name] = measure()
            sys.stderr.write(f"{name}: {json.dumps(self.found[name])[:200]}\n")
            self._save()
        return self.found[name]

    def _save(self) -> None:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            content = {
                "hardware": describe(self._device),
                "settings": self._settings,
                "results": self.found,
            }
            write_file(self._file, json.dumps(content, indent=1) + "\n")
