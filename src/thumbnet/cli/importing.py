"""Import PyTorch and the modules that use it in less time, and load the network of a command."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from thumbnet.errors import RecipeError

if TYPE_CHECKING:
    from thumbnet.classifiers.base import Classifier

_SPINS = "15000"  # 0.2 ms on a Xeon


def share_cores() -> None:
    """Let threads that wait for each other give way to other programs after 0.2 ms.

    GNU's OpenMP lets them keep their cores for 300,000 turns of a loop, which is 4 ms on a Xeon. While
    another program runs, a spinning thread often occupies the core that the thread it is waiting for needs.
    With this, two trainings at a time are a third faster, and one alone is as fast (docs/notebook/speed.md).

    It must be called before PyTorch is imported, and changes nothing if the user has chosen.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


@contextmanager
def importing() -> Iterator[None]:
    """Within, pause Python's garbage collector; afterwards, let it ignore all that exists by then.

    Importing PyTorch creates 300,000 objects that stay. The collector would go through them 400 times during
    the import, and again when the process ends, which takes a quarter of the time of ``import torch``.

    If PyTorch is imported already, nothing changes.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def load_network(options: argparse.Namespace) -> Classifier:
    """Load the network ``options.run`` as the options say.

    PyTorch then keeps the memory that it frees, which the next batch needs again: the process ends with the
    command. A program that calls :func:`thumbnet.load_classifier` may need that memory for other work.
    """
    from thumbnet.classifiers.load import load_classifier

    with importing():
        classifier = load_classifier(options.run, options.device, threads=options.threads)
    if sys.modules.get("torch") is not None:
        from thumbnet.hardware import keep_freed_memory

        keep_freed_memory()
    note_mirrored_views(options)
    return classifier


def note_mirrored_views(options: argparse.Namespace) -> None:
    """Warn if ``--tta`` shows mirrored pictures to the network of a run that was trained without them.

    Only a run has a recipe that tells: a file of weights does not.
    """
    tta = getattr(options, "tta", None)
    if tta in (None, "none"):
        return
    from thumbnet.cli.console import note
    from thumbnet.runs.provenance import recipe_of, run_folder

    with suppress(RecipeError):  # predicting needs no recipe
        if run_folder(options.run) and recipe_of(options.run).augment.flip == "none":
            from thumbnet.training.mirror_names import shows_mirrored

            note("thumbnet: " + shows_mirrored(f"--tta {tta}"))
