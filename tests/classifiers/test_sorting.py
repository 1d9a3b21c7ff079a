"""Folders of pictures, sorted by class."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sorting_helpers import BETWEEN, DARK, SORTED, Grey, inbox, picture, tree
from thumbnet.classifiers.sorting import COLUMNS, criterion_for, list_folder, sort_folder
from thumbnet.errors import DataError, RunError


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in tree(root)}


def test_pictures_are_copied_into_class_folders_under_their_own_paths(tmp_path: Path) -> None:
    folder = inbox(tmp_path / "in")
    before = contents(folder)
    found = Grey().sort(folder, tmp_path / "new" / "out")
    assert tree(tmp_path / "new" / "out") == SORTED
    for name in SORTED:
        copy = (tmp_path / "new" / "out" / name).read_bytes()
        assert copy == before[name.partition("/")[2]]
    assert contents(folder) == before
    assert found.counts == {"dark": 1, "middle": 1, "bright": 2, "unsure": 1, "unlike": 1}
    assert found.unreadable == [("deep/broken.png", "not a picture in a format that thumbnet reads")]
    assert found.pictures == 6
    assert found.rate is not None
    assert found.rate > 0


def test_sorting_again_changes_nothing_and_classifies_only_new_pictures(tmp_path: Path) -> None:
    folder, out = inbox(tmp_path / "in"), tmp_path / "out"
    Grey().sort(folder, out)
    before = contents(out)
    picture(folder / "f.png", DARK)
    classifier = Grey()
    found = classifier.sort(folder, out)
    assert classifier.classified == 1
    assert contents(out) == {**before, "dark/f.png": (folder / "f.png").read_bytes()}
    assert found.present == {"dark": 1, "middle": 1, "bright": 2, "unsure": 1, "unlike": 1}
    assert found.counts["dark"] == found.pictures == 1


def test_a_picture_that_a_person_has_moved_stays_there(tmp_path: Path) -> None:
    folder, out = inbox(tmp_path / "in"), tmp_path / "out"
    Grey().sort(folder, out)
    (out / "unsure" / "b.png").rename(out / "dark" / "b.png")
    (out / "bright" / "deep" / "er" / "a.png").rename(out / "middle" / "a.png")  # and not into middle/deep/er
    found = sort_folder(Grey(), folder, out, threshold=0.0)
    assert tree(out) == [
        "bright/d.png", "dark/a.png", "dark/b.png", "middle/a.png", "middle/c.png", "unlike/e.png",
    ]  # fmt: skip
    assert (found.present["dark"], found.present["middle"]) == (2, 2)
    assert found.pictures == 0


def test_equal_pictures_of_the_same_name_are_all_sorted_even_after_a_stop(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a/x.png", "b/x.png", "x.png"):
        picture(folder / name, DARK)
    Grey().sort(folder, out)
    (out / "dark" / "b" / "x.png").unlink()  # as if it had been stopped before this one
    Grey().sort(folder, out)
    assert tree(out) == ["dark/a/x.png", "dark/b/x.png", "dark/x.png"]


def test_another_picture_of_the_same_path_gets_a_number(tmp_path: Path) -> None:
    out = tmp_path / "out"
    picture(tmp_path / "one" / "x.png", DARK)
    picture(tmp_path / "two" / "x.png", DARK + 1)
    for _ in range(2):
        for folder in ("one", "two"):
            Grey().sort(tmp_path / folder, out)
    assert tree(out) == ["dark/x-2.png", "dark/x.png"]


def test_pictures_can_be_linked(tmp_path: Path) -> None:
    folder, out = inbox(tmp_path / "in"), tmp_path / "out"
    Grey().sort(folder, out, link=True)
    assert tree(out) == SORTED
    assert all((out / name).is_symlink() for name in SORTED)
    assert (out / "bright/deep/er/a.png").samefile(folder / "deep/er/a.png")
    assert Grey().sort(folder, out, link=True).pictures == 0


def test_the_list_names_every_picture_and_why_one_cannot_be_read(tmp_path: Path) -> None:
    inbox(tmp_path / "in")
    file = tmp_path / "list.csv"
    found = list_folder(Grey(), tmp_path / "in", file)
    rows = list(csv.DictReader(file.read_text("utf-8").splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert {row["picture"]: row["folder"] for row in rows} == {
        "in/a.png": "dark", "in/b.png": "unsure", "in/c.png": "middle", "in/d.png": "bright",
        "in/deep/broken.png": "", "in/deep/er/a.png": "bright", "in/e.png": "unlike",
    }  # fmt: skip
    broken = next(row for row in rows if row["error"])
    assert (broken["class"], broken["probability"]) == ("", "")
    assert float(rows[0]["probability"]) > 0.99
    assert [float(row["unlikeness"]) > 1 for row in rows if not row["error"]] == [False] * 5 + [True]
    assert found.counts["unlike"] == 1
    assert tree(tmp_path) == sorted(["list.csv", *(f"in/{name}" for name in tree(tmp_path / "in"))])
    away = tmp_path / "elsewhere" / "list.csv"
    away.parent.mkdir()
    list_folder(Grey(), tmp_path / "in", away)
    assert away.read_text().splitlines()[1].startswith(str(tmp_path / "in" / "a.png"))


@pytest.mark.parametrize("table", ["../list.csv", "deep/../../list.csv", "../work/../list.csv"])
def test_pictures_below_the_folder_of_the_list_have_relative_paths_however_both_are_named(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox(tmp_path / "in")
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    for folder in (tmp_path / "in", Path("../in")):
        list_folder(Grey(), folder, table)
        assert (tmp_path / "list.csv").read_text("utf-8").splitlines()[1].startswith("in/a.png,dark,")
        (tmp_path / "list.csv").unlink()


def test_a_list_is_written_next_to_the_target_of_a_link_if_two_dots_follow_the_link(tmp_path: Path) -> None:
    inbox(tmp_path / "far" / "in")
    (tmp_path / "far" / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep", target_is_directory=True)
    list_folder(Grey(), tmp_path / "link" / ".." / "in", tmp_path / "link" / ".." / "list.csv")
    assert (tmp_path / "far" / "list.csv").read_text("utf-8").splitlines()[1].startswith("in/a.png,dark,")


def test_a_list_never_replaces_a_file(tmp_path: Path) -> None:
    folder, file = inbox(tmp_path / "in"), tmp_path / "list.csv"
    file.write_text("mine")
    with pytest.raises(RunError, match="already exists"):
        list_folder(Grey(), folder, file)
    assert file.read_text() == "mine"
    with pytest.raises(RunError, match="there is no folder"):
        list_folder(Grey(), folder, tmp_path / "nowhere" / "list.csv")


@pytest.mark.parametrize(
    ("options", "threshold", "precision"),
    [
        ({}, 0.8, 0.95), ({"precision": 0.98}, 0.9, 0.98), ({"precision": 0.97}, 0.9, 0.98),
        ({"precision": 0.5}, 0.4, 0.9), ({"threshold": 0.3}, 0.3, None), ({"threshold": 1}, 1, None),
    ],
)  # fmt: skip
def test_the_threshold_is_the_users_or_the_networks(
    options: dict[str, Any], threshold: float, precision: float | None
) -> None:
    found = criterion_for(Grey(), **options)
    assert (found.threshold, found.precision) == (threshold, precision)
    assert f"{threshold:g}" in found.text


def test_the_threshold_decides_what_is_unsure(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "x.png", BETWEEN)  # 50 % dark, 50 % middle
    for threshold, folder in ((0.4, "dark"), (0.6, "unsure")):
        out = tmp_path / folder
        assert Grey().sort(tmp_path / "in", out, threshold=threshold).counts[folder] == 1
        assert tree(out) == [f"{folder}/x.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": 0.99},
            r"99 % is not supported: the 500 held-out pictures \(val\) show at most 98.7 %",
        ),
        ({"precision": 1.5}, "the precision is 1.5: expected a number between 0 and 1"),
        ({"threshold": 1.1}, "the threshold is 1.1"),
        ({"threshold": float("nan")}, "the threshold is nan"),
        ({"threshold": 0.5, "precision": 0.9}, "not both"),
    ],
)
def test_a_threshold_that_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        Grey().sort(inbox(tmp_path / "in"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_network_without_thresholds_needs_one_from_the_user(tmp_path: Path) -> None:
    old = Grey(thresholds=None, unlike=None)
    with pytest.raises(RunError, match=r"has no thresholds.*--threshold 0\.9"):
        old.sort(inbox(tmp_path / "in"), tmp_path / "out")
    found = old.sort(tmp_path / "in", tmp_path / "out", threshold=0.9)
    assert found.counts["unlike"] == 0  # it cannot tell, so it says nothing
    assert sum(found.counts.values()) == 6


def test_thresholds_that_were_measured_with_other_views_are_refused(tmp_path: Path) -> None:
    folder, out = inbox(tmp_path / "in"), tmp_path / "out"
    choices: list[dict[str, Any]] = [{}, {"precision": 0.9}]
    for options in choices:
        with pytest.raises(
            RunError, match=r"measured with test-time augmentation none, so with mirror no prec"
        ):
            Grey().sort(folder, out, tta="mirror", **options)
        with pytest.raises(RunError, match=r"Leave out --tta, or .* --threshold 0\.9"):
            list_folder(Grey(), folder, tmp_path / "list.csv", tta="mirror", **options)
    assert not out.exists()
    assert Grey().sort(folder, out, tta="none").criterion.precision == 0.95
    assert Grey().sort(folder, tmp_path / "own", tta="mirror", threshold=0.8).counts["bright"] == 2


def test_a_quantised_network_says_that_its_threshold_was_measured_before() -> None:
    whole, quantised = Grey(), Grey()
    quantised.info = replace(whole.info, exported="onnx-int8")
    assert "quantised" not in criterion_for(whole).text
    assert criterion_for(quantised).text.endswith("; measured before the network was quantised")


def test_a_class_called_unsure_does_not_share_the_folder_of_unsure_pictures(tmp_path: Path) -> None:
    found = Grey(("unsure", "a/b", "..")).sort(inbox(tmp_path / "in"), tmp_path / "out")
    assert found.folders == {"unsure": "unsure-class", "a/b": "a_b", "..": "_"}
    assert tree(tmp_path / "out") == [
        "_/d.png", "_/deep/er/a.png", "a_b/c.png", "unlike/e.png", "unsure-class/a.png", "unsure/b.png",
    ]  # fmt: skip


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="there are no pictures in the folder"):
        Grey().sort(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="there is no folder"):
        Grey().sort(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match="Choose a folder outside"):
        Grey().sort(inbox(tmp_path / "in"), tmp_path / "in" / "out")
    assert not (tmp_path / "out").exists()


def test_progress_counts_all_pictures_and_the_result_is_plain_json(tmp_path: Path) -> None:
    folder, seen = inbox(tmp_path / "in"), list[tuple[int, int]]()
    found = Grey().sort(folder, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (7, 7)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["classes"]["bright"] == {"folder": "bright", "sorted": 2, "present": 0}
    assert told["unsure"] == told["unlike"] == {"sorted": 1, "present": 0}
    assert told["unreadable"][0]["path"] == "deep/broken.png"
    assert (told["threshold"], told["precision"], told["pictures"]) == (0.8, 0.95, 6)
