"""Write a training's numbers to Weights & Biases (needs the extra ``wandb``).

Its own variables say how and where: ``WANDB_MODE`` (``online``, ``offline``, ``disabled``), ``WANDB_PROJECT``
(by default ``thumbnet``), ``WANDB_ENTITY``, ``WANDB_DIR`` (by default the run's folder).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.training.tracker import remember, remembered

if TYPE_CHECKING:
    from thumbnet.training.tracker import Facts, How

FILE = "wandb.json"
PROJECT = "thumbnet"
TIMEOUT = 20.0  # seconds
EXIT_CODE = {"finished": 0, "stopped": 130, "failed": 1}


class WandbTracker:
    """A run of Weights & Biases. It leaves the output, the code and a notebook's active run alone."""

    name = "Weights & Biases"
    where = ""

    def __init__(self) -> None:
        self._run: Any = None

    def begin(self, facts: Facts) -> int:
        os.environ.setdefault("WANDB_SILENT", "true")  # its messages would go into the progress
        import wandb

        path = facts.folder / FILE
        run_id = remembered(path)
        if run_id is None:
            run_id = secrets.token_hex(4)
            remember(path, run_id)
        mode = wandb.setup().settings.mode  # from WANDB_MODE, or from `wandb offline`
        if mode not in ("offline", "disabled") and not wandb.login(
            prompt=False, verify=False
        ):  # init would ask for a key
            raise RuntimeError("there is no API key: run `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or facts.folder.name,
            id=run_id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(facts.folder),
            reinit="create_new",
            # No git: the address of the repository, which W&B would keep, can have a password in it.
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,
                silent=True,
                init_timeout=TIMEOUT,
                finish_timeout=TIMEOUT,  # else an unreachable server would keep the process from ending
                finish_timeout_raises=True,
            ),
        )
        self.where = self._run.url or ""
        if mode == "offline":
            self.where = f"offline; to upload it later: wandb sync {Path(self._run.dir).parent}"
        config = {**facts.parameters, **{f"thumbnet.{key}": value for key, value in facts.tags.items()}}
        self._run.config.update(config, allow_val_change=True)
        return int(self._run.step) - 1 if self._run.step else -1

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, values: Mapping[str, float], tags: Mapping[str, str], files: Sequence[Path]) -> None:
        self._run.summary.update({**values, **{f"thumbnet.{key}": value for key, value in tags.items()}})
        if not Path(self._run.dir).is_dir():  # WANDB_MODE=disabled writes nothing
            return
        for path in files:
            copy = shutil.copy(path, self._run.dir)  # W&B would warn about a link to a file elsewhere
            self._run.save(copy, base_path=self._run.dir, policy="now")

    def close(self, how: How) -> None:
        if self._run is not None:
            self._run.finish(exit_code=EXIT_CODE[how])
