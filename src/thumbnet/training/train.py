"""From data and a recipe to a run: the whole training, without a word printed.

What there is to show is told to a :class:`~thumbnet.training.listener.Listener`; the command line has one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thumbnet.batches.batches import EvalBatches
from thumbnet.batches.prepare import Prepared, all_unreadable, prepare
from thumbnet.classifiers.logits import collect_logits
from thumbnet.data.calibration import with_calibration_split
from thumbnet.data.splits import Data
from thumbnet.distributed import ALONE, World, joined
from thumbnet.errors import (
    DataError,
    InterruptedRunError,
    RecipeError,
    RunError,
    ThumbnetError,
    UnreadableImageError,
)
from thumbnet.evaluation import evaluate_logits
from thumbnet.hardware import choose_device, keep_freed_memory, make_deterministic
from thumbnet.invocation import command
from thumbnet.kernels.build import library
from thumbnet.models import DataInitialised, build_model
from thumbnet.models.registry import find_builder, is_built_in, provide
from thumbnet.recipes.networks import code_options
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.runs.folder import Run
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.seeds import derive_seed
from thumbnet.sources.load import NAMED, can_be_loaded_again, load_data
from thumbnet.training.continue_run import Continuation, continuation
from thumbnet.training.fit import Score, StepResult, TrainingState, fit
from thumbnet.training.listener import Listener
from thumbnet.training.mirrored import find_mirrored, named_keys, show_digits, without_mirroring
from thumbnet.training.results import Findings, Measured, RepeatTeller, measure, summary_of
from thumbnet.training.schedules import smaller_sizes
from thumbnet.training.transfer import begin_from

FEW_PICTURES = 10_000  # up to here `fast` would have too few steps in its few epochs
FOR_OTHER_NETWORKS = "resnet18"  # the rates of `fast` and `small` are FastNet's, with names of its layers
INITIAL_PICTURES = 5000  # from which a network may take weights; more change nothing that matters


def train(
    data: Any,
    recipe: str | Path | Recipe | None = None,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    device: str = "auto",
    data_dir: str | Path | None = None,
    listener: Listener | None = None,
    auto_resume: bool = False,
) -> Run:
    """Train a network and leave a run's folder.

    >>> run = train("digits", "digits", overrides=["training.epochs=1"], out=tmp / "run")
    >>> run.summary["split"], run.summary["epochs"]
    ('test', 1)

    Args:
        data: what :func:`thumbnet.load_data` takes, or what it returned.
        recipe: a name, a TOML file, or a :class:`~thumbnet.recipes.recipe.Recipe`; by default the one that
            :func:`default_recipe` names.
        overrides: ``"section.key=value"`` settings on top of ``recipe``.
        out: the run's folder; a new one below ``runs/`` by default.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        data_dir: where downloads are kept.
        listener: is told what happens.
        auto_resume: go on with ``out`` if that run was begun, and leave it alone if it is complete: the
            same call is right however often a scheduler repeats it.

    Raises:
        ThumbnetError: what the user can mend: data, recipe, folder, divergence.
    """
    started = time.perf_counter()
    if auto_resume and out is None:
        raise RunError("--auto-resume needs the run's folder by name: --out DIR")
    with joined() as world:
        begun = auto_resume and (Path(str(out)).expanduser() / "run.json").is_file()
        if out is not None and world.from_first(begun):
            with suppress(RecipeError):  # the run's own recipe counts; but this call may name its network
                _asked(recipe, overrides)
            return _resume(
                out, device, listener or Listener(), world, started, complete_is_fine=True,
                data=None if isinstance(data, str | Path) else data,
            )  # fmt: skip
        return _begin(data, recipe, overrides, out, device, data_dir, listener or Listener(), world, started)


def resume(
    run_path: str | Path,
    *,
    device: str = "auto",
    listener: Listener | None = None,
    more_epochs: int | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    data: Any = None,
    model: Callable[..., nn.Module] | None = None,
) -> Run:
    """Go on with an unfinished run, to the very result that it would have had uninterrupted.

    With ``more_epochs``, train a finished run for longer instead.

    Args:
        run_path: the run's folder.
        device: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1``, ``mps``.
        listener: is told what happens.
        more_epochs: train a finished run for so many epochs more, in a new run's folder: see
            :mod:`thumbnet.training.continue_run`.
        out, overrides: for ``more_epochs``: the new run's folder, and settings that are to change.
        data: the run's data, where they were in memory.
        model: the class or function that builds the run's network, where it is one of your own.

    Raises:
        RunError: no such run, it is complete (or, with ``more_epochs``, not complete), another process
            trains in it, its checkpoint is damaged, or it needs a network of the user's own.
        DataError: its data are gone or have changed.
    """
    with joined() as world:
        started = time.perf_counter()
        if model is not None:
            name = world.from_first(Run.open(run_path).recipe.model.name if world.is_first else "")
            provide(name, model)
        if more_epochs is not None:
            planned = continuation(run_path, more_epochs, overrides) if world.is_first else None
            more = world.from_first(planned)
            assert more is not None
            same_batches = [f"training.batch_size={more.recipe.training.batch_size}"]
            source = _own_data(more.data, more.record["run"], data)
            return _begin(
                source, more.recipe, same_batches, out, device, more.data_dir, listener or Listener(),
                world, started, more,
            )  # fmt: skip
        return _resume(run_path, device, listener or Listener(), world, started, data=data)


def _own_data(source: str | None, run: str | Path, given: Any) -> Any:
    """What to load a run's data from again: ``given``, or the ``source`` that it has noted.

    Raises:
        RunError: its data were in memory, and none are given.
    """
    if given is None and source is None:
        raise RunError(
            f"the data of {run} were in memory, so only Python can go on with it: "
            "thumbnet.resume(RUN, data=(images, labels))"
        )
    return source if given is None else given


def _begin(
    data: Any,
    recipe: str | Path | Recipe | None,
    overrides: Sequence[str],
    out: str | Path | None,
    device: str,
    data_dir: str | Path | None,
    listener: Listener,
    world: World,
    started: float,
    continued: Continuation | None = None,
) -> Run:
    if out is not None and world.is_first:
        Run.check_free(out)  # before anything is decoded
    target = choose_device(device, world.local_rank)
    if target.type == "cpu":
        # gcc makes the kernels, if they are not there, while the data are read: 2 s less.
        threading.Thread(target=library).start()
    with world.one_per_machine_first():
        chosen, loaded = choose_recipe(data, recipe, overrides, data_dir, listener)
        loaded.check_trainable()
        chosen = _with_absolute_init(chosen)
        fingerprint = loaded.fingerprint()  # of all training pictures, however many calibrate
        loaded = with_calibration_split(loaded, chosen.data)
        listener.on_data(loaded)
        if continued is not None and fingerprint != continued.fingerprint:
            source, init = loaded.source, continued.record["run"]
            raise RunError(
                f"the data in {source} have changed since the run {init} was trained. To train on them as "
                f"they are now, from its weights: {command('train', source, '--init', init)}"
            )
        prepared = prepare(loaded, chosen, target, listener.on_decode, world)
    _check_same_everywhere(fingerprint, loaded.source, world)
    state = build_state(chosen, prepared, loaded.class_names, target, world)
    run = Run(Path())
    if world.is_first:
        run = Run.create(out, loaded.source, chosen.name)
    run = Run(world.from_first(run.path))
    settings = {
        "data": _where_again(loaded.source),
        "data_dir": None if data_dir is None else str(Path(data_dir).resolve()),
        "fingerprint": fingerprint,
    } | ({} if continued is None else {"continues": continued.record})
    with run.locked(_wait(world)) if world.is_first else nullcontext():
        if world.is_first:
            run.write_skipped(prepared.skipped)
            run.begin(chosen, settings, target)
        return _train(run, loaded, prepared, state, listener, started, fingerprint)


def _where_again(source: str) -> str | None:
    """What to load data from again, also from another folder; None where they were in memory."""
    if not can_be_loaded_again(source):
        return None
    is_path = source not in NAMED and not source.startswith("hf:")
    return str(Path(source).expanduser().resolve()) if is_path else source


def _with_absolute_init(recipe: Recipe) -> Recipe:
    """A resume may come from another folder."""
    source = recipe.training.init
    if not source or source.startswith("hf:"):
        return recipe
    place = str(Path(source).expanduser().resolve())
    return replace(recipe, training=replace(recipe.training, init=place))


def _resume(
    path: str | Path,
    device: str,
    listener: Listener,
    world: World,
    started: float,
    complete_is_fine: bool = False,
    data: Any = None,
) -> Run:
    run = Run.open(path) if world.is_first else Run(Path(path))  # it need not be on every machine
    with run.locked(_wait(world)) if world.is_first else nullcontext():
        if world.from_first(run.is_complete):
            if complete_is_fine:
                return run
            raise RunError(
                f"{run.path} is complete already. Measure it: {command('evaluate', run.path)}\n"
                f"Train it for longer: {command('train', '--resume', run.path, '--more-epochs', '10')}"
            )
        kept = (run.recipe, run.settings, run.load_checkpoint()) if world.is_first else None
        kept = world.from_first(kept)
        assert kept is not None
        recipe, settings, checkpoint = kept
        find_builder(recipe.model.name)  # refused here, before the data are read, if its code is not allowed
        target = choose_device(device, world.local_rank)
        with world.one_per_machine_first():
            source = _own_data(settings.get("data"), path, data)
            loaded = (
                source
                if isinstance(source, Data)
                else _load(source, recipe, settings.get("data_dir"), listener)
            )
        fingerprint = loaded.fingerprint()
        _check_same_everywhere(fingerprint, loaded.source, world)
        loaded = with_calibration_split(loaded, recipe.data)
        listener.on_data(loaded)
        if fingerprint != settings.get("fingerprint"):
            raise RunError(
                f"the data in {loaded.source} have changed since the run {run.path} began: its result could "
                "not be trusted. Put them back, or start a new run."
            )
        with world.one_per_machine_first():
            prepared = prepare(loaded, recipe, target, listener.on_decode, world)
        state = build_state(recipe, prepared, loaded.class_names, target, world)
        earlier = 0.0
        try:
            if checkpoint is not None:
                state.load_state_dict(checkpoint["state"])
                earlier = float(checkpoint["seconds_total"])
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            reason = str(error).split("\n")[0]
            raise RunError(f"the checkpoint in {run.path} does not belong to its recipe: {reason}") from None
        return _train(run, loaded, prepared, state, listener, started - earlier, fingerprint)


def _wait(world: World) -> float:
    """Seconds to wait for a run's lock: after a restart the processes before may still be about to end."""
    return 0.0 if world.size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ else 30.0


