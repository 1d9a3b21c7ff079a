"""benchmarks/gpu.py: parts that cannot cost each other anything, tried on a CPU."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from helpers import coloured_data
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import kept_per_epoch
from thumbnet.training import fit as fit_module
from thumbnet.training import graphed, muon
from thumbnet.training.device_epoch import DeviceEpoch
from thumbnet.training.recording import Recorder
from training_helpers import Clock

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "benchmarks" / "gpu.py"
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402
import gpu_checks  # noqa: E402
import gpu_parts  # noqa: E402
import gpu_trainer  # noqa: E402
import gpu_turns  # noqa: E402

CPU = torch.device("cpu")

# The outline of airbench94_muon.py, with a network of one layer.
RIVAL = """
import sys
with open(sys.argv[0]) as f:
    code = f.read()
import torch
from torch import nn
import torchvision.transforms as T

class CifarNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10).half()
    def forward(self, x):
        return self.head(x.flatten(1))

def print_training_details(variables, is_final_entry):
    print(variables)

def main(run, model):
    batch_size = 2000
    data = torch.load("cifar10/train.pt", map_location=torch.device("cuda"))
    images = T.Normalize(torch.tensor((0.5, 0.5, 0.5)), torch.tensor((0.2, 0.2, 0.2)))(
        (data["images"].half() / 255).permute(0, 3, 1, 2))
    starter = torch.cuda.Event(enable_timing=True)
    ender = torch.cuda.Event(enable_timing=True)
    starter.record()
    outputs = model(images[:batch_size])
    noise = torch.rand(1).item()
    ender.record()
    torch.cuda.synchronize()
    time_seconds = 1e-3 * starter.elapsed_time(ender)
    print_training_details(dict(tta_val_acc=0.0, time_seconds=0.0), is_final_entry=False)
    tta_val_acc = noise
    print_training_details(locals(), is_final_entry=True)

if __name__ == "__main__":
    raise SystemExit("the main block must not run")
