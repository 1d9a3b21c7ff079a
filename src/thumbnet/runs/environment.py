"""Record the versions, the hardware and the git commit of a training, for ``environment.json``."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime
from importlib import metadata
from typing import Any

import torch

from thumbnet.hardware import describe
from thumbnet.version import __version__


def environment(device: torch.device) -> dict[str, Any]:
    """Return what ``environment.json`` stores: versions, hardware, git commit and start time."""
    versions = {}
    for package in ("torch", "numpy", "pillow", "safetensors", "timm"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # timm is an extra
            continue
    return {
        "thumbnet": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "hardware": describe(device),
        "git_commit": _git_commit(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """Return the commit of the current folder, with "+" if tracked files differ from it; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
