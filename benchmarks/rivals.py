"""Trains CIFAR-10 with thumbnet and with what people would pick instead: the same time, the same cores.

    python benchmarks/rivals.py --clones CLONES --minutes 1 4 15 --threads 2
    python benchmarks/rivals.py --clones CLONES --only fastai keras --minutes 1
    python benchmarks/rivals.py --show

Each training is a process of its own, ``benchmarks/rival_programs/NAME.py``. Its set-up is not timed:
imports, unpacking, compiling, and a short training that measures the seconds per step. From these it
chooses the number of epochs (and of pictures, if there is no time for all), so that the rival's own schedule
ends with the time. All 10,000 test pictures are classified after the clock stopped. thumbnet gets no set-up:
its time is the whole command's, evaluation included.

The JSON file is written after every training. If the program is interrupted, call it again on the same
processor and at the same commit: it trains only what the file lacks. A rival that fails or hangs is recorded
with the reason; the next call tries it again.
``docs/notebook/rivals.md`` says how to install the rivals.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from measure import SHARED
from resumable import CPU, continued, origin

from thumbnet.cli.console import say
from thumbnet.files import write_file

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(__file__).resolve().parent / "rival_programs"
BUILD = ROOT / "build" / "rivals"
SET_UP_SECONDS = 900.0
SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class Rival:
    """One row of the table.

    Attributes:
        name: as in ``--only`` and in the results.
        title: as in the table.
        program: its file in ``rival_programs``.
        user: the command or the lines that a user writes; they are counted.
        source: where its authors show these settings.
        also: what a user needs besides.
        packages: what must be importable.
        clones: what must be in the folder of clones.
        size: the side that pictures are scaled to, in pixels.
        nested: whether the program only starts the rival, so that its own memory does not count.
    """

    name: str
    title: str
    program: str
    user: str
    source: str
    also: str = ""
    packages: tuple[str, ...] = ()
    clones: tuple[str, ...] = ()
    size: int = 32
    nested: bool = False

    @property
    def effort(self) -> str:
        """How much a user writes: the flags of a command, or the lines of a program."""
        lines = [line for line in self.user.splitlines() if line.strip()]
        words = self.user.split()
        if len(lines) == 1:
            flags = sum(word.startswith("--") or "=" in word for word in words)
            return f"{flags} flag{'s' if flags > 1 else ''}{self.also}"
        return f"{len(lines)} lines{self.also}"

    def missing(self, clones: Path) -> str | None:
        """What is not installed or not fetched."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return f"the package {package} is not installed"
        for clone in self.clones:
            if not (clones / clone).exists():
                return f"there is no {clone} in {clones}"
        return None


def yolo(size: int) -> Rival:
    """Ultralytics at one size of pictures."""
    return Rival(
        f"ultralytics-{size}",
        f"Ultralytics, yolo11n-cls, {size}x{size}",
        "yolo.py",
        f"yolo classify train model=yolo11n-cls.yaml data=DATA imgsz={size} batch=64 epochs=E "
        "warmup_epochs=W pretrained=False val=False cache=ram device=cpu",
        "https://docs.ultralytics.com/datasets/classify/cifar10/",
        packages=("ultralytics",),
        size=size,
    )


