from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest

from helpers import TINY, coloured, coloured_data, write_class_folders, write_picture
from thumbnet.classifiers.load import load_run
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.cli import main
from thumbnet.data.corrections import Corrected
from thumbnet.data.splits import Data, FileSplit
from thumbnet.errors import RunError
from thumbnet.evaluation import best_f1, log_softmax, one_against_rest
from thumbnet.reports import page, pictures
from thumbnet.reports.page import write_report
from thumbnet.runs import weights
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import open_safetensors
from thumbnet.training.train import train


class Page(HTMLParser):
    """A parsed page: its tags with their attributes, and the text and links of its list items."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.items: list[dict[str, str]] = []
        self.text = ""
        self._section, self._open = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if tag == "section":
            self._section = values["aria-labelledby"]
        if tag == "li":
            self.items.append({"section": self._section, "text": "", "link": "", "pictures": ""})
            self._open = True
        if self._open and tag == "a":
            self.items[-1]["link"] = values["href"]
        if self._open and tag == "img":
            self.items[-1]["pictures"] += "x"

    def handle_endtag(self, tag: str) -> None:
        if tag == "li":
            self._open = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open:
            self.items[-1]["text"] += data

    def pictures(self, section: str) -> list[dict[str, str]]:
        return [one for one in self.items if one["section"] == section and one["pictures"]]


def test_a_report_loads_nothing_from_elsewhere(tiny_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(tiny_run, coloured_data(), "test", out)
    text = out.read_text("utf-8")
    assert not re.search(r"(?:src|action)=\"(?!data:)|@import|url\((?!#)", text)
    for tag, values in Page(text).tags:  # only links may name files, and only files next to the page
        if "href" in values and not values["href"].startswith("#"):
            assert tag == "a"
            assert values["href"] in ("mistakes.csv", "suspects.csv")
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert out.stat().st_size < 1_000_000
    names = re.findall(r'id="([^"]+)"', text)
    assert len(names) == len(set(names))
    for target in re.findall(r'(?:href="#|url\(#|xlink:href="#)([^")]+)', text):
        assert target in names
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text  # a script that a class name smuggled in would not run
    assert text.count("<img") == text.count('<img src="data:image/webp;base64,')
    assert len(re.findall(r"<img(?![^>]*alt=)", text)) == 0


ODD = ["=1+1.png", "@a.png", "a \"b\" <i>c</i> 'd'.png", "line\nbreak, with comma.png", "sub/plain.png"]


@pytest.fixture(scope="module")
def odd(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Data]:
    """A report on pictures with odd names, all labelled wrongly, and on some with the right label."""
    root = tmp_path_factory.mktemp("odd") / "my data"
    names = [*ODD]
    try:
        write_picture(root / os.fsdecode(b"\xff.png"), coloured(1, 5))
        names.append(os.fsdecode(b"\xff.png"))
    except OSError:
        pass  # this file system takes only names in UTF-8
    for number, name in enumerate(names):
        write_picture(root / name, coloured(1, number))
    right = [f"right/{number}.png" for number in range(6)]
    for number, name in enumerate(right):
        write_picture(root / name, coloured(number % 3, 50 + number))
    labels = np.array([0] * len(names) + [number % 3 for number in range(6)])
    test = FileSplit(root, [*names, *right], labels)
    data = Data("odd", "made by the test", ("red", "green", "blue"), {"train": test, "test": test})
    run = Run(root.parent / "run")
    shutil.copytree(tiny_run.path, run.path)
    summary = {**run.summary, "labels": Corrected(relabelled=1200).record()}
    (run.path / "summary.json").write_text(json.dumps(summary))
    settings = {**run.settings, "measured_fingerprint": data.fingerprint("test")}
    (run.path / "run.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "HEAT_MAPS", 4)
        written = write_report(run, data, "test", run.path / "report.html")
    assert [path.name for path in written] == ["report.html", "mistakes.csv", "suspects.csv"]
    return run.path, data


def printed(name: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def test_every_picture_names_its_file_and_links_to_it(odd: tuple[Path, Data]) -> None:
    folder, data = odd
    split = data.splits["test"]
    by_name = {printed(split.name(index)): split.name(index) for index in range(len(split))}
    wrong = {printed(split.name(index)) for index in range(len(split) - 6)}
    shown = Page((folder / "report.html").read_text("utf-8"))
    cells = json.loads(re.findall(r'id="cells">(.*?)</script>', (folder / "report.html").read_text())[0])
    assert set(cells) == {"0-1", "0-0", "1-1", "2-2"}
    doubted = {printed(row["picture"].removeprefix("./")) for row in rows(folder / "suspects.csv")}
    assert 0 < len(doubted) < len(wrong)
    for section, expected in (("mistakes", wrong), ("labels", None), ("looks", None)):
        found = shown.pictures(section)
        assert len(found) == {"mistakes": len(wrong), "labels": len(doubted), "looks": 4}[section]
        seen = set()
        for item in found:
            (name,) = [name for name in by_name if item["text"].strip().endswith(name)]
            assert (folder / os.fsdecode(unquote_to_bytes(item["link"]))).read_bytes()
            assert item["link"].startswith("../my%20data/")
            assert os.fsdecode(unquote_to_bytes(item["link"])).endswith(by_name[name])
            seen.add(name)
        assert expected is None or seen == expected
    for cell in cells.values():
        for picture in cell:
            linked = os.fsdecode(unquote_to_bytes(picture["link"]))
            assert linked == f"../my data/{by_name[picture['name']]}"


def test_odd_names_stay_text(odd: tuple[Path, Data]) -> None:
    text = (odd[0] / "report.html").read_text("utf-8")
    shown = Page(text)
    assert "i" not in {tag for tag, _ in shown.tags}
    assert text.count("</script>") == 2
    assert "<i>" in shown.text
    assert r"line\nbreak" in shown.text


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_lists_hold_every_mistake_and_suspect_and_no_formula(odd: tuple[Path, Data]) -> None:
    folder, data = odd
    mistakes, suspects = rows(folder / "mistakes.csv"), rows(folder / "suspects.csv")
    assert list(mistakes[0]) == ["picture", "split", "label", "predicted", "probability"]
    assert list(suspects[0]) == ["picture", "split", "label", "suggested", "doubt"]
    split = data.splits["test"]
    names = [split.name(index) for index in range(len(split) - 6)]
    expected = {
        f"./{name}"
        if name[0] in "=@"
        else name.encode(errors="backslashreplace").decode().replace("\n", "\\n")
        for name in names
    }
    assert "./=1+1.png" in expected
    assert {row["picture"] for row in mistakes} == expected
    assert {row["picture"] for row in suspects} < expected
    for listed in (mistakes, suspects):
        assert {(row["split"], row["label"]) for row in listed} == {("test", "red")}
        for row in listed:
            assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in row.values())
    assert {row["predicted"] for row in mistakes} == {row["suggested"] for row in suspects} == {"green"}
    for listed, key in ((mistakes, "probability"), (suspects, "doubt")):
        values = [float(row[key]) for row in listed]
        assert values == sorted(values, reverse=True)
        assert all(0 < value <= 1 for value in values)


def test_the_page_tells_the_corrections_and_how_to_make_more(odd: tuple[Path, Data]) -> None:
    shown = Page((odd[0] / "report.html").read_text("utf-8")).text
    assert "Corrected labels: 1,200 relabelled. The run keeps these corrections in corrections.csv." in shown
    assert re.search(r"correct them in the browser: \S.*thumbnet review ", shown)


@pytest.mark.usefixtures("quick_page")
def test_a_report_on_other_data_says_nothing_about_the_runs_own_labels(
    odd: tuple[Path, Data], tmp_path: Path
) -> None:
    write_report(Run(odd[0]), coloured_data(30), "test", tmp_path / "x.html")
    shown = Page((tmp_path / "x.html").read_text("utf-8")).text
    assert "Confident learning" in shown
    assert "Corrected labels" not in shown
    assert "thumbnet review" not in shown


@pytest.mark.usefixtures("quick_page")
def test_every_class_has_a_row_in_the_table_of_the_data_and_the_first_ones_have_pictures(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (page, pictures):
        monkeypatch.setattr(module, "SHOWN_CLASSES", 2)
    write_report(tiny_run, coloured_data(30), "test", tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text("utf-8")
    assert "The table has pictures of the first 2 of 3 classes." in text
    table = text[text.index('aria-label="Data, a table"') :].partition("</table>")[0]
    rows = re.findall(r'<th scope="row">(\w+)</th><td>(\d+)</td>.*?<td>(<img|</td>)', table)
    assert rows == [("red", "10", "<img"), ("green", "10", "<img"), ("blue", "10", "</td>")]


def test_what_cannot_be_measured_of_a_class_is_a_dash(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "HEAT_MAPS", 2)
    test = coloured_data(30).splits["test"]
    data = replace(
        coloured_data(30), splits={"train": test, "test": test.subset(np.flatnonzero(test.labels < 2))}
    )
    write_report(tiny_run, data, "test", tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text("utf-8")
    table = text[text.index('aria-label="Classes, a table"') :].partition("</table>")[0]
    cells = {
        name: re.findall("<td>(.*?)</td>", row)
        for name, row in re.findall(r'<th scope="row">(\w+)</th>(.*)', table)
    }
    assert cells["blue"][0] == "0"
    assert cells["blue"][2:] == ["–", "–"]
    assert "–" not in cells["red"]


def test_the_page_shows_areas_and_thresholds_of_each_class(odd: tuple[Path, Data]) -> None:
    folder, data = odd
    classifier = load_run(folder, "cpu")
    found = classifier.classify_split(data.splits["test"], data.class_names)
    curve = one_against_rest(np.exp(log_softmax(found.logits)), found.labels)[1]
    best = best_f1(curve)
    assert best is not None
    text = (folder / "report.html").read_text("utf-8")
    table = text[text.index('aria-label="Thresholds, a table"') :].partition("</table>")[0]
    (row,) = re.findall(r'<tr><th scope="row">green</th>(.*?)</tr>', table)
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells[:3] == ["2", f"{curve.auroc:.4f}", f"{curve.average_precision:.4f}"]
    assert float(cells[3]) == pytest.approx(best.threshold, abs=1e-4)
    assert cells[4:7] == [f"{100 * one:.2f} %" for one in (best.precision, best.recall, best.f1)]


@pytest.mark.usefixtures("quick_page")
def test_the_page_lists_the_groups_with_the_most_mistakes_if_pictures_have_groups(
    tiny_run: Run, tmp_path: Path
) -> None:
    data = coloured_data(60)
    test = data.splits["test"]
    found = load_run(tiny_run.path).classify_split(test, data.class_names, tta=tiny_run.summary["tta"])
    predicted = found.logits.argmax(axis=1)
    labels = np.where(np.arange(60) < 6, (predicted + 1) % 3, predicted)  # only the first group's are wrong
    data = replace(data, splits={**data.splits, "test": test.with_labels(labels)})
    groups = np.array(
        [f"<p{number // 6}>" for number in range(54)] + [f"\0{n}" for n in range(6)], dtype=object
    )
    write_report(tiny_run, replace(data, groups={"test": groups}), "test", tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text("utf-8")
    assert "60 in 15 groups" in text
    assert "The interval allows for 60 pictures in 15 groups" in text
    table = text[text.index('aria-label="Groups, a table"') :].partition("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(\d+)</td><td>(\d+)</td>', table)
    assert rows == [("&lt;p0&gt;", "6", "0")]
    assert '<a href="#groups">' in text
    few = np.array([f"p{number // 20}" for number in range(60)], dtype=object)
    write_report(tiny_run, replace(data, groups={"test": few}), "test", tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text("utf-8")
    assert "60 in 3 groups" in text
    assert "with so few groups it is rough" in text
    assert 'id="groups"' not in text
    write_report(tiny_run, data, "test", tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text("utf-8")
    assert "The interval allows for" not in text
    assert 'id="groups"' not in text


@pytest.mark.usefixtures("quick_page")
def test_a_report_reads_the_weights_once_and_counts_the_parameters_of_older_runs(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    summary = {**run.summary}
    parameters = summary.pop("parameters")
    (run.path / "summary.json").write_text(json.dumps(summary))
    opened: list[Path] = []

    def recorded(path: Path) -> Any:
        opened.append(path)
        return open_safetensors(path)

    monkeypatch.setattr(weights, "open_safetensors", recorded)
    out = tmp_path / "x.html"
    write_report(Run(run.path), coloured_data(), "test", out)
    assert opened == [run.weights_path]
    assert f"{parameters:,}" in out.read_text("utf-8")


def test_the_cards_leave_no_card_alone_in_its_row(odd: tuple[Path, Data]) -> None:
    text = (odd[0] / "report.html").read_text("utf-8")
    cards = len(re.findall(r"<div><dt>", text))
    columns = [int(number) for number in re.findall(r"--(?:wide|middle): (\d+)", text)]
    assert len(columns) == 2
    assert all(cards % number != 1 for number in columns)


@pytest.mark.usefixtures("quick_page")
def test_a_report_with_another_name_leaves_the_lists_of_other_reports_alone(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "SECTIONS", {"mistakes": "Mistakes"})
    (tmp_path / "mistakes.csv").write_text("mine")
    written = write_report(tiny_run, coloured_data(30), "test", tmp_path / "seed 1.html")
    assert [path.name for path in written] == ["seed 1.html", "seed 1-mistakes.csv", "seed 1-suspects.csv"]
    assert (tmp_path / "mistakes.csv").read_text() == "mine"
    text = written[0].read_text("utf-8")
    assert 'href="seed%201-mistakes.csv"' in text
    assert re.findall(r'<section aria-labelledby="(\w+)"', text) == ["mistakes"]


@pytest.mark.usefixtures("quick_page")
def test_only_pictures_of_the_training_make_the_page_distrust_the_doubtful_labels(
    tiny_run: Run, tmp_path: Path
) -> None:
    made = coloured_data(30, splits=("train", "test", "val", "new"))
    for name, warned in (("new", False), ("train", True)):
        data = replace(made, splits={"train": made.splits[name], "all": made.splits[name]})
        write_report(tiny_run, data, "all", tmp_path / "x.html")
        text = (tmp_path / "x.html").read_text("utf-8")
        assert ("trained on some or all of these pictures" in text) is warned
        assert ("were in the training split (such as" in text) is warned
        assert '<th scope="col">pictures in all</th>' in text
        assert "training pictures</th>" not in text
    write_report(tiny_run, coloured_data(), "train", tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text("utf-8")
    assert "trained on some or all of these pictures" in text
    assert '<th scope="col">pictures in train</th>' in text


@pytest.mark.usefixtures("quick_page")
def test_only_the_runs_own_val_split_is_called_optimistic(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "SECTIONS", {"mistakes": "Mistakes"})
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    (run.path / "summary.json").write_text(json.dumps({**run.summary, "kept_by": "best on val"}))
    splits = ("train", "test", "val")
    for data, own in ((coloured_data(splits=splits), True), (coloured_data(30, splits=splits), False)):
        write_report(run, data, "val", tmp_path / "x.html")
        text = (tmp_path / "x.html").read_text("utf-8")
        assert ("The val accuracy is optimistic" in text) is own


@pytest.mark.usefixtures("quick_page")
def test_a_report_asks_the_network_for_no_more_pictures_at_a_time_than_the_runs_recipe(
    small_batches: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_sizes: list[int]
) -> None:
    seen: list[int] = []
    logits = Predictor.logits

    def recorded(self: Predictor, pixels: np.ndarray, *, tta: str | None = None) -> np.ndarray:
        seen.append(len(pixels))
        return logits(self, pixels, tta=tta)

    monkeypatch.setattr(Predictor, "logits", recorded)
    write_report(small_batches, coloured_data(30), "test", tmp_path / "x.html")
    assert batch_sizes == [7]
    assert max(seen) == 7


@pytest.mark.usefixtures("quick_page")
def test_a_report_on_a_run_that_continues_another_counts_the_epochs_of_both(
    tiny_run: Run, tmp_path: Path
) -> None:
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    settings = {**run.settings, "continues": {"run": "old", "epochs": 30}}
    (run.path / "run.json").write_text(json.dumps(settings))
    write_report(run, coloured_data(30), "test", tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text("utf-8")
    assert "<div><dt>epochs</dt><dd>30+3</dd></div>" in text
    assert "had been trained for 30 epoch(s) in the run that this one continues" in text


def test_a_report_that_cannot_be_written_leaves_nothing_behind(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "HEAT_MAPS", 2)
    with pytest.raises(RunError, match="cannot write"):
        write_report(tiny_run, coloured_data(30), "test", tmp_path / "no" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_class_names_are_escaped(tmp_path: Path) -> None:
    """Class names come from folder names, which may come from a stranger."""
    evil = "</script><img src=x onerror=alert(1)>"
    plain = coloured_data()
    data = Data(evil, evil, (evil, "=green", "$b$l$ue$"), plain.splits)
    run = train(data, "one-cycle", overrides=[*TINY, "training.epochs=1"], out=tmp_path / "run", device="cpu")
    write_report(run, data, "test", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "&lt;/script&gt;&lt;img src=x" in text
    assert evil not in text
    assert text.count("</script>") == 2
    for row in [*rows(tmp_path / "mistakes.csv"), *rows(tmp_path / "suspects.csv")]:
        assert "=green" not in row.values()


def test_the_command_writes_a_report_into_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "HEAT_MAPS", 2)
    write_class_folders(tmp_path / "data", ("train", "test"))
    run = tmp_path / "run"
    small = ["--epochs", "1", "--set", "model.width=0.25"]
    assert main(["train", str(tmp_path / "data"), "--out", str(run), *small]) == 0
    assert main(["report", str(run)]) == 0
    told = capsys.readouterr().out
    for name in ("report.html", "mistakes.csv", "suspects.csv"):
        assert f"written: {run / name}" in told
        assert (run / name).is_file()
    assert main(["report", str(run), "--split", "val"]) == 2
    assert main(["report", str(tmp_path / "nothing")]) == 2


@pytest.mark.usefixtures("quick_page")
def test_a_report_says_which_pictures_it_leaves_out(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_class_folders(tmp_path / "data", ("train", "test"))
    arguments = ["report", str(tiny_run.path), str(tmp_path / "data"), "--out", str(tmp_path / "a.html")]
    assert main(arguments) == 0, capsys.readouterr().err
    assert "could not be read" not in capsys.readouterr().err + (tmp_path / "a.html").read_text("utf-8")
    for split, count in (("test", 2), ("train", 1)):
        for number in range(count):
            (tmp_path / "data" / split / "red" / f"{number}.png").write_bytes(b"no picture")
    assert main(arguments) == 0
    told = capsys.readouterr().err
    for text in (told, (tmp_path / "a.html").read_text("utf-8")):
        assert "2 of 18 pictures in test could not be read: all measures are those of the others" in text
        assert "1 training picture(s) could not be read, so others are shown" in text
