"""Trainings in several processes, as torchrun starts them: on one machine, and on two whose link is cut."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from faults.fork_server import ForkServer, Job, rank_variables, why_not
from helpers import TINY, write_class_folders
from kernel_helpers import needs_kernels
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights

pytestmark = pytest.mark.slow

TIMEOUT = {"THUMBNET_TIMEOUT": "60"}
PATHS = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS), **TIMEOUT}
FULL = os.environ.get("THUMBNET_FAULTS") == "full"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
THUMBNET, RANK = "thumbnet.__main__", "faults.rank"  # modules whose `main` is run
LIMIT = 240.0  # seconds that a program may take
# At higher learning rates, a rounding error would grow to a visible difference within ten steps.
OVERRIDES = [f"--set={setting}" for setting in [*TINY, "optimizer.lr=0.005", "schedule.name=constant"]]


@dataclass(frozen=True)
class Ended:
    """How the processes of a program ended: the first status that is not 0, and what all of them printed."""

    status: int
    output: str
    errors: str


class Launcher:
    """Runs a program in several processes that join each other.

    In full, torchrun starts them. Otherwise they are forks of a process that has imported torch, which would take
    torchrun and each process of its own 4 s; tests of what torchrun does start it themselves.
    """

    def __init__(self, forks: ForkServer | None) -> None:
        self._forks = forks

    def __call__(
        self,
        processes: int,
        *arguments: str | Path,
        program: str = THUMBNET,
        restarts: int = 0,
        **variables: str,
    ) -> Ended:
        """Run it to its end, and again up to ``restarts`` times if a process fails."""
        words, variables = tuple(map(str, arguments)), TIMEOUT | variables
        if self._forks is None:
            return by_torchrun(processes, program, words, restarts, variables)
        ended = in_forks(self._forks, processes, program, words, variables)
        for _ in range(restarts):
            if ended.status != 0:
                ended = in_forks(self._forks, processes, program, words, variables)
        return ended


def by_torchrun(
    processes: int, program: str, words: tuple[str, ...], restarts: int, variables: dict[str, str]
) -> Ended:
    """One process needs no torchrun, which takes seconds to start."""
    many = [*TORCHRUN, "--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    done = subprocess.run(
        [*(many if processes > 1 else [sys.executable]), "-m", program, *words],
        env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def in_forks(
    forks: ForkServer, processes: int, program: str, words: tuple[str, ...], variables: dict[str, str]
) -> Ended:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    running = []
    for rank in range(processes):
        own = {} if processes == 1 else rank_variables(rank, processes, port)
        running.append(forks.start(Job(words, environment=variables | own, program=f"{program}:main")))
    outcomes = [one.wait(LIMIT) for one in running]
    errors = "".join(one.errors for one in outcomes)
    statuses = [one.status for one in outcomes]
    assert None not in statuses, f"a process hangs: {errors}"
    return Ended(
        next((status for status in statuses if status), 0), "".join(one.output for one in outcomes), errors
    )


@pytest.fixture(scope="module")
def launch(request: pytest.FixtureRequest) -> Launcher:
    return Launcher(None if FULL or why_not() else request.getfixturevalue("forks"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), ["train", "val", "test"], per_class=17)


def gradient(launch: Launcher, processes: int, target: Path, *arguments: str) -> dict[str, Any]:
    done = launch(processes, target, *arguments, program="faults.gradients")
    assert done.status == 0, done.errors
    return torch.load(target, weights_only=True)


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert list(a) == list(b)
    x = torch.cat([t.double().flatten() for t in a.values()])
    y = torch.cat([t.double().flatten() for t in b.values()])
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize(
    ("model", "precision", "tolerance"),
    # In 64 bits, because the gradient jumps if rounding changes the sign before a ReLU or the maximum of a pool.
    # In bf16, the rounding errors are up to 2**-9, and BatchNorm's gradient is a difference of sums. Besides, one
    # process's batch may be large enough for Winograd's convolution (winograd_pays) although its halves are not.
    [("fastnet", "fp64", 1e-5), ("fastnet", "bf16", 0.1), ("resnet20", "fp64", 1e-5)][: 3 if FULL else 1],
)
def test_two_processes_compute_the_same_gradient_as_one(
    launch: Launcher, tmp_path: Path, model: str, precision: str, tolerance: float
) -> None:
    one = gradient(launch, 1, tmp_path / "1.pt", model, precision, "true")
    two = gradient(launch, 2, tmp_path / "2.pt", model, precision, "true")
    assert float(two["loss"]) == pytest.approx(float(one["loss"]), rel=tolerance)
    assert relative_difference(two["gradients"], one["gradients"]) < tolerance
    assert relative_difference(two["buffers"], one["buffers"]) < tolerance


@needs_kernels
@pytest.mark.skipif(not FULL, reason="three processes of their own: make test-faults")
def test_if_one_process_has_no_kernels_the_other_uses_none_either(launch: Launcher, tmp_path: Path) -> None:
    one = gradient(launch, 1, tmp_path / "1.pt", "fastnet", "bf16", "true", "0")
    two = gradient(launch, 2, tmp_path / "2.pt", "fastnet", "bf16", "true", "1")
    assert float(two["loss"]) == pytest.approx(float(one["loss"]), rel=0.1)
    assert relative_difference(two["gradients"], one["gradients"]) < 0.1


def test_without_synchronised_statistics_the_gradient_differs(launch: Launcher, tmp_path: Path) -> None:
    one = gradient(launch, 1, tmp_path / "1.pt", "resnet20", "fp64", "false")
    two = gradient(launch, 2, tmp_path / "2.pt", "resnet20", "fp64", "false")
    assert relative_difference(two["gradients"], one["gradients"]) > 1e-2


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("several", [2, 3] if FULL else [2])
def test_several_processes_learn_like_one_and_only_one_of_them_writes(
    launch: Launcher, folder: Path, tmp_path: Path, several: int
) -> None:
    arguments: list[str | Path] = [
        folder,
        "--recipe",
        "one-cycle",
        *OVERRIDES,
        "--set",
        "training.ema_decay=0.9",
        "--set",
        "data.skip_easy=0.3",  # each process knows only the losses of its share
    ]
    for processes in (1, several):
        done = launch(processes, "train", *arguments, "--out", tmp_path / str(processes))
        assert done.status == 0, done.errors
        assert done.output.count("test accuracy") == 1  # only the first process prints
        assert done.errors.count("epoch 3/3") == 1
    outs = [tmp_path / "1", tmp_path / str(several)]
    for alone, together in zip(*map(metrics, outs), strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-3)
        assert together["val_accuracy"] == pytest.approx(alone["val_accuracy"], abs=1 / 51 + 1e-9)
        assert together["step"] == alone["step"]
    names = [{path.name for path in out.iterdir()} for out in outs]
    assert names[0] == names[1]
    weights = [read_weights(out / "model.safetensors")[0] for out in outs]
    assert relative_difference(weights[1], weights[0]) < 1e-3
    assert Run(outs[1]).summary["processes"] == several
    done = launch(1, "evaluate", outs[1], "--json")
    assert json.loads(done.output)["accuracy"] == Run(outs[1]).summary["accuracy"]


@pytest.mark.parametrize("watched", [False, True])
def test_all_processes_measure_and_calibrate_with_the_network_that_is_saved(
    launch: Launcher, tmp_path: Path, watched: bool
) -> None:
    """Without synchronised statistics, each process has its own until they are sent."""
    data = write_class_folders(tmp_path / "data", ["train", "test"] if watched else ["train"], per_class=17)
    settings = [*TINY, "training.sync_batchnorm=false", *([] if watched else ["data.test_fraction=0"])]
    done = launch(2, data, tmp_path / "run", tmp_path, *settings, program="faults.final_network")
    assert done.status == 0, done.errors
    saved = read_weights(tmp_path / "run" / "model.safetensors")[0]
    for rank in range(2):
        own = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert own.keys() == saved.keys()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in own.items())


def test_shares_that_differ_by_a_picture_go_through_the_network_in_as_many_parts(
    launch: Launcher, folder: Path, tmp_path: Path
) -> None:
    """A batch of 17 has shares of 9 and 8 pictures, which in parts of 8 would be two passes and one."""
    parts = ["training.batch_size=17", "training.micro_batch=8", "training.epochs=1"]
    settings = [*OVERRIDES, *(f"--set={one}" for one in parts)]
    done = launch(2, "train", folder, "--recipe", "one-cycle", *settings, "--out", tmp_path / "run")
    assert done.status == 0, done.errors
    (epoch,) = metrics(tmp_path / "run")
    assert epoch["step"] == 3
    assert 0 < epoch["loss"] < 3


def test_an_error_in_one_process_ends_all_of_them(launch: Launcher, folder: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    done = launch(
        2,
        "train",
        folder,
        "--recipe",
        "one-cycle",
        *OVERRIDES,
        "--set",
        "training.batch_size=0",
        "--out",
        tmp_path / "run",
    )
    assert done.status != 0
    assert "training.batch_size" in done.errors
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    # Only the first process sees this.
    done = launch(2, "train", folder, *OVERRIDES, "--out", tmp_path / "full")
    assert done.status != 0
    assert "already exists" in done.errors
    assert time.monotonic() - started < 60


LONGER: list[str] = ["--recipe", "one-cycle", *OVERRIDES, "--set", "training.epochs=6", "--checkpoint-steps", "1", "--auto-resume"]  # fmt: skip


@pytest.fixture(scope="module")
def calm(launch: Launcher, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of two processes that nobody disturbs."""
    out = tmp_path_factory.mktemp("calm") / "run"
    done = launch(2, "train", folder, *LONGER, "--out", out)
    assert done.status == 0, done.errors
    return (out / "model.safetensors").read_bytes()


