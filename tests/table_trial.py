"""Try out one cell of the table: train, stop, resume, export, and compare with a plain computation.

:class:`Plain` is that computation: a training step in PyTorch's own operations, on the CPU. It shares no code with
thumbnet's loop, schedules, optimizers, augmentation or kernels. It gets the same network, the same order of the
pictures and the same random draws, because those are arbitrary.
"""

from __future__ import annotations

import copy
import fnmatch
import importlib.util
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from helpers import coloured_data
from simulated_device import simulated_gpu
from table import OWN, STEPS, TIMM, Cell, graphed
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.classifiers.load import load_classifier
from thumbnet.classifiers.onnx_classifier import OnnxClassifier
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.data.calibration import with_calibration_split
from thumbnet.data.rendering import Preprocessing
from thumbnet.errors import InterruptedRunError
from thumbnet.hardware import has_fast_bf16
from thumbnet.kernels import library
from thumbnet.models import build_model, registry
from thumbnet.models.registry import head_name, register_model
from thumbnet.publish import export as exporting
from thumbnet.publish.export import SUFFIXES, export
from thumbnet.publish.web_runtime import WebRuntime
from thumbnet.publish.webpage import model_in
from thumbnet.recipes import networks
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, write_weights
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.seeds import derive_seed
from thumbnet.training import graphed as graphed_module
from thumbnet.training import session as session_module
from thumbnet.training.build import build_state
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.graphed import why_not_graphed
from thumbnet.training.listener import Listener
from thumbnet.training.recording import Recorder
from thumbnet.training.state import TrainingState
from thumbnet.training.train import resume, train
from training_helpers import StopAfter

CPU = torch.device("cpu")
SIDE, BATCH, PICTURES = 16, 8, 24
DATA = coloured_data(PICTURES, SIDE)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDOFF = {"fp32": 0.0, "bf16": 2**-8, "fp16": 2**-11}  # half of the distance from 1 to the next number
MUON = 0.05  # of an update's norm: the iteration rounds to bfloat16 (tests/training/test_muon.py)
FP32 = 1e-4  # of the largest logit: another order of float32 sums, through up to 56 layers
INT8 = 0.5  # of the largest logit, after two steps: the format must work, not be accurate
# Not the real runtime, which has to be downloaded; `publish/test_webpage_in_browser.py` runs that.
RUNTIME = WebRuntime("var a=1,b=2,c=3;export{a as InferenceSession,b as Tensor,c as env};\n//# map", b"wasm")
WIDTHS = {"resnet18": 0.25, "resnet34": 0.25, "fastnet": 0.25}  # some layers have the 32 channels of a kernel


class OwnNet(nn.Module):
    """A network of the user's own, with random numbers in its steps and a head of another name."""

    head_name = "fc"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, num_classes]."""
        logits: Tensor = self.fc(self.drop(F.relu(self.norm(self.conv(x)))).amax(dim=(2, 3)))
        return logits


_find_spec = importlib.util.find_spec


def _without_triton(name: str, package: str | None = None) -> Any:
    return None if name == "triton" else _find_spec(name, package)


@contextmanager
def surroundings(cell: Cell) -> Iterator[None]:
    """The cell's device, with the user's own network, and without what would only cost time."""
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(registry, "_BUILDERS", dict(registry._BUILDERS)))
        enter(mock.patch.object(networks, "_known", set(networks._known)))
        register_model(OWN)(OwnNet)
        enter(mock.patch.object(session_module, "find_mirrored", return_value=[]))  # a second training
        enter(mock.patch("os.fsync", return_value=None))  # other tests lose power
        enter(mock.patch.object(exporting, "load_runtime", return_value=RUNTIME))
        if cell.device == "cpu without kernels":
            enter(kernels_off("THUMBNET_KERNELS=0"))
        if cell.device == "simulated GPU":
            enter(simulated_gpu(fast_bf16=has_fast_bf16(CPU)))
            enter(mock.patch("importlib.util.find_spec", _without_triton))  # it compiles for real GPUs only
        if cell.steps == "as CUDA graphs":  # what is recorded is called directly
            enter(mock.patch.object(graphed_module, "FEWEST_STEPS", 0))
            enter(
                mock.patch.object(graphed_module, "Recorder", lambda device, changed: Recorder(CPU, changed))
            )
        yield


def device_of(cell: Cell) -> str:
    return "cuda" if cell.device == "simulated GPU" else "cpu"


def uses_kernels(cell: Cell) -> bool:
    """Whether kernels compute in a cell, if the processor can run them."""
    return cell.device == "cpu" and cell.precision == "bf16" and cell.steps != "compiled"


def settings_of(cell: Cell, init: Path | None) -> list[str]:
    """The overrides that make a cell's recipe small."""
    width = WIDTHS.get(cell.network, 0.5 if cell.network.startswith("resnet") else 1)
    if cell.precision == "fp16" and cell.network not in (OWN, TIMM):  # slow on a CPU, and without kernels
        width /= 2
    settings = [
        f"model.name={cell.network}",
        f"model.width={width}",
        f"training.precision={cell.precision}",
        f"data.engine={cell.engine}",
        "data.workers=1",
        "training.epochs=1",
        "training.min_steps=0",
        STEPS[cell.steps][0],
    ]
    settings += [] if cell.recipe == "linear" else ["training.steps=2"]
    settings += [] if init is None else [f'training.init="{init}"']
    return [setting for setting in settings if setting]


