"""Around everything else: a request's id, what is counted of it, room, an answer whatever happens.

A question takes room once its body has come: who sends half of it keeps nobody out. HEAD is GET
without a body.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from collm import metrics
from collm.errors import Refused
from collm.limits import Limits
from collm.serve.openai.errors import FAILED, REQUEST_ID, ApiError, busy, log_failure

logger = logging.getLogger(__name__)

_GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""A client's own request ids that are taken over: they come into the log."""


class Outermost:
    """See the module."""

    def __init__(self, app: ASGIApp, paths: Iterable[str], limits: Limits) -> None:
        self._app = app
        self._paths = frozenset(paths)
        """The addresses that are counted by name."""
        self._limits = limits
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if _GIVEN.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        is_head = scope["method"] == "HEAD"
        status = 499  # the client hung up before there was an answer
        has_room = False

        async def received() -> Message:
            nonlocal has_room
            if not has_room:
                self._check_room()
            message = await receive()
            is_whole = message["type"] == "http.request" and not message.get("more_body", False)
            if is_whole and not has_room:
                self._check_room()
                self._active += 1
                has_room = True
            return message

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = (b"x-request-id", identity.encode())
                message = {**message, "headers": [*message.get("headers", ()), told]}
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        named = REQUEST_ID.set(identity)
        metrics.HTTP_ACTIVE.inc()
        try:
            await self._app({**scope, "method": "GET"} if is_head else scope, received, sent)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            if not isinstance(error, ApiError):
                log_failure(error)
            if status == 499:
                told = error if isinstance(error, ApiError) else FAILED
                await told.response()(scope, receive, sent)
        finally:
            REQUEST_ID.reset(named)
            metrics.HTTP_ACTIVE.dec()
            self._active -= has_room
            path = str(scope["path"])
            route = path if path in self._paths else "other"
            metrics.HTTP_REQUESTS.labels(route, str(status)).inc()

    def _check_room(self) -> None:
        """Raises ApiError where too much is asked at once."""
        most = self._limits.max_http_requests
        if self._active >= most:
            said = f"{most} requests are under way; try again"
            raise busy(Refused("busy", said, self._limits.retry_seconds))
