"""Recognise files that Pillow reads only with a plug-in or not at all, and say what to do.

An installed plug-in is loaded when the first file with its signature appears. Ordinary pictures never get
here.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import IO

from thumbnet.errors import MissingPluginError, UnknownFormatError, printable

HEAD_BYTES = 512
MAX_JPEG_HEADER = 1 << 20  # how many bytes to search for a JPEG's frame header
UNKNOWN = "not a picture in a format that thumbnet reads"


@dataclass(frozen=True)
class Kind:
    """A format that Pillow does not read by itself.

    Attributes:
        name: its name in messages, with the article.
        suffixes: file suffixes, in lower case.
        way: how to convert it, as a sentence without a full stop.
        format, module, package: Pillow's name for the format, the plug-in's module, and the package to
            install; empty if thumbnet knows no plug-in.
    """

    name: str
    suffixes: tuple[str, ...]
    way: str = ""
    format: str = ""
    module: str = ""
    package: str = ""

    @property
    def advice(self) -> str:
        """What to do with such a file."""
        if self.package:
            return f"to read it, pip install {self.package}"
        return self.way


HEIC = Kind("a HEIC picture", (".heic", ".heif", ".hif"), "", "HEIF", "pillow_heif", "pillow-heif")
AVIF = Kind("an AVIF picture", (".avif",), "", "AVIF", "pillow_avif", "pillow-avif-plugin")
JXL = Kind("a JPEG XL picture", (".jxl",), "", "JXL", "pillow_jxl", "pillow-jxl-plugin")
RAW = Kind(
    "a camera's raw picture",
    (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    "convert it to PNG or JPEG first, with darktable or the package rawpy",
)
PSD = Kind("a Photoshop document", (".psd", ".psb"), "export it as PNG first")
XCF = Kind("a GIMP document", (".xcf",), "export it as PNG first")
SVG = Kind("a vector drawing (SVG)", (".svg", ".svgz"), "render it as PNG first, with Inkscape or cairosvg")
PDF = Kind("a PDF document", (".pdf",), "export its pages as PNG first, with pdftoppm -png")
EPS = Kind("a PostScript document", (".eps", ".ps", ".ai"), "render it as PNG first, with Ghostscript")
DICOM = Kind("a DICOM file", (".dcm", ".dicom"), "convert it to PNG first, with the package pydicom")
NIFTI = Kind(
    "a NIfTI volume",
    (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"),
    "save its slices as PNG first, with the package nibabel or SimpleITK",
)
FITS = Kind("a FITS file", (".fits", ".fit"), "convert it to TIFF first, with the package astropy")
HDR = Kind("a high-dynamic-range picture", (".exr", ".hdr"), "tone-map it and save it as PNG first")
OTHER = Kind(
    "a picture in a format that thumbnet does not read",
    (".dds", ".jxr", ".wdp", ".jls", ".pcx", ".sgi", ".rgb", ".xpm", ".wmf", ".emf", ".bpg", ".qoi", ".flif"),
    "convert it to PNG first, with ImageMagick",
)
SLIDE = Kind(
    "a microscope's slide or stack",
    (".svs", ".ndpi", ".czi", ".lif", ".nd2", ".mrxs"),
    "cut it into tiles and save them as PNG first, with OpenSlide or Bio-Formats",
)
VIDEO = Kind(
    "a video",
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"),
    "save its frames as pictures first: ffmpeg -i VIDEO -r 1 %05d.png",
)
PICKLE_ADVICE = (
    "opening it could run any code, so thumbnet never does; if you trust it, save its arrays with "
    "numpy.savez('data.npz', x_train=..., y_train=..., x_test=..., y_test=...)"
)
ARRAYS_ADVICE = PICKLE_ADVICE.partition("trust it, ")[2]
FILES_ADVICE = "write its pictures to one folder per class"
ARCHIVE = Kind(
    "an archive",
    (
        *(".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz", ".tar.zst"),
        *(".tzst", ".rar", ".7z", ".cab"),
    ),
    "if it holds pictures, unpack it first and name the folder",
)
HDF5 = Kind("an HDF5 file", (".h5", ".hdf5", ".hdf"), ARRAYS_ADVICE)
TFRECORD = Kind("a TFRecord file", (".tfrecord", ".tfrecords", ".record"), FILES_ADVICE)
LMDB = Kind("an LMDB database", (".mdb", ".lmdb"), FILES_ADVICE)
SQLITE = Kind("an SQLite database", (".sqlite", ".sqlite3"), FILES_ADVICE)
PICKLE = Kind("a Python pickle", (".pkl", ".pickle", ".pk"), PICKLE_ADVICE)
KINDS = (
    HEIC,
    AVIF,
    JXL,
    RAW,
    PSD,
    XCF,
    SVG,
    PDF,
    EPS,
    DICOM,
    NIFTI,
    FITS,
    HDR,
    OTHER,
    SLIDE,
    VIDEO,
)
CONTAINERS = (ARCHIVE, HDF5, TFRECORD, LMDB, SQLITE, PICKLE)  # their first bytes say more than their names

# The brands in the `ftyp` box at the start of the file.
_HEIC_BRANDS = frozenset(b"heic heix hevc hevx heim heis hevm hevs mif1 msf1".split())
_AVIF_BRANDS = frozenset([b"avif", b"avis"])
_STARTS: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\xff\x0a", JXL),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", JXL),
    (8, b"CR\x02", RAW),
    (0, b"FUJIFILMCCD-RAW", RAW),
    (0, b"IIRO", RAW),
    (0, b"IIU\0", RAW),
    (0, b"8BPS", PSD),
    (0, b"gimp xcf", XCF),
    (0, b"%PDF-", PDF),
    (0, b"%!PS", EPS),
    (0, b"\xc5\xd0\xd3\xc6", EPS),
    (128, b"DICM", DICOM),
    (344, b"n+1\0", NIFTI),
    (344, b"ni1\0", NIFTI),
    (0, b"NRRD0", NIFTI),
    (0, b"SIMPLE  =", FITS),
    (0, b"v/1\x01", HDR),
    (0, b"#?RADIANCE", HDR),
    (0, b"#?RGBE", HDR),
    (0, b"DDS ", OTHER),
    (0, b"II\xbc\x01", OTHER),
    (0, b"qoif", OTHER),
    (0, b"BPG\xfb", OTHER),
    (0, b"FLIF", OTHER),
    (0, b"\x1aE\xdf\xa3", VIDEO),
    (8, b"AVI LIST", VIDEO),
    (0, b"\0\0\x01\xba", VIDEO),
    (0, b"FLV\x01", VIDEO),
)


def kind_of(head: bytes) -> Kind | None:
    """Recognise one of ``KINDS`` by the first ``HEAD_BYTES`` of a file; None for all others, such as JPEG."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand == b"crx ":
            return RAW
        # A file with the generic brand mif1 names its codec among the compatible brands.
        if brand in _AVIF_BRANDS or (brand in (b"mif1", b"msf1") and b"avif" in head[12:64]):
            return AVIF
        return HEIC if brand in _HEIC_BRANDS else VIDEO
    for at, start, kind in _STARTS:
        if head.startswith(start, at):
            return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return SVG if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text) else None


