"""Sessions that outlive their links and their memory, over both links, on a tiny random model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.contract.link_services import until
from tests.support import random_artifact

from collm.config import Generation, Sampling
from collm.errors import LinkError, Refused
from collm.limits import Limits
from collm.link.background import BackgroundServer
from collm.link.base import Link, Peer
from collm.link.grpc_client import connect
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage, StageSession
from collm.session.client import CloudClient
from collm.session.cloud import CloudService
from collm.session.edge import Edge
from collm.session.probing import probe
from collm.wire import session_pb2 as pb
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import (
    Append,
    Attach,
    Attached,
    Bye,
    Evicted,
    Hello,
    Refusal,
    Verdict,
    Verify,
    Welcome,
)

LIMITS = Limits(
    connect_seconds=3.0, verdict_seconds=5.0, linger_seconds=0.2, kv_step=16, detached_seconds=0.5,
    retry_seconds=0.2, work_seconds=0.3, resume_seconds=20.0,
)  # fmt: skip
PROMPT = [5, 17, 42, 99, 7, 250, 31]
MADE = Generation(max_tokens=30, threshold=0.05, draft=4, ignore_eos=True)


@dataclass(frozen=True)
class World:
    artifact: Artifact
    service: CloudService
    dial: Callable[[], Link]

    def edge(self, limits: Limits = LIMITS) -> Edge:
        return Edge(self.artifact, mode="verified", placement=2, connect=self.dial, limits=limits)

    def client(self) -> CloudClient:
        return CloudClient(self.dial(), fingerprint=self.artifact.fingerprint, cut=0,
                           vocabulary=300, limits=LIMITS, dial=self.dial)  # fmt: skip


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    return random_artifact(folder, cuts=(1, 2, 3), weights="int4", max_position_embeddings=96)


@pytest.fixture(params=["memory", "grpc"])
def start(request: pytest.FixtureRequest, artifact: Artifact) -> Iterator[Callable[..., World]]:
    with ExitStack() as stack:

        def begin(**changes: float) -> World:
            limits = replace(LIMITS, **changes)  # type: ignore[arg-type]
            service = CloudService(Stage(artifact, range(4), limits=limits), limits)
            stack.callback(service.close)
            if request.param == "memory":
                cloud = stack.enter_context(MemoryCloud(service, limits))
                return World(artifact, service, cloud.connect)
            server = stack.enter_context(BackgroundServer(service, "127.0.0.1:0", limits))
            return World(artifact, service, lambda: connect(server.address, limits))

        yield begin


def hello(artifact: Artifact, minor: int = 3, resumes: str = "") -> Hello:
    return Hello(protocol_major=1, protocol_minor=minor, fingerprint=artifact.fingerprint, cut=0,
                 wire_format="ids", software="test", resumes=resumes)  # fmt: skip


def reference(artifact: Artifact) -> list[int]:
    whole = Edge(artifact, mode="verified", placement=4, limits=LIMITS)
    return whole.answer(PROMPT, MADE).finish().token_ids


def test_a_broken_link_is_replaced_and_the_cloud_still_has_the_session(
    start: Callable[..., World],
) -> None:
    world = start()
    links: list[Link] = []

    def dial() -> Link:
        links.append(world.dial())
        return links[-1]

    edge = Edge(world.artifact, mode="verified", placement=2, connect=dial, limits=LIMITS)
    answer = edge.answer(PROMPT, MADE)
    for count, _ in enumerate(answer):
        if count in (3, 11, 12):
            links[-1].close()
    assert answer.account.token_ids == reference(world.artifact)
    assert answer.account.reconnects == 3
    assert world.service.sessions.resumed + world.service.sessions.lost == 3
    assert until(lambda: not len(world.service.sessions))


def test_a_client_that_does_not_come_back_is_forgotten(start: Callable[..., World]) -> None:
    world = start()
    link = world.dial()
    link.send(encode(hello(world.artifact)))
    assert isinstance(decode_cloud(link.receive(3), LIMITS), Welcome)
    link.send(encode(Append(epoch=0, base=0, token_ids=(5, 6), rows=None)))
    link.close()
    assert until(lambda: len(world.service.sessions) == 0, 5.0)
    assert world.service.sessions.bytes == 0


def test_a_silent_session_gives_up_its_place_and_goes_on_later(
    start: Callable[..., World],
) -> None:
    """Idle conversations do not keep others out; nor do those at work keep out probes."""
    world = start(max_sessions=2, detached_seconds=0.0)
    with world.client() as one, world.client() as two:
        for client in (one, two):
            client.append(PROMPT, None)
            first = client.verify([], Sampling())
        assert probe(world.dial, budget=0.0, limits=LIMITS).cloud.sessions == 2
        with pytest.raises(Refused, match="all 2 sessions are taken"):
            world.client()
        time.sleep(1.1 * LIMITS.work_seconds)
        two.append([first.next_token], None)
        following = two.verify([], Sampling())
        with world.client() as three:
            three.append(PROMPT, None)
            assert three.verify([], Sampling()).next_token == first.next_token
            two.append([following.next_token], None)
            two.verify([], Sampling())
            assert two.connection.reconnects == 0
        assert until(lambda: len(world.service.sessions) == 1)
        one.append([first.next_token], None)
        assert one.verify([], Sampling()).next_token == following.next_token
        assert one.connection.reconnects == 1


def test_an_identity_s_silent_session_gives_its_place_to_its_next(
    start: Callable[..., World],
) -> None:
    world = start(max_identity_sessions=1)
    with world.client() as one:
        one.append(PROMPT, None)
        first = one.verify([], Sampling())
        with pytest.raises(Refused, match="may have 1 sessions at once"):
            world.client()
        time.sleep(1.1 * LIMITS.work_seconds)
        with world.client() as two:
            two.append(PROMPT, None)
            assert two.verify([], Sampling()).next_token == first.next_token


def test_the_same_session_is_not_two_links_at_a_time(start: Callable[..., World]) -> None:
    world = start()
    first, second = world.dial(), world.dial()
    names = []
    for link in (first, second):
        link.send(encode(hello(world.artifact)))
        welcome = decode_cloud(link.receive(3), LIMITS)
        assert isinstance(welcome, Welcome)
        names.append(welcome.session_id)
    first.send(encode(Append(epoch=0, base=0, token_ids=(5, 6, 7), rows=None)))
    # The first link is half open: its client has long come back over the second.
    assert until(lambda: world.service.sessions.bytes > 0)
    second.send(encode(Attach(session_id=names[0], epoch=4, position=2)))
    assert decode_cloud(second.receive(3), LIMITS) == Attached(position=2)
    first.send(encode(Append(epoch=0, base=3, token_ids=(8,), rows=None)))
    refused = decode_cloud(first.receive(3), LIMITS)
    assert isinstance(refused, Refusal) and "another link" in refused.reason
    second.send(encode(Append(epoch=4, base=2, token_ids=(7, 8), rows=None)))
    assert until(lambda: len(world.service.sessions) == 1)
    first.close()
    second.close()


def test_who_comes_back_is_not_counted_twice(artifact: Artifact) -> None:
    """The old link seems up for as long as keepalive takes; a new session is one too many."""
    limits = replace(LIMITS, max_identity_sessions=1)
    service = CloudService(Stage(artifact, range(4), limits=limits), limits)
    (frame,) = service.open(Peer("a", "alice")).receive(encode(hello(artifact)))
    welcome = decode_cloud(frame, LIMITS)
    assert isinstance(welcome, Welcome)
    with pytest.raises(Refused, match="alice may have 1 sessions at once"):
        list(service.open(Peer("a", "alice")).receive(encode(hello(artifact))))
    bob = service.open(Peer("b", "bob"))
    list(bob.receive(encode(hello(artifact))))
    resuming = encode(hello(artifact, resumes=welcome.session_id))
    with pytest.raises(Refused, match="bob may have 1"):
        list(service.open(Peer("b", "bob")).receive(resuming))
    again = service.open(Peer("a", "alice"))
    list(again.receive(resuming))
    attach = Attach(session_id=welcome.session_id, epoch=1, position=0)
    assert decode_cloud(*again.receive(encode(attach)), LIMITS) == Attached(position=0)
    assert len(service.sessions) == 2
    bob.close()
    again.close()
    service.close()


def test_who_has_lost_a_session_cannot_take_another(artifact: Artifact) -> None:
    """A link whose session went on elsewhere has no say any more, and all memory comes back."""
    service = CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    links = [service.open(Peer(name)) for name in "abc"]
    names = []
    for link in links:
        (frame,) = link.receive(encode(hello(artifact)))
        welcome = decode_cloud(frame, LIMITS)
        assert isinstance(welcome, Welcome)
        names.append(welcome.session_id)
        list(link.receive(encode(Append(epoch=0, base=0, token_ids=(5, 6), rows=None))))
    list(links[1].receive(encode(Attach(session_id=names[0], epoch=1, position=2))))
    for theirs in (names[2], names[0]):
        with pytest.raises(Refused, match="another link"):
            list(links[0].receive(encode(Attach(session_id=theirs, epoch=2, position=0))))
    list(links[1].receive(encode(Append(epoch=1, base=2, token_ids=(7,), rows=None))))
    list(links[2].receive(encode(Append(epoch=0, base=2, token_ids=(7,), rows=None))))
    for link in links:
        list(link.receive(encode(Bye())))
    assert (len(service.sessions), service.sessions.bytes) == (0, 0)
    service.close()


@pytest.mark.parametrize("name", ["", "none", "0" * 32])
def test_no_name_is_nobodys_session(artifact: Artifact, name: str) -> None:
    """A name that no session has takes none over, and exempts none from being counted."""
    limits = replace(LIMITS, max_identity_sessions=2)
    service = CloudService(Stage(artifact, range(4), limits=limits), limits)
    honest, stranger = service.open(Peer("a")), service.open(Peer("b"))
    for link in (honest, stranger):
        list(link.receive(encode(hello(artifact, resumes=name))))
    with pytest.raises(Refused, match="2 sessions at once"):
        list(service.open(Peer("c")).receive(encode(hello(artifact, resumes=name))))
    list(honest.receive(encode(Append(epoch=0, base=0, token_ids=(5, 6, 7), rows=None))))
    attach = encode(Attach(session_id=name, epoch=1, position=3))
    assert decode_cloud(*stranger.receive(attach), LIMITS) == Attached(position=0)
    (reply,) = honest.receive(encode(Verify(epoch=0, base=2, draft=(), sampling=Sampling())))
    assert isinstance(decode_cloud(reply, LIMITS), Verdict)
    for link in (honest, stranger):
        list(link.receive(encode(Bye())))
    service.close()


def test_a_session_is_found_by_the_name_its_client_knows(artifact: Artifact) -> None:
    """The answer to an Attach was lost with its link: the next one still says the old name."""
    limits = replace(LIMITS, max_identity_sessions=1)
    service = CloudService(Stage(artifact, range(4), limits=limits), limits)
    first = service.open(Peer("a"))
    (frame,) = first.receive(encode(hello(artifact)))
    welcome = decode_cloud(frame, LIMITS)
    assert isinstance(welcome, Welcome)
    name = welcome.session_id
    list(first.receive(encode(Append(epoch=0, base=0, token_ids=(5, 6, 7), rows=None))))
    links = [service.open(Peer("a")) for _ in range(2)]
    attach = encode(Attach(session_id=name, epoch=1, position=3))
    for link in links:
        list(link.receive(encode(hello(artifact, resumes=name))))
        for _ in range(2):  # and once more, as after a crop
            assert decode_cloud(*link.receive(attach), LIMITS) == Attached(position=3)
    assert len(service.sessions) == 1
    links[1].close()
    service.close()


def test_a_long_prompt_keeps_nobody_waiting(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run a part a turn: others' answers come between, and its own is the same."""
    runs = list[int]()
    run = StageSession.run

    def slow(session: StageSession, layer: int, end: int | None = None) -> None:
        time.sleep(0.05)
        runs.append(session.position)
        run(session, layer, end)

    long, short = [7 + n % 90 for n in range(80)], [5, 17]
    whole = start(turn_rows=1000)
    with whole.client() as client:
        client.append(long, None)
        wanted = client.verify([], Sampling())
    monkeypatch.setattr(StageSession, "run", slow)
    world = start(turn_rows=8)
    with world.client() as patient, world.client() as other:
        patient.append(long, None)
        patient.ask(Sampling())
        assert until(lambda: len(runs) >= 2)
        other.append(short, None)
        other.verify([], Sampling())
        assert 2 <= runs.count(len(long)) <= 6 < 80 // 8, runs
        verdict = patient.collect()
    assert replace(verdict, cloud_seconds=0.0) == replace(wanted, cloud_seconds=0.0)
    assert verdict.cloud_seconds >= 9 * 0.05


