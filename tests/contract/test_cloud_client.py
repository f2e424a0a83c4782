"""A client and its cloud over both links: wire formats, scores, late verdicts, counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.contract.link_services import until
from tests.support import F32, random_artifact, token_ids

from collm.config import Sampling
from collm.errors import LinkTimeout, ProtocolError, Refused
from collm.limits import Limits
from collm.link.background import BackgroundServer
from collm.link.base import Link, Peer
from collm.link.delayed import DelayedLink
from collm.link.grpc_client import connect
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.policy.sampling import choose, log_probability
from collm.runtime.stage import Stage, StageSession
from collm.session.client import CloudClient
from collm.session.cloud import CloudConversation, CloudService
from collm.wire.codec import ROW_FORMATS, cast_rows, row_bytes
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import Scored, Verdict

LIMITS = Limits(connect_seconds=3.0, verdict_seconds=5.0, linger_seconds=0.2, kv_step=16)
PROMPT = [5, 17, 42, 99, 7, 250, 31]
GREEDY = Sampling()
WARM = Sampling(temperature=1.3, top_p=0.95, seed=11, repetition_penalty=1.3)
CUT = 2


@dataclass(frozen=True)
class World:
    """A cloud, links to it, and the same model here to compare with."""

    artifact: Artifact
    stage: Stage
    dial: Callable[[], Link]
    stack: ExitStack

    def client(
        self, cut: int = CUT, wire_format: str = "f32", delay: float = 0.0, limits: Limits = LIMITS
    ) -> CloudClient:
        link = self.dial()
        made = CloudClient(
            DelayedLink(link, delay, limits=limits) if delay else link,
            fingerprint=self.artifact.fingerprint,
            cut=cut,
            vocabulary=self.artifact.architecture.vocab_size,
            limits=limits,
            wire_format=wire_format,
        )
        return self.stack.enter_context(made)

    def rows(self, ids: Sequence[int], cut: int = CUT) -> F32:
        """Hidden states at the cut, float32 [len(ids), d]."""
        session = self.stage.open()
        session.append_ids(ids)
        return session.hidden_at(cut, 0)

    def whole(self, ids: Sequence[int], wire_format: str = "f32", cut: int = CUT) -> StageSession:
        """The whole model here, its states cast at the cut."""
        session = self.stage.open(cut)
        session.append_hidden(cast_rows(wire_format, self.rows(ids, cut)))
        return session

    def next(self, ids: Sequence[int], sampling: Sampling, wire_format: str) -> tuple[int, float]:
        logits = self.whole(ids, wire_format).logits(len(ids) - 1)[-1]
        token = choose(logits, sampling, len(ids), ids)
        return token, log_probability(logits, token)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    return random_artifact(folder, cuts=(1, 2, 3), weights="int4", max_position_embeddings=400)


@pytest.fixture(params=["memory", "grpc"])
def world(request: pytest.FixtureRequest, artifact: Artifact) -> Iterator[World]:
    with ExitStack() as stack:
        stage = Stage(artifact, range(4), limits=LIMITS)
        service = CloudService(stage, LIMITS)
        if request.param == "memory":
            dial = stack.enter_context(MemoryCloud(service, LIMITS)).connect
        else:
            server = stack.enter_context(BackgroundServer(service, "127.0.0.1:0", LIMITS))
            dial = lambda: connect(server.address, LIMITS)  # noqa: E731
        yield World(artifact, stage, dial, stack)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("wire_format", ROW_FORMATS)
def test_verified_text_is_that_of_the_model_with_the_same_cast(
    world: World, wire_format: str, sampling: Sampling
) -> None:
    """Drafts right and wrong, rows in groups of every size: the reference knows none of that."""
    client = world.client(wire_format=wire_format)
    random = np.random.default_rng(3)
    ids = list(PROMPT)
    while len(ids) < 30:
        # Right for as long as chance wants, then wrong.
        draft: list[int] = []
        for _ in range(int(random.integers(0, 4))):
            draft.append(world.next([*ids, *draft], sampling, wire_format)[0])
        right = len(draft)
        draft += [(draft[-1] if draft else 3) ^ 1] * int(random.integers(0, 2))
        text = [*ids, *draft]
        rows = world.rows(text)
        for start in range(client.sent, len(text), 3):
            client.append(text[start : start + 3], rows[start : start + 3])
        verdict = client.verify(draft, sampling)
        ids += draft[: verdict.accepted]
        token, logprob = world.next(ids, sampling, wire_format)
        assert verdict.accepted >= right
        assert (verdict.next_token, verdict.logprob) == (token, logprob)
        assert client.sent == len(ids)
        ids.append(token)


def test_rows_take_no_more_bytes_than_their_format_says(world: World) -> None:
    ids = token_ids(1, 100)
    rows = world.rows(ids)
    up = {}
    for wire_format in ROW_FORMATS:
        client = world.client(wire_format=wire_format)
        before = client.bytes_up
        client.append(ids, rows)
        up[wire_format] = client.bytes_up - before
    hidden = world.artifact.architecture.hidden_size
    for wire_format in ROW_FORMATS:
        assert 100 * (row_bytes(wire_format, hidden) + 4) + 30 - up[wire_format] > 0
    assert up["int4"] < up["int8"] < 0.75 * up["f16"] < up["f32"]


def test_a_cloud_of_cut_0_is_sent_ids_whatever_the_format(world: World) -> None:
    client = world.client(cut=0, wire_format="int8")
    client.append(PROMPT, None)
    token, logprob = world.next(PROMPT, GREEDY, "f32")
    verdict = client.verify([], GREEDY)
    assert (verdict.next_token, verdict.logprob) == (token, logprob)


@pytest.mark.parametrize("wire_format", ["f17", "ids"])
def test_a_format_without_rows_is_refused_with_a_reason(world: World, wire_format: str) -> None:
    with pytest.raises(Refused, match=wire_format):
        world.client(wire_format=wire_format)


@pytest.mark.parametrize("length", [0, 1, 5, 255])
@pytest.mark.parametrize("wire_format", ["f32", "int8"])
def test_scores_are_the_whole_models(world: World, wire_format: str, length: int) -> None:
    text = token_ids(length, len(PROMPT) + length)
    logits = world.whole(text, wire_format).logits(len(PROMPT) - 1)
    # One drafted token of rank 1, so that there is a good one too.
    if length > 1:
        text[len(PROMPT)] = int(logits[0].argmax())
        logits = world.whole(text, wire_format).logits(len(PROMPT) - 1)
    draft = text[len(PROMPT) :]
    client = world.client(wire_format=wire_format)
    client.append(text, world.rows(text))
    scored = client.score(draft)
    pairs = list(zip(logits, draft, strict=False))
    assert scored.logprobs == tuple(log_probability(row, token) for row, token in pairs)
    assert scored.ranks == tuple(
        1 + np.argsort(-row, kind="stable").tolist().index(token) for row, token in pairs
    )
    best = [int(row.argmax()) for row in logits]
    best_logprobs = [log_probability(row, token) for row, token in zip(logits, best, strict=True)]
    assert (scored.best_ids, scored.next_token) == (tuple(best[:-1]), best[-1])
    assert (scored.best_logprobs, scored.next_logprob) == (
        tuple(best_logprobs[:-1]),
        best_logprobs[-1],
    )
    assert length < 2 or scored.ranks[0] == 1
    assert scored.cloud_seconds > 0
    assert client.sent == len(text)


@pytest.mark.parametrize("keep", [0, 2, 5])
def test_a_scored_text_is_cropped_and_goes_on_as_if_written_so(world: World, keep: int) -> None:
    text = token_ids(8, len(PROMPT) + 5)
    client = world.client()
    client.append(text, world.rows(text))
    client.score(text[len(PROMPT) :])
    cropped = text[: len(PROMPT) + keep]
    client.crop(len(cropped))
    # Nothing new: the same rows are asked about again.
    again = client.verify([], GREEDY)
    assert (again.next_token, again.logprob) == world.next(cropped, GREEDY, "f32")
    mended = [*cropped, 77, 78, 79]
    client.append(mended[client.sent :], world.rows(mended)[client.sent :])
    scored = client.score([77, 78, 79])
    fresh = world.client()
    fresh.append(mended, world.rows(mended))
    assert replace(scored, epoch=0, cloud_seconds=0.0) == replace(
        fresh.score([77, 78, 79]), cloud_seconds=0.0
    )
    rejected = client.verify([77, 78, 79], GREEDY)
    assert rejected.next_token == again.next_token or rejected.accepted
    with pytest.raises(ValueError, match="crop to 99"):
        client.crop(99)


@pytest.mark.timed
def test_late_verdicts_are_skipped_and_told(world: World) -> None:
    client = world.client(delay=0.4)
    ids = list(PROMPT)
    client.append(ids, world.rows(ids))
    asked: list[tuple[int, float]] = []
    for _ in range(3):
        asked.append(world.next(ids, GREEDY, "f32"))
        with pytest.raises(LinkTimeout):
            client.verify([], GREEDY, timeout=0.01)
        ids.append(3)  # the edge's own word, and it goes on
        client.append([3], world.rows(ids)[-1:])
    assert client.outstanding == 3
    verdict = client.verify([], GREEDY)
    assert (verdict.next_token, verdict.logprob) == world.next(ids, GREEDY, "f32")
    late = client.late()
    assert [(v.next_token, v.logprob) for v, _ in late] == asked
    assert all(0.4 <= seconds < LIMITS.verdict_seconds for _, seconds in late)
    assert client.outstanding == 0 and client.late() == []


@pytest.mark.timed
def test_a_probe_is_not_waited_for(world: World) -> None:
    client = world.client(delay=0.3)
    client.append(PROMPT, world.rows(PROMPT))
    started = time.monotonic()
    client.ask(GREEDY)
    assert client.late() == []
    assert time.monotonic() - started < 0.3
    heard: list[tuple[Verdict, float]] = []
    assert until(lambda: bool(heard.extend(client.late()) or heard))
    assert heard[0][0].next_token == world.next(PROMPT, GREEDY, "f32")[0]
    assert 0.3 <= heard[0][1] <= time.monotonic() - started
    with pytest.raises(ValueError, match="ask first"):
        client.collect(0.1)


def test_drafts_scores_and_crops_work_while_questions_are_out(world: World) -> None:
    client = world.client(delay=0.05)
    text = [*PROMPT, 60, 61]
    rows = world.rows(text)
    client.append(PROMPT, rows[: len(PROMPT)])
    client.ask(GREEDY)
    client.ask(GREEDY)
    client.append([60, 61], rows[len(PROMPT) :])
    token, _ = world.next(PROMPT, GREEDY, "f32")
    verdict = client.verify([60, 61], GREEDY)
    assert (verdict.accepted, verdict.next_token) == (0, token)
    client.ask(GREEDY)
    client.crop(len(PROMPT))
    client.append([60], rows[len(PROMPT)][None])
    assert client.score([60]).best_ids == (token,)
    assert [v.next_token for v, _ in client.late()] == [token] * 3


def test_generating_skips_what_was_asked_before(world: World) -> None:
    client = world.client(cut=0, delay=0.02)
    client.append(PROMPT, None)
    client.ask(GREEDY)
    made = [token.token_id for token in client.generate(4, (), GREEDY)]
    assert made[0] == world.next(PROMPT, GREEDY, "f32")[0]
    assert [v.next_token for v, _ in client.late()] == made[:1]


def test_a_drafts_verdict_cannot_be_given_up(world: World) -> None:
    client = world.client(delay=0.15)
    client.append([*PROMPT, 60], world.rows([*PROMPT, 60]))
    with pytest.raises(LinkTimeout):
        client.verify([60], GREEDY, timeout=0.0)
    rows = world.rows([1])
    for call in (
        lambda: client.ask(GREEDY),
        lambda: client.append([1], rows),
        lambda: client.score([60]),
        lambda: client.crop(3),
        lambda: next(client.generate(1, (), GREEDY)),
    ):
        with pytest.raises(ProtocolError, match="collect it first"):
            call()
    assert client.late() == []
    assert client.collect().accepted == 0
    assert client.sent == len(PROMPT)
    client.ask(GREEDY)
    client.collect()


def test_questions_are_bounded(world: World) -> None:
    client = world.client(delay=0.3, limits=replace(LIMITS, max_questions=3))
    client.append(PROMPT, world.rows(PROMPT))
    for _ in range(3):
        client.ask(GREEDY)
    with pytest.raises(LinkTimeout, match="3 questions unanswered"):
        client.ask(GREEDY)
    assert client.collect().next_token == world.next(PROMPT, GREEDY, "f32")[0]
    assert len(client.late()) == 2


def test_the_clouds_work_is_counted(world: World) -> None:
    client = world.client()
    text = [*PROMPT, 60, 61, 62]
    rows, prompt = world.rows(text), len(PROMPT)
    client.append(PROMPT, rows[:prompt])
    assert (client.rows_run, client.heads_run) == (0, 0)
    client.verify([], GREEDY)
    assert (client.rows_run, client.heads_run) == (prompt, 1)
    client.verify([], GREEDY)  # nothing pending
    assert (client.rows_run, client.heads_run) == (prompt, 2)
    client.append([60, 61, 62], rows[prompt:])
    client.score([60, 61, 62])
    assert (client.rows_run, client.heads_run) == (prompt + 3, 6)
    client.crop(prompt + 1)
    client.append([61, 62], rows[prompt + 1 :])
    client.score([61, 62])
    assert (client.rows_run, client.heads_run) == (prompt + 5, 9)
    alone = world.client(cut=0)
    alone.append(PROMPT, None)
    assert len(list(alone.generate(5, (), GREEDY))) == 5
    assert (alone.rows_run, alone.heads_run) == (prompt + 4, 5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": 1}, "not about this draft"),
        ({"epoch": 7}, "not about this draft"),
        ({"logprobs": (), "ranks": (), "best_ids": (), "best_logprobs": ()}, "not about this"),
        ({"best_ids": (300,)}, "beyond the vocabulary"),
        ({"next_token": 300}, "beyond the vocabulary"),
        ({"ranks": (301,)}, "rank of 301"),
    ],
)
def test_scores_that_cannot_be_are_a_protocol_error(
    artifact: Artifact, changes: dict[str, Any], words: str
) -> None:
    class Confused(CloudConversation):
        def receive(self, frame: bytes) -> Iterator[bytes]:
            for reply in super().receive(frame):
                message = decode_cloud(reply, LIMITS)
                is_scored = isinstance(message, Scored)
                yield encode(replace(message, **changes)) if is_scored else reply

    class ConfusedService(CloudService):
        def open(self, peer: Peer) -> CloudConversation:
            return Confused(self, peer)

    stage = Stage(artifact, range(4), limits=LIMITS)
    with MemoryCloud(ConfusedService(stage, LIMITS), LIMITS) as cloud, ExitStack() as stack:
        client = World(artifact, stage, cloud.connect, stack).client(cut=0)
        client.append(PROMPT, None)
        with pytest.raises(ProtocolError, match=words):
            client.score(PROMPT[-1:])


def test_scores_of_what_was_not_appended_or_is_gone_are_refused(world: World) -> None:
    client = world.client(cut=0)
    client.append(PROMPT, None)
    with pytest.raises(Refused, match="draft is not what"):
        client.score([1, 2])
    client = world.client(cut=0)
    client.append(PROMPT, None)
    client.score([])
    with pytest.raises(Refused, match="row 4 is gone"):
        client.score(PROMPT[-2:])
