"""The service's JSON responses."""

from __future__ import annotations

from pydantic import BaseModel, Field

LABELS = "the labels that reach their thresholds; null if the network gives a picture one class"


class ClassProbability(BaseModel):
    """A class and its probability."""

    name: str
    probability: float = Field(ge=0, le=1)


class PicturePrediction(BaseModel):
    """The most probable classes of a picture, most probable first."""

    name: str = Field(description="the file name in the request")
    classes: list[ClassProbability]
    labels: list[str] | None = Field(description=LABELS)


class Predictions(BaseModel):
    """One prediction per picture, in the order of the pictures."""

    predictions: list[PicturePrediction]


class Explanation(BaseModel):
    """A prediction, and where the network looked. Pictures are ``data:`` URLs."""

    classes: list[ClassProbability]
    labels: list[str] | None = Field(description=LABELS)
    picture: str = Field(description="the picture as the network sees it")
    lit: str = Field(
        description="the same picture, bright where covering it lowers the predicted class's probability most"
    )


class HardPicture(BaseModel):
    """A test picture that the network classifies wrongly, with high confidence."""

    picture: str
    label: str
    predicted: str
    confidence: float


class HardPictures(BaseModel):
    """The hardest test pictures. ``ready`` is false until the search for them has ended."""

    ready: bool
    pictures: list[HardPicture]


class ModelDescription(BaseModel):
    """The network that is served."""

    network: str
    classes: list[str]
    height: int
    width: int
    thumbnet: str
    multilabel: bool = Field(description="whether the network gives a picture several labels")


class Health(BaseModel):
    """``ok``, or why the service is not ready."""

    status: str


class Problem(BaseModel):
    """What was wrong with a request, and what to do."""

    detail: str
