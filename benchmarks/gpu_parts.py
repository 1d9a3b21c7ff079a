"""What the parts of gpu.py do, each in a process of its own: python gpu_parts.py PART OPTIONS."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import PIL
import psutil
import torch
from gpu import NOTES, Options
from gpu_checks import CHECKS, COMPILE_CHECKS, Check, run_checks
from gpu_trainer import Trained, Trainer, loaded, options_from, trainer
from gpu_turns import race
from measure import matrix_rate, median, product_side, spread, summary, wait
from torch.profiler import ProfilerActivity, profile

from thumbnet.cli.console import say, table
from thumbnet.errors import ThumbnetError
from thumbnet.files import write_file
from thumbnet.hardware import choose_device, describe
from thumbnet.sources.load import load_data
from thumbnet.training.fit import StepResult

SMOKE_SIDE = 256  # of the matrices in a smoke test
BUDGETS = {  # settings of `fast` by the work that they cost, in multiples of the recipe's
    "3x, longer": ("training.epochs=45",),
    "3x, wider": ("training.epochs=18", "model.width=1.6"),
    "8x, longer": ("training.epochs=120",),
    "8x, wider": ("training.epochs=30", "model.width=2"),
    "20x, longer": ("training.epochs=300",),
    "20x, wider": ("training.epochs=75", "model.width=2"),
}
BUDGET_ROUNDS = 3
RESNET_EPOCHS = (26, 45, 80)
SPEEDS = {
    "fast": ("fast", ()),
    "fast, always at full size": ("fast", ("schedule.small_until=0", "training.epochs=5")),
    "resnet18": ("resnet18", ("training.epochs=2",)),
}
KERNELS = 20  # rows of the profile


class Notes(dict[str, Any]):
    """The results of this part. ``publish`` writes them where gpu.py looks for them."""

    def publish(self) -> None:
        """Write everything that is known so far, whole or not at all."""
        file = os.environ.get(NOTES)
        if file:
            write_file(Path(file), json.dumps(self))


def machine(options: Options, notes: Notes, folder: Path) -> None:
    """Which machine this is. Also finds out whether device and data are there at all."""
    device = choose_device(options.device)
    notes["hardware"] = describe(device)
    notes["software"] = {
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "driver": driver(), "pillow": PIL.__version__,
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        notes["card"] = {
            "name": properties.name, "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }  # fmt: skip
    notes["card_state_before"] = card_state()
    notes.publish()
    notes["pictures"] = {name: len(split) for name, split in load_data(options.data).splits.items()}
    side = SMOKE_SIDE if options.smoke else product_side(device)
    rates = [matrix_rate(device, side) for _ in range(3)]
    notes["bf16_tflops"], notes["bf16_side"] = max(rates), side
    notes["card_state_after"] = card_state()
    notes.publish()
    name = notes.get("card", notes["hardware"]).get("name") or notes["hardware"]["processor"]
    say(f"{name}, torch {torch.__version__}: {max(rates):.2f} TFLOP/s in bf16 ({side}^3)")


def driver() -> str | None:
    """The version of NVIDIA's driver, or None."""
    return (card_state("driver_version") or "").partition("\n")[0] or None