@pytest.mark.skipif(not FULL, reason="five processes that import torch: make test-faults")
def test_a_killed_process_is_restarted_and_the_result_is_the_same(
    folder: Path, tmp_path: Path, calm: bytes
) -> None:
    out = tmp_path / "killed"
    agent = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "2",
         "-m", "thumbnet", "train", folder, *LONGER, "--out", out],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_step(out, 4, agent)
    os.kill(children(agent.pid)[-1], signal.SIGKILL)
    assert agent.wait(timeout=120) == 0
    assert (out / "model.safetensors").read_bytes() == calm


def test_a_process_killed_while_it_writes_a_checkpoint_is_restarted_and_the_result_is_the_same(
    launch: Launcher, folder: Path, tmp_path: Path, calm: bytes
) -> None:
    out, killed = tmp_path / "run", tmp_path / "killed"
    done = launch(
        2, "train", folder, *LONGER, "--out", out,
        program=RANK, restarts=2, THUMBNET_TEST_KILL=str(killed),
    )  # fmt: skip
    assert done.status == 0, done.errors
    assert killed.exists()
    assert not list(out.glob(".*.tmp"))
    assert (out / "model.safetensors").read_bytes() == calm


@pytest.mark.parametrize("other", ["damaged", "more"] if FULL else ["damaged"])
def test_a_process_with_other_data_ends_the_training_before_it_begins(
    launch: Launcher, folder: Path, tmp_path: Path, other: str
) -> None:
    for rank in range(2):
        shutil.copytree(folder, tmp_path / f"data-{rank}")
    picture = next((tmp_path / "data-1" / "train").glob("*/*.png"))
    if other == "more":
        shutil.copy(picture, picture.with_name("more.png"))
    else:  # of the same size: only whoever reads it notices
        picture.write_bytes(bytes(picture.stat().st_size))
    arguments: list[str | Path] = [*LONGER, "--on-bad-image", "skip", "--out", tmp_path / "run"]
    done = launch(2, "train", tmp_path / "data-{rank}", *arguments, program=RANK)
    assert done.status != 0
    assert f"thumbnet (process 1): {tmp_path / 'data-1'} holds other" in done.errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("all_of_them", [False, True] if FULL else [False])