def test_a_strangers_session_is_refused(artifact: Artifact) -> None:
    service = CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    mine, theirs = service.open(Peer("a", "alice")), service.open(Peer("b", "bob"))
    (frame,) = mine.receive(encode(hello(artifact)))
    welcome = decode_cloud(frame, LIMITS)
    assert isinstance(welcome, Welcome)
    list(theirs.receive(encode(hello(artifact))))
    attach = Attach(session_id=welcome.session_id, epoch=1, position=0)
    with pytest.raises(Refused, match="somebody else"):
        list(theirs.receive(encode(attach)))
    mine.close()
    theirs.close()
    service.close()


def test_ten_times_the_memory_takes_turns_and_every_text_is_right(
    start: Callable[..., World],
) -> None:
    one = start()
    probe = one.service.stage.open(2)
    room = 2 * probe.bytes_with(48)
    world = start(max_kv_bytes=room)
    wanted = reference(world.artifact)
    texts: list[list[int]] = []
    told: list[str] = []
    peak = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], world.service.sessions.bytes)

    def run() -> None:
        edge = world.edge()
        while True:
            try:
                texts.append(edge.answer(PROMPT, MADE).finish().token_ids)
                return
            except Refused as error:
                told.append(f"{error.code}: {error}")
                time.sleep(error.retry_seconds)

    watcher = threading.Thread(target=watch)
    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    done.set()
    watcher.join()
    assert texts == [wanted] * 20
    assert told  # the surplus was told when to come back
    assert all(one.startswith("busy: ") and "try again in 0.2 s" in one for one in told)
    assert peak[0] <= room


