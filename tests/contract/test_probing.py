"""Links and clouds measured with heartbeats: in memory, slowed down, older, hostile, over gRPC."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.link_services import until
from tests.support import random_artifact, token_ids

from collm.config import Sampling
from collm.errors import CollmError, LinkError, ProtocolError, Refused
from collm.limits import Limits
from collm.link.background import BackgroundServer
from collm.link.base import Conversation, Link, Peer
from collm.link.credentials import ClientSecurity, ServerSecurity
from collm.link.delayed import DelayedLink
from collm.link.grpc_client import connect
from collm.link.memory import MemoryCloud, connect_memory
from collm.link.shaper import LinkShaper
from collm.link.shapes import LinkShape
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.client import CloudClient
from collm.session.cloud import CloudService
from collm.session.probing import Prober, probe
from collm.wire import session_pb2 as pb
from collm.wire.encoding import decode_client, decode_cloud, encode
from collm.wire.handshake import refusal_for
from collm.wire.messages import Figures, Heartbeat, Pong, Refusal, RowSeconds
from collm.wire.seal import sealed

pytestmark = pytest.mark.timed

LIMITS = Limits(connect_seconds=3.0, linger_seconds=0.2, probe_seconds=2.0, kv_step=16)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return random_artifact(tmp_path_factory.mktemp("probing") / "a")


@pytest.fixture(scope="module")
def service(artifact: Artifact) -> Iterator[CloudService]:
    made = CloudService(Stage(artifact, range(4)), LIMITS)
    yield made
    made.close()


def test_a_probe_finds_the_trip_and_what_the_cloud_says(service: CloudService) -> None:
    found = probe(
        lambda: DelayedLink(connect_memory(service, LIMITS), 0.03, limits=LIMITS),
        tokens=True,
        limits=LIMITS,
    )
    assert 0.03 <= found.link.round_trip < 0.06
    assert found.link.jitter < 0.02
    assert found.unknown == ()
    cloud = found.cloud
    assert cloud.fingerprint == service.stage.artifact.fingerprint
    assert cloud.costs.keys() == {0, 1, 2, 4}
    assert 0 < cloud.seconds(2, 2, 1) < cloud.seconds(0, 2, 1) < 1
    assert 0 < cloud.token_seconds < 0.1


def test_rates_are_the_shaped_link_s_within_the_budget(service: CloudService) -> None:
    shape = LinkShape(name="thin", delay_seconds=0.01, bits_per_second=2e6)
    with (
        BackgroundServer(service, "127.0.0.1:0", LIMITS) as server,
        LinkShaper(shape, "127.0.0.1:0", server.address) as link,
    ):
        started = time.perf_counter()
        found = probe(lambda: connect(link.address, LIMITS), limits=LIMITS)
        assert time.perf_counter() - started < 4.0
    assert found.link.up_bits == pytest.approx(2e6, rel=0.25)
    assert found.link.down_bits == pytest.approx(2e6, rel=0.25)
    assert 0.02 <= found.link.round_trip < 0.06
    assert found.link.connect > found.link.round_trip


class OldCloud:
    """Answers as clouds did before heartbeats could measure: with the bare nonce."""

    pause_seconds = 0.0

    def open(self, peer: Peer) -> Conversation:
        return self

    def receive(self, frame: bytes) -> Iterator[bytes]:
        message = decode_client(frame, LIMITS, "ids", 0, sealed=None)
        assert isinstance(message, Heartbeat)
        yield encode(Pong(nonce=message.nonce))

    def refusal(self, error: CollmError) -> bytes:
        return encode(refusal_for(error))

    def close(self) -> None:
        """Nothing is held."""


def test_an_older_cloud_is_measured_as_far_as_it_goes() -> None:
    found = probe(
        lambda: DelayedLink(connect_memory(OldCloud(), LIMITS), 0.02, limits=LIMITS), limits=LIMITS
    )
    assert 0.02 <= found.link.round_trip < 0.05
    assert found.link.down_bits == 0.0
    assert found.unknown == ("rate down", "the cloud's own figures")
    assert not found.cloud.costs and not found.cloud.fingerprint


class SilentCloud(OldCloud):
    """Takes frames and says nothing."""

    def receive(self, frame: bytes) -> Iterator[bytes]:
        return iter(())


def test_silence_ends_at_the_deadline() -> None:
    hasty = Limits(probe_seconds=0.3, linger_seconds=0.1)
    started = time.perf_counter()
    with pytest.raises(LinkError, match=r"no (answer|frame)|0\.\d"):
        probe(lambda: connect_memory(SilentCloud(), hasty), limits=hasty)
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize(
    "heartbeat",
    [
        pb.Heartbeat(nonce=1, padding=bytes(LIMITS.max_padding_bytes + 1)),
        pb.Heartbeat(nonce=1, reply_bytes=LIMITS.max_padding_bytes + 1),
        pb.Heartbeat(nonce=1, reply_bytes=2**32 - 1),
    ],
)
def test_hostile_heartbeats_are_refused(service: CloudService, heartbeat: pb.Heartbeat) -> None:
    with connect_memory(service, LIMITS) as link:
        link.send(sealed(pb.Envelope(heartbeat=heartbeat).SerializeToString()))
        reply = decode_cloud(link.receive(3.0), LIMITS)
    assert isinstance(reply, Refusal) and reply.code == "protocol"


def test_hostile_answers_are_refused() -> None:
    tier = pb.Tier(role="cloud", ok=True)
    many = [pb.RowSeconds(cut=0, rows=1, seconds=0.1)] * (LIMITS.max_cost_entries + 1)
    for pong in (
        pb.Pong(padding=bytes(LIMITS.max_padding_bytes + 1)),
        pb.Pong(figures=pb.Figures(costs=many)),
        pb.Pong(figures=pb.Figures(fingerprint="\x1b[31m")),
        pb.Pong(figures=pb.Figures(costs=[pb.RowSeconds(seconds=float("nan"))])),
        pb.Pong(figures=pb.Figures(costs=[pb.RowSeconds(cut=2**31)])),
        pb.Pong(tiers=[tier] * (LIMITS.max_tiers + 1)),
        pb.Pong(tiers=[pb.Tier(role="moon", ok=True)]),
        pb.Pong(tiers=[pb.Tier()]),
        pb.Pong(tiers=[pb.Tier(role="cloud", first=3, last=2)]),
        pb.Pong(tiers=[pb.Tier(role="cloud", last=LIMITS.max_layers + 1)]),
        pb.Pong(tiers=[pb.Tier(role="cloud", address="\x1b[31m")]),
        pb.Pong(tiers=[pb.Tier(role="cloud", error="two\nlines")]),
        pb.Pong(tiers=[pb.Tier(role="cloud", error="ä" * 101)]),
        pb.Pong(tiers=[pb.Tier(role="cloud", round_trip=float("inf"))]),
        pb.Pong(tiers=[pb.Tier(role="cloud", round_trip=-1.0)]),
        pb.Pong(tiers=[pb.Tier(role="cloud"), tier]),  # well, above one that is away
    ):
        with pytest.raises(ProtocolError):
            decode_cloud(sealed(pb.Envelope(pong=pong).SerializeToString()), LIMITS)
    fine = Pong(
        nonce=3,
        padding=b"abc",
        figures=Figures(
            fingerprint="f",
            model_layers=4,
            sessions=1,
            at_work=1,
            costs=(RowSeconds(cut=0, rows=2, seconds=0.5),),
        ),
    )
    assert decode_cloud(encode(fine), LIMITS) == fine


def test_what_comes_back_is_charged_as_if_it_had_been_sent(artifact: Artifact) -> None:
    """A small frame may not draw large ones from a cloud that limits bytes."""
    limits = Limits(identity_bytes_per_second=50_000, linger_seconds=0.1)
    service = CloudService(Stage(artifact, range(4)), limits)
    with MemoryCloud(service, limits) as cloud, cloud.connect("pi") as link:
        started = time.perf_counter()
        for nonce in range(3):
            link.send(encode(Heartbeat(nonce=nonce, reply_bytes=50_000)))
            reply = decode_cloud(link.receive(10.0), limits)
            assert isinstance(reply, Pong) and len(reply.padding) == 50_000
        assert time.perf_counter() - started > 0.8
    service.close()


def test_strangers_are_not_answered(service: CloudService, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("pi goodgoodgoodgood-1\n")
    tokens.chmod(0o600)
    guarded = ServerSecurity(tokens=tokens)
    with BackgroundServer(service, "127.0.0.1:0", LIMITS, security=guarded) as server:

        def dial(token: str) -> Link:
            return connect(server.address, LIMITS, ClientSecurity(token=token))

        with pytest.raises(Refused, match="no valid credentials"):
            probe(lambda: dial("badbadbadbadbad-1"), limits=LIMITS)
        assert probe(lambda: dial("goodgoodgoodgood-1"), budget=0.1, limits=LIMITS).cloud.costs


def test_a_cloud_at_work_says_that_it_has_become_slower(artifact: Artifact) -> None:
    service = CloudService(Stage(artifact, range(4)), LIMITS)
    before = probe(lambda: connect_memory(service, LIMITS), budget=0.1, limits=LIMITS).cloud
    expected = service.costs._from(0)
    assert expected is not None
    for _ in range(60):  # ten times as slow as it was
        service.costs.took(0, 2, 1, 10 * (expected.at(2) + before.costs[4].at(2)))
    after = probe(lambda: connect_memory(service, LIMITS), budget=0.1, limits=LIMITS).cloud
    assert after.seconds(0, 2, 1) > 5 * before.seconds(0, 2, 1)
    # Its own verdicts bring it back.
    client = CloudClient(
        connect_memory(service, LIMITS),
        fingerprint=artifact.fingerprint,
        cut=0,
        vocabulary=300,
        limits=LIMITS,
    )
    with client:
        client.append(token_ids(1, 4), None)
        for token in token_ids(2, 40):
            client.verify((), Sampling())
            client.append([token], None)
    assert service.costs.pace < 8
    service.close()


def test_the_background_prober_never_makes_anybody_wait(service: CloudService) -> None:
    broken = [False]

    def dial() -> Link:
        if broken[0]:
            raise LinkError("nobody there")
        return DelayedLink(connect_memory(service, LIMITS), 0.02, limits=LIMITS)

    with Prober(dial, every=0.1, limits=LIMITS) as prober:
        started = time.perf_counter()
        assert prober.latest is None
        assert time.perf_counter() - started < 0.01
        assert until(lambda: prober.latest is not None)
        first = prober.latest
        assert first is not None and first.link.round_trip >= 0.02
        assert until(lambda: prober.latest is not first)
        broken[0] = True
    started = time.perf_counter()
    prober.close()
    assert time.perf_counter() - started < 0.1
    with Prober(dial, every=0.05, limits=LIMITS) as prober:
        time.sleep(0.2)
        assert prober.latest is None
        broken[0] = False
        assert until(lambda: prober.latest is not None)
