"""`make` and `.ci/package` with stand-ins for Python, in a folder whose name has a space: nothing is downloaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None or os.name == "nt", reason="make is not installed")

# Writes down what it is asked to do, and does nothing but make an environment of its own kind. NO_CPU_BUILD makes pip
# fail to find torch for the CPU.
STAND_IN = f"""#!/bin/sh
printf '%s\\n' "$(basename "$0") $*" >> "$LOG"
case "$*" in
-c*version_info*) exec "{sys.executable}" "$@" ;;
*torch-cpu.txt*)
    test -z "$NO_CPU_BUILD" || {{ printf 'WARNING: no\\nERROR: from versions\\nERROR: No matching\\n' >&2; exit 1; }} ;;
"-m venv "*)
    for place; do :; done
    test "$3" != --clear || rm -r "$place"
    mkdir -p "$place/bin" && test ! -e "$place/bin/python" || exit
    cp "$0" "$place/bin/python" && cp "$0" "$place/bin/thumbnet" ;;
*"-m build "*) mkdir -p dist && touch dist/thumbnet-1-py3-none-any.whl ;;
*fuzz.py) echo zip; echo csv ;;
predict*) exit 1 ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What `make` needs of this repository, and a stand-in for the Python that is installed."""
    project = tmp_path / "a folder"
    project.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "locks", ".ci"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, project / name)
    stand_in = project / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return project


def made(project: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    assert MAKE
    return run(project, MAKE, "PYTHON=./python", *words, **variables)


def run(project: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment.update(LOG=str(project / "log"), TMPDIR=str(project), **variables)
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60)


def log(project: Path) -> list[str]:
    """What the stand-ins were asked to do, except for their versions."""
    path = project / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if " -c " not in line and not line.endswith("pip --version")]


def old_python(path: Path) -> None:
    """A Python that says that it is 3.10."""
    path.write_text(
        '#!/bin/sh\ntest "$1" = -c || exit 0\n'
        f'exec "{sys.executable}" -c "import sys; sys.version_info = (3, 10); $2"\n'
    )
    path.chmod(0o755)


ENVIRONMENTS = {
    ".venv/.installed": (".venv", ()),
    ".venv/.installed-dev": (".venv", ()),
    "build/tools/.installed": ("build/tools", ()),
    "test-torch": ("build/torch-1", ("TORCH=1",)),
}


@pytest.mark.parametrize("target", ENVIRONMENTS)
def test_an_environment_without_pip_is_made_anew(target: str, project: Path) -> None:
    """As after an interruption, or on a Debian without python3-venv."""
    name, words = ENVIRONMENTS[target]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(project / name)], check=True)
    made(project, target, *words)
    asked = log(project)
    assert asked[0] == f"python -m venv --clear {name}"
    assert any("-m pip install" in line for line in asked[1:])


@pytest.mark.parametrize("left", ["nothing", "old", "gone", "works"])
def test_an_environment_stays_if_its_python_is_there_and_new_enough(left: str, project: Path) -> None:
    python = project / ".venv" / "bin" / "python"
    if left != "nothing":
        python.parent.mkdir(parents=True)
        (project / ".venv" / "pyvenv.cfg").touch()
    if left == "old":
        old_python(python)
    elif left == "gone":
        python.symlink_to("/nowhere/python")
    elif left == "works":
        shutil.copy(project / "python", python)
    result = made(project, ".venv/.installed")
    assert result.returncode == 0, result.stderr
    asked = log(project)
    wanted = {"nothing": ["python -m venv .venv"], "works": []}.get(left, ["python -m venv --clear .venv"])
    assert [line for line in asked if "-m venv" in line] == wanted
    assert any("-m pip install" in line for line in asked)


def test_no_folder_but_an_environment_is_emptied(project: Path) -> None:
    (project / "mine").mkdir()
    made(project, "test-torch", "TORCH=1", "TORCH_VENV=mine")
    assert "python -m venv mine" in log(project)


def test_a_python_that_is_too_old_is_refused_and_nothing_is_made(project: Path) -> None:
    old_python(project / "python")
    result = made(project, "train")
    assert result.returncode == 2
    assert "thumbnet needs Python 3.11 or newer, and ./python is 3.10: add PYTHON=" in result.stderr
    assert not (project / ".venv").exists()


def test_a_python_that_is_too_old_does_not_matter_once_there_is_an_environment(project: Path) -> None:
    (project / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(project / "python", project / ".venv" / "bin" / "python")
    old_python(project / "python")
    assert made(project, ".venv/.installed").returncode == 0


def test_the_version_is_that_of_the_package() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    (found,) = re.findall(r"sys\.version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text())
    assert wanted == ">=" + ".".join(found)


@pytest.mark.parametrize("target", ["test-timm", "test-trackers", "test-oldest", "test-newest"])
def test_every_environment_is_made_by_the_same_rule(target: str, project: Path) -> None:
    """These need more than stand-ins, so only what `make` would run is looked at."""
    shown = made(project, "-n", target).stdout
    assert "-m pip --version" in shown
    assert not re.search(r"test -x \S+/bin/python", shown)


def test_why_there_is_no_torch_for_the_cpu_is_shown(project: Path) -> None:
    result = made(project, ".venv/.installed", NO_CPU_BUILD="1")
    assert result.returncode == 0
    assert "no CPU build of torch here; taking the index's. pip said: ERROR: No matching\n" in result.stderr
    assert any("locks/train.txt" in line for line in log(project))
    assert "no CPU build" not in made(project, ".venv/.installed", "--always-make").stderr


def test_fuzz_runs_in_a_folder_whose_name_has_a_space(project: Path) -> None:
    result = made(project, "fuzz", "FUZZ_SECONDS=3")
    assert result.returncode == 0, result.stderr
    ran = [
        re.sub(r".* (\S*)tests/faults/fuzz\.py", "fuzz", line) for line in log(project) if "fuzz.py" in line
    ]
    assert ran == ["fuzz", "fuzz zip 3", "fuzz csv 3"]


def test_the_package_is_tried_in_a_folder_whose_name_has_a_space(project: Path) -> None:
    made(project, ".venv/.installed-dev")
    result = run(project, ".ci/package", str(project / "python"))
    assert result.returncode == 0, result.stdout + result.stderr
    asked = "\n".join(log(project))
    assert "--constraint constraints.txt torch==" in asked
    assert "thumbnet-1-py3-none-any.whl[train]" in asked
    assert "thumbnet train digits" in asked
    assert not list(project.glob("tmp.*"))
