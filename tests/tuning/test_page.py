from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="the extra 'tune' is not installed")
pytest.importorskip("matplotlib", reason="the extra 'tune' is not installed")

from thumbnet.errors import MissingExtraError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import Run
from thumbnet.tuning.page import check_page, train_again, trials_csv, used_settings, write_page
from thumbnet.tuning.space import Knob, Point, recipe_at
from thumbnet.tuning.study import Record

RECIPE = load_recipe("small")
KNOBS = (
    Knob("learning rate", "float", 0.25, 4.0, 1.0, True, ("optimizer.lr",)),
    Knob("shift", "int", 0, 8, 3, False, ("augment.translate",)),
    Knob("fit", "choice", 0, 2, 0, False, ("data.fit",), ("crop", "pad", "squash")),
)


def record(
    number: int, rate: float, shift: int, value: float, state: str = "complete", error: float = 0.05
) -> Record:
    reason = "the loss is nan at step 3" if state == "failed" else ""
    loss = 1.5 - value
    point: Point = {"learning rate": rate, "shift": shift, "fit": "squash" if number == 2 else "crop"}
    value = value if state == "complete" else math.nan
    return Record(number, state, point, value, loss, 2.5, 3.0 * number, 2.0, reason, 1.0 - loss, error)


RECORDS = [
    record(1, 1.0, 3, 0.5),
    record(2, 2.0, 3, 0.625),
    record(3, 0.3, 8, 0.2, "stopped"),
    record(4, 4.0, 0, math.nan, "failed"),
    record(5, 2.1, 3, 0.7, error=0.25),  # a gain that chance explains
]
# Without charts of settings, which take longer than the rest of a page.
UNVARIED: dict[str, Any] = {"varied": (), "importances": {}}


