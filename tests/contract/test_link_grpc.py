"""What only holds over gRPC: addresses, ports, dead peers, shutting down."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

import grpc
import pytest
from tests.contract.link_services import FakeService, until
from tests.raw_http2 import call_that_takes_nothing, call_to

from collm.errors import LinkError, LinkTimeout, Unreachable
from collm.limits import Limits
from collm.link.address import parse_address
from collm.link.background import BackgroundServer
from collm.link.grpc_client import connect

LIMITS = Limits(connect_seconds=3.0, linger_seconds=0.1, shutdown_seconds=1.0)
WAIT = 3.0


@pytest.fixture
def free_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.timed
def test_nobody_there(free_address: str) -> None:
    started = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        connect(free_address, Limits(connect_seconds=0.4))
    assert 0.3 < time.monotonic() - started < 1.5
    assert str(caught.value) == (
        f"no CoLLM cloud answers at {free_address} within 0.4 s; "
        f"start one with: collm cloud ARTIFACT --listen {free_address}"
    )


def test_who_takes_no_answer_is_given_up() -> None:
    """Its session ends though its connection lives; others are answered meanwhile."""
    limits = Limits(connect_seconds=3.0, send_seconds=0.3, shutdown_seconds=1.0)
    service = FakeService()
    with BackgroundServer(service, "127.0.0.1:0", limits) as server, connect(server.address) as one:
        host, _, port = server.address.partition(":")
        with socket.create_connection((host, int(port)), 3) as deaf:
            deaf.sendall(call_that_takes_nothing([b"big 100000 1000", b"more"]))
            assert service.record.wait_for(lambda seen: b"big 100000 1000" in seen.frames)
            one.send(b"hello")
            assert one.receive(WAIT) == b"hello"
            assert service.record.wait_for(lambda seen: seen.closed == 1, 3.0)
            assert until(lambda: server.server.sessions == 1)
        assert b"more" not in service.record.frames


@pytest.mark.timed
def test_a_call_with_a_damaged_name_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """grpc.aio stops taking calls then: for good, without the server that takes its place."""
    service = FakeService()
    with BackgroundServer(service, "127.0.0.1:0", LIMITS) as server:
        host, _, port = server.address.partition(":")
        with connect(server.address, LIMITS) as old:
            hostile: list[socket.socket] = []

            def was_noticed() -> bool:
                return caplog.text.count("ended grpc's server") == len(hostile)

            for _ in range(3):
                one = socket.create_connection((host, int(port)), 3)
                hostile.append(one)
                one.sendall(call_to(b"/co\x93lm.v1.Session/Open"))
                assert until(was_noticed)
                with connect(server.address, LIMITS) as new:
                    new.send(b"new")
                    assert new.receive(WAIT) == b"new"
                old.send(b"old")
                assert old.receive(WAIT) == b"old"
            # Those that nobody needs any more are gone, with whoever killed them.
            for one in hostile[1:]:
                one.settimeout(3.0)
                with suppress(ConnectionError):
                    while one.recv(4096):
                        pass
        for one in hostile:
            one.close()
        assert until(lambda: service.record.closed == 4)


def test_a_server_that_says_nothing_is_no_cloud() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(Unreachable):
            connect(address, Limits(connect_seconds=0.3))


@contextmanager
def between(to: str, delays: Iterable[float]) -> Iterator[str]:
    """An address that leads `to`; what comes from there first is held back, per connection."""
    over, waits = threading.Event(), iter(delays)
    threads: list[threading.Thread] = []

    def pass_on(source: socket.socket, target: socket.socket, wait: float) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                over.wait(wait)
                wait = 0.0
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def connection(one: socket.socket, wait: float) -> None:
        host, _, port = to.partition(":")
        with one, socket.create_connection((host, int(port))) as other:
            back = threading.Thread(target=pass_on, args=(other, one, wait))
            back.start()
            pass_on(one, other, 0.0)
            back.join()

    def serve() -> None:
        with suppress(OSError):
            while not over.is_set():
                one, _ = server.accept()
                threads.append(threading.Thread(target=connection, args=(one, next(waits, 0.0))))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)
            for thread in (serving, *threads):
                thread.join()


@pytest.mark.timed
def test_a_first_call_that_is_lost_is_not_waited_for() -> None:
    limits = replace(LIMITS, connect_seconds=2.0)
    with (
        BackgroundServer(FakeService(), "127.0.0.1:0", limits) as server,
        between(server.address, [60.0, 0.0]) as address,
        connect(address, limits) as link,
    ):
        link.send(b"hello")
        assert link.receive(WAIT) == b"hello"


@pytest.mark.timed
def test_a_slow_way_has_all_the_time() -> None:
    """Each call is answered only after others have been made beside it."""
    limits = replace(LIMITS, connect_seconds=2.0)
    with (
        BackgroundServer(FakeService(), "127.0.0.1:0", limits) as server,
        between(server.address, [0.8] * 3) as address,
        connect(address, limits) as link,
    ):
        link.send(b"hello")
        assert link.receive(WAIT) == b"hello"
        assert until(lambda: server.server.sessions == 1)  # the others are given up


@pytest.mark.timed
def test_a_call_that_the_other_side_cancels_is_made_again() -> None:
    """RST_STREAM(CANCEL), which a damaged frame may bring about."""
    settings, cancel = b"\0\0\0\4\0\0\0\0\0", b"\0\0\4\3\0\0\0\0\1\0\0\0\x08"
    with socket.create_server(("127.0.0.1", 0)) as first:
        host, port = first.getsockname()

        def serve() -> None:
            one, _ = first.accept()
            cancelled.append(one)
            one.sendall(settings)
            heard = b""
            while b"authority" not in heard and len(heard) < 200:
                heard += one.recv(4096)
            first.close()
            one.sendall(cancel)
            after.append(BackgroundServer(FakeService(), f"{host}:{port}", LIMITS))

        cancelled: list[socket.socket] = []
        after: list[BackgroundServer] = []
        threading.Thread(target=serve, daemon=True).start()
        try:
            with connect(f"{host}:{port}", LIMITS) as link:
                link.send(b"hello")
                assert link.receive(WAIT) == b"hello"
        finally:
            for one in (*cancelled, *after):
                one.close()


def test_another_grpc_server_is_no_cloud() -> None:
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with pytest.raises(Unreachable, match="is no CoLLM cloud"):
            connect(f"127.0.0.1:{port}", LIMITS)
    finally:
        other.stop(0).wait()


def test_a_cloud_that_comes_up_meanwhile_is_found(free_address: str) -> None:
    servers: list[BackgroundServer] = []

    def start_late() -> None:
        time.sleep(0.3)
        servers.append(BackgroundServer(FakeService(), free_address, LIMITS))

    starter = threading.Thread(target=start_late)
    starter.start()
    try:
        with connect(free_address, LIMITS) as link:
            link.send(b"hello")
            assert link.receive(WAIT) == b"hello"
    finally:
        starter.join()
        for server in servers:
            server.close()


BAD_ADDRESSES = [
    "",
    "localhost",
    ":7070",
    "localhost:",
    "localhost:port",
    "localhost:70700",
    "localhost:-1",
    "http://localhost:7070",
    "unix:/tmp/socket",
    "dns:///localhost:7070",
    "::1:7070",
    "local host:7070",
    "localhost:7070\n",
    "localhost:٧٠٧٠",
    "x" * 1000,
]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_bad_addresses_are_named(address: str) -> None:
    for attempt in (
        lambda: connect(address, LIMITS),
        lambda: BackgroundServer(FakeService(), address, LIMITS),
    ):
        with pytest.raises(LinkError, match=r"HOST:PORT|port") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200
    with pytest.raises(Unreachable):
        connect(address, LIMITS)


def test_good_addresses() -> None:
    assert parse_address("a.example:1") == ("a.example", 1)
    assert parse_address("[::1]:7070") == ("[::1]", 7070)
    assert parse_address("127.0.0.1:0", any_port=True) == ("127.0.0.1", 0)
    with pytest.raises(ValueError, match="port 0"):
        parse_address("127.0.0.1:0")


def test_a_taken_port_is_one_line() -> None:
    with BackgroundServer(FakeService(), limits=LIMITS) as first:
        with pytest.raises(LinkError, match=f"cannot listen on {first.address}") as caught:
            BackgroundServer(FakeService(), first.address, LIMITS)
        assert "\n" not in str(caught.value)


@pytest.mark.timed
def test_stopping_tells_idle_sessions_at_once_and_streaming_ones_after_their_turn() -> None:
    service = FakeService()
    server = BackgroundServer(service, limits=LIMITS)
    idle, streaming = connect(server.address, LIMITS), connect(server.address, LIMITS)
    idle.send(b"hello")
    idle.receive(WAIT)
    streaming.send(b"stream 1000 0.02")
    streaming.receive(WAIT)
    assert server.server.sessions == 2
    started = time.monotonic()
    server.close()
    server.close()
    assert time.monotonic() - started < 0.9
    for link in (idle, streaming):
        while (frame := link.receive(WAIT)).isdigit():
            continue
        assert frame == b"no busy the cloud is shutting down; try again later"
        with pytest.raises(LinkError) as caught:
            link.receive(WAIT)
        assert not isinstance(caught.value, LinkTimeout)
        link.close()
    assert service.record.closed == 2
    assert service.record.overlaps == 0
    assert server.server.sessions == 0


@pytest.mark.timed
def test_stopping_waits_no_longer_than_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(linger_seconds=0.1, shutdown_seconds=0.2)
    service = FakeService()
    server = BackgroundServer(service, limits=limits)
    with connect(server.address, limits) as link:
        link.send(b"stream 1 0.7")
        assert until(lambda: service.record.running == 1)
        server.close()
        assert service.record.running == 1, "stopping waited for the computation"
    assert "left behind" in caplog.text
    # Once it ends after all, nothing of it remains.
    for thread in threading.enumerate():
        if thread.name.startswith("collm-compute"):
            thread.join(WAIT)
            assert not thread.is_alive()


CLIENT = """
    import sys, time
    from collm.limits import Limits
    from collm.link.grpc_client import connect
    link = connect(sys.argv[1], Limits())
    link.send(b"stream 1000 0.02")
    link.receive(5.0)
    print("streaming", flush=True)
    time.sleep(60)
