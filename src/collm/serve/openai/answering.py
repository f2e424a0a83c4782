"""Responses that make an answer while they are sent: whole, or piece by piece as events (SSE).

A status can only be told before the first byte, so a stream begins when something is there to send:
a cloud that cannot be reached is a 503, not a stream that breaks. What goes wrong later is an event
`{"error": …}`, and the end. A client that hangs up, or takes nothing for long, ends its answers.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from collm.serve.openai.errors import ApiError, api_error
from collm.serve.openai.guard import owner_of
from collm.serve.openai.live import Choice, Gone, Live
from collm.serve.openai.serving import Serving
from collm.session.events import Piece

_COMMENT = b": still at it\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the events together
]
dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Answering(Response, ABC):
    """A response under way; its choices are started when it is sent."""

    def __init__(self, serving: Serving, choices: Sequence[Choice], since: float) -> None:
        super().__init__()
        self.serving = serving
        self.choices = choices
        self._since = since
        self._is_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            await self.serving.start(self.choices, owner_of(scope))
            async with Live(self.choices, receive, self._since) as live:
                await self._answer(live, scope, receive, send)
        except Gone:
            return  # there is nobody to tell
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            told = api_error(error)
            if not self._is_begun:
                await told.response()(scope, receive, send)
                return
            try:
                await self._send(send, self.failure(told).encode(), last=True)
            except Gone:
                return

    def failure(self, told: ApiError) -> str:
        """What ends a stream that has begun."""
        return f"data: {dumps(told.body())}\n\n"

    @abstractmethod
    async def _answer(self, live: Live, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""

    async def _begin(self, send: Send) -> None:
        if not self._is_begun:
            self._is_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})

    async def _send(self, send: Send, data: bytes, *, last: bool = False) -> None:
        """Raises Gone where the client takes nothing."""
        try:
            async with asyncio.timeout(self.serving.limits.http_send_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": not last})
        except TimeoutError:
            raise Gone from None


class Whole(Answering):
    """All at once, at the end."""

    async def _answer(self, live: Live, scope: Scope, receive: Receive, send: Send) -> None:
        left = len(self.choices)
        while left:
            for _, event in await live.events(self.serving.limits.idle_seconds):
                if isinstance(event, Exception):
                    raise event
                left -= event is None
        await JSONResponse(self.whole())(scope, receive, send)

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The body."""


class Streamed(Answering):
    """Piece by piece; what is ready at the same time is sent together."""

    async def _answer(self, live: Live, scope: Scope, receive: Receive, send: Send) -> None:
        left = len(self.choices)
        while left:
            events = await live.events(self.serving.limits.http_quiet_seconds)
            parts: list[str] = []
            failure: Exception | None = None
            for choice, event in events:
                if isinstance(event, Exception):
                    failure = event
                    break
                left -= event is None
                self.tell(choice, event, parts)
            if failure is not None and not parts:
                raise failure
            await self._begin(send)
            await self._send(send, "".join(parts).encode() if events else _COMMENT)
            if failure is not None:
                raise failure
        await self._send(send, self.end().encode(), last=True)

    @abstractmethod
    def tell(self, choice: Choice, piece: Piece | None, parts: list[str]) -> None:
        """Add the events of a piece, or of the choice's end."""

    @abstractmethod
    def end(self) -> str:
        """The events after all others."""
