"""The thirteen faults of TUTORIAL.md: each test shows the fault, and that thumbnet does not have it.

To show a fault, a test runs the tutorial's code and checks that its result is not the intended one.
"""

from __future__ import annotations

import itertools
import os
import warnings
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, get_worker_info

from helpers import TINY, coloured_data, noise, write_picture
from thumbnet.batches.augment import mirror
from thumbnet.batches.dataset import ImageDataset, to_tensor
from thumbnet.batches.prepare import prepare
from thumbnet.batches.statistics import Normalise
from thumbnet.data.rendering import Preprocessing
from thumbnet.errors import DataError, RecipeError
from thumbnet.models import resnet18
from thumbnet.recipes.recipe import load_recipe
from thumbnet.sources.folders import label_from_name
from thumbnet.sources.load import load_data
from thumbnet.training.build import build_state
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.optimizers import set_learning_rate
from thumbnet.training.schedules import factor_at

CPU = torch.device("cpu")


def test_fault_1_the_flip_is_left_to_right() -> None:
    image = noise(0)  # [H, W, C]
    upside_down = image[::-1, :, :]
    assert np.array_equal(upside_down[0], image[-1])  # the fault: the first row has become the last
    mirrored = mirror(to_tensor(image)[None], torch.tensor([True]))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(mirrored, image[:, ::-1, :])
    assert not np.array_equal(mirrored, upside_down)


def test_fault_2_pixels_are_scaled_to_0_to_1_before_they_are_normalised() -> None:
    image = np.full((1, 1, 3), 128, np.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    unscaled = (image - np.array(mean)) / np.array(std)
    assert unscaled.min() > 600  # the fault: hundreds of standard deviations away
    normalise = Normalise(Preprocessing((1, 1), "pad", mean, std), CPU)
    assert normalise(to_tensor(image)[None]).abs().max() < 1


def test_fault_3_height_and_width_are_not_swapped() -> None:
    image = noise(0, height=16, width=24)
    assert image.transpose(2, 1, 0).shape == (3, 24, 16)  # the fault
    tensor = to_tensor(image)
    assert tensor.shape == (3, 16, 24)
    assert tensor[1, 2, 20] == image[2, 20, 1]


def test_fault_4_test_pictures_are_never_flipped_so_accuracy_is_not_random() -> None:
    image = noise(0)
    generator = np.random.default_rng(0)
    flipped = [image[:, ::-1] if generator.random() < 0.5 else image for _ in range(20)]
    assert len({view.tobytes() for view in flipped}) == 2  # the fault: a test picture is sometimes flipped
    recipe = load_recipe("tutorial", ["augment.flip=random", "augment.translate=4", "augment.cutout=6"])
    test = prepare(coloured_data(), recipe, CPU).evaluation["test"]
    first, second = (torch.cat([batch.images for batch in test.epoch(e)]) for e in (0, 1))
    assert torch.equal(first, second)
    train = prepare(coloured_data(), recipe, CPU).train
    first, second = (torch.cat([b.images for b in train.epoch(e)]) for e in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [-1, 61, 10**6])
def test_fault_5_a_bad_subset_size_is_caught(size: int) -> None:
    as_printed = 'if not 0 <= size <= 60:\n    assert("Data size should be between 0 and ...")'
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        exec(as_printed, {"size": size})  # the fault: a non-empty string is true, so this always passes
        with pytest.raises(AssertionError):  # the intended check
            exec(as_printed.replace("assert(", "assert False, ("), {"size": size})
    with pytest.raises(DataError, match="expected 0"):
        ImageDataset(coloured_data().splits["train"], subset_size=size)


def test_fault_6_forward_uses_the_names_that_init_made() -> None:
    class AsPrinted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block1 = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.stage1(x)  # type: ignore[operator]

    with pytest.raises(AttributeError, match="stage1"):  # the fault
        AsPrinted()(torch.zeros(1))
    assert resnet18()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_fault_7_other_sizes_than_32x32_work() -> None:
    fixed = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))
    assert fixed(torch.zeros(1, 512, 4, 4)).shape == (1, 10)
    with pytest.raises(RuntimeError):  # the fault: 64x64 pictures leave maps of 8x8
        fixed(torch.zeros(1, 512, 8, 8))
    model = resnet18(width=0.125).eval()
    for size in (16, 20, 32, 64, 96):
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)
    # Only sides of 25 to 32 pixels leave the maps of 4x4 that the tutorial's network needs.
    for size, side in ((24, 3), (25, 4), (32, 4), (33, 5)):
        assert model.stages(model.norm(model.stem(torch.zeros(1, 3, size, size)))).shape[-1] == side


def test_fault_8_the_first_learning_rate_is_used_and_every_milestone_is_reached() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[1, 3], gamma=0.1)
    rates: list[float] = []
    for _ in range(3):  # the fault: the schedule steps first
        with pytest.warns(UserWarning, match="optimizer.step") if not rates else nullcontext():
            scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    # 0.1 was never used, and milestone 3 of 3 epochs, which should never come, did for the last one.
    assert rates == pytest.approx([0.01, 0.01, 0.001])
    schedule = load_recipe("tutorial", ["schedule.milestones=[0.33, 0.66]"]).schedule
    for step, expected in enumerate([0.1, 0.01, 0.001]):
        optimizer.param_groups[0]["base_lr"] = 0.1
        set_learning_rate(optimizer, factor_at(schedule, step, 3))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    # A milestone at the end (200 of 200 epochs) would never be reached, so the recipe is refused.
    with pytest.raises(RecipeError, match="milestones"):
        load_recipe("tutorial", ["schedule.milestones=[0.75, 1.0]"])


