"""The engine over real links, on a tiny random model: many answers at once, and how they end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.contract.link_services import until
from tests.contract.test_session_contract import LIMITS, CountingService, World, artifact, world
from tests.support import token_ids

from collm.config import Generation
from collm.errors import LinkTimeout, PromptError, Refused, Unreachable, UsageError
from collm.link.base import Closing, Link
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage, StageSession
from collm.serve import cloud_health
from collm.serve.cloud_health import HealthWatch
from collm.serve.engine import Engine, EngineSettings
from collm.serve.reply import Reply
from collm.session.edge import Shared

__all__ = ["artifact", "world"]

MADE = Generation(max_tokens=8, ignore_eos=True, threshold=0.05)


@contextmanager
def engine_of(world: World, **changes: object) -> Iterator[Engine]:
    settings = replace(EngineSettings(placement=2, begin_offline=False), **changes)  # type: ignore[arg-type]
    with Engine(world.artifact, settings, world.dial, limits=LIMITS) as engine:
        yield engine


class Gate:
    """A dial that waits until it may."""

    def __init__(self, dial: object) -> None:
        self._dial = dial
        self.is_open = threading.Event()

    def __call__(self) -> Link:
        assert self.is_open.wait(10)
        return self._dial()  # type: ignore[operator, no-any-return]


def test_fifty_at_once_say_what_each_says_alone(world: World) -> None:
    prompts = [token_ids(seed, 5 + seed % 7) for seed in range(50)]
    with engine_of(world, most_kept=0) as engine:
        alone = []
        for prompt in prompts:
            reply = engine.start(prompt, MADE)
            list(reply)
            alone.append(reply.account.token_ids)

        async def one(prompt: list[int]) -> list[int]:
            reply = engine.start(prompt, MADE)
            pieces = [piece async for piece in reply]
            assert [p.token.token_id for p in pieces] == reply.account.token_ids
            return reply.account.token_ids

        async def every() -> list[list[int]]:
            return await asyncio.gather(*map(one, prompts))

        assert asyncio.run(every()) == alone
        status = engine.status()
        assert (status.active, status.waiting, status.answers) == (0, 0, 100)
        assert status.tokens == 800


def test_every_mode_is_served_and_caches_are_reused(world: World) -> None:
    with engine_of(world) as engine:
        assert set(engine.modes) == {
            "auto", "verified", "threshold", "refine", "standalone", "cloud"
        }  # fmt: skip
        texts = {}
        for mode in engine.modes:
            prompt = token_ids(4, 20)
            first = engine.start(prompt, replace(MADE, mode=mode))
            list(first)
            second = engine.start(
                [*prompt, *first.account.token_ids, 8, 9], replace(MADE, mode=mode)
            )
            list(second)
            texts[mode] = first.account.token_ids + second.account.token_ids
            if mode != "auto":  # it may go another way
                assert second.account.reused_tokens >= 20, mode
        assert texts["auto"] == texts["verified"] == texts["cloud"]


def test_too_many_are_refused_and_told_when_to_come_back(world: World) -> None:
    gate = Gate(world.dial)
    settings = EngineSettings(placement=2, most_active=2, most_waiting=1, begin_offline=False)
    with Engine(world.artifact, settings, gate, limits=LIMITS) as engine:
        replies = [engine.start(token_ids(n, 6), MADE) for n in range(3)]
        with pytest.raises(Refused) as refused:
            engine.start(token_ids(9, 6), MADE)
        assert refused.value.code == "busy" and refused.value.retry_seconds > 0
        gate.is_open.set()
        for reply in replies:
            assert len(list(reply)) == 8
        assert len(list(engine.start(token_ids(9, 6), MADE))) == 8


def test_whoever_leaves_gives_the_place_back(world: World) -> None:
    with engine_of(world, most_active=1, most_waiting=1) as engine:
        long = replace(MADE, max_tokens=70)
        reply = engine.start(token_ids(1, 6), long)
        for _ in reply:
            break  # closes the iterator
        waiting = engine.start(token_ids(2, 6), long)
        waiting.cancel()
        assert list(waiting) == []
        deadline = time.monotonic() + 5
        while _held(engine) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.status().active == engine.status().waiting == 0
        assert len(reply.account.tokens) < 70
        assert len(list(engine.start(token_ids(3, 6), MADE))) == 8


def test_bad_requests_are_refused_before_they_begin(world: World) -> None:
    with engine_of(world) as engine:
        with pytest.raises(PromptError, match="empty"):
            engine.start([], MADE)
        with pytest.raises(PromptError, match="context is 96"):
            engine.start(token_ids(1, 97), MADE)
        with pytest.raises(PromptError, match="criterion"):
            engine.start([1, 2], replace(MADE, criterion="nonsense:1"))
        assert engine.status().active == engine.status().waiting == 0
    settings = EngineSettings(placement=2, mode="standalone")
    with Engine(world.artifact, settings, None, limits=LIMITS) as alone:
        assert alone.modes == ("standalone",)
        with pytest.raises(PromptError, match="there is no cloud; expected one of standalone"):
            alone.start([1, 2], MADE)
        assert alone.status().cloud is None


def test_what_goes_wrong_is_raised_where_the_answer_is_read(
    artifact: Artifact, world: World
) -> None:
    def nobody() -> Link:
        raise Unreachable("nobody answers at 127.0.0.1:1")

    settings = EngineSettings(placement=2, begin_offline=False)
    with Engine(world.artifact, settings, nobody, limits=LIMITS) as engine:
        with pytest.raises(Unreachable, match="nobody answers"):
            list(engine.start([1, 2, 3], MADE))

        async def read() -> None:
            async for _ in engine.start([1, 2, 3], MADE):
                pass

        with pytest.raises(Unreachable, match="nobody answers"):
            asyncio.run(read())
        assert engine.health is not None
        health = engine.health.wait(5)
        assert not health.ok and "nobody answers" in health.fault


def test_the_health_is_watched_whatever_happens(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_health, "_EVERY_SECONDS", 0.01)
    faults: list[Exception] = []

    def dial() -> Link:
        if faults:
            raise faults[0]
        return world.dial()

    with HealthWatch(dial, LIMITS) as watch:
        assert watch.wait(5).ok
        for fault in (UsageError("/etc/ca.pem cannot be read"), ValueError("a bug")):
            faults[:] = [fault]
            assert until(lambda: not watch.latest.ok), fault
            assert str(fault) in watch.latest.fault
            faults.clear()
            assert until(lambda: watch.latest.ok), fault


class Turns:
    """A turn that counts how often it was taken."""

    count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        return


@pytest.mark.parametrize("mode", ["verified", "threshold", "refine", "standalone"])
def test_a_long_prompt_takes_several_turns(world: World, mode: str) -> None:
    """So that nobody waits for all of it; a text is the same whether or not it was run in parts."""
    turns = Turns()
    edge = world.edge(mode, 2, shared=Shared(turn=turns))
    pieces = iter(edge.answer(token_ids(1, 90), replace(MADE, mode=mode, max_tokens=4)))
    first = next(pieces).token.token_id
    assert turns.count >= 3
    alone = world.edge(mode, 2).answer(token_ids(1, 90), replace(MADE, mode=mode, max_tokens=4))
    assert [first, *(p.token.token_id for p in pieces)] == alone.finish().token_ids


def test_closing_breaks_off_what_is_under_way(world: World) -> None:
    with engine_of(world) as engine:
        reply = engine.start(token_ids(1, 6), replace(MADE, max_tokens=80))
        next(iter(reply))
    assert len(reply.account.tokens) <= 80
    with pytest.raises(Refused, match="shutting down"):
        engine.start(token_ids(1, 6), MADE)


class Mute(Closing):
    """A link over which the cloud says nothing more once it has said Welcome."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._heard = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def receive(self, timeout: float) -> bytes:
        self._heard += 1
        if self._heard == 1:
            return self._link.receive(timeout)
        time.sleep(timeout)
        raise LinkTimeout("nothing came")

    def close(self) -> None:
        self._link.close()


