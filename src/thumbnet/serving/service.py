"""The HTTP service: its routes, its limits and its errors."""

# No `from __future__ import annotations` here: FastAPI evaluates annotations that name local variables.

import asyncio
import hmac
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from typing import Annotated, Any, TypeVar, cast

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import APIKeyHeader
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Message, Receive

from thumbnet.classifiers.base import Classifier, Prediction
from thumbnet.classifiers.explain import highlight, occlusion_map
from thumbnet.classifiers.labels import check_fits, targets_for
from thumbnet.classifiers.words import certainty, in_words
from thumbnet.data.images import Picture, as_data_address, load_picture
from thumbnet.data.splits import Data, Split
from thumbnet.errors import (
    OutOfMemoryError,
    ThumbnetError,
    TooManyPixelsError,
    UnknownFormatError,
    UnreadableImageError,
)
from thumbnet.evaluation import log_softmax
from thumbnet.serving.access_log import PICTURES, AccessLog, Logged
from thumbnet.serving.batching import Batcher
from thumbnet.serving.identity import Identity, describe
from thumbnet.serving.metrics import Measured
from thumbnet.serving.network import Network, Source, check_memory, check_replaces, try_batch
from thumbnet.serving.protection import page_policy, protect, read_body
from thumbnet.serving.schemas import (
    ClassProbability,
    Explanation,
    HardPicture,
    HardPictures,
    Health,
    ModelDescription,
    PicturePrediction,
    Predictions,
    Problem,
)
from thumbnet.version import __version__

T = TypeVar("T")

HARDEST = 24  # test pictures that the page offers
SEARCHED = 10_000  # the most test pictures that the search classifies
SEARCHED_AT_ONCE = 200  # small, so that requests do not wait long for the search


@dataclass(frozen=True)
class ServiceSettings:
    """Limits and options of the service.

    Attributes:
        max_bytes: the most bytes in a request's body.
        max_pixels: the most pixels in a picture.
        max_pictures: the most pictures in a request.
        max_queue: the most requests with pictures, running or waiting, at a time; more are refused.
        max_batch: the most pictures in a forward pass.
        timeout: seconds that a request's body may take to arrive, and that its answer may then take.
        tta: test-time augmentation, see :meth:`Classifier.logits`; None for the one that the accuracy was
            measured with.
        api_key: required by every route except ``/``, ``/healthz``, ``/readyz`` and ``/openapi.json``; None
            for no key.
        hosts: accepted host names; None for any; see :func:`~thumbnet.serving.protection.accepted_hosts`.
        origins: origins such as ``https://shop.example`` whose pages may use the service; ``*`` for all.
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


@dataclass(frozen=True)
class Upload:
    """An uploaded file."""

    name: str
    content: bytes


def build_service(
    classifier: Classifier,
    settings: ServiceSettings,
    load_data: Callable[[], Data | None] = lambda: None,
    warn: Callable[[str], None] = lambda text: None,
    *,
    identity: Identity | None = None,
    access_log: AccessLog | None = None,
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
        source: where the network was loaded from; None if it cannot be replaced.
        tell: called with one line when the network was loaded again.
    """
    network = Network(classifier, identity or Identity(classifier.info), load_data)
    service = _Service(network, settings, source, warn, tell, access_log)
    app = FastAPI(
        title="thumbnet",
        version=__version__,
        description=_description(classifier),
        lifespan=service.lifespan,
        docs_url=None,  # FastAPI's documentation pages load scripts from other sites
        redoc_url=None,
    )
    app.state.reload = service.ask_for_reload
    app.add_middleware(Measured, registry=service.registry)
    protect(app, settings.hosts, "--accept-host", settings.origins)
    app.add_exception_handler(RequestValidationError, _describe_invalid)
    app.add_exception_handler(OutOfMemoryError, service.describe_full)
    if access_log is not None:  # the outermost middleware, which also sees requests that others refuse
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
        return describe(service.network.identity)

    @app.get("/hardest", summary="List the hardest test pictures", dependencies=key, responses=locked)
    async def hardest() -> HardPictures:
        return HardPictures(ready=service.hardest is not None, pictures=service.hardest or [])

    @app.post(
        "/predict",
        summary="Classify pictures",
        dependencies=key,
        responses=refusals,
        openapi_extra=_takes_pictures(settings.max_pictures),
    )
    async def predict(
        request: Request,
        uploads: Annotated[list[Upload], Depends(service.uploads)],
        top: Annotated[int, Query(ge=1, le=1000, description="classes to return per picture")] = 5,
    ) -> Predictions:
        classifier = service.network.classifier  # one for the whole answer, also if it is replaced meanwhile
        async with _answering(request, settings.timeout):
            pixels = await service.decode(classifier, uploads)
            found = await service.batcher.classify(classifier, pixels)
        return Predictions(
            predictions=[
                PicturePrediction(name=upload.name, **_answer(prediction, top))
                for upload, prediction in zip(uploads, found, strict=True)
            ]
        )

    @app.post(
        "/explain",
        summary="Classify a picture and show where the network looked",
        dependencies=key,
        responses=refusals,
        openapi_extra=_takes_pictures(1),
    )
    async def explain(
        request: Request,
        uploads: Annotated[list[Upload], Depends(service.uploads)],
        top: Annotated[int, Query(ge=1, le=1000, description="classes to return")] = 5,
    ) -> Explanation:
        if len(uploads) != 1:
            raise HTTPException(422, f"{len(uploads)} pictures: /explain takes one at a time")
        classifier = service.network.classifier
        async with _answering(request, settings.timeout):
            pixels = await service.decode(classifier, uploads)
            return await service.batcher.run(partial(service.explain, classifier, pixels[0], top))

    return app


