"""Options that several commands share, and the functions that read them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thumbnet.recipes.settings import DataSettings

DATA_HELP = (
    "digits, cifar10, cifar100, mnist, fashion-mnist, kmnist, a folder, an archive (.tar, .tar.gz, .tar.xz, "
    ".zip), a table (.csv, .tsv, .parquet), a .npz, .npy, .mat or idx file, or hf:OWNER/NAME"
)


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options that only ``train`` and ``repeat`` have: time, patience, checkpoints, trackers."""
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="choose the number of steps and the network's width so that everything ends within M minutes",
    )
    parser.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop once N epochs have passed without a better score on val. Without a val split, a tenth of "
        "train is set aside as one",
    )
    add_labels(parser)
    parser.add_argument(
        "--checkpoint-steps", type=int, metavar="N", help="also write a checkpoint every N steps"
    )
    parser.add_argument(
        "--checkpoint-minutes",
        type=float,
        metavar="M",
        help="write a checkpoint every M minutes (default: 10)",
    )
    parser.add_argument(
        "--track",
        action="append",
        choices=["tensorboard", "mlflow", "wandb"],
        help="also write the numbers to TensorBoard, MLflow or Weights & Biases; can be repeated",
    )
    parser.add_argument("--tensorboard", action="store_true", help="short for --track tensorboard")


def trackers(options: argparse.Namespace) -> list[str]:
    """The names of the trackers that ``--track`` and ``--tensorboard`` name."""
    return [*(options.track or ()), *(["tensorboard"] if options.tensorboard else [])]


def resuming_words(options: argparse.Namespace) -> list[str]:
    """The options of a training or search that its folder does not record, so that resuming it needs them."""
    device = [] if options.device == "auto" else ["--device", options.device]
    names = list(dict.fromkeys(trackers(options))) if "track" in options else []
    begun = options.resume is not None or getattr(options, "auto_resume", False)  # may record another folder
    data_dir = ["--data-dir", options.data_dir] if begun and options.data_dir is not None else []
    return device + data_dir + [word for name in names for word in ("--track", name)]


def add_recipe_options(parser: argparse.ArgumentParser, *, seed: bool = True) -> None:
    """Add the options that choose and change a recipe. :func:`overrides` reads them.

    ``seed`` says whether ``--seed`` is among them.
    """
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="a recipe's name or TOML file (default: digits, small or fast, depending on the data; "
        "resnet18, finetune or one-cycle for other networks)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="short for --set training.epochs=N; the schedule scales with it",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="short for --set training.batch_size=N")
    if seed:
        parser.add_argument("--seed", type=int, metavar="N", help="short for --set seed=N")
    parser.add_argument(
        "--init",
        metavar="RUN",
        help="start from the weights of this run, of a .safetensors, .pt or .pth file of any program, or of "
        "hf:OWNER/NAME",
    )
    parser.add_argument(
        "--micro-batch",
        type=int,
        metavar="N",
        help="pictures per forward pass; gradients accumulate over the batch",
    )
    parser.add_argument(
        "--on-nonfinite",
        choices=["stop", "skip"],
        help="what to do with a step whose loss is not finite (default: stop)",
    )
    add_data_options(parser)
    add_on_bad_image(parser)
    add_overrides(parser)
    add_model_code(parser)


