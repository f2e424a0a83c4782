"""One suite over every link: in memory, over gRPC and delayed, the same things hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from tests.contract.link_services import FakeService, Recorder, until

from collm.errors import LinkError, LinkTimeout
from collm.limits import Limits
from collm.link.background import BackgroundServer
from collm.link.base import Link
from collm.link.delayed import DelayedLink
from collm.link.grpc_client import connect
from collm.link.memory import MemoryCloud, connect_memory

LIMITS = Limits(
    connect_seconds=3.0,
    linger_seconds=0.1,
    send_seconds=0.3,
    idle_seconds=5.0,
    shutdown_seconds=2.0,
    max_sessions=3,
    spare_links=0,
    max_message_bytes=64 * 1024,
)
WAIT = 3.0
"""For answers that come at once; only a failing test waits so long."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A cloud, and how to link to it."""

    service: FakeService
    connect: Callable[[], Link]

    @property
    def record(self) -> Recorder:
        return self.service.record


Start = Callable[[Limits], World]


@pytest.fixture(params=["memory", "grpc", "delayed"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a cloud with given limits; everything it made is closed at the end."""
    with ExitStack() as stack:

        def start_one(limits: Limits) -> World:
            service = FakeService()
            if request.param == "memory":
                cloud = stack.enter_context(MemoryCloud(service, limits))
                return World(service=service, connect=lambda: stack.enter_context(cloud.connect()))
            if request.param == "delayed":
                cloud = stack.enter_context(MemoryCloud(service, limits))
                return World(
                    service=service,
                    connect=lambda: stack.enter_context(
                        DelayedLink(cloud.connect(), 0.002, 0.002, limits)
                    ),
                )
            server = stack.enter_context(BackgroundServer(service, "127.0.0.1:0", limits))
            return World(
                service=service,
                connect=lambda: stack.enter_context(connect(server.address, limits)),
            )

        yield start_one


@pytest.fixture
def world(start: Start) -> World:
    return start(LIMITS)


def threads() -> set[str]:
    """Names of our threads and of gRPC's that carry calls."""
    return {
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("collm-") or "_consume_request" in thread.name
    }


def test_a_frame_comes_back_as_it_was(world: World) -> None:
    link = world.connect()
    for frame in (b"", b"\x00\xff" * 1000, b"x" * LIMITS.max_message_bytes):
        link.send(frame)
        assert link.receive(WAIT) == frame


def test_a_thousand_frames_keep_their_order(world: World) -> None:
    link = world.connect()
    frames = [b"frame %d" % number for number in range(1000)]
    sender = threading.Thread(target=lambda: [link.send(frame) for frame in frames])
    sender.start()
    received = [link.receive(WAIT) for _ in frames]
    sender.join()
    assert received == frames
    assert world.record.frames == frames


def test_bytes_are_counted(world: World) -> None:
    link = world.connect()
    assert (link.bytes_up, link.bytes_down) == (0, 0)
    link.send(b"quiet 123")
    link.send(b"hello")
    link.receive(WAIT)
    assert (link.bytes_up, link.bytes_down) == (14, 5)


@pytest.mark.timed
def test_a_stream_arrives_as_it_is_made(world: World) -> None:
    link = world.connect()
    link.send(b"stream 4 0.07")
    assert link.receive(WAIT) == b"0"
    started = time.monotonic()
    assert [link.receive(WAIT) for _ in range(3)] == [b"1", b"2", b"3"]
    assert time.monotonic() - started > 0.1, "the first reply waited for the last"


def test_a_frame_without_replies_gets_none(world: World) -> None:
    link = world.connect()
    link.send(b"quiet")
    with pytest.raises(LinkTimeout):
        link.receive(0.1)
    link.send(b"still here")
    assert link.receive(WAIT) == b"still here"


def test_receive_gives_up_at_its_deadline(world: World) -> None:
    link = world.connect()
    link.send(b"stream 1 0.3")
    started = time.monotonic()
    with pytest.raises(LinkTimeout, match=r"for 0\.1 s"):
        link.receive(0.1)
    assert time.monotonic() - started > 0.05
    assert link.receive(WAIT) == b"0", "a timeout must not lose the answer"


def test_two_sessions_take_turns(world: World) -> None:
    first, second = world.connect(), world.connect()
    arrived: list[str] = []

    def take(name: str, link: Link) -> None:
        for _ in range(8):
            link.receive(WAIT)
            arrived.append(name)

    takers = [
        threading.Thread(target=take, args=("first", first)),
        threading.Thread(target=take, args=("second", second)),
    ]
    for taker in takers:
        taker.start()
    first.send(b"stream 8 0.02")
    second.send(b"stream 8 0.02")
    for taker in takers:
        taker.join()
    assert set(arrived[:6]) == {"first", "second"}
    assert abs(arrived[:8].count("first") - 4) <= 2


@pytest.mark.parametrize(
    ("frame", "answers"),
    [
        (b"refuse", [b"no fingerprint not that model"]),
        (b"break", [b"no ProtocolError bad bytes"]),
        (b"break-late", [b"first", b"no ProtocolError bad bytes"]),
        (b"big 65537", [b"no LinkError a frame of 65537 bytes; at most 65536"]),
    ],
)
def test_a_refusal_arrives_and_then_the_link_is_closed(
    world: World, frame: bytes, answers: list[bytes]
) -> None:
    link = world.connect()
    link.send(b"quiet")
    link.send(frame)
    assert [link.receive(WAIT) for _ in answers] == answers
    with pytest.raises(LinkError, match="the cloud ended the session") as caught:
        link.receive(WAIT)
    assert not isinstance(caught.value, LinkTimeout)
    with pytest.raises(LinkError, match="the cloud ended the session"):
        link.send(b"more")
    assert world.record.wait_for(lambda record: record.closed == 1)


def test_a_bug_in_the_service_is_logged_and_not_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    link = world.connect()
    link.send(b"explode")
    answer = link.receive(WAIT)
    assert answer.startswith(b"no internal")
    assert b"secret" not in answer
    with pytest.raises(LinkError):
        link.receive(WAIT)
    assert "secret" in caplog.text
    assert "Traceback" in caplog.text
    assert world.record.wait_for(lambda record: record.closed == 1)


def test_a_frame_beyond_the_limit_is_not_sent(world: World) -> None:
    link = world.connect()
    with pytest.raises(LinkError, match="65537 bytes; at most 65536"):
        link.send(b"x" * (LIMITS.max_message_bytes + 1))
    link.send(b"fine")
    assert link.receive(WAIT) == b"fine"


def test_frames_sent_before_close_arrive(world: World) -> None:
    link = world.connect()
    link.send(b"echo nobody reads")
    link.send(b"quiet bye")
    link.close()
    assert world.record.wait_for(lambda record: record.closed == 1)
    assert world.record.frames == [b"echo nobody reads", b"quiet bye"]


@pytest.mark.timed
def test_close_may_be_repeated_and_frees_the_threads(start: Start) -> None:
    before = threads()
    world = start(LIMITS)
    links = [world.connect() for _ in range(3)]
    for link in links:
        link.send(b"hello")
        assert link.receive(WAIT) == b"hello"
    started = time.monotonic()
    for link in links:
        link.close()
        link.close()
        for call in (lambda link=link: link.send(b"x"), lambda link=link: link.receive(1.0)):
            with pytest.raises(LinkError, match=r"closed|ended"):
                call()
    assert time.monotonic() - started < 1.0
    assert world.record.wait_for(lambda record: record.closed == 3)
    # The cloud itself still runs, with its workers.
    serving = {"collm-grpc-server", "collm-compute_0", "collm-memory-compute_0"}
    assert until(lambda: threads() - before <= serving)


def test_a_client_that_leaves_ends_a_running_computation(world: World) -> None:
    link = world.connect()
    link.send(b"stream 1000 0.02")
    link.receive(WAIT)
    link.close()
    assert world.record.wait_for(lambda record: record.closed == 1)
    assert world.record.overlaps == 0


def test_sessions_are_limited_and_places_come_back(world: World) -> None:
    links = [world.connect() for _ in range(LIMITS.max_sessions)]
    for link in links:
        link.send(b"hello")
        link.receive(WAIT)
    late = world.connect()
    assert late.receive(WAIT) == b"no busy all 3 sessions are taken; try again in 2 s"
    with pytest.raises(LinkError):
        late.receive(WAIT)
    links[0].close()
    assert until(lambda: admitted(world.connect()))


def admitted(link: Link) -> bool:
    """Whether the cloud has a place for `link`; its count may lag behind a closed session."""
    try:
        link.send(b"hello")
        return link.receive(WAIT) == b"hello"
    except LinkError:
        return False


@pytest.mark.timed
def test_a_link_that_was_silent_gives_its_place_to_another(start: Start) -> None:
    world = start(replace(LIMITS, max_sessions=1, spare_links=1, work_seconds=0.2))
    first, second = world.connect(), world.connect()
    first.send(b"hello")
    assert first.receive(WAIT) == b"hello"
    assert world.connect().receive(WAIT).startswith(b"no busy all 1 sessions")
    time.sleep(0.25)
    second.send(b"hello")
    assert second.receive(WAIT) == b"hello"
    third = world.connect()
    third.send(b"hello")
    assert third.receive(WAIT) == b"hello"
    assert first.receive(WAIT).startswith(b"no busy this session was silent")
    with pytest.raises(LinkError):
        first.receive(WAIT)
    second.send(b"again")
    assert second.receive(WAIT) == b"again"


@pytest.mark.timed
def test_a_silent_client_is_told_and_closed(start: Start) -> None:
    world = start(Limits(idle_seconds=0.15))
    link = world.connect()
    assert link.receive(WAIT) == b"no idle no message for 0.15 s; the session is closed"
    with pytest.raises(LinkError, match="ended"):
        link.receive(WAIT)
    assert world.record.wait_for(lambda record: record.closed == 1)


def test_a_cloud_that_drains_nothing_stops_the_sender(start: Start) -> None:
    world = start(Limits(send_seconds=0.1, max_queued_frames=4, linger_seconds=0.1))
    link = world.connect()
    link.send(b"stream 1 0.4")
    frame = b"quiet " + b"x" * 500_000

    def fill() -> None:
        for _ in range(100):
            link.send(frame)

    with pytest.raises(LinkError, match=r"took no frame for 0\.1 s"):
        fill()


def test_a_client_that_takes_nothing_is_dropped(start: Start) -> None:
    limits = Limits(send_seconds=0.2, max_queued_frames=4, linger_seconds=0.1)
    world = start(limits)
    link = world.connect()
    link.send(b"big 500000 1000")
    assert world.record.wait_for(lambda record: record.closed == 1)


def test_closing_unblocks_a_waiting_receive(world: World) -> None:
    link = world.connect()
    caught: list[LinkError] = []

    def wait() -> None:
        try:
            link.receive(10.0)
        except LinkError as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    link.close()
    waiter.join(WAIT)
    assert not waiter.is_alive()
    assert not isinstance(caught[0], LinkTimeout)


def test_connect_memory_closes_its_cloud() -> None:
    before = threads()
    service = FakeService()
    with connect_memory(service, LIMITS) as link:
        link.send(b"hello")
        assert link.receive(WAIT) == b"hello"
    assert service.record.closed == 1
    assert threads() == before


def test_a_closed_memory_cloud_takes_no_links() -> None:
    cloud = MemoryCloud(FakeService(), LIMITS)
    link = cloud.connect()
    cloud.close()
    cloud.close()
    with pytest.raises(LinkError):
        link.receive(WAIT)
    with pytest.raises(LinkError, match="closed"):
        cloud.connect()
