"""The documentation site as it is built: languages, links, tables, and lines of code that fit the page."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import unicodedata
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COLUMNS = 91  # of code, in a window of 1280 pixels: docs/stylesheets/site.css
LIST_COLUMNS = 5  # by which a list indents what is in it
INLINE = {"a", "abbr", "code", "del", "em", "mark", "span", "strong", "sub", "sup"}
# Chinese punctuation; Chinese characters and punctuation.
MARK = r"[\u3000-\u303f\uff00-\uffef]"
CHINESE = r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]"
GAP = re.compile(rf"(?:{CHINESE}\s+{CHINESE}|{MARK}\s+[^\s\0]|[^\s\0]\s+{MARK}).{{,9}}")


class Page(HTMLParser):
    """What the tests need of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.language = ""
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.navigation: list[str] = []
        self.switch: str | None = None
        self.heads: list[str] = []
        self.code: list[tuple[int, str]] = []  # how many lists a block lies in, and its text
        self.prose: list[str] = []  # with a line break between blocks
        self._open: defaultdict[str, int] = defaultdict(int)
        self._navigation = 0
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        classes = found.get("class", "").split()
        self._open[tag] += 1
        if tag == "html":
            self.language = found.get("lang", "")
        if "id" in found:
            self.ids.add(found["id"])
        if tag == "nav" and ("md-nav--primary" in classes or self._navigation):
            self._navigation += 1
        link = found.get("href") or found.get("src")
        if link and tag in ("a", "img", "link", "script"):
            self.links.append(link)
            if self._navigation and "md-nav__link" in classes:
                self.navigation.append(link)
            if "md-header__language" in classes:
                self.switch = link
        if tag == "th":
            self.heads.append("")
        elif tag == "pre":
            self.code.append((self._open["li"], ""))
        if tag not in INLINE:
            self.prose.append("\0")

    def handle_endtag(self, tag: str) -> None:
        self._open[tag] -= 1
        if tag == "nav" and self._navigation:
            self._navigation -= 1
        if tag not in INLINE:
            self.prose.append("\0")

    def handle_data(self, data: str) -> None:
        if not self._open["article"]:
            return
        if self._open["th"]:
            self.heads[-1] += data
        if self._open["pre"]:
            depth, text = self.code[-1]
            self.code[-1] = (depth, text + data)
        else:
            self.prose.append(data)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site: what `make docs` left in build/site, or a new one if the pages have changed since."""
    pytest.importorskip("mkdocs", reason="the site's programs are not installed")
    built = ROOT / "build" / "site"
    sources = [ROOT / "mkdocs.yml", *(path for path in DOCS.rglob("*") if "__pycache__" not in path.parts)]
    newest = max(path.stat().st_mtime for path in sources)
    if (built / "index.html").exists() and (built / "index.html").stat().st_mtime > newest:
        return built
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True)
    return folder


@functools.cache
def read(folder: Path) -> dict[str, Page]:
    return {path.relative_to(folder).as_posix(): Page(path) for path in sorted(folder.rglob("*.html"))}


@pytest.fixture
def pages(site: Path) -> dict[str, Page]:
    """The site's pages by their path."""
    return {path: page for path, page in read(site).items() if path != "404.html"}


def is_chinese(path: str) -> bool:
    return "/zh/" in f"/{path}"


def other_language(path: str) -> str:
    """Where a page is in the other language, whether it exists or not."""
    folder, _, name = f"/{path}".rpartition("/")
    folder = folder.removesuffix("/zh") if is_chinese(path) else f"{folder}/zh"
    return f"{folder}/{name}"[1:]


def target(path: str, link: str) -> str:
    """The path within the site to which a link on the page ``path`` leads."""
    return os.path.normpath(os.path.join(os.path.dirname(path), unquote(urlsplit(link).path)))


def columns(line: str) -> int:
    """How many columns a line of code takes; a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in set(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = target(path, link) if parts.path else path
            if not (site / there).is_file():
                broken.append(f"{path}: {link}")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].ids:
                broken.append(f"{path}: {link}: no such heading")
    assert broken == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_lines_of_code_fit_the_page(pages: dict[str, Page]) -> None:
    blocks = [(path, *block) for path, page in pages.items() for block in page.code]
    for name in ("README.md", "README.zh.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text("utf-8")
        blocks += [
            (name, 0, found) for found in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        ]
    long = [
        f"{path}: {line}"
        for path, depth, block in blocks
        for line in block.split("\n")
        if columns(line) > COLUMNS - LIST_COLUMNS * depth
    ]
    assert long == []
    assert len(blocks) > 200


def test_no_head_of_a_table_is_empty(pages: dict[str, Page]) -> None:
    assert [path for path, page in pages.items() if "" in map(str.strip, page.heads)] == []
    assert sum(len(page.heads) for page in pages.values()) > 200


def test_each_page_names_its_language(pages: dict[str, Page]) -> None:
    assert {path: page.language for path, page in pages.items()} == {
        path: "zh" if is_chinese(path) else "en" for path in pages
    }
    assert sum(map(is_chinese, pages)) > 8


def test_no_line_end_becomes_a_space_between_chinese_characters(pages: dict[str, Page]) -> None:
    """Browsers show a line end as a space. So a Chinese paragraph is one line in its source."""
    texts = {path: "".join(page.prose) for path, page in pages.items() if is_chinese(path)}
    wrong = {path: GAP.findall(text) for path, text in texts.items()}
    assert {path: found for path, found in wrong.items() if found} == {}


def test_the_chinese_readme_has_no_line_ends_between_chinese_characters() -> None:
    text = (ROOT / "README.zh.md").read_text("utf-8")
    assert re.findall(rf"{CHINESE}[*`)]*\n[*`\[]*{CHINESE}", text) == []


def test_each_language_has_a_navigation_of_its_own(pages: dict[str, Page]) -> None:
    """The Chinese one leads to the English page where there is no translation."""
    english = {path for path in pages if not is_chinese(path)}
    chinese = {other_language(path) if other_language(path) in pages else path for path in english}
    assert len(chinese - english) > 8
    for path, page in pages.items():
        links = {target(path, link) for link in page.navigation if urlsplit(link).path not in ("", ".")} | {
            path
        }
        assert links == (chinese if is_chinese(path) else english), path


def test_the_switch_leads_to_the_same_page_in_the_other_language(pages: dict[str, Page]) -> None:
    """From an English page without a translation it leads to the Chinese home page."""
    for path, page in pages.items():
        same = other_language(path)
        assert page.switch is not None, path
        assert target(path, page.switch) == (same if same in pages else "zh/index.html"), path
        assert is_chinese(path) <= (same in pages)
