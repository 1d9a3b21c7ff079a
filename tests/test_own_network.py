"""The user's own networks work in every command, and a stranger's file never imports code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thumbnet
from helpers import coloured, coloured_data, write_class_folders, write_picture
from own_networks import OwnPackage
from thumbnet.classifiers.load import load_classifier
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.cli import main
from thumbnet.errors import InterruptedRunError, ModelCodeError, NetworkError, RunError
from thumbnet.publish.export import check_export, export
from thumbnet.publish.hub import model_card
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs import weights as weights_module
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.training.train import resume, train
from training_helpers import StopAfter

PATH = OwnPackage.path
SMALL = [
    "training.batch_size=16", "training.precision=fp32", "training.epochs=2", "evaluation.every=1",
    "augment.flip=random", "optimizer.lr=0.05",
]  # fmt: skip
OWN = [*SMALL, f"model.name={PATH}"]
SETTINGS = [word for setting in OWN for word in ("--set", setting)]
CODE = ["--model-code", PATH]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data``, and with ``run``, a finished run of the user's own network on them."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_class_folders(folder / "data", ["train", "val", "test"], per_class=12)
    with pytest.MonkeyPatch.context() as patch:
        own = OwnPackage(folder, patch)
        words = ["train", str(data), "--recipe", "one-cycle", *SETTINGS, "--out", "run", "--quiet"]
        assert main([*words, "--device", "cpu"]) == 0
        own.forget()
    return folder


@pytest.fixture
def data(own: OwnPackage, trained: Path) -> Path:
    return Path(shutil.copytree(trained / "data", own.folder / "data"))


@pytest.fixture
def run(own: OwnPackage, data: Path, trained: Path) -> Run:
    """A finished run of the user's own network, in a process that does not know the network."""
    shutil.copytree(trained / "run", own.folder / "run")
    return Run(Path("run"))


# --- training --------------------------------------------------------------------------------------------


def test_the_default_recipe_of_an_own_network_suits_any_network(own: OwnPackage) -> None:
    """The recipes ``fast`` and ``small`` set learning rates for FastNet's layers by name."""
    trained = train(coloured_data(), overrides=[f"model.name={PATH}", "training.epochs=1"], out="run")
    assert trained.recipe.name == "one-cycle"
    assert trained.recipe.model.name == PATH
    assert trained.summary["parameters"] == sum(p.numel() for p in Predictor.load("run").model.parameters())


