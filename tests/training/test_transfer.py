from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from helpers import TINY, coloured_data, write_class_folders
from thumbnet.batches.batches import NO_LABEL, balanced_order
from thumbnet.cli import main
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import RunError
from thumbnet.models import build_model
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import TrainingSettings
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.training.state import balanced_weights
from thumbnet.training.step import summed_loss
from thumbnet.training.train import resume, train
from thumbnet.training.transfer import begin_from

# --- weights of another run ------------------------------------------------------------------------------


def test_all_but_the_rows_of_new_classes_is_taken_over(tiny_run: Run) -> None:
    settings = load_recipe("resnet18", TINY).model
    torch.manual_seed(7)
    model = build_model(settings, 4)
    drawn = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    begin_from(model, settings, str(tiny_run.path), ["yellow", "blue", "red", "black"])
    weights, info = read_weights(tiny_run.weights_path)
    assert info.class_names == ("red", "green", "blue")
    for name, tensor in model.state_dict().items():
        if name.startswith("head."):
            assert torch.equal(tensor[[2, 1]], weights[name][[0, 2]])
            assert torch.equal(tensor[[0, 3]], drawn[name][[0, 3]])
        else:
            assert torch.equal(tensor, weights[name])
            assert name.endswith("num_batches_tracked") or not torch.equal(tensor, drawn[name])


def test_another_network_is_refused_with_what_to_do(tiny_run: Run) -> None:
    settings = load_recipe("resnet18").model
    with pytest.raises(RunError, match=r"has the network resnet20 of width 0.5.*--set model.name=resnet20"):
        begin_from(build_model(settings, 3), settings, str(tiny_run.path), "abc")


def test_a_training_begins_where_the_other_ended(tiny_run: Run, tmp_path: Path) -> None:
    """At a rate of nearly nothing, one epoch leaves what was learned."""
    still = [*TINY, "training.epochs=1", "optimizer.lr=1e-9"]
    scratch = train(coloured_data(), "resnet18", overrides=still, out=tmp_path / "scratch", device="cpu")
    still.append(f'training.init="{tiny_run.path}"')
    begun = train(coloured_data(), "resnet18", overrides=still, out=tmp_path / "begun", device="cpu")
    assert begun.summary["accuracy"] > 0.95
    assert scratch.summary["accuracy"] < 0.7


def test_the_command_from_elsewhere_and_a_resume(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_class_folders(tmp_path / "data", ["train", "test"])
    monkeypatch.chdir(tiny_run.path.parent)
    settings = [word for override in TINY for word in ("--set", override)]
    command = ["train", str(data), "--recipe", "resnet18", *settings, "--device", "cpu"]
    relative = os.path.relpath(tiny_run.path)
    assert main([*command, "--init", relative, "--out", str(tmp_path / "a")]) == 0
    assert main([*command, "--init", relative, "--out", str(tmp_path / "b")]) == 0
    for name in ("summary.json", "model.safetensors", "checkpoint.pt"):  # killed before the first checkpoint
        (tmp_path / "b" / name).unlink()
    monkeypatch.chdir(tmp_path)
    resume(tmp_path / "b", device="cpu")
    assert Run(tmp_path / "a").weights_path.read_bytes() == Run(tmp_path / "b").weights_path.read_bytes()
    assert main([*command, "--init", "nothing", "--out", str(tmp_path / "c")]) == 2
    assert not (tmp_path / "c").exists()


# --- classes of unequal size -----------------------------------------------------------------------------


def test_balanced_order_has_each_class_equally_often() -> None:
    labels = torch.tensor([0] * 50 + [1] * 9 + [2] * 2)
    order = balanced_order(labels, torch.Generator().manual_seed(1))
    assert len(order) == 61
    counts = torch.bincount(labels[order])
    assert sorted(counts.tolist()) == [20, 20, 21]
    times = torch.bincount(order, minlength=61)
    assert times[:50].max() == 1
    assert set(times[50:59].tolist()) <= {2, 3}
    assert set(times[59:].tolist()) <= {10, 11}
    again = balanced_order(labels, torch.Generator().manual_seed(1))
    other = balanced_order(labels, torch.Generator().manual_seed(2))
    assert torch.equal(order, again)
    assert not torch.equal(order, other)
    assert not torch.equal(labels[order], labels[order].sort().values)


def test_class_weights_are_one_on_average() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = balanced_weights(labels, 4)
    torch.testing.assert_close(weights[labels].mean(), torch.tensor(1.0))
    torch.testing.assert_close(weights[[0, 1, 3]], torch.tensor([10 / 18, 10 / 9, 10 / 3]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_is_the_sum_of_the_pictures_own(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, NO_LABEL, 1, 2])
    settings, weights = TrainingSettings(label_smoothing=smoothing), torch.tensor([0.5, 1.0, 3.0])
    expected = sum(
        weights[label] * F.cross_entropy(one[None], label[None], label_smoothing=smoothing)
        for one, label in zip(logits, labels, strict=True)
        if label != NO_LABEL
    )
    torch.testing.assert_close(summed_loss(logits, labels, settings, weights), expected)
    equal = summed_loss(logits, labels, settings, torch.ones(3))
    torch.testing.assert_close(equal, summed_loss(logits, labels, settings, None))


@pytest.mark.parametrize("setting", ["data.sampling=balanced", "training.class_weights=balanced"])
def test_a_rare_class_is_recognised_more_often(setting: str, tmp_path: Path) -> None:
    """One class in forty, hard to tell from another; and the setting is part of what makes a run reproducible."""
    generator = torch.Generator().manual_seed(0)

    def split(common: int, rare: int, name: str) -> ArraySplit:
        labels = torch.tensor([0] * common + [1] * rare)
        noise = torch.randn(len(labels), 16, 16, 3, generator=generator) * 40
        shift = torch.zeros(3).index_fill(0, torch.tensor(0), 5.0)
        images = (128 + noise + labels[:, None, None, None] * shift).clamp(0, 255).to(torch.uint8)
        return ArraySplit(images.numpy(), labels.numpy(), name)

    data = Data(
        "rare",
        "made here",
        ("common", "rare"),
        {"train": split(780, 20, "train"), "test": split(200, 200, "test")},
    )
    overrides = [*TINY, "training.batch_size=40", "evaluation.every=0"]

    def recall(out: str, *more: str) -> float:
        run = train(data, "resnet18", overrides=[*overrides, *more], out=tmp_path / out, device="cpu")
        from thumbnet.classifiers.load import load_run

        return load_run(run.path, "cpu").evaluate(data, "test").classes[1].recall

    assert recall("balanced", setting) > recall("plain") + 0.2
