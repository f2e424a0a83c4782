"""Cut, wire format and drafting change in mid-answer; the text stays the same to the last bit."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.contract.test_session_contract import (
    GREEDY,
    LIMITS,
    PROMPT,
    WARM,
    World,
    answer,
    artifact,
    world,
)
from tests.support import token_ids

from collm.config import Generation, Sampling, Way
from collm.errors import (
    LinkError,
    PlacementError,
    PromptError,
    ProtocolError,
    Refused,
    Unreachable,
)
from collm.link.base import Link, Peer
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.policy.controller import Decision
from collm.runtime.stage import Stage
from collm.session.client import CloudClient
from collm.session.cloud import CloudConversation, CloudService
from collm.session.drafter import Guess
from collm.session.edge import Edge
from collm.session.run import Run
from collm.wire.codec import ROW_FORMATS, cast_rows
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import (
    Append,
    Attach,
    Attached,
    Evicted,
    Hello,
    Recut,
    Verdict,
    Welcome,
)

__all__ = ["artifact", "world"]
LONG = Generation(max_tokens=60, ignore_eos=True, threshold=0.05)
CUTS = (0, 1, 2, 3)


class Wanderer:
    """Goes another way at every boundary, at random."""

    def __init__(self, seed: int, *, wires: tuple[str, ...] = ("f32", "ids")) -> None:
        self.random = random.Random(seed)
        self.wires = wires
        self.moves = 0

    def judged(self, guess: Guess, token_id: int) -> None:
        pass

    def unusable(self, way: Way) -> None:
        pass

    def token(self, run: Run, client: CloudClient, cloud_seconds: float) -> None:
        pass

    def way(self, run: Run, client: CloudClient, verdict: Verdict) -> Way | None:
        if self.random.random() < 0.3:
            return None
        self.moves += 1
        placement = self.random.choice(CUTS)
        return Way(
            placement=placement,
            exits=self.random.choice([None, (placement,), ()]) if placement else (),
            wire=self.random.choice(self.wires),
            draft=self.random.choice([1, 4, 9]),
            ahead=self.random.choice([None, 0.0, 0.05]),
            threshold=self.random.choice([0.0, 0.05, 0.3]),
        )


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("seed", range(4))
def test_moving_the_cut_at_random_changes_nothing(
    world: World, sampling: Sampling, seed: int
) -> None:
    made = replace(LONG, sampling=sampling)
    reference = answer(world.edge("verified", 4), made)
    wanderer = Wanderer(seed)
    ahead = None if seed % 2 else 0.0
    edge = world.edge("verified", 2)
    account = edge.answer(PROMPT, replace(made, ahead=ahead), steer=wanderer).finish()
    assert account.token_ids == reference
    assert wanderer.moves >= 5
    # The next answer begins where this one ended.
    assert answer(edge, made) == reference


@pytest.mark.parametrize("wire", ROW_FORMATS)
@pytest.mark.parametrize("placement", [1, 3])
def test_token_ids_alone_give_the_full_models_text(world: World, wire: str, placement: int) -> None:
    reference = answer(world.edge("verified", 4), LONG)
    account = world.edge("verified", placement, wire="ids").answer(PROMPT, LONG).finish()
    assert account.token_ids == reference
    assert account.sources.keys() >= {f"exit@{placement}"} or account.drafted
    other = world.edge("verified", placement, wire=wire).answer(PROMPT, LONG).finish()
    assert account.bytes_up < other.bytes_up


class Once(Wanderer):
    """Goes one way, at the n-th boundary."""

    def __init__(self, at: int, way: Way) -> None:
        super().__init__(0)
        self.left = at
        self.to = way

    def way(self, run: Run, client: CloudClient, verdict: Verdict) -> Way | None:
        self.left -= 1
        return self.to if self.left == 0 else None


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("ahead", [None, 0.0])
def test_leaving_the_rest_to_the_cloud_changes_nothing(
    world: World, sampling: Sampling, ahead: float | None
) -> None:
    made = replace(LONG, sampling=sampling)
    reference = answer(world.edge("verified", 4), made)
    edge, steer = world.edge("verified", 2), Once(3, Way(mode="cloud"))
    account = edge.answer(PROMPT, replace(made, ahead=ahead), steer=steer).finish()
    assert account.token_ids == reference
    assert [token.source for token in account.tokens[-20:]] == ["cloud"] * 20


def test_the_cloud_alone_stops_where_it_should(world: World) -> None:
    whole = replace(LONG, ignore_eos=False)
    reference = world.edge("verified", 4).answer(PROMPT, whole).finish()
    steer = Once(2, Way(mode="cloud"))
    account = world.edge("verified", 1).answer(PROMPT, whole, steer=steer).finish()
    assert (account.token_ids, account.finish_reason) == (
        reference.token_ids,
        reference.finish_reason,
    )
    full = replace(LONG, max_tokens=1000)
    steer = Once(2, Way(mode="cloud"))
    account = world.edge("verified", 1).answer(PROMPT, full, steer=steer).finish()
    assert len(PROMPT) + len(account.tokens) == 96


class Moving:
    """A client and, beside it, what the text has to be: casts, cuts and crops included."""

    def __init__(self, world: World, dial: bool, seed: int) -> None:
        self.artifact = world.artifact
        self.random = random.Random(seed)
        layers = world.artifact.architecture.layers
        self.whole = Stage(world.artifact, range(layers), limits=LIMITS)
        self.client = CloudClient(
            world.dial(),
            fingerprint=world.artifact.fingerprint,
            cut=2,
            vocabulary=world.artifact.architecture.vocab_size,
            limits=LIMITS,
            dial=world.dial if dial else None,
        )
        self.cut, self.wire = 2, "f32"
        self.ids: list[int] = []

    def rows(self, ids: list[int], first: int) -> np.ndarray | None:  # type: ignore[type-arg]
        if not self.cut:
            return None
        session = self.whole.open()
        session.append_ids(ids)
        return session.hidden_at(self.cut, 0)[first:]

    def append(self, count: int) -> None:
        start = len(self.ids)
        self.ids += [self.random.randrange(3, 300) for _ in range(count)]
        self.client.append(self.ids[start:], self.rows(self.ids, start))

    def recut(self) -> None:
        self.cut = self.random.choice(CUTS)
        self.client.recut(self.cut, "f32")

    def crop(self) -> None:
        to = self.random.randint(max(1, len(self.ids) - 5), len(self.ids))
        self.client.crop(to)
        del self.ids[to:]

    def check(self) -> None:
        session = self.whole.open()
        session.append_ids(self.ids)
        expected = int(session.logits(len(self.ids) - 1)[-1].argmax())
        assert self.client.verify((), GREEDY).next_token == expected


@pytest.mark.parametrize("breaks", [False, True], ids=["steady", "broken"])
@pytest.mark.parametrize("seed", range(4))
def test_recuts_crops_evictions_and_breaks(world: World, seed: int, breaks: bool) -> None:
    """Whatever the order, the cloud answers as one that got the whole text at once."""
    moving = Moving(world, breaks, seed)
    moving.append(6)
    for _ in range(40):
        step = moving.random.random()
        if step < 0.35:
            moving.recut()
        elif step < 0.6:
            moving.append(moving.random.randint(1, 4))
        elif step < 0.7 and len(moving.ids) > 8:
            moving.crop()
            moving.append(1)
        elif step < 0.8 and breaks:
            if moving.random.random() < 0.5:
                _drop_all(world)
            else:
                moving.client.connection._link.close()  # type: ignore[union-attr]
        if len(moving.ids) > 80:
            break
        moving.check()
    moving.client.close()


def _drop_all(world: World) -> None:
    """Every session loses its memory, as where others need it."""
    sessions = world.service.sessions
    for entry in list(sessions._entries.values()):
        with entry.held.lock:
            entry.held.drop()


def test_a_lossy_format_begins_where_it_was_chosen(world: World) -> None:
    """The states before stay as they came: the reference is the model with these casts."""
    artifact, layers = world.artifact, world.artifact.architecture.layers
    ids = token_ids(3, 40)
    edge = Stage(artifact, range(2), limits=LIMITS).open()
    edge.append_ids(ids)
    rows = edge.hidden_at(2, 0)
    client = CloudClient(
        world.dial(),
        fingerprint=artifact.fingerprint,
        cut=2,
        vocabulary=artifact.architecture.vocab_size,
        limits=LIMITS,
    )
    client.append(ids[:15], rows[:15])
    client.recut(2, "int4")
    client.append(ids[15:30], rows[15:30])
    client.recut(2, "f16")
    client.append(ids[30:], rows[30:])
    verdict = client.verify((), GREEDY)
    upper = Stage(artifact, range(2, layers), limits=LIMITS).open()
    upper.append_hidden(rows[:15])
    upper.append_hidden(cast_rows("int4", rows[15:30]))
    upper.append_hidden(cast_rows("f16", rows[30:]))
    assert verdict.next_token == int(upper.logits(39)[-1].argmax())
    client.close()


def test_moves_that_cannot_be_are_refused(world: World) -> None:
    edge = world.edge("verified", 2)
    with pytest.raises(PlacementError, match="expected one of"):
        edge.place(5)
    with pytest.raises(PlacementError, match="nothing to the cloud"):
        edge.place(4)
    assert edge.placement == 2
    with pytest.raises(PlacementError, match="stays so"):
        world.edge("cloud", 0).place(1)
    with pytest.raises(PromptError, match="expected verified or cloud"):
        Way(mode="threshold")
    client = Moving(world, False, 0).client
    client.append([5, 6], np.zeros((2, 64), np.float32))
    client.recut(7, "f32")
    with pytest.raises((Refused, LinkError), match="can start at 0, 1, 2, 3"):
        client.verify((), GREEDY)


def test_blocks_that_stay_are_not_loaded_again(artifact: Artifact) -> None:
    before = Stage(artifact, range(2), exits=(1, 2), limits=LIMITS)
    after = Stage(artifact, range(3), exits=(2, 3), limits=LIMITS, loaded=before)
    assert after.chains[:2] == before.chains
    assert after.exits[2] is before.exits[2]
    less = Stage(artifact, range(1), exits=(), limits=LIMITS, loaded=after)
    assert less.chains == before.chains[:1]


@pytest.mark.parametrize("mode", ["auto", "verified"])
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_left_to_measurements_the_text_is_the_full_models(
    world: World, mode: str, sampling: Sampling
) -> None:
    made = replace(LONG, sampling=sampling)
    reference = answer(world.edge("verified", 4), made)
    edge = world.edge(mode, 3, wire="auto")
    for _ in range(4):
        account = edge.answer(PROMPT, replace(made, mode=mode)).finish()
        assert account.token_ids == reference
        assert account.changes[0].index == 0
        assert all(change.reason for change in account.changes)
        if mode == "verified":
            assert {change.way.mode for change in account.changes} == {"verified"}


@pytest.mark.parametrize("ahead", [None, 0.0])
def test_blocks_that_cannot_be_had_do_not_end_an_answer(
    world: World, tmp_path: Path, ahead: float | None
) -> None:
    reference = answer(world.edge("verified", 4), LONG)
    folder = tmp_path / "partial"
    shutil.copytree(world.artifact.folder, folder)
    (folder / "blocks/002-003.data").unlink()
    edge = replace(world, artifact=Artifact(folder)).edge("verified", 2)
    wanderer = Wanderer(1)
    account = edge.answer(PROMPT, replace(LONG, ahead=ahead), steer=wanderer).finish()
    assert account.token_ids == reference
    assert wanderer.moves >= 5


class Told:
    """A controller whose word is given."""

    def __init__(self, *ways: Way) -> None:
        self.ways = list(ways)
        self.allowed = 9

    def note(self, way: Way, tokens: int, seconds: float) -> None:
        pass

    def first(self) -> Decision:
        return self.decide(None)

    def decide(self, now: Way | None) -> Decision:
        way = self.ways.pop(0) if len(self.ways) > 1 else self.ways[0]
        return Decision(way=way, seconds=0.0, reason="told")


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_an_answer_goes_from_way_to_way_to_the_cloud(world: World, sampling: Sampling) -> None:
    made = replace(LONG, mode="auto", sampling=sampling)
    reference = answer(world.edge("verified", 4), made)
    edge = world.edge("auto", 3)
    assert edge.steering is not None
    ways = (
        Way(placement=2, exits=(2,), wire="f32", threshold=0.05),
        Way(placement=2, exits=(2,), wire="ids", threshold=0.05),
        Way(placement=1, exits=(1,), wire="f32", threshold=0.05, ahead=0.0),
        Way(placement=3, exits=(3,), wire="ids", threshold=0.0, draft=2),
        Way(mode="cloud"),
    )
    edge.steering.controller = Told(*ways)  # type: ignore[assignment]
    account = edge.answer(PROMPT, made).finish()
    assert account.token_ids == reference
    assert [change.way for change in account.changes] == list(ways)


class Partial(CloudService):
    """A cloud that cannot take rows from everywhere, and says so or not."""

    says = True

    def open(self, peer: Peer) -> CloudConversation:
        made = super().open(peer)
        hello = made._hello

        def answer(message: Hello) -> Welcome:
            if message.cut < 2:
                raise Refused("placement", "this cloud can start at 2, 3")
            return replace(hello(message), cuts=(2, 3) if self.says else ())

        made._hello = answer  # type: ignore[method-assign]
        return made


@pytest.mark.parametrize("mode", ["auto", "verified"])
def test_a_cloud_that_begins_elsewhere_is_taken_as_it_is(artifact: Artifact, mode: str) -> None:
    service = Partial(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    whole = Edge(artifact, mode="verified", placement=4, limits=LIMITS)
    reference = whole.answer(PROMPT, LONG).finish().token_ids
    with MemoryCloud(service, LIMITS) as cloud:
        edge = Edge(
            artifact, mode=mode, placement=3, connect=cloud.connect, wire="auto", limits=LIMITS
        )
        for _ in range(3):
            account = edge.answer(PROMPT * 3, replace(LONG, mode=mode)).finish()
        assert account.changes[-1].way.placement in (2, 3)
        account = edge.answer(PROMPT, replace(LONG, mode=mode)).finish()
    assert account.token_ids == reference


def test_auto_begins_without_a_cloud_where_that_is_allowed(artifact: Artifact) -> None:
    service = CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    reference = Edge(artifact, mode="verified", placement=4, limits=LIMITS).answer(PROMPT, LONG)
    with MemoryCloud(service, LIMITS) as cloud:
        tries = 0

        def dial() -> Link:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise Unreachable("nobody yet")
            return cloud.connect()

        edge = Edge(
            artifact, mode="auto", placement=2, connect=dial, begin_offline=True, limits=LIMITS
        )
        account = edge.answer(PROMPT, replace(LONG, mode="auto")).finish()
    assert account.token_ids == reference.finish().token_ids
    assert any(one.reason.startswith("no cloud answers") for one in account.changes)
    assert account.provisional == 0


def test_an_answer_left_to_a_cloud_that_dies_is_finished_by_the_exits(artifact: Artifact) -> None:
    service = CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    cloud = MemoryCloud(service, LIMITS)
    edge = Edge(artifact, mode="auto", placement=2, connect=cloud.connect, limits=LIMITS)
    pieces = edge.answer(PROMPT, replace(LONG, mode="auto"))
    certain = 0
    for piece in pieces:
        certain += not piece.token.provisional
        if certain == 10:
            cloud.close()
    assert len(pieces.account.tokens) == 60
    assert 0 < pieces.account.provisional <= 50


def test_nothing_of_one_answer_goes_into_the_next(world: World) -> None:
    edge = world.edge("auto", 3)
    made = replace(LONG, mode="auto")
    half = iter(edge.answer(PROMPT, made))
    for _ in range(5):
        next(half)
    other = edge.answer(PROMPT, made).finish()
    rest = len(list(half))
    assert (len(other.tokens), rest) == (60, 55)
    assert edge.steering is not None
    assert edge.steering.forecaster.cloud_token.value > 0


def test_wire_auto_without_an_exit_is_refused_in_a_line(world: World) -> None:
    with pytest.raises(PlacementError, match="there is no exit"):
        world.edge("verified", 0, wire="auto")
    edge = world.edge("auto", 0)
    made = replace(LONG, mode="auto")
    assert edge.answer(PROMPT, made).finish().token_ids == answer(world.edge("cloud", 0), LONG)


def test_auto_begins_and_ends_as_the_other_modes_do(world: World) -> None:
    with pytest.raises(PromptError, match="wire format auto goes with"):
        world.edge("threshold", 2, wire="auto")
    whole = world.edge("auto", 4)
    assert whole.steering is None
    made = replace(LONG, mode="auto", ignore_eos=False)
    reference = world.edge("verified", 4).answer(PROMPT, replace(made, mode="verified")).finish()
    assert whole.answer(PROMPT, made).finish().token_ids == reference.token_ids
    edge = world.edge("auto", 2)
    account = edge.answer(PROMPT, made).finish()
    assert (account.token_ids, account.finish_reason) == (
        reference.token_ids,
        reference.finish_reason,
    )


def test_rows_go_up_in_batches(world: World) -> None:
    bold = replace(LONG, threshold=0.0, draft=8)
    one = world.edge("verified", 2, exits=(2,)).answer(PROMPT, bold).finish()
    edge = world.edge("verified", 2, exits=(2,))
    many = edge.answer(PROMPT, replace(bold, batch=8)).finish()
    assert many.token_ids == one.token_ids
    assert many.bytes_up < one.bytes_up - 10 * one.rounds
    with pytest.raises(PromptError, match="batch 0: expected 1 to 128"):
        replace(LONG, batch=0)


@pytest.mark.parametrize("said", [True, False], ids=["recut was heard", "recut was on its way"])
def test_what_was_on_its_way_to_a_session_without_memory_is_passed_over(
    artifact: Artifact, said: bool
) -> None:
    """It comes as was agreed before the memory went, which a cloud has forgotten with it."""
    service = CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    talk = service.open(Peer("a"))
    hello = Hello(protocol_major=1, protocol_minor=4, fingerprint=artifact.fingerprint, cut=0,
                  wire_format="ids", software="test")  # fmt: skip
    recut = encode(Recut(epoch=0, position=2, cut=1, wire_format="f32"))
    rows = np.zeros((1, artifact.architecture.hidden_size), np.float32)
    more = encode(Append(epoch=0, base=2, token_ids=(7,), rows=rows), "f32")
    list(talk.receive(encode(hello)))
    list(talk.receive(encode(Append(epoch=0, base=0, token_ids=(5, 6), rows=None))))
    if said:
        list(talk.receive(recut))
    (entry,) = service.sessions._entries.values()
    with entry.held.lock:
        entry.held.drop()
    (told,) = [*(talk.receive(recut) if not said else ()), *talk.receive(more)]
    assert decode_cloud(told, LIMITS) == Evicted()
    (attached,) = talk.receive(encode(Attach(session_id="x", epoch=0, position=2)))
    assert decode_cloud(attached, LIMITS) == Attached(position=0)
    with pytest.raises(ProtocolError, match=r"f32|rows"):
        list(talk.receive(more))  # now that would be a breach
    talk.close()
    service.close()
