"""Run the programs of the guide and of the examples, as a user does, in less time."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from thumbnet.recipes import recipe

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


@contextmanager
def narrow() -> Iterator[None]:
    """Within, in this process, the recipe ``digits`` has a network of half the width."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "_read_toml", recipe._read_toml)  # puts back what NARROW replaces
        exec(NARROW, {})
        yield


def run_here(programs: list[str], folder: Path) -> str:
    """Run programs in ``folder`` in this process, which saves importing torch; returns what they printed.

    Each has the variables of those before it.
    """
    printed = io.StringIO()
    variables: dict[str, Any] = {"__name__": "__main__"}
    with narrow(), chdir(folder), redirect_stdout(printed):
        for number, program in enumerate(programs, 1):
            exec(compile(program, f"<program {number}>", "exec", dont_inherit=True), variables)
    return printed.getvalue()
