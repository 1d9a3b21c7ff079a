"""Errors that the user can fix, as opposed to bugs in thumbnet.

Every message says what is wrong, where, and what to do. The command prints the message without a traceback
and returns the error's exit status.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from thumbnet.invocation import command, install_command

if TYPE_CHECKING:
    from pathlib import Path  # only for type hints: see thumbnet.invocation


class ThumbnetError(Exception):
    """Base class of all errors that a user can fix. ``exit_status`` is what the command returns."""

    exit_status = 2

    def __str__(self) -> str:
        """The message, with control characters escaped: a file name in it may contain some."""
        return "\n".join(printable(line) for line in super().__str__().split("\n"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets it be pickled, to pass between processes, whatever its class is made from."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[ThumbnetError], args: tuple[Any, ...], attributes: dict[str, Any]) -> ThumbnetError:
    """A pickled error. Only its message is in ``args``, so ``__init__`` could not make it again."""
    error = kind.__new__(kind, *args)  # sets error.args
    error.__dict__.update(attributes)
    return error


class DataError(ThumbnetError):
    """The data cannot be found or understood."""


class UnusedSettingError(DataError):
    """A setting about where classes stand is given, but the data are not read in a way that uses it."""


class SeveralLabelsError(DataError):
    """Something that needs one class per picture was asked of pictures that have several labels each."""

    def __init__(self) -> None:
        super().__init__(
            "these pictures have several labels each (multi-label), and this works only with one class per "
            "picture"
        )


class UnreadableImageError(DataError):
    """A picture cannot be decoded: ``name`` is its name, ``reason`` says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read the picture {printable(name)}: {reason}")
        self.name = name
        self.reason = reason


class UnknownFormatError(UnreadableImageError):
    """The bytes are not a picture in any format that thumbnet reads."""

    def __init__(self, name: str, reason: str = "not a picture in a format that thumbnet reads") -> None:
        super().__init__(name, reason)


class MissingPluginError(UnknownFormatError):
    """The picture is in a format that a plug-in would read. The plug-in is not installed.

    Attributes:
        kind: the format, with its article.
        package: the package to install.
    """

    def __init__(self, name: str, kind: str, package: str) -> None:
        super().__init__(name, f"{kind}; to read it, pip install {package}")
        self.kind = kind
        self.package = package


class TooManyPixelsError(UnreadableImageError):
    """The picture declares more pixels than thumbnet decodes."""


class UnreadableImagesError(DataError):
    """Some pictures cannot be decoded. ``errors`` has one error per picture."""

    def __init__(self, errors: Sequence[UnreadableImageError]) -> None:
        listing = "\n".join(f"  {printable(error.name)}: {error.reason}" for error in errors)
        super().__init__(
            f"{len(errors)} picture(s) cannot be read:\n{listing}\n"
            "Fix or remove them, or continue without them: --on-bad-image skip "
            "(the setting data.on_bad_image)"
        )
        self.errors = errors


_READ_AGAIN = (
    "The system failed to read it, so its content is unknown, and it is not left out. Check the disk and the "
    "permissions of the file, then run the command again; or move the file out of the data"
)
_MOST_SHOWN = 10  # files that an error lists: all files of a drive may fail at once


class FailedReadError(ThumbnetError):
    """The system failed to read a file (an I/O error, a lack of permission): ``name`` and ``reason``.

    This says nothing about the file's content, and it may pass. So it is no :class:`DataError`: the file is
    not skipped, nothing about it is cached, and nothing is decided without it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read {printable(name)}: {reason}.\n{_READ_AGAIN}")
        self.name = name
        self.reason = reason


class UnreadableFilesError(ThumbnetError):
    """The system failed to read some files. ``errors`` has one error per file."""

    def __init__(self, errors: Sequence[FailedReadError]) -> None:
        shown = [f"  {printable(error.name)}: {error.reason}" for error in errors[:_MOST_SHOWN]]
        if len(errors) > _MOST_SHOWN:
            shown.append(f"  and {len(errors) - _MOST_SHOWN:,} more")
        listing = "\n".join(shown)
        super().__init__(
            f"{len(errors):,} files cannot be read:\n{listing}\n"
            "The system failed to read them, so their content is unknown, and they are not left out. Check "
            "the disk and the permissions of the files, then run the command again; or move them out of the "
            "data"
        )
        self.errors = errors


def unreadable(errors: Sequence[UnreadableImageError | FailedReadError]) -> ThumbnetError:
    """One error for several pictures: about failed reads if there are any, else about damaged pictures."""
    failed = [error for error in errors if isinstance(error, FailedReadError)]
    if failed:
        return failed[0] if len(failed) == 1 else UnreadableFilesError(failed)
    return UnreadableImagesError([error for error in errors if isinstance(error, UnreadableImageError)])


class RecipeError(ThumbnetError):
    """A recipe's key is unknown, ill-typed or out of range, or the file is not TOML."""


