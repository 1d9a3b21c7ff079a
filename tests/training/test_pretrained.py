"""A training begins with timm's weights from the Hub, and is a run like any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Payload, coloured_data, write_class_folders
from sources.hub_standin import COMMIT, HubStandIn
from thumbnet.cli import main
from thumbnet.errors import InterruptedRunError, NetworkError, RecipeError, RunError
from thumbnet.models import build_model
from thumbnet.models.registry import is_of_head
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.training import pretrained, session
from thumbnet.training.pretrained import begin_pretrained, with_pretrained_settings
from thumbnet.training.train import resume, train
from timm_helpers import TAG, hub_with, some_weights, timm_or_skip, weights_file
from training_helpers import StopAfter

NETWORK = "test_resnet"
SETTINGS = [
    "model.name=timm:test_resnet",
    "training.min_steps=0",
    "training.epochs=2",
    "training.batch_size=16",
]
FILE = "model.safetensors"
DATA = coloured_data(60, side=32)


@pytest.fixture(autouse=True, scope="module")
def _no_probe() -> Iterator[None]:
    """No second training, which looks for mirrored classes, in the tests of the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "find_mirrored", lambda *_: [])
        yield


# --- without timm -----------------------------------------------------------------------------------------


def test_auto_means_pretrained_only_for_a_network_of_timm_that_has_no_other_beginning() -> None:
    for overrides in (
        ["model.name=fastnet"],
        ["model.name=resnet20", "training.init=runs/1"],
        ["training.init=runs/1"],
        ["model.pretrained=false"],
    ):
        recipe = load_recipe("finetune", overrides)
        resolved, notes = with_pretrained_settings(recipe)
        assert (resolved.model.pretrained, notes) == (False, [])
        assert resolved.data == recipe.data
    plain = Recipe()
    assert with_pretrained_settings(plain) == (plain, [])


def test_two_beginnings_are_refused() -> None:
    recipe = load_recipe("finetune", ["model.pretrained=true", "training.init=runs/1"])
    with pytest.raises(
        RecipeError, match=r"model\.pretrained.*training\.init also says where to start \(runs/1\)"
    ):
        with_pretrained_settings(recipe)


# --- with timm and a Hub ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    timm_or_skip()
    return some_weights(NETWORK)


@pytest.fixture
def hub(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubStandIn]:
    files = {FILE: weights_file(tensors)}
    with hub_with(NETWORK, files, tmp_path / "cache", monkeypatch) as standin:
        yield standin


