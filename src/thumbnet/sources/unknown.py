"""Explain what an unrecognised file or folder is, and what is accepted instead.

This looks only at names and first bytes. It unpacks, imports and unpickles nothing.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from thumbnet.data import plugins
from thumbnet.data.reading import folders_in, is_folder, reads
from thumbnet.errors import DataError, printable
from thumbnet.files import open_whole
from thumbnet.invocation import command
from thumbnet.sources.folders import LAYOUTS_HELP
from thumbnet.sources.index import is_picture_name, is_picture_start
from thumbnet.sources.place import Place
from thumbnet.sources.split_names import split_name

ACCEPTED = (
    "Expected one of: folders (train/CLASS/* with test/CLASS/*, CLASS/* alone, or the class in file names); "
    "CSV, TSV and Parquet tables of pictures; .npz, .npy, .mat and MNIST's idx files; WebDataset shards; "
    "archives of these (.zip, .tar, .tar.gz, .tar.xz, .tar.bz2); hf:OWNER/NAME. Each has an example in "
    "docs/howto/forms.md."
)
_WHOLE = "thumbnet classifies whole pictures"
_IDX = (
    "put them into one folder, as train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte "
    "and t10k-labels-idx1-ubyte"
)
_UNPACK = "unpack it yourself and name the folder"

# First bytes of a file, what it is, and what to do.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", plugins.ARRAYS_ADVICE),
    (b"SQLite format 3\0", "an SQLite database", plugins.FILES_ADVICE),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"7z\xbc\xaf'\x1c", "a 7z archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard-compressed file", _UNPACK),
    (b"\x04\x22\x4d\x18", "an LZ4-compressed file", _UNPACK),
    (b"\x1f\x8b", "a gzip-compressed file", _UNPACK),
    (b"BZh", "a bzip2-compressed file", _UNPACK),
    (b"\xfd7zXZ\0", "an xz-compressed file", _UNPACK),
    (b"ARROW1", "an Arrow file", "save it as Parquet"),
    (
        b"\x93NUMPY",
        "a NumPy array",
        "put the arrays into one folder, as x_train.npy, y_train.npy, x_test.npy and y_test.npy, or as one "
        "file per class, and name that folder",
    ),
    (
        b"PAR1",
        "a Parquet table",
        "name its folder, which may hold the tables of all splits; if the table has columns of paths and "
        "classes, name these, too: --path-column NAME --label-column NAME",
    ),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "fetch the file with git lfs pull",
    ),
)
# The same by the end of the file name, for formats without characteristic first bytes.
_ENDS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    ((".pt", ".pth", ".joblib", ".ckpt"), "a Python pickle", plugins.PICKLE_ADVICE),
    ((".keras",), "an HDF5 file", plugins.ARRAYS_ADVICE),
    ((".db",), "a database", plugins.FILES_ADVICE),
    ((".rec", ".idx", ".lst"), "an MXNet RecordIO file", plugins.FILES_ADVICE),
    ((".zst", ".lz4", ".z", ".lzma"), "an archive", _UNPACK),
    ((".gz", ".bz2", ".xz"), "a compressed file", _UNPACK),
    ((".iso", ".dmg", ".img"), "a disk image", "mount it and name the folder"),
    (
        (".safetensors", ".onnx", ".tflite"),
        "a file of network weights",
        "pass it to the command predict or evaluate",
    ),
    ((".xlsx", ".xls", ".ods"), "a spreadsheet", "save it as CSV"),
    (
        (".docx", ".doc", ".pptx", ".odt"),
        "an office document",
        "save its pictures to one folder per class",
    ),
    ((".ipynb", ".py"), "a program", "name the data that it reads"),
    ((".yaml", ".yml", ".toml"), "a settings file", "name the data that it describes"),
    ((".part", ".crdownload", ".aria2", ".download", ".tmp"), "an unfinished download", "finish it"),
    ((".beton",), "an FFCV file", plugins.FILES_ADVICE),
)
_PART = re.compile(r"\.(zip|7z|rar|tar|tgz|gz|bz2|xz|zst)\.\d{2,3}$|\.z\d\d$|\.part\d+\.rar$|\.r\d\d$")
_MASKS = re.compile(
    r"(ground[ _-]?truths?|gts?|(segmentation[ _-]?)?(masks?|labels?|annotations?)|trimaps?|segmentation\w*)",
    re.I,
)
_IMAGES = re.compile(r"(images?|imgs?|jpegimages|pictures|photos|input|original\w*)", re.I)
_HEAD = 65_536


def explain_file(path: Path) -> str:
    """Explain what an unrecognised file is and what to do."""
    what, advice = _identify(path)
    return f"{printable(str(path))} is {what}. {_sentence(advice)}.\n{ACCEPTED}"


def not_an_archive(path: Path) -> str | None:
    """Why a file named like an archive is not one; None for archives, including damaged ones.

    Raises:
        FailedReadError: the system failed to read it.
    """
    with reads(path), open_whole(path) as file:
        head = file.read(_HEAD)
    if not head or _is_page(head) or head.startswith((b"version https://git-lfs", b"Rar!", b"7z\xbc\xaf")):
        return explain_file(path)
    return None


def explain_folder(place: Place) -> str | None:
    """What a folder without labelled pictures contains, and what to do; None if that is unclear."""
    files = _files(place)
    found = files and (_other_task(place.path, *files) or _contents(place.path, *files))
    return f"{printable(str(place.path))} {found}.\n{ACCEPTED}" if found else None


def explain_failure(place: Place, error: str) -> str:
    """Improve the error about a folder if its content is recognised.

    Args:
        error: the message of :mod:`thumbnet.sources.folders`. It contains ``LAYOUTS_HELP`` if no classes
            were found.
    """
    if LAYOUTS_HELP in error:
        return explain_folder(place) or error.replace(LAYOUTS_HELP, ACCEPTED)
    files = _files(place)
    found = files and _other_task(place.path, *files)
    return f"{error}\n{printable(str(place.path))} {found}." if found else error


def _files(place: Place) -> tuple[list[str], list[str]] | None:
    """The pictures in a folder and below, and the other files; None if they cannot be listed."""
    index = place.index()
    try:
        pictures = [path.replace(os.sep, "/") for path in index.pictures_below("")]
    except DataError:
        return None
    return pictures, [path.replace(os.sep, "/") for path in index.ignored]


def _other_task(root: Path, pictures: Sequence[str], others: Sequence[str]) -> str | None:
    return _detection(root, pictures, others) or _masks(pictures)


def refusal(place: Place) -> str | None:
    """Why folders that look like classes are not: they hold pictures and their masks or boxes. Else None.

    This is cheap for ordinary folders: it first checks the names of the outer folders and of those in splits.
    """
    outer = _folders(place.path)
    inner = [_folders(place.path / name) for name in outer if split_name(name)]
    return explain_folder(place) if any(map(_are_companions, [outer, *inner])) else None


def _folders(path: Path) -> list[str]:
    return [each.name for each in folders_in(path) if not each.name.startswith((".", "__"))]


def _are_companions(names: Sequence[str]) -> bool:
    """Whether the names are those of image folders and of mask or label folders, and no others."""
    plain = [name for name in names if _IMAGES.fullmatch(name)]
    masks = [name for name in names if _MASKS.fullmatch(name)]
    return bool(plain and masks) and len(plain) + len(masks) == len(names)


def _identify(path: Path) -> tuple[str, str]:
    """What a file is, and what to do."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        return "a file that cannot be read", error.strerror or "check its permissions"
    if not head:
        return "an empty file", "download or create it again"
    name = path.name.lower()
    if is_picture_name(name):
        return "a single picture", (
            f"to classify it: {command('predict', 'RUN', path)}\n"
            "To train, name a folder with one folder of pictures per class"
        )
    by_name = plugins.kind_by_name(name)
    kind = plugins.kind_of(head) or (None if by_name in plugins.CONTAINERS else by_name)
    if kind:
        return kind.name, kind.advice
    if _is_page(head):
        return (
            "a web page, not the data",
            "the download failed: open the address in a browser and save the file",
        )
    if _PART.search(name):
        return (
            "one part of an archive in several",
            "join all of them, or unpack them yourself and name the folder",
        )
    for start, what, advice in _STARTS:
        if head.startswith(start):
            return what, advice
    if is_picture_start(head):
        return "a picture, but its name does not end like one", "rename such files to end in .jpg or .png"
    if re.match(rb"\0\0[\x08\x0c][\1-\4]\0", head):
        return "an idx file under another name than MNIST's", _IDX
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        return "a Python pickle", plugins.PICKLE_ADVICE
    if re.search(r"\.tfrecords?-\d+-of-\d+$", name):
        by_name = plugins.TFRECORD
    if by_name:
        return by_name.name, by_name.advice
    for ends, what, advice in _ENDS:
        if name.endswith(ends):
            return what, advice
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive with another suffix", "rename it to end in .zip if it holds pictures"
    return _identify_text(head) or ("a file of an unknown kind", "name the pictures themselves")


