"""Find a column of a table that seems to say which pictures belong together, but is not used for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from thumbnet.errors import printable
from thumbnet.invocation import quoted
from thumbnet.sources.column_names import named
from thumbnet.sources.table_splits import Manifest
from thumbnet.sources.tables import EMPTY

UNUSED_GROUPS = "is not used. If it says which pictures belong together:"
"""What the note about such a column contains."""
_GROUP = "group"  # the column that thumbnet.sources.split_table writes
_CLEAR = (
    *("patient", "participant", "volunteer", "donor", "driver"),
    *("writer", "signer", "lesion", "video", "clip"),
)
# These may also be classes or counts: digits in the cells, or `id` in the name of the column, tell groups.
_NUMBERED = (
    *("subject", "person", "individual", "specimen", "slide"),
    *("case", "study", "scene", "camera", "station"),
)
# These name groups only with `id`.
_WITH_ID = (
    *("animal", "mouse", "series", "sequence", "seq", "tree"),
    *("plant", "plot", "location", "site", "group"),
)
_IDS = ("id", "uid", "key")
_KNOWN = [  # a patient has many lesions: of two columns, the first one here is the coarser
    f"{word}{suffix}"
    for words, suffixes in ((_CLEAR, ("", *_IDS)), (_NUMBERED, ("", *_IDS)), (_WITH_ID, _IDS))
    for word in words
    for suffix in suffixes
]
_FEWEST = 5  # groups; fewer can hardly be divided, and are often something else
_REPEATED = 0.2  # share of the pictures that share their group with another picture, at least
_LARGEST = 0.5  # share of the pictures in one group, at most: more are probably a word for "unknown"


def unused_groups(manifests: Sequence[Manifest], classes: int) -> str | None:
    """A note that says how to use the column, or None if no column is likely to group pictures.

    A column is likely to do so if its name says so (``patient_id``, ``lesion``, ...), it has more values than
    there are classes, and many of its values have several pictures. A column called ``group`` is, because
    :mod:`thumbnet.sources.split_table` writes one. It is better to miss a column than to name a wrong one.

    Args:
        manifests: the tables that are read; a column must be in all of them.
        classes: the number of classes.
    """
    free = [name for name in manifests[0].table.names if all(_is_free(name, one) for one in manifests)]
    for name in [*(name for name in free if name == _GROUP), *named(free, _KNOWN)]:
        if name == _GROUP or _repeats(name, manifests, classes):
            return f"the column {printable(name)!r} {UNUSED_GROUPS} --group-by {quoted(name)}"
    return None


def _is_free(name: str, manifest: Manifest) -> bool:
    """Whether a table has a column of that name, and nothing else is read from it."""
    columns = manifest.columns
    return name in manifest.table.names and name not in (
        columns.path,
        columns.label,
        columns.split,
        *columns.one_hot,
    )


def _repeats(name: str, manifests: Sequence[Manifest], classes: int) -> bool:
    """Whether the values of a column are spread over the pictures as those of groups are."""
    of_picture: dict[tuple[int, str], str] = {}  # several rows may name a picture
    for number, manifest in enumerate(manifests):
        paths = manifest.table.column(manifest.columns.path)
        for path, value in zip(paths, manifest.table.column(name), strict=True):
            of_picture[number, path] = "" if value in EMPTY else value
    sizes = Counter(value for value in of_picture.values() if value)
    total = len(of_picture)
    if named([name], _NUMBERED) and 2 * sum(any(map(str.isdigit, value)) for value in sizes) < len(sizes):
        return False
    shared = sum(size for size in sizes.values() if size > 1)
    many = len(sizes) >= _FEWEST and len(sizes) > classes
    return many and shared >= _REPEATED * total and max(sizes.values()) <= _LARGEST * total
