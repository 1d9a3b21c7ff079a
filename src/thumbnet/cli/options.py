"""Options that commands share, and what they mean."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thumbnet.data.splits import Data
    from thumbnet.recipes.settings import DataSettings
    from thumbnet.runs.folder import Run

DATA_HELP = (
    "digits, cifar10, cifar100, mnist, fashion-mnist, kmnist, a folder, an archive (.tar, .tar.gz, .tar.xz, "
    ".zip), a .npz, .mat or idx file, or hf:OWNER/NAME"
)


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Options for the recipe and for changes to it, which :func:`overrides` reads."""
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="a name or a TOML file (default: small or fast, by the data)",
    )
    parser.add_argument("--epochs", type=int, help="as --set training.epochs=N; the schedule scales")
    parser.add_argument("--batch-size", type=int, help="as --set training.batch_size=N")
    parser.add_argument("--seed", type=int, help="as --set seed=N")
    add_data_options(parser)
    add_on_bad_image(parser)
    add_overrides(parser)
    add_model_code(parser)


def add_on_bad_image(parser: argparse.ArgumentParser, default: str = "stop") -> None:
    """What to do with pictures that cannot be read."""
    parser.add_argument(
        "--on-bad-image",
        choices=["stop", "skip"],
        help=f"what to do with pictures that cannot be read (default: {default})",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """How pictures become the network's input, and which are held out."""
    parser.add_argument("--image-size", metavar="SIZE", help="in pixels: 32, or HEIGHTxWIDTH such as 32x64")
    parser.add_argument(
        "--fit", choices=["pad", "crop", "squash"], help="how to fit other shapes (default: pad)"
    )
    add_reading_options(parser)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """How classes and splits are read, and which pictures are held out."""
    parser.add_argument("--val-fraction", type=float, metavar="F", help="part of train to set aside as val")
    parser.add_argument(
        "--test-fraction",
        type=float,
        metavar="F",
        help="part to set aside as test if the data have neither test nor val (default: 0.2; 0 for none)",
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX_OR_COLUMN",
        help="keep pictures of one group in one split: finds the group in a picture's path (its first group)",
    )
    add_label_options(parser)


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how a picture's class is found."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--classes-from",
        metavar="WHICH",
        help="the folder that is a class: top (default), leaf, a depth such as 2, or here (the folders in "
        "DATA, even if they are called train or test)",
    )
    which.add_argument(
        "--depth",
        dest="classes_from",
        type=depth,
        metavar="N",
        help="as --classes-from N: 2 for GROUP/CLASS/*",
    )
    parser.add_argument(
        "--label-pattern", metavar="REGEX", help="finds the class in a file's name (its first group)"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of a table's pictures (default: the table's)")
    parser.add_argument("--path-column", metavar="COLUMN", help="column of a table that names the pictures")
    parser.add_argument("--label-column", metavar="COLUMN", help="column of a table with the classes")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Any setting of a recipe."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a setting of the recipe, such as optimizer.lr=0.05; may be repeated",
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """The device, and where downloads are."""
    add_device(parser)
    add_data_dir(parser)


def add_run(parser: argparse.ArgumentParser, or_onnx: bool = False) -> None:
    """A trained network; with ``or_onnx``, also an exported one."""
    known = "a run's folder, a model.safetensors" + (", a MODEL.onnx, or hf:OWNER/NAME" if or_onnx else "")
    parser.add_argument("run", metavar="RUN", help=known)
    add_model_code(parser)


def add_model_code(parser: argparse.ArgumentParser) -> None:
    """The code of a network of the user's own: what :func:`import_model_code` imports."""
    parser.add_argument(
        "--model-code",
        metavar="MODULE:NAME",
        help="import a network of your own, such as mypackage.nets:TinyNet: this runs the module's code. A "
        "network from register_model needs only MODULE",
    )


def import_model_code(options: argparse.Namespace) -> None:
    """Import what ``--model-code`` names.

    Raises:
        NetworkError: it cannot be imported.
    """
    code = getattr(options, "model_code", None)
    if code is not None:
        from thumbnet.models.registry import import_code

        import_code(code)


