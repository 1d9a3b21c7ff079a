"""The options that say how data are read become settings, and settings these options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from thumbnet.cli import build_parser
from thumbnet.cli.options import READING, SHORTCUTS, data_settings, reading_words
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
    }
    settings = replace(DataSettings(), **changes)
    words = ["train", "DATA", *reading_words(settings, "down loads")]
    options = build_parser().parse_args(words)
    assert data_settings(options) == settings
    assert (options.data, options.data_dir) == ("DATA", "down loads")
    assert reading_words(DataSettings()) == []
    assert {SHORTCUTS[name] for name in READING} == {
        f"data.{name}" for name in changes if name != "split_seed"
    }
