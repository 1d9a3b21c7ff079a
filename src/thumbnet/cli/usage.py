"""Explain the command lines that argparse rejects: what is wrong, and what to type instead."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from thumbnet.cli.intermixed import IntermixedParser
from thumbnet.cli.options import SHORTCUTS
from thumbnet.cli.streams import writing_results
from thumbnet.errors import ThumbnetError, nearest, printable
from thumbnet.invocation import NAME, command, program, quoted

# Other programs' names for the recipe's settings. Names that resemble the recipe key need no entry.
_OTHER_NAMES = {
    "learning_rate": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "decay": "optimizer.weight_decay",
    "optimizer": "optimizer.name",
    "optim": "optimizer.name",
    "opt": "optimizer.name",
    "model": "model.name",
    "network": "model.name",
    "arch": "model.name",
    "architecture": "model.name",
    "backbone": "model.name",
    "num_workers": "data.workers",
    "schedule": "schedule.name",
    "scheduler": "schedule.name",
    "lr_scheduler": "schedule.name",
    "amp": "training.precision",
    "fp16": "training.precision",
    "dtype": "training.precision",
    "mirror": "augment.flip",
    "hflip": "augment.flip",
    "horizontal_flip": "augment.flip",
    "crop": "augment.translate",
    "shift": "augment.translate",
    "vflip": "augment.flip_vertical",
    "vertical_flip": "augment.flip_vertical",
    "rotation": "augment.rotate",
    "degrees": "augment.rotate",
    "zoom": "augment.scale",
    "random_erasing": "augment.erase",
    "reprob": "augment.erase",
    "mixup_alpha": "augment.mixup",
    "cutmix_alpha": "augment.cutmix",
    "smoothing": "training.label_smoothing",
    "ema": "training.ema_decay",
    "normalize": "data.mean",
    "test_split": "data.test_fraction",
    "eval_every": "evaluation.every",
}
_OTHER_OPTIONS = {
    "epoch": "--epochs",
    "num_epochs": "--epochs",
    "n_epochs": "--epochs",
    "max_epochs": "--epochs",
    "bs": "--batch-size",
    "batch": "--batch-size",
    "size": "--image-size",
    "img_size": "--image-size",
    "imgsz": "--image-size",
    "resolution": "--image-size",
    "validation_split": "--val-fraction",
    "val_split": "--val-fraction",
    "output": "--out",
    "output_dir": "--out",
    "save_dir": "--out",
    "name": "--out",
    "gpu": "--device",
    "gpus": "--device",
    "weights": "--init",
    "pretrained": "--init",
    "checkpoint": "--resume",
    "config": "--recipe",
    "data": "DATA",
    "dataset": "DATA",
    "random_seed": "--seed",
    "topk": "--top",
    "k": "--top",
    "plot_file": "--plot",
    "output_file": "--out",
}
_EXAMPLES = {
    "optimizer.lr": "0.1",
    "optimizer.name": "adamw",
    "model.name": "resnet18",
    "augment.flip": "random",
    "augment.flip_vertical": "random",
}
_SECTIONS = {
    "augment": "augment",
    "augmentation": "augment",
    "data_augmentation": "augment",
    "training": "training",
}


class UsageError(ThumbnetError):
    """The command line is invalid."""


class Parser(IntermixedParser):
    """Raises a :class:`UsageError` that says what to type instead of printing all options."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # With abbreviations, `train --data pictures` would silently set --data-dir.
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`UsageError` that explains argparse's ``message``."""
        raise UsageError(explain(self, message))

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Refuse an empty value: `--init "$RUN"` without that variable must not train from random weights."""
        if not arg_string and action.nargs != argparse.PARSER:
            name = "/".join(action.option_strings) or str(action.metavar or action.dest)
            raise UsageError(f"{name} is empty: give it a value, or leave it out. Is a shell variable unset?")
        return super()._get_value(action, arg_string)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a help text or the version. argparse would ignore that it cannot be written."""
        if message:
            with writing_results():
                (file or sys.stdout).write(message)


