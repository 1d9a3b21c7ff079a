"""The examples in docstrings work, and the site shows them as code."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import thumbnet
from program_helpers import narrow
from thumbnet.runs.folder import Run

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in sorted((ROOT / "src" / "thumbnet").rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of the example of ``train``, which other examples load."""
    out = tmp_path_factory.mktemp("digits") / "run"
    settings = ["training.epochs=1"]
    with narrow():
        return thumbnet.train("digits", "digits", overrides=settings, out=out, device="cpu", progress=False)


@pytest.mark.parametrize("module", EXAMPLES)
@pytest.mark.usefixtures("own")  # restores the registry of networks afterwards
def test_docstring_examples_give_the_results_that_they_show(
    module: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    imported = importlib.import_module(module)
    given: dict[str, object] = {"load_classifier": thumbnet.load_classifier, "tmp": tmp_path}
    if module.startswith("thumbnet.classifiers."):
        given["run"] = request.getfixturevalue("digits_run")
    finder, runner = doctest.DocTestFinder(recurse=True), doctest.DocTestRunner()
    for test in finder.find(imported, extraglobs=given):
        if test.examples:
            with narrow() if test.name.endswith(".train") else nullcontext():
                runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0


SOURCES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("src", "benchmarks", "docs", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
SHELL = ("curl ", "git ", "make ", "pip ", "python ", "thumbnet ", "torchrun ")


def flat_code(docstring: str) -> list[str]:
    """The paragraphs of code that are neither fenced nor indented. Markdown would join their lines."""
    outside = re.sub(r"^ *```.*?^ *```$", "", inspect.cleandoc(docstring), flags=re.DOTALL | re.MULTILINE)
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", outside)]
    return [part for part in paragraphs if not part.startswith(("    ", ">>>")) and _is_code(part)]


def _is_code(paragraph: str) -> bool:
    if paragraph.startswith(SHELL) and not paragraph.endswith((".", ":")):
        return True
    if any(re.search(r"\S {2,}\S", line) for line in paragraph.splitlines() if not line.startswith(" ")):
        return True  # columns
    try:
        statements = ast.parse(paragraph).body
    except SyntaxError:
        return False
    words = (ast.Attribute, ast.Constant, ast.Name, ast.Tuple)  # "One", "One, two"
    return any(not isinstance(one, ast.Expr) or not isinstance(one.value, words) for one in statements)


def docstrings(text: str) -> list[str]:
    """Every docstring in the source of a module."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (
        ast.get_docstring(node, clean=False) for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)
    )
    return [docstring for docstring in found if docstring]


def test_code_in_a_docstring_is_fenced_or_indented() -> None:
    for path in SOURCES:
        flat = [code for docstring in docstrings((ROOT / path).read_text()) for code in flat_code(docstring)]
        assert flat == [], f"{path}: put it between ```python (or sh, text) and ```"


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", 'for one in predictor.predict(["a.png"]):\n    print(one.label)'),
        ("python", "value = measure(1)"),
        ("sh", "python benchmarks/starting.py --json starting.json"),
        ("text", "recipe.toml   every setting\nrun.json      the data"),
    ],
)
def test_the_formatter_flattens_indented_code_and_leaves_fenced_code(language: str, code: str) -> None:
    """If all lines of a docstring after the first are indented, the formatter removes the indentation."""
    indented = '"""What it does.\n\n' + "".join(f"    {line}\n" for line in code.splitlines()) + '"""\n'
    (lost,) = docstrings(formatted(indented))
    assert flat_code(lost) == [code]
    fenced = f'"""What it does.\n\n```{language}\n{code}\n```\n"""\n'
    (kept,) = docstrings(formatted(fenced))
    assert flat_code(kept) == []
    assert code in kept


def formatted(text: str) -> str:
    """The source of a module after ruff has formatted it."""
    pytest.importorskip("ruff", reason="the formatter is not installed")
    command = [sys.executable, "-m", "ruff", "format", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def test_prose_and_indented_code_are_not_taken_for_flat_code() -> None:
    for docstring in (
        "A recipe.\n\n    recipe = load_recipe('fast')\n\nIt is frozen.",
        "One, two.\n\nThree",
        "Sum of squares.\n\n>>> square_sum([3, 4])\n25",
        "Runs.\n\nArgs:\n    path: where it is.\n    name:  two spaces here.\n",
        "python is a language.\n\nthumbnet trains classifiers:\n\n    thumbnet train digits",
    ):
        assert flat_code(docstring) == []


def test_the_site_shows_examples_and_roles_as_code_and_leaves_fenced_code_alone() -> None:
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("site_docstrings", ROOT / "docs" / "docstrings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.as_markdown("See :func:`thumbnet.train`.\n\n>>> 1 + 1\n2\n") == (
        "See `train`.\n\n```pycon\n>>> 1 + 1\n2\n```\n"
    )
    fenced = "So:\n\n```pycon\n>>> 1 + 1\n2\n```\n"
    assert module.as_markdown(fenced) == fenced