RIVALS = (
    Rival(
        "thumbnet",
        "thumbnet",
        "thumbnet_minutes.py",
        "thumbnet train DATA --minutes M",
        "minutes.md",
        nested=True,
    ),
    yolo(32),
    yolo(64),
    Rival(
        "timm",
        "timm's train.py, resnet18",
        "timm_script.py",
        "python train.py --data-dir DATA --val-split test --model resnet18 --num-classes 10 --img-size 32 "
        "--epochs E --sched-on-updates --warmup-epochs W --val-interval 1000 --amp --amp-dtype bfloat16 "
        "--channels-last --device cpu --workers 2",
        "https://huggingface.co/docs/timm/training_script",
        packages=("torchvision",),
        clones=("pytorch-image-models",),
        nested=True,
    ),
    Rival(
        "fastai",
        "fastai, xresnet18",
        "fast_ai.py",
        """\
from fastai.vision.all import *
tfms = [*aug_transforms(size=32, min_scale=0.75), Normalize.from_stats(*imagenet_stats)]
dls = ImageDataLoaders.from_folder("DATA", valid="test", item_tfms=Resize(32), batch_tfms=tfms)
learn = Learner(dls, xresnet18(n_out=dls.c), metrics=accuracy)
learn.fit_one_cycle(E, 3e-3)
""",
        "https://github.com/fastai/fastbook/blob/master/07_sizing_and_tta.ipynb",
        packages=("fastai",),
    ),
    Rival(
        "keras",
        "Keras on PyTorch, its guide's network",
        "keras_guide.py",
        """\
import keras
from keras import layers
read = keras.utils.image_dataset_from_directory
train = read("DATA/train", image_size=(32, 32), batch_size=128, format="grain")
test = read("DATA/test", image_size=(32, 32), batch_size=128, format="grain")
augment = [layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)]
net = keras.Sequential([keras.Input((32, 32, 3)), *augment, make_model((32, 32, 3), 10)])
net.compile(keras.optimizers.Adam(RATE), "sparse_categorical_crossentropy", metrics=["accuracy"])
net.fit(train, epochs=E)
net.evaluate(test)
""",
        "https://keras.io/examples/vision/image_classification_from_scratch/",
        also=" and the guide's `make_model`",
        packages=("keras", "grain"),
        clones=("image_classification_from_scratch.py",),
    ),
    Rival(
        "pytorch-cifar",
        "pytorch-cifar, ResNet-18",
        "kuangliu.py",
        """\
net = ResNet18()
trainset = torchvision.datasets.ImageFolder("DATA/train", transform=transform_train)
testset = torchvision.datasets.ImageFolder("DATA/test", transform=transform_test)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=E)
for epoch in range(E):
""",
        "https://github.com/kuangliu/pytorch-cifar",
        also=" changed in its main.py",
        packages=("torchvision",),
        clones=("pytorch-cifar",),
    ),
    Rival(
        "airbench94",
        "airbench94_muon on a CPU",
        "airbench94.py",
        "python benchmarks/airbench.py airbench94_muon.py --epochs E",
        "https://github.com/KellerJordan/cifar10-airbench",
        also=" and our `benchmarks/airbench.py`",
        clones=("cifar10-airbench",),
        nested=True,
    ),
)


