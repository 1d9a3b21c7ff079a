"""The service's JSON responses, which programs rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest

pydantic = pytest.importorskip("pydantic", reason="the extra 'serve' is not installed")

from thumbnet.serving import schemas  # noqa: E402

PUBLIC = {
    "ClassProbability": {"name", "probability"},
    "PicturePrediction": {"name", "classes", "words", "certainty", "unlike", "unlikeness", "labels"},
    "Predictions": {"predictions"},
    "Explanation": {"classes", "words", "certainty", "unlike", "unlikeness", "labels", "picture", "lit"},
    "HardPicture": {"picture", "label", "predicted", "confidence"},
    "HardPictures": {"ready", "pictures"},
    "Accuracy": {"value", "split", "pictures"},
    "ModelDescription": {
        "run", "format", "digest", "accuracy", "fingerprint", "calibrated", "network", "classes", "height", "width",
        "thumbnet", "served_by", "started", "loaded", "multilabel", "keeps_below",
    },
    "Health": {"status"},
    "Problem": {"detail"},
}  # fmt: skip


def models() -> dict[str, Any]:
    found = {name: value for name, value in vars(schemas).items() if isinstance(value, type)}
    return {name: one for name, one in found.items() if one.__module__ == schemas.__name__}


def test_every_response_has_exactly_its_fields_and_all_are_required() -> None:
    assert {name: set(model.model_fields) for name, model in models().items()} == PUBLIC
    for model in models().values():
        assert set(model.model_json_schema()["required"]) == set(model.model_fields)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "much"])
def test_a_probability_is_between_0_and_1(value: Any) -> None:
    with pytest.raises(pydantic.ValidationError):
        schemas.ClassProbability(name="cat", probability=value)


def test_every_response_has_a_description_for_openapi() -> None:
    assert [
        name for name, model in models().items() if not model.model_json_schema().get("description")
    ] == []


def prediction(words: str, *classes: schemas.ClassProbability) -> schemas.PicturePrediction:
    return schemas.PicturePrediction(
        name="a.png",
        classes=list(classes),
        words=words,
        certainty="sure",
        unlike=True,
        unlikeness=1.5,
        labels=None,
    )


def test_predictions_survive_a_round_trip_through_json() -> None:
    one = schemas.ClassProbability(name="Käfer", probability=1.0)
    answer = schemas.Predictions(predictions=[prediction("Käfer", one)])
    assert schemas.Predictions.model_validate_json(answer.model_dump_json()) == answer


def test_an_unknown_certainty_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError):
        schemas.PicturePrediction.model_validate({**prediction("").model_dump(), "certainty": "certain"})


def test_a_name_that_is_not_utf_8_can_be_sent() -> None:
    one = schemas.ClassProbability(name="caf\udce9", probability=1.0)
    assert json.loads(one.model_dump_json())["name"] == "caf\\udce9"
    assert prediction("caf\udce9", one).words == "caf\\udce9"