def test_a_request_to_stop_in_one_process_stops_all_after_the_same_step(
    launch: Launcher, folder: Path, tmp_path: Path, calm: bytes, all_of_them: bool
) -> None:
    out = tmp_path / "stopped"
    arguments = map(str, [folder, *LONGER, "--checkpoint-steps", "3", "--out", out])
    agent = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node", "2", "-m", "thumbnet", "train", *arguments],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_step(out, 9, agent)
    os.kill(children(agent.pid)[-1], signal.SIGTERM)
    if all_of_them:  # as Slurm does; torchrun then sends a second one to its processes
        os.kill(children(agent.pid)[0], signal.SIGTERM)
        agent.send_signal(signal.SIGTERM)
    _, errors = agent.communicate(timeout=120)
    assert agent.returncode != 0
    assert "has lost contact" not in errors
    checkpoint = Run(out).load_checkpoint()
    assert checkpoint is not None
    assert 9 <= checkpoint["state"]["step"] < 6 * 4
    again = launch(2, "train", "--resume", out)
    assert again.status == 0, again.errors
    assert (out / "model.safetensors").read_bytes() == calm


def test_processes_wait_for_the_one_that_loads_the_data_however_long_it_takes(launch: Launcher) -> None:
    """Of two processes, each in turn takes longer to load the data than THUMBNET_TIMEOUT."""
    timeout, seconds = ("4", "7") if FULL else ("3", "4")
    done = launch(2, seconds, program="faults.slow_data", THUMBNET_TIMEOUT=timeout)
    assert done.status == 0, done.errors