"""


def part(name: str, program: str, limit: float = 60) -> gpu.Part:
    """A part that is a small program. ``note(results)`` writes its results."""
    start = """
        import json, os, sys, time
        from pathlib import Path
        def note(results):
            file = Path(os.environ["THUMBNET_NOTES"])
            file.with_suffix(".new").write_text(json.dumps(results))
            file.with_suffix(".new").replace(file)
    """
    code = textwrap.dedent(start) + textwrap.dedent(program)
    return gpu.Part(name, "a test", limit, (sys.executable, "-c", code))


def run(*parts: gpu.Part, file: Path | None = None, total: float = 120) -> tuple[bool, dict[str, Any]]:
    record: dict[str, Any] = {"title": "a test"}
    return gpu.run_parts(parts, record, file, total), record["parts"]


def test_a_part_that_ends_well_keeps_its_results(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    well, _ = run(part("one", "note({'rate': 7}); print('measured')"), file=file)
    assert well
    record = json.loads(file.read_text())
    assert record["title"] == "a test"
    entry = record["parts"]["one"]
    assert (entry["status"], entry["results"]) == ("done", {"rate": 7})
    assert 0 < entry["seconds"] < 60
    assert "last_lines" not in entry


def test_a_part_that_crashes_costs_the_next_one_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    well, parts = run(
        part("first", "note({'half': 1}); print('about to crash', flush=True); os.abort()"),
        part("second", "note({'whole': 2})"),
        file=file,
    )
    assert not well
    assert parts["first"]["status"] == "failed"
    assert parts["first"]["exit_status"] == -signal.SIGABRT
    assert parts["first"]["results"] == {"half": 1}
    assert "about to crash" in parts["first"]["last_lines"]
    assert parts["second"]["status"] == "done"
    assert json.loads(file.read_text())["parts"] == parts
    assert "about to crash" in capfd.readouterr().out


def test_only_the_last_lines_of_a_failed_part_are_recorded() -> None:
    _, parts = run(part("one", "print('\\n'.join(map(str, range(1000)))); raise SystemExit(3)"))
    assert parts["one"]["exit_status"] == 3
    assert parts["one"]["last_lines"] == [str(number) for number in range(970, 1000)]


def test_a_part_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    hanging = f"""
        import subprocess
        started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path({str(child)!r}).write_text(str(started.pid))
        note({{'started': True}})
        print("hanging now", flush=True)
        time.sleep(600)
    """

    def seconds(running: gpu.Running) -> float:
        """Too many for the first part, once it hangs."""
        return 10.0 if b"hanging now" in running.log.read_bytes() else 0.0

    monkeypatch.setattr(gpu.Running, "seconds", property(seconds))
    began = time.monotonic()
    _, parts = run(part("hangs", hanging, limit=8), part("next", "note({'ran': True})"))
    assert time.monotonic() - began < 60
    assert parts["hangs"]["status"] == "timed out"
    assert parts["hangs"]["results"] == {"started": True}
    assert parts["hangs"]["last_lines"] == ["hanging now"]
    assert parts["next"]["status"] == "done"
    pid = int(child.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_total_time_bounds_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LEAST", 1.0)
    began = time.monotonic()
    well, parts = run(
        part("long", "time.sleep(600)", limit=600), part("late", "note({'ran': True})"), total=2
    )
    assert time.monotonic() - began < 40
    assert not well
    assert parts["long"]["status"] == "timed out"
    assert parts["long"]["limit_seconds"] <= 2
    assert parts["late"] == {"status": "no time left"}


def test_results_reach_the_file_while_the_part_is_still_at_work(tmp_path: Path) -> None:
    file, seen = tmp_path / "gpu.json", tmp_path / "seen"
    watching = f"""
        note({{'round': 1}})
        record = {{}}
        while record.get("parts", {{}}).get("one", {{}}).get("results") != {{'round': 1}}:
            time.sleep(0.05)
            record = json.loads(Path({str(file)!r}).read_text())
        Path({str(seen)!r}).write_text(record["parts"]["one"]["status"])
    """
    well, _ = run(part("one", watching), file=file)
    assert well
    assert seen.read_text() == "running"


def test_everything_finds_this_copy_of_thumbnet_whatever_folder_it_works_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an installation: ``-S`` leaves out site-packages, and contenders work in folders of their own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["src", "", "some/where"]))
    find = "import importlib.util; print(importlib.util.find_spec('thumbnet').origin)"
    looking = f"""
        import subprocess
        command = [sys.executable, "-S", "-c", {find!r}]
        found = subprocess.run(command, cwd={str(tmp_path)!r}, capture_output=True, text=True)
        note({{"found": found.stdout.strip(), "path": os.environ["PYTHONPATH"].split(os.pathsep)}})
    """
    _, parts = run(part("looks", looking))
    results = parts["looks"]["results"]
    assert results["found"] == str(ROOT / "src" / "thumbnet" / "__init__.py")
    here = Path.cwd()
    assert results["path"] == [str(ROOT / "src"), str(here / "src"), str(here / "some/where")]


def test_a_failed_check_is_a_failure_although_its_part_is_done() -> None:
    checks = "note({'checks': {'a': {'passed': True}, 'b': {'passed': %s}}})"
    assert run(part("checks", checks % "True"))[0]
    well, parts = run(part("checks", checks % "False"))
    assert parts["checks"]["status"] == "done"
    assert not well


def test_a_mistake_in_the_options_ends_everything_at_once() -> None:
    with pytest.raises(SystemExit) as error:
        run(part("machine", "raise SystemExit(2)"), part("next", "note({'ran': True})"))
    assert error.value.code == 2


def program(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PROGRAM), *words], capture_output=True, text=True, **more)


def test_a_terminated_program_ends_its_part_and_keeps_the_file(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [
        sys.executable,
        str(PROGRAM),
        "--device",
        "cpu",
        "--smoke",
        "--data",
        "digits",
        "--json",
        str(file),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("== machine")
    children: list[psutil.Process] = []
    while not children:
        time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
    time.sleep(0.5)  # the program is waiting for its part now
    process.terminate()
    assert process.wait(60) == 130
    process.stdout.close()
    assert json.loads(file.read_text())["parts"]["machine"]["status"] == "interrupted"
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rival", "airbench=missing.py"], "expected NAME=SCRIPT, with the path of a Python script"),
        (["--rival", "airbench94_muon.py"], "expected NAME=SCRIPT"),
        (["--limit", "turn=5"], "--limit turn: there is no such part; choose from machine, checks"),
        (["--limit", "turns=-5"], "-5 is not a positive number"),
        (["--total-minutes", "0"], "0 is not a positive number"),
        (["--only", "everything"], "invalid choice: 'everything'"),
        (["--json", "missing/gpu.json"], "there is no such folder"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        gpu.main(words)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_the_list_names_every_part_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert listed == list(gpu_parts.PARTS)


def test_the_pages_commands_are_understood_and_end_before_a_call_of_ten_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_rival", lambda text: tuple(text.split("=")))  # the scripts need not be there
    found: list[list[str]] = []
    for page in ("docs/gpu.md", "docs/results.md", "benchmarks/gpu.py"):
        text = re.sub(r"\\+\n\s*", "", (ROOT / page).read_text("utf-8"))
        lines = re.findall(
            r"^ *(?:PYTHONPATH=\S+ )?(?:\S+/)?python3? benchmarks/gpu\.py (.+)$", text, re.MULTILINE
        )
        found += [
            line.replace("$OUT", str(tmp_path)).replace("build/smoke", "smoke").split() for line in lines
        ]
    assert len(found) == 9
    for words in found:
        parsed = gpu.parse(words)
        assert parsed.total_minutes <= 9.5, words


def test_only_selects_parts_and_always_says_which_machine() -> None:
    options = gpu.Options(data="digits", device="cpu", smoke=True)
    chosen = gpu.parts_for(options, ["speed", "checks"], {"speed": 9.0})
    assert [(one.name, one.limit) for one in chosen][::2] == [("machine", 120), ("speed", 9.0)]
    assert [one.name for one in chosen] == ["machine", "checks", "speed"]
    assert gpu_trainer.options_from(json.loads(chosen[0].command[-1])) == options


@pytest.mark.skipif("THUMBNET_SLOW" not in os.environ, reason="takes minutes: make test SLOW=1")
@pytest.mark.timeout(1800)  # a dozen processes; each imports torch
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    rival, broken = tmp_path / "rival.py", tmp_path / "broken.py"
    rival.write_text(RIVAL)
    broken.write_text(RIVAL.replace("noise = torch.rand(1).item()", "noise = torch.rand(1).item() / 0"))
    file = tmp_path / "gpu.json"
    done = program(
        "--device", "cpu", "--smoke", "--data", "digits", "--rounds", "2", "--json", str(file),
        "--rival", f"tiny={rival}", "--rival", f"broken={broken}",
        "--variant", "augment.flip=none", "--commit", "abc", "--total-minutes", "30",
        *(word for one in gpu.PARTS for word in ("--limit", f"{one.name}=500")),
    )  # fmt: skip
    record = json.loads(file.read_text())
    parts = record["parts"]
    status = {name: one["status"] for name, one in parts.items()}
    assert status == {name: "failed" if name == "turns" else "done" for name in gpu_parts.PARTS}, done.stdout
    assert done.returncode == 1  # a contender failed
    assert record["commit"] == "abc"
    machine = parts["machine"]["results"]
    assert machine["software"]["torch"] == torch.__version__
    assert machine["hardware"]["device"] == "cpu"
    assert machine["bf16_tflops"] > 0
    assert machine["pictures"]["test"] > 100
    checks = parts["checks"]["results"]["checks"]
    assert {one["result"] for one in checks.values()} == {"PASS", "SKIP"}
    assert list(checks) == list(gpu_checks.CHECKS)
    assert list(parts["compiled"]["results"]["checks"]) == list(gpu_checks.COMPILE_CHECKS)
    assert [one["cache"] for one in parts["command"]["results"]["runs"]] == ["cold", "warm"]
    contenders = parts["turns"]["results"]["contenders"]
    assert set(contenders) == {"fast", "fast augment.flip=none", "tiny", "broken"}
    for name in ("fast", "fast augment.flip=none", "tiny"):
        assert [one["seed"] for one in contenders[name]["runs"]] == [0, 1], name
        assert contenders[name]["seconds"]["n"] == 2
    assert contenders["tiny"]["runs"][0]["accuracy"] != contenders["tiny"]["runs"][1]["accuracy"]
    assert "ZeroDivisionError" in contenders["broken"]["failure"]
    speed = parts["speed"]["results"]["recipes"]
    assert all(0 < one["fraction_of_bf16_peak"] < 1 for one in speed.values())
    assert speed["fast"]["peak_memory_bytes"] > 1e6
    assert speed["fast"]["why_eager"] == "the device is cpu"
    assert speed["resnet18"]["step"]["longest"][0]["ms_per_step"] > 0
    assert len(parts["budgets"]["results"]["budgets"]) == len(gpu_parts.BUDGETS)
    assert list(parts["resnet18"]["results"]["epochs"]) == ["26 epochs", "45 epochs", "80 epochs"]


def test_a_missing_data_set_is_an_error_with_status_2(tmp_path: Path) -> None:
    done = program("--device", "cpu", "--data", "no-such-data", "--json", "gpu.json", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: " in done.stdout
    assert "no-such-data" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def trainer(*settings: str) -> gpu_trainer.Trainer:
    small = ["training.batch_size=20", "training.epochs=2", "training.min_steps=0", "model.width=0.125"]
    recipe = load_recipe("fast", [*small, *settings])
    return gpu_trainer.Trainer(recipe, coloured_data(count=90, side=32), CPU)


def test_a_repeated_training_equals_a_new_one_to_the_bit() -> None:
    repeated = trainer("training.ema_decay=0.9")
    repeated.run(0)
    repeated.run(5)
    fresh = trainer("training.ema_decay=0.9", "seed=5")
    fresh.train()
    for first, second in ((repeated.state.model, fresh.state.model),
                          (repeated.state.evaluated_model, fresh.state.evaluated_model)):  # fmt: skip
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), name


def test_flops_count_smaller_pictures_with_what_they_cost() -> None:
    whole = trainer("schedule.small_until=0")
    small = trainer("schedule.small_until=1", "schedule.small_sides=[0.5]")
    assert whole.pictures == small.pictures
    assert 0.15 < small.flops() / whole.flops() < 0.3


def test_the_clock_leaves_out_recording_graphs_but_not_the_choices_of_the_first_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    choose, record, choices = vars(fit_module)["choose_steps"], Recorder.record, DeviceEpoch._choices

    def slow_record(recorder: Recorder, work: Callable[[], None]) -> Callable[[], None]:
        clock.now += 7
        return record(recorder, work)

    def slow_choices(epoch: DeviceEpoch, number: int) -> list[torch.Tensor]:
        clock.now += 5
        return choices(epoch, number)

    monkeypatch.setattr(graphed, "DEVICES", ("cpu",))
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 0)
    monkeypatch.setattr(Recorder, "record", slow_record)
    monkeypatch.setattr(DeviceEpoch, "_choices", slow_choices)
    monkeypatch.setattr(gpu_trainer, "time", SimpleNamespace(perf_counter=clock))
    run = trainer().run(0)
    assert run.steps == "GraphedSteps"
    assert run.seconds_recording == 3 * 7  # pictures have three sizes
    assert run.seconds_training == run.seconds == 2 * 5  # two epochs
    assert (vars(fit_module)["choose_steps"], vars(Recorder)["record"]) == (choose, slow_record)


def test_without_graphs_nothing_is_left_out() -> None:
    assert trainer().train() == gpu_trainer.Taken("EagerSteps", "the device is cpu", False, False, 0)


@pytest.fixture
def refused_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which every training can run as graphs, and that refuses to record any."""

    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(graphed, "DEVICES", ("cpu",))
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 0)
    monkeypatch.setattr("thumbnet.training.steps.GraphedSteps", refuse)


