"""What a run that goes on finds again: its data, its state and what it knew; and what has changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from thumbnet.batches.prepare import Prepared
from thumbnet.data.calibration import FEWEST, KEEPS_CLASSES, with_calibration_split
from thumbnet.data.corrections import Correction
from thumbnet.data.splits import Data
from thumbnet.errors import RunError, memory_guard
from thumbnet.files import user_path
from thumbnet.invocation import command
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.finding import explaining_gone
from thumbnet.runs.folder import Run
from thumbnet.sources.load import data_dir_again
from thumbnet.training.call import Call
from thumbnet.training.choose import load_for
from thumbnet.training.judges import CHOOSE_NOTHING
from thumbnet.training.known import masks_from_record, perhaps_from_record
from thumbnet.training.own_loss import changed_code, code_digests
from thumbnet.training.state import TrainingState

# In the run.json of an earlier version, by which the epoch was chosen without the pictures that the initial
# weights know, but with copies of training pictures. Before that, all pictures of val chose it.
KNOWN_CHOOSE_NOTHING = "known_choose_nothing"


def loaded_again(
    run: Run,
    recipe: Recipe,
    settings: dict[str, Any],
    given: Any,
    call: Call,
    data_dir: str | Path | None,
    corrections: Sequence[Correction] | None,
) -> tuple[Data, str]:
    """Load a run's data again, with its corrections and calibration split; return them and their fingerprint.

    Raises:
        RunError: the data have changed since the run began.
    """
    recorded = settings.get("data")
    with call.world.one_per_machine_first():
        source = own_data(recorded, run.path, given)
        with explaining_moved_data(run.path, source):
            folder = data_dir or settings.get("data_dir")
            data = load_for(source, recipe, folder, call.listener, corrections)
    fingerprint = data.fingerprint()
    call.check_same_data(fingerprint, data.source)
    data = with_calibration_split(data, recipe.data, keep_classes=KEEPS_CLASSES in settings)
    call.listener.on_data(data)
    if fingerprint != settings.get("fingerprint"):
        other = "" if given is None or recorded is None else f" with those in {recorded}"
        raise RunError(
            f"the data in {data.source} have changed since the run {run.path} began{other}: its result could "
            "not be trusted. Put them back, or start a new run."
        )
    return data, fingerprint


def own_data(source: str | None, run: str | Path, given: Any) -> Any:
    """Where to load a run's data from: ``given``, else the ``source`` that the run recorded.

    Raises:
        RunError: the run's data were in memory, and ``given`` is None.
    """
    if given is None and source is None:
        raise RunError(
            f"the data of {run} were in memory, so only Python can resume it: "
            "thumbnet.resume(RUN, data=(images, labels))"
        )
    return source if given is None else given


def is_place(data: Any, recorded: str | None) -> bool:
    """Tell whether ``data`` name the place where a run recorded its data."""
    named = isinstance(data, str | Path)
    return named and recorded in (str(data), str(user_path(data).resolve()))


def explaining_moved_data(run: str | Path, source: Any) -> AbstractContextManager[None]:
    """Within, an error about data that are gone also says what to do if a run that goes on needs them."""
    return explaining_gone(
        source,
        lambda: (
            f"These are the data of {run}, which goes on only with them. If they have moved, move them "
            "back, or put a symbolic link there"
        ),
    )


def check_has_end(run: Run, recipe: Recipe, checkpoint: dict[str, Any] | None) -> None:
    """Check that an unfinished run can be ended at its checkpoint.

    Raises:
        RunError: it has none, or its last layer is fitted as a whole.
    """
    resumed = command("train", "--resume", run.path)
    if recipe.training.frozen:
        raise RunError(
            f"{run.path} fits its last layer as a whole, so there is no earlier end. Resume it: {resumed}"
        )
    if checkpoint is None:
        raise RunError(
            f"{run.path} has no checkpoint yet, so there is nothing to finish. Resume it: {resumed}"
        )


def restore(state: TrainingState, checkpoint: dict[str, Any], run: Run) -> float:
    """Load a checkpoint into ``state``; return the seconds that the run had taken until then."""
    advice = "The run needs as much memory as when it began"
    try:
        with memory_guard(str(state.device), "restoring the checkpoint", advice):
            state.load_state_dict(checkpoint["state"])
        return float(checkpoint["seconds_total"])
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise RunError(f"the checkpoint in {run.path} does not belong to its recipe: {reason}") from None


def with_recorded_known(settings: dict[str, Any], recipe: Recipe, prepared: Prepared, run: Run) -> Prepared:
    """The pictures, with those that a run recorded as known to its initial weights, or as choosing nothing.

    Runs of earlier versions chose the epoch by other pictures. They go on as they began; what is done once,
    at the end, is done as it is now.

    Raises:
        RunError: what ``run.json`` says about them is damaged.
    """
    init = settings.get("init")
    started = init if isinstance(init, dict) else {}
    try:
        known = masks_from_record(started.get("known", {}), "init.known", prepared)
        perhaps = perhaps_from_record(started.get("perhaps_known", []), prepared)
        nothing = masks_from_record(settings.get(CHOOSE_NOTHING, {}), CHOOSE_NOTHING, prepared)
    except ValueError as error:
        raise RunError(f"cannot read {run.path / 'run.json'}: {error}") from None
    by_epochs = KNOWN_CHOOSE_NOTHING in settings and not recipe.training.frozen
    if by_epochs and "val" in known and int((~known["val"]).sum()) >= FEWEST:
        nothing = {"val": known["val"]}
    return replace(prepared, known=known, perhaps_known=perhaps, choose_nothing=nothing)


def note_changes(
    run: Run,
    state: TrainingState,
    settings: Mapping[str, Any],
    begins_again: bool,
    data_dir: str | Path | None,
) -> list[str]:
    """Record in the run's folder where the training goes on and with which code; return what has changed.

    Args:
        run: the run, locked.
        state: the state from which it goes on.
        settings: those of the run.
        begins_again: whether nothing of an earlier part is used.
        data_dir: the folder for downloads, if one was given.
    """
    before, now = dict(settings.get("code", {})), code_digests(state.recipe)
    changed = changed_code(before, now)
    updated = dict(settings)
    if data_dir:
        updated["data_dir"] = data_dir_again(data_dir)
    if begins_again:
        for key in ("code", "code_before"):
            updated.pop(key, None)
        if now:
            updated["code"] = now
        run.write_environment(state.device)
    elif changed:
        earlier = settings.get("code_before", {})
        added = {key: [*earlier.get(key, ()), before[key]] for key in changed}
        updated["code"] = before | {key: now[key] for key in changed}
        updated["code_before"] = {**earlier, **added}
    if updated != settings:
        run.write_settings(updated)
    if begins_again:
        return []
    notes = [
        f"{key}: the file with {attrgetter(key)(state.recipe)} has changed since {run.path} began, and the "
        "run goes on with it as it is now"
        for key in changed
    ]
    moved = run.add_environment(state.device, state.step)
    if moved:
        rounding = "the result equals that of an uninterrupted training only to within rounding"
        notes.append(f"resumed with {', '.join(moved)}: {rounding}")
    return notes
