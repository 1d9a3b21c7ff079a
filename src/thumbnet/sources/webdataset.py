"""Read WebDataset shards: tar files in which KEY.cls (or KEY.json, KEY.txt) follows KEY.jpg.

The library ``webdataset`` groups the members into samples. Pictures are not unpacked: each is read from its
shard when it is needed. Members in Python's pickle format (``.pyd``, ``.pickle``) are never read.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thumbnet.data.reading import inside, is_file, is_folder, is_not_there, read_error, version_of
from thumbnet.data.splits import Data, EncodedSplit, Split, file_stamp
from thumbnet.errors import DataError, FailedReadError, needs_extra, printable
from thumbnet.files import open_whole, read_whole, user_path
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.known_names import HUB
from thumbnet.sources.labels import as_class, number_classes
from thumbnet.sources.parts import check_parts, gaps
from thumbnet.sources.place import Place
from thumbnet.sources.split_names import note_left_out, plainer_names, split_name
from thumbnet.sources.tar import DAMAGED

LABELS = ("cls", "json", "txt", "label", "class")
_SIDECARS = frozenset(("json", "txt"))  # these may be something else, such as captions
_JSON_KEYS = ("label", "class", "cls", "class_name", "label_name", "category", "target", "class_id")
_MEMBERS_CHECKED = 12  # at the start of a tar file, to decide whether it is a shard
_MAX_SHARDS = 100_000
_PICKLED = ("pyd", "pickle", "pkl", "pth")
_MAX_LABEL = 1 << 20  # bytes in a label or in a list of class names
_BRACES = re.compile(r"\{[^{}]*(?:\.\.|,)[^{}]*\}")
_NAME_FILES = ("classes.txt", "classnames.txt", "labels.txt", "dataset_info.json")


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether ``place`` is a shard, or a folder whose first tar file is one.

    A folder without tar files may have them in the folders of its splits.
    """
    if is_file(place.path):
        return _is_shard(place.path)
    first = next(iter(_shards(place.path)), None)
    return first is not None and _is_shard(first)


def is_pattern(name: str) -> bool:
    """Whether a name stands for several shards, such as ``train-{000000..000003}.tar``."""
    return name.endswith(".tar") and _BRACES.search(name) is not None and not name.startswith(HUB)


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """The labelled pictures of a shard or of a folder of shards. See :func:`read_shards`.

    Of several names for one split, such as ``train`` and ``trainval``, the plainest counts.
    """
    shards = [place.path] if is_file(place.path) else _shards(place.path)
    names = {shard: _split_name_of(shard, shards) for shard in shards}
    plainer = plainer_names({name: found.split for name in names.values() if (found := split_name(name))})
    left_out = [shard for shard in shards if names[shard] in plainer]
    notes = []
    if left_out:
        first = left_out[0]
        notes.append(note_left_out(f"{len(left_out):,} shard(s)", first.name, plainer[names[first]]))
    chosen = [shard for shard in shards if names[shard] not in plainer]
    if not is_file(place.path):
        check_parts(chosen)
        notes += gaps(chosen)
    return read_shards(chosen, source, notes)


def read_pattern(name: str) -> Data:
    """The labelled pictures of the shards that a name with braces stands for.

    Raises:
        DataError: a shard is missing, or :func:`read_shards` cannot read them.
    """
    braceexpand = _library("braceexpand")
    try:
        shards = [user_path(each) for each in islice(braceexpand.braceexpand(name), _MAX_SHARDS)]
    except ValueError as error:
        raise DataError(f"{printable(name)}: cannot expand the braces: {error}") from None
    missing = [path for path in shards if not is_file(path)]
    if missing:
        raise DataError(
            f"{printable(name)} stands for {len(shards)} shards, but {len(missing)} of them do not exist, "
            f"such as {printable(str(missing[0]))}"
        )
    return read_shards(shards, name)


class Spot(NamedTuple):
    """Where a picture's bytes are: the index of the shard, then offset and size in bytes."""

    shard: int
    offset: int
    size: int


