"""Which pictures evaluate, export and report measure, for the run's own data and for other data."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import TINY, coloured, noise, write_picture
from thumbnet.classifiers.load import load_classifier
from thumbnet.cli import build_parser, main
from thumbnet.cli.run_data import data_of_run, split_of
from thumbnet.cli.serve import _data_to_try
from thumbnet.errors import DataError
from thumbnet.recipes.settings import DataSettings
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, write_weights
from thumbnet.sources.load import load_data
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


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, Any], str]:
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


def test_columns_of_the_runs_own_table_do_not_keep_other_data_from_being_read(tmp_path: Path) -> None:
    other = write_colours(tmp_path, [""], 2)
    settings = DataSettings(label_column="mood", path_column="file", images=str(tmp_path / "nothing"))
    words = ["evaluate", str(tmp_path / "model.onnx"), str(other)]
    (tmp_path / "model.onnx").touch()
    assert len(data_of_run(build_parser().parse_args(words), settings).splits["all"]) == 6
    asked = build_parser().parse_args([*words, "--label-column", "mood"])
    with pytest.raises(DataError, match="--label-column mood has no effect"):
        data_of_run(asked, settings)


def test_the_pattern_of_the_runs_own_names_does_not_keep_other_data_from_being_read(tmp_path: Path) -> None:
    other = write_colours(tmp_path, [""], 2)
    words = ["evaluate", str(tmp_path / "model.onnx"), str(other)]
    (tmp_path / "model.onnx").touch()
    for settings in (DataSettings(label_pattern="^(cat|dog)"), DataSettings(classes_from="3")):
        data = data_of_run(build_parser().parse_args(words), settings)
        assert (len(data.splits["all"]), data.class_names) == (6, ("blue", "green", "red"))
    digits = build_parser().parse_args([*words[:2], "digits"])
    assert data_of_run(digits, DataSettings(label_pattern="^(cat|dog)")).class_names[0] == "0"
    asked = build_parser().parse_args([*words, "--label-pattern", "^(cat|dog)"])
    with pytest.raises(DataError, match="--label-pattern .* finds no class in 6 of 6 names"):
        data_of_run(asked, settings)


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


def test_the_val_split_that_chose_the_epoch_is_called_optimistic_however_it_is_named(
    run: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    (copy.path / "summary.json").write_text(json.dumps({**run.summary, "kept_by": "best on val"}))
    for named in ([], [own], [f"{own}/"]):
        found, _ = evaluate(capsys, copy.path, *named, "--split", "val")
        assert "val accuracy: optimistic" in found["notes"][0]
    found, _ = evaluate(capsys, copy.path, write_colours(tmp_path / "other", ["Training", "valid"], 5))
    assert found["split"] == "val"
    assert "optimistic" not in str(found["notes"])


def test_a_test_split_that_was_set_aside_anew_is_compared_with_the_training(
    run: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = Path(shutil.copytree(own, tmp_path / "own"))
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    (copy.path / "run.json").write_text(json.dumps({**run.settings, "data": str(changed)}))
    summary = {**run.summary, "repeats": {"lines": ["what the training said"]}}
    (copy.path / "summary.json").write_text(json.dumps(summary))
    found, said = evaluate(capsys, copy.path)
    assert (found["notes"], "changed" in said) == (["what the training said"], False)
    data = load_data(str(own))
    for index in range(8):
        (changed / data.splits["test"].name(index)).unlink()
    for named in ([], [changed]):
        found, said = evaluate(capsys, copy.path, *named)
        again = load_data(str(changed)).splits["test"]
        before = {data.splits["test"].name(index) for index in range(12)}
        moved = sum(again.name(index) not in before for index in range(len(again)))
        assert moved > 0
        seen = [note for note in found["notes"] if "in the training split" in note]
        assert f"the data in {changed} have changed since {copy.path} was trained on them" in said
        assert 0 < int(re.findall(r"warning: (\d+) of these", seen[0])[0]) <= moved  # some were for val
    pytest.importorskip("jinja2")
    assert main(["report", str(copy.path)]) == 0
    assert seen[0] in (copy.path / "report.html").read_text("utf-8")
    assert "what the training said" not in (copy.path / "report.html").read_text("utf-8")


def test_the_runs_own_data_are_recognised_in_a_new_place(
    run: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, new = evaluate(capsys, run.path)[0], Path(shutil.copytree(own, tmp_path / "new"))
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    (copy / "run.json").write_text(json.dumps({**run.settings, "data": "/nowhere/own"}))
    found, said = evaluate(capsys, copy, new)
    assert {**found, "data": ""} == {**here, "data": ""}
    assert f"{new} holds the run's data, which are split as in the training" in said
    (new / "red" / "0.png").unlink()
    found, said = evaluate(capsys, copy, new)
    assert (found["split"], found["pictures"]) == ("all", 59)
    assert "pictures were in the training split" in str(found["notes"])
    for command, way in (("evaluate", "DATA"), ("report", "DATA"), ("export", "--data DATA")):
        assert main([command, str(copy)]) == 2
        said = capsys.readouterr().err
        assert "there is no data set, folder or archive '/nowhere/own'" in said
        assert "If the run's data have moved, name their new place: " in said
        assert said.endswith(f" {command} {copy} {way}\n")
    assert main(["evaluate", str(copy), "--json", "--tta"]) == 2
    assert capsys.readouterr().err.endswith(f" evaluate {copy} DATA --json --tta\n")
    assert main(["export", str(copy), "--format", "onnx-int8"]) == 2
    assert capsys.readouterr().err.endswith(f" export {copy} --format onnx-int8 --data DATA\n")


def as_file(run: Run, file: Path, own: Path, **changes: Any) -> Path:
    """The run's weights in a file elsewhere, which says that they were trained on ``own``, read with ``changes``."""
    weights, info = read_weights(run.weights_path)
    write_weights(file, weights, replace(info, fingerprint=load_data(own, **changes).fingerprint()))
    return file