def _identify_text(head: bytes) -> tuple[str, str] | None:
    if b"\0" in head:
        return None
    try:
        text = head.decode("utf-8").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # more than a character that the head's end cut in two
            return None
        text = head[: error.start].decode("utf-8").lstrip("\ufeff \t\r\n")
    if text.startswith(("{", "[")):
        if '"images"' in text and ('"annotations"' in text or '"file_name"' in text):
            return "a file of COCO object annotations", f"{_WHOLE}: {_CROP}"
        return "a JSON file", "convert it to CSV, with a column of picture paths and one of classes"
    if text.startswith("<"):
        return "an XML file", "convert it to CSV, with a column of picture paths and one of classes"
    return (
        "a text file",
        "a table needs a column of picture paths and one of classes, separated by commas or tabs",
    )


_CROP = "crop the objects by their boxes and save them to one folder per class"


def _detection(root: Path, pictures: Sequence[str], others: Sequence[str]) -> str | None:
    """What to say about a folder with object boxes in the form of COCO, YOLO or Pascal VOC; else None."""
    for path in [path for path in others if path.endswith(".json")][:20]:
        head = _head(root / path)
        if b'"images"' in head and (b'"annotations"' in head or b'"file_name"' in head) and b'"' in head:
            return f"has COCO object annotations ({printable(path)}). {_WHOLE}: {_CROP}"
    stems = {_stem(path) for path in pictures}
    texts = [path for path in others if path.endswith(".txt") and (_stem(path) in stems or "labels/" in path)]
    if any(
        re.match(rb"\s*\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s", _head(root / path) + b"\n") for path in texts[:20]
    ):
        return f"has YOLO object labels ({printable(texts[0])}). {_WHOLE}: {_CROP}"
    for path in [path for path in others if path.endswith(".xml")][:20]:
        head = _head(root / path)
        if b"<annotation" in head and b"<object" in head:
            return f"has Pascal VOC object annotations ({printable(path)}). {_WHOLE}: {_CROP}"
    return None