def card_state(fields: str = "name,clocks.sm,clocks.max.sm,power.draw,temperature.gpu") -> str | None:
    """What nvidia-smi says of the card; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else None


def checks(options: Options, notes: Notes, folder: Path, which: Mapping[str, Check] = CHECKS) -> None:
    """PASS or FAIL, see gpu_checks.py."""
    notes.setdefault("checks", {})
    run_checks(options, folder, which, notes["checks"], notes.publish)
    failed = [name for name, one in notes["checks"].items() if not one["passed"]]
    say(f"{len(notes['checks']) - len(failed)} of {len(notes['checks'])} checks passed")


def compiled(options: Options, notes: Notes, folder: Path) -> None:
    """The check that compiles."""
    checks(options, notes, folder, COMPILE_CHECKS)


def command(options: Options, notes: Notes, folder: Path) -> None:
    """Time `thumbnet train` as a user runs it: once with an empty cache, then with a full one."""
    cache = folder / "cache"
    notes["runs"] = []
    for number in range(2 if options.smoke else 4):
        out = folder / f"run{number}"
        words = ["train", options.data, "--recipe", "fast", "--device", options.device, "--out", str(out)]
        settings = [*options.overrides]
        if options.smoke:
            settings += [
                "data.subset_size=200",
                "training.epochs=1",
                "model.width=0.125",
                "training.min_steps=0",
            ]
        words += [word for setting in settings for word in ("--set", setting)]
        started = time.perf_counter()
        lines = passed_on(
            [sys.executable, "-m", "thumbnet", *words, "--seed", str(number)],
            {**os.environ, "THUMBNET_CACHE": str(cache)},
        )
        seconds = time.perf_counter() - started
        found = json.loads((out / "summary.json").read_text("utf-8"))
        kept = {key: found[key] for key in ("accuracy", "seconds_training")}
        # What thumbnet tells the user of them: on a CPU, nothing.
        graphs = next((line.strip() for line in lines if "CUDA graph" in line), None)
        cached = "warm" if number else "cold"
        notes["runs"].append({"cache": cached, "seconds": seconds, **kept, "graphs": graphs})
        notes.publish()
        say(f"thumbnet train, {cached} cache: {seconds:.2f} s, {found['accuracy']:.2%}")


def passed_on(command: list[str], environment: dict[str, str]) -> list[str]:
    """Run a command and pass its output on as it comes; return its lines.

    Raises:
        CalledProcessError: the command failed.
    """
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return lines


def turns(options: Options, notes: Notes, folder: Path) -> None:
    """Ours and the rivals in turns, see gpu_turns.py."""
    notes["contenders"] = {}

    def publish(name: str, found: dict[str, Any]) -> None:
        entry = {**found, **statistics_of(found["runs"])}
        notes["contenders"][name] = entry
        notes.publish()
        if "failure" in found:
            say(f"{name} failed: {found['failure']}")
        elif found["runs"]:
            last = found["runs"][-1]
            say(f"{name}: {result_of(last)}")

    race(options, folder, publish)
    print_statistics(notes["contenders"])
    if any("failure" in one for one in notes["contenders"].values()):
        raise SystemExit("a contender failed")


def result_of(run: Mapping[str, Any]) -> str:
    """Accuracy and time of a training and, of one of ours, why its steps were not CUDA graphs."""
    why = f" (no CUDA graphs: {run['why_eager']})" if run.get("why_eager") else ""
    return f"{run['accuracy']:.2%} in {run['seconds']:.3f} s{why}"


def statistics_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of the accuracies, in percent, and of the seconds of some trainings."""
    if not runs:
        return {}
    accuracies = [100 * run["accuracy"] for run in runs]
    return {"accuracy_percent": summary(accuracies), "seconds": summary([run["seconds"] for run in runs])}


def print_statistics(entries: dict[str, Any]) -> None:
    """Print a table with a row for each entry that has trainings."""
    rows = []
    for name, entry in entries.items():
        if entry.get("runs"):
            accuracy, seconds = entry["accuracy_percent"], entry["seconds"]
            rows.append([
                name, str(accuracy["n"]), f"{accuracy['mean']:.2f} ± {accuracy['error']:.2f}",
                f"{accuracy['deviation']:.2f}", f"{seconds['mean']:.3f} ± {seconds['error']:.3f}",
                spread([run["seconds"] for run in entry["runs"]], ".3f"),
            ])  # fmt: skip
    say(table(["what", "n", "accuracy, %", "deviation", "seconds", "spread"], rows))


def speed(options: Options, notes: Notes, folder: Path) -> None:
    """Pictures per second, the fraction of the bf16 peak and peak memory; then where a step's time goes."""
    device, data = choose_device(options.device), loaded(options)
    peak = matrix_rate(device, SMOKE_SIDE if options.smoke else None)
    notes.update(bf16_tflops=peak, recipes={})
    rows = []
    for title, (name, settings) in SPEEDS.items():
        entry = measured_speed(trainer(options, data, name, settings), peak, 1 if options.smoke else 3)
        notes["recipes"][title] = entry
        notes.publish()
        rows.append([
            title, f"{median(entry['pictures_per_second']):,.0f}", f"{entry['fraction_of_bf16_peak']:.1%}",
            f"{entry['peak_memory_bytes'] / 1e9:.2f} GB", entry["steps_taken"],
        ])  # fmt: skip
    say(table(["recipe", "pictures/s", "of the peak", "memory", "steps"], rows))
    rows = []  # only now, because a profiler may stay attached and slow down all that follows
    for title, (name, settings) in SPEEDS.items():
        step = profiled_step(trainer(options, data, name, settings))
        notes["recipes"][title]["step"] = step
        notes.publish()
        rows.append([title, f"{step['kernels']:.0f}", f"{step['busy_ms']:.2f} of {step['ms']:.2f} ms"])
    say(table(["recipe", "kernels per step", "busy, profiled"], rows))


