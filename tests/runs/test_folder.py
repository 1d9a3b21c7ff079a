from __future__ import annotations

import errno
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from helpers import TINY, Payload
from thumbnet import __version__
from thumbnet.errors import RunError
from thumbnet.files import write_file, write_with
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import find_weights
from thumbnet.training.train import train


def test_a_complete_run_has_all_of_its_files(tiny_run: Run) -> None:
    assert {path.name for path in tiny_run.path.iterdir()} == {
        "recipe.toml", "run.json", "environment.json", "metrics.jsonl",
        "checkpoint.pt", "model.safetensors", "summary.json", ".lock", "metrics.csv", "digests.npy",
    }  # fmt: skip
    assert tiny_run.recipe == load_recipe("one-cycle", [*TINY, "training.min_steps=0"])
    summary = tiny_run.summary
    assert summary["split"] == "test"
    assert 0 <= summary["accuracy"] <= 1
    assert summary["epochs"] == 3
    assert 0 < summary["seconds_training"] <= summary["seconds_total"]
    assert summary["pictures_per_second"] > 0
    assert summary["loss"] > 0
    environment = json.loads((tiny_run.path / "environment.json").read_text())
    assert environment["thumbnet"] == __version__
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["hardware"]["cores"] >= 1
    assert "git_commit" in environment
    lines = [json.loads(line) for line in (tiny_run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(0 <= line["test_accuracy"] <= 1 and line["loss"] > 0 for line in lines)


def test_the_checkpoint_loads_with_weights_only(tiny_run: Run) -> None:
    state = torch.load(tiny_run.path / "checkpoint.pt", weights_only=True)
    assert state["state"]["step"] == 12 - 3  # 3 epochs of 3 batches: drop_last drops the fourth


def test_new_runs_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: Run.create(None, "/some/where/my pictures.tar.gz", "fast"), range(24)))
    assert len({run.path for run in runs}) == 24
    assert all(run.path.parent == Path("runs") and "my-pictures-fast" in run.path.name for run in runs)


def test_an_existing_run_is_never_overwritten(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="already exists"):
        Run.create(tiny_run.path, "x", "y")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "file", "x", "y")
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty", "x", "y").path == tmp_path / "empty"


def test_a_folder_that_is_not_a_run_is_explained(tmp_path: Path, tiny_run: Run) -> None:
    with pytest.raises(RunError, match="there is no run"):
        find_weights(tmp_path / "nowhere")
    with pytest.raises(RunError, match="not a run's folder"):
        find_weights(tmp_path)
    with pytest.raises(RunError, match="not a run's folder"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(RunError, match="--resume"):
        find_weights(tmp_path)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:9] + bytes([content[9] ^ 0x10]) + content[10:]


def test_a_malicious_checkpoint_runs_no_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"state": Payload(trace)}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="cannot read"):
        Run(tmp_path).load_checkpoint()
    assert not trace.exists()


@pytest.mark.parametrize("damage", [truncated, lambda _: b"", lambda _: b"rubbish"])
def test_a_damaged_checkpoint_gives_a_clear_error(damage: Any, tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(damage((tiny_run.path / "checkpoint.pt").read_bytes()))
    with pytest.raises(RunError, match="cannot read"):
        Run(tmp_path).load_checkpoint()


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, "before")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left"):
        write_with(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(RunError, match="cannot write"):
        write_file(tmp_path / "nowhere" / "file", "x")


def die_halfway(file: IO[bytes]) -> None:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"before")
    for _ in range(3):
        child = os.fork()
        if child == 0:
            write_with(path, die_halfway)
        assert os.waitpid(child, 0)[1] == 9
        assert path.read_bytes() == b"before"


def begun(path: Path) -> Run:
    """A run's folder as it is before the first step: with a recipe and settings, without weights."""
    run = Run.create(path, "data", "fast")
    run.begin(load_recipe("tutorial"), {"data": "digits", "who": "né"}, torch.device("cpu"))
    return run