def unpack(archive: Path, folder: Path) -> Path:
    """The archive's pictures in class folders, unpacked once."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(folder)
    return folder


def memory(process: psutil.Process, nested: bool) -> int:
    """Bytes that a process and its children hold; pages that they share count once where the system tells."""
    held = 0
    with contextlib.suppress(psutil.Error):
        for one in ([] if nested else [process]) + process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                info = one.memory_full_info()
                held += getattr(info, "pss", info.rss)
    return held


def watch(command: Sequence[str], log: Path, limit: float, nested: bool, environment: dict[str, str]) -> int:
    """Run a command with its output in ``log``; return the most bytes that it held.

    Raises:
        RuntimeError: it failed, or took longer than ``limit`` seconds and was ended with all its children.
    """
    started, most = time.monotonic(), 0
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            while process.poll() is None:
                most = max(most, memory(psutil.Process(process.pid), nested))
                if time.monotonic() - started > limit:
                    raise RuntimeError(f"still running after {limit:.0f} s")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SAMPLE_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        lines = log.read_text("utf-8", "replace").strip().splitlines()
        raise RuntimeError(f"status {process.returncode}: {lines[-1] if lines else 'it printed nothing'}")
    return most


def train(rival: Rival, minutes: float, options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """One training: the result, or what was missing or went wrong."""
    if (missing := rival.missing(options.clones)) is not None:
        return {"skipped": missing}
    log = BUILD / f"{rival.name}-{minutes:g}.log"
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        work, result = Path(folder) / "work", Path(folder) / "result.json"
        work.mkdir()
        asked = {
            "data": data,
            "archive": options.data,
            "clones": options.clones,
            "work": work,
            "json": result,
            "size": rival.size,
            "minutes": minutes,
            "threads": options.threads,
        }
        words = [f"--{name}={value}" for name, value in asked.items()]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(options.threads),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
            "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor"),
        }
        command = [sys.executable, str(PROGRAMS / rival.program), *words]
        try:
            limit = SET_UP_SECONDS + 2 * 60 * minutes
            most = watch(command, log, limit, rival.nested, environment)
            return {**json.loads(result.read_text("utf-8")), "memory_bytes": most}
        except (RuntimeError, OSError, ValueError) as error:
            return {"failed": str(error)}


def begin(file: Path, threads: int, archive: Path) -> dict[str, Any]:
    """The results so far, or new ones.

    Raises:
        SystemExit: the file is from another number of threads or other data.
    """
    about = {"threads": threads, "data": archive.name}
    if not file.exists():
        return {**about, **origin(CPU), "runs": {}}
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    if about != {name: content.get(name) for name in about}:
        raise SystemExit(f"{file} holds runs with other --threads or --data: name another file with --json")
    return content


def pending(content: dict[str, Any], rivals: Sequence[Rival], minutes: Sequence[float]) -> list[Any]:
    """Pairs of a rival and minutes that have no accuracy yet; all of the shortest time first."""
    return [
        (rival, m)
        for m in sorted(minutes)
        for rival in rivals
        if "accuracy" not in content["runs"].get(rival.name, {}).get(f"{m:g}", {})
    ]


def markdown(content: dict[str, Any]) -> str:
    """The table of all results."""
    runs = content["runs"]
    times = sorted({float(m) for found in runs.values() for m in found})
    header = ["library", *(f"{m:g} min" for m in times), "epochs", "a user writes", "memory, GiB", "version"]
    rows = []
    for rival in RIVALS:
        found = [runs.get(rival.name, {}).get(f"{m:g}", {}) for m in times]
        good = [run for run in found if "accuracy" in run]
        rows.append(
            [
                rival.title,
                *(cell(run, m) for run, m in zip(found, times, strict=True)),
                ", ".join(f"{shown(run):.1f}" for run in good) or "-",
                rival.effort,
                f"{max(run['memory_bytes'] for run in good) / 2**30:.1f}" if good else "-",
                good[-1]["version"] if good else "-",
            ]
        )
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(run: dict[str, Any]) -> float:
    """Pictures that were trained on, in epochs of CIFAR-10."""
    return float(run["epochs"] * run["pictures_per_epoch"] / 50_000)


def cell(run: dict[str, Any], minutes: float) -> str:
    """The accuracy; with the seconds, if they are more than a tenth off the time; or why there is none."""
    if "accuracy" not in run:
        return "failed" if "failed" in run else "skipped" if "skipped" in run else "-"
    late = abs(run["seconds"] - 60 * minutes) > 6 * minutes
    return f"{100 * run['accuracy']:.2f} %" + (f" ({run['seconds']:.0f} s)" if late else "")


def main() -> None:
    """Train what is pending, write JSON after each training, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED, help="archive with train/CLASS/ and test/CLASS/")
    parser.add_argument("--clones", type=Path, default=BUILD / "clones", help="what was fetched")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[rival.name for rival in RIVALS])
    parser.add_argument("--minutes", nargs="+", type=float, default=[1.0, 4.0, 15.0])
    parser.add_argument("--threads", type=int, default=2, help="cores to use (default: 2)")
    parser.add_argument("--json", type=Path, default=BUILD / "rivals.json", help="results, old and new")
    parser.add_argument("--show", action="store_true", help="only print the table of the file")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("data", "clones", "json"):
        setattr(options, name, getattr(options, name).resolve())
    content = begin(options.json, options.threads, options.data)
    if not options.show:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
        data = unpack(options.data, BUILD / options.data.name.partition(".")[0])
        rivals = [rival for rival in RIVALS if not options.only or rival.name in options.only]
        if waiting := pending(content, rivals, options.minutes):
            content |= continued(content, origin(CPU), options.json)
        for rival, minutes in waiting:
            say(f"{time.strftime('%H:%M:%S')} {rival.name}, {minutes:g} min")
            run = train(rival, minutes, options, data)
            content["runs"].setdefault(rival.name, {})[f"{minutes:g}"] = run
            write_file(options.json, json.dumps(content, indent=2) + "\n")
            say("  " + ", ".join(f"{name} {value}" for name, value in run.items()))
    say(markdown(content))


if __name__ == "__main__":
    main()