def test_an_evicted_session_goes_on_where_it_was(start: Callable[..., World]) -> None:
    world = start()
    wanted = reference(world.artifact)
    edge = world.edge()
    answer = edge.answer(PROMPT, MADE)
    pieces = iter(answer)
    for _ in range(9):
        next(pieces)
    (entry,) = world.service.sessions._entries.values()
    with entry.held.lock:
        entry.held.drop()
    for _ in pieces:
        pass
    assert answer.account.token_ids == wanted
    assert answer.account.reconnects == 0
    assert answer.account.replayed_bytes > 0


def test_an_older_client_is_told_when_its_memory_is_gone(artifact: Artifact) -> None:
    service = CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    for minor in (2, 3):
        conversation = service.open(Peer("a"))
        list(conversation.receive(encode(hello(artifact, minor))))
        list(conversation.receive(encode(Append(epoch=0, base=0, token_ids=(5, 6), rows=None))))
        (entry,) = service.sessions._entries.values()
        entry.held.drop()
        more = encode(Append(epoch=0, base=2, token_ids=(7,), rows=None))
        if minor == 2:
            with pytest.raises(Refused, match="begin anew"):
                list(conversation.receive(more))
        else:
            (said,) = conversation.receive(more)
            assert decode_cloud(said, LIMITS) == Evicted()
            assert list(conversation.receive(more)) == []  # on its way before it was known
        list(conversation.receive(encode(Bye())))
    service.close()


