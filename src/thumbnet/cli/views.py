"""Print the results of ``train``, ``evaluate``, ``compare`` and ``data``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thumbnet.cli.console import duration, say, say_sentence, table
from thumbnet.cli.multilabel import share, show_label_counts, show_label_evaluation
from thumbnet.data.correct import describe_corrections
from thumbnet.errors import printable
from thumbnet.invocation import command
from thumbnet.multilabel import LabelEvaluation
from thumbnet.recipes.networks import code_options
from thumbnet.reports.summary import (
    NOTHING_MEASURED,
    count_pictures,
    describe_calibration,
    describe_continued,
    describe_groups,
    describe_measured_groups,
    describe_stop,
    ended_early,
    epochs_before,
    interval_of,
    optimism,
    own_epochs,
    percent,
    short_epochs,
)
from thumbnet.runs.summaries import headline_key, headline_name

if TYPE_CHECKING:
    from thumbnet.data.rendering import Fit
    from thumbnet.data.splits import Data
    from thumbnet.evaluation import Evaluation
    from thumbnet.reports.comparison import Difference, Group, Spread
    from thumbnet.reports.cross_validation import CrossValidation
    from thumbnet.reports.inspection import Inspection
    from thumbnet.runs.folder import Run

SETTINGS_SHOWN = 4  # per group of runs; two recipes may differ in thirty
PAIRS_SHOWN = 10  # of equal pictures, and pictures in several classes
PLACES_SHOWN = 4  # of a picture in several classes
UNREADABLE_SHOWN = 50


def show_summary(run: Run) -> None:
    """Print the outcome of a training, and what to do next."""
    summary = run.summary
    if summary["accuracy"] is None:
        say(NOTHING_MEASURED)
    elif summary[headline_key(summary)] is None:
        say(f"no {summary['split']} picture has a label, so mAP is not defined")
    else:
        _show_measures(summary, optimism(run))
    described = (describe_measured_groups, describe_stop, describe_calibration)
    for told in (describe_continued(run), *(describe(summary) for describe in described)):
        if told:
            say_sentence(f"  {told}")
    if summary.get("labels"):
        say_sentence(f"  {describe_corrections(summary['labels'])}")
    for text in summary.get("warnings", ()):
        say(text)
    say(
        f"{own_epochs(summary)} epoch(s) in {duration(summary['seconds_training'])} of training, "
        f"{duration(summary['seconds_total'])} in total"
    )
    say(f"run: {run.path}")
    say("next:")
    code = code_options(run.recipe.model.name)
    say(f"  {command('evaluate', *code, run.path)}")
    say(f"  {command('report', *code, run.path, '--open')}")
    say(f"  {command('predict', *code, run.path, 'PICTURE...')}")


def _show_measures(summary: dict[str, Any], optimistic: Mapping[str, str]) -> None:
    """Print the measures of a training.

    Args:
        summary: that of the run, with a measured accuracy or mAP.
        optimistic: what :func:`~thumbnet.reports.summary.optimism` returns for it.
    """
    key, name = headline_key(summary), headline_name(summary)
    tta = "" if summary["tta"] == "none" else f", test-time augmentation {summary['tta']}"
    low, high = summary[f"{key}_interval"]
    say_sentence(
        f"{summary['split']} {name} {percent(summary[key])} (95 % interval {100 * low:.2f} to "
        f"{100 * high:.2f}; epoch {summary['kept_epoch']}, {summary['kept_by']}{tta})"
    )
    if name in optimistic:
        say(f"  {optimistic[name]}: measure it on other pictures too")
    plain = summary.get(f"{key}_plain")
    if summary["tta"] != "none" and plain is not None:
        say(f"  without test-time augmentation {percent(plain)}")
    if summary.get("multilabel"):
        say(
            f"  micro F1 {percent(summary['micro_f1'])}, macro F1 {percent(summary['macro_f1'])}; "
            f"{percent(summary['accuracy'])} of the pictures have exactly the right labels"
        )
    if "F1" in optimistic:
        say(f"  these are {optimistic['F1']}")


def show_evaluation(
    result: Evaluation, where: str, tta: str, plain: float | None = None, lines: Sequence[str] = ()
) -> None:
    """Print measures, classes and the confusion matrix; for many classes, only the most frequent confusions.

    Args:
        result: the measures, with the test-time augmentation ``tta``.
        where: names the data and the split.
        tta: name of the test-time augmentation.
        plain: the accuracy without test-time augmentation.
        lines: notes about the data, such as leaks.
    """
    low, high = result.interval
    with_tta = "" if tta == "none" else f" (test-time augmentation: {tta})"
    say(f"{where}: {count_pictures(result.pictures, result.groups)}{with_tta}")
    say(f"accuracy           {percent(result.accuracy)}  (95 % interval {100 * low:.2f} to {100 * high:.2f})")
    if grouped := describe_groups(result.pictures, result.groups):
        say_sentence(f"  {grouped}")
    if tta != "none" and plain is not None:
        say(f"  without tta      {percent(plain)}  (each picture seen once, unchanged)")
    if abs(result.balanced_accuracy - result.accuracy) > 1e-9:
        say(f"balanced accuracy  {percent(result.balanced_accuracy)}  (every class has the same weight)")
    if result.top5 is not None:
        say(f"top-5 accuracy     {percent(result.top5)}")
    say(f"loss               {result.loss:.4f}")
    say(f"calibration error  {percent(result.calibration_error)}")
    for text in lines:
        say(text)
    say()
    rows = [[s.name, f"{s.pictures:,}", *map(share, s.defined)] for s in result.classes]
    say(table(["class", "pictures", "precision", "recall", "F1"], rows))
    if len(result.classes) <= 20:
        say("\nconfusion (rows: true, columns: predicted)")
        numbers = [str(number) for number in range(len(result.classes))]
        rows = [
            [f"{number} {score.name}", *map(str, counts)]
            for number, score, counts in zip(numbers, result.classes, result.confusion, strict=True)
        ]
        say(table(["", *numbers], rows))
    else:
        say("\nmost frequent confusions (true → predicted)")
        names = [score.name for score in result.classes]
        pairs = [
            (count, names[true], names[predicted])
            for true, row in enumerate(result.confusion)
            for predicted, count in enumerate(row)
            if true != predicted and count
        ]
        for count, true_name, predicted_name in sorted(pairs, reverse=True)[:10]:
            say(f"  {true_name} → {predicted_name}: {count}")


def show_comparison(
    groups: Sequence[Group],
    differences: Sequence[Difference] | None,
    measures: Sequence[Mapping[str, Spread]] = (),
    *,
    chosen: bool = False,
) -> None:
    """Print a line per run, a line per group, and the tests of their differences.

    Args:
        groups: the runs.
        differences: the tests; None without SciPy.
        measures: how the measures of each group vary, for the intervals of the means.
        chosen: whether the user chose the group that the others are tested against.
    """
    from thumbnet.reports.comparison import optimistic_lines

    rows = []
    for group in groups:
        for run in group.runs:
            summary = group.summary_of(run)
            value = summary[headline_key(summary)]
            low, high = interval_of(summary) or (0.0, 0.0)
            measured = value is not None
            rows.append(
                [
                    printable(str(run.path)),
                    group.name,
                    str(run.recipe.seed),
                    short_epochs(run),
                    percent(value) if measured else "-",
                    f"{100 * low:.2f} to {100 * high:.2f}" if measured else "-",
                    summary["tta"],
                    _plain_accuracy(summary),
                    duration(summary["seconds_total"]),
                ]
            )
    first = groups[0].summary_of(groups[0].runs[0])
    split = first["split"] or ""
    heads = [
        "run",
        "recipe",
        "seed",
        "epochs",
        f"{split} {headline_name(first)}".strip(),
        "95 % interval",
        "tta",
        "without tta",
        "time",
    ]
    say(table(heads, rows, left=2))
    if any(epochs_before(run) for group in groups for run in group.runs):
        say("\nEpochs such as 30+10: the run continues one of 30 epochs. Its time is that of the last 10.")
    if any(ended_early(run.summary) for group in groups for run in group.runs):
        say("\nEpochs such as 3 of 10: the user ended the training early, so its last part is missing.")
    if first["accuracy"] is None:
        say(f"\n{NOTHING_MEASURED}")
        return
    for text in optimistic_lines(groups):
        say(f"\n{text}")
    grouped = [describe_measured_groups(group.summary_of(run)) for group in groups for run in group.runs]
    if told := next(filter(None, grouped), None):
        say(
            f"\nIn the table of runs, {told}. Means and tests say how results vary with the seed on these "
            "pictures, not with other groups of pictures."
        )
    repeated = any(len(group.runs) > 1 for group in groups)
    if repeated or len(groups) > 1:
        say()
        key = headline_key(first)
        intervals = [one[key].interval if key in one else None for one in measures]
        say(_group_table(groups, f"mean {headline_name(first)}", intervals))
    if len(groups) == 1:
        return
    if not repeated:
        say("\nOne run per recipe: runs with other seeds would show whether the difference is chance.")
    elif differences is not None and not differences:
        say(
            "\nNo difference was tested: that needs two groups of two or more runs, not all equally accurate."
        )
    if differences and not chosen and (reference := differences[0].first) != groups[0].name:
        say(f"\nThe first group with two or more runs is {reference}: the others are tested against it.")
    tests = differences or []
    for test in tests:
        low, high = test.interval
        corrected = f", {test.adjusted:.2g} corrected" if len(tests) > 1 else ""
        say(
            f"\n{test.second} against {test.first}: {100 * test.difference:+.2f} points "
            f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f}; p = {test.p:.2g}{corrected}, "
            "Welch's t-test)"
        )
    if len(tests) > 1:
        say(
            f"\nThe corrected p-values are Holm's for {len(tests)} tests. Each interval is for its "
            "difference alone."
        )


def _group_table(
    groups: Sequence[Group], measure: str, intervals: Sequence[tuple[float, float] | None]
) -> str:
    """A line per group: the settings that differ, and the mean if any group has several runs.

    The intervals of the means are left out if there is none.
    """
    differ = len(groups) > 1
    repeated = any(len(group.runs) > 1 for group in groups)
    heads = ["recipe", *["settings that differ"] * differ]
    if repeated:
        heads += ["runs", measure, "standard deviation", *["95 % interval of the mean"] * any(intervals)]
    rows = []
    for position, group in enumerate(groups):
        row = [group.name, *[_settings(group)] * differ]
        if repeated:
            deviation = "-" if group.deviation is None else f"{100 * group.deviation:.2f}"
            mean = percent(group.mean) if group.accuracies else "-"  # no label could be measured
            row += [str(len(group.runs)), mean, deviation]
            if any(intervals):
                ends = intervals[position]
                row.append("-" if ends is None else f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}")
        rows.append(row)
    return table(heads, rows, left=1 + differ)


def _settings(group: Group) -> str:
    """The settings in which a group differs from others, as --set takes them; only the first of many."""
    texts = []
    for key, value in group.settings.items():
        if isinstance(value, str):
            text = value[:8] if key == "fingerprint" else printable(value)
        elif isinstance(value, float):
            text = f"{value:.5g}"
        else:
            text = "none" if value is None else json.dumps(value)
        texts.append(f"{key}={text}")
    more = len(texts) - SETTINGS_SHOWN
    return ", ".join([*texts[:SETTINGS_SHOWN], *([f"and {more} more"] if more > 0 else [])]) or "-"


def show_cross_validation(found: CrossValidation) -> None:
    """Print the folds of a cross-validation, and the measures over the pictures of all folds."""
    several = isinstance(found.result, LabelEvaluation)
    measure = "mAP" if several else "accuracy"
    rows = [
        [printable(str(one.run.path)), str(one.number), f"{one.pictures:,}", share(one.value)]
        for one in found.folds
    ]
    say(table(["run", "fold", "test pictures", measure], rows))
    spread = (
        "a fold in which no picture has a label has no mAP, so the folds have no mean"
        if math.isnan(found.mean)
        else f"mean of the folds {share(found.mean)}, standard deviation {_points(found.deviation)} points"
    )
    say()
    say_sentence(
        f"{spread}. Below, each picture is classified once, by the network that was trained without it."
    )
    say()
    where = f"{printable(found.source)}, all {len(found.folds)} folds"
    if isinstance(found.result, LabelEvaluation):
        show_label_evaluation(found.result, where, found.tta, lines=found.notes)
        say("\nEach fold's network has thresholds of its own. The table shows their mean.")
    else:
        show_evaluation(found.result, where, found.tta, lines=found.notes)


def show_cross_validations(measured: Sequence[tuple[Sequence[str], CrossValidation]]) -> None:
    """Print a line per cross-validation.

    Args:
        measured: settings such as ``seed=0``, each with its result.
    """
    measure = "mAP" if isinstance(measured[0][1].result, LabelEvaluation) else "accuracy"
    rows = []
    for settings, found in measured:
        ends = found.interval
        interval = "-" if ends is None else f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}"
        spread = [share(found.mean), _points(found.deviation)]
        rows.append([printable(", ".join(settings)), share(found.value), interval, *spread])
    heads = ["settings", f"{measure} over all", "95 % interval", "mean of folds", "standard deviation"]
    say(table(heads, rows))


def _points(value: float) -> str:
    """Format a difference of shares in percentage points; "-" for nan."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _plain_accuracy(summary: dict[str, Any]) -> str:
    """Format the accuracy without test-time augmentation; "-" for older runs, which did not record it."""
    key = headline_key(summary)
    plain = summary.get(f"{key}_plain", summary[key] if summary["tta"] == "none" else None)
    return "-" if plain is None else percent(plain)


