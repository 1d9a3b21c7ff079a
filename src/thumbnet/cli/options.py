"""Options that commands share, and what they mean."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thumbnet.data.splits import Data
    from thumbnet.recipe import DataSettings
    from thumbnet.runs import Run

DATA_HELP = (
    "digits, cifar10, cifar100, mnist, fashion-mnist, kmnist, a folder, an archive (.tar, .tar.gz, .tar.xz, .zip), "
    "a .npz, .mat or idx file, or hf:OWNER/NAME"
)


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Which recipe, and what is different from it: what :func:`overrides` reads."""
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


def add_on_bad_image(parser: argparse.ArgumentParser, default: str = "stop") -> None:
    """What is to be done about pictures that cannot be read."""
    parser.add_argument(
        "--on-bad-image", choices=["stop", "skip"],
        help=f"for pictures that cannot be read (default: {default})",
    )  # fmt: skip


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """How pictures become what the network sees, and what is held out."""
    parser.add_argument("--image-size", metavar="SIZE", help="32, or HEIGHTxWIDTH as 32x64, in pixels")
    parser.add_argument("--fit", choices=["pad", "crop", "squash"], help="for other shapes (default: pad)")
    parser.add_argument("--val-fraction", type=float, metavar="F", help="part of train to set aside as val")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Any setting of a recipe."""
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
        help="override a recipe's setting, as optimizer.lr=0.05; may be repeated",
    )  # fmt: skip


def add_common(parser: argparse.ArgumentParser) -> None:
    """The device, and where downloads are."""
    add_device(parser)
    add_data_dir(parser)


def add_run(parser: argparse.ArgumentParser, or_onnx: bool = False) -> None:
    """A trained network; ``or_onnx``, if an exported one will do."""
    known = "a run's folder, a model.safetensors" + (", a MODEL.onnx, or hf:OWNER/NAME" if or_onnx else "")
    parser.add_argument("run", metavar="RUN", help=known)


def add_data_of_run(parser: argparse.ArgumentParser) -> None:
    """On what the run is looked at: what :func:`data_of_run` and :func:`split_of` read."""
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA_HELP + " (default: the run's own)")
    parser.add_argument("--split", help="train, val or test (default: test, or else val)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """The device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Where downloads are."""
    parser.add_argument("--data-dir", metavar="DIR", help="where downloads are kept")


def add_tta(parser: argparse.ArgumentParser) -> None:
    """Test-time augmentation."""
    parser.add_argument(
        "--tta", nargs="?", const="mirror-shift", default="none",
        choices=["none", "mirror", "mirror-shift", "adaptive"],
        help="test-time augmentation: the mean over mirrored (and shifted) views (adaptive: where unsure)",
    )  # fmt: skip


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


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
}


def overrides(options: argparse.Namespace) -> list[str]:
    """The settings that the options change; shortcuts such as --epochs come before --set."""
    shortcuts = []
    for option, key in SHORTCUTS.items():
        value = getattr(options, option, None)
        if value is not None:
            shortcuts.append(f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}")
    return [*shortcuts, *options.overrides]


def run_of(options: argparse.Namespace) -> Run | None:
    """The run that was named; None where it is a file of weights alone."""
    from pathlib import Path

    folder = Path(options.run).expanduser()
    if not folder.is_dir():
        return None
    from thumbnet.runs import Run

    return Run.open(folder)


def data_settings_of_run(options: argparse.Namespace) -> DataSettings:
    """Those of the run that was named, or the defaults where it is a file alone."""
    from thumbnet.recipe import DataSettings

    run = run_of(options)
    return DataSettings() if run is None else run.recipe.data


def data_of_run(options: argparse.Namespace, settings: DataSettings) -> Data:
    """The data that were named, or the run's own; split as the run split them."""
    from dataclasses import replace

    from thumbnet.errors import RunError
    from thumbnet.sources.load import load_data

    source, data_dir, run = options.data, options.data_dir, run_of(options)
    if run is not None and source is None:
        source = run.settings.get("data")
        data_dir = data_dir or run.settings.get("data_dir")
    if source is None:
        raise RunError(f"name the data: {options.run} is a file alone, which does not say where they are")
    if options.data is not None:
        settings = replace(settings, val_fraction=0.0)
    return load_data(source, data_dir=data_dir, settings=settings)


def split_of(options: argparse.Namespace, data: Data) -> str:
    """The split that was named, or ``test``, or else ``val``.

    Raises:
        DataError: there is none of that name.
    """
    name: str = options.split or ("test" if "test" in data.splits else "val")
    data.split(name)
    return name


def rank() -> int:
    """Which of the processes that torchrun started this is; 0 without it."""
    return int(os.environ.get("RANK", "0"))
