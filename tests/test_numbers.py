"""Every place that shows or computes the accuracy of a run gives the same number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers import TINY, coloured, coloured_data, noise, write_class_folders, write_picture
from thumbnet import load_data, load_run
from thumbnet.cli import main
from thumbnet.evaluation import evaluate_logits, log_softmax
from thumbnet.runs.folder import Run
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.training.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with pictures that are hard to classify, so that no accuracy is 100 %."""
    root = tmp_path_factory.mktemp("pictures")
    write_class_folders(root, ["train", "test"], per_class=16)
    for label, name in enumerate(("red", "green", "blue")):
        for number in range(16):
            image = np.clip(
                noise(7000 + 100 * label + number).astype(int) + 12 * (np.arange(3) == label), 0, 255
            )
            write_picture(root / "test" / name / f"hard{number}.png", image.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run measured with test-time augmentation. Its temperature is set: it has too few pictures to calibrate."""
    out = tmp_path_factory.mktemp("runs") / "run"
    found = train(folder, "one-cycle", overrides=[*TINY, "evaluation.tta=adaptive"], out=out, device="cpu")
    from dataclasses import replace

    from thumbnet.runs.weights import read_weights

    weights, info = read_weights(found.weights_path)
    found.save_weights(weights, replace(info, temperature=0.5))
    return found


def test_evaluate_predict_report_card_compare_and_onnx_agree_with_train(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    headline, plain = run.summary["accuracy"], run.summary["accuracy_plain"]
    assert run.summary["tta"] == "adaptive"
    assert headline < 1
    data = load_data(folder)
    assert load_run(run.path, "cpu").evaluate(data, "test").accuracy == headline
    assert load_run(run.path, "cpu").evaluate(data, "test", tta="none").accuracy == plain

    assert main(["evaluate", str(run.path), "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["accuracy"], told["accuracy_plain"], told["tta"]) == (headline, plain, "adaptive")

    files = sorted(str(path) for path in (folder / "test").glob("*/*.png"))
    assert main(["predict", str(run.path), "--json", "--top", "3", "--device", "cpu", *files]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right = [Path(line["path"]).parent.name == line["predictions"][0]["class"] for line in lines]
    assert np.mean(right) == pytest.approx(headline, abs=1e-12)
    names = load_run(run.path, "cpu").class_names
    surprise = [
        -np.log({p["class"]: p["probability"] for p in line["predictions"]}[Path(line["path"]).parent.name])
        for line in lines
    ]
    assert np.mean(surprise) == pytest.approx(told["loss"], abs=1e-3)

    out = tmp_path / "model.onnx"
    pytest.importorskip("onnxscript")
    assert main(["export", str(run.path), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"{100 * plain:.2f} %, without test-time augmentation" in shown
    from thumbnet.classifiers.onnx_classifier import OnnxClassifier

    theirs = OnnxClassifier(out).classify_split(data.splits["test"], data.class_names)
    ours = load_run(run.path, "cpu").classify_split(data.splits["test"], data.class_names)
    assert evaluate_logits(theirs.logits, theirs.labels, names).accuracy == headline
    assert np.abs(np.exp(log_softmax(theirs.logits)) - np.exp(log_softmax(ours.logits))).max() < 1e-3

    import onnxruntime

    pixels = np.stack([np.asarray(data.splits["test"].load(i)) for i in range(8)])
    graph = onnxruntime.InferenceSession(str(out)).run(None, {"pixels": pixels})[0]
    assert np.allclose(log_softmax(graph), log_softmax(ours.plain[:8]), atol=1e-3)  # calibrated once

    pytest.importorskip("jinja2")
    page = tmp_path / "report.html"
    assert main(["report", str(run.path), "--out", str(page)]) == 0
    text = page.read_text()
    assert f"<dd>{100 * headline:.2f} %</dd>" in text
    assert f"plain</dt><dd>{100 * plain:.2f} %</dd>" in text
    assert main(["compare", str(run.path)]) == 0
    row = capsys.readouterr().out
    assert f"{100 * headline:.2f} %" in row
    assert "without tta" in row
    assert f"{100 * plain:.2f} %" in row
    pytest.importorskip("huggingface_hub")
    from thumbnet.publish.hub import model_card

    card = model_card(run, "me/pictures")
    assert f"| test | {100 * headline:.2f} % |" in card
    assert f"| test | {100 * plain:.2f} % |" in card


def test_by_default_the_service_predicts_with_the_same_test_time_augmentation(run: Run, folder: Path) -> None:
    pytest.importorskip("fastapi")
    from thumbnet.serving.service import ServiceSettings

    predictor = load_run(run.path, "cpu")
    pixels = np.stack([np.asarray(load_data(folder).splits["test"].load(i)) for i in range(30)])
    by_service = predictor.predict_pixels(pixels, tta=ServiceSettings().tta)
    assert by_service == predictor.predict_pixels(pixels, tta="adaptive")
    assert by_service != predictor.predict_pixels(pixels, tta="none")


def test_descriptions_of_older_versions_load_and_invalid_ones_do_not(run: Run) -> None:
    values = json.loads(load_run(run.path, "cpu").info.to_json())
    old = {key: value for key, value in values.items() if key not in ("tta", "temperature")}
    assert WeightsInfo.from_json(json.dumps(old)).temperature == 1.0
    for bad in ({"temperature": 0}, {"temperature": -1.0}, {"temperature": float("inf")}, {"tta": "twice"}):
        with pytest.raises(ValueError, match="temperature|tta"):
            WeightsInfo.from_json(json.dumps({**values, **bad}))


def test_a_run_trained_on_everything_says_that_nothing_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coloured_data(splits=("train",))
    found = train(data, "one-cycle", overrides=TINY, out=tmp_path / "run", device="cpu")
    assert found.summary["accuracy"] is None
    assert found.summary["split"] is None
    from thumbnet.cli.views import show_summary

    show_summary(found)
    assert "nothing was measured: the data have no test or val split" in capsys.readouterr().out
    assert main(["compare", str(found.path)]) == 0
    assert "nothing was measured" in capsys.readouterr().out
    pytest.importorskip("huggingface_hub")
    from thumbnet.publish.hub import model_card

    assert "Nothing was measured: the data have no test or val split" in model_card(found, "me/x")


def test_every_epoch_is_evaluated_but_only_epochs_with_a_full_evaluation_can_be_kept(tmp_path: Path) -> None:
    data = coloured_data(splits=("train", "val", "test"))
    overrides = [*TINY, "evaluation.every=2", "evaluation.sample=9"]
    found = train(data, "one-cycle", overrides=overrides, out=tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (found.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["val_pictures"] for line in lines] == [9, 60, 60]
    assert all(0 <= line["train_accuracy"] <= 1 for line in lines)
    assert found.summary["kept_epoch"] in (2, 3)


def test_a_validation_score_that_chose_the_epoch_is_called_optimistic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coloured_data(splits=("train", "val"))
    found = train(data, "one-cycle", overrides=TINY, out=tmp_path / "run", device="cpu")
    from thumbnet.cli.views import show_summary

    show_summary(found)
    assert "optimistic, because the same pictures chose the epoch" in capsys.readouterr().out


def test_leaks_and_pictures_in_two_classes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        for label, name in enumerate(("first", "second")):
            for number in range(12):
                image = coloured(label, 100 * label + number)  # every test picture is a training picture
                write_picture(tmp_path / "data" / split / name / f"{split}{number}.png", image)
    write_picture(tmp_path / "data" / "train" / "second" / "wrong.png", coloured(0, 0))
    out = tmp_path / "run"
    command = ["train", str(tmp_path / "data"), "--recipe", "one-cycle", "--out", str(out), "--device", "cpu"]
    settings = [part for one in TINY for part in ("--set", one)]
    assert main([*command, *settings, "--epochs", "1"]) == 0
    shown = capsys.readouterr().err
    assert "warning: 24 of the 24 test pictures are also in train" in shown
    assert "in two classes" in shown
    rows = [json.loads(line) for line in (out / "leaks.jsonl").read_text().splitlines()]
    assert sum(row["kind"] == "leak" for row in rows) == 24
    assert main(["evaluate", str(out), "--device", "cpu"]) == 0
    assert "24 of the 24 test pictures are also in train" in capsys.readouterr().out
    other = write_class_folders(tmp_path / "other", ["test"], per_class=4) / "test"
    (other / "blue").rename(other / "first")
    (other / "green").rename(other / "second")
    for path in (other / "red").iterdir():
        path.unlink()
    (other / "red").rmdir()
    write_picture(other / "first" / "known.png", coloured(0, 3))
    for path in list(other.iterdir()):
        target = tmp_path / "new" / "train" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    arguments = ["evaluate", str(out), str(tmp_path / "new"), "--split", "train", "--device", "cpu"]
    assert main(arguments) == 0
    assert "were in the training split (such as" in capsys.readouterr().out


def test_evaluating_a_run_trained_on_everything_asks_for_other_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = train(
        coloured_data(splits=("train",)), "one-cycle", overrides=TINY, out=tmp_path / "r", device="cpu"
    )
    monkeypatch.setattr(
        "thumbnet.cli.evaluate.data_of_run", lambda *_: coloured_data(splits=("train",)), raising=True
    )
    assert main(["evaluate", str(found.path), "--device", "cpu"]) == 2
    assert "trained on all pictures" in capsys.readouterr().err
