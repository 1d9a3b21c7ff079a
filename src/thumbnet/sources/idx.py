"""Read MNIST's idx files (LeCun), plain or gzipped: MNIST, Fashion-MNIST, KMNIST, EMNIST, QMNIST.

The first four bytes give the type of the values and the number of dimensions. Then come the sizes, in
big-endian, and the values. Sizes that the file is too small for are refused before any memory is taken.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.reading import inside, is_file, is_folder, read_error, read_text
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, printable
from thumbnet.files import open_whole
from thumbnet.invocation import command
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.archives import MAX_EXPANSION
from thumbnet.sources.arrays import Arrays, data_from_arrays
from thumbnet.sources.download import DownloadProgress, download
from thumbnet.sources.place import Place

_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<split>train|t10k|test|val)[-_.](?P<kind>images|labels)[-_.]idx[123][-_.](ubyte|int)"
    r"(\.gz)?",
    re.IGNORECASE,
)
_SPLITS = {"train": "train", "t10k": "test", "test": "test", "val": "val"}
_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}
_BLOCK = 1 << 20

FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


@dataclass(frozen=True)
class Published:
    """A data set that is downloaded by name.

    Attributes:
        url: the folder with its four files.
        sha256: the SHA-256 digest of each file. Torchvision checks the same files with MD5, which is weaker.
        kept_by_torchvision: the folder below its root where torchvision puts them.
        mirror: another source of the same data, as ``thumbnet train`` takes it.
    """

    url: str
    sha256: dict[str, str]
    kept_by_torchvision: str
    mirror: str | None = None


def _files(*digests: str) -> dict[str, str]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return dict(zip((f"{name}-ubyte.gz" for name in names), digests, strict=True))


PUBLISHED = {
    "mnist": Published(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        _files(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        "MNIST/raw",
        "hf:ylecun/mnist",
    ),
    "fashion-mnist": Published(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        _files(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        "FashionMNIST/raw",
        "hf:zalando-datasets/fashion_mnist",
    ),
    "kmnist": Published(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        _files(
            "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        ),
        "KMNIST/raw",
    ),
}


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether ``place`` is an idx file, or a folder with idx files in it or where torchvision puts them."""
    return bool(_find(place.path))


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """The pictures and labels in idx files, in memory.

    Raises:
        DataError: a file is missing, damaged or not what its name says, or the folder has several data sets.
    """
    sets = _find(place.path)
    if len(sets) > 1:
        some = sorted(str(files.get(("train", "images"), *files.values())) for files in sets.values())
        raise DataError(
            f"{place.path} has several data sets. Choose one by naming one of its files, such as {some[0]}"
        )
    ((prefix, files),) = sets.items()
    arrays = Arrays()
    for split in dict.fromkeys(split for split, _ in files):
        missing = [kind for kind in ("images", "labels") if (split, kind) not in files]
        if missing:
            found = next(path for (one, _), path in files.items() if one == split)
            problem = f"the {missing[0]} of {split} are missing: their file belongs next to {found}"
            if split == "train":
                raise DataError(problem)
            arrays.notes.append(f"warning: {split} is left out, because {problem}")
            continue
        images = read_idx(files[split, "images"])
        labels = read_idx(files[split, "labels"])
        if images.ndim != 3:
            raise DataError(
                f"{files[split, 'images']} has {images.ndim} dimension(s), expected 3 for pictures"
            )
        # QMNIST stores eight numbers per picture; the first is the class.
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] else labels
        if prefix.startswith("emnist"):
            images = images.transpose(0, 2, 1)
        arrays.images[split], arrays.labels[split] = images, labels.astype(np.int64)
    layout = f"{_title(prefix, place, source)}: idx files"
    folder = next(iter(files.values())).parent
    _name_classes(arrays, prefix, folder, layout)
    return data_from_arrays(arrays, source, layout, str(folder))


def load_published(name: str, cache: Path, settings: DataSettings, progress: DownloadProgress | None) -> Data:
    """A data set of :data:`PUBLISHED`; downloads it unless torchvision or an earlier call has done so."""
    published = PUBLISHED[name]
    folder = cache / published.kept_by_torchvision
    if set(_split_names(_find(folder))) != {"train", "test"}:
        folder = cache / name
        try:
            for file, sha256 in published.sha256.items():
                download(published.url + file, folder / file, sha256, progress)
        except DataError as error:
            if published.mirror is None:
                raise
            raise DataError(
                f"{error}\nIf the server is slow or cannot be reached, use the mirror: "
                f"{command('train', published.mirror)}"
            ) from None
    return read(Place(folder), name, settings)