REFUSALS = {
    400: "the multipart body is not well-formed, or the request is for another host name",
    401: "the API key is missing or wrong",
    408: "the body did not arrive in time",
    413: "too many bytes or pixels",
    415: "neither multipart/form-data nor a picture, or a picture in an unknown format",
    422: "no picture, too many pictures, a damaged picture, or a parameter out of range",
    429: "the queue is full: try again",
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
    ) -> None:
        self.network, self.settings, self._source = network, settings, source
        self._warn, self._tell, self._access_log = warn, tell, access_log
        self.page = (resources.files("thumbnet.serving") / "page.html").read_text("utf-8")
        self.registry = CollectorRegistry()
        batches = Histogram(
            "thumbnet_batch_pictures",
            "Pictures per forward pass.",
            registry=self.registry,
            buckets=[2**k for k in range(10)],
        )
        self._pictures = Counter(
            "thumbnet_pictures", "Uploaded pictures.", ["outcome"], registry=self.registry
        )
        self._in_flight = Gauge(
            "thumbnet_requests_in_flight",
            "Requests with pictures, running or waiting.",
            registry=self.registry,
        )
        self._active = 0
        self._in_flight.set_function(lambda: self._active)
        if "torch" in sys.modules:  # which has asked to keep all freed memory; exported models do not use it
            from thumbnet.hardware import return_large_blocks

            return_large_blocks()
        self._reloads = Counter(
            "thumbnet_reloads",
            "Times that the service was asked to load its network again.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("replaced", "unchanged", "failed"):
            self._reloads.labels(outcome)
        self.batcher = Batcher(settings.max_batch, settings.tta, batches.observe)
        self._decoders = ThreadPoolExecutor(4, "decode")
        self._ready = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reload_asked = asyncio.Event()
        self._search: asyncio.Task[None] | None = None
        self.hardest: list[HardPicture] | None = None

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Warm up before the first request, and stop the threads after the last one."""
        self._loop = asyncio.get_running_loop()
        await self._warm_up(self.network.classifier)
        self._ready = True
        self._search = asyncio.create_task(self._search_hardest(self.network))
        reloads = asyncio.create_task(self._reload_when_asked())
        yield
        self._ready = False
        await _end(reloads)
        await _end(self._search)
        self._decoders.shutdown(cancel_futures=True)
        self.batcher.close()
        if self._access_log is not None:
            self._access_log.close()

    async def _warm_up(self, classifier: Classifier) -> None:
        """Try a small batch and the largest one, between two batches of requests.

        Raises:
            OutOfMemoryError: the largest one does not fit the device's memory.
        """
        most, tta = self.settings.max_batch, self.settings.tta
        await self.batcher.run(partial(try_batch, classifier, 1, tta))
        await self.batcher.run(partial(check_memory, classifier, most, tta))

    def ask_for_reload(self) -> None:
        """Have the network loaded again soon. Any thread and any signal handler may call this.

        If it is being loaded now, it is loaded once more afterwards: its file may have changed since.
        """
        if self._loop is None:
            self._reload_asked.set()
        else:
            with suppress(RuntimeError):  # the service has stopped
                self._loop.call_soon_threadsafe(self._reload_asked.set)

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            if self._source is None:
                continue
            try:
                outcome, text = await self._reload(self._source)
            except Exception as error:  # whatever fails, the old network is as good as before
                outcome = "failed"
                text = f"cannot replace the network, and still serving the old one: {_reason(error)}"
            self._reloads.labels(outcome).inc()
            with suppress(OSError):  # nobody reads the output any more
                (self._warn if outcome == "failed" else self._tell)(text)

    async def _reload(self, source: Source) -> tuple[str, str]:
        """Load the network again; if it has changed, serve it from now on.

        Requests whose pictures were decoded for the old network still get their answers from it. Its memory
        is free after the last of them.

        Returns:
            ``replaced`` or ``unchanged``, and a line that says so.

        Raises:
            ThumbnetError: the new network cannot be loaded or does not fit into memory, or clients of the old
                one would not understand its answers.
        """
        start = time.perf_counter()
        old = self.network.identity
        new = await _in_daemon_thread(partial(source.load_unless, old.digest))
        if new is None:
            return "unchanged", f"{source.path} has not changed; still serving {_shown(old)}"
        check_replaces(new.identity.info, old.info)
        await self._warm_up(new.classifier)
        if self._search is not None:  # which asks the old network
            await _end(self._search)
        identity = replace(new.identity, started=old.started)
        self.network, self.hardest = replace(new, identity=identity), None
        self._search = asyncio.create_task(self._search_hardest(self.network))
        seconds = time.perf_counter() - start
        return "replaced", f"now serving {source.path} ({_shown(identity)}), loaded in {seconds:.1f} s"

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

    async def uploads(self, request: Request) -> AsyncIterator[list[Upload]]:
        """Read the pictures of a request. The request counts towards ``max_queue`` until it is answered."""
        if self._active >= self.settings.max_queue:
            raise HTTPException(429, "the queue is full: try again", {"Retry-After": "1"})
        self._active += 1
        try:
            uploads = await self._read_uploads(request)
            request.scope[PICTURES] = len(uploads)
            yield uploads
        finally:
            self._active -= 1

    async def _read_uploads(self, request: Request) -> list[Upload]:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        multipart = kind == "multipart/form-data"
        if not (multipart or kind.startswith("image/") or kind == "application/octet-stream"):
            given = kind or "no Content-Type"
            raise HTTPException(415, f"{given}: send multipart/form-data, or a picture as image/jpeg etc.")
        advice = "send smaller or fewer pictures"
        body = await read_body(request, self.settings.max_bytes, self.settings.timeout, advice)
        if not multipart:
            return [Upload(kind, body)]
        most = self.settings.max_pictures
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
            raise HTTPException(statuses[0], "; ".join(str(error) for error in errors))
        return np.stack([one for one in results if isinstance(one, np.ndarray)])

    def _decode(self, classifier: Classifier, upload: Upload) -> np.ndarray:
        try:
            return _fit(classifier, load_picture(upload.content, upload.name, self.settings.max_pixels))
        except MemoryError:
            raise TooManyPixelsError(upload.name, "not enough memory to decode it") from None

    def explain(self, classifier: Classifier, pixels: np.ndarray, top: int) -> Explanation:
        (prediction,) = classifier.predict_pixels(pixels[None], tta=self.settings.tta)
        heat = occlusion_map(
            classifier,
            pixels,
            classifier.class_names.index(prediction.label),
            multilabel=classifier.info.multilabel,
            batch_size=self.settings.max_batch,
        )
        return Explanation(
            **_answer(prediction, top),
            picture=as_data_address(pixels),
            lit=as_data_address(highlight(pixels, heat)),
        )

    async def _search_hardest(self, network: Network) -> None:
        """Search for the hardest pictures in the background.

        The network classifies between the batches of requests, because only one thread may use it. Another
        thread reads the pictures: that may take seconds, for which no request should have to wait.
        """
        try:
            data = await _in_daemon_thread(network.load_data)
            self.hardest = [] if data is None else await self._find_hardest(network.classifier, data)
        except Exception as error:  # whatever fails, the page must not wait for the search for ever
            self._warn(f"the page offers no test pictures: {_reason(error)}")
            self.hardest = []

    async def _find_hardest(self, classifier: Classifier, data: Data) -> list[HardPicture]:
        """Find the mistakes on the split test, or else val or all; the most confident first."""
        name = next((name for name in ("test", "val", "all") if name in data.splits), None)
        if name is None or classifier.info.multilabel:  # a mistake is in one of several labels
            return []
        split, mistakes = data.splits[name], list[tuple[float, int, int]]()
        check_fits(split, data.class_names, classifier.info)
        labels = targets_for(split, data.class_names, classifier.info)
        chosen = np.random.default_rng(0).permutation(len(split))[:SEARCHED]
        size = min(SEARCHED_AT_ONCE, self.settings.max_batch)
        for start in range(0, len(chosen), size):
            part = np.sort(chosen[start : start + size])
            pictures = await _in_daemon_thread(partial(_readable, classifier, split, part))
            if not pictures:
                continue
            pixels = np.stack(list(pictures.values()))
            logits = await self.batcher.run(partial(classifier.logits, pixels, tta=self.settings.tta))
            for index, probabilities in zip(pictures, np.exp(log_softmax(logits)), strict=True):
                predicted = int(probabilities.argmax())
                if predicted != labels[index]:
                    mistakes.append((float(probabilities[predicted]), index, predicted))
        mistakes.sort(key=lambda mistake: -mistake[0])
        return await _in_daemon_thread(partial(_hard_pictures, classifier, split, labels, mistakes[:HARDEST]))


def _fit(classifier: Classifier, picture: Picture) -> np.ndarray:
    return classifier.info.preprocessing.pixels(picture)


def _readable(classifier: Classifier, split: Split, indices: np.ndarray) -> dict[int, np.ndarray]:
    """The pixels of the pictures at ``indices`` that can be read, by their indices."""
    found: dict[int, np.ndarray] = {}
    for index in indices.tolist():
        with suppress(UnreadableImageError):
            found[index] = _fit(classifier, split.load(index))
    return found


def _hard_pictures(
    classifier: Classifier, split: Split, labels: np.ndarray, mistakes: list[tuple[float, int, int]]
) -> list[HardPicture]:
    names = classifier.class_names
    return [
        HardPicture(
            # Lossless, so that the page gets the same answer when the user tries it.
            picture=as_data_address(_fit(classifier, split.load(index)), lossless=True),
            label=names[labels[index]],
            predicted=names[predicted],
            confidence=confidence,
        )
        for confidence, index, predicted in mistakes
    ]


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task, and wait until it has ended."""
    task.cancel()
    await asyncio.wait({task})


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ThumbnetError) else repr(error)