@pytest.mark.usefixtures("refused_graphs")
def test_a_training_says_that_cuda_refused_its_graphs() -> None:
    run = trainer().run(0)
    assert run.steps == "EagerSteps"
    assert "not permitted when stream is capturing" in run.why_eager
    asked = trainer("training.graph=off").train()
    assert (asked.refused, asked.why_eager) == (False, "the recipe says training.graph = off")


class Replaced(Exception):
    """This process would have been replaced by a new one."""


@pytest.fixture
def no_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def execv(path: str, words: list[str]) -> None:
        assert path == words[0] == sys.executable
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)


@pytest.mark.usefixtures("refused_graphs", "no_new_process")
def test_a_check_fails_if_cuda_refused_the_graphs_of_its_training(tmp_path: Path) -> None:
    done: dict[str, dict[str, Any]] = {}
    check = "trains: AdamW"
    checks = {check: gpu_checks.CHECKS[check]}
    options = gpu.Options("digits", "cpu", smoke=True)
    with pytest.raises(Replaced):  # a refused capture may have kept memory
        gpu_checks.run_checks(options, tmp_path, checks, done, lambda: None)
    assert done[check]["result"] == "FAIL"
    assert "not permitted when stream is capturing" in done[check]["said"]
    assert done[check]["steps"][0].startswith("EagerSteps: ")


