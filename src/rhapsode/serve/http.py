"""The application: which path is answered by whom, and how what is wrong is said."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from rhapsode import __version__
from rhapsode.progress import say
from rhapsode.serve import schemas
from rhapsode.serve.completions import Patience, TextsResponse, ignored_header, refusal_response
from rhapsode.serve.described import description_page
from rhapsode.serve.driver import Driver
from rhapsode.serve.failures import Refusal, failure_body
from rhapsode.serve.inspecting import Inspector
from rhapsode.serve.metrics import Meters
from rhapsode.serve.models import ServedModels
from rhapsode.serve.runs import model_entry, models_list, run_details, runs_list
from rhapsode.serve.tokens import detokenize, tokenize, tokenizer_info
from rhapsode.serve.wanted import Wanted, chat_wanted, completion_wanted

ABOUT = """Texts continued, scored and looked into by small recurrent language models. The paths below /v1 have the
shapes of OpenAI's API; chat is raw continuation: the texts of the messages, joined by line ends, are continued."""
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
PAGE_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
}
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.FailureAnswer, "description": text}
    for status, text in {
        400: "Something in the request cannot be.",
        401: "The API key is missing or wrong.",
        404: "There is no such model.",
        413: "The body is too large.",
        415: "The body is not declared as JSON.",
        421: "The server is called by a name that it does not know.",
        429: "The queue is full; Retry-After says when to ask again.",
        500: "The model failed.",
        503: "No room for too long, or the server is shutting down.",
    }.items()
}


@dataclass(frozen=True)
class Service:
    """What the paths are answered with."""

    models: ServedModels
    driver: Driver
    meters: Meters
    patience: Patience
    log_prompts: bool = False
    is_closing: Callable[[], bool] = lambda: False


def build_app(service: Service) -> FastAPI:
    """The application, without what stands before it (security.py)."""
    app = FastAPI(
        title="Rhapsode",
        version=__version__,
        description=ABOUT,
        docs_url=None,  # FastAPI's pages would fetch their scripts from a network
        redoc_url=None,
        redirect_slashes=False,
        responses=FAILURES,
        separate_input_output_schemas=False,
    )
    _add_failures(app)
    _add_completions(app, service)
    _add_tokenizer(app, service)
    _add_looking(app, service)
    _add_state(app, service)
    _add_pages(app)
    return app


