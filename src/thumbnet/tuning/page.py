"""Write the page of a search, a single self-contained HTML file that shows what mattered, and its table.

Needs the extra ``tune``. The page has the style of the report of a run, and no script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from thumbnet.data.listings import as_csv
from thumbnet.errors import needs_extra
from thumbnet.files import write_file
from thumbnet.invocation import command
from thumbnet.recipes.recipe import Recipe
from thumbnet.reports.summary import percent
from thumbnet.runs.folder import CORRECTIONS_NAME, Run
from thumbnet.runs.summaries import headline_key
from thumbnet.tuning import pictures
from thumbnet.tuning.space import Knob
from thumbnet.tuning.study import FEWEST_FOR_IMPORTANCE, Record
from thumbnet.version import __version__

SHOWN = 30  # trials in the table of the page, the best ones


def check_page() -> None:
    """Check that the page can be written, before long work.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    with needs_extra("thumbnet tune", "tune"):
        import jinja2  # noqa: F401
        import matplotlib.figure  # noqa: F401


def trials_csv(records: Sequence[Record], recipes: Sequence[Recipe]) -> str:
    """The finished trials as CSV: results, and the settings of the recipe that each one used."""
    keys = list(used_settings(recipes[0])) if recipes else []
    head = ["trial", "state", "value", "loss", "seconds", "elapsed", *keys, "reason"]
    rows: list[list[str | float]] = []
    for one, recipe in zip(records, recipes, strict=True):
        used = used_settings(recipe)
        numbers = [_cell(one.value), _cell(one.loss), round(one.seconds, 2), round(one.elapsed, 2)]
        rows.append([one.number, one.state, *numbers, *(used[key] for key in keys), one.reason])
    return as_csv(head, rows)


def _cell(value: float) -> float | str:
    return "" if math.isnan(value) else round(value, 6)


def used_settings(recipe: Recipe) -> dict[str, float | str]:
    """The settings of a recipe that a search may change, by their keys."""
    found: dict[str, float | str] = {
        "data.image_size": recipe.data.image_size,
        "data.fit": recipe.data.fit,
        "training.epochs": recipe.training.epochs,
        "training.batch_size": recipe.training.batch_size,
        "training.label_smoothing": recipe.training.label_smoothing,
        "model.width": recipe.model.width,
        "augment.translate": recipe.augment.translate,
        "augment.cutout": recipe.augment.cutout,
        "augment.brightness": recipe.augment.brightness,
        "augment.contrast": recipe.augment.contrast,
        "optimizer.lr": recipe.optimizer.lr,
        "optimizer.weight_decay": recipe.optimizer.weight_decay,
    }
    for group in recipe.optimizer.groups:
        for key in ("lr", "weight_decay"):
            value = getattr(group, key)
            if value is not None:
                found[f"optimizer.groups {group.match} {key}"] = value
    return found


def changed_settings(before: Recipe, after: Recipe) -> list[tuple[str, str, str]]:
    """The settings that a search changed: each one's key, and its values before and after, for people."""
    old, new = used_settings(before), used_settings(after)
    return [(key, _shown(old[key]), _shown(new[key])) for key in old if old[key] != new[key]]


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def train_again(folder: Path, settings: Mapping[str, Any]) -> str:
    """The command that trains with the result of a search again, on the same data with the same labels.

    Args:
        folder: the folder of the search.
        settings: its ``tune.json``.
    """
    data = str(settings.get("data") or "DATA")
    words: list[str | Path] = ["train", data, "--recipe", folder / "recipe.toml"]
    words += ["--labels", folder / CORRECTIONS_NAME] if settings.get("corrected") else []
    data_dir = settings.get("data_dir")
    return command(*words, *(["--data-dir", str(data_dir)] if data_dir else []))


