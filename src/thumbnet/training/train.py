"""Train a network from data and a recipe, and leave a run.

Nothing here prints. A :class:`~thumbnet.training.listener.Listener` receives the progress; the command line
has its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from thumbnet.batches.cores import within_quota
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.data.calibration import KEEPS_CLASSES, with_calibration_split
from thumbnet.data.corrections import Correction, Labels, corrections_of
from thumbnet.data.splits import Data
from thumbnet.distributed import joined
from thumbnet.errors import RunError, ThumbnetError
from thumbnet.files import user_path
from thumbnet.hardware import deterministic
from thumbnet.invocation import command
from thumbnet.kernels.library import load_kernels
from thumbnet.models.registry import provide
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.folder import Run
from thumbnet.sources.load import data_dir_again, where_again
from thumbnet.training.asked import check_same_asked, check_same_corrections, what_was_asked
from thumbnet.training.build import build_state
from thumbnet.training.call import Call, memory_of
from thumbnet.training.choose import asked_recipe, choose_recipe, notes_on_rates
from thumbnet.training.continue_run import Continuation, continuation
from thumbnet.training.judges import CHOOSE_NOTHING, choose_by_val
from thumbnet.training.known import known_at_start, record_of_masks
from thumbnet.training.linear import check_frozen, with_network_of_init
from thumbnet.training.listener import Listener
from thumbnet.training.mirror_names import named_keys
from thumbnet.training.optimizers import note_on_filters
from thumbnet.training.own_loss import code_digests, find_code
from thumbnet.training.pretrained import check_same, with_stem
from thumbnet.training.resuming import (
    check_has_end,
    explaining_moved_data,
    is_place,
    loaded_again,
    note_changes,
    own_data,
    restore,
    with_recorded_known,
)
from thumbnet.training.session import Session
from thumbnet.training.state import TrainingState
from thumbnet.training.time_budget import (
    TimeBudget,
    check_free_of_length,
    check_minutes,
    may_choose_width,
    may_watch_less,
)
from thumbnet.training.transfer import find_initial, read_initial, with_absolute_init


@dataclass(frozen=True)
class Plan:
    """What a new training should do.

    Attributes:
        data, recipe, overrides, out, data_dir, minutes, may_widen, judged_on: see :func:`train`.
        labels: corrections of the data's labels, if any.
        continued: the finished run that this one continues, if any.
    """

    data: Any
    recipe: str | Path | Recipe | None
    overrides: Sequence[str]
    out: str | Path | None
    data_dir: str | Path | None
    labels: Sequence[Correction] | None = None
    continued: Continuation | None = None
    minutes: float | None = None
    may_widen: bool = False
    judged_on: str | None = None


def train(
    data: Any,
    recipe: str | Path | Recipe | None = None,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    device: str | torch.device = "auto",
    data_dir: str | Path | None = None,
    listener: Listener | None = None,
    auto_resume: bool = False,
    minutes: float | None = None,
    may_widen: bool = False,
    judged_on: str | None = None,
    labels: Labels | None = None,
    started: float | None = None,
) -> Run:
    """Train a network and write a run's folder.

    >>> run = train("digits", "digits", overrides=["training.epochs=1"], out=tmp / "run")
    >>> run.summary["split"], run.summary["epochs"]
    ('test', 1)

    Args:
        data: anything that :func:`thumbnet.load_data` accepts or returned.
        recipe: a name, a TOML file, or a :class:`~thumbnet.Recipe`; by default the one that
            :func:`~thumbnet.training.choose.default_recipe` names for the network and the data.
        overrides: ``"section.key=value"`` settings on top of ``recipe``.
        out: the run's folder; by default a new one in ``runs/``.
        device: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1``, ``mps``, or a ``torch.device``.
        data_dir: folder for downloads.
        listener: receives the events of the training.
        auto_resume: resume the run in ``out`` if it has begun, and return it unchanged if it is complete. A
            scheduler can then repeat the same call as often as it likes. A call that asks for another result
            is an error, see :mod:`thumbnet.training.asked`.
        minutes: wall time for everything, from ``started`` to the final evaluation. The number of steps, and
            for FastNet the width, are chosen for it; see :mod:`thumbnet.training.time_budget`.
        may_widen: with ``minutes``, whether the FastNet of a recipe of your own, whose width is kept
            otherwise, may become wider.
        judged_on: the split by which a search chose the settings, if this is its final training: what is
            measured on that split is optimistic.
        labels: corrections of the data's labels, such as the ``labels.csv`` that ``thumbnet review`` writes;
            see :func:`thumbnet.data.corrections.corrections_of` and
            :func:`thumbnet.data.correct.apply_corrections`. The run keeps a copy.
        started: when the clock started, in seconds of ``time.perf_counter``; by default now.

    Raises:
        ThumbnetError: something that the user can fix: data, recipe, folder, divergence, memory.
    """
    started = time.perf_counter() if started is None else started
    if minutes is not None:
        check_minutes(minutes)
        check_free_of_length(overrides)
    if auto_resume and out is None:
        raise RunError("--auto-resume needs the run's folder by name: --out DIR")
    with joined() as world, deterministic(), within_quota(), memory_of("training"):
        call = Call(device, listener or Listener(), world, started)
        # Read before anything is downloaded. The files that they name are looked up here, by one process.
        read = corrections_of(labels) if labels is not None and world.is_first else None
        corrections = world.from_first(read)
        begun = auto_resume and (user_path(str(out)) / "run.json").is_file()
        if out is not None and world.from_first(begun):
            asked = what_was_asked(recipe, overrides)  # in every process: it may name a network
            if world.is_first:
                check_same_asked(Run.open(out), asked, minutes)
                if corrections is not None:
                    check_same_corrections(Run.open(out), corrections)
            return _resume(out, data, call, data_dir, complete_is_fine=True)
        plan = Plan(
            data=data,
            recipe=recipe,
            overrides=overrides,
            out=out,
            data_dir=data_dir,
            labels=corrections,
            minutes=minutes,
            may_widen=may_widen,
            judged_on=judged_on,
        )
        return _begin(plan, call)


def resume(
    run_path: str | Path,
    *,
    device: str | torch.device = "auto",
    listener: Listener | None = None,
    more_epochs: int | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    data: Any = None,
    data_dir: str | Path | None = None,
    model: Callable[..., nn.Module] | None = None,
    finish: bool = False,
    complete_is_fine: bool = False,
) -> Run:
    """Resume an unfinished run. The result is the same as without the interruption.

    With ``finish``, end it where its newest checkpoint is. With ``more_epochs``, train a finished run for
    longer instead.

    Args:
        run_path: the run's folder.
        device: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1``, ``mps``, or a ``torch.device``.
        listener: receives the events of the training.
        more_epochs: train a finished run for this many more epochs, in a new folder; see
            :mod:`thumbnet.training.continue_run`.
        out: with ``more_epochs``, the new run's folder.
        overrides: with ``more_epochs``, settings to change.
        data: the run's data, if they were in memory.
        data_dir: folder for downloads and unpacked archives, if it is no longer the one that the run records,
            which then records this one.
        model: the class or function that builds the run's network, if it is one of your own.
        finish: end the training where its newest checkpoint is: measure that network, and write the weights
            and the summary, which says that the training was ended early.
        complete_is_fine: return a run that is complete as it is.

    Raises:
        RunError: there is no such run, it is complete (or, with ``more_epochs``, not complete), another
            process is training in it, its checkpoint is damaged, its data have changed, it needs a network of
            the user's own, or it has no checkpoint to ``finish`` at.
        ThumbnetError: both ``finish`` and ``more_epochs`` are given, or ``out`` or ``overrides`` without
            ``more_epochs``.
        DataError: its data cannot be loaded any more.
    """
    started = time.perf_counter()
    if finish and more_epochs is not None:
        raise ThumbnetError(
            "finish ends an unfinished run, and more_epochs continues a finished one: choose one"
        )
    if more_epochs is None and (out is not None or overrides):
        raise ThumbnetError(
            "out and overrides go with more_epochs: a run that is resumed keeps its folder and its settings"
        )
    with joined() as world, deterministic(), within_quota(), memory_of("training"):
        call = Call(device, listener or Listener(), world, started)
        if model is not None:
            name = world.from_first(Run.open(run_path).recipe.model.name if world.is_first else "")
            provide(name, model)
        if more_epochs is None:
            return _resume(run_path, data, call, data_dir, complete_is_fine, finish)
        planned = continuation(run_path, more_epochs, overrides) if world.is_first else None
        more = world.from_first(planned)
        assert more is not None
        plan = Plan(
            data=own_data(more.data, more.record["run"], data),
            recipe=more.recipe,
            overrides=[f"training.batch_size={more.recipe.training.batch_size}"],  # the same batches
            out=out,
            data_dir=data_dir or more.data_dir,
            labels=more.corrections,
            continued=more,
        )
        return _begin(plan, call)


def _begin(plan: Plan, call: Call) -> Run:
    """Start a new run."""
    world, listener = call.world, call.listener
    if world.is_first:
        Run.check_free(plan.out)  # before anything is decoded
    device = call.choose_device()
    if device.type == "cpu":
        # If the kernels are not compiled yet, gcc compiles them while the data load, which saves 2 s.
        threading.Thread(target=load_kernels).start()
    with world.one_per_machine_first():
        asked, named = asked_recipe(plan.recipe, plan.overrides), named_keys(plan.recipe, plan.overrides)
        check_frozen(asked, named_keys(None, plan.overrides), plan.minutes, world)
        find_initial(asked)
        source = with_absolute_init(asked).training.init
        initial = read_initial(source) if source else None
        before = plan.continued
        advice = nullcontext() if before is None else explaining_moved_data(before.record["run"], plan.data)
        with advice:
            recipe, loaded = choose_recipe(
                plan.data,
                plan.recipe,
                plan.overrides,
                plan.data_dir,
                listener,
                plan.labels,
                continues=before is not None,
                initial=initial,
            )
        loaded.check_trainable()
        recipe = with_absolute_init(recipe)
        recipe.to_toml()  # a recipe that cannot be written is refused before the training
        recipe = with_network_of_init(recipe, named, initial)
        fingerprint = loaded.fingerprint()  # of all training pictures, including those set aside below
        data = with_calibration_split(loaded, recipe.data)
        listener.on_data(data)
        if before is not None:
            before.check_same_data(fingerprint, data.source)
        prepared = prepare(data, recipe, device, listener.on_decode, world)
        found: tuple[dict[str, np.ndarray], tuple[str, ...], list[str]] = ({}, (), [])
        if world.is_first:
            found = known_at_start(recipe, prepared, data, fingerprint, initial)
    call.check_same_data(fingerprint, data.source)
    call.check_same_skipped(prepared.skipped, data.source)
    known, perhaps, known_notes = world.from_first(found)
    prepared = replace(prepared, known=known, perhaps_known=perhaps)
    recipe, prepared, choice_notes = choose_by_val(recipe, prepared, world)
    recipe, notes = with_stem(recipe, prepared.preprocessing.size)
    for note in (*notes, *(() if plan.continued is None else plan.continued.notes)):
        listener.on_note(note)
    budget = None
    if plan.minutes is not None:
        least_width = 0.0 if may_choose_width(plan.recipe, named, recipe) else None
        if plan.may_widen:
            least_width = recipe.model.width
        budget = TimeBudget(plan.minutes, call.started, least_width, may_watch_less(named, recipe))
        planned, note = world.from_first(budget.plan(recipe, prepared, len(data.class_names), device))
        for told in (note, *notes_on_rates(recipe, planned, named_keys(None, plan.overrides))):
            listener.on_note(told)
        recipe, prepared = planned, prepared.with_recipe(planned)
    state = build_state(recipe, prepared, data.class_names, device, world, initial=initial)
    started = [] if state.start is None else state.start.notes()
    for note in (*started, *known_notes, *choice_notes, *note_on_filters(recipe.optimizer, state.model)):
        listener.on_note(note)
    run = Run.create(plan.out, data.source, recipe.name) if world.is_first else Run(Path())
    run = Run(world.from_first(run.path))
    session = Session(
        run=run,
        data=data,
        prepared=prepared,
        state=state,
        listener=listener,
        started=call.started,
        fingerprint=fingerprint,
        budget=budget,
        judged_on=plan.judged_on,
    )
    with call.lock(run):
        if world.is_first:
            run.remove_leftovers()
            run.write_skipped(prepared.skipped)
            if data.corrected is not None:
                run.write_corrections(data.corrected.content)
            run.begin(recipe, _settings(plan, data, fingerprint, state, prepared), device)
        return session.train()


def _resume(
    path: str | Path,
    data: Any,
    call: Call,
    data_dir: str | Path | None = None,
    complete_is_fine: bool = False,
    finish: bool = False,
) -> Run:
    """Train the rest of a run.

    Args:
        path: the run's folder.
        data: the run's data if they were in memory, or where they are now; None for where they were.
        call: how it was called.
        data_dir: the folder for downloads and unpacked archives; None for the one that the run records.
        complete_is_fine: return a run that is complete as it is, unless ``data`` are other ones.
        finish: end it where its newest checkpoint is.
    """
    world = call.world
    run = Run.open(path) if world.is_first else Run(Path(path))  # the folder need not exist on every machine
    if world.from_first(run.is_complete):  # before the lock, which needs a folder that is writable
        return _complete(run, data, call, data_dir, complete_is_fine)
    with call.lock(run, resumes=True):
        if world.from_first(run.is_complete):  # completed by the process that held the lock
            return _complete(run, data, call, data_dir, complete_is_fine)
        kept = None
        if world.is_first:
            kept = (run.recipe, run.settings, run.load_checkpoint(), run.corrections, run.skipped)
        kept = world.from_first(kept)
        assert kept is not None
        recipe, settings, checkpoint, corrections, skipped = kept
        if world.from_first(is_place(data, settings.get("data"))):  # links may differ between machines
            data = None
        if finish:
            check_has_end(run, recipe, checkpoint)
        find_code(recipe)  # if its code is not allowed, say so before the data are read
        device = call.choose_device()
        if recipe.training.frozen:
            checkpoint = None  # a last layer is fitted anew
        begins_again = checkpoint is None
        with world.one_per_machine_first():
            if begins_again:
                find_initial(recipe)
        loaded, fingerprint = loaded_again(run, recipe, settings, data, call, data_dir, corrections)
        with world.one_per_machine_first():
            prepared = prepare(loaded, recipe, device, call.listener.on_decode, world, skipped)
        prepared = with_recorded_known(settings, recipe, prepared, run)
        state = build_state(recipe, prepared, loaded.class_names, device, world, restored=not begins_again)
        if state.start is not None:
            state.start.check_same(settings.get("init"), run.path)
        check_same(state.pretrained, settings.get("pretrained"))
        earlier = 0.0 if checkpoint is None else restore(state, checkpoint, run)
        if world.is_first:
            for note in note_changes(run, state, settings, begins_again, data_dir):
                call.listener.on_note(note)
        session = Session(
            run=run,
            data=loaded,
            prepared=prepared,
            state=state,
            listener=call.listener,
            started=call.started - earlier,
            fingerprint=fingerprint,
            judged_on=(settings.get("search") or {}).get("judged_on"),
        )
        return session.train(finish)


def _complete(run: Run, data: Any, call: Call, data_dir: str | Path | None, is_fine: bool) -> Run:
    """A complete run as it is; the arguments are those of :func:`_resume`.

    Raises:
        RunError: that is not fine, or ``data`` are other ones than the run's.
    """
    world = call.world
    if not is_fine:
        raise RunError(
            f"{run.path} is complete already. Measure it: {command('evaluate', run.path)}\n"
            f"Train it for longer: {command('train', '--resume', run.path, '--more-epochs', '10')}"
        )
    kept = world.from_first((run.recipe, run.settings, run.corrections) if world.is_first else None)
    assert kept is not None
    recipe, settings, corrections = kept
    if data is not None and not world.from_first(is_place(data, settings.get("data"))):
        loaded_again(run, recipe, settings, data, call, data_dir, corrections)
    call.listener.on_note(f"{run.path} is complete already: nothing is trained")
    return run


def _settings(
    plan: Plan, data: Data, fingerprint: str, state: TrainingState, prepared: Prepared
) -> dict[str, Any]:
    """The contents of ``run.json``."""
    settings: dict[str, Any] = {
        "data": where_again(data.source),
        "data_dir": data_dir_again(plan.data_dir),
        "fingerprint": fingerprint,
        "measured_fingerprint": data.fingerprint(data.measured_split()),
        KEEPS_CLASSES: True,
        CHOOSE_NOTHING: record_of_masks(prepared.choose_nothing),
    }
    if data.measured_split() != "val" and "val" in data.splits:
        settings["val_fingerprint"] = data.fingerprint("val")
    if data.corrected is not None:
        settings["labels"] = data.corrected.record()
    if state.pretrained is not None:
        settings["pretrained"] = state.pretrained
    if data.multilabel:
        settings["multilabel"] = True
    if state.start is not None:
        settings["init"] = state.start.record()
        if prepared.known:
            settings["init"]["known"] = record_of_masks(prepared.known)
        if prepared.perhaps_known:
            settings["init"]["perhaps_known"] = list(prepared.perhaps_known)
    if plan.minutes is not None:
        settings["minutes"] = plan.minutes
    if plan.judged_on is not None:
        settings["search"] = {"judged_on": plan.judged_on}
    code = code_digests(state.recipe)
    if code:
        settings["code"] = code
    settings["asked"] = what_was_asked(plan.recipe, plan.overrides)
    return settings if plan.continued is None else {**settings, "continues": plan.continued.record}
