from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import thumbnet
from helpers import TINY, coloured, noise, write_class_folders, write_picture
from thumbnet.cli import main
from thumbnet.recipes.recipe import load_recipe, recipe_names
from thumbnet.runs.folder import Run

SETTINGS = [argument for setting in TINY for argument in ("--set", setting)]


def epochs(number: int) -> list[str]:
    return ["--set", f"training.epochs={number}"]


def run_cli(
    *arguments: str | Path, stdin: bytes | None = None, cwd: Path | None = None
) -> tuple[int, str, str]:
    """The real command in a process of its own: status, stdout, stderr."""
    command = [sys.executable, "-m", "thumbnet", *map(str, arguments)]
    done = subprocess.run(command, input=stdin or b"", capture_output=True, cwd=cwd, timeout=300)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), ["train", "test"], per_class=20)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    out = tmp_path_factory.mktemp("run") / "run"
    status, stdout, stderr = run_cli(
        "train", folder, "--recipe", "resnet18", "--out", out, *SETTINGS, *epochs(8)
    )
    assert status == 0, stderr
    return out, stdout, stderr


def test_training_ends_with_the_accuracy_the_folder_and_what_to_do_next(
    trained: tuple[Path, str, str],
) -> None:
    out, stdout, stderr = trained
    accuracy = Run(out).summary["accuracy"]
    assert f"test accuracy {100 * accuracy:.2f} %" in stdout
    assert "95 % interval" in stdout
    assert f"run: {out}" in stdout
    assert f"thumbnet evaluate {out}" in stdout
    assert "train/CLASS/* + test/CLASS/*; 3 classes; 60 train, 60 test" in stderr
    assert "no val split: the last epoch is kept" in stderr
    assert stderr.count("  test ") == 8
    assert "\x1b" not in stdout + stderr  # plain lines, for this is no terminal
    assert "\r" not in stdout + stderr


