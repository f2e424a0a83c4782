"""The OpenAI-compatible server in process, on a tiny random model, and connections to drive it."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Send

from collm.config import Generation, Sampling
from collm.link.base import Link
from collm.model.artifact import Artifact
from collm.serve.engine import Engine, EngineSettings
from collm.serve.openai.app import make_app
from collm.serve.openai.serving import Serving

GREEDY = Generation(sampling=Sampling(temperature=0.0))
HELLO: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "the edge answers"}],
    "max_tokens": 8,
    "ignore_eos": True,
}
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
RESPONSES = "/v1/responses"


@contextmanager
def serving_of(
    artifact: Artifact,
    connect: Callable[[], Link] | None = None,
    *,
    placement: int = 4,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Iterator[Serving]:
    """The whole model here, greedy by default, unless told otherwise."""
    made = EngineSettings(placement=placement, **(settings or {}))
    with Engine(artifact, made, connect) as engine:
        yield Serving(engine=engine, name="tiny", **{"defaults": GREEDY, **changes})


@functools.lru_cache(maxsize=4)
def app_of(serving: Serving) -> ASGIApp:
    """The application, made once: that takes longer than an answer."""
    return make_app(serving)


def ask(
    serving: Serving, path: str, body: Any = None, *, method: str = "", **words: Any
) -> httpx.Response:
    """One request, its response whole. body: JSON, or bytes that claim to be."""
    headers = {"Host": "localhost:8000", **words.pop("headers", {})}
    if isinstance(body, bytes):
        words["content"] = body
        headers.setdefault("Content-Type", "application/json")
    elif body is not None:
        words["json"] = body

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app_of(serving), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            verb = method or ("GET" if body is None else "POST")
            return await client.request(verb, path, headers=headers, **words)

    return asyncio.run(run())


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which has to end as it should."""
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = [part for part in response.text.split("\n\n") if part and not part.startswith(":")]
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    told = [part.removeprefix("data: ") for part in parts]
    assert told[-1] == "[DONE]"
    return [json.loads(one) for one in told[:-1]]


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for it, some seconds at most."""
    for _ in range(10_000):
        if is_so():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not become so")


class Connection:
    """One request, sent piece by piece, whose client can hang up."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.outgoing: asyncio.Queue[Message] = asyncio.Queue()

    def hang_up(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def status(self) -> int:
        message = await asyncio.wait_for(self.outgoing.get(), 10)
        assert message["type"] == "http.response.start"
        return int(message["status"])

    async def body(self) -> bytes:
        message = await asyncio.wait_for(self.outgoing.get(), 10)
        return bytes(message["body"])


@asynccontextmanager
async def connection(
    app: ASGIApp, path: str, body: Any, send: Send | None = None
) -> AsyncIterator[Connection]:
    """A request under way; on leaving, the server has to be done with it within seconds.

    send: takes what the server sends, instead of the queue.
    """
    made = Connection()
    made.incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    task = asyncio.ensure_future(app(scope, made.incoming.get, send or made.outgoing.put))
    try:
        yield made
        await asyncio.wait_for(task, 10)
    finally:
        task.cancel()