def measured_speed(trained: Trainer, peak: float, rounds: int) -> dict[str, Any]:
    """Train warm, so many ``rounds``. ``peak`` is in TFLOP/s."""
    flops = trained.flops()
    trained.run(0)
    if trained.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trained.device)
    runs = [trained.run(seed) for seed in range(rounds)]
    seconds = [run.seconds_training for run in runs]
    return {
        "pictures_per_second": [trained.pictures / one for one in seconds],
        "seconds_training": seconds,
        "steps": trained.state.total_steps,
        "flops": flops,
        "fraction_of_bf16_peak": flops / median(seconds) / 1e12 / peak,
        "peak_memory_bytes": peak_memory(trained.device),
        "steps_taken": runs[-1].steps,
        "why_eager": runs[-1].why_eager,
    }


def peak_memory(device: torch.device) -> int:
    """The most memory that torch held at once on a GPU; for a CPU, what this process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def profiled_step(trained: Trainer) -> dict[str, Any]:
    """The mean step of a training under the profiler: kernels, busy time, and the longest kernels.

    The first step does not count, nor does what came before it. On a CPU, operations stand in for kernels.
    """
    trained.run(0)  # warm
    on_gpu = trained.device.type == "cuda"
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profile(activities=activities):  # graphs that are recorded before the first profile cannot be traced
        torch.ones(1, device=trained.device) + 1
    profiler = profile(activities=activities)
    started = 0.0

    def on_step(step: StepResult) -> None:
        nonlocal started
        if step.step == 1:
            wait(trained.device)
            profiler.start()
            started = time.perf_counter()

    trained.restart(0)
    trained.train(on_step)
    seconds = time.perf_counter() - started
    profiler.stop()
    wanted = "CUDA" if on_gpu else "CPU"
    steps = trained.state.total_steps - 1
    found: list[tuple[float, int, str]] = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in profiler.key_averages()
        if event.device_type.name == wanted
    ]
    longest = sorted(found, reverse=True)[:KERNELS]
    return {
        "ms": 1e3 * seconds / steps,
        "busy_ms": sum(microseconds for microseconds, _, _ in found) / 1e3 / steps,
        "kernels": sum(count for _, count, _ in found) / steps,
        "longest": [
            {"name": name[:100], "ms_per_step": microseconds / 1e3 / steps, "per_step": count / steps}
            for microseconds, count, name in longest
        ],
    }


def budgets(options: Options, notes: Notes, folder: Path) -> None:
    """``fast`` for several times its work, longer or wider, in turns."""
    smaller = options.smoke
    data = loaded(options)
    notes["budgets"] = {name: {"settings": settings, "runs": []} for name, settings in BUDGETS.items()}
    trainers: dict[str, Trainer] = {}
    for seed in range(1 if smaller else BUDGET_ROUNDS):
        for name, settings in BUDGETS.items():
            if name not in trainers:
                trainers[name] = trainer(options, data, "fast", settings)
                trainers[name].run(0)
            note_run(notes, notes["budgets"][name], name, trainers[name].run(seed), seed)
    print_statistics(notes["budgets"])


def resnet18(options: Options, notes: Notes, folder: Path) -> None:
    """The recipe ``resnet18`` for several numbers of epochs, once each; the first step is not warm."""
    data = loaded(options)
    notes["epochs"] = {}
    for epochs in RESNET_EPOCHS:
        name = f"{epochs} epochs"
        notes["epochs"][name] = {"runs": []}
        trained = trainer(options, data, "resnet18", (f"training.epochs={epochs}",))
        note_run(notes, notes["epochs"][name], name, trained.run(0), 0)
    print_statistics(notes["epochs"])


def note_run(notes: Notes, entry: dict[str, Any], name: str, run: Trained, seed: int) -> None:
    """Add a training to an entry, publish the notes, and say so."""
    found: dict[str, Any] = {"seed": seed, **asdict(run)}
    entry["runs"].append(found)
    entry.update(statistics_of(entry["runs"]))
    notes.publish()
    say(f"{name}: {result_of(found)}")


PARTS: dict[str, Callable[[Options, Notes, Path], None]] = {
    "machine": machine, "checks": checks, "turns": turns, "command": command, "speed": speed,
    "compiled": compiled, "budgets": budgets, "resnet18": resnet18,
}  # fmt: skip


def main() -> None:
    """Run one part. A mistake in the options ends with status 2."""
    options = options_from(json.loads(sys.argv[2]))
    notes = Notes()
    file = os.environ.get(NOTES)
    if file and Path(file).exists():  # this process replaced one that could not go on
        notes.update(json.loads(Path(file).read_text("utf-8")))
    try:
        with tempfile.TemporaryDirectory(dir=Path(file).parent if file else None) as folder:
            PARTS[sys.argv[1]](options, notes, Path(folder))
    except ThumbnetError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