def show_inspection(data: Data, found: Inspection, fit: Fit) -> None:
    """Print the contents of a data set."""
    say(f"source     {printable(data.source)}")
    say(f"layout     {printable(data.layout)}")
    for text in (*data.notes, *found.notes):
        say(f"           {printable(text)}")
    sizes = ", ".join(f"{h}x{w} ({count:,})" for (h, w), count in found.sizes[:6])
    more = f", and {len(found.sizes) - 6} more" if len(found.sizes) > 6 else ""
    say(f"sizes      {sizes or '-'}{more}  (height x width)")
    say(f"modes      {', '.join(f'{mode} ({count:,})' for mode, count in found.modes) or '-'}")
    say(f"input      {found.image_size[0]}x{found.image_size[1]} RGB, fit: {fit}")
    say(f"mean, std  {_numbers(found.mean)}; {_numbers(found.std)}  (training pictures, in [0, 1])")
    say(f"repeated   {found.repeated:,} picture(s) repeat another one in their split")
    _show_pairs(found.repeats)
    say(f"shared     {len(found.duplicates):,} picture(s) are in two splits")
    _show_pairs(found.duplicates)
    if data.multilabel:
        show_label_counts(data)
    else:
        say(f"conflicts  {len(found.conflicts):,} picture(s) are in two classes")
    for group in found.conflicts[:PAIRS_SHOWN]:
        say(f"           {_conflict(group)}")
    _show_more(len(found.conflicts) - PAIRS_SHOWN)
    say(f"unreadable {len(found.unreadable):,} file(s)")
    for name, reason in found.unreadable[:UNREADABLE_SHOWN]:
        say(f"           {printable(name)}: {printable(reason)}")
    _show_more(len(found.unreadable) - UNREADABLE_SHOWN)
    say()
    splits = list(found.counts)
    rows = [[name, *(f"{found.counts[split][name]:,}" for split in splits)] for name in data.class_names]
    if data.multilabel:
        rows.append(["pictures", *(f"{len(data.splits[split]):,}" for split in splits)])
    else:
        rows.append(["all", *(f"{sum(found.counts[split].values()):,}" for split in splits)])
    say(table(["label" if data.multilabel else "class", *splits], rows))


def _conflict(group: Sequence[tuple[str, str, str]]) -> str:
    """The places (split, name, class) of a picture in several classes, one of each class first."""
    of_class: dict[str, tuple[str, str, str]] = {}
    for place in group:
        of_class.setdefault(place[2], place)
    firsts = list(of_class.values())
    places = [*firsts, *(place for place in group if place not in firsts)]
    shown = [f"{split}: {printable(name)} ({printable(of)})" for split, name, of in places[:PLACES_SHOWN]]
    more = len(places) - PLACES_SHOWN
    return " = ".join(shown) + (f", and {more:,} more" if more > 0 else "")


def _show_pairs(pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]]) -> None:
    """Print the first few pairs of equal pictures, (split, name) each, and how many more there are."""
    for first, second in pairs[:PAIRS_SHOWN]:
        say(f"           {first[0]}: {printable(first[1])} = {second[0]}: {printable(second[1])}")
    _show_more(len(pairs) - PAIRS_SHOWN)


def _show_more(count: int) -> None:
    """Say how many more there are than were printed, if any."""
    if count > 0:
        say(f"           and {count:,} more: --json lists all of them")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
