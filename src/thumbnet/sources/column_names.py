"""The names that columns of pictures, labels and splits often have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_PATHS = (
    "path", "filepath", "filename", "file", "image", "imagepath", "imgpath", "imagefile", "imagefilename",
    "imagename", "imageid", "img", "images", "imgname", "imgid", "picture", "photo", "fname", "fileid",
    "filepaths", "idcode", "id", "name",
)  # fmt: skip
_LABELS = (
    "label", "labels", "class", "classid", "classname", "classes", "category", "categories", "categoryid",
    "target", "celltype", "diagnosis", "species", "dx", "breed", "emotion", "level", "labelid", "labelname",
    "finelabel", "landmarkid", "y", "tag", "tags", "type", "findinglabels", "choice",
)  # fmt: skip
_SPLITS = (
    "split", "set", "subset", "usage", "partition", "phase", "dataset", "datasplit", "traintestsplit",
    "splitset", "evaluationstatus",
)  # fmt: skip


def named(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """The ``names`` that are in ``known``, ignoring case and punctuation, in the order of ``known``."""
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}
    return [name for wanted in known for name, key in plain.items() if key == wanted]


def path_candidates(names: Iterable[str]) -> list[str]:
    """The columns whose names suggest pictures, most likely first."""
    return named(names, _PATHS)


def label_candidates(names: Iterable[str]) -> list[str]:
    """The columns whose names suggest labels, most likely first."""
    return named(names, _LABELS)


def split_candidates(names: Iterable[str]) -> list[str]:
    """The columns whose names suggest splits, most likely first."""
    return named(names, _SPLITS)
