"""The licences of what thumbnet installs are listed, and all of them are allowed."""

from __future__ import annotations

import email
import importlib.metadata

import pytest
from packaging.markers import Marker

import licences
from licences import installed_licences, is_allowed, licence, page
from pins import LOCKS, read_pins


@pytest.fixture
def as_locked() -> None:
    """Skip where other versions are installed than the lock's: their metadata can differ."""
    for pin in read_pins(LOCKS / "train.txt").values():
        if pin.marker and not Marker(pin.marker).evaluate():
            continue
        try:
            found = importlib.metadata.version(pin.name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue  # installed_licences says so if nothing else differs
        if found != pin.version:
            pytest.skip(f"{pin.name} {found} is installed, not {pin.version} as in the lock")


@pytest.mark.usefixtures("as_locked")
def test_the_page_lists_every_package_with_the_licence_that_its_metadata_state() -> None:
    assert licences.PAGE.read_text("utf-8") == page(installed_licences()), "run: make licences"


@pytest.mark.usefixtures("as_locked")
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


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("License-Expression: BSD-3-Clause AND Zlib\nLicense: see the file", "BSD-3-Clause AND Zlib"),
        ("License: MIT License", "MIT"),
        ("Classifier: License :: OSI Approved :: Apache Software License", "Apache-2.0"),
        ("License: Copyright, all rights\nClassifier: License :: OSI Approved :: BSD License", "BSD"),
        ("License: Secret\nClassifier: Topic :: Software Development", "Secret"),
        ("Name: one", "unknown"),
    ],
)
def test_older_metadata_are_understood(metadata: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = email.message_from_string(metadata)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda package: message)
    assert licence("one") == expected
