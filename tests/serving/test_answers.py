"""Answers say in numbers and words what the network thinks, and how sure it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers import coloured, coloured_labels
from serving_helpers import LIMITS, Decided, Slow, client_of, encoded, grey, wait_until
from sorting_helpers import unlike_above
from thumbnet.classifiers.load import load_run
from thumbnet.runs.folder import Run
from thumbnet.serving.service import build_service


@pytest.fixture(scope="module")
def client(tiny_run: Run) -> Iterator[Any]:
    with client_of(build_service(load_run(tiny_run.path), LIMITS)) as client:
        yield client


def test_an_explanation_has_the_classes_and_two_pictures(client: Any) -> None:
    answer = client.post("/explain", files={"file": encoded(coloured(0, 3))}).json()
    assert answer["classes"][0]["name"] == "red"
    assert all(answer[key].startswith("data:image/webp;base64,") for key in ("picture", "lit"))
    assert client.post("/explain", files=[("file", grey(9))] * 2).status_code == 422


def test_answers_say_in_words_how_sure_they_are() -> None:
    with client_of(build_service(Decided(), LIMITS)) as client:
        files = [("file", grey(level)) for level in (255, 150, 135)]
        found = client.post("/predict?top=1", files=files).json()["predictions"]
        assert [(one["certainty"], one["words"]) for one in found] == [
            ("sure", "bright"),
            ("probable", "probably bright, or else dark"),
            ("possible", "perhaps bright, or else dark"),
        ]
        explained = client.post("/explain?top=1", files={"file": grey(120)}).json()
        assert (explained["certainty"], explained["words"]) == ("possible", "perhaps dark, or else bright")


def test_an_explanation_takes_no_more_pictures_at_a_time_than_a_prediction() -> None:
    classifier = Slow()
    with client_of(build_service(classifier, replace(LIMITS, max_batch=4))) as client:
        assert client.post("/explain", files={"file": grey(0)}).status_code == 200
    assert max(classifier.batches) == 4


def test_a_prediction_does_not_wait_for_a_whole_explanation() -> None:
    classifier = Slow()
    settings = replace(LIMITS, max_batch=8)
    with client_of(build_service(classifier, settings)) as client, ThreadPoolExecutor(2) as pool:
        classifier.may_go_on.clear()
        classifier.batches.clear()
        explaining = pool.submit(client.post, "/explain", files={"file": grey(0)})
        wait_until(lambda: classifier.batches == [1])
        predicting = pool.submit(client.post, "/predict", files=[("file", grey(0))] * 2)
        read = 'thumbnet_pictures_total{outcome="read"} 3.0'  # so the prediction waits for the thread
        wait_until(lambda: read in client.get("/metrics").text)
        classifier.may_go_on.set()
        assert (explaining.result().status_code, predicting.result().status_code) == (200, 200)
    assert classifier.batches == [1, 2, 1] + [8] * 8  # the picture is covered at 64 places


def test_an_explanation_that_nobody_waits_for_is_not_finished() -> None:
    classifier = Slow()
    with client_of(build_service(classifier, replace(LIMITS, max_batch=8, timeout=1.0))) as client:
        classifier.batches.clear()
        classifier.may_go_on.clear()
        assert client.post("/explain", files={"file": grey(0)}).status_code == 503
        classifier.may_go_on.set()
        assert client.post("/predict", files=[("file", grey(0))] * 2).status_code == 200
    assert classifier.batches == [1, 2]


def test_answers_say_whether_a_picture_is_unlike_the_training_pictures() -> None:
    classifier = Slow()
    # The energy of a grey picture is -log(2 e^0.5) = -1.19, that of a black one -log(e + 1) = -1.31.
    classifier.info = replace(classifier.info, unlike=unlike_above(-1.25))
    with client_of(build_service(classifier, LIMITS)) as client:
        for level, unlike in ((0, False), (128, True)):
            headers = {"Content-Type": "image/png"}
            (found,) = client.post("/predict", content=grey(level), headers=headers).json()["predictions"]
            shown = client.post("/explain", content=grey(level), headers=headers).json()
            assert found["unlike"] is shown["unlike"] is unlike
            assert (
                found["unlikeness"]
                == shown["unlikeness"]
                == pytest.approx(2.25 + (-1.31 if level == 0 else -1.19), abs=0.01)
            )


def test_answers_of_a_network_without_a_score_say_nothing_about_unlike_pictures() -> None:
    with client_of(build_service(Slow(), LIMITS)) as client:
        headers = {"Content-Type": "image/png"}
        (found,) = client.post("/predict", content=grey(0), headers=headers).json()["predictions"]
        shown = client.post("/explain", content=grey(0), headers=headers).json()
        for answer in (found, shown):
            assert (answer["unlike"], answer["unlikeness"]) == (None, None)


def test_a_network_of_several_labels_answers_with_a_list(label_run: Run) -> None:
    classifier, split = load_run(label_run.path), coloured_labels().splits["test"]
    pictures = [np.asarray(split.load(index)) for index in range(8)]
    expected = [list(one.found or ()) for one in classifier.predict(pictures)]
    assert any(len(labels) > 1 for labels in expected)
    with client_of(build_service(classifier, LIMITS, coloured_labels)) as client:
        files = [("file", encoded(picture)) for picture in pictures]
        answer = client.post("/predict", files=files).json()["predictions"]
        assert [one["labels"] for one in answer] == expected
        picture, found = pictures[0], answer[0]
        shown = client.post("/explain", files={"file": encoded(picture)}).json()
        assert shown["labels"] == found["labels"]
        assert client.get("/model").json()["multilabel"] is True
        assert "any number of 3 labels" in client.get("/openapi.json").json()["info"]["description"]
        while not (hard := client.get("/hardest").json())["ready"]:
            time.sleep(0.05)
        assert hard["pictures"] == []


def test_a_network_of_one_class_answers_without_a_list(client: Any) -> None:
    (found,) = client.post("/predict", files={"file": grey(9)}).json()["predictions"]
    assert found["labels"] is None
    assert client.get("/model").json()["multilabel"] is False
