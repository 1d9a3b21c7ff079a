"""Write a training's numbers to MLflow (needs the extra ``mlflow``).

MLflow's own variables say where: ``MLFLOW_TRACKING_URI`` (by default a database in the current folder) and
``MLFLOW_EXPERIMENT_NAME`` (by default ``thumbnet``).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.training.tracker import remember, remembered

if TYPE_CHECKING:
    from thumbnet.training.tracker import Facts, How

FILE = "mlflow.json"
EXPERIMENT = "thumbnet"
AT_ONCE = 100  # parameters in a request: MLflow's limit
LONGEST = 500  # characters of a parameter: the limit of older servers; recipe.toml has all of it
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflowTracker:
    """A run of MLflow. It uses a client of its own, so it leaves a notebook's active run alone."""

    name = "MLflow"
    where = ""

    def __init__(self) -> None:
        self._client: Any = None
        self._run = ""

    def begin(self, facts: Facts) -> int:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # thumbnet reports to no one by itself
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # says how it makes its tables
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        known = remembered(facts.folder / FILE)
        if known is not None and self._exists(known):
            self._run = known
            self._client.update_run(known, status="RUNNING")
            return max((one.step for one in self._client.get_metric_history(known, "epoch")), default=-1)
        tags = {f"thumbnet.{key}": value for key, value in facts.tags.items()}
        if "git_commit" in facts.tags:
            tags["mlflow.source.git.commit"] = facts.tags["git_commit"].rstrip("+")  # MLflow shows this one
        run = self._client.create_run(self._experiment(), run_name=facts.folder.name, tags=tags)
        self._run = run.info.run_id
        remember(facts.folder / FILE, self._run)
        self._log_parameters(facts.parameters)
        return -1

    def _exists(self, run: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False  # the run was tracked elsewhere, or deleted there
        return bool(found.info.lifecycle_stage == "active")

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def _log_parameters(self, parameters: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        given = [Param(key, str(value)[:LONGEST]) for key, value in parameters.items()]
        for first in range(0, len(given), AT_ONCE):
            self._client.log_batch(self._run, params=given[first : first + AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def finish(self, values: Mapping[str, float], tags: Mapping[str, str], files: Sequence[Path]) -> None:
        from mlflow.entities import RunTag

        self.log(0, values)
        self._client.log_batch(self._run, tags=[RunTag(f"thumbnet.{key}", tags[key]) for key in tags])
        for path in files:
            self._client.log_artifact(self._run, str(path))

    def close(self, how: How) -> None:
        if self._run:
            self._client.set_terminated(self._run, STATUS[how])
