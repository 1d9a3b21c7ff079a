"""ImageDataset reads one picture per ``__getitem__``, as in the PyTorch tutorial.

```python
dataset = ImageDataset("cifar", "train", subset_size=1000)
loader = torch.utils.data.DataLoader(dataset, batch_size=128, shuffle=True, num_workers=2)
```
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from thumbnet.data.rendering import Fit, Rendering, fit_image
from thumbnet.data.splits import Split
from thumbnet.errors import DataError, DataWarning, printable, some_of
from thumbnet.sources.load import load_data

Transform = Callable[..., Any]


class ImageDataset(Dataset[tuple[Any, Any]]):
    """A sequence of (picture, label). It reads a picture only when it is accessed.

    If the pictures have several labels each, a label is a tensor of zeros and ones, float32 [classes].

    If ``data`` is not a split, and has neither ``test`` nor ``val``, a fifth of each class becomes ``test``
    and is missing in ``train``, as in a training; ``notes`` says so. For all pictures, pass
    ``load_data("pictures", test_fraction=0.0)``. If there are splits, name the folder that holds them:
    ``"cifar/train"`` by itself has none.

    Args:
        data: a :class:`~thumbnet.data.splits.Split`, what :func:`thumbnet.load_data` has returned, or
            anything that it accepts.
        split: the name of the split, if ``data`` is not a split.
        subset_size: use this many random pictures; 0 means all.
        transform: called on each picture. A transform in torchvision's style gets a PIL picture (RGB). One in
            albumentations' style gets ``image=`` a uint8 array [H, W, 3] and returns a dictionary with the
            key ``"image"``. A result that is not a tensor becomes one, [C, H, W].
        image_size: height, width in pixels, applied before ``transform``; None keeps the pictures' sizes.
        fit: how to change the size, see :func:`thumbnet.data.rendering.fit_image`.
        seed: seed of the random subset.
        rendering: how pictures with more than 8 bits and transparent ones become RGB; None decides by type.
            A trained network's rendering is ``info.preprocessing.rendering``.

    Attributes:
        split: the pictures, with their names and labels.
        class_names: the class names by label; empty if ``data`` is a split.
        notes: what the user should know about the data, see ``notes`` of
            :class:`~thumbnet.data.splits.Data`, and the classes of which the subset has no picture; those
            that begin with ``warning: `` are also given as a :class:`~thumbnet.errors.DataWarning`.

    Without a ``transform``, a picture is a uint8 tensor [3, H, W].

    Raises:
        DataError: ``subset_size`` is negative or larger than the split, or the split does not exist.
    """

    def __init__(
        self,
        data: Any,
        split: str = "train",
        *,
        subset_size: int = 0,
        transform: Transform | None = None,
        image_size: tuple[int, int] | None = None,
        fit: Fit = "crop",
        seed: int = 0,
        rendering: Rendering | None = None,
    ) -> None:
        self.class_names: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        if not isinstance(data, Split):
            loaded = load_data(data)
            self.class_names, data = loaded.class_names, loaded.split(split)
            self.notes = loaded.notes
        self.split = random_subset(data, subset_size, seed)
        self.notes += tuple(lost_classes(data, self.split, self.class_names))
        for note in self.notes:
            if note.startswith("warning: "):
                warnings.warn(note.removeprefix("warning: "), DataWarning, stacklevel=2)
        self.transform = transform
        self.image_size = image_size
        self.fit: Fit = fit
        self.rendering = rendering
        self._by_keyword = transform is not None and _is_called_by_keyword(transform)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        label = self._label(index)
        if self.rendering is None:
            image = self.split.read(index)
        else:
            rgb = self.rendering.rgb(self.split.load(index))
            image = Image.fromarray(rgb) if isinstance(rgb, np.ndarray) else rgb
        if self.image_size is not None:
            image = fit_image(image, self.image_size, self.fit)
        if self.transform is None:
            return to_tensor(image), label
        if self._by_keyword:
            result = self.transform(image=np.asarray(image))["image"]
        else:
            result = self.transform(image)
        return result if isinstance(result, Tensor) else to_tensor(result), label

    def _label(self, index: int) -> Any:
        if self.split.multilabel:
            return torch.from_numpy(self.split.targets[index].astype(np.float32))
        return int(self.split.labels[index])


def random_subset(split: Split, size: int, seed: int) -> Split:
    """``size`` random pictures of ``split`` in their original order; all of them if ``size`` is 0.

    Raises:
        DataError: ``size`` is negative or larger than the split.
    """
    if not 0 <= size <= len(split):
        raise DataError(f"the subset size is {size}: expected 0 (all pictures) to {len(split)}")
    if size in (0, len(split)):
        return split
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(split), generator=generator)[:size]
    return split.subset(np.sort(chosen.numpy()))


def lost_classes(split: Split, subset: Split, class_names: Sequence[str]) -> list[str]:
    """A warning if ``subset`` has no picture of a class that ``split`` has; none if no names are given."""
    if not class_names:
        return []
    before, after = (part.class_counts(len(class_names)) for part in (split, subset))
    lost = np.flatnonzero((before > 0) & (after == 0)).tolist()
    if not lost:
        return []
    return [
        f"warning: subset_size={len(subset)} leaves no picture of {len(lost)} of {len(class_names)} classes: "
        f"{some_of([printable(class_names[label]) for label in lost])}. Take more pictures, or others by "
        "another seed"
    ]


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """A picture [H, W, C] or [H, W] as a tensor [C, H, W] of the same values."""
    array = np.array(image)  # a copy, because torch needs writable memory
    if array.ndim == 2:
        array = array[:, :, None]
    return torch.from_numpy(array).permute(2, 0, 1)


def _is_called_by_keyword(transform: Transform) -> bool:
    """Whether a transform is called in albumentations' style: ``transform(image=array)["image"]``."""
    if any(cls.__module__.partition(".")[0].startswith("albumentations") for cls in type(transform).__mro__):
        return True
    try:
        return "force_apply" in inspect.signature(transform).parameters
    except (TypeError, ValueError):
        return False
