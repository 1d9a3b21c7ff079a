"""The review page and what it asks for: the state of the review, pictures, decisions.

Other users of this machine reach its loopback address as well, so every request needs a secret: the page's
address has a token, for which the browser gets a cookie that it sends from then on. Only the page may decide,
not pages of other sites in the same browser. A request names a picture by its position, never by a path.
"""

# No `from __future__ import annotations` here: FastAPI evaluates annotations that name local variables.

import hmac
import io
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool

from thumbnet.data.images import Picture
from thumbnet.data.rendering import Rendering
from thumbnet.errors import FailedReadError, RunError, ThumbnetError, UnreadableImageError, printable
from thumbnet.reviewing.session import Item, Review
from thumbnet.serving.protection import OWN_SITES, page_policy, protect, read_body

MAX_BODY = 10_000  # bytes of a decision
SECONDS = 10.0  # for a decision to arrive
DECODED_AT_ONCE = 4  # pictures, so that large ones do not fill the memory
LARGEST_SIDE = 768  # pixels; the page shows larger pictures smaller
NO_TOKEN = "open the address that thumbnet review has printed: it ends with this review's token"


@dataclass(frozen=True)
class Heading:
    """What the page says about the review.

    Attributes:
        title: what is reviewed.
        continue_with: the command that uses the labels.
        hosts: accepted host names, see :func:`thumbnet.serving.protection.accepted_hosts`.
        show_more: the command that shows the further pictures too.
    """

    title: str
    continue_with: str
    hosts: tuple[str, ...] | None = ("localhost", "127.0.0.1")
    show_more: str = ""


class Tokens:
    """The tokens that open the page of one review.

    Attributes:
        printed: for the address on the terminal. It works as often as it is used.
        once: for the address that a browser is started with. It works once, because other users of this
            machine can read the arguments of a process as long as it runs.
    """

    def __init__(self) -> None:
        self.printed = secrets.token_hex(16)
        self.once = secrets.token_hex(16)
        self._used = False

    def take(self, token: str) -> bool:
        """Whether a token opens the page, now."""
        if not self._used and _equal(token, self.once):
            self._used = True
            return True
        return _equal(token, self.printed)


