from __future__ import annotations

from pathlib import Path

import pytest

from cli_helpers import SETTINGS, epochs, run_cli
from helpers import write_class_folders


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), ["train", "test"], per_class=20)


@pytest.fixture(scope="session")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    out = tmp_path_factory.mktemp("run") / "run"
    status, stdout, stderr = run_cli(
        "train", folder, "--recipe", "one-cycle", "--out", out, *SETTINGS, *epochs(8)
    )
    assert status == 0, stderr
    return out, stdout, stderr
