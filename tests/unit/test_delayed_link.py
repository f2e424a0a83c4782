"""A delayed link delays every frame by the same, keeps order and bounds, and ends its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from tests.contract.link_services import FakeService, until

from collm.errors import LinkError, LinkTimeout
from collm.limits import Limits
from collm.link.delayed import DelayedLink
from collm.link.memory import connect_memory

pytestmark = pytest.mark.timed

LIMITS = Limits(linger_seconds=0.1, send_seconds=0.2, shutdown_seconds=2.0)
WAIT = 3.0


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def link(service: FakeService) -> Iterator[DelayedLink]:
    with DelayedLink(connect_memory(service, LIMITS), 0.1, limits=LIMITS) as made:
        yield made


def test_a_frame_comes_only_when_it_is_due(link: DelayedLink) -> None:
    started = time.monotonic()
    link.send(b"hello")
    with pytest.raises(LinkTimeout, match=r"for 0\.03 s"):
        link.receive(0.03)
    with pytest.raises(LinkTimeout):
        link.receive(0)
    assert link.receive(WAIT) == b"hello"
    assert time.monotonic() - started >= 0.1
    assert (link.bytes_up, link.bytes_down) == (5, 5)


def test_polling_finds_a_frame_that_is_due(link: DelayedLink) -> None:
    link.send(b"hello")
    found: list[bytes] = []

    def poll() -> bool:
        try:
            found.append(link.receive(0))
        except LinkTimeout:
            return False
        return True

    assert until(poll)
    assert found == [b"hello"]


def test_frames_travel_at_the_same_time(link: DelayedLink) -> None:
    started = time.monotonic()
    frames = [b"frame %d" % number for number in range(50)]
    for frame in frames:
        link.send(frame)
    assert [link.receive(WAIT) for _ in frames] == frames
    assert 0.1 <= time.monotonic() - started < 50 * 0.1


def test_frames_may_also_leave_later(service: FakeService) -> None:
    with DelayedLink(connect_memory(service, LIMITS), 0.05, 0.1, LIMITS) as link:
        started = time.monotonic()
        link.send(b"hello")
        assert time.monotonic() - started < 0.1
        assert link.receive(WAIT) == b"hello"
        assert time.monotonic() - started >= 0.15


def test_frames_on_their_way_up_arrive_though_the_link_is_closed(service: FakeService) -> None:
    link = DelayedLink(connect_memory(service, LIMITS), 0.0, 0.25, LIMITS)
    link.send(b"quiet bye")
    link.close()
    assert service.record.frames == [b"quiet bye"]


def test_an_error_comes_after_the_frames_before_it(link: DelayedLink) -> None:
    started = time.monotonic()
    link.send(b"break-late")
    assert [link.receive(WAIT), link.receive(WAIT)] == [b"first", b"no ProtocolError bad bytes"]
    with pytest.raises(LinkError, match="the cloud ended the session"):
        link.receive(WAIT)
    assert time.monotonic() - started >= 0.1
    with pytest.raises(LinkError, match="the cloud ended the session"):
        link.send(b"more")


def test_what_waits_is_bounded() -> None:
    service = FakeService()
    limits = Limits(max_queued_frames=3, send_seconds=0.15, linger_seconds=0.1)
    with DelayedLink(connect_memory(service, limits), 0.0, 0.6, limits) as link:
        for _ in range(3):
            link.send(b"x")
        with pytest.raises(LinkError, match=r"took no frame for 0\.15 s \(3 frames"):
            link.send(b"x")
        assert service.record.frames == []
    assert len(service.record.frames) == 3


def test_closing_ends_its_threads_and_a_waiting_receive(service: FakeService) -> None:
    link = DelayedLink(connect_memory(service, LIMITS), 30.0, limits=LIMITS)
    caught: list[LinkError] = []

    def wait() -> None:
        try:
            link.receive(60.0)
        except LinkError as error:
            caught.append(error)

    link.send(b"never seen")
    waiter = threading.Thread(target=wait)
    waiter.start()
    link.close()
    link.close()
    waiter.join(WAIT)
    assert not waiter.is_alive()
    assert caught and not isinstance(caught[0], LinkTimeout)
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith("collm-delayed") for name in names)
    for call in (lambda: link.send(b"x"), lambda: link.receive(1.0)):
        with pytest.raises(LinkError):
            call()


def test_a_negative_delay_is_refused(service: FakeService) -> None:
    with connect_memory(service, LIMITS) as link, pytest.raises(ValueError, match="0 or more"):
        DelayedLink(link, -1.0)