def test_new_runs_are_numbered_from_one_and_named_after_the_data_without_the_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (Run.create(None, "hf:uoft-cs/cifar10", "fast") for _ in range(2))
    assert first.path.name.endswith("-cifar10-fast-1")
    assert second.path.name.endswith("-cifar10-fast-2")
    assert Run.create(tmp_path / "deep" / "er", "x", "y").path.is_dir()


def test_a_folder_with_other_files_is_not_taken_for_a_run(tmp_path: Path, tiny_run: Run) -> None:
    (tmp_path / "picture.png").write_text("x")
    with pytest.raises(RunError, match="not empty: choose another folder"):
        Run.check_free(tmp_path)
    with pytest.raises(RunError, match=r"holds a run.*--more-epochs 10"):
        Run.check_free(tiny_run.path)
    unfinished = begun(tmp_path / "unfinished")
    with pytest.raises(RunError, match="holds a run") as caught:
        Run.check_free(unfinished.path)
    assert "--more-epochs" not in str(caught.value)
    assert "--resume" in str(caught.value)


def test_the_error_names_a_folder_that_cannot_be_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").write_text("a file")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="cannot write in runs: runs is a file"):
        Run.create(None, "x", "y")
    with pytest.raises(RunError, match=r"cannot write in .*runs/below: .*runs is a file"):
        Run.create(tmp_path / "runs" / "below", "x", "y")
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").symlink_to("a drive that is not there")
    with pytest.raises(RunError, match="cannot write in runs: runs is a link to nothing"):
        Run.create(None, "x", "y")


def test_a_folder_that_is_not_writable_is_found_out_before_the_data_are_read(
    read_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"cannot write in .*deep/run: the folder .*read-only is not writable"):
        train("no-such-data", out=read_only / "deep" / "run")
    monkeypatch.chdir(read_only)
    with pytest.raises(RunError, match=r"cannot write in runs: the folder \. is not writable"):
        train("no-such-data")
    with pytest.raises(RunError, match=r"cannot write in .*: the folder .* is not writable"):
        train("no-such-data", out=read_only)


@pytest.mark.parametrize("name", ["recipe.toml", "corrections.csv", "environment.json", "skipped.jsonl"])
def test_a_file_of_the_users_own_is_not_taken_for_that_of_a_killed_training(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match="not empty: choose another folder"):
        train("digits", out=tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}
    (tmp_path / ".lock").touch()  # a training that was killed before its first step had locked the folder
    Run.check_free(tmp_path)


def test_a_second_process_is_refused_at_once_and_the_first_removes_leftovers(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    leftover = run.path / ".checkpoint.pt.abc.tmp"
    leftover.write_text("half")
    with run.locked():
        assert not leftover.exists()
        started = time.perf_counter()
        with pytest.raises(RunError, match="another process is training"), Run(run.path).locked():
            pass
        assert time.perf_counter() - started < 0.5
    with Run(run.path).locked():
        pass


def test_the_name_of_the_lock_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("thumbnet.runs.folder.sync_folder", synced.append)
    with Run(tmp_path).locked():
        assert synced == [tmp_path]

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("thumbnet.runs.folder.sync_folder", fail)
    with pytest.raises(RunError, match="cannot write in .*: Input/output error"), Run(tmp_path).locked():
        pass


def test_a_path_that_is_not_a_folder_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"cannot write in .*file"), Run(tmp_path / "file").locked():
        pass


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_json_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"cannot read .*run\.json: "):
        _ = Run(tmp_path).settings
    with pytest.raises(RunError, match=r"cannot read .*environment\.json: .*No such file"):
        _ = Run(tmp_path).environment


def test_a_json_file_without_an_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(RunError, match=r"run\.json does not hold a JSON object"):
        _ = Run(tmp_path).settings


