from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from helpers import TINY, coloured_data, coloured_labels
from order import dealt
from own_networks import OwnPackage
from thumbnet.batches.batches import EvalBatches
from thumbnet.runs import environment
from thumbnet.runs.folder import Run
from thumbnet.training import mirrored
from thumbnet.training.train import train

# A busy machine must not fail a test, and CI must test the same examples every time.
settings.register_profile(
    "thumbnet", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("thumbnet")

ROOT = Path(__file__).parents[1]
WHOLE_PROBE = mirrored.PROBE_VIEWS
KERNELS = ROOT / "build" / "test-kernels"


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests, and the processes that they start, a cache of their own, and let Ctrl-C reach them."""
    os.environ["THUMBNET_CACHE"] = tempfile.mkdtemp(prefix="thumbnet-cache-")
    _keep_kernels(Path(os.environ["THUMBNET_CACHE"]) / "kernels")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job that a script started in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:  # tests run in parallel, so each gets one thread
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def _keep_kernels(folder: Path) -> None:
    """Let the kernels compiled in this cache serve other workers and later tests: gcc takes seconds for them.

    The name of a library depends on its sources and on the processor, so an old one is never loaded.
    """
    with contextlib.suppress(OSError):  # nothing can be written here
        KERNELS.mkdir(mode=0o700, parents=True, exist_ok=True)
        if KERNELS.stat().st_uid == os.geteuid():  # thumbnet loads no library of another user
            folder.symlink_to(KERNELS, target_is_directory=True)


@pytest.hookimpl(trylast=True)  # after -k and -m have left out tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each worker its share of the long tests first."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = dealt(items, workers)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["THUMBNET_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Let a test draw the same random numbers regardless of which tests ran before it.

    ``torch.manual_seed`` would also format the whole call stack, once for each kind of device that was never used:
    milliseconds, before each of thousands of tests.
    """
    torch.default_generator.manual_seed(1)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(1)


@pytest.fixture(scope="session", autouse=True)
def _quick_runs() -> Iterator[None]:
    """Spare each training what only takes time here: processes of git, and waiting for the disk at each file.

    The tests in ``faults`` that cut the power, and those of whole commands, have processes of their own, in which
    nothing is replaced. In this one, a test that replaces ``os.fsync`` or ``subprocess.run`` gets its own function.
    """
    ask, answers, here = environment._git, dict[tuple[Any, ...], str](), ROOT.resolve()

    def once(*arguments: str) -> str:
        """What git says, which stays the same in this checkout. In other folders, it is asked each time."""
        if Path.cwd() != here:
            return ask(*arguments)
        key = (subprocess.run, *arguments)
        if key not in answers:
            answers[key] = ask(*arguments)
        return answers[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "_git", once)
        patch.setattr(os, "fsync", os.fstat)  # refuses the same descriptors
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_probe() -> Iterator[None]:
    """Make the probe for mirrored classes as short as it can be: two epochs.

    Most tests train for so few steps that the network still confuses its classes. The probe would follow, ten
    times as long as the training.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirrored, "PROBE_VIEWS", 1)
        yield


@pytest.fixture
def whole_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the probe for mirrored classes train for as long as a user's does."""
    monkeypatch.setattr(mirrored, "PROBE_VIEWS", WHOLE_PROBE)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnPackage]:
    """The user's own network in the current folder; nothing has imported it yet."""
    package = OwnPackage(tmp_path, monkeypatch)
    yield package
    package.forget()


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which nothing can be written, as ``os.access`` says; root could write in it."""
    folder, access = tmp_path / "read-only", os.access
    folder.mkdir()

    def asked(path: str | Path, mode: int) -> bool:
        return os.path.realpath(path) != os.path.realpath(folder) and access(path, mode)

    monkeypatch.setattr(os, "access", asked)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A complete run on the three classes of :func:`helpers.coloured_data`."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    return train(coloured_data(), "one-cycle", overrides=TINY, out=out, device="cpu")


@pytest.fixture(scope="session")
def label_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A complete run on the pictures with several labels of :func:`helpers.coloured_labels`."""
    out = tmp_path_factory.mktemp("labels") / "run"
    settings = [*TINY, "evaluation.tta=mirror", "training.label_smoothing=0.1"]
    return train(coloured_labels(), "one-cycle", overrides=settings, out=out, device="cpu")


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of all evaluations with torch in this test, in their order."""
    seen: list[int] = []
    original = EvalBatches.__init__

    def recorded(self: EvalBatches, *given: Any, batch_size: int, **more: Any) -> None:
        seen.append(batch_size)
        original(self, *given, batch_size=batch_size, **more)

    monkeypatch.setattr(EvalBatches, "__init__", recorded)
    return seen


@pytest.fixture
def small_batches(tiny_run: Run, tmp_path: Path) -> Run:
    """A copy of ``tiny_run`` that evaluates 7 pictures at a time, as if the device had memory for no more."""
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "small-batches")))
    run.write_recipe(run.recipe.override(["evaluation.batch_size=7"]))
    return run


def exported(run: Run, kind: str, out: Path) -> Path:
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    from thumbnet.publish.export import export

    export(run.path, kind, out, coloured_data())
    return out


@pytest.fixture(scope="session")
def onnx_file(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_run``, exported to ONNX."""
    return exported(tiny_run, "onnx", tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="session")
def any_size_file(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_run``, exported to ONNX for pictures of any size."""
    return exported(tiny_run, "onnx-any-size", tmp_path_factory.mktemp("onnx") / "tiny.any-size.onnx")


@pytest.fixture(scope="session")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of CIFAR-10 (JPEG copy): train/CLASS/0000..0749.jpg and test/CLASS/0000..0079.jpg."""
    place = Path(os.environ.get("THUMBNET_CIFAR10") or ROOT.parent / "shared" / "data")
    archive = place / "cifar10-jpeg.tar.xz" if place.is_dir() else place
    if not archive.is_file():
        pytest.skip(f"no CIFAR-10 pictures: {archive} does not exist (set THUMBNET_CIFAR10)")
    folder = tmp_path_factory.mktemp("cifar10")
    limits = {"train": 750, "test": 80}
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isreg() and len(parts) == 3 and int(Path(parts[2]).stem) < limits[parts[0]]:
                source = tar.extractfile(member)
                assert source is not None
                (folder / member.name).parent.mkdir(parents=True, exist_ok=True)
                (folder / member.name).write_bytes(source.read())
    return folder
