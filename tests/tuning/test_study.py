from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")

from thumbnet.errors import RunError
from thumbnet.tuning.space import Knob, guesses
from thumbnet.tuning.study import (
    FEWEST_FOR_IMPORTANCE,
    JOURNAL,
    JUDGED_FROM,
    NAME,
    UNPRUNED,
    Record,
    Study,
    Suggestion,
    best_of,
    load_optuna,
    paired_gain,
)
from thumbnet.tuning.trial import POINTS

KNOBS = (
    Knob("learning rate", "float", 0.25, 4.0, 1.0, True, ("optimizer.lr",)),
    Knob("shift", "int", 0, 8, 3, False, ("augment.translate",)),
)
TIMES = {"seconds": 2.0, "elapsed": 3.0, "predicted": 1.0}


def open_study(folder: Path, seed: int = 5) -> Study:
    return Study(folder, KNOBS, seed)


def value_of(trial: Suggestion | Record) -> float:
    """The best learning rate is 2; the shift does not matter."""
    return 0.9 - 0.2 * abs(math.log2(KNOBS[0].at(trial.point)) - 1)


def run(study: Study) -> None:
    """One trial, which stops where the study says so."""
    suggestion = study.ask()
    value = value_of(suggestion)
    for point in range(1, POINTS + 1):
        if suggestion.report(point, 1 - value * point / POINTS):
            suggestion.stop(**TIMES)
            return
    suggestion.complete(value, [1 - value] * 2, **TIMES)


