from __future__ import annotations

import pytest

from sources.trees import tree_of
from thumbnet.sources.tree import is_known_tool, is_output, is_tool_folder, join


@pytest.mark.parametrize(
    "name", ["__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "System Volume Information"]
)
def test_folders_of_systems_and_tools_are_known_in_any_case(name: str) -> None:
    assert is_known_tool(name)
    assert is_tool_folder(name)


def test_a_hidden_folder_is_skipped_and_an_ordinary_one_is_not() -> None:
    assert is_tool_folder(".hidden")
    assert not is_known_tool(".hidden")
    assert not is_tool_folder("cat")


def test_a_tree_lists_what_is_in_it_and_below_it() -> None:
    tree = tree_of(["a/1.png", "a/2.png", "a/deep/3.png", "a/notes.txt", "b/", "c/4.png"])
    assert [folder.path for folder in tree.walk()] == ["", "a", "a/deep", "b", "c"]
    assert [folder.name for folder in tree.filled()] == ["a", "c"]
    assert tree.count == 4
    assert tree.pictures_below() == ["a/1.png", "a/2.png", "a/deep/3.png", "c/4.png"]
    assert tree.ignored_below() == ["a/notes.txt"]


def test_paths_are_joined_with_slashes_except_below_the_outermost_folder() -> None:
    assert (join("", "a"), join("a", "b")) == ("a", "a/b")


def test_the_folders_of_runs_and_searches_are_known_by_their_files() -> None:
    assert is_output(["metrics.csv", "recipe.toml", "run.json"])
    assert is_output(["journal.jsonl", "tune.json"])
    assert not is_output(["recipe.toml"])
    assert not is_output(["run.json", "tune.json", "a.png"])
