"""A server of the chat page that plays a script: for states that a real one is seldom in.

The page it serves is the package's own; chunks have the form of `collm serve`'s. What it does
hangs on the question: see `Script.chunks`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import collm.serve

PAGE = Path(collm.serve.__file__).parent / "page"
MODEL = "SmolLM2-135M-Instruct"
FINGERPRINT = "007a5343610db00c755c600289a94c4b33801744e6a68663035c1b41edba182b"
_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)

_SKY = """\
The sky looks blue because air scatters short waves of light more than long ones. This is called \
**Rayleigh scattering**, after Lord Rayleigh, who described it in 1871.

1. Sunlight holds all colours, from violet to red.
2. Molecules of air scatter blue light about `4.4` times as strongly as red.
3. So blue reaches your eyes from every direction, and the sun itself looks a little yellow.

In the evening the light comes a longer way through the air. Most of the blue is gone by then, and \
what is left is orange and red."""
_CODE = """\
Slices can go backwards, so one line is enough:

```python
def reverse(text: str) -> str:
    return text[::-1]
```

Call it with `reverse("edge")` and you get `"egde"`."""


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S{1,7}|\s+$", text)


class Script:
    """State of the server that a test may change."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.back = threading.Event()
        """Set: the cloud is there again, in the answer to an `offline` question."""
        self.closed = threading.Event()
        """Set when a client went away in the middle of an answer."""
        self.reset()

    def reset(self) -> None:
        """As at the beginning."""
        self.key = ""
        self.cloud_ok = self.server_ok = True
        self.busy = 0
        """How many more requests are turned away."""
        self.mode = "verified"
        self.refuse = ""
        """Why the next requests are wrong."""
        self.bodies: list[dict[str, Any]] = []
        """Requests so far."""
        self.back.clear()
        self.closed.clear()

    # ------------------------------------------------------------------- the answers

    async def chunks(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """The stream of one answer."""
        ask = body["messages"][-1]["content"]
        mode = body.get("collm", {}).get("mode", "verified")
        yield _event(_chunk({"role": "assistant", "content": ""}))
        try:
            if ask.startswith("fail"):
                async for chunk in self._some(_words(_SKY)[:12], mode, 0.005):
                    yield chunk
                if "cut" not in ask:
                    error = {"message": "The cloud ended the session.", "type": "server_error"}
                    yield _event({"error": {**error, "code": None, "param": None}})
                return
            if ask.startswith("offline"):
                async for chunk in self._offline():
                    yield chunk
            elif found := re.match(r"long (\d+)(?: (\d+))?", ask):
                pace = int(found[2] or 0)
                async for chunk in self._some(_long(int(found[1])), mode, 1 / pace if pace else 0):
                    yield chunk
            elif ask.startswith("slow"):
                async for chunk in self._some(_long(2000), mode, 0.03):
                    yield chunk
            else:
                text = _CODE if "Python" in ask else _SKY
                if ask.startswith("echo "):
                    text = ask.removeprefix("echo ")
                if mode in ("standalone", "threshold"):
                    text = text.replace("looks blue", "is blue").replace("eyes", "eye")
                    text = text.replace(", after Lord Rayleigh, who described it in 1871", "")
                async for chunk in self._some(_words(text), mode, 0.004):
                    yield chunk
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.closed.set()
            raise

    async def _some(self, words: list[str], mode: str, pause: float) -> AsyncIterator[bytes]:
        counts: dict[str, int] = {}
        for index, word in enumerate(words):
            extra = _made(index, mode)
            counts[extra["source"]] = counts.get(extra["source"], 0) + 1
            if index == 0 and mode == "auto":
                extra["way"] = {**_WAY, "reason": "the link is fast: drafts pay"}
            if index % 4 == 0:
                extra |= {"bytes_up": 2000 * (index + 1), "bytes_down": 20 * (index + 1)}
            yield _event(_chunk({"content": word}, collm=extra))
            if pause:
                await asyncio.sleep(pause)
        yield _last(counts, mode)

    async def _offline(self) -> AsyncIterator[bytes]:
        """Certain, then previews until the cloud is back, then certain with other words."""
        words = _words("The edge answers at once, and the cloud")
        previews = _words(" reads along and mends what was wrong a little later.")
        certain = _words(" reads along and corrects what was wrong, word by word.")
        for index, word in enumerate(words):
            yield _event(_chunk({"content": word}, collm=_made(index, "verified")))
        self.cloud_ok = False
        for word in previews:
            extra = {"source": "exit@15", "exit": 15, "confidence": 0.41, "provisional": True}
            yield _event(_chunk({}, collm={**extra, "preview": word}))
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self.back.wait, 30)
        self.cloud_ok = True
        for index, word in enumerate(certain):
            extra = {**_made(index, "verified"), "index": len(words) + index}
            yield _event(_chunk({"content": word}, collm=extra))
            await asyncio.sleep(0.02)
        counts = {"exit@15": 12, "cloud": len(words) + len(certain) - 12}
        yield _last(counts, "verified", previewed=len(previews), withdrawn=6, reconnects=1)

    # -------------------------------------------------------------------- the routes

    async def chat(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        self.bodies.append(body)
        if self.busy:
            self.busy -= 1
            return _error(429, "64 answers are under way; try again.", {"Retry-After": "2"})
        if self.refuse:
            return _error(400, self.refuse)
        return StreamingResponse(self.chunks(body), media_type="text/event-stream")

    async def models(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def status(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        return JSONResponse(self._status())

    def _refused(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "This server wants an API key.")
        return None

    def _status(self) -> dict[str, Any]:
        up = time.monotonic() - self.started
        cloud = {"role": "cloud", "first": 20, "last": 30, "ok": self.cloud_ok}
        return {
            "model": MODEL,
            "version": "0.1.0",
            "mode": self.mode,
            "modes": ["auto", "verified", "threshold", "refine", "standalone", "cloud"],
            "placement": 15,
            "layers": 30,
            "exits": [5, 15],
            "cuts": [5, 10, 15, 20],
            "wire": "f32",
            "fingerprint": FINGERPRINT,
            "weights": "int4",
            "context_length": 8192,
            "active": 1,
            "waiting": 0,
            "most_active": 64,
            "kept": 2,
            "kept_bytes": 13_900_000,
            "answers": 12,
            "tokens": 1480,
            "uptime_seconds": 3723 + up,
            "rss_bytes": 312_000_000,
            "tiers": [
                {"role": "device", "first": 0, "last": 15, "ok": True, "address": "this device"},
                {
                    "role": "edge server",
                    "first": 15,
                    "last": 20,
                    "ok": self.server_ok,
                    "address": "gateway.local:50061",
                    "rtt_ms": 1.9 if self.server_ok else None,
                    "sessions": 3,
                    "error": "" if self.server_ok else "nobody answers",
                },
                {
                    **cloud,
                    "address": "cloud.example:50051",
                    "sessions": 14,
                    "rtt_ms": 21 + 4 * (hash(int(up)) % 5) / 5 if self.cloud_ok else None,
                    "error": "" if self.cloud_ok else "connection refused",
                },
            ],
        }


_PATTERN = (0, 0, 3, 1, 0, 0, 0, 3, 3, 0, 2, 0, 0, 3, 1, 0, 0, 2, 3, 0, 0, 3, 0)
_WAY = {"mode": "verified", "placement": 15, "wire": "f16"}


def _made(index: int, mode: str) -> dict[str, Any]:
    """Where a token comes from: a pattern that looks like the real thing."""
    turn = _PATTERN[index % len(_PATTERN)]
    if mode == "cloud":
        source = "cloud"
    elif mode == "standalone":
        source = "exit@15"
    else:
        source = {0: "exit@15", 1: "exit@5", 2: "server@20", 3: "cloud"}[turn]
    return {
        "source": source,
        "exit": int(source.split("@")[1]) if "@" in source else None,
        "confidence": 0.97 - 0.11 * turn,
        "by": "full model" if source == "cloud" else "confidence:0.6",
        "provisional": False,
        "index": index,
        "ms": 6.5 + 9 * turn,
    }


def _long(count: int) -> list[str]:
    """Tokens in paragraphs of some eighty."""
    return [
        "\n\n" if index % 80 == 79 else f" {'word' if index % 5 else 'longer-word'}"
        for index in range(count)
    ]


def _last(counts: dict[str, int], mode: str, **more: int) -> bytes:
    total = sum(counts.values())
    summary = {
        "mode": mode,
        "placement": 15,
        "exits": [5, 15],
        "sources": counts,
        "rounds": 14,
        "drafted": 61,
        "cloud_rows": 88,
        "bytes_up": 204_800,
        "bytes_down": 1870,
        "edge_ms": 510.0,
        "cloud_ms": 640.0,
        "wall_ms": 30.0 * total,
        "ttft_ms": 96.0,
        "tokens_per_second": 33.4,
        "reconnects": 0,
        "replayed_bytes": 0,
        "previewed": 0,
        "withdrawn": 0,
        "provisional": 0,
        "reused_tokens": 0,
        "changes": [],
        **more,
    }
    usage = {"prompt_tokens": 31, "completion_tokens": total, "total_tokens": 31 + total}
    ended = _chunk({}, finish_reason="stop", collm={"summary": summary})
    return _event(ended) + _event({**_chunk({}), "choices": [], "usage": usage})


def _chunk(
    delta: dict[str, Any], *, finish_reason: str | None = None, collm: dict[str, Any] | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    made = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return {**made, "choices": [choice], **({"collm": collm} if collm else {})}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    error = {"message": message, "type": "error", "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)


@contextlib.contextmanager
def scripted_server() -> Iterator[tuple[str, Script]]:
    """Its address and its state, served from a thread."""
    script = Script()

    async def index(_: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": _POLICY})

    routes = [
        Route("/", index),
        Mount("/page", StaticFiles(directory=PAGE)),
        Route("/v1/chat/completions", script.chat, methods=["POST"]),
        Route("/v1/models", script.models),
        Route("/collm/status", script.status),
    ]
    config = uvicorn.Config(
        Starlette(routes=routes),
        port=0,
        log_level="critical",  # answers that nobody waits for any more are cut off at the end
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/", script
    finally:
        script.back.set()  # a thread may still wait for it
        server.should_exit = True
        thread.join(10)
