"""Answers over links that break by chance, in virtual time: the text stays what it was.

COLLM_CHAOS_RUNS says how many runs (`make chaos`: 1,000); COLLM_CHAOS_SEED where they begin. A
failure names its seed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
from tests.support import random_artifact

from collm.config import Generation, Refinement, Sampling
from collm.errors import LinkError, Unreachable
from collm.limits import Limits
from collm.link.base import Link
from collm.link.clock import VirtualClock
from collm.link.faulty import Faults, FaultyCloud
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.answer import Answer
from collm.session.cloud import CloudConversation, CloudService
from collm.session.edge import Edge
from collm.session.events import Account

RUNS = int(os.environ.get("COLLM_CHAOS_RUNS", "60"))
FIRST_SEED = int(os.environ.get("COLLM_CHAOS_SEED", "0"))
LIMITS = Limits(kv_step=16, verdict_seconds=20.0, resume_seconds=600.0, detached_seconds=0.0)
PROMPT = [5, 17, 42, 99, 7, 250, 31]
TOKENS = 24
WARM = Sampling(temperature=1.3, top_p=0.95, seed=11, repetition_penalty=1.3)

KINDS = {
    "cuts": Faults(cut=0.05, refuse=0.2),
    "half-open": Faults(half_open=0.05, refuse=0.1),
    "resets and restarts": Faults(restart=0.06),
    "black holes": Faults(blackhole=0.03),
    "stalls": Faults(stall=0.1, stall_seconds=3.0),
    "damage": Faults(corrupt=0.05),
    "flapping": Faults(cut=0.15, refuse=0.3),
    "everything": Faults(cut=0.02, half_open=0.01, blackhole=0.01, stall=0.02, corrupt=0.02,
                         restart=0.02, refuse=0.2),
}  # fmt: skip
ANSWERS = {
    "verified": ("verified", 2, "f32", Generation(threshold=0.05, draft=4)),
    "sampled": ("verified", 3, "int8", Generation(threshold=0.05, draft=3, sampling=WARM)),
    "ahead": ("verified", 2, "f16", Generation(threshold=0.05, draft=6, ahead=0.0)),
    "ids alone": ("verified", 0, "f32", Generation()),
    "cloud": ("cloud", 0, "f32", Generation(sampling=WARM)),
    "threshold": ("threshold", 2, "f16", Generation(threshold=0.1)),  # a third from the cloud
    "refine": ("refine", 2, "f32", Generation(refinement=Refinement(segment=8))),
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    return random_artifact(folder, cuts=(1, 2, 3), weights="int4", max_position_embeddings=96)


@pytest.fixture(scope="module")
def stage(artifact: Artifact) -> Stage:
    return Stage(artifact, range(4), limits=LIMITS)


class World:
    """One edge for each kind of answer, and a cloud to be broken."""

    def __init__(
        self, artifact: Artifact, stage: Stage, limits: Limits = LIMITS, **how: bool
    ) -> None:
        self.stage = stage
        self.cloud: FaultyCloud | None = None
        self.clock = VirtualClock()
        self.edges = {
            name: Edge(artifact, mode=mode, placement=placement, wire=wire, limits=limits,
                       connect=self.connect, clock=self.clock, **how)
            for name, (mode, placement, wire, _) in ANSWERS.items()
        }  # fmt: skip

    def connect(self):  # type: ignore[no-untyped-def]
        assert self.cloud is not None
        return self.cloud.connect()

    def answer(self, name: str, faults: Faults, seed: int) -> Account:
        return self.begin(name, faults, seed).finish()

    def begin(
        self,
        name: str,
        faults: Faults,
        seed: int,
        limits: Limits = LIMITS,
        *,
        prompt: list[int] = PROMPT,
        **how_else: float,
    ) -> Answer:
        service = partial(CloudService, self.stage, limits)
        self.cloud = FaultyCloud(
            service(), self.clock, faults, seed=seed, limits=limits, restarted=service
        )
        mode, _, _, how = ANSWERS[name]
        changes = {"max_tokens": TOKENS, **how_else}
        generation = replace(how, mode=mode, ignore_eos=True, **changes)  # type: ignore[arg-type]
        return self.edges[name].answer(prompt, generation)


@pytest.fixture(scope="module")
def world(artifact: Artifact, stage: Stage) -> World:
    return World(artifact, stage)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_happens_on_the_link_the_text_is_the_same(world: World, kind: str) -> None:
    wanted = {name: world.answer(name, Faults(), 0).token_ids for name in ANSWERS}
    threads, files = threading.active_count(), psutil.Process().num_fds()
    reconnects = 0
    runs = max(len(ANSWERS), RUNS // len(KINDS))
    for seed in range(FIRST_SEED, FIRST_SEED + runs):
        name = list(ANSWERS)[seed % len(ANSWERS)]
        account = world.answer(name, KINDS[kind], seed)
        assert account.token_ids == wanted[name], (kind, name, seed)
        reconnects += account.reconnects
    assert reconnects or kind == "stalls"
    assert threading.active_count() <= threads
    assert psutil.Process().num_fds() <= files


@pytest.mark.parametrize("name", ANSWERS)
def test_sessions_take_no_more_than_they_were_granted(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is kept by grants: they are at least what caches and rows really take."""
    most, receive = [0.0], CloudConversation.receive
    long = list(range(5, 65))

    def audited(conversation: CloudConversation, frame: bytes) -> Iterator[bytes]:
        for reply in receive(conversation, frame):
            audit(conversation)
            yield reply
        audit(conversation)

    def audit(conversation: CloudConversation) -> None:
        sessions = conversation._service.sessions
        for entry in sessions._entries.values():
            assert entry.granted >= entry.held.bytes
            most[0] = max(most[0], entry.granted)
        assert sessions.bytes == sum(entry.granted for entry in sessions._entries.values())

    monkeypatch.setattr(CloudConversation, "receive", audited)
    for seed in range(3):
        world.begin(name, KINDS["everything"], seed, prompt=long).finish()
        world.begin(name, KINDS["everything"], seed, max_tokens=80).finish()
    assert most[0] > 0


