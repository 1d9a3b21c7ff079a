"""For each form of data: one call of the system fails while it is read. The data are read right, or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from faults.fork_server import ForkServer, Job, why_not
from sources.failed_reads import LAYOUTS
from thumbnet import sources
from thumbnet.sources.archives import is_archive_name
from thumbnet.sources.load import FORMS

FULL = os.environ.get("THUMBNET_FAULTS") == "full"
MOST = 500 if FULL else 8  # calls that fail in each layout, of some hundreds; there are 7 kinds of them
NEEDED = {"parquet": "pyarrow", "webdataset": "webdataset", "hub": "datasets", "mat": "scipy"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    modules = ("sources.failed_reads", "thumbnet.reports.inspection", "PIL.TiffImagePlugin")
    kernels = {"THUMBNET_CACHE": os.environ["THUMBNET_CACHE"]}  # may have them compiled
    with ForkServer(tmp_path_factory.mktemp("server"), modules, kernels) as made:
        yield made


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_failed_call_is_an_error_of_ours_and_nothing_about_it_is_kept(
    name: str, server: ForkServer, tmp_path: Path
) -> None:
    layout = LAYOUTS[name]
    if layout.form in NEEDED and find_spec(NEEDED[layout.form]) is None:
        pytest.skip(f"{NEEDED[layout.form]} is not installed")
    root, place = tmp_path / "data", tmp_path / "scratch"
    root.mkdir()
    place.mkdir()
    source = layout.write(root)
    job = Job((str(source), str(root), str(place), str(MOST)), program="sources.failed_reads:main")
    outcome = server.run(replace(job, environment={"PYTHONWARNINGS": "ignore"}), limit=1800.0)
    assert outcome.status == 0, outcome.errors
    found = json.loads(outcome.output.splitlines()[-1])
    print(f"{name}: {found['tried']} of {found['of']} calls have failed; {found['layout']}")
    assert found["wrong"] == []
    assert found["tried"] == min(MOST, found["of"])
    assert found["of"] > 20
    if layout.form == "archives":
        assert is_archive_name(source.name)
    else:
        assert found["form"] == f"thumbnet.sources.{layout.form}"


def test_every_form_of_data_has_such_a_test() -> None:
    tested = {layout.form for layout in LAYOUTS.values()}
    assert {form.__name__.rpartition(".")[2] for form in FORMS} <= tested  # type: ignore[attr-defined]
    assert "archives" in tested


def test_no_reader_asks_for_a_file_in_a_way_that_takes_a_failure_for_absence() -> None:
    """``os.path.isfile`` and, since Python 3.14, ``Path.is_file`` answer False if the system fails."""
    asks = re.compile(
        r"os\.path\.(isfile|isdir|exists)\(|\.(is_file|is_dir|exists|iterdir|glob|rglob)\(|np\.fromfile"
    )
    harmless = (
        "entry.",  # from a listing: raises
        "info.is_dir()",  # of a zip
        "(target / _FILES).is_dir()",  # else it is unpacked again
        "part.exists()",  # of a download: else it begins again
        "for folder in path.parents",  # for a message
    )
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path(sources.__path__[0]).glob("*.py"))
        for line in path.read_text().splitlines()
        if asks.search(line) and not any(each in line for each in harmless)
    ]
    assert found == []
