"""The words for a prediction claim no more than its probability."""

from __future__ import annotations

import pytest

from thumbnet.classifiers.words import certainty, in_words


@pytest.mark.parametrize(
    ("probability", "band", "words"),
    [
        (1.0, "sure", "frog"),
        (0.95, "sure", "frog"),
        (0.9499, "probable", "probably frog, or else toad"),
        (0.75, "probable", "probably frog, or else toad"),
        (0.7499, "possible", "perhaps frog, or else toad"),
        (0.5, "possible", "perhaps frog, or else toad"),
        (0.4999, "unsure", "not sure: frog or toad"),
        (0.39, "unsure", "not sure: frog or toad"),
        (0.0, "unsure", "not sure: frog or toad"),
        (float("nan"), "unsure", "not sure: frog or toad"),
    ],
)
def test_the_words_follow_the_probability(probability: float, band: str, words: str) -> None:
    assert certainty(probability) == band
    assert in_words(["frog", "toad", "newt"], [probability, 0.0, 0.0]) == words


def test_a_picture_unlike_the_training_pictures_is_never_called_by_a_class_alone() -> None:
    words = in_words(["frog", "toad"], [0.999, 0.001], unlike=True)
    assert words == "unlike the training pictures; most like frog"


def test_a_network_of_one_class_has_no_runner_up() -> None:
    assert in_words(["frog"], [1.0]) == "frog"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (["red", "round", "old"], "red, probably round, perhaps old"),
        (["old"], "perhaps old"),
        ([], "none of the labels"),
    ],
)
def test_each_of_several_labels_gets_a_word_of_its_own_probability(found: list[str], words: str) -> None:
    assert in_words(["red", "round", "old", "new"], [0.97, 0.8, 0.3, 0.1], found=found) == words
