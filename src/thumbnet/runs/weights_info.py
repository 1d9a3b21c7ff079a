"""Describe a trained network: everything needed to use its weights. Imports no torch."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath
from typing import Any, get_args

from thumbnet.data.rendering import WHITE, Fit, Preprocessing
from thumbnet.errors import is_printable
from thumbnet.recipes.settings import LARGEST_SIDE, PRECISIONS, SMALLEST_SIDE, ModelSettings
from thumbnet.runs.certainty import Thresholds, Unlikeness, thresholds_from, unlikeness_from
from thumbnet.runs.fields import flag, items, number, numbers, shown, table, text, whole, wrong
from thumbnet.sources.known_names import HUB
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
        source, fingerprint: name and fingerprint of the training data; see :func:`public_name`.
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
            raise wrong(self.tta, "tta", f"one of {', '.join(TTA_NAMES)}")
        if self.precision not in PRECISIONS:
            raise wrong(self.precision, "precision", f"one of {', '.join(PRECISIONS)}")
        if number(self.temperature, "temperature") <= 0:
            raise wrong(self.temperature, "temperature", "a positive number")
        _check_names(self.class_names)
        _check_provenance(self)
        self._check_labels()

    def _check_labels(self) -> None:
        flag(self.multilabel, "multilabel")
        count = len(self.label_thresholds)
        if count and not (self.multilabel and count == len(self.class_names)):
            raise ValueError(f"it has {count} thresholds for {len(self.class_names)} labels")
        numbers(self.label_thresholds, "label_thresholds", count, 0, 1)

    def to_json(self) -> str:
        """Return the description as one line of JSON."""
        values = asdict(self)
        if self.thresholds is not None:
            values["thresholds"] = self.thresholds.to_dict()
        if not self.multilabel:  # a description for one class per picture is as it always was
            del values["multilabel"], values["label_thresholds"]
        plain = asdict(ModelSettings())
        for key in ("pretrained", "stem"):  # and so is one of a network that is not timm's
            if values["model"][key] == plain[key]:
                del values["model"][key]
        return json.dumps({"format": WEIGHTS_FORMAT, **values}, sort_keys=True)

    @classmethod
    def from_json(cls, content: str) -> WeightsInfo:
        """Parse the output of :meth:`to_json`.

        Raises:
            ValueError: ``content`` is something else, or a value is out of range; names the entry.
            RecipeError: the network's settings are out of range.
            RecursionError: the JSON is nested too deeply.
        """
        values = json.loads(content)
        if isinstance(values, dict) and values.get("format") != WEIGHTS_FORMAT:
            writer = shown(values.get("thumbnet"))
            raise ValueError(f"thumbnet {writer} wrote it in a format that this version does not know")
        table(values, "the description", _REQUIRED, (*_OPTIONAL, "format"))
        optional = {key: values[key] for key in _AS_THEY_ARE if key in values}
        return cls(
            model=_model(values["model"]),
            class_names=tuple(items(values["class_names"], "class_names")),
            preprocessing=_preprocessing(values["preprocessing"]),
            precision=values["precision"],
            source=public_name(values["source"]),
            fingerprint=values["fingerprint"],
            thresholds=thresholds_from(values.get("thresholds")),
            unlike=unlikeness_from(values.get("unlike")),
            label_thresholds=tuple(items(values.get("label_thresholds", ()), "label_thresholds")),
            **optional,
        )


def public_name(source: Any) -> Any:
    """The name of data or weights without their local folder, which is private.

    The same training must also write the same weights wherever its data are. Anything but text is returned
    as it is.
    """
    if not isinstance(source, str) or source.startswith(HUB):
        return source
    return PurePath(source).name or source


_REQUIRED = ("model", "class_names", "preprocessing", "precision", "source", "fingerprint")
_OPTIONAL = tuple(known.name for known in fields(WeightsInfo) if known.name not in _REQUIRED)
_AS_THEY_ARE = tuple(key for key in _OPTIONAL if key not in ("thresholds", "unlike", "label_thresholds"))


def _check_names(names: tuple[str, ...]) -> None:
    """Check that there are class names, that all are printable text, and that no two are equal."""
    if not names:
        raise ValueError("class_names is empty: expected one name per class")
    for name in names:
        if not isinstance(name, str) or not is_printable(name):
            raise wrong(name, "a class name", "text without control characters")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"two classes have the same name, {shown(twice)}")


def _model(value: object) -> ModelSettings:
    given = table(value, "model", (), ("name", "width", "pretrained", "stem"))
    return ModelSettings(
        text(given.get("name", ModelSettings.name), "model.name"),
        number(given.get("width", ModelSettings.width), "model.width"),
        given.get("pretrained", ModelSettings.pretrained),
        text(given.get("stem", ModelSettings.stem), "model.stem"),
    )


def _preprocessing(value: object) -> Preprocessing:
    given = table(value, "preprocessing", ("size", "fit", "mean", "std"), ("range", "background"))
    height, width = (
        whole(side, "preprocessing.size", SMALLEST_SIDE, LARGEST_SIDE)
        for side in items(given["size"], "preprocessing.size", 2)
    )
    if given["fit"] not in get_args(Fit):
        raise wrong(given["fit"], "preprocessing.fit", f"one of {', '.join(get_args(Fit))}")
    mean = numbers(given["mean"], "preprocessing.mean", 3, 0, 1)
    std = numbers(given["std"], "preprocessing.std", 3, 1e-6, 1)
    limits, colour = _range(given.get("range")), _colour(given.get("background"))
    return Preprocessing((height, width), given["fit"], mean, std, limits, colour)


def _check_provenance(info: WeightsInfo) -> None:
    """Check the accuracy and the names, which may come from a stranger's file."""
    if info.accuracy is not None:
        number(info.accuracy, "accuracy", 0, 1)
    if info.accuracy_pictures is not None:
        whole(info.accuracy_pictures, "accuracy_pictures", 1, 2**53)
    for key in ("source", "fingerprint", "thumbnet", "accuracy_split", "run", "exported"):
        text(getattr(info, key), key)


def _range(value: object) -> tuple[float, float] | None:
    """Parse the value range; None (also in files of older versions) means the type's full range."""
    if value is None:
        return None
    low, high = numbers(value, "preprocessing.range", 2)
    if low >= high:
        raise wrong(value, "preprocessing.range", "two numbers, the smaller one first")
    return low, high


def _colour(value: object) -> tuple[int, int, int]:
    """Parse the background; None (in files of older versions) means white."""
    if value is None:
        return WHITE
    where = "preprocessing.background"
    red, green, blue = (whole(channel, where, 0, 255) for channel in items(value, where, 3))
    return red, green, blue
