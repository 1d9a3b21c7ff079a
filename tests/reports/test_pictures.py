"""The pictures of a report: how they are linked, encoded and left out."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest

from helpers import coloured, coloured_data
from thumbnet.classifiers.load import load_run
from thumbnet.reports import pictures
from thumbnet.reports.pictures import Album, Answers, link_to
from thumbnet.runs.folder import Run


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize("name", ["a.png", "a b?#%&.png", "javascript:alert(1)", 'x"><b>', "katze ü\n.png"])
def test_a_link_leads_from_the_page_to_the_file(name: str, tmp_path: Path) -> None:
    file = touch(tmp_path / "data" / "cats" / name)
    link = link_to(file, tmp_path / "runs" / "1")
    assert link.startswith("../../data/cats/")
    assert not set(link) & set(" \"'<>?#:&\n")
    assert os.fsdecode(unquote_to_bytes(link)) == f"../../data/cats/{name}"


def test_a_link_to_a_name_that_is_not_utf8_has_its_bytes(tmp_path: Path) -> None:
    try:
        file = touch(tmp_path / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    assert link_to(file, tmp_path) == "%FF.png"


def test_a_file_that_does_not_exist_has_no_link(tmp_path: Path) -> None:
    assert link_to(None, tmp_path) == ""
    assert link_to(tmp_path / "gone.png", tmp_path) == ""
    assert link_to(tmp_path / ("x" * 5000), tmp_path) == ""


def test_links_do_not_follow_symbolic_links(tmp_path: Path) -> None:
    """A browser takes `..` to be the folder before it in the address, wherever a link leads."""
    file = touch(tmp_path / "data" / "a.png")
    (tmp_path / "deep" / "runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "deep" / "runs", target_is_directory=True)
    assert link_to(file, tmp_path / "runs") == "../data/a.png"


@pytest.fixture(scope="module")
def answers(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The tiny network's predictions, on data where every tenth label is wrong."""
    split = coloured_data().splits["test"]
    split.labels = np.where(np.arange(60) % 10 == 0, (split.labels + 1) % 3, split.labels)
    classifier = load_run(tiny_run.path, "cpu")
    found = classifier.classify_split(split, classifier.class_names)
    return Answers(classifier, found, Album(classifier.info.preprocessing, tmp_path_factory.mktemp("page")))


def test_wrong_labels_are_mistakes_and_suspects_with_the_class_that_they_should_be(answers: Answers) -> None:
    wrong = set(range(0, 60, 10))
    assert set(answers.mistakes.tolist()) == wrong
    assert wrong <= set(answers.doubted.tolist())
    truth = np.arange(60) % 3
    assert all(answers.suggested[index] == truth[index] for index in wrong)
    assert (np.diff(answers.confidence[answers.mistakes]) <= 0).all()


def test_a_picture_has_its_classes_and_its_name(answers: Answers) -> None:
    (shown,) = answers.gallery(np.array([10]))
    assert shown.text.startswith("blue → green, ")
    assert (shown.name, shown.link) == ("test[10]", "")
    (suspect,) = answers.suspects(np.array([10]))
    assert suspect.text == "blue → green?"
    assert suspect.source == shown.source


def test_the_heat_maps_end_with_the_most_confident_correct_prediction_of_each_class(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = [answers.confidence[answers.right & (answers.labels == label)].max() for label in range(3)]
    for most, mistakes in ((4, 2), (20, 6)):
        monkeypatch.setattr(pictures, "HEAT_MAPS", most)
        shown = [int(picture.name[len("test[") : -1]) for picture, _ in answers.heat_maps(None, 500)]
        assert shown[:mistakes] == answers.mistakes[:mistakes].tolist()
        assert answers.confidence[shown[mistakes:]].tolist() == sorted(best, reverse=True)[: most // 2]


def test_pictures_are_left_out_once_their_room_is_used_up(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "PICTURE_BYTES", 3000)
    data = coloured_data()
    album = Album(load_run(tiny_run.path, "cpu").info.preprocessing, tmp_path)
    shown = [album.show(data.splits["test"], 0, "text") for _ in range(100)]
    kept = [one for one in shown if one]
    each = sum(map(len, (kept[0].source, "text", "test[0]")))
    assert 3000 < each * len(kept) <= 3000 + each
    assert album.encode(coloured(0, 0)) is None
    assert album.samples(data) == [("red", []), ("green", []), ("blue", [])]
