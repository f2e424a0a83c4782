"""Edge servers that die, lose their memory or their cloud: the text stays what it was."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.contract.link_services import until
from tests.contract.tiers import LIMITS, PROMPT, Build, Tiers, finish, whole
from tests.support import random_artifact

from collm.config import Generation, Refinement, Sampling
from collm.errors import LinkError, Refused
from collm.link.background import BackgroundServer
from collm.link.delayed import DelayedLink
from collm.link.dialer import Dialer
from collm.link.probe import heartbeat
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.serve.cloud_process import watch_above
from collm.session.above import Above
from collm.session.answer import Answer
from collm.session.client import CloudClient
from collm.session.relay import RelaySession
from collm.wire import session_pb2 as pb
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import Hello, Verdict, Verify, Welcome
from collm.wire.seal import sealed

MADE = Generation(max_tokens=30, threshold=0.05, draft=4, ignore_eos=True)
WARM = replace(MADE, sampling=Sampling(temperature=1.3, top_p=0.95, seed=11))
SEED = 20


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    return random_artifact(folder, cuts=(1, 2, 3), weights="int4", max_position_embeddings=96)


@pytest.fixture(params=["memory", "grpc"])
def build(request: pytest.FixtureRequest, artifact: Artifact) -> Iterator[Build]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Tiers(artifact, request.param, **options))


def disturb(answer: Answer, at: dict[int, Callable[[], None]]) -> list[int]:
    """Run an answer and do things after so many tokens."""
    told = list[int]()
    for piece in answer:
        told.append(piece.token.token_id)
        if len(told) in at:
            at[len(told)]()
    return told


@pytest.mark.parametrize("made", [MADE, WARM, replace(MADE, ahead=0.0)],
                         ids=["greedy", "sampled", "ahead"])  # fmt: skip
def test_a_killed_server_is_replaced_by_its_sibling(build: Build, made: Generation) -> None:
    chances = random.Random(SEED)
    tiers = build(servers=2)
    reference = whole(tiers.artifact, made)
    for _ in range(6):
        edge = tiers.edge("verified", 1, ["server0", "server1"])
        answer = edge.answer(PROMPT, made)
        first, second = tiers.hosts["server0"], tiers.hosts["server1"]
        at = chances.randrange(1, 28)
        told = disturb(answer, {at: first.kill})
        assert told == reference, f"killed after {at} tokens, seed {SEED}"
        assert answer.account.reconnects == 1
        assert second.links
        first.is_up = True
        first.forget()


def test_where_no_server_is_left_the_cloud_itself_goes_on(build: Build) -> None:
    """A full cloud takes up any cut: it may stand last in the list."""
    tiers = build(servers=2)
    edge = tiers.edge("verified", 2, ["server0", "server1", "cloud"])
    answer = edge.answer(PROMPT, MADE)
    told = disturb(answer, {4: tiers.hosts["server0"].kill, 11: tiers.hosts["server1"].kill})
    assert told == whole(tiers.artifact, MADE)
    assert answer.account.reconnects == 2


@pytest.mark.parametrize("mode", ["verified", "refine", "cloud", "threshold"])
def test_links_that_break_on_either_hop(build: Build, mode: str) -> None:
    tiers = build(layers=range(3), exits=(2,), criterion="confidence:0.14")
    made = replace(MADE, mode=mode, threshold=0.3, refinement=Refinement(passes=100, rank=1))
    placement = 0 if mode == "cloud" else 1
    edge = tiers.edge(mode, placement)
    undisturbed = finish(edge, made)
    server, cloud = tiers.hosts["server0"], tiers.cloud
    answer = edge.answer(PROMPT, made)

    def restart() -> None:
        cloud.cut()
        cloud.forget()

    told = disturb(answer, {3: server.cut, 8: cloud.cut, 9: server.cut, 17: restart})
    assert told == undisturbed.token_ids
    assert answer.account.reconnects >= 2
    if mode != "threshold":
        assert told == whole(tiers.artifact, replace(MADE, mode="verified"))


def test_evicted_at_the_server_at_the_cloud_and_at_both(build: Build) -> None:
    tiers = build()
    for places in (["server0"], ["cloud"], ["server0", "cloud"]):

        def evict(places: list[str] = places) -> None:
            for place in places:
                for entry in tiers.hosts[place].service.sessions._entries.values():
                    with entry.held.lock:
                        entry.held.drop()

        answer = tiers.edge("verified", 1).answer(PROMPT, MADE)
        assert disturb(answer, {5: evict, 6: evict, 19: evict}) == whole(tiers.artifact, MADE)
        assert answer.account.reconnects == 0


def test_a_servers_memory_is_bounded_with_what_it_keeps_for_the_cloud(build: Build) -> None:
    probe = build()
    answer = iter(probe.edge("verified", 1).answer(PROMPT, MADE))
    for _ in range(28):
        next(answer)
    (entry,) = probe.relay().sessions._entries.values()
    held = entry.held
    assert isinstance(held, RelaySession) and held._up is not None
    log = held._up._at.log
    assert held.bytes >= held._session.bytes + log.held_bytes
    room = 2 * entry.granted
    answer.close()  # type: ignore[attr-defined]
    tiers = build(server_limits=replace(LIMITS, max_kv_bytes=room))
    texts: list[list[int]] = []
    codes: set[str] = set()

    def run() -> None:
        while True:
            try:
                texts.append(finish(tiers.edge("verified", 1), MADE).token_ids)
                return
            except Refused as error:
                codes.add(error.code)
                time.sleep(error.retry_seconds)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert tiers.relay().sessions.bytes <= room
        time.sleep(0.005)
    assert texts == [whole(tiers.artifact, MADE)] * 8
    assert codes <= {"busy"}
    assert until(lambda: not tiers.relay().sessions.bytes)
    assert until(lambda: not len(tiers.cloud.service.sessions))


def test_a_server_whose_cloud_is_gone_sends_its_clients_elsewhere(build: Build) -> None:
    """It says so in an answer under way, to newcomers, and to who asks whether it is there."""
    tiers = build(servers=2)
    cloud, server = tiers.cloud, tiers.relay()
    sibling = tiers.relay(1)
    other = build()  # a cloud of its own, for the sibling
    sibling.above.dialer = other.dialer("cloud")
    answer = tiers.edge("verified", 1, ["server0", "server1"]).answer(PROMPT, MADE)
    assert disturb(answer, {6: cloud.kill}) == whole(tiers.artifact, MADE)
    assert answer.account.reconnects >= 1
    assert not server.above.check()
    with pytest.raises(Refused, match="the cloud above is gone: killed") as caught:
        finish(tiers.edge("verified", 1), MADE)
    assert caught.value.code == "busy"
    with tiers.hosts["server0"].connect() as link, pytest.raises(Refused, match="above is gone"):
        heartbeat(link, LIMITS, 1.0)
    cloud.is_up = True
    assert server.above.check()
    assert finish(tiers.edge("verified", 1), MADE).token_ids == answer.account.token_ids
    with tiers.hosts["server0"].connect() as link:
        assert heartbeat(link, LIMITS, 1.0) < 1.0


def test_a_cloud_that_comes_back_in_time_is_waited_for(build: Build) -> None:
    tiers = build()

    def restart() -> None:
        tiers.cloud.kill()
        tiers.cloud.forget()

        def back() -> None:
            tiers.cloud.is_up = True

        threading.Timer(0.3, back).start()

    answer = tiers.edge("verified", 1).answer(PROMPT, MADE)
    assert disturb(answer, {9: restart}) == whole(tiers.artifact, MADE)
    assert answer.account.reconnects == 0  # the device has not noticed


def test_another_model_above_is_found_out(artifact: Artifact, tmp_path: Path) -> None:
    other = random_artifact(tmp_path / "other", cuts=(1, 2, 3), vocab_size=300, rms_norm_eps=1e-4,
                            max_position_embeddings=96)  # fmt: skip
    with Tiers(artifact) as tiers:
        stage = Stage(other, range(1, 3), limits=LIMITS)
        above = Above(stage, LIMITS, tiers.dialer("cloud"))
        assert not above.check()
        assert isinstance(above.fault, Refused) and above.fault.code == "fingerprint"


def test_an_older_clients_flag_counts_for_nothing(artifact: Artifact) -> None:
    """Protocol 1.3 has no `may_exit`; whatever stands there, the full model answers."""
    with Tiers(artifact, layers=range(3), exits=(2,), criterion="confidence:0.0") as tiers:
        for minor in (3, 4):
            with tiers.hosts["server0"].connect() as link:
                hello = Hello(protocol_major=1, protocol_minor=minor, cut=0, wire_format="ids",
                              fingerprint=artifact.fingerprint, software="test")  # fmt: skip
                link.send(encode(hello))
                assert isinstance(decode_cloud(link.receive(3), LIMITS), Welcome)
                append = pb.Append(token_ids=PROMPT, wire_format="ids")
                link.send(sealed(pb.Envelope(append=append).SerializeToString()))
                link.send(encode(Verify(epoch=0, base=len(PROMPT) - 1, draft=(),
                                        sampling=Sampling(), may_exit=True)))  # fmt: skip
                verdict = decode_cloud(link.receive(3), LIMITS)
            assert isinstance(verdict, Verdict)
            assert verdict.exit_cut == (0 if minor == 3 else 2)


def test_a_cloud_that_does_not_know_the_flag_is_safe(artifact: Artifact) -> None:
    """It answers with the full model, as any cloud without exits does."""
    with Tiers(artifact) as tiers, CloudClient(
        tiers.cloud.connect(), fingerprint=artifact.fingerprint, cut=0, vocabulary=300,
        limits=LIMITS,
    ) as client:  # fmt: skip
        client.append(PROMPT, None)
        client.ask(Sampling(), may_exit=True)
        verdict = client.collect()
        assert verdict.exit_cut == 0
        assert [verdict.next_token] == whole(artifact, replace(MADE, max_tokens=1))


@pytest.mark.timed
def test_waiting_for_the_cloud_keeps_nobody_waiting(artifact: Artifact) -> None:
    """Sessions whose cloud is far away leave the server's time to one that its exits answer."""
    with Tiers(artifact, exits=(2,), criterion="confidence:0.0") as tiers:
        server = tiers.relay()
        far = tiers.dialer("cloud")
        server.above.dialer = Dialer(["cloud"], dial=lambda _: DelayedLink(far(), 0.3))
        waiting = [threading.Thread(target=finish, args=(tiers.edge("verified", 1),
                   replace(MADE, max_tokens=6, draft=1))) for _ in range(4)]  # fmt: skip
        for thread in waiting:
            thread.start()
        assert until(lambda: len(server.sessions) == 4)
        time.sleep(0.1)  # all of them are with the cloud now
        quick = tiers.edge("threshold", 1)
        started = time.perf_counter()
        account = finish(quick, replace(MADE, mode="threshold", threshold=0.99))
        seconds = time.perf_counter() - started
        assert account.sources == {"server@2": 30}
        assert seconds < 0.6, "30 tokens took longer than two trips to the cloud"
        assert all(thread.is_alive() for thread in waiting)
        for thread in waiting:
            thread.join()


