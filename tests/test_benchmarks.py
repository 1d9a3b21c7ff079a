"""What the benchmark programs share: clocks that wait for the device, statistics, and the device in the JSON."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import accuracy  # noqa: E402
import airbench  # noqa: E402
import measure  # noqa: E402
import training_speed  # noqa: E402

PROGRAMS = sorted((ROOT / "benchmarks").glob("*.py"))
CUDA = torch.device("cuda:0")


class Gpu:
    """A clock, and a device that works in the background: calls return at once, ``wait`` returns when it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.free_at = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)

    def work(self, seconds: float) -> None:
        """Queue ``seconds`` of work; the call itself takes a millisecond."""
        self.now += 0.001
        self.free_at = max(self.free_at, self.now) + seconds

    def wait(self, device: Any = None) -> None:
        self.now = max(self.now, self.free_at)


def test_the_training_speed_counts_only_the_work_of_the_timed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)

    def fit(state: Any, batches: Any, on_step: Callable[[Any], None]) -> Iterator[None]:
        for step in range(1, len(batches) + 1):
            gpu.work(3.0 if step == 1 else 0.5)  # the first step is slow
            on_step(SimpleNamespace(step_in_epoch=step))
        yield None

    monkeypatch.setattr(training_speed, "fit", fit)
    batches = training_speed.RandomBatches(100, 5, torch.device("cpu"))
    rate = training_speed.training_rate(SimpleNamespace(device=CUDA), batches)  # type: ignore[arg-type]
    assert rate == pytest.approx(100 / 0.5, rel=0.01)


def test_the_matrix_rate_counts_neither_the_first_product_nor_the_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu(monkeypatch)
    products = []

    class Matrix:
        def bfloat16(self) -> Matrix:
            gpu.work(0.2)
            return self

        def __matmul__(self, other: Matrix) -> None:
            products.append(1)
            gpu.work(5.0 if len(products) == 1 else 0.1)

    monkeypatch.setattr(torch, "randn", lambda *a, **k: Matrix())
    rate = measure.matrix_rate(CUDA)
    assert rate == pytest.approx(2 * measure.GPU_SIDE**3 / 0.1 / 1e12, rel=0.02)
    assert len(products) == 1 + 3 * measure.GPU_PRODUCTS


def test_the_matrix_rate_of_a_cpu_is_measured() -> None:
    assert 0 < measure.matrix_rate(side=64) < 100


def test_a_report_names_the_device_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "speed.json"
    measure.report("a title", ["what", "how fast"], [["a", "1"]], str(file), {"rate": [1.0]})
    assert json.loads(file.read_text())["hardware"]["device"] == "cpu"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    measure.report("a title", ["what", "how fast"], [["a", "1"]], str(file), {"rate": [1.0]}, CUDA)
    written = json.loads(file.read_text())
    assert (written["hardware"]["device"], written["hardware"]["gpu"]) == ("cuda:0", "a card")
    assert written["rate"] == [1.0]


