from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from helpers import TINY, coloured, coloured_data, noise, write_class_folders, write_picture
from thumbnet import load_classifier, load_data, load_run
from thumbnet.batches.prepare import Prepared
from thumbnet.classifiers.logits import collect_logits, collect_views
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import (
    DataError,
    DivergedError,
    InterruptedRunError,
    RunError,
    ThumbnetError,
)
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.training import session as session_module
from thumbnet.training.choose import default_recipe
from thumbnet.training.epochs import EpochResult
from thumbnet.training.fit import StepResult
from thumbnet.training.listener import Listener
from thumbnet.training.state import TrainingState
from thumbnet.training.train import resume, train
from training_helpers import StopAfter

SMALLEST = [*TINY, "model.name=fastnet", "model.width=0.1", "training.min_steps=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), ["train", "val", "test"], per_class=20)


def test_the_same_recipe_data_and_seed_give_the_same_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(folder, "fast", overrides=SMALLEST, out=tmp_path / "a", device="cpu")
    torch.manual_seed(123)  # the state of torch's own generator does not matter
    (tmp_path / "link").symlink_to(folder)  # nor does how the data are named
    monkeypatch.chdir(tmp_path)
    second = train("link", "fast", overrides=SMALLEST, out=tmp_path / "b", device="cpu")
    other = train(folder, "fast", overrides=[*SMALLEST, "seed=1"], out=tmp_path / "c", device="cpu")
    assert first.weights_path.read_bytes() == second.weights_path.read_bytes()
    assert first.weights_path.read_bytes() != other.weights_path.read_bytes()
    assert read_weights(first.weights_path)[1].source == folder.name
    assert str(folder).encode() not in first.weights_path.read_bytes()


def test_an_early_stop_repeats_to_the_bit_after_an_interruption(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    noisy = Data("noise", "made by the tests", ("a", "b"), {"train": ArraySplit(pictures, rng.integers(0, 2, 40), "train"), "test": ArraySplit(pictures, rng.integers(0, 2, 40), "test")})  # fmt: skip
    overrides = [*SMALLEST, "training.epochs=30", "training.patience=2", "training.ema_decay=0.5"]
    whole = train(noisy, "fast", overrides=overrides, out=tmp_path / "whole", device="cpu")
    stop = whole.summary["stopped_early"]
    assert stop["epoch"] == whole.summary["epochs"] == whole.summary["kept_epoch"] + 2 < 30
    assert (whole.summary["split"], whole.summary["kept_by"]) == ("test", "best on val")
    assert metrics(whole)[-1]["stopped"] == stop["why"]
    assert "stopped" not in metrics(whole)[0]
    out = tmp_path / "stopped"
    with pytest.raises(InterruptedRunError):
        train(noisy, "fast", overrides=overrides, out=out, device="cpu", listener=StopAfter(4))
    resumed = resume(out, data=noisy, device="cpu")
    assert resumed.summary["stopped_early"] == stop
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()


def test_training_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(coloured_data(), "fast", overrides=SMALLEST, out=tmp_path / "run", device="cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("model", ["resnet20", "fastnet"])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(model: str, folder: Path, tmp_path: Path) -> None:
    overrides = [*TINY, f"model.name={model}", "training.ema_decay=0.8", "training.precision=auto"]
    whole = train(folder, "one-cycle", overrides=overrides, out=tmp_path / "whole", device="cpu")
    out = tmp_path / "stopped"
    with pytest.raises(InterruptedRunError, match=f"--resume {out}") as caught:
        train(folder, "one-cycle", overrides=overrides, out=out, device="cpu", listener=StopAfter(1))
    assert caught.value.exit_status == 130
    for stop in (4, 5):  # inside an epoch, and again one step later
        with pytest.raises(InterruptedRunError):
            resume(out, device="cpu", listener=StopAfter(stop))
    resumed = resume(out, device="cpu")
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()
    times = {"seconds", "pictures_per_second"}
    for a, b in zip(metrics(whole), metrics(resumed), strict=True):
        assert {k: v for k, v in a.items() if k not in times} == {
            k: v for k, v in b.items() if k not in times
        }
    keys = ("split", "accuracy", "accuracy_plain", "loss", "temperature", "epochs", "kept_epoch", "kept_by")
    assert [whole.summary[k] for k in keys] == [resumed.summary[k] for k in keys]
    assert resumed.summary["kept_by"] == "best on val"
    assert resumed.summary["calibrated_on"] == "val"
    assert resumed.summary["temperature"] != 1


def metrics(run: Run) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_with_val_the_best_epoch_is_kept_and_test_is_looked_at_once(folder: Path, tmp_path: Path) -> None:
    run = train(folder, "fast", overrides=SMALLEST, out=tmp_path / "run", device="cpu")
    lines = metrics(run)
    assert all("val_accuracy" in line and "test_accuracy" not in line for line in lines)
    best = max(lines, key=lambda line: (line["val_accuracy"], -line["val_loss"]))  # type: ignore[operator]
    assert run.summary["kept_epoch"] == best["epoch"]
    assert run.summary["split"] == "test"


def test_a_run_can_be_resumed_before_its_first_epoch_is_done(folder: Path, tmp_path: Path) -> None:
    class Crash(Listener):
        def on_step(self, step: StepResult) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(folder, "fast", overrides=SMALLEST, out=tmp_path / "run", listener=Crash(), device="cpu")
    assert resume(tmp_path / "run", device="cpu").is_complete


def test_what_cannot_be_resumed_is_explained(folder: Path, tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="complete already"):
        resume(tiny_run.path)
    with pytest.raises(RunError, match="not a run's folder"):
        resume(tmp_path)
    data = shutil.copytree(folder, tmp_path / "data")
    with pytest.raises(InterruptedRunError):
        train(data, "fast", overrides=SMALLEST, out=tmp_path / "run", listener=StopAfter(1), device="cpu")
    write_picture(data / "train" / "red" / "one-more.png", noise(0))
    with pytest.raises(RunError, match="have changed"):
        resume(tmp_path / "run")
    (data / "train" / "red" / "one-more.png").unlink()
    (tmp_path / "run" / "recipe.toml").write_text('name = "x"\n[model]\nname = "resnet34"\n')
    with pytest.raises(RunError, match="has changed since this run started"):
        resume(tmp_path / "run")


def test_a_listener_is_told_everything_in_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))  # an empty one, or nothing would be decoded
    heard: list[str] = []

    class Hearing(Listener):
        def on_data(self, data: object) -> None:
            heard.append("data")

        def on_decode(self, done: int, total: int) -> None:
            heard.append("decode")

        def on_start(self, *_: object) -> None:
            heard.append("start")

        def on_step(self, step: StepResult) -> None:
            heard.append("step")

        def on_epoch(self, result: EpochResult) -> None:
            heard.append("epoch")

    run = train(folder, "fast", overrides=SMALLEST, out=tmp_path / "run", listener=Hearing(), device="cpu")
    assert heard == ["data", *["decode"] * 3, "start", *(["step"] * 3 + ["epoch"]) * 3]
    assert run.is_complete


def test_the_default_recipe_is_chosen_by_the_data() -> None:
    def of(count: int, source: str = "x") -> str:
        labels = np.arange(count) % 2
        images = np.broadcast_to(np.zeros((1, 16, 16, 3), np.uint8), (count, 16, 16, 3))
        return default_recipe(Data(source, "x", ("a", "b"), {"train": ArraySplit(images, labels, "t")}))

    assert (of(2), of(10_000), of(10_001), of(100, "digits")) == ("small", "small", "fast", "digits")


@pytest.mark.parametrize("splits", [["train", "test"], ["train", "val", "test"]])
def test_the_last_epochs_evaluation_is_not_made_again(
    splits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where val chooses the epoch, test was not looked at before."""
    given = []

    def collect(*args: Any, **settings: Any) -> Any:
        given.append(settings.get("plain"))
        collected: Any = collect_views if "tta" in settings else collect_logits
        return collected(*args, **settings)

    monkeypatch.setattr("thumbnet.training.session.collect_logits", collect)
    monkeypatch.setattr("thumbnet.training.results.collect_views", collect)
    data = write_class_folders(tmp_path / "data", splits, per_class=20)
    run = train(data, "fast", overrides=SMALLEST, out=tmp_path / "run", device="cpu")
    assert run.summary["kept_by"] == ("best on val" if "val" in splits else "last")
    # Three epochs; then the watched split, which is known if the last epoch is kept, and test.
    expected = [False] * 3 + [run.summary["kept_epoch"] == 3] + [False] * ("val" in splits)
    assert [plain is not None for plain in given] == expected
    again = load_run(run.path).evaluate(load_data(data), "test", tta=run.summary["tta"])
    assert again.accuracy == run.summary["accuracy"]


def test_a_short_training_has_small_batches_but_for_a_size_that_is_named(
    folder: Path, tmp_path: Path
) -> None:
    short = ["training.epochs=1", "training.min_steps=2", "data.skip_easy=0", "model.width=0.125"]
    fitted = train(folder, "fast", overrides=short, out=tmp_path / "fitted", device="cpu")
    assert (fitted.recipe.training.batch_size, metrics(fitted)[-1]["step"]) == (32, 1)
    named = [*short, "training.batch_size=20"]
    kept = train(folder, "fast", overrides=named, out=tmp_path / "named", device="cpu")
    assert (kept.recipe.training.batch_size, metrics(kept)[-1]["step"]) == (20, 3)


def test_a_subset_of_the_training_split_can_be_asked_for(folder: Path, tmp_path: Path) -> None:
    overrides = [*TINY, "data.subset_size=20", "training.epochs=1"]
    train(folder, "tutorial", overrides=overrides, out=tmp_path / "run", device="cpu")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["state"]["step"] == 2  # batches of 16 and 4


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("checkpoint.steps=2", [2, 4, 6, 8]), ("checkpoint.minutes=1e-9", [1, 2, 3, 4, 5, 6, 7, 8, 9])],
)
def test_checkpoints_are_written_within_epochs_too(
    setting: str, expected: list[int], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    original = Run.save_checkpoint

    def count(self: Run, state: dict[str, Any]) -> None:
        steps.append(state["state"]["step"])
        original(self, state)

    monkeypatch.setattr(Run, "save_checkpoint", count)
    overrides = [*SMALLEST, setting, "checkpoint.min_seconds=0"]
    train(folder, "fast", overrides=overrides, out=tmp_path / "run", device="cpu")
    assert sorted(steps) == sorted([*expected, 3, 6, 9])  # and after each epoch


@pytest.mark.parametrize(
    ("least", "saved"),
    [("0", [1, 2, 3, 4, 5, 6]), ("9", [2, 4, 6]), ("12", [3, 6]), ("1000", [6])],
)
def test_an_epochs_end_is_saved_only_if_some_time_has_passed_but_the_last_one_always(
    least: str, saved: list[int], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]  # each epoch takes five seconds
    checkpoints: list[int] = []

    class FiveSeconds(Listener):
        def on_step(self, step: StepResult) -> None:
            clock[0] += 5.0 / step.steps_per_epoch

    def note(self: Run, state: dict[str, Any]) -> None:
        checkpoints.append(len(state["state"]["history"]))

    times = SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(session_module, "time", times)
    monkeypatch.setattr(Run, "save_checkpoint", note)
    overrides = [*SMALLEST, "training.epochs=6", f"checkpoint.min_seconds={least}", "checkpoint.minutes=0"]
    run = train(folder, "fast", overrides=overrides, out=tmp_path / "r", device="cpu", listener=FiveSeconds())
    assert checkpoints == saved
    assert len(metrics(run)) == 6


def test_a_run_that_crashes_before_its_first_checkpoint_begins_again_and_ends_the_same(
    folder: Path, tmp_path: Path
) -> None:
    class Crash(Listener):
        def on_epoch(self, result: EpochResult) -> None:
            if result.epoch == 2:
                raise KeyboardInterrupt

    whole = train(folder, "fast", overrides=SMALLEST, out=tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(folder, "fast", overrides=SMALLEST, out=tmp_path / "r", device="cpu", listener=Crash())
    assert not (tmp_path / "r" / "checkpoint.pt").exists()
    assert not (tmp_path / "r" / "metrics.jsonl").exists(), "it agrees with the checkpoint"
    again = resume(tmp_path / "r", device="cpu")
    assert again.weights_path.read_bytes() == whole.weights_path.read_bytes()
    assert len(metrics(again)) == len(metrics(whole)) == 3


def test_a_training_that_diverges_leaves_the_metrics_of_its_epochs(folder: Path, tmp_path: Path) -> None:
    class Break(Listener):
        def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
            self.state = state

        def on_epoch(self, result: EpochResult) -> None:
            next(self.state.model.parameters()).data.fill_(torch.nan)

    with pytest.raises(DivergedError):
        train(folder, "fast", overrides=SMALLEST, out=tmp_path / "r", device="cpu", listener=Break())
    assert len(metrics(Run(tmp_path / "r"))) == 1


def test_a_training_whose_last_step_spoils_the_network_is_no_success_and_can_end_before_it(
    folder: Path, tmp_path: Path
) -> None:
    class Spoil(Listener):
        def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
            def spoiled(gradient: torch.Tensor) -> torch.Tensor:
                return gradient * (torch.nan if state.step == state.total_steps - 1 else 1)

            next(p for p in state.model.parameters() if p.requires_grad).register_hook(spoiled)

    data, out = load_data(folder), tmp_path / "run"
    only_test = replace(data, splits={name: data.splits[name] for name in ("train", "test")})
    with pytest.raises(DivergedError, match="not finite after the update at step"):
        train(
            only_test,
            "fast",
            overrides=[*SMALLEST, "checkpoint.min_seconds=0"],
            out=out,
            device="cpu",
            listener=Spoil(),
        )
    assert len(metrics(Run(out))) == 2
    assert not Run(out).is_complete
    assert not Run(out).weights_path.exists()
    ended = resume(out, data=only_test, device="cpu", finish=True)
    assert ended.summary["epochs"] == 2
    load_classifier(ended.path)


def test_the_same_call_begins_goes_on_and_leaves_alone(folder: Path, tmp_path: Path) -> None:
    def call(out: str, listener: Listener | None = None) -> Run:
        return train(
            folder,
            "fast",
            overrides=SMALLEST,
            out=tmp_path / out,
            listener=listener,
            device="cpu",
            auto_resume=True,
        )

    calm = call("calm")
    with pytest.raises(InterruptedRunError):
        call("run", StopAfter(4))
    run = call("run")
    assert run.weights_path.read_bytes() == calm.weights_path.read_bytes()
    before = (run.path / "summary.json").read_bytes()
    call("run")
    assert (run.path / "summary.json").read_bytes() == before
    with pytest.raises(RunError, match="--out"):
        train(folder, "fast", overrides=SMALLEST, auto_resume=True)


def test_a_folder_with_what_a_killed_training_leaves_before_its_first_step_is_free(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in (".lock", "recipe.toml", ".recipe.toml.abc.tmp"):
        (out / name).touch()
    run = train(folder, "fast", overrides=[*SMALLEST, "training.epochs=1"], out=out, device="cpu")
    assert run.is_complete
    assert not list(out.glob(".*.tmp"))


def test_what_a_killed_training_left_does_not_change_the_next_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    left = Run(out)
    out.mkdir()
    (out / ".lock").touch()
    left.write_corrections(b"picture,label,split,was,decision\ntrain/red/1.png,,train,red,drop\n")
    left.write_skipped([("train", "train/red/0.png", "damaged")])
    assert left.corrections
    call = partial(train, folder, "fast", overrides=[*SMALLEST, "data.on_bad_image=skip"], device="cpu")
    with pytest.raises(InterruptedRunError):
        call(out=out, listener=StopAfter(2))
    run = Run.open(out)
    assert (run.corrections, run.skipped) == (None, [])
    calm = call(out=tmp_path / "calm")
    assert resume(out, device="cpu").weights_path.read_bytes() == calm.weights_path.read_bytes()


def test_the_same_call_goes_on_with_data_that_have_moved_to_where_it_says(
    folder: Path, tmp_path: Path
) -> None:
    def call(place: str, out: str, listener: Listener | None = None) -> Run:
        return train(
            tmp_path / place / "pictures", "fast", overrides=SMALLEST, out=tmp_path / out, listener=listener,
            device="cpu", auto_resume=True,
        )  # fmt: skip

    shutil.copytree(folder, tmp_path / "a" / "pictures")
    calm = call("a", "calm")
    with pytest.raises(InterruptedRunError):
        call("a", "run", StopAfter(2))
    (tmp_path / "a").rename(tmp_path / "b")
    red = tmp_path / "b" / "pictures" / "train" / "red"
    shutil.copy(red / "0.png", red / "new.png")
    with pytest.raises(RunError, match="have changed since the run"):
        call("b", "run")
    (red / "new.png").unlink()
    assert call("b", "run").weights_path.read_bytes() == calm.weights_path.read_bytes()


@pytest.fixture(scope="module")
def corrected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the folder's pictures with corrected labels and a new picture, stopped and resumed."""
    place = tmp_path_factory.mktemp("corrected")
    write_picture(place / "new.png", coloured(1, 4321))
    (place / "labels.csv").write_text(
        "picture,label,split,was,decision\n"
        "train/red/0.png,blue,train,red,relabel\n"
        "test/red/1.png,,test,red,drop\n"
        "new.png,green,train,,relabel\n"
    )
    out = place / "run"
    with pytest.raises(InterruptedRunError):
        train(
            folder, "fast", overrides=SMALLEST, out=out, device="cpu", labels=place / "labels.csv",
            listener=StopAfter(2),
        )  # fmt: skip
    (place / "labels.csv").unlink()  # the run has its own copy
    return resume(out, device="cpu")


def test_a_run_with_corrected_labels_is_one_on_data_with_these_labels(
    corrected: Run, folder: Path, tmp_path: Path
) -> None:
    data = load_data(folder, labels=corrected.corrections)
    assert len(data.splits["train"]) == 61
    assert len(data.splits["test"]) == 59
    assert data.fingerprint() == corrected.settings["fingerprint"] != load_data(folder).fingerprint()
    plain = Data(data.source, data.layout, data.class_names, data.splits)
    whole = train(plain, "fast", overrides=SMALLEST, out=tmp_path / "run", device="cpu")
    assert not (whole.path / "corrections.csv").exists()
    assert "labels" not in whole.settings.keys() | whole.summary.keys()
    weights, _ = read_weights(corrected.weights_path)
    expected, _ = read_weights(whole.weights_path)
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    assert corrected.summary["accuracy"] == whole.summary["accuracy"]


def test_a_run_records_what_was_corrected(corrected: Run) -> None:
    copy = (corrected.path / "corrections.csv").read_bytes()
    record = {
        "relabelled": 1, "dropped": 1, "unsure": 0, "unsure_kept": 0, "added": 1, "confirmed": 0, "held_out": 1,
        "missing": 0, "sha256": hashlib.sha256(copy).hexdigest(),
    }  # fmt: skip
    assert corrected.settings["labels"] == corrected.summary["labels"] == record
    assert f"{corrected.path.parent}/new.png,green,train,,relabel" in copy.decode()


def test_a_run_without_its_corrections_is_not_resumed(corrected: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(corrected.path, copy)
    (copy / "summary.json").unlink()
    (copy / "corrections.csv").unlink()
    with pytest.raises(RunError, match=r"corrections\.csv is missing"):
        resume(copy, device="cpu")
    kept = (corrected.path / "corrections.csv").read_text()
    (copy / "corrections.csv").write_text(kept.replace("blue,train,red", "green,train,red"))
    with pytest.raises(RunError, match="have changed since the run"):
        resume(copy, device="cpu")


def test_a_run_whose_data_have_moved_says_what_to_do(corrected: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(corrected.path, tmp_path / "run"))
    (copy / "run.json").write_text(json.dumps({**corrected.settings, "data": "/nowhere/pictures"}))
    said = f"These are the data of {copy}, which goes on only with them.*put a symbolic link there"
    with pytest.raises(DataError, match=said):
        resume(copy, more_epochs=1, out=tmp_path / "longer", device="cpu")
    (copy / "summary.json").unlink()
    with pytest.raises(DataError, match=said):
        resume(copy, device="cpu")


def test_a_corrected_run_is_trained_for_longer_on_the_same_labels(corrected: Run, tmp_path: Path) -> None:
    longer = resume(corrected.path, more_epochs=1, out=tmp_path / "longer", device="cpu")
    assert longer.settings["labels"] == corrected.settings["labels"]
    assert longer.corrections == corrected.corrections


def test_the_same_call_resumes_only_with_the_same_corrections(
    corrected: Run, folder: Path, tmp_path: Path
) -> None:
    def call(labels: object) -> Run:
        return train(
            folder, "fast", overrides=SMALLEST, out=corrected.path, device="cpu", auto_resume=True,
            labels=labels,  # type: ignore[arg-type]
        )  # fmt: skip

    assert call(None).path == corrected.path
    assert call(corrected.path / "corrections.csv").path == corrected.path
    (tmp_path / "labels.csv").write_text(
        "picture,label,split,was,decision\ntrain/red/2.png,,train,red,drop\n"
    )
    with pytest.raises(
        RunError, match=f"the run {corrected.path} was begun with other corrections of labels"
    ):
        call(tmp_path / "labels.csv")


def test_data_that_are_corrected_already_leave_the_same_run(
    corrected: Run, folder: Path, tmp_path: Path
) -> None:
    data = load_data(folder, labels=corrected.corrections)
    run = train(data, "fast", overrides=[*SMALLEST, "training.epochs=1"], out=tmp_path / "run", device="cpu")
    assert run.settings["labels"] == corrected.settings["labels"]
    assert (run.path / "corrections.csv").read_bytes() == (corrected.path / "corrections.csv").read_bytes()


def test_a_call_that_asks_for_another_result_does_not_get_an_earlier_one(
    folder: Path, tmp_path: Path
) -> None:
    notes: list[str] = []

    class Noting(Listener):
        def on_note(self, text: str) -> None:
            notes.append(text)

    def call(data: Path, *more: str, **options: Any) -> Run:
        return train(
            data, "fast", overrides=[*SMALLEST, *more], out=tmp_path / "run", device="cpu", auto_resume=True,
            listener=Noting(), **options,
        )  # fmt: skip

    run = call(folder)
    assert run.settings["asked"]["settings"]["training.epochs"] == 3
    with pytest.raises(RunError, match="seed: was not set, now 1"):
        call(folder, "seed=1")
    with pytest.raises(RunError, match=r"training\.epochs: was 3, now 4"):
        call(folder, "training.epochs=4")
    with pytest.raises(RunError, match=r"minutes: was not set, now 0\.1"):
        train(
            folder,
            "fast",
            overrides=[one for one in SMALLEST if not one.startswith("training.epochs")],
            out=tmp_path / "run",
            auto_resume=True,
            minutes=0.1,
        )
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    notes.clear()
    assert call(other, "checkpoint.steps=1").path == run.path, "the same pictures"
    assert notes[-1] == f"{run.path} is complete already: nothing is trained"
    write_picture(other / "train" / "red" / "one-more.png", noise(0))
    with pytest.raises(RunError, match=f"have changed since the run {run.path} began with those in {folder}"):
        call(other)
    shutil.rmtree(other)
    with pytest.raises(DataError):
        call(other)


def test_a_complete_run_needs_no_lock(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = partial(train, folder, "fast", overrides=SMALLEST, out=tmp_path / "run", device="cpu")
    run = call(auto_resume=True)

    def refuse(run: Run, wait: float = 0.0) -> NoReturn:
        raise RunError("cannot write in the run's folder: Read-only file system")

    monkeypatch.setattr(Run, "locked", refuse)
    assert call(auto_resume=True).path == run.path
    with pytest.raises(RunError, match="complete already"):
        resume(run.path, device="cpu")
    (run.path / "summary.json").rename(tmp_path / "summary.json")
    with pytest.raises(RunError, match="Read-only file system"):
        call(auto_resume=True)

    @contextmanager
    def completed(run: Run, wait: float = 0.0) -> Iterator[None]:
        (tmp_path / "summary.json").rename(run.path / "summary.json")  # by another process
        yield

    monkeypatch.setattr(Run, "locked", completed)
    written = run.weights_path.stat().st_mtime_ns
    assert call(auto_resume=True).path == run.path
    assert run.weights_path.stat().st_mtime_ns == written


def test_a_complete_run_is_left_alone_without_its_data(folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    call = partial(
        train, data, "fast", overrides=[*SMALLEST, "training.epochs=1"], out=tmp_path / "run", device="cpu",
        auto_resume=True,
    )  # fmt: skip
    run = call()
    shutil.rmtree(data)
    assert call().path == run.path


def test_a_run_can_be_ended_within_an_epoch(folder: Path, tmp_path: Path) -> None:
    out, overrides = tmp_path / "run", [*SMALLEST, "evaluation.every=0", "training.ema_decay=0.5"]
    with pytest.raises(InterruptedRunError, match=f"--resume {out} --finish"):
        train(folder, "fast", overrides=overrides, out=out, device="cpu", listener=StopAfter(4))
    with pytest.raises(RunError, match=f"--resume {out} --finish"):
        load_run(out)
    run = resume(out, device="cpu", finish=True)
    stop = {key: value for key, value in run.summary["stopped_early"].items() if key != "patience"}
    assert stop == {
        "epoch": 2, "planned_epochs": 3, "step": 4, "planned_steps": 9, "watched": None,
        "why": "ended on request",
    }  # fmt: skip
    assert (run.summary["epochs"], run.summary["kept_epoch"]) == (2, 2)
    assert run.summary["kept_by"] == "last", "val was looked at only once, so it chose nothing"
    assert [row["step"] for row in metrics(run)] == [3, 4]
    assert metrics(run)[-1]["stopped"] == "ended on request"
    again = load_run(run.path).evaluate(load_data(folder), "test", tta=run.summary["tta"])
    assert again.accuracy == run.summary["accuracy"]
    with pytest.raises(RunError, match="complete already"):
        resume(out, device="cpu", finish=True)
    weights = run.weights_path.read_bytes()
    run.weights_path.unlink()
    assert resume(out, device="cpu").weights_path.read_bytes() == weights
    assert run.summary["stopped_early"]["step"] == 4


def test_the_weights_of_an_ended_run_are_those_of_its_checkpoint(tmp_path: Path) -> None:
    data, out = coloured_data(), tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(
            data, "fast", overrides=[*SMALLEST, "training.ema_decay=0.5"], out=out, device="cpu",
            listener=StopAfter(2),
        )  # fmt: skip
    checkpoint = Run(out).load_checkpoint()
    assert checkpoint is not None
    run = resume(out, data=data, device="cpu", finish=True)
    weights, _ = read_weights(run.weights_path)
    average = checkpoint["state"]["average"]
    assert all(torch.equal(tensor, average[name]) for name, tensor in weights.items())
    assert (run.summary["kept_by"], run.summary["stopped_early"]["step"]) == ("last", 2)


class StopAtEnd(Listener):
    """Ends the process after an epoch, and after its checkpoint."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, result: EpochResult) -> None:
        if result.epoch == self.epoch:
            raise KeyboardInterrupt


def test_a_run_that_has_only_its_end_left_is_not_ended_early(folder: Path, tmp_path: Path) -> None:
    for epoch in (1, 3):
        out, overrides = tmp_path / str(epoch), [*SMALLEST, "checkpoint.min_seconds=0"]
        with pytest.raises(KeyboardInterrupt):
            train(folder, "fast", overrides=overrides, out=out, device="cpu", listener=StopAtEnd(epoch))
        run = resume(out, device="cpu", finish=True)
        assert run.summary["epochs"] == epoch == len(metrics(run))
        assert (run.summary["stopped_early"] is None) == (epoch == 3)


def test_what_cannot_be_ended_early_is_explained(folder: Path, tmp_path: Path) -> None:
    class Crash(Listener):
        def on_step(self, step: StepResult) -> None:
            raise ZeroDivisionError

    out = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(folder, "fast", overrides=SMALLEST, out=out, listener=Crash(), device="cpu")
    with pytest.raises(RunError, match=f"no checkpoint yet.*Resume it: .*--resume {out}$"):
        resume(out, device="cpu", finish=True)
    with pytest.raises(ThumbnetError, match="choose one"):
        resume(out, device="cpu", finish=True, more_epochs=1)
    run = Run(out)
    run.write_recipe(run.recipe.override(["training.frozen=true", "training.epochs=1"]))
    with pytest.raises(RunError, match="fits its last layer as a whole"):
        resume(out, device="cpu", finish=True)


def test_a_resumed_run_takes_no_settings_and_no_other_folder(tmp_path: Path) -> None:
    with pytest.raises(ThumbnetError, match="out and overrides go with more_epochs"):
        resume(tmp_path / "run", overrides=["optimizer.lr=0.1"])
    with pytest.raises(ThumbnetError, match="out and overrides go with more_epochs"):
        resume(tmp_path / "run", out=tmp_path / "other", finish=True)


def test_a_run_of_an_earlier_version_resumes_with_the_calibration_pictures_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, asked = coloured_data(), tmp_path / "run", list[bool]()

    def noted(data: Data, settings: object, keep_classes: bool = True) -> Data:
        asked.append(keep_classes)
        return data

    with pytest.raises(InterruptedRunError):
        train(data, "fast", overrides=SMALLEST, out=out, device="cpu", listener=StopAfter(2))
    monkeypatch.setattr(
        importlib.import_module("thumbnet.training.resuming"), "with_calibration_split", noted
    )
    with pytest.raises(InterruptedRunError):
        resume(out, data=data, device="cpu", listener=StopAfter(4))
    settings = json.loads((out / "run.json").read_text())
    del settings["calibration_keeps_classes"]  # as an earlier version wrote it
    (out / "run.json").write_text(json.dumps(settings))
    resume(out, data=data, device="cpu")
    assert asked == [True, False]
