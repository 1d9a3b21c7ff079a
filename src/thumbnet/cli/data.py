"""``thumbnet data``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from thumbnet.cli.options import (
    DATA_HELP,
    add_data_dir,
    add_data_options,
    add_labels,
    add_on_bad_image,
    add_overrides,
    data_settings,
)

if TYPE_CHECKING:
    from thumbnet.data.images import Fit


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "data",
        help="show what is in a data set",
        description="Read all of DATA and show its layout, classes, picture sizes, unreadable files "
        "and duplicates.",
    )
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--plot", metavar="FILE", help="draw sample pictures of each class (.png, .svg, .pdf)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_labels(parser)
    add_data_options(parser)
    add_on_bad_image(parser)
    add_overrides(parser)
    add_data_dir(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from thumbnet.cli.console import json_line, say
    from thumbnet.cli.progress import counting
    from thumbnet.cli.views import show_inspection
    from thumbnet.recipes.settings import AUTO, parse_image_size
    from thumbnet.reports import figures as plots
    from thumbnet.reports.inspection import inspect_data, sample_grid
    from thumbnet.sources.load import load_data

    target = plots.check_plot_path(options.plot) if options.plot else None
    settings = data_settings(options)
    size = parse_image_size(settings.image_size) if settings.image_size != AUTO else None
    fit: Fit = settings.fit
    with counting("downloading") as count:
        data = load_data(
            options.data,
            data_dir=options.data_dir,
            settings=settings,
            progress=count,
            labels=options.labels,
        )
    with counting("reading") as count:
        found = inspect_data(data, size, fit, count)
    if target:
        shape = f"{found.image_size[0]}x{found.image_size[1]}"
        grid = sample_grid(data, "train", 10, found.image_size, fit)
        plots.save(plots.grid_figure(grid, f"{data.source}, train, as the network sees it ({shape})"), target)
    if options.json:
        from dataclasses import asdict

        described = {"source": data.source, "layout": data.layout, **asdict(found)}
        described["notes"] = [*data.notes, *found.notes]
        described["multilabel"] = data.multilabel
        say(json_line(described))
        return 0
    show_inspection(data, found, fit)
    if target:
        say(f"written: {target}")
    return 0