def test_a_session_larger_than_the_memory_is_refused_with_the_figures(
    start: Callable[..., World],
) -> None:
    world = start()
    room = world.service.stage.open(2).bytes_with(8)
    small = start(max_kv_bytes=room)
    with pytest.raises(LinkError, match="MiB"):
        small.edge().answer(PROMPT, MADE).finish()


def test_sampled_text_survives_a_break(start: Callable[..., World]) -> None:
    world = start()
    warm = replace(MADE, sampling=Sampling(temperature=1.3, top_p=0.95, seed=11))
    edge = world.edge()
    wanted = edge.answer(PROMPT, warm).finish().token_ids
    links: list[Link] = []

    def dial() -> Link:
        links.append(world.dial())
        return links[-1]

    edge = Edge(world.artifact, mode="verified", placement=2, connect=dial, limits=LIMITS)
    answer = edge.answer(PROMPT, warm)
    for count, _ in enumerate(answer):
        if count == 6:
            links[-1].close()
            time.sleep(0.7)  # longer than the cloud waits
    assert answer.account.token_ids == wanted
    assert world.service.sessions.lost == 1


def test_a_client_of_the_minor_version_before_works(start: Callable[..., World]) -> None:
    """No checksums, no Attach: what protocol 1.2 sends, byte for byte."""
    world = start()

    def old(**body: object) -> bytes:
        return bytes(pb.Envelope(**body).SerializeToString())

    with world.dial() as link:
        words = vars(hello(world.artifact, minor=2))
        link.send(old(hello=pb.Hello(**{name: words[name] for name in words if name != "resumes"})))
        assert isinstance(decode_cloud(link.receive(3), LIMITS), Welcome)
        link.send(old(append=pb.Append(token_ids=PROMPT, wire_format="ids")))
        sampling = pb.Sampling(top_p=1.0, repetition_penalty=1.0)
        link.send(old(verify=pb.Verify(base=len(PROMPT) - 1, sampling=sampling)))
        verdict = decode_cloud(link.receive(3), LIMITS)
    assert isinstance(verdict, Verdict)
    assert verdict.next_token == reference(world.artifact)[0]


def test_sessions_end_one_day(start: Callable[..., World]) -> None:
    world = start(lifetime_seconds=0.2)
    with world.client() as client:
        client.append(PROMPT, None)
        time.sleep(0.3)
        with pytest.raises(Refused, match=r"over 0\.2 s old"):
            client.verify([], Sampling())