def test_every_optimizer_has_a_check_that_is_long_enough_for_graphs() -> None:
    """``fast`` skips a third of the pictures."""
    for name in ("AdamW", "resnet18", "no skipping of easy pictures (skip_easy=0)"):
        recipe = load_recipe("fast", [*gpu_checks.FEW, *gpu_checks.VARIANTS[name]])
        kept = kept_per_epoch(recipe.data.subset_size, recipe.data.skip_easy)
        assert kept // recipe.training.batch_size * recipe.training.epochs >= graphed.FEWEST_STEPS


def test_turns_record_that_cuda_refused_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = gpu_trainer.Trained(0.94, 2.0, 0.1, 1.8, 0.1, 0.5, "EagerSteps", "stream is capturing")

    def race(options: gpu.Options, folder: Path, publish: Callable[[str, dict[str, Any]], None]) -> None:
        publish("fast", {"runs": [{"seed": 0, **asdict(run)}]})
        publish("rival", {"runs": [{"seed": 0, "accuracy": 0.94, "seconds": 2.5}]})

    monkeypatch.setattr(gpu_parts, "race", race)
    notes = gpu_parts.Notes()
    gpu_parts.turns(gpu.Options(), notes, tmp_path)
    assert notes["contenders"]["fast"]["runs"][0]["why_eager"] == "stream is capturing"
    said = capsys.readouterr().out
    assert "fast: 94.00% in 2.000 s (no CUDA graphs: stream is capturing)\n" in said
    assert "rival: 94.00% in 2.500 s\n" in said


