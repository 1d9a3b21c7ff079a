"""Run the programs of the guide and of the examples, as a user does, in less time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Runs before a program. A network of half the width still learns the digits, in less time.
NARROW = """
from thumbnet.recipes import recipe as _recipe

_read = _recipe._read_toml

def _narrow(name, seen):
    settings = _read(name, seen)
    if name == "digits" and not seen:
        settings["model"] = {**settings.get("model", {}), "width": 0.5}
    return settings

_recipe._read_toml = _narrow
assert _recipe.load_recipe("digits").model.width == 0.5
"""


def run_program(program: str, folder: Path) -> str:
    """Run a program in ``folder``, in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"{NARROW}\n{program}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
