"""What is known of a trained network beside its weights; imports no torch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import get_args

from thumbnet import __version__
from thumbnet.data.images import Fit, Preprocessing
from thumbnet.recipe import ModelSettings

WEIGHTS_FORMAT = 1
TTA_NAMES = ("none", "mirror", "mirror-shift", "adaptive")


@dataclass(frozen=True)
class WeightsInfo:
    """What stands in the metadata of ``model.safetensors``, and of exported models.

    Attributes:
        model: which network.
        class_names: a label is a position in it.
        preprocessing: size, fit, mean and std.
        precision: as in the recipe's ``training.precision``.
        source, fingerprint: of the training data.
        thumbnet: the version that wrote it.
        tta: test-time augmentation by which its accuracy was measured, and by which it classifies unless told
            otherwise.
        temperature: divides its logits so that their softmax gives calibrated probabilities.
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

    def __post_init__(self) -> None:
        if self.tta not in TTA_NAMES:
            raise ValueError(f"its test-time augmentation {self.tta!r} is not known here")
        number = type(self.temperature) in (int, float)
        if not (number and math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"its temperature is {self.temperature!r}: expected a positive number")

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"format": WEIGHTS_FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> WeightsInfo:
        """Back from :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError, RecipeError: it is something else.
        """
        values = json.loads(text)
        if values.pop("format") != WEIGHTS_FORMAT:
            raise ValueError(f"written by thumbnet {values.get('thumbnet')}, in a format not known here")
        pre = values["preprocessing"]
        height, width = (int(side) for side in pre["size"])
        if pre["fit"] not in get_args(Fit) or len(pre["mean"]) != 3 or len(pre["std"]) != 3:
            raise ValueError("its preprocessing is not understood")
        mean, std = (tuple(float(v) for v in pre[key]) for key in ("mean", "std"))
        names = tuple(str(name) for name in values["class_names"])
        values["preprocessing"] = Preprocessing((height, width), pre["fit"], mean, std)
        values["model"] = ModelSettings(**values["model"])
        return cls(**{**values, "class_names": names})
