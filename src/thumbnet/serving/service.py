"""The HTTP service: its routes, its limits and its errors."""

# No `from __future__ import annotations` here: FastAPI evaluates annotations that name local variables.

import asyncio
import hmac
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import APIKeyHeader
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from thumbnet.classifiers.base import Classifier
from thumbnet.data.splits import Data
from thumbnet.errors import OutOfMemoryError
from thumbnet.serving.access_log import PICTURES, AccessLog, Logged
from thumbnet.serving.answers import answer, explained
from thumbnet.serving.background import end
from thumbnet.serving.batching import Batcher
from thumbnet.serving.hardest import HardestSearch
from thumbnet.serving.identity import Identity, describe
from thumbnet.serving.keeping import Keeper
from thumbnet.serving.metrics import Measured
from thumbnet.serving.network import Network, Source, check_memory, try_batch
from thumbnet.serving.protection import page_policy, protect, refuse_other_sites
from thumbnet.serving.reloading import Reloads
from thumbnet.serving.schemas import (
    Explanation,
    HardPictures,
    Health,
    ModelDescription,
    PicturePrediction,
    Predictions,
    Problem,
)
from thumbnet.serving.uploads import Upload, Uploads, takes_pictures
from thumbnet.version import __version__

# Not bool: FastAPI would also take 1, on and yes, which the OpenAPI description does not allow.
Keep = Annotated[
    Literal["true", "false"],
    Query(description="false to forbid that the pictures are kept; by default, the service decides"),
]


@dataclass(frozen=True)
class ServiceSettings:
    """Limits and options of the service.

    Attributes:
        max_bytes: the most bytes in a request's body. All requests together may hold 16 times as many.
        max_pixels: the most pixels in a picture. Decoding takes at most 40 times as many bytes of memory.
        max_pictures: the most pictures in a request. All requests together may hold 16 times as many.
        max_queue: the most requests with pictures, running or waiting, at a time; more are refused.
        max_batch: the most pictures in a forward pass.
        timeout: seconds that a request's body may take to arrive, and that its answer may then take.
        tta: test-time augmentation, see :meth:`Classifier.logits`; None for the one that the accuracy was
            measured with.
        api_key: required by every route except ``/``, ``/healthz``, ``/readyz`` and ``/openapi.json``; None
            for no key.
        hosts: accepted host names; None for any; see :func:`~thumbnet.serving.protection.accepted_hosts`.
        origins: origins such as ``https://shop.example`` whose pages may use the service; ``*`` for all. The
            service refuses POST requests from any other page but its own.
    """

    max_bytes: int = 10_000_000
    max_pixels: int = 25_000_000
    max_pictures: int = 64
    max_queue: int = 256
    max_batch: int = 64
    timeout: float = 30.0
    tta: str | None = None
    api_key: str | None = None
    hosts: tuple[str, ...] | None = None
    origins: tuple[str, ...] = ()


