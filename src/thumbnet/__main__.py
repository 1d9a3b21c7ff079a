"""The process ``thumbnet``, or ``python -m thumbnet``: the command, and what Ctrl-C does to it."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """The command with the process' own arguments; the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # by nohup it is ignored
        signal.signal(signal.SIGINT, _interrupt)
    from thumbnet import cli

    return cli.main()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Python does; but while torch is imported, end here.

    An exception within its C++ code may abort the process: one in a hundred did, of 200 interrupted there.
    """
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch" and frame.f_code.co_name == "<module>":
            print("\nthumbnet: stopped", file=sys.stderr, flush=True)
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
