"""Trainings on pictures with several labels; and that trainings on one class per picture are as they were."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import TINY, coloured_data, coloured_labels
from thumbnet.batches.batches import NO_LABEL, Batch, balanced_order
from thumbnet.batches.dataset import ImageDataset
from thumbnet.batches.prepare import prepare
from thumbnet.classifiers.load import load_classifier
from thumbnet.distributed import World
from thumbnet.errors import InterruptedRunError, RecipeError, SeveralLabelsError
from thumbnet.hardware import autocast
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.training import step as step_module
from thumbnet.training.build import balanced_weights, build_state
from thumbnet.training.epochs import EpochResult
from thumbnet.training.multilabel import exact_hits, for_several_labels, label_losses
from thumbnet.training.range_test import learning_rate_range_test
from thumbnet.training.results import score_of
from thumbnet.training.state import TrainingState
from thumbnet.training.step import accumulate_gradients, summed_loss
from thumbnet.training.train import resume, train
from training_helpers import StopAfter

CPU = torch.device("cpu")


def test_the_loss_is_the_surprise_of_all_labels_of_a_picture() -> None:
    logits, labels = (
        torch.randn(4, 3),
        torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.int8),
    )
    p = torch.sigmoid(logits)
    expected = -torch.where(labels > 0, p.log(), (1 - p).log()).sum(dim=1)
    torch.testing.assert_close(label_losses(logits, labels), expected)
    settings = load_recipe("small", ["training.label_smoothing=0"]).training
    torch.testing.assert_close(summed_loss(logits, labels, settings, None), expected.sum())


def test_label_smoothing_moves_labels_towards_a_half() -> None:
    """At smoothing s, a label of 1 is 1 - s/2: there the loss is least, and its gradient is 0."""
    logits = torch.logit(torch.tensor([[0.95, 0.05]])).requires_grad_()
    label_losses(logits, torch.tensor([[1, 0]], dtype=torch.int8), smoothing=0.1).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_a_picture_that_does_not_count_has_no_loss_no_gradient_and_no_hit() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    labels = torch.full((2, 3), NO_LABEL, dtype=torch.int8)
    losses = label_losses(logits, labels, 0.1)
    losses.sum().backward()
    assert losses.tolist() == [0, 0]
    assert logits.grad is not None
    assert not logits.grad.any()
    assert exact_hits(-logits.detach().abs(), labels) == 0


def test_a_hit_has_all_labels_right() -> None:
    logits = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    labels = torch.tensor([[1, 0], [1, 0], [0, 0]], dtype=torch.int8)
    assert exact_hits(logits, labels) == 2


# --- one class per picture is as it was ----------------------------------------------------------------------


def as_before(state: TrainingState, batch: Batch) -> Tensor:
    """``accumulate_gradients`` as it was before pictures could have several labels."""
    settings, world = state.recipe.training, state.world
    size = settings.micro_batch or len(batch.images)
    parts = list(zip(batch.images.split(size), batch.labels.split(size), strict=True))
    each = []
    whole = torch.zeros((), device=state.device)
    for number, (images, labels) in enumerate(parts, start=1):
        with contextlib.nullcontext() if number == len(parts) else state.hold_gradients():
            with autocast(state.dtype, state.device):
                logits = state.forward(images)
            smoothing = settings.label_smoothing
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="sum")
            part = loss / batch.total
            state.scaler.scale(part * world.size).backward()
        whole += part.detach()
        state.hits += (logits.detach().argmax(dim=1) == labels).sum()
        if state.selection is not None:
            each.append(F.cross_entropy(logits.detach().float(), labels, reduction="none"))
    if state.selection is not None and batch.positions is not None:
        state.selection.note(batch.positions, torch.cat(each))
    return whole


def test_one_class_per_picture_trains_to_the_same_bits_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both trainings run here, so the test does not depend on the processor."""
    settings = [*TINY, "training.epochs=2", "data.skip_easy=0.25", "training.label_smoothing=0.1"]
    settings += ["training.micro_batch=8", "training.ema_decay=0.9"]
    data = coloured_data(32)
    now = train(data, "one-cycle", overrides=settings, out=tmp_path / "now", device="cpu")
    monkeypatch.setattr(step_module, "accumulate_gradients", as_before)
    before = train(data, "one-cycle", overrides=settings, out=tmp_path / "before", device="cpu")
    assert now.weights_path.read_bytes() == before.weights_path.read_bytes()
    lines = [(run.path / "metrics.jsonl").read_text() for run in (now, before)]
    assert "map" not in lines[0]
    assert "multilabel" not in now.summary
    assert "multilabel" not in now.settings
    assert "multilabel" not in now.weights_path.read_bytes()[:5000].decode("utf-8", "replace")
    assert now.recipe.data.multilabel == "auto"


