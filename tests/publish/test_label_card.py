from __future__ import annotations

import pytest

from thumbnet.publish.hub import measures
from thumbnet.publish.label_card import results_table, what_it_does
from thumbnet.runs.folder import Run


def test_the_card_of_several_labels_says_map_and_how_to_read_predictions(label_run: Run) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")
    from thumbnet.publish.hub import model_card

    card = model_card(label_run, "owner/name")
    value = label_run.summary["map"]
    assert f"{100 * value:.2f} %" in card
    assert "any number of 3 labels" in card
    assert "[0].found" in card
    assert "one of these classes" not in card
    assert "type: mAP" in card


def test_the_table_has_as_many_cells_in_each_row(label_run: Run) -> None:
    lines = results_table(label_run.summary)
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 4  # with and without test-time augmentation
    assert len(measures(label_run.summary)) == 2
    assert len(measures({**label_run.summary, "tta": "none"})) == 1


def test_pictures_without_any_label_give_no_measures() -> None:
    summary = {"map": None, "split": "test", "tta": "none", "multilabel": True}
    assert measures(summary) == {}
    assert "nothing was measured" in results_table(summary)[0]
    assert what_it_does("32x32", 5).startswith("that gives small pictures (32x32 pixels)")