def test_fault_9_a_list_is_not_scaled_by_multiplying_it() -> None:
    assert [3, 4] * 2 == [3, 4, 3, 4]  # the fault: repeated

    class Multiply(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    combined = nn.Sequential(Multiply(5), Multiply(10))
    assert combined(torch.tensor([3.0, 4.0])).tolist() == [150, 200]
    # thumbnet's networks take only tensors and raise an error for anything else.
    with pytest.raises(TypeError):
        resnet18()([3, 4])


class _Fetches(TorchDispatchMode):
    """Counts operations that make Python wait for a GPU: reading a value, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_fault_10_the_loss_is_not_fetched_from_the_device_at_each_step() -> None:
    model, images, labels = resnet18(width=0.125), torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    with _Fetches() as fetches:
        nn.functional.cross_entropy(model(images), labels).item()
    assert fetches.count == 1  # the fault

    recipe = load_recipe("tutorial", [*TINY, "training.epochs=1", "training.batch_size=2"])
    prepared = prepare(coloured_data(), recipe, CPU)
    state = build_state(recipe, prepared, "rgb", CPU)
    losses: list[float | None] = []
    fetched: list[int] = []

    def note(step: StepResult) -> None:
        losses.append(step.loss)
        fetched.append(fetches.count)

    with _Fetches() as fetches:
        for _ in fit(state, prepared.train, on_step=note):
            pass
    assert len(losses) == 30
    assert losses[:19] == [None] * 19
    looked = [step for step, (before, after) in enumerate(pairwise([0, *fetched]), 1) if after > before]
    assert looked == [20, 30]  # every twentieth step, and the last step of the epoch


def test_fault_11_labels_belong_to_the_data_set_and_any_suffix_works(tmp_path: Path) -> None:
    assert "0_frog.jpeg"[:-4].split("_")[-1] == "frog."  # the fault
    assert label_from_name("0_frog.jpeg") == "frog"
    for number, (name, suffix) in enumerate(itertools.product(("frog", "cat"), ("png", "jpeg", "jpg"))):
        for split in ("train", "test"):
            write_picture(tmp_path / split / f"{number}_{name}.{suffix}", noise(number))
    (tmp_path / "labels.txt").write_text("frog\ncat\n")
    dataset = ImageDataset(tmp_path)
    assert dataset.class_names == ("frog", "cat")
    assert [label for _, label in (dataset[i] for i in range(6))] == [0, 0, 0, 1, 1, 1]
    # There is no module-level table of labels, so two data sets can have different labels at the same time.
    other = ImageDataset("digits")
    assert len(other.class_names) == 10
    assert dataset.class_names == ("frog", "cat")


class WithWorkerIds(ImageDataset):
    def __getitem__(self, index: int) -> tuple[int, int]:
        worker = get_worker_info()
        return os.getpid(), -1 if worker is None else worker.id


def test_fault_12_workers_are_processes_and_a_dataset_is_a_sequence() -> None:
    split = coloured_data().splits["train"]
    loader = DataLoader(WithWorkerIds(split), batch_size=10, num_workers=2)
    processes = {int(pid) for pids, _ in loader for pid in pids}
    assert os.getpid() not in processes  # threads would have the id of this process
    assert len(processes) == 2
    dataset = ImageDataset(split)
    assert len(dataset) == 60  # a generator has no length ...
    assert torch.equal(dataset[5][0], dataset[5][0])  # ... and no index, and can be read only once
    generator = (index for index in range(3))
    assert [list(generator), list(generator)] == [[0, 1, 2], []]


def test_fault_13_training_runs_the_requested_number_of_epochs() -> None:
    assert load_recipe("tutorial").training.epochs == 200
    for epochs in (1, 3):
        recipe = load_recipe("tutorial", [*TINY, f"training.epochs={epochs}"])
        prepared = prepare(coloured_data(), recipe, CPU)
        state = build_state(recipe, prepared, "rgb", CPU)
        assert len(list(fit(state, prepared.train))) == epochs
        assert state.step == epochs * len(prepared.train)


def test_pictures_on_disk_reach_the_network_the_right_way_round(tmp_path: Path) -> None:
    """Faults 1 to 3 together: a red dot near the top right stays near the top right in the batch."""
    for number in range(4):
        image = np.zeros((16, 16, 3), np.uint8)
        image[2, 13] = (255, 0, 0)
        for split in ("train", "test"):
            write_picture(tmp_path / split / f"{number}_{'ab'[number % 2]}.png", Image.fromarray(image))
    recipe = load_recipe("tutorial", ["data.engine=memory"])
    batch = next(prepare(load_data(tmp_path), recipe, CPU).evaluation["test"].epoch())
    red = batch.images[0, 0]
    assert divmod(int(red.argmax()), 16) == (2, 13)
    assert red.max() == pytest.approx((1 - 0.4914) / 0.2023, abs=1e-4)
