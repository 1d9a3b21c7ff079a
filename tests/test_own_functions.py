"""A loss and an augmentation of the user's own in a whole run; only a training needs their code."""

from __future__ import annotations

import hashlib
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import thumbnet
from helpers import coloured, coloured_data, write_class_folders, write_picture
from own_networks import OwnPackage
from thumbnet.cli import main
from thumbnet.errors import InterruptedRunError, ModelCodeError, OwnCodeError, RunError
from thumbnet.reports.comparison import group_runs
from thumbnet.runs.folder import Run
from thumbnet.training.listener import Listener
from thumbnet.training.train import resume, train
from training_helpers import Noting, StopAfter

OWN = """
from pathlib import Path

import torch
import torch.nn.functional as F

import thumbnet

Path({trace!r}).touch()


@thumbnet.register_loss("focal")
def focal(logits, targets):
    # Some global random numbers, which thumbnet seeds, too.
    noise = 1 + 0.01 * torch.rand(len(logits))
    probability = logits.softmax(dim=1).gather(1, targets[:, None])[:, 0]
    return noise * (1 - probability) ** 2 * F.cross_entropy(logits, targets, reduction="none")


@thumbnet.register_augmentation("grain")
def grain(images, generator):
    noise = torch.randint(-20, 21, images.shape, generator=generator).to(images.device)
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)
"""
LOSS, GRAIN = "mypackage.own:focal", "mypackage.own:grain"
SMALL = [
    "model.name=resnet20", "model.width=0.25", "training.batch_size=16", "training.precision=fp32",
    "training.epochs=2", "evaluation.every=1", "augment.flip=random", "optimizer.lr=0.05",
    "augment.mixup=0.2", "training.class_weights=balanced",
]  # fmt: skip
SETTINGS = [*SMALL, f"training.loss={LOSS}", f"augment.custom={GRAIN}"]
WORDS = [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.fixture
def data(own: OwnPackage) -> Path:
    own.write("mypackage/own.py", OWN.format(trace=str(own.trace)))
    return write_class_folders(own.folder / "data", ["train", "val", "test"], per_class=12)


@pytest.fixture
def run(own: OwnPackage, data: Path) -> Run:
    """A finished run, in a process that has forgotten the code, which is no longer there either."""
    words = ["train", str(data), "--recipe", "one-cycle", *WORDS, "--out", "run", "--quiet"]
    assert main([*words, "--device", "cpu"]) == 0
    own.forget()
    (own.folder / "mypackage" / "own.py").unlink()
    return Run(Path("run"))


def test_a_run_records_the_names_of_its_functions(run: Run) -> None:
    assert (run.recipe.training.loss, run.recipe.augment.custom) == (LOSS, GRAIN)
    assert run.recipe.training.label_smoothing == 0  # the recipe one-cycle has some


def test_a_finished_run_needs_no_code(own: OwnPackage, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(write_picture(own.folder / "x.png", coloured(1, 99)))
    assert main(["evaluate", "run", "--device", "cpu"]) == 0
    assert main(["predict", "run", picture]) == 0
    assert main(["compare", "run", "run"]) == 0
    weights = str(own.folder / "a.safetensors")
    assert main(["export", "run", "--format", "safetensors", "--out", weights]) == 0
    assert main(["predict", weights, picture]) == 0
    assert thumbnet.load_classifier("run").class_names == ("blue", "green", "red")
    assert "not part of thumbnet" not in capsys.readouterr().err


def test_the_command_that_trains_says_how_to_use_the_run_without_the_code(
    own: OwnPackage, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        str(data),
        "--recipe",
        "one-cycle",
        *WORDS,
        "--out",
        "run",
        "--set",
        "training.epochs=1",
    ]
    assert main([*words, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert re.search(r"thumbnet evaluate run\n", said.out)
    told = " ".join(said.err.split())  # lines may be wrapped
    assert f"training.label_smoothing is 0 instead of 0.1, because the loss {LOSS} is your own" in told


def test_a_resumed_run_gives_the_same_weights_as_an_uninterrupted_run(
    own: OwnPackage, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    whole = train(data, "one-cycle", overrides=SETTINGS, out="whole", device="cpu")
    torch.manual_seed(2)
    stops = f"train --resume stopped --model-code {LOSS} --model-code {GRAIN}"
    with pytest.raises(InterruptedRunError, match=stops):
        train(data, "one-cycle", overrides=SETTINGS, out="stopped", device="cpu", listener=StopAfter(1))
    own.forget()
    with pytest.raises(ModelCodeError, match=f"the loss {LOSS} is not part of thumbnet"):
        resume("stopped", device="cpu")
    with pytest.raises(ModelCodeError, match=LOSS):
        train("data", Run(Path("stopped")).recipe, out="second", device="cpu")
    assert not own.was_imported()
    own.import_own()  # registers both, also under their import paths
    with pytest.raises(InterruptedRunError):
        resume("stopped", device="cpu", listener=StopAfter(4))
    own.forget()
    assert main(["train", "--resume", "stopped", "--model-code", LOSS, "--quiet"]) == 0
    assert Run(Path("stopped")).weights_path.read_bytes() == whole.weights_path.read_bytes()


def edit(own: OwnPackage) -> None:
    """Change the file with both functions, and forget what it was."""
    own.write("mypackage/own.py", OWN.format(trace=str(own.trace)).replace("** 2", "** 3"))
    own.forget()
    own.import_own()


def test_a_training_that_is_resumed_with_other_code_says_so_and_is_no_repetition(
    own: OwnPackage, data: Path
) -> None:
    def start(out: str, listener: Listener) -> Run:
        return train(
            data, "one-cycle", overrides=SETTINGS, out=out, device="cpu", listener=listener, auto_resume=True
        )

    calm = start("calm", Listener())
    digest = hashlib.sha256((own.folder / "mypackage" / "own.py").read_bytes()).hexdigest()
    assert calm.settings["code"] == {"training.loss": digest, "augment.custom": digest}
    with pytest.raises(InterruptedRunError):
        start("run", StopAfter(1))
    with pytest.raises(InterruptedRunError):
        resume("run", device="cpu", listener=(unchanged := Noting(2)))
    edit(own)
    for out in ("calm", "run"):
        with pytest.raises(RunError, match=f"training.loss: the file with {LOSS} has changed"):
            start(out, Listener())
    run = resume("run", device="cpu", listener=(told := Noting(1000)))
    assert not any("has changed" in note for note in unchanged.notes)
    assert sum("has changed since run began" in note for note in told.notes) == 2
    changed = run.settings
    assert changed["code_before"] == {"training.loss": [digest], "augment.custom": [digest]}
    assert changed["code"] != calm.settings["code"]
    assert start("run", Listener()).path == run.path  # the code is now the recorded one
    assert len(group_runs([calm, run])) == 2


def test_a_training_that_begins_again_has_only_the_code_that_it_begins_with(
    own: OwnPackage, data: Path
) -> None:
    class Stop(Listener):
        def on_start(self, *_: object) -> None:
            raise KeyboardInterrupt  # before the first checkpoint

    with pytest.raises(KeyboardInterrupt):
        train(data, "one-cycle", overrides=SETTINGS, out="run", device="cpu", listener=Stop())
    shutil.copytree("run", "old")
    before = Run(Path("run")).settings["code"]
    edit(own)
    for call in (
        partial(resume, "run"),
        partial(train, data, "one-cycle", overrides=SETTINGS, out="old", auto_resume=True),
    ):
        run = call(device="cpu")
        assert run.settings["code"].keys() == before.keys()
        assert run.settings["code"] != before
        assert "code_before" not in run.settings


def test_a_run_without_a_record_of_its_code_has_one_once_it_begins_again(data: Path) -> None:
    with pytest.raises(InterruptedRunError):
        train(data, "one-cycle", overrides=SETTINGS, out="run", device="cpu", listener=StopAfter(1))
    before = Run(Path("run"))
    code = before.settings["code"]
    before.write_settings({key: value for key, value in before.settings.items() if key != "code"})
    shutil.copytree("run", "again")
    (Path("again") / "checkpoint.pt").unlink()
    assert "code" not in resume("run", device="cpu").settings  # unknown for its first part
    assert resume("again", device="cpu").settings["code"] == code


def test_both_functions_change_the_weights(data: Path) -> None:
    """Otherwise the test of resuming would prove nothing."""
    weights = set()
    for number, left_out in enumerate([[], ["training.loss=cross-entropy"], ["augment.custom="]]):
        settings = [*SETTINGS, "training.epochs=1", "training.label_smoothing=0", *left_out]
        run = train(data, "one-cycle", overrides=settings, out=str(number), device="cpu")
        weights.add(run.weights_path.read_bytes())
    assert len(weights) == 3


def test_a_command_needs_only_the_module_that_registers_them(own: OwnPackage, data: Path) -> None:
    settings = [*SMALL, "training.loss=focal", "augment.custom=grain", "training.epochs=1"]
    words = ["train", str(data), "--recipe", "one-cycle", "--out", "run", "--quiet", "--device", "cpu"]
    words += [word for setting in settings for word in ("--set", setting)]
    assert main(words) == 2
    assert main([*words, "--model-code", "mypackage.own"]) == 0
    own.forget()
    longer = [
        "train",
        "--resume",
        "run",
        "--more-epochs",
        "1",
        "--out",
        "longer",
        "--quiet",
        "--device",
        "cpu",
    ]
    assert main(longer) == 2
    assert not own.was_imported()
    assert main([*longer, "--model-code", "mypackage.own"]) == 0


def test_the_command_that_a_refusal_prints_allows_the_code(
    own: OwnPackage, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InterruptedRunError):
        train(data, "one-cycle", overrides=SETTINGS, out="run", device="cpu", listener=StopAfter(1))
    own.forget()
    assert main(["train", "--resume", "run"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert f"The command that allows it: thumbnet train --model-code {LOSS} --resume run" in re.sub(
        r"\S*thumbnet train", "thumbnet train", printed
    )
    assert not own.was_imported()
    assert main(["train", "--model-code", LOSS, "--model-code", GRAIN, "--resume", "run", "--quiet"]) == 0


def test_the_preview_of_a_command_shows_the_augmentation(own: OwnPackage, data: Path) -> None:
    out = ["--preview-augment", "x.png", "--model-code", "mypackage.own"]
    assert main(["data", str(data), *out, "--set", "augment.custom=grain"]) == 0
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("key", ["training.loss", "augment.custom"])
def test_an_error_in_the_function_is_one_line_on_the_command_line(
    key: str, own: OwnPackage, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own.write("mypackage/own.py", "def broken(one, other):\n    return one.nothing\n")
    words = ["train", str(data), "--recipe", "one-cycle", "--out", "run", "--quiet", "--device", "cpu"]
    settings = [*SMALL, f"{key}=mypackage.own:broken"]
    assert main([*words, *(word for setting in settings for word in ("--set", setting))]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    kind = "loss" if key == "training.loss" else "augmentation"
    assert f"the {kind} mypackage.own:broken fails on " in printed
    assert re.search(r"AttributeError: .*'nothing' \(.*own\.py, line 2\)", printed)


def test_functions_of_the_program_itself_train_and_the_run_is_learned(own: OwnPackage) -> None:
    @thumbnet.register_loss("margin")
    def margin(logits: Tensor, targets: Tensor) -> Tensor:
        """Weston and Watkins 1999."""
        right = logits.gather(1, targets[:, None])
        return (1 + logits - right).relu().sum(dim=1) - 1

    @thumbnet.register_augmentation("half-dark")
    def half_dark(images: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(images), generator=generator) < 0.5
        return torch.where(chosen.to(images.device)[:, None, None, None], images // 2, images)

    settings = ["model.width=0.25", "training.epochs=10", "training.precision=fp32", "augment.mixup=0.2"]
    settings += ["training.class_weights=balanced", "training.loss=margin", "augment.custom=half-dark"]
    made = train(coloured_data(60), "small", overrides=settings, out="run", device="cpu")
    assert made.summary["accuracy"] > 0.9


def test_a_loss_that_is_not_a_loss_is_reported_in_python_with_its_cause(own: OwnPackage) -> None:
    @thumbnet.register_loss("mine")
    def mine(logits: Tensor, targets: Tensor) -> Tensor:
        return logits.nothing  # type: ignore[attr-defined]

    settings = [*SMALL, "training.loss=mine"]
    with pytest.raises(OwnCodeError, match="the loss mine fails on") as caught:
        train(coloured_data(), "one-cycle", overrides=settings, out="run", device="cpu")
    assert isinstance(caught.value.__cause__, AttributeError)
    shutil.rmtree("run")