def _nobody() -> Link:
    raise Unreachable("nobody answers at 127.0.0.1:1")


@pytest.fixture
def near(artifact: Artifact) -> Iterator[World]:
    """For what does not depend on how frames travel."""
    service = CountingService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    with MemoryCloud(service, LIMITS) as cloud:
        yield World(artifact, service, cloud.connect)


@pytest.mark.parametrize("mode", ["verified", "cloud", "refine", "threshold"])
@pytest.mark.parametrize("is_mute", [True, False], ids=["mute", "away"])
def test_whoever_leaves_while_the_cloud_is_silent_gives_the_place_back(
    near: World, mode: str, is_mute: bool
) -> None:
    world = near
    limits = replace(LIMITS, resume_seconds=60.0, verdict_seconds=60.0, connect_seconds=0.5)
    settings = EngineSettings(placement=2, mode=mode, exits=() if mode == "verified" else None,
                              most_active=2, most_waiting=2)  # fmt: skip
    dial = (lambda: Mute(world.dial())) if is_mute else _nobody
    made = replace(MADE, mode=mode, threshold=1.0)
    with Engine(world.artifact, settings, dial, limits=limits) as engine:
        replies = [engine.start(token_ids(n, 6), made) for n in range(4)]
        time.sleep(0.2)
        started = time.monotonic()
        for reply in replies[:2]:
            reply.cancel()
        assert until(lambda: _held(engine) <= 2, 10)
        assert time.monotonic() - started < 4
        started = time.monotonic()
    assert time.monotonic() - started < 4  # closing waits for nobody either
    assert _held(engine) == 0


