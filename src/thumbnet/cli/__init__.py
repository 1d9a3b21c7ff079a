"""The ``thumbnet`` command: parse the command line, call the library, print the result.

Each command has a module with its parser and its function; console.py and views.py print. Functions import
heavy modules themselves, so that ``thumbnet --help`` answers at once.

The exit status is 0 for success; 1 if some pictures could not be read, or another process of the training
was lost; 2 for an error that the user can fix; 129 after SIGHUP; 130 after Ctrl-C; 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from thumbnet.cli import (
    compare,
    completion,
    data,
    evaluate,
    export,
    lr_find,
    predict,
    push,
    recipes,
    repeat,
    report,
    review,
    serve,
    sort,
    train,
    tune,
)
from thumbnet.cli.options import by_option, import_model_code
from thumbnet.cli.streams import ResultsLostError, discard_results, flush_results, tell
from thumbnet.cli.usage import Parser, UsageError, unrecognised, with_subparsers
from thumbnet.errors import (
    DataWarning,
    FallbackWarning,
    MissingExtraError,
    ModelCodeError,
    OutOfMemoryError,
    ThumbnetError,
    is_out_of_memory,
    printable,
)
from thumbnet.invocation import command, program, rank
from thumbnet.training.stopping import Terminated
from thumbnet.version import __version__

COMMANDS = (
    train,
    repeat,
    tune,
    evaluate,
    predict,
    sort,
    compare,
    report,
    review,
    export,
    push,
    serve,
    data,
    recipes,
    lr_find,
    completion,
)
FULL = "Use less at a time (--batch-size, --set evaluation.batch_size) or close other programs"
OTHERS = "Close other programs that use much memory"  # for commands without these options
_TRAIN_MODULES = ("torch", "safetensors", "psutil", "filelock")  # installed by the extra `train`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: the process's own) and return its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold bytes that are not text
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # thumbnet's errors say what is wrong with a picture
    words = sys.argv[1:] if arguments is None else list(arguments)
    with _plain_warnings():
        return _run(words)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """In this block, print thumbnet's own warnings as lines, without the place in its code."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, FallbackWarning | DataWarning):
            tell(f"thumbnet: {printable(str(message))}")
        else:
            others(message, category, *rest, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = others


def _run(words: Sequence[str]) -> int:
    """Run the command of ``words`` and return its exit status."""
    try:
        try:
            options = parse(words)
        except SystemExit:  # after --help and --version
            flush_results()
            raise
        import_model_code(options)
        status: int = options.command(options)
        flush_results()
        return status
    except ModuleNotFoundError as error:
        if error.name not in _TRAIN_MODULES:
            raise
        tell(f"thumbnet: {MissingExtraError('this command', 'train')}")
        return 2
    except ThumbnetError as error:
        if isinstance(error, ResultsLostError):
            discard_results()
        if rank() == 0:
            tell(f"thumbnet: {by_option(str(error), words)}{_how_to_allow(error, words)}")
        elif error.exit_status < 128:  # 128 and above: stopped, which only rank 0 reports
            tell(f"thumbnet (process {rank()}): {error}")
        return error.exit_status
    except Terminated as error:
        return error.exit_status
    except KeyboardInterrupt:
        tell("\nthumbnet: stopped")
        return 130
    except (RuntimeError, MemoryError) as error:  # the last resort: wherever memory ran out, say so
        if not is_out_of_memory(error):
            raise
        advice = FULL if words[0] in ("train", "repeat", "tune", "lr-find") else OTHERS
        tell(f"thumbnet: {OutOfMemoryError('this computer', f'in {words[0]}', advice)}")
        return 2
    except BrokenPipeError:  # the reader of a pipe has ended: `thumbnet predict ... | head`
        discard_results()
        return 141  # 128 + SIGPIPE, the convention of shells
    except OSError as error:  # the last resort: wherever the system refused something, say what
        if error.errno is None:
            raise
        tell(f"thumbnet: {_refused(error, words)}")
        return 2


def _refused(error: OSError, words: Sequence[str]) -> str:
    """What the system refused, in one line."""
    what = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
    return printable(f"{words[0]} cannot use{what or ' a file'}: {error.strerror or error}")


def _how_to_allow(error: ThumbnetError, words: Sequence[str]) -> str:
    """Show the whole command that allows the network's code if ``error`` says that it is not allowed."""
    if not isinstance(error, ModelCodeError):
        return ""
    return f"\nThe command that allows it: {command(words[0], '--model-code', error.code, *words[1:])}"


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. The options have its ``words``, so that a message can repeat it.

    Raises:
        UsageError: the command line is invalid; the message says what to write instead.
    """
    parser = build_parser(program())
    if words and words[0].startswith("-") and words[0] not in parser._option_string_actions:
        first = command("train", "digits", "--epochs", "10")
        raise UsageError(f"{printable(words[0])}: a command comes first, then its options, as in: {first}")
    options: argparse.Namespace
    options, rest = parser.parse_known_args(words)
    if rest:
        raise UsageError(unrecognised(options.parser, rest, words))
    options.words = list(words)
    return options


def build_parser(prog: str = "thumbnet") -> Parser:
    """Build the parser of all commands. Each command sets ``command`` to its function of the parsed options.

    Args:
        prog: the command that starts thumbnet, for the help texts.
    """
    parser = Parser(
        prog=prog,
        description="Train classifiers of small pictures from scratch, on the computer that you have.",
        epilog="To start: %(prog)s train digits",
    )
    parser.add_argument("--version", action="version", version=f"thumbnet {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for each in COMMANDS:
        each.add(commands)
    for inner in with_subparsers(parser):
        inner.set_defaults(parser=inner, build_parser=build_parser)
    return parser