def test_the_installed_script_trains_a_network_that_a_recipe_file_names(own: OwnPackage, data: Path) -> None:
    """Like the script ``thumbnet``, Python here does not have the current folder on its path."""
    own.write("mine.toml", f'extends = "one-cycle"\n[model]\nname = "{PATH}"\n[training]\nepochs = 1\n')
    script = "import sys; from thumbnet.__main__ import main; sys.exit(main())"
    words = ["train", str(data), "--recipe", "mine.toml", "--out", "run", "--set", "training.batch_size=16"]
    done = subprocess.run([sys.executable, "-P", "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"{PATH}, 1,\d\d\d parameters", done.stderr)
    assert re.search(rf"thumbnet evaluate --model-code {PATH} run\n", done.stdout)


def test_a_wrong_network_is_reported_before_the_data_are_read(
    own: OwnPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "no-such-data", "--set", "model.name=mypackage.nets:TinyNte"]
    assert main(words) == 2
    assert "Did you mean 'TinyNet'" in capsys.readouterr().err


def test_a_recipe_that_starts_with_smaller_pictures_refuses_a_network_for_a_single_size(
    own: OwnPackage,
) -> None:
    own.write(
        "mypackage/onesize.py",
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.head = torch.nn.Linear(3 * 32 * 32, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(x.flatten(1))\n",
    )
    settings = [*SMALL, "model.name=mypackage.onesize:Net", "training.epochs=1", "optimizer.lr=0.001"]
    growing = [*settings, "schedule.small_until=0.5", "schedule.small_sides=[0.75]"]
    with pytest.raises(NetworkError, match=r"\[2, 3, 24, 24\].*schedule.small_until=0"):
        train(coloured_data(side=32), "one-cycle", overrides=growing, out="run")
    assert train(coloured_data(side=32), "one-cycle", overrides=settings, out="run").is_complete


@pytest.mark.parametrize("average", ["0", "0.8"])
def test_a_resumed_run_with_dropout_gives_the_same_weights_as_an_uninterrupted_run(
    own: OwnPackage, data: Path, average: str
) -> None:
    overrides = [*OWN, f"training.ema_decay={average}"]
    torch.manual_seed(1)
    whole = train(data, "one-cycle", overrides=overrides, out="whole", device="cpu")
    torch.manual_seed(2)
    with pytest.raises(InterruptedRunError, match=f"train --resume stopped --model-code {PATH}"):
        train(data, "one-cycle", overrides=overrides, out="stopped", device="cpu", listener=StopAfter(1))
    own.forget()
    with pytest.raises(ModelCodeError, match=PATH):
        resume("stopped", device="cpu")
    assert not own.was_imported()
    network = own.import_it().TinyNet
    with pytest.raises(InterruptedRunError):
        resume("stopped", device="cpu", listener=StopAfter(4), model=network)
    own.forget()
    assert main(["train", "--resume", "stopped", *CODE, "--device", "cpu", "--quiet"]) == 0
    assert Run(Path("stopped")).weights_path.read_bytes() == whole.weights_path.read_bytes()


def test_dropout_changes_the_trained_weights(own: OwnPackage, data: Path) -> None:
    """Otherwise the test of resuming with dropout would prove nothing."""
    weights = []
    for out in ("with", "without"):
        run = train(data, "one-cycle", overrides=OWN, out=out, device="cpu")
        weights.append(run.weights_path.read_bytes())
        nets = own.folder / "mypackage" / "nets.py"
        own.write("mypackage/nets.py", nets.read_text().replace("Dropout(0.1)", "Dropout(0.0)"))
        own.forget()
    assert weights[0] != weights[1]


def test_a_command_that_names_the_network_may_resume_automatically(own: OwnPackage, data: Path) -> None:
    words = [
        "train",
        str(data),
        "--recipe",
        "one-cycle",
        *SETTINGS,
        "--out",
        "run",
        "--auto-resume",
        "--quiet",
    ]
    with pytest.raises(InterruptedRunError):
        train(data, "one-cycle", overrides=OWN, out="run", device="cpu", listener=StopAfter(2))
    own.forget()
    assert main([*words, "--device", "cpu"]) == 0
    assert Run(Path("run")).is_complete


def test_an_own_network_can_be_trained_for_longer(own: OwnPackage, run: Run) -> None:
    longer = [
        "train",
        "--resume",
        "run",
        "--more-epochs",
        "1",
        "--out",
        "longer",
        "--device",
        "cpu",
        "--quiet",
    ]
    assert main(longer) == 2
    assert not own.was_imported()
    assert main([*longer, *CODE]) == 0
    assert Run(Path("longer")).recipe.model.name == PATH
    own.forget()
    shutil.rmtree("longer")
    assert main([*longer, "--set", f"model.name={PATH}"]) == 0  # naming the network again allows it, too


def test_the_weights_of_an_own_network_can_start_another_training(own: OwnPackage, run: Run) -> None:
    weights, info = read_weights(run.weights_path)
    write_class_folders(own.folder / "more", ["train"], per_class=8)
    for number in range(8):
        write_picture(own.folder / f"more/train/yellow/{number}.png", coloured(1, number))
    still = [
        *OWN,
        "training.epochs=1",
        "optimizer.lr=1e-12",
        "optimizer.weight_decay=0",
        "optimizer.groups=[]",
    ]
    second = train("more", "one-cycle", overrides=[*still, "training.init=run"], out="second", device="cpu")
    new, new_info = read_weights(second.weights_path)
    assert new_info.class_names == ("blue", "green", "red", "yellow")
    assert info.class_names == ("blue", "green", "red")
    assert torch.allclose(new["fc.weight"][:3], weights["fc.weight"], atol=1e-5)
    assert torch.allclose(new["body.0.weight"], weights["body.0.weight"], atol=1e-5)


def test_weights_of_a_network_whose_code_has_changed_are_refused(own: OwnPackage, run: Run) -> None:
    nets = own.folder / "mypackage" / "nets.py"
    own.write(
        "mypackage/nets.py",
        nets.read_text().replace("(8, 16, 3", "(8, 12, 3").replace("(16)", "(12)").replace("(16,", "(12,"),
    )
    with pytest.raises(
        RunError, match=r"weights in .*/run do not fit the network .*body.5.weight has the shape \[12"
    ):
        train("data", "one-cycle", overrides=[*OWN, "training.init=run"], out="second", device="cpu")
    with pytest.raises(RunError, match="the weights do not fit the network"):
        thumbnet.load_run("run", model=own.import_it().TinyNet)


def test_the_learning_rate_range_test_accepts_an_own_network(own: OwnPackage, data: Path) -> None:
    words = ["lr-find", str(data), "--recipe", "one-cycle", *SETTINGS, "--steps", "20", "--device", "cpu"]
    assert main(words) == 0
    assert own.was_imported()


def test_a_network_registered_in_the_program_itself_can_be_trained_and_loaded(own: OwnPackage) -> None:
    @thumbnet.register_model("pooled")
    class Pooled(nn.Module):
        def __init__(self, num_classes: int, width: float = 1.0) -> None:
            super().__init__()
            self.head = nn.Linear(3, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.mean(dim=(2, 3)))

    made = train(
        coloured_data(), "one-cycle", overrides=[*SMALL, "model.name=pooled"], out="run", device="cpu"
    )
    expected = made.summary["accuracy"]
    assert expected > 0.5
    assert isinstance(Predictor.load("run").model, Pooled)
    assert thumbnet.load_run("run", model=Pooled).evaluate(coloured_data(), "test").accuracy == expected
    own.forget()
    with pytest.raises(ModelCodeError, match="network pooled is not part of thumbnet.*--model-code MODULE"):
        thumbnet.load_run("run")
    assert thumbnet.load_run("run", model=Pooled).class_names == ("red", "green", "blue")


def test_a_module_that_registers_networks_may_be_allowed_by_its_name(own: OwnPackage, data: Path) -> None:
    words = ["train", str(data), "--recipe", "one-cycle", "--set", "model.name=wide-tiny", "--epochs", "1",
             "--set", "model.width=0.5", "--out", "run", "--quiet", "--device", "cpu"]  # fmt: skip
    assert main(words) == 2
    assert main([*words, "--model-code", "mypackage.nets"]) == 0
    own.forget()
    picture = str(write_picture(own.folder / "x.png", coloured(0, 1)))
    assert main(["predict", "run", picture]) == 2
    assert main(["predict", "run", picture, "--model-code", "mypackage.nets"]) == 0


# --- a finished run --------------------------------------------------------------------------------------


def test_a_run_of_an_own_network_can_be_evaluated_reported_and_compared(
    own: OwnPackage, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(write_picture(own.folder / "x.png", coloured(1, 99)))
    capsys.readouterr()
    assert main(["evaluate", "run", *CODE, "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(run.summary["accuracy"])
    assert main(["predict", *CODE, "run", picture, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    pytest.importorskip("jinja2")
    assert main(["report", "run", *CODE, "--out", "report.html"]) == 0
    assert PATH in Path("report.html").read_text()
    own.forget()
    assert main(["compare", "run", "run"]) == 0
    assert not own.was_imported()


def test_an_own_network_can_be_exported_in_every_format(
    own: OwnPackage, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("thumbnet.publish.export.LOST_IN_8_BITS", 1)  # it is hardly trained
    for kind, name in (
        ("onnx", "a.onnx"),
        ("onnx-any-size", "b.onnx"),
        ("torch-export", "a.pt2"),
        ("safetensors", "a.safetensors"),
    ):
        assert main(["export", "run", "--format", kind, "--out", name, *CODE]) == 0, kind
    assert main(["export", "run", "--format", "onnx-int8", "--out", "a.int8.onnx", *CODE]) == 0
    from thumbnet.sources.load import load_data

    check = check_export("run", "a.onnx", load_data("data"), "test")
    assert check.largest_difference < 1e-5


def test_a_network_that_pytorch_cannot_export_gives_a_clear_error(own: OwnPackage, run: Run) -> None:
    pytest.importorskip("onnxscript")
    nets = own.folder / "mypackage" / "nets.py"
    choosing = "if x.mean() > 0:\n            x = x + 1\n        return self.fc"
    own.write("mypackage/nets.py", nets.read_text().replace("return self.fc", choosing))
    load_recipe("one-cycle", [f"model.name={PATH}"])
    for kind in ("onnx", "torch-export"):
        with pytest.raises(RunError, match=f"PyTorch cannot export the network {PATH}"):
            export("run", kind, "a.onnx")


def test_the_service_predicts_with_an_own_network(own: OwnPackage, run: Run) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    from thumbnet.serving.service import ServiceSettings, build_service

    load_recipe("one-cycle", [f"model.name={PATH}"])
    service = build_service(load_classifier("run"), ServiceSettings(), lambda: None, lambda _: None)
    picture = write_picture(own.folder / "x.png", coloured(1, 99)).read_bytes()
    with TestClient(service) as client:
        answer = client.post("/predict", content=picture, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text


def test_the_model_card_names_the_code_and_is_made_without_importing_it(own: OwnPackage, run: Run) -> None:
    pytest.importorskip("huggingface_hub")
    card = model_card(run, "someone/colours")
    assert not own.was_imported()
    assert f"thumbnet predict --model-code {PATH} hf:someone/colours picture.jpg" in card
    assert "from mypackage.nets import TinyNet" in card
    assert 'thumbnet.load_classifier("hf:someone/colours", model=TinyNet)' in card
    assert "own code is not in this repository" in card
    assert f"{run.summary['parameters']:,} parameters" in card


# --- files of strangers ----------------------------------------------------------------------------------


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; returns the command that it says would be allowed."""
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert f"network {PATH} is not part of thumbnet: it is in the Python module mypackage.nets" in printed
    command = re.search(r"The command that allows it: \S*thumbnet (.*)", printed)
    assert command is not None, printed
    assert command[1].split() == [words[0], *CODE, *words[1:]]
    return command[1]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "run"], ["predict", "run", "x.png"], ["report", "run"], ["serve", "run"],
        ["export", "run", "--format", "onnx"], ["export", "run", "--format", "safetensors", "--out", "b.safetensors"],
        ["train", "--resume", "run", "--more-epochs", "1"],
    ],
    ids=lambda words: "-".join(words[:1] + words[3:4]),
)  # fmt: skip
def test_commands_on_a_runs_folder_do_not_import_its_network(
    words: list[str], own: OwnPackage, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write_picture(own.folder / "x.png", coloured(1, 99))
    refused(words, capsys)
    assert not own.was_imported()
    assert not Path("b.safetensors").exists()


def test_resuming_a_run_does_not_import_its_network(
    own: OwnPackage, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InterruptedRunError):
        train(data, "one-cycle", overrides=OWN, out="run", device="cpu", listener=StopAfter(2))
    own.forget()
    refused(["train", "--resume", "run"], capsys)
    assert not own.was_imported()
    assert main(["train", "--resume", "run", *CODE, "--quiet"]) == 0  # the command that was printed


def test_a_weights_file_does_not_import_its_network(
    own: OwnPackage, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = shutil.copy(run.weights_path, own.folder / "stranger.safetensors")
    picture = str(write_picture(own.folder / "x.png", coloured(1, 99)))
    refused(["predict", str(stranger), picture], capsys)
    for load in (thumbnet.load_run, load_classifier):
        with pytest.raises(RunError, match=f"--model-code {PATH} .*register_model, or pass model=TinyNet"):
            load(stranger)
    assert not own.was_imported()


def test_weights_from_the_hub_do_not_import_their_network(
    own: OwnPackage, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "fetch_weights", lambda source: run.weights_path)
    picture = str(write_picture(own.folder / "x.png", coloured(1, 99)))
    refused(["predict", "hf:someone/colours", picture], capsys)
    assert not own.was_imported()
    assert main(["predict", "hf:someone/colours", picture, *CODE]) == 0


def test_an_exported_model_predicts_without_the_code(
    own: OwnPackage, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    assert main(["export", "run", "--format", "onnx", "--out", "a.onnx", *CODE]) == 0
    expected = thumbnet.load_run("run", "cpu").evaluate(coloured_data(), "test").accuracy
    own.forget()
    shutil.rmtree("mypackage")
    assert load_classifier("a.onnx").evaluate(coloured_data(), "test").accuracy == pytest.approx(expected)
    picture = str(write_picture(own.folder / "x.png", coloured(1, 99)))
    assert main(["predict", "a.onnx", picture]) == 0
    assert not own.was_imported()


def test_weights_to_start_from_do_not_import_their_network(own: OwnPackage, run: Run) -> None:
    with pytest.raises(RunError, match=f"run has the network {PATH}"):
        train("data", "one-cycle", overrides=[*SMALL, "training.init=run"], out="second", device="cpu")
    assert not own.was_imported()


def test_a_recipe_read_from_a_run_does_not_import_its_network(own: OwnPackage, run: Run) -> None:
    with pytest.raises(ModelCodeError):
        train("data", run.recipe, out="second", device="cpu")
    with pytest.raises(ModelCodeError):
        train("data", run.recipe.override(["seed=3", "training.epochs=1"]), out="second", device="cpu")
    with pytest.raises(ModelCodeError):
        thumbnet.build_model(run.recipe.model, 3)
    assert not own.was_imported()
    assert not Path("second").exists()


@pytest.mark.parametrize(
    "path", ["os:system", "builtins:exec", "subprocess:Popen", "torch.hub:load", "this:d"]
)
def test_a_weights_file_that_names_other_code_does_not_run_it(own: OwnPackage, run: Run, path: str) -> None:
    weights, info = read_weights(run.weights_path)
    from dataclasses import replace

    stranger = Run(own.folder / "stranger")
    stranger.path.mkdir()
    stranger.save_weights(weights, replace(info, model=ModelSettings(path)))
    with pytest.raises(ModelCodeError, match=f"--model-code {path}"):
        thumbnet.load_run(stranger.weights_path)
    assert "this" not in sys.modules


def test_a_network_that_the_program_registered_or_passed_is_allowed(own: OwnPackage, run: Run) -> None:
    network = own.import_it().TinyNet
    with pytest.raises(ModelCodeError):  # it is imported, but neither registered nor passed
        thumbnet.load_run("run")
    passed = thumbnet.load_run("run", "cpu", model=network)
    thumbnet.register_model("tiny")(network)
    assert thumbnet.load_run("run", "cpu").evaluate(coloured_data(), "test") == passed.evaluate(
        coloured_data(), "test"
    )


@pytest.mark.parametrize(
    ("model", "says"), [(3, "is a int"), (nn.Linear(2, 2), "is a Linear"), (dict, "is a class of")]
)
def test_the_model_argument_must_build_a_network(run: Run, model: Any, says: str) -> None:
    with pytest.raises(NetworkError, match=says):
        thumbnet.load_run("run", model=model)
    with pytest.raises(NetworkError, match=says):
        thumbnet.resume("run", model=model)


def test_a_recipe_made_in_python_does_not_allow_its_network(own: OwnPackage) -> None:
    recipe = Recipe(model=ModelSettings(PATH))
    with pytest.raises(ModelCodeError, match="register_model"):
        train(coloured_data(), recipe, out="second", device="cpu")
    assert not own.was_imported()
