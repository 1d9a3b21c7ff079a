"""The pictures in a request: read from its body, whole or as a form, and decoded in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import HTTPException, Request
from prometheus_client import CollectorRegistry, Counter
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Message, Receive

from thumbnet.classifiers.base import Classifier
from thumbnet.data.images import load_picture
from thumbnet.errors import (
    MissingPluginError,
    TooManyPixelsError,
    UnknownFormatError,
    UnreadableImageError,
    printable,
)
from thumbnet.serving.protection import read_body

KINDS = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "image/avif")
DECODERS = 4  # threads


@dataclass(frozen=True)
class Upload:
    """An uploaded file."""

    name: str
    content: bytes


class Uploads:
    """Reads and decodes the pictures of requests.

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
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")

    async def read(self, request: Request) -> list[Upload]:
        """The pictures in a request's body.

        Raises:
            HTTPException: there are none, too many, or they are not sent as they should be; see also
                :func:`~thumbnet.serving.protection.read_body`.
        """
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        multipart = kind == "multipart/form-data"
        if not (multipart or kind.startswith("image/") or kind == "application/octet-stream"):
            given = kind or "no Content-Type"
            raise HTTPException(415, f"{given}: send multipart/form-data, or a picture as image/jpeg etc.")
        advice = "send smaller or fewer pictures"
        body = await read_body(request, self._max_bytes, self._timeout, advice)
        if not multipart:
            return [Upload(kind, body)]
        most = self._max_pictures
        # The form parser needs a stream, so replay the body. Its size has been checked.
        whole = Request(request.scope, _replayed(body))
        try:
            async with whole.form(max_files=most, max_fields=most) as form:
                files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
                uploads = [Upload(file.filename or "", await file.read()) for file in files]
        except StarletteHTTPException as error:
            if "Too many files" in str(error.detail):
                advice = f"more than {most} pictures: send them in several requests"
                raise HTTPException(422, advice) from None
            if "Too many fields" in str(error.detail):
                raise HTTPException(
                    422, f"more than {most} fields besides pictures: leave them out"
                ) from None
            raise
        if not uploads:
            raise HTTPException(422, "no picture: send at least one file, for example curl -F file=@cat.jpg")
        return uploads

    async def decode(self, classifier: Classifier, uploads: list[Upload]) -> np.ndarray:
        """Decode pictures to pixels for ``classifier``, uint8 [B, height, width, 3].

        Raises:
            HTTPException: a picture cannot be read.
        """
        run = asyncio.get_running_loop().run_in_executor
        pending = [run(self._decoders, self._decode, classifier, one) for one in uploads]
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

    def _decode(self, classifier: Classifier, upload: Upload) -> np.ndarray:
        try:
            picture = load_picture(upload.content, upload.name, self._max_pixels)
            return classifier.info.preprocessing.pixels(picture)
        except MemoryError:
            raise TooManyPixelsError(upload.name, "not enough memory to decode it") from None


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


def _replayed(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _status_of(error: BaseException) -> int:
    if isinstance(error, TooManyPixelsError):
        return 413
    return 415 if isinstance(error, UnknownFormatError) else 422