@pytest.fixture(scope="module")
def tuned(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("tuned")
    files = {FILE: weights_file(tensors)}
    with pytest.MonkeyPatch.context() as patch, hub_with(NETWORK, files, place / "cache", patch):
        return train(DATA, "finetune", overrides=SETTINGS, out=place / "run", device="cpu")


def begun(settings: ModelSettings, size: tuple[int, int] = (32, 32)) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors of a network that begins with the Hub's weights, and the network."""
    model = build_model(settings, 3, sizes=[size])
    begin_pretrained(model, settings, 3, size)
    return model.state_dict(), model


def test_all_but_the_last_layer_comes_from_the_file(
    hub: HubStandIn, tensors: dict[str, torch.Tensor]
) -> None:
    settings = ModelSettings(f"timm:{NETWORK}", pretrained=True)
    torch.manual_seed(3)
    random = build_model(settings, 3, sizes=[(32, 32)]).state_dict()
    torch.manual_seed(3)
    found, model = begun(settings)
    for name, tensor in found.items():
        assert torch.equal(tensor, random[name] if is_of_head(model, name) else tensors[name]), name
    wanted = {line.rpartition("/")[2] for line in hub.log if "/resolve/" in line}
    assert wanted == {FILE}


def test_a_run_records_where_its_weights_come_from(tuned: Run, tensors: dict[str, torch.Tensor]) -> None:
    timm = timm_or_skip()
    assert tuned.settings["pretrained"] == {
        "timm": timm.__version__,
        "tag": TAG,
        "repository": f"timm/{NETWORK}.{TAG}",
        "revision": COMMIT,
        "file": FILE,
        "sha256": hashlib.sha256(weights_file(tensors)).hexdigest(),
    }
    config = timm.models.get_pretrained_cfg(NETWORK)
    recipe, (_, info) = tuned.recipe, read_weights(tuned.weights_path)
    assert (recipe.model.pretrained, recipe.model.stem) == (True, "small")
    assert recipe.data.mean == info.preprocessing.mean == config.mean
    assert recipe.data.std == info.preprocessing.std == config.std
    packages = json.loads((tuned.path / "environment.json").read_text())["packages"]
    assert packages["timm"] == timm.__version__


def test_the_users_normalisation_counts(hub: HubStandIn) -> None:
    recipe = load_recipe("finetune", [*SETTINGS, "data.mean=[0.1, 0.2, 0.3]"])
    resolved, (note,) = with_pretrained_settings(recipe)
    assert resolved.data.mean == (0.1, 0.2, 0.3)
    assert resolved.data.std != "auto"
    assert f"timm/{NETWORK}.{TAG}, pretrained on pictures of 160x160" in note


@pytest.mark.parametrize("stop", [1, 5])
def test_a_resume_gives_the_same_weights_to_the_bit_without_the_hub(
    stop: int, hub: HubStandIn, tuned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 1 trains only the last layer, of two steps that do."""
    with pytest.raises(InterruptedRunError):
        train(
            DATA, "finetune", overrides=SETTINGS, out=tmp_path / "r", device="cpu", listener=StopAfter(stop)
        )
    monkeypatch.setattr(pretrained, "fetch", lambda name: pytest.fail("the checkpoint has all weights"))
    again, _ = read_weights(resume(tmp_path / "r", data=DATA, device="cpu").weights_path)
    for name, tensor in read_weights(tuned.weights_path)[0].items():
        assert torch.equal(tensor, again[name]), name


def test_a_run_that_begins_again_wants_the_same_weights(
    hub: HubStandIn,
    tuned: Run,
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InterruptedRunError):
        train(DATA, "finetune", overrides=SETTINGS, out=tmp_path / "r", device="cpu", listener=StopAfter(1))
    (tmp_path / "r" / "checkpoint.pt").unlink()  # killed before the first checkpoint
    changed = {**tensors, "fc.bias": tensors["fc.bias"] + 1}
    other, says = {FILE: weights_file(changed)}, "have changed since the run began"
    with hub_with(NETWORK, other, tmp_path / "other", monkeypatch), pytest.raises(RunError, match=says):
        resume(tmp_path / "r", data=DATA, device="cpu")
    again, _ = read_weights(resume(tmp_path / "r", data=DATA, device="cpu").weights_path)
    assert torch.equal(again["fc.weight"], read_weights(tuned.weights_path)[0]["fc.weight"])


def test_it_is_a_run_like_any_other(
    hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that takes a run, without the Hub once the training has begun."""
    data = str(write_class_folders(tmp_path / "data", ["train", "test"], per_class=12, side=32))
    run, more = str(tmp_path / "run"), [f"--set={one}" for one in SETTINGS]
    assert main(["train", data, "--recipe", "finetune", "--out", run, "--device", "cpu", *more]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "timm:test_resnet begins with the weights timm/test_resnet.r160_in1k" in said
    assert "its first convolution has half its stride" in said
    hub.files.clear()
    monkeypatch.setattr(pretrained, "fetch", lambda name: pytest.fail("asked the Hub"))
    assert main(["evaluate", run]) == 0
    assert main(["predict", run, f"{data}/test/red/0.png"]) == 0
    assert main(["report", run]) == 0
    onnx = str(tmp_path / "model.onnx")
    assert main(["export", run, "--format", "onnx", "--out", onnx]) == 0
    assert "same class          100.00 %" in capsys.readouterr().out
    assert main(["predict", onnx, f"{data}/test/red/0.png"]) == 0
    longer = ["train", "--resume", run, "--more-epochs", "1", "--out", str(tmp_path / "longer")]
    assert main(longer) == 0
    assert Run.open(tmp_path / "longer").recipe.model == ModelSettings("timm:test_resnet", stem="small")
    assert (
        main(["train", data, "--recipe", "finetune", "--init", run, *more, "--out", str(tmp_path / "two")])
        == 0
    )
    assert "pretrained" not in Run.open(tmp_path / "two").settings


def test_a_vision_transformers_patches_are_resampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm_or_skip()
    given = some_weights("test_vit")
    with hub_with("test_vit", {FILE: weights_file(given)}, tmp_path, monkeypatch):
        found, _ = begun(ModelSettings("timm:test_vit", pretrained=True), (32, 48))
    assert (given["patch_embed.proj.weight"].shape[-1], found["patch_embed.proj.weight"].shape[-1]) == (16, 4)
    assert found["pos_embed"].shape[1] == given["pos_embed"].shape[1] - 100 + 8 * 12
    moved = {"patch_embed.proj.weight", "pos_embed", "head.weight", "head.bias"}
    assert all(torch.equal(found[name], given[name]) for name in given.keys() - moved)


# --- what is refused --------------------------------------------------------------------------------------


def refused(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    settings = ModelSettings(f"timm:{NETWORK}", pretrained=True)
    model = build_model(settings, 3, sizes=[(32, 32)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with hub_with(NETWORK, files, tmp_path / "cache", monkeypatch), pytest.raises(RunError, match=says):
        begin_pretrained(model, settings, 3, (32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_repository_with_only_a_pickle_is_refused_and_nothing_is_unpickled(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(Payload(tmp_path / "ran"), tmp_path / "pytorch_model.bin")
    files = {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()}
    refused(
        files,
        tmp_path,
        monkeypatch,
        r"no pretrained weights of timm:test_resnet in safetensors.*can run code",
    )
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit_are_refused(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: tensor for name, tensor in tensors.items() if not name.startswith("layer3")}
    for number, (content, says) in enumerate(
        [
            (
                weights_file(some),
                r"do not fit timm:test_resnet: \d+ tensors are not in the file, such as layer3",
            ),
            (
                weights_file({**tensors, "conv1.0.weight": torch.zeros(3, 3)}),
                r"do not fit timm:test_resnet: .*conv1",
            ),
            (weights_file(tensors)[:-5], r"cannot read the pretrained weights of timm:test_resnet"),
            (b"\x80\x04", r"cannot read the pretrained weights of timm:test_resnet"),
        ]
    ):
        refused({FILE: content}, tmp_path / str(number), monkeypatch, says)


def test_without_a_connection_the_error_says_what_to_do(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    says = r"(?s)cannot fetch the pretrained weights of timm:test_resnet .*HF_HOME.*model\.pretrained=false"
    with hub_with("another", {}, tmp_path / "cache", monkeypatch):
        with pytest.raises(RunError, match=says):  # no such repository
            pretrained.fetch(f"timm:{NETWORK}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(RunError, match=says):
            pretrained.fetch(f"timm:{NETWORK}")


def test_a_network_without_weights_is_refused_before_anything_is_read() -> None:
    timm_or_skip()
    with pytest.raises(RunError, match="no pretrained weights of timm:mixer_s16_224.*names no repository"):
        with_pretrained_settings(load_recipe("finetune", ["model.name=timm:mixer_s16_224"]))
    with pytest.raises(NetworkError, match="no network 'nothing'"):
        with_pretrained_settings(load_recipe("finetune", ["model.name=timm:nothing"]))
