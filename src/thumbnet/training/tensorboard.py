"""Write a training's progress for TensorBoard (needs the extra ``tensorboard``)."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from thumbnet.errors import needs_extra
from thumbnet.training.listener import Listener

if TYPE_CHECKING:
    from thumbnet.batches.prepare import Prepared
    from thumbnet.runs.folder import Run
    from thumbnet.training.epochs import EpochResult
    from thumbnet.training.fit import StepResult
    from thumbnet.training.state import TrainingState

FOLDER = "tensorboard"


class TensorBoardWriter(Listener):
    """Writes events into the run's folder; ``tensorboard --logdir runs`` shows all runs. A context manager.

    The tags follow PyTorch's tutorial: ``Loss/train``, ``Loss/val`` or ``Loss/test``, ``Accuracy/...`` (0 to
    1), ``Learning rate``, and also ``Speed/pictures per second``. The horizontal axis counts optimisation
    steps. Scores on a sample of the pictures have ``sample`` in their tags. A resumed training hides the
    events that the stopped one wrote after its checkpoint, or all of them if it wrote none.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        with needs_extra("--tensorboard", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._make: Any = SummaryWriter
        self._writer: Any = None
        self._loss: float | None = None

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._writer:
            self._writer.close()

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        """Open the event file and write the recipe."""
        # Events from this step on are written anew. Without a checkpoint these are all events.
        first = state.step + 1 if state.step else 0
        self._writer = self._make(run.path / FOLDER, purge_step=first)
        if not state.step:
            self._writer.add_text("Recipe", f"```toml\n{state.recipe.to_toml()}\n```")

    def on_step(self, step: StepResult) -> None:
        """Write the loss whenever a new one was read from the device."""
        if step.loss is not None and step.loss != self._loss:
            self._loss = step.loss
            self._writer.add_scalar("Loss/train", step.loss, step.step)

    def on_epoch(self, result: EpochResult) -> None:
        """Write the results of an epoch."""
        self._writer.add_scalar("Learning rate", result.lr, result.step)
        self._writer.add_scalar("Speed/pictures per second", result.pictures_per_second, result.step)
        self._writer.add_scalar("Accuracy/train", result.train_accuracy, result.step)
        for score, suffix in ((result.score, ""), (result.sample, " sample")):
            if score is not None:
                self._writer.add_scalar(f"Loss/{score.split}{suffix}", score.loss, result.step)
                self._writer.add_scalar(f"Accuracy/{score.split}{suffix}", score.accuracy, result.step)
                if score.map is not None:
                    self._writer.add_scalar(f"mAP/{score.split}{suffix}", score.map, result.step)
                if score.balanced_accuracy is not None:
                    tag = f"Balanced accuracy/{score.split}{suffix}"
                    self._writer.add_scalar(tag, score.balanced_accuracy, result.step)
        self._writer.flush()
