"""Opens the run that a command names, and loads the data that it is to be used on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thumbnet.cli.options import data_settings

if TYPE_CHECKING:
    from thumbnet.data.corrections import Correction
    from thumbnet.data.splits import Data
    from thumbnet.recipes.settings import DataSettings
    from thumbnet.runs.folder import Run


def run_of(options: argparse.Namespace) -> Run | None:
    """Open the run that RUN names; None if RUN is a file or on the Hub, and so not a run's folder.

    Raises:
        RunError: RUN does not exist, or its folder is not a run.
    """
    from thumbnet.files import user_path

    folder = user_path(options.run)
    if not folder.is_dir():
        if not folder.exists() and not options.run.startswith("hf:"):
            from thumbnet.runs.finding import no_run

            raise no_run(folder)
        return None
    from thumbnet.runs.folder import Run

    return Run.open(folder)


def data_of_run(options: argparse.Namespace, settings: DataSettings, fingerprint: str = "") -> Data:
    """Load DATA, or the run's data if DATA is not given.

    The run's data are split and corrected as in training, unless ``--labels`` names other corrections. They
    are recognised in another place if they have moved, and a warning says if they have changed. If RUN is a
    file or on the Hub, its training data are recognised by their fingerprint, if they are split as a training
    splits them by itself. Other data keep their own splits; if they have none, a split called ``all`` has all
    pictures.

    Args:
        options: those of the command.
        settings: the settings with which RUN reads its data.
        fingerprint: that of the training data, as the network's description names it; "" if it is not known.

    Raises:
        RunError: DATA is not given and RUN does not name any data.
        DataError: the data cannot be loaded.
    """
    from thumbnet.data.corrections import corrections_of
    from thumbnet.errors import RunError

    settings, run = data_settings(options, settings), run_of(options)
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
    if run is not None and own is not None:
        data = _trained_data(options, run, source, settings, corrections)
        if data is not None:
            return data
    if run is None and fingerprint:
        data = _data_of_network(options, source, settings, corrections, fingerprint)
        if data is not None:
            return data
    return _other_data(options, source, settings, corrections, fingerprint)


def known_data_of_run(options: argparse.Namespace, fingerprint: str) -> Data | None:
    """Load data as :func:`data_of_run`, as the run reads its own; None if nothing names any.

    ``fingerprint`` is that of the network's training data.

    Raises:
        RunError, DataError: as for :func:`data_of_run`.
    """
    from thumbnet.runs.provenance import recipe_of

    run = run_of(options)
    if options.data is None and (run is None or run.settings.get("data") is None):
        return None
    return data_of_run(options, recipe_of(options.run).data, fingerprint)


def _trained_data(
    options: argparse.Namespace,
    run: Run,
    source: str,
    settings: DataSettings,
    corrections: Sequence[Correction] | None,
) -> Data | None:
    """Load ``source`` as in training if it is the run's data, perhaps in a new place; else return None."""
    from thumbnet.cli.console import note
    from thumbnet.data.calibration import with_calibration_split
    from thumbnet.errors import DataError
    from thumbnet.runs.finding import are_gone
    from thumbnet.sources.load import load_data

    own, fingerprint = str(run.settings["data"]), run.settings.get("fingerprint")
    same = same_source(source, own)
    if not same and not are_gone(own):
        return None
    data_dir = options.data_dir or run.settings.get("data_dir")
    labels = run.corrections if corrections is None or not same else corrections
    try:
        data = load_data(source, data_dir=data_dir, settings=settings, labels=labels)
    except DataError as error:
        if not same:
            return None
        if options.data is None and are_gone(own):
            raise DataError(f"{error}\n{where_now(options)}") from None
        raise
    if same:
        if corrections is None and fingerprint not in (None, data.fingerprint()):
            note(f"thumbnet: {_changed(data, run)}")
    else:
        if data.fingerprint() != fingerprint:
            return None
        note(f"thumbnet: {source} holds the run's data, which are split as in the training")
        if corrections is not None:
            data = load_data(source, data_dir=data_dir, settings=settings, labels=corrections)
    return with_calibration_split(data, settings)