def _add_failures(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return refusal_response(_refusal_of(error))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, Refusal):
            return refusal_response(error)
        message = f"there is nothing at {request.url.path}" if error.status_code == 404 else str(error.detail)
        if error.status_code == 405:
            message = f"{request.url.path} does not answer to {request.method}"
        return JSONResponse(failure_body(error.status_code, message), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        say(f"{request.url.path}: {type(error).__name__} at {where}")  # its message may hold a part of a text
        return JSONResponse(failure_body(500, f"the server failed: {type(error).__name__}"), 500)


def _refusal_of(error: RequestValidationError) -> Refusal:
    """The first thing that is wrong with a request, in one sentence."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is not valid JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    if not place:
        return Refusal(400, "the body must be a JSON object, sent with the header Content-Type: application/json")
    param = ".".join(place)
    if first["type"] == "missing":
        return Refusal(400, f"{param} is missing", param)
    given = ascii(first["input"])
    return Refusal(
        400, f"{param}: {first['msg'].lower()}, got {given if len(given) < 80 else given[:77] + '...'}", param
    )


def _add_completions(app: FastAPI, service: Service) -> None:
    answers: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {}}, "description": "Whole, or with stream: true chunk by chunk."}
    }

    async def texts(asked: Any, wanted: Callable[..., Wanted]) -> Response:
        served = service.models.find(asked.model)
        model = await service.models.use(served)
        most = service.driver.most_texts(model)
        read = await asyncio.to_thread(wanted, asked, model.model.tokenizer, service.models.max_context, most)
        return TextsResponse(read, served.name, model, service.driver, service.patience, service.log_prompts)

    @app.post("/v1/completions", response_model=schemas.CompletionAnswer, responses=answers, tags=["texts"])
    async def completions(asked: schemas.CompletionQuestion) -> Response:
        """Continues prompts, or scores them (echo, logprobs, max_tokens 0)."""
        return await texts(asked, completion_wanted)

    @app.post("/v1/chat/completions", response_model=schemas.ChatAnswer, responses=answers, tags=["texts"])
    async def chat_completions(asked: schemas.ChatQuestion) -> Response:
        """Continues the texts of the messages, joined by line ends."""
        return await texts(asked, chat_wanted)

    @app.get("/v1/models", tags=["models"])
    def list_models() -> dict[str, Any]:
        """The runs that are served."""
        return models_list(service.models)

    @app.get("/v1/models/{name:path}", tags=["models"])
    def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        return model_entry(service.models.find(name), service.models.max_context)


def _add_tokenizer(app: FastAPI, service: Service) -> None:
    models = service.models

    async def tokenize_text(asked: schemas.TokenizeQuestion) -> Response:
        """The token ids of a text."""
        ignored = asked.ignored()
        loaded = await models.use(models.find(asked.model))
        found = await asyncio.to_thread(tokenize, loaded.model.tokenizer, asked.prompt, models.max_context)
        return JSONResponse(found, headers=ignored_header(ignored))

    async def detokenize_ids(asked: schemas.DetokenizeQuestion) -> Response:
        """The text of token ids."""
        ignored = asked.ignored()
        loaded = await models.use(models.find(asked.model))
        return JSONResponse(detokenize(loaded.model.tokenizer, asked.tokens), headers=ignored_header(ignored))

    async def about_tokenizer(model: str | None = None) -> dict[str, Any]:
        """What a client wants to know of the tokenizer."""
        loaded = await models.use(models.find(model))
        return tokenizer_info(loaded.model.tokenizer, models.max_context)

    for prefix in ("", "/v1"):
        shown = {"tags": ["tokenizer"], "include_in_schema": True}
        app.post(f"{prefix}/tokenize", **shown)(tokenize_text)  # type: ignore[arg-type]
        app.post(f"{prefix}/detokenize", **shown)(detokenize_ids)  # type: ignore[arg-type]
        app.get(f"{prefix}/tokenizer_info", **shown)(about_tokenizer)  # type: ignore[arg-type]


def _add_looking(app: FastAPI, service: Service) -> None:
    inspector = Inspector(service.driver, service.models)

    @app.post("/api/inspect", tags=["looking"])
    async def inspect(asked: schemas.InspectQuestion) -> Response:
        """What the model does with a text: surprise, attention, hidden states, what it expects, and the truth."""
        ignored = asked.ignored()
        served = service.models.find(asked.model)
        loaded = await service.models.use(served)
        found = await inspector.inspect(asked, served, loaded)
        return JSONResponse(found, headers=ignored_header(ignored))

    @app.get("/api/runs", tags=["looking"])
    def list_runs() -> dict[str, Any]:
        """The runs that are served, and how good they are."""
        return runs_list(service.models)

    @app.get("/api/runs/{name:path}", tags=["looking"])
    def one_run(name: str, after: int = 0) -> dict[str, Any]:
        """One of them: config, parameters, and the metrics from line `after` on, live while it trains."""
        return run_details(service.models.find(name), max(0, after))


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["state"])
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["state"])
    async def readyz() -> dict[str, str]:
        """Requests are admitted."""
        if service.is_closing():
            raise Refusal(503, "this server is shutting down", code="closing")
        return {"status": "ok"}

    @app.get("/metrics", tags=["state"], response_class=Response)
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        texts = [(job.unended, min(job.begun, job.unended)) for job in service.driver.jobs]
        service.meters.running.set(sum(begun for _, begun in texts))
        service.meters.waiting.set(sum(unended - begun for unended, begun in texts))
        service.meters.models.set(service.models.in_memory)
        return Response(service.meters.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_pages(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(description_page(app.openapi()))

    folder = files("rhapsode.serve") / "page"
    names = {each.name for each in folder.iterdir()}

    def page_file(name: str) -> Response:
        kind = PAGE_TYPES.get(name.rpartition(".")[2])
        if kind is None or name not in names:
            raise Refusal(404, f"there is no page {name[:80]!r}")
        return Response((folder / name).read_bytes(), media_type=kind, headers=PAGE_HEADERS)

    @app.get("/", include_in_schema=False)
    def first_page() -> Response:
        return page_file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    def page(name: str) -> Response:
        return page_file(name)
