"""Streams that end otherwise than planned, and many of them at once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from tests.contract.test_session_contract import LIMITS, World, artifact, world
from tests.openai_server import (
    CHAT,
    GREEDY,
    HELLO,
    RESPONSES,
    TEXT,
    Connection,
    app_of,
    ask,
    connection,
    events,
    serving_of,
    until,
)

from collm.errors import CollmError, LinkTimeout, ProtocolError, Refused, Unreachable
from collm.link.base import Link
from collm.model.artifact import Artifact
from collm.serve.engine import Engine
from collm.serve.openai.serving import Serving
from collm.serve.reply import Reply
from collm.session.events import Account, EmittedToken, Piece

__all__ = ["artifact", "world"]

LONG = {**HELLO, "max_tokens": 400, "stream": True}


@contextmanager
def whole(artifact: Artifact, **settings: Any) -> Iterator[Serving]:
    with serving_of(artifact, settings=settings) as made:
        yield made


@dataclass
class Watched:
    """The replies that an engine has started."""

    replies: list[Reply] = field(default_factory=list)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    made, start = Watched(), Engine.start

    def seen(self: Engine, *words: Any) -> Reply:
        reply = start(self, *words)
        made.replies.append(reply)
        return reply

    monkeypatch.setattr(Engine, "start", seen)
    return made


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_an_answer_ends_when_its_client_hangs_up(
    artifact: Artifact, watched: Watched, stream: bool, n: int
) -> None:
    async def run(serving: Serving) -> None:
        body = {**LONG, "stream": stream, "n": n}
        async with connection(app_of(serving), CHAT, body) as made:
            if stream:
                assert await made.status() == 200
                await made.body()
            else:
                await until(lambda: len(watched.replies) == n)
            made.hang_up()

    with whole(artifact) as serving:
        asyncio.run(run(serving))
        assert len(watched.replies) == n
    # The engine has ended by now: nobody went on writing.
    assert all(len(reply.account.tokens) < 400 for reply in watched.replies)


class Gate:
    """A dial that waits until it may."""

    def __init__(self, dial: Any) -> None:
        self._dial = dial
        self.is_open = threading.Event()

    def __call__(self) -> Link:
        assert self.is_open.wait(20)
        link: Link = self._dial()
        return link


def test_who_comes_when_all_is_taken_is_told_when_to_come_back(world: World) -> None:
    gate = Gate(world.dial)
    settings = {"most_active": 1, "most_waiting": 1, "begin_offline": False}
    with ExitStack() as stack:
        # Before the engine is closed, which waits for what waits here.
        serving = stack.enter_context(
            serving_of(world.artifact, gate, placement=2, settings=settings)
        )
        stack.callback(gate.is_open.set)

        async def run() -> None:
            app = app_of(serving)
            async with AsyncExitStackOf(app, 2) as waiting:
                await until(lambda: len(serving.engine._replies) == 2)
                response = await asyncio.to_thread(ask, serving, CHAT, HELLO)
                assert response.status_code == 429, response.text
                assert int(response.headers["retry-after"]) >= 1
                error = response.json()["error"]
                assert error["code"] == "rate_limit_exceeded"
                ready = await asyncio.to_thread(ask, serving, "/readyz")
                assert ready.status_code == 503 and ready.json()["error"]["code"] == "busy"
                two = await asyncio.to_thread(ask, serving, CHAT, {**HELLO, "n": 2})
                assert two.status_code == 429
                gate.is_open.set()
                for one in waiting:
                    assert await one.status() == 200

        asyncio.run(run())
        assert ask(serving, CHAT, HELLO).status_code == 200


class AsyncExitStackOf:
    """So many requests under way."""

    def __init__(self, app: Any, count: int) -> None:
        self._open = [connection(app, CHAT, HELLO) for _ in range(count)]

    async def __aenter__(self) -> list[Connection]:
        return [await one.__aenter__() for one in self._open]

    async def __aexit__(self, *error: Any) -> None:
        for one in self._open:
            await one.__aexit__(*error)


@dataclass
class Faulty:
    """A reply that breaks after a token, or before."""

    error: Exception
    told: int
    account: Account = field(default_factory=lambda: Account(mode="verified", prompt_tokens=3))
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True

    async def batches(self) -> AsyncIterator[list[Piece]]:
        for _ in range(self.told):
            yield [Piece(token=EmittedToken(token_id=5, source="cloud"), text="so")]
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "code", "wait"),
    [
        (Unreachable("nobody answers at host:1"), 503, "cloud_unavailable", "2"),
        (LinkTimeout("no verdict within 60 s"), 503, "cloud_unavailable", "2"),
        (Refused("busy", "64 sessions are held", 6.2), 503, "cloud_unavailable", "7"),
        (ProtocolError("the cloud's token 9 is unknown"), 502, "cloud_protocol", None),
        (RuntimeError("an answer failed"), 500, "server_error", None),
    ],
)
def test_what_breaks_is_a_status_at_first_and_an_event_later(
    artifact: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    code: str,
    wait: str | None,
) -> None:
    with whole(artifact) as serving:
        for told, stream in ((0, True), (0, False), (1, False)):
            monkeypatch.setattr(Engine, "start", lambda *_, told=told: Faulty(error, told))
            response = ask(serving, CHAT, {**HELLO, "stream": stream})
            assert response.status_code == status
            found = response.json()["error"]
            assert (found["type"], found["code"]) == ("server_error", code)
            if isinstance(error, CollmError):
                assert str(error) in found["message"]
            assert response.headers.get("retry-after") == wait
        monkeypatch.setattr(Engine, "start", lambda *_: Faulty(error, 1))
        response = ask(serving, CHAT, {**HELLO, "stream": True})
        assert response.status_code == 200
        parts = response.text.strip().split("\n\n")
        assert json.loads(parts[-1].removeprefix("data: "))["error"]["code"] == code
        assert "[DONE]" not in response.text
        assert '"content":"so"' in parts[-2]
        asked = {"model": "tiny", "input": "hello", "stream": True}
        named = ask(serving, RESPONSES, asked).text.strip().split("\n\n")
        assert named[-1].startswith("event: error\ndata: ")
        assert json.loads(named[-1].partition("data: ")[2])["code"] == code


def test_a_cloud_that_is_away_is_a_503_or_the_devices_own_answer(world: World) -> None:
    def away() -> Link:
        raise Unreachable("nobody answers at cloud.example:50051")

    settings = {"begin_offline": False}
    with serving_of(world.artifact, away, placement=2, settings=settings) as serving:
        response = ask(serving, CHAT, {**HELLO, "stream": True})
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        assert "cloud.example" in response.json()["error"]["message"]
        alone = ask(serving, CHAT, {**HELLO, "collm": {"mode": "standalone"}})
        assert alone.json()["usage"]["completion_tokens"] == 8


def test_tokens_of_exits_and_cloud_say_so(world: World) -> None:
    defaults = replace(GREEDY, threshold=0.05)
    with serving_of(world.artifact, world.dial, placement=2, defaults=defaults) as serving:
        chunks = events(ask(serving, CHAT, {**HELLO, "stream": True, "max_tokens": 16}))
        extras = [one["collm"] for one in chunks if "source" in one.get("collm", {})]
        sources = [one["source"] for one in extras]
        assert "cloud" in sources
        for one in extras:
            cut = one["source"].partition("@")[2]
            assert one["exit"] == (int(cut) if cut else None)
        told = chunks[-1]["collm"]["summary"]
        assert told["sources"] == {name: sources.count(name) for name in set(sources)}
        assert told["rounds"] > 0 and told["bytes_up"] > 0 and told["mode"] == "verified"
        traffic = [(one["bytes_up"], one["bytes_down"]) for one in extras if "bytes_up" in one]
        assert 1 < len(traffic) <= told["rounds"]  # while it comes, once a round
        assert traffic == sorted(set(traffic)) and traffic[0] > (0, 0)
        assert traffic[-1] <= (told["bytes_up"], told["bytes_down"])
        status = ask(serving, "/collm/status").json()
        assert [tier["role"] for tier in status["tiers"]] == ["device", "cloud"]


def test_what_is_written_offline_is_shown_apart_and_replaced(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    certain = EmittedToken(token_id=5, source="cloud", confidence=0.5)
    guess = EmittedToken(token_id=6, source="exit@1", confidence=float("nan"), provisional=True)

    class Previewing(Faulty):
        async def batches(self) -> AsyncIterator[list[Piece]]:
            yield [Piece(token=guess, text=" per", preview=True)]
            self.account.tokens.append(certain)
            yield [Piece(token=certain, text="sure"), Piece(token=certain, text="!")]

    monkeypatch.setattr(Engine, "start", lambda *_: Previewing(RuntimeError(), 0))
    with whole(artifact) as serving:
        chunks = events(ask(serving, CHAT, {**HELLO, "stream": True}))
    assert chunks[1]["choices"][0]["delta"] == {}
    assert chunks[1]["collm"] == {
        "source": "exit@1", "exit": 1, "confidence": None, "provisional": True, "preview": " per"
    }  # fmt: skip
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in chunks)
    assert text == "sure!"
    assert [one["collm"]["index"] for one in chunks if "index" in one.get("collm", {})] == [0]


def test_a_quiet_stream_is_kept_open_with_comments(world: World) -> None:
    gate = Gate(world.dial)
    limits = replace(LIMITS, http_quiet_seconds=0.05)
    settings = {"begin_offline": False}
    with ExitStack() as stack:
        serving = stack.enter_context(
            serving_of(world.artifact, gate, placement=2, settings=settings, limits=limits)
        )
        stack.callback(gate.is_open.set)

        async def run() -> None:
            async with connection(app_of(serving), CHAT, {**HELLO, "stream": True}) as made:
                assert await made.status() == 200
                for _ in range(3):
                    assert (await made.body()).startswith(b":")
                gate.is_open.set()
                while not (await made.body()).endswith(b"[DONE]\n\n"):
                    pass

        asyncio.run(run())


def test_a_client_that_takes_nothing_is_given_up(artifact: Artifact, watched: Watched) -> None:
    taken = []

    async def stuck(message: Any) -> None:
        taken.append(message)
        if len(taken) > 3:
            await asyncio.Event().wait()

    async def run(serving: Serving) -> None:
        async with connection(app_of(serving), CHAT, LONG, send=stuck):
            pass

    with serving_of(artifact, limits=replace(LIMITS, http_send_seconds=0.01)) as serving:
        asyncio.run(run(serving))
    assert len(taken) == 4
    assert len(watched.replies[0].account.tokens) < 400


def test_thirty_streams_at_once_say_what_each_says_alone(artifact: Artifact) -> None:
    bodies = [
        {**HELLO, "messages": [{"role": "user", "content": f"the cloud {i}"}], "stream": True}
        for i in range(30)
    ]

    def text(response: httpx.Response) -> str:
        deltas = [one["choices"][0]["delta"] for one in events(response)]
        return "".join(delta.get("content", "") for delta in deltas)

    with whole(artifact, most_kept=0) as serving:
        alone = [text(ask(serving, CHAT, body)) for body in bodies]

        async def together() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app_of(serving))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as one:
                return await asyncio.gather(*(one.post(CHAT, json=body) for body in bodies))

        assert [text(response) for response in asyncio.run(together())] == alone
        assert len(set(alone)) > 1
        many = ask(serving, TEXT, {"model": "tiny", "prompt": ["a", "b"], "n": 20, "max_tokens": 2})
        assert len(many.json()["choices"]) == 40
