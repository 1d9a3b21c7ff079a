from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import thumbnet
from cli_helpers import forget_modules, run_process
from helpers import coloured, write_picture
from thumbnet import hardware
from thumbnet.cli import main


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
def test_a_wrong_command_line_gets_one_clear_message_and_status_2(
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
    assert list(tmp_path.iterdir()) == []  # nothing was started


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    why = "CUDA error: no kernel image is available"
    monkeypatch.setattr(hardware, "why_unusable", lambda device: None if device.type == "cpu" else why)


@pytest.mark.usefixtures("broken_gpu")
def test_a_command_uses_the_cpu_and_says_so_where_the_gpu_does_not_work(
    trained: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write_picture(tmp_path / "a.png", coloured(0, 0))
    assert main(["predict", str(trained[0]), str(picture)]) == 0
    line = "thumbnet: cuda:0 cannot be used (CUDA error: no kernel image is available): using cpu"
    assert line in capsys.readouterr().err.splitlines()
    assert main(["predict", str(trained[0]), str(picture), "--device", "gpu"]) == 2
    assert "--device gpu: cuda:0 cannot be used (CUDA error: no kernel" in capsys.readouterr().err


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
def test_a_missing_extra_is_reported_in_one_line_with_the_install_command(
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
    forget_modules(monkeypatch, "thumbnet.serving")
    monkeypatch.setitem(sys.modules, missing, None)
    places = {"RUN": str(trained[0]), "DATA": str(folder)}
    assert main([places.get(word, word) for word in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "pip install" in line and f"[{extra}]" in line] == lines[-1:]
    assert list(tmp_path.iterdir()) == []


def test_help_and_import_are_quick_and_need_no_torch() -> None:
    code = "import sys, thumbnet, thumbnet.cli; thumbnet.cli.build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    status, stdout, _ = run_process("--help")
    assert status == 0
    assert "thumbnet train digits" in stdout
    assert run_process("--version")[1].strip() == f"thumbnet {thumbnet.__version__}"
    assert run_process("train", "--nonsense")[0] == 2


def test_every_public_name_can_be_imported() -> None:
    assert set(thumbnet.__all__) == {"__version__", *thumbnet._PUBLIC}
    for name in thumbnet.__all__:
        assert getattr(thumbnet, name) is not None
    assert set(thumbnet.__all__) <= set(dir(thumbnet))
    with pytest.raises(AttributeError):
        thumbnet.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "some/place"),
            "cannot use some/place: Permission denied",
        ),
        (OSError(errno.EIO, "Input/output error"), "cannot use a file: Input/output error"),
    ],
)
def test_what_the_system_refuses_gets_a_message(
    error: OSError, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> bool:
        raise error

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert main(["evaluate", "run"]) == 2
    assert capsys.readouterr().err == f"thumbnet: evaluate {told}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete the current folder")
def test_a_current_folder_that_was_deleted_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    source = Path(thumbnet.__file__).parents[1]
    program = (
        f"import os, sys; sys.path.insert(0, {str(source)!r}); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n"
        f"sys.argv = ['thumbnet', 'data', {str(tmp_path)!r}]\n"
        "from thumbnet.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "thumbnet: the current folder has been deleted: cd to one that exists\n"
