"""What all classifiers do, no matter how they compute logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import write_picture
from sorting_helpers import unlike_above
from thumbnet.classifiers.base import Classifier, Prediction
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.errors import DataError, ThumbnetError, UnreadableImageError, UnreadableImagesError
from thumbnet.evaluation import log_softmax
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.sources.load import load_data

NAMES = ("dark", "middle", "bright")


class Brightness(Classifier):
    """Classifies the brightness of a picture's left half, so a mirrored picture may get another class."""

    def __init__(self, tta: str = "none") -> None:
        pre = Preprocessing((8, 8), "squash", (0.5,) * 3, (0.5,) * 3)
        super().__init__(WeightsInfo(ModelSettings(), NAMES, pre, "fp32", "", "", tta=tta))
        self.batches: list[int] = []

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        level = pixels[:, :, :4].mean(axis=(1, 2, 3), keepdims=True)[:, :, 0, 0] / 255
        logits: np.ndarray = 5 - 20 * np.abs(level - np.array([[0.0, 0.5, 1.0]]))
        return logits.astype(np.float32)


def grey(*levels: int) -> np.ndarray:
    return np.stack([np.full((8, 8, 3), level, dtype=np.uint8) for level in levels])


def halves(left: int, right: int) -> np.ndarray:
    return np.concatenate([np.full((8, 4, 3), left), np.full((8, 4, 3), right)], axis=1).astype(np.uint8)


def split_of(levels: list[int], labels: list[int]) -> Split:
    return ArraySplit(grey(*levels), np.array(labels), "s")


def test_predictions_are_the_ranked_probabilities_of_the_logits() -> None:
    classifier = Brightness()
    for found, level in zip(classifier.predict(grey(0, 130, 250)), (0, 130, 250), strict=True):
        probabilities = np.exp(log_softmax(classifier.logits(grey(level))))[0]
        order = np.argsort(-probabilities)
        assert found.labels == tuple(NAMES[i] for i in order)
        assert found.probabilities == pytest.approx(probabilities[order])
        assert (found.label, found.probability) == (found.labels[0], found.probabilities[0])


def test_classes_with_equal_probabilities_keep_the_order_of_the_names() -> None:
    class Undecided(Brightness):
        def _forward(self, pixels: np.ndarray) -> np.ndarray:
            return np.zeros((len(pixels), 3), dtype=np.float32)

    (found,) = Undecided().predict(grey(9))
    assert found == Prediction(NAMES, pytest.approx((1 / 3,) * 3))  # type: ignore[arg-type]


def test_many_pictures_are_classified_in_batches() -> None:
    classifier = Brightness()
    assert len(classifier.predict(list(grey(*range(0, 250, 25))), batch_size=4)) == 10
    assert classifier.batches == [4, 4, 2]
    assert classifier.predict([]) == []


def test_the_default_is_the_networks_own_test_time_augmentation() -> None:
    picture = halves(0, 255)[None]
    mirrored = Brightness("mirror")
    mean = (mirrored.logits(picture, tta="none") + mirrored.logits(picture[:, :, ::-1], tta="none")) / 2
    assert np.allclose(mirrored.logits(picture), mean)
    assert np.array_equal(Brightness().logits(picture), mirrored.logits(picture, tta="none"))
    assert not np.allclose(mean, mirrored.logits(picture, tta="none"))