def test_the_command_is_recorded_with_what_it_says_of_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "steps are replayed as CUDA graphs; recording 3 took 1.0 s"

    def passed_on(command: list[str], environment: dict[str, str]) -> list[str]:
        out = Path(command[command.index("--out") + 1])
        out.mkdir()
        (out / "summary.json").write_text('{"accuracy": 0.9, "seconds_training": 3}')
        return ["epoch 1/2\n", f"        {note}\n"]

    monkeypatch.setattr(gpu_parts, "passed_on", passed_on)
    notes = gpu_parts.Notes()
    gpu_parts.command(gpu.Options("digits", "cpu", smoke=True), notes, tmp_path)
    assert [run["graphs"] for run in notes["runs"]] == [note] * 2


def test_the_output_of_a_command_is_passed_on_even_if_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    environment = dict(os.environ)
    show = [sys.executable, "-c", "import sys; print('one'); sys.stderr.write('two\\n')"]
    assert sorted(gpu_parts.passed_on(show, environment)) == ["one\n", "two\n"]
    with pytest.raises(subprocess.CalledProcessError):
        gpu_parts.passed_on([sys.executable, "-c", "print('three'); raise SystemExit(3)"], environment)
    assert sorted(capsys.readouterr().out.split()) == ["one", "three", "two"]