def test_without_out_a_readable_new_folder_is_made(folder: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        arguments: list[str | Path] = ["train", folder, *SETTINGS, *epochs(1), "--recipe", "tutorial"]
        status, stdout, _ = run_cli(*arguments, cwd=tmp_path)
        assert status == 0
        assert f"-tutorial-{number}" in stdout
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_shortcuts_and_set_reach_the_recipe(folder: Path, tmp_path: Path) -> None:
    status, _, stderr = run_cli(
        "train", folder, "--out", tmp_path / "run", *SETTINGS, "--epochs", "2", "--seed", "7",
        "--image-size", "20x24", "--fit", "crop", "--val-fraction", "0.25", "--set", "training.epochs=1",
    )  # fmt: skip
    assert status == 0, stderr
    recipe = Run(tmp_path / "run").recipe
    assert recipe.training.epochs == 1  # --set comes after the shortcuts
    assert (recipe.seed, recipe.data.fit) == (7, "crop")
    assert (recipe.data.image_size, recipe.data.val_fraction) == ("20x24", 0.25)
    assert "the best epoch on val is kept" in stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["DATA", "--resume"]),
        (["train", "nowhere"], ["no data set, folder or archive 'nowhere'"]),
        (["train", "digits", "--recipe", "fats"], ["'fast'"]),
        (["train", "digits", "--set", "optimizer.learning_rate=1"], ["optimizer.lr"]),
        (["train", "digits", "--epochs", "0"], ["--epochs is 0"]),
        (["train", "digits", "--set", "training.epochs=0"], ["'training.epochs' is 0"]),
        (["train", "digits", "--device", "cuda:9"], ["cuda:9"]),
        (["train", "digits", "--device", "toaster"], ["toaster"]),
        (["train", "--resume", "nowhere"], ["there is no run"]),
        (["train", "--resume", "x", "--epochs", "3"], ["--epochs"]),
        (["train", "digits", "--resume", "x"], ["either DATA or --resume"]),
        (["evaluate", "nowhere"], ["there is no run"]),
        (["predict", "nowhere", "x.png"], ["there is no run"]),
        (["data", "."], ["Expected one of"]),
        (["recipes", "show", "nothing"], ["there is no recipe"]),
        (["recipes", "show", "fast", "--plot", "x.gif"], [".png"]),
        (["data", "digits", "--plot", "nowhere/x.png"], ["no folder"]),
        (["lr-find", "digits", "--from", "3", "--to", "1"], ["FROM < TO"]),
    ],
    ids=" ".join,
)
def test_a_mistake_gets_one_clear_message_and_status_2(
    arguments: Sequence[str],
    words: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("thumbnet: ")
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_evaluating_shows_what_training_ended_with(trained: tuple[Path, str, str], tmp_path: Path) -> None:
    out, _, _ = trained
    accuracy = Run(out).summary["accuracy"]
    plot = tmp_path / "confusion.png"
    status, stdout, _ = run_cli("evaluate", out, "--plot", plot)
    assert status == 0
    assert f"accuracy           {100 * accuracy:.2f} %" in stdout
    for word in (
        "95 % interval",
        "loss",
        "calibration error",
        "precision",
        "recall",
        "F1",
        "confusion",
        "green",
    ):
        assert word in stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    status, stdout, _ = run_cli("evaluate", out, "--json")
    values = json.loads(stdout)
    assert values["accuracy"] == accuracy
    assert sum(map(sum, values["confusion"])) == values["pictures"] == 60
    assert {"interval", "loss", "calibration_error", "classes", "top5"} <= set(values)


def test_evaluating_other_data_another_split_and_with_tta(
    trained: tuple[Path, str, str], folder: Path
) -> None:
    out, _, _ = trained
    status, stdout, _ = run_cli(
        "evaluate", out / "model.safetensors", folder, "--split", "train", "--tta", "mirror"
    )
    assert status == 0
    assert "train: 60 pictures (test-time augmentation: mirror)" in stdout
    status, _, stderr = run_cli("evaluate", out / "model.safetensors")
    assert status == 2
    assert "name the data" in stderr
    status, _, stderr = run_cli("evaluate", out, "--split", "val")
    assert status == 2
    assert "no split 'val'" in stderr


def test_predicting_files_folders_globs_and_stdin(trained: tuple[Path, str, str], tmp_path: Path) -> None:
    out, _, _ = trained
    red = write_picture(tmp_path / "in" / "red.png", coloured(0, 1))
    write_picture(tmp_path / "in" / "deep" / "blue.png", coloured(2, 2))
    status, stdout, _ = run_cli("predict", out, red)
    assert status == 0
    assert stdout.splitlines()[0].split() == ["picture", *["class", "probability"] * 3]
    assert stdout.splitlines()[2].split()[:2] == [str(red), "red"]
    status, stdout, _ = run_cli("predict", out, tmp_path / "in", "--json")
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [line["predictions"][0]["class"] for line in lines] == ["blue", "red"]
    assert sum(p["probability"] for p in lines[0]["predictions"]) == pytest.approx(1, abs=1e-4)
    status, stdout, _ = run_cli("predict", out, tmp_path / "in" / "**" / "*.png", "--top", "1", "--json")
    assert len(stdout.splitlines()) == 2
    assert len(json.loads(stdout.splitlines()[0])["predictions"]) == 1
    status, stdout, _ = run_cli("predict", out, "-", stdin=red.read_bytes())
    assert stdout.splitlines()[2].split()[:2] == ["-", "red"]


def test_an_unreadable_file_is_reported_in_its_place_and_the_rest_go_on(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    out, _, _ = trained
    good = write_picture(tmp_path / "good.png", coloured(1, 1))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"rubbish")
    status, stdout, stderr = run_cli("predict", out, bad, tmp_path / "gone.png", good)
    assert status == 1
    lines = stdout.splitlines()
    assert [re.split("  +", line)[:2] for line in lines[2:]] == [
        [str(bad), "cannot be read: not a picture in any format known here"],
        [str(tmp_path / "gone.png"), "cannot be read: there is no such file"],
        [str(good), "green"],
    ]
    assert "2 picture(s) could not be read" in stderr
    status, stdout, _ = run_cli("predict", out, bad, good, "--csv", "--top", "2")
    rows = list(csv.DictReader(io.StringIO(stdout)))
    assert status == 1
    assert rows[0]["error"]
    assert rows[0]["class_1"] == ""
    assert rows[1]["class_1"] == "green"
    assert float(rows[1]["probability_1"]) > float(rows[1]["probability_2"])


def test_a_glob_or_folder_without_pictures_is_a_mistake(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    out, _, _ = trained
    for path in (tmp_path, tmp_path / "*.png"):
        status, _, stderr = run_cli("predict", out, path)
        assert status == 2
        assert str(tmp_path) in stderr


def test_data_shows_what_was_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_recipes_are_listed_shown_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == main(["recipes", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in recipe_names())
    plot = tmp_path / "rate.png"
    assert main(["recipes", "show", "tutorial", "--set", "seed=3", "--plot", str(plot)]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capsys.readouterr().out)
    assert load_recipe(path) == load_recipe("tutorial", ["seed=3"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_recipe_is_shown_as_its_opening_and_what_differs_and_whole_with_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    shown = {}
    for options in ([], ["--all"], ["--set", "seed=3"]):
        assert main(["recipes", "show", "fast", *options]) == 0
        shown[tuple(options)] = capsys.readouterr().out
        path.write_text(shown[tuple(options)])
        assert load_recipe(path) == load_recipe("fast", options[1:])
    assert "thumbnet train cifar10 --recipe fast" in shown[()]
    assert "on_bad_image" not in shown[()]
    assert "on_bad_image" in shown["--all",]
    assert "#" not in shown["--set", "seed=3"]  # what was measured is another recipe's


def test_lr_find_prints_a_suggestion_and_draws_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "lr.png"
    arguments = ["lr-find", str(folder), "--recipe", "resnet18", *SETTINGS, "--steps", "60", "--to", "10"]
    assert main([*arguments, "--plot", str(plot)]) == 0
    assert "suggestion: --set optimizer.lr=" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("matplotlib.figure", ["recipes", "show", "fast", "--plot", "x.png"], "plot"),
        ("datasets", ["data", "hf:a/b"], "hub"),
        ("huggingface_hub", ["push", "RUN", "hf:a/b"], "hub"),
        ("huggingface_hub", ["predict", "hf:a/b", "x.png"], "hub"),
        ("jinja2", ["report", "RUN", "DATA"], "report"),
        ("onnxscript", ["export", "RUN"], "export"),
        ("onnxruntime", ["predict", "model.onnx", "x.png"], "onnx"),
        ("fastapi", ["serve", "RUN"], "serve"),
        ("prometheus_client", ["serve", "RUN"], "serve"),
        ("torch.utils.tensorboard", ["train", "digits", "--tensorboard"], "tensorboard"),
        ("shtab", ["completion", "bash"], "completion"),
    ],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(
    missing: str,
    arguments: list[str],
    extra: str,
    trained: tuple[Path, str, str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("thumbnet.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    places = {"RUN": str(trained[0]), "DATA": str(folder)}
    assert main([places.get(word, word) for word in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "pip install" in line and f"[{extra}]" in line] == lines[-1:]
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_training_is_stopped_with_step_and_rate(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, _, stderr = run_cli(
        "train", folder, "--recipe", "tutorial", "--out", out, *SETTINGS, "--set", "optimizer.lr=1e25"
    )
    assert status == 2
    assert "at step" in stderr
    assert "learning rate 1e+25" in stderr
    assert "Traceback" not in stderr


def interrupt_when(process: subprocess.Popen[str], word: str, number: int = signal.SIGINT) -> str:
    """Send a signal once ``word`` was printed to stderr; the rest of what was printed there."""
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            process.send_signal(number)
            break
    return process.stderr.read()


def test_ctrl_c_saves_and_says_how_to_go_on_to_the_very_same_result(folder: Path, tmp_path: Path) -> None:
    arguments = ["train", str(folder), "--recipe", "tutorial", *SETTINGS, *epochs(6)]
    assert run_cli(*arguments, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "thumbnet", *arguments, "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    rest = interrupt_when(process, "epoch 2/6")
    assert process.wait(60) == 130
    assert f"thumbnet train --resume {out}" in rest
    assert "Traceback" not in rest
    assert not Run(out).is_complete
    status, _, stderr = run_cli("evaluate", out)
    assert (status, "--resume" in stderr) == (2, True)
    status, _, stderr = run_cli("train", "--resume", out)
    assert status == 0, stderr
    assert "resumed in epoch" in stderr
    assert Run(out).weights_path.read_bytes() == Run(tmp_path / "whole").weights_path.read_bytes()


def test_killed_at_any_moment_a_run_resumes_to_the_very_same_result(folder: Path, tmp_path: Path) -> None:
    arguments = ["train", str(folder), "--recipe", "tutorial", *SETTINGS, *epochs(4)]
    assert run_cli(*arguments, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "thumbnet", *arguments, "--out", str(out)]
    for word in ("run ", "epoch 2/4"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        interrupt_when(process, word, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        command = [sys.executable, "-m", "thumbnet", "train", "--resume", str(out)]
    assert run_cli("train", "--resume", out)[0] == 0
    assert Run(out).weights_path.read_bytes() == Run(tmp_path / "whole").weights_path.read_bytes()


def test_ctrl_c_before_the_first_step_ends_without_a_traceback(folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "thumbnet", "train", str(folder), "--out", str(tmp_path / "r")],
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Error" not in stderr


def test_ctrl_c_while_torch_is_imported_ends_before_its_code_can_abort(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    os.abort()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "thumbnet", "train", str(folder), "--out", str(tmp_path / "r")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (130, "\nthumbnet: stopped\n")


def test_a_reader_that_goes_away_is_no_error(trained: tuple[Path, str, str], folder: Path) -> None:
    out, _, _ = trained
    command = f"{sys.executable} -m thumbnet predict {out} {folder}/train/* {folder}/test/* | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_help_and_import_are_quick_and_need_no_torch() -> None:
    code = "import sys, thumbnet, thumbnet.cli; thumbnet.cli.build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    status, stdout, _ = run_cli("--help")
    assert status == 0
    assert "thumbnet train digits" in stdout
    assert run_cli("--version")[1].strip() == f"thumbnet {thumbnet.__version__}"
    assert run_cli("train", "--nonsense")[0] == 2


def test_all_public_names_are_there() -> None:
    assert set(thumbnet.__all__) == {"__version__", *thumbnet._PUBLIC}
    for name in thumbnet.__all__:
        assert getattr(thumbnet, name) is not None
    assert set(thumbnet.__all__) <= set(dir(thumbnet))
    with pytest.raises(AttributeError):
        thumbnet.nothing  # noqa: B018


@pytest.mark.parametrize("no_colour", [False, True])
def test_the_live_bar_at_80_columns(folder: Path, tmp_path: Path, no_colour: bool) -> None:
    """In a pseudo-terminal: what a person sees."""
    import pty

    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="80", **({"NO_COLOR": "1"} if no_colour else {}))
        command = [sys.executable, "-m", "thumbnet", "train", str(folder), "--recipe", "tutorial", *SETTINGS]
        os.execv(sys.executable, [*command, *epochs(8), "--out", str(tmp_path / "run")])
    shown = b""
    while True:
        try:
            block = os.read(descriptor, 65536)
        except OSError:
            break
        if not block:
            break
        shown += block
    assert os.waitpid(pid, 0)[1] == 0
    text = shown.decode(errors="replace")
    for word in ("pictures/s", "loss ", "0:00:0", "epoch 8/8", "  test "):
        assert word in text
    assert "\x1b[" in text  # it does move
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", text)) is not no_colour
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))
    own = [line for line in lines if str(tmp_path) not in line]  # a path is not broken
    assert max(map(len, own)) <= 80


def test_quiet_and_json(folder: Path, tmp_path: Path) -> None:
    arguments = ["train", str(folder), "--recipe", "tutorial", *SETTINGS, *epochs(1)]
    status, stdout, stderr = run_cli(*arguments, "--out", tmp_path / "a", "--quiet")
    assert (status, stdout, stderr) == (0, f"{tmp_path / 'a'}\n", "")
    status, stdout, stderr = run_cli(*arguments, "--out", tmp_path / "b", "--json")
    assert json.loads(stdout) == {"run": str(tmp_path / "b"), **Run(tmp_path / "b").summary}
    assert "epoch 1/1" in stderr


def test_tensorboard_events_go_on_after_a_resume(folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    arguments = ["train", str(folder), "--recipe", "tutorial", *SETTINGS, *epochs(4), "--tensorboard"]
    process = subprocess.Popen(
        [sys.executable, "-m", "thumbnet", *arguments, "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    interrupt_when(process, "epoch 2/4")
    assert process.wait(60) == 130
    assert run_cli("train", "--resume", out, "--tensorboard")[0] == 0
    events = accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for tag, key in (("Accuracy/test", "test_accuracy"), ("Loss/test", "test_loss"), ("Learning rate", "lr")):
        found = [(one.step, one.value) for one in events.Scalars(tag)]
        assert found == [(line["step"], pytest.approx(line[key])) for line in metrics]
    assert len(events.Scalars("Loss/train")) >= 2


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete(tmp_path: Path, shell: str) -> None:
    pytest.importorskip("shtab")
    status, script, _ = run_cli("completion", shell)
    assert status == 0
    (tmp_path / "script").write_text(script)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    assert subprocess.run([shell, "-n", str(tmp_path / "script")], check=False).returncode == 0
    if shell == "bash":
        ask = f'source {tmp_path}/script; COMP_WORDS=(thumbnet export --f); COMP_CWORD=2; _shtab_thumbnet thumbnet --f export; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--format"]


def test_sixteen_pixels_and_odd_shapes_train(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in range(2):
            for number in range(4):
                side = 10 + number * 7
                write_picture(tmp_path / split / f"c{label}" / f"{number}.png", noise(number, side, 40))
    status, _, stderr = run_cli(
        "train", tmp_path, "--image-size", "16", "--epochs", "1", "--out", tmp_path / "run",
        "--set", "model.width=0.25",
    )  # fmt: skip
    assert status == 0, stderr
    assert "pictures, 16x16 (pad), from memory" in stderr
