"""Columns are known by their names, however these are written."""

from __future__ import annotations

from thumbnet.sources.column_names import label_candidates, named, path_candidates, split_candidates


def test_the_likeliest_label_column_comes_first() -> None:
    assert label_candidates(["id", "Class", "label"])[0] in ("label", "Class")
    assert label_candidates(["id", "size"]) == []


def test_case_and_punctuation_do_not_count_and_the_order_is_that_of_the_known_names() -> None:
    assert named(["b", "A_a", "aa"], ("aa", "b")) == ["A_a", "aa", "b"]
    assert path_candidates(["Image_Path", "id", "colour"]) == ["Image_Path", "id"]
    assert split_candidates(["sub-set", "colour", "Split"]) == ["Split", "sub-set"]