def kind_by_name(name: str) -> Kind | None:
    """Recognise one of ``KINDS`` or ``CONTAINERS`` by the file's name; None for all others, such as JPEG."""
    lower = name.lower()
    return next((kind for kind in (*KINDS, *CONTAINERS) if lower.endswith(kind.suffixes)), None)


@cache
def installed(kind: Kind) -> bool:
    """Whether the plug-in for ``kind`` is installed, without loading it."""
    try:
        return bool(kind.module) and find_spec(kind.module) is not None
    except (ImportError, ValueError):
        return False


def readable_suffixes() -> frozenset[str]:
    """The suffixes of all formats whose plug-in is installed."""
    return frozenset(suffix for kind in KINDS if installed(kind) for suffix in kind.suffixes)


def fingerprint() -> str:
    """A key that changes when a plug-in is installed or removed. Caches depend on it."""
    return " ".join(kind.module for kind in KINDS if installed(kind))


def load_formats(head: bytes) -> list[str]:
    """Load the plug-in for a file that begins with ``head``; the formats it adds to Pillow, empty if none."""
    kind = kind_of(head)
    if kind is None or not installed(kind):
        return []
    return [kind.format] if _load(kind) else []


@cache
def _load(kind: Kind) -> bool:
    try:
        module = import_module(kind.module)
        if kind is HEIC:
            module.register_heif_opener()
    except Exception:  # a plug-in that does not work with this Pillow, or lacks its library
        return False
    return True


