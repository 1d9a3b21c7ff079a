"""``thumbnet evaluate``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from thumbnet.cli.importing import importing, load_network
from thumbnet.cli.options import (
    add_common,
    add_data_of_run,
    add_groups_of_other_data,
    add_labels,
    add_reading_of_run,
    add_run,
    add_threads,
    add_tta,
    data_settings,
    reading_words,
)
from thumbnet.cli.run_data import data_of_run, naming_data, run_of, split_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from thumbnet.classifiers.base import SplitLogits
    from thumbnet.runs.weights_info import WeightsInfo


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure a run on a data set",
        description="Measure RUN on DATA: accuracy, precision and recall per class, confusion matrix "
        "and calibration.",
    )
    add_run(parser, or_onnx=True)
    add_data_of_run(parser)
    add_reading_of_run(parser)
    add_groups_of_other_data(parser)
    add_labels(parser)
    add_tta(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw the confusion matrix, or the measures of each label (.png, .svg, .pdf)",
    )
    parser.add_argument(
        "--csv",
        metavar="FILE",
        help="write a table, a new file: each picture with its group if it has one, its true class, the "
        "answer and all probabilities",
    )
    add_common(parser)
    add_threads(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from thumbnet.cli.console import note, say
    from thumbnet.cli.progress import counting
    from thumbnet.cli.views import show_evaluation
    from thumbnet.errors import DataError
    from thumbnet.evaluation import evaluate_logits
    from thumbnet.files import check_new, user_path
    from thumbnet.invocation import command
    from thumbnet.reports.summary import (
        are_own_data,
        lines_for_run,
        optimism,
    )
    from thumbnet.runs.data import settings_for
    from thumbnet.runs.provenance import batch_size_of, recipe_of

    written: list[Path] = []
    if options.csv:
        written.append(user_path(options.csv))
        check_new(written[0])
    target = None
    if options.plot:
        with importing():
            from thumbnet.reports import figures as plots

        target = plots.check_plot_path(options.plot)
        written.append(target)
    predictor = load_network(options)
    settings = settings_for(options.run, predictor.info)
    data = data_of_run(options, settings, predictor.info.fingerprint, predictor.info.source)
    if options.data is None and options.split is None and not {"test", "val"} & data.splits.keys():
        raise DataError(
            f"{options.run} was trained on all pictures of {data.source}: no pictures are left to measure "
            f"it on. Name other data: {naming_data(options)}"
        )
    split = split_of(options, data)
    predictor.check_scale(data.split(split))
    on_bad_image = data_settings(options, settings).on_bad_image
    with counting("decoding") as count:
        found = predictor.classify_split(
            data.split(split),
            data.class_names,
            tta=options.tta,
            batch_size=batch_size_of(recipe_of(options.run)),
            on_bad_image=on_bad_image,
            progress=count,
        )
    run = run_of(options)
    lines: list[str] = []
    if run is not None:
        lines = lines_for_run(run, predictor, data, split, found)
    if run is not None and run.is_complete and are_own_data(run, data):
        lines = [*(f"{split} {measure}: {why}" for measure, why in optimism(run, split).items()), *lines]
    left_out = len(data.splits[split]) - len(found.labels)
    if left_out:
        show = command("data", data.source, *reading_words(data_settings(options, settings)))
        note(f"thumbnet: {left_out} unreadable picture(s) were skipped. To list them: {show}")
    groups = data.groups_of(split, found.split)
    if options.csv:
        from thumbnet.reports.answers import write_answers

        write_answers(found, predictor.info, split, options.csv, groups)
    if predictor.info.multilabel:
        _say_labels(options, predictor.info, found, groups, (data.source, split), lines, target)
    else:
        result = evaluate_logits(found.logits, found.labels, predictor.class_names, groups)
        plain = evaluate_logits(found.plain, found.labels, predictor.class_names).accuracy
        if target:
            title = f"{data.source}, {split}: accuracy {100 * result.accuracy:.2f} %"
            plots.save(plots.confusion_figure(result, title), target)
        if options.json:
            described = {"data": data.source, "split": split, "tta": found.tta, **result.to_dict()}
            described |= {"accuracy_plain": plain, "temperature": predictor.info.temperature, "notes": lines}
            say(json.dumps(described, ensure_ascii=False))
        else:
            show_evaluation(result, f"{data.source}, {split}", found.tta, plain, lines)
    for place in written if not options.json else []:
        say(f"written: {place}")
    return 0


def _say_labels(
    options: argparse.Namespace,
    info: WeightsInfo,
    found: SplitLogits,
    groups: np.ndarray | None,
    place: tuple[str, str],
    lines: list[str],
    target: Path | None,
) -> None:
    """Print the measures of a network that gives several labels, and draw them if there is a ``target``.

    ``groups`` is each picture's group, if there are any. ``place`` has the data's source and the name of the
    split.
    """
    from thumbnet.cli.console import say
    from thumbnet.cli.multilabel import show_label_evaluation
    from thumbnet.multilabel import evaluate_labels

    source, split = place
    where = f"{source}, {split}"
    names, thresholds = info.class_names, info.label_thresholds
    result = evaluate_labels(found.logits, found.labels, names, thresholds, groups)
    plain = evaluate_labels(found.plain, found.labels, names, thresholds, quick=True)
    if target:
        from thumbnet.reports import figures as plots

        plots.save(plots.label_figure(result, f"{where}: mAP {100 * result.map:.2f} %"), target)
    if not options.json:
        show_label_evaluation(result, where, found.tta, plain.map, lines)
        return
    described = {"data": source, "split": split, "tta": found.tta, "multilabel": True, **result.to_dict()}
    described |= {"map_plain": plain.to_dict()["map"], "temperature": info.temperature, "notes": lines}
    say(json.dumps(described, ensure_ascii=False))