"""


def test_a_client_process_that_dies_frees_its_session() -> None:
    service = FakeService()
    with BackgroundServer(service, limits=LIMITS) as server:
        client = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CLIENT), server.address],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert client.stdout is not None
        with client:
            assert client.stdout.readline() == b"streaming\n"
            client.send_signal(signal.SIGKILL)
        assert service.record.wait_for(lambda record: record.closed == 1)
        assert service.record.overlaps == 0
        assert until(lambda: server.server.sessions == 0)


SERVER = """
    import sys, time
    from collm.link.background import BackgroundServer
    from tests.contract.link_services import FakeService
    print(BackgroundServer(FakeService()).address, flush=True)
    time.sleep(60)
"""


def test_a_cloud_process_that_dies_breaks_the_link() -> None:
    cloud = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
    )
    assert cloud.stdout is not None
    with cloud:
        address = cloud.stdout.readline().decode().strip()
        link = connect(address, LIMITS)
        link.send(b"hello")
        assert link.receive(WAIT) == b"hello"
        cloud.send_signal(signal.SIGKILL)
        with pytest.raises(LinkError, match=f"the link to {address} broke") as caught:
            link.receive(WAIT)
        assert "\n" not in str(caught.value)
        with pytest.raises(LinkError, match="broke"):
            link.send(b"more")
        link.close()
