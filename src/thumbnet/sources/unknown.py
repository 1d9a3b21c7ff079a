"""Say what something is that no form recognises, and what is accepted instead.

Only names and first bytes are looked at; nothing is unpacked, imported or unpickled.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from thumbnet.data import plugins
from thumbnet.errors import DataError, printable
from thumbnet.sources.folders import LAYOUTS_HELP
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.place import Place
from thumbnet.sources.split_names import split_name

ACCEPTED = (
    "Expected one of: folders (train/CLASS/* with test/CLASS/*, CLASS/* alone, or the class in file names); "
    "CSV, TSV and Parquet tables of pictures; .npz, .npy, .mat and MNIST's idx files; WebDataset's shards; "
    "archives of these (.zip, .tar, .tar.gz, .tar.xz, .tar.bz2); hf:OWNER/NAME. Each has an example in "
    "docs/howto/forms.md."
)
_WHOLE = "thumbnet classifies whole pictures"
_UNPACK = "unpack it yourself, and name the folder"
_ARRAYS = "save its arrays with numpy.savez('data.npz', x_train=..., y_train=..., x_test=..., y_test=...)"
_PICKLE = f"it is never opened here, because opening one can run any code; where you trust it, {_ARRAYS}"
_EXPORT = "write its pictures to a folder for each class"

# First bytes, what the file is, and what to do.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _ARRAYS),
    (b"SQLite format 3\0", "an SQLite database", _EXPORT),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"7z\xbc\xaf'\x1c", "a 7z archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a file compressed by Zstandard", _UNPACK),
    (b"\x04\x22\x4d\x18", "a file compressed by LZ4", _UNPACK),
    (b"\x1f\x8b", "a file compressed by gzip", _UNPACK),
    (b"BZh", "a file compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "a file compressed by xz", _UNPACK),
    (b"ARROW1", "an Arrow file", "save it as Parquet"),
    (b"PAR1", "a Parquet table without a column of pictures or paths", "name the columns that have them"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch that with git lfs pull"),
)
# Ends of names, likewise, for what has no first bytes of its own.
_ENDS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    ((".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt", ".pk"), "a Python pickle", _PICKLE),
    ((".h5", ".hdf5", ".hdf", ".keras"), "an HDF5 file", _ARRAYS),
    ((".tfrecord", ".tfrecords", ".record"), "a TFRecord file", _EXPORT),
    ((".mdb", ".lmdb"), "an LMDB database", _EXPORT),
    ((".sqlite", ".sqlite3", ".db"), "a database", _EXPORT),
    ((".rec", ".idx", ".lst"), "a file of MXNet's RecordIO", _EXPORT),
    ((".rar", ".7z", ".tar.zst", ".tzst", ".zst", ".lz4", ".z", ".lzma", ".cab"), "an archive", _UNPACK),
    ((".gz", ".bz2", ".xz"), "a compressed file", _UNPACK),
    ((".iso", ".dmg", ".img"), "a disk image", "mount it, and name the folder"),
    ((".safetensors", ".onnx", ".tflite"), "a network's weights", "name it in thumbnet predict or evaluate"),
    ((".xlsx", ".xls", ".ods"), "a spreadsheet", "save it as CSV"),
    (
        (".docx", ".doc", ".pptx", ".odt"),
        "an office document",
        "save its pictures to a folder for each class",
    ),
    ((".ipynb", ".py"), "a program", "name the data that it reads"),
    ((".yaml", ".yml", ".toml"), "a settings file", "name the data that it describes"),
    ((".part", ".crdownload", ".aria2", ".download", ".tmp"), "an unfinished download", "finish it"),
    ((".beton",), "an FFCV file", _EXPORT),
)
_ARCHIVES = (
    ".zip",
    ".tar",
    ".tgz",
    ".txz",
    ".tbz2",
    ".tar.gz",
    ".tar.xz",
    ".tar.bz2",
    ".rar",
    ".7z",
    ".tar.zst",
)
_MASKS = re.compile(
    r"(ground[ _-]?truths?|gts?|(segmentation[ _-]?)?(masks?|labels?|annotations?)|trimaps?|segmentation\w*)",
    re.I,
)
_IMAGES = re.compile(r"(images?|imgs?|jpegimages|pictures|photos|input|original\w*)", re.I)
_HEAD = 65_536


def explain_file(path: Path) -> str:
    """Explain what an unrecognised file is and what to do, in two or three sentences."""
    what, way = _identify(path)
    return f"{printable(str(path))} is {what}. {_sentence(way)}.\n{ACCEPTED}"


def not_an_archive(path: Path) -> str | None:
    """Why a file named like an archive is not one; None for archives, including damaged ones."""
    head = _head(path)
    if not head or _is_page(head) or head.startswith((b"version https://git-lfs", b"Rar!", b"7z\xbc\xaf")):
        return explain_file(path)
    return None


def explain_folder(place: Place) -> str | None:
    """What a folder without pictures of classes contains; None if nothing special is known."""
    files = _files(place)
    found = files and (_other_task(place.path, *files) or _contents(place.path, *files))
    return f"{printable(str(place.path))} {found}.\n{ACCEPTED}" if found else None


def explain_failure(place: Place, error: str) -> str:
    """Improve the message about an unreadable folder if its content is known.

    Args:
        error: what :mod:`folders` says. Where it could not find the classes, it lists what is expected.
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
    """Why a folder that looks like one of classes is none: pictures beside their masks or boxes; else None.

    Cheap: only the names of the outermost folders, and of those in a split's, are looked at.
    """
    outer = _folders(place.path)
    inner = [_folders(place.path / name) for name in outer if split_name(name)]
    return explain_folder(place) if any(map(_are_companions, [outer, *inner])) else None


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__"))]
    except OSError:
        return []


