"""Sessions over both links, on a tiny random model: the text is exact, breaches are refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.contract.link_services import until
from tests.support import random_artifact

from collm.config import Generation, Sampling
from collm.errors import LinkError, PromptError, ProtocolError, Refused
from collm.limits import Limits
from collm.link.background import BackgroundServer
from collm.link.base import Link, Peer
from collm.link.grpc_client import connect
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.runtime.onnx_backend import OnnxBackend, OnnxHead
from collm.runtime.stage import Stage
from collm.session.client import CloudClient
from collm.session.cloud import CloudConversation, CloudService
from collm.session.edge import Edge
from collm.session.oracle import Oracle
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import (
    Append,
    CloudMessage,
    Crop,
    Generate,
    Heartbeat,
    Hello,
    Pong,
    Refusal,
    Verdict,
    Verify,
    Welcome,
)

LIMITS = Limits(
    connect_seconds=3.0, verdict_seconds=5.0, linger_seconds=0.2, kv_step=16, resume_seconds=1.0
)
PROMPT = [5, 17, 42, 99, 7, 250, 31]
GREEDY = Sampling()
WARM = Sampling(temperature=1.3, top_p=0.95, seed=11, repetition_penalty=1.3)


class CountingService(CloudService):
    """Remembers its conversations."""

    def __init__(self, stage: Stage, limits: Limits) -> None:
        super().__init__(stage, limits)
        self.opened: list[CloudConversation] = []

    def open(self, peer: Peer) -> CloudConversation:
        made = super().open(peer)
        self.opened.append(made)
        return made


@dataclass(frozen=True)
class World:
    artifact: Artifact
    service: CountingService
    dial: Callable[[], Link]

    def edge(self, mode: str, placement: int, **options: object) -> Edge:
        return Edge(self.artifact, mode=mode, placement=placement, connect=self.dial,
                    limits=LIMITS, **options)  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    return random_artifact(folder, cuts=(1, 2, 3), weights="int4", max_position_embeddings=96)


@pytest.fixture(params=["memory", "grpc"])
def world(request: pytest.FixtureRequest, artifact: Artifact) -> Iterator[World]:
    with ExitStack() as stack:
        stage = Stage(artifact, range(artifact.architecture.layers), limits=LIMITS)
        service = CountingService(stage, LIMITS)
        if request.param == "memory":
            cloud = stack.enter_context(MemoryCloud(service, LIMITS))
            yield World(artifact, service, cloud.connect)
        else:
            server = stack.enter_context(BackgroundServer(service, "127.0.0.1:0", LIMITS))
            yield World(artifact, service, lambda: connect(server.address, LIMITS))


def answer(edge: Edge, generation: Generation) -> list[int]:
    return edge.answer(PROMPT, replace(generation, mode=edge.mode)).finish().token_ids


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_all_ways_give_the_same_text(world: World, sampling: Sampling) -> None:
    made = Generation(max_tokens=40, sampling=sampling, ignore_eos=True)
    reference = answer(world.edge("verified", 4), made)
    assert len(reference) == 40
    assert answer(world.edge("cloud", 0), made) == reference
    for placement in (0, 1, 2, 3):
        edge = world.edge("verified", placement)
        for draft, threshold in ((1, 0.0), (5, 0.0), (16, 0.05), (3, 0.9)):
            bold = replace(made, draft=draft, threshold=threshold)
            assert answer(edge, bold) == reference, (placement, draft, threshold)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_drafting_ahead_gives_the_same_text(world: World, sampling: Sampling) -> None:
    made = Generation(max_tokens=40, sampling=sampling, ignore_eos=True)
    reference = answer(world.edge("verified", 4), made)
    for placement in (0, 1, 3):
        edge = world.edge("verified", placement)
        for draft, threshold, ahead in ((1, 0.0, 0.0), (5, 0.1, 0.0), (16, 0.05, 0.04), (3, 2, 0)):
            bold = replace(made, draft=draft, threshold=min(threshold, 1.0), ahead=ahead)
            assert answer(edge, bold) == reference, (placement, draft, threshold, ahead)


@pytest.mark.parametrize("rate", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("exits", [None, ()])
def test_an_oracle_ahead_gives_the_same_text(
    world: World, rate: float, exits: tuple[int, ...] | None
) -> None:
    made = Generation(max_tokens=60, ignore_eos=True, ahead=0.3)
    reference = answer(world.edge("verified", 4), replace(made, ahead=None))
    oracle = Oracle(ids=tuple(reference), rate=rate)
    account = world.edge("verified", 2, exits=exits).answer(PROMPT, made, oracle).finish()
    assert account.token_ids == reference
    if rate == 1.0:
        assert account.sources.get("oracle", 0) >= 58


def test_drafting_ahead_fills_the_context(world: World) -> None:
    made = Generation(max_tokens=1000, threshold=0.0, draft=7, ahead=0.0, ignore_eos=True)
    account = world.edge("verified", 2).answer(PROMPT, made).finish()
    assert len(PROMPT) + len(account.tokens) == 96


def test_the_cloud_runs_what_is_settled_before_it_is_asked(world: World) -> None:
    bare = Bare(world)
    bare.send(Append(epoch=0, base=0, token_ids=tuple(PROMPT), rows=None, settled=True))
    bare.append(len(PROMPT), [8])
    bare.send(Heartbeat(nonce=1))
    assert bare.receive() == Pong(nonce=1)  # frames are taken in order
    held = world.service.opened[0]._held
    assert held is not None
    session = held._session
    assert (session._done[-1], session.position) == (len(PROMPT), len(PROMPT) + 1)


def test_the_cloud_runs_nothing_that_was_drafted_on_a_wrong_guess(world: World) -> None:
    bare = Bare(world)
    bare.append(0, PROMPT)
    first = bare.verify(len(PROMPT) - 1, [])
    assert isinstance(first, Verdict)
    wrong = (first.next_token + 1) % 300
    (conversation,) = world.service.opened
    assert conversation._held is not None
    session = conversation._held._session
    bare.append(len(PROMPT), [wrong, 5])
    second = bare.verify(len(PROMPT) - 1, [wrong, 5])
    assert isinstance(second, Verdict)
    assert (second.accepted, second.next_token) == (0, first.next_token)
    assert session.position == len(PROMPT) == session._done[-1]
    # What was sent before that was known gets no answer: the next one is the new epoch's.
    bare.send(Verify(epoch=0, base=len(PROMPT) + 1, draft=(6,), sampling=GREEDY))
    bare.append(len(PROMPT), [first.next_token], epoch=1)
    third = bare.verify(len(PROMPT), [], epoch=1)
    assert isinstance(third, Verdict) and third.epoch == 1


def test_single_exits_and_no_exits_give_the_same_text(world: World) -> None:
    made = Generation(max_tokens=24, threshold=0.0, ignore_eos=True)
    reference = answer(world.edge("verified", 4), made)
    for exits in ((), (1,), (2,), (1, 3)):
        assert answer(world.edge("verified", 3, exits=exits), made) == reference


@pytest.mark.parametrize("mode", ["verified", "cloud"])
def test_the_context_is_filled_to_the_last_position_and_no_further(world: World, mode: str) -> None:
    made = Generation(mode=mode, max_tokens=1000, threshold=0.0, draft=7, ignore_eos=True)
    account = world.edge(mode, 2).answer(PROMPT, made).finish()
    assert len(PROMPT) + len(account.tokens) == 96
    assert account.finish_reason == "length"


def test_a_finished_answer_frees_the_cloud(world: World) -> None:
    answer(world.edge("verified", 2), Generation(max_tokens=5, ignore_eos=True))
    assert len(world.service.opened) == 1
    assert until(lambda: not len(world.service.sessions))


def test_an_abandoned_answer_frees_the_cloud(world: World) -> None:
    running = iter(world.edge("cloud", 0).answer(PROMPT, Generation(mode="cloud", ignore_eos=True)))
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert len(world.service.opened) == 1
    assert until(lambda: not len(world.service.sessions))


def test_sessions_of_different_cuts_share_one_cloud(world: World) -> None:
    made = Generation(max_tokens=12, threshold=0.0, ignore_eos=True)
    reference = answer(world.edge("verified", 4), made)
    running = [iter(world.edge("verified", cut).answer(PROMPT, made)) for cut in (0, 1, 3)]
    got: list[list[int]] = [[], [], []]
    for _ in range(12):
        for ids, pieces in zip(got, running, strict=True):
            ids.append(next(pieces).token.token_id)
    assert got == [reference] * 3


def test_another_artifact_is_refused_before_any_token(world: World) -> None:
    with world.dial() as link, pytest.raises(Refused) as caught:
        CloudClient(link, fingerprint="0" * 64, cut=2, vocabulary=300, limits=LIMITS)
    assert caught.value.code == "fingerprint"
    with world.dial() as link, pytest.raises(Refused) as caught:
        CloudClient(
            link, fingerprint=world.artifact.fingerprint, cut=7, vocabulary=300, limits=LIMITS
        )
    assert caught.value.code == "placement"
    assert not len(world.service.sessions)


def test_a_cloud_that_dies_ends_the_answer_with_a_link_error(artifact: Artifact) -> None:
    stage = Stage(artifact, range(4), limits=LIMITS)
    with BackgroundServer(CloudService(stage, LIMITS), "127.0.0.1:0", LIMITS) as server:
        edge = Edge(artifact, mode="cloud", placement=0, limits=LIMITS,
                    connect=lambda: connect(server.address, LIMITS))  # fmt: skip
        made = Generation(mode="cloud", max_tokens=80, ignore_eos=True)
        running = iter(edge.answer(PROMPT, made))
        next(running)
        server.close()
        with pytest.raises(LinkError):
            list(running)


def test_an_edge_without_a_cloud_says_what_to_do(artifact: Artifact) -> None:
    edge = Edge(artifact, mode="verified", placement=2)
    with pytest.raises(PromptError, match="--cloud"):
        edge.answer(PROMPT, Generation()).finish()


class Bare:
    """A session spoken by hand, frame by frame."""

    def __init__(self, world: World, cut: int = 0) -> None:
        self.link = world.dial()
        self.format = "f32" if cut else "ids"
        self.send(Hello(protocol_major=1, protocol_minor=0, cut=cut, wire_format=self.format,
                        fingerprint=world.artifact.fingerprint, software="test"))  # fmt: skip
        assert isinstance(self.receive(), Welcome)

    def send(self, message: object) -> None:
        self.link.send(encode(message, self.format))  # type: ignore[arg-type]

    def receive(self) -> CloudMessage:
        return decode_cloud(self.link.receive(5.0), LIMITS)

    def append(self, base: int, ids: list[int], epoch: int = 0) -> None:
        self.send(Append(epoch=epoch, base=base, token_ids=tuple(ids), rows=None))

    def verify(self, base: int, draft: list[int], epoch: int = 0) -> CloudMessage:
        self.send(Verify(epoch=epoch, base=base, draft=tuple(draft), sampling=GREEDY))
        return self.receive()


@pytest.fixture
def bare(world: World) -> Iterator[Bare]:
    made = Bare(world)
    yield made
    made.link.close()


def expect_refusal(reply: CloudMessage, *words: str) -> None:
    assert isinstance(reply, Refusal)
    assert reply.code == "protocol"
    for word in words:
        assert word in reply.reason


def test_appends_are_idempotent_and_late_ones_harmless(world: World, bare: Bare) -> None:
    bare.append(0, PROMPT)
    first = bare.verify(len(PROMPT) - 1, [])
    assert isinstance(first, Verdict)
    wrong = (first.next_token + 1) % 300
    bare.append(0, PROMPT)  # all of it again
    bare.append(4, PROMPT[4:] + [wrong])  # some again, some new
    second = bare.verify(len(PROMPT) - 1, [wrong])
    assert isinstance(second, Verdict)
    # The wrong draft is rejected with the very token of the first verdict; the epoch is now 1.
    assert (second.accepted, second.next_token) == (0, first.next_token)
    assert second.logprob == first.logprob
    bare.append(len(PROMPT), [wrong, wrong], epoch=0)  # late: of the abandoned epoch
    bare.append(len(PROMPT), [first.next_token], epoch=1)
    third = bare.verify(len(PROMPT), [], epoch=1)
    reference = answer(world.edge("verified", 4), Generation(max_tokens=2, ignore_eos=True))
    assert isinstance(third, Verdict)
    assert [first.next_token, third.next_token] == reference


def test_a_gap_names_the_wanted_position(bare: Bare) -> None:
    bare.append(0, PROMPT)
    bare.append(9, [1, 2])
    expect_refusal(bare.receive(), "9", f"{len(PROMPT)} is the next wanted")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Append(epoch=3, base=0, token_ids=(1,), rows=None), ["epoch 3"]),
        (Append(epoch=0, base=0, token_ids=(300,), rows=None), ["300"]),
        (Verify(epoch=0, base=0, draft=(), sampling=GREEDY), ["0 positions"]),
        (Generate(epoch=0, base=0, max_tokens=3, stop_ids=(), sampling=GREEDY), ["0 positions"]),
        (Crop(epoch=5, position=0), ["epoch 5"]),
    ],
)
def test_breaches_are_refused_with_a_reason(bare: Bare, message: object, words: list[str]) -> None:
    bare.send(message)
    expect_refusal(bare.receive(), *words)


def test_a_draft_that_was_not_appended_is_refused(bare: Bare) -> None:
    bare.append(0, PROMPT)
    expect_refusal(bare.verify(len(PROMPT) - 2, [1]), "draft")


def test_a_second_hello_and_work_before_hello_are_refused(world: World, bare: Bare) -> None:
    with world.dial() as link:
        link.send(encode(Append(epoch=0, base=0, token_ids=(1,), rows=None)))
        expect_refusal(decode_cloud(link.receive(5.0), LIMITS), "before Hello")
    bare.send(Hello(protocol_major=1, protocol_minor=0, cut=0, wire_format="ids",
                    fingerprint=world.artifact.fingerprint, software="test"))  # fmt: skip
    expect_refusal(bare.receive(), "second Hello")


def test_rows_that_are_gone_are_refused(world: World, bare: Bare) -> None:
    bare.append(0, PROMPT)
    bare.verify(len(PROMPT) - 1, [])
    expect_refusal(bare.verify(len(PROMPT) - 3, PROMPT[-2:]), "gone")
    other = Bare(world)
    other.append(0, PROMPT)
    other.verify(len(PROMPT) - 1, [])
    other.send(Crop(epoch=1, position=3))
    other.send(Generate(epoch=1, base=3, max_tokens=1, stop_ids=(), sampling=GREEDY))
    expect_refusal(other.receive(), "gone")
    other.link.close()


def test_an_answer_runs_once_and_goes_on_where_it_was_left(world: World) -> None:
    made = Generation(max_tokens=20, threshold=0.0, ignore_eos=True)
    reference = answer(world.edge("verified", 4), made)
    running = world.edge("verified", 2).answer(PROMPT, made)
    first = next(iter(running)).token.token_id
    assert running.finish().token_ids == reference
    assert first == reference[0]
    assert list(running) == []
    assert running.finish().token_ids == reference


def test_prompt_ids_beyond_the_vocabulary_are_refused(world: World) -> None:
    for ids in ([300], [-1], []):
        with pytest.raises(PromptError):
            world.edge("cloud", 0).answer(ids, Generation(mode="cloud"))


def test_a_head_shared_by_exits_is_loaded_once(artifact: Artifact) -> None:
    class Counting(OnnxBackend):
        heads = 0

        def head(self, graph: Path, confidence: Path) -> OnnxHead:
            self.heads += 1
            return super().head(graph, confidence)

    backend = Counting(artifact.architecture, 1, LIMITS)
    Stage(artifact, range(4), exits=(1, 2, 3), backend=backend)
    assert backend.heads == 1


def test_a_busy_cloud_keeps_newcomers_waiting_but_takes_them(artifact: Artifact) -> None:
    """A turn may take longer than connecting: another client's long prompt, say."""

    class Slow(CloudService):
        def open(self, peer: Peer) -> CloudConversation:
            time.sleep(0.4)
            return super().open(peer)

    limits = replace(LIMITS, connect_seconds=0.2)
    with MemoryCloud(Slow(Stage(artifact, range(4), limits=limits), limits), limits) as cloud:
        edge = Edge(artifact, mode="cloud", placement=0, connect=cloud.connect, limits=limits)
        made = Generation(mode="cloud", max_tokens=3, ignore_eos=True)
        assert len(edge.answer(PROMPT, made).finish().token_ids) == 3


