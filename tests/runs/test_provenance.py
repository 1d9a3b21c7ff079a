"""A network's description names its run and its accuracy as far as they are known."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.runs.folder import Run
from thumbnet.runs.provenance import batch_size_of, recipe_of, run_folder, with_provenance
from thumbnet.runs.weights import read_weights
from thumbnet.runs.weights_info import WeightsInfo


@pytest.fixture
def info(tiny_run: Run) -> WeightsInfo:
    return read_weights(tiny_run.weights_path)[1]


def test_weights_carry_the_accuracy_and_its_split_but_not_the_name_of_the_run(
    tiny_run: Run, info: WeightsInfo
) -> None:
    assert info.accuracy == tiny_run.summary["accuracy"]
    assert (info.accuracy_split, info.accuracy_pictures, info.run, info.exported) == ("test", 60, "", "")


def test_a_run_is_named_by_its_folder_alone(
    tiny_run: Run, info: WeightsInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (tiny_run.path, tiny_run.weights_path):
        assert with_provenance(info, place) == replace(info, run=tiny_run.path.name)
    monkeypatch.chdir(tiny_run.path)
    for place in (Path("."), Path("model.safetensors")):
        assert with_provenance(info, place).run == tiny_run.path.name


def test_a_file_outside_a_run_has_no_name_and_one_on_the_hub_has_its_address(
    tiny_run: Run, info: WeightsInfo, tmp_path: Path
) -> None:
    alone = Path(shutil.copy(tiny_run.weights_path, tmp_path))
    assert run_folder(alone) is run_folder("hf:me/cats") is None
    assert with_provenance(info, alone) == info
    assert with_provenance(info, "hf:me/cats@v1").run == "hf:me/cats@v1"
    assert with_provenance(replace(info, run="cats"), "hf:me/cats").run == "cats"


def test_the_recipe_is_that_of_the_runs_folder_and_otherwise_the_default(
    small_batches: Run, tmp_path: Path
) -> None:
    for place in (small_batches.path, small_batches.weights_path, str(small_batches.path)):
        assert recipe_of(place) == small_batches.recipe
    (small_batches.path / "model.int8.onnx").touch()
    assert recipe_of(small_batches.path / "model.int8.onnx") == small_batches.recipe
    (tmp_path / "alone.onnx").touch()
    assert recipe_of(tmp_path / "alone.onnx") == Recipe()
    alone = Path(shutil.copy(small_batches.weights_path, tmp_path))
    for place in (alone, "hf:me/cats", tmp_path / "nothing.onnx"):
        assert recipe_of(place) == Recipe()


@pytest.mark.parametrize(
    ("summary", "accuracy", "split"),
    [
        ('{"accuracy": 0.5, "split": "val"}', 0.5, "val"),
        ('{"accuracy": null, "split": null}', None, ""),
        ('{"accuracy": 7, "split": "val"}', None, ""),
        ('{"accuracy": "high", "split": "val"}', None, ""),
        ('{"accuracy": 0.5, "split": 3}', None, ""),
        ("[]", None, ""),
        ("{", None, ""),
        (None, None, ""),
    ],
)
def test_the_accuracy_of_weights_of_an_older_version_comes_from_the_summary(
    info: WeightsInfo, tmp_path: Path, summary: str | None, accuracy: float | None, split: str
) -> None:
    older = replace(info, accuracy=None, accuracy_split="", accuracy_pictures=None)
    for name, text in (("recipe.toml", ""), ("run.json", "{}"), ("summary.json", summary)):
        if text is not None:
            (tmp_path / name).write_text(text)
    found = with_provenance(older, tmp_path)
    assert (found.accuracy, found.accuracy_split, found.accuracy_pictures) == (accuracy, split, None)
    assert found.run == tmp_path.name


def test_a_name_that_is_not_utf_8_can_be_written_as_json(info: WeightsInfo, tmp_path: Path) -> None:
    folder = Path(str(tmp_path / "caf\udce9"))
    try:
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system has only UTF-8 names")
    for name in ("recipe.toml", "run.json"):
        (folder / name).write_text("{}")
    assert json.dumps(with_provenance(info, folder).run, ensure_ascii=False).encode() == b'"caf\\\\udce9"'


@pytest.mark.parametrize(("trained", "used"), [(7, 7), (2000, 500)])
def test_a_network_is_used_in_batches_of_the_usual_size_or_of_the_runs_smaller_one(
    trained: int, used: int
) -> None:
    assert batch_size_of(load_recipe("small", [f"evaluation.batch_size={trained}"])) == used
