from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from thumbnet import errors
from thumbnet.cli import streams, usage
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
    is_printable,
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


@pytest.mark.parametrize(
    "name",
    [
        "\u0633\u06af\u200c\u0647\u0627",  # dogs in Persian
        "\u0dc1\u0dca\u200d\u0dbb\u0dd3",  # Sri in Sinhala
        "\u0915\u094d\u200c\u0937",  # in Hindi
        "\U0001f469\u200d\U0001f52c",  # a woman who is a scientist
        "\u2764\ufe0f\u200d\U0001f525",  # a heart on fire
        "\u72ac\u3000\u5927",
        "golden\xa0retriever",
        "caf\xe9 \u4e2d",
    ],
)
def test_joiners_that_spelling_needs_and_unusual_spaces_are_printable(name: str) -> None:
    assert is_printable(name)
    assert printable(name) == name


@pytest.mark.parametrize(
    "character",
    # a tabulator, a line separator, a soft hyphen, an invisible space, joiners, a byte order mark, overrides and
    # isolates of direction, a tag, a private and an undecodable character
    "\t\u2028\xad\u200b\u200c\u200d\u2060\ufeff\u202a\u202e\u2066\u200f\U000e0061\ue000\ud800",
)
@pytest.mark.parametrize("around", ["ca{}t", "{}cat", "cat{}", "\u72ac{}\u5927", "\U0001f469{}"])
def test_characters_that_hide_are_escaped(character: str, around: str) -> None:
    name = around.format(character)
    assert not is_printable(name)
    assert printable(name) == around.format(character.encode("unicode_escape").decode())


ARGUMENTS: dict[type[ThumbnetError], Sequence[Any]] = {
    errors.SeveralLabelsError: (),
    UnreadableImageError: ("a.png", "cut short"),
    errors.UnknownFormatError: ("a.xyz",),
    errors.MissingPluginError: ("a.heic", "a HEIC picture", "pillow-heif"),
    errors.TooManyPixelsError: ("a.png", "too many"),
    UnreadableImagesError: ([UnreadableImageError("a.png", "cut short")],),
    errors.FailedReadError: ("a.png", "Input/output error"),
    errors.UnreadableFilesError: ([errors.FailedReadError("a.png", "Input/output error")],),
    errors.ModelCodeError: ("mine:Net",),
    DivergedError: (7, float("inf"), 0.25),
    OutOfMemoryError: ("cpu", "training", "Do less"),
    InterruptedRunError: (Path("run"), 2, 9, ["--model-code", "a:B"]),
    InterruptedTuneError: (Path("search"), 3),
    errors.MissingExtraError: ("a chart", "report"),
    errors.LostWorkerError: (),
}
"""What each class of error is made from; all others take a message."""


def kinds(base: type[ThumbnetError] = ThumbnetError) -> Iterator[type[ThumbnetError]]:
    yield base
    for one in base.__subclasses__():
        if one.__module__.startswith("thumbnet."):
            yield from kinds(one)


def test_every_error_passes_between_processes_unchanged() -> None:
    every = list(kinds())
    assert {streams.ResultsLostError, usage.UsageError, *ARGUMENTS} <= set(every)
    for kind in every:
        error = kind(*ARGUMENTS.get(kind, ("what is wrong, and what to do",)))
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert type(again) is kind
        assert (str(again), repr(vars(again))) == (str(error), repr(vars(error)))
    stopped = pickle.loads(pickle.dumps(InterruptedRunError(Path("run"), 2, 9)))  # noqa: S301
    stopped.continue_with("--device", "cpu")
    assert str(stopped).endswith("train --resume run --device cpu --finish")


def test_the_error_for_several_unreadable_pictures_lists_them() -> None:
    errors_of_both = [UnreadableImageError("a.png", "cut short"), UnreadableImageError("b.png", "empty")]
    both = UnreadableImagesError(errors_of_both)
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
    ("error", "names"),
    [
        (MemoryError(), "this computer"),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
            "this computer",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), ""),
        (RuntimeError("CUDA out of memory. GPU 0 has a total capacity of 4 GiB"), "cuda:0"),
        (RuntimeError("CUDA error: out of memory"), ""),
        (RuntimeError("MPS backend out of memory"), "mps"),
        (RuntimeError("could not create a primitive"), ""),
        (RuntimeError("could not execute a primitive"), ""),
        (RuntimeError("std::bad_alloc"), ""),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), ""),
        (RuntimeError("not enough memory: you tried to allocate 8 bytes"), ""),
        (RuntimeError("GET was unable to find an engine to execute this computation"), ""),
    ],
    ids=str,
)
def test_failed_allocations_become_an_out_of_memory_error(error: Exception, names: str) -> None:
    """``names`` is the device that the error names, if it is another than the guard's."""
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemoryError) as caught, memory_guard("cuda:1", "doing it", "Do less"):
        raise error
    assert str(caught.value).splitlines()[0] == f"out of memory on {names or 'cuda:1'} doing it."
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


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"), ": .*pip"),
        (
            ImportError("\nlibx.so: no such file\nmore"),
            r", and one of its libraries cannot be imported: libx\.so: no such file\nUninstall .*pip",
        ),
        (ImportError(name="matplotlib"), ", .* cannot be imported: ImportError\n"),
    ],
)
def test_a_library_that_is_missing_or_broken_needs_the_extra(error: ImportError, told: str) -> None:
    told = f"^drawing needs the extra 'plot'{told}"
    with pytest.raises(errors.MissingExtraError, match=told), errors.needs_extra("drawing", "plot"):
        raise error


@pytest.mark.parametrize("kind", [ImportError, ModuleNotFoundError])
def test_a_module_of_ours_that_cannot_be_imported_is_a_bug(kind: type[ImportError]) -> None:
    with pytest.raises(kind, match="a bug"), errors.needs_extra("drawing", "plot"):
        raise kind("a bug", name="thumbnet.reports")


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
