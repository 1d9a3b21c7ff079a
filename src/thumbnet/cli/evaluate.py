"""``thumbnet evaluate``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from thumbnet.cli.options import (
    add_common,
    add_data_of_run,
    add_on_bad_image,
    add_run,
    add_tta,
    data_of_run,
    data_settings_of_run,
    split_of,
)


def add(commands: Any) -> None:
    """Its parser, among ``commands``."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a run on a data set",
        description="Measure RUN on DATA (by default its own): accuracy, classes, confusion, calibration.",
    )
    add_run(parser, or_onnx=True)
    add_data_of_run(parser)
    add_tta(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", metavar="FILE", help="draw the confusion matrix (.png, .svg, .pdf)")
    add_on_bad_image(parser, "as the run was trained")
    add_common(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    """What it does; the exit status."""
    from thumbnet.classifier import load_classifier
    from thumbnet.console import counting, note, say
    from thumbnet.invocation import command
    from thumbnet.views import show_evaluation

    target = None
    if options.plot:
        from thumbnet import plots

        target = plots.check_plot_path(options.plot)
    predictor = load_classifier(options.run, options.device)
    settings = data_settings_of_run(options)
    data = data_of_run(options, settings)
    split = split_of(options, data)
    on_bad_image = options.on_bad_image or settings.on_bad_image
    with counting("decoding") as count:
        result = predictor.evaluate(data, split, tta=options.tta, on_bad_image=on_bad_image, on_decode=count)
    left_out = len(data.splits[split]) - result.pictures
    if left_out:
        listed = command("data", data.source)
        note(f"thumbnet: {left_out} picture(s) cannot be read and were left out. To list them: {listed}")
    if target:
        title = f"{data.source}, {split}: accuracy {100 * result.accuracy:.2f} %"
        plots.save(plots.confusion_figure(result, title), target)
    if options.json:
        described = {"data": data.source, "split": split, "tta": options.tta, **result.to_dict()}
        say(json.dumps(described, ensure_ascii=False))
    else:
        show_evaluation(result, f"{data.source}, {split}", options.tta)
    if target and not options.json:
        say(f"drawn: {target}")
    return 0
