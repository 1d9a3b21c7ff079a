"""``thumbnet sort``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import coloured, write_picture
from sorting_helpers import SORTED, Grey, inbox, tree, unlike_above
from thumbnet.classifiers.onnx_classifier import METADATA
from thumbnet.cli import main
from thumbnet.runs.certainty import Threshold, Thresholds
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, write_weights


@pytest.fixture
def grey(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Grey]:
    """Let the command load the given classifier, by default a :class:`Grey`."""

    def use(classifier: Grey | None = None) -> Grey:
        chosen = classifier or Grey()
        monkeypatch.setattr("thumbnet.classifiers.load.load_classifier", lambda *_, **__: chosen)
        return chosen

    use()
    return use


@pytest.mark.usefixtures("grey")
def test_the_table_counts_each_folder_and_the_exit_status_tells_of_unreadable_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(inbox(tmp_path / "in")), tmp_path / "out"
    assert main(["sort", "RUN", folder, "--into", str(out)]) == 1
    shown, errors = capsys.readouterr()
    lines = [line.split() for line in shown.splitlines()]
    assert "for a precision of 95 %, a class is accepted from a probability of 0.800" in shown
    assert ["folder", "pictures", "share"] in lines
    for row in (["bright", "2", "33.3", "%"], ["unsure", "1", "16.7", "%"], ["unlike", "1", "16.7", "%"]):
        assert row in lines
    assert "6 pictures sorted in" in shown
    assert "pictures/s" in shown
    assert "cannot read deep/broken.png: not a picture" in errors
    assert "1 picture(s) could not be read and were left where they are" in errors
    assert tree(out) == SORTED
    (tmp_path / "in" / "deep" / "broken.png").unlink()
    assert main(["sort", "RUN", folder, "--into", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "0 pictures sorted" in shown
    assert "6 pictures were there before and stayed where they were" in shown


@pytest.mark.usefixtures("grey")
def test_links_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(inbox(tmp_path / "in"))
    assert main(["sort", "RUN", folder, "--into", str(tmp_path / "out"), "--link", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["precision"], told["unsure"]["sorted"], told["pictures"]) == (0.95, 1, 6)
    assert (tmp_path / "out" / "dark" / "a.png").is_symlink()
    assert main(["sort", "RUN", folder, "--csv", str(tmp_path / "list.csv"), "--threshold", "0.3"]) == 1
    assert "accepted from a probability of 0.3" in capsys.readouterr().out
    assert len((tmp_path / "list.csv").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--into OUT for one folder per class, or --csv FILE"),
        (["--into", "out", "--csv", "x.csv"], "--into OUT for one folder per class, or --csv FILE"),
        (["--into", "out", "--precision", "0.999"], "is not supported"),
        (["--into", "out", "--threshold", "2"], "the threshold is 2"),
        (["--into", "out", "--threshold", "0.5", "--precision", "0.9"], "not allowed with"),
        (["--into", "in/out"], "Choose a folder outside"),
    ],
)
@pytest.mark.usefixtures("grey")
def test_a_wrong_command_line_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    inbox(tmp_path / "in")
    before = tree(tmp_path)
    assert main(["sort", "RUN", "in", *options]) == 2
    assert message in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_class_with_another_folder_name_is_shown_with_both(
    grey: Callable[..., Grey], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey(Grey(("unsure", "b", "c")))
    main(["sort", "RUN", str(inbox(tmp_path / "in")), "--into", str(tmp_path / "out")])
    assert "unsure-class (class unsure)" in capsys.readouterr().out


def test_weights_and_an_exported_model_sort_alike(
    tiny_run: Run, onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The thresholds travel with the description, which both kinds of file hold."""
    onnx = pytest.importorskip("onnx")
    weights, info = read_weights(tiny_run.weights_path)
    table = Thresholds("val", 100, 0.96, (Threshold(0.95, 0.2, 100, 99),))
    described = replace(info, thresholds=table, unlike=unlike_above(99.0))
    write_weights(tmp_path / "tiny.safetensors", weights, described)
    model = onnx.load(onnx_file)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA: described.to_json()})
    onnx.save(model, tmp_path / "tiny.onnx")
    for label in range(3):
        write_picture(tmp_path / "in" / f"{label}.png", coloured(label, 77))
    trees = []
    for name in ("tiny.safetensors", "tiny.onnx"):
        out = tmp_path / f"out of {name}"
        assert main(["sort", str(tmp_path / name), str(tmp_path / "in"), "--into", str(out), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["threshold"], told["unlike"]["sorted"], told["unsure"]["sorted"]) == (0.2, 0, 0)
        trees.append(tree(out))
    assert trees[0] == trees[1]
    assert len(trees[0]) == 3
