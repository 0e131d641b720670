"""The HTTP application: routes, documents, and errors in the form of the OpenAI API."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import metadata
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from elmoe.engine.engine import Engine
from elmoe.server.errors import ApiError, from_engine
from elmoe.server.middleware import Gate, error_headers
from elmoe.server.options import ServerOptions
from elmoe.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from elmoe.server.reference import reference_page
from elmoe.server.service import Service

log = logging.getLogger("elmoe.server")
PAGE_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
REFUSALS: dict[int | str, str] = {
    400: "Something in the request is wrong or not supported; the message says what.",
    401: "An API key is needed.",
    404: "There is no such model.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to come again.",
    503: "The server is shutting down.",
    "default": "An error, in the form of the OpenAI API.",
}


def make_app(engine: Engine, options: ServerOptions) -> FastAPI:
    """The application over an engine, whose thread starts and ends with it; ``app.state.service`` is its service."""
    service = Service(engine, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        service.loop.start()
        yield
        await service.loop.stop()

    app = FastAPI(
        title="elmoe",
        version=metadata.version("elmoe"),
        description="OpenAI-compatible serving of Mixture-of-Experts models by Elastic self-speculative decoding.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere: `reference.py` needs none
        redoc_url=None,
        responses={code: {"description": text} for code, text in REFUSALS.items()},
    )
    app.state.service = service
    _add_api(app, service)
    _add_operations(app, service)
    _add_page(app)
    app.get("/docs", include_in_schema=False)(lambda: reference_page(app.openapi()))
    _add_errors(app)
    app.add_middleware(Gate, options=options)
    return app


def _add_api(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", tags=["openai"])
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        """Answer a chat."""
        return await service.chat(asked, request)

    @app.post("/v1/completions", tags=["openai"])
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Go on with a text."""
        return await service.complete(asked, request)

    def card() -> dict[str, Any]:
        shape = service.engine.backend.shape
        return {
            "id": service.options.model_name,
            "object": "model",
            "created": service.started,
            "owned_by": "elmoe",
            "max_model_len": shape.max_context,
        }

    @app.get("/v1/models", tags=["openai"])
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{name:path}", tags=["openai"])
    async def model(name: str) -> dict[str, Any]:
        """A model by its name."""
        if name != service.options.model_name:
            raise ApiError(404, f"there is no model {name!r}", "model_not_found", "model")
        return card()

    @app.post("/tokenize", tags=["text"])
    async def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        """Token ids of a text or a chat."""
        return await service.tokenize(asked)

    @app.post("/detokenize", tags=["text"])
    async def detokenize(asked: DetokenizeRequest) -> dict[str, Any]:
        """The text of token ids, special tokens spelled out."""
        return await service.detokenize(asked)


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["operations"])
    async def health() -> JSONResponse:
        """200 while requests are taken, 503 while the server drains or when its engine has failed."""
        state = "draining" if service.draining else "ok" if service.loop.alive else "failed"
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.get("/metrics", tags=["operations"])
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/elmoe/live", tags=["operations"])
    async def live() -> dict[str, Any]:
        """What the engine does now: rates, acceptance over time, the expert pool."""
        return service.live.look() | {"model": service.options.model_name}


def _add_page(app: FastAPI) -> None:
    page = files("elmoe.server") / "page"
    assets = {entry.name: entry.read_bytes() for entry in page.iterdir() if entry.name.split(".")[-1] in PAGE_TYPES}

    def served(name: str) -> Response:
        kind = PAGE_TYPES[name.rsplit(".", maxsplit=1)[-1]]
        headers = {"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
        return Response(assets[name], media_type=f"{kind}; charset=utf-8", headers=headers)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return served("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in assets:  # names, not paths: there is nothing to walk out of
            raise ApiError(404, "there is no such page", "not_found")
        return served(name)


def _add_errors(app: FastAPI) -> None:
    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error_headers(error))

    @app.exception_handler(ApiError)
    async def on_api_error(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(_first_problem(error))

    @app.exception_handler(HTTPException)
    async def on_http_error(_: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, ApiError):  # raised while the body was read
            return answer(error.__cause__)
        made = ApiError(error.status_code, str(error.detail), "http_error")
        return JSONResponse(made.body(), error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; the log shows it

    @app.exception_handler(Exception)
    async def on_fault(_: Request, error: Exception) -> JSONResponse:
        return answer(from_engine(error))


def _first_problem(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a document, by its path."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"] if part != "body")
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"{where} is not a field that this server knows; leave it out", "unknown_field", where)
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {problem['ctx'].get('error', '')}", "invalid_json")
    return ApiError(400, f"{where}: {problem['msg']}" if where else problem["msg"], "invalid_value", where or None)