def recipe_of(cell: Cell, init: Path | None) -> Recipe:
    """The cell's recipe for two steps of a few pictures, with the learning rates of such small batches."""
    return load_recipe(cell.recipe, settings_of(cell, init)).with_batch_size(BATCH)


def weights_file(network: str, folder: Path) -> Path:
    """Weights to start from, as the run of another training would hold them."""
    path = folder / f"{network}.safetensors"
    if not path.exists():
        settings = load_recipe(
            "small", settings_of(Cell("small", network, "cpu", "fp32", "memory"), None)
        ).model
        torch.manual_seed(5)
        model = build_model(settings, 3, sizes=[(SIDE, SIDE)])
        pre = Preprocessing((SIDE, SIDE), "pad", (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
        write_weights(
            path, model.state_dict(), WeightsInfo(settings, DATA.class_names, pre, "fp32", "made", "")
        )
    return path


# --- the plain computation ----------------------------------------------------------------------------------


@dataclass
class Steps:
    """Two training steps.

    Attributes:
        losses: of both steps.
        gradient: of the first step, by parameter; empty if it is not known.
        after_first: the network's tensors after the first step.
        end: the same after both.
    """

    losses: list[float] = field(default_factory=list)
    gradient: dict[str, Tensor] = field(default_factory=dict)
    after_first: dict[str, Tensor] = field(default_factory=dict)
    end: dict[str, Tensor] = field(default_factory=dict)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.detach().cpu().clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_steps(model: nn.Module, recipe: Recipe, prepared: Prepared, precision: str) -> Steps:
    """Two steps of ``model`` in PyTorch's own operations, on the CPU."""
    batches, made, dtype = prepared.train, Steps(), DTYPES[precision]
    (images,) = batches.engine.fetch([torch.arange(len(batches.engine.labels))])
    order, visits = batches._order(0)
    mean, std = (
        torch.tensor(one).view(3, 1, 1) for one in (prepared.preprocessing.mean, prepared.preprocessing.std)
    )
    layout = torch.channels_last if recipe.training.channels_last else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer, rates = plain_optimizer(model, recipe, fused=precision == "fp16")
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    head = set(model.get_submodule(head_name(model)).parameters())
    body = [p for p in model.parameters() if p.requires_grad and p not in head]
    model.train()
    for step in range(2):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        draw = batches.draw(chosen, 0 if visits is None else visits[chosen], 0, step)
        pixels = torch.stack(
            [plain_augment(images[i], recipe, draw.flip[n], draw.shift[n]) for n, i in enumerate(chosen)]
        )
        x = (pixels.float() - mean * 255) * (1 / (std * 255))
        if recipe.augment.brightness or recipe.augment.contrast:
            light = draw.light.view(-1, 2, 1, 1, 1)
            x = (x + light[:, 0] * recipe.augment.brightness) * (1 + light[:, 1] * recipe.augment.contrast)
        x = plain_resize(x, recipe, step / 2).contiguous(memory_format=layout)
        only_head = step / 2 < recipe.schedule.head_first
        model.train(not only_head)
        for parameter in body:
            parameter.requires_grad_(not only_head)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * plain_factor(recipe, step)
        optimizer.zero_grad()
        loss = torch.zeros(())
        part = recipe.training.micro_batch or BATCH
        torch.manual_seed(derive_seed(recipe.seed, "step", step, 0))  # for dropout
        for some, labels in zip(x.split(part), batches.engine.labels[chosen].split(part), strict=True):
            with nullcontext() if precision == "fp32" else torch.autocast("cpu", dtype=dtype):
                logits = model(some)
            smoothing = recipe.training.label_smoothing
            share = (
                F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="sum") / BATCH
            )
            scaler.scale(share).backward()
            loss = loss + share.detach()
        if precision == "fp16":
            scaler.unscale_(optimizer)
        made.gradient = made.gradient or gradients(model)
        scaler.step(optimizer)
        scaler.update()
        made.losses.append(float(loss))
        made.after_first = made.after_first or copied(model)
    made.end = copied(model)
    return made


def plain_augment(image: Tensor, recipe: Recipe, flip: Tensor, shift: Tensor) -> Tensor:
    """Mirror and translate one picture, uint8 [3, H, W], as tutorials do: pad, then crop."""
    image = image.flip(2) if len(flip.shape) == 0 and bool(flip) else image
    reach = recipe.augment.translate
    if not reach:
        return image
    mode = "reflect" if recipe.augment.translate_fill == "reflect" else "constant"
    padded = F.pad(image[None].float(), [reach] * 4, mode=mode)[0].to(torch.uint8)
    top, left = (reach - shift).tolist()
    return padded[:, top : top + SIDE, left : left + SIDE]


def plain_resize(x: Tensor, recipe: Recipe, done: float) -> Tensor:
    plan = recipe.schedule
    if done >= plan.small_until:
        return x
    side = max(round(SIDE * plan.small_sides[int(done / plan.small_until * len(plan.small_sides))]), 16)
    return x if side == SIDE else F.interpolate(x, (side, side), mode="bilinear", antialias=True)


def plain_factor(recipe: Recipe, step: int) -> float:
    """The factor on the learning rate in step 0 or 1 of two, as textbooks write it."""
    plan, first = recipe.schedule, recipe.schedule.head_first
    if step / 2 < first:
        return 1.0
    done, middle = ((part - first) / (1 - first) for part in (step / 2, (step + 0.5) / 2))
    if middle < plan.warmup:
        risen = middle / plan.warmup
        risen = (1 - math.cos(math.pi * risen)) / 2 if plan.name == "one-cycle" else risen
        return plan.start + (1 - plan.start) * risen
    if plan.name == "multistep":
        return plan.factor ** sum(done >= milestone for milestone in plan.milestones)
    left = min(1 - (done - plan.warmup) / (1 - plan.warmup), 1.0)
    height = left if plan.name == "linear" else (1 + math.cos(math.pi * (1 - left))) / 2
    return plan.end + (1 - plan.end) * height


def plain_optimizer(
    model: nn.Module, recipe: Recipe, fused: bool
) -> tuple[torch.optim.Optimizer, list[float]]:
    """An optimizer with one group per parameter, and each group's full learning rate."""
    wanted, groups = recipe.optimizer, []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own: dict[str, Any] = {
            "lr": wanted.lr,
            "weight_decay": wanted.weight_decay,
            "momentum": wanted.momentum,
        }
        for group in wanted.groups:
            special = {"@head": name.startswith(f"{head_name(model)}."), "@vectors": parameter.dim() == 1}
            if special.get(group.match, fnmatch.fnmatchcase(name, group.match)):
                own |= {key: getattr(group, key) for key in own if getattr(group, key) is not None}
                break
        groups.append({"params": [parameter], **own})
    rates = [group["lr"] for group in groups]
    if wanted.name == "adamw":
        for one in groups:
            del one["momentum"]
        return torch.optim.AdamW(groups, betas=(wanted.betas[0], wanted.betas[1]), fused=fused), rates
    if wanted.name == "muon":
        filters = {one.weight for one in model.modules() if isinstance(one, nn.Conv2d) and one.bias is None}
        for one in groups:
            one["filter"] = one["params"][0] in filters
        return PlainMuon(groups, {}), rates
    return torch.optim.SGD(groups, lr=wanted.lr, momentum=wanted.momentum, nesterov=wanted.nesterov), rates


class PlainMuon(torch.optim.Optimizer):
    """Muon as its author describes it, in float32 and one filter bank at a time."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (parameter,) = group["params"]
            if parameter.grad is None:
                continue
            gradient = parameter.grad
            if not group["filter"]:
                gradient = gradient + group["weight_decay"] * parameter
            kept = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            kept.mul_(group["momentum"]).add_(gradient)
            update = gradient + group["momentum"] * kept
            if group["filter"]:
                x = update.flatten(1) / update.norm().clamp(min=1e-12)
                for _ in range(3):
                    square = x @ x.T
                    x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
                update = x.view_as(parameter)
                parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
            parameter.sub_(group["lr"] * update)


# --- a cell -------------------------------------------------------------------------------------------------


def try_cell(cell: Cell, folder: Path, begin: Path) -> None:
    """Check everything that the table promises of a supported cell.

    Args:
        cell: any cell that is supported here.
        folder: for its runs; empty.
        begin: for weights to start from, which cells share.
    """
    with surroundings(cell):
        init = weights_file(cell.network, begin) if cell.recipe == "linear" else None
        recipe, device = recipe_of(cell, init), device_of(cell)
        out = folder / "run"
        if cell.recipe == "linear":
            notes: list[str] = []
            # A cache of its own: with features that another cell has kept, there is no step to stop after.
            with mock.patch.dict("os.environ", THUMBNET_CACHE=str(folder / "cache")):
                again = stopped_and_resumed(cell, recipe, folder / "again")
                run = train(DATA, recipe, out=out, device=device, listener=Noting(notes))
            assert_equal(weights_of(again), weights_of(run))
            assert_is_the_minimum(cell, run, recipe, init, notes)
        else:
            trained = uninterrupted(cell, recipe)
            run = stopped_and_resumed(cell, recipe, out)
            assert_equal(weights_of(run), trained.end)
            assert_computes_the_same(cell, recipe, trained)
        assert_exports(cell, run, folder / f"model{SUFFIXES[cell.format]}")


def prepared_for(recipe: Recipe, device: str) -> Prepared:
    where = torch.device("cuda", 0) if device == "cuda" else CPU
    return prepare(with_calibration_split(DATA, recipe.data), recipe, where)


def uninterrupted(cell: Cell, recipe: Recipe) -> Steps:
    """Both steps by ``fit``."""
    prepared = prepared_for(recipe, device_of(cell))
    state = build_state(recipe, prepared, DATA.class_names, prepared.train.normalise.device)
    made = Steps()
    if cell.device == "simulated GPU":
        assert_takes_steps_as_declared(cell, state, prepared)
    if cell.steps == "compiled":
        assert state.compiled == (cell.device == "cpu")

    def note(step: StepResult) -> None:
        made.losses.append(float(state.losses[step.step_in_epoch - 1]))
        if step.step == 1:
            made.gradient, made.after_first = gradients(state.model), copied(state.model)

    for _ in fit(state, prepared.train, on_step=note):
        pass
    assert len(made.losses) == 2
    made.end = copied(state.model)
    return made


def assert_takes_steps_as_declared(cell: Cell, state: TrainingState, prepared: Prepared) -> None:
    reason, expected = why_not_graphed(state, prepared.train), graphed(cell)
    if cell.steps == "as CUDA graphs":
        assert (reason is None) == (expected is None)
        assert expected is None or expected in str(reason)


def stopped_and_resumed(cell: Cell, recipe: Recipe, out: Path) -> Run:
    """The run of a training that was stopped after its first step."""
    device = device_of(cell)
    with pytest.raises(InterruptedRunError):
        train(DATA, recipe, out=out, device=device, listener=StopAfter(1))
    assert not (out / "summary.json").exists()
    return resume(out, device=device, data=DATA)


def weights_of(run: Run) -> dict[str, Tensor]:
    return read_weights(run.path / "model.safetensors")[0]


def assert_equal(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, expected[name])]
    assert different == []


def distance(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The norm of the difference, relative to the norm of ``expected``."""
    assert ours.keys() == expected.keys()
    pairs = [(ours[name].double(), expected[name].double()) for name in expected]
    off = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))
    return off / max(math.sqrt(sum(float(b.square().sum()) for _, b in pairs)), 1e-30)


