from __future__ import annotations

import hashlib
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import TINY, coloured_data, write_class_folders
from thumbnet.batches.batches import NO_LABEL, balanced_order
from thumbnet.batches.prepare import prepare
from thumbnet.classifiers.load import load_run
from thumbnet.cli import main
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import RunError
from thumbnet.models import build_model, resnet18
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import ModelSettings, TrainingSettings
from thumbnet.runs.any_weights import AnyWeights, read_any_weights
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, write_weights
from thumbnet.training.build import balanced_weights, build_state
from thumbnet.training.listener import Listener
from thumbnet.training.step import summed_loss
from thumbnet.training.train import resume, train
from thumbnet.training.transfer import begin_from, with_pixels_of_init

# --- weights of another run ------------------------------------------------------------------------------


def test_all_but_the_rows_of_new_classes_is_taken_over(tiny_run: Run) -> None:
    settings = load_recipe("one-cycle", TINY).model
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


def test_a_class_keeps_its_row_in_either_unicode_form_of_its_name(tiny_run: Run, tmp_path: Path) -> None:
    weights, info = read_weights(tiny_run.weights_path)
    path = tmp_path / "named.safetensors"
    write_weights(path, weights, replace(info, class_names=("café", "thé", "noël")))
    model = build_model(info.model, 2)
    begin_from(model, info.model, str(path), [unicodedata.normalize("NFD", "thé"), "vin"])
    rows = model.state_dict()["head.weight"]
    assert torch.equal(rows[0], weights["head.weight"][1])
    assert not torch.equal(rows[1], weights["head.weight"][1])


def test_another_network_is_refused_with_what_to_do(tiny_run: Run) -> None:
    settings = load_recipe("one-cycle").model
    with pytest.raises(RunError, match=r"has the network resnet20 of width 0.5.*--set model.name=resnet20"):
        begin_from(build_model(settings, 3), settings, str(tiny_run.path), "abc")


def test_a_training_begins_where_the_other_ended(tiny_run: Run, tmp_path: Path) -> None:
    """At a rate of nearly nothing, one epoch leaves what was learned."""
    still = [*TINY, "training.epochs=1", "optimizer.lr=1e-9"]
    scratch = train(coloured_data(), "one-cycle", overrides=still, out=tmp_path / "scratch", device="cpu")
    still.append(f'training.init="{tiny_run.path}"')
    begun = train(coloured_data(), "one-cycle", overrides=still, out=tmp_path / "begun", device="cpu")
    assert begun.summary["accuracy"] > 0.95
    assert scratch.summary["accuracy"] < 0.7