def _shown(identity: Identity) -> str:
    return "digest not known" if identity.digest is None else f"sha256:{identity.digest}"


def _status_of(error: BaseException) -> int:
    if isinstance(error, TooManyPixelsError):
        return 413
    return 415 if isinstance(error, UnknownFormatError) else 422


def _classes(prediction: Prediction, top: int) -> list[ClassProbability]:
    pairs = zip(prediction.labels[:top], prediction.probabilities[:top], strict=True)
    return [ClassProbability(name=name, probability=min(value, 1.0)) for name, value in pairs]


def _description(classifier: Classifier) -> str:
    count = len(classifier.class_names)
    if classifier.info.multilabel:
        return f"Gives each picture any number of {count} labels."
    return f"Classifies pictures as one of {count} classes."


def _answer(prediction: Prediction, top: int) -> dict[str, Any]:
    """The fields that every answer about a picture has."""
    return {
        "classes": _classes(prediction, top),
        "words": in_words(
            prediction.labels,
            prediction.probabilities,
            unlike=bool(prediction.unlike),
            found=prediction.found,
        ),
        "certainty": certainty(prediction.probability),
        "unlike": prediction.unlike,
        "unlikeness": prediction.unlikeness,
        "labels": None if prediction.found is None else list(prediction.found),
    }


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


async def _in_daemon_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread that does not keep a stopped process alive.

    asyncio.to_thread would: a service that is stopped while it loads much must not wait for it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():  # the service is stopping
            return
        if error is None:
            future.set_result(cast(T, result))
        else:
            future.set_exception(error)

    def work() -> None:
        result: T | None = None
        problem: Exception | None = None
        try:
            result = function()
        except Exception as error:
            problem = error
        with suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=work, name="load", daemon=True).start()
    return await future


def _replayed(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _describe_invalid(_: Request, error: Exception) -> JSONResponse:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    detail = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in found)
    return JSONResponse({"detail": detail}, 422)


def _takes_pictures(most: int) -> dict[str, Any]:
    """Describe the body for OpenAPI. FastAPI cannot, because we read it ourselves to enforce the limits."""
    file = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "array", "items": file, "minItems": 1, "maxItems": most}},
    }
    kinds = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "image/avif")
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    content |= {kind: {"schema": file} for kind in (*kinds, "application/octet-stream")}
    return {"requestBody": {"required": True, "content": content}}