def read_shards(shards: Sequence[Path], source: str, notes: Sequence[str] = ()) -> Data:
    """The labelled pictures of ``shards``. The name of a shard or of its folder gives its split.

    Args:
        shards: the files.
        source: what the user named.
        notes: what the user should know already.

    Raises:
        MissingExtraError: the library ``webdataset`` is not installed.
        DataError: a shard is damaged, no picture has a label, or the labels are not classes.
    """
    group = _library("webdataset.tariterators").group_by_keys
    where = printable(source)
    names: dict[str, list[str]] = defaultdict(list)
    places: dict[str, list[Spot]] = defaultdict(list)
    values: dict[str, list[str | int]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    pickled: set[str] = set()
    extra_pictures: set[str] = set()
    for number, shard in enumerate(shards):
        named = split_name(_split_name_of(shard, shards))
        split = named.split if named else "train"
        try:
            for sample in group(_members(shard, number)):
                pictures = [(key, value) for key, value in sample.items() if isinstance(value, Spot)]
                if not pictures:
                    left_out["no picture"] += 1
                    continue
                kind, picture = pictures[0]
                extra_pictures |= {f".{key}" for key, _ in pictures[1:]}
                label = _label(sample)
                if label is None:
                    left_out["no label"] += 1
                    continue
                pickled |= {key for key in sample if key.rpartition(".")[2] in _PICKLED}
                names[split].append(f"{shard.name}/{sample['__key__']}.{kind}")
                places[split].append(picture)
                values[split].append(label)
        except OSError as error:
            raise read_error(error, shard) from None
        except (*DAMAGED, AssertionError) as error:
            raise DataError(
                f"cannot read the shard {printable(str(shard))}: "
                f"{printable(str(error.args[0]) if error.args else '')}"
            ) from None
    if not values:
        raise DataError(
            f"{where}: no picture in the shards has a label: {_counts(left_out)}. Each KEY.jpg needs a "
            f"KEY.cls, KEY.txt or KEY.json (with {_JSON_KEYS[0]!r} or {_JSON_KEYS[1]!r}) in the same shard"
        )
    if "train" not in values:
        only = next(iter(values))
        if len(values) > 1:
            raise DataError(f"{where} has shards for {' and '.join(values)}, but none for train")
        names["train"], places["train"] = names.pop(only), places.pop(only)
        values["train"] = values.pop(only)
    classes, labels, more = number_classes(values, where, _class_names(shards[0].parent))
    said = [*notes, *more]
    said += [f"{count:,} sample(s) were left out: {why}" for why, count in left_out.items()]
    if extra_pictures:
        left = ", ".join(sorted(extra_pictures))
        said.append(f"some samples have several pictures: the first is used, {left} left out")
    if pickled:
        said.append(f"members in Python's pickle format were not read: .{', .'.join(sorted(pickled))}")
    splits: dict[str, Split] = {
        split: ShardSplit(shards, names[split], places[split], labels[split]) for split in names
    }
    return Data(source, f"WebDataset, {len(shards)} shard(s)", classes, splits, tuple(said))


class ShardSplit(EncodedSplit):
    """Pictures in tar files; ``places`` says where each one is."""

    def __init__(
        self, shards: Sequence[Path], names: Sequence[str], places: Sequence[Spot], labels: np.ndarray
    ) -> None:
        self._shards, self.names, self._places = shards, names, places
        self.labels = np.asarray(labels, dtype=np.int64)

    def content(self, index: int) -> bytes:
        shard, offset, size = self._places[index]
        try:
            with open_whole(self._shards[shard]) as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            reason = f"its shard cannot be read: {error.strerror or error}"
            raise FailedReadError(self.names[index], reason) from None
        if len(content) < size:
            raise FailedReadError(self.names[index], "its shard has become shorter since it was listed")
        return content

    def subset(self, indices: np.ndarray) -> ShardSplit:
        names, places = [self.names[i] for i in indices], [self._places[i] for i in indices]
        return ShardSplit(self._shards, names, places, self.labels[indices])

    def stamp(self) -> Iterable[bytes]:
        for name, label, place in zip(self.names, self.labels, self._places, strict=True):
            yield file_stamp(name, label, place.size)

    def content_stamp(self) -> Iterable[bytes]:
        """The paths and versions of the shards, then the places of the pictures in them."""
        for number in sorted({place.shard for place in self._places}):
            shard = self._shards[number]
            try:
                state = shard.stat()
            except OSError as error:
                if not is_not_there(error):
                    raise read_error(error, shard) from None
                yield f"{shard}\0gone\n".encode(errors="surrogateescape")
            else:
                yield f"{shard.resolve()}\0{version_of(state)}\n".encode(errors="surrogateescape")
        yield "\n".join(map(str, self._places)).encode()


def _shards(folder: Path) -> list[Path]:
    """The tar files in a folder, sorted; if it has none, those in the folders of its splits."""
    entries = inside(folder)
    tars = [path for path in entries if path.suffix == ".tar" and is_file(path)]
    if not tars:
        inner = [path for path in entries if split_name(path.name) and is_folder(path)]
        tars = [path for each in inner for path in inside(each) if path.suffix == ".tar" and is_file(path)]
    return sorted(tars)


def _is_shard(path: Path) -> bool:
    """Whether the first members include a picture and a label with the same key.

    Texts and JSON next to pictures in several class folders are no labels: the folder that the archive
    unpacks to is read by its class folders, too.
    """
    seen: dict[str, set[str]] = defaultdict(set)
    labels: set[str] = set()
    folders: set[str] = set()
    # The members before the damage are enough.
    with open_whole(path) as file, suppress(*DAMAGED), tarfile.open(fileobj=file, mode="r:") as tar:
        for number, member in enumerate(tar):
            if number >= _MEMBERS_CHECKED and not (folders and labels and labels <= _SIDECARS):
                break
            key, _, suffix = _base(member.name)
            if not member.isreg():
                continue
            is_picture = is_picture_name(f"x.{suffix}")
            if is_picture:
                folder = key.rpartition("/")[0].rpartition("/")[2]
                folders |= {folder} if folder not in ("", ".") and split_name(folder) is None else set()
            if number < _MEMBERS_CHECKED:
                seen[key].add("picture" if is_picture else suffix)
                labels |= seen[key] & set(LABELS) if "picture" in seen[key] else set()
            if len(folders) > 1 and number >= _MEMBERS_CHECKED:
                break
    return bool(labels - _SIDECARS) or (bool(labels) and len(folders) < 2)


def _base(name: str) -> tuple[str, str, str]:
    """The key of a member, all its suffixes, and the last suffix in lower case."""
    folder, slash, last = name.rpartition("/")
    key, _, suffixes = last.partition(".")
    return folder + slash + key, suffixes, suffixes.rpartition(".")[2].lower()


def _members(shard: Path, number: int) -> Iterator[dict[str, Any]]:
    """The members of a shard for ``webdataset``: a picture as its Spot, a label as bytes, others as None."""
    size = shard.stat().st_size
    with open_whole(shard) as whole, tarfile.open(fileobj=whole, mode="r:") as tar:
        for member in tar:
            name = member.name
            if not member.isreg() or os.path.basename(name).startswith(".") or name.startswith("__"):
                continue
            if member.issparse() or member.offset_data + member.size > size:
                raise ValueError(f"the member {name!r} is incomplete")
            suffix = _base(name)[2]
            value: object = None
            if is_picture_name(f"x.{suffix}"):
                value = Spot(number, member.offset_data, member.size)
            elif suffix in LABELS and member.size <= _MAX_LABEL:
                file = tar.extractfile(member)
                value = file.read() if file else b""
            yield {"fname": name, "data": value, "__url__": str(shard)}


def _label(sample: dict[str, Any]) -> str | int | None:
    """The label of a sample: an integer or a word from .cls or .txt, or from a known key in .json."""
    for wanted in LABELS:
        for key, content in sample.items():
            if key.rpartition(".")[2] == wanted and isinstance(content, bytes):
                value: object = content
                if wanted == "json":
                    value = _from_json(content)
                label = as_class(value)
                if label is not None:
                    return label
    return None


def _from_json(content: bytes) -> object:
    try:
        described = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(described, dict):
        return described
    return next((described[key] for key in _JSON_KEYS if key in described), None)


def _split_name_of(shard: Path, shards: Sequence[Path]) -> str:
    """The name that tells a shard's split: its own or, if there are several folders, that of its folder."""
    if split_name(shard.stem) is None and len({path.parent for path in shards}) > 1:
        return shard.parent.name
    return shard.stem


def _class_names(folder: Path) -> tuple[str, ...]:
    """Class names from a list in the folder of the shards or in its parent; empty if there is no list."""
    for place in (folder, folder.parent):
        for name in _NAME_FILES:
            path = place / name
            if is_file(path) and path.stat().st_size < _MAX_LABEL:
                text = read_whole(path).decode("utf-8-sig", "replace")
                found = (
                    _names_in_json(text) if name.endswith(".json") else [t.strip() for t in text.splitlines()]
                )
                names = tuple(each for each in found if each)
                if names and len(set(names)) == len(names):
                    return names
    return ()


def _names_in_json(text: str) -> list[str]:
    """The class names in a ``dataset_info.json`` file: those of its first feature with any."""
    try:
        features = json.loads(text)["features"]
        for feature in features.values():
            if isinstance(feature, dict) and isinstance(feature.get("names"), list):
                return [str(name) for name in feature["names"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return []


def _counts(left_out: Counter[str]) -> str:
    return ", ".join(f"{count:,} samples have {why}" for why, count in left_out.items()) or "they are empty"


def _library(name: str) -> Any:
    from importlib import import_module

    with needs_extra("reading WebDataset shards", "formats"):
        return import_module(name)