class RunError(ThumbnetError):
    """A run's folder, weights or checkpoint cannot be written, read or resumed."""


class OwnCodeError(ThumbnetError):
    """The user's own code cannot be imported, fails, or does not return what it should."""


class NetworkError(OwnCodeError):
    """The code of the user's own network cannot be imported, or it does not build a usable network."""


class ModelCodeError(RunError):
    """A run or a file needs code that is not part of thumbnet, and the user has not allowed it.

    The code is a network or, to train, a loss or an augmentation: ``kind`` says which. ``code`` is what to
    pass to ``--model-code``: the import path, or the word MODULE where only the user knows the module.
    """

    def __init__(self, code: str, kind: str = "network") -> None:
        module, is_path, name = code.partition(":")
        self.code = code if is_path else "MODULE"
        why = (
            f"it is in the Python module {module}, and importing that module runs its code. If you trust it"
            if is_path
            else "no imported code has registered it. If it is yours, name the module that registers it"
        )
        in_python = f"decorate it with thumbnet.register_{kind}"
        if kind == "network":
            in_python = f"decorate it with thumbnet.register_model, or pass model={name or 'CLASS'}"
        super().__init__(
            f"the {kind} {code} is not part of thumbnet: {why}: --model-code {self.code} "
            f"(in Python: {in_python})"
        )


class DivergedError(ThumbnetError):
    """The loss is no longer finite, or ``problem`` says what else. ``step`` counts steps from 1."""

    def __init__(self, step: int, loss: float, lr: float, problem: str = "") -> None:
        found = problem or f"the loss is {loss}"
        super().__init__(
            f"{found} at step {step} (learning rate {lr:.4g}): the training has diverged.\n"
            "Lower the learning rate (--set optimizer.lr=...), lengthen the warm-up "
            "(--set schedule.warmup=...), or compute in float32 (--set training.precision=fp32)."
        )
        self.step = step


class OutOfMemoryError(ThumbnetError):
    """The computation needs more memory than the device or this machine has."""

    def __init__(self, device: str, doing: str, advice: str) -> None:
        super().__init__(
            f"out of memory on {device} {doing}.\n{advice}. Other programs may also hold memory."
        )


class InterruptedRunError(ThumbnetError):
    """The user stopped the training; its checkpoint is saved in the folder ``path``.

    ``has_end`` says whether ``--finish`` can end the training there.
    """

    exit_status = 130  # 128 + SIGINT, as in shells

    def __init__(
        self, path: Path, epoch: int, step: int, options: Sequence[str] = (), *, has_end: bool = True
    ) -> None:
        self.path = path
        self._command: tuple[str | Path, ...] = ("train", "--resume", path, *options)
        self._stopped = (
            f"stopped in epoch {epoch} at step {step}; everything is saved.\n"
            "Continue to exactly the same result"
        )
        self._has_end = has_end
        self.continue_with()

    def continue_with(self, *options: str) -> None:
        """Add ``options`` to the commands in the message, such as ``--device cpu``."""
        again = (*self._command, *options)
        self.continue_by(command(*again), command(*again, "--finish"))

    def continue_by(self, again: str, end: str = "") -> None:
        """Make the message name what continues the training, and what ends it (nothing if empty)."""
        or_end = f"\nOr end the training here: {end}" if self._has_end and end else ""
        self.args = (f"{self._stopped}: {again}{or_end}",)


class InterruptedTuneError(InterruptedRunError):
    """The user stopped a search for settings; ``trials`` finished trials are kept in the folder ``path``."""

    def __init__(self, path: Path, trials: int, options: Sequence[str] = ()) -> None:
        self.path = path
        self._command = ("tune", "--resume", path, *options)
        self._stopped = f"stopped; {trials} finished trial(s) are kept.\nGo on"
        self._has_end = False
        self.continue_with()


class LostContactError(ThumbnetError):
    """Another process of the training has ended or cannot be reached. ``torchrun`` restarts all of them."""

    exit_status = 1