def layers(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())


def begun(recipe: Recipe) -> nn.Module:
    """The network as a training begins with it, on the CPU."""
    return build_state(recipe, prepared_for(recipe, "cpu"), DATA.class_names, CPU).model


def assert_computes_the_same(cell: Cell, recipe: Recipe, ours: Steps) -> None:
    """Compare the steps with plain ones in the same precision and in float32."""
    plain = replace(
        recipe, data=replace(recipe.data, engine="memory"), training=replace(recipe.training, compile=False)
    )
    model = begun(plain)
    with kernels_off("a plain computation"):
        same = plain_steps(copy.deepcopy(model), plain, prepared_for(plain, "cpu"), cell.precision)
        exact = same
        if cell.precision != "fp32":
            exact = plain_steps(copy.deepcopy(model), plain, prepared_for(plain, "cpu"), "fp32")
    to_the_bit = cell.precision == "fp32" or not (uses_kernels(cell) and library.load_kernels())
    if cell.steps in ("as CUDA graphs", "compiled"):
        to_the_bit = False  # rates are tensors, or sums have another order
    roundings = 3 * layers(model)  # the product, its sum with others, what follows; again on the way back
    near = ROUNDOFF[cell.precision] * roundings**0.5 + FP32
    allowed = 2 * abs(same.losses[0] - exact.losses[0]) + near * max(1.0, exact.losses[0])
    assert abs(ours.losses[0] - exact.losses[0]) <= allowed
    if ours.gradient:  # a graph keeps none
        assert_near_gradient(
            ours.gradient, same.gradient, exact.gradient, ROUNDOFF[cell.precision] * (2 * roundings) ** 0.5
        )
    if not to_the_bit:
        return
    assert ours.losses[0] == same.losses[0]
    assert_equal(ours.gradient, same.gradient)
    if plain.optimizer.name != "muon":
        assert ours.losses == same.losses
        assert_equal(ours.end, same.end)
        return
    before = copied(model)
    moved = [
        {name: after[name].double() - old for name, old in before.items()}
        for after in (ours.after_first, same.after_first)
    ]
    assert distance(*moved) <= MUON