def test_health_checks_are_told_of_the_cloud_above(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load balancers that speak grpc.health.v1 leave a server out that could not serve."""
    monkeypatch.setattr("collm.serve.cloud_process._WATCH_SECONDS", 0.05)
    with Tiers(artifact) as tiers, BackgroundServer(tiers.relay(), limits=LIMITS) as server:
        watching = asyncio.run_coroutine_threadsafe(
            watch_above(tiers.relay().above, server.server), server._loop
        )
        with grpc.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            def status() -> object:
                return stub.Check(health_pb2.HealthCheckRequest(), timeout=3).status

            serving = health_pb2.HealthCheckResponse.SERVING
            assert status() == serving
            tiers.cloud.kill()
            assert until(lambda: status() == health_pb2.HealthCheckResponse.NOT_SERVING)
            tiers.cloud.is_up = True
            assert until(lambda: status() == serving)
        watching.cancel()


def test_the_next_session_begins_on_a_connection_that_stands(artifact: Artifact) -> None:
    """The link of the last heartbeat is laid by; one that broke meanwhile harms nobody."""
    with Tiers(artifact) as tiers:
        above, cloud = tiers.relay().above, tiers.cloud
        assert above.check() and above.check()
        assert len(cloud.links) == 2  # a Hello, and the one that is kept
        wanted = whole(artifact, MADE)
        assert finish(tiers.edge("verified", 1), MADE).token_ids == wanted
        assert len(cloud.links) == 2
        assert above.check()
        cloud.cut()
        assert above.check()
        cloud.cut()
        answer = tiers.edge("verified", 1).answer(PROMPT, MADE)
        assert answer.finish().token_ids == wanted
        assert answer.account.reconnects == 0


def test_a_heartbeat_waits_as_long_as_a_session_would(artifact: Artifact) -> None:
    """So that who measures a server sees its load."""
    with Tiers(artifact) as tiers:
        busy, done = tiers.relay().computing, threading.Event()

        def compute() -> None:
            with busy:
                done.wait(0.3)

        thread = threading.Thread(target=compute)
        thread.start()
        with tiers.hosts["server0"].connect() as link:
            assert heartbeat(link, LIMITS, 2.0) > 0.1
        thread.join()


@pytest.mark.timed
@pytest.mark.parametrize("settle", [1.0, 0.02])
def test_a_link_below_that_breaks_while_the_answer_is_above(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, settle: float
) -> None:
    """The device is back before the verdict is: it gets it from the same session, or replays."""
    monkeypatch.setattr("collm.session.relay._SETTLE_SECONDS", settle)
    drops = list[int]()
    drop = RelaySession.drop
    monkeypatch.setattr(RelaySession, "drop", lambda held: (drops.append(1), drop(held))[1])
    with Tiers(artifact) as tiers:
        far = tiers.dialer("cloud")
        tiers.relay().above.dialer = Dialer(["cloud"], dial=lambda _: DelayedLink(far(), 0.8))
        made = replace(MADE, max_tokens=3)
        answer = tiers.edge("verified", 1, exits=()).answer(PROMPT, made)

        def cut_soon() -> None:
            threading.Timer(0.1, tiers.hosts["server0"].cut).start()

        assert disturb(answer, {1: cut_soon}) == whole(artifact, made)
        assert answer.account.reconnects == 1
    assert len(drops) == (settle < 0.8)


def test_errors_of_a_server_are_errors_of_a_link(artifact: Artifact) -> None:
    with Tiers(artifact, limits=replace(LIMITS, resume_seconds=1.5, above_seconds=0.5)) as tiers:
        answer = tiers.edge("verified", 1, exits=()).answer(PROMPT, MADE)
        with pytest.raises(LinkError):
            disturb(answer, {4: tiers.cloud.kill})