def test_a_split_is_classified_in_batches_and_reports_progress() -> None:
    classifier, seen = Brightness("mirror"), list[tuple[int, int]]()
    split = split_of([0, 120, 255, 10, 240], [0, 1, 2, 0, 2])
    found = classifier.classify_split(
        split, NAMES, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert (found.tta, found.split) == ("mirror", split)
    assert np.allclose(found.logits, found.plain)  # grey pictures are their own mirror images
    assert found.logits.argmax(axis=1).tolist() == found.labels.tolist() == [0, 1, 2, 0, 2]


def test_an_evaluation_allows_for_the_groups_of_the_pictures_that_could_be_read(tmp_path: Path) -> None:
    data = pictures_with_bad_ones(tmp_path)
    split = data.splits["train"]
    names = [split.name(i) for i in range(len(split))]
    readable = sum("bad" not in name for name in names)
    groups = {"train": np.array([name.rpartition("/")[0] for name in names], dtype=object)}
    plain, grouped = (
        Brightness().evaluate(one, "train", on_bad_image="skip")
        for one in (data, replace(data, groups=groups))
    )
    assert (plain.pictures, plain.groups) == (readable, None)
    assert (grouped.pictures, grouped.groups) == (readable, 3)
    assert grouped.accuracy == plain.accuracy == 1
    assert grouped.interval[0] < plain.interval[0]


def test_labels_are_matched_by_class_name() -> None:
    found = Brightness().classify_split(split_of([255, 0], [0, 1]), ("bright", "dark"))
    assert found.labels.tolist() == [2, 0]
    with pytest.raises(DataError, match="does not know: mauve. It knows dark, middle, bright"):
        Brightness().classify_split(split_of([0], [0]), ("dark", "mauve"))


def test_a_split_without_pictures_is_an_error() -> None:
    with pytest.raises(DataError, match="no pictures"):
        Brightness().classify_split(split_of([0], [0]).subset(np.array([], dtype=np.int64)), NAMES)


def pictures_with_bad_ones(root: Path) -> Data:
    for name, level in zip(NAMES, (0, 128, 255), strict=True):
        for number in range(3):
            write_picture(root / "train" / name / f"{number}.png", grey(level)[0])
    for name in ("bright", "dark"):
        (root / "train" / name / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    return load_data(root)


def test_unreadable_pictures_are_all_listed_or_skipped(tmp_path: Path) -> None:
    data = pictures_with_bad_ones(tmp_path)
    split = data.splits["train"]
    with pytest.raises(UnreadableImagesError) as caught:
        Brightness().classify_split(split, data.class_names, batch_size=2)
    assert str(caught.value).count("bad.png") == 2
    bad = {i for i in range(len(split)) if "bad" in split.name(i)}
    for batch_size in (1, 2, 500):  # a batch of 1 may contain nothing but an unreadable picture
        found = Brightness().classify_split(
            split, data.class_names, on_bad_image="skip", batch_size=batch_size
        )
        kept = [i for i in range(len(split)) if i not in bad]
        assert [found.split.name(i) for i in range(len(found.split))] == [split.name(i) for i in kept]
        assert found.logits.argmax(axis=1).tolist() == found.labels.tolist()


def test_evaluate_accepts_data_in_memory_and_chooses_the_split_to_measure() -> None:
    labels = np.array([0, 1, 2, 1])
    images = grey(0, 128, 255, 255)
    assert Brightness().evaluate((images, labels)).accuracy == 0.75
    good, bad = split_of([0, 255], [0, 2]), split_of([0, 255], [2, 0])
    data = Data("x", "x", NAMES, {"train": bad, "val": bad, "test": good})
    assert Brightness().evaluate(data).accuracy == 1
    assert Brightness().evaluate(data, "val").accuracy == 0


def test_a_picture_and_a_sequence_of_one_picture_give_the_same(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "x.png", halves(0, 255))
    classifier = Brightness()
    for picture in (path, str(path), Image.fromarray(halves(0, 255)), halves(0, 255)):
        assert classifier.predict(picture) == classifier.predict([picture])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": -1}, "batch_size: expected a whole number from 1, got -1"),
        ({"batch_size": 0}, "batch_size: .* got 0"),
        ({"batch_size": 2.5}, r"batch_size: .* got 2\.5"),
        ({"tta": "bogus"}, "tta: expected one of none, mirror, .* got 'bogus'"),
        ({"on_bad_image": "bogus"}, "on_bad_image: expected stop or skip, got 'bogus'"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ThumbnetError, match=words):
        Brightness().evaluate((grey(0, 255), np.array([0, 2])), **arguments)
    if "on_bad_image" not in arguments:
        with pytest.raises(ThumbnetError, match=words):
            Brightness().predict([], **arguments)


def test_a_prediction_tells_whether_the_picture_is_unlike_the_training_pictures() -> None:
    classifier = Brightness()
    (plain,) = classifier.predict(grey(0))
    assert (plain.unlike, plain.unlikeness) == (None, None)  # weights of an older version
    logits = classifier.logits(grey(0, 64))
    energies = -np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    middle = float(energies.mean())
    classifier.info = replace(classifier.info, unlike=unlike_above(middle))
    found = classifier.predict(grey(0, 64))
    assert [one.unlike for one in found] == [False, True]
    assert [one.unlikeness for one in found] == pytest.approx(energies - middle + 1)


def test_the_score_does_not_depend_on_the_temperature() -> None:
    pictures = grey(0, 64, 200)
    cold = Brightness()
    cold.info = replace(cold.info, unlike=unlike_above(0.0))

    class Warm(Brightness):
        def _forward(self, pixels: np.ndarray) -> np.ndarray:
            return super()._forward(pixels) / np.float32(2)

    warm = Warm()
    warm.info = replace(cold.info, temperature=2.0)
    ours, theirs = cold.predict(pictures), warm.predict(pictures)
    assert [one.unlikeness for one in theirs] == pytest.approx([one.unlikeness for one in ours], rel=1e-5)
    assert [one.probability for one in theirs] != [one.probability for one in ours]


def grey_files(folder: Path, *levels: int) -> list[Path]:
    return [write_picture(folder / f"{n}.png", grey(level)[0]) for n, level in enumerate(levels)]


def test_the_first_picture_that_cannot_be_read_stops_predict(tmp_path: Path) -> None:
    paths = grey_files(tmp_path, *range(0, 250, 25))
    for bad in (tmp_path / "bad-1.png", tmp_path / "bad-2.png"):
        bad.write_bytes(b"no picture")
    given = [*paths[:5], tmp_path / "bad-1.png", tmp_path / "bad-2.png", *paths[5:]]
    with pytest.raises(UnreadableImageError, match="bad-1"):
        Brightness().predict(given, batch_size=3)


def test_only_two_batches_of_paths_are_read_before_the_first_is_classified(tmp_path: Path) -> None:
    paths, taken, when = grey_files(tmp_path, *[0] * 9), list[Path](), list[int]()

    class Counting(Brightness):
        def _forward(self, pixels: np.ndarray) -> np.ndarray:
            when.append(len(taken))
            return super()._forward(pixels)

    def names() -> Iterator[Path]:
        for path in paths:
            taken.append(path)
            yield path

    assert len(Counting().predict(names(), batch_size=2)) == 9
    assert when == [4, 6, 8, 9, 9]


def test_paths_and_pictures_may_be_mixed(tmp_path: Path) -> None:
    (path,) = grey_files(tmp_path, 0)
    image = Image.open(path)  # decoded at its first use, here twice
    given: list[Any] = [path, grey(250)[0], image, str(path), image, grey(130)[0]]
    labels = [one.label for one in Brightness().predict(given, batch_size=4)]
    assert labels == ["dark", "bright", "dark", "dark", "dark", "middle"]


def test_files_are_answered_one_by_one_with_their_paths(tmp_path: Path) -> None:
    paths = grey_files(tmp_path / "in", 0, 130, 250)
    bad = tmp_path / "in" / "deep" / "bad.png"
    bad.parent.mkdir()
    bad.write_bytes(b"no picture")
    expected = dict(zip(map(str, paths), NAMES, strict=True))
    forms: list[Any] = [tmp_path / "in", str(tmp_path / "in"), [tmp_path / "in"], iter([bad, *paths])]
    for given, batch_size in zip(forms, (1, 2, 3, 256), strict=True):
        found = dict(Brightness().predict_files(given, batch_size=batch_size))
        assert isinstance(found.pop(str(bad)), UnreadableImageError)
        labels = {path: one.label for path, one in found.items() if isinstance(one, Prediction)}
        assert labels == expected
    assert list(dict(Brightness().predict_files(reversed(paths)))) == [str(path) for path in reversed(paths)]


def test_files_that_need_a_plug_in_are_told(tmp_path: Path) -> None:
    grey_files(tmp_path, 0)
    (tmp_path / "new.psd").write_bytes(b"x")
    told: list[str] = []
    assert len(list(Brightness().predict_files(tmp_path, tell=told.append))) == 1
    assert len(told) == 1
    with pytest.warns(UserWarning, match="Photoshop"):
        list(Brightness().predict_files(tmp_path))


def test_arguments_of_predict_files_are_checked_at_once() -> None:
    with pytest.raises(ThumbnetError, match="batch_size"):
        Brightness().predict_files([], batch_size=0)
    with pytest.raises(ThumbnetError, match="tta"):
        Brightness().predict_files([], tta="bogus")