def test_a_program_that_lets_the_user_choose_the_device_reports_that_device() -> None:
    """A program with --device passes a device to every call of ``report`` and ``matrix_rate``."""
    checked = 0
    for path in PROGRAMS:
        tree = ast.parse(path.read_text("utf-8"))
        calls = [
            node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        if not any(one.func.id == "parser" and any(k.arg == "device" for k in one.keywords) for one in calls):  # type: ignore[attr-defined]
            continue
        for call in calls:
            name = call.func.id  # type: ignore[attr-defined]
            if name == "report":
                assert len(call.args) == 6, (
                    f"{path.name}:{call.lineno} does not say which device was measured"
                )
                checked += 1
            if name == "matrix_rate":
                assert call.args, f"{path.name}:{call.lineno} multiplies on the CPU, whatever --device says"
                checked += 1
    assert checked >= 7


def test_the_summary_of_several_values_has_the_error_of_their_mean() -> None:
    found = measure.summary([1.0, 2.0, 3.0, 6.0])
    assert found["n"] == 4
    assert found["mean"] == 3.0
    assert found["median"] == 2.5
    assert found["deviation"] == pytest.approx(math.sqrt(14 / 3))
    assert found["error"] == pytest.approx(math.sqrt(14 / 3) / 2)
    assert measure.summary([7.0]) == {"n": 1, "mean": 7.0, "median": 7.0, "deviation": 0.0, "error": 0.0}


def test_the_accuracy_benchmark_times_the_command_and_multiplies_on_the_same_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.device] = []
    commands: list[list[str]] = []
    run = subprocess.run

    def rate(device: torch.device) -> float:
        used.append(device)
        return 1.5

    def noted(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return run(command, **options)

    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("THUMBNET_KERNELS", "0")  # compiling them takes longer than this training
    monkeypatch.setattr(accuracy, "matrix_rate", rate)
    monkeypatch.setattr(subprocess, "run", noted)
    options = SimpleNamespace(
        data="digits", recipe="digits", overrides=["model.width=0.25"], cold=True, device="cpu"
    )
    found = accuracy.train_by_command(options, epochs=1, seed=3)
    assert commands[0][1:5] == ["-m", "thumbnet", "train", "digits"]
    assert used == [torch.device("cpu")]
    assert (found["product_tflops"], found["epochs"], found["seed"]) == (1.5, 1, 3)
    assert 0 <= found["accuracy"] <= 1
    assert 0 <= found["plain_accuracy"] <= 1
    assert 0 < found["seconds_training"] < found["seconds"]


def test_a_download_and_warm_caches_are_in_no_training_s_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def training(data: str, words: list[str], out: Path, environment: dict[str, str]) -> Any:
        caches = [Path(environment[name]) for name in ("THUMBNET_CACHE", "TORCHINDUCTOR_CACHE_DIR")]
        assert not any(cache.exists() for cache in caches)
        done.append(" ".join(words[words.index("--data-dir") :]) if "--data-dir" in words else "its path")
        summary = {"accuracy": 0.5, "tta": "none", "seconds_training": 4.0}
        return SimpleNamespace(summary=summary, metrics=[{"test_accuracy": 0.4}]), 5.0

    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path))
    monkeypatch.setattr(accuracy, "matrix_rate", lambda _: 1.0)
    monkeypatch.setattr(accuracy, "load_data", lambda data, data_dir: done.append(f"{data} in {data_dir}"))
    monkeypatch.setattr(accuracy, "timed_training", training)
    accuracy.download_folder.cache_clear()
    for data in ("cifar10", "cifar10", str(tmp_path)):
        options = SimpleNamespace(data=data, recipe="fast", overrides=[], cold=True, device="cpu")
        accuracy.train_by_command(options, epochs=1, seed=0)
    accuracy.download_folder.cache_clear()
    named = f"--data-dir {tmp_path}"
    assert done == [f"cifar10 in {tmp_path}", named, named, "its path"]


REFERENCE = """
import os
from pathlib import Path

compiled = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
print("compiled before:", compiled.exists())
compiled.mkdir(parents=True, exist_ok=True)
print("|          |   eval  |     0.9512  |   0.8971  |       0.9074  |       12.5000  |")
"""


def test_the_reference_compiles_in_every_run_and_tells_both_accuracies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, file = tmp_path / "script.py", tmp_path / "found.json"
    script.write_text(REFERENCE)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # the user's, which is not empty
    monkeypatch.setattr(airbench, "load_data", lambda _: None)
    monkeypatch.setattr(airbench, "write_pictures", lambda data, folder: None)
    monkeypatch.setattr(airbench, "adapted", lambda script, epochs, weights: script)
    monkeypatch.setattr(airbench, "matrix_rate", lambda: 2.0)
    monkeypatch.setattr(sys, "argv", ["airbench.py", str(script), "--json", str(file)])
    for _ in range(2):
        airbench.main()
        found = json.loads(file.read_text())
        assert "compiled before: False" in found["printed"]
        assert (found["plain_accuracy"], found["accuracy"], found["seconds"]) == (0.8971, 0.9074, 12.5)
