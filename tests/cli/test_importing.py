from __future__ import annotations

import argparse
import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import write_class_folders
from thumbnet import hardware
from thumbnet.cli.importing import importing, load_network
from thumbnet.runs.folder import Run


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process look as if torch were not imported yet."""
    with monkeypatch.context() as changed:
        changed.delitem(sys.modules, "torch")
        yield
    gc.unfreeze()


@pytest.mark.usefixtures("_fresh")
def test_the_collector_pauses_during_imports_and_then_ignores_what_they_made() -> None:
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 10_000
    cycle: list[object] = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() >= 1


@pytest.mark.usefixtures("_fresh")
def test_after_an_import_that_fails_the_collector_is_on_and_ignores_nothing() -> None:
    with pytest.raises(ModuleNotFoundError), importing():
        raise ModuleNotFoundError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("_fresh")
def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_objects_of_a_program_that_uses_torch_already_are_collected_as_before() -> None:
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


# What a training on pictures in files or archives needs besides torch. Everything else that thumbnet can use
# (pandas, SciPy, scikit-learn, matplotlib, ONNX, Parquet, the Hub, trackers, Optuna, timm) takes tenths of
# seconds to import, so it is imported where it is used.
NEEDED = {
    "filelock",
    "numpy",
    "PIL",
    "platformdirs",
    "psutil",
    "rich",
    "safetensors",
    "simplejpeg",
    "tomli_w",
}
LIST = """
import sys
found = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
print(*sorted(name for name in found if not name.startswith("_")))
print(*sorted({"torch._dynamo", "torch._inductor", "torch.onnx", "sympy"} & sys.modules.keys()))
"""


def imported_by(code: str) -> tuple[set[str], set[str]]:
    """The packages outside Python that are imported after ``code``, and the slow parts of torch among them."""
    done = subprocess.run(
        [sys.executable, "-c", code + LIST], capture_output=True, text=True, check=True, timeout=300
    )
    packages, parts = done.stdout.split("\n")[-3:-1]
    return set(packages.split()), set(parts.split())


def test_the_parser_of_the_commands_needs_only_python() -> None:
    packages, _ = imported_by("from thumbnet.cli import build_parser; build_parser()")
    assert packages == {"thumbnet"}


def test_a_training_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    of_torch, parts_of_torch = imported_by("import torch")
    write_class_folders(tmp_path / "data", ["train", "test"])
    archive = shutil.make_archive(str(tmp_path / "data"), "tar", tmp_path / "data")
    options = ["--recipe", "small", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    packages, parts = imported_by(
        f"from thumbnet import cli; assert cli.main({['train', archive, *options]}) == 0"
    )
    assert packages - of_torch - {"thumbnet", "cython_runtime"} <= NEEDED
    assert parts <= parts_of_torch


def test_a_command_keeps_the_memory_that_a_batch_frees(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, int]] = []
    monkeypatch.setattr(hardware, "_tell_glibc", lambda **how: asked.append(how))
    hardware.keep_freed_memory.cache_clear()
    classifier = load_network(argparse.Namespace(run=tiny_run.path, device="cpu", threads=0))
    assert classifier.class_names == ("red", "green", "blue")
    assert asked == [{"most_mapped": 0, "kept": -1}]
    hardware.keep_freed_memory.cache_clear()
