"""Wherever memory runs out, the user gets one message that says where and what to change, and no traceback."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import coloured, coloured_data
from thumbnet.batches.prepare import prepare
from thumbnet.classifiers.onnx_classifier import OnnxClassifier
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.cli import main
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DivergedError, OutOfMemoryError
from thumbnet.models.registry import build
from thumbnet.publish.export import check_export, export
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import Run
from thumbnet.training.build import build_state
from thumbnet.training.range_test import learning_rate_range_test
from thumbnet.training.train import resume, train

CPU = torch.device("cpu")
# An error of a class of its own, and one that only its message tells. tests/test_errors.py has the other messages.
REFUSALS = [
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 5.72 GiB. GPU 0 has a total capacity of 4 GiB"
    ),
    RuntimeError("CUDA out of memory"),
]
SMALL = [
    "model.name=fastnet", "model.width=0.05", "training.epochs=1", "training.batch_size=8", "training.min_steps=0",
    "training.precision=fp32", "data.skip_easy=0.1", "data.calibration_pictures=0", "evaluation.sample=0",
]  # fmt: skip


def data() -> Data:
    return coloured_data(16)


def begin(out: Path, minutes: float | None = None) -> Run:
    chosen = [one for one in SMALL if minutes is None or "epochs" not in one]
    overrides = [*chosen, "schedule.small_until=0.9"]
    return train(data(), "fast", overrides=overrides, out=out / "run", device="cpu", minutes=minutes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return begin(tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint that is not complete."""
    made = begin(tmp_path_factory.mktemp("stopped"))
    (made.path / "summary.json").unlink()
    return made.path


