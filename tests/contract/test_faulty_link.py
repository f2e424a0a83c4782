"""`collm link`'s faults on real sockets; the answer over them is the undisturbed one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import random_artifact

from collm.config import Generation
from collm.errors import LinkError, UsageError
from collm.limits import Limits
from collm.link.background import BackgroundServer
from collm.link.base import Link
from collm.link.faults import Event, Fate, LinkFaults, Script, read_script
from collm.link.grpc_client import connect
from collm.link.shaper import LinkShaper
from collm.link.shapes import LinkShape
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.cloud import CloudService
from collm.session.edge import Edge

PLAIN = LinkShape(name="plain", delay_seconds=0.0)
LIMITS = Limits(connect_seconds=2.0, verdict_seconds=3.0, linger_seconds=0.1, kv_step=16,
                keepalive_seconds=10.0, keepalive_timeout_seconds=1.0)  # fmt: skip
PROMPT = [5, 17, 42, 99, 7, 250, 31]
MADE = Generation(max_tokens=30, threshold=0.05, draft=4, ignore_eos=True)


@contextmanager
def echo() -> Iterator[str]:
    """An address that says everything back."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=back, args=(one,), daemon=True).start()

        def back(one: socket.socket) -> None:
            with one:
                try:
                    while data := one.recv(4096):
                        one.sendall(data)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def dial(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    return socket.create_connection((host, int(port)), 3)


def said(one: socket.socket, data: bytes, seconds: float = 1.0) -> bytes:
    one.settimeout(seconds)
    one.sendall(data)
    return one.recv(4096)


def broken(one: socket.socket) -> bool:
    try:
        return said(one, b"hello") == b""
    except ConnectionError:
        return True


def refused(address: str) -> None:
    with dial(address) as late:
        if said(late, b"hello") == b"":
            raise ConnectionError


def test_a_reset_is_seen_as_one() -> None:
    with echo() as to, LinkShaper(PLAIN, "127.0.0.1:0", to, LinkFaults(reset=1.0)) as link:
        with dial(link.address) as one, pytest.raises(ConnectionError):
            said(one, b"hello")


def test_a_black_hole_takes_everything_and_says_nothing() -> None:
    with echo() as to, LinkShaper(PLAIN, "127.0.0.1:0", to, LinkFaults(blackhole=1.0)) as link:
        with dial(link.address) as one:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    said(one, b"hello", 0.1)


def test_a_bit_changes_and_only_one() -> None:
    with echo() as to, LinkShaper(PLAIN, "127.0.0.1:0", to, LinkFaults(corrupt=1.0)) as link:
        with dial(link.address) as one:
            changed = int.from_bytes(said(one, b"hello"), "big") ^ int.from_bytes(b"hello", "big")
            assert changed.bit_count() in (0, 2)  # one each way, perhaps the same


@pytest.mark.timed
def test_a_stalled_piece_comes_late() -> None:
    faults = LinkFaults(stall=1.0, stall_seconds=0.2)
    with echo() as to, LinkShaper(PLAIN, "127.0.0.1:0", to, faults) as link:
        with dial(link.address) as one:
            started = time.monotonic()
            assert said(one, b"hello", 3) == b"hello"
            assert 0.4 <= time.monotonic() - started < 1.0


@pytest.mark.timed
@pytest.mark.parametrize(
    "faults", [LinkFaults(cut_after_bytes=20), LinkFaults(cut_after_seconds=0.2)]
)
def test_a_connection_ends_after_a_while(faults: LinkFaults) -> None:
    with echo() as to, LinkShaper(PLAIN, "127.0.0.1:0", to, faults) as link:
        with dial(link.address) as one:
            assert said(one, b"hello") == b"hello"
            time.sleep(0.25)
            try:
                assert said(one, b"hello again") == b""
            except ConnectionError:
                pass
        with dial(link.address) as another:
            assert said(another, b"hello") == b"hello"


@pytest.mark.timed
def test_a_script_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text("# a bad day\n0.2s down 0.4s\n\n1s refuse 10s\n0.8s reset\n")
    events = read_script(path)
    assert events == (Event(0.2, "down", 0.4), Event(0.8, "reset"), Event(1.0, "refuse", 10.0))
    started = time.monotonic()  # before the script's clock, so that nothing comes too early
    with echo() as to, LinkShaper(PLAIN, "127.0.0.1:0", to, LinkFaults(script=events)) as link:
        with dial(link.address) as one:
            assert said(one, b"hello") == b"hello"
            time.sleep(0.25)
            assert said(one, b"hello", 3) == b"hello"
            assert time.monotonic() - started >= 0.6
            time.sleep(max(0.0, 0.9 - (time.monotonic() - started)))
            assert broken(one)
        time.sleep(max(0.0, 1.1 - (time.monotonic() - started)))
        with pytest.raises(ConnectionError):
            refused(link.address)


@pytest.mark.parametrize("line", ["10s", "x down 3s", "10s down", "10s reset 3s", "10s fly 3s"])
def test_a_script_that_is_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "script"
    path.write_text(f"1s reset\n{line}\n")
    with pytest.raises(UsageError, match="line 2"):
        read_script(path)


def test_chances_are_the_seeds() -> None:
    faults = LinkFaults(reset=0.1, corrupt=0.3, stall=0.2, seed=5)
    fates = [Fate(faults, Script(()), 1) for _ in range(2)]
    told = [[fate.judge(b"piece")[:2] for _ in range(50)] for fate in fates]
    assert told[0] == told[1] != [Fate(faults, Script(()), 2).judge(b"piece")[:2]] * 50
    with pytest.raises(UsageError, match="--reset 2"):
        LinkFaults(reset=2)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    return random_artifact(folder, cuts=(1, 2, 3), weights="int4", max_position_embeddings=96)


def test_a_link_that_never_brings_anything_is_not_dialled_without_end(artifact: Artifact) -> None:
    """Long enough for a Hello, too short for the session: pauses grow, and there is an end."""
    limits = replace(LIMITS, resume_seconds=3.0)
    service = CloudService(Stage(artifact, range(4), limits=limits), limits)
    dialled = []
    with (
        BackgroundServer(service, "127.0.0.1:0", limits) as server,
        LinkShaper(PLAIN, "127.0.0.1:0", server.address, LinkFaults(cut_after_bytes=2500)) as link,
    ):

        def dial_link() -> Link:
            dialled.append(time.monotonic())
            return connect(link.address, limits)

        edge = Edge(artifact, mode="verified", placement=2, exits=(), connect=dial_link,
                    limits=limits)  # fmt: skip
        answer = edge.answer([7] * 60, MADE)
        with pytest.raises(LinkError):
            answer.finish()
    assert 4 <= len(dialled) <= 25
    assert dialled[-1] - dialled[0] <= 1.1 * limits.resume_seconds + limits.connect_seconds


@contextmanager
def damaged_at_first(to: str) -> Iterator[str]:
    """An address whose first connection says nonsense once a call is made; later ones go `to`."""
    settings, nonsense = b"\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\0\0\0\0\1"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            one, _ = server.accept()
            with one:
                one.sendall(settings)
                heard = b""
                while b"authority" not in heard and len(heard) < 200:
                    heard += one.recv(4096)
                one.sendall(nonsense)
                one.settimeout(2.0)
                while one.recv(4096):
                    pass
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                other = dial(to)
                for ends in ((one, other), (other, one)):
                    threading.Thread(target=pass_on, args=ends, daemon=True).start()

        def pass_on(source: socket.socket, target: socket.socket) -> None:
            try:
                while data := source.recv(4096):
                    target.sendall(data)
            except OSError:
                pass
            target.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_an_answer_begins_though_the_first_exchange_was_damaged(artifact: Artifact) -> None:
    service = CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    with (
        BackgroundServer(service, "127.0.0.1:0", LIMITS) as server,
        damaged_at_first(server.address) as address,
    ):
        edge = Edge(artifact, mode="verified", placement=2, limits=LIMITS,
                    connect=lambda: connect(address, LIMITS))  # fmt: skip
        assert len(edge.answer(PROMPT, replace(MADE)).finish().token_ids) == MADE.max_tokens


@pytest.mark.parametrize(
    "faults",
    [
        LinkFaults(reset=0.02, seed=1),
        LinkFaults(cut_after_bytes=15_000),
        LinkFaults(corrupt=0.02, seed=2),
        LinkFaults(stall=0.05, stall_seconds=0.3, seed=3),
    ],
    ids=["resets", "cuts", "damage", "stalls"],
)
def test_the_text_is_the_undisturbed_one(artifact: Artifact, faults: LinkFaults) -> None:
    service = CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    whole = Edge(artifact, mode="verified", placement=4, limits=LIMITS)
    wanted = whole.answer(PROMPT, MADE).finish().token_ids
    with (
        BackgroundServer(service, "127.0.0.1:0", LIMITS) as server,
        LinkShaper(PLAIN, "127.0.0.1:0", server.address, faults) as link,
    ):
        edge = Edge(artifact, mode="verified", placement=2, limits=LIMITS,
                    connect=lambda: connect(link.address, LIMITS))  # fmt: skip
        for _ in range(4):
            account = edge.answer(PROMPT, replace(MADE)).finish()
            assert account.token_ids == wanted
            assert account.provisional == 0