def test_the_command_from_elsewhere_and_a_resume(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_class_folders(tmp_path / "data", ["train", "test"])
    monkeypatch.chdir(tiny_run.path.parent)
    settings = [word for override in TINY for word in ("--set", override)]
    command = ["train", str(data), "--recipe", "one-cycle", *settings, "--device", "cpu"]
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


# --- weights of other programs ---------------------------------------------------------------------------


def as_stranger(path: Path, *, classes: int = 7, side: int = 3, seed: int = 3) -> dict[str, torch.Tensor]:
    """Weights of a tiny ResNet-18 under torchvision's names, as torch.save writes them to ``path``."""
    torch.manual_seed(seed)
    renamed = {}
    for name, tensor in resnet18(num_classes=classes, width=0.125).state_dict().items():
        first, *rest = name.split(".")
        if first == "stages":
            words = [f"layer{int(rest[0]) + 1}", *rest[1:]]
            words = [word.replace("norm", "bn").replace("shortcut", "downsample") for word in words]
        else:
            words = [{"stem": "conv1", "norm": "bn1", "head": "fc"}[first], *rest]
        renamed[".".join(words)] = tensor
    renamed["conv1.weight"] = torch.randn(8, 3, side, side)
    torch.save({"epoch": 90, "state_dict": {f"module.{name}": t for name, t in renamed.items()}}, path)
    return renamed


SMALL = ModelSettings("resnet18", 0.125)


def test_a_strangers_weights_are_taken_and_what_stays_new_is_said(tmp_path: Path) -> None:
    theirs = as_stranger(tmp_path / "imagenet.pth", classes=1000, side=7)
    model = build_model(SMALL, 3)
    drawn = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = begin_from(model, SMALL, str(tmp_path / "imagenet.pth"), "abc")
    state = model.state_dict()
    assert torch.equal(state["stages.3.1.conv2.weight"], theirs["layer4.1.conv2.weight"])
    assert torch.equal(state["stages.1.0.shortcut.1.bias"], theirs["layer2.0.downsample.1.bias"])
    for new in ("stem.weight", "head.weight", "head.bias"):
        assert torch.equal(state[new], drawn[new])
    assert not start.body_is_whole
    assert start.notes() == [
        f"99 of 102 tensors taken from {tmp_path / 'imagenet.pth'}, matched by the usual names of a ResNet's "
        "layers; left new: stem.weight (8x3x7x7 in the file, 8x3x3x3 here), the last layer (1000 classes in "
        "the file, 3 classes here)"
    ]


def without_colour(data: Data) -> Data:
    for name, split in data.splits.items():
        assert isinstance(split, ArraySplit)
        grey = split.images.mean(axis=3, keepdims=True).astype(np.uint8)
        data.splits[name] = ArraySplit(np.repeat(grey, 3, axis=3), split.labels, name)
    return data


@pytest.mark.parametrize(
    ("before", "now", "warned"),
    [
        ("grey", "colour", True),
        ("grey", "grey", False),
        ("colour", "colour", False),
        ("colour", "grey", False),
    ],
)
def test_it_warns_of_a_first_layer_that_cannot_see_the_colours_of_the_new_pictures(
    before: str, now: str, warned: bool, tmp_path: Path
) -> None:
    data = {"grey": without_colour(coloured_data(30)), "colour": coloured_data(30)}
    recipe, file = load_recipe("small", ["model.width=0.125"]), tmp_path / "first.pt"
    first = build_state(recipe, prepare(data[before], recipe, "cpu"), "abc", "cpu")
    torch.save(first.model.state_dict(), file)
    begun = recipe.override([f'training.init="{file}"'])
    start = build_state(begun, prepare(data[now], begun, "cpu"), "abc", "cpu").start
    assert start is not None
    warnings = [note for note in start.notes() if note.startswith(f"warning: the first layer of {file} ")]
    assert len(warnings) == warned


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    theirs = {name: tensor.half() for name, tensor in as_stranger(tmp_path / "x.pth").items()}
    torch.save(theirs, tmp_path / "half.pth")
    model = build_model(SMALL, 3)
    begin_from(model, SMALL, str(tmp_path / "half.pth"), "abc")
    taken = model.state_dict()["stages.0.0.conv1.weight"]
    assert torch.equal(taken, theirs["layer1.0.conv1.weight"].float())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (("resnet34", 0.125), r"its 182 tensors have no place in it, such as"),
        (("resnet18", 0.25), r"have no counterpart in the file.*has the shape \[8, 3, 3, 3\] in the network"),
        (("fastnet", 1.0), r"have no counterpart in the file, such as stem.weight"),
    ],
)
def test_another_network_of_a_stranger_is_refused(
    other: tuple[str, float], words: str, tmp_path: Path
) -> None:
    weights = build_model(ModelSettings(*other), 3).state_dict()
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(RunError, match=words):
        begin_from(build_model(SMALL, 3), SMALL, str(tmp_path / "other.pth"), "abc")


def test_weights_that_are_not_finite_are_refused(tiny_run: Run, tmp_path: Path) -> None:
    theirs = as_stranger(tmp_path / "x.pth")
    theirs["layer2.1.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(theirs, tmp_path / "x.pth")
    with pytest.raises(RunError, match=r"x.pth: the tensor layer2.1.conv1.weight has the value nan"):
        begin_from(build_model(SMALL, 3), SMALL, str(tmp_path / "x.pth"), "abc")
    weights, info = read_weights(tiny_run.weights_path)
    weights["norm.running_var"][0] = float("inf")
    write_weights(tmp_path / "own.safetensors", weights, info)
    settings = tiny_run.recipe.model
    with pytest.raises(RunError, match=r"norm.running_var has the value inf"):
        begin_from(build_model(settings, 3), settings, str(tmp_path / "own.safetensors"), "abc")


def test_a_network_of_ones_own_takes_weights_by_its_own_names(tmp_path: Path) -> None:
    class Own(nn.Module):
        head_name = "fc"

        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x).mean(dim=(2, 3)))

    theirs = Own(9).state_dict()
    torch.save(theirs, tmp_path / "own.pt")
    model = Own(3)
    start = begin_from(model, ModelSettings("tiny-own"), str(tmp_path / "own.pt"), "abc")
    assert torch.equal(model.conv.weight, theirs["conv.weight"])
    assert start.left_new == ("the last layer (9 classes in the file, 3 classes here)",)


