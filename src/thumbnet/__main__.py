"""Start the command, as ``thumbnet`` or ``python -m thumbnet``, and handle Ctrl-C."""

import atexit
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> int:
    """Run the command with the arguments of this process and return the exit status."""
    try:
        # Jobs that a shell script starts in the background ignore SIGINT: leave that as it is.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
        if not _is_somewhere():
            _say("thumbnet: the current folder has been deleted: cd to one that exists")
            return 2
        from thumbnet import cli
        from thumbnet.cli.importing import share_cores
        from thumbnet.cli.streams import open_standard_files
        from thumbnet.invocation import processes

        open_standard_files()
        share_cores()
        status = cli.main()
    except BaseException as error:
        if not _is_of_interrupt(error):
            raise
        _say_stopped()
        _flush()
        return 130
    _flush()
    if processes() > 1:
        _exit_at_once(status)
    return status


def _exit_at_once(status: int) -> NoReturn:
    """End one of several processes without taking Python apart.

    A thread of gloo's that is left may want Python's lock to free a tensor. At exit, Python ends such a
    thread in a way that aborts the process ("terminate called without an active exception"). A process of our
    tests ended so, in one of some hundred trainings (PyTorch 2.13).
    """
    atexit._run_exitfuncs()
    _flush()
    os._exit(status)


def _flush() -> None:
    """Flush stdout and stderr, and discard what cannot be written or what Ctrl-C gives up.

    Otherwise Python would try again at exit, fail, and exit with status 120.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, KeyboardInterrupt):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Python does, but exit at once while a module is being imported.

    There, an exception may not come through as what it is. Within torch's C++ code, it may abort the process:
    it did in 1 % of 200 interrupted imports. Within ``__set_name__``, which Python calls for every member of
    an enumeration, Python 3.11 makes a RuntimeError of it. An import has nothing to save, and a training,
    which has, handles the signal itself (see :mod:`thumbnet.training.stopping`).
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _say_stopped()
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _is_of_interrupt(error: BaseException | None) -> bool:
    """Whether this is a KeyboardInterrupt, or an error that came up while one was handled.

    Libraries put things in order when they are interrupted, and may fail at that: argparse does, in one of
    some thousand command lines that were interrupted.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_somewhere() -> bool:
    """Whether the current folder is still there. Without it, libraries fail or end the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _say_stopped() -> None:
    _say("\nthumbnet: stopped")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
