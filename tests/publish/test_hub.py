from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli_helpers import run_cli
from helpers import coloured, write_picture
from sources.hub_standin import HubStandIn, instead_of_the_hub
from thumbnet.cli import main
from thumbnet.publish.hub import model_card, published
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, write_weights

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")

NAME = "someone/colours"


def test_a_pushed_run_can_be_used_elsewhere(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = HubStandIn(NAME, {}, "models", token="t0ken")
    monkeypatch.setenv("HF_TOKEN", "t0ken")
    with instead_of_the_hub(hub, tmp_path / "one", monkeypatch):
        status, out, errors = run_cli("push", tiny_run.path, f"hf:{NAME}", "--license", "mit")
    assert status == 0, errors
    assert f"/{NAME}\n" in out
    assert set(hub.files) == {
        "README.md", "model.safetensors", "recipe.toml", "summary.json", "environment.json",
        "metrics.jsonl", "metrics.csv",
    }  # fmt: skip
    assert hub.files["model.safetensors"] == tiny_run.weights_path.read_bytes()
    assert (
        sum("POST" in line and "/commit/" in line for line in hub.log) == 1
    )  # one commit: all files or nothing

    picture = write_picture(tmp_path / "green.png", coloured(1, 123))
    for revision in ("", "@v1"):
        with instead_of_the_hub(hub, tmp_path / f"cache{revision}", monkeypatch):
            status, out, errors = run_cli("predict", f"hf:{NAME}{revision}", picture)
        assert status == 0, errors
        assert "green" in out
    assert any(f"/{NAME}/resolve/v1/model.safetensors" in line for line in hub.log)


def test_a_refusal_of_the_hub_is_reported_in_one_line(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = HubStandIn(NAME, {}, "models", token="t0ken")
    monkeypatch.setenv("HF_TOKEN", "guessed")
    for arguments, says in (
        (("push", str(tiny_run.path), f"hf:{NAME}"), "cannot publish someone/colours: "),
        (("predict", "hf:someone/nothing", "x.png"), "cannot fetch hf:someone/nothing: "),
        (("push", str(tiny_run.path), "hf:not a name"), "cannot publish not a name: "),
    ):
        with instead_of_the_hub(hub, tmp_path / "cache", monkeypatch):
            status, out, errors = run_cli(*arguments)
        assert (status, out) == (2, "")
        assert says in errors
        assert "Traceback" not in errors
    assert hub.files == {}


@pytest.mark.parametrize("is_private", [False, True])
def test_nothing_that_should_be_private_is_published_in_a_public_repository(
    is_private: bool, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    class Api:
        endpoint = "https://hub"

        def __init__(self, **_: str) -> None:
            pass

        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            assert exist_ok  # it exists, so `private` changes nothing

        def repo_info(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(private=is_private)

        def create_commit(self, name: str, *_: object, **__: object) -> None:
            called.append(name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    status, out, errors = run_cli("push", tiny_run.path, f"hf:{NAME}", "--private")
    if is_private:
        assert (status, out, called) == (0, f"published: https://hub/{NAME}\n", [NAME])
    else:
        assert (status, out, called) == (2, "", [])
        assert f"thumbnet: {NAME} exists and is public, so nothing was published" in errors
    assert run_cli("push", tiny_run.path, f"hf:{NAME}")[0] == 0
    assert called.pop() == NAME


def test_damaged_weights_from_the_hub_are_refused(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(tiny_run.weights_path.read_bytes())
    content[len(content) // 2] ^= 1
    hub = HubStandIn(NAME, {"model.safetensors": bytes(content)}, "models")
    with instead_of_the_hub(hub, tmp_path / "cache", monkeypatch):
        status, _, errors = run_cli("predict", f"hf:{NAME}", "x.png")
    assert status == 2
    assert "Traceback" not in errors


def test_the_card_says_what_was_measured(tiny_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    card = model_card(tiny_run, NAME, "mit")
    data = huggingface_hub.ModelCard(card).data
    assert data.license == "mit"
    assert data.pipeline_tag == "image-classification"
    (result,) = data.eval_results
    assert result.metric_value == tiny_run.summary["accuracy"]
    assert f"{100 * tiny_run.summary['accuracy']:.2f} %" in card
    assert "red, green, blue" in card
    assert tiny_run.recipe.to_toml().strip() in card
    assert str(tiny_run.path.parent) not in card
    assert main(["push", str(tiny_run.path), f"hf:{NAME}", "--card", "--license", "mit"]) == 0
    assert capsys.readouterr().out.strip() == card.strip()


def test_the_card_says_that_the_interval_allows_for_groups(tiny_run: Run, tmp_path: Path) -> None:
    assert "interval allows" not in model_card(tiny_run, NAME)
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    summary = {**run.summary, "measured_pictures": 60, "measured_groups": 30}
    (run.path / "summary.json").write_text(json.dumps(summary))
    assert " The interval allows for 60 pictures in 30 groups, because" in model_card(run, NAME)


def test_the_card_says_what_the_measured_pictures_chose(label_run: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(label_run.path, tmp_path / "run")))
    (run.path / "summary.json").write_text(
        json.dumps({**run.summary, "split": "val", "kept_by": "best on val"})
    )
    card = model_card(run, NAME, "mit")
    assert "The val mAP is optimistic, because the same pictures chose the epoch." in card
    assert "The val F1 is optimistic, because the same pictures chose the thresholds." in card
    assert "(on the same pictures, so it is optimistic)." in card
    assert "optimistic" not in model_card(label_run, NAME, "mit")


@pytest.mark.parametrize(("kept_by", "what"), [("best on val", "The best epoch"), ("L2 chosen on val", "L2")])
def test_the_card_says_what_a_separate_split_chose(
    kept_by: str, what: str, tiny_run: Run, tmp_path: Path
) -> None:
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    (run.path / "summary.json").write_text(json.dumps({**run.summary, "kept_by": kept_by}))
    assert f" {what} was chosen on a separate split; test was measured once." in model_card(run, NAME)


def test_what_is_published_names_no_local_folder(tiny_run: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert published(tiny_run)["model.safetensors"] == tiny_run.weights_path.read_bytes()
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    recipe, info = run.recipe, read_weights(run.weights_path)[1]
    # What earlier versions wrote.
    write_weights(run.weights_path, load_file(run.weights_path), replace(info, source="/home/me/cats"))
    run.write_recipe(replace(recipe, training=replace(recipe.training, init="/home/me/runs/old")))
    files = {**published(run), "card": model_card(run, NAME).encode()}
    assert [name for name, content in files.items() if b"/home" in content] == []
    assert b'init = "old"' in files["recipe.toml"]
    assert b'init = "old"' in files["card"]
    assert b'"source": "cats"' in files["model.safetensors"].replace(b"\\", b"")
    assert b"fine-tuned" in files["card"]
    run.write_recipe(replace(recipe, data=replace(recipe.data, images="/home/me/secret/photos")))
    files = {**published(run), "card": model_card(run, NAME).encode()}
    assert [name for name, content in files.items() if b"/home" in content] == []
    assert b'images = "photos"' in files["recipe.toml"]
    line = "warning: 1 of the 3 test pictures are also in train (such as test: 1.png = train: /home/me/new/2.png)"
    (run.path / "summary.json").write_text(json.dumps({**run.summary, "repeats": {"lines": [line]}}))
    pictures = [{"name": "1.png", "split": "test"}, {"name": "/home/me/new/2.png", "split": "train"}]
    (run.path / "leaks.jsonl").write_text(json.dumps({"kind": "leak", "pictures": pictures}) + "\n")
    files = {**published(run), "card": model_card(run, NAME).encode()}
    assert [name for name, content in files.items() if b"/home" in content] == []
    for name in ("summary.json", "card"):
        assert b"(such as test: 1.png = train: 2.png)" in files[name]


def test_the_card_says_that_a_network_is_timms_and_was_fine_tuned(tiny_run: Run, tmp_path: Path) -> None:
    assert "trained from scratch by thumbnet" in model_card(tiny_run, NAME)
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    weights, info = read_weights(run.weights_path)
    model = ModelSettings("timm:resnet18", pretrained=True)
    write_weights(run.weights_path, weights, replace(info, model=model))
    run.write_recipe(replace(run.recipe, model=model))
    card = model_card(run, NAME)
    assert "pip install './thumbnet[train,hub,timm]'" in card
    assert "fine-tuned by thumbnet" in card
    assert "--model-code" not in card


def test_the_card_says_which_labels_were_corrected(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "run")
    summary = {**tiny_run.summary, "labels": {"relabelled": 12, "dropped": 3, "sha256": "0"}}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    card = model_card(Run(tmp_path / "run"), NAME)
    assert "Corrected labels: 12 relabelled and 3 dropped. Classes: red, green, blue." in card


def test_the_card_says_when_and_why_the_training_stopped(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "run")
    stop = {"epoch": 2, "planned_epochs": 3, "patience": 1, "why": "no better val accuracy since epoch 1"}
    (tmp_path / "run" / "summary.json").write_text(json.dumps({**tiny_run.summary, "stopped_early": stop}))
    card = model_card(Run(tmp_path / "run"), NAME)
    assert (
        "The training stopped after epoch 2 of 3: no better val accuracy since epoch 1 (patience 1)." in card
    )


def test_the_card_of_a_run_that_continues_another_counts_the_epochs_of_both(
    tiny_run: Run, tmp_path: Path
) -> None:
    assert "The same recipe, data, seed and device give the same weights." in model_card(tiny_run, NAME)
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    recipe = run.recipe
    run.write_recipe(replace(recipe, training=replace(recipe.training, init="/home/me/old")))
    settings = {**run.settings, "continues": {"run": "/home/me/old", "epochs": 30}}
    (run.path / "run.json").write_text(json.dumps(settings))
    card = model_card(run, NAME)
    assert "fine-tuned" not in card
    assert "from scratch" not in card
    assert "had been trained for 30 epoch(s) in the run that this one continues" in card
    assert "The same recipe" not in card
    assert "/home" not in card


def test_the_card_says_where_the_training_was_resumed(tiny_run: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    first = run.environment
    first["hardware"]["device"], first["packages"]["torch"] = "cpu", "2.11"
    moved = {**first, "hardware": {"device": "cuda:0", "gpu": "H200"}}
    newer = {**moved, "packages": {"torch": "2.13"}}
    (run.path / "environment.json").write_text(json.dumps({**first, "resumed": [moved, newer]}))
    card = model_card(run, NAME)
    assert "of training on cpu, then H200.\n" in card
    assert (
        "The training was resumed with device H200 instead of cpu; then with PyTorch 2.13 instead of 2.11,\n"
        "so the same recipe, data and seed give the same weights only to within rounding." in card
    )
    run.write_settings({**run.settings, "code_before": {"training.loss": ["x"]}})
    assert "The author's own code changed during the training,\nso this recipe alone" in model_card(run, NAME)


def test_the_card_says_that_the_user_ended_the_training(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "run")
    stop = {
        "epoch": 3, "planned_epochs": 10, "step": 25, "planned_steps": 90, "watched": None, "patience": 0,
        "why": "ended on request",
    }  # fmt: skip
    (tmp_path / "run" / "summary.json").write_text(json.dumps({**tiny_run.summary, "stopped_early": stop}))
    card = model_card(Run(tmp_path / "run"), NAME)
    assert "The training ended on request at step 25 of 90 (epoch 3 of 10)" in card
    assert "\n3 of 10 epochs, " in card
    assert "The training was ended early,\nso this recipe alone does not give the same weights." in card


def test_the_card_names_functions_whose_code_a_training_needs(tiny_run: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    recipe = run.recipe
    augment = replace(recipe.augment, custom="grain")
    training = replace(recipe.training, loss="mypackage.own:focal", label_smoothing=0.0)
    run.write_recipe(replace(recipe, augment=augment, training=training))
    needed = "They need the loss `mypackage.own:focal` and the augmentation `grain`, whose code"
    assert needed in model_card(run, NAME)
    assert "They need" not in model_card(tiny_run, NAME)