def _check_same_everywhere(fingerprint: str, source: str, world: World) -> None:
    """See that all processes of a training have the same data.

    Raises:
        DataError: the first process has other data.
    """
    if world.from_first(fingerprint) != fingerprint:
        raise DataError(f"{source} is not the same here as where the first process runs")


def choose_recipe(
    data: Any,
    recipe: str | Path | Recipe | None,
    overrides: Sequence[str],
    data_dir: str | Path | None,
    listener: Listener,
) -> tuple[Recipe, Data]:
    """The recipe that is asked for, or the default one for the data; and the data, loaded by it.

    It is fitted to the data: :meth:`thumbnet.Recipe.fitted`, unless ``overrides`` name a batch size,
    and :func:`~thumbnet.training.mirrored.without_mirroring`.

    Raises:
        RecipeError, DataError: either cannot be had.
        ModelCodeError, NetworkError: the recipe's network is not registered, and cannot be imported.
    """
    chosen = _asked(recipe, overrides)
    find_builder(chosen.model.name)
    loaded = data if isinstance(data, Data) else _load(data, chosen, data_dir, listener)
    if recipe is None:
        default = default_recipe(loaded) if is_built_in(chosen.model.name) else FOR_OTHER_NETWORKS
        chosen = load_recipe(default, overrides)
    if not any(assignment.partition("=")[0].strip() == "training.batch_size" for assignment in overrides):
        chosen = chosen.fitted(len(loaded.splits["train"]))
    named = named_keys(recipe, overrides)
    chosen, notes = without_mirroring(
        chosen, loaded.class_names, loaded.source, named, lambda: show_digits(loaded)
    )
    return chosen, replace(loaded, notes=(*loaded.notes, *notes))


