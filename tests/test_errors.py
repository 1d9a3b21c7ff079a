from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

from thumbnet import errors
from thumbnet.errors import (
    DivergedError,
    InterruptedRunError,
    InterruptedTuneError,
    LostContactError,
    OutOfMemoryError,
    ThumbnetError,
    UnreadableImageError,
    UnreadableImagesError,
    is_out_of_memory,
    memory_guard,
    nearest,
    printable,
    some_of,
)


def test_every_error_derives_from_thumbnet_error_and_has_an_exit_status() -> None:
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, Exception)]
    every = [one for one in classes if not issubclass(one, Warning)]
    found = [one for one in every if issubclass(one, ThumbnetError)]
    assert len(found) > 12
    assert found == every
    statuses = {one: one.exit_status for one in found if one.exit_status != 2}
    assert statuses == {InterruptedRunError: 130, InterruptedTuneError: 130, LostContactError: 1}


def test_control_characters_in_messages_are_escaped() -> None:
    assert str(ThumbnetError("a\x1b[31mb\nsecond\tline")) == "a\\x1b[31mb\nsecond\\tline"
    assert printable("caf\xe9 \u4e2d \x07 \udcff") == "caf\xe9 \u4e2d \\x07 \\udcff"


def test_the_error_for_an_unreadable_picture_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(UnreadableImageError("a.png", "cut short")))  # noqa: S301
    assert (again.name, again.reason) == ("a.png", "cut short")
    both = UnreadableImagesError([again, UnreadableImageError("b.png", "empty")])
    assert str(both).splitlines()[:3] == [
        "2 picture(s) cannot be read:",
        "  a.png: cut short",
        "  b.png: empty",
    ]
    assert "--on-bad-image skip (the setting data.on_bad_image)" in str(both)


def test_the_error_for_divergence_names_the_step_the_learning_rate_and_what_to_change() -> None:
    error = DivergedError(7, float("nan"), 0.25)
    assert "at step 7 (learning rate 0.25)" in str(error)
    for setting in ("optimizer.lr", "schedule.warmup", "training.precision=fp32"):
        assert setting in str(error)


def test_a_stopped_run_says_how_to_resume(tmp_path: Path) -> None:
    error = InterruptedRunError(tmp_path / "my run", 2, 9, ["--model-code", "a:B"])
    assert f"train --resume '{tmp_path}/my run' --model-code a:B" in str(error)
    assert str(error).endswith(f"train --resume '{tmp_path}/my run' --model-code a:B --finish")
    assert "--finish" not in str(InterruptedRunError(tmp_path, 1, 1, has_end=False))
    error.continue_by("the same command")
    assert str(error).endswith("Continue to exactly the same result: the same command")
    assert error.path == tmp_path / "my run"
    error.continue_with("--device", "cpu")
    assert str(error).endswith(f"train --resume '{tmp_path}/my run' --model-code a:B --device cpu --finish")


def test_a_stopped_search_says_how_to_go_on(tmp_path: Path) -> None:
    error = InterruptedTuneError(tmp_path / "my search", 3, ["--model-code", "a:B"])
    assert str(error).endswith(f"tune --resume '{tmp_path}/my search' --model-code a:B")
    assert "3 finished trial(s) are kept" in str(error)
    error.continue_with("--device", "cpu")
    assert str(error).endswith(f"tune --resume '{tmp_path}/my search' --model-code a:B --device cpu")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
    ids=str,
)
def test_failed_allocations_become_an_out_of_memory_error(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemoryError) as caught, memory_guard("cuda:1", "doing it", "Do less"):
        raise error
    assert str(caught.value).splitlines()[0] == "out of memory on cuda:1 doing it."
    assert str(caught.value).splitlines()[1].startswith("Do less. ")
    assert caught.value.__suppress_context__


def test_the_memory_guard_lets_other_errors_and_its_own_pass() -> None:
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"), memory_guard("cpu", "a", "b"):
        raise RuntimeError("shape mismatch")
    inner = OutOfMemoryError("cpu", "inside", "Do less")
    with pytest.raises(OutOfMemoryError) as caught, memory_guard("cpu", "outside", "b"):
        raise inner
    assert caught.value is inner


def test_the_nearest_name_is_suggested_regardless_of_case() -> None:
    assert nearest("fats", ["small", "fast"]) == "Did you mean 'fast'? Known: fast, small."
    assert nearest("FAST", ["small", "fast"]) == "Did you mean 'fast'? Known: fast, small."
    assert nearest("zzz", ["small", "fast"]) == "Known: fast, small."


def test_a_killed_decoding_process_is_explained() -> None:
    with (
        pytest.raises(errors.LostWorkerError, match="workers=1"),
        errors.memory_guard("cpu", "training", "Rest"),
    ):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def test_of_many_names_the_first_are_listed_and_the_others_counted() -> None:
    assert some_of([]) == ""
    assert some_of(["a", "b"]) == "a, b"
    assert some_of(list("abcde")) == "a, b, c, d, e"
    assert some_of(list("abcdef")) == "a, b, c, d, e and 1 more"
    assert some_of(list("abcdef"), 2) == "a, b and 4 more"
