"""The OpenAPI document: what FastAPI knows, and what it does not (events, our errors, keys)."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from collm.serve.openai.responses_shapes import ResponseEvent
from collm.serve.openai.shapes import ChatChunk, ErrorBody, TextChunk

_WHY = {
    400: "The request cannot be run; the message says why",
    401: "No valid API key",
    403: "Not for pages of other sites, nor under other names",
    404: "No such model, or no such address",
    405: "The address does not take this method",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "The body is no JSON",
    429: "Too many answers are under way; see Retry-After",
    500: "The server failed",
    502: "The cloud does not keep to the protocol",
    503: "The cloud is away, or the server is not ready; see Retry-After",
}
ASKING = (400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503)
"""Statuses of what makes answers, besides 200."""
LOOKING = (401, 403, 500)
"""Of what only tells."""
_REF = "#/components/schemas/{model}"


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`."""
    return {status: {"model": ErrorBody, "description": _WHY[status]} for status in statuses}


def events(whole: type[BaseModel], chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The 200 of what may be streamed, for a route's `responses`."""
    how = "`data: [DONE]` at the end; an error in the middle is `data: ErrorBody`, and the end."
    if chunk is ResponseEvent:
        how = "`event: TYPE` before each; an error in the middle is an event `error`, and the end."
    told = (
        f"With stream: true, events (SSE): lines `data: CHUNK`, a {chunk.__name__} each, a blank "
        f"line after each, {how} Lines that begin with a colon mean nothing."
    )
    event: dict[str, Any] = {
        "type": "object",
        "description": told,
        "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
        "required": ["data"],
    }
    stream = {"schema": event}  # of each event
    return {
        200: {
            "model": whole,
            "description": "The answer",
            "content": {"text/event-stream": stream},
        }
    }


def document(app: FastAPI, *, has_keys: bool) -> dict[str, Any]:
    """The document of the application's routes."""
    made = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = made["components"]["schemas"]
    for chunk in (ChatChunk, TextChunk, ResponseEvent):
        schema = chunk.model_json_schema(ref_template=_REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[chunk.__name__] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in made["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # ours are 400
            if has_keys and path not in ("/healthz", "/readyz"):
                operation["security"] = [{"key": []}]
    if has_keys:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return made
