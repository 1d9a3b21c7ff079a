"""The examples in public docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from thumbnet.runs.folder import Run


@pytest.mark.parametrize(
    "module",
    [
        "thumbnet.sources.load",
        "thumbnet.training.train",
        "thumbnet.classifiers.torch_classifier",
        "thumbnet.models.registry",
    ],
)
@pytest.mark.usefixtures("own")  # leaves the registry of networks as it was
def test_docstring_examples(module: str, tiny_run: Run, tmp_path: Path) -> None:
    imported = importlib.import_module(module)
    run = tiny_run
    if (
        module == "thumbnet.classifiers.torch_classifier"
    ):  # its examples are about the run that train's example makes
        from thumbnet.training.train import train

        run = train("digits", "digits", overrides=["training.epochs=1"], out=tmp_path / "run", device="cpu")
    names = {**vars(imported), "tmp": tmp_path, "run": run}
    finder, runner = doctest.DocTestFinder(recurse=True), doctest.DocTestRunner()
    for test in finder.find(imported, extraglobs=names):
        if test.examples:
            test.globs.update(tmp=tmp_path, run=run)
            runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0
