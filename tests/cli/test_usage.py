"""Errors on the command line say what is wrong and what to type instead."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers import TINY, write_class_folders
from thumbnet.cli import build_parser, main
from thumbnet.cli.usage import NAMED_DATA, recipe_keys, with_subparsers, words_of
from thumbnet.sources.load import NAMED
from thumbnet.training.train import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose data are a folder."""
    place = tmp_path_factory.mktemp("finished")
    data = write_class_folders(place / "pictures", ["train", "test"])
    return train(data, "one-cycle", overrides=[*TINY, "training.epochs=1"], out=place / "runs" / "cats").path


MISTAKES = [
    ("train", ["name the data", "train digits", "--resume RUN"]),
    ("trian digits", ["no command 'trian'", "Did you mean 'train'?"]),
    ("recipes shwo", ["no command 'shwo'", "Did you mean 'show'?"]),
    ("digits", ["digits is data", "train digits"]),
    ("pictures", ["pictures is data", "train pictures", "data pictures"]),
    ("runs/cats", ["is a trained network", "evaluate runs/cats", "predict runs/cats"]),
    ("", ["name a command", "train digits", "--help"]),
    ("train digits --lr 0.1", ["no option --lr", "--set optimizer.lr=0.1"]),
    ("train digits --learning-rate=0.1", ["--set optimizer.lr=0.1"]),
    ("train digits --weight-decay 1e-4", ["--set optimizer.weight_decay=1e-4"]),
    ("train digits --momentum 0.8", ["--set optimizer.momentum=0.8"]),
    ("train digits --optimizer adamw", ["--set optimizer.name=adamw"]),
    ("train digits --model resnet34", ["--set model.name=resnet34"]),
    ("train digits --workers 4", ["--set data.workers=4"]),
    ("train digits --num-workers 4", ["--set data.workers=4"]),
    ("train digits --augment", ["augment.flip", "augment.cutout", "--set KEY=VALUE"]),
    ("train digits --label-smoothing 0.1", ["--set training.label_smoothing=0.1"]),
    ("train digits --moment 0.8", ["--set optimizer.momentum=0.8"]),
    ("train digits --bs 64", ["Did you mean --batch-size 64?"]),
    ("train digits --bach-size 64", ["Did you mean --batch-size 64?"]),
    ("train digits --weights 'a b;c'", ["Did you mean --init 'a b;c'?"]),
    ("train digits --optimizer '$(x)'", ["--set 'optimizer.name=$(x)'"]),
    ("train --data pictures", ["train pictures"]),
    ("--lr 0.1 train digits", ["--lr: a command comes first", "train digits --epochs 10"]),
    ("predict runs/cats --top 0 x.png", ["--top 0: expected 1 or more"]),
    (
        "serve cats.onnx --accept-host https://cats.example.org",
        ["--accept-host https://cats.example.org: expected a host name", "without https://"],
    ),
    ("lr-find digits --minutes 3", ["lr-find has no option --minutes. Its options: "]),
    ("lr-find digits --patience 3", ["--set training.patience=3"]),
    ("lr-find digits --checkpoint-minutes 3", ["--set checkpoint.minutes=3"]),
    ("train digits --steps 9", ["Set it in the recipe: --set training.steps=9"]),
    ("train digits --tta mirror", ["--set evaluation.tta=mirror"]),
    ("train digits --nonsense", ["no option --nonsense", "train --help"]),
    ("evaluate runs/cats --epochs 3", ["evaluate has no option --epochs", "evaluate --help"]),
    ("evaluate runs/cats --set optimizer.lr=1", ["--set optimizer.lr=1: expected KEY=VALUE with one of the keys"]),
    ("train pictures more", ["train takes DATA", "'more'"]),
    ("train digits --epochs ten", ["--epochs ten", "a whole number"]),
    ("train digits --epochs 1.5", ["--epochs 1.5", "a whole number"]),
    ("train digits --epochs 0", ["--epochs is 0", "1 or more"]),
    ("train digits --epochs 3 --epochs=0", ["--epochs is 0"]),
    ("train digits --val-fraction 2", ["--val-fraction is 2.0"]),
    ("train digits --epochs 1 --set training.epochs=0", ["recipe key 'training.epochs' is 0"]),
    ("train digits --recipe text.toml --epochs 3", ["recipe key 'training.epochs' is '3'"]),
    ("train digits --val-fraction x", ["--val-fraction x", "a number"]),
    ("train digits --epochs", ["--epochs needs a value"]),
    ("train digits --image-size 0", ["image size '0'", "16 to 1024"]),
    ("train digits --batch-size 0", ["--batch-size is 0", "2 or more"]),
    ("train digits --seed -1", ["--seed is -1"]),
    ("train digits --fit padd", ["--fit padd", "Did you mean 'pad'?"]),
    ("train digits --device gpu", ["no GPU that PyTorch", "--device cpu"]),
    ("train digits --device cuda", ["no GPU that PyTorch", "--device cpu"]),
    ("train digits --device toaster", ["toaster", "Choose auto"]),
    ("train digits --recipe my.toml", ["no recipe file my.toml", "other.toml", "recipes show fast > my.toml"]),
    ("train digits --out other.toml", ["other.toml is a file"]),
    ("train digits --out pictures", ["pictures already exists", "--out DIR"]),
    ("train digits --out runs/cats", ["holds a run", "train --resume runs/cats --more-epochs 10"]),
    ("train pictures --resume runs/cats", ["either DATA or --resume", "train pictures --init runs/cats"]),
    ("train digits --more-epochs 3", ["--more-epochs goes with --resume"]),
    ("train digits --finish", ["--finish goes with --resume RUN"]),
    ("train --resume runs/cats --finish", ["complete already"]),
    ("train --resume runs/half --finish --epochs 3", ["leave out --epochs"]),
    ("train --resume runs/half --more-epochs 2 --finish", ["--finish ends an unfinished one"]),
    ("train --resume runs/cats", ["complete already", "evaluate runs/cats", "--more-epochs 10"]),
    ("train --resume runs/cats --epochs 7", ["leave out --epochs", "train --resume runs/cats --more-epochs 7"]),
    ("train --resume runs/cats --more-epochs 0", ["--more-epochs 0: expected 1 or more"]),
    ("train --resume runs/cats --more-epochs 2 --recipe fast", ["keeps the run's recipe"]),
    ("train --resume runs/half --more-epochs 2", ["not finished", "train --resume runs/half"]),
    ("train --resume nosuch", ["there is no run nosuch", "runs/cats"]),
    ("export nosuch", ["there is no run nosuch", "runs/cats"]),
    ("report nosuch", ["there is no run nosuch", "runs/cats"]),
    ("predict nosuch x.png", ["there is no run nosuch", "runs/cats"]),
    ("compare nosuch", ["there is no run nosuch", "runs/cats"]),
    ("evaluate runs/cat", ["there is no run runs/cat", "Did you mean 'cats'?"]),
    ("evaluate runs/", ["a folder of runs", "runs/cats", "runs/half  (not complete)"]),
    ("report runs", ["a folder of runs", "runs/cats"]),
    ("evaluate pictures", ["not a run's folder", "runs/cats"]),
    ("evaluate runs/half", ["not complete", "train --resume runs/half"]),
    ("predict cats.onnx x.png", ["there is no file cats.onnx", "export RUN --out cats.onnx"]),
    ("predict runs/cats", ["needs PATH", "predict RUN PATH...", "a folder of pictures"]),
    ("evaluate", ["needs RUN", "The newest run here: runs/cats"]),
    ("evaluate runs/cats --plot x.gif", ["--plot x.gif", ".png"]),
    ("recipes show fast --plot x.gif", ["--plot x.gif", ".png"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line or "nothing" for line, _ in MISTAKES])
def test_an_error_says_what_to_do_instead(
    line: str,
    words: Sequence[str],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cats").symlink_to(finished)
    half = tmp_path / "runs" / "half"
    half.mkdir()
    for name in ("recipe.toml", "run.json"):
        (half / name).write_bytes((finished / name).read_bytes())
    set_time_of_run(half, 1)
    write_class_folders(tmp_path / "pictures", ["train"], per_class=1)
    (tmp_path / "other.toml").write_text("")
    (tmp_path / "text.toml").write_text("training.epochs = '3'\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(shlex.split(line)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("thumbnet: ")
    assert "Traceback" not in captured.err
    assert "Errno" not in captured.err
    for word in words:
        assert word in captured.err, captured.err
    assert sorted(tmp_path.rglob("*")) == before


def set_time_of_run(run: Path, time: float) -> None:
    import os

    os.utime(run / "run.json", (time, time))


def test_a_command_in_a_message_can_be_pasted_into_the_shell(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The path has a space and a quote, which the message must quote for the shell."""
    import shutil
    import subprocess
    import sys

    import thumbnet

    monkeypatch.setattr(sys, "argv", [str(Path(thumbnet.__file__).with_name("__main__.py"))])
    odd = tmp_path / "it's mine"
    odd.symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", str(odd)]) == 2
    (line,) = re.findall(r"Measure it: (.*)", capsys.readouterr().err)
    shell = subprocess.run(f"printf '%s\\0' {line}", shell=True, capture_output=True, text=True, check=True)
    python, *words = shell.stdout.removesuffix("\0").split("\0")
    assert shutil.which(python) is not None
    assert words == ["-m", "thumbnet", "evaluate", str(odd)]
    assert main(words[2:]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_an_empty_value_is_refused_by_every_option_and_argument(capsys: pytest.CaptureFixture[str]) -> None:
    checked = 0
    for parser in with_subparsers(build_parser("thumbnet")):
        words = words_of(parser)
        for action in parser._actions:
            if not words or action.nargs in (0, argparse.PARSER):
                continue
            name = action.option_strings[-1] if action.option_strings else ""
            assert main([*words, f"{name}=" if name else ""]) == 2
            assert f"{name} is empty: give it a value, or leave it out" in capsys.readouterr().err, words
            checked += 1
    assert checked > 100
    assert main([""]) == 2
    assert "there is no command ''" in capsys.readouterr().err


def test_every_recipe_key_is_found_by_its_own_name() -> None:
    from thumbnet.recipes.recipe import Recipe
    from thumbnet.recipes.tables import known_keys

    for key in known_keys(Recipe):
        assert key in recipe_keys(key.replace(".", "_")), key
        last = key.rpartition(".")[2]
        if last not in ("name", "start", "end", "seed", "factor", "minutes"):
            assert recipe_keys(last) != [], key


def test_help_shows_the_program_as_it_was_started(capsys: pytest.CaptureFixture[str]) -> None:
    from thumbnet.invocation import program

    for words in (["--help"], ["train", "--help"], ["export", "--help"], ["completion", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        assert program() in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_the_error_of_a_failing_gcc_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from thumbnet.kernels import library

    fake = tmp_path / "gcc"
    fake.write_text("#!/bin/sh\necho 'cc1: bad value for -mamx-bf16' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "instructions", lambda: library._VECTORS)
    library.forget()
    try:
        reason = library.why_off()
        assert reason is not None
        assert "cannot compile them: cc1: bad value for -mamx-bf16" in reason
    finally:
        monkeypatch.undo()
        library.forget()


def test_every_data_set_by_name_is_recognised_where_a_command_should_be() -> None:
    assert set(NAMED_DATA) == set(NAMED)