def _data_of_network(
    options: argparse.Namespace,
    source: str,
    settings: DataSettings,
    corrections: Sequence[Correction] | None,
    fingerprint: str,
) -> Data | None:
    """Load ``source`` as in training if it is what a network in a file was trained on; else return None.

    The file does not say which pictures were set aside. So its fingerprint is compared with that of the data
    as a training splits them by itself: without and with a val split, which ``--patience`` needs.
    """
    from contextlib import suppress
    from dataclasses import replace

    from thumbnet.cli.console import note
    from thumbnet.data.calibration import with_calibration_split
    from thumbnet.data.held_out import VAL_FRACTION, with_held_out
    from thumbnet.errors import DataError
    from thumbnet.sources.load import load_data

    def load(settings: DataSettings, labels: Sequence[Correction] | None) -> Data:
        return load_data(source, data_dir=options.data_dir, settings=settings, labels=labels)

    def as_trained(labels: Sequence[Correction] | None) -> Data | None:
        """The data if the network was trained with these ``labels``. Only one copy is in memory at a time."""
        data, asked = load(settings, labels), settings
        if data.fingerprint() != fingerprint and "val" not in data.splits:
            asked = replace(settings, val_fraction=VAL_FRACTION)
            if labels is None:
                data = with_held_out(data, 0, VAL_FRACTION, settings.split_seed, settings.group_by)
            else:  # val has to be set aside before the labels are corrected
                del data
                data = load(asked, labels)
        if data.fingerprint() != fingerprint:
            return None
        if labels is not corrections:
            del data
            data = load(asked, corrections)
        return data

    corrected: list[Sequence[Correction] | None] = [None] if corrections is None else [None, corrections]
    for labels in corrected:
        with suppress(DataError):  # these may be other data, which need not be split like that
            data = as_trained(labels)
            if data is not None:
                note(f"thumbnet: {source} holds the network's training data, split as in the training")
                return with_calibration_split(data, settings)
    return None


def _other_data(
    options: argparse.Namespace,
    source: str,
    settings: DataSettings,
    corrections: Sequence[Correction] | None,
    fingerprint: str,
) -> Data:
    """Load data that the run was not trained on: whole, or in the splits that they come with."""
    from dataclasses import replace

    from thumbnet.cli.console import note
    from thumbnet.data.held_out import NOTHING_SET_ASIDE
    from thumbnet.errors import DataError, UnusedSettingError
    from thumbnet.sources.load import load_data
    from thumbnet.sources.manifest import COLUMNS_AND_PICTURES, NAMES

    def load(settings: DataSettings) -> Data:
        return load_data(
            source, data_dir=options.data_dir, settings=settings, one_class=True, labels=corrections
        )

    settings = replace(settings, val_fraction=0.0, test_fraction=0.0, group_by="")
    try:
        data = load(settings)
    except DataError as error:  # the run's columns and names need not be those of other data
        given = data_settings(options)
        asked = replace(settings, **{key: getattr(given, key) for key in (*NAMES, *COLUMNS_AND_PICTURES)})
        if asked == settings:
            raise
        try:
            data = load(asked)
        except DataError as second:
            raise (second if isinstance(error, UnusedSettingError) else error) from None
    notes = [text for text in data.notes if text != NOTHING_SET_ASIDE]
    splits = dict(data.splits)
    if set(splits) == {"train"}:
        splits["all"] = splits["train"]
        notes.append(f"using all {len(splits['all']):,} pictures: {source} has no splits of its own")
    if fingerprint and data.fingerprint() == fingerprint:
        notes.append("warning: the network was trained on these pictures")
    for text in notes:
        note(f"thumbnet: {text}")
    return replace(data, splits=splits, notes=tuple(notes))


def _changed(data: Data, run: Run) -> str:
    """Warn that a run's data are no longer those that it was trained on."""
    text = f"warning: the data in {data.source} have changed since {run.path} was trained on them"
    if not data.set_aside:
        return text
    split = " and ".join(data.set_aside)
    return f"{text}, so other pictures are set aside as {split}, perhaps some that it was trained on"


def where_now(options: argparse.Namespace, run: str | None = None) -> str:
    """Say how to name the new place of a run's data. ``run`` is the command's RUN."""
    from thumbnet.invocation import command

    name = options.parser.prog.rpartition(" ")[2]
    place = ["--data"] if "--data" in options.parser._option_string_actions else []
    again = command(name, run or options.run, *place, "DATA")
    return f"If the run's data have moved, name their new place: {again}"


def same_source(first: str, second: str) -> bool:
    """Tell whether two names refer to the same data."""
    if first == second:
        return True
    return os.path.exists(first) and os.path.realpath(first) == os.path.realpath(second)


def split_of(options: argparse.Namespace, data: Data) -> str:
    """Return ``--split``, or the split to measure on: ``test``, else ``val``, else all pictures.

    Raises:
        DataError: there is no split of that name.
    """
    name: str = getattr(options, "split", None) or data.measured_split()
    data.split(name)
    return name