def test_json_is_written_for_people_to_read(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    assert (run.path / "run.json").read_text("utf-8") == '{\n  "data": "digits",\n  "who": "né"\n}\n'


def test_skipped_pictures_are_listed_in_a_file_only_if_there_are_any(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_skipped([])
    assert list(tmp_path.iterdir()) == []
    run.write_skipped([("train", "é/1.png", "empty"), ("test", "b.png", "damaged")])
    assert (tmp_path / "skipped.jsonl").read_text("utf-8") == (
        '{"split": "train", "name": "é/1.png", "reason": "empty"}\n'
        '{"split": "test", "name": "b.png", "reason": "damaged"}\n'
    )


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_a_skipped_picture_with_a_separator_of_lines_in_its_name_can_be_read_again(
    character: str, tmp_path: Path
) -> None:
    run, skipped = Run(tmp_path), [("train", f"a{character}b.png", "broken"), ("test", "c.png", "empty")]
    run.write_skipped(skipped)
    assert run.skipped == skipped


def test_a_run_is_complete_only_with_both_summary_and_weights(tmp_path: Path, tiny_run: Run) -> None:
    assert tiny_run.is_complete
    run = begun(tmp_path / "run")
    run.save_summary({"accuracy": 1.0})
    assert not run.is_complete
    (run.path / "summary.json").unlink()
    run.weights_path.write_bytes(b"x")
    assert not run.is_complete
    with pytest.raises(RunError, match="is not complete"):
        _ = run.summary


def test_a_checkpoint_is_loaded_but_not_if_its_recipe_has_changed(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    assert run.load_checkpoint() is None
    run.save_checkpoint({"recipe": run.recipe.to_toml(), "step": 3})
    assert run.load_checkpoint() == {"recipe": run.recipe.to_toml(), "step": 3}
    write_file(run.path / "recipe.toml", load_recipe("tutorial", ["training.epochs=3"]).to_toml())
    with pytest.raises(RunError, match=r"run/recipe\.toml has changed since this run started"):
        run.load_checkpoint()


def test_a_run_that_lost_its_recipe_says_so(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run.path / "recipe.toml").unlink()
    with pytest.raises(RunError, match=r"cannot read .*run/recipe\.toml: No such file or directory$"):
        _ = run.recipe


@pytest.mark.parametrize("state", [[1, 2], {"step": 1}, {"recipe": 3}])
def test_a_file_of_tensors_that_is_not_a_checkpoint_is_refused(state: Any, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    torch.save(state, run.path / "checkpoint.pt")
    with pytest.raises(RunError, match="is not a checkpoint of thumbnet"):
        run.load_checkpoint()


def test_one_changed_byte_in_a_checkpoint_is_found(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    run.save_checkpoint({"recipe": run.recipe.to_toml(), "tensor": torch.arange(1000)})
    path = run.path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    at = content.index(torch.arange(500, 504).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="the checksum of .* is wrong"):
        run.load_checkpoint()


def test_a_checkpoint_from_before_the_plan_changed_belongs_to_the_run(tmp_path: Path) -> None:
    """A training with a time budget writes the changed plan first, and its checkpoint later."""
    run = begun(tmp_path / "run")
    settings = run.settings
    run.write_settings({**settings, "minutes": 2.0})
    run.write_recipe(load_recipe("tutorial", ["training.steps=40", "training.epochs=2"]))
    run.save_checkpoint({"recipe": run.recipe.to_toml(), "step": 3})
    plan = ["training.steps=30", "schedule.planned_at=[0,10]", "schedule.planned_steps=[40,30]"]
    run.write_recipe(load_recipe("tutorial", plan))
    assert run.load_checkpoint() is not None
    run.write_recipe(load_recipe("tutorial", [*plan, "optimizer.lr=0.5"]))
    with pytest.raises(RunError, match="has changed"):
        run.load_checkpoint()
    run.write_recipe(load_recipe("tutorial", plan))
    run.write_settings(settings)  # no clock changes the length of this one
    with pytest.raises(RunError, match="has changed"):
        run.load_checkpoint()


def test_another_environment_is_added_when_a_training_is_resumed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cpu = begun(tmp_path / "run"), torch.device("cpu")
    first = run.environment
    assert run.add_environment(cpu, 3) == []
    assert run.environment == first
    other = {**first, "packages": {**first["packages"], "torch": "9.0"}}
    monkeypatch.setattr("thumbnet.runs.folder.environment", lambda device: other)
    here = first["packages"]["torch"]
    assert run.add_environment(cpu, 5) == [f"PyTorch 9.0 instead of {here}"]
    assert run.add_environment(cpu, 6) == []  # compared with the newest
    assert run.environment == {**first, "resumed": [{**other, "step": 5}]}
    monkeypatch.setattr("thumbnet.runs.folder.environment", lambda device: first)
    assert run.add_environment(cpu, 7) == [f"PyTorch {here} instead of 9.0"]
    (run.path / "environment.json").write_text("{")  # no training needs it
    assert run.add_environment(cpu, 8) == []


@pytest.mark.parametrize("wrong", [{"code": 3}, {"code": {"a": 1}}, {"code_before": {"a": "b"}}])
def test_a_damaged_record_of_the_users_code_is_an_error(wrong: dict[str, Any], tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    run.write_settings(wrong)
    with pytest.raises(RunError, match=r"run\.json: code"):
        _ = run.settings


def test_a_checkpoint_whose_recipe_lacks_newer_keys_can_be_loaded(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    text = run.recipe.to_toml()
    assert "steps = 0\n" in text
    run.save_checkpoint({"recipe": text.replace("steps = 0\n", "", 1), "step": 3})
    assert run.load_checkpoint() is not None
    run.save_checkpoint({"recipe": "name = [", "step": 3})
    with pytest.raises(RunError, match="not a checkpoint of this version"):
        run.load_checkpoint()


def test_a_folder_in_which_only_skipped_pictures_were_written_down_is_free(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.skipped == []
    with run.locked():
        run.write_skipped([("train", "red/\udcff3.png", "not a picture")])
    Run.check_free(tmp_path)
    assert run.skipped == [("train", "red/\udcff3.png", "not a picture")]


def test_metrics_of_a_clock_that_stood_still_are_json(tmp_path: Path) -> None:
    Run(tmp_path).write_metrics([{"epoch": 1, "pictures_per_second": float("inf"), "loss": float("nan")}])
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {"epoch": 1, "pictures_per_second": None, "loss": None}


def test_a_run_stands_for_its_path(tiny_run: Run) -> None:
    again = Run(str(tiny_run.path))
    assert again.summary == tiny_run.summary
    assert Path(again) == Path(str(again)) == tiny_run.path
    assert Run(tiny_run).path == tiny_run.path


def test_a_run_shows_what_became_of_it(tiny_run: Run, label_run: Run, tmp_path: Path) -> None:
    accuracy, precision = tiny_run.summary["accuracy"], label_run.summary["map"]
    assert repr(tiny_run) == f"<Run {tiny_run.path}: one-cycle, test accuracy {100 * accuracy:.2f} %>"
    assert repr(label_run) == f"<Run {label_run.path}: one-cycle, test mAP {100 * precision:.2f} %>"
    copy = Run(shutil.copytree(tiny_run.path, tmp_path / "run"))
    (copy.path / "summary.json").write_text("{")
    assert repr(copy).endswith(": cannot be read>")
    (copy.path / "summary.json").unlink()
    assert repr(copy) == f"<Run {copy.path}: one-cycle, not complete>"
    (copy.path / "recipe.toml").write_text("name = 1")
    assert repr(copy).endswith(": cannot be read>")
    assert repr(Run(tmp_path)).endswith(": not a run's folder>")
    assert repr(Run("no\x1bwhere")) == r"<Run no\x1bwhere: there is no such folder>"


def test_the_metrics_are_a_row_per_epoch(tiny_run: Run) -> None:
    assert [row["epoch"] for row in tiny_run.metrics] == [1, 2, 3]
    assert all(0 <= row["test_accuracy"] <= 1 for row in tiny_run.metrics)
