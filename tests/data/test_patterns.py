"""A stranger's regular expression that would take for ever is stopped."""

from __future__ import annotations

import time

import pytest

from thumbnet.data import patterns
from thumbnet.data.patterns import compile_pattern
from thumbnet.errors import DataError
from thumbnet.sources.filenames import labels_by_pattern

NAMES = ["a" * 60 + ".png"]


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|aa)*b", "(a|a){60}b"])  # each repeats in its own way
def test_a_pattern_that_backtracks_without_end_is_refused(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(DataError, match="--label-pattern .* takes more than 0.3 s on 1 names"):
        compile_pattern(pattern, NAMES, "--label-pattern")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("pattern", ["^(.+)_", "/([^/_]+)_[^/]*$", "(?P<label>cat|dog)", "a{2,3}", "\\udcff"])
def test_an_ordinary_pattern_is_compiled(pattern: str) -> None:
    assert compile_pattern(pattern, ["cat_1.png", "\udcff"], "x").pattern == pattern


def test_labels_are_read_with_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.3)
    with pytest.raises(DataError, match="--label-pattern"):
        labels_by_pattern(NAMES, "((a+)+)b")
