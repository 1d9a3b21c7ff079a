"""The data that a network is used on from Python. `tests/cli/test_run_data.py` tests the same by commands."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import TINY, coloured_data, write_class_folders
from thumbnet.classifiers.load import load_classifier
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, DataWarning, UnreadableImagesError
from thumbnet.publish.export import export
from thumbnet.recipes.settings import DataSettings
from thumbnet.runs.data import (
    Wanted,
    data_to_measure,
    load_wanted,
    open_run,
    settings_for,
    source_name,
    split_otherwise,
)
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.sources.load import load_data
from thumbnet.training.train import train


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("own"), [""], per_class=20)


@pytest.fixture(scope="module")
def run(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that split its data by other settings than the default ones."""
    out = tmp_path_factory.mktemp("run") / "run"
    settings = [*TINY, "training.epochs=1", "data.split_seed=3", "data.test_fraction=0.3"]
    return train(own, "one-cycle", overrides=settings, out=out, device="cpu")


def test_evaluate_reads_the_runs_own_data_as_in_the_training(run: Run, own: Path) -> None:
    classifier = load_classifier(run.path, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        for name in (own, str(own), f"{own}/"):
            found = classifier.evaluate(name)
            assert (found.pictures, found.accuracy) == (18, run.summary["accuracy"])
        assert classifier.evaluate(str(own), "train").pictures == 42


def test_evaluate_reads_other_data_whole_or_by_their_own_splits(run: Run, tmp_path: Path) -> None:
    classifier = load_classifier(run.path, "cpu")
    other = write_class_folders(tmp_path / "other", [""], per_class=7)
    assert classifier.evaluate(other).pictures == 21
    split = write_class_folders(tmp_path / "split", ["train", "test"], per_class=5)
    assert classifier.evaluate(split).pictures == 15
    with pytest.raises(DataError, match="there is no data set, folder or archive"):
        classifier.evaluate(str(tmp_path / "nothing"))


def test_nothing_is_said_about_dividing_data_that_are_not_divided(run: Run, tmp_path: Path) -> None:
    write_class_folders(tmp_path, [""], per_class=6)
    names = [f"{colour}/{number}.png" for colour in ("red", "green", "blue") for number in range(6)]
    rows = [f"{name},{name.partition('/')[0]},p{at // 3}" for at, name in enumerate(names)]
    (tmp_path / "all.csv").write_text("path,label,patient_id\n" + "\n".join(rows))
    assert any("--group-by patient_id" in text for text in load_data(tmp_path / "all.csv").notes)
    told: list[str] = []
    data = load_wanted(Wanted(str(tmp_path / "all.csv"), DataSettings(), run, tell=told.append))
    assert len(data.splits["all"]) == 18
    assert not any("--group-by" in text for text in (*told, *data.notes))


def test_evaluate_warns_if_the_data_have_changed(run: Run, own: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(own, tmp_path / "own"))
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    (copy.path / "run.json").write_text(json.dumps({**run.settings, "data": str(changed)}))
    (changed / load_data(own, settings=run.recipe.data).splits["test"].name(0)).unlink()
    classifier = load_classifier(copy.path, "cpu")
    with pytest.warns(
        DataWarning, match=r"^the data in .* have changed since .* set aside as test"
    ) as caught:
        classifier.evaluate(changed)
    told = [Path(one.filename).name for one in caught if one.category is DataWarning]
    assert told == [Path(__file__).name], "a warning names the line that called evaluate"


def test_evaluate_warns_of_data_that_were_loaded_in_another_way(run: Run, own: Path) -> None:
    classifier = load_classifier(run.path, "cpu")
    with pytest.warns(
        DataWarning, match=rf"^the data in {own} have changed .* or were loaded in another way, .* of test"
    ):
        classifier.evaluate(load_data(own))
    with pytest.warns(DataWarning, match=r"pictures of train\."):
        classifier.evaluate(load_data(own, test_fraction=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        same = load_data(own, settings=run.recipe.data)
        assert classifier.evaluate(same).accuracy == run.summary["accuracy"]
        classifier.evaluate(coloured_data())


def test_the_pictures_of_a_split_count_not_those_of_the_others(run: Run, own: Path) -> None:
    asked = run.recipe.data
    assert not split_otherwise(load_data(own, settings=asked, val_fraction=0.1), run, "test")
    assert split_otherwise(load_data(own, settings=asked, val_fraction=0.1), run, "val")
    assert split_otherwise(load_data(own, split_seed=4), run, "test")


def test_the_weights_in_a_runs_folder_split_the_data_as_the_run(run: Run, own: Path, tmp_path: Path) -> None:
    assert load_classifier(run.weights_path, "cpu").evaluate(own).accuracy == run.summary["accuracy"]
    alone = Path(shutil.copy(run.weights_path, tmp_path / "model.safetensors"))
    with pytest.warns(DataWarning, match=f"trained on data of the same name, {own.name}"):
        assert load_classifier(alone, "cpu").evaluate(own).pictures == 60  # nothing says how they were split


def test_an_export_in_a_runs_folder_splits_the_data_as_the_run(
    run: Run, own: Path, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    def described(_: object, __: object, info: WeightsInfo, **options: object) -> onnx.ModelProto:
        """Another network for the same pictures and number of classes, which is exported already."""
        model = onnx.load(onnx_file)
        model.metadata_props[0].value = info.to_json()
        return model

    monkeypatch.setattr("thumbnet.publish.export._onnx_model", described)
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    export(copy, "onnx", copy / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        assert load_classifier(copy / "model.onnx").evaluate(own).pictures == 18
    alone = Path(shutil.copy(copy / "model.onnx", tmp_path))
    with pytest.warns(DataWarning, match=f"trained on data of the same name, {own.name}"):
        assert load_classifier(alone).evaluate(own).pictures == 60


def test_a_network_of_several_labels_reads_a_table_as_one_of_several_labels(run: Run, label_run: Run) -> None:
    one, several = (read_weights(trained.weights_path)[1] for trained in (run, label_run))
    for network, asked in (("", DataSettings()), ("hf:me/cats", DataSettings()), (run.path, run.recipe.data)):
        assert settings_for(str(network), one) == asked
        assert settings_for(str(network), several) == replace(asked, multilabel=True)


def test_a_network_that_was_trained_on_all_of_the_data_warns(run: Run, own: Path) -> None:
    _, info = read_weights(run.weights_path)
    told: list[str] = []
    whole = replace(info, fingerprint=load_data(own, test_fraction=0).fingerprint())
    assert len(data_to_measure(own, "", whole, None, told.append).splits["all"]) == 60
    assert told[-1] == "warning: the network was trained on these pictures"


def test_what_is_no_runs_folder_is_no_run(run: Run, tmp_path: Path) -> None:
    opened = open_run(str(run.path))
    assert opened is not None
    assert opened.path == run.path
    assert [open_run(name) for name in ("", "hf:someone/cats", str(run.weights_path), str(tmp_path))] == [
        None
    ] * 4


def test_by_itself_nothing_is_told(own: Path) -> None:
    assert set(load_wanted(Wanted(str(own), DataSettings())).splits) == {"train", "all"}


def test_pictures_that_cannot_be_read_are_skipped_if_the_data_were_loaded_so(
    run: Run, own: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(own, tmp_path / "own"))
    skipping = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    skipping.write_recipe(run.recipe.override(["data.on_bad_image=skip"]))
    (skipping.path / "run.json").write_text(json.dumps({**run.settings, "data": str(changed)}))
    data = load_data(changed, settings=skipping.recipe.data)
    (changed / data.splits["test"].name(0)).write_bytes(b"no picture")
    classifier = load_classifier(skipping.path, "cpu")
    with pytest.warns(DataWarning, match="have changed"):
        assert classifier.evaluate(changed).pictures == 17
    assert classifier.evaluate(data).pictures == 17
    for given, on_bad_image in ((data, "stop"), (load_data(changed, settings=run.recipe.data), None)):
        with pytest.raises(UnreadableImagesError):
            classifier.evaluate(given, on_bad_image=on_bad_image)


def test_a_loaded_data_set_is_measured_as_it_is(run: Run, own: Path) -> None:
    _, info = read_weights(run.weights_path)
    told: list[str] = []
    network = str(run.path)
    named = data_to_measure(own, network, info, None, told.append)
    assert len(named.splits["test"]) == 18
    assert data_to_measure(named, network, info, None, told.append) is named
    assert told == []
    otherwise = load_data(own)
    assert data_to_measure(otherwise, network, info, "test", told.append) is otherwise
    assert [text.partition(":")[0] for text in told] == ["warning"]


def test_training_data_are_named_without_their_folder(
    run: Run, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    for source in (str(own), f"{own}/", "."):
        assert source_name(source) == own.name == read_weights(run.weights_path)[1].source
    assert source_name("in memory") == "in memory"
    assert source_name("hf:someone/cats") == "hf:someone/cats"


def test_a_run_of_a_fold_is_measured_on_that_fold_again(own: Path, tmp_path: Path) -> None:
    settings = [*TINY, "training.epochs=1", "data.folds=3", "data.fold=2"]
    run = train(own, "one-cycle", overrides=settings, out=tmp_path / "run", device="cpu")
    classifier = load_classifier(run.path, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        found = classifier.evaluate(own)
    fold = load_data(own, folds=3, fold=2)
    assert (found.pictures, found.accuracy) == (len(fold.splits["test"]), run.summary["accuracy"])
    assert run.settings["fingerprint"] == fold.fingerprint()
    other = write_class_folders(tmp_path / "other", [""], per_class=2)
    assert classifier.evaluate(other).pictures == 6  # other data are not divided


def test_calibration_pictures_are_those_of_the_version_that_trained_the_run(
    run: Run, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def noted(data: Data, settings: DataSettings, keep_classes: bool = True) -> Data:
        asked.append(keep_classes)
        return data

    monkeypatch.setattr("thumbnet.runs.data.with_calibration_split", noted)
    earlier = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    settings = {key: value for key, value in run.settings.items() if key != "calibration_keeps_classes"}
    (earlier.path / "run.json").write_text(json.dumps(settings))
    for one in (run, earlier):
        load_wanted(Wanted(str(own), one.recipe.data, one))
    assert asked == [True, False]
