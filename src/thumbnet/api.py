"""What the commands do, from Python: ``thumbnet.train``, ``resume``, ``tune``, ``resume_tuning``, ``export``.

They show their progress, and Ctrl-C or a notebook's stop button ends a training after it has been saved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from thumbnet.data.corrections import Labels
from thumbnet.data.splits import Data
from thumbnet.errors import InterruptedRunError, RecipeError
from thumbnet.invocation import rank
from thumbnet.models.registry import name_of, provide
from thumbnet.recipes.recipe import Recipe, assignments_of
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data, where_again
from thumbnet.training import train as training
from thumbnet.training.listener import Listener, Listeners, StoppableListener
from thumbnet.training.stopping import stopping
from thumbnet.training.tracking import tracked

if TYPE_CHECKING:
    from thumbnet.data.splits import Progress
    from thumbnet.publish.checked import Exported
    from thumbnet.runs.weights_info import WeightsInfo
    from thumbnet.tuning.listener import TuneListener
    from thumbnet.tuning.search import Tuned


def train(
    data: Any,
    recipe: str | Path | Recipe | None = None,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    device: str | torch.device = "auto",
    data_dir: str | Path | None = None,
    progress: bool = True,
    listener: Listener | None = None,
    track: str | Sequence[str] = (),
    auto_resume: bool = False,
    minutes: float | None = None,
    labels: Labels | None = None,
    model: Callable[..., nn.Module] | None = None,
) -> Run:
    """Train a network, show the progress, and write a run's folder.

    >>> settings = {"training.epochs": 1}
    >>> run = train("digits", "digits", overrides=settings, out=tmp / "run", progress=False)
    >>> run.summary["split"], run.summary["epochs"]
    ('test', 1)

    Ctrl-C, SIGTERM, SIGHUP (the terminal was closed) and a notebook's stop button end the training after its
    step. The run is saved, and :func:`resume` continues it. A second Ctrl-C ends it at once. In a thread
    other than the main one, signals do not arrive; there a ``listener`` can ask to stop.

    Args:
        data: anything that :func:`thumbnet.load_data` accepts or returned.
        recipe: a name, a TOML file, or a :class:`~thumbnet.Recipe`; by default ``digits`` for the
            digits, ``small`` for up to ten thousand training pictures, else ``fast``. For another network
            than FastNet (``model.name``): ``resnet18``, ``finetune`` (networks of timm) or ``one-cycle``.
        overrides: settings on top of ``recipe``: ``{"section.key": value}``, or ``["section.key=value"]``.
        out: the run's folder; by default a new one in ``runs/``.
        device: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1``, ``mps``, or a ``torch.device``.
        data_dir: folder for downloads.
        progress: show a bar on a terminal, and one line per epoch in a notebook (in the cell's output) or
            elsewhere (on stderr). False prints nothing.
        listener: receives the events of the training as well.
        track: the tracker to write to as well, or several: ``tensorboard``, ``mlflow``, ``wandb``.
        auto_resume: resume the run in ``out`` if it has begun, and return it unchanged if it is complete. A
            scheduler can then repeat the same call as often as it likes. A call with other data or settings,
            which would have another result, is an error.
        minutes: choose the number of steps and the network's width so that everything ends within this wall
            time, decoding and the final evaluation included. What was chosen is in the run's recipe.
        labels: corrections of the data's labels: the ``labels.csv`` that ``thumbnet review`` writes, a list
            of such files, or a list of :class:`~thumbnet.data.corrections.Correction`. They relabel and drop
            pictures, and add new ones to train. The last one about a picture counts. The run keeps a copy,
            and everything that loads its data again uses it.
        model: the class or function that builds the network, if it is one of your own. It takes the place of
            the setting ``model.name``; see :func:`thumbnet.models.registry.register_model`.

    Raises:
        ThumbnetError: something that the user can fix: data, recipe, folder, divergence, memory.
        InterruptedRunError: the training was stopped, and its checkpoint is saved in the error's ``path``.
        KeyboardInterrupt: it was stopped before its first step, or a second time.
    """
    settings = _with_model(overrides, model)
    elsewhere = data_dir if auto_resume else None  # the run may record another folder
    with _followed(progress, listener, track) as told, _continued_by("resume", data, model, elsewhere):
        return training.train(
            data,
            recipe,
            overrides=settings,
            out=out,
            device=device,
            data_dir=data_dir,
            listener=told,
            auto_resume=auto_resume,
            minutes=minutes,
            labels=labels,
        )


def resume(
    run_path: str | os.PathLike[str],
    *,
    more_epochs: int | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    data: Any = None,
    device: str | torch.device = "auto",
    data_dir: str | Path | None = None,
    progress: bool = True,
    listener: Listener | None = None,
    track: str | Sequence[str] = (),
    model: Callable[..., nn.Module] | None = None,
    finish: bool = False,
) -> Run:
    """Resume an unfinished run. The result is the same as without the interruption.

    With ``finish``, end it where its newest checkpoint is. With ``more_epochs``, train a finished run for
    longer instead. It stops as :func:`train` does.

    Args:
        run_path: the run, or its folder.
        more_epochs: train a finished run for this many more epochs, in a new folder. The finished run does
            not change. The new run starts from its weights, with a new optimizer and new random numbers. Its
            learning rate starts where the schedule of one long training would be (for 10 more epochs after
            30: at three quarters), and falls to the end.
        out, overrides: with ``more_epochs``, the new run's folder and settings to change.
        data: the run's data, if they were in memory, such as ``(images, labels)``.
        device: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1``, ``mps``, or a ``torch.device``.
        data_dir: folder for downloads and unpacked archives, if it is no longer the one that the run records.
        progress, listener, track: as for :func:`train`.
        model: the class or function that builds the run's network, if it is one of your own. It is not
            needed if the code that registers the network has been imported.
        finish: end the training where its newest checkpoint is. That network is measured and written as at
            any end: the best epoch on ``val`` if the recipe keeps that, else the newest weights. The last
            part of the schedule is missing, which the summary says (``stopped_early``).

    Raises:
        RunError: there is no such run, it is complete (or, with ``more_epochs``, not complete), another
            process is training in it, its checkpoint is damaged, it needs a network of the user's own, or it
            has no checkpoint to ``finish`` at.
        ThumbnetError: ``finish``, ``out`` or ``overrides`` do not go with the rest.
        DataError: its data cannot be loaded, or have changed.
        InterruptedRunError, KeyboardInterrupt: as for :func:`train`.
    """
    with _followed(progress, listener, track) as told, _continued_by("resume", data, model, data_dir):
        return training.resume(
            os.fspath(run_path),
            device=device,
            listener=told,
            more_epochs=more_epochs,
            out=out,
            overrides=assignments_of(overrides),
            data=data,
            data_dir=data_dir,
            model=model,
            finish=finish,
        )


def tune(
    data: Any,
    recipe: str | Path | Recipe | None = None,
    *,
    minutes: float | None = None,
    trials: int | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    device: str | torch.device = "auto",
    data_dir: str | Path | None = None,
    progress: bool = True,
    listener: TuneListener | None = None,
    labels: Labels | None = None,
    model: Callable[..., nn.Module] | None = None,
) -> Tuned:
    """Find the settings that suit ``data``, train a network with them, and show the progress.

    The test split chooses nothing. The first trial is the recipe as it is, so the result is never worse than
    it by the search's own measure. The same seed and number of ``trials`` give the same result. Ctrl-C,
    SIGTERM, SIGHUP and a notebook's stop button end the search; :func:`resume_tuning` goes on with it.

    Args:
        data: anything that :func:`thumbnet.load_data` accepts or returned.
        recipe: where the search starts; by default the recipe that :func:`train` would choose.
        minutes: wall time for everything, the final training included.
        trials: end the search after this many trials. Without ``minutes``, exactly this many.
        overrides: settings that the search does not change: ``{"section.key": value}``, or
            ``["section.key=value"]``.
        out: the folder; by default a new one in ``runs/``.
        progress: show the search on a terminal, in the cell's output of a notebook, or on stderr. False
            prints nothing.
        listener: receives the events of the search as well.
        device, data_dir, labels, model: as for :func:`train`.

    Raises:
        ThumbnetError: something that the user can fix: data, recipe, folder, too little time, memory.
        InterruptedTuneError: the search was stopped. Finished trials are kept in the error's ``path``.
        KeyboardInterrupt: it was stopped before its first trial, or a second time.
    """
    settings = _with_model(overrides, model)
    from thumbnet.tuning import tune as tuning

    with _searched(progress, listener) as told, _continued_by("resume_tuning", data, model):
        return tuning.tune(
            data,
            recipe,
            minutes=minutes,
            trials=trials,
            overrides=settings,
            out=out,
            device=device,
            data_dir=data_dir,
            listener=told,
            labels=labels,
        )


def resume_tuning(
    path: str | os.PathLike[str],
    *,
    data: Any = None,
    device: str | torch.device = "auto",
    data_dir: str | Path | None = None,
    progress: bool = True,
    listener: TuneListener | None = None,
    model: Callable[..., nn.Module] | None = None,
) -> Tuned:
    """Go on with a search that was stopped or killed. Finished trials are kept.

    The time of the search is counted without the interruption.

    Args:
        path: the folder of the search.
        data: the data of the search, if they were in memory.
        data_dir: folder for downloads and unpacked archives, if it is no longer the one that the search
            records.
        device, progress, listener: as for :func:`tune`.
        model: the class or function that builds the search's network, if it is one of your own. It is not
            needed if the code that registers the network has been imported.

    Raises:
        RunError: there is no search in ``path``, it is finished, its files are damaged, its data have
            changed, another process searches there, or it needs a network of the user's own.
        DataError: its data cannot be loaded any more.
        InterruptedTuneError, KeyboardInterrupt: as for :func:`tune`.
    """
    from thumbnet.tuning import tune as tuning

    with _searched(progress, listener) as told, _continued_by("resume_tuning", data, model, data_dir):
        return tuning.resume_tuning(
            os.fspath(path), device=device, listener=told, data=data, data_dir=data_dir, model=model
        )


def export(
    run: str | os.PathLike[str],
    format: str = "onnx",  # noqa: A002 - the command's word
    out: str | Path | None = None,
    *,
    data: Any = None,
    data_dir: str | Path | None = None,
    progress: bool = True,
    model: Callable[..., nn.Module] | None = None,
) -> Exported:
    """Export a run's network to another format, and write the file only if it computes what the run does.

    Both classify up to 10,000 pictures of the split that a training measures. If no data are known, they
    classify pictures of random pixels.

    Args:
        run: the run, its folder, a ``model.safetensors``, or ``hf:OWNER/NAME[@REVISION]``.
        format: ``onnx``, ``onnx-any-size``, ``onnx-int8``, ``torch-export``, ``safetensors`` or ``web``; see
            :func:`thumbnet.publish.export.export`.
        out: the file to write; needed for ``safetensors`` and for a network on the Hub. By default
            ``model.onnx``, ``model.int8.onnx``, ... in the run's folder.
        data: the data for the comparison and for the calibration of ``onnx-int8``: anything that
            :func:`thumbnet.load_data` accepts or returned; by default the run's data.
        data_dir: folder for downloads.
        progress: show a bar on a terminal. Warnings about the data go to stderr either way.
        model: the class or function that builds the run's network, if it is one of your own. It is not
            needed if the code that registers the network has been imported.

    Raises:
        RunError: the run does not exist, it needs a network of the user's own, the export computes something
            else, or the file cannot be written. A former file of that name stays.
        NetworkError: ``model`` does not build a network, or the run's network is not one of the user's own.
        ThumbnetError: the data cannot be loaded, or do not have the network's classes; there is no such
            format; a library for it is not installed; or there is not enough memory.
    """
    from thumbnet.publish.checked import export_checked, target

    place = os.fspath(run)
    wanted = target(place, format, out)
    if model is not None:
        provide(wanted.info.model.name, model)
    found = _data_for(place, wanted.info, data, data_dir)
    counting = _counting if progress else _uncounted
    if format == "web":
        from thumbnet.cli.export import fetch_web_runtime

        fetch_web_runtime(counting)
    return export_checked(wanted, found, counting)


def _with_model(
    overrides: Sequence[str] | Mapping[str, Any], model: Callable[..., nn.Module] | None
) -> list[str]:
    """``overrides`` as assignments; one of them names ``model``, if the user passed one.

    Raises:
        RecipeError: ``overrides`` are invalid, or name a network as well.
        NetworkError: ``model`` does not build a network, or has no name of its own.
    """
    settings = assignments_of(overrides)
    if model is None:
        return settings
    if any(one.partition("=")[0].strip() == "model.name" for one in settings):
        raise RecipeError("model and the setting model.name both name a network: leave one of them out")
    return [*settings, f"model.name={name_of(model)}"]


def _data_for(run: str, info: WeightsInfo, data: Any, data_dir: str | Path | None) -> Data | None:
    """The data on which an export is compared with its run, as the command finds them."""
    from thumbnet.cli.console import note
    from thumbnet.runs.data import Wanted, load_wanted, open_run, settings_for
    from thumbnet.runs.finding import explaining_gone

    if isinstance(data, Data):
        return data  # read and split already, as for a training
    if data is not None and not isinstance(data, str | Path):
        return load_data(data, data_dir=data_dir, settings=settings_for(run, info), one_class=True)
    trained = open_run(run)
    own = None if trained is None else trained.settings.get("data")
    source = own if data is None else str(data)
    if source is None:
        return None
    again = f"thumbnet.export({run!r}, data=DATA)"
    with explaining_gone(
        own if data is None else None,
        lambda: f"If the run's data have moved, name their new place: {again}",
    ):
        return load_wanted(
            Wanted(
                source,
                settings_for(run, info),
                trained,
                info.fingerprint,
                data_dir=None if data_dir is None else str(data_dir),
                tell=lambda text: note(f"thumbnet: {text}"),
            )
        )


def _is_in_memory(data: Any) -> bool:
    """Whether a call that continues needs ``data`` again, because a path or a name does not find them."""
    if data is None or isinstance(data, str | Path):
        return False
    return not isinstance(data, Data) or where_again(data.source) is None


def _counting(what: str) -> AbstractContextManager[Progress]:
    from thumbnet.cli.progress import counting

    return counting(what)


def _uncounted(what: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done, total: None)


@contextmanager
def _followed(progress: bool, listener: Listener | None, track: str | Sequence[str]) -> Iterator[Listener]:
    """The listener of a training: its display, the user's own, and the trackers. Signals stop it."""
    with shown(progress) as display, stopping(display, _say_line(progress)):
        both = display if listener is None else Listeners(display, listener)
        with tracked(track, both) as told:
            yield told


@contextmanager
def _searched(progress: bool, listener: TuneListener | None) -> Iterator[TuneListener]:
    """The listener of a search: its display, and the user's own. Signals stop the search."""
    from thumbnet.cli.tune_display import QuietTuning, TuneDisplay
    from thumbnet.tuning.listener import TuneListeners

    say_line = _say_line(progress)
    with ExitStack() as stack:
        display: TuneDisplay | QuietTuning = QuietTuning()
        if progress:
            display = stack.enter_context(TuneDisplay(say_line))
        stack.enter_context(stopping(display, say_line))
        yield display if listener is None else TuneListeners(display, listener)


@contextmanager
def _continued_by(
    function: str,
    data: Any,
    model: Callable[..., nn.Module] | None,
    data_dir: str | Path | None = None,
) -> Iterator[None]:
    """If the work is stopped, let the error name the call that continues it.

    Args:
        function: the function of this package.
        data: what the call was given; data in memory have to be given again.
        model: the same.
        data_dir: the folder that was given instead of the recorded one, if any.
    """
    try:
        yield
    except InterruptedRunError as error:
        more = ", data=DATA" * _is_in_memory(data) + ", model=MODEL" * (model is not None)
        more += "" if data_dir is None else f", data_dir={str(data_dir)!r}"
        call = f"thumbnet.{function}({str(error.path)!r}{more}"
        error.continue_by(f"{call})", f"{call}, finish=True)")
        raise


@contextmanager
def shown(progress: bool) -> Iterator[StoppableListener]:
    """A listener that shows a training, or a silent one without ``progress``.

    Of several processes of one training, only the first shows anything.
    """
    if not progress or rank() != 0:
        yield StoppableListener()
        return
    from thumbnet.cli.progress import TrainingDisplay

    with TrainingDisplay(_say_line(progress)) as display:
        yield display


def _say_line(progress: bool) -> Callable[[str], None]:
    """What prints a line of progress: nothing without ``progress``, or in another process than the first."""
    if not progress or rank() != 0:
        return lambda text: None
    from thumbnet.cli.console import note, progress_console, say

    return say if progress_console.is_jupyter else note  # a notebook paints stderr red, as a fault