def test_the_first_trial_is_the_recipe_as_it_is(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    assert study.ask().point == {"learning rate": 1.0, "shift": 3}


def test_a_search_improves_stops_hopeless_trials_and_divides_importance(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    while [one.state for one in study.records()].count("complete") < FEWEST_FOR_IMPORTANCE + 2:
        assert study.importances() == {} or len(study.records()) >= FEWEST_FOR_IMPORTANCE
        run(study)
    records = study.records()
    stopped = [one for one in records if one.state == "stopped"]
    assert stopped
    for one in stopped:
        last = round((1 - one.loss) * POINTS / value_of(one))  # the point where it stopped
        assert one.number > UNPRUNED
        assert last >= JUDGED_FROM
        assert one.loss == pytest.approx(1 - value_of(one) * last / POINTS)
    assert all(math.isnan(one.value) for one in stopped)
    assert best_of(records).value > records[0].value
    shares = study.importances()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares.keys() == {"learning rate", "shift"}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_an_interrupted_search_suggests_the_same_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    study = open_study(whole)
    for _ in range(9):
        run(study)
    for number in range(9):
        interrupted = open_study(parts)
        if number % 2:
            interrupted.ask()  # a kill in the middle of a trial leaves it running
            interrupted = open_study(parts)
        run(interrupted)
    assert [one.point for one in open_study(parts).records()] == [one.point for one in study.records()]
    other = tmp_path / "other"
    other.mkdir()
    study = open_study(other, seed=6)
    for _ in range(9):
        run(study)
    first = len(guesses(KNOBS))
    points, others = ([one.point for one in open_study(place).records()] for place in (whole, other))
    assert points[:first] == others[:first] == guesses(KNOBS)
    assert points[first:] != others[first:]


def test_a_journal_cut_off_anywhere_keeps_every_trial_that_was_finished_by_then(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    ends = []  # the size of the journal after each trial
    for _ in range(3):
        run(study)
        ends.append((tmp_path / JOURNAL).stat().st_size)
    records, content = study.records(), (tmp_path / JOURNAL).read_bytes()
    lines = [place for place, byte in enumerate(content) if byte == 10]
    cut = tmp_path / "cut"
    cut.mkdir()
    for place in [0, 7, *lines[::3], *(end + 1 for end in lines), *(end - 5 for end in lines[::5])]:
        (cut / JOURNAL).write_bytes(content[:place])
        finished = sum(end <= place for end in ends)
        assert open_study(cut).records() == records[:finished], place


@pytest.mark.parametrize("written", [0, 1, 9])
def test_a_full_disk_is_an_error_that_says_how_to_go_on_and_costs_only_the_trial(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(tmp_path)
    run(study)
    before = study.records()
    suggestion = study.ask()
    sync = os.fsync

    def full(descriptor: int) -> None:
        """A disk on which a part of a line fits."""
        os.ftruncate(descriptor, ends + written)
        raise OSError(errno.ENOSPC, "No space left on device")

    ends = (tmp_path / JOURNAL).stat().st_size
    monkeypatch.setattr(os, "fsync", full)
    expected = rf"cannot write .*{JOURNAL}: No space left on device.*\nGo on: .*tune --resume {tmp_path}"
    with pytest.raises(RunError, match=expected):
        suggestion.report(1, 0.5)
    monkeypatch.setattr(os, "fsync", sync)  # there is space again
    with pytest.raises(RunError, match=expected):
        suggestion.drop()
    assert (tmp_path / JOURNAL).stat().st_size == ends + written
    assert open_study(tmp_path).records() == before


def test_the_command_to_go_on_with_after_a_full_disk_has_the_options_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=f"tune --resume {tmp_path} --model-code nets:Net$"):
        Study(tmp_path, KNOBS, 5, ("--model-code", "nets:Net"))


@pytest.mark.parametrize("earlier_version", [True, False])
def test_a_lock_that_a_killed_process_left_does_not_stop_a_search(
    earlier_version: bool, tmp_path: Path
) -> None:
    run(open_study(tmp_path))
    lock = tmp_path / f"{JOURNAL}.lock"
    if earlier_version:
        lock.symlink_to(tmp_path / JOURNAL)
    else:
        lock.touch()
    assert len(open_study(tmp_path).records()) == 1


def test_a_search_needs_no_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    run(open_study(tmp_path))
    assert len(open_study(tmp_path).records()) == 1


def test_a_choice_is_an_option_and_a_journal_with_another_one_is_damaged(tmp_path: Path) -> None:
    fit = Knob("fit", "choice", 0, 2, 0, False, ("data.fit",), ("pad", "crop", "squash"))
    study = Study(tmp_path, (*KNOBS, fit), 5)
    tried = []
    for number in range(12):
        suggestion = study.ask()
        tried.append(suggestion.point["fit"])
        suggestion.complete(0.01 * number, [0.5, 0.6], **TIMES)
    assert tried[:2] == ["pad", "crop"]
    assert set(tried) <= set(fit.options)
    assert [one.point["fit"] for one in Study(tmp_path, (*KNOBS, fit), 5).records()] == tried
    with pytest.raises(RunError, match=f"{JOURNAL} is damaged"):
        Study(tmp_path, (*KNOBS, replace(fit, high=1, options=("pad", "crop"))), 5)


@pytest.mark.parametrize("line", ["nonsense", '{"op_code": 99}', "[1, 2]", '{"op_code": 5}', "\x80\x04K"])
def test_a_damaged_journal_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    run(open_study(tmp_path))
    with (tmp_path / JOURNAL).open("a", encoding="latin-1") as file:
        file.write(line + "\n" + "{}\n")
    with pytest.raises(RunError, match=f"{JOURNAL} is damaged"):
        open_study(tmp_path)


def test_a_search_of_an_earlier_version_which_looked_for_the_highest_value_is_refused(tmp_path: Path) -> None:
    optuna = load_optuna()
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    optuna.create_study(storage=storage, study_name=NAME, direction="maximize")
    with pytest.raises(RunError, match="is of an earlier version of thumbnet. Start a new search"):
        open_study(tmp_path)


def test_the_journal_is_lines_of_json(tmp_path: Path) -> None:
    run(open_study(tmp_path))
    lines = (tmp_path / JOURNAL).read_text("utf-8").splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {JOURNAL}


def test_a_failed_trial_counts_and_a_dropped_one_does_not(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    run(study)
    failed = study.ask()
    failed.report(1, 0.5)
    failed.fail("out of memory", **TIMES)
    dropped = study.ask()
    dropped.drop()
    again = study.ask()
    assert again.point == dropped.point
    records = study.records()
    assert [(one.state, one.reason) for one in records] == [("complete", ""), ("failed", "out of memory")]
    assert math.isnan(records[1].value)
    assert math.isnan(records[1].loss)
    assert best_of(records).number == 1


def test_the_trial_with_the_lowest_loss_is_best_and_of_equal_ones_the_most_accurate_and_then_the_first() -> (
    None
):
    def record(number: int, value: float, loss: float, state: str = "complete", error: float = 0.0) -> Record:
        return Record(number, state, {}, value, loss, 1.0, 1.0, 1.0, gain=0.5 - loss, error=error)

    stopped = record(1, 0.9, 0.1, "stopped")
    assert best_of([stopped, record(2, 0.9, 0.5), record(3, 0.8, 0.4)]).number == 3
    assert best_of([record(2, 0.8, 0.4), record(3, 0.9, 0.4), record(4, 0.9, 0.4)]).number == 3


def test_a_trial_has_to_gain_two_standard_errors_of_the_difference_on_the_same_pictures(
    tmp_path: Path,
) -> None:
    study = open_study(tmp_path)
    start = [0.2, 0.9, 0.4, 0.7]
    luck = [0.0, 1.2, 0.0, 0.8]  # lower on average, by less than the pictures differ
    unsure = [0.1, 0.95, 0.32, 0.66]  # lower by 1.3 standard errors
    small = [0.16, 0.87, 0.37, 0.66]  # less lower, by the same for all
    for losses in (start, luck):
        study.ask().complete(0.5, losses, **TIMES)
    records = study.records()
    assert [one.gain for one in records] == [0, pytest.approx(0.05)]
    assert records[0].error == 0 < 0.05 < records[1].error
    assert best_of(records).number == 1
    study.ask().complete(0.5, unsure, **TIMES)
    records = study.records()
    assert 1 < records[2].gain / records[2].error < 2
    assert best_of(records).number == 1
    study.ask().complete(0.5, small, **TIMES)
    assert best_of(open_study(tmp_path).records()).number == 4
    assert paired_gain([0.5], [0.9]) == (0.0, 1.0)  # one picture tells nothing


def test_pictures_that_belong_together_make_a_gain_less_certain(tmp_path: Path) -> None:
    before, after = [0.5] * 8, [0.4] * 4 + [0.48] * 4
    gain, error = paired_gain(after, before)
    assert gain > 3 * error
    assert paired_gain(after, before, range(8)) == (gain, error)
    assert paired_gain(after, before, [7, 7, 7, 7, 2, 2, 2, 2]) == pytest.approx((gain, 0.04))
    assert paired_gain(after, before, [0, 1, 2, 3, 3, 2, 1, 0]) == (gain, error)  # no surer than without
    assert paired_gain(after, before, [5] * 8) == (0.0, 1.0)  # one group tells nothing
    study = Study(tmp_path, KNOBS, 5, together=[0] * 4 + [1] * 4)
    study.ask().complete(0.5, before, **TIMES)
    study.ask().complete(0.5, after, **TIMES)
    records = study.records()
    assert (records[1].gain, records[1].error) == pytest.approx((gain, 0.04))
    assert best_of(records).number == 1


def test_suggestions_follow_the_loss(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for _ in range(30):
        suggestion = study.ask()
        value = value_of(suggestion)
        suggestion.complete(1 - value, [1 - value] * 2, **TIMES)  # the lower the loss, the lower the accuracy
    rates = [KNOBS[0].at(one.point) for one in study.records()]
    assert sum(1.4 < rate < 2.8 for rate in rates[-10:]) > 5
    assert 1.7 < KNOBS[0].at(best_of(study.records()).point) < 2.3
