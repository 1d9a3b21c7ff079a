"""Download a file completely and verify it. An interrupted download is resumed."""

from __future__ import annotations

import http.client
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thumbnet.data.reading import exists
from thumbnet.errors import DataError
from thumbnet.files import file_digest, remove_file, sync_file

BLOCK = 1 << 18
TIMEOUT = 30.0  # seconds without a byte
ABANDONED = 600.0  # seconds without a byte after which a part belongs to a process that was killed

DownloadProgress = Callable[[int, int | None], None]
"""Called with the number of bytes so far and the total, or None if the server does not say."""


def download(
    url: str,
    target: Path,
    digest: str,
    progress: DownloadProgress | None = None,
    algorithm: str = "sha256",
) -> Path:
    """Download ``url`` to ``target`` and verify its digest, which is in hexadecimal.

    Writes to another file and renames that once it is verified, so ``target`` is never incomplete. If it is
    interrupted, it leaves ``target`` + ``.part``, and the next call continues that if the server can.
    Processes that download the same file at the same time each write their own. Returns ``target`` at once if
    it exists.

    Raises:
        DataError: the server cannot be reached, stalls, or sends a file with another checksum; or the file
            cannot be written.
        RunError: a file with another checksum cannot be removed.
    """
    if exists(target):
        return target
    kept = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _own_part(kept) as part:
            _fetch(url, part, progress)
            actual = file_digest(part, algorithm)
            if actual == digest:
                _finish(part, target)
                return target
            remove_file(part)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        size = ""
        with suppress(OSError):
            size = f" {kept.stat().st_size:,} bytes are kept."
        raise DataError(
            f"cannot download {url}: {reason}.{size} Run the same command again to continue."
        ) from None
    name = algorithm.replace("sha", "SHA-")
    raise DataError(
        f"{url} has {name} {actual}, expected {digest}: the file is damaged or not the official one. "
        "It was deleted; run the same command again."
    )


@contextmanager
def _own_part(kept: Path) -> Iterator[Path]:
    """Yield the path of a part that no other process writes, and leave it as ``kept`` if it is still there.

    It begins with what an interrupted download left. Renaming that gives it to one process only.
    """
    own = kept.with_name(f"{kept.name}-{os.getpid()}-{secrets.token_hex(4)}")
    for left in (kept, *_abandoned(kept)):
        with suppress(OSError):
            os.utime(left)  # before it has the name by which others may find it abandoned
            left.rename(own)
            break
    try:
        yield own
    finally:
        with suppress(OSError):
            own.replace(kept)


def _abandoned(kept: Path) -> Iterator[Path]:
    """The parts of processes that were killed."""
    for name in os.listdir(kept.parent):
        path = kept.with_name(name)
        with suppress(OSError):
            if name.startswith(f"{kept.name}-") and time.time() - path.stat().st_mtime > ABANDONED:
                yield path


def _finish(part: Path, target: Path) -> None:
    """Rename a verified ``part`` to ``target``, unless another process was faster and may be reading its own.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        if exists(target):
            part.unlink()
        else:
            sync_file(part)
            part.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}") from None


def _fetch(url: str, part: Path, progress: DownloadProgress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "thumbnet"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send: the part is complete, or of another file
            return
        raise
    with response:
        if response.status != 206:
            have = 0  # the server sends the whole file again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        with part.open("ab" if have else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                have += len(block)
                if progress:
                    progress(have, total)
    if total is not None and have < total:
        raise http.client.HTTPException(f"the connection closed after {have:,} of {total:,} bytes")
