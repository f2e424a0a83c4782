"""Connections that ask nothing, too many of them, and too many requests: nobody is shut out."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from tests.openai_server import until
from uvicorn.server import ServerState

from collm.limits import DEFAULT_LIMITS, Limits
from collm.serve.openai.connections import connections
from collm.serve.openai.outermost import Outermost

GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Slow:
    """An application whose POSTs end when they may, after their bodies have come."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.begun = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            while (await receive()).get("more_body"):
                pass
            self.begun += 1
            await self.may_end.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


class Server:
    def __init__(self, limits: Limits, app: Any) -> None:
        self._config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none")
        self._config.load()
        self._state = ServerState()
        self._kind: Any = connections(limits)
        self._opened: list[asyncio.StreamWriter] = []

    def __call__(self) -> asyncio.Protocol:
        made = self._kind(config=self._config, server_state=self._state, app_state={})
        made.timeout_keep_alive = 0.2
        protocol: asyncio.Protocol = made
        return protocol

    @property
    def held(self) -> int:
        return len(self._state.connections)

    async def connect(self, data: bytes = b"") -> Ends:
        before = self._state.connections.copy()
        ends = await asyncio.open_connection("127.0.0.1", self.port)
        self._opened.append(ends[1])
        ends[1].write(data)
        await until(lambda: bool(self._state.connections - before))
        return ends

    async def close(self) -> None:
        for writer in self._opened:
            writer.close()
        await until(lambda: self.held == 0)

    port = 0


@asynccontextmanager
async def server(app: Any, **changes: Any) -> AsyncIterator[Server]:
    made = Server(replace(DEFAULT_LIMITS, **changes), app)
    listening = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        app.may_end.set()
        await made.close()
        listening.close()


async def answer(ends: Ends) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    async with asyncio.timeout(10):
        head = (await ends[0].readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        return (
            int(head[0].split()[1]),
            headers,
            await ends[0].readexactly(int(headers["content-length"])),
        )


async def is_closed(ends: Ends) -> bool:
    async with asyncio.timeout(10):
        try:
            return await ends[0].read() == b""
        except ConnectionError:
            return True


@pytest.mark.parametrize(
    "begun", [b"", b"\r\n", b"GET /heal", GET[:-2], GET + b"\r\n", GET * 2 + b"G"]
)
def test_who_sends_no_whole_header_is_closed(begun: bytes) -> None:
    async def run() -> None:
        async with server(Slow(), http_header_seconds=0.05) as made:
            ends = await made.connect(begun)
            for _ in range(begun.count(GET)):
                assert (await answer(ends))[0] == 200
            assert await is_closed(ends)

    asyncio.run(run())


def test_a_header_that_comes_byte_by_byte_is_not_waited_for() -> None:
    async def run() -> None:
        async with server(Slow(), http_header_seconds=0.1) as made:
            _, writer = ends = await made.connect()
            closed = asyncio.ensure_future(is_closed(ends))
            for byte in GET * 100:
                if closed.done():
                    break
                writer.write(bytes([byte]) if byte != 10 else b"a")
                await asyncio.sleep(0.01)
            assert await closed

    asyncio.run(run())


def test_a_request_under_way_is_not_closed_by_that() -> None:
    async def run() -> None:
        app = Slow()
        async with server(app, http_header_seconds=0.02) as made:
            ends = await made.connect(POST + b"{}")
            await asyncio.sleep(0.1)
            app.may_end.set()
            assert (await answer(ends))[0] == 200

    asyncio.run(run())


@pytest.mark.parametrize("begun", [b"", GET[:9], POST, POST + b"{"])
def test_many_who_ask_nothing_keep_nobody_out(begun: bytes) -> None:
    async def run() -> None:
        app = Slow()
        async with server(app, max_http_connections=8) as made:
            idle = [await made.connect(begun) for _ in range(8)]
            for _ in range(3):
                ends = await made.connect(GET)
                assert (await answer(ends))[0] == 200
            assert all([await is_closed(one) for one in idle[:3]])  # the longest idle
            assert made.held <= 9

    asyncio.run(run())


def test_where_all_are_at_work_a_request_is_told_so_and_a_probe_is_answered() -> None:
    async def run() -> None:
        app = Slow()
        async with server(app, max_http_connections=4) as made:
            busy = [await made.connect(POST + b"{}") for _ in range(4)]
            await until(lambda: app.begun == 4)
            status, headers, body = await answer(await made.connect(POST + b"{}"))
            assert status == 503 and int(headers["retry-after"]) >= 1
            assert headers["connection"] == "close"
            assert json.loads(body)["error"]["code"] == "busy"
            assert (await answer(await made.connect(GET)))[0] == 200
            app.may_end.set()
            assert [(await answer(one))[0] for one in busy] == [200] * 4

    asyncio.run(run())


def test_who_takes_nothing_is_given_up() -> None:
    class Big(Slow):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(300):
                await send({"type": "http.response.body", "body": b"x" * 10**5, "more_body": True})
            raise AssertionError("it was not")

    async def run() -> None:
        logging.getLogger("uvicorn.error").setLevel("CRITICAL")
        async with server(Big(), http_send_seconds=0.05) as made:
            await made.connect(GET)
            await until(lambda: made.held == 0)

    asyncio.run(run())


def test_what_is_no_http_is_refused_in_the_one_shape() -> None:
    async def run() -> None:
        async with server(Slow()) as made:
            status, _, body = await answer(await made.connect(b"nonsense\r\n\r\n"))
            assert status == 400 and json.loads(body)["error"]["code"] == "invalid_http"

    asyncio.run(run())


def test_room_is_for_requests_whose_bodies_have_come() -> None:
    async def run() -> None:
        slow = Slow()
        app = Outermost(slow, (), replace(DEFAULT_LIMITS, max_http_requests=2))

        async def one(*parts: bytes) -> Any:
            told: list[Any] = []
            bodies = iter(parts)

            async def receive() -> Any:
                body = next(bodies, None)
                if body is None:
                    await asyncio.Event().wait()
                return {"type": "http.request", "body": body, "more_body": body == b"half"}

            async def send(message: Any) -> None:
                told.append(message)

            scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
            await app(scope, receive, send)
            return told

        halves = [asyncio.ensure_future(one(b"half")) for _ in range(5)]
        whole = [asyncio.ensure_future(one(b"half", b"")) for _ in range(2)]
        await until(lambda: slow.begun == 2)
        refused = await one(b"{}")
        assert refused[0]["status"] == 429
        assert b"retry-after" in dict(refused[0]["headers"])
        assert json.loads(refused[1]["body"])["error"]["code"] == "rate_limit_exceeded"
        slow.may_end.set()
        assert [(await task)[0]["status"] for task in whole] == [200, 200]
        assert (await one(b"{}"))[0]["status"] == 200  # room is given back
        for task in halves:
            task.cancel()

    asyncio.run(run())
