"""Faults in this very process, which was started with shim.c preloaded (see fork_server.py).

Thousands of them cost no more than the work that they disturb: there is no fork for each.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from faults.fork_server import OPERATIONS, Call, Fault, _call, _Control, _Fault, _fill

_ATTACHED: list[_Control] = []  # the shim reads them until the process ends


class Shim:
    """The shim of this process.

    Args:
        watch: the folders below which calls count, without links in their paths.
    """

    def __init__(self, watch: Sequence[Path]) -> None:
        library = ctypes.CDLL(None)
        library.shim_size.restype = ctypes.c_size_t
        assert library.shim_size() == ctypes.sizeof(_Control)
        self._control = _Control()
        self._watch = [os.fspath(folder) for folder in watch]
        library.shim_attach(ctypes.byref(self._control))
        _ATTACHED.append(self._control)

    @contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        """In this block, one call fails; :attr:`failed` says which."""
        self._control.fault[0] = _Fault()
        self._control.counts = (ctypes.c_int64 * len(OPERATIONS))()
        self._control.logged = 0
        _fill(self._control, {"watch": self._watch, "faults": [asdict(fault)]})
        self._control.armed = 1
        try:
            yield
        finally:
            self._control.armed = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many calls of each operation the last block made."""
        return dict(zip(OPERATIONS, self._control.counts, strict=True))

    @property
    def failed(self) -> Call | None:
        """What the last fault met; None if it was not reached."""
        met = self._control.fault[0]
        return Call(*_call(met)) if met.fired else None