@pytest.mark.parametrize("val_fraction", [0.0, 0.1])
def test_the_training_data_of_a_network_in_a_file_are_split_as_in_the_training(
    val_fraction: float, run: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = as_file(run, tmp_path / "x.safetensors", own, val_fraction=val_fraction)
    copy = Path(shutil.copytree(own, tmp_path / "copy"))
    implied, _ = evaluate(capsys, run.path)
    found, said = evaluate(capsys, file, copy)
    assert {**found, "data": ""} == {**implied, "data": ""}
    assert f"{copy} holds the network's training data, split as in the training" in said
    assert "no splits of its own" not in said
    (copy / "red" / "0.png").unlink()
    found, said = evaluate(capsys, file, copy)
    assert (found["split"], found["pictures"]) == ("all", 59)
    assert "training data" not in said


@pytest.mark.parametrize(("corrected", "loads"), [(False, 2), (True, 4)])
def test_other_data_of_a_network_in_a_file_are_loaded_once_to_recognise_them_and_once_to_measure(
    corrected: bool, loads: int, run: Run, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_colours(tmp_path / "other", [""], 7)
    (tmp_path / "labels.csv").write_text("picture,label,split,was,decision\nred/0.png,blue,,red,relabel\n")
    words = ["evaluate", str(as_file(run, tmp_path / "x.safetensors", own)), str(other)]
    words += ["--labels", str(tmp_path / "labels.csv")] if corrected else []
    calls: list[object] = []

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return load_data(*args, **named)

    monkeypatch.setattr("thumbnet.runs.data.load_data", counted)
    options = build_parser().parse_args(words)
    data = data_of_run(options, DataSettings(), read_weights(Path(words[1]))[1].fingerprint)
    assert (len(data.splits["all"]), len(calls)) == (21, loads)


def test_the_export_in_a_runs_folder_is_measured_on_the_pictures_that_the_run_set_aside(
    grouped: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    run = Path(shutil.copytree(grouped.path, tmp_path / "run"))
    assert main(["export", str(run), "--format", "onnx"]) == 0
    implied, _ = evaluate(capsys, run)
    found, said = evaluate(capsys, run / "model.onnx", own)
    assert (found["split"], found["pictures"]) == ("test", implied["pictures"])
    assert "warning" not in said
    measured = load_classifier(run / "model.onnx").evaluate(str(own))  # from Python
    assert (measured.pictures, measured.groups) == (found["pictures"], found["groups"])
    assert measured.accuracy == pytest.approx(found["accuracy"])
    alone = shutil.copy(run / "model.onnx", tmp_path)
    found, said = evaluate(capsys, alone, own)
    assert (found["split"], found["pictures"]) == ("all", 60)
    assert f"warning: the network was trained on data of the same name, {own.name}. If they are these" in said
    assert "name that instead of the file" in said


def test_data_with_the_name_of_the_training_data_give_a_warning_only_if_they_may_be_these(
    run: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = as_file(run, tmp_path / "x.safetensors", own, split_seed=5)
    other = write_colours(tmp_path / "whole" / own.name, [""], 7)
    assert "warning: the network was trained on data of the same name" in evaluate(capsys, file, other)[1]
    assert "warning" not in evaluate(capsys, run.path, other)[1], "the run's own data are still elsewhere"
    gone = Path(shutil.copytree(run.path, tmp_path / "run"))
    (gone / "run.json").write_text(json.dumps({**run.settings, "data": "/nowhere/own"}))
    said = evaluate(capsys, gone, other)[1]
    assert "warning: the network was trained on data of the same name" in said
    assert "instead of the file" not in said
    divided = write_colours(tmp_path / "divided" / own.name, ["train", "test"], 5)
    assert "warning" not in evaluate(capsys, file, divided)[1], "the test split is their own"


def test_the_weights_in_a_runs_folder_know_how_the_run_split_its_data(
    own: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    asked: dict[str, Any] = {"test_fraction": 0.4, "split_seed": 3}
    copy.write_recipe(replace(run.recipe, data=replace(run.recipe.data, val_fraction=0.0, **asked)))
    as_file(run, copy.weights_path, own, **asked)
    found, _ = evaluate(capsys, copy.weights_path, own)
    assert (found["split"], found["pictures"]) == ("test", 24)


def test_corrections_of_the_labels_leave_the_training_data_of_a_file_known(
    run: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_data(own)
    name, was = data.splits["test"].name(0), data.class_names[data.splits["test"].labels[0]]
    labels = tmp_path / "labels.csv"
    labels.write_text(f"picture,label,split,was,decision\n{name},,test,{was},drop\n")
    trainings: list[dict[str, Path]] = [{}, {"labels": labels}]
    for number, changes in enumerate(trainings):
        file = as_file(run, tmp_path / f"{number}.safetensors", own, **changes)
        found, _ = evaluate(capsys, file, own, "--labels", labels)
        assert (found["split"], found["pictures"]) == ("test", 11)


def test_a_network_that_was_trained_on_all_pictures_is_measured_on_them_with_a_warning(
    run: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = evaluate(capsys, as_file(run, tmp_path / "x.safetensors", own, test_fraction=0.0), own)
    assert (found["split"], found["pictures"]) == ("all", 60)
    assert "warning: the network was trained on these pictures" in said


def test_export_and_serve_split_the_training_data_of_a_file_as_in_the_training(
    run: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = as_file(run, tmp_path / "x.safetensors", own)
    _, info = read_weights(file)
    options = build_parser().parse_args(["serve", "--data", str(own), str(file)])
    data = _data_to_try(options, info)
    assert data is not None
    assert len(data.splits["test"]) == 12
    capsys.readouterr()
    out = ["--format", "safetensors", "--out", str(tmp_path / "new.safetensors")]
    assert main(["export", str(file), "--data", str(own), *out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["split"], found["pictures"]) == ("test", 12)


@pytest.fixture(scope="module")
def grouped(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of pictures in groups by the last digit of their names."""
    settings, out = (
        [*TINY, "training.epochs=1", r"data.group_by='(\d)\.png'"],
        tmp_path_factory.mktemp("grouped"),
    )
    return train(own, "one-cycle", overrides=settings, out=out / "run", device="cpu")


def test_other_data_are_measured_in_groups_by_the_runs_group_by_if_it_fits(
    grouped: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_colours(tmp_path / "fits", ["train", "test"], 4)
    found, said = evaluate(capsys, grouped.path, other)
    assert (found["split"], found["pictures"], found["groups"]) == ("test", 12, 4)
    assert "are in groups, by the run's --group-by" in said
    assert "more than one of" not in said, "the network was not trained on their train split"
    assert evaluate(capsys, grouped.path, write_colours(tmp_path / "whole", [""], 4))[0]["groups"] == 4
    for name in ("red", "green", "blue"):
        write_picture(tmp_path / "other" / name / "x.png", noise(1))
    found, said = evaluate(capsys, grouped.path, tmp_path / "other")
    assert (found["pictures"], found.get("groups")) == (3, None)
    assert "in groups" not in said


def test_groups_of_other_data_can_be_named_but_not_those_of_the_runs_own(
    run: Run, grouped: Run, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_colours(tmp_path, [""], 4)
    names = [f"{colour}/{number}.png" for colour in ("red", "green", "blue") for number in range(4)]
    rows = [f"{name},{name.partition('/')[0]},p{at // 6}" for at, name in enumerate(names)]
    (tmp_path / "all.csv").write_text("path,label,patient\n" + "\n".join(rows))
    for network in (run, grouped):
        found, _ = evaluate(capsys, network.path, tmp_path / "all.csv", "--group-by", "patient")
        assert (found["split"], found["pictures"], found["groups"]) == ("all", 12, 2)
    assert main(["evaluate", str(run.path), str(other), "--group-by", "(odd)"]) == 2
    assert "--group-by (odd) matches none of the pictures" in capsys.readouterr().err
    for network, name in ((run, []), (run, [str(own)]), (grouped, [])):
        assert main(["evaluate", str(network.path), *name, "--group-by", "/(.)"]) == 2
        assert f"--group-by /(.): {own} holds the network's own data" in capsys.readouterr().err
    assert evaluate(capsys, grouped.path, "--group-by", r"(\d)\.png")[0] == evaluate(capsys, grouped.path)[0]


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
    other = write_colours(tmp_path / "other", [""], 4)
    capsys.readouterr()
    out = ["--format", "safetensors", "--out", str(tmp_path / "new.safetensors")]
    assert main(["export", str(run.path), "--data", str(other), *out, "--json"]) == 0
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
