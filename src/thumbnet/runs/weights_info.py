"""Describe a trained network: everything needed to use its weights. Imports no torch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, get_args

from thumbnet.data.images import WHITE, Fit, Preprocessing
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.certainty import Thresholds, Unlikeness, thresholds_from, unlikeness_from
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
        accuracy: the accuracy at the end of the training, 0 to 1; None if it is not known.
        accuracy_split: the split on which it was measured; empty if it is not known.
        accuracy_pictures: the number of pictures in that split; None if it is not known.
        run: the name of the run's folder; only in exports, see :mod:`thumbnet.runs.provenance`.
        exported: the format of an export, such as ``onnx-int8``; empty in a run's weights, and in exports of
            older versions.
        thresholds: probabilities from which a prediction can be accepted; None if they were not measured.
        unlike: how to tell pictures that are unlike the training pictures; None if it was not measured.
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
    accuracy: float | None = None
    accuracy_split: str = ""
    accuracy_pictures: int | None = None
    run: str = ""
    exported: str = ""
    thresholds: Thresholds | None = None
    unlike: Unlikeness | None = None
    multilabel: bool = False
    label_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.tta not in TTA_NAMES:
            raise ValueError(f"unknown test-time augmentation {self.tta!r}")
        number = type(self.temperature) in (int, float)
        if not (number and math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"the temperature is {self.temperature!r}: expected a positive number")
        _check_provenance(self)
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
        plain = asdict(ModelSettings())
        for key in ("pretrained", "stem"):  # and so is one of a network that is not timm's
            if values["model"][key] == plain[key]:
                del values["model"][key]
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
        values["thresholds"] = thresholds_from(values.get("thresholds"))
        values["unlike"] = unlikeness_from(values.get("unlike"))
        values["label_thresholds"] = tuple(values.get("label_thresholds", ()))
        return cls(**{**values, "class_names": names})


def _check_provenance(info: WeightsInfo) -> None:
    """Check the accuracy and the names, which may come from a stranger's file."""
    share, count = info.accuracy, info.accuracy_pictures
    if share is not None and not (_is_number(share) and 0 <= share <= 1):
        raise ValueError(f"the accuracy is {share!r}: expected a number from 0 to 1")
    if count is not None and not (type(count) is int and count > 0):
        raise ValueError(f"the accuracy was measured on {count!r} pictures: expected a whole number above 0")
    for text in (info.fingerprint, info.thumbnet, info.accuracy_split, info.run, info.exported):
        if not isinstance(text, str):
            raise ValueError(f"expected text, got {text!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
