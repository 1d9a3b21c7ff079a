"""Protect pages and services on this machine from other sites: hosts, origins, headers, limits on bodies."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from fastapi import FastAPI, HTTPException, Request
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thumbnet.errors import printable
from thumbnet.files import inline_source

HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
LONGEST_HOST = 253  # characters, which is what a name in the DNS may have
CORS_METHODS = ("GET", "POST")  # that pages of accepted origins may use
CORS_HEADERS = ("X-API-Key",)  # that they may send, and those that every page may
OWN_SITES = ("same-origin", "none")  # Sec-Fetch-Site of a service's own page, and of what the user opened
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def accepted_hosts(listener: socket.socket, named: str, more: Sequence[str] = ()) -> tuple[str, ...] | None:
    """The host names that a service on this socket accepts; None for any, if others can reach it.

    On loopback, the check stops pages of other sites from reaching the service through a host name that they
    point at it (DNS rebinding).

    Args:
        listener: the socket that the service listens on.
        named: the address that the user gave.
        more: further names, under which a proxy on this machine passes requests on.
    """
    if not ip_address(listener.getsockname()[0]).is_loopback:
        return None
    return ("localhost", "127.0.0.1", "::1", "[::1]", named, *more)


def refuse_other_sites(app: FastAPI, origins: Sequence[str], option: str) -> None:
    """Refuse POST requests that come from a page of another site, as the browser says.

    Call :func:`protect` afterwards, so that its headers are in the refusals, too.

    Args:
        app: the application.
        origins: the origins, such as ``https://shop.example``, whose pages may send POST requests and read
            the answers; ``*`` for all. The application answers their preflight requests.
        option: the option that adds an origin; the refusal names it.
    """
    app.add_middleware(_OnlyFrom, origins=origins, option=option)
    if origins:
        # The policy in HEADERS does not concern these pages: browsers apply it only to what a page embeds
        # without asking for permission (CORS), such as an image of another site.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_HEADERS,
            expose_headers=["Retry-After"],
            # Some browsers ask before a page of the Internet reaches a service on this machine or network.
            allow_private_network=True,
        )


def protect(app: FastAPI, hosts: tuple[str, ...] | None, option: str = "") -> None:
    """Refuse requests for host names other than ``hosts``, and add ``HEADERS`` to every response.

    Args:
        app: the application.
        hosts: the accepted host names; None for any.
        option: the option that adds a host name; the refusal names it.
    """
    if hosts is not None:
        app.add_middleware(_OnlyFor, hosts=hosts, option=option)
    app.add_middleware(_WithHeaders)
    app.add_middleware(_Ending)


class _Ending:
    """ASGI middleware that answers 503 to a request that outlasts the time in which a service stops.

    uvicorn cancels such a request, and without this it would print a traceback and answer 500.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if scope["type"] == "http" and not started:
                headers = {"Retry-After": "1", "Connection": "close"}
                answer = JSONResponse({"detail": "the service is stopping: try again"}, 503, headers)
                await answer(scope, receive, send)


class _OnlyFor:
    """ASGI middleware that answers 400 to requests for host names other than ``hosts``."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], option: str) -> None:
        self._app, self._hosts, self._option = app, {host.lower() for host in hosts}, option

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("host", "")
        found = HOST.fullmatch(given)
        if found is not None and found["name"].lower() in self._hosts:
            await self._app(scope, receive, send)
            return
        detail = f"this service does not accept requests for the host {printable(given[:LONGEST_HOST])!r}"
        if found is not None and self._option:
            detail += f". To accept it, start the service with {self._option} {found['name']}"
        await JSONResponse({"detail": detail}, 400)(scope, receive, send)


class _OnlyFrom:
    """ASGI middleware that answers 403 to POST requests from pages of other sites than ``origins``.

    Such a page may send a form without asking first; the browser only keeps the answer from it. Browsers say
    where a request comes from if the service is on this machine or has HTTPS. Programs do not say it.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], option: str) -> None:
        self._app, self._origins, self._option = app, origins, option

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or self._accepts(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        detail = "this request comes from a page of another site, which may not use this service"
        detail += f". To accept it, start the service with {self._option} and the origin of that page"
        await JSONResponse({"detail": detail}, 403)(scope, receive, send)

    def _accepts(self, headers: Headers) -> bool:
        if headers.get("sec-fetch-site", "none") in OWN_SITES or "*" in self._origins:
            return True
        return headers.get("origin") in self._origins


class _WithHeaders:
    """ASGI middleware that adds ``HEADERS`` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)


def page_policy(page: str) -> str:
    """Build the Content-Security-Policy of a page that is one self-contained file.

    The browser runs the page's own scripts and styles, which the policy names by their digests, and nothing
    that a file name or a class name might smuggle into it. It loads only from the page's own address.
    """
    return (
        f"default-src 'none'; script-src {_sources('script', page)}; style-src {_sources('style', page)}; "
        "img-src 'self' data: blob:; media-src blob:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def _sources(tag: str, page: str) -> str:
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return " ".join(map(inline_source, blocks)) or "'none'"


async def read_body(
    request: Request,
    most: int,
    seconds: float,
    advice: str,
    hold: Callable[[int], None] = lambda size: None,
) -> bytes:
    """Read a request's body.

    Args:
        request: the request.
        most: the most bytes that it may have.
        seconds: the time that it may take to arrive.
        advice: what to do if it is too large.
        hold: called with the bytes of each part before it is kept; may raise HTTPException.

    Raises:
        HTTPException: 413 if it is too large, 408 if it does not arrive in time, 400 if the client is gone.
    """
    too_large = HTTPException(413, f"more than {most:,} bytes: {advice}")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                if len(body) + len(part) > most:
                    raise too_large
                hold(len(part))
                body += part
    except TimeoutError:
        raise HTTPException(408, "the body did not arrive in time", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection was closed") from None
    return bytes(body)
