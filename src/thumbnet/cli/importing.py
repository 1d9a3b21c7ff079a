"""Import PyTorch and the modules that use it in less time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