class Decision(BaseModel):
    """A decision that the page sends; see :meth:`thumbnet.reviewing.session.Review.decide`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    picture: int
    decision: str
    label: int | None = None


def build_review(
    review: Review,
    heading: Heading,
    load: Callable[[Item], Picture],
    rendering: Rendering,
    tokens: Tokens,
) -> FastAPI:
    """Build the service of a review, an ASGI application.

    Args:
        review: the pictures and decisions.
        heading: what the page says about them.
        load: decodes an item's picture.
        rendering: how pictures of more than 8 bits or with transparency become RGB.
        tokens: what opens the page, as in ``http://127.0.0.1:8001/?token=...``.
    """
    cookie = secrets.token_hex(16)
    page = (resources.files("thumbnet.reviewing") / "page.html").read_text("utf-8")
    policy = page_policy(page)
    decoding = threading.BoundedSemaphore(DECODED_AT_ONCE)
    app = FastAPI(title="thumbnet review", docs_url=None, redoc_url=None, openapi_url=None)
    protect(app, heading.hosts)
    app.add_exception_handler(RequestValidationError, _describe_invalid)
    app.add_exception_handler(ThumbnetError, _describe_problem)

    def has_cookie(request: Request) -> bool:
        return _equal(request.cookies.get(_cookie_name(request), ""), cookie)

    async def from_the_page(request: Request) -> None:
        """Refuse requests without the cookie, and those that the browser says come from another page."""
        own = f"http://{request.headers.get('host', '')}"
        from_elsewhere = request.headers.get("sec-fetch-site", "none") not in OWN_SITES
        if from_elsewhere or request.headers.get("origin", own) != own:
            raise HTTPException(403, "this request comes from another page than the review's")
        if not has_cookie(request):
            raise HTTPException(403, NO_TOKEN)

    async def decisive(request: Request) -> bytes:
        """The body of a request that changes something. It must come from the page of this review."""
        await from_the_page(request)
        return await read_body(request, MAX_BODY, SECONDS, "a decision is shorter")

    guarded = [Depends(from_the_page)]

    @app.get("/", response_class=HTMLResponse)
    async def show_page(request: Request, token: str = "") -> HTMLResponse:
        if not has_cookie(request) and not tokens.take(token):
            raise HTTPException(403, NO_TOKEN)
        answer = HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})
        answer.set_cookie(_cookie_name(request), cookie, httponly=True, samesite="strict")
        return answer

    @app.get("/state", dependencies=guarded)
    def state() -> JSONResponse:
        return _private(_state(review, heading))

    @app.get("/picture/{position}", dependencies=guarded)
    def picture(position: int) -> Response:
        if not 0 <= position < len(review.items):
            raise HTTPException(404, f"there is no picture {position} in this review")
        try:
            with decoding:
                content = as_png(load(review.items[position]), rendering)
        except (UnreadableImageError, FailedReadError) as error:
            raise HTTPException(404, str(error)) from None
        except MemoryError:
            raise HTTPException(503, "not enough memory to decode the picture") from None
        return Response(content, media_type="image/png", headers={"Cache-Control": "no-store"})

    @app.post("/decide")
    async def decide(body: Annotated[bytes, Depends(decisive)]) -> JSONResponse:
        try:
            wanted = Decision.model_validate_json(body)
        except ValidationError as error:
            raise HTTPException(422, _in_words(error.errors())) from None
        await run_in_threadpool(review.decide, wanted.picture, wanted.decision, wanted.label)
        return _private(_change(review, wanted.picture))

    @app.post("/undo", dependencies=[Depends(decisive)])
    async def undo() -> JSONResponse:
        position = await run_in_threadpool(review.undo)
        return _private(_change(review, position))

    return app


def as_png(picture: Picture, rendering: Rendering) -> bytes:
    """Encode a decoded picture as PNG, in RGB, its longer side at most ``LARGEST_SIDE`` pixels."""
    rgb = rendering.rgb(picture)
    image = Image.fromarray(rgb) if isinstance(rgb, np.ndarray) else rgb.copy()
    image.info.clear()  # EXIF and other metadata stay here
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _equal(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())


def _cookie_name(request: Request) -> str:
    """A name for each host and port, because a browser sends a host's cookies to all of its ports."""
    return "thumbnet-review-" + re.sub(r"\W", "-", request.headers.get("host", ""), flags=re.ASCII)


def _state(review: Review, heading: Heading) -> dict[str, Any]:
    """Everything that the page shows, except the pictures themselves."""
    return {
        "title": printable(heading.title),
        "file": printable(str(review.path)),
        "command": heading.continue_with,
        "classes": review.class_names,
        "shown": review.shown,
        "beyond": review.selection.what,
        "show_more": heading.show_more,
        "pictures": [
            {
                "name": printable(item.name),
                "split": item.split,
                "given": item.given,
                "suggested": item.suggested,
                "likely": [[label, round(value, 4)] for label, value in item.likely],
                "reasons": item.reasons,
                "copies": item.copies,
                "decided": _decided(review, position),
            }
            for position, item in enumerate(review.items)
        ],
        **_progress(review),
    }


def _change(review: Review, position: int | None) -> dict[str, Any]:
    """What a decision or its undoing changed."""
    decided = None if position is None else _decided(review, position)
    return {"picture": position, "decided": decided, **_progress(review)}


def _decided(review: Review, position: int) -> dict[str, str] | None:
    found = review.decision(position)
    return None if found is None else {"decision": found.decision, "label": printable(found.label)}


def _progress(review: Review) -> dict[str, Any]:
    return {
        "done": review.decided,
        "remaining": review.remaining,
        "undo": review.can_undo,
        "revision": review.revision,
    }


def _private(content: dict[str, Any]) -> JSONResponse:
    return JSONResponse(content, headers={"Cache-Control": "no-store"})


def _in_words(errors: Any) -> str:
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in errors)


async def _describe_invalid(_: Request, error: Exception) -> JSONResponse:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return JSONResponse({"detail": _in_words(found)}, 422)


async def _describe_problem(_: Request, error: Exception) -> JSONResponse:
    """Say why a decision was not taken: 507 if the file could not be written, else 422."""
    return JSONResponse({"detail": str(error)}, 507 if isinstance(error, RunError) else 422)