class MissingExtraError(ThumbnetError):
    """An optional library is not installed, or cannot be imported: ``reason`` says why."""

    def __init__(self, what: str, extra: str, reason: str = "") -> None:
        needed = f"{what} needs the extra '{extra}'"
        if reason:
            needed += f", and one of its libraries cannot be imported: {reason}\n"
            needed += "Uninstall that library, then install the extra again"
        super().__init__(f"{needed}: {install_command(extra)}")


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """In this block, a library that is missing or cannot be imported becomes a :class:`MissingExtraError`.

    A missing module of thumbnet itself stays what it is, a bug.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("thumbnet"):
            raise
        if isinstance(error, ModuleNotFoundError):
            raise MissingExtraError(what, extra) from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingExtraError(what, extra, reason) from error


class FallbackWarning(UserWarning):
    """Something does not work here, and thumbnet uses something else instead."""


class DataWarning(UserWarning):
    """A result may be wrong because of the data, for example if the network has seen the test pictures."""


# PyTorch has a class for this error only on GPUs, and onnxruntime has none. oneDNN reports a failed
# allocation as "could not create a primitive", Apple's GPUs some of them as "insufficient memory". cuDNN's
# convolutions try one engine after the other, and at last report that none is left
# (https://github.com/pytorch/pytorch/issues/108645). A device that has none at all is not used, see
# hardware.why_unusable.
_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
    "not enough memory",
    "insufficient memory",
    "failed to allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory",
    "unable to find an engine to execute",
)
# How PyTorch begins its message if the memory of a GPU has run out, by the kind of device.
_GPU_MEMORY = {"cuda": re.compile("CUDA (out of memory|error:)"), "mps": re.compile("MPS backend")}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, from PyTorch, onnxruntime, NumPy or Python, reports a failed allocation."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)


class LostWorkerError(ThumbnetError):
    """A process that decodes pictures was killed."""

    def __init__(self) -> None:
        super().__init__(
            "a process that decodes pictures was killed, most often because memory ran out. A run that was "
            "begun can be resumed. Use fewer such processes (--set data.workers=1), or close other programs"
        )


def is_lost_worker(error: BaseException) -> bool:
    """Whether PyTorch reports that a process of a ``DataLoader`` has died."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


@contextmanager
def memory_guard(device: str, doing: str, advice: str) -> Iterator[None]:
    """Turn a failed allocation in this block into an :class:`OutOfMemoryError`.

    A decoding process that was killed becomes a :class:`LostWorkerError`.

    Args:
        device: the device that allocates the memory. If the error names another one, the message does, too.
        doing: what is being done; completes "out of memory on DEVICE".
        advice: what to change, without a full stop.
    """
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        if is_lost_worker(error):
            raise LostWorkerError from None
        if isinstance(error, ThumbnetError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(_whose_memory(error, device), doing, advice) from None


def _whose_memory(error: BaseException, device: str) -> str:
    """The device whose memory ran out, as ``error`` says; ``device`` if it does not."""
    text = str(error)
    if number := re.search(r"\bGPU (\d+) has a total capacity", text):
        return f"cuda:{number[1]}"
    for kind, words in _GPU_MEMORY.items():
        if words.search(text):
            return device if device.startswith(kind) else kind
    on_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in text
    return "this computer" if on_host and device.startswith(tuple(_GPU_MEMORY)) else device


# Spaces of any width, as between ideographs. Unlike the invisible characters, they cannot hide.
_SPACES = frozenset(
    "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
)
# Joiners where spelling needs them: between Arabic letters, as in Persian; after the sign of Indian scripts
# that a consonant has no vowel; between emoji. Elsewhere, names that differ in a joiner would look the same.
_VIRAMAS = "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca"
_EMOJI = "\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
_JOINERS = re.compile(
    f"(?<=[\u0600-\u08ff])\u200c(?=[\u0600-\u08ff])|(?<=[{_VIRAMAS}])[\u200c\u200d]|(?<=[{_EMOJI}])\u200d(?=[{_EMOJI}])"
)


def printable(name: str) -> str:
    r"""Escape control characters, invisible ones and undecodable bytes in a name, as in ``\x1b``."""
    if name.isprintable():
        return name
    joiners = {found.start() for found in _JOINERS.finditer(name)}
    return "".join(
        c if c.isprintable() or c in _SPACES or at in joiners else _escape(c) for at, c in enumerate(name)
    )


def is_printable(name: str) -> bool:
    """Whether :func:`printable` has nothing to escape, so that a person sees all of a name."""
    return printable(name) == name


# Control characters, ends of lines, marks and overrides of a text's direction, and bytes that are not text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str, keep: str = "") -> str:
    r"""Escape what a terminal obeys, as in ``\x1b``, except the characters in ``keep``.

    Unlike :func:`printable`, it leaves other invisible characters as they are, so that most names of files
    stay usable.
    """
    return _CONTROL.sub(lambda one: one.group() if one.group() in keep else _escape(one.group()), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """Help with a misspelt ``name``: suggest the closest known name, and list all of them."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    close = close or difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(choices)}."


def some_of(names: Sequence[str], shown: int = 5) -> str:
    """The first of many ``names``, and how many more there are: ``a, b, c, d, e and 3 more``."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
