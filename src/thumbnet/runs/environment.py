"""Record the versions, the hardware and the git commit of a training, for ``environment.json``.

The record is that of the training's beginning. If it is resumed where numbers may be rounded in another way,
the list ``resumed`` in it gets the environment from there on.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from typing import Any

import torch

from thumbnet.hardware import describe
from thumbnet.invocation import processes
from thumbnet.version import __version__

# The settings that `git init` and `git clone` write, and others that name no program. See _git_commit.
_HARMLESS = re.compile(
    r"core\.(repositoryformatversion|filemode|bare|logallrefupdates|ignorecase|precomposeunicode|symlinks"
    r"|autocrlf|eol|safecrlf)|remote\..*\.(url|fetch)|(branch|user|pull|push|submodule)\..*",
    re.DOTALL,
)


def environment(device: torch.device) -> dict[str, Any]:
    """Return what ``environment.json`` stores: versions, hardware, processes, git commit and start time."""
    versions = {name: _version(name) for name in ("torch", "numpy", "pillow", "safetensors", "timm")}
    return {
        "thumbnet": __version__,
        "python": platform.python_version(),
        "packages": {name: version for name, version in versions.items() if version is not None},
        "hardware": describe(device),
        "processes": processes(),
        "git_commit": _git_commit(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def resumed(environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The environments in which a training was resumed and that differ from the one before, in order."""
    found = environment.get("resumed")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def device_name(environment: Mapping[str, Any]) -> str | None:
    """The device of an environment, as far as it is known: the name of a GPU, else the device's own."""
    hardware = environment.get("hardware")
    known = hardware.get("gpu") or hardware.get("device") if isinstance(hardware, dict) else None
    return None if known is None else str(known)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two environments and may change how numbers are rounded.

    >>> differences({"packages": {"torch": "2.11"}}, {"packages": {"torch": "2.13"}, "processes": 2})
    ['PyTorch 2.13 instead of 2.11']

    What one of them lacks is unknown, and counts as equal.
    """
    one, other = _rounding(before), _rounding(now)
    if one["device"] != "cpu" or other["device"] != "cpu":  # a GPU computes, whatever hands it its work
        other["processor"] = other["threads"] = other["kernels"] = None
    return [
        f"{key} {other[key]} instead of {value}"
        for key, value in one.items()
        if None not in (value, other[key]) and value != other[key]
    ]


def _rounding(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What may change how numbers are rounded; None where it is unknown."""
    packages, hardware = (environment.get(key) for key in ("packages", "hardware"))
    packages, hardware = (one if isinstance(one, dict) else {} for one in (packages, hardware))
    kernels = hardware.get("kernels")  # in older records, only whether there are any
    return {
        "PyTorch": packages.get("torch"),
        "device": device_name(environment),
        "processor": hardware.get("processor"),
        "threads": hardware.get("threads"),
        "kernels": kernels if isinstance(kernels, str) else None,
        "processes": environment.get("processes"),
    }


@functools.cache  # of an installed package, the whole description is read
def _version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed, as an extra may be."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of the current folder, with "+" if its tracked files are known to differ.

    None outside git. The folder may come from a stranger, and ``git status`` runs programs that a repository
    names: file system monitors, filters, hooks, and transports for missing objects. So files are compared
    only if all of the repository's own settings are known to be harmless.
    """
    try:
        commit = _git("rev-parse", "HEAD")  # runs no program
    except (OSError, subprocess.SubprocessError):
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        settings = _git("config", "--local", "--list", "--name-only", "-z").rstrip("\0").split("\0")
        # Without optional locks, git does not write the index, which would run a hook. A submodule has
        # settings of its own.
        compare = ("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
        if all(map(_HARMLESS.fullmatch, settings)) and _git(*compare, "--ignore-submodules=all"):
            return f"{commit}+"
    return commit


def _git(*arguments: str) -> str:
    words = ["git", *arguments]  # names of files may be in any encoding
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=5, check=True)
    return done.stdout.strip()
