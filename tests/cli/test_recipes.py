from __future__ import annotations

from pathlib import Path

import pytest

from own_networks import OwnPackage
from thumbnet.cli import main
from thumbnet.recipes.recipe import load_recipe, recipe_names


def test_recipes_are_listed_printed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == main(["recipes", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in recipe_names())
    plot = tmp_path / "rate.png"
    assert main(["recipes", "show", "tutorial", "--set", "seed=3", "--plot", str(plot)]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capsys.readouterr().out)
    assert load_recipe(path) == load_recipe("tutorial", ["seed=3"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_show_prints_the_comment_and_the_changed_settings_and_all_settings_with_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    shown = {}
    for options in ([], ["--all"], ["--set", "seed=3"]):
        assert main(["recipes", "show", "fast", *options]) == 0
        shown[tuple(options)] = capsys.readouterr().out
        path.write_text(shown[tuple(options)])
        assert load_recipe(path) == load_recipe("fast", options[1:])
    assert "thumbnet train cifar10 --recipe fast" in shown[()]
    assert "on_bad_image" not in shown[()]
    assert "on_bad_image" in shown["--all",]
    assert "#" not in shown["--set", "seed=3"]  # the results in the comment belong to the unchanged recipe


def test_show_imports_the_code_that_the_recipe_names(
    own: OwnPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    own.write("mine.toml", '[model]\nname = "wide-tiny"\n')
    assert main(["recipes", "show", "mine.toml"]) == 2
    assert "wide-tiny" in capsys.readouterr().err
    assert main(["recipes", "show", "mine.toml", "--model-code", "mypackage.nets"]) == 0
    assert 'name = "wide-tiny"' in capsys.readouterr().out