def _masks(pictures: Sequence[str]) -> str | None:
    """What to say about a folder with masks of the same names as its pictures; else None."""
    parents: dict[str, set[str]] = defaultdict(set)
    for path in pictures:
        for part in path.split("/")[:-1]:
            parents[part].add(_stem(path))
    masks = [name for name in parents if _MASKS.fullmatch(name)]
    plain = [name for name in parents if _IMAGES.fullmatch(name)]
    for mask in masks:
        for name in plain:
            shared = {re.sub(r"[_-]?(mask|label|seg|gt)\w*$", "", stem, flags=re.I) for stem in parents[mask]}
            if len(shared & parents[name]) * 2 > len(parents[mask]):
                return (
                    f"has pictures in {printable(name)}/ and masks for them in {printable(mask)}/, for "
                    f"segmentation. {_WHOLE}, each of one class: sort the pictures into one folder per class"
                )
    return None


def _contents(root: Path, pictures: Sequence[str], others: Sequence[str]) -> str | None:
    """What most files of a folder are, and what to do; None if that is unclear."""
    if not pictures and not others:
        return "is empty: it has no files in it" if is_folder(root) else None
    names = {os.path.basename(path).lower() for path in others}
    batches = sorted(name for name in names if re.fullmatch(r"data_batch_[1-5](\.bin)?", name))
    if not pictures and batches:
        lacking = [name for n in range(1, 6) if (name := re.sub(r"[1-5]", str(n), batches[0])) not in names]
        return f"has CIFAR-10's {batches[0]}, but not {', '.join(lacking)}. Unpack its archive again"
    if not pictures and "data.mdb" in names:
        return f"is an LMDB database. {_sentence(plugins.FILES_ADVICE)}"
    if not pictures:
        archives = [path for path in others if plugins.kind_by_name(path) is plugins.ARCHIVE]
        if len(archives) * 2 > len(others):
            return (
                f"has {len(archives):,} archives, such as {printable(min(archives))}, and no pictures: "
                "name one of them, or unpack all into folders train/CLASS and test/CLASS"
            )
        kinds: Counter[tuple[str, str]] = Counter()
        for path in others[:200]:
            kinds[_identify(root / path)] += 1
        (what, advice), _ = kinds.most_common(1)[0]
        example = next(path for path in sorted(others[:200]) if _identify(root / path) == (what, advice))
        return (
            f"has no pictures, but {len(others):,} other file(s), such as {printable(example)}, which is "
            f"{what}. {_sentence(advice)}"
        )
    labels = [path for path in others if path.endswith(".cls")]
    if labels:
        return (
            f"has labels in .cls files, such as {printable(min(labels))}, like an unpacked WebDataset shard. "
            "Name its .tar file instead; decompress that first if it is compressed"
        )
    if all("/" not in path for path in pictures):
        return (
            f"has {len(pictures):,} pictures, such as {printable(pictures[0])}, but no classes for them: "
            "move them to one folder per class, write a CSV file of names and classes, or, if the names "
            "contain the class, use --label-pattern REGEX"
        )
    return None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _is_page(head: bytes) -> bool:
    start = head[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html"))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