def children(pid: int) -> list[int]:
    import psutil

    return [process.pid for process in psutil.Process(pid).children()]


def wait_for_step(out: Path, step: int, agent: subprocess.Popen[Any]) -> None:
    while True:
        assert agent.poll() is None, "the training ended too early"
        if (out / "checkpoint.pt").exists():
            checkpoint = Run(out).load_checkpoint()
            if checkpoint is not None and checkpoint["state"]["step"] >= step:
                return
        time.sleep(0.05)


# --- two machines ----------------------------------------------------------------------------------------


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces with their own loopbacks, joined by a link: 10.77.0.1 and 10.77.0.2."""
    names = (f"thumbnet-{os.getpid()}-a", f"thumbnet-{os.getpid()}-b")
    if shutil.which("ip") is None:
        pytest.skip("the command ip (iproute2) is not installed")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ends = [["thumb0", "netns", name] for name in names]
            ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
            for number, name in enumerate(names, start=1):
                ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "thumb0")
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "link", "set", "thumb0", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"cannot create and join network namespaces here: {error.stderr.decode().strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def start_agent(
    machine: str, address: str, least: int, log: Path, *arguments: str | Path
) -> subprocess.Popen[bytes]:
    # An agent recognises itself as the rendezvous host by its host name, but both namespaces share one.
    conf = "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3,is_host="
    conf += str(address == "10.77.0.1").lower()
    environment = {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "thumb0", "THUMBNET_TIMEOUT": "10"}
    with log.open("wb") as file:
        return subprocess.Popen(
            ["ip", "netns", "exec", machine, *TORCHRUN, "--nnodes", f"{least}:2", "--nproc-per-node", "1",
             "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29500", "--rdzv-id", "test",
             "--rdzv-conf", conf,
             "--local-addr", address, "--max-restarts", "5",
             "-m", "thumbnet", "train", *map(str, arguments)],
            env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


@pytest.mark.skipif(not FULL, reason="four processes that import torch, and long waits: make test-faults")
@pytest.mark.parametrize("fault", ["link", "agent", "none"])
def test_two_machines_train_and_survive(
    launch: Launcher, folder: Path, tmp_path: Path, machines: tuple[str, str], fault: str
) -> None:
    """If the link is cut or the other machine's agent dies, the first goes on alone to the correct result."""
    epochs = 20
    arguments: list[str | Path] = [
        folder, "--recipe", "one-cycle", *OVERRIDES, "--set", f"training.epochs={epochs}", "--checkpoint-steps", "1", "--auto-resume",
    ]  # fmt: skip
    done = launch(1, "train", *arguments, "--out", tmp_path / "calm")
    assert done.status == 0, done.errors
    out = tmp_path / "run"
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    agents = [
        start_agent(machine, f"10.77.0.{number}", 1, log, *arguments, "--out", out)
        for number, (machine, log) in enumerate(zip(machines, logs, strict=True), start=1)
    ]
    try:
        wait_for_step(out, 5, agents[0])
        if fault == "link":
            ip("-n", machines[1], "link", "set", "thumb0", "down")
        elif fault == "agent":
            os.killpg(agents[1].pid, signal.SIGKILL)
        status = agents[0].wait(timeout=150)
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
                agent.wait()
    text = logs[0].read_text()
    assert status == 0, text
    assert "2 processes" in text
    assert (out / "summary.json").exists()
    calm, run = metrics(tmp_path / "calm"), metrics(out)
    assert len(run) == epochs
    assert run[-1]["loss"] == pytest.approx(calm[-1]["loss"], rel=0.05, abs=1e-3)
    assert Run(out).summary["accuracy"] == pytest.approx(Run(tmp_path / "calm").summary["accuracy"], abs=0.04)
    assert Run(out).summary["processes"] == (2 if fault == "none" else 1)
