from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from cli_helpers import SETTINGS
from thumbnet.cli import main
from thumbnet.cli.lr_find import suggested
from thumbnet.cli.options import add_recipe_options, overrides
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.mirror_names import named_keys


def test_lr_find_prints_a_suggestion_and_draws_the_losses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "lr.png"
    arguments = ["lr-find", str(folder), "--recipe", "one-cycle", *SETTINGS, "--steps", "60", "--to", "10"]
    assert main([*arguments, "--plot", str(plot)]) == 0
    assert "suggestion: --set optimizer.lr=" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["small", "fast", "finetune", "one-cycle"])
def test_a_training_with_what_is_suggested_has_all_rates_of_the_test(name: str) -> None:
    tested = load_recipe(name).fitted(300)
    parser = argparse.ArgumentParser()
    add_recipe_options(parser)
    settings = overrides(parser.parse_args(suggested(tested, 0.45, frozenset())))
    recipe = load_recipe(name, settings)
    if "training.batch_size" not in named_keys(None, settings):
        recipe = recipe.fitted(300)  # as a training does
    assert recipe.training.batch_size == tested.training.batch_size
    assert recipe.optimizer.lr == 0.45
    for group, before in zip(recipe.optimizer.groups, tested.optimizer.groups, strict=True):
        assert replace(group, lr=before.lr) == before
        if before.lr is not None:
            assert group.lr == pytest.approx(before.lr * 0.45 / tested.optimizer.lr, rel=1e-3)


def test_a_recipe_with_one_rate_needs_one_setting_and_a_named_batch_size_stays_unnamed() -> None:
    assert suggested(load_recipe("tutorial"), 0.45, frozenset()) == ["--set", "optimizer.lr=0.45"]
    assert suggested(load_recipe("finetune"), 0.45, {"training.batch_size"})[:2] == [
        "--set",
        "optimizer.lr=0.45",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--steps 1", "--steps 1: expected 10 or more"),
        ("--steps 9", "--steps 9: expected 10 or more"),
        ("--to inf", "--from 0.0001 and --to inf: expected 1e-30 <= FROM < TO <= 1e+30"),
        ("--to 1e300", "--to 1e+300: expected"),
        ("--to nan", "--to nan: expected"),
        ("--from 0", "--from 0 and --to 100: expected"),
        ("--from 1 --to 1", "--from 1 and --to 1: expected"),
    ],
)
def test_a_range_that_can_suggest_nothing_is_refused_before_the_data_are_read(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lr-find", "nowhere", *words.split()]) == 2
    assert message in capsys.readouterr().err
