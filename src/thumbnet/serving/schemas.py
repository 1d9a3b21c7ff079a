"""The service's JSON responses."""

from __future__ import annotations

from pydantic import BaseModel, Field

UNLIKE = "whether the picture is unlike the training pictures; null if the weights do not tell"
UNLIKENESS = "how unlike they are: 0 is usual, above 1 is unlike; null if the weights do not tell"


class ClassProbability(BaseModel):
    """A class and its probability."""

    name: str
    probability: float = Field(ge=0, le=1)


class PicturePrediction(BaseModel):
    """The most probable classes of a picture, most probable first."""

    name: str = Field(description="the file name in the request")
    classes: list[ClassProbability]
    unlike: bool | None = Field(description=UNLIKE)
    unlikeness: float | None = Field(description=UNLIKENESS)


class Predictions(BaseModel):
    """One prediction per picture, in the order of the pictures."""

    predictions: list[PicturePrediction]


class Explanation(BaseModel):
    """A prediction, and where the network looked. Pictures are ``data:`` URLs."""

    classes: list[ClassProbability]
    unlike: bool | None = Field(description=UNLIKE)
    unlikeness: float | None = Field(description=UNLIKENESS)
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


class Health(BaseModel):
    """``ok``, or why the service is not ready."""

    status: str


class Problem(BaseModel):
    """What was wrong with a request, and what to do."""

    detail: str
