"""Load what the user names as :class:`Data`: a folder, file, archive, ``mnist``, ``hf:...`` or arrays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.correct import apply_corrections
from thumbnet.data.corrections import Labels, corrections_of
from thumbnet.data.held_out import with_groups_of_new, with_held_out
from thumbnet.data.reading import exists, is_file, is_folder, reads
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError, FailedReadError, printable
from thumbnet.files import cache_folder, user_path
from thumbnet.invocation import command
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import (
    cifar,
    folders,
    hub,
    idx,
    known_names,
    listed,
    manifest,
    mat,
    npz,
    parquet,
    pixel_tables,
    stl10,
    tiny_imagenet,
    unknown,
    webdataset,
)
from thumbnet.sources.archives import is_archive_name, note_on_names, unpack
from thumbnet.sources.download import DownloadProgress, download
from thumbnet.sources.folders import wrapped
from thumbnet.sources.known_names import HUB
from thumbnet.sources.label_lists import check_several
from thumbnet.sources.place import Form, Place
from thumbnet.sources.python import load_python
from thumbnet.sources.split_names import SPLITS
from thumbnet.sources.table_files import why_not_read
from thumbnet.sources.unread_tables import notes_on_unread_tables, notes_on_unused_tables

NAMED = ("digits", *cifar.ARCHIVES, *idx.PUBLISHED)
# Other spellings, in the form that :func:`_canonical` compares: lower case without ``-`` and ``_``.
_ALSO = {name.replace("-", ""): name for name in NAMED} | {
    "fmnist": "fashion-mnist",
    "kuzushijimnist": "kmnist",
}


def load_data(
    source: Any,
    *,
    data_dir: str | Path | None = None,
    settings: DataSettings | None = None,
    progress: DownloadProgress | None = None,
    one_class: bool = False,
    labels: Labels | None = None,
    **changes: Any,
) -> Data:
    """Load the splits and class names of a data set.

    >>> data = load_data("digits")
    >>> len(data.splits["train"]), len(data.splits["test"]), data.class_names[:3]
    (1438, 359, ('0', '1', '2'))

    Args:
        source: ``"digits"``; ``"cifar10"``, ``"cifar100"``, ``"mnist"``, ``"fashion-mnist"`` or ``"kmnist"``
            (downloaded once); a folder, a file, or an archive of one (see the modules of
            :mod:`thumbnet.sources` for their forms); ``"hf:OWNER/NAME"``; or Python objects such as
            ``(images, labels)`` (see :mod:`thumbnet.sources.python`). Data that are loaded already are
            returned as they are.
        data_dir: the folder for downloads and unpacked archives; the user's cache folder by default.
        settings: a recipe's ``data`` settings, of which those about reading data and setting pictures aside
            are used.
        progress: called with (bytes so far, total bytes) during a download.
        one_class: whether a single class is enough, as it is for an evaluation.
        labels: corrections of labels, such as the ``labels.csv`` that ``thumbnet review`` writes: see
            :func:`thumbnet.data.corrections.corrections_of` and
            :func:`thumbnet.data.correct.apply_corrections`. They are applied after pictures have been set
            aside as ``test`` or ``val``, so these stay the same pictures.
        changes: single settings that override ``settings``, such as ``val_fraction=0.1``,
            ``test_fraction=0.2``, ``folds=5, fold=1``, ``split_seed=1``, ``label_pattern=...``: see
            :class:`~thumbnet.recipes.settings.DataSettings`.

    Returns:
        The data, with all these settings in :attr:`Data.settings`: a run that is trained on them records the
        settings, so that everything that loads its data again splits them in the same way.

    Raises:
        DataError: the data cannot be found, downloaded or understood; the message says what to do. Or they
            are loaded already, and settings or labels are given.
        FailedReadError: the system failed to read a file, so it is unknown what the data are.
        RecipeError: a setting is out of range.
        TypeError: there is no such setting.
    """
    if isinstance(source, Data):
        if settings is not None or labels is not None or changes:
            raise DataError(
                f"{printable(source.source)} is loaded already, so settings and labels come too late. "
                "Name the data themselves, as in thumbnet.load_data('pictures', val_fraction=0.1)"
            )
        return source
    chosen = replace(settings or DataSettings(), **changes)
    corrections = None if labels is None else corrections_of(labels)  # before anything is downloaded
    cache = user_path(data_dir) if data_dir else cache_folder()
    if not isinstance(source, str | Path):
        manifest.check_used(None, chosen, (), "the Python object")
        name, data = "", load_python(source, multilabel=chosen.multilabel)
    elif (name := _canonical(str(source))) in NAMED:
        manifest.check_used(None, chosen, (), name)
        data = _load_named(name, cache, chosen, progress)
    elif name.startswith(HUB):
        manifest.check_used(None, chosen, _USED[hub], name)
        data = hub.load_hub(name.removeprefix(HUB), name, cache if data_dir else None, chosen)
    else:
        data = _load_path(user_path(name), name, cache, chosen)
    data = replace(data, splits={name: data.splits[name] for name in SPLITS if name in data.splits})
    check_several(data.source, data.layout, data.multilabel, chosen.multilabel)
    if not one_class:
        data.check_trainable()
    groups_in_names = bool(chosen.group_by) and "train" not in data.groups
    data = with_held_out(
        data,
        chosen.test_fraction,
        chosen.val_fraction,
        chosen.split_seed,
        chosen.group_by,
        chosen.test_fold,
    )
    if corrections is not None:
        data = apply_corrections(data, corrections, Path())
        if groups_in_names and data.corrected is not None and data.corrected.added:
            data = with_groups_of_new(data, chosen.group_by, data.corrected.added)
        if not one_class:
            data.check_trainable()
    return replace(data, settings=data.settings or chosen)


@contextmanager
def unpacking_ahead(source: str | None, data_dir: str | Path | None) -> Iterator[None]:
    """In this block, a thread unpacks ``source`` if it is an archive; :func:`load_data` waits for the end.

    Errors are not reported here, because :func:`load_data` meets them again. If the block ends first, because
    of another error, so does the thread, and it leaves nothing.
    """
    path, ended = user_path(source or ""), threading.Event()
    if not is_archive_name(path.name):
        yield
        return
    cache = user_path(data_dir) if data_dir else cache_folder()

    def work() -> None:
        with suppress(DataError, FailedReadError, OSError):
            is_shard = not is_file(path) or webdataset.recognise(Place(path), DataSettings())
            if not is_shard and not unknown.not_an_archive(path):
                unpack(path, cache, ahead=ended)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)


# Tried in this order: the first form that recognises a place reads it. Folders of pictures come last, because
# their errors explain what is accepted.
FORMS: tuple[Form, ...] = (
    cifar,
    stl10,
    idx,
    npz,
    mat,
    tiny_imagenet,
    webdataset,
    hub,
    listed,
    parquet,
    pixel_tables,
    manifest,
    folders,
)
# The settings about where classes stand that forms use.
_USED: dict[Form, tuple[str, ...]] = {
    hub: ("path_column", "label_column"),
    listed: ("label_column",),
    parquet: ("label_column",),
    pixel_tables: ("label_column",),
    manifest: manifest.COLUMNS_AND_PICTURES,
    folders: manifest.NAMES,
}


def can_be_loaded_again(source: str) -> bool:
    """Whether the data can be loaded again by name or path. Data in memory cannot."""
    return source in NAMED or source.startswith(HUB) or exists(user_path(source))


def _canonical(name: str) -> str:
    """``mnist`` for ``MNIST``, ``fashion-mnist`` for ``fashion_mnist``, unless a file has that name."""
    spelt = name.lower().replace("-", "").replace("_", "")
    if name in NAMED or spelt not in _ALSO or exists(name):
        return name
    return _ALSO[spelt]


def _load_path(path: Path, name: str, cache: Path, settings: DataSettings) -> Data:
    if not name:
        raise DataError(
            "the name of the data is empty: name a folder, a file or a data set (. for this folder)"
        )
    with reads(path):
        if webdataset.is_pattern(name) and not exists(path):
            manifest.check_used(None, settings, (), name)
            return webdataset.read_pattern(name)
        if is_archive_name(path.name) and is_file(path) and not webdataset.recognise(Place(path), settings):
            return _load_archive(path, name, cache, settings)
        if exists(path):
            return _read(Place(path), name, settings)
    raise DataError(known_names.explain(name, NAMED))


def _load_archive(path: Path, name: str, cache: Path, settings: DataSettings) -> Data:
    wrong = unknown.not_an_archive(path)
    if wrong:
        raise DataError(wrong)
    unpacked = unpack(path, cache)

    def shown(message: str) -> str:
        """A message that names the archive, not the folder that it was unpacked to."""
        return message.replace(printable(str(unpacked.folder)), printable(name))

    try:
        data = _read(Place(unpacked.folder, unpacked), name, settings)
    except DataError as error:
        if type(error) is DataError:
            raise DataError(shown(str(error))) from None
        raise
    notes = tuple(map(shown, data.notes))
    return replace(data, notes=(*notes, *note_on_names(path, data.class_names)))


def _read(place: Place, name: str, settings: DataSettings) -> Data:
    """Read a place with the first form that recognises it, or a folder in it that wraps everything.

    A folder is read by its names, whatever else it is, if the settings ask for that.
    """
    by_names = is_folder(place.path) and bool(settings.given(*manifest.NAMES))
    if by_names:
        manifest.check_one_way(settings)
    levels = [] if by_names else list(wrapped(place))
    for form in FORMS[:-1]:
        for level in levels:
            if form.recognise(level, settings):
                manifest.check_used(level, settings, _USED.get(form, ()), name)
                return form.read(level, name, settings)
    if not folders.recognise(place, settings):
        raise DataError(unknown.explain_file(place.path))
    manifest.check_used(place, settings, _USED[folders], name)
    wrong = None if by_names else unknown.refusal(place)
    if wrong:
        raise DataError(wrong)
    try:
        data = folders.read(place, name, settings)
    except DataError as error:
        tables = why_not_read(place, settings) if folders.LAYOUTS_HELP in str(error) else ""
        told = str(error) if by_names else unknown.explain_failure(place, str(error))
        raise DataError(told + tables) from None
    unread = [note for level in levels for note in notes_on_unread_tables(level, name, data, settings)]
    unread += [note for level in levels for note in notes_on_unused_tables(level, data, settings)]
    return replace(data, notes=(*data.notes, *unread))


def _load_named(name: str, cache: Path, settings: DataSettings, progress: DownloadProgress | None) -> Data:
    if name == "digits":
        return _load_digits()
    if name in cifar.ARCHIVES:
        return _load_cifar(name, cache, settings, progress)
    return idx.load_published(name, cache, settings, progress)


def _load_digits() -> Data:
    """scikit-learn's handwritten digits: 8x8 pixels with grey levels 0 to 16, enlarged to 32x32 RGB."""
    with (resources.files("thumbnet.sources") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        grey, labels = arrays["images"], arrays["labels"]
    levels = np.minimum(grey.astype(np.uint16) * 16, 255).astype(np.uint8)
    images = np.repeat(np.repeat(levels, 4, axis=1), 4, axis=2)
    images = np.repeat(images[..., None], 3, axis=3)
    layout = "1,797 handwritten digits (embedded)"
    names = tuple(str(digit) for digit in range(10))
    return Data("digits", layout, names, {"train": ArraySplit(images, labels, "digits")})


def _load_cifar(name: str, cache: Path, settings: DataSettings, progress: DownloadProgress | None) -> Data:
    """Load CIFAR from ``cache``, packed or unpacked, or else download the official binary archive."""
    archive = cifar.ARCHIVES[name]
    python_folder = archive.folder.replace("batches-bin", "batches-py").replace("100-binary", "100-python")
    for folder in (cache / archive.folder, cache / python_folder):
        batches = cifar.find_batches(folder)
        if batches is not None:
            return cifar.load_batches(batches, name)
    binary = cache / archive.url.rsplit("/", 1)[1]
    python = binary.with_name(binary.name.replace("-binary", "-python"))
    packed = next((path for path in (binary, python) if is_file(path)), None)
    if packed is None:
        mirror = "hf:uoft-cs/" + name
        try:
            packed = download(archive.url, binary, archive.sha256, progress)
        except DataError as error:
            raise DataError(
                f"{error}\nIf the official host is slow or down, use the mirror: {command('train', mirror)}"
            ) from None
    return _load_archive(packed, name, cache, settings)


def where_again(source: str) -> str | None:
    """A source from which the data can be loaded in any working folder; None if they were in memory."""
    if not can_be_loaded_again(source):
        return None
    is_path = source not in NAMED and not source.startswith(HUB)
    return str(user_path(source).resolve()) if is_path else source


def data_dir_again(data_dir: str | Path | None) -> str | None:
    """The absolute path of a folder for downloads; None for the user's cache folder."""
    return str(user_path(data_dir).resolve()) if data_dir else None
