from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from cli_helpers import SETTINGS, epochs, interrupt_when, run_cli
from helpers import noise, write_picture
from thumbnet.cli import main
from thumbnet.errors import InterruptedRunError
from thumbnet.runs.folder import Run
from thumbnet.training.train import train
from training_helpers import StopAfter


def test_training_ends_with_the_accuracy_the_run_and_the_next_commands(
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
    assert "\x1b" not in stdout + stderr  # plain lines, because stderr is not a terminal
    assert "\r" not in stdout + stderr


def test_without_out_every_run_gets_a_new_folder_with_a_readable_name(folder: Path, tmp_path: Path) -> None:
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


def test_a_diverging_training_stops_and_names_the_step_and_the_learning_rate(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    status, _, stderr = run_cli(
        "train", folder, "--recipe", "tutorial", "--out", out, *SETTINGS, "--set", "optimizer.lr=1e25"
    )
    assert status == 2
    assert "at step" in stderr
    assert "learning rate 1e+25" in stderr
    assert "Traceback" not in stderr


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], bytes]:
    """The words of a training without --out, and the weights that it gives if nothing stops it."""
    words = ["train", str(folder), "--recipe", "tutorial", *SETTINGS, *epochs(4)]
    out = tmp_path_factory.mktemp("whole") / "run"
    status, _, stderr = run_cli(*words, "--out", out)
    assert status == 0, stderr
    return words, Run(out).weights_path.read_bytes()


def test_after_ctrl_c_a_run_is_saved_and_resumes_to_the_same_weights(
    whole: tuple[list[str], bytes], tmp_path: Path
) -> None:
    words, weights = whole
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "thumbnet", *words, "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    rest = interrupt_when(process, "epoch 2/4")
    assert process.wait(60) == 130
    assert f"thumbnet train --resume {out}" in rest
    assert "Traceback" not in rest
    assert not Run(out).is_complete
    status, _, stderr = run_cli("evaluate", out)
    assert (status, "--resume" in stderr) == (2, True)
    status, _, stderr = run_cli("train", "--resume", out)
    assert status == 0, stderr
    assert "resumed in epoch" in stderr
    assert Run(out).weights_path.read_bytes() == weights


def test_a_run_that_is_ended_early_says_so_everywhere(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(folder, "tutorial", overrides=SETTINGS[1::2], out=out, device="cpu", listener=StopAfter(1))
    assert main(["train", "--resume", str(out), "--finish"]) == 0
    shown = capsys.readouterr()
    assert "stopped after epoch 1 of 3: ended on request" in shown.err
    assert "ended on request at step 1 of " in shown.out
    assert "1 of 3 epoch(s) in " in shown.out
    assert main(["compare", str(out)]) == 0
    assert "tutorial, ended early" in (compared := capsys.readouterr().out)
    assert "the user ended the training early" in compared


def test_a_run_that_is_killed_as_it_begins_resumes_to_the_same_weights(
    whole: tuple[list[str], bytes], tmp_path: Path
) -> None:
    """faults/test_kills.py kills trainings between their checkpoints and while one is written."""
    words, weights = whole
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "thumbnet", *words, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    interrupt_when(process, "run ", signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert run_cli("train", "--resume", out)[0] == 0
    assert Run(out).weights_path.read_bytes() == weights


# As `python -m thumbnet`, but prints a line as soon as it handles Ctrl-C.
ANNOUNCED = """
import signal, sys
from thumbnet.__main__ import main
set_handler = signal.signal
def announce(*arguments):
    before = set_handler(*arguments)
    print(flush=True)
    return before
signal.signal = announce
sys.exit(main())
"""


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 1.0])
def test_ctrl_c_before_the_first_step_ends_without_a_traceback(
    folder: Path, tmp_path: Path, seconds: float
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCED, "train", str(folder), "--out", str(tmp_path / "r")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "thumbnet: " in stderr) == (130, True), stderr
    assert "Traceback" not in stderr
    assert "Error" not in stderr