def _held(engine: Engine) -> int:
    status = engine.status()
    return status.active + status.waiting


def test_a_request_that_waits_gives_its_place_back_at_once(world: World) -> None:
    gate = Gate(world.dial)
    settings = EngineSettings(placement=2, most_active=1, most_waiting=1, begin_offline=False)
    with Engine(world.artifact, settings, gate, limits=LIMITS) as engine:
        first = engine.start(token_ids(1, 6), MADE)
        assert until(lambda: engine.status().active == 1, 10)
        engine.start(token_ids(2, 6), MADE).cancel()
        assert engine.status().waiting == 0
        third = engine.start(token_ids(3, 6), MADE)
        gate.is_open.set()
        assert len(list(first)) == len(list(third)) == 8
        assert until(lambda: engine.status().active == 0, 10)
        assert engine.status().answers == 2


@pytest.mark.parametrize("mode", ["verified", "threshold", "standalone", "refine"])
def test_a_long_prompt_ends_where_nobody_wants_it(world: World, mode: str) -> None:
    """What was run of it stays, for whoever asks again."""
    ids, rows = token_ids(1, 90), []
    with engine_of(world, mode=mode) as engine:
        reply: list[Reply] = []
        plain = StageSession._run_chain

        def leaving(self: StageSession, chain: Any, *more: Any) -> Any:
            if self.pause is not None:  # the edge's
                rows.append(len(more[1]))
                assert until(lambda: bool(reply), 10)
                reply[0].cancel()
            return plain(self, chain, *more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StageSession, "_run_chain", leaving)
            reply.append(engine.start(ids, replace(MADE, mode=mode)))
            assert until(lambda: _held(engine) == 0, 10)
        assert sum(rows) <= 64 and not reply[0].account.tokens
        again = engine.start(ids, replace(MADE, mode=mode))
        fresh = world.edge(mode, 2).answer(ids, replace(MADE, mode=mode)).finish()
        assert [piece.token.token_id for piece in again] == fresh.token_ids
        if mode in ("verified", "standalone"):  # in the others nothing had gone up
            assert again.account.reused_tokens >= 32


@pytest.mark.parametrize(
    ("mode", "wire"), [("verified", "f32"), ("verified", "ids"), ("threshold", "f32"),
                       ("refine", "f32"), ("standalone", "f32")],
)  # fmt: skip
def test_no_prompt_holds_everybody_up(
    near: World, mode: str, wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, most = [0], [0]
    plain = StageSession._run_chain

    def counted(self: StageSession, chain: Any, *more: Any) -> Any:
        rows[0] += len(more[1]) if self.pause is not None else 0
        most[0] = max(most[0], rows[0])
        return plain(self, chain, *more)

    class Turn(Turns):
        def __enter__(self) -> None:
            rows[0] = 0

    monkeypatch.setattr(StageSession, "_run_chain", counted)
    edge = near.edge(mode, 2, shared=Shared(turn=Turn()), wire=wire)
    edge.answer(token_ids(1, 90), replace(MADE, mode=mode, threshold=1.0)).finish()
    assert 32 <= most[0] <= 80


def test_a_failure_at_the_end_gives_the_place_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no room")

    with engine_of(world) as engine:
        monkeypatch.setattr(engine._keeper, "put", fails)
        with pytest.raises(RuntimeError):
            list(engine.start(token_ids(1, 6), MADE))
        assert engine.status().active == 0


def test_what_is_kept_serves_its_owner_alone(world: World) -> None:
    with engine_of(world) as engine:
        ids = token_ids(1, 20)
        list(engine.start(ids, MADE, "alice"))
        other = engine.start([*ids, 3], MADE, "bob")
        list(other)
        own = engine.start([*ids, 3], MADE, "alice")
        list(own)
    assert other.account.reused_tokens == 0
    assert own.account.reused_tokens >= 19
