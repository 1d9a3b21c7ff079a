"""Lines, tables and numbers on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console

# Progress goes to stderr, results to stdout: `thumbnet evaluate RUN --json > file` stays clean.
progress_console = Console(stderr=True, highlight=False)


def say(text: str = "") -> None:
    """A line of results, to stdout."""
    print(text, flush=True)


def json_line(value: object) -> str:
    """A value as one line of JSON, readable but without control characters, even those that JSON allows."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def note(text: str) -> None:
    """A line that is no result, to stderr."""
    print(text, file=sys.stderr, flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """An aligned table in plain text; the first ``left`` columns to the left, the others to the right.

    A row may be short: then its last cell takes what room it needs.
    """
    cells = [list(headers), *(list(row) for row in rows)]
    widths = [_width(head) for head in headers]
    for row in cells:
        whole = row if len(row) == len(headers) else row[:-1]
        for column, text in enumerate(whole):
            widths[column] = max(widths[column], _width(text))
    lines = []
    for row in cells:
        parts = []
        for column, text in enumerate(row):
            space = " " * (widths[column] - _width(text))
            last = column == len(row) - 1 < len(headers) - 1
            parts.append(text + space if column < left or last else space + text)
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _width(text: str) -> int:
    from rich.cells import cell_len  # Chinese characters take two columns

    return cell_len(text)


def duration(seconds: float) -> str:
    """75 → ``1:15``; 3700 → ``1:01:40``; under a minute with a decimal."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
