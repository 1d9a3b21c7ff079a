"""When two names of classes or files are the same one: on macOS, in a table, or typed by another person."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def nfc(name: str) -> str:
    """The name in Unicode's form NFC, where an accent is part of its letter. macOS writes the other form."""
    return unicodedata.normalize("NFC", name)


def places_in(known: Iterable[str], names: Iterable[str]) -> list[int | None]:
    """The position of each name among the ``known`` ones, in either Unicode form; None if it is not there."""
    exact = {name: place for place, name in enumerate(known)}
    alike = {nfc(name): place for name, place in exact.items()}
    return [exact.get(name, alike.get(nfc(name))) for name in names]


def file_key(name: str) -> str:
    """A key that is the same for names of files that differ only in Unicode form or case."""
    return nfc(name).casefold()


def name_key(name: str) -> str:
    """A key that is the same for names of classes that differ only in Unicode form, in case, or in spaces.

    Between words, spaces count only as far as there are any.
    """
    return file_key(" ".join(name.split()))
