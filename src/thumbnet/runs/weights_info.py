"""Describe a trained network: everything needed to use its weights. Imports no torch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, get_args

from thumbnet.data.images import WHITE, Fit, Preprocessing
from thumbnet.recipes.settings import ModelSettings
from thumbnet.version import __version__

WEIGHTS_FORMAT = 1
TTA_NAMES = ("none", "mirror", "mirror-shift", "adaptive")


@dataclass(frozen=True)
class WeightsInfo:
    """The description of a trained network, stored in the metadata of ``model.safetensors`` and of exports.

    Attributes:
        model: the network's settings.
        class_names: the classes; a label is an index into them.
        preprocessing: size, fit, mean, std, value range and background.
        precision: the recipe's ``training.precision``.
        source, fingerprint: name and fingerprint of the training data.
        thumbnet: the version of thumbnet that wrote it.
        tta: the test-time augmentation with which the accuracy was measured; the default for predictions.
        temperature: divides the logits so that their softmax gives calibrated probabilities.
        multilabel: whether the network gives a picture several labels. A label's probability is then the
            sigmoid of its logit.
        label_thresholds: the probability from which on it gives each label; empty for 0.5.
    """

    model: ModelSettings
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    precision: str
    source: str
    fingerprint: str
    thumbnet: str = __version__
    tta: str = "none"
    temperature: float = 1.0
    multilabel: bool = False
    label_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.tta not in TTA_NAMES:
            raise ValueError(f"unknown test-time augmentation {self.tta!r}")
        number = type(self.temperature) in (int, float)
        if not (number and math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"the temperature is {self.temperature!r}: expected a positive number")
        self._check_labels()

    def _check_labels(self) -> None:
        if type(self.multilabel) is not bool:
            raise ValueError(f"multilabel is {self.multilabel!r}: expected true or false")
        count = len(self.label_thresholds)
        if count and not (self.multilabel and count == len(self.class_names)):
            raise ValueError(f"it has {count} thresholds for {len(self.class_names)} labels")
        if not all(type(one) in (int, float) and 0 <= one <= 1 for one in self.label_thresholds):
            raise ValueError("its thresholds are not all numbers from 0 to 1")

    def to_json(self) -> str:
        """Return the description as one line of JSON."""
        values = asdict(self)
        if not self.multilabel:  # a description for one class per picture is as it always was
            del values["multilabel"], values["label_thresholds"]
        return json.dumps({"format": WEIGHTS_FORMAT, **values}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> WeightsInfo:
        """Parse the output of :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError, RecipeError: ``text`` is something else.
        """
        values = json.loads(text)
        if values.pop("format") != WEIGHTS_FORMAT:
            raise ValueError(
                f"thumbnet {values.get('thumbnet')} wrote it in a format that this version does not know"
            )
        pre = values["preprocessing"]
        height, width = (int(side) for side in pre["size"])
        if pre["fit"] not in get_args(Fit) or len(pre["mean"]) != 3 or len(pre["std"]) != 3:
            raise ValueError("its preprocessing is not valid")
        mean, std = (tuple(float(v) for v in pre[key]) for key in ("mean", "std"))
        names = tuple(str(name) for name in values["class_names"])
        values["preprocessing"] = Preprocessing(
            (height, width), pre["fit"], mean, std, _range(pre.get("range")), _colour(pre.get("background"))
        )
        values["model"] = ModelSettings(**values["model"])
        values["label_thresholds"] = tuple(values.get("label_thresholds", ()))
        return cls(**{**values, "class_names": names})


def _range(value: Any) -> tuple[float, float] | None:
    """Parse the value range; None (also in files of older versions) means the type's full range."""
    if value is None:
        return None
    low, high = (float(limit) for limit in value)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"its value range is {low:g} to {high:g}")
    return low, high


def _colour(value: Any) -> tuple[int, int, int]:
    if value is None:
        return WHITE
    red, green, blue = (int(channel) for channel in value)
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise ValueError("its background is not a colour: expected three numbers from 0 to 255")
    return red, green, blue
