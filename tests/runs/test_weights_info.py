"""The description that is stored with weights."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sorting_helpers import unlike_above
from thumbnet.data.rendering import Preprocessing
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.certainty import Threshold, Thresholds
from thumbnet.runs.weights_info import WeightsInfo


def info(**changes: Any) -> WeightsInfo:
    pre = Preprocessing((32, 48), "crop", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), **changes)
    return WeightsInfo(ModelSettings(), ("a", "b"), pre, "fp32", "somewhere", "abc")


@pytest.mark.parametrize(
    "changes", [{}, {"range": (515.0, 765.0)}, {"range": (-1.0, 1.0), "background": (0, 0, 0)}]
)
def test_range_and_background_are_stored_with_the_weights(changes: dict[str, Any]) -> None:
    before = info(**changes)
    assert WeightsInfo.from_json(before.to_json()) == before


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/home/me/cats", "cats"),
        ("data/cats.zip", "cats.zip"),
        ("digits", "digits"),
        ("hf:owner/cats", "hf:owner/cats"),
    ],
)
def test_the_name_of_the_data_tells_no_local_folder(source: str, name: str) -> None:
    assert WeightsInfo.from_json(replace(info(), source=source).to_json()).source == name


def test_a_description_without_range_and_background_means_the_types_range_and_white() -> None:
    values = json.loads(info().to_json())
    del values["preprocessing"]["range"], values["preprocessing"]["background"]
    pre = WeightsInfo.from_json(json.dumps(values)).preprocessing
    assert (pre.range, pre.background) == (None, (255, 255, 255))


def test_a_description_of_several_labels_is_stored_and_one_of_one_class_is_as_it_was() -> None:
    plain = info()
    assert not {"multilabel", "label_thresholds"} & json.loads(plain.to_json()).keys()
    several = replace(plain, multilabel=True, label_thresholds=(0.25, 0.5))
    assert WeightsInfo.from_json(several.to_json()) == several


def test_what_only_a_network_of_timm_has_is_stored_only_with_one() -> None:
    assert json.loads(info().to_json())["model"] == {"name": "resnet18", "width": 1.0}
    timm = replace(info(), model=ModelSettings("timm:resnet18", pretrained=True, stem="small"))
    assert WeightsInfo.from_json(timm.to_json()) == timm


@pytest.mark.parametrize(
    "changes",
    [
        {"multilabel": 1},
        {"label_thresholds": [0.5, 0.5]},
        {"multilabel": True, "label_thresholds": [0.5]},
        {"multilabel": True, "label_thresholds": [0.5, 1.5]},
        {"multilabel": True, "label_thresholds": [0.5, float("nan")]},
        {"multilabel": True, "label_thresholds": [0.5, "x"]},
        {"multilabel": True, "label_thresholds": 3},
    ],
)
def test_invalid_labels_in_a_description_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        WeightsInfo.from_json(json.dumps({**json.loads(info().to_json()), **changes}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("range", [1]), ("range", [2, 1]), ("range", [0, float("inf")]), ("range", ["a", "b"]), ("range", 3),
        ("background", [1, 2]), ("background", [0, 0, 256]), ("background", [-1, 0, 0]), ("background", "white"),
    ],
)  # fmt: skip
def test_an_invalid_range_or_background_is_refused(key: str, value: Any) -> None:
    values = json.loads(info().to_json())
    values["preprocessing"][key] = value
    with pytest.raises((ValueError, TypeError)):
        WeightsInfo.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", 0.0), ("temperature", -0.5), ("temperature", float("inf")), ("temperature", True),
        ("temperature", "1"), ("tta", "all"), ("format", 0), ("format", 2),
    ],
)  # fmt: skip
def test_an_invalid_description_is_refused(key: str, value: Any) -> None:
    values = {**json.loads(info().to_json()), key: value}
    with pytest.raises((ValueError, TypeError)):
        WeightsInfo.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("key", "value"), [("fit", "stretch"), ("mean", [0.5]), ("std", [0.5, 0.5]), ("range", [3, 3])]
)
def test_each_invalid_part_of_the_preprocessing_is_refused_by_itself(key: str, value: Any) -> None:
    values = json.loads(info().to_json())
    values["preprocessing"][key] = value
    with pytest.raises(ValueError):
        WeightsInfo.from_json(json.dumps(values))


def test_a_description_is_the_same_text_whatever_the_order_of_its_keys() -> None:
    """Its digest names the weights, so it must not depend on the order of a dictionary."""
    text = info().to_json()
    assert json.loads(text)["temperature"] == 1.0
    shuffled = json.dumps(dict(reversed(json.loads(text).items())))
    assert WeightsInfo.from_json(shuffled).to_json() == text
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_a_description_without_accuracy_and_run_says_that_they_are_not_known() -> None:
    values = json.loads(info().to_json())
    for key in ("accuracy", "accuracy_split", "accuracy_pictures", "run", "exported"):
        del values[key]
    found = WeightsInfo.from_json(json.dumps(values))
    assert found == info()
    assert (found.accuracy, found.accuracy_pictures, found.run) == (None, None, "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accuracy", 1.1), ("accuracy", -0.1), ("accuracy", float("nan")), ("accuracy", "0.9"), ("accuracy", True),
        ("accuracy_pictures", 0), ("accuracy_pictures", 1.5), ("accuracy_pictures", True), ("run", 3),
        ("accuracy_split", None), ("exported", []), ("fingerprint", 1), ("thumbnet", None),
    ],
)  # fmt: skip
def test_an_invalid_accuracy_or_name_is_refused(key: str, value: Any) -> None:
    values = {**json.loads(info().to_json()), key: value}
    with pytest.raises(ValueError):
        WeightsInfo.from_json(json.dumps(values))


def test_thresholds_and_the_score_for_unlike_pictures_are_stored_with_the_weights() -> None:
    table = Thresholds("val", 500, 0.97, (Threshold(0.9, 0.5, 400, 370),))
    before = replace(info(), thresholds=table, unlike=unlike_above(-1.5))
    assert WeightsInfo.from_json(before.to_json()) == before


def test_a_description_of_an_older_version_has_no_thresholds() -> None:
    values = json.loads(info().to_json())
    del values["thresholds"], values["unlike"]
    found = WeightsInfo.from_json(json.dumps(values))
    assert (found.thresholds, found.unlike) == (None, None)
    for key, value in {"thresholds": [1], "unlike": {"score": "energy"}}.items():
        with pytest.raises((ValueError, KeyError, TypeError)):
            WeightsInfo.from_json(json.dumps({**values, key: value}))


ESCAPES = "\x1b]0;PWNED\x07\x1b[2J"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"preprocessing.size": [side, 32]}, "size") for side in (0, -1, 1, 15, 1025, 200_000, 32.0, True)),
        ({"preprocessing.size": [float("inf"), 32]}, "16 to 1,024"), ({"preprocessing.size": 32}, "a list of 2"),
        *(({"preprocessing.mean": [value] * 3}, "0 to 1") for value in (float("nan"), 1e400, -1, 2, "0", 10**400)),
        *(({"preprocessing.std": [value] * 3}, "std") for value in (0, float("nan"), float("inf"), -1, None)),
        ({"preprocessing": [1, 2]}, "a JSON object"), ({"preprocessing": None}, "a JSON object"),
        ({"preprocessing.fit": []}, "fit"), ({"preprocessing.background": [0.5, 0, 0]}, "0 to 255"),
        ({"model": None}, "model is None: expected a JSON object"), ({"model": {"name": 3}}, "expected text"),
        ({"model": {"width": "1"}}, "a finite number"), ({"model": {"depth": 2}}, "unknown entry 'depth'"),
        ({"class_names": ["a", "a"]}, "same name, 'a'"), ({"class_names": "ab"}, "a list"), ({"class_names": []}, "empty"),
        ({"class_names": [None, 1]}, "class name is None"), ({"class_names": ["a", "b\n"]}, "control characters"),
        ({"class_names": ["a", ESCAPES]}, "control characters"), ({"class_names": ["a", "\ud800"]}, "control characters"),
        ({"class_names": ["cat", "c\u200dat"]}, "control characters"), ({"class_names": ["a\u202e"]}, "control characters"),
        ({"precision": ESCAPES}, "precision"), ({"source": ["x"]}, "source"), ({ESCAPES: 1}, "unknown entry"),
        ({"thresholds": [1]}, "a JSON object"), ({"thresholds": {"table": []}}, "lacks the entry 'split'"),
        ({"unlike": 3}, "a JSON object"), ({"label_thresholds": {"a": 1}}, "a list"),
        ({"accuracy_pictures": 10**4000}, "accuracy_pictures"),
    ],
)  # fmt: skip
def test_a_wrong_entry_of_a_description_is_named_in_our_words(changes: dict[str, Any], message: str) -> None:
    values = json.loads(info().to_json())
    for key, value in changes.items():
        place, _, inner = key.rpartition(".")
        (values[place] if place else values)[inner] = value
    with pytest.raises(ValueError) as caught:
        WeightsInfo.from_json(json.dumps(values))
    text = str(caught.value)
    assert message in text
    assert "\x1b" not in text
    assert not any(words in text for words in ("argument", "object is not", "not supported", "indices"))


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "{}", "[" * 100_000, '{"format": 1e999}'])
def test_json_of_another_kind_is_no_description(content: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        WeightsInfo.from_json(content)


def test_the_groups_of_thresholds_are_stored_only_if_there_are_any() -> None:
    known = Thresholds("val", 500, 0.97, (Threshold(0.9, 0.5, 400, 370),))
    plain = replace(info(), thresholds=known)
    assert "groups" not in json.loads(plain.to_json())["thresholds"]
    grouped = replace(info(), thresholds=replace(known, groups=40))
    for one in (plain, grouped):
        assert WeightsInfo.from_json(one.to_json()) == one


@pytest.mark.parametrize(
    "name", ["\u0633\u06af\u200c\u0647\u0627", "\U0001f469\u200d\U0001f52c", "\u72ac\u3000\u5927"]
)
def test_names_of_classes_may_have_joiners_and_spaces_of_their_script(name: str) -> None:
    values = json.loads(info().to_json())
    names = (name, *values["class_names"][1:])
    assert WeightsInfo.from_json(json.dumps({**values, "class_names": names})).class_names == names
