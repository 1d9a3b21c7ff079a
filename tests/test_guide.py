"""The guide's programs run and are the same in both languages."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

from program_helpers import run_here

GUIDE = Path(__file__).parents[1] / "docs" / "guide"
CHAPTERS = sorted(path.name for path in GUIDE.glob("*.md"))
WRITE_FOLDERS = ("2-data.md", "5-measuring.md")  # a reader runs these again where the folders are already
WRITES = re.compile(r"\bsave\(|\bout=")  # in the programs that then find what they wrote


def programs(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def tokens_of(program: str) -> list[str]:
    """The tokens of a program without comments, docstrings and line breaks."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE}
    tokens = [
        one for one in tokenize.generate_tokens(io.StringIO(program).readline) if one.type not in skipped
    ]
    return [one.string for one in tokens if not one.string.startswith('"""')]


@pytest.mark.parametrize("name", [name for name in CHAPTERS if programs(GUIDE / name)])
def test_the_programs_of_a_chapter_run(name: str, tmp_path: Path) -> None:
    written = programs(GUIDE / name)
    again = [one for one in written if WRITES.search(one)] if name in WRITE_FOLDERS else []
    assert bool(again) is (name in WRITE_FOLDERS)
    run_here([*written, *again], tmp_path)


def test_both_languages_have_the_same_chapters() -> None:
    assert sorted(path.name for path in (GUIDE / "zh").glob("*.md")) == CHAPTERS
    assert len([name for name in CHAPTERS if re.match(r"\d", name)]) == 6


@pytest.mark.parametrize("name", CHAPTERS)
def test_both_languages_have_the_same_programs_commands_and_pictures(name: str) -> None:
    ours, theirs = GUIDE / name, GUIDE / "zh" / name
    assert [tokens_of(one) for one in programs(ours)] == [tokens_of(one) for one in programs(theirs)]
    for pattern in (r"```sh\n(.*?)```", r"\((?:\.\./)+(images/[^)]+)\)", r"(https://[^)\s]+)"):
        found = [re.findall(pattern, page.read_text("utf-8"), re.DOTALL) for page in (ours, theirs)]
        assert found[0] == found[1]
