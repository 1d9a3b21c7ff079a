"""Load the data that a trained network is used on: its own, split as in the training, or others.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.data.calibration import KEEPS_CLASSES, with_calibration_split
from thumbnet.data.corrections import Correction
from thumbnet.data.held_out import NOTHING_SET_ASIDE, SHARED_GROUPS, VAL_FRACTION, with_held_out
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, UnusedSettingError
from thumbnet.files import user_path
from thumbnet.recipes.settings import AUTO, DataSettings
from thumbnet.runs.finding import are_gone, is_run, same_source
from thumbnet.runs.provenance import recipe_of
from thumbnet.runs.weights_info import WeightsInfo, public_name
from thumbnet.sources.group_columns import UNUSED_GROUPS
from thumbnet.sources.known_names import HUB
from thumbnet.sources.load import load_data, where_again
from thumbnet.sources.manifest import COLUMNS_AND_PICTURES, NAMES
from thumbnet.sources.python import load_python

if TYPE_CHECKING:
    from thumbnet.runs.folder import Run


@dataclass(frozen=True)
class Wanted:
    """The data to use a trained network on.

    Attributes:
        source: a path or a name, as for :func:`thumbnet.load_data`.
        settings: how the network's own data are read and split.
        run: the network's run; None if the network is a file or on the Hub.
        fingerprint: that of the network's training data; "" if it is not known.
        trained_on: the name of these data, see :func:`source_name`; "" if it is not known.
        corrections: corrections of labels to use instead of the run's; None for none.
        data_dir: the folder for downloads; None for the run's, or else the user's cache.
        given: the settings that the caller names. Other data are read by these if ``settings`` do not fit
            them.
        tell: hears what the user should know. A text that begins with ``warning: `` means that the result may
            be wrong.
    """

    source: str
    settings: DataSettings
    run: Run | None = None
    fingerprint: str = ""
    trained_on: str = ""
    corrections: Sequence[Correction] | None = None
    data_dir: str | None = None
    given: DataSettings = field(default_factory=DataSettings)
    tell: Callable[[str], None] = lambda _: None

    def load(self, settings: DataSettings, labels: Sequence[Correction] | None, other: bool = False) -> Data:
        """Load the data by ``settings`` and correct their labels. ``other`` data may have a single class."""
        return load_data(
            self.source, data_dir=self.data_dir, settings=settings, one_class=other, labels=labels
        )


def load_wanted(wanted: Wanted) -> Data:
    """Load the data that a network is used on.

    The run's own data are split and corrected as in training, unless ``corrections`` name other ones. They
    are recognised in another place if they have moved, and a warning says if they have changed. If the
    network is a file or on the Hub, its training data are recognised by their fingerprint, if they are split
    as the run in whose folder the file lies split them, or else as a training splits them by itself. Other
    data keep their own splits; if they have none, a split called ``all`` has all pictures. A warning says if
    these may be the training data all the same, because they have the same name. Other data are in the groups
    that the ``group_by`` of ``given`` finds, or else that of ``settings``, if it finds some.

    Raises:
        DataError: the data cannot be loaded, or ``given`` has a ``group_by`` and they are the network's own.
    """
    data, group_by = None, wanted.given.group_by
    if wanted.run is not None and wanted.run.settings.get("data") is not None:
        data = _trained_data(wanted, wanted.run)
    elif wanted.run is None and wanted.fingerprint:
        data = _data_of_network(wanted)
    if data is None:
        return _other_data(wanted)
    if group_by not in ("", wanted.settings.group_by):
        raise DataError(
            f"--group-by {group_by}: {wanted.source} holds the network's own data, which are divided and "
            "measured in the groups of its training. Leave the option out, or train with it"
        )
    return data


def settings_for(network: str, info: WeightsInfo) -> DataSettings:
    """Return the settings by which a network's data are read: those of its run's recipe, if there is one.

    A network that gives several labels reads any table as one of several labels, also if each row has one.

    Args:
        network: a run's folder, a file of weights, an exported file or ``hf:OWNER/NAME``; empty if it is not
            known.
        info: the network's description.

    Raises:
        RecipeError: the run's recipe cannot be read.
    """
    settings = recipe_of(network).data if network else DataSettings()
    return replace(settings, multilabel=True) if info.multilabel else settings


def data_to_measure(
    data: Any, network: str, info: WeightsInfo, split: str | None, tell: Callable[[str], None]
) -> Data:
    """The data that a network is measured on, given in any form.

    ``tell`` hears if the training may have seen pictures of the split.

    Args:
        data: a path or a name, for :func:`thumbnet.load_data`; a data set; or data in memory, for
            :func:`~thumbnet.sources.python.load_python`.
        network, info: see :func:`settings_for`.
        tell: see :class:`Wanted`.
        split: the split to measure on; by default that of :meth:`~thumbnet.data.splits.Data.measured_split`.

    Raises:
        DataError: the data cannot be loaded.
        RecipeError, RunError: the run's recipe or settings cannot be read.
    """
    if isinstance(data, str | Path):
        settings, run = settings_for(network, info), open_run(network)
        return load_wanted(Wanted(str(data), settings, run, info.fingerprint, info.source, tell=tell))
    if not isinstance(data, Data):
        return load_python(data, info.class_names, info.multilabel or AUTO, info.preprocessing.range)
    run, chosen = open_run(network), split or data.measured_split()
    if run is not None and split_otherwise(data, run, chosen):
        tell(
            f"warning: the data in {data.source} have changed since {run.path} was trained on them, or were "
            f"loaded in another way, so it may have been trained on pictures of {chosen}. To load them as in "
            "the training, give evaluate their name"
        )
    return data


def open_run(network: str) -> Run | None:
    """The run if ``network`` is a run's folder, else None."""
    if not network or network.startswith(HUB) or not is_run(user_path(network)):
        return None
    from thumbnet.runs.folder import Run

    return Run(Path(network))


