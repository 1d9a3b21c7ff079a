"""What thumbnet supports with what: every recipe, network, device, precision and engine has an entry here.

``test_table.py`` tries it out, and ``docs/supported.md`` is written from it (``make table``). The names of recipes,
networks, precisions, engines and formats are thumbnet's own (:func:`registered`), so an entry that is missing
fails a test.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

from thumbnet.errors import MissingExtraError, RecipeError, ThumbnetError
from thumbnet.publish.export import SUFFIXES
from thumbnet.recipes.networks import MODEL_NAMES
from thumbnet.recipes.recipe import recipe_names
from thumbnet.recipes.settings import AUTO, PRECISIONS, DataSettings

PAGE = Path(__file__).parents[1] / "docs" / "supported.md"
OWN, TIMM = "own", "timm:resnet18"  # stand for every network of the user's own, and for every one of timm

RECIPES = {
    "digits": "",
    "fast": "",
    "finetune": "Without `--init RUN`, networks other than timm's begin with random weights.",
    "linear": "Needs `--init RUN`, a run of the same network. It has no steps to resume: it begins again.",
    "one-cycle": "",
    "resnet18": "",
    "small": "",
    "tutorial": "",
}
NETWORKS = {
    "resnet18": "",
    "resnet34": "",
    "resnet20": "",
    "resnet32": "",
    "resnet44": "",
    "resnet56": "",
    "fastnet": "",
    OWN: "A network of your own, by name or `MODULE:NAME`; see [A network of your own](howto/own-network.md).",
    TIMM: "Every `timm:NAME` needs the extra `timm`.",
}
# ResNets that differ only in depth: one class, models/resnet.ResNet, with more blocks in each stage. A recipe treats
# them alike: it looks at a network's last layer and the names and shapes of its parameters.
SAME_BUT_DEPTH = {
    "resnet34": "resnet18",
    "resnet32": "resnet20",
    "resnet44": "resnet20",
    "resnet56": "resnet20",
}
DEVICES = {
    "cpu": "With thumbnet's kernels in bf16, where the processor has AVX-512 BF16.",
    "cpu without kernels": "`THUMBNET_KERNELS=0`, and every other processor.",
    "simulated GPU": "Stands for a CUDA device: it computes on the CPU, and refuses what CUDA refuses.",
}
PRECISION_NOTES = {
    "fp32": "To the bit what plain PyTorch computes, on a CPU.",
    "bf16": "",
    "fp16": "The loss is scaled, and a step whose gradients overflow is undone.",
}
ENGINES = {
    "memory": "",
    "workers": "",
}
STEPS = {
    "one by one": ("", "The default on a CPU."),
    "channels first": ("training.channels_last=false", ""),
    "in parts": ("training.micro_batch=4", "BatchNorm normalises over one part."),
    "as CUDA graphs": (
        "training.graph=auto",
        "On a CUDA device from 50 steps on. Where a graph cannot do it, the steps are taken one by one: the "
        "recipes `finetune` and `linear`, networks that are not thumbnet's, fp16, workers, micro-batches.",
    ),
    "compiled": (
        "training.compile=true",
        "Needs a C++ compiler or, on a GPU, Triton and a C compiler (Triton brings one on Windows). Without it, "
        "the network is not compiled, and the command says why.",
    ),
}
FORMATS = {
    "onnx": "",
    "onnx-any-size": "",
    "onnx-int8": "Needs the training pictures. 8 bits change the probabilities. A file that loses more than 5 points of "
    "accuracy is refused.",
    "torch-export": "",
    "safetensors": "",
    "web": "Fetches ONNX Runtime Web once. The page has at most 15 MB; weights that do not fit in 32 bits are stored "
    "in 16, and a larger network is refused.",
}


@dataclass(frozen=True)
class Cell:
    """One combination. The first five are the factors of the whole product."""

    recipe: str
    network: str
    device: str
    precision: str
    engine: str
    steps: str = "one by one"
    format: str = "safetensors"

    def __str__(self) -> str:
        return ", ".join(getattr(self, field.name) for field in fields(self)).replace("safetensors", "st")


FACTORS: dict[str, tuple[str, ...]] = {
    "recipe": tuple(RECIPES),
    "network": tuple(NETWORKS),
    "device": tuple(DEVICES),
    "precision": tuple(PRECISION_NOTES),
    "engine": tuple(ENGINES),
}


def registered() -> dict[str, set[str]]:
    """The names that thumbnet itself knows, by factor; ``auto`` stands for one of the others."""
    engines = get_args(get_type_hints(DataSettings)["engine"])
    return {
        "recipe": set(recipe_names()),
        "network": set(MODEL_NAMES) | {OWN, TIMM},
        "precision": set(PRECISIONS) - {AUTO},
        "engine": set(engines) - {AUTO},
        "format": set(SUFFIXES),
    }


@dataclass(frozen=True)
class Refusal:
    """What is not supported: the command's arguments and the message that says so.

    Attributes:
        what: for the documentation.
        arguments: of ``thumbnet train``. DATA is a folder of pictures, LABELS a table of pictures with several
            labels, RUN a file of weights.
        error: the type of the error, exactly.
        says: a part of the message.
    """

    what: str
    arguments: str
    error: type[ThumbnetError]
    says: str


REFUSALS = (
    Refusal("a network of timm without the extra", "DATA --set model.name=timm:resnet18", MissingExtraError,
            "a network of timm needs the extra 'timm'"),
    Refusal("`linear` without a trained network", "DATA --recipe linear", RecipeError, "Name that network: --init RUN"),
    Refusal("`linear` for a given time", "DATA --recipe linear --init RUN --minutes 1", RecipeError,
            "leave out --minutes"),
    Refusal("`linear` with balanced sampling", "DATA --recipe linear --init RUN --set data.sampling=balanced", RecipeError,
            "does not go with training.frozen"),
    Refusal("`linear` that skips easy pictures", "DATA --recipe linear --init RUN --set data.skip_easy=0.3", RecipeError,
            "does not go with training.frozen"),
    Refusal("`linear` with averaged weights", "DATA --recipe linear --init RUN --set training.ema_decay=0.9", RecipeError,
            "0 where training.frozen is true"),
    Refusal("another width of a network of timm", "DATA --set model.name=timm:resnet18 --set model.width=0.5", RecipeError,
            "1 for a network of timm"),
    Refusal("pretrained weights for a network that is not timm's", "DATA --set model.pretrained=true", RecipeError,
            "only for a network of timm"),
    Refusal("CUDA graphs of `torch.compile` with micro-batches",
            "DATA --micro-batch 8 --set training.compile=true --set training.compile_mode=reduce-overhead", RecipeError,
            "cannot accumulate gradients"),
    Refusal("mixed pictures where easy ones are skipped",
            "DATA --recipe fast --set augment.mixup=0.4 --set data.skip_easy=0.3", RecipeError, "0 where augment.mixup or augment.cutmix is on"),
    Refusal("balanced sampling where easy pictures are skipped",
            "DATA --recipe fast --set data.sampling=balanced --set data.skip_easy=0.3", RecipeError, "0 where data.sampling is 'balanced'"),
    Refusal("balanced classes with several labels per picture", "LABELS --set training.class_weights=balanced", RecipeError,
            "needs one class per picture"),
    Refusal("balanced sampling with several labels per picture", "LABELS --set data.sampling=balanced", RecipeError,
            "needs one class per picture"),
    Refusal("balanced sampling with balanced class weights",
            "DATA --set data.sampling=balanced --set training.class_weights=balanced", RecipeError, "both make up for"),
    Refusal("a GPU that is not there", "DATA --device cuda", ThumbnetError, "Leave --device out"),
    Refusal("an unknown recipe", "DATA --recipe fastest", RecipeError, "there is no recipe 'fastest'"),
    Refusal("an unknown network", "DATA --set model.name=resnet50", RecipeError, "recipe key 'model.name' is 'resnet50'"),
    Refusal("an unknown precision", "DATA --set training.precision=fp8", RecipeError, "recipe key 'training.precision'"),
    Refusal("an unknown engine", "DATA --set data.engine=disk", RecipeError, "recipe key 'data.engine'"),
)  # fmt: skip


def refusal(cell: Cell, has_timm: bool) -> tuple[type[ThumbnetError], str] | None:
    """The error with which a cell has to fail, and a part of its message; None if it is supported."""
    if cell.network == TIMM and not has_timm:
        return MissingExtraError, "a network of timm needs the extra 'timm'"
    return None


def graphed(cell: Cell) -> str | None:
    """A part of the reason why a cell on a CUDA device takes its steps one by one; None for CUDA graphs."""
    reasons = {
        "float16": cell.precision == "fp16",
        "head_first": cell.recipe == "finetune",
        "not one of thumbnet's": cell.network in (OWN, TIMM),
        "not in the device's memory": cell.engine == "workers",
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


# --- which cells --------------------------------------------------------------------------------------------


def product() -> list[Cell]:
    """Every combination of the five factors."""
    return [Cell(*values) for values in itertools.product(*FACTORS.values())]


def pairs(factors: Mapping[str, Sequence[str]]) -> set[tuple[str, str, str, str]]:
    """Every pair of values of two factors: factor, value, factor, value."""
    return {
        (one, a, other, b)
        for one, other in itertools.combinations(factors, 2)
        for a, b in itertools.product(factors[one], factors[other])
    }


def pairs_of(cell: Cell, factors: Mapping[str, Sequence[str]]) -> set[tuple[str, str, str, str]]:
    """The pairs of values that a cell has."""
    return {
        (one, getattr(cell, one), other, getattr(cell, other))
        for one, other in itertools.combinations(factors, 2)
    }


def costs(cell: Cell) -> float:
    """Roughly the seconds that a cell takes, to choose cheap ones."""
    deep = {"resnet18": 1.5, "resnet34": 3.0, "resnet32": 1.5, "resnet44": 2.0, "resnet56": 2.5}
    slow = (4.0 if cell.device == "simulated GPU" else 1.0) * (6.0 if cell.precision == "fp16" else 1.0)
    return deep.get(cell.network, 1.0) * slow + (cell.engine == "workers") * 0.5


def merged(found: set[tuple[str, str, str, str]]) -> set[tuple[str, str, str, str]]:
    """The pairs; one network stands for all that are ``SAME_BUT_DEPTH``."""
    return {
        (one, SAME_BUT_DEPTH.get(a, a), other, SAME_BUT_DEPTH.get(b, b))  # no other factor has such values
        for one, a, other, b in found
    }


def covering() -> list[Cell]:
    """Cells that have every pair of values of two of the five factors, as ``merged`` counts them, and every network.

    They are always the same. Greedy: the next cell is the one with the most pairs that are still missing, per cost.
    """
    has = {cell: merged(pairs_of(cell, FACTORS)) for cell in product()}
    missing, chosen = merged(pairs(FACTORS)), []
    while missing:
        best = max(has, key=lambda cell: len(has[cell] & missing) / costs(cell) ** 0.5)
        chosen.append(best)
        missing -= has[best]
    others = NETWORKS.keys() - {cell.network for cell in chosen}
    return chosen + [
        min((cell for cell in has if cell.network == name), key=costs) for name in sorted(others)
    ]


# Once for each other way to take steps, and for each format. Compiling takes minutes: only in the whole product.
EXTRA = (
    Cell("resnet18", "resnet20", "cpu", "bf16", "memory", "channels first"),
    Cell("tutorial", "fastnet", "cpu", "fp32", "memory", "in parts"),
    Cell("fast", "fastnet", "simulated GPU", "bf16", "memory", "as CUDA graphs"),
    Cell("small", "fastnet", "simulated GPU", "fp32", "memory", "compiled"),
    Cell("fast", "fastnet", "simulated GPU", "bf16", "memory", format="onnx"),
    Cell("digits", "fastnet", "cpu", "fp32", "memory", format="onnx-any-size"),
    Cell("small", "fastnet", "cpu", "bf16", "memory", format="onnx-int8"),
    Cell("tutorial", "fastnet", "cpu", "fp16", "memory", format="torch-export"),
    Cell("digits", "fastnet", "cpu", "bf16", "memory", format="web"),
)


def beyond_the_product() -> Iterator[Cell]:
    """Every pair of another way to take steps, or another format, with a value of the five factors."""
    for name in STEPS:
        for number in range(len(NETWORKS) if name not in ("one by one", "compiled") else 0):
            cell = replace(_mixed(number), steps=name)
            yield replace(cell, device="simulated GPU") if name == "as CUDA graphs" else cell
    yield Cell("fast", "fastnet", "cpu", "fp32", "memory", "compiled")
    for turn, name in enumerate(FORMATS):
        for number in range(len(NETWORKS) if name != "safetensors" else 0):
            yield replace(_mixed(turn * len(NETWORKS) + number), format=name)


def _mixed(number: int) -> Cell:
    """Values of the five factors: any nine in a row have them all, and every precision on every device."""
    recipes, networks, devices, precisions, engines = FACTORS.values()
    return Cell(
        recipes[number % len(recipes)],
        networks[(number + number // len(networks)) % len(networks)],  # with another device in each nine
        devices[number % 3],
        precisions[number // 3 % 3],
        engines[number % 2],
    )


# --- the page -----------------------------------------------------------------------------------------------


def page() -> str:
    """The text of ``docs/supported.md``."""
    refused = [cell for cell in product() if refusal(cell, has_timm=False)]
    lines = [
        "# What works with what",
        "",
        "<!-- Written by `make table` from tests/table.py. Change that file, not this one. -->",
        "",
        "Every recipe works with every network on every device, in every precision and with both engines. "
        "The devices are the CPU and a simulated GPU: no real GPU was tried. "
        f"`make table` tries all {len(product()):,} combinations out: each one trains two steps; stops after the "
        "first and resumes to the same weights, to the bit; is exported, and the export answers as the run does; "
        "and computes what plain PyTorch computes. "
        f"{len(refused):,} of them are networks of timm, which need an extra. `make test` tries a selection in "
        "which every pair of two values occurs. ResNets that differ only in depth count as one network.",
        "",
        "Every format and every way to take steps but `compiled` is tried with each recipe, network, device, precision "
        "and engine at least once; CUDA graphs only on the simulated GPU.",
        "",
        *_listed("Recipes", "recipe", {f"`{name}`": note for name, note in RECIPES.items()}),
        *_listed("Networks", "network", {_network(name): note for name, note in NETWORKS.items()}),
        *_listed("Devices", "device", DEVICES),
        *_listed(
            "Precisions",
            "`training.precision`",
            {f"`{name}`": note for name, note in PRECISION_NOTES.items()},
        ),
        "`auto` is one of these: `bf16` if the hardware multiplies it fast, else `fp16` if a CUDA device does, else "
        "`fp32`.",
        "",
        *_listed("Engines", "`data.engine`", {f"`{name}`": note for name, note in ENGINES.items()}),
        "`auto` is `memory` if all pictures fit into a quarter of it and at most 500,000 are for training, else `workers`.",
        "",
        "## Ways to take steps",
        "",
        "| steps are taken | setting | note |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {f'`{setting}`' if setting else ''} | {note} |"
            for name, (setting, note) in STEPS.items()
        ),
        "",
        *_listed("Formats to export", "format", {f"`{name}`": note for name, note in FORMATS.items()}),
        "## How close is close",
        "",
        "Wherever none of thumbnet's kernels takes part, and the optimizer is SGD or AdamW, the losses and weights "
        "are those of PyTorch's own operations in the same precision, to the bit. Muon's iteration "
        "rounds to bfloat16 where that is fast: its updates are within 5 % of the textbook's in float32.",
        "",
        "Compared with float32, a loss and a gradient in bf16 or fp16 may deviate by twice what PyTorch's own "
        "operations in that precision deviate by, plus the rounding of a random walk: the unit roundoff (2⁻⁸ for "
        "bf16, 2⁻¹¹ for fp16) times the square root of the number of roundings, three for each layer on the way "
        "forwards and three on the way back.",
        "",
        "An export may differ from the run in float32 by 10⁻⁴ of its largest logit, because its runtime adds in "
        "another order. The exception is `onnx-int8`.",
        "",
        "Where thumbnet's kernels take part, a picture's probabilities also depend a little on how many pictures its "
        "batch has: a convolution of few pictures is faster by another algorithm, which rounds differently.",
        "",
        "## What is refused",
        "",
        "Each of these ends with status 2 and the message, before any picture is decoded.",
        "",
        "| what | `thumbnet train` with | the message says |",
        "| --- | --- | --- |",
        *(f"| {one.what} | `{one.arguments}` | {one.says} |" for one in REFUSALS),
    ]
    return "\n".join(lines) + "\n"


def _network(name: str) -> str:
    return {OWN: "your own", TIMM: "`timm:NAME`"}.get(name, f"`{name}`")


def _listed(title: str, column: str, notes: Mapping[str, str]) -> list[str]:
    rows = [f"| {name} | yes | {note} |" for name, note in notes.items()]
    return [f"## {title}", "", f"| {column} | supported | note |", "| --- | --- | --- |", *rows, ""]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
