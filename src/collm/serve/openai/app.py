"""The application: its routes, and what stands before them.

::

    POST /v1/chat/completions  /v1/completions  /v1/responses     answers, whole or as events
    GET  /v1/models             GET  /v1/models/{id}
    GET  /healthz  /readyz  /metrics  /collm/status  /openapi.json
    GET  /  and /page/…                                    the chat page

HEAD is answered where GET is. Not covered: embeddings, assistants, files, images, audio; tools are
refused with a reason.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from collm import __version__
from collm.errors import CollmError
from collm.metrics import REGISTRY
from collm.serve.openai.body import JsonRoute
from collm.serve.openai.chat import chat_response
from collm.serve.openai.completions import completion_response
from collm.serve.openai.document import ASKING, LOOKING, document, errors, events
from collm.serve.openai.errors import on_failure, on_http_error, on_invalid_request, on_surprise
from collm.serve.openai.guard import Guard
from collm.serve.openai.health import check_ready, status_json
from collm.serve.openai.outermost import Outermost
from collm.serve.openai.page import Page
from collm.serve.openai.responses import response_response
from collm.serve.openai.responses_schema import ResponseRequest
from collm.serve.openai.responses_shapes import ResponseEvent, TextResponse
from collm.serve.openai.schemas import ChatCompletionRequest, CompletionRequest
from collm.serve.openai.serving import Serving
from collm.serve.openai.shapes import (
    ChatChunk,
    ChatCompletion,
    Health,
    ModelInfo,
    ModelList,
    Status,
    TextChunk,
    TextCompletion,
)

_ABOUT = (
    "A language model shared between this device and a cloud, token by token. OpenAI's API, and "
    "under the key `collm` where each token was made and what the answer took."
)


class Application(FastAPI):
    """FastAPI, with a document that is true."""

    def __init__(self, serving: Serving) -> None:
        super().__init__(
            title="CoLLM",
            version=__version__,
            description=_ABOUT,
            docs_url=None,  # they would load scripts from elsewhere
            redoc_url=None,
            redirect_slashes=False,
        )
        self._has_keys = serving.keys is not None
        routers = (_answers(serving), _models(serving), _health(serving))
        self.paths = frozenset(
            route.path
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute)
        )
        """The addresses of the API."""
        for router in routers:
            self.include_router(router)
        if serving.page is not None:
            self.router.routes.extend(Page(serving.page).routes())
        self.add_exception_handler(HTTPException, on_http_error)
        self.add_exception_handler(RequestValidationError, on_invalid_request)
        self.add_exception_handler(CollmError, on_failure)
        self.add_exception_handler(Exception, on_surprise)

    def openapi(self) -> dict[str, Any]:
        """Made once."""
        if self.openapi_schema is None:
            self.openapi_schema = document(self, has_keys=self._has_keys)
        return self.openapi_schema


def make_app(serving: Serving) -> ASGIApp:
    """The application and its guards."""
    app = Application(serving)
    _ = serving.engine.tokenizer.longest_bytes  # looked for once, before anybody waits for it
    guarded: ASGIApp = Guard(app, hosts=serving.hosts, origins=serving.origins, keys=serving.keys)
    if serving.origins:
        # Outside the guard: a page has to be able to read why it is refused.
        guarded = CORSMiddleware(
            guarded,
            allow_origins=serving.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    return Outermost(guarded, app.paths, serving.limits)


def _answers(serving: Serving) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, tags=["answers"])

    @router.post(
        "/v1/chat/completions",
        responses={**events(ChatCompletion, ChatChunk), **errors(*ASKING)},
    )
    async def create_chat_completion(request: ChatCompletionRequest) -> Response:
        """Answer a conversation."""
        return await chat_response(serving, request)

    @router.post(
        "/v1/completions", responses={**events(TextCompletion, TextChunk), **errors(*ASKING)}
    )
    async def create_completion(request: CompletionRequest) -> Response:
        """Go on with a text, or with each of several."""
        return await completion_response(serving, request)

    @router.post(
        "/v1/responses", responses={**events(TextResponse, ResponseEvent), **errors(*ASKING)}
    )
    async def create_response(request: ResponseRequest) -> Response:
        """Answer a conversation, in the words of the Responses API."""
        return await response_response(serving, request)

    return router


def _models(serving: Serving) -> APIRouter:
    router = APIRouter(tags=["models"])
    model = {
        "id": serving.name,
        "object": "model",
        "created": serving.created,
        "owned_by": "collm",
    }

    @router.get("/v1/models", responses={200: {"model": ModelList}, **errors(*LOOKING)})
    async def list_models() -> Response:
        """The model that is served."""
        return JSONResponse({"object": "list", "data": [model]})

    @router.get(
        "/v1/models/{model_id:path}",
        responses={200: {"model": ModelInfo}, **errors(404, *LOOKING)},
    )
    async def retrieve_model(model_id: str) -> Response:
        """One model."""
        serving.check_model(model_id)
        return JSONResponse(model)

    return router


def _health(serving: Serving) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz", responses={200: {"model": Health}, **errors(403)})
    async def healthz() -> Response:
        """Whether the process is up."""
        return JSONResponse({"status": "ok"})

    @router.get("/readyz", responses={200: {"model": Health}, **errors(403, 503)})
    async def readyz() -> Response:
        """Whether an answer could be begun."""
        check_ready(serving)
        return JSONResponse({"status": "ok"})

    @router.get("/collm/status", responses={200: {"model": Status}, **errors(*LOOKING)})
    def status() -> Response:
        """How the server is, and who runs which layers."""
        return JSONResponse(status_json(serving))

    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {
                "description": "Figures for Prometheus",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **errors(*LOOKING),
        },
    )
    def metrics() -> Response:
        """What the process counts."""
        return Response(generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router
