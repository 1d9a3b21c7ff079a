"""What the service answers, in JSON."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ClassProbability(BaseModel):
    """A class, and how probable the network holds it."""

    name: str
    probability: float = Field(ge=0, le=1)


class PicturePrediction(BaseModel):
    """Of one picture the likeliest classes, the likeliest first."""

    name: str = Field(description="the file's name, as it was sent")
    classes: list[ClassProbability]


class Predictions(BaseModel):
    """In the order of the pictures."""

    predictions: list[PicturePrediction]


class Explanation(BaseModel):
    """A prediction and where the network looked; pictures as ``data:`` addresses."""

    classes: list[ClassProbability]
    picture: str = Field(description="the picture as the network takes it")
    lit: str = Field(description="the same, lit where covering it takes most from the likeliest class")


class HardPicture(BaseModel):
    """A test picture that the network is sure of, and wrong."""

    picture: str
    label: str
    predicted: str
    confidence: float


class HardPictures(BaseModel):
    """``ready`` is false while they are being searched."""

    ready: bool
    pictures: list[HardPicture]


class ModelDescription(BaseModel):
    """What is served."""

    network: str
    classes: list[str]
    height: int
    width: int
    thumbnet: str


class Health(BaseModel):
    """``ok``, or why not."""

    status: str


class Problem(BaseModel):
    """What was wrong, and what to do."""

    detail: str
