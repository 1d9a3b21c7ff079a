"""Opens the run that a command names, and loads the data that it is to be used on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from thumbnet.cli.options import data_settings
from thumbnet.invocation import command

if TYPE_CHECKING:
    from thumbnet.data.splits import Data
    from thumbnet.recipes.settings import DataSettings
    from thumbnet.runs.folder import Run
    from thumbnet.runs.weights_info import WeightsInfo


def run_of(options: argparse.Namespace) -> Run | None:
    """Open the run that RUN names; None if RUN is a file or on the Hub, and so not a run's folder.

    Raises:
        RunError: RUN does not exist, or its folder is not a run.
    """
    from thumbnet.files import user_path
    from thumbnet.sources.known_names import HUB

    folder = user_path(options.run)
    if not folder.is_dir():
        if not folder.exists() and not options.run.startswith(HUB):
            from thumbnet.runs.finding import no_run

            raise no_run(folder)
        return None
    from thumbnet.runs.folder import Run

    return Run.open(folder)


def data_of_run(
    options: argparse.Namespace, settings: DataSettings, fingerprint: str = "", trained_on: str = ""
) -> Data:
    """Load DATA, or the run's data if DATA is not given, as :func:`thumbnet.runs.data.load_wanted` says.

    ``--labels`` names other corrections than the run's.

    Args:
        options: those of the command.
        settings: the settings with which RUN reads its data.
        fingerprint: that of the training data, as the network's description names it; "" if it is not known.
        trained_on: the name of the training data in that description; "" if it is not known.

    Raises:
        RunError: DATA is not given and RUN does not name any data.
        DataError: the data cannot be loaded.
    """
    from dataclasses import replace

    from thumbnet.cli.console import note
    from thumbnet.data.corrections import corrections_of
    from thumbnet.errors import RunError
    from thumbnet.runs.data import Wanted, load_wanted
    from thumbnet.runs.finding import explaining_gone

    own_groups, run = settings.group_by, run_of(options)
    settings = replace(data_settings(options, settings), group_by=own_groups)  # --group-by is for other data
    asked = getattr(options, "labels", None)
    corrections = None if asked is None else corrections_of(asked)
    own = None if run is None else run.settings.get("data")
    source = own if options.data is None else options.data
    if source is None:
        why = (
            "does not say which data it was trained on"
            if run is None
            else "was trained on data in memory, so save them to disk first"
        )
        raise RunError(f"name the data (DATA): {options.run} {why}")
    wanted = Wanted(
        source,
        settings,
        run=run,
        fingerprint=fingerprint,
        trained_on=trained_on,
        corrections=corrections,
        data_dir=options.data_dir,
        given=data_settings(options),
        tell=lambda text: note(f"thumbnet: {text}"),
    )
    with explaining_gone(own if options.data is None else None, lambda: where_now(options)):
        return load_wanted(wanted)


def known_data_of_run(options: argparse.Namespace, info: WeightsInfo) -> Data | None:
    """Load data as :func:`data_of_run`, as the run reads its own; None if nothing names any.

    ``info`` is the network's description.

    Raises:
        RunError, DataError: as for :func:`data_of_run`.
    """
    from thumbnet.runs.data import settings_for

    run = run_of(options)
    if options.data is None and (run is None or run.settings.get("data") is None):
        return None
    return data_of_run(options, settings_for(options.run, info), info.fingerprint)


def where_now(options: argparse.Namespace, run: str | None = None) -> str:
    """Say how to name the new place of a run's data. ``run`` is the command's RUN."""
    return f"If the run's data have moved, name their new place: {naming_data(options, run)}"


def naming_data(options: argparse.Namespace, run: str | None = None) -> str:
    """The command line as the user typed it, with DATA added.

    Args:
        options: those of the command, which names no data.
        run: the command's RUN.
    """
    words = list(options.words)
    if "--data" in options.parser._option_string_actions:
        return command(*words, "--data", "DATA")
    # Directly after RUN, because an option with an optional value, such as --tta, would take it at the end.
    words.insert(words.index(run or options.run, 1) + 1, "DATA")
    return command(*words)


def split_of(options: argparse.Namespace, data: Data) -> str:
    """Return ``--split``, or the split to measure on: ``test``, else ``val``, else all pictures.

    Raises:
        DataError: there is no split of that name.
    """
    name: str = getattr(options, "split", None) or data.measured_split()
    data.split(name)
    return name
