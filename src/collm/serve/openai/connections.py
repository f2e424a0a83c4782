"""Connections: how many there are, and how long one may ask nothing or take nothing.

Who connects when there are too many takes the place of whoever has been quiet longest, so that idle
clients keep nobody out. Only where all are at work is a request refused.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, ClassVar

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from collm.limits import DEFAULT_LIMITS, Limits
from collm.serve.openai.errors import ApiError

PROBES = ("/healthz", "/readyz")


class Connection(HttpToolsProtocol):
    """uvicorn's, with deadlines and a bound."""

    limits: ClassVar[Limits] = DEFAULT_LIMITS

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        self._header_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._quiet_since = 0.0
        self._is_evicted = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As ever, where there is room."""
        super().connection_made(transport)
        self._quiet_since = self.loop.time()
        self._wait_for_header()
        if len(self.connections) > self.limits.max_http_connections and not self._has_evicted():
            self.app = partial(_refuse, self.app, self.limits.retry_seconds)

    def data_received(self, data: bytes) -> None:
        """As ever; a header that has begun has to end."""
        super().data_received(data)
        self._wait_for_header()

    def on_response_complete(self) -> None:
        """As ever."""
        super().on_response_complete()
        self._quiet_since = self.loop.time()

    def pause_writing(self) -> None:
        """The client takes nothing; it has some time to."""
        super().pause_writing()
        if self._send_timer is None:
            seconds = self.limits.http_send_seconds
            self._send_timer = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        _end(self._send_timer)
        self._send_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """As ever."""
        _end(self._header_timer)
        self._header_timer = None
        _end(self._send_timer)
        self._send_timer = None
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Of what is no HTTP, in the one shape of all errors."""
        body = bytes(ApiError(400, msg, code="invalid_http").response().body)
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()

    def _wait_for_header(self) -> None:
        """Until a request is under way; the time does not begin anew with each byte."""
        cycle = self._latest()
        if cycle is not None and not cycle.response_complete:
            _end(self._header_timer)
            self._header_timer = None
        elif self._header_timer is None and not self.transport.is_closing():
            seconds = self.limits.http_header_seconds
            self._header_timer = self.loop.call_later(seconds, self.transport.abort)

    def _latest(self) -> RequestResponseCycle | None:
        """The latest request and its answer, if there was any."""
        return self.cycle

    def _has_evicted(self) -> bool:
        """Whether another connection could be closed for this one."""
        quiet = [
            one
            for one in self.connections
            if isinstance(one, Connection) and one is not self and one._may_go()
        ]
        if not quiet:
            return False
        oldest = min(quiet, key=lambda one: one._quiet_since)
        oldest._is_evicted = True
        oldest.transport.abort()  # `close` would wait for it, over TLS
        return True

    def _may_go(self) -> bool:
        """No whole request is being answered."""
        cycle = self._latest()
        is_at_work = cycle is not None and not cycle.response_complete and not cycle.more_body
        return not self._is_evicted and (self.transport.is_closing() or not is_at_work)


def connections(bounds: Limits) -> type[Connection]:
    """What uvicorn makes of each connection."""

    class Bounded(Connection):
        limits = bounds

    return Bounded


async def _refuse(app: ASGIApp, seconds: float, scope: Scope, receive: Receive, send: Send) -> None:
    """Say that all connections are at work; probes are answered nevertheless."""
    if scope["path"] in PROBES:
        await app(scope, receive, send)
        return
    error = ApiError(
        503,
        "too many requests are under way; try again",
        kind="server_error",
        code="busy",
        retry_seconds=seconds,
        headers={"Connection": "close"},
    )
    await error.response()(scope, receive, send)


def _end(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
