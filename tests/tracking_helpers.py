"""A stand-in for MLflow's client, and a training's events without a training."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.folder import Run
from thumbnet.training.epochs import EpochResult, Score

NOTHING: Any = None


def install(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """Let ``name`` be importable, as a module with these contents."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin="stand-in")
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


class NotThereError(Exception):
    error_code = "RESOURCE_DOES_NOT_EXIST"


class StandInClient:
    """What thumbnet uses of ``mlflow.tracking.MlflowClient``. All instances share one store."""

    runs: dict[str, Any]
    experiments: dict[str, str]

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return None if found is None else SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        info = SimpleNamespace(
            run_id=f"{len(self.runs):032x}", status="RUNNING", run_name=run_name, lifecycle_stage="active"
        )
        data = SimpleNamespace(params={}, tags=dict(tags), metrics={}, history=defaultdict(list), files={})
        self.runs[info.run_id] = SimpleNamespace(info=info, data=data)
        return self.runs[info.run_id]

    def get_run(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise NotThereError
        return self.runs[run_id]

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status

    set_terminated = update_run

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return list(self.runs[run_id].data.history[key])

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        data = self.runs[run_id].data
        assert max(len(metrics), len(params), len(tags)) <= 100
        for one in metrics:
            data.history[one.key].append(one)
            data.metrics[one.key] = one.value
        for one in params:
            assert data.params.setdefault(one.key, one.value) == one.value, "a parameter never changes"
        data.tags.update({one.key: one.value for one in tags})

    def log_artifact(self, run_id: str, path: str) -> None:
        self.runs[run_id].data.files[Path(path).name] = Path(path).read_bytes()

    def list_artifacts(self, run_id: str) -> list[Any]:
        return [SimpleNamespace(path=name) for name in self.runs[run_id].data.files]


def install_stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandInClient]:
    """Let MLflow be the stand-in, with an empty store."""
    monkeypatch.setattr(StandInClient, "runs", {}, raising=False)
    monkeypatch.setattr(StandInClient, "experiments", {}, raising=False)

    def entity(*names: str) -> Any:
        return lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))

    install(monkeypatch, "mlflow")
    install(monkeypatch, "mlflow.tracking", MlflowClient=StandInClient)
    install(monkeypatch, "mlflow.exceptions", MlflowException=NotThereError)
    install(
        monkeypatch,
        "mlflow.entities",
        Metric=entity("key", "value", "timestamp", "step"),
        Param=entity("key", "value"),
        RunTag=entity("key", "value"),
    )
    return StandInClient


class State:
    """As much of a training's state as a tracker looks at."""

    def __init__(self, *history: EpochResult) -> None:
        self.recipe, self.step, self.history = Recipe(name="tiny"), 0, list(history)


def state_of(*history: EpochResult) -> Any:
    return State(*history)


def epoch(number: int) -> EpochResult:
    """The result of an epoch of ten steps."""
    score = Score("val", 0.1 * number, 1 / number, 8)
    return EpochResult(number, 10 * number, 2 / number, 0.1, 2.0, 16.0, score, 0.5)


def run_in(folder: Path) -> Run:
    """A run's folder with as many files as a tracker reads."""
    folder.mkdir(exist_ok=True)
    summary = {
        "split": "test",
        "accuracy": 0.75,
        "accuracy_interval": [0.7, 0.8],
        "kept_by": "last",
        "tta": "none",
        "epochs": 3,
        "seconds_total": 1.0,
        "map": None,
    }
    files = {
        "run.json": {"data": "digits", "fingerprint": "f00d"},
        "environment.json": {"git_commit": "abc123+", "thumbnet": "1", "packages": {"torch": "2"}},
        "summary.json": {**summary, "stopped_early": None},
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    (folder / "recipe.toml").write_text(Recipe(name="tiny").to_toml())
    return Run(folder)
