"""Contenders that train in turns on one GPU, each in a process of its own, warm.

Every contender first trains once without being measured, so its networks are compiled and its CUDA graphs
recorded. A rival may compile for minutes, so this may take all of the part's time but a reserve for the
rounds. Then a round is one training of each, with the round's number as the seed. A contender that fails or
hangs leaves the race; the others go on.

A rival is a script with the outline of airbench94_muon.py, which cifar10_speedrun.py shares: ``CifarNet``,
``main(run, model)`` and ``print_training_details(variables, is_final_entry)``. On a GPU it runs unchanged,
with its own clock, which counts whitening, training and evaluation with test-time augmentation. Only its main
block is left out: a loop over 200 runs, in which cifar10_speedrun.py also lets the GPU idle for some seconds
before each run. Its pictures are the same as ours, uint8 from the same decoder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from airbench import write_pictures
from gpu import LIMIT, Options
from gpu_trainer import loaded, options_from, trainer

from thumbnet.hardware import choose_device

RESERVE_PART = 0.3  # of the part's time limit, kept for the rounds; loading and compiling may take the rest
ROUND_PART = 0.2  # for one training

# On a CPU, which is only for trying this program: no CUDA, bfloat16 for float16, and no compiling.
ON_CPU = (
    (r'torch\.device\("cuda"\)', '"cpu"'),
    (r'device="cuda"', 'device="cpu"'),
    (r"\.(cuda|pin_memory)\(\)", ""),
    (r"\.half\(\)", ".bfloat16()"),
    (r"torch\.half\b", "torch.bfloat16"),
)
IN_SMOKE = (
    (r"batch_size = \d+\n", "batch_size = 50\n"),
    (r"ceil\([\d.]+ \* len\(train_loader\)\)", "ceil(len(train_loader))"),
)


class Contender:
    """A process that trains on request."""

    def __init__(self, name: str, what: dict[str, Any], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log".replace("/", "_").replace(" ", "_")
        environment = dict(os.environ)
        if what["options"]["device"] == "cpu":
            environment["TORCHDYNAMO_DISABLE"] = "1"
        command = [sys.executable, str(Path(__file__).resolve()), json.dumps(what)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=folder,
                env=environment,  # in this process group, so that ending the part ends its contenders
            )  # fmt: skip
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, request: str, seconds: float) -> dict[str, Any]:
        """Send a line and return the answer.

        Raises:
            RuntimeError: the process ended, or did not answer in time; with the end of its output.
        """
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(f"{request}\n".encode())
            self.process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise RuntimeError(f"no answer within {seconds:.0f} s{self._tail()}") from None
        except BrokenPipeError:
            line = b""
        if not line:
            raise RuntimeError(f"its process ended with status {self.process.wait()}{self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _tail(self) -> str:
        lines = self.log.read_text("utf-8", errors="replace").splitlines()[-12:]
        return ":\n" + "\n".join(lines) if lines else ""


def race(
    options: Options, folder: Path, publish: Callable[[str, dict[str, Any]], None]
) -> dict[str, list[dict[str, Any]]]:
    """Warm up all contenders, then let them take turns; return each one's trainings.

    Args:
        options: which contenders, and how many rounds.
        folder: for the pictures of the rivals and the logs.
        publish: called with a contender's name and what is known of it after each of its trainings.
    """
    began = time.perf_counter()
    limit = min(float(os.environ.get(LIMIT, "inf")), threading.TIMEOUT_MAX)
    if options.rivals:
        write_pictures(loaded(options), folder)
    asked: dict[str, Any] = {f"fast {settings}".strip(): settings for settings in ("", *options.variants)}
    kinds = {name: {"settings": settings.split()} for name, settings in asked.items()}
    kinds |= {name: {"script": script} for name, script in options.rivals.items()}
    found: dict[str, dict[str, Any]] = {name: {"runs": []} for name in kinds}
    racing: dict[str, Contender] = {}

    def ask(contender: Contender, request: str, seconds: float) -> dict[str, Any] | None:
        try:
            return contender.ask(request, seconds)
        except RuntimeError as error:
            found[contender.name]["failure"] = str(error)
            publish(contender.name, found[contender.name])
            racing.pop(contender.name, None)
            contender.close()
            return None

    try:
        for name, kind in kinds.items():  # one after the other: autotuning needs the GPU for itself
            racing[name] = Contender(name, {"options": asdict(options), **kind}, folder)
            started = time.perf_counter()
            left = (1 - RESERVE_PART) * limit - (started - began)
            warm = ask(racing[name], "warm", max(left, 0.0))
            if warm is not None:
                found[name]["seconds_to_warm_up"] = round(time.perf_counter() - started, 2)
                publish(name, found[name])
        for seed in range(options.rounds):
            for name, contender in list(racing.items()):
                answer = ask(contender, str(seed), ROUND_PART * limit)
                if answer is not None:
                    found[name]["runs"].append({"seed": seed, **answer})
                    publish(name, found[name])
    finally:
        for contender in racing.values():
            contender.close()
    return {name: one["runs"] for name, one in found.items()}


# What follows runs in the contenders' processes.


def ours(options: Options, settings: list[str]) -> Callable[[int | None], dict[str, Any]]:
    """A function that trains ``fast`` with a seed; None warms up."""
    trained = trainer(options, loaded(options), "fast", tuple(settings))
    return lambda seed: asdict(trained.run(seed or 0))


def rival(options: Options, script: Path) -> Callable[[int | None], dict[str, Any]]:
    """A function that runs a rival's training with a seed; None warms up.

    Raises:
        SystemExit: the script has another outline.
    """
    device = choose_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    module = load_script(script, device, options.smoke)
    final: dict[str, float] = {}

    def note(variables: dict[str, Any], is_final_entry: bool) -> None:
        if is_final_entry:
            final.update(accuracy=float(variables["tta_val_acc"]), seconds=float(variables["time_seconds"]))

    module.print_training_details = note  # type: ignore[attr-defined]
    module.print_columns = lambda *a, **k: None  # type: ignore[attr-defined]
    model = module.CifarNet().to(device).to(memory_format=torch.channels_last)
    if device.type == "cuda":
        model.compile(mode="max-autotune")  # as both scripts do

    def run(seed: int | None) -> dict[str, Any]:
        torch.manual_seed(seed or 0)
        started = time.perf_counter()
        module.main("warmup" if seed is None else seed + 1, model)
        return {**final, "seconds_with_loading": time.perf_counter() - started}

    return run


def load_script(script: Path, device: torch.device, smoke: bool) -> ModuleType:
    """Import a rival's script, adapted to a CPU or to few pictures where that was asked for.

    Raises:
        SystemExit: it has another outline than airbench94_muon.py.
    """
    text = script.read_text("utf-8")
    changes = (*(ON_CPU if device.type == "cpu" else ()), *(IN_SMOKE if smoke else ()))
    for pattern, new in changes:
        text = re.sub(pattern, new, text)
    changed = Path.cwd() / f"rival_{script.stem}.py"
    changed.write_text(text, "utf-8")
    sys.argv = [str(changed)]  # the scripts read their own text
    stand_in_for_torchvision()
    if device.type == "cpu":
        torch.cuda.Event, torch.cuda.synchronize = CpuEvent, lambda *a: None  # type: ignore[assignment, misc]
    spec = importlib.util.spec_from_file_location(changed.stem, changed)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[changed.stem] = module
    spec.loader.exec_module(module)
    for name in ("CifarNet", "main", "print_training_details"):
        if not hasattr(module, name):
            raise SystemExit(f"{script} is not supported: it has no {name}, as airbench94_muon.py has")
    return module


def stand_in_for_torchvision() -> None:
    """Provide the one thing that the scripts use of torchvision, ``Normalize``, if it is not installed."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    torchvision, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    transforms.Normalize = Normalize  # type: ignore[attr-defined]
    torchvision.transforms = transforms  # type: ignore[attr-defined]
    sys.modules.update({"torchvision": torchvision, "torchvision.transforms": transforms})


class Normalize:
    """``torchvision.transforms.Normalize`` for batches [B, 3, H, W], by its formula."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise ``images``."""
        return (images - self.mean.to(images)) / self.std.to(images)


class CpuEvent:
    """``torch.cuda.Event`` by the computer's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        """Note the time."""
        self.at = time.perf_counter()

    def elapsed_time(self, other: CpuEvent) -> float:
        """Milliseconds from this event to ``other``."""
        return 1e3 * (other.at - self.at)


@contextmanager
def answers() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Provide a function that answers on stdout. Everything else that is printed goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def answer(content: dict[str, Any]) -> None:
            out.write(json.dumps(content) + "\n")
            out.flush()

        yield answer


def main() -> None:
    """Be a contender: answer each line of stdin, "warm" or a seed, after a training."""
    what = json.loads(sys.argv[1])
    options = options_from(what["options"])
    with answers() as answer:
        run = rival(options, Path(what["script"])) if "script" in what else ours(options, what["settings"])
        for line in sys.stdin:
            request = line.strip()
            answer(run(None if request == "warm" else int(request)))


if __name__ == "__main__":
    main()