def test_a_profiler_that_fails_costs_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def profiled_step(trained: object) -> None:
        raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED")

    entry = {
        "pictures_per_second": [1.0], "fraction_of_bf16_peak": 0.5, "peak_memory_bytes": 1, "steps_taken": "",
    }  # fmt: skip
    monkeypatch.setattr(gpu_parts, "loaded", lambda options: None)
    monkeypatch.setattr(gpu_parts, "matrix_rate", lambda device, side: 1.0)
    monkeypatch.setattr(gpu_parts, "trainer", lambda *_: None)
    monkeypatch.setattr(gpu_parts, "measured_speed", lambda trained, peak, rounds: dict(entry))
    monkeypatch.setattr(gpu_parts, "profiled_step", profiled_step)
    notes = gpu_parts.Notes()
    with pytest.raises(RuntimeError, match="CUPTI"):
        gpu_parts.speed(gpu.Options("digits", "cpu"), notes, tmp_path)
    assert list(notes["recipes"]) == list(gpu_parts.SPEEDS)
    assert all(one["pictures_per_second"] == [1.0] for one in notes["recipes"].values())


def test_waits_between_epochs_and_looks_at_the_losses_are_allowed() -> None:
    within = [done for done in range(120) if gpu_checks.is_within(done, 30)]
    assert within == [
        done for done in range(30, 120) if done % 30 not in (0, 29) and (done % 30 + 1) % 20
    ]  # fmt: skip