INTERRUPTED_PARSER = """
import argparse, os, signal, sys
from thumbnet.__main__ import main

def parse(*_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        raise AttributeError("'_StoreAction' object has no attribute 'save_nargs'")

argparse.ArgumentParser.parse_known_intermixed_args = parse
sys.exit(main())
"""


def test_an_error_while_ctrl_c_is_handled_is_no_traceback(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_PARSER, "train", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (130, "\nthumbnet: stopped\n")


IMPORTED = {
    "abort": "try:\n    stop()\nexcept BaseException:\n    os.abort()\n",
    "another error": (
        "class Member:\n    def __set_name__(self, owner, name): stop()\n\nclass Owner:\n    member = Member()\n"
    ),
    "swallowed": "try:\n    stop()\nexcept BaseException:\n    raise ImportError('no such thing')\n",
}


@pytest.mark.parametrize(
    ("module", "kind"),
    [*(("torch", kind) for kind in IMPORTED), ("numpy", "another error"), ("PIL", "swallowed")],
)
def test_ctrl_c_during_an_import_says_only_that_it_stopped(
    folder: Path, tmp_path: Path, module: str, kind: str
) -> None:
    stop = "import os, signal\ndef stop(): os.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / f"{module}.py").write_text(stop + IMPORTED[kind])
    done = subprocess.run(
        [sys.executable, "-m", "thumbnet", "train", str(folder), "--out", str(tmp_path / "r")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (130, "\nthumbnet: stopped\n")


def test_quiet_prints_only_the_run_and_json_prints_the_summary(folder: Path, tmp_path: Path) -> None:
    arguments = ["train", str(folder), "--recipe", "tutorial", *SETTINGS, *epochs(1)]
    status, stdout, stderr = run_cli(*arguments, "--out", tmp_path / "a", "--quiet")
    assert (status, stdout, stderr) == (0, f"{tmp_path / 'a'}\n", "")
    status, stdout, stderr = run_cli(*arguments, "--out", tmp_path / "b", "--json")
    assert json.loads(stdout) == {"run": str(tmp_path / "b"), **Run(tmp_path / "b").summary}
    assert "epoch 1/1" in stderr


def test_pictures_of_different_shapes_train_at_16_pixels(tmp_path: Path) -> None:
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
    assert "pictures, 16x16 (crop), from memory" in stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits", "--minutes", "1", "--epochs", "3"], "leave out --epochs"),
        (["--resume", "RUN", "--minutes", "1"], "leave out --epochs, and --resume"),
        (["digits", "--minutes", "0"], "--minutes 0: expected a number of minutes"),
        (["digits", "--minutes", "nan"], "--minutes nan: expected a number of minutes"),
        (["digits", "--minutes", "1", "--set", "training.steps=5"], "cannot go together"),
        (["digits", "--minutes", "soon"], "--minutes soon: expected a number"),
    ],
)
def test_a_time_that_cannot_be_kept_is_an_error(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_training_for_a_given_time_says_what_it_chose_and_why(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(folder), "--minutes", "0.05", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().err
    assert re.search(r"0\.05 minute\(s\)(: .* so [\d,]+ steps \(.* epochs\)| are too short)", shown), shown
    run = Run(tmp_path / "run")
    assert run.settings["minutes"] == 0.05
    assert run.recipe.training.steps > 0


def test_corrected_labels_are_told_at_the_start_and_at_the_end(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.csv").write_text(
        "picture,label,split,was,decision\ntrain/red/0.png,blue,train,red,relabel\n"
    )
    labels, out = str(tmp_path / "labels.csv"), str(tmp_path / "run")
    small = ["--set", "model.name=fastnet", "--set", "model.width=0.1", "--recipe", "fast"]
    assert main(["train", str(folder), "--labels", labels, "--out", out, *SETTINGS, *small, *epochs(1)]) == 0
    shown = capsys.readouterr()
    assert "        corrected labels: 1 relabelled\n" in shown.err
    assert "  corrected labels: 1 relabelled\n" in shown.out


def test_a_resumed_run_keeps_its_own_labels(capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--more-epochs", "2"]):
        assert main(["train", "--resume", "runs/x", "--labels", "labels.csv", *more]) == 2
        shown = capsys.readouterr().err
        assert "leave out --labels" in shown
        assert "train DATA --labels labels.csv --init runs/x" in shown


@pytest.mark.parametrize("more", [[], ["--finish"], ["--more-epochs", "2"]])
def test_the_downloads_of_a_resumed_run_may_be_in_another_folder(
    more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[object] = []

    def stopped(*_: object, data_dir: object, **__: object) -> None:
        given.append(data_dir)
        raise InterruptedRunError(Path("run"), 1, 2)

    monkeypatch.setattr("thumbnet.training.train.resume", stopped)
    assert main(["train", "--resume", "runs/x", "--data-dir", "elsewhere", "--quiet", *more]) == 130
    assert given == ["elsewhere"]
    assert "train --resume run --data-dir elsewhere\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--val-fraction", "0.1"], "--val-fraction"),
        (["--group-by", "x", "--depth", "2"], "--classes-from, --group-by"),
        (["--images", "x", "--data-dir", "y", "--on-bad-image", "skip"], "--images"),
    ],
)
def test_a_run_that_is_trained_for_longer_reads_its_data_as_before(
    words: list[str], flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", "runs/x", "--more-epochs", "2", *words]) == 2
    assert f"--more-epochs takes the run's own data: leave out {flags}\n" in capsys.readouterr().err


def test_a_stopped_training_says_how_to_go_on_with_the_same_device_and_trackers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise InterruptedRunError(Path("run"), 1, 2)

    for name in ("train", "resume"):
        monkeypatch.setattr(f"thumbnet.training.train.{name}", stopped)
    monkeypatch.setattr("thumbnet.training.tracking.tracked", lambda _, listener: nullcontext(listener))
    monkeypatch.setattr("thumbnet.kernels.library.compile_ahead", lambda: None)
    more = ["--device", "cpu", "--track", "mlflow", "--tensorboard"]
    again = "train --resume run --device cpu --track mlflow --track tensorboard"
    for words in (["digits"], ["--resume", "run"]):
        assert main(["train", *words, *more, "--quiet"]) == 130
        told = capsys.readouterr().err
        assert f"{again}\n" in told
        assert told.endswith(f"{again} --finish\n")
        assert main(["train", *words, "--quiet"]) == 130
        assert "train --resume run\n" in capsys.readouterr().err


def test_weights_that_do_not_exist_are_an_error_before_the_data_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    init = ["--init", "gone.safetensors", "--device", "cpu"]
    for words in (["train"], ["lr-find"], ["repeat", "--out", "study"]):
        assert main([words[0], "no-data", *words[1:], *init]) == 2
        assert "there is no file gone.safetensors" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_wrong_corrections_are_an_error_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.csv").write_text("picture,label,split,was,decision\n1.png,b,train,a,relable\n")
    for command in ("train", "lr-find", "data"):
        assert main([command, str(tmp_path / "no-data"), "--labels", str(tmp_path / "labels.csv")]) == 2
        assert "labels.csv, line 2: there is no decision 'relable'" in capsys.readouterr().err


def test_the_advice_on_new_labels_names_all_files_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "runs/x", "--labels", "a.csv", "--labels", "b.csv"]) == 2
    assert "train DATA --labels a.csv --labels b.csv --init runs/x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "gpu", "expected"),
    [("auto", False, 1), ("auto", True, 0), ("cpu", True, 1), ("cuda", False, 0)],
)
def test_the_kernels_are_compiled_while_pytorch_is_imported_if_the_cpu_will_train(
    device: str, gpu: bool, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []
    monkeypatch.setattr("thumbnet.kernels.library.compile_ahead", lambda: compiled.append(1))
    monkeypatch.setattr("thumbnet.cli.train._may_have_gpu", lambda: gpu)
    assert main(["train", str(tmp_path / "missing"), "--device", device]) == 2
    assert len(compiled) == expected
