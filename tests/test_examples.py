"""The examples run and print what they should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from program_helpers import NARROW, run_here, run_program

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWS = {
    "ten_lines.py": r"test accuracy (9\d|100)\.\d\d %, in runs/.*\na \d, with a probability of 0\.\d\d",
    "own_network.py": r"accuracy (9\d|100)\.\d\d %, in runs/.*\n\d",
    "custom_augmentation.py": r"accuracy (9\d|100)\.\d\d %, in runs/",
    "custom_loss.py": r"accuracy (9\d|100)\.\d\d %, in runs/",
    "custom_recipe.py": r'name = "adamw"(.*\n)+mine: (9\d|100)\.\d\d %.*\ndigits: (9\d|100)\.\d\d %',
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHOWS)


@pytest.mark.parametrize("name", SHOWS)
@pytest.mark.usefixtures("own")  # restores the registries of networks and functions afterwards
def test_every_example_program_runs(name: str, tmp_path: Path) -> None:
    """The shortest one runs in a process of its own, in which nothing is imported yet."""
    program = f"import runpy\nrunpy.run_path({str(EXAMPLES / name)!r}, run_name='__main__')"
    printed = run_program(program, tmp_path) if name == "ten_lines.py" else run_here([program], tmp_path)
    assert re.search(SHOWS[name], printed), printed


def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # the committed notebook has no outputs
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NARROW))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    (accuracy,) = re.findall(r"accuracy (\d+\.\d+) %, 95", "".join(printed))
    assert float(accuracy) > 90
    assert "epoch 4/4  loss" in "".join(printed)  # training shows its progress
    streams = {o["name"] for cell in notebook.cells for o in cell.get("outputs", []) if "name" in o}
    assert streams == {"stdout"}  # notebooks show stderr in red, like an error
    (drawn,) = [cell for cell in notebook.cells if "confusion_figure(" in cell.source]
    assert drawn.outputs[-1]["data"]["image/png"].startswith("iVBORw0KGgo")  # PNG
    pictures = [
        o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 3
