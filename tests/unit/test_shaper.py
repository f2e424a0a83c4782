"""A shaped link: trips take their time, the rate holds, ends are passed on, mistakes are lines."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from collm.cli.main import main
from collm.errors import LinkError, UsageError
from collm.link.shaper import LinkShaper
from collm.link.shapes import NAMED_LINKS, LinkShape, parse_link, parse_rate, parse_seconds

pytestmark = pytest.mark.timed


@contextmanager
def server() -> Iterator[tuple[str, list[socket.socket]]]:
    """A listening address, and the connections that came."""
    came: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    came.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", came
        listener.shutdown(socket.SHUT_RDWR)
    for one in came:
        one.close()


@contextmanager
def pair(shape: LinkShape) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection through the shaper."""
    with server() as (to, came), LinkShaper(shape, "127.0.0.1:0", to) as link:
        with dial(link.address) as near:
            until = time.monotonic() + 5
            while not came and time.monotonic() < until:
                time.sleep(0.005)
            came[0].settimeout(5)
            yield near, came[0]


def dial(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), 5)


def receive(one: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (some := one.recv(size - len(got))):
        got += some
    return got


def test_a_trip_takes_its_delay_each_way() -> None:
    with pair(LinkShape(name="l", delay_seconds=0.03)) as (near, far):
        started = time.perf_counter()
        near.sendall(b"there")
        assert receive(far, 5) == b"there"
        one_way = time.perf_counter() - started
        far.sendall(b"back")
        assert receive(near, 4) == b"back"
        both = time.perf_counter() - started
    assert 0.03 <= one_way < 0.2
    assert 0.06 <= both < 0.4


def test_bytes_keep_their_order_however_trips_vary() -> None:
    sent = bytes(range(256)) * 200
    with pair(LinkShape(name="l", delay_seconds=0.01, jitter_seconds=0.01)) as (near, far):
        threading.Thread(target=near.sendall, args=(sent,), daemon=True).start()
        assert receive(far, len(sent)) == sent


def test_connections_share_the_rate() -> None:
    """100 kB over two connections at 2 Mbit/s take 0.4 s."""
    shape = LinkShape(name="l", delay_seconds=0.0, bits_per_second=2e6)
    with server() as (to, came), LinkShaper(shape, "127.0.0.1:0", to) as link:
        started = time.perf_counter()
        with dial(link.address) as first, dial(link.address) as second:
            for one in (first, second):
                one.sendall(bytes(50_000))
                one.shutdown(socket.SHUT_WR)
            while len(came) < 2:
                time.sleep(0.005)
            assert sum(len(receive(one, 50_000)) for one in came) == 100_000
    assert 0.36 < time.perf_counter() - started < 2


def test_an_end_comes_after_what_was_sent_and_the_other_way_stays_open() -> None:
    with pair(LinkShape(name="l", delay_seconds=0.01)) as (near, far):
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert receive(far, 100) == b"question"
        far.sendall(b"answer")
        assert receive(near, 6) == b"answer"


def test_closing_the_link_ends_its_connections() -> None:
    with server() as (to, _), LinkShaper(NAMED_LINKS["paper"], "127.0.0.1:0", to) as link:
        with dial(link.address) as near:
            near.sendall(b"x")
            time.sleep(0.05)
            link.close()
            try:
                assert near.recv(1) == b""
            except ConnectionError:
                pass  # as good an end


def test_nobody_behind_it_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        to = f"127.0.0.1:{probe.getsockname()[1]}"
    with LinkShaper(NAMED_LINKS["loopback"], "127.0.0.1:0", to) as link:
        try:
            with dial(link.address) as near:
                assert near.recv(1) == b""
        except ConnectionError:
            pass  # as good an end, and it may come before the dialling is over


def test_a_port_in_use_is_a_line() -> None:
    with server() as (to, _), pytest.raises(LinkError, match="cannot listen"):
        LinkShaper(NAMED_LINKS["loopback"], to, to)


def test_links_are_written_as_names_or_round_trips() -> None:
    assert parse_link("paper").round_trip_seconds == pytest.approx(0.003)
    far = parse_link("rtt:50ms@100mbit")
    assert (far.delay_seconds, far.bits_per_second) == (pytest.approx(0.025), 100e6)
    assert parse_link("rtt:10ms").bits_per_second == 30e6
    assert (parse_seconds("150us"), parse_rate("0")) == (pytest.approx(150e-6), 0)


@pytest.mark.parametrize("text", ["moon", "rtt:", "rtt:5", "rtt:5ms@fast", "rtt:999s", "rtt:nanms"])
def test_what_is_no_link_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        parse_link(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--delay", "20"], "a time such as 20ms"),
        (["--rate", "fast"], "a rate such as 30mbit"),
        (["--delay", "1ms", "--jitter", "2ms"], "at most the delay"),
        (["--listen", "nowhere"], "not an address"),
        (["--shape", "moon"], "expected one of"),
    ],
)
def test_bad_options_are_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["collm", "link", "--to", "127.0.0.1:1", *words])
    with pytest.raises(SystemExit) as left:
        main()
    err = capsys.readouterr().err
    assert left.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err
