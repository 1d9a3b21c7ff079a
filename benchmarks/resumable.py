"""Write results after every measurement, so that an interrupted benchmark can continue.

Results continue only with the same settings, at the same commit, and on the same device and processor. What
an older file does not say is not compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from thumbnet.files import write_file
from thumbnet.hardware import describe

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def git(*words: str) -> str:
    """What git prints about this clone."""
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def source_commit() -> str | None:
    """The commit that last changed ``src``, with "+" if files there differ from it; None outside git."""
    try:
        commit = git("log", "-1", "--format=%h", "--", "src")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changed else commit or None


def processor() -> str:
    """Vendor, family, model and stepping of the processor, which its name does not tell."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    keys = ("vendor_id", "cpu family", "model", "stepping")
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return ", ".join(f"{key} {found[key]}" for key in keys if key in found) or platform.processor()


def model_of(identity: str) -> str:
    """What :func:`processor` says, without the stepping."""
    return re.sub(r", stepping \S+$", "", identity)


def origin(device: torch.device) -> dict[str, Any]:
    """When, at which commit and on what computer results are measured."""
    return {
        "begun": datetime.now().isoformat(timespec="minutes"),
        "commits": [source_commit()],
        "hardware": {**describe(device), "identity": processor()},
    }


def continued(before: Mapping[str, Any], now: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """The origin of the results in ``file``, which were begun ``before`` and continue ``now``.

    A commit that is unknown, because the file is older or there is no git, is None among ``commits``.

    Raises:
        SystemExit: they are of another device, processor or commit.
    """
    for key in ("device", "gpu", "processor", "identity"):
        there, here = before.get("hardware", {}).get(key), now["hardware"].get(key)
        if there and here and model_of(there) != model_of(here):
            raise SystemExit(
                f"{file} has results of another computer ({there}; here: {here}): choose another --json"
            )
    commits, commit = list(before.get("commits", [None])), now["commits"][0]
    if commit not in commits:
        if commit and any(commits):
            known = ", ".join(filter(None, commits))
            raise SystemExit(
                f"{file} has results of commit {known}, and src/ is at {commit} now: choose another --json. "
                f'If both compute the same, add "{commit}" to "commits" in that file, and call this again'
            )
        commits.append(commit)
    return {**now, "begun": before.get("begun"), "commits": commits}


def named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with only the name of the data: results can continue where these have another path."""
    return {key: Path(value).name if key == "data" else value for key, value in settings.items()}


def settings_of(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that results depend on."""
    return named({name: getattr(options, name) for name in names})


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
        self._file, self._settings, self._origin = file, settings, origin(device)
        self._before: dict[str, Any] | None = None  # where the results in the file are from
        self.found: dict[str, dict[str, Any]] = {}
        if file is None or not file.exists():
            return
        try:
            kept = json.loads(file.read_text("utf-8"))
            before, self.found, self._before = named(kept["settings"]), kept["results"], kept
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(f"cannot read {file} as results ({error}): choose another --json") from None
        now = json.loads(json.dumps(settings))
        if any(now.get(key) != value for key, value in before.items()):
            raise SystemExit(f"{file} has results of other settings ({before}): choose another --json")

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The measurement called ``name``; measure it now if it is missing.

        Raises:
            SystemExit: it is missing, and the file is of another commit, device or processor. (A file that
                lacks nothing can be shown anywhere.)
        """
        if name not in self.found:
            if self._before is not None:
                self._origin, self._before = continued(self._before, self._origin, self._file), None
            self.found[name] = measure()
            sys.stderr.write(f"{name}: {json.dumps(self.found[name])[:200]}\n")
            self._save()
        return self.found[name]

    def _save(self) -> None:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            content = {**self._origin, "settings": self._settings, "results": self.found}
            write_file(self._file, json.dumps(content, indent=1) + "\n")
