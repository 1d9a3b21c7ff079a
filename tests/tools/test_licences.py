"""The licences of what thumbnet installs are listed, and all of them are allowed."""

from __future__ import annotations

import pytest

import licences
from licences import installed_licences, is_allowed, licence, page


def test_the_page_lists_every_package_with_the_licence_that_its_metadata_state() -> None:
    assert licences.PAGE.read_text("utf-8") == page(installed_licences()), "run: make licences"


def test_every_licence_is_allowed() -> None:
    assert [name for name, text in installed_licences().items() if not is_allowed(text)] == []


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT AND (BSD-3-Clause OR GPL-3.0-only)", True),
        ("GPL-3.0-only", False),
        ("MIT AND LGPL-3.0-or-later", False),
        ("AGPL-3.0-only OR SSPL-1.0", False),
        ("unknown", False),
    ],
)
def test_copyleft_and_unknown_licences_are_refused(expression: str, allowed: bool) -> None:
    assert is_allowed(expression) is allowed


def test_older_metadata_are_understood() -> None:
    assert licence("rich") == "MIT"  # the field License
    assert licence("safetensors") == "Apache-2.0"  # a classifier
    assert licence("numpy").startswith("BSD-3-Clause AND ")  # an expression
