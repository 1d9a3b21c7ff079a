"""The options that say how data are read become settings, and settings these options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from thumbnet.cli import build_parser
from thumbnet.cli.options import (
    READING_OF_RUN,
    data_settings,
    reading_words,
    resuming_words,
)
from thumbnet.recipes.settings import READ_BY, DataSettings


def test_the_options_for_reading_data_give_the_settings_again() -> None:
    changes: dict[str, Any] = {
        "val_fraction": 0.1,
        "test_fraction": 0.0,
        "group_by": r"-(\d+) '\"$x",
        "classes_from": "2",
        "label_pattern": "^=(.)",
        "images": "-a b",
        "path_column": "file",
        "label_column": "ü",
        "on_bad_image": "skip",
        "split_seed": 7,
        "folds": 5,
        "fold": 2,
        "multilabel": False,
    }
    settings = replace(DataSettings(), **changes)
    words = ["train", "DATA", *reading_words(settings, "down loads")]
    options = build_parser().parse_args(words)
    assert data_settings(options) == settings
    assert (options.data, options.data_dir) == ("DATA", "down loads")
    assert settings.given(*READ_BY) == list(READ_BY)  # all of them
    assert reading_words(DataSettings()) == []


def test_options_give_what_they_can_and_set_gives_the_rest() -> None:
    settings = DataSettings(val_fraction=0.25, split_seed=3, multilabel=True)
    words = ["--val-fraction=0.25", "--set=data.split_seed=3", "--set=data.multilabel=true"]
    assert reading_words(settings) == words


def test_a_run_takes_the_settings_that_find_labels_and_pictures_but_not_those_that_split_the_data() -> None:
    split_by = {"val_fraction", "test_fraction", "group_by", "split_seed", "folds", "fold"}
    assert set(READ_BY) - set(READING_OF_RUN) == split_by
    assert set(READING_OF_RUN) <= set(READ_BY)


def test_what_a_folder_does_not_record_is_repeated_to_resume_it() -> None:
    def words(*given: str) -> list[str]:
        return resuming_words(build_parser().parse_args(given))

    assert words("train", "DATA") == words("tune", "DATA", "--device", "auto") == []
    assert words("tune", "DATA", "--device", "cuda:1") == ["--device", "cuda:1"]
    folder = ["--data-dir", "d"]
    assert words("train", "DATA", *folder) == words("tune", "DATA", *folder) == []  # recorded
    for begun in (["train", "--resume", "x"], ["tune", "--resume", "x"], ["train", "x", "--auto-resume"]):
        assert words(*begun, *folder) == folder
    given = ["--track", "wandb", "--track", "tensorboard", "--tensorboard"]
    assert words("train", "DATA", *given) == ["--track", "wandb", "--track", "tensorboard"]