@pytest.mark.parametrize(("waits_before", "passes"), [({0: 3, 5: 1, 9: 1, 10: 2}, True), ({7: 1}, False)])
def test_a_wait_within_a_step_fails_its_check(
    waits_before: dict[int, int], passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 15 steps in 3 epochs, ``waits_before`` counts the waits before the steps named, from 0."""
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def fit(state: Any, batches: Any, on_step: Callable[[Any], None]) -> Iterator[None]:
        for step in range(15):
            for _ in range(waits_before.get(step, 0)):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
            on_step(SimpleNamespace(step=step + 1))
        yield None

    monkeypatch.setattr(gpu_checks, "fit", fit)
    state = SimpleNamespace(steps_per_epoch=5)
    fake = SimpleNamespace(state=state, prepared=SimpleNamespace(train=None))
    bench: Any = SimpleNamespace(device=torch.device("cuda"), trainer=lambda: fake)
    if passes:
        assert gpu_checks.no_waits(bench).startswith("7 waits in 15 steps")
    else:
        with pytest.raises(AssertionError, match=r"1 waits within 15 steps, at test_gpu_benchmark\.py:\d+"):
            gpu_checks.no_waits(bench)
    assert modes == ["warn", "default"]


def test_a_check_that_fails_is_noted_and_the_others_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(bench: gpu_checks.Bench) -> str:
        raise AssertionError("they differ")

    def does_not_apply(bench: gpu_checks.Bench) -> str:
        raise gpu_checks.SkipCheck("no GPU")

    checks: dict[str, gpu_checks.Check] = {
        "before": lambda bench: "never",
        "breaks": breaks,
        "skips": does_not_apply,
        "works": lambda bench: "well",
    }
    done: dict[str, dict[str, Any]] = {"before": {"passed": True}}  # by a process that this one replaced
    published: list[list[str]] = []
    options = gpu.Options(data="digits", device="cpu", smoke=True)
    gpu_checks.run_checks(options, tmp_path, checks, done, lambda: published.append(list(done)))
    assert [(name, one["passed"]) for name, one in done.items()] == [
        ("before", True), ("breaks", False), ("skips", True), ("works", True),
    ]  # fmt: skip
    assert done["breaks"]["said"] == "AssertionError: they differ"
    assert done["breaks"]["traceback"].startswith("Traceback")
    assert "traceback" not in done["works"]
    assert [len(one) for one in published] == [2, 3, 4]
    out = capsys.readouterr().out
    assert "FAIL breaks: AssertionError: they differ" in out
    assert "SKIP skips: no GPU" in out


def test_if_cuda_refuses_to_record_the_check_fails_with_cudas_own_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(state: Any, batches: Any) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(graphed, "why_not_graphed", lambda state, batches: None)
    monkeypatch.setattr(graphed, "GraphedSteps", refused)
    fake = SimpleNamespace(state=None, prepared=SimpleNamespace(train=None))
    bench: Any = SimpleNamespace(device=torch.device("cuda"), trainer=lambda: fake)
    with pytest.raises(RuntimeError, match="not permitted"):
        gpu_checks.graphed(bench)
    monkeypatch.setattr(graphed, "why_not_graphed", lambda state, batches: "several processes train")
    with pytest.raises(AssertionError, match="it does not: several processes train"):
        gpu_checks.graphed(bench)


def test_the_first_losses_are_compared_with_muon_in_float32_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()
    iterate = muon._iterate

    def spy(gram: torch.Tensor) -> torch.Tensor:
        seen.add(gram.dtype)
        return iterate(gram)

    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: True)
    monkeypatch.setattr(muon, "_iterate", spy)
    bench = gpu_checks.Bench(coloured_data(count=400, side=32), CPU, gpu_checks.FEWER, tmp_path)
    assert gpu_checks.first_losses(bench) == "largest relative difference in 4 steps: 0.0e+00"
    assert seen == {torch.float32}
    assert vars(muon)["has_fast_bf16"](CPU)  # as before


def test_the_check_of_resuming_stops_where_fewer_steps_are_left_than_are_worth_recording(
    tmp_path: Path,
) -> None:
    bench = gpu_checks.Bench(coloured_data(count=240, side=32), CPU, gpu_checks.FEWER, tmp_path)
    numbers = re.fullmatch(r"stopped after (\d+) of (\d+) steps", gpu_checks.resumes(bench))
    assert numbers is not None
    stopped, total = map(int, numbers.groups())
    assert total - stopped == gpu_checks.STEPS_LEFT < graphed.FEWEST_STEPS


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (gpu_checks.in_time, r"[\d.]+ of 2 s, \d+ epochs"),
        (gpu_checks.finds_rate, r"steepest at [\d.e+-]+, lowest at [\d.e+-]+"),
        (gpu_checks.fits_last_layer, r"accuracy [\d.]+ after [\d.]+"),
    ],
)
def test_checks_of_other_kinds_of_training_pass_on_a_cpu(
    check: Callable[[gpu_checks.Bench], str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_checks, "MINUTES", 0.03)
    bench = gpu_checks.Bench(coloured_data(count=240, side=32), CPU, gpu_checks.FEWER, tmp_path)
    assert re.fullmatch(says, check(bench))


def test_the_check_that_compiles_takes_its_time_in_a_part_of_its_own() -> None:
    assert list(gpu_checks.COMPILE_CHECKS) == ["trains: torch.compile"]
    assert not gpu_checks.COMPILE_CHECKS.keys() & gpu_checks.CHECKS.keys()
    names = list(gpu_parts.PARTS)
    assert names.index("compiled") > names.index("turns")


@pytest.mark.parametrize("compiled", [True, False])
def test_a_training_that_was_not_compiled_fails_the_check_that_compiles(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = gpu_trainer.Taken("EagerSteps", "", False, compiled, 0.0)
    monkeypatch.setattr(gpu_checks, "watched_steps", lambda device: contextlib.nullcontext([taken]))
    monkeypatch.setattr(gpu_checks, "why_not_compile", lambda device: "Triton is not installed")
    run = SimpleNamespace(summary={"accuracy": 0.9, "seconds_training": 1.0})
    data = SimpleNamespace(class_names=["red", "green"])
    bench: Any = SimpleNamespace(
        device=torch.device("cuda"), data=data, settings=(), train=lambda name, *settings: run
    )
    if compiled:
        assert gpu_checks.learns(bench, gpu_checks.COMPILED) == "accuracy 0.900 in 1.0 s"
    else:
        with pytest.raises(AssertionError, match="it was not compiled: Triton is not installed"):
            gpu_checks.learns(bench, gpu_checks.COMPILED)


@pytest.mark.usefixtures("no_new_process")
@pytest.mark.parametrize(("name", "usable"), [("breaks", False), (gpu_checks.GRAPHS, True)])
def test_checks_go_on_in_a_new_process_when_the_device_may_be_unusable(
    name: str, usable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(bench: gpu_checks.Bench) -> str:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(gpu_checks, "usable", lambda device: usable)
    done: dict[str, dict[str, Any]] = {}
    options = gpu.Options("digits", "cpu", smoke=True)
    with pytest.raises(Replaced):
        gpu_checks.run_checks(options, tmp_path, {name: breaks}, done, lambda: None)
    assert done[name]["said"] == "RuntimeError: CUDA error: device-side assert triggered"


def test_a_contender_that_hangs_leaves_the_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "rival.py"
    hang = "def main(run, model):\n    import time\n    time.sleep(0 if run == 'warmup' else 600)"
    script.write_text(RIVAL.replace("def main(run, model):", hang))
    monkeypatch.setenv(gpu.LIMIT, "300")
    options = gpu.Options("digits", "cpu", 1, {"hangs": str(script)}, smoke=True)
    found: dict[str, dict[str, Any]] = {}

    def publish(name: str, entry: dict[str, Any]) -> None:
        found[name] = entry
        if entry["runs"]:  # `fast` has had its round, so the time of the one that hangs may be short
            monkeypatch.setattr(gpu_turns, "ROUND_PART", 1 / 300)

    began = time.monotonic()
    gpu_turns.race(options, tmp_path, publish)
    assert time.monotonic() - began < 600
    assert "no answer within 1 s" in found["hangs"]["failure"]
    assert len(found["fast"]["runs"]) == 1


def test_a_rival_that_compiles_for_half_of_the_time_still_runs_its_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    class Fake:
        """Takes a second for a training, and longer for the first one if it is the rival."""

        def __init__(self, name: str, what: dict[str, Any], folder: Path) -> None:
            self.name = name

        def ask(self, request: str, seconds: float) -> dict[str, Any]:
            needed = {"slow": 5.0, "hangs": 60.0}.get(self.name, 1.0) if request == "warm" else 1.0
            clock.now += min(needed, seconds)
            if needed > seconds:
                raise RuntimeError(f"no answer within {seconds:.0f} s")
            return {"accuracy": 0.9, "seconds": 1.0}

        def close(self) -> None:
            pass

    monkeypatch.setenv(gpu.LIMIT, "10")
    monkeypatch.setattr(gpu_turns, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(gpu_turns, "Contender", Fake)
    monkeypatch.setattr(gpu_turns, "loaded", lambda options: None)
    monkeypatch.setattr(gpu_turns, "write_pictures", lambda data, folder: None)
    options = gpu.Options("digits", "cpu", 1, {"slow": "slow.py", "hangs": "hangs.py"})
    found: dict[str, dict[str, Any]] = {}
    begun = clock.now
    runs = gpu_turns.race(options, tmp_path, found.__setitem__)
    assert {name: len(one) for name, one in runs.items()} == {"fast": 1, "slow": 1, "hangs": 0}
    assert "no answer within 1 s" in found["hangs"]["failure"]
    assert clock.now - begun == pytest.approx(9)  # a reserve was left for the rounds


def test_a_script_with_another_outline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "other.py"
    script.write_text("print('hello')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_turns.py"])
    for name in ("Event", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cuda, name))  # put back afterwards
    with pytest.raises(SystemExit, match="is not supported: it has no CifarNet"):
        gpu_turns.load_script(script, CPU, smoke=True)


def test_each_contender_is_a_process_of_its_own_with_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where several networks are compiled in one process, some of them run uncompiled (recompile_limit)."""
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(json.loads(command[-1])["settings"])
            self.stdin = io.BytesIO()
            self.stdout = io.BytesIO(2 * b'{"accuracy": 0.9, "seconds": 1.0}\n')  # a warm-up and a round

        def kill(self) -> None:
            pass

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(gpu_turns, "subprocess", SimpleNamespace(Popen=Process, PIPE=subprocess.PIPE))
    variants = ("augment.flip=none", "training.compile=true model.width=2")
    options = gpu.Options("digits", "cpu", 1, variants=variants)
    runs = gpu_turns.race(options, tmp_path, lambda name, found: None)
    assert started == [[], ["augment.flip=none"], ["training.compile=true", "model.width=2"]]
    assert [len(one) for one in runs.values()] == [1, 1, 1]


def test_the_page_asks_for_at_least_ten_rounds_of_the_contenders() -> None:
    rounds = re.findall(
        r"--only [\w ]*turns[\w ]* --rounds (\d+)", (ROOT / "docs" / "gpu.md").read_text("utf-8")
    )
    assert [int(one) >= 10 for one in rounds] == [True]
