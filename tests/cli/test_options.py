"""The options that say how data are read become settings, and settings these options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from thumbnet.cli import build_parser
from thumbnet.cli.options import (
    READING,
    READING_OF_RUN,
    SHORTCUTS,
    data_settings,
    reading_words,
    resuming_words,
)
from thumbnet.recipes.settings import DataSettings


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
    }
    settings = replace(DataSettings(), **changes)
    words = ["train", "DATA", *reading_words(settings, "down loads")]
    options = build_parser().parse_args(words)
    assert data_settings(options) == settings
    assert (options.data, options.data_dir) == ("DATA", "down loads")
    assert reading_words(DataSettings()) == []
    assert {SHORTCUTS[name] for name in READING} == {
        f"data.{name}" for name in changes if name not in ("split_seed", "folds", "fold")
    }


def test_a_run_takes_the_settings_that_find_labels_and_pictures_but_not_those_that_split_the_data() -> None:
    assert {"multilabel"} == set(READING_OF_RUN) - set(READING)
    assert set(READING) - set(READING_OF_RUN) == {"val_fraction", "test_fraction", "group_by"}


def test_what_a_folder_does_not_record_is_repeated_to_resume_it() -> None:
    def words(*given: str) -> list[str]:
        return resuming_words(build_parser().parse_args(given))

    assert words("train", "DATA") == words("tune", "DATA", "--device", "auto") == []
    assert words("tune", "DATA", "--device", "cuda:1") == ["--device", "cuda:1"]
    given = ["--track", "wandb", "--track", "tensorboard", "--tensorboard"]
    assert words("train", "DATA", *given) == ["--track", "wandb", "--track", "tensorboard"]
