"""Print lines, and format tables and numbers for the terminal."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence

from rich.console import Console

from thumbnet.cli.streams import ResultsLostError, discard_results, tell, writing_results
from thumbnet.data.listings import csv_text
from thumbnet.errors import harmless

# Progress goes to stderr, results to stdout: `thumbnet evaluate RUN --json > file` stays clean.
progress_console = Console(stderr=True, highlight=False)


def say(text: str = "") -> None:
    """Print a line of results to stdout; see :func:`plain`."""
    with writing_results():
        print(plain(text), flush=True)


def announce(text: str) -> None:
    """Print a line to stdout; on stderr instead if stdout cannot be written. A service goes on either way."""
    try:
        say(text)
    except (ResultsLostError, BrokenPipeError) as error:
        discard_results()
        note(f"thumbnet: {error}")
        note(text)


def plain(text: str) -> str:
    """Escape what a terminal obeys. Every text that a command prints passes here, with all names in it."""
    return harmless(text, keep="\n\t")


def say_sentence(text: str) -> None:
    """Print a line of results. A terminal gets it broken between words; a file or pipe gets it whole."""
    if sys.stdout.isatty():
        text = textwrap.fill(
            text,
            shutil.get_terminal_size().columns,
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    say(text)


def json_line(value: object) -> str:
    """Format a value as one line of JSON.

    Text in any language stays readable; characters that are not printable are escaped, even where JSON allows
    them.
    """
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def write_row(*cells: str) -> None:
    """Write a row of CSV to stdout; the cells are safe already, see :mod:`thumbnet.data.listings`."""
    with writing_results():
        sys.stdout.write(csv_text([cells]))


def note(text: str) -> None:
    """Print a line that is not part of the result to stderr; see :func:`plain` and :func:`tell`."""
    tell(plain(text))


def is_live() -> bool:
    """Whether progress is a bar that moves. On a terminal that cannot move the cursor, rich draws nothing."""
    return progress_console.is_terminal and not progress_console.is_dumb_terminal


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Format a plain-text table: the first ``left`` columns are left-aligned, the others right-aligned.

    A row may have fewer cells than ``headers``. Its last cell may then be wider than its column.
    """
    cells = [list(headers), *(list(row) for row in rows)]
    widths = [_width(head) for head in headers]
    for row in cells:
        bounded = row if len(row) == len(headers) else row[:-1]
        for column, text in enumerate(bounded):
            widths[column] = max(widths[column], _width(text))
    lines = []
    for row in cells:
        parts = []
        for column, text in enumerate(row):
            space = " " * (widths[column] - _width(text))
            unbounded = column == len(row) - 1 < len(headers) - 1
            parts.append(text + space if column < left or unbounded else space + text)
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _width(text: str) -> int:
    from rich.cells import cell_len  # Chinese characters take two columns

    return cell_len(text)


def duration(seconds: float) -> str:
    """Format seconds: 12.34 gives ``12.3 s``, 75 gives ``1:15``, and 3700 gives ``1:01:40``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
