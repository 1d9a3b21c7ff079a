"""``thumbnet data``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

from thumbnet.cli.importing import importing
from thumbnet.cli.options import (
    DATA_HELP,
    add_data_dir,
    add_data_options,
    add_labels,
    add_model_code,
    add_on_bad_image,
    add_overrides,
    data_settings,
    overrides,
)
from thumbnet.cli.usage import UsageError
from thumbnet.errors import printable

if TYPE_CHECKING:
    from thumbnet.data.rendering import Fit
    from thumbnet.data.splits import Data
    from thumbnet.recipes.settings import DataSettings
    from thumbnet.sources.split_table import Written

PLOTTED_CLASSES, PLOTTED = 40, 10  # by --plot: classes, and pictures per class


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "data",
        help="show what is in a data set",
        description="Read all of DATA and show its layout, classes, picture sizes, unreadable files "
        "and duplicates.",
    )
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help=f"draw sample pictures of up to {PLOTTED_CLASSES} classes (.png, .svg, .pdf)",
    )
    parser.add_argument(
        "--preview-augment",
        metavar="FILE",
        help="draw a training picture of each of up to 10 classes, and what the recipe's augmentation "
        "makes of it (.png, .svg, .pdf)",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="with --preview-augment: a recipe's name or TOML file (default: digits, small or fast, "
        "depending on the data). Its [data] settings apply as well",
    )
    parser.add_argument(
        "--splits",
        metavar="FILE",
        help="write a table of the pictures with their labels, splits and groups (.csv), or add new pictures "
        "to one. Train on this table to keep the splits when pictures are added",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_labels(parser)
    add_data_options(parser)
    add_on_bad_image(parser)
    add_overrides(parser)
    add_data_dir(parser)
    add_model_code(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    with importing():
        from thumbnet.cli.console import json_line, say
        from thumbnet.cli.progress import counting
        from thumbnet.cli.views import show_inspection
        from thumbnet.files import user_path
        from thumbnet.invocation import command
        from thumbnet.recipes.settings import AUTO, parse_image_size
        from thumbnet.reports import figures as plots
        from thumbnet.reports.augmented import preview_augmentation
        from thumbnet.reports.inspection import inspect_data, sample_grid
        from thumbnet.sources.load import load_data
        from thumbnet.sources.split_table import check_split_table, write_split_table
        from thumbnet.training.choose import choose_recipe
        from thumbnet.training.listener import Listener

    target = plots.check_plot_path(options.plot) if options.plot else None
    preview = options.preview_augment
    preview = plots.check_plot_path(preview, "--preview-augment") if preview else None
    table = user_path(options.splits) if options.splits else None
    written: Written | None = None
    if table:
        check_split_table(table)
    settings = _settings(options)
    with counting("downloading") as count:
        data = load_data(
            options.data,
            data_dir=options.data_dir,
            settings=settings,
            progress=count,
            labels=options.labels,
        )
    if table:
        from dataclasses import replace

        written = write_split_table(data, table)
        data = replace(data, notes=(*data.notes, *written.notes))
    recipe = None
    if preview:  # fitted to the data as in a training; the data's notes say what that changed
        quiet = Listener()
        recipe, data = choose_recipe(data, options.recipe, overrides(options), options.data_dir, quiet)
        settings = recipe.data
    size = parse_image_size(settings.image_size) if settings.image_size != AUTO else None
    fit: Fit = settings.fit
    with counting("reading") as count:
        found = inspect_data(data, size, fit, count, settings)
    if target:
        shape = f"{found.image_size[0]}x{found.image_size[1]}"
        grid = sample_grid(data, "train", PLOTTED, found.image_size, fit, settings, classes=PLOTTED_CLASSES)
        title = f"{data.source}, train, as the network sees it ({shape})"
        plots.save(plots.grid_figure(grid, title + _of_classes(grid, data, "the first ")), target)
    if preview and recipe:
        rows = preview_augmentation(data, recipe, found.image_size, found.mean, found.std)
        title = f"{data.source}: what the network sees in training ({recipe.name})"
        plots.save(plots.augmented_figure(rows, title + _of_classes(rows, data)), preview)
    if options.json:
        from dataclasses import asdict

        described = {"source": data.source, "layout": data.layout, **asdict(found)}
        described["notes"] = [*data.notes, *found.notes]
        described["multilabel"] = data.multilabel
        say(json_line(described))
        return 0
    show_inspection(data, found, fit)
    for path in filter(None, (target, preview, table if written and written.added else None)):
        say(f"written: {path}")
    if table and written:
        say(f"train on the table: {command('train', table, *written.options)}")
    return 0


def _of_classes(shown: Sized, data: Data, which: str = "") -> str:
    """Say in a title how many of the classes a figure shows, if that is not all of them."""
    if len(shown) >= len(data.class_names):
        return ""
    return f"; {which}{len(shown)} of {len(data.class_names):,} {'labels' if data.multilabel else 'classes'}"


def _settings(options: argparse.Namespace) -> DataSettings:
    """The ``data`` settings of the recipe, with the options applied.

    Raises:
        RecipeError: there is no such recipe, or a setting is invalid.
        UsageError: there is a recipe or a setting that only a preview uses, and no preview.
    """
    if not options.preview_augment:
        if options.recipe is not None:
            raise UsageError("--recipe chooses the augmentation of --preview-augment FILE, which is missing")
        others = [text for text in options.overrides if not re.match(r"\s*data\b", text)]
        if others:
            raise UsageError(
                f"--set {printable(others[0])} is no setting of the data. To see its effect, add "
                "--preview-augment FILE"
            )
    if options.recipe is None:
        return data_settings(options)
    from thumbnet.recipes.recipe import load_recipe

    return load_recipe(options.recipe, overrides(options)).data