def assert_near_gradient(
    ours: dict[str, Tensor], same: dict[str, Tensor], exact: dict[str, Tensor], rounding: float
) -> None:
    """Compare whole gradients. In float16 the first one may overflow, and then it does in PyTorch, too."""
    if all(bool(one.isfinite().all()) for one in same.values()):
        assert distance(ours, exact) <= 2 * distance(same, exact) + rounding + FP32
    else:
        assert not all(bool(one.isfinite().all()) for one in ours.values())


# --- the last layer on frozen features ----------------------------------------------------------------------


class Noting(Listener):
    """Keeps the notes of a training."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def assert_is_the_minimum(cell: Cell, run: Run, recipe: Recipe, init: Path | None, notes: list[str]) -> None:
    """The frozen layers are as they were, and no other last layer has a smaller loss on plain features."""
    assert init is not None
    weights, info = read_weights(run.path / "model.safetensors")
    network = build_model(info.model, 3, sizes=[(SIDE, SIDE)])
    name = head_name(network)
    began = read_weights(init)[0]
    assert_equal(
        *(
            {key: one for key, one in two.items() if not key.startswith(f"{name}.")}
            for two in (weights, began)
        )
    )
    (l2,) = [float(note.split("L2 ")[1].split(",")[0]) for note in notes if "L2" in note]
    l2 = min((10 ** (-half / 2) for half in range(11)), key=lambda one: abs(math.log(one / l2)))
    network.load_state_dict(weights)
    head = network.eval().get_submodule(name)
    prepared = prepared_for(replace(run.recipe, data=replace(run.recipe.data, engine="memory")), "cpu")
    images = prepared.train.normalise(
        next(iter(prepared.train.engine.fetch([torch.arange(len(prepared.train.engine.labels))])))
    )
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        logits = network(torch.cat([images, images.flip(-1)]))
    hook.remove()
    (features,), labels = seen, prepared.train.engine.labels.repeat(2)
    assert isinstance(head, nn.Linear)
    scale = float((logits * head(features)).sum() / head(features).square().sum())
    spread = (
        (features - (features.mean(dim=0) if head.bias is not None else 0))
        .square()
        .mean(dim=0)
        .sqrt()
        .clamp(min=1e-6)
    )
    found = [p.detach().clone() * scale for p in head.parameters()]

    def loss(weight: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        penalty = l2 / 2 * (weight * spread).square().sum()
        return (
            F.cross_entropy(
                features @ weight.T + bias, labels, label_smoothing=recipe.training.label_smoothing
            )
            + penalty
        )

    free = [one.clone().requires_grad_() for one in found]
    search = torch.optim.LBFGS(free, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = loss(*free)
        value.backward()
        return value

    search.step(closure)
    with torch.no_grad():
        assert float(loss(*found) - loss(*free)) <= ROUNDOFF[cell.precision] + FP32


# --- exports ------------------------------------------------------------------------------------------------


def assert_exports(cell: Cell, run: Run, out: Path) -> None:
    """The run answers in its precision as plain PyTorch does in float32, and the export as both do."""
    weights, info = read_weights(run.path / "model.safetensors")
    split = DATA.splits["test"]
    pixels = np.stack([np.asarray(split.load(i)) for i in range(len(split))])
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - channels(info, "mean")) / channels(
        info, "std"
    )
    network = build_model(info.model, 3, sizes=[(SIDE, SIDE)])
    network.load_state_dict(weights)
    network.eval()
    with torch.inference_mode():
        exact = network(x).numpy() / info.temperature
        with (
            torch.autocast("cpu", dtype=DTYPES[cell.precision], enabled=cell.precision != "fp32"),
            kernels_off("a plain computation"),
        ):
            own = network(x).float().numpy() / info.temperature
    largest = np.abs(exact).max()
    near = (ROUNDOFF[cell.precision] * (3 * layers(network)) ** 0.5 + FP32) * largest
    found = load_classifier(run.path, device_of(cell)).logits(pixels, tta="none")
    assert np.abs(found - exact).max() <= 2 * np.abs(own - exact).max() + near

    # On the CPU only. PyTorch's tracers have modes of their own, and allow none of others below them.
    with _disable_current_modes():
        export(run.path, cell.format, out, DATA)
    assert (
        np.abs(logits_of(out, cell, pixels) - exact).max()
        <= (INT8 if cell.format == "onnx-int8" else FP32) * largest
    )


def channels(info: WeightsInfo, name: str) -> Tensor:
    return torch.tensor(getattr(info.preprocessing, name)).view(3, 1, 1)


def kernels_off(why: str) -> AbstractContextManager[Any]:
    off = library._Kernels(why_off=why)
    return mock.patch.object(library, "_loaded", {False: off, True: off})


def logits_of(out: Path, cell: Cell, pixels: np.ndarray) -> np.ndarray:
    """What an exported network answers, float32 [N, classes]."""
    if cell.format == "safetensors":
        weights, info = read_weights(out)
        return Predictor(weights, replace(info, precision="fp32"), "cpu").logits(pixels, tta="none")
    if cell.format == "torch-export":
        module = torch.export.load(out).module()
        with torch.inference_mode():
            answered: np.ndarray = module(torch.from_numpy(pixels)).numpy()
        return answered
    if cell.format == "web":
        network = out.with_suffix(".onnx")
        network.write_bytes(model_in(out.read_text("ascii")))
        return OnnxClassifier(network).logits(pixels, tta="none")
    return OnnxClassifier(out).logits(pixels, tta="none")
