"""The pictures in a request: read from its body, whole or as a form, and decoded in threads.

Both take memory that clients decide on: bodies as long as requests wait, and decoded pictures, which may be a
thousand times as large as their files. ``Uploads`` limits each of them for all requests together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import HTTPException, Request
from PIL import PngImagePlugin
from prometheus_client import CollectorRegistry, Counter, Gauge
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from thumbnet.classifiers.base import Classifier
from thumbnet.data.images import load_picture
from thumbnet.errors import (
    MissingPluginError,
    TooManyPixelsError,
    UnknownFormatError,
    UnreadableImageError,
    printable,
)
from thumbnet.serving.budget import Budget
from thumbnet.serving.protection import read_body

KINDS = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "image/avif")
DECODERS = 4  # threads
# Bytes of memory for decoding, for each pixel that the largest picture may have: enough to decode one of any
# format (images.BYTES_PER_PIXEL), also if it is rather narrow (images.BYTES_PER_LINE).
DECODING_BYTES_PER_PIXEL = 40
# Bytes of memory for each byte of a file, before the size of its picture is known: Pillow reads a text in a
# PNG whole, and copies and decodes it, before it finds that the text is too long.
OPENING_BYTES_PER_BYTE = 11
LARGEST_REQUESTS = 16  # all requests together may hold as much as so many of the largest ones
# The most characters of text in a PNG. Pillow decompresses them, up to 4 bytes each, before the size of the
# picture is known; its own limit is 64 million. What programs write, such as prompts, has some 100 kB.
PNG_TEXT = 2 << 20
# Starlette decodes a form's fields by any codec of Python that the client names, in the event loop. For some,
# the time grows with the square of the length. Browsers name none, which means UTF-8.
CHARSETS = (b"", b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1")


@dataclass(frozen=True)
class Upload:
    """An uploaded file."""

    name: str
    content: bytes


class Uploads:
    """Reads and decodes the pictures of requests.

    All requests together may hold ``LARGEST_REQUESTS`` times ``max_bytes`` in their bodies, and as many times
    ``max_pictures`` pictures. Decoding takes at most ``DECODING_BYTES_PER_PIXEL`` times ``max_pixels`` bytes
    of memory at a time.

    Args:
        max_bytes: the most bytes in a request's body.
        max_pixels: the most pixels in a picture.
        max_pictures: the most pictures in a request.
        timeout: seconds that a request's body may take to arrive.
        warn: called with one line for each package that pictures would need and that is not installed.
        registry: counts the pictures by outcome.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_pixels: int,
        max_pictures: int,
        timeout: float,
        warn: Callable[[str], None],
        registry: CollectorRegistry,
    ) -> None:
        self._max_bytes, self._max_pixels, self._max_pictures = max_bytes, max_pixels, max_pictures
        self._timeout, self._warn = timeout, warn
        self._missing = set[str]()  # the packages that pictures would have needed
        self._pictures = Counter("thumbnet_pictures", "Uploaded pictures.", ["outcome"], registry=registry)
        PngImagePlugin.MAX_TEXT_MEMORY = PNG_TEXT  # for the whole process, which only serves
        self._decoders, self._idle = ThreadPoolExecutor(DECODERS, "decode"), asyncio.Semaphore(DECODERS)
        self._memory = Budget(DECODING_BYTES_PER_PIXEL * max_pixels)
        self._held_bytes, self._held_pictures = 0, 0
        held = Gauge(
            "thumbnet_request_bytes_in_flight", "Bytes of the bodies of requests.", registry=registry
        )
        held.set_function(lambda: self._held_bytes)

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[list[Upload]]:
        """Read the pictures in a request's body, which count as held until the end of the block.

        Raises:
            HTTPException: there are none, too many, or they are not sent as they should be; 429 if all
                requests together would hold too many bytes or pictures; see also
                :func:`~thumbnet.serving.protection.read_body`.
        """
        own_bytes, own_pictures = 0, 0

        def hold(size: int) -> None:
            nonlocal own_bytes
            if self._held_bytes + size > LARGEST_REQUESTS * self._max_bytes:
                raise _full("bytes")
            self._held_bytes += size
            own_bytes += size

        try:
            uploads = await self._read(request, hold)
            if self._held_pictures + len(uploads) > LARGEST_REQUESTS * self._max_pictures:
                raise _full("pictures")
            own_pictures = len(uploads)
            self._held_pictures += own_pictures
            yield uploads
        finally:
            self._held_bytes -= own_bytes
            self._held_pictures -= own_pictures

    async def _read(self, request: Request, hold: Callable[[int], None]) -> list[Upload]:
        """The pictures in a request's body; ``hold`` is called with the bytes of each part that arrives."""
        content_type = request.headers.get("content-type", "")
        kind = content_type.split(";")[0].strip().lower()
        multipart = kind == "multipart/form-data"
        if not (multipart or kind.startswith("image/") or kind == "application/octet-stream"):
            given = kind or "no Content-Type"
            raise HTTPException(415, f"{given}: send multipart/form-data, or a picture as image/jpeg etc.")
        if multipart:
            charset = parse_options_header(content_type)[1].get(b"charset", b"")
            if charset.lower() not in CHARSETS:
                raise HTTPException(415, f"{printable(charset.decode('latin-1'))}: send the form in UTF-8")
        advice = "send smaller or fewer pictures"
        body = await read_body(request, self._max_bytes, self._timeout, advice, hold)
        if not multipart:
            return [Upload(kind, body)]
        most = self._max_pictures
        # Not `request.form()`, which writes files of more than a megabyte to the disk.
        try:
            async with aclosing(_stream(body)) as stream:
                parser = MultiPartParser(request.headers, stream, max_files=most, max_fields=most)
                parser.spool_max_size = len(body) + 1  # larger than any file in the form
                form = await parser.parse()
        except MultiPartException as error:
            if "Too many files" in error.message:
                advice = f"more than {most} pictures: send them in several requests"
                raise HTTPException(422, advice) from None
            if "Too many fields" in error.message:
                raise HTTPException(
                    422, f"more than {most} fields besides pictures: leave them out"
                ) from None
            raise HTTPException(400, error.message) from None
        files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
        uploads = [Upload(file.filename or "", await file.read()) for file in files]
        await form.close()
        if not uploads:
            raise HTTPException(422, "no picture: send at least one file, for example curl -F file=@cat.jpg")
        return uploads

    async def decode(self, classifier: Classifier, uploads: list[Upload]) -> np.ndarray:
        """Decode pictures to pixels for ``classifier``, uint8 [B, height, width, 3].

        Raises:
            HTTPException: a picture cannot be read.
        """
        pending = [self._in_thread(classifier, one) for one in uploads]
        results = await asyncio.gather(*pending, return_exceptions=True)
        errors = [one for one in results if isinstance(one, BaseException)]
        self._pictures.labels("read").inc(len(results) - len(errors))
        self._pictures.labels("refused").inc(len(errors))
        for error in errors:
            if not isinstance(error, UnreadableImageError):
                raise error
        if errors:
            statuses = [_status_of(error) for error in errors]
            raise HTTPException(statuses[0], "; ".join(self._refused(error) for error in errors))
        return np.stack([one for one in results if isinstance(one, np.ndarray)])

    def close(self) -> None:
        """Stop the threads once their current work is done."""
        self._decoders.shutdown(cancel_futures=True)

    def _refused(self, error: BaseException) -> str:
        """What to tell a client about a picture; the operator is told what to install."""
        if not isinstance(error, MissingPluginError):
            return str(error)
        if error.package not in self._missing:
            self._missing.add(error.package)  # clients may send many of them: one line is enough
            self._warn(f"a client sent {error.kind}. To read such pictures: pip install {error.package}")
        name = printable(error.name)
        return (
            f"cannot read the picture {name}: it is {error.kind}, which this service does not read. "
            "Send it as JPEG or PNG"
        )

    async def _in_thread(self, classifier: Classifier, upload: Upload) -> np.ndarray | UnreadableImageError:
        """Decode a picture as soon as a thread is idle.

        Pictures do not wait in the executor: it would keep those of clients that have left, uncounted.
        """
        await self._idle.acquire()
        decoded = asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, classifier, upload)
        decoded.add_done_callback(lambda _: self._idle.release())
        await asyncio.wait([decoded])  # cancels nothing: the thread finishes even if the client has left
        return decoded.result()

    def _decode(self, classifier: Classifier, upload: Upload) -> np.ndarray | UnreadableImageError:
        """The pixels of a picture, or the error that says why there are none.

        It is returned, because a raised one holds this frame, which holds the picture and the error: a cycle
        that keeps the picture's bytes, uncounted, until Python looks for garbage.
        """
        error: UnreadableImageError
        try:
            with self._memory.share() as claim:
                # A file too large for the budget takes all of it, so no other one is decoded at that time.
                claim(min(OPENING_BYTES_PER_BYTE * len(upload.content), self._memory.total))
                return classifier.info.preprocessing.pixels(
                    load_picture(upload.content, upload.name, self._max_pixels, claim)
                )
        except MemoryError:
            error = TooManyPixelsError(upload.name, "not enough memory to decode it")
        except UnreadableImageError as found:
            error = found
        # A traceback would hold what was decoded before the error, until the whole request is answered.
        error.__context__ = None
        return error.with_traceback(None)


def takes_pictures(most: int) -> dict[str, Any]:
    """Describe the body for OpenAPI. FastAPI cannot, because we read it ourselves to enforce the limits."""
    file = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "array", "items": file, "minItems": 1, "maxItems": most}},
    }
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    content |= {kind: {"schema": file} for kind in (*KINDS, "application/octet-stream")}
    return {"requestBody": {"required": True, "content": content}}


async def _stream(body: bytes) -> AsyncGenerator[bytes, None]:
    """A body that has arrived, for the parser of forms."""
    yield body


def _full(of: str) -> HTTPException:
    return HTTPException(
        429, f"the service holds as many {of} of requests as it may: try again", {"Retry-After": "1"}
    )


def _status_of(error: BaseException) -> int:
    if isinstance(error, TooManyPixelsError):
        return 413
    return 415 if isinstance(error, UnknownFormatError) else 422