def source_name(source: str) -> str:
    """The name of training data in the description of a network, without their local folder."""
    return public_name(where_again(source) or source)


def split_otherwise(data: Data, run: Run, split: str) -> bool:
    """Whether ``data`` are a run's own, but its training may have seen the pictures of a split of them.

    The split then differs from the one on which the run was measured, and thumbnet set it aside, or it is
    ``train``.

    Args:
        data: data that were loaded by other means than :func:`load_wanted`.
        run: the run.
        split: the split to measure on.
    """
    settings = run.settings
    own, here = settings.get("data"), where_again(data.source)
    if own is None or here is None or not same_source(own, here):
        return False
    if split not in (*data.set_aside, "train"):
        return False
    if settings.get("fingerprint") in (None, data.fingerprint()):
        return False
    return settings.get("measured_fingerprint") != data.fingerprint(split)


def _trained_data(wanted: Wanted, run: Run) -> Data | None:
    """Load the data as in training if they are the run's, perhaps in a new place; else return None."""
    own, fingerprint = str(run.settings["data"]), run.settings.get("fingerprint")
    source, corrections = wanted.source, wanted.corrections
    same = same_source(source, own)
    if not same and not are_gone(own):
        return None
    wanted = replace(wanted, data_dir=wanted.data_dir or run.settings.get("data_dir"))
    labels = run.corrections if corrections is None or not same else corrections
    try:
        data = wanted.load(wanted.settings, labels)
    except DataError:
        if not same:
            return None
        raise
    if same:
        if corrections is None and fingerprint not in (None, data.fingerprint()):
            wanted.tell(_changed(data, run))
    else:
        if data.fingerprint() != fingerprint:
            return None
        wanted.tell(f"{source} holds the run's data, which are split as in the training")
        if corrections is not None:
            data = wanted.load(wanted.settings, corrections)
    return with_calibration_split(data, wanted.settings, keep_classes=KEEPS_CLASSES in run.settings)