def add_on_bad_image(parser: argparse.ArgumentParser, default: str = "stop") -> None:
    """Add ``--on-bad-image``; ``default`` describes its default."""
    parser.add_argument(
        "--on-bad-image",
        choices=["stop", "skip"],
        help=f"what to do with damaged and missing pictures (default: {default})",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the network's input size and for reading the data."""
    parser.add_argument(
        "--image-size",
        metavar="SIZE",
        help="size of the network's input in pixels: 32, or HEIGHTxWIDTH such as 32x64",
    )
    parser.add_argument(
        "--fit",
        choices=["pad", "crop", "squash"],
        help="how to fit pictures of another shape into it (default: crop)",
    )
    add_reading_options(parser)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for splits, groups and classes."""
    parser.add_argument(
        "--val-fraction", type=float, metavar="F", help="fraction of train to set aside as val"
    )
    parser.add_argument(
        "--test-fraction",
        type=float,
        metavar="F",
        help="fraction to set aside as test if the data have neither test nor val (default: 0.2; "
        "0: no test split)",
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX_OR_COLUMN",
        help="keep each group of pictures in one split. A picture's group is what the regular expression's "
        "first group matches in its path, or its value in this column of the table",
    )
    add_label_options(parser)


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to find a picture's class."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--classes-from",
        metavar="WHICH",
        help="which folder names the class: top (default), leaf, a depth such as 2, or here (the folders "
        "directly in DATA, even if they are called train or test)",
    )
    which.add_argument(
        "--depth",
        dest="classes_from",
        type=depth,
        metavar="N",
        help="short for --classes-from N, such as 2 for GROUP/CLASS/*",
    )
    parser.add_argument(
        "--label-pattern",
        metavar="REGEX",
        help="regular expression whose first group matches the class in a file's name",
    )
    parser.add_argument(
        "--images", metavar="DIR", help="folder with a table's pictures (default: the table's folder)"
    )
    parser.add_argument("--path-column", metavar="COLUMN", help="column of a table with the pictures' paths")
    parser.add_argument("--label-column", metavar="COLUMN", help="column of a table with the classes")


def add_outcome(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add ``--quiet`` and ``--json`` of a command that trains into ``folder``."""
    parser.add_argument(
        "--quiet", action="store_true", help=f"show no progress, and print only {folder} at the end"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON at the end")


def as_flags(names: Iterable[str]) -> str:
    """Options as the user types them: ``"--out, --batch-size"``."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def add_labels(parser: argparse.ArgumentParser) -> None:
    """Add ``--labels``, corrections of the data's labels."""
    parser.add_argument(
        "--labels",
        action="append",
        metavar="FILE",
        help="corrections of labels, such as the labels.csv that `review` writes: relabel and drop pictures, "
        "and add new ones to train; can be repeated, and later files win",
    )


def add_reading_of_run(parser: argparse.ArgumentParser, on_bad_image: str = "the run's setting") -> None:
    """Add the options that say how a trained network's data are read. :func:`data_settings` reads them.

    ``on_bad_image`` describes the default of that option.
    """
    add_label_options(parser)
    add_on_bad_image(parser, on_bad_image)
    what = "a setting that says how the data are read, such as data.multilabel=false"
    add_overrides(parser, what, reading_setting)


def add_groups_of_other_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--group-by`` for data that a network is measured on but was not trained on."""
    parser.add_argument(
        "--group-by",
        metavar="REGEX_OR_COLUMN",
        help="for other data than the run's: measure them in groups, which are found as in train (default: "
        "by the run's --group-by, if it fits)",
    )


def add_overrides(
    parser: argparse.ArgumentParser,
    what: str = "a setting of the recipe, such as optimizer.lr=0.05",
    parse: Callable[[str], str] = str,
) -> None:
    """Add ``--set``, which changes any setting of a recipe, or only those that ``parse`` accepts.

    ``what`` says in the help which settings these are.
    """
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        type=parse,
        metavar="KEY=VALUE",
        help=f"override {what}; can be repeated",
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--data-dir``."""
    add_device(parser)
    add_data_dir(parser)


def add_run(parser: argparse.ArgumentParser, or_onnx: bool = False) -> None:
    """Add RUN, a trained network; ``or_onnx`` adds exported networks and the Hub to its help."""
    known = (
        "a run's folder, a model.safetensors, a MODEL.onnx, or hf:OWNER/NAME"
        if or_onnx
        else "a run's folder or a model.safetensors"
    )
    parser.add_argument("run", metavar="RUN", help=known)
    add_model_code(parser)


def add_model_code(parser: argparse.ArgumentParser) -> None:
    """Add ``--model-code``, the user's own code. :func:`import_model_code` imports it."""
    parser.add_argument(
        "--model-code",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="import your own network, such as mypackage.nets:TinyNet, loss or augmentation. This runs the "
        "module's code. MODULE is enough if the module registers it, as with register_model; can be repeated",
    )


def import_model_code(options: argparse.Namespace) -> None:
    """Import the code that ``--model-code`` names.

    Raises:
        OwnCodeError: the code cannot be imported.
    """
    for code in getattr(options, "model_code", ()):
        from thumbnet.models.registry import import_code

        import_code(code)


def add_data_of_run(parser: argparse.ArgumentParser) -> None:
    """Add the data to use the run on. :mod:`thumbnet.cli.run_data` reads these options."""
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA_HELP + " (default: the run's data)")
    parser.add_argument(
        "--split", help="train, val or test (default: test if there is one, else val, else all pictures)"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, gpu, cuda, cuda:1 or mps (default: auto)"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``, which :func:`~thumbnet.classifiers.load.load_classifier` takes."""
    parser.add_argument(
        "--threads",
        type=positive,
        default=0,
        metavar="N",
        help="CPU threads for the network (default: at most one per core that the process may use)",
    )


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-dir``."""
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder for downloads and unpacked archives (default: the run's, else the user's cache)",
    )


def add_tta(parser: argparse.ArgumentParser) -> None:
    """Add ``--tta``, test-time augmentation."""
    parser.add_argument(
        "--tta",
        nargs="?",
        const="mirror-shift",
        default=None,
        choices=["none", "mirror", "mirror-shift", "adaptive"],
        help="test-time augmentation: average over mirrored (and shifted) views of all pictures, or of "
        "uncertain ones only (adaptive); --tta alone is mirror-shift (default: as the run was measured)",
    )


def positive(text: str) -> int:
    """Parse a whole number of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def reading_setting(text: str) -> str:
    """Parse a setting that says how a trained network's data are read, for argparse."""
    keys = [f"data.{name}" for name in READING_OF_RUN]
    if text.partition("=")[0].strip() not in keys:
        raise argparse.ArgumentTypeError(f"{text}: expected KEY=VALUE with one of the keys {', '.join(keys)}")
    return text


def depth(text: str) -> str:
    """Parse a number of folder levels, for argparse."""
    return str(positive(text))


SHORTCUTS = {
    "init": "training.init",
    "patience": "training.patience",
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

READING_OF_RUN = (
    "classes_from", "label_pattern", "images", "path_column", "label_column", "multilabel", "on_bad_image",
)  # fmt: skip
"""The settings that may differ between a network's training and its use: how labels and pictures are found.

The others decide which pictures are in which split, or belong to the training.
"""


def reading_words(settings: DataSettings, data_dir: str | None = None) -> list[str]:
    """The options with which a command reads data as ``settings`` say; none for the defaults."""
    from thumbnet.recipes.settings import READ_BY

    words = []
    for name in settings.given(*READ_BY):
        value = getattr(settings, name)
        in_toml = json.dumps(value, ensure_ascii=False)
        words.append(f"{as_flags([name])}={value}" if name in SHORTCUTS else f"--set=data.{name}={in_toml}")
    return words + ([f"--data-dir={data_dir}"] if data_dir else [])


def by_option(message: str, words: Sequence[str]) -> str:
    """Replace the recipe key in an error's ``message`` by its option, if ``words`` give it that value."""
    for option, key in SHORTCUTS.items():
        begin = f"recipe key '{key}' is "
        if message.startswith(begin):
            flag = as_flags([option])
            pairs = zip(words, [*words[1:], ""], strict=True)
            given = [
                after if word == flag else word.removeprefix(f"{flag}=")
                for word, after in pairs
                if word == flag or word.startswith(f"{flag}=")
            ]
            if given and message.startswith(f"{begin}{_as_setting(key, given[-1])}:"):
                return message.replace(f"recipe key '{key}'", flag, 1)
    return message


def _as_setting(key: str, text: str) -> str:
    """An option's value as an error about the setting ``key`` shows it."""
    from operator import attrgetter

    from thumbnet.recipes.recipe import Recipe

    return repr(type(attrgetter(key)(Recipe()))(text))


def overrides(options: argparse.Namespace) -> list[str]:
    """List the settings that the options change: shortcuts such as ``--epochs`` first, so ``--set`` wins."""
    shortcuts = []
    for option, key in SHORTCUTS.items():
        value = getattr(options, option, None)
        if value is not None:
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
            shortcuts.append(f"{key}={text}")
    return [*shortcuts, *getattr(options, "overrides", ())]


def data_settings(options: argparse.Namespace, settings: DataSettings | None = None) -> DataSettings:
    """Apply the options to the ``data`` settings of a recipe; None means the default settings.

    Raises:
        RecipeError: a setting is invalid.
    """
    from thumbnet.recipes.recipe import Recipe

    recipe = Recipe() if settings is None else Recipe(data=settings)
    return recipe.override(overrides(options)).data