# --- several labels ------------------------------------------------------------------------------------------


def weights_of(run: Run) -> dict[str, Tensor]:
    return read_weights(run.weights_path)[0]


def assert_same_weights(first: Run, second: Run) -> None:
    one, other = weights_of(first), weights_of(second)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_learns_its_labels_and_says_so_everywhere(label_run: Run) -> None:
    summary = label_run.summary
    assert summary["multilabel"]
    assert summary["map"] > 0.7  # by chance it would be 0.4
    assert summary["map_interval"][0] <= summary["map"] <= summary["map_interval"][1]
    assert 0 < summary["micro_f1"] <= 1
    assert summary["calibrated_on"] == "val"
    assert label_run.recipe.data.multilabel is True
    assert label_run.settings["multilabel"] is True
    assert '"val_map"' in (label_run.path / "metrics.jsonl").read_text()
    _, info = read_weights(label_run.weights_path)
    assert info.multilabel
    assert len(info.label_thresholds) == 3
    classifier = load_classifier(label_run.path, "cpu")
    assert classifier.evaluate_labels(coloured_labels(), "test").map == pytest.approx(summary["map"])


def test_the_epoch_with_the_highest_map_on_val_is_kept(label_run: Run) -> None:
    import json

    rows = [json.loads(line) for line in (label_run.path / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: (row["val_map"], -row["val_loss"]))
    assert label_run.summary["kept_epoch"] == best["epoch"]


def test_worker_processes_give_the_same_network(tmp_path: Path, plain_labels_run: Run) -> None:
    settings = [*TINY, "training.epochs=1", "data.engine=workers", "data.workers=1"]
    run = train(coloured_labels(40), "one-cycle", overrides=settings, out=tmp_path / "run", device="cpu")
    assert_same_weights(run, plain_labels_run)


def test_micro_batches_have_the_gradient_of_the_whole_batch() -> None:
    images, labels = torch.randn(8, 3, 4, 4), torch.randint(2, (8, 3), dtype=torch.int8)

    def gradient(micro_batch: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        head = nn.Linear(48, 3)
        recipe = load_recipe("one-cycle", [*TINY, f"training.micro_batch={micro_batch}"])
        state = TrainingState(nn.Sequential(nn.Flatten(), head), recipe, 1, CPU)
        loss = accumulate_gradients(state, Batch(images, labels))
        assert head.weight.grad is not None
        return loss, head.weight.grad

    torch.testing.assert_close(gradient(3), gradient(0))


@pytest.fixture(scope="module")
def plain_labels_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("plain") / "run"
    return train(
        coloured_labels(40), "one-cycle", overrides=[*TINY, "training.epochs=1"], out=out, device="cpu"
    )


@pytest.mark.parametrize("recipe", ["fast", "small"])
def test_the_recipes_with_skipped_pictures_averages_and_bf16_train(recipe: str, tmp_path: Path) -> None:
    settings = ["training.epochs=2", "training.batch_size=40", "training.min_steps=0", "model.width=0.125"]
    settings += ["data.skip_easy=0.3", "training.ema_decay=0.9", "training.precision=bf16"]
    data = coloured_labels()
    run = train(data, recipe, overrides=settings, out=tmp_path / "run", device="cpu")
    assert 0 < run.summary["map"] <= 1
    assert run.summary["tta"] in ("mirror-shift", "none", "mirror")
    assert np.isfinite(run.summary["loss"])


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, plain_labels_run: Run) -> None:
    data, out = coloured_labels(40), tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(
            data,
            "one-cycle",
            overrides=[*TINY, "training.epochs=1"],
            out=out,
            device="cpu",
            listener=StopAfter(1),
        )
    run = resume(out, data=data, device="cpu")
    assert_same_weights(run, plain_labels_run)
    assert run.summary["map"] == plain_labels_run.summary["map"]


def test_a_training_can_start_from_weights_of_either_kind(
    tmp_path: Path, label_run: Run, tiny_run: Run
) -> None:
    data = coloured_labels(40)
    recipe = load_recipe("one-cycle", [*TINY, f"training.init={label_run.path}"])
    prepared = prepare(data, recipe, CPU)
    state = build_state(recipe, prepared, data.class_names, CPU)
    own = weights_of(label_run)
    assert all(torch.equal(tensor, own[name]) for name, tensor in state.model.state_dict().items())
    other = recipe.override([f"training.init={tiny_run.path}"])
    state = build_state(other, prepared, data.class_names, CPU)
    softmax, found = weights_of(tiny_run), state.model.state_dict()
    same = {name for name in found if torch.equal(found[name], softmax[name])}
    heads = found.keys() - same
    assert heads  # logits of a softmax are not those of a sigmoid, so the last layer is new
    assert len(heads) <= 2


def test_the_learning_rate_range_test_works(tmp_path: Path) -> None:
    data = coloured_labels(64)
    recipe = load_recipe("one-cycle", TINY)
    prepared = prepare(data, recipe, CPU)
    state = build_state(recipe, prepared, data.class_names, CPU)
    found = learning_rate_range_test(state, prepared.train, steps=15, lowest=1e-3, highest=1.0)
    assert found.suggestion > 0


def test_settings_for_one_class_per_picture_are_refused() -> None:
    data = coloured_labels(20)
    refused = (
        "training.class_weights=balanced",
        "data.sampling=balanced",
        "training.choose_by=balanced-accuracy",
    )
    for setting in refused:
        with pytest.raises(RecipeError, match="needs one class per picture"):
            for_several_labels(load_recipe("small", ["data.skip_easy=0", setting]), data)
    chosen, _ = for_several_labels(load_recipe("small", ["training.choose_by=loss"]), data)
    assert chosen.training.choose_by == "loss"
    matrix = torch.zeros(4, 2, dtype=torch.int8)
    with pytest.raises(SeveralLabelsError):
        balanced_order(matrix, torch.Generator())
    with pytest.raises(SeveralLabelsError):
        balanced_weights(matrix, 2)


def test_the_recipe_is_fitted_to_several_labels_and_only_to_them() -> None:
    recipe = replace(Recipe(), evaluation=replace(Recipe().evaluation, tta="adaptive"))
    fitted, notes = for_several_labels(recipe, coloured_labels(20))
    assert fitted.data.multilabel is True
    assert fitted.evaluation.tta == "mirror-shift"
    assert "mirror-shift" in notes[0]
    assert for_several_labels(recipe, coloured_data(20)) == (recipe, [])


def test_processes_share_a_batch_and_one_without_pictures_counts_nothing() -> None:
    """Three processes and batches of two pictures: the third has a picture whose labels do not count."""
    data = coloured_labels(12)
    recipe = load_recipe("one-cycle", [*TINY, "training.batch_size=2"])
    shares = [prepare(data, recipe, CPU, world=World(rank, 3)).train for rank in range(3)]
    whole = prepare(data, recipe, CPU).train
    for batch, *parts in zip(whole.epoch(0), *(one.epoch(0) for one in shares), strict=True):
        assert torch.equal(torch.cat([part.labels for part in parts[:2]]), batch.labels)
        assert (parts[2].labels == NO_LABEL).all()
        assert parts[2].labels.shape == (1, 3)
        assert parts[2].labels.dtype == torch.int8
        assert all(part.total == 2 for part in parts)


def test_pictures_with_several_labels_are_mixed_and_resume_to_the_bit(tmp_path: Path) -> None:
    data, settings = (
        coloured_labels(40),
        [*TINY, "training.epochs=1", "augment.mixup=0.4", "augment.cutmix=1.0"],
    )
    whole = train(data, "one-cycle", overrides=settings, out=tmp_path / "whole", device="cpu")
    with pytest.raises(InterruptedRunError):
        train(
            data, "one-cycle", overrides=settings, out=tmp_path / "two", device="cpu", listener=StopAfter(1)
        )
    resumed = resume(tmp_path / "two", data=data, device="cpu")
    first, second = (read_weights(run.path / "model.safetensors")[0] for run in (whole, resumed))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_an_image_dataset_gives_a_row_of_labels() -> None:
    split = coloured_labels(6).splits["train"]
    dataset = ImageDataset(split)
    for index in range(6):
        assert dataset[index][1].tolist() == split.targets[index].astype(float).tolist()


def test_a_score_of_several_labels_is_judged_by_map() -> None:
    logits = np.array([[2.0, -1.0], [1.0, 3.0], [-2.0, 1.0]], dtype=np.float32)
    labels = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.int8)
    score = score_of("val", logits, labels, ("a", "b"))
    assert score.accuracy == pytest.approx(2 / 3)
    assert (score.map, score.pictures, score.headline) == (1.0, 3, 1.0)
    one = score_of("val", logits, labels.argmax(axis=1), ("a", "b"))
    assert (one.map, one.headline) == (None, one.accuracy)
    assert (score.balanced_accuracy, one.balanced_accuracy) == (None, 1.0)
    rows = [EpochResult(1, 1, 1.0, 0.1, 1.0, 1.0, each).row() for each in (score, one)]
    assert rows[0]["val_map"] == 1.0
    assert "val_map" not in rows[1]