class Masked(nn.Module):
    """A user's network with a mask in a buffer."""

    head_name = "fc"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((4,), float("-inf")))
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).mean(dim=(2, 3)).maximum(self.mask))


@pytest.mark.parametrize("own_file", [False, True], ids=["another program's file", "thumbnet's file"])
@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("mask", float("-inf"), True), ("mask", float("nan"), False),
        ("conv.weight", float("inf"), False), ("conv.weight", float("nan"), False),
    ],
)  # fmt: skip
def test_a_users_network_may_have_infinite_buffers_but_no_infinite_weights(
    name: str, value: float, fits: bool, own_file: bool, tiny_run: Run, tmp_path: Path
) -> None:
    settings, theirs = ModelSettings("tiny-masked"), Masked(3).state_dict()
    theirs[name].view(-1)[0] = value
    path = tmp_path / ("own.safetensors" if own_file else "own.pt")
    if own_file:
        info = replace(read_weights(tiny_run.weights_path)[1], model=settings)
        write_weights(path, theirs, info)
    else:
        torch.save(theirs, path)
    model = Masked(3)
    if fits:
        begin_from(model, settings, str(path), "abc")
        assert torch.equal(model.state_dict()["mask"], theirs["mask"])
    else:
        with pytest.raises(RunError, match=f"the tensor {name} has the value {value}"):
            begin_from(model, settings, str(path), "abc")


def test_the_run_records_the_digest_and_a_changed_file_cannot_be_resumed(tmp_path: Path) -> None:
    as_stranger(tmp_path / "x.pth")
    settings = [*TINY, "training.epochs=1", "model.width=0.125", "model.name=resnet18"]
    settings.append(f'training.init="{tmp_path / "x.pth"}"')
    data = coloured_data(12)
    run = train(data, "one-cycle", overrides=settings, out=tmp_path / "run", device="cpu")
    kept = run.settings["init"]
    assert kept["sha256"] == hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()
    assert (kept["taken"], kept["tensors"]) == (100, 102)
    for name in ("summary.json", "model.safetensors", "checkpoint.pt"):  # killed before the first checkpoint
        (run.path / name).unlink()
    as_stranger(tmp_path / "x.pth", seed=4)
    with pytest.raises(RunError, match="have changed since the run"):
        resume(run.path, device="cpu", data=data)
    (tmp_path / "x.pth").unlink()  # which is told before the data are looked for
    with pytest.raises(RunError, match=r"there is no file .*x\.pth"):
        resume(run.path, device="cpu", data="no-data")


