"""Which pictures evaluate, export and report measure, for the run's own data and for other data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers import TINY, coloured, noise, write_picture
from thumbnet.cli import build_parser, main
from thumbnet.cli.options import data_of_run, split_of
from thumbnet.runs.folder import Run
from thumbnet.training.train import train


def write_colours(root: Path, splits: list[str], count: int) -> Path:
    for split in splits:
        for label, name in enumerate(("red", "green", "blue")):
            for number in range(count):
                write_picture(
                    root / split / name / f"{number}.png", coloured(label, 1000 * len(split) + number)
                )
    return root


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("own"), [""], 20)


@pytest.fixture(scope="module")
def run(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run") / "run"
    return train(own, "one-cycle", overrides=[*TINY, "data.val_fraction=0.1"], out=out, device="cpu")


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, object], str]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


def test_other_data_without_splits_are_measured_whole_and_a_note_says_so(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_colours(tmp_path, [""], 7)
    found, said = evaluate(capsys, run.path, other)
    assert (found["split"], found["pictures"]) == ("all", 21)
    assert f"using all 21 pictures: {other} has no splits of its own" in said
    assert "set aside" not in said


@pytest.mark.parametrize(
    ("splits", "measured"), [(["train", "test"], "test"), (["Training", "valid"], "val")]
)
def test_other_data_with_splits_are_measured_on_their_test_or_val_split(
    splits: list[str], measured: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = evaluate(capsys, run.path, write_colours(tmp_path, splits, 5))
    assert (found["split"], found["pictures"]) == (measured, 15)
    assert "no splits of its own" not in said


def test_the_runs_own_data_are_measured_on_its_test_split_under_any_path(
    run: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(own, target_is_directory=True)
    implied, _ = evaluate(capsys, run.path)
    assert (implied["split"], implied["pictures"]) == ("test", 12)
    for name in (own, f"{own}/", tmp_path / "link"):
        named, said = evaluate(capsys, run.path, name)
        assert {**named, "data": ""} == {**implied, "data": ""}
        assert "no splits" not in said
    assert evaluate(capsys, run.path, own, "--split", "val")[0]["pictures"] == 6


def test_the_runs_group_by_does_not_apply_to_other_data(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*TINY, "training.epochs=1", r"data.group_by='(\d)\.png'"]
    grouped = train(own, "one-cycle", overrides=settings, out=tmp_path / "run", device="cpu")
    other = tmp_path / "other"
    for name in ("red", "green", "blue"):
        write_picture(other / name / "x.png", noise(1))
    assert evaluate(capsys, grouped.path, other)[0]["pictures"] == 3


def test_report_export_and_serve_use_the_same_split(run: Run, tmp_path: Path) -> None:
    other = write_colours(tmp_path / "other", [""], 4)
    pytest.importorskip("jinja2")
    out = tmp_path / "page.html"
    assert main(["report", str(run.path), "--out", str(out), str(other)]) == 0
    assert "all accuracy" in out.read_text("utf-8")
    for command in (
        ["export", str(run.path), "--data", str(other)],
        ["serve", "--data", str(other), str(run.path)],
    ):
        options = build_parser().parse_args(command)
        data = data_of_run(options, run.recipe.data)
        assert split_of(options, data) == "all"
        assert len(data.splits["all"]) == 12


def test_an_export_is_checked_on_all_of_other_data(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    other = write_colours(tmp_path / "other", [""], 4)
    capsys.readouterr()
    assert (
        main(["export", str(run.path), "--data", str(other), "--out", str(tmp_path / "m.onnx"), "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["split"], found["pictures"]) == ("all", 12)


def test_predict_skips_the_same_files_in_a_folder_as_training(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "a.png",
        "sub/b.png",
        ".ipynb_checkpoints/a.png",
        "sub/@eaDir/b.png",
        "__MACOSX/c.png",
        "._a.png",
    ):
        write_picture(tmp_path / name, noise(0))
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    capsys.readouterr()
    assert main(["predict", str(run.path), "--json", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "a.png" in lines[0]
    assert "sub/b.png" in lines[1]


def test_options_say_how_to_find_the_classes_of_other_data(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, name in enumerate(("red", "green", "blue")):
        for number in range(4):
            write_picture(tmp_path / f"x-{name}-{number}.png", coloured(label, number))
    found, said = evaluate(capsys, run.path, tmp_path, "--label-pattern", "^x-([a-z]+)")
    assert (found["split"], found["pictures"]) == ("all", 12)
    assert "is 'blue'" in said


def test_pictures_of_one_class_alone_can_be_measured(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        write_picture(tmp_path / "new" / "red" / f"{number}.png", coloured(0, 500 + number))
    found, _ = evaluate(capsys, run.path, tmp_path / "new")
    assert found["pictures"] == 5
    assert main(["train", str(tmp_path / "new"), "--out", str(tmp_path / "run")]) == 2
    assert "at least two classes" in capsys.readouterr().err


def test_a_runs_corrections_apply_wherever_its_data_are_loaded_again(
    run: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, _ = evaluate(capsys, run.path)
    data = data_of_run(build_parser().parse_args(["report", str(run.path)]), run.recipe.data)
    name = data.splits["test"].name(0)
    was = data.class_names[data.splits["test"].labels[0]]
    text = f"picture,label,split,was,decision\n{name},,test,{was},drop\n"
    (tmp_path / "labels.csv").write_text(text)
    asked, _ = evaluate(capsys, run.path, "--labels", tmp_path / "labels.csv")
    assert (before["pictures"], asked["pictures"]) == (12, 11)
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    (copy / "corrections.csv").write_text(text)
    assert evaluate(capsys, copy)[0]["pictures"] == 11
    assert evaluate(capsys, copy, own)[0]["pictures"] == 11
    for command in (["report"], ["export"], ["serve"]):
        options = build_parser().parse_args([*command, str(copy)])
        loaded = data_of_run(options, run.recipe.data)
        assert len(loaded.splits["test"]) == 11
    other = write_colours(tmp_path / "other", [""], 5)
    assert evaluate(capsys, copy, other)[0]["pictures"] == 15  # other data have none of these corrections
