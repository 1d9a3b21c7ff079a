from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pytest

from thumbnet.cli import build_parser, parse
from thumbnet.cli.options import data_settings, overrides
from thumbnet.cli.usage import UsageError
from thumbnet.errors import RecipeError


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not action.option_strings and action.nargs != "A..."]


def values_of(options: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(options).items() if name != "parser"}


TAKES_OPTIONAL = [
    name
    for name, parser in commands().items()
    if any(action.nargs in ("?", "*", "+") for action in positionals(parser))
]


def test_several_commands_take_optional_or_repeated_arguments() -> None:
    assert {"train", "evaluate", "report", "predict", "compare"} <= set(TAKES_OPTIONAL)


@pytest.mark.parametrize("name", TAKES_OPTIONAL)
def test_options_and_arguments_may_come_in_any_order(name: str) -> None:
    parser = commands()[name]
    values = [f"value{number}" for number, _ in enumerate(positionals(parser))]
    flags = [
        [action.option_strings[0]] if action.nargs == 0 else [action.option_strings[0], "word"]
        for action in parser._actions
        if action.option_strings
        and action.dest not in ("help", "csv")
        and not action.choices
        and not action.type
    ][:2]
    plain = build_parser().parse_args([name, *values, *itertools.chain(*flags)])
    assert [getattr(plain, action.dest) for action in positionals(parser)]
    parts = [[value] for value in values] + flags
    for order in itertools.permutations(range(len(parts))):
        if [i for i in order if i < len(values)] != list(range(len(values))):
            continue  # only orders that keep the positional arguments in sequence
        given = [text for index in order for text in parts[index]]
        assert values_of(build_parser().parse_args([name, *given])) == values_of(plain), given


def test_only_the_unknown_option_is_reported() -> None:
    with pytest.raises(UsageError, match="no option --nosuch"):
        parse(["evaluate", "run", "--nosuch", "data"])
    with pytest.raises(UsageError, match="RUN"):
        parse(["evaluate", "--json"])
    assert build_parser().parse_args(["predict", "run", "--json", "--", "-x.png"]).paths == ["-x.png"]


@pytest.mark.parametrize("command", ["train", "repeat", "data", "lr-find"])
def test_every_command_that_reads_data_takes_the_reading_options(command: str) -> None:
    options = build_parser().parse_args(
        [
            command,
            "pictures",
            "--depth",
            "2",
            "--label-pattern",
            r"^(\w+)\.\d",
            "--group-by",
            r'/("s\d+)_',
            "--images",
            "a b",
            "--path-column",
            "Path",
            "--label-column",
            "ClassId",
            "--test-fraction",
            "0",
        ]
    )
    settings = data_settings(options)
    assert settings.classes_from == "2"
    assert settings.label_pattern == r"^(\w+)\.\d"
    assert settings.group_by == r'/("s\d+)_'
    assert (settings.images, settings.path_column, settings.label_column) == ("a b", "Path", "ClassId")
    assert settings.test_fraction == 0
    assert "data.classes_from" in "".join(overrides(options))


@pytest.mark.parametrize("command", ["evaluate", "report", "export", "serve"])
def test_every_command_that_uses_a_run_on_data_takes_the_options_that_find_labels_and_pictures(
    command: str,
) -> None:
    words = ["--depth", "2", "--label-pattern", r"^(\w+)\.\d", "--images", "a b", "--path-column", "Path"]
    words += ["--label-column", "ClassId", "--on-bad-image", "skip", "--set", "data.multilabel=false"]
    settings = data_settings(build_parser().parse_args([command, "run", *words]))
    assert (settings.classes_from, settings.label_pattern) == ("2", r"^(\w+)\.\d")
    assert (settings.images, settings.path_column, settings.label_column) == ("a b", "Path", "ClassId")
    assert (settings.on_bad_image, settings.multilabel) == ("skip", False)
    for text in ("optimizer.lr=1", "data.val_fraction=0.1", "data.workers=2"):
        with pytest.raises(UsageError, match=f"--set {text}: expected KEY=VALUE with one of the keys data"):
            parse([command, "run", "--set", text])


@pytest.mark.parametrize("command", ["train", "repeat", "tune", "lr-find"])
def test_every_command_that_trains_takes_the_options_of_a_step(command: str) -> None:
    words = ["--init", "runs/x", "--micro-batch", "8", "--on-nonfinite", "skip"]
    given = overrides(build_parser().parse_args([command, "pictures", *words]))
    assert given == [
        'training.init="runs/x"',
        "training.micro_batch=8",
        'training.on_nonfinite="skip"',
    ]


@pytest.mark.parametrize("value", ["leaf", "here", "3", "top"])
def test_classes_from_takes_names_and_depths(value: str) -> None:
    options = build_parser().parse_args(["data", "pictures", "--classes-from", value])
    assert data_settings(options).classes_from == value


def test_an_invalid_setting_is_reported_with_its_key(tmp_path: Path) -> None:
    options = build_parser().parse_args(["data", "pictures", "--label-pattern", "(("])
    with pytest.raises(RecipeError, match=r"data\.label_pattern"):
        data_settings(options)
    with pytest.raises(UsageError, match="expected 1 or more"):
        parse(["data", "pictures", "--depth", "0"])
