"""Request bodies: bounded before they are read, and JSON that cannot hurt what reads it on.

Refused with 400: bytes that are no UTF-8, NaN and infinities, numbers of thousands of digits, text
with half a surrogate pair, nesting that would exhaust a stack, and so many values that reading them
would hold everybody up.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from collm.limits import DEFAULT_LIMITS
from collm.serve.openai.errors import ApiError

_MOST_DEPTH = 64
_MOST_ENTRIES = 1024
_MOST_NESTS = 2**16
"""Lists and objects in a body; a chat has a few for each turn."""
_MOST_VALUES = 2**19
"""Values in a body: token ids, mostly."""
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
"""Of JSON. It takes what has no end too, so that it never looks at a byte twice."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonRequest(Request):
    """A request whose body is JSON, and not too much of it. Raises ApiError."""

    async def body(self) -> bytes:
        """The bytes, at most `max_http_body_bytes` of them, within a deadline."""
        if not hasattr(self, "_body"):
            self._check_type()
            most = DEFAULT_LIMITS.max_http_body_bytes
            said = self.headers.get("content-length", "")
            if said.isdecimal() and int(said[:20]) > most:
                raise _too_large(most)
            try:
                async with asyncio.timeout(DEFAULT_LIMITS.http_body_seconds):
                    self._body = await self._read(most)
            except TimeoutError:
                raise ApiError(
                    408,
                    f"the body did not come within {DEFAULT_LIMITS.http_body_seconds:g} s",
                    code="request_timeout",
                ) from None
        return self._body

    async def json(self) -> Any:
        """The body, read as JSON."""
        return read_json(await self.body())

    async def _read(self, most: int) -> bytes:
        parts, size = [], 0
        try:
            async for part in self.stream():
                size += len(part)
                if size > most:
                    raise _too_large(most)
                parts.append(part)
        except ClientDisconnect:
            raise ApiError(400, "the body ended before its end", code="incomplete_body") from None
        return b"".join(parts)

    def _check_type(self) -> None:
        """A form of another site can send text/plain without asking; it cannot send JSON."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415,
                f"Content-Type {kind!r}: expected application/json",
                code="unsupported_media_type",
            )


class JsonRoute(APIRoute):
    """A route whose requests are JsonRequests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As APIRoute does."""
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await inner(JsonRequest(request.scope, request.receive))

        return handler


def read_json(data: bytes) -> Any:
    """What the bytes say. Raises ApiError."""
    try:
        text = data.decode("utf-8")
        _check_count(data)
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        check_size(value)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(f"byte {error.start} is no UTF-8") from None
    except UnicodeEncodeError:
        raise _bad("a string has half a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise _bad(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _bad(f"nested more than {_MOST_DEPTH} deep") from None
    except ValueError as error:  # a number of thousands of digits, NaN
        raise _bad(str(error).partition(";")[0]) from None
    return value


def check_size(value: Any) -> None:
    """Raises ApiError where objects and lists are nested too deep, or an object is too large.

    A schema's check of an object makes an error for each of its entries, which takes memory.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MOST_DEPTH):
        if not level:
            return
        if any(len(one) > _MOST_ENTRIES for one in level if isinstance(one, dict)):
            raise _bad(f"an object of more than {_MOST_ENTRIES} entries")
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    raise _bad(f"nested more than {_MOST_DEPTH} deep")


def _check_count(data: bytes) -> None:
    """Raises ApiError for too many values, before they are made."""

    def counts(found: bytes) -> tuple[int, int]:
        return found.count(b"[") + found.count(b"{"), found.count(b",") + 1

    nests, values = counts(data)
    if nests > _MOST_NESTS or values > _MOST_VALUES:  # or is that in a text?
        nests, values = counts(_STRING.sub(b"", data))
    if nests > _MOST_NESTS:
        raise _bad(f"more than {_MOST_NESTS} lists and objects")
    if values > _MOST_VALUES:
        raise _bad(f"more than {_MOST_VALUES} values")


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"the number {word[:40]} is too large")
    return value


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _bad(why: str) -> ApiError:
    return ApiError(400, f"the body is not usable JSON: {why}", code="invalid_json")


def _too_large(most: int) -> ApiError:
    return ApiError(
        413,
        f"the body has more than {most} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )
