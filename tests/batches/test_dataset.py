from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from helpers import write_class_folders, write_picture
from thumbnet.batches.dataset import ImageDataset
from thumbnet.data.rendering import Rendering
from thumbnet.errors import DataError, DataWarning
from thumbnet.sources.load import load_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("pictures"), ["train", "test"])


def test_an_item_is_a_uint8_tensor_with_channels_first_and_its_label(root: Path) -> None:
    dataset = ImageDataset(root)
    image, label = dataset[7]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.uint8
    assert dataset.class_names[label] == "green"
    assert len(dataset) == 18


def test_a_picture_is_read_only_when_it_is_accessed(root: Path, tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    dataset = ImageDataset(tmp_path)
    (tmp_path / "train" / "red" / "5.png").unlink()
    dataset[0]
    with pytest.raises(DataError, match="5.png"):
        dataset[17]


def test_a_subset_is_random_seeded_and_has_the_given_size(root: Path) -> None:
    subset = ImageDataset(root, subset_size=6)
    names = [subset.split.name(i) for i in range(6)]
    assert len(set(names)) == len(subset) == 6
    same = ImageDataset(root, subset_size=6).split
    other = ImageDataset(root, subset_size=6, seed=1).split
    assert names == [same.name(i) for i in range(6)]
    assert names != [other.name(i) for i in range(6)]
    assert len(ImageDataset(root, subset_size=0)) == 18


def test_a_subset_without_a_class_says_which_one(root: Path) -> None:
    with pytest.warns(DataWarning, match=r"subset_size=1 leaves no picture of 2 of 3 classes: "):
        dataset = ImageDataset(root, subset_size=1)
    label = int(dataset[0][1])
    lost = ", ".join(name for number, name in enumerate(dataset.class_names) if number != label)
    assert any(f"2 of 3 classes: {lost}. Take more pictures" in note for note in dataset.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not [note for note in ImageDataset(root, subset_size=17).notes if "subset_size" in note]
        assert ImageDataset(load_data(root).splits["train"], subset_size=1).notes == ()


@pytest.mark.parametrize("size", [-1, 19, 10**9])
def test_an_impossible_subset_is_refused(size: int, root: Path) -> None:
    with pytest.raises(DataError, match="expected 0 \\(all pictures\\) to 18"):
        ImageDataset(root, subset_size=size)


class TorchvisionStyle:
    """Called with a PIL picture, like torchvision's Compose."""

    def __call__(self, img: Image.Image) -> torch.Tensor:
        assert isinstance(img, Image.Image)
        assert img.mode == "RGB"
        return torch.from_numpy(np.array(img)).permute(2, 0, 1).float() / 255


class AlbumentationsStyle:
    """Takes keyword arguments only and returns a dictionary, like albumentations' Compose."""

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        if args:
            raise KeyError("You have to pass data to augmentations as named arguments")
        return {"image": data["image"][:, ::-1]}


def test_transforms_of_both_styles_work_in_loaders_with_workers(root: Path) -> None:
    plain = torch.stack([ImageDataset(root)[i][0] for i in range(18)])
    for transform, expected in (
        (TorchvisionStyle(), plain.float() / 255),
        (AlbumentationsStyle(), plain.flip(3)),
        (lambda image: image.rotate(180), plain.flip(2, 3)),
    ):
        workers = 0 if not isinstance(transform, TorchvisionStyle | AlbumentationsStyle) else 2
        loader = DataLoader(ImageDataset(root, transform=transform), batch_size=18, num_workers=workers)
        images, labels = next(iter(loader))
        assert torch.equal(images, expected)
        assert labels.dtype == torch.int64


def test_torchvision_itself_works_if_it_is_installed(root: Path) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision has no CPU build here")
    transform = v2.Compose(
        [v2.RandomHorizontalFlip(p=1), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )
    image, _ = ImageDataset(root, transform=transform)[0]
    torch.testing.assert_close(image, ImageDataset(root)[0][0].flip(2).float() / 255)


def test_pictures_can_be_resized_to_one_size(root: Path) -> None:
    image, _ = ImageDataset(root, image_size=(24, 32))[0]
    assert image.shape == (3, 24, 32)


def test_without_splits_a_fifth_is_set_aside_and_a_note_says_so(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path, [""], per_class=10)
    dataset = ImageDataset(root)
    assert len(dataset) == 24
    assert any("20% of each class was set aside as test" in note for note in dataset.notes)
    assert len(ImageDataset(load_data(root, test_fraction=0.0))) == 30


def test_loaded_data_give_the_named_split_and_its_class_names(root: Path) -> None:
    data = load_data(root)
    dataset = ImageDataset(data, "test")
    assert dataset.split is data.splits["test"]
    assert dataset.class_names == data.class_names == ("blue", "green", "red")


def test_warnings_about_the_data_are_given(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    (tmp_path / "train" / "red" / "scan.dcm").write_bytes(b"x")
    with pytest.warns(DataWarning, match=r"^1 file\(s\) skipped, each a DICOM file"):
        dataset = ImageDataset(tmp_path)
    assert any(note.startswith("warning: 1 file(s) skipped") for note in dataset.notes)


def test_an_unknown_split_is_named(root: Path) -> None:
    with pytest.raises(DataError, match="no split 'val'"):
        ImageDataset(root, "val")


def test_pictures_with_more_than_8_bits_are_rendered_as_requested(tmp_path: Path) -> None:
    values = np.full((16, 16), 750, dtype=np.uint16)
    for name in "ab":
        for number in range(3):
            write_picture(tmp_path / "train" / name / f"{number}.tif", Image.fromarray(values))
    dark = ImageDataset(tmp_path, "train")[0][0]
    seen = ImageDataset(tmp_path, "train", rendering=Rendering((500, 1000)))[0][0]
    assert (dark.unique().tolist(), seen.unique().tolist()) == ([3], [128])