@pytest.mark.parametrize(
    ("recipe", "more"),
    [("one-cycle", []), ("one-cycle", ["schedule.head_first=0.2"]), ("linear", [])],
    ids=["all layers", "the last one first", "only the last one"],
)
def test_the_weights_are_read_once(
    recipe: str, more: list[str], tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def counted(path: Path) -> AnyWeights:
        read.append(path)
        return read_any_weights(path)

    for module in ("transfer", "linear"):
        monkeypatch.setattr(f"thumbnet.training.{module}.read_any_weights", counted, raising=False)
    settings = [*TINY, "training.epochs=1", *more] if recipe == "one-cycle" else []
    settings.append(f'training.init="{tiny_run.path}"')
    train(coloured_data(12), recipe, overrides=settings, out=tmp_path / "run", device="cpu")
    assert read == [tiny_run.weights_path]


# --- the pixels that layers expect which stay as they are at first ---------------------------------------


HEAD_FIRST = ["schedule.head_first=0.2"]


def test_layers_that_stay_as_they_are_at_first_get_the_pixels_that_they_know(
    tiny_run: Run, tmp_path: Path
) -> None:
    weights, info = read_weights(tiny_run.weights_path)
    other = replace(info.preprocessing, mean=(0.1, 0.2, 0.3), background=(9, 8, 7), range=(0.0, 4095.0))
    file = tmp_path / "x.safetensors"
    write_weights(file, weights, replace(info, preprocessing=other))
    recipe = load_recipe("one-cycle", [*HEAD_FIRST, f'training.init="{file}"'])
    kept, (note,) = with_pixels_of_init(recipe, frozenset())
    found = kept.data
    assert (found.mean, found.std, found.range, found.background) == (
        (0.1, 0.2, 0.3),
        info.preprocessing.std,
        (0.0, 4095.0),
        (9, 8, 7),
    )
    assert note.startswith(f"data.mean, data.std, data.range, data.background: as the network in {file} was")
    assert replace(kept, data=recipe.data) == recipe
    own = recipe.override(["data.std=[0.5, 0.5, 0.5]"])
    kept, (note,) = with_pixels_of_init(own, frozenset({"data.std", "data.mean", "data.range"}))
    assert kept.data == replace(own.data, background=(9, 8, 7))
    assert note.startswith("data.background: ")
    every = frozenset(f"data.{key}" for key in ("mean", "std", "range", "background"))
    assert with_pixels_of_init(recipe, every) == (recipe, [])


def test_other_trainings_measure_their_own_pixels(tiny_run: Run, tmp_path: Path) -> None:
    as_stranger(tmp_path / "x.pth")
    for settings in (
        HEAD_FIRST,
        [f'training.init="{tiny_run.path}"'],
        [*HEAD_FIRST, f'training.init="{tmp_path / "x.pth"}"'],
    ):
        recipe = load_recipe("one-cycle", settings)
        assert with_pixels_of_init(recipe, frozenset()) == (recipe, [])
    frozen = load_recipe("linear", [*HEAD_FIRST, f'training.init="{tiny_run.path}"'])
    assert with_pixels_of_init(frozen, frozenset()) == (frozen, [])


def test_a_run_with_head_first_says_and_records_the_pixels_of_its_initial_weights(
    tiny_run: Run, tmp_path: Path
) -> None:
    lighter = coloured_data(12)
    for name, split in lighter.splits.items():
        assert isinstance(split, ArraySplit)
        lighter.splits[name] = ArraySplit(split.images // 2 + 100, split.labels, name)
    begun = [*TINY, "training.epochs=1", f'training.init="{tiny_run.path}"']
    heard: list[str] = []

    class Hearing(Listener):
        def on_data(self, data: Data) -> None:
            heard.extend(data.notes)

    runs = [
        train(lighter, "one-cycle", overrides=settings, out=tmp_path / name, device="cpu", listener=Hearing())
        for name, settings in (("first", [*begun, *HEAD_FIRST]), ("all", begun))
    ]
    before, first, every = (read_weights(run.weights_path)[1].preprocessing for run in (tiny_run, *runs))
    assert (first.mean, first.std) == (before.mean, before.std) != (every.mean, every.std)
    assert runs[0].recipe.data.mean == before.mean
    assert sum(note.startswith("data.mean, data.std") for note in heard) == 1


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


@pytest.fixture(scope="module")
def rare() -> Data:
    """One class in forty, hard to tell from another."""
    generator = torch.Generator().manual_seed(0)

    def split(common: int, rare: int, name: str) -> ArraySplit:
        labels = torch.tensor([0] * common + [1] * rare)
        noise = torch.randn(len(labels), 16, 16, 3, generator=generator) * 40
        shift = torch.zeros(3).index_fill(0, torch.tensor(0), 5.0)
        images = (128 + noise + labels[:, None, None, None] * shift).clamp(0, 255).to(torch.uint8)
        return ArraySplit(images.numpy(), labels.numpy(), name)

    return Data(
        "rare",
        "made here",
        ("common", "rare"),
        {"train": split(780, 20, "train"), "test": split(200, 200, "test")},
    )


def recall_of_the_rare(rare: Data, out: Path, *more: str) -> float:
    overrides = [*TINY, "training.batch_size=40", "evaluation.every=0", *more]
    run = train(rare, "one-cycle", overrides=overrides, out=out, device="cpu")
    return load_run(run.path, "cpu").evaluate(rare, "test").classes[1].recall


@pytest.fixture(scope="module")
def plain_recall(rare: Data, tmp_path_factory: pytest.TempPathFactory) -> float:
    return recall_of_the_rare(rare, tmp_path_factory.mktemp("rare") / "plain")


@pytest.mark.parametrize("setting", ["data.sampling=balanced", "training.class_weights=balanced"])
def test_a_rare_class_is_recognised_more_often(
    setting: str, rare: Data, plain_recall: float, tmp_path: Path
) -> None:
    """The setting is part of what makes a run reproducible."""
    assert recall_of_the_rare(rare, tmp_path / "balanced", setting) > plain_recall + 0.2