def refusal(stream: IO[bytes], name: str) -> UnknownFormatError:
    """The error for a picture, at the current position of ``stream``, that Pillow cannot read."""
    head = stream.read(HEAD_BYTES)
    kind = kind_of(head)
    if kind is not None and kind.package and not installed(kind) and not _in_pillow(kind):
        return MissingPluginError(name, kind.name, kind.package)
    return UnknownFormatError(name, _reason(head, stream))


def _in_pillow(kind: Kind) -> bool:
    return kind is AVIF and find_spec("PIL._avif") is not None  # a build of Pillow may lack it


def _reason(head: bytes, stream: IO[bytes]) -> str:
    """Why Pillow cannot read a picture that begins with ``head``, and what to do; ``stream`` has the rest."""
    if head.startswith(b"\xff\xd8"):
        special = _special_jpeg(head + stream.read(MAX_JPEG_HEADER))
        return special or UNKNOWN
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the picture itself: fetch the picture with git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not a picture: the download failed"
    kind = kind_of(head)
    if kind is None:
        return UNKNOWN
    if _in_pillow(kind):
        return f"{kind.name}, but Pillow cannot read it: it is damaged or unusual"
    if kind.package:
        return f"{kind.name}, but the plug-in {kind.package} cannot read it: it is damaged or unusual"
    return f"{kind.name}; {kind.advice}"


def _special_jpeg(data: bytes) -> str | None:
    """Say what is unusual about a JPEG file, by its frame header; None for ordinary and damaged files."""
    at = 2
    while at + 5 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (0xC3, 0xC7, 0xCB, 0xCF):
            return f"a lossless JPEG with {data[at + 4]} bits per sample: convert it to PNG first"
        if marker == 0xF7:
            return "a JPEG-LS picture: convert it to PNG first, with the package imagecodecs"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits = data[at + 4]
            if bits == 8:
                return None
            return (
                f"a JPEG with {bits} bits per sample, and thumbnet reads only 8: convert it to a "
                "16-bit PNG or TIFF, or to an 8-bit JPEG, first"
            )
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def special_jpeg(stream: IO[bytes]) -> str | None:
    """Say why Pillow could not decode a JPEG; None if its header is ordinary."""
    data = stream.read(MAX_JPEG_HEADER)
    return _special_jpeg(data) if data.startswith(b"\xff\xd8") else None


def notes_on(paths: Iterable[str]) -> list[str]:
    """Notes on skipped files that a plug-in, a conversion or unpacking would make readable.

    Returns:
        One note per format, with the number of files, an example, and what to do.
    """
    found: dict[Kind, list[str]] = defaultdict(list)
    for path in paths:
        kind = kind_by_name(os.path.basename(path))
        if kind is not None:
            found[kind].append(path)
    return [
        f"{'' if kind is ARCHIVE else 'warning: '}{len(names)} file(s) skipped, each {kind.name} by its "
        f"name, such as {printable(min(names))}: {kind.advice.replace('read it', 'read them')}"
        for kind, names in found.items()
    ]
