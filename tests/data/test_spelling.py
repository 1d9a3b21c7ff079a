"""Names that people take for the same class are the same, and others are not."""

from __future__ import annotations

import pytest

from thumbnet.data.spelling import file_key, name_key, nfc


@pytest.mark.parametrize(
    ("first", "second"),
    [("cat", "Cat"), ("caf\u00e9", "cafe\u0301"), ("CAFE\u0301 ", "caf\u00e9"), (" dog", "dog"), ("ß", "SS"),
        ("golden  retriever", "golden retriever"), ("golden\xa0retriever", "Golden retriever"), ("a\u3000b", "a b")],
)  # fmt: skip
def test_names_that_differ_in_form_case_or_spaces_are_alike(first: str, second: str) -> None:
    assert name_key(first) == name_key(second)


@pytest.mark.parametrize(("first", "second"), [("cat", "cats"), ("e", "\u00e9"), ("a b", "ab"), ("1", "01")])
def test_other_names_are_not(first: str, second: str) -> None:
    assert name_key(first) != name_key(second)


def test_outer_spaces_of_a_file_name_count() -> None:
    assert file_key("CAFE\u0301.png") == file_key("caf\u00e9.PNG")
    assert file_key(" dog") != file_key("dog")


def test_the_unicode_form_alone_keeps_case_and_spaces() -> None:
    assert nfc("Cafe\u0301 ") == "Caf\u00e9 "