def _asked(recipe: str | Path | Recipe | None, overrides: Sequence[str]) -> Recipe:
    """The recipe that the user asks for; ``fast`` where only ``overrides`` are given."""
    asked = "fast" if recipe is None else recipe
    return asked.override(overrides) if isinstance(asked, Recipe) else load_recipe(asked, overrides)


def default_recipe(data: Data) -> str:
    """``digits`` for the digits, ``small`` for up to ten thousand training pictures, else ``fast``."""
    if data.source == "digits":
        return "digits"
    return "small" if len(data.splits["train"]) <= FEW_PICTURES else "fast"


def build_state(
    recipe: Recipe,
    prepared: Prepared,
    class_names: Sequence[str],
    device: torch.device,
    world: World = ALONE,
) -> TrainingState:
    """A new network and optimizer, seeded by the recipe.

    Raises:
        RunError: the recipe begins from a run that there is not, or that has another network.
        NetworkError: a network of the user's own fails on pictures of a size that the training uses.
    """
    keep_freed_memory()
    make_deterministic()
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay the caller's
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        size = prepared.preprocessing.size
        sizes = [size, *smaller_sizes(recipe.schedule, size)]
        model = build_model(recipe.model, len(class_names), sizes=sizes)
    if isinstance(model, DataInitialised):
        model.initialise_from(first_pictures(prepared))
    if recipe.training.init:
        begin_from(model, recipe.model, recipe.training.init, class_names)
    weights = None
    if recipe.training.class_weights == "balanced":
        weights = balanced_weights(prepared.train.engine.labels, len(class_names))
    return TrainingState(model, recipe, len(prepared.train), device, world, weights, prepared.train.selection)


