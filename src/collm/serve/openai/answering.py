"""Responses that make an answer while they are sent: whole, or piece by piece as events (SSE).

A status can only be told before the first byte, so a stream begins when something is there to send:
a cloud that cannot be reached is a 503, not a stream that breaks. What goes wrong later is an event
`{"error": …}`, and the end. A client that hangs up, or takes nothing for long, ends its answers.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from collm.serve.openai.errors import api_error
from collm.serve.openai.extras import final_extra, preview_extra, token_extra
from collm.serve.openai.live import Choice, Gone, Live
from collm.serve.openai.serving import Serving
from collm.session.events import EmittedToken

DONE = b"data: [DONE]\n\n"
COMMENT = b": still at it\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the events together
]
_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Form(Protocol):
    """Chat completions and plain ones say the same things in other words."""

    name: str
    """`object` of a whole response."""
    chunk_name: str
    """`object` of a chunk."""

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """The `choices` entry before the first token; None: there is none."""
        ...

    def token(self, choice: Choice, text: str, token: EmittedToken | None) -> dict[str, Any]:
        """The entry of a piece of text; token: the one that came with it, if any."""
        ...

    def preview(self, choice: Choice) -> dict[str, Any]:
        """The entry that comes with text that may be taken back."""
        ...

    def finish(self, choice: Choice) -> dict[str, Any]:
        """The last entry."""
        ...

    def whole(self, choice: Choice) -> dict[str, Any]:
        """The entry of a response that is not streamed."""
        ...


class Answering(Response):
    """A response under way; `start` has not been called for its choices before it is sent."""

    def __init__(
        self,
        serving: Serving,
        form: Form,
        choices: Sequence[Choice],
        identity: str,
        since: float,
    ) -> None:
        super().__init__()
        self._serving = serving
        self._form = form
        self._choices = choices
        self._since = since
        self._base: dict[str, Any] = {
            "id": identity,
            "created": int(time.time()),
            "model": serving.name,
            "system_fingerprint": serving.fingerprint,
        }
        self._is_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            await self._serving.start(self._choices)
            async with Live(self._choices, receive, self._since) as live:
                await self._answer(live, scope, receive, send)
        except Gone:
            return  # there is nobody to tell
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            told = api_error(error)
            if not self._is_begun:
                await told.response()(scope, receive, send)
                return
            await self._send(send, b"data: " + _dumps(told.body()).encode() + b"\n\n", last=True)

    async def _answer(self, live: Live, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    async def _send(self, send: Send, data: bytes, *, last: bool = False) -> None:
        """Raises Gone where the client takes nothing."""
        try:
            async with asyncio.timeout(self._serving.limits.http_send_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": not last})
        except TimeoutError:
            raise Gone from None


class WholeAnswer(Answering):
    """All at once, at the end."""

    async def _answer(self, live: Live, scope: Scope, receive: Receive, send: Send) -> None:
        left = len(self._choices)
        while left:
            for _, event in await live.events(self._serving.limits.idle_seconds):
                if isinstance(event, Exception):
                    raise event
                left -= event is None
        extras = [final_extra(self._serving.engine, choice) for choice in self._choices]
        extra = dict(extras[0])
        if len(extras) > 1:
            extra["summaries"] = [one["summary"] for one in extras]
        body = {
            **self._base,
            "object": self._form.name,
            "choices": [self._form.whole(choice) for choice in self._choices],
            "usage": usage(self._choices),
            "collm": extra,
        }
        await JSONResponse(body)(scope, receive, send)


class StreamedAnswer(Answering):
    """Piece by piece."""

    def __init__(
        self,
        serving: Serving,
        form: Form,
        choices: Sequence[Choice],
        identity: str,
        since: float,
        *,
        has_usage: bool,
    ) -> None:
        super().__init__(serving, form, choices, identity, since)
        self._has_usage = has_usage
        head = {**self._base, "object": form.chunk_name}
        if has_usage:
            head["usage"] = None  # of all chunks but the last
        # What all chunks begin with is written once.
        self._head = f"data: {_dumps(head)[:-1]},"

    async def _answer(self, live: Live, scope: Scope, receive: Receive, send: Send) -> None:
        left = len(self._choices)
        while left:
            events = await live.events(self._serving.limits.http_quiet_seconds)
            chunks: list[str] = []
            failure: Exception | None = None
            for choice, event in events:
                if isinstance(event, Exception):
                    failure = event
                    break
                left -= event is None
                self._tell(choice, event, chunks)
            if failure is not None and not chunks:
                raise failure
            await self._begin(send)
            await self._send(send, "".join(chunks).encode() if events else COMMENT)
            if failure is not None:
                raise failure
        end = b""
        if self._has_usage:
            last = {
                **self._base,
                "object": self._form.chunk_name,
                "choices": [],
                "usage": usage(self._choices),
            }
            end = f"data: {_dumps(last)}\n\n".encode()
        await self._send(send, end + DONE, last=True)

    async def _begin(self, send: Send) -> None:
        if self._is_begun:
            return
        self._is_begun = True
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})

    def _tell(self, choice: Choice, piece: Any, chunks: list[str]) -> None:
        """Add the chunks of a piece, or of the answer's end."""
        form, write = self._form, self._write
        if not choice.is_open:
            choice.is_open = True
            opening = form.opening(choice)
            if opening is not None:
                write(chunks, opening)
        if piece is None:
            write(chunks, form.finish(choice), final_extra(self._serving.engine, choice))
        elif piece.preview:
            write(chunks, form.preview(choice), preview_extra(piece))
        elif choice.carries(piece):
            extra = token_extra(choice, piece.token)
            write(chunks, form.token(choice, piece.text, piece.token), extra)
            choice.last = piece.token
            choice.told += 1
        else:
            write(chunks, form.token(choice, piece.text, None))

    def _write(
        self, chunks: list[str], entry: dict[str, Any], extra: dict[str, Any] | None = None
    ) -> None:
        rest: dict[str, Any] = {"choices": [entry]}
        if extra is not None:
            rest["collm"] = extra
        chunks.append(f"{self._head}{_dumps(rest)[1:]}\n\n")


def usage(choices: Sequence[Choice]) -> dict[str, Any]:
    """What all the answers took; a prompt with several answers counts once."""
    prompts = [choice for choice in choices if not choice.is_repeat]
    prompt = sum(len(choice.prompt_ids) for choice in prompts)
    made = sum(len(choice.reply.account.tokens) for choice in choices)
    reused = sum(choice.reply.account.reused_tokens for choice in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": reused},
    }
