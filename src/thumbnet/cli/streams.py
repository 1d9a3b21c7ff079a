"""What a command writes to stdout and stderr, also when they are closed or their disk is full.

Results go to stdout; if they are lost, that is an error. Everything else goes to stderr, and no work depends
on it. Imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from thumbnet.errors import ThumbnetError


class ResultsLostError(ThumbnetError):
    """The results cannot be written to stdout."""


@contextmanager
def writing_results() -> Iterator[None]:
    """In this block, which writes to stdout, a full disk is a :class:`ResultsLostError`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ResultsLostError(f"cannot write the results to stdout: {error.strerror}") from None


def tell(text: str) -> None:
    """Print a line to stderr. If it cannot be written, it is lost, and the work goes on.

    The disk may be full, the terminal closed, or the reader of a pipe gone: Ctrl-C also ends the ``tee`` of
    ``thumbnet train ... 2>&1 | tee log``.
    """
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def flush_results() -> None:
    """Write what stdout still holds.

    Raises:
        ResultsLostError: stdout is on a full disk.
    """
    with writing_results():
        sys.stdout.flush()


def discard_results() -> None:
    """Send the rest of stdout nowhere, so that Python does not fail on it when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_standard_files() -> None:
    """Open the null device in place of stdin, stdout and stderr if the process was started without them.

    Otherwise the next file that is opened would take their number, and whatever C code prints would be
    written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
