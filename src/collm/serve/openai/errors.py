"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

Clients decide by the status and by `code`; people read `message`, one line that says what was
given, what was expected and what to do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from collm.errors import (
    ArtifactError,
    CollmError,
    ContextFull,
    LinkError,
    ProtocolError,
    Refused,
    SourceError,
    UsageError,
    one_line,
)

logger = logging.getLogger(__name__)

REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="none")
"""Of the request at hand, for the log."""
INVALID = "invalid_request_error"
NO_TOOLS = "no_tools"
"""The kind of a schema's error about tools; `field` in its context is what there is of them."""
_RETRY_SECONDS = 2.0
"""Where nobody said how long to wait."""
_MOST_MESSAGE = 400
_MOST_PARAM = 100


class ApiError(HTTPException):
    """What a client is told in place of an answer.

    param: the request's field that is to blame. retry_seconds: when to try again, None for never.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        told = dict(headers or {})
        if retry_seconds is not None:
            told["Retry-After"] = str(max(1, math.ceil(retry_seconds)))
        super().__init__(status, message, told or None)
        self.message = one_line(message, _MOST_MESSAGE)
        self.kind = kind
        self.param = None if param is None else one_line(param, _MOST_PARAM)
        self.code = code

    def body(self) -> dict[str, Any]:
        """As it is sent."""
        return error_body(self.message, self.kind, self.param, self.code)

    def response(self) -> Response:
        """The whole response."""
        return JSONResponse(self.body(), self.status_code, self.headers)


FAILED = ApiError(
    500, "the server failed; its log says why", kind="server_error", code="server_error"
)


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The one shape of all errors."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def unsupported(param: str, why: str) -> ApiError:
    """A parameter that would change the text, and that there is not."""
    return ApiError(400, f"{param}: {why}", param=param, code="unsupported_parameter")


def api_error(error: BaseException) -> ApiError:
    """What a client is told about `error`, whatever raised it; bad input is never a 5xx."""
    match error:
        case ApiError():
            return error
        case ContextFull():
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        case ArtifactError() | SourceError():  # the server's own files: not the client's doing
            log_error(error)
            return ApiError(500, str(error), kind="server_error", code="artifact_error")
        case UsageError():
            return ApiError(400, str(error), code="invalid_value")
        case Refused():
            wait = error.retry_seconds or _RETRY_SECONDS
            return _away(f"the cloud refuses: {error.reason}", wait)
        case LinkError():
            return _away(str(error), _RETRY_SECONDS)
        case ProtocolError():
            log_error(error)
            return ApiError(502, str(error), kind="server_error", code="cloud_protocol")
        case CollmError():
            log_error(error)
            return ApiError(500, str(error), kind="server_error", code="server_error")
        case _:
            log_failure(error)
            return FAILED


def log_error(error: CollmError) -> None:
    """A line in the log, whoever's words are in it."""
    logger.error("%s (request %s)", one_line(error, _MOST_MESSAGE), REQUEST_ID.get())


def log_failure(error: BaseException) -> None:
    """What nobody expected, and where it was."""
    logger.error("an answer failed (request %s)", REQUEST_ID.get(), exc_info=error)


def busy(error: Refused) -> ApiError:
    """Too many answers are under way here."""
    wait = error.retry_seconds or _RETRY_SECONDS
    return ApiError(
        429, error.reason, kind="rate_limit_error", code="rate_limit_exceeded", retry_seconds=wait
    )


def _away(why: str, wait: float) -> ApiError:
    return ApiError(
        503, why, kind="server_error", code="cloud_unavailable", retry_seconds=max(wait, 1.0)
    )


# ------------------------------------------------------------------- handlers of the application


async def on_http_error(request: Request, error: Exception) -> Response:
    """Our own errors, and those of routing: unknown paths and methods."""
    if isinstance(error, ApiError):
        return error.response()
    assert isinstance(error, HTTPException)
    where = f"{request.method} {one_line(request.scope['path'], 100)}"
    said, code = error.detail, None
    if error.status_code == 404:
        said, code = f"{where}: there is no such address; see /openapi.json", "not_found"
    elif error.status_code == 405:
        said, code = f"{where}: this address does not take {request.method}", "method_not_allowed"
    return ApiError(error.status_code, said, code=code, headers=error.headers).response()


async def on_invalid_request(_request: Request, error: Exception) -> Response:
    """A body that is not what the schema says: 400, and the first thing that is wrong."""
    assert isinstance(error, RequestValidationError)
    return invalid_request(error.errors()).response()


async def on_failure(_request: Request, error: Exception) -> Response:
    """Our own errors besides those."""
    return api_error(error).response()


async def on_surprise(_request: Request, _error: Exception) -> Response:
    """Whatever else was raised; it is raised on, and logged by `outermost`."""
    return FAILED.response()


def invalid_request(found: Any) -> ApiError:
    """One line about pydantic's list of errors."""
    # Of a field that may be one of several things, the branch that got furthest is what was meant.
    worst = max(
        found,
        key=lambda one: (
            one["type"] == NO_TOOLS, len(one["loc"]), not one["type"].endswith("_type")
        ),
    )  # fmt: skip
    kind, said = worst["type"], str(worst["msg"])
    path = [str(part) for part in worst["loc"] if _is_field(part)]
    if kind == "extra_forbidden":  # the last part is the client's own word, whatever it is
        path = [str(part) for part in worst["loc"][:-1] if _is_field(part)]
        path.append(str(worst["loc"][-1]))
    elif kind == NO_TOOLS:
        path.append(worst["ctx"]["field"])
    if path[:1] == ["body"]:
        del path[0]
    param = ".".join(path) if path else None
    code = "invalid_value"
    if kind == "missing" and param is None:
        said = "the request has no body; expected a JSON object"
    elif kind == "missing":
        said, code = f"{param} is missing", "missing_required_parameter"
    elif kind == "extra_forbidden":
        said, code = f"{_shown(path)}: there is no such parameter", "unknown_parameter"
        if path[0] == "collm":
            said += f"; expected one of {', '.join(_collm_names())}"
    elif kind == NO_TOOLS:
        said, code = f"{param}: {said}", "unsupported_value"
    elif kind == "literal_error" and len(path) > 2 and path[-1] == "type" and "content" in path:
        said = f"{param}: parts of type {worst['input']!r} cannot be read; expected text only"
        code = "unsupported_value"
    elif kind == "literal_error" and path[:1] == ["input"] and path[-1:] == ["type"]:
        said = f"{param}: items of type {worst['input']!r} cannot be read; expected messages only"
        code = "unsupported_value"
    elif kind == "literal_error" and path[-1:] == ["role"]:
        said = f"{param}: role {worst['input']!r}; {_lower(said)}"
        code = "unsupported_value"
    else:
        said = f"{param or 'the request'}: {_lower(said)}"
    return ApiError(400, said, param=param, code=code)


def _shown(path: list[str]) -> str:
    """A parameter's name, in quotes where it is odd."""
    name = ".".join(path)
    return name if all(part.isidentifier() or part.isdecimal() for part in path) else repr(name)


def _lower(said: str) -> str:
    said = said.removeprefix("Value error, ")
    return said[:1].lower() + said[1:]


def _is_field(part: object) -> bool:
    """Pydantic also names the branches of unions, such as `list[str]` or `ContentPart`."""
    if isinstance(part, int):
        return True
    name = str(part)
    branches = ("str", "int", "float", "bool", "dict", "none")
    return name.isidentifier() and name.islower() and name not in branches


def _collm_names() -> list[str]:
    from collm.serve.openai.schemas import CollmOptions

    return list(CollmOptions.model_fields)
