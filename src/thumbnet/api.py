"""``thumbnet.train`` and ``thumbnet.resume``: :mod:`thumbnet.training.train`, with its progress shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from thumbnet.data.corrections import Correction
from thumbnet.invocation import rank
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.folder import Run
from thumbnet.training import train as training
from thumbnet.training.listener import Listener
from thumbnet.training.tracking import tracked


def train(
    data: Any,
    recipe: str | Path | Recipe | None = None,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    device: str = "auto",
    data_dir: str | Path | None = None,
    progress: bool = True,
    listener: Listener | None = None,
    track: Sequence[str] = (),
    auto_resume: bool = False,
    minutes: float | None = None,
    labels: str | Path | Sequence[Correction] | None = None,
) -> Run:
    """Train a network, show the progress, and write a run's folder.

    >>> settings = ["training.epochs=1"]
    >>> run = train("digits", "digits", overrides=settings, out=tmp / "run", progress=False)
    >>> run.summary["split"], run.summary["epochs"]
    ('test', 1)

    Args:
        data: anything that :func:`thumbnet.load_data` accepts or returned.
        recipe: a name, a TOML file, or a :class:`~thumbnet.Recipe`; by default ``digits`` for the
            digits, ``small`` for up to ten thousand training pictures, else ``fast``.
        overrides: ``"section.key=value"`` settings on top of ``recipe``.
        out: the run's folder; by default a new one in ``runs/``.
        device: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1``, ``mps``.
        data_dir: folder for downloads.
        progress: show a bar on a terminal, and one line per epoch in a notebook (in the cell's output) or
            elsewhere (on stderr). False prints nothing.
        listener: receives the events of the training instead of showing the progress.
        track: the trackers to write to as well: ``tensorboard``, ``mlflow``, ``wandb``.
        auto_resume: resume the run in ``out`` if it has begun, and return it unchanged if it is complete. A
            scheduler can then repeat the same call as often as it likes.
        minutes: train the best network that this computer can in this wall time, which includes decoding and
            the final evaluation. What was chosen for it is in the run's recipe.
        labels: corrections of the data's labels: the ``labels.csv`` that ``thumbnet review`` writes, or a
            list of :class:`~thumbnet.data.corrections.Correction`. They relabel and drop pictures, and add
            new ones to train. The run keeps a copy, and everything that loads its data again uses it.

    Raises:
        ThumbnetError: something that the user can fix: data, recipe, folder, divergence, memory.
    """
    with shown(progress, listener) as display, tracked(track, display) as told:
        return training.train(
            data,
            recipe,
            overrides=overrides,
            out=out,
            device=device,
            data_dir=data_dir,
            listener=told,
            auto_resume=auto_resume,
            minutes=minutes,
            labels=labels,
        )


def resume(
    run_path: str | Path,
    *,
    more_epochs: int | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    data: Any = None,
    device: str = "auto",
    progress: bool = True,
    listener: Listener | None = None,
    track: Sequence[str] = (),
    model: Callable[..., nn.Module] | None = None,
) -> Run:
    """Resume an unfinished run. The result is the same as without the interruption.

    With ``more_epochs``, train a finished run for longer instead.

    Args:
        run_path: the run's folder.
        more_epochs: train a finished run for this many more epochs, in a new folder. The finished run does
            not change. The new run starts from its weights, with a new optimizer and new random numbers. Its
            learning rate starts where the schedule of one long training would be (for 10 more epochs after
            30: at three quarters), and falls to the end.
        out, overrides: with ``more_epochs``, the new run's folder and settings to change.
        data: the run's data, if they were in memory, such as ``(images, labels)``.
        device: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1``, ``mps``.
        progress, listener, track: as for :func:`train`.
        model: the class or function that builds the run's network, if it is one of your own. It is not
            needed if the code that registers the network has been imported.

    Raises:
        RunError: there is no such run, it is complete (or, with ``more_epochs``, not complete), another
            process is training in it, its checkpoint is damaged, or it needs a network of the user's own.
        DataError: its data cannot be loaded, or have changed.
    """
    with shown(progress, listener) as display, tracked(track, display) as told:
        return training.resume(
            run_path,
            device=device,
            listener=told,
            more_epochs=more_epochs,
            out=out,
            overrides=overrides,
            data=data,
            model=model,
        )


@contextmanager
def shown(progress: bool, listener: Listener | None = None) -> Iterator[Listener]:
    """A listener that shows a training: ``listener`` if there is one, and a silent one without ``progress``.

    Of several processes of one training, only the first shows anything.
    """
    if listener is not None or not progress or rank() != 0:
        yield listener or Listener()
        return
    from thumbnet.cli.console import note, progress_console, say
    from thumbnet.cli.progress import TrainingDisplay

    # A notebook paints stderr red, as a fault.
    with TrainingDisplay(say if progress_console.is_jupyter else note) as display:
        yield display
