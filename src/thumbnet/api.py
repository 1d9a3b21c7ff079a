"""``thumbnet.train`` and ``thumbnet.resume``: :mod:`thumbnet.training.train`, with its progress shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.folder import Run
from thumbnet.training import train as training
from thumbnet.training.listener import Listener


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
    auto_resume: bool = False,
) -> Run:
    """Train a network, show how it goes, and leave a run's folder.

    >>> run = train("digits", "digits", overrides=["training.epochs=1"], out=tmp / "run", progress=False)
    >>> run.summary["split"], run.summary["epochs"]
    ('test', 1)

    Args:
        data: what :func:`thumbnet.load_data` takes, or what it returned.
        recipe: a name, a TOML file, or a :class:`~thumbnet.Recipe`; by default ``digits`` for the
            digits, ``small`` for up to ten thousand training pictures, else ``fast``.
        overrides: ``"section.key=value"`` settings on top of ``recipe``.
        out: the run's folder; a new one below ``runs/`` by default.
        device: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1``, ``mps``.
        data_dir: where downloads are kept.
        progress: show it: a bar on a terminal, a line an epoch in a notebook (among the cell's output) and
            elsewhere (on stderr). False prints nothing.
        listener: is told what happens, in place of what shows the progress.
        auto_resume: go on with ``out`` if that run was begun, and leave it alone if it is complete: the
            same call is right however often a scheduler repeats it.

    Raises:
        ThumbnetError: what the user can mend: data, recipe, folder, divergence.
    """
    with shown(progress, listener) as told:
        return training.train(
            data,
            recipe,
            overrides=overrides,
            out=out,
            device=device,
            data_dir=data_dir,
            listener=told,
            auto_resume=auto_resume,
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
    model: Callable[..., nn.Module] | None = None,
) -> Run:
    """Go on with an unfinished run, to the very result that it would have had uninterrupted.

    With ``more_epochs``, train a finished run for longer instead.

    Args:
        run_path: the run's folder.
        more_epochs: train a finished run for this many epochs more, in a new folder. The finished run is not
            changed. The new run starts from its weights, with a new optimizer and new random numbers. The
            learning rate rises again to where the schedule of one long training would be at that point (30
            epochs and then 10 more: three quarters through), and falls to its end.
        out, overrides: for ``more_epochs``: the new run's folder, and settings that are to change.
        data: the run's data, where they were in memory, such as ``(images, labels)``.
        device: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1``, ``mps``.
        progress, listener: as for :func:`train`.
        model: the class or function that builds the run's network, where it is one of your own. It is not
            needed once the code that registers the network has been imported.

    Raises:
        RunError: no such run, it is complete (or, with ``more_epochs``, not complete), another process
            trains in it, its checkpoint is damaged, or it needs a network of the user's own.
        DataError: its data are gone or have changed.
    """
    with shown(progress, listener) as told:
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
    if listener is not None or not progress or os.environ.get("RANK", "0") != "0":
        yield listener or Listener()
        return
    from thumbnet.cli.console import note, progress_console, say
    from thumbnet.cli.progress import TrainingDisplay

    # A notebook paints stderr red, as a fault.
    with TrainingDisplay(say if progress_console.is_jupyter else note) as display:
        yield display