def write_page(
    out: Path,
    *,
    name: str,
    source: str,
    recipe: Recipe,
    varied: Sequence[Knob],
    records: Sequence[Record],
    best: Record,
    importances: Mapping[str, float],
    held_out: int,
    how: str,
    measure: str,
    found: Recipe,
    kept: Recipe,
    run: Run | None,
    again: str,
) -> None:
    """Write the page atomically.

    Args:
        out: the HTML file.
        name: the name of the search.
        source: its data.
        recipe: where it started.
        varied: what it varied.
        records: its finished trials.
        best: the best one.
        importances: the share of each knob, see :meth:`thumbnet.tuning.study.Study.importances`.
        held_out: the number of pictures that judge a trial.
        how: which pictures these are, in words.
        measure: ``accuracy`` or ``mAP``.
        found: the recipe of the best trial.
        kept: the recipe that the search leaves: the same with the width and the number of epochs of the final
            training, once that is done.
        run: the final training; None before it.
        again: the command that trains with the result again.

    Raises:
        RunError: the file cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = (resources.files("thumbnet.tuning") / "page.html").read_text("utf-8")
    page = environment.from_string(template).render(
        style=(resources.files("thumbnet.reports") / "report.css").read_text("utf-8"),
        version=__version__,
        name=name,
        source=source,
        recipe=recipe,
        how=how,
        measure=measure,
        best=best,
        facts=_facts(records, best, held_out, measure, run),
        noise=_noise(records[0], best, measure),
        changes=changed_settings(recipe, found),
        history=pictures.history(records),
        importances=pictures.importances(importances) if importances else None,
        fewest=FEWEST_FOR_IMPORTANCE,
        slices=[(knob.name, pictures.slices(knob, records, best)) for knob in varied],
        parallel=pictures.parallel(varied, records, best) if len(varied) > 1 else None,
        rows=_rows(varied, records, best),
        knobs=[knob.name for knob in varied],
        trials=len(records),
        toml=kept.to_toml(whole=False),
        again=again,
        run=None if run is None else run.path.name,
        wider="" if kept.model.width == found.model.width else f"{kept.model.width:g}",
        epochs=(found.training.epochs, kept.training.epochs),
    )
    write_file(out, page)


def _facts(
    records: Sequence[Record], best: Record, held_out: int, measure: str, run: Run | None
) -> list[tuple[str, str]]:
    """Names and values of the most important numbers."""
    states = [one.state for one in records]
    facts = [
        ("loss of the best trial", f"{best.loss:.3f}"),
        ("loss at the start", f"{records[0].loss:.3f}"),
        (f"its {measure}, held out", percent(best.value)),
        (f"{measure} at the start", percent(records[0].value)),
        ("held-out pictures", f"{held_out:,}"),
        ("trials", f"{len(records):,}"),
        ("stopped early", f"{states.count('stopped'):,}"),
        ("failed", f"{states.count('failed'):,}"),
        ("search", f"{int(records[-1].elapsed // 60)}:{int(records[-1].elapsed % 60):02} min"),
    ]
    if run is not None and run.summary["split"] is not None:
        summary = run.summary
        value = summary[headline_key(summary)]
        if value is not None:
            facts.insert(4, (f"{summary['split']} {measure} of the final network", percent(value)))
    return facts


def _noise(first: Record, best: Record, measure: str) -> str:
    """Say how much better the best trial is, and how uncertain that is."""
    if best.number == first.number:
        return (
            "No trial had a loss that is lower than that of the recipe where the search started by more than "
            "chance would make it, so the search keeps the recipe."
        )
    gain = 100 * (best.value - first.value)
    return (
        f"The best trial's loss is lower than that of the start by {best.gain:.3f}, with a standard error of "
        f"{best.error:.3f}; its {measure} is {abs(gain):.2f} points {'higher' if gain >= 0 else 'lower'}. It "
        "is the best of many, so its own values are optimistic."
    )


def _rows(varied: Sequence[Knob], records: Sequence[Record], best: Record) -> list[tuple[Any, ...]]:
    """Number, state, value, loss, seconds and knobs of the best trial, then of the others by their loss."""
    order = {"complete": 0, "stopped": 1, "failed": 2}
    ranked = sorted(
        records,
        key=lambda one: (one.number != best.number, order[one.state], _or_zero(one.loss), one.number),
    )
    return [
        (
            one.number,
            one.state,
            "–" if math.isnan(one.value) else percent(one.value),
            "–" if math.isnan(one.loss) else f"{one.loss:.3f}",
            f"{one.seconds:.1f} s",
            [knob.shown(knob.at(one.point), 4) for knob in varied],
            one.reason,
        )
        for one in ranked[:SHOWN]
    ]


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
