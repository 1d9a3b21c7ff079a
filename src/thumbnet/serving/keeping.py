"""Keep pictures that the network was unsure of, so that people can label them and train with them.

A folder gets the pictures, byte for byte as they came, and a table ``kept.csv`` with a row for each. A thread
of its own writes them: no answer waits for the disk, and no request fails because of it. A picture is called
after its content, so its name tells nothing about the client, and the same picture is kept only once. Several
services may keep pictures in one folder.

The table is a file of corrections (:mod:`thumbnet.data.corrections`) with additional columns, in which every
picture is ``unsure``. So no command takes the network's answers for labels, and people may fill in their own.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from thumbnet.classifiers.base import Prediction
from thumbnet.data import corrections
from thumbnet.data.images import picture_suffix
from thumbnet.data.listings import csv_text, safe_text
from thumbnet.errors import RunError, ThumbnetError, printable
from thumbnet.files import reason, user_path, write_private
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.serving.background import described
from thumbnet.serving.identity import Identity
from thumbnet.serving.metrics import count_outcomes

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment,unused-ignore]

BELOW, AT_MOST = 0.8, 1000
TABLE = "kept.csv"
COLUMNS = (*corrections.COLUMNS, "answer", "confidence", "unlike", "time", "model")
OUTCOMES = ("kept", "duplicate", "full", "dropped", "failed")
MOST_WAITING = 64_000_000  # bytes of pictures that wait to be written; further pictures are dropped
CHECK_AGAIN = 60.0  # seconds until the pictures in a full folder are counted again
QUIET = 3600.0  # seconds between two lines about failures, on a disk that fails now and then
DIGITS = 32  # of a name: half of a SHA-256 digest, in hexadecimal
NAME = re.compile(rf"[0-9a-f]{{{DIGITS}}}\.[a-z0-9]+")


@dataclass(frozen=True)
class _Unsure:
    """A picture to keep, and the row about it."""

    content: bytes
    answer: str
    confidence: float
    unlike: bool | None
    time: datetime
    model: str

    def row(self, name: str) -> tuple[str, ...]:
        """The cells of the table about this picture, which is called ``name``."""
        unlike = "" if self.unlike is None else "yes" if self.unlike else "no"
        when = self.time.isoformat(timespec="seconds").replace("+00:00", "Z")
        decided = (name, "", "train", "", "unsure")
        return (*decided, safe_text(self.answer), f"{self.confidence:.4f}", unlike, when, self.model)


class Keeper:
    """Keeps pictures in a folder, in a thread of its own.

    If pictures arrive faster than the disk takes them, those beyond ``MOST_WAITING`` bytes are dropped. If
    the folder is renamed or removed, the next picture makes it anew. Several services that share a folder may
    exceed ``at_most`` by a picture each.

    Args:
        folder: where to keep them; created if needed, readable for this user only.
        below: pictures whose most probable class is less probable than this are kept, 0 to 1.
        at_most: the most pictures in the folder. While it has as many, no more are kept.
        warn: called with one line when the folder is full, and when a picture cannot be written; see
            ``QUIET``.

    Attributes:
        folder, below, at_most: the arguments.
        outcomes: counts the pictures that the network was unsure of, for Prometheus. The label ``outcome`` is
            one of ``OUTCOMES``.

    Raises:
        ThumbnetError: ``below`` or ``at_most`` is out of range.
        RunError: the folder cannot be created or written to, or it has other files already.
    """

    def __init__(
        self,
        folder: str | Path,
        below: float = BELOW,
        at_most: int = AT_MOST,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not 0 < below <= 1:  # also refuses NaN
            raise ThumbnetError(
                f"cannot keep pictures below {below:g}: expected a probability above 0 and up to 1"
            )
        if at_most < 1:
            raise ThumbnetError(f"cannot keep at most {at_most} pictures: expected 1 or more")
        self.folder, self.below, self.at_most, self._warn = user_path(folder), below, at_most, warn
        description = "Pictures that the network was unsure of, and whether they were kept."
        self.outcomes = count_outcomes("thumbnet_kept_pictures", description, OUTCOMES, None)
        self._begin()
        self._known: set[str] = set()  # what this process has kept, also if people have moved it since
        self._told_full = self._failing = False
        self._full_until = self._quiet_until = 0.0  # by the monotonic clock
        self._waiting: SimpleQueue[_Unsure | None] = SimpleQueue()
        self._bytes, self._lock = 0, threading.Lock()  # of the pictures that wait
        self._thread = threading.Thread(target=self._work, name="keep", daemon=True)
        self._thread.start()

    def check_fits(self, info: WeightsInfo) -> None:
        """Check that a network gives one class per picture, so that one probability says how sure it is.

        Raises:
            RunError: it gives several labels.
        """
        if info.multilabel:
            raise RunError(
                "pictures can be kept only for a network that gives a picture one class, and this one gives "
                "several labels: leave --keep out"
            )

    def count(self) -> int:
        """The number of kept pictures in the folder.

        Raises:
            OSError: the folder cannot be listed.
        """
        try:
            return sum(NAME.fullmatch(name) is not None for name in os.listdir(self.folder))
        except FileNotFoundError:
            return 0

    def offer(self, content: bytes, prediction: Prediction, identity: Identity) -> None:
        """Keep a picture if the network was unsure of it. Returns at once, and raises nothing.

        Args:
            content: the picture's file, which was decoded.
            prediction: the network's answer.
            identity: the network.
        """
        if prediction.probability >= self.below:
            return
        if time.monotonic() < self._full_until:
            self.outcomes.labels("full").inc()
            return
        with self._lock:
            drop = self._bytes + len(content) > MOST_WAITING
            self._bytes += 0 if drop else len(content)
        if drop:
            self.outcomes.labels("dropped").inc()
            return
        digest = identity.digest
        self._waiting.put(
            _Unsure(
                content,
                prediction.label,
                prediction.probability,
                prediction.unlike,
                datetime.now(UTC),
                "" if digest is None else f"sha256:{digest}",
            )
        )

    def close(self, seconds: float = 2.0) -> None:
        """Write what waits, for at most ``seconds``, and stop the thread."""
        self._waiting.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while one := self._waiting.get():
            try:
                outcome = self._keep(one)
            except Exception as error:  # whatever fails, the service goes on, and so does this thread
                outcome = "failed"
                self._tell_failure(error)
            self.outcomes.labels(outcome).inc()
            with self._lock:
                self._bytes -= len(one.content)

    def _keep(self, one: _Unsure) -> str:
        """Write a picture and its row, unless it is there or the folder is full. Returns the outcome."""
        digest = hashlib.sha256(one.content).hexdigest()[:DIGITS]
        path = self.folder / f"{digest}{picture_suffix(one.content, 'a kept picture')}"
        if digest in self._known or path.exists():
            return "duplicate"
        if self._is_full():
            return "full"
        try:
            self._write(path, one)
        except (OSError, RunError):
            if self.folder.exists():
                raise
            self._write(path, one)  # the folder was renamed meanwhile
        self._known.add(digest)
        self._failing = False
        return "kept"

    def _write(self, path: Path, one: _Unsure) -> None:
        self._make_folder()
        write_private(path, one.content)
        try:
            self._append(one.row(path.name))
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise

    def _is_full(self) -> bool:
        there = self.count()
        if there < self.at_most:
            self._told_full = False
            return False
        self._full_until = time.monotonic() + CHECK_AGAIN
        if not self._told_full:
            self._told_full = True
            self._say(
                f"{printable(str(self.folder))} has {there:,} kept pictures, and --keep-at-most allows "
                f"{self.at_most:,}: no more are kept until you move or rename it"
            )
        return True

    def _tell_failure(self, error: Exception) -> None:
        """Say that pictures cannot be kept: once, until one is kept again, and at most once in ``QUIET``."""
        now = time.monotonic()
        if self._failing or now < self._quiet_until:
            return
        self._failing, self._quiet_until = True, now + QUIET
        if isinstance(error, OSError):
            what = f"cannot write in {printable(str(self.folder))}: {reason(error)}"
        else:
            what = described(error)
        self._say(f"pictures are not kept now, but every request is answered: {what}")

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads the output any more
            self._warn(text)

    def _begin(self) -> None:
        """Make the folder and its table, and check that pictures can be written.

        Raises:
            RunError: see the class.
        """
        shown = printable(str(self.folder))
        try:
            self._make_folder()
            names = [name for name in os.listdir(self.folder) if not name.startswith(".")]
            if names and TABLE not in names:
                raise RunError(
                    f"cannot keep pictures in {shown}: it has other files, such as "
                    f"{printable(min(names))}. Name a new or empty folder"
                )
            with tempfile.TemporaryFile(dir=self.folder, prefix="."):
                self._append()
        except OSError as error:
            raise RunError(
                f"cannot keep pictures in {shown}: {reason(error)}. Name a folder that this user can write to"
            ) from None

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _append(self, row: Sequence[str] = ()) -> None:
        """Append a row to the table, or only make the table if there is none. Cuts off what fails half-way.

        Raises:
            OSError: it cannot be written.
        """
        with open(self.folder / TABLE, "a+b", buffering=0, opener=_private) as file:
            if fcntl is not None:  # Windows: one service per folder, see docs/serving.md
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                # A power cut may have left a part of a row.
                begin = b"" if file.read(1) == b"\n" else b"\n"
            else:
                begin = _line(COLUMNS)
            content = begin + (_line(row) if row else b"")
            try:
                written = file.write(content) if content else 0
                if written != len(content):
                    raise OSError(f"only {written} of {len(content)} bytes of a row could be written")
            except OSError:
                file.truncate(size)
                raise


def _line(cells: Sequence[str]) -> bytes:
    return csv_text([cells]).encode(errors="backslashreplace")


def _private(path: str, flags: int) -> int:
    """Open a file that, if it is new, only this user can read."""
    return os.open(path, flags, 0o600)
