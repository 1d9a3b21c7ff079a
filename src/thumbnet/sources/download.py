"""Download a file completely and verify it. An interrupted download is resumed."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from thumbnet.data.reading import exists
from thumbnet.errors import DataError
from thumbnet.files import file_digest, remove_file, sync_file

BLOCK = 1 << 18
TIMEOUT = 30.0  # seconds without a byte

DownloadProgress = Callable[[int, int | None], None]
"""Called with the number of bytes so far and the total, or None if the server does not say."""


def download(url: str, target: Path, sha256: str, progress: DownloadProgress | None = None) -> Path:
    """Download ``url`` to ``target`` and verify its SHA-256.

    Writes to ``target`` + ``.part`` and renames that once it is verified, so ``target`` is never incomplete.
    Continues an existing ``.part`` if the server can. Returns ``target`` at once if it exists.

    Raises:
        DataError: the server cannot be reached, stalls, or sends a file with another checksum; or the file
            cannot be written.
        RunError: a file with another checksum cannot be removed.
    """
    if exists(target):
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, progress)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        kept = f" {part.stat().st_size:,} bytes are kept." if part.exists() else ""
        raise DataError(
            f"cannot download {url}: {reason}.{kept} Run the same command again to continue."
        ) from None
    actual = file_digest(part)
    if actual != sha256:
        remove_file(part)
        raise DataError(
            f"{url} has SHA-256 {actual}, expected {sha256}: the file is damaged or not the official one. "
            "It was deleted; run the same command again."
        )
    try:
        sync_file(part)
        part.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}") from None
    return target


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
