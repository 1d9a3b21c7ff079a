"""What the tests of comparisons and of pages share: runs with results of their own, and pages that take less time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from thumbnet.reports import charts, pictures
from thumbnet.runs.folder import Run


@pytest.fixture
def quick_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages with few heat maps and without drawings, for tests that look at neither."""
    monkeypatch.setattr(pictures, "HEAT_MAPS", 2)
    monkeypatch.setattr(charts, "finished", lambda figure, title: "<svg></svg>")


@pytest.fixture
def make(tiny_run: Run, tmp_path: Path) -> Callable[..., Run]:
    """Make copies of a complete run with another accuracy, seed, learning rate or fingerprint."""

    def one(
        accuracy: float,
        seed: int = 0,
        lr: float = 0.05,
        fingerprint: str = "same",
        measured: str = "",
        labels: dict[str, object] | None = None,
        split: str | None = "test",
        name: str = "",
    ) -> Run:
        path = tmp_path / (name or f"{lr}-{seed}")
        shutil.copytree(tiny_run.path, path)
        recipe = tiny_run.recipe
        recipe = replace(recipe, seed=seed, optimizer=replace(recipe.optimizer, lr=lr))
        (path / "recipe.toml").write_text(recipe.to_toml())
        (path / "summary.json").write_text(
            json.dumps({**tiny_run.summary, "accuracy": accuracy, "split": split})
        )
        settings = {**tiny_run.settings, "fingerprint": fingerprint}
        settings["measured_fingerprint"] = measured or fingerprint
        if labels:
            settings["labels"] = labels
        (path / "run.json").write_text(json.dumps(settings))
        return Run(path)

    return one