def refuse_in(place: str, refusal: Exception, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the function at ``MODULE:NAME`` raise ``refusal``; returns a list that its calls make longer."""
    calls: list[str] = []

    def refuse(*_: object, **__: object) -> None:
        calls.append(place)
        raise refusal

    module, _, name = place.partition(":")
    owner: Any = import_module(f"thumbnet.{module}")
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    monkeypatch.setattr(owner, last, refuse)
    return calls


def lr_find(_: Path, __: Run) -> None:
    recipe = load_recipe("fast", SMALL)
    prepared = prepare(data(), recipe, CPU)
    learning_rate_range_test(build_state(recipe, prepared, "rgb", CPU), prepared.train, steps=3)


def predict(_: Path, run: Run) -> None:
    Predictor.load(run.path, "cpu").predict([coloured(0, 0)])


def evaluate(_: Path, run: Run) -> None:
    Predictor.load(run.path, "cpu").evaluate(data(), "test")


def check(out: Path, run: Run) -> None:
    export(run.path, "safetensors", out / "copy.safetensors")
    check_export(run.path, out / "copy.safetensors", data(), "test")


PLACES: dict[str, tuple[str, Callable[[Path, Run], object]]] = {
    "uploading": ("batches.prepare:MemoryEngine", lambda out, _: begin(out)),
    "measuring the speed": (
        "training.speed:_Timer.per_picture",
        lambda out, _: begin(out, minutes=0.1),
    ),
    "whitening": ("models.fastnet:FastNet.initialise_from", lambda out, _: begin(out)),
    "building the network": ("training.build:build_model", lambda out, _: begin(out)),
    "building the optimizer": ("training.state:build_optimizer", lambda out, _: begin(out)),
    "augmenting": ("batches.augment:Augmentation.apply", lambda out, _: begin(out)),
    "resizing": ("training.step:resize_at", lambda out, _: begin(out)),
    "the loss": ("training.step:summed_loss", lambda out, _: begin(out)),
    "the optimizer": ("training.muon:Muon.step", lambda out, _: begin(out)),
    "evaluating": ("training.session:collect_logits", lambda out, _: begin(out)),
    "the end of an epoch": ("training.state:TrainingState.close_epoch", lambda out, _: begin(out)),
    "a checkpoint": ("training.state:TrainingState.state_dict", lambda out, _: begin(out)),
    "the final weights": ("training.state:TrainingState.final_weights", lambda out, _: begin(out)),
    "measuring": ("training.results:evaluate_logits", lambda out, _: begin(out)),
    "decoding": ("batches.prepare:decode_split", lambda out, _: begin(out)),
    "fingerprint": ("data.splits:Data.fingerprint", lambda out, _: begin(out)),
    "lr-find: augmenting": ("batches.augment:Augmentation.apply", lr_find),
    "lr-find: a step": ("training.range_test:train_step", lr_find),
    "predict: loading": ("classifiers.torch_classifier:build_model", predict),
    "predict: the network's weights": ("classifiers.torch_classifier:Normalise", predict),
    "predict": ("classifiers.torch_classifier:predict_logits", predict),
    "evaluate: uploading": ("classifiers.torch_classifier:build_engine", evaluate),
    "evaluate": ("classifiers.torch_classifier:collect_views", evaluate),
    "export": (
        "publish.export:torch.export.export",
        lambda out, run: export(run.path, "torch-export", out / "x.pt2"),
    ),
    "export: reading": ("publish.export:read_weights", lambda out, run: export(run.path, "onnx", out / "x.onnx")),
    "export's check": ("publish.export:log_probabilities", check),
}  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS, ids=["class", "message"])
@pytest.mark.parametrize("place", PLACES)
def test_memory_that_runs_out_is_our_error_in_every_place(
    place: str, refusal: Exception, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched, act = PLACES[place]
    calls = refuse_in(patched, refusal, monkeypatch)
    with pytest.raises(OutOfMemoryError) as caught:
        act(tmp_path, run)
    assert calls
    first, advice = str(caught.value).split("\n")
    assert first.startswith(("out of memory on cuda", "out of memory on mps "))  # as the refusal says
    assert advice.endswith("Other programs may also hold memory.")


@pytest.mark.parametrize("place", ["training.state:TrainingState.load_state_dict", "runs.folder:torch.load"])
def test_memory_that_runs_out_in_a_resume_is_not_taken_for_a_damaged_checkpoint(
    place: str, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_in(place, REFUSALS[0] if "state" in place else MemoryError(), monkeypatch)
    with pytest.raises(OutOfMemoryError):
        resume(stopped, data=data(), device="cpu")


@pytest.mark.parametrize("place", ["training.session:find_mirrored", "batches.leaks:find_repeats"])
def test_what_only_informs_costs_no_run_its_result(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = refuse_in(place, REFUSALS[0], monkeypatch)
    made = begin(tmp_path)
    assert calls
    assert made.is_complete
    if "repeats" in place:
        assert made.summary["repeats"]["lines"] == ["pictures were not compared: there is too little memory"]


def test_the_search_for_repeats_hides_no_other_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refuse_in("batches.leaks:find_repeats", ValueError("a bug"), monkeypatch)
    made = begin(tmp_path)
    assert made.is_complete
    assert made.summary["repeats"]["lines"] == ["pictures were not compared: ValueError: a bug"]


def test_a_users_network_that_runs_out_of_memory_is_not_called_wrong() -> None:
    class Hungry(torch.nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise REFUSALS[0]

    with pytest.raises(torch.OutOfMemoryError):
        build(Hungry, "hungry", 2, 3, 1.0, [(16, 16)])


def test_onnxruntimes_refusals_are_recognised(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    class Session:
        def run(self, *_: object) -> None:
            raise RuntimeException("Failed to allocate memory for requested buffer of size 12884901888")

    classifier = object.__new__(OnnxClassifier)
    classifier.info, classifier.class_names = Predictor.load(run.path, "cpu").info, ("red", "green", "blue")
    classifier.any_size, classifier._session = False, Session()
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    split = ArraySplit(pixels, np.zeros(2, np.int64), "x")
    for act in (
        lambda: classifier.logits(pixels),
        lambda: classifier.logits_of_picture(Image.fromarray(pixels[0])),
        lambda: classifier.classify_split(split, ("red", "green", "blue")),
    ):
        with pytest.raises(OutOfMemoryError, match="classifying pictures"):
            act()


def test_the_service_answers_503_and_serves_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    from thumbnet.serving.service import ServiceSettings, build_service

    said: list[str] = []
    classifier = Predictor.load(run.path, "cpu")
    app = build_service(classifier, replace(ServiceSettings(), hosts=None), lambda: None, said.append)
    picture = io.BytesIO()
    Image.fromarray(coloured(0, 0)).save(picture, "PNG")
    with testclient.TestClient(app) as client, monkeypatch.context() as full:
        headers = {"Content-Type": "image/png"}
        refuse_in("classifiers.torch_classifier:predict_logits", REFUSALS[0], full)
        for path in ("/predict", "/explain"):
            answer = client.post(path, content=picture.getvalue(), headers=headers)
            assert answer.status_code == 503
            assert answer.json()["detail"].startswith("out of memory on cuda:0 classifying pictures")
            assert answer.headers["Retry-After"] == "1"
        full.undo()
        assert client.post("/predict", content=picture.getvalue(), headers=headers).status_code == 200
    assert len(said) == 2


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("classifiers.torch_classifier:predict_logits", ["serve", "RUN", "--max-batch", "40"]),
        ("classifiers.torch_classifier:predict_logits", ["predict", "RUN", "PICTURE"]),
        ("batches.augment:Augmentation.apply", ["lr-find", "digits", "--set", "data.subset_size=100"]),
        ("sources.load:load_data", ["data", "digits"]),
    ],
)
def test_a_command_that_runs_out_of_memory_prints_one_message(
    place: str,
    words: list[str],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refuse_in(place, REFUSALS[0], monkeypatch)
    Image.fromarray(coloured(0, 0)).save(tmp_path / "a.png")
    known = {"RUN": str(run.path), "PICTURE": str(tmp_path / "a.png")}
    assert main([known.get(word, word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("thumbnet: out of memory on ")
    assert "Traceback" not in said
    if words[0] == "serve":
        assert "--max-batch 20" in said


def test_other_errors_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_in("training.step:summed_loss", DivergedError(1, 1.0, 1.0), monkeypatch)
    with pytest.raises(DivergedError):
        begin(tmp_path)