def _are_companions(names: Sequence[str]) -> bool:
    """Whether folders are called like pictures and what belongs to them, and there are no others."""
    plain = [name for name in names if _IMAGES.fullmatch(name)]
    masks = [name for name in names if _MASKS.fullmatch(name)]
    return bool(plain and masks) and len(plain) + len(masks) == len(names)


def _identify(path: Path) -> tuple[str, str]:
    """What a file is, and what to do."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        return "a file that cannot be read", error.strerror or "look at its permissions"
    if not head:
        return "an empty file", "download or make it again"
    name = path.name.lower()
    if is_picture_name(name):
        return "a single picture", (
            "to train, name a folder of many, with a folder for each class; to classify it, thumbnet "
            "predict RUN "
            f"{printable(str(path))}"
        )
    kind = plugins.kind_of(head) or plugins.kind_by_name(name)
    if kind:
        return kind.name, kind.advice
    if _is_page(head):
        return (
            "a web page, not the data",
            "the download did not work: open the address in a browser, and save the file",
        )
    for start, what, way in _STARTS:
        if head.startswith(start):
            return what, way
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        return "a Python pickle", _PICKLE
    if re.search(r"\.tfrecords?(-\d+-of-\d+)?$", name):
        return "a TFRecord file", _EXPORT
    for ends, what, way in _ENDS:
        if name.endswith(ends):
            return what, way
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive by another name", "rename it to end in .zip if it holds pictures"
    return _identify_text(head) or ("a file of a kind that is not known here", "name the pictures themselves")


def _identify_text(head: bytes) -> tuple[str, str] | None:
    if b"\0" in head:
        return None
    try:
        text = head.decode("utf-8").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not just the last character, cut in two
            return None
        text = head[: error.start].decode("utf-8").lstrip("\ufeff \t\r\n")
    if text.startswith(("{", "[")):
        if '"images"' in text and ('"annotations"' in text or '"file_name"' in text):
            return "COCO's annotations of objects", f"{_WHOLE}: {_CROP}"
        return "a JSON file", "make a CSV file of it, with a column of pictures' paths and one of classes"
    if text.startswith("<"):
        return "an XML file", "make a CSV file of it, with a column of pictures' paths and one of classes"
    return (
        "a text file",
        "a table needs a column of pictures' paths and one of classes, separated by commas or tabs",
    )


_CROP = "cut the objects out by their boxes, and save them to a folder for each class"


def _detection(root: Path, pictures: Sequence[str], others: Sequence[str]) -> str | None:
    """Whether it has boxes of objects, as COCO, YOLO and Pascal VOC have them."""
    for path in [path for path in others if path.endswith(".json")][:20]:
        head = _head(root / path)
        if b'"images"' in head and (b'"annotations"' in head or b'"file_name"' in head) and b'"' in head:
            return f"has COCO's annotations of objects ({printable(path)}). {_WHOLE}: {_CROP}"
    stems = {_stem(path) for path in pictures}
    texts = [path for path in others if path.endswith(".txt") and (_stem(path) in stems or "labels/" in path)]
    if any(
        re.match(rb"\s*\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s", _head(root / path) + b"\n") for path in texts[:20]
    ):
        return f"has YOLO's labels of objects ({printable(texts[0])}). {_WHOLE}: {_CROP}"
    for path in [path for path in others if path.endswith(".xml")][:20]:
        head = _head(root / path)
        if b"<annotation" in head and b"<object" in head:
            return f"has Pascal VOC's annotations of objects ({printable(path)}). {_WHOLE}: {_CROP}"
    return None


def _masks(pictures: Sequence[str]) -> str | None:
    """Whether it has a second picture for each, with the same name, in a folder of masks."""
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
                    f"segmentation. "
                    f"{_WHOLE}, each of one class: sort the pictures into a folder for each class"
                )
    return None


def _contents(root: Path, pictures: Sequence[str], others: Sequence[str]) -> str | None:
    """What most of its files are."""
    if not pictures and not others:
        return "is empty: no file is in it" if root.is_dir() else None
    names = {os.path.basename(path).lower() for path in others}
    if not pictures and "data.mdb" in names:
        return f"is an LMDB database. {_sentence(_EXPORT)}"
    if not pictures:
        archives = [path for path in others if path.lower().endswith(_ARCHIVES)]
        if len(archives) * 2 > len(others):
            return (
                f"has {len(archives):,} archives, such as {printable(min(archives))}, and no pictures: "
                f"name one of "
                "them, or unpack all into folders train/CLASS and test/CLASS"
            )
        kinds: Counter[tuple[str, str]] = Counter()
        for path in others[:200]:
            kinds[_identify(root / path)] += 1
        (what, way), _ = kinds.most_common(1)[0]
        example = next(path for path in sorted(others[:200]) if _identify(root / path) == (what, way))
        return (
            f"has no pictures, but {len(others):,} other file(s), such as {printable(example)}, which is "
            f"{what}. "
            f"{_sentence(way)}"
        )
    labels = [path for path in others if path.endswith(".cls")]
    if labels:
        return (
            f"has labels in files of their own, such as {printable(min(labels))}, as WebDataset's shards "
            "have them. Name the .tar file that they come from (if it was compressed, pack it without)"
        )
    if all("/" not in path for path in pictures):
        return (
            f"has {len(pictures):,} pictures, such as {printable(pictures[0])}, and nothing says their "
            f"classes: "
            "move them to a folder for each class, make a CSV file of names and classes, or, if their "
            "names say "
            "it, --label-pattern REGEX"
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
