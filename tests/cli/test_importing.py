from __future__ import annotations

import argparse
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import coloured, write_class_folders, write_picture
from thumbnet import hardware
from thumbnet.cli.importing import importing, load_network, share_cores
from thumbnet.runs.folder import Run
from thumbnet.runs.provenance import recipe_of


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
print("PACKAGES", *sorted(name for name in found if not name.startswith("_")))
print("PARTS", *sorted({"torch._dynamo", "torch._inductor", "torch.onnx", "sympy"} & sys.modules.keys()))
"""


def imported_by(*codes: str) -> list[tuple[set[str], set[str]]]:
    """What is imported after each piece of code: packages outside Python, and the slow parts of torch.

    A process of its own runs the pieces one after the other.
    """
    program = "".join(code + LIST for code in codes)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    words = [line.split() for line in done.stdout.splitlines()]
    packages, parts = (
        [set(names) for first, *names in filter(None, words) if first == kind]
        for kind in ("PACKAGES", "PARTS")
    )
    assert len(packages) == len(codes)
    return list(zip(packages, parts, strict=True))


def test_the_parser_of_the_commands_needs_only_python() -> None:
    ((packages, _),) = imported_by("from thumbnet.cli import build_parser; build_parser()")
    assert packages == {"thumbnet"}


def test_a_training_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data", ["train", "test"])
    archive = shutil.make_archive(str(tmp_path / "data"), "tar", tmp_path / "data")
    options = ["--recipe", "small", "--epochs", "1", "--set", "model.width=0.25", "--device", "cpu"]
    options += ["--out", str(tmp_path / "run")]
    (of_torch, parts_of_torch), (packages, parts) = imported_by(
        "import torch", f"from thumbnet import cli; assert cli.main({['train', archive, *options]}) == 0"
    )
    assert packages - of_torch - {"thumbnet", "cython_runtime"} <= NEEDED
    assert parts <= parts_of_torch


def test_a_prediction_of_an_exported_model_imports_no_torch_and_little_else(
    onnx_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    words = ["predict", str(onnx_file), str(write_picture(tmp_path / "red.png", coloured(0, 1))), "--json"]
    (of_onnxruntime, _), (packages, _) = imported_by(
        "import onnxruntime", f"from thumbnet import cli; assert cli.main({words}) == 0"
    )
    assert packages - of_onnxruntime - {"thumbnet", "cython_runtime"} <= NEEDED  # so not torch


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


def test_mirrored_views_of_a_network_that_was_trained_without_them_are_warned_about(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "run"))
    recipe = run / "recipe.toml"

    def said(place: Path, tta: str | None) -> str:
        load_network(argparse.Namespace(run=str(place), device="cpu", threads=0, tta=tta))
        return capsys.readouterr().err

    assert said(run, "mirror") == ""  # it was trained with mirroring
    recipe.write_text(recipe_of(run).override(["augment.flip=none"]).to_toml(), "utf-8")
    assert said(run, "mirror") == (
        "thumbnet: warning: --tta mirror shows mirrored pictures to a network that is trained without them "
        "(augment.flip = none)\n"
    )
    assert said(run, "none") == said(run, None) == ""
    assert said(Path(shutil.copy(run / "model.safetensors", tmp_path)), "mirror") == ""  # no recipe tells
    recipe.write_text("damaged")
    assert said(run, "mirror") == ""


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "15000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=str,
)
def test_threads_wait_as_the_user_chooses(
    chosen: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, chosen.get(name, ""))
        if name not in chosen:
            monkeypatch.delenv(name)
    share_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_the_command_says_how_threads_wait_before_torch_is_imported() -> None:
    """OpenMP reads it when PyTorch loads it."""
    code = (
        "import os, sys\n"
        "from thumbnet import __main__, cli\n"
        "cli.main = lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules) or 0\n"
        "sys.exit(__main__.main())"
    )
    environment = {
        key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "15000 False\n"