def _data_of_network(wanted: Wanted) -> Data | None:
    """Load the data as in training if they are what a network in a file was trained on; else return None.

    The file does not say which pictures were set aside. So its fingerprint is compared with that of the data
    as a training splits them by itself: without and with a val split, which ``--patience`` needs.
    """
    settings, corrections = wanted.settings, wanted.corrections

    def as_trained(labels: Sequence[Correction] | None) -> Data | None:
        """The data if the network was trained with these ``labels``. Only one copy is in memory at a time."""
        data, asked = wanted.load(settings, labels), settings
        if data.fingerprint() != wanted.fingerprint and "val" not in data.splits:
            asked = replace(settings, val_fraction=VAL_FRACTION)
            if labels is None:
                data = with_held_out(data, 0, VAL_FRACTION, settings.split_seed, settings.group_by)
            else:  # val has to be set aside before the labels are corrected
                del data
                data = wanted.load(asked, labels)
        if data.fingerprint() != wanted.fingerprint:
            return None
        if labels is not corrections:
            del data
            data = wanted.load(asked, corrections)
        return data

    corrected: list[Sequence[Correction] | None] = [None] if corrections is None else [None, corrections]
    for labels in corrected:
        with suppress(DataError):  # these may be other data, which need not be split like that
            data = as_trained(labels)
            if data is not None:
                wanted.tell(f"{wanted.source} holds the network's training data, split as in the training")
                return with_calibration_split(data, settings)
    return None


def _other_data(wanted: Wanted) -> Data:
    """Load data that the network was not trained on: whole, or in the splits that they come with."""
    undivided = replace(wanted.settings, val_fraction=0.0, test_fraction=0.0, folds=0, fold=0)
    settings = replace(undivided, group_by=wanted.given.group_by)
    data = None
    if not settings.group_by and undivided.group_by:
        with suppress(DataError):  # the run's groups need not be found in other data
            data = wanted.load(undivided, wanted.corrections, other=True)
            wanted.tell(f"the pictures of {wanted.source} are in groups, by the run's --group-by")
    if data is None:
        data = _undivided(wanted, settings)
    # Other data are not divided, so nothing is said about how they are, or how to divide them.
    notes = [text for text in data.notes if text != NOTHING_SET_ASIDE]
    notes = [text for text in notes if UNUSED_GROUPS not in text and SHARED_GROUPS not in text]
    splits, groups = dict(data.splits), dict(data.groups)
    if set(splits) == {"train"}:
        splits["all"] = splits["train"]
        if "train" in groups:
            groups["all"] = groups["train"]
        count = f"{len(splits['all']):,}"
        notes.append(f"using all {count} pictures: {wanted.source} has no splits of its own")
    if wanted.fingerprint and data.fingerprint() == wanted.fingerprint:
        notes.append("warning: the network was trained on these pictures")
    elif "all" in splits and _may_be_trained_on(wanted):
        notes.append(_same_name(wanted))
    for text in notes:
        wanted.tell(text)
    return replace(data, splits=splits, notes=tuple(notes), groups=groups)


def _undivided(wanted: Wanted, settings: DataSettings) -> Data:
    """Load other data by ``settings``; if these do not fit them, by what the caller names alone."""
    try:
        return wanted.load(settings, wanted.corrections, other=True)
    except DataError as error:  # the run's columns and names need not be those of other data
        kept = {key: getattr(wanted.given, key) for key in (*NAMES, *COLUMNS_AND_PICTURES)}
        asked = replace(settings, **kept)
        if asked == settings:
            raise
        try:
            return wanted.load(asked, wanted.corrections, other=True)
        except DataError as second:
            raise (second if isinstance(error, UnusedSettingError) else error) from None


def _may_be_trained_on(wanted: Wanted) -> bool:
    """Whether data that were not recognised have the name of the training data, and may be these."""
    if wanted.run is not None and not are_gone(wanted.run.settings.get("data")):
        return False  # the run's own data are elsewhere, so these are others
    return bool(wanted.trained_on) and source_name(wanted.source) == wanted.trained_on


def _same_name(wanted: Wanted) -> str:
    """Warn that the network may have been trained on the data, of which all pictures are measured."""
    text = (
        f"warning: the network was trained on data of the same name, {wanted.trained_on}. If they are these, "
        "changed or divided in another way, it knows most of these pictures, and the result is too good"
    )
    if wanted.run is not None:
        return text
    return f"{text}. Only a run's folder tells how its data were divided: name that instead of the file"


def _changed(data: Data, run: Run) -> str:
    """Warn that a run's data are no longer those that it was trained on."""
    text = f"warning: the data in {data.source} have changed since {run.path} was trained on them"
    if not data.set_aside:
        return text
    split = " and ".join(data.set_aside)
    return f"{text}, so other pictures are set aside as {split}, perhaps some that it was trained on"
