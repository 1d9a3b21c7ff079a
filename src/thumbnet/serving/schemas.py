"""The service's JSON responses."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from thumbnet.classifiers.words import Certainty

WORDS = "the answer in words, which claim no more than its probability"
CERTAINTY = "how probable the first class is: 95, 75 or 50 % or more, or less"
UNLIKE = "whether the picture is unlike the training pictures; null if the weights do not tell"
UNLIKENESS = "how unlike they are: 0 is usual, above 1 is unlike; null if the weights do not tell"
LABELS = "the labels that reach their thresholds; null if the network gives a picture one class"


def _as_utf8(text: object) -> object:
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


# A class or a run may be named by a folder whose name is not UTF-8. JSON must be.
Name = Annotated[str, BeforeValidator(_as_utf8)]


class ClassProbability(BaseModel):
    """A class and its probability."""

    name: Name
    probability: float = Field(ge=0, le=1)


class PicturePrediction(BaseModel):
    """The most probable classes of a picture, most probable first."""

    name: Name = Field(description="the file name in the request")
    classes: list[ClassProbability]
    words: Name = Field(description=WORDS)
    certainty: Certainty = Field(description=CERTAINTY)
    unlike: bool | None = Field(description=UNLIKE)
    unlikeness: float | None = Field(description=UNLIKENESS)
    labels: list[str] | None = Field(description=LABELS)


class Predictions(BaseModel):
    """One prediction per picture, in the order of the pictures."""

    predictions: list[PicturePrediction]


class Explanation(BaseModel):
    """A prediction, and where the network looked. Pictures are ``data:`` URLs."""

    classes: list[ClassProbability]
    words: Name = Field(description=WORDS)
    certainty: Certainty = Field(description=CERTAINTY)
    unlike: bool | None = Field(description=UNLIKE)
    unlikeness: float | None = Field(description=UNLIKENESS)
    labels: list[str] | None = Field(description=LABELS)
    picture: str = Field(description="the picture as the network sees it")
    lit: str = Field(
        description="the same picture, bright where covering it lowers the predicted class's probability most"
    )


class HardPicture(BaseModel):
    """A test picture that the network classifies wrongly, with high confidence."""

    picture: str
    label: Name
    predicted: Name
    confidence: float


class HardPictures(BaseModel):
    """The hardest test pictures. ``ready`` is false until the search for them has ended."""

    ready: bool
    pictures: list[HardPicture]


class Accuracy(BaseModel):
    """An accuracy, and the pictures that it was measured on."""

    value: float = Field(ge=0, le=1)
    split: str | None = Field(description="the split: test or val")
    pictures: int | None = Field(description="the number of pictures in that split")


class ModelDescription(BaseModel):
    """The network that is served. A field is null if its value is not known."""

    run: Name | None = Field(description="the name of the run")
    format: str | None = Field(description="run, safetensors, or the format of the export, such as onnx")
    digest: str | None = Field(description="the digest of the weights' file: sha256: and 64 digits")
    accuracy: Accuracy | None = Field(description="the accuracy at the end of the training")
    fingerprint: str | None = Field(description="the fingerprint of the training data")
    calibrated: bool = Field(description="whether the probabilities were calibrated on held-out pictures")
    network: str
    classes: list[Name]
    height: int = Field(description="the height in pixels of the pictures that the network sees")
    width: int = Field(description="their width")
    thumbnet: str | None = Field(description="the version of thumbnet that trained the network")
    served_by: str = Field(description="the version of thumbnet that serves it")
    started: datetime = Field(description="when the service started, in UTC")
    loaded: datetime = Field(description="when the service loaded this network, in UTC")
    multilabel: bool = Field(description="whether the network gives a picture several labels")
    keeps_below: float | None = Field(
        description="the service keeps pictures whose most probable class is less probable than this, so "
        "that people can label them; null if it keeps none"
    )


class Health(BaseModel):
    """``ok``, or why the service is not ready."""

    status: str


class Problem(BaseModel):
    """What was wrong with a request, and what to do."""

    detail: str