def explain(parser: argparse.ArgumentParser, message: str) -> str:
    """Translate argparse's ``message``: what is wrong, and what to do."""
    help_line = f"Help: {command(*words_of(parser), '--help')}"
    if match := re.match(r"argument (\S+): invalid choice: '(.*?)' \(", message):
        name, given = match.groups()
        action = next((a for a in parser._actions if name in _names(a)), None)
        choices = [str(choice) for choice in (action.choices if action and action.choices else [])]
        if name == "COMMAND":
            return _no_command(parser, given, choices)
        return f"{name} {printable(given)}: there is no such choice. {nearest(given, choices)}"
    if match := re.match(r"argument (\S+): invalid (\w+) value: '(.*)'$", message):
        name, kind, given = match.groups()
        example = "0.1" if kind == "float" else "10"
        expected = "a number" if kind == "float" else "a whole number"
        what = f"{name} {example}" if name.startswith("-") else example
        return f"{name} {printable(given)}: expected {expected}, such as {what}"
    if match := re.match(r"argument (\S+): (\S+): (expected .*)$", message):
        return f"{match[1]} {printable(match[2])}: {match[3]}"
    if match := re.match(r"argument (\S+): expected (?:one|at least one) argument", message):
        action = next((a for a in parser._actions if match[1] in _names(a)), None)
        value = action.metavar or action.dest.upper() if action is not None else "VALUE"
        meaning = f" ({action.help})" if action is not None and action.help else ""
        return f"{match[1]} needs a value: {match[1]} {value}{meaning % {'prog': parser.prog}}"
    if message.startswith("the following arguments are required: "):
        return _missing(parser, message.partition(": ")[2].split(", "), help_line)
    return f"{message}. {help_line}"


def unrecognised(parser: argparse.ArgumentParser, words: Sequence[str], line: Sequence[str]) -> str:
    """Explain ``words`` of the command ``line`` that ``parser`` does not know, and what to write instead."""
    name = " ".join(words_of(parser))
    options = [word for word in words if word.startswith("-") and word != "-"]
    if not options:
        extra = " ".join(map(printable, words))
        takes = " ".join(str(a.metavar or a.dest) for a in parser._actions if not a.option_strings)
        advice = " To use pictures from several folders, put them into one." if "DATA" in takes else ""
        return f"{name} takes {takes or 'only options'}, but there is also '{extra}'.{advice}"
    values = {}
    for word, following in zip(line, [*line[1:], ""], strict=True):
        if word in options:
            option, _, value = word.partition("=")
            values[option] = value or (following if following and not following.startswith("--") else "")
    return "\n".join(_no_option(parser, option, value) for option, value in values.items())


def words_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return ``parser``'s command, such as ``["recipes", "show"]``; an empty list for the main parser."""
    for start in (program(), NAME):
        if parser.prog == start or parser.prog.startswith(f"{start} "):
            return parser.prog.removeprefix(start).split()
    return []


def _no_option(parser: argparse.ArgumentParser, option: str, value: str) -> str:
    name, asked = " ".join(words_of(parser)), option.lstrip("-").replace("-", "_").lower()
    here = {o for action in parser._actions for o in action.option_strings if o.startswith("--")}
    # A --set with a parser of its own takes only some settings.
    takes_settings = any("--set" in a.option_strings and a.type is str for a in parser._actions)
    said = f"{name} has no option {printable(option)}"
    meant = _OTHER_OPTIONS.get(asked)
    if meant == "DATA" and meant in {action.metavar for action in parser._actions}:
        return f"{said}: name the data without an option, as in {command(*words_of(parser), value or 'DATA')}"
    if meant in here:
        return f"{said}. Did you mean {meant} {quoted(value) if value else meant.strip('-').upper()}?"
    close = difflib.get_close_matches(f"--{asked.replace('_', '-')}", here, n=1, cutoff=0.75)
    if close:
        return f"{said}. Did you mean {close[0]}{' ' + quoted(value) if value else ''}?"
    if takes_settings:
        keys = recipe_keys(asked)
        if len(keys) > 2:
            return f"{said}. Use --set KEY=VALUE with one of these recipe settings: {', '.join(keys)}"
        if keys:
            settings = (f"{key}={value or _EXAMPLES.get(key, 'VALUE')}" for key in keys)
            shown = " or ".join(f"--set {quoted(one)}" for one in settings)
            return f"{said}. Set it in the recipe: {shown}"
    page = command(*words_of(parser), "--help")
    all_keys = f"\nAll settings for --set: {command('recipes', 'show', 'NAME', '--all')}"
    return f"{said}. Its options: {page}{all_keys if takes_settings else ''}"


