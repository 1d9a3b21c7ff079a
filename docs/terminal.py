"""Draws the picture of the terminal that README.md and the home page show.

    make picture

It runs a real command in a pseudo-terminal of 80 columns and saves what is on the screen at the end. A test
compares the picture with what the program prints now, apart from the numbers.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.text import Text

COMMAND = "thumbnet train digits --epochs 8"
COLUMNS = 80
IMAGE = Path(__file__).with_name("images") / "terminal.svg"
# The codes by which rich moves the cursor and erases lines. Colours stay in the text.
CONTROL = re.compile(r"(\r|\n|\x1b\[\d*[AK]|\x1b\[\?25[lh])")


def record(command: str) -> str:
    """Run the command in an empty folder and return everything that it writes to its terminal.

    Raises:
        RuntimeError: the command fails.
    """
    programs = Path(sys.executable).parent  # the `thumbnet` command of this environment
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": str(COLUMNS),
        "TERM": "xterm-256color",
    }
    ours, theirs = pty.openpty()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command.split(), cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        written = b""
        try:
            while block := os.read(ours, 65536):
                written += block
        except OSError:  # Linux raises this, instead of returning b"", once the other end is closed
            pass
        if process.wait() != 0:
            raise RuntimeError(f"{command} failed:\n{written.decode()}")
    return written.decode()


def screen(written: str) -> list[str]:
    """Return the lines that remain on the screen, with their colours.

    Rich erases a line before it writes it again, so each line is only cleared and appended to.
    """
    lines, row = [""], 0
    for part in CONTROL.split(written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.startswith("\x1b[") and part.endswith("A"):
            row = max(0, row - int(part[2:-1] or 1))
        elif part.startswith("\x1b[") and part.endswith("K"):
            lines[row] = ""
        elif part != "\r" and not part.startswith("\x1b[?25"):
            lines[row] += part
    return lines


def draw(command: str, lines: list[str], path: Path) -> None:
    """Save the prompt, the command and its output as an SVG that loads no fonts from elsewhere."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(f"[bold]$ {command}[/]", highlight=False)
        for line in Text.from_ansi("\n".join(lines).rstrip()).split():
            for part in line.divide(range(COLUMNS, len(line), COLUMNS)):  # as a terminal breaks lines
                console.print(part, soft_wrap=True, highlight=False)
        picture = console.export_svg(title="thumbnet", unique_id="terminal")
    path.write_text(re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL))


def words(path: Path) -> list[str]:
    """Return the words that a picture made by :func:`draw` shows, the prompt and the command first."""
    texts = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    shown = [text.text or "" for text in texts if text.get("class") != "terminal-title"]
    return " ".join(shown).split()


if __name__ == "__main__":
    draw(COMMAND, screen(record(COMMAND)), IMAGE)
