from __future__ import annotations

import json
import os
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


def test_a_complete_run_holds_what_is_promised(tiny_run: Run) -> None:
    assert {path.name for path in tiny_run.path.iterdir()} == {
        "recipe.toml", "run.json", "environment.json", "metrics.jsonl",
        "checkpoint.pt", "model.safetensors", "summary.json", ".lock", "metrics.csv", "digests.npy",
    }  # fmt: skip
    assert tiny_run.recipe == load_recipe("resnet18", TINY)
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
    assert state["state"]["step"] == 12 - 3  # drop_last: three batches of 16 of 60 pictures, three epochs


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


def test_what_is_no_run_is_explained(tmp_path: Path, tiny_run: Run) -> None:
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


def test_a_crafted_checkpoint_runs_nothing(tmp_path: Path) -> None:
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


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
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


def test_a_write_that_dies_at_any_moment_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"before")
    for _ in range(3):
        child = os.fork()
        if child == 0:
            write_with(path, die_halfway)
        assert os.waitpid(child, 0)[1] == 9
        assert path.read_bytes() == b"before"
