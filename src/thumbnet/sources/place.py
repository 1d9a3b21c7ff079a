"""Where data are stored: a file or folder, possibly unpacked from an archive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from thumbnet.data.splits import Data
from thumbnet.errors import DataError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.index import Index
from thumbnet.sources.packed import Unpacked


@dataclass(frozen=True)
class Place:
    """A file or folder that the user named, or the folder that an archive was unpacked to.

    Attributes:
        path: its path on disk. The pictures of an archive are in its pack instead; :meth:`index` finds both.
        unpacked: the unpacked archive that contains it, if any.
    """

    path: Path
    unpacked: Unpacked | None = None

    def inside(self, *parts: str) -> Place:
        """A folder or file in this folder."""
        return replace(self, path=self.path.joinpath(*parts))

    def index(self) -> Index:
        """The pictures in this folder, whether they are files or in an archive's pack."""
        return Index(self.path, self.unpacked)


def has_pictures(place: Place) -> bool:
    """Whether there are pictures in a folder or below it; False if a link in it leads in a circle.

    Raises:
        FailedReadError: it cannot be listed.
    """
    try:
        return bool(place.index().pictures_below(""))
    except DataError:
        return False


class Form(Protocol):
    """A form in which labelled pictures come. Every module that reads one has these two functions."""

    def recognise(self, place: Place, settings: DataSettings) -> bool:
        """Whether ``place`` has this form. Looks at names and first bytes only.

        Raises:
            FailedReadError, OSError: the system failed to read something, so it cannot tell. Nothing else.
        """

    def read(self, place: Place, source: str, settings: DataSettings) -> Data:
        """Read the data in a place that :meth:`recognise` accepted. ``source`` is what the user named.

        Raises:
            DataError: the data cannot be read; the message says what is wrong, where, and what to do.
        """