def add_data_of_run(parser: argparse.ArgumentParser) -> None:
    """The data to use the run on, which :func:`data_of_run` and :func:`split_of` read."""
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA_HELP + " (default: the run's own)")
    parser.add_argument(
        "--split", help="train, val or test (default: test, or else val, or else all pictures)"
    )
    add_label_options(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu, cuda, cuda:1, mps (default: auto)")


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Where downloads are."""
    parser.add_argument("--data-dir", metavar="DIR", help="where downloads are kept")


def add_tta(parser: argparse.ArgumentParser) -> None:
    """Test-time augmentation."""
    parser.add_argument(
        "--tta",
        nargs="?",
        const="mirror-shift",
        default=None,
        choices=["none", "mirror", "mirror-shift", "adaptive"],
        help="test-time augmentation: the mean over mirrored (and shifted) views, or none "
        "(default: as the run was measured)",
    )


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def depth(text: str) -> str:
    """A number of folders, for argparse."""
    return str(positive(text))


SHORTCUTS = {
    "init": "training.init",
    "micro_batch": "training.micro_batch",
    "on_nonfinite": "training.on_nonfinite",
    "checkpoint_steps": "checkpoint.steps",
    "checkpoint_minutes": "checkpoint.minutes",
    "on_bad_image": "data.on_bad_image",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "seed": "seed",
    "image_size": "data.image_size",
    "fit": "data.fit",
    "val_fraction": "data.val_fraction",
    "test_fraction": "data.test_fraction",
    "classes_from": "data.classes_from",
    "label_pattern": "data.label_pattern",
    "group_by": "data.group_by",
    "images": "data.images",
    "path_column": "data.path_column",
    "label_column": "data.label_column",
}


def by_option(message: str, words: Sequence[str]) -> str:
    """An error's ``message``, with the option in place of the recipe key where ``words`` used the option."""
    for option, key in SHORTCUTS.items():
        flag = f"--{option.replace('_', '-')}"
        given = any(word == flag or word.startswith(f"{flag}=") for word in words)
        if given and message.startswith(f"recipe key '{key}' is "):
            return message.replace(f"recipe key '{key}'", flag, 1)
    return message


def overrides(options: argparse.Namespace) -> list[str]:
    """The settings that the options change; shortcuts such as --epochs come before --set."""
    shortcuts = []
    for option, key in SHORTCUTS.items():
        value = getattr(options, option, None)
        if value is not None:
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
            shortcuts.append(f"{key}={text}")
    return [*shortcuts, *getattr(options, "overrides", ())]


def data_settings(options: argparse.Namespace, settings: DataSettings | None = None) -> DataSettings:
    """The ``data`` settings of a recipe (the default ones if None), with what the options change.

    Raises:
        RecipeError: one is out of range.
    """
    from thumbnet.recipes.recipe import Recipe

    recipe = Recipe() if settings is None else Recipe(data=settings)
    return recipe.override(overrides(options)).data


def run_of(options: argparse.Namespace) -> Run | None:
    """The named run; None if it is only a file of weights."""
    from pathlib import Path

    folder = Path(options.run).expanduser()
    if not folder.is_dir():
        if not folder.exists() and not options.run.startswith("hf:"):
            from thumbnet.runs.finding import no_run

            raise no_run(folder)
        return None
    from thumbnet.runs.folder import Run

    return Run.open(folder)


def data_settings_of_run(options: argparse.Namespace) -> DataSettings:
    """The settings of the named run, or the defaults if it is only a file of weights."""
    from thumbnet.recipes.settings import DataSettings

    run = run_of(options)
    return DataSettings() if run is None else run.recipe.data


def data_of_run(options: argparse.Namespace, settings: DataSettings) -> Data:
    """The data that were named, or the run's own; split as the run split them.

    Where other data than the run's own were named, and they have no splits of their own, all of their
    pictures are in a split called ``all``.
    """
    from dataclasses import replace

    from thumbnet.cli.console import note
    from thumbnet.data.calibration import with_calibration_split
    from thumbnet.data.held_out import NOTHING_SET_ASIDE
    from thumbnet.errors import RunError
    from thumbnet.sources.load import load_data

    settings = data_settings(options, settings)
    source, data_dir, run = options.data, options.data_dir, run_of(options)
    own = None if run is None else run.settings.get("data")
    if source is None:
        source = own
    if source is None:
        why = (
            "is a file alone, which does not say where they are"
            if run is None
            else "was trained on data in memory"
        )
        raise RunError(f"name the data, DATA: {options.run} {why}. Give them in a form that is on disk")
    if run is not None and own is not None and _same_source(source, own):
        data_dir = data_dir or run.settings.get("data_dir")
        return with_calibration_split(load_data(source, data_dir=data_dir, settings=settings), settings)
    settings = replace(settings, val_fraction=0.0, test_fraction=0.0, group_by="")
    data = load_data(source, data_dir=data_dir, settings=settings, one_class=True)
    notes = [text for text in data.notes if text != NOTHING_SET_ASIDE]
    splits = dict(data.splits)
    if set(splits) == {"train"}:
        splits["all"] = splits["train"]
        notes.append(f"all {len(splits['all']):,} pictures: {source} has no splits of its own")
    for text in notes:
        note(f"thumbnet: {text}")
    return replace(data, splits=splits, notes=tuple(notes))


def _same_source(first: str, second: str) -> bool:
    """Whether two names refer to the same data."""
    if first == second:
        return True
    return os.path.exists(first) and os.path.realpath(first) == os.path.realpath(second)


def split_of(options: argparse.Namespace, data: Data) -> str:
    """The split that was named, or the one to measure on: ``test``, ``val``, or else all pictures.

    Raises:
        DataError: there is none of that name.
    """
    name: str = getattr(options, "split", None) or data.measured_split()
    data.split(name)
    return name


def rank() -> int:
    """This process's rank under torchrun; 0 without it."""
    return int(os.environ.get("RANK", "0"))