def recipe_keys(asked: str) -> list[str]:
    """Return the recipe keys that a name such as ``learning_rate`` may mean."""
    from thumbnet.recipes.recipe import Recipe
    from thumbnet.recipes.tables import known_keys

    known = known_keys(Recipe)
    asked = asked.replace(".", "_")
    if asked in _OTHER_NAMES:
        return [_OTHER_NAMES[asked]]
    if asked in _SECTIONS:
        return [key for key in known if key.startswith(f"{_SECTIONS[asked]}.")]
    whole = {key.replace(".", "_"): key for key in known}
    if asked in whole:
        return [whole[asked]]
    ends: dict[str, list[str]] = {}
    # A key whose option has another name (checkpoint.minutes: --checkpoint-minutes) is not meant by its end.
    renamed = {key for option, key in SHORTCUTS.items() if option != key.rpartition(".")[2]}
    for key in known:
        same_end = ends.setdefault(key.rpartition(".")[2], [])
        same_end += [] if key in renamed else [key]
    candidates = {
        **{end: keys for end, keys in ends.items() if end not in ("name", "start", "end")},
        **{text: [key] for text, key in whole.items()},
        **{text: [key] for text, key in _OTHER_NAMES.items()},
    }
    close = difflib.get_close_matches(asked, candidates, n=1, cutoff=0.7)
    return candidates[close[0]] if close else []


def _no_command(parser: argparse.ArgumentParser, given: str, choices: list[str]) -> str:
    if given and not words_of(parser):
        from thumbnet.files import user_path
        from thumbnet.runs.finding import is_run
        from thumbnet.sources.known_names import HUB

        place = user_path(given)
        if is_run(place) or place.suffix.lower() in (".onnx", ".safetensors"):
            return (
                f"{printable(given)} is a trained network, not a command. "
                f"Measure it: {command('evaluate', given)}\n"
                f"Classify pictures: {command('predict', given, 'PICTURE...')}"
            )
        if given in NAMED_DATA or given.startswith(HUB) or os.path.exists(place):
            return (
                f"{printable(given)} is data, not a command. "
                f"Train on it: {command('train', given)}\nLook at it: {command('data', given)}"
            )
    close = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    guess = f"Did you mean '{close[0]}'? " if close else ""
    return f"there is no command {printable(given)!r}. {guess}Commands: {', '.join(choices)}."


NAMED_DATA = ("digits", "cifar10", "cifar100", "mnist", "fashion-mnist", "kmnist")


def _missing(parser: argparse.ArgumentParser, names: list[str], help_line: str) -> str:
    words = words_of(parser)
    if names == ["COMMAND"] or not words:
        return f"name a command. To start: {command('train', 'digits')}\n{help_line}"
    takes = [
        f"{action.metavar or action.dest}{'...' if action.nargs == '+' else ''}"
        for action in parser._actions
        if not action.option_strings and action.nargs != "?"
    ]
    said = f"{' '.join(words)} needs {' and '.join(names)}: {command(*words, *takes)}"
    if "RUN" in names:
        from thumbnet.runs.finding import RUNS, runs_in

        newest = runs_in(RUNS)[:1]
        said += (
            f"\nThe newest run here: {newest[0]}"
            if newest
            else f"\nTrain a run first: {command('train', 'DATA')}"
        )
    if "PATH" in names:
        said += "\nPATH is a picture, a folder of pictures, a glob such as 'new/*.jpg', or - for stdin"
    return said


def _names(action: argparse.Action) -> list[str]:
    joined = ["/".join(action.option_strings)] if action.option_strings else []
    return [*action.option_strings, *joined, *([str(action.metavar)] if action.metavar else []), action.dest]


def with_subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield ``parser`` and, recursively, the parsers of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from with_subparsers(each)
