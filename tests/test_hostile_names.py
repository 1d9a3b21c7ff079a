"""Names of files from strangers reach no terminal, log, page or table in a form that does something there.

The pictures of one data set have names that would set a terminal's title, turn text around, break lines, be
computed by a spreadsheet, or be a script in a page. They pass through every command.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cli_helpers import SETTINGS, epochs, run_cli
from helpers import coloured, write_picture
from thumbnet.cli import main
from thumbnet.data.corrections import read_corrections
from thumbnet.runs.folder import Run

ESCAPES = "\x1b]0;PWNED\x07\x1b[2J"
NAMES = [
    f"{ESCAPES}.png",
    "\u202egnp.exe.png",
    "a\nb.png",
    '=HYPERLINK("http:evil").png',
    "<script>alert(1)<b>.png",
    "a\rb.png",
]
CLASSES = ["=1+1", "<b>blue", "@SUM(A1)"]
# What a terminal obeys, apart from ends of lines and tabs.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "data"
    for offset, split in enumerate(("train", "test")):
        for label, name in enumerate(CLASSES):
            for number, file in enumerate(NAMES):
                image = coloured(label, 1000 * offset + 100 * label + number, 16)
                write_picture(root / split / name / file, image)
    shutil.copy(root / "train" / CLASSES[0] / NAMES[0], root / "train" / CLASSES[1] / f"twice {NAMES[0]}")
    (root / "train" / CLASSES[0] / f"{ESCAPES}.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile run") / "run"
    given: list[str | Path] = ["train", data, "--recipe", "one-cycle", *SETTINGS, *epochs(1), "--out", out]
    status, printed, told = run_cli(*given)
    assert status == 0, told
    harmless(printed, told)
    return out


@pytest.fixture(scope="module")
def report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the run, with its lists next to it."""
    page = tmp_path_factory.mktemp("hostile report") / "report.html"
    assert run_cli("report", run, "--out", page)[0] == 0
    return page


def harmless(*texts: str) -> None:
    for text in texts:
        assert OBEYED.search(text) is None, text
        assert not any(line.startswith("b.png") for line in text.splitlines())  # the end of "a\nb.png"


def test_no_command_prints_what_a_terminal_obeys(data: Path, run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / NAMES[0]
    broken.parent.mkdir()
    broken.write_bytes(b"no picture")
    commands: list[tuple[int, list[str | Path]]] = [
        (0, ["data", data]),
        (0, ["data", data, "--json"]),
        (0, ["evaluate", run]),
        (0, ["evaluate", run, "--json"]),
        (0, ["predict", run, data / "test"]),
        (0, ["predict", run, data / "test", "--json"]),
        (0, ["predict", run, data / "test", "--csv"]),
        (1, ["predict", run, broken]),
        (1, ["predict", run, broken, "--json"]),
        (1, ["predict", run, broken, "--csv"]),
        (1, ["sort", run, broken.parent, "--into", tmp_path / "sorted", "--threshold", "0"]),
        (2, ["data", tmp_path / NAMES[0]]),
        (2, ["train", data / NAMES[2]]),
        (2, ["evaluate", tmp_path / NAMES[0]]),
        (2, ["train", "digits", "--out", broken]),
        (2, ["train", "digits", "--set", f"{ESCAPES}=1"]),
        (2, [ESCAPES]),
        (2, ["review", run, f"--{ESCAPES}"]),
    ]
    for expected, arguments in commands:
        status, printed, told = run_cli(*arguments)
        assert status == expected, told
        harmless(printed, told)


def test_json_lines_give_back_the_exact_names(data: Path, run: Path) -> None:
    _, printed, _ = run_cli("predict", run, data / "test" / CLASSES[0], "--json")
    assert {Path(json.loads(line)["path"]).name for line in printed.splitlines()} == set(NAMES)


def cells_of(text: str) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(text)) for cell in row]


def test_no_table_has_a_cell_that_a_spreadsheet_computes(
    data: Path, run: Path, report: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(data / "test" / CLASSES[0], pictures)
    assert run_cli("sort", run, ".", "--csv", "sorted.csv", "--threshold", "0", cwd=pictures)[0] == 0
    names = [str(path) for path in sorted(Path(pictures).iterdir()) if path.suffix == ".png"]
    _, predicted, _ = run_cli("predict", run, *[Path(name).name for name in names], "--csv", cwd=pictures)
    lists = [path.read_text("utf-8") for path in report.parent.glob("*s.csv")]
    assert len(lists) == 2
    for text in (predicted, (pictures / "sorted.csv").read_text("utf-8"), *lists):
        assert OBEYED.search(text) is None
        assert not [cell for cell in cells_of(text) if re.match(r"\s*[=@]|[+-]\D", cell)]


def test_labels_are_safe_to_open_and_read_back_exactly(tmp_path: Path) -> None:
    from review_helpers import correction
    from thumbnet.data.corrections import write_corrections

    given = [correction(name, label, was="-2+3") for name in (*NAMES, "./=x", "-1") for label in ("'=1+1",)]
    write_corrections(tmp_path / "labels.csv", given)
    assert read_corrections(tmp_path / "labels.csv") == given
    text = (tmp_path / "labels.csv").read_text("utf-8")
    assert not [cell for cell in cells_of(text) if re.match(r"\s*[=@]|[+-]\D|-2", cell)]


class Tags(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, name, value) for name, value in attrs] or [(tag, "", None)]


def test_a_report_shows_names_as_text(report: Path) -> None:
    page = report.read_text("utf-8")
    assert OBEYED.search(page) is None
    assert "<script>alert" not in page
    tags = Tags()
    tags.feed(page)
    assert not [
        tag for tag in tags.found if tag[1].startswith("on") or (tag[2] or "").startswith("javascript:")
    ]


def test_the_services_answers_and_logs_have_no_raw_names(run: Path, data: Path) -> None:
    from starlette.testclient import TestClient

    from thumbnet.classifiers.load import load_classifier
    from thumbnet.serving.access_log import AccessLog
    from thumbnet.serving.service import ServiceSettings, build_service

    picture = (data / "test" / CLASSES[0] / NAMES[0]).read_bytes()
    for style in ("plain", "json"):
        lines: list[str] = []
        log = AccessLog(lines.append, style)
        with TestClient(
            build_service(load_classifier(run, "cpu"), ServiceSettings(), access_log=log)
        ) as client:
            form: Any = {"file": (NAMES[0], picture, "image/png")}
            answer = client.post("/predict", files=form)
            broken: Any = {"file": (NAMES[1], b"no picture", "image/png")}
            refused = client.post("/predict", files=broken, headers={"User-Agent": "x\x1b[2J"})
            client.get(f"/{quote(ESCAPES)}")
        assert (answer.status_code, refused.status_code) == (200, 415)
        assert len(lines) == 3
        harmless(refused.json()["detail"], *lines)


def test_archives_and_layouts_that_are_refused_name_members_harmlessly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tarfile.TarInfo(f"a/{ESCAPES}")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(link)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "empty" / ESCAPES).mkdir()
    only = tmp_path / "only"
    for split, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", ESCAPES)):
        write_picture(only / split / name / "1.png", coloured(0, 1, 16))
    for place in (tmp_path / "x.tar", tmp_path / "empty", only):
        assert main(["data", str(place)]) == 2
        told = capsys.readouterr()
        harmless(told.out, told.err)


def test_the_hostile_run_is_complete(run: Path) -> None:
    assert Run.open(run).is_complete
    for name in ("summary.json", "run.json", "metrics.csv"):
        harmless((run / name).read_text("utf-8"))
