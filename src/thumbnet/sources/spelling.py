"""When two names of classes are the same one: on macOS, in a table, or typed by another person."""

from __future__ import annotations

import unicodedata


def nfc(name: str) -> str:
    """The name in Unicode's form NFC, where an accent is part of its letter. macOS writes the other form."""
    return unicodedata.normalize("NFC", name)


def name_key(name: str) -> str:
    """A key that is the same for names that differ only in Unicode form, case or outer spaces."""
    return nfc(name).strip().casefold()
