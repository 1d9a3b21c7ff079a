from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from helpers import TINY, coloured_data
from own_networks import OwnPackage
from thumbnet.runs.folder import Run
from thumbnet.training.train import train

# A busy machine is no failure; and the same examples every time, so that CI means something.
settings.register_profile(
    "thumbnet", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("thumbnet")


def pytest_configure(config: pytest.Config) -> None:
    """Tests, and the processes that they start, leave the user's cache alone."""
    os.environ["THUMBNET_CACHE"] = tempfile.mkdtemp(prefix="thumbnet-cache-")
    if "PYTEST_XDIST_WORKER" in os.environ:  # several tests at a time: each, and its processes, with a thread
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["THUMBNET_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test draws the same numbers whichever others ran before it, in whichever process."""
    torch.manual_seed(1)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnPackage]:
    """A network of the user's own in the current folder, which nothing has imported yet."""
    package = OwnPackage(tmp_path, monkeypatch)
    yield package
    package.forget()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A complete run on three coloured classes."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    return train(coloured_data(), "resnet18", overrides=TINY, out=out, device="cpu")


def exported(run: Run, kind: str, out: Path) -> Path:
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    from thumbnet.publish.export import export

    export(run.path, kind, out, coloured_data())
    return out


@pytest.fixture(scope="session")
def onnx_file(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_run``, exported."""
    return exported(tiny_run, "onnx", tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="session")
def any_size_file(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_run``, exported for pictures of any size."""
    return exported(tiny_run, "onnx-any-size", tmp_path_factory.mktemp("onnx") / "tiny.any-size.onnx")


@pytest.fixture(scope="session")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of CIFAR-10 (JPEG copy): train/CLASS/0000..1499.jpg and test/CLASS/0000..0299.jpg."""
    place = Path(os.environ.get("THUMBNET_CIFAR10") or Path(__file__).parents[2] / "shared" / "data")
    archive = place / "cifar10-jpeg.tar.xz" if place.is_dir() else place
    if not archive.is_file():
        pytest.skip(f"no CIFAR-10 pictures: {archive} does not exist (set THUMBNET_CIFAR10)")
    folder = tmp_path_factory.mktemp("cifar10")
    limits = {"train": 1500, "test": 300}
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isreg() and len(parts) == 3 and int(Path(parts[2]).stem) < limits[parts[0]]:
                source = tar.extractfile(member)
                assert source is not None
                (folder / member.name).parent.mkdir(parents=True, exist_ok=True)
                (folder / member.name).write_bytes(source.read())
    return folder
