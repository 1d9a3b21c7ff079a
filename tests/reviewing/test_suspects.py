"""Suspects: wrong labels first, and pictures that occur twice or in two classes."""

from __future__ import annotations

import numpy as np

from thumbnet.data.repeats import picture_digests
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.reviewing.scores import Scores
from thumbnet.reviewing.suspects import Suspect, find_suspects


def made(splits: dict[str, tuple[np.ndarray, list[int], list[list[float]]]]) -> tuple[Data, Scores]:
    """Data and scores from pictures (numbers that become flat pictures), labels and probabilities."""
    images = {
        name: np.repeat(np.array(values, dtype=np.uint8), 48).reshape(-1, 4, 4, 3)
        for name, (values, _, _) in splits.items()
    }
    data = Data(
        "made",
        "by a test",
        ("red", "green", "blue"),
        {name: ArraySplit(images[name], np.array(labels), name) for name, (_, labels, _) in splits.items()},
    )
    probabilities = {name: np.array(rows, dtype=np.float32) for name, (_, _, rows) in splits.items()}
    return data, Scores(probabilities, {name: picture_digests(some) for name, some in images.items()})


SURE = {0: [0.9, 0.05, 0.05], 1: [0.05, 0.9, 0.05], 2: [0.05, 0.05, 0.9]}


def by_name(found: list[Suspect]) -> dict[str, Suspect]:
    return {one.name: one for one in found}


def test_wrong_labels_come_first_with_the_class_that_the_network_sees() -> None:
    data, scores = made(
        {
            "train": (np.arange(6), [0, 0, 1, 1, 2, 2], [SURE[n] for n in (0, 0, 1, 2, 2, 2)]),
            "test": (np.arange(10, 14), [0, 1, 1, 2], [SURE[0], SURE[1], [0.3, 0.6, 0.1], SURE[0]]),
        }
    )
    found = find_suspects(data, scores)
    assert [one.name for one in found[:3]] == ["train[3]", "test[3]", "test[2]"]
    assert (found[0].split, found[0].index, found[0].given, found[0].suggested) == ("train", 3, 1, 2)
    assert (found[1].given, found[1].suggested) == (2, 0)
    assert [one.reasons for one in found] == [("label",), ("label",), *[()] * 8]
    assert len(found) == 10


def test_copies_name_each_other_across_splits() -> None:
    data, scores = made(
        {
            "train": (np.array([7, 8, 7]), [0, 1, 0], [SURE[0], SURE[1], SURE[0]]),
            "test": (np.array([9, 7]), [1, 0], [SURE[1], SURE[0]]),
        }
    )
    found = by_name(find_suspects(data, scores))
    assert found["train[0]"].copies == (("train", 2), ("test", 1))
    assert found["test[1]"].copies == (("train", 0), ("train", 2))
    assert found["train[0]"].reasons == ("copy",)
    assert not found["train[0]"].is_doubtful
    assert found["train[1]"].copies == ()
    assert found["train[1]"].reasons == ()


def test_a_picture_in_two_classes_is_suspicious_wherever_it_is_and_most_where_the_network_disagrees() -> None:
    data, scores = made(
        {"train": (np.array([7, 8, 7, 9]), [0, 1, 1, 2], [SURE[0], [0.3, 0.6, 0.1], SURE[0], SURE[2]])}
    )
    found = find_suspects(data, scores)
    assert [one.name for one in found] == ["train[2]", "train[0]", "train[1]", "train[3]"]
    assert found[0].reasons == ("label", "copy", "conflict")
    assert found[1].reasons == ("copy", "conflict")
    assert found[0].is_doubtful
    assert found[1].is_doubtful


def test_unreadable_pictures_are_left_out_and_the_others_keep_their_positions() -> None:
    data, scores = made(
        {
            "train": (np.array([1, 2, 3]), [0, 1, 2], [SURE[0], [np.nan] * 3, SURE[0]]),
            "test": (np.array([4, 5]), [0, 0], [[np.nan] * 3, SURE[1]]),
        }
    )
    found = by_name(find_suspects(data, scores))
    assert sorted(found) == ["test[1]", "train[0]", "train[2]"]
    assert (found["test[1]"].split, found["test[1]"].index) == ("test", 1)
    assert find_suspects(data, Scores({"train": np.full((3, 3), np.nan, dtype=np.float32)})) == []


def test_pictures_that_were_not_compared_have_no_copies() -> None:
    data, scores = made({"train": (np.array([7, 7]), [0, 1], [SURE[0], SURE[1]])})
    found = find_suspects(data, Scores(scores.probabilities))
    assert [one.copies for one in found] == [(), ()]


def test_training_pictures_have_thresholds_of_their_own() -> None:
    """With one threshold for all, the sure training pictures would hide a doubtful test picture."""
    sure, fair = [0.999, 0.001, 0.0], [0.6, 0.2, 0.2]
    data, scores = made(
        {
            "train": (np.arange(40), [0] * 40, [sure] * 40),
            "test": (
                np.arange(50, 56),
                [0] * 3 + [1] * 3,
                [fair] * 3 + [[0.2, 0.6, 0.2]] * 2 + [[0.7, 0.2, 0.1]],
            ),
        }
    )
    held = {"train": np.zeros(40, dtype=bool), "test": np.ones(6, dtype=bool)}
    found = find_suspects(data, Scores(scores.probabilities, scores.digests, held))
    assert [one.name for one in found if "label" in one.reasons] == ["test[5]"]
    assert "label" not in find_suspects(data, scores)[0].reasons


def test_the_lower_a_labels_probability_the_earlier_it_comes_whatever_the_other_classes_are() -> None:
    rows = [[0.2, 0.75, 0.05], [0.15, 0.43, 0.42], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1]]
    data, scores = made({"train": (np.arange(4), [0, 0, 0, 1], rows)})
    assert [one.name for one in find_suspects(data, scores)] == [f"train[{at}]" for at in (1, 0, 3, 2)]