def test_a_run_is_its_seeds(world: World) -> None:
    first = world.answer("verified", KINDS["everything"], 3)
    again = world.answer("verified", KINDS["everything"], 3)
    assert (first.reconnects, first.bytes_up) == (again.reconnects, again.bytes_up)


WAITING = ("ids alone", "cloud")
WRITING = ("verified", "sampled", "ahead", "threshold", "refine")
"""Kinds of answers that cannot go on without a cloud."""


def start_and_lose(world: World, name: str, limits: Limits, after: int) -> Answer:
    """An answer of which `after` tokens have been told when the cloud goes away."""
    answer = world.begin(name, Faults(), 0, limits)
    told = iter(answer)
    for _ in range(after):
        next(told)
    assert world.cloud is not None
    world.cloud.is_reachable = False
    world.cloud.cut()
    return answer


@pytest.mark.parametrize("name", WAITING)
@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_cloud_that_stays_away_is_waited_for_until_the_deadline(
    artifact: Artifact, stage: Stage, name: str, after: int
) -> None:
    limits = replace(LIMITS, resume_seconds=30.0)
    world = World(artifact, stage, limits)
    answer = start_and_lose(world, name, limits, after)
    asked_at = [world.clock.now()]
    with pytest.raises(LinkError):
        asked_at.extend(world.clock.now() for _ in answer)
    assert world.clock.now() - asked_at[-1] <= 1.1 * limits.resume_seconds + limits.connect_seconds


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("after", [1, 3, 9])
def test_without_the_cloud_the_exits_end_the_answer_and_say_so(
    artifact: Artifact, stage: Stage, name: str, after: int
) -> None:
    limits = replace(LIMITS, resume_seconds=30.0)
    world = World(artifact, stage, limits)
    wanted = world.answer(name, Faults(), 0).token_ids
    answer = start_and_lose(world, name, limits, after)
    left_at = world.clock.now()
    pieces = list(answer.with_previews())
    assert world.clock.now() - left_at <= 1.1 * limits.resume_seconds + limits.connect_seconds
    account = answer.account
    certain = [token for token in account.tokens if not token.provisional]
    assert [token.token_id for token in certain] == wanted[: len(certain)]
    assert account.provisional == len(account.tokens) - len(certain) > 0
    assert len(account.tokens) == TOKENS
    assert all(token.source.startswith("exit@") for token in account.tokens if token.provisional)
    assert any(piece.preview for piece in pieces)


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        *((name, bold) for name in ("verified", "sampled", "ahead") for bold in (0.0, 0.05, 1.0)),
        *(("threshold", bold) for bold in (0.07, 0.1, 0.15, 1.0)),
        ("refine", 0.6),
    ],
)
def test_offline_for_the_middle_third_the_text_is_corrected(
    artifact: Artifact, stage: Stage, name: str, threshold: float
) -> None:
    world = World(artifact, stage)
    wanted = world.begin(name, Faults(), 0, threshold=threshold).finish().token_ids
    answer = world.begin(name, Faults(), 0, threshold=threshold)
    certain: list[int] = []
    previews: list[int] = []
    assert world.cloud is not None
    for piece in answer.with_previews():
        if piece.preview:
            assert piece.token.provisional
            previews.append(piece.token.token_id)
            if len(previews) == TOKENS // 3:
                world.cloud.is_reachable = True
            world.clock.advance(0.5)
            continue
        certain.append(piece.token.token_id)
        assert not piece.token.provisional
        if len(certain) == TOKENS // 3:
            world.cloud.is_reachable = False
            world.cloud.cut()
    assert certain == wanted == answer.account.token_ids
    assert len(previews) == answer.account.previewed >= TOKENS // 3
    assert answer.account.withdrawn <= len(previews)
    assert answer.account.reconnects == 1
    assert answer.account.provisional == 0


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("comes_back", [True, False])
def test_an_answer_may_begin_without_a_cloud(
    artifact: Artifact, stage: Stage, name: str, comes_back: bool
) -> None:
    limits = replace(LIMITS, resume_seconds=30.0)
    world = World(artifact, stage, limits, begin_offline=True)
    wanted = world.answer(name, Faults(), 0).token_ids
    answer = world.begin(name, Faults(), 0, limits)
    assert world.cloud is not None
    world.cloud.is_reachable = False
    previews = 0
    for piece in answer.with_previews():
        previews += piece.preview
        world.clock.advance(0.5 if piece.preview else 0.0)
        if comes_back and previews == 3:
            world.cloud.is_reachable = True
    account = answer.account
    assert previews >= 3
    assert account.reconnects == account.replayed_bytes == 0
    if comes_back:
        assert account.token_ids == wanted
        assert account.provisional == 0
    else:
        assert len(account.tokens) == TOKENS
        given_up = [token.provisional for token in account.tokens]
        assert given_up == sorted(given_up)  # what comes after a provisional token is that too
        assert all(given_up) or name == "threshold"  # there exits may be sure
        assert given_up[-1]


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("before_welcome", [True, False])
def test_a_cloud_that_comes_and_goes_is_as_good_as_none(
    artifact: Artifact, stage: Stage, name: str, before_welcome: bool
) -> None:
    """Every link breaks before it has brought an answer, until it is too late."""
    limits = replace(LIMITS, resume_seconds=30.0)
    world = World(artifact, stage, limits, begin_offline=True)
    answer = world.begin(name, Faults(), 0, limits)
    cloud = world.cloud
    assert cloud is not None
    told, connect = 0, cloud.connect

    def connect_and_break() -> Link:
        link = connect()
        if before_welcome:
            cloud.cut()
        elif told >= 3:
            receive, asked = link.receive, list[float]()

            def break_late(timeout: float) -> bytes:
                asked.append(timeout)
                if len(asked) == 2:  # after the Welcome
                    world.clock.advance(limits.resume_seconds + 1)
                    cloud.cut()
                return receive(timeout)

            link.receive = break_late  # type: ignore[method-assign]
        return link

    cloud.connect = connect_and_break  # type: ignore[method-assign]
    for piece in answer.with_previews():
        world.clock.advance(0.5)
        told += not piece.preview
        if told == 3 and not piece.preview:
            cloud.cut()
    assert len(answer.account.tokens) == TOKENS
    assert answer.account.tokens[-1].provisional


@pytest.mark.parametrize("name", WAITING)
def test_without_exits_there_is_nothing_to_begin_with(
    artifact: Artifact, stage: Stage, name: str
) -> None:
    world = World(artifact, stage, begin_offline=True)
    answer = world.begin(name, Faults(), 0)
    assert world.cloud is not None
    world.cloud.is_reachable = False
    with pytest.raises(Unreachable):
        answer.finish()