def test_a_cut_above_zero_does_not_generate(world: World) -> None:
    made = Bare(world, cut=2)
    rows = np.zeros((1, world.artifact.architecture.hidden_size), np.float32)
    made.send(Append(epoch=0, base=0, token_ids=(1,), rows=rows))
    made.send(Generate(epoch=0, base=1, max_tokens=1, stop_ids=(), sampling=GREEDY))
    expect_refusal(made.receive(), "cut 0")
    made.link.close()


def test_more_positions_than_the_context_are_refused(bare: Bare) -> None:
    bare.append(0, [1] * 97)
    reply = bare.receive()
    assert isinstance(reply, Refusal) and reply.code == "limits" and "96" in reply.reason


def test_heartbeats_and_crops(bare: Bare) -> None:
    bare.send(Heartbeat(nonce=77))
    assert bare.receive() == Pong(nonce=77)
    bare.append(0, PROMPT)
    before = bare.verify(len(PROMPT) - 1, [])
    bare.append(len(PROMPT), [3, 4, 5])
    bare.send(Crop(epoch=1, position=3))
    bare.append(3, PROMPT[3:], epoch=1)
    after = bare.verify(len(PROMPT) - 1, [], epoch=1)
    assert isinstance(before, Verdict) and isinstance(after, Verdict)
    assert (after.next_token, after.logprob) == (before.next_token, before.logprob)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": 99}, "not about this draft"),
        ({"epoch": 7}, "not about this draft"),
        ({"next_token": 300}, "beyond the vocabulary"),
        ({"logprob": 800.0}, "logprob"),
        ({"exit_cut": 3}, "exit 3 answers a question that only the full model may answer"),
    ],
)
def test_a_verdict_that_cannot_be_is_a_protocol_error(
    artifact: Artifact, changes: dict[str, Any], words: str
) -> None:
    """A cloud that answers out of turn does not get its tokens into a text."""

    class Confused(CloudConversation):
        def receive(self, frame: bytes) -> Iterator[bytes]:
            for reply in super().receive(frame):
                message = decode_cloud(reply, LIMITS)
                if isinstance(message, Verdict):
                    yield encode(replace(message, **changes))
                else:
                    yield reply

    class ConfusedService(CloudService):
        def open(self, peer: Peer) -> CloudConversation:
            return Confused(self, peer)

    stage = Stage(artifact, range(4), limits=LIMITS)
    with MemoryCloud(ConfusedService(stage, LIMITS), LIMITS) as cloud:
        edge = Edge(artifact, mode="verified", placement=2, connect=cloud.connect, limits=LIMITS)
        with pytest.raises(ProtocolError, match=words):
            edge.answer(PROMPT, Generation()).finish()