def write(folder: Path, run: Run | None = None, **changes: object) -> str:
    values: dict[str, object] = {
        "name": "<b>search</b>",
        "source": "<script>alert(1)</script>",
        "recipe": RECIPE,
        "varied": KNOBS,
        "records": RECORDS,
        "best": RECORDS[1],
        "importances": {"learning rate": 0.75, "shift": 0.25},
        "held_out": 80,
        "how": "3 folds of the 80 training pictures",
        "measure": "accuracy",
        "found": recipe_at(RECIPE, RECORDS[1].point),
        "kept": recipe_at(RECIPE, RECORDS[1].point),
        "run": run,
        "again": "thumbnet train cats --labels cats.csv",
    }
    write_page(folder / "tune.html", **{**values, **changes})  # type: ignore[arg-type]
    return (folder / "tune.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_run: Run) -> str:
    return write(tmp_path_factory.mktemp("page"), tiny_run)


def test_the_page_shows_what_was_found_and_what_mattered(page: str, tiny_run: Run) -> None:
    assert "62.50 %" in page
    assert "50.00 %" in page
    rows = re.findall(r'<tr><th scope="row">(\S+)</th><td>(\S+)</td><td>(\S+)</td></tr>', page)
    assert ("optimizer.lr", "0.15", "0.3") in rows
    assert ("data.fit", "crop", "squash") in rows
    assert "<td>squash</td>" in page  # in the table of trials
    assert "augment.translate" not in [row[0] for row in rows]  # it did not change
    for title in (
        "Importance of each setting",
        "Loss by shift",
        "Loss by fit",
        "Loss of 5 trials over time",
    ):
        assert f'aria-label="{title}"' in page
    accuracy = 100 * tiny_run.summary["accuracy"]
    assert f"test accuracy of the final network</dt><dd>{accuracy:.2f} %" in page
    assert "A difference this small may be chance" not in page
    assert "the loss is nan at step 3" in page


def test_the_page_says_if_the_final_training_is_longer_and_its_network_wider_than_in_the_trials(
    page: str, tmp_path: Path, tiny_run: Run
) -> None:
    wider = "time for a wider network than in the trials, so its width is 1.5"
    found = recipe_at(RECIPE, RECORDS[1].point)
    assert wider not in page
    assert "It was trained for" not in page
    model, training = replace(found.model, width=1.5), replace(found.training, epochs=77)
    text = write(tmp_path, tiny_run, kept=replace(found, model=model, training=training), **UNVARIED)
    assert wider in text
    assert f"It was trained for 77 epochs, the best trial for {found.training.epochs}" in text
    assert "epochs = 77" in text  # in the recipe
    assert "<td>77</td>" not in text  # not among what the search changed


def test_the_command_that_trains_again_uses_the_same_data_and_labels(page: str, tmp_path: Path) -> None:
    assert "thumbnet train cats --labels cats.csv" in page
    settings = {"data": "cifar10", "corrected": True, "data_dir": "/down loads"}
    recipe, labels = tmp_path / "recipe.toml", tmp_path / "corrections.csv"
    expected = f"train cifar10 --recipe {recipe} --labels {labels} --data-dir '/down loads'"
    assert train_again(tmp_path, settings).endswith(expected)
    settings = {"data": None, "corrected": False, "data_dir": None}
    assert train_again(tmp_path, settings).endswith(f"train DATA --recipe {recipe}")


def test_the_page_says_how_uncertain_the_gain_is_or_that_there_is_none(tmp_path: Path) -> None:
    small = [RECORDS[0], record(2, 2.0, 3, 0.51, error=0.004)]
    text = write(tmp_path, records=small, best=small[1], **UNVARIED)
    assert "lower than that of the start by 0.010, with a standard error of 0.004" in text
    several = write(tmp_path, records=small, best=small[1], measure="mAP", **UNVARIED)
    assert "its mAP is 1.00 points higher" in several
    alone = write(tmp_path, records=RECORDS[:1], best=RECORDS[0], found=RECIPE, kept=RECIPE, **UNVARIED)
    assert "No trial had a loss that is lower" in alone
    assert "The settings of small, unchanged" in alone
    assert "too few complete trials" in alone


def test_the_table_begins_with_the_best_trial_and_goes_on_by_loss(page: str) -> None:
    table = page[page.index('id="trials"') :]
    assert re.findall(r'<tr><th scope="row">(\d+)</th><td>(\w+)</td>', table) == [
        ("2", "complete"),
        ("5", "complete"),
        ("1", "complete"),
        ("3", "stopped"),
        ("4", "failed"),
    ]


def test_the_page_loads_nothing_runs_nothing_and_escapes_names(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>search" not in page
    assert "default-src 'none'" in page
    assert "script-src" not in page
    loaded = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert all(target.startswith("#") for target in loaded), loaded
    assert "@import" not in page


def test_the_table_of_trials_has_the_settings_that_each_one_used() -> None:
    recipes = [recipe_at(RECIPE, one.point) for one in RECORDS]
    rows = list(csv.DictReader(io.StringIO(trials_csv(RECORDS, recipes))))
    assert [row["trial"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [float(row["optimizer.lr"]) for row in rows] == [0.15, 0.3, 0.045, 0.6, 0.315]
    assert [row["augment.translate"] for row in rows] == ["3", "3", "8", "0", "3"]
    assert (rows[3]["state"], rows[3]["value"], rows[3]["reason"]) == (
        "failed",
        "",
        "the loss is nan at step 3",
    )


def test_every_setting_that_a_search_changes_is_in_the_table() -> None:
    before = RECIPE.to_dict()
    point: Point = {
        "learning rate": 2.0,
        "weight decay": 2.0,
        "width": 0.7,
        "shift": 5,
        "cutout": 7,
        "light": 0.3,
        "smoothing": 0.2,
        "batch size": 64,
        "epochs": 50,
        "size": "48x48",
        "fit": "squash",
    }
    after = recipe_at(RECIPE, point, size=(32, 32))
    changed = {
        f"{section}.{key}"
        for section in ("data", "training", "model", "augment", "optimizer")
        for key, value in after.to_dict()[section].items()
        if value != before[section].get(key)
    }
    shown = {key.partition(" ")[0] for key, value in used_settings(after).items()}
    assert changed <= shown


def test_a_missing_library_is_an_error_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match="needs the extra 'tune'"):
        check_page()
