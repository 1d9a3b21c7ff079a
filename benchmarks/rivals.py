"""Trains CIFAR-10 with thumbnet and with what people would pick instead, for the same time on the same cores.

    make rivals
    python benchmarks/rivals.py --clones CLONES --minutes 1 4 15 --threads 2
    python benchmarks/rivals.py --only fastai keras --minutes 1

Each training is a process of its own, ``benchmarks/rival_programs/NAME.py``. Set-up (imports, unpacking, links
to pictures, compiling, measuring the speed) comes before its clock starts. It measures how long a step takes,
and chooses the number of epochs, and of pictures if the time is too short for one epoch, so that the rival's
own schedule ends with the time. Then it classifies all 10,000 test pictures, after the clock stopped.
thumbnet is the exception: it gets no set-up, its time is the whole command's.

Results go to a JSON file after every training. If the program is interrupted, call it again: it trains only
what the file does not have. A rival that fails or hangs is recorded with its reason, costs nothing else, and is
tried again at the next call. ``docs/notebook/rivals.md`` says how to install the rivals.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(__file__).resolve().parent / "rival_programs"
ARCHIVE = ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
SET_UP_SECONDS = 600.0
SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class Rival:
    """One row of the table.

    Attributes:
        name: as in ``--only`` and in the results.
        title: as in the table.
        program: the file in ``rival_programs``.
        user: what a user has to write, without imports of their own choice; its lines or flags are counted.
        source: where its authors recommend these settings.
        packages: what must be importable.
        clones: what must be in the folder of clones.
        size: the side that pictures are scaled to.
    """

    name: str
    title: str
    program: str
    user: str
    source: str
    packages: tuple[str, ...] = ()
    clones: tuple[str, ...] = ()
    size: int = 32

    @property
    def effort(self) -> str:
        """The flags of a command, or the lines of a program."""
        lines = [line for line in self.user.splitlines() if line.strip()]
        if len(lines) > 1:
            return f"{len(lines)} lines"
        words = self.user.split()
        flags = sum(word.startswith("--") or "=" in word for word in words)
        return f"{flags} flag{'' if flags == 1 else 's'}"

    def missing(self, clones: Path) -> str | None:
        """What is not installed or not fetched."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return f"the package {package} is not installed"
        for clone in self.clones:
            if not (clones / clone).exists():
                return f"{clone} is not in {clones}"
        return None


def _yolo(size: int) -> Rival:
    return Rival(
        f"ultralytics-{size}",
        f"Ultralytics yolo11n-cls, {size}x{size}",
        "yolo.py",
        f"yolo classify train model=yolo11n-cls.yaml data=DATA imgsz={size} epochs=E warmup_epochs=0.03E "
        "pretrained=False val=False cache=ram device=cpu",
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
        "https://github.com/thumbnet/thumbnet",
    ),
    _yolo(32),
    _yolo(64),
    Rival(
        "timm",
        "timm's train.py, resnet18",
        "timm_script.py",
        "python train.py --data-dir DATA --val-split test --model resnet18 --num-classes 10 --img-size 32 "
        "--epochs E --sched-on-updates --warmup-epochs W --device cpu --workers 2",
        "https://huggingface.co/docs/timm/training_script",
        clones=("pytorch-image-models",),
    ),
    Rival(
        "fastai",
        "fastai, xresnet18",
        "fast_ai.py",
        """\
from fastai.vision.all import *
from fastai.vision.models.xresnet import xresnet18
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
        "",
        "https://keras.io/examples/vision/image_classification_from_scratch/",
        packages=("keras", "grain"),
        clones=("image_classification_from_scratch.py",),
    ),
    Rival(
        "pytorch-cifar",
        "pytorch-cifar, ResNet-18",
        "kuangliu.py",
        "",
        "https://github.com/kuangliu/pytorch-cifar",
        packages=("torchvision",),
        clones=("pytorch-cifar",),
    ),
    Rival(
        "airbench94",
        "airbench94_muon on a CPU",
        "airbench94.py",
        "",
        "https://github.com/KellerJordan/cifar10-airbench",
        clones=("cifar10-airbench",),
    ),
)