def read_idx(path: Path) -> np.ndarray:
    """The array in an idx file, uint8 or big-endian int32. Takes no more memory than the content needs.

    Raises:
        DataError: the file is not an idx file, is cut short or too long, or is a decompression bomb.
    """
    try:
        size = path.stat().st_size
        with open_whole(path) as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        limit = MAX_EXPANSION * size + _BLOCK if packed else size
        with (
            open_whole(path) as plain,
            gzip.GzipFile(fileobj=plain) if packed else nullcontext(plain) as file,
        ):
            head = file.read(4)
            kind = _TYPES.get(head[2]) if len(head) == 4 and head[:2] == b"\0\0" else None
            if kind is None or not 1 <= head[3] <= 4:
                found = f"begins with {head.hex(' ')}" if head else "is empty"
                raise DataError(f"{path} is not an idx file of bytes or 32-bit integers: it {found}")
            sizes = file.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise DataError(f"{path} is cut short: its header is incomplete")
            shape = struct.unpack(f">{head[3]}I", sizes)
            if 0 in shape:
                raise DataError(f"{path} declares {' x '.join(map(str, shape))} values: it is empty")
            expected = math.prod(shape) * kind.itemsize
            if expected > limit:
                raise DataError(
                    f"{path} declares {' x '.join(map(str, shape))} values, more than its {size:,} bytes "
                    "can hold"
                )
            content = bytearray()
            while len(content) <= expected and (block := file.read(min(_BLOCK, expected + 1 - len(content)))):
                content += block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    except OSError as error:
        raise read_error(error, path) from None
    if len(content) != expected:
        state = "is cut short" if len(content) < expected else "has more"
        raise DataError(f"{path} declares {' x '.join(map(str, shape))} values, but {state}")
    return np.frombuffer(content, dtype=kind).reshape(shape)


_Files = dict[tuple[str, str], Path]  # (split, "images" or "labels") to file


def _find(path: Path) -> dict[str, _Files]:
    """The files of each data set, by the prefix of their names."""
    if is_file(path):
        named = _NAME.fullmatch(path.name)
        if named is None:
            return {}
        prefix = named["prefix"].lower()
        return {key: files for key, files in _in_folder(path.parent).items() if key == prefix}
    for folder in (path, path / "raw", path / "MNIST" / "raw"):
        found = _in_folder(folder)
        if found:
            return found
    return {}


def _in_folder(folder: Path) -> dict[str, _Files]:
    found: dict[str, _Files] = {}
    for path in inside(folder):
        named = _NAME.fullmatch(path.name)
        if named is None:
            continue
        if is_folder(path):  # some tools unpack each file into a folder with the same name
            path = path / path.name
        if is_file(path):
            key = (_SPLITS[named["split"].lower()], named["kind"].lower())
            found.setdefault(named["prefix"].lower(), {}).setdefault(key, path)
    return found


def _split_names(sets: dict[str, _Files]) -> list[str]:
    return [split for files in sets.values() for split, _ in files]


def _title(prefix: str, place: Place, source: str) -> str:
    """The name of the data set, as far as file, folder and source names tell."""
    if prefix.startswith("emnist"):
        return "EMNIST " + prefix.removeprefix("emnist").strip("-_.")
    said = "/".join((source, *place.path.parts[-4:], prefix)).lower()
    if "fashion" in said:
        return "Fashion-MNIST"
    return "KMNIST" if "kmnist" in said or "kuzushiji" in said else "MNIST"


def _name_classes(arrays: Arrays, prefix: str, folder: Path, layout: str) -> None:
    """Add class names, from EMNIST's mapping file or the known data set: idx files hold only numbers."""
    if prefix.startswith("emnist"):
        arrays.notes.append("EMNIST stores its pictures transposed: they were turned upright")
        mapping = folder / f"{prefix}mapping.txt"
        if is_file(mapping):
            arrays.class_names, numbers = _read_mapping(mapping)
            for split, labels in arrays.labels.items():
                unknown = sorted(set(labels.tolist()) - set(numbers))
                if unknown:
                    raise DataError(
                        f"{mapping} has no character for the label(s) {', '.join(map(str, unknown[:10]))}"
                    )
                table = np.full(max(numbers) + 1, -1, dtype=np.int64)
                table[numbers] = np.arange(len(numbers))
                arrays.labels[split] = table[labels]
        else:
            arrays.notes.append(f"{mapping.name} is missing: the class names are the label numbers")
        return
    names = {"Fashion-MNIST": FASHION, "KMNIST": KUZUSHIJI}.get(layout.partition(":")[0])
    if names and all(int(part.max(initial=0)) < len(names) for part in arrays.labels.values()):
        arrays.class_names = names
        arrays.notes.append(
            f"the class names are those of {layout.partition(':')[0]}; the files hold only numbers"
        )


def _read_mapping(path: Path) -> tuple[list[str], list[int]]:
    """Class names and their labels. A line has a label and one or two character codes; the first counts."""
    try:
        lines = [line.split() for line in read_text(path, "ascii").splitlines() if line.strip()]
        names = [chr(int(codes[0])) for _, *codes in lines]
        numbers = [int(label) for label, *_ in lines]
    except OSError as error:
        raise read_error(error, path) from None
    except (ValueError, IndexError, OverflowError) as error:
        raise DataError(
            f"{path} is not EMNIST's mapping of labels to characters: {printable(str(error))}"
        ) from None
    if not numbers or min(numbers) < 0 or max(numbers) > 255 or len(set(numbers)) != len(numbers):
        raise DataError(f"{path} is not EMNIST's mapping of labels to characters")
    order = np.argsort(numbers)
    return [names[i] for i in order], [numbers[i] for i in order]
