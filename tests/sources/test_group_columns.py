"""Which columns are likely to say which pictures belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from thumbnet.sources.columns import Columns
from thumbnet.sources.group_columns import UNUSED_GROUPS, unused_groups
from thumbnet.sources.table_splits import Manifest
from thumbnet.sources.tables import Table

COUNT = 60


def manifest(name: str, cell: Callable[[int], str], file: str = "a.csv") -> Manifest:
    """A table of pictures of two classes with one more column."""
    rows = [[f"{n}.png", f"c{n % 2}", cell(n)] for n in range(COUNT)]
    table = Table(Path(file), ["path", "label", name], rows, list(range(2, COUNT + 2)), True)
    return Manifest(table, Columns("path", "label"), "", "")


def tens(n: int) -> str:
    return f"{n // 6}"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("patient", tens),
        ("Patient ID", tens),
        ("patient_id", lambda n: f"anna{'x' * (n // 6)}"),
        ("lesion_id", lambda n: f"HAM_{n if n < 40 else 100 + n // 2}"),  # a third of the pictures
        ("subject", lambda n: f"p{n // 6:03}"),
        ("person_id", lambda n: "" if n < 12 else tens(n)),
        ("siteId", tens),
        ("group", lambda n: f"{n}"),
        ("group", lambda n: "one"),  # as `thumbnet data --splits` writes it
    ],
)
def test_a_column_with_a_telling_name_and_repeated_values_is_named(
    name: str, cell: Callable[[int], str]
) -> None:
    found = unused_groups([manifest(name, cell)], 2)
    assert found is not None
    assert found.startswith(f"the column '{name}' {UNUSED_GROUPS} --group-by ")


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("age", tens),
        ("age_group", tens),
        ("patient_age", tens),
        ("site", tens),  # of the body, or the number of a field of view
        ("location", tens),
        ("class_id", tens),
        ("subject", lambda n: ("portrait", "landscape", "animal", "city", "sea", "ship")[n % 6]),
        ("patient_id", lambda n: f"{n}"),  # every picture has its own
        ("patient_id", lambda n: f"{n if n > 5 else 0}"),  # hardly any value repeats
        ("patient_id", lambda n: f"{n % 4}"),  # too few
        ("patient_id", lambda n: "unknown" if n < 40 else tens(n)),
        ("patient_id", lambda n: ""),
    ],
)
def test_any_other_column_is_not(name: str, cell: Callable[[int], str]) -> None:
    assert unused_groups([manifest(name, cell)], 2) is None


def test_there_are_more_groups_than_classes() -> None:
    assert unused_groups([manifest("patient", tens)], 9) is not None
    assert unused_groups([manifest("patient", tens)], 10) is None


def test_several_rows_of_a_picture_are_no_repetition() -> None:
    rows = [[f"{n // 6}.png", f"c{n % 6}", f"{n // 6}"] for n in range(COUNT)]
    table = Table(Path("a.csv"), ["path", "label", "patient"], rows, list(range(COUNT)), True)
    assert unused_groups([Manifest(table, Columns("path", "label"), "", "")], 6) is None


def test_a_column_counts_only_if_nothing_else_is_read_from_it_and_all_tables_have_it() -> None:
    one = manifest("patient", tens)
    for columns in (
        Columns("path", "patient"),
        Columns("patient", "label"),
        Columns("path", "label", "patient"),
    ):
        assert unused_groups([Manifest(one.table, columns, "", "")], 2) is None
    assert unused_groups([one, manifest("patient", tens, "b.csv")], 2) is not None
    assert unused_groups([one, manifest("doctor", tens, "b.csv")], 2) is None


def test_the_coarser_of_two_columns_is_named() -> None:
    rows = [[f"{n}.png", f"c{n % 2}", f"{n // 2}", f"{n // 6}"] for n in range(COUNT)]
    table = Table(Path("a.csv"), ["path", "label", "lesion", "patient_id"], rows, list(range(COUNT)), True)
    found = unused_groups([Manifest(table, Columns("path", "label"), "", "")], 2)
    assert found is not None
    assert "'patient_id'" in found
