"""Everything with everything: the table of ``tests/table.py``, tried out.

CI tries a selection in which every pair of two values occurs (:func:`table.covering`); ``make table``, which sets
THUMBNET_SLOW=1, tries the whole product and writes ``docs/supported.md``.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from unittest import mock

import pytest

import table
from cli_helpers import run_cli
from helpers import coloured_labels, write_class_folders, write_label_table
from kernel_helpers import on_threads
from table import EXTRA, FACTORS, PAGE, REFUSALS, Cell, Refusal, covering, pairs, pairs_of, product, refusal
from table_trial import settings_of, surroundings, try_cell, weights_file
from thumbnet.training import train as train_module

WHOLE = os.environ.get("THUMBNET_SLOW") == "1"
HAS_TIMM = importlib.util.find_spec("timm") is not None
CELLS = [*product(), *table.beyond_the_product()] if WHOLE else [*covering(), *EXTRA]


@pytest.fixture(scope="session")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for weights to start from, which cells share."""
    return tmp_path_factory.mktemp("begin")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and a table of pictures with several labels below it."""
    folder = tmp_path_factory.mktemp("data")
    write_class_folders(folder / "pictures", ["train", "test"])
    (folder / "labels").mkdir()
    write_label_table(folder / "labels", coloured_labels(12))
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    with on_threads(1):
        yield


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_combination_works_or_says_that_it_does_not(
    cell: Cell, tmp_path: Path, begin: Path, data: Path
) -> None:
    refused = refusal(cell, HAS_TIMM)
    if refused is None:
        try_cell(cell, tmp_path, begin)
        return
    with surroundings(cell):
        settings = [word for setting in settings_of(cell, None) for word in ("--set", setting)]
        arguments = [
            "train",
            data / "pictures",
            "--recipe",
            cell.recipe,
            "--out",
            tmp_path / "run",
            *settings,
        ]
        if cell.recipe == "linear":
            arguments += ["--init", weights_file("resnet20", begin)]
        if cell.device == "simulated GPU":
            arguments += ["--device", "cuda"]
        assert_refused(arguments, refused[1], tmp_path)


def assert_refused(arguments: list[object], says: str, folder: Path) -> None:
    """The command ends with status 2 and one message, leaves nothing, and has decoded no picture."""
    with mock.patch.object(train_module, "prepare", side_effect=AssertionError("pictures were decoded")):
        status, out, err = run_cli(*arguments, cwd=folder)  # type: ignore[arg-type]
    assert (status, out) == (2, "")
    assert says in re.sub(r"\s+", " ", err)
    assert err.startswith("thumbnet: ")
    assert "Traceback" not in err
    assert not (folder / "run").exists()
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("refused", REFUSALS, ids=lambda refused: refused.what)
def test_what_is_not_supported_says_so_before_any_work(
    refused: Refusal, tmp_path: Path, begin: Path, data: Path
) -> None:
    if refused.error.__name__ == "MissingExtraError" and HAS_TIMM:
        pytest.skip("timm is installed")
    places = {
        "DATA": data / "pictures",
        "LABELS": data / "labels" / "labels.csv",
        "RUN": weights_file("resnet20", begin),
    }
    words = [places.get(word, word) for word in refused.arguments.split()]
    assert_refused(["train", *words], refused.says, tmp_path)
    from thumbnet.cli import parse
    from thumbnet.cli.train import execute

    with pytest.raises(refused.error) as caught:
        execute(parse(["train", *map(str, words)]))
    assert type(caught.value) is refused.error


# --- the table itself ---------------------------------------------------------------------------------------


def test_every_recipe_network_precision_engine_and_format_has_an_entry() -> None:
    """An addition fails here until it has an entry, which then is tried out."""
    entries = {**{name: set(values) for name, values in FACTORS.items()}, "format": set(table.FORMATS)}
    for factor, names in table.registered().items():
        assert entries[factor] == names, factor


def test_a_recipe_without_an_entry_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "recipe_names", lambda: [*table.RECIPES, "new"])
    with pytest.raises(AssertionError, match="recipe"):
        test_every_recipe_network_precision_engine_and_format_has_an_entry()


def test_the_selection_has_every_pair_of_values() -> None:
    chosen = covering()
    found = set().union(*(pairs_of(cell, FACTORS) for cell in chosen))
    assert table.merged(found) == table.merged(pairs(FACTORS))
    assert chosen == covering()
    networks = {table.SAME_BUT_DEPTH.get(network, network) for network in table.NETWORKS}
    assert len(chosen) < 1.5 * len(table.RECIPES) * len(networks)
    assert {cell.network for cell in chosen} == set(table.NETWORKS)
    assert {cell.format for cell in EXTRA} == set(table.FORMATS)


def test_the_whole_product_also_has_every_pair_with_a_way_to_take_steps_and_a_format() -> None:
    cells = [*product(), *table.beyond_the_product()]
    whole = {**FACTORS, "format": tuple(table.FORMATS), "steps": ("one by one", "channels first", "in parts")}
    asked = {pair for pair in pairs(whole) if {pair[0], pair[2]} != {"format", "steps"}}
    assert asked <= set().union(*(pairs_of(cell, whole) for cell in cells))


def test_the_page_of_what_works_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == table.page(), "run: make table, or python tests/table.py"