def build_service(
    classifier: Classifier,
    settings: ServiceSettings,
    load_data: Callable[[], Data | None] = lambda: None,
    warn: Callable[[str], None] = lambda text: None,
    *,
    identity: Identity | None = None,
    access_log: AccessLog | None = None,
    keeper: Keeper | None = None,
    source: Source | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> FastAPI:
    """Build the service, an ASGI application.

    Its ``state.reload`` is a function that any thread and any signal handler may call. It returns at once.
    The service then loads its network again from ``source``, and if it has changed, answers with the new one.
    If that fails, the service keeps the old one and warns.

    Args:
        classifier: the classifier to serve.
        settings: limits and options.
        load_data: called in the background; returns the data whose test pictures the page offers, or None.
        warn: called with one line for each failure in the background.
        identity: which network this is, for ``/model``; by default only what the classifier itself knows.
        access_log: gets an entry per request. The service closes it when it stops.
        keeper: gets each picture with its answer, and keeps those that the network was unsure of. The service
            closes it when it stops.
        source: where the network was loaded from; None if it cannot be replaced.
        tell: called with one line when the network was loaded again.

    Raises:
        RunError: there is a keeper, and the network gives a picture several labels.
    """
    network = Network(classifier, identity or Identity(classifier.info), load_data)
    if keeper is not None:
        keeper.check_fits(classifier.info)
    service = _Service(network, settings, source, warn, tell, access_log, keeper)
    app = FastAPI(
        title="thumbnet",
        version=__version__,
        description=_description(classifier),
        lifespan=service.lifespan,
        docs_url=None,  # FastAPI's documentation pages load scripts from other sites
        redoc_url=None,
    )
    app.state.reload = service.reloads.ask
    refuse_other_sites(app, settings.origins, "--allow-origin")
    protect(app, settings.hosts, "--accept-host")
    app.add_exception_handler(RequestValidationError, _describe_invalid)
    app.add_exception_handler(OutOfMemoryError, service.describe_full)
    # Outermost, so that they also see requests that other middleware refuses.
    app.add_middleware(Measured, registry=service.registry)
    if access_log is not None:
        app.add_middleware(Logged, log=access_log)

    key = [Security(service.check_key, scopes=[])] if settings.api_key else []
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text} for status, text in REFUSALS.items()
    }
    locked: dict[int | str, dict[str, Any]] = {401: refusals[401]} if key else {}
    if not key:
        refusals.pop(401)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(service.page, headers={"Content-Security-Policy": page_policy(service.page)})

    @app.get("/healthz", summary="Is the process alive?", tags=["probes"])
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get(
        "/readyz",
        summary="Does the service accept requests?",
        tags=["probes"],
        responses={503: {"model": Health, "description": "it does not accept requests now"}},
    )
    async def readyz(response: Response) -> Health:
        status = service.status()
        response.status_code = 200 if status == "ok" else 503
        return Health(status=status)

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        tags=["probes"],
        dependencies=key,
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **locked},
    )
    async def metrics() -> Response:
        return Response(generate_latest(service.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/model", summary="Describe the network", dependencies=key, responses=locked)
    async def model() -> ModelDescription:
        return describe(service.network.identity, None if keeper is None else keeper.below)

    @app.get("/hardest", summary="List the hardest test pictures", dependencies=key, responses=locked)
    async def hardest() -> HardPictures:
        found = service.search.found
        return HardPictures(ready=found is not None, pictures=found or [])

    @app.post(
        "/predict",
        summary="Classify pictures",
        dependencies=key,
        responses=refusals,
        openapi_extra=takes_pictures(settings.max_pictures),
    )
    async def predict(
        request: Request,
        uploads: Annotated[list[Upload], Depends(service.read_uploads)],
        top: Annotated[int, Query(ge=1, le=1000, description="classes to return per picture")] = 5,
        keep: Keep = "true",
    ) -> Predictions:
        network = service.network  # one for the whole answer, also if it is replaced meanwhile
        async with _answering(request, settings.timeout):
            pixels = await service.uploads.decode(network.classifier, uploads)
            found = await service.batcher.classify(network.classifier, pixels)
        pairs = list(zip(uploads, found, strict=True))
        answers = Predictions(
            predictions=[
                PicturePrediction(name=upload.name, **answer(prediction, top)) for upload, prediction in pairs
            ]
        )
        if keeper is not None and keep == "true":
            for upload, prediction in pairs:
                keeper.offer(upload.content, prediction, network.identity)
        return answers

    @app.post(
        "/explain",
        summary="Classify a picture and show where the network looked",
        dependencies=key,
        responses=refusals,
        openapi_extra=takes_pictures(1),
    )
    async def explain(
        request: Request,
        uploads: Annotated[list[Upload], Depends(service.read_uploads)],
        top: Annotated[int, Query(ge=1, le=1000, description="classes to return")] = 5,
        keep: Keep = "true",
    ) -> Explanation:
        if len(uploads) != 1:
            raise HTTPException(422, f"{len(uploads)} pictures: /explain takes one at a time")
        network, tta, most = service.network, settings.tta, settings.max_batch
        async with _answering(request, settings.timeout):
            pixels = await service.uploads.decode(network.classifier, uploads)
            prediction, explanation = await service.batcher.run_parts(
                explained(network.classifier, pixels[0], top, tta=tta, max_batch=most)
            )
        if keeper is not None and keep == "true":
            keeper.offer(uploads[0].content, prediction, network.identity)
        return explanation

    return app


REFUSALS = {
    400: "the multipart body is not well-formed, or the request is for another host name",
    401: "the API key is missing or wrong",
    403: "the request comes from a page of another site",
    408: "the body did not arrive in time",
    413: "too many bytes or pixels",
    415: "neither multipart/form-data in UTF-8 nor a picture, or a picture in an unknown format",
    422: "no picture, too many pictures, a damaged picture, or a parameter out of range",
    429: "the queue is full, or requests hold too many bytes or pictures: try again",
    503: "no answer in time, or too little memory: try again",
}


class _Service:
    """The state that the routes share."""

    def __init__(
        self,
        network: Network,
        settings: ServiceSettings,
        source: Source | None,
        warn: Callable[[str], None],
        tell: Callable[[str], None],
        access_log: AccessLog | None,
        keeper: Keeper | None,
    ) -> None:
        self.network, self.settings = network, settings
        self._warn, self._access_log, self._keeper = warn, access_log, keeper
        self.page = (resources.files("thumbnet.serving") / "page.html").read_text("utf-8")
        self.registry = CollectorRegistry()
        batches = Histogram(
            "thumbnet_batch_pictures",
            "Pictures per forward pass.",
            registry=self.registry,
            buckets=[2**k for k in range(10)],
        )
        self._in_flight = Gauge(
            "thumbnet_requests_in_flight",
            "Requests with pictures, running or waiting.",
            registry=self.registry,
        )
        self._active = 0
        self._in_flight.set_function(lambda: self._active)
        if "torch" in sys.modules:  # exported models do not use its memory
            from thumbnet.hardware import return_large_blocks

            return_large_blocks()
        if keeper is not None:
            self.registry.register(keeper.outcomes)
        self.batcher = Batcher(settings.max_batch, settings.tta, batches.observe)
        self.uploads = Uploads(
            max_bytes=settings.max_bytes,
            max_pixels=settings.max_pixels,
            max_pictures=settings.max_pictures,
            timeout=settings.timeout,
            warn=warn,
            registry=self.registry,
        )
        self.reloads = Reloads(
            source, lambda: self.network.identity, self._put_in_place, warn, tell, self.registry
        )
        self.search = self._search_of(network)
        self._ready = False

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Warm up before the first request, and stop the threads after the last one."""
        self.reloads.attach()
        await self._warm_up(self.network.classifier)
        self._ready = True
        self.search.start()
        reloads = asyncio.create_task(self.reloads.run())
        yield
        self._ready = False
        await end(reloads)
        await self.search.stop()
        if self._keeper is not None:
            self._keeper.close()
        if self._access_log is not None:
            self._access_log.close()
        self.uploads.close()  # last, because these wait for work that may take long
        self.batcher.close()

    async def _warm_up(self, classifier: Classifier) -> None:
        """Try a small batch and the largest one, between two batches of requests.

        Raises:
            OutOfMemoryError: the largest one does not fit the device's memory.
        """
        most, tta = self.settings.max_batch, self.settings.tta
        await self.batcher.run(partial(try_batch, classifier, 1, tta))
        await self.batcher.run(partial(check_memory, classifier, most, tta))

    async def _put_in_place(self, network: Network) -> None:
        """Serve another network from now on.

        Requests whose pictures were decoded for the old network still get their answers from it. Its memory
        is free after the last of them.

        Raises:
            OutOfMemoryError: its largest batch does not fit the device's memory. The old one stays.
        """
        await self._warm_up(network.classifier)
        await self.search.stop()  # which asks the old network
        self.network, self.search = network, self._search_of(network)
        self.search.start()

    def _search_of(self, network: Network) -> HardestSearch:
        return HardestSearch(network, self.batcher, self.settings.max_batch, self.settings.tta, self._warn)

    async def describe_full(self, _: Request, error: Exception) -> JSONResponse:
        """Answer a request whose pictures did not fit into memory, and print a line where it runs."""
        self._warn(str(error))
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})

    def status(self) -> str:
        if not self._ready:
            return "not ready"
        return "queue is full" if self._active >= self.settings.max_queue else "ok"

    async def check_key(
        self, given: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))]
    ) -> None:
        expected = self.settings.api_key or ""
        if not hmac.compare_digest((given or "").encode(), expected.encode()):
            raise HTTPException(
                401, "send the API key in the header X-API-Key", {"WWW-Authenticate": "APIKey"}
            )

    async def read_uploads(self, request: Request) -> AsyncIterator[list[Upload]]:
        """Read the pictures of a request. The request counts towards ``max_queue`` until it is answered."""
        if self._active >= self.settings.max_queue:
            raise HTTPException(429, "the queue is full: try again", {"Retry-After": "1"})
        self._active += 1
        try:
            async with self.uploads.read(request) as uploads:
                request.scope[PICTURES] = len(uploads)
                yield uploads
        finally:
            self._active -= 1


def _description(classifier: Classifier) -> str:
    count = len(classifier.class_names)
    if classifier.info.multilabel:
        return f"Gives each picture any number of {count} labels."
    return f"Classifies pictures as one of {count} classes."


@asynccontextmanager
async def _answering(request: Request, seconds: float) -> AsyncIterator[None]:
    """Limit the time that an answer may take, and stop working on it if the client disconnects.

    Raises:
        HTTPException: 503 if it takes longer, 400 if the client is gone.
    """
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        limit.reschedule(0)  # now

    try:
        async with asyncio.timeout(seconds) as limit:
            watcher = asyncio.create_task(watch())
            try:
                yield
            finally:
                watcher.cancel()
    except TimeoutError:
        if gone:
            raise HTTPException(400, "the connection was closed") from None
        raise HTTPException(503, f"no answer within {seconds:g} s: try again", {"Retry-After": "1"}) from None


async def _describe_invalid(_: Request, error: Exception) -> JSONResponse:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    detail = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in found)
    return JSONResponse({"detail": detail}, 422)