def balanced_weights(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """In inverse proportion to the number of a class' pictures, 1 on average over them: float32 [classes]."""
    counts = torch.bincount(labels.cpu(), minlength=num_classes)
    return len(labels) / (int((counts > 0).sum()) * counts.clamp(min=1)).float()


def first_pictures(prepared: Prepared) -> torch.Tensor:
    """Some training pictures, not augmented, normalised: float32 [N, 3, H, W]."""
    engine, normalise = prepared.train.engine, prepared.train.normalise
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(engine.labels), generator=generator)[:INITIAL_PICTURES]
    return torch.cat([normalise(images) for images in engine.fetch(chosen.split(1000))])


def _load(source: Any, recipe: Recipe, data_dir: str | Path | None, listener: Listener) -> Data:
    return load_data(source, data_dir=data_dir, settings=recipe.data, progress=listener.on_download)


def _train(
    run: Run,
    data: Data,
    prepared: Prepared,
    state: TrainingState,
    listener: Listener,
    started: float,
    fingerprint: str,
) -> Run:
    """The part that a new and a resumed training share. ``started`` is on ``time.perf_counter``."""

    world, settings, recipe_text = state.world, state.recipe.checkpoint, state.recipe.to_toml()
    last_saved = time.monotonic()

    watched = next((name for name in ("val", "test") if name in prepared.evaluation), None)
    newest: torch.Tensor | None = None  # logits of this process' pictures of that split

    def score_on(model: nn.Module, batches: EvalBatches) -> tuple[Score, torch.Tensor]:
        logits, labels = collect_logits(model, batches, bf16=state.bf16)
        found = evaluate_logits(world.gather(logits).numpy(), world.gather(labels).numpy(), data.class_names)
        return Score(str(watched), found.accuracy, found.loss, found.pictures), logits

    def score(model: nn.Module) -> Score:
        nonlocal newest
        assert watched is not None
        result, newest = score_on(model, prepared.evaluation[watched])
        return result

    sample = None
    if watched is not None and state.recipe.evaluation.sample:
        sample = prepared.evaluation[watched].sample(max(state.recipe.evaluation.sample, world.size), world)

    def save() -> None:
        nonlocal last_saved
        saved = {
            "recipe": recipe_text,
            "state": state.state_dict(),
            "seconds_total": time.perf_counter() - started,
        }
        if world.is_first:
            run.save_checkpoint(saved)
            run.write_metrics([result.row() for result in state.history])
        last_saved = time.monotonic()

    def on_step(step: StepResult) -> None:
        listener.on_step(step)
        due = settings.minutes > 0 and time.monotonic() - last_saved > 60 * settings.minutes
        due = due or (settings.steps > 0 and step.step % settings.steps == 0)
        stop, due = world.any_of(listener.should_stop(), due)
        if stop or due:
            save()
        if stop:
            options = code_options(state.recipe.model.name)
            raise InterruptedRunError(run.path, state.epoch + 1, state.step, options)

    listener.on_start(run, state, prepared)
    repeats = RepeatTeller(run, prepared, data.class_names, listener) if world.is_first else None
    try:
        results = fit(
            state,
            prepared.train,
            evaluate=None if watched is None else score,
            evaluate_sample=None if sample is None else lambda model: score_on(model, sample)[0],
            on_step=on_step,
        )
        for result in results:
            save()
            listener.on_epoch(result)
            if repeats is not None:
                repeats.tell_if_known()
    except UnreadableImageError:
        raise all_unreadable(data, listener.on_decode) from None

    model = state.evaluated_model
    model.load_state_dict(state.final_weights())
    unchanged = newest is not None and state.best_epoch in (None, state.epoch)
    known = (watched, newest) if unchanged and watched is not None and newest is not None else None
    measured = measure(model, state, prepared, data.class_names, known)
    if world.is_first:
        assert repeats is not None
        info = WeightsInfo(
            model=state.recipe.model,
            class_names=data.class_names,
            preprocessing=prepared.preprocessing,
            precision=state.recipe.training.precision,
            source=data.source,
            fingerprint=fingerprint,
            tta=state.recipe.evaluation.tta,
            temperature=measured.temperature,
        )
        run.save_weights(model.state_dict(), info)
        run.write_metrics([result.row() for result in state.history])
        findings = Findings(repeats.tell(), _mirrored(state, prepared, measured, data.class_names))
        run.save_summary(summary_of(state, measured, findings, started, len(prepared.skipped)))
    world.any(False)  # nobody leaves before the summary is there
    return run


def _mirrored(
    state: TrainingState, prepared: Prepared, measured: Measured, class_names: Sequence[str]
) -> list[str]:
    """Warnings of classes that mirroring makes alike."""
    if measured.plain is None or measured.split is None:
        return []
    try:
        found = find_mirrored(state.recipe, prepared, measured.split, measured.plain, state.device)
    except ThumbnetError:  # a probe that diverges or finds no memory must not cost the run its summary
        return []
    return [pair.sentence(class_names) for pair in found]
