from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import coloured, write_class_folders, write_picture
from thumbnet.cli import data as command
from thumbnet.cli import main, views
from thumbnet.invocation import command as typed
from thumbnet.reports import augmented, figures
from thumbnet.training import choose


def test_data_prints_layout_sizes_and_counts_and_draws_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "grid.png"
    assert main(["data", str(folder), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    for word in (
        "train/CLASS/* + test/CLASS/*",
        "16x16 (120)",
        "RGB (120)",
        "mean, std",
        "unreadable 0",
        "blue",
    ):
        assert word in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(["data", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["counts"]["train"] == {"blue": 20, "green": 20, "red": 20}


def test_data_names_pictures_that_appear_twice_in_a_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    for number in range(12):
        shutil.copy(tmp_path / "train/red/0.png", tmp_path / f"train/red/copy-{number:02}.png")
    assert main(["data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "repeated   12 picture(s) repeat another one in their split" in out
    assert "           train: train/red/0.png = train: train/red/copy-00.png\n" in out
    assert out.count("= train: train/red/copy-") == 10
    assert "and 2 more: --json lists all of them" in out
    assert main(["data", str(tmp_path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["repeated"] == len(values["repeats"]) == 12
    assert values["repeats"][11] == [["train", "train/red/0.png"], ["train", "train/red/copy-11.png"]]


def test_data_names_a_picture_of_each_class_that_shares_it_and_says_where_a_list_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    for number in range(5):
        shutil.copy(tmp_path / "train/blue/0.png", tmp_path / f"train/blue/copy-{number}.png")
    for name in ("0", "1", "2"):
        shutil.copy(tmp_path / f"train/blue/{name}.png", tmp_path / f"train/red/blue-{name}.png")
        (tmp_path / f"test/green/broken-{name}.png").write_bytes(b"no picture")
    monkeypatch.setattr(views, "PAIRS_SHOWN", 2)
    monkeypatch.setattr(views, "UNREADABLE_SHOWN", 1)
    assert main(["data", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("conflicts  3 picture(s) are in two classes")
    conflict = lines[at + 1].strip()
    assert conflict.startswith("train: train/blue/0.png (blue) = train: train/red/blue-0.png (red) = ")
    assert conflict.endswith(", and 3 more")
    assert lines[at + 2].strip() == "train: train/blue/1.png (blue) = train: train/red/blue-1.png (red)"
    assert lines[at + 3].strip() == "and 1 more: --json lists all of them"
    assert lines[at + 4] == "unreadable 3 file(s)"
    assert "broken-0.png: " in lines[at + 5]
    assert lines[at + 6].strip() == "and 2 more: --json lists all of them"


def test_data_shows_what_corrections_change(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("picture,label,split,was,decision\ntrain/red/0.png,blue,train,red,relabel\n")
    assert main(["data", str(folder), "--labels", str(labels), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["counts"]["train"] == {"blue": 21, "green": 20, "red": 19}
    assert "corrected labels: 1 relabelled" in values["notes"]


def test_data_previews_the_augmentation_of_a_recipe(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "preview.png"
    augment = ["--recipe", "small", "--set", "augment.mixup=0.4", "--set", "augment.rotate=15"]
    assert main(["data", str(folder), "--preview-augment", str(out), *augment]) == 0
    assert f"written: {out}" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]


def test_figures_of_many_classes_say_how_many_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        write_picture(tmp_path / "pictures" / f"class {number:02}" / "1.png", coloured(number % 3, number))
        write_picture(
            tmp_path / "pictures" / f"class {number:02}" / "2.png", coloured(number % 3, 50 + number)
        )
    titles: list[str] = []

    def draw(rows: object, title: str) -> Any:
        titles.append(title)
        return figures.new_figure(1, 1)

    for name in ("grid_figure", "augmented_figure"):
        monkeypatch.setattr(figures, name, draw)
    words = ["data", str(tmp_path / "pictures"), "--test-fraction", "0", "--plot", str(tmp_path / "a.png")]
    assert main([*words, "--preview-augment", str(tmp_path / "b.png")]) == 0
    assert titles[0].endswith("as the network sees it (16x16)")
    assert titles[1].endswith("; 10 of 12 classes")
    monkeypatch.setattr(command, "PLOTTED_CLASSES", 5)
    assert main(words) == 0
    assert titles[2].endswith("(16x16); the first 5 of 12 classes")
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    assert f"up to {augmented.PICTURES} classes" in " ".join(capsys.readouterr().out.split())


def test_a_preview_has_the_size_that_the_chosen_recipe_gives_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_class_folders(tmp_path / "pictures", ["train"], side=112)
    monkeypatch.setattr(choose, "find_code", lambda recipe: None)
    monkeypatch.setattr(choose, "with_pretrained_settings", lambda recipe: (recipe, []))
    words = ["data", str(root), "--json", "--preview-augment", str(tmp_path / "a.png")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["image_size"] == [96, 96]
    assert main([*words, "--set", "model.name=timm:resnet18"]) == 0  # the recipe finetune, up to 128x128
    assert json.loads(capsys.readouterr().out)["image_size"] == [112, 112]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preview-augment", "x.bmp"], "--preview-augment x.bmp: the name must end in .png"),
        (["--preview-augment", "no/such/x.png"], "cannot write no/such/x.png: there is no folder"),
        (["--preview-augment", "x.png", "--recipe", "fats"], "there is no recipe 'fats'"),
        (
            ["--preview-augment", "x.png", "--set", "augment.cutmix=1", "--set", "data.skip_easy=0.3"],
            "data.skip_easy=0",
        ),
        (["--preview-augment", "x.png", "--set", "augment.rotate=200"], "degrees in [0, 180]"),
        (["--recipe", "fast"], "--preview-augment FILE"),
        (
            ["--set", "augment.rotate=15"],
            "--set augment.rotate=15 is no setting of the data. To see its effect, add --preview-augment FILE",
        ),
    ],
)
def test_a_preview_that_cannot_be_made_is_refused_before_the_data_are_read(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "digits", *options]) == 2
    assert said in capsys.readouterr().err
    (tmp_path / "y.png").mkdir()
    assert main(["data", "digits", "--preview-augment", "y.png"]) == 2
    assert "y.png: it is a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["y.png"]


def test_a_preview_that_cannot_be_written_keeps_the_former_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    former = tmp_path / "x.svg"
    former.write_text("former")
    monkeypatch.setattr("thumbnet.files.os.fsync", full)
    assert main(["data", str(folder), "--preview-augment", str(former)]) == 2
    assert "No space left on device. The former file is kept" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["former"]


def test_a_preview_says_what_the_classes_did_to_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_class_folders(tmp_path / "arrows", ["train"])
    (root / "train/red").rename(root / "train/arrow up")
    (root / "train/blue").rename(root / "train/arrow down")
    out = str(tmp_path / "a.svg")
    options = ["--set", "augment.flip_vertical=random", "--preview-augment", out]
    assert main(["data", str(root), *options, "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any(
        "turn arrow up into arrow down" in note or "arrow down into arrow up" in note for note in notes
    )
    assert Path(out).read_text().startswith("<?xml")


def test_data_writes_a_table_that_keeps_the_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    table = tmp_path / "frozen.csv"
    command = ["data", str(root), "--val-fraction", "0.2", "--set", "data.split_seed=3"]
    assert main([*command, "--splits", str(table)]) == 0
    shown = capsys.readouterr().out
    assert f"written: {table}\n" in shown
    assert f"train on the table: {typed('train', table)}\n" in shown
    assert main([*command, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert main(["data", str(table), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == counts
    before = table.read_bytes()
    assert main([*command, "--splits", str(table)]) == 0
    shown = capsys.readouterr().out
    assert "no picture is new" in shown
    assert "written:" not in shown
    write_picture(root / "red" / "new.png", coloured(0, 77))
    assert main([*command, "--splits", str(table), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("1 picture(s) were added" in note for note in notes)
    assert table.read_bytes().startswith(before + b'"pictures/red/new.png","red",')
    (tmp_path / "mine.csv").write_text("mine")
    assert main([*command, "--splits", str(tmp_path / "mine.csv")]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["data", "digits", "--splits", str(tmp_path / "digits.csv")]) == 2
    assert "a table names files" in capsys.readouterr().err


def test_data_says_how_to_train_on_a_table_with_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    table = tmp_path / "frozen.csv"
    assert main(["data", str(root), "--group-by", "/([0-9])[.]", "--splits", str(table)]) == 0
    shown = capsys.readouterr().out
    assert f"train on the table: {typed('train', table, '--group-by', 'group')}\n" in shown


def test_later_files_of_corrections_win(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for number, rows in enumerate(("0.png,blue\n1.png,blue", "1.png,red\n2.png,green")):
        named = [row.split(",") for row in rows.splitlines()]
        lines = [f"train/red/{name},{label},train,red,relabel" for name, label in named]
        path = tmp_path / f"labels{number}.csv"
        path.write_text("\n".join(["picture,label,split,was,decision", *lines, ""]))
        files += ["--labels", str(path)]
    assert main(["data", str(folder), *files, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert "corrected labels: 2 relabelled; 1 confirmed" in values["notes"]
    assert values["counts"]["train"] == {"blue": 21, "green": 21, "red": 18}
