"""Each test runs with a stand-in for MLflow, and with MLflow itself where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import TINY, coloured_data
from thumbnet.api import resume, train
from thumbnet.errors import InterruptedRunError
from thumbnet.runs.folder import Run
from thumbnet.training.listener import Listener
from thumbnet.training.mlflow_tracker import FILE, MLflowTracker
from thumbnet.training.tracking import InBackground
from tracking_helpers import NOTHING, epoch, install_stand_in, run_in, state_of
from training_helpers import StopAfter


@pytest.fixture(params=["stand-in", "file", "sqlite"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client of an empty store in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    if request.param == "stand-in":
        return install_stand_in(monkeypatch)()
    mlflow = pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    if request.param == "sqlite":
        pytest.importorskip("sqlalchemy", reason="only mlflow-skinny is installed")
        place = f"sqlite:///{tmp_path}/mlflow.db"
    else:
        place = f"file:{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return mlflow.tracking.MlflowClient()


def entry(run: Run) -> str:
    return str(json.loads((run.path / FILE).read_text())["id"])


def steps(client: Any, run: Run, key: str = "epoch") -> list[int]:
    return [one.step for one in client.get_metric_history(entry(run), key)]


def test_a_resumed_training_goes_on_in_its_entry_with_the_same_weights(
    client: Any, tiny_run: Run, tmp_path: Path
) -> None:
    data, notes = coloured_data(), Listener()
    with pytest.raises(InterruptedRunError):
        train(
            data, "one-cycle", overrides=TINY, out=tmp_path / "run", device="cpu", listener=StopAfter(6),
            track=["mlflow"],
        )  # fmt: skip
    run = Run(tmp_path / "run")
    first = entry(run)
    assert client.get_run(first).info.status == "KILLED"
    resume(run.path, data=data, device="cpu", listener=notes, track=["mlflow"])
    assert entry(run) == first
    assert run.weights_path.read_bytes() == tiny_run.weights_path.read_bytes(), "it changed the training"
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert steps(client, run) == [line["step"] for line in lines]
    found = client.get_run(first)
    history = client.get_metric_history(first, "test_accuracy")
    assert [one.value for one in history] == [line["test_accuracy"] for line in lines]
    assert found.info.status == "FINISHED"
    assert found.data.metrics["final_accuracy"] == run.summary["accuracy"]
    assert found.data.params["optimizer.lr"] == "0.05"
    assert found.data.tags["thumbnet.data_fingerprint"] == run.settings["fingerprint"]
    assert found.data.tags["thumbnet.split"] == "test"
    assert sorted(one.path for one in client.list_artifacts(first)) == ["recipe.toml", "summary.json"]


def follow(run: Run, *numbers: int, notes: list[str]) -> None:
    with InBackground(MLflowTracker(), notes.append) as listener:
        listener.on_start(run, state_of(), NOTHING)
        for number in numbers:
            listener.on_epoch(epoch(number))


def test_a_killed_training_that_repeats_epochs_adds_none_twice(client: Any, tmp_path: Path) -> None:
    run, notes = run_in(tmp_path / "run"), list[str]()
    follow(run, 1, 2, notes=notes)
    follow(run, 1, 2, 3, notes=notes)
    assert (notes, steps(client, run)) == ([], [10, 20, 30])
    commit = client.get_run(entry(run)).data.tags
    assert (commit["mlflow.source.git.commit"], commit["thumbnet.git_commit"]) == ("abc123", "abc123+")


def test_a_run_that_was_tracked_elsewhere_gets_a_new_entry(client: Any, tmp_path: Path) -> None:
    run, notes = run_in(tmp_path / "run"), list[str]()
    (run.path / FILE).write_text(json.dumps({"id": "0" * 31 + "f"}))
    follow(run, 1, notes=notes)
    assert entry(run) != "0" * 31 + "f"
    assert (notes, steps(client, run)) == ([], [10])


def test_the_experiment_can_be_named(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "frogs")
    for name in ("a", "b"):
        follow(run_in(tmp_path / name), 1, notes=[])
    assert client.get_experiment_by_name("frogs") is not None
    assert client.get_experiment_by_name("thumbnet") is None
