"""The service's endpoints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from ddpm.conditioning.columns import NAMES, PICTURE_NAMES, Column
from ddpm.diffusion.plans import SamplingPlan
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.drawer import refuse_without_mask
from ddpm.errors import NotFiniteError, first_complaint
from ddpm.serve.alike import like_columns
from ddpm.serve.answers import MEDIA_TYPES, encode, formats
from ddpm.serve.batching import Batcher, QueueFullError
from ddpm.serve.metrics import Metrics
from ddpm.serve.middleware import CLIENT_LEFT, ClientLeftError, Envelope
from ddpm.serve.models import Choice, ModelKeeper, ServedModel
from ddpm.serve.reference import reference_page
from ddpm.serve.schemas import EXAMPLES, ColumnCard, Drawn, Format, ImageRequest, Limits, ModelCard, Problem, State
from ddpm.serve.settings import Settings
from ddpm.version import __version__

_DESCRIPTION = """\
Images from a diffusion model. Requests that follow the same sampling plan are drawn together; each gets what it would
get alone. Refusals say why in one line: 400 and 422 for what is asked, 408 and 413 for how it was sent, 429 when too
many wait, 500 when the model draws NaN, 503 when there is no model or the service is stopping, 504 when it took too
long.
"""

_REFUSALS = {
    400: "The body is not JSON.",
    408: "The body took too long to arrive.",
    413: "The body is too long.",
    415: "The body is not said to be JSON.",
    422: "A value that cannot be: which, what was found, what is expected.",
    500: "The model draws NaN or infinite values, or the service failed.",
    429: "Too many requests wait; `Retry-After` says how many seconds to.",
    503: "No model is loaded, or the service is stopping.",
    504: "The images were not drawn in time.",
}

# The page is whole in itself: it may ask this service, and nobody else.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
)


class Service:
    """The application and the parts it is made of."""

    def __init__(
        self, model: str, settings: Settings, *, on_failure: Callable[[Exception], object] = lambda error: None
    ) -> None:
        """
        Args:
            model: a deploy directory or an MLflow URI.
            settings: the bounds.
            on_failure: called, from any thread, with what keeps the service from serving.
        """
        self.settings = settings
        self._on_failure = on_failure
        self.metrics = Metrics()
        self.keeper = ModelKeeper(
            model,
            self.metrics,
            threads=settings.threads,
            precision=settings.precision,
            poll=settings.poll,
            on_failure=on_failure,
        )
        self.batcher = Batcher(
            self.metrics,
            batch_size=settings.batch_size,
            window=settings.window,
            queue=settings.queue,
            queue_bytes=settings.queue_bytes,
        )
        routes = _application(self)
        self.envelope = Envelope(
            routes, self.metrics, settings, frozenset(getattr(route, "path", "") for route in routes.routes)
        )
        self.stopping = False

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Load and draw, from the application's start to its end."""
        self.keeper.start()
        drawing = asyncio.create_task(self.batcher.run())
        drawing.add_done_callback(self._stopped_drawing)
        yield
        self.keeper.stop()
        drawing.cancel()

    def _stopped_drawing(self, drawing: asyncio.Task[None]) -> None:
        """A service that cannot draw any more shall not look as if it could."""
        if not drawing.cancelled() and isinstance(error := drawing.exception(), Exception):
            self._on_failure(error)

    def stop(self) -> None:
        """Accept no more; what was accepted goes on."""
        self.stopping = self.envelope.closing = True

    def abandon(self) -> None:
        """Refuse what was accepted and is not done."""
        self.batcher.abandon(_unavailable("the service is stopping, and could not wait for these images"))

    def model(self) -> ServedModel:
        """The model for a request that comes now."""
        if self.stopping:
            raise _unavailable("the service is stopping")
        if self.keeper.current is None:
            raise _unavailable("the model is being loaded")
        return self.keeper.current

    def most_images(self, model: ServedModel) -> int:
        """What one request may ask of this model: as many as are allowed and as fit into the bytes that are."""
        return max(1, min(self.settings.max_images, self.settings.max_bytes // model.datum_bytes))

    def accept(self, asked: ImageRequest, model: ServedModel) -> tuple[Format, Choice, SamplingPlan, dict[str, Any]]:
        """What a request comes to, with this model: the last is what it asks of the model's columns.

        Pictures are decoded and the plan is built, which takes time: not for the event loop.

        Raises:
            HTTPException: more than the model or the service will do.
        """
        codec = model.sampler.codec
        most_images = self.most_images(model)
        possible = formats(codec)
        form = asked.format or possible[0]
        if form not in possible:
            expected = " or ".join(sorted(possible, reverse=True))
            raise HTTPException(422, f"`format`: this model draws {codec.name}, expected {expected}, found '{form}'")
        if asked.count > most_images:
            raise HTTPException(422, f"`{asked.counted_by}` must be at most {most_images}, found {asked.count}")
        choice = model.choice(
            asked.sampler,
            asked.steps,
            asked.eta,
            asked.guidance_scale,
            asked.guidance_interval,
            inpainting=asked.inpainting,
            resamples=asked.resamples,
            jump=asked.jump,
            control_scale=asked.control_scale,
            control_interval=asked.control_interval,
            guess=asked.guess,
        )
        try:
            refuse_without_mask(choice.inpainting, dict(asked))
            least = model.least_evaluations(choice)
            self._refuse_costly(asked, least, str(least))  # before the plan, which takes time and memory
            plan = model.plan(choice)
            self._refuse_costly(asked, model.sampler.evaluations(plan), _evaluations(model, plan))
            values = asked.given(model.sampler)
            model.sampler.given(1, **values)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return form, choice, plan, values

    def _refuse_costly(self, asked: ImageRequest, evaluations: int, named: str) -> None:
        """
        Args:
            evaluations: of networks, for an image.
            named: the same as the refusal says it.
        """
        most = self.settings.max_evaluations
        if asked.count * evaluations > most:
            raise HTTPException(
                422, f"`{asked.counted_by}` × `steps` must be at most {most}, found {asked.count} × {named}"
            )


def _evaluations(model: ServedModel, plan: SamplingPlan) -> str:
    """The evaluations of an image, and what they are for."""
    _, *others = model.sampler.plans(plan).items()
    if others:
        return " + ".join([f"({plan.evaluations}", *(f"{own.evaluations} of the {name}" for name, own in others)]) + ")"
    guided = int(np.count_nonzero(plan.column("guidance")))
    steps = plan.evaluations - guided
    return f"({steps} + {guided} with guidance)" if guided else str(steps)


def _application(service: Service) -> FastAPI:
    app = FastAPI(
        title="ddpm",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=service.running,
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere
        redoc_url=None,
        # What the process does is in /metrics and the log alone.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.add_exception_handler(HTTPException, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(ClientLeftError, _on_departure)
    app.add_exception_handler(NotFiniteError, _on_not_finite)
    app.add_exception_handler(Exception, _on_fault)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        html = resources.files(__package__).joinpath("index.html").read_text(encoding="utf-8")
        return HTMLResponse(html, headers={"Content-Security-Policy": _PAGE_POLICY})

    @app.get("/docs", include_in_schema=False)
    async def reference() -> HTMLResponse:
        return HTMLResponse(reference_page(app.openapi()), headers={"Content-Security-Policy": _PAGE_POLICY})

    @app.post(
        "/v1/images",
        summary="Draw images",
        response_class=Response,
        responses={
            200: {
                "description": "The images. `X-Model` names the version that drew them.",
                "content": {
                    "image/png": {},
                    "application/octet-stream": {},
                    "application/json": {"schema": {"$ref": "#/components/schemas/Drawn"}},
                },
            },
            **{status: {"model": Problem, "description": text} for status, text in _REFUSALS.items()},
        },
    )
    async def images(asked: Annotated[ImageRequest, Body(openapi_examples=EXAMPLES)], request: Request) -> Response:
        model = service.model()
        form, choice, plan, values = await asyncio.to_thread(service.accept, asked, model)
        request.state.notes.update(
            n=asked.count,
            steps=len(plan),
            sampler=choice.sampler,
            guidance_scale=choice.guidance_scale,
            model=model.name,
        )
        try:
            drawing = service.batcher.submit(
                model, choice, plan, seed=asked.seed, count=asked.count, asked=values, one_noise=asked.one_noise
            )
        except QueueFullError as full:
            raise HTTPException(429, "too many requests wait", headers={"Retry-After": str(full.retry_after)}) from None
        data = await _drawn(drawing, request, service.settings.timeout)
        content = await asyncio.to_thread(encode, data, form, model, choice, asked, values)
        return Response(content, media_type=MEDIA_TYPES[form], headers={"X-Model": quote(model.name, safe=":/@")})

    @app.get("/v1/model", summary="What is served", responses={503: {"model": Problem}})
    async def model_card() -> ModelCard:
        model = service.model()
        kind = model.sampler.codec
        return ModelCard(
            model=model.name,
            kind=kind.name,
            shape=list(kind.shape),
            timesteps=max(model.sampler.choices[0]["timesteps"], model.sampler.choices[1]["steps"]),
            sampling=model.sampling,
            samplers=list(SAMPLERS),
            classes=None if model.classes is None else list(model.classes),
            columns=[ColumnCard.of(each) for each in _columns(model)],
            attribution=model.sampler.attribution,
            guidable=model.sampler.guidable,
            unguided_scale=model.sampler.unguided_scale,
            limits=Limits(max_images=service.most_images(model), max_evaluations=service.settings.max_evaluations),
        )

    @app.get("/health", summary="Whether the process is alive")
    async def health() -> State:
        return State(status="alive")

    @app.get("/ready", summary="Whether requests are taken", responses={503: {"model": Problem}})
    async def ready() -> State:
        service.model()
        return State(status="ready")

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    _describe_answer(app)
    return app


def _columns(model: ServedModel) -> list[Column]:
    """What a request may ask for beside the sampling plan."""
    own = [each for each in model.sampler.askable if each.name in (*NAMES, *PICTURE_NAMES)]
    return [*own, *like_columns(model.sampler)]


def _describe_answer(app: FastAPI) -> None:
    """Add the schema of the JSON answer, which is written without FastAPI's help, to the OpenAPI document."""
    document = app.openapi()
    schema = Drawn.model_json_schema(ref_template="#/components/schemas/{model}")
    document["components"]["schemas"]["Drawn"] = schema


async def _drawn(drawing: asyncio.Future[NDArray[Any]], request: Request, seconds: float) -> NDArray[Any]:
    """The images, unless the client leaves or time runs out: then nobody draws them any more."""
    departure: asyncio.Future[None] = asyncio.create_task(_departure(request))
    ends: list[asyncio.Future[Any]] = [drawing, departure]
    try:
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if drawing.done():
            return drawing.result()
        if departure.done():
            raise ClientLeftError
        raise HTTPException(504, f"not drawn within {seconds:g} s")
    finally:
        departure.cancel()
        drawing.cancel()


async def _departure(request: Request) -> None:
    """Return when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unavailable(reason: str) -> HTTPException:
    return HTTPException(503, reason, headers={"Retry-After": "1"})


async def _on_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _problem(request, error.status_code, error.detail, error.headers)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    """The first thing wrong with a body, in one line."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _problem(request, 400, f"the body is not JSON: {first['ctx']['error']}")
    if isinstance(error.body, bytes):
        return _problem(request, 415, "expected JSON, and the header `Content-Type: application/json`")
    if first["loc"] == ("body",):
        return _problem(request, 422, 'expected a JSON object, such as {"n": 4}')
    return _problem(request, 422, first_complaint([{**each, "loc": each["loc"][1:]} for each in error.errors()]))


async def _on_not_finite(request: Request, error: Exception) -> JSONResponse:
    """The model's fault, which goes to the client and to the log."""
    request.state.notes["reason"] = str(error)
    return _problem(request, 500, str(error))


async def _on_departure(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    """What happened is nobody's business out there; starlette passes the error on to the log."""
    return _problem(request, 500, "the service failed; its log says why, under this request's identifier")


def _problem(request: Request, status: int, reason: str, headers: Any = None) -> JSONResponse:
    line = " ".join(reason.split())[:300]
    return JSONResponse({"detail": line, "request_id": request.state.request_id}, status, headers=headers)
