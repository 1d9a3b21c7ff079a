"""Where data are: a file or a folder, possibly from an archive."""

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
        path: where it is on disk. An archive's pictures are not there but in its pack: ask :meth:`index`.
        unpacked: the archive, if there is one.
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
    """Whether there are pictures in a folder or below; False where it cannot be listed."""
    try:
        return bool(place.index().pictures_below(""))
    except DataError:
        return False


class Form(Protocol):
    """A form of labelled pictures. Every module that reads one has these two functions."""

    def recognise(self, place: Place, settings: DataSettings) -> bool:
        """Whether ``place`` has this form. Looks at names and first bytes only, and never raises."""

    def read(self, place: Place, source: str, settings: DataSettings) -> Data:
        """The data in a place that :meth:`recognise` accepted. ``source`` is what the user named.

        Raises:
            DataError: they cannot be read; the message says what, where and what to do.
        """
