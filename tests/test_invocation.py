"""Commands in messages can be typed as shown, no matter where and how thumbnet was started."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from thumbnet.cli import parse
from thumbnet.errors import MissingExtraError
from thumbnet.invocation import command, install_command, quoted


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script of an environment, which was started by its path."""
    script = tmp_path / "clone" / ".venv" / "bin" / "thumbnet"
    script.parent.mkdir(parents=True)
    for name in ("thumbnet", "python"):
        (script.parent / name).write_text("#!/bin/sh\n")
        (script.parent / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script.parent / "python"))
    monkeypatch.setattr(sys, "argv", [str(script), "train"])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path / "clone")
    return script


def test_a_script_that_is_not_on_the_path_is_shown_with_its_relative_path(script: Path) -> None:
    assert command("evaluate", "runs/1") == ".venv/bin/thumbnet evaluate runs/1"


def test_the_absolute_path_is_shown_if_it_is_shorter(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr/lib")
    assert command("data") == f"{script} data"
    monkeypatch.chdir(script.parent)
    assert command("data") == "./thumbnet data"


def test_in_an_active_environment_only_the_name_is_shown(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{script.parent}:/nowhere")
    assert command("evaluate") == "thumbnet evaluate"


def test_another_environments_thumbnet_on_the_path_is_not_shown(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thumbnet").write_text("#!/bin/sh\n")
    (other / "thumbnet").chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    assert command("evaluate") == ".venv/bin/thumbnet evaluate"


def test_a_command_started_as_a_module_is_shown_as_a_module(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/thumbnet/__main__.py"])
    assert command("evaluate") == ".venv/bin/python -m thumbnet evaluate"
    monkeypatch.setenv("PATH", str(script.parent))
    assert command("evaluate") == "python -m thumbnet evaluate"


def test_a_python_program_shows_the_environments_script_or_else_the_module(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_cats.py"])
    assert command("evaluate") == ".venv/bin/thumbnet evaluate"
    script.unlink()
    assert command("evaluate") == ".venv/bin/python -m thumbnet evaluate"


@pytest.mark.parametrize(
    "word", ["plain", "two words", "it's", 'a "b"', "$HOME", "*", "katzen-ä", "\x1b[31m", "\udcff'\\"]
)
def test_the_shell_reads_a_quoted_word_back(word: str) -> None:
    done = subprocess.run(["bash", "-c", f"printf %s {quoted(word)}"], capture_output=True, check=True)
    assert done.stdout == word.encode(errors="surrogateescape")
    assert quoted(word).isprintable()


def test_a_path_that_looks_like_an_option_stays_a_path(script: Path) -> None:
    run = Path("-my run")
    assert Path(parse(shlex.split(command("evaluate", run))[1:]).run) == run
    assert Path(parse(shlex.split(command("train", "--resume", run))[1:]).resume) == run
    assert shlex.split(command("data", "-"))[-1] == "-"


def _installed_as(described: object, monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if described is None else json.dumps(described)

    distribution = metadata.distribution
    monkeypatch.setattr(
        metadata, "distribution", lambda name: Distribution() if name == "thumbnet" else distribution(name)
    )


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"url": "file:///home/me/my%20clone", "dir_info": {"editable": True}}, ["-e", "/home/me/my clone[report]"]),
        ({"url": "file:///home/me/clone", "dir_info": {}}, ["/home/me/clone[report]"]),
        ({"url": "file:///d/thumbnet.whl", "archive_info": {}}, ["thumbnet[report] @ file:///d/thumbnet.whl"]),
        (
            {"url": "https://example.org/t.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            ["thumbnet[report] @ git+https://example.org/t.git@abc"],
        ),
        (None, ["thumbnet[report]"]),
        ({"nonsense": 1}, ["thumbnet[report]"]),
        ([], ["thumbnet[report]"]),
    ],
)  # fmt: skip
def test_an_extra_is_installed_from_the_same_source_as_thumbnet(
    described: object, words: list[str], script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed_as(described, monkeypatch)
    expected = [".venv/bin/python", "-m", "pip", "install", *words]
    assert shlex.split(install_command("report")) == expected
    assert (
        str(MissingExtraError("a report", "report"))
        == f"a report needs the extra 'report': {shlex.join(expected)}"
    )


def test_asking_how_to_install_leaves_setuptools_importable_for_torch_compile() -> None:
    """``importlib.util.find_spec("pip")`` would make setuptools disable its distutils, and its import fail."""
    code = (
        "import sys; from thumbnet.invocation import install_command; print(install_command('plot')); "
        "import setuptools, distutils; assert '_distutils' in distutils.__file__"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[plot]" in done.stdout


@pytest.mark.parametrize("processes", ["1", "2"])
def test_one_of_several_processes_ends_without_waiting_for_threads(processes: str) -> None:
    """Python aborts if a thread of gloo's is still there (see ``__main__``); here, it would wait for one."""
    program = (
        "import atexit, sys, threading, time\n"
        "from thumbnet import __main__, cli\n"
        "threading.Thread(target=time.sleep, args=(1.5,)).start()\n"
        "atexit.register(print, 'closed')\n"
        "cli.main = lambda: 3\n"
        "status = __main__.main()\n"
        "print('returned')\n"
        "sys.exit(status)\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "WORLD_SIZE": processes},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.split() == (["closed"] if processes == "2" else ["returned", "closed"])
    if processes == "1":
        assert time.monotonic() - started > 1.5
