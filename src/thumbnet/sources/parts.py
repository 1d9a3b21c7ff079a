"""Files that are numbered parts of one data set: which of them are lacking."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from thumbnet.errors import DataError, printable, some_of

_OF = re.compile(r"(?P<start>.*?)(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>.*)", re.DOTALL | re.ASCII)
_LAST_NUMBER = re.compile(r"(?P<start>.*?)(?P<number>\d{1,9})(?P<end>\D*)", re.DOTALL | re.ASCII)
_SHOWN = 3  # lacking parts


def check_parts(files: Iterable[Path]) -> None:
    """Refuse files such as ``train-00000-of-00002.parquet`` if others of the same name are lacking.

    Raises:
        DataError: a download has not brought all of them. The message names some that are lacking.
    """
    parts: dict[tuple[Path, str, str], dict[int, str]] = defaultdict(dict)
    for path in files:
        if found := _OF.fullmatch(path.name):
            parts[path.parent, found["start"], found["count"]][int(found["number"])] = found["end"]
    for (folder, start, count), there in parts.items():
        lacking = [number for number in range(int(count)) if number not in there]
        if lacking:
            end = next(iter(there.values()))
            end = end if end.startswith(".") else "*"  # each of the Hub's files may have a hash of its own
            names = [printable(f"{start}{number:05}-of-{count}{end}") for number in lacking]
            raise DataError(
                f"{printable(str(folder))} has {len(there):,} of the {int(count):,} files of "
                f"{printable(start).rstrip('-_.') or 'the data'}, and lacks {some_of(names, _SHOWN)}. Repeat "
                "the download. If part of the data is enough, rename the files: train_0, train_1, ..."
            )


def gaps(files: Iterable[Path]) -> list[str]:
    """Warnings about numbers that are lacking, if files are numbered from 0 or 1 on."""
    parts: dict[tuple[Path, str, str], dict[int, str]] = defaultdict(dict)
    for path in files:
        if found := _LAST_NUMBER.fullmatch(path.name):
            parts[path.parent, found["start"], found["end"]][int(found["number"])] = found["number"]
    notes = []
    for (_, start, end), there in parts.items():
        first, last = min(there), max(there)
        count = last + 1 - first - len(there)
        if first in (0, 1) and count:
            lacking = next(number for number in range(first, last) if number not in there)
            name = f"{start}{lacking:0{len(there[first])}}{end}"
            notes.append(
                f"warning: {count:,} file(s) are lacking between {printable(start + there[first] + end)} and "
                f"{printable(start + there[last] + end)}, such as {printable(name)}. If a download failed, "
                "repeat it"
            )
    return notes
