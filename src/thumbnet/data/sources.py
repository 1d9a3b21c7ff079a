"""From what the user names to :class:`Data`: ``digits``, ``cifar10``, a folder, an archive, ``hf:...``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from thumbnet.data import cifar
from thumbnet.data.archives import ARCHIVE_SUFFIXES, is_archive_name, unpack
from thumbnet.data.download import Progress, download
from thumbnet.data.folders import load_folder
from thumbnet.data.hub import load_hub
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError, nearest
from thumbnet.files import cache_folder

NAMED = ("digits", "cifar10", "cifar100")


def load_data(
    source: str | Path,
    *,
    data_dir: str | Path | None = None,
    val_fraction: float = 0.0,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    progress: Progress | None = None,
) -> Data:
    """The splits and class names of a data set.

    >>> data = load_data("digits")
    >>> len(data.splits["train"]), len(data.splits["test"]), data.class_names[:3]
    (1438, 359, ('0', '1', '2'))

    Args:
        source: ``"digits"``; ``"cifar10"`` or ``"cifar100"`` (downloaded once); a folder or an archive
            of one (see :mod:`thumbnet.data.folders` for its shapes); ``"hf:OWNER/NAME"``.
        data_dir: where downloads and unpacked archives are kept; the user's cache folder by default.
        val_fraction: part of ``train`` to set aside as ``val``, stratified.
        test_fraction: part to set aside as ``test`` where there is neither ``test`` nor ``val``.
        split_seed: seed of both.
        progress: called with (bytes so far, bytes in all) during a download.

    Raises:
        DataError: it cannot be found, fetched or understood; the message says what to do.
    """
    cache = Path(data_dir).expanduser() if data_dir else cache_folder()
    name = str(source)
    if name == "digits":
        data = _load_digits()
    elif name in cifar.ARCHIVES:
        data = _load_cifar(name, cache, progress)
    elif name.startswith("hf:"):
        data = load_hub(name.removeprefix("hf:"), name, Path(data_dir) if data_dir else None)
    else:
        data = _load_path(Path(name).expanduser(), name, cache)
    return data.with_held_out(test_fraction, val_fraction, split_seed)


def _load_path(path: Path, name: str, cache: Path) -> Data:
    try:
        if path.is_dir():
            return load_folder(path, name)
        if path.is_file() and is_archive_name(path.name):
            return _load_archive(path, name, cache)
        if path.exists():
            known = ", ".join(ARCHIVE_SUFFIXES)
            raise DataError(f"{path} is a file, but not an archive known here ({known})")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    raise DataError(f"there is no data set, folder or archive {name!r}. {nearest(name, NAMED)}")


def _load_archive(path: Path, name: str, cache: Path) -> Data:
    unpacked = unpack(path, cache)
    return load_folder(unpacked.folder, name, unpacked)


def _load_digits() -> Data:
    """scikit-learn's handwritten digits, 8x8 with grey levels 0 to 16, shown as 32x32 RGB."""
    with (resources.files("thumbnet.data") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        grey, labels = arrays["images"], arrays["labels"]
    levels = np.minimum(grey.astype(np.uint16) * 16, 255).astype(np.uint8)
    images = np.repeat(np.repeat(levels, 4, axis=1), 4, axis=2)
    images = np.repeat(images[..., None], 3, axis=3)
    layout = "1,797 handwritten digits (embedded)"
    names = tuple(str(digit) for digit in range(10))
    return Data("digits", layout, names, {"train": ArraySplit(images, labels, "digits")})


def _load_cifar(name: str, cache: Path, progress: Progress | None) -> Data:
    """The official binary archive: as found unpacked or packed in ``cache``, else downloaded."""
    archive = cifar.ARCHIVES[name]
    python_folder = archive.folder.replace("batches-bin", "batches-py").replace("100-binary", "100-python")
    for folder in (cache / archive.folder, cache / python_folder):
        batches = cifar.find_batches(folder)
        if batches is not None:
            return cifar.load_batches(batches, name)
    binary = cache / archive.url.rsplit("/", 1)[1]
    python = binary.with_name(binary.name.replace("-binary", "-python"))
    packed = next((path for path in (binary, python) if path.is_file()), None)
    if packed is None:
        mirror = "hf:uoft-cs/" + name
        try:
            packed = download(archive.url, binary, archive.sha256, progress)
        except DataError as error:
            raise DataError(
                f"{error}\nIf the official host is slow or away, take the mirror: thumbnet train {mirror}"
            ) from None
    return _load_archive(packed, name, cache)
