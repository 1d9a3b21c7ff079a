"""A stand-in for W&B records what it is asked to do; ``make test-trackers`` also runs W&B itself, offline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thumbnet.training.tracking import InBackground
from thumbnet.training.wandb_tracker import FILE, WandbTracker
from tracking_helpers import NOTHING, epoch, install, run_in, state_of

WHERE = "Weights & Biases: https://wandb.test/run"


class StandIn:
    """What thumbnet uses of the module ``wandb``."""

    def __init__(self, folder: Path, step: int = 0, has_key: bool = True) -> None:
        self.folder, self.step, self.has_key = folder, step, has_key
        self.config: dict[str, Any] = {}
        self.logged: list[tuple[int, float]] = []
        self.summary: dict[str, Any] = {}
        self.saved: list[str] = []
        self.begun: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.url = "https://wandb.test/run"

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt, "it would ask in the middle of the progress"
        return self.has_key

    def init(self, **options: Any) -> Any:
        self.begun = options
        config = SimpleNamespace(update=lambda values, allow_val_change: self.config.update(values))
        return SimpleNamespace(
            step=self.step, url=self.url, dir=str(self.folder), config=config, summary=self.summary, log=self._log,
            save=lambda path, base_path, policy: self.saved.append(Path(path).name), finish=self._finish,
        )  # fmt: skip

    def _log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values["val_accuracy"]))

    def _finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def follow(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, folder: Path, *numbers: int, complete: bool = True
) -> list[str]:
    """Epochs with the stand-in; returns the notes for the user."""
    mode = SimpleNamespace(settings=SimpleNamespace(mode=os.environ.get("WANDB_MODE", "online")))
    contents = {"login": stand_in.login, "init": stand_in.init, "Settings": SimpleNamespace}
    install(monkeypatch, "wandb", setup=lambda: mode, **contents)
    notes: list[str] = []
    run = run_in(folder)
    with InBackground(WandbTracker(), notes.append) as listener:
        listener.on_start(run, state_of(), NOTHING)
        for number in numbers:
            listener.on_epoch(epoch(number))
        if complete:
            listener.on_finish(run)
    return notes


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODE", "PROJECT", "NAME", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


def test_wandb_gets_recipe_epochs_result_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn(tmp_path)
    folder = tmp_path / "run"
    assert follow(stand_in, monkeypatch, folder, 1, 2) == [WHERE]
    begun = stand_in.begun
    assert (begun["project"], begun["name"], begun["resume"]) == ("thumbnet", "run", "allow")
    assert begun["id"] == json.loads((folder / FILE).read_text())["id"]
    assert begun["settings"].disable_git, "a repository's address can have a password in it"
    assert (stand_in.config["optimizer.lr"], stand_in.config["thumbnet.data_fingerprint"]) == (0.1, "f00d")
    assert stand_in.logged == [(10, 0.1), (20, 0.2)]
    assert (stand_in.summary["final_accuracy"], stand_in.summary["thumbnet.split"]) == (0.75, "test")
    assert (stand_in.saved, stand_in.exit_code) == (["recipe.toml", "summary.json"], 0)


def test_a_resumed_training_keeps_its_id_and_adds_no_epoch_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = StandIn(tmp_path), StandIn(tmp_path, step=21)  # W&B counts from the next step on
    follow(first, monkeypatch, tmp_path / "run", 1, 2, complete=False)
    assert first.exit_code == 1
    follow(again, monkeypatch, tmp_path / "run", 1, 2, 3)
    assert again.begun["id"] == first.begun["id"]
    assert [step for step, _ in again.logged] == [30]


def test_without_a_key_it_says_how_to_log_in_unless_it_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = StandIn(tmp_path, has_key=False)
    (note,) = follow(stand_in, monkeypatch, tmp_path / "run", 1)
    assert "`wandb login`, or set WANDB_MODE=offline" in note
    monkeypatch.setenv("WANDB_MODE", "offline")
    (note,) = follow(stand_in, monkeypatch, tmp_path / "run", 1)
    assert note == f"Weights & Biases: offline; to upload it later: wandb sync {tmp_path.parent}"
    assert stand_in.logged == [(10, 0.1)]


def test_its_own_variables_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "frogs")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    stand_in = StandIn(tmp_path)
    follow(stand_in, monkeypatch, tmp_path / "run", 1)
    assert (stand_in.begun["project"], stand_in.begun["dir"]) == ("frogs", str(tmp_path))


def test_the_real_wandb_takes_it_all_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    notes: list[str] = []
    run = run_in(tmp_path / "run")
    for numbers in ((1, 2), (1, 2, 3)):
        with InBackground(WandbTracker(), notes.append) as listener:
            listener.on_start(run, state_of(), NOTHING)
            for number in numbers:
                listener.on_epoch(epoch(number))
            listener.on_finish(run)
    assert ["offline; to upload it later: wandb sync " in note for note in notes] == [True, True]
    # offline-run-TIME-ID; if both began in the same second, the second one has -1 behind it.
    (name,) = {path.name.split("-")[3] for path in run.path.glob("wandb/offline-run-*")}
    assert name == json.loads((run.path / FILE).read_text())["id"]
    written = b"".join(path.read_bytes() for path in run.path.glob("wandb/offline-run-*/run-*.wandb"))
    assert b"optimizer.lr" in written
    assert b"final_accuracy" in written
    assert len(list(run.path.glob("wandb/offline-run-*/files/summary.json"))) >= 1
