"""Many clients at once: a thousand honest ones, slow ones, and ones that send rubbish.

The cloud is a real one around a stage that costs nothing (`stub_cloud.py`). COLLM_CHAOS_SECONDS
says how long a thousand sessions are held (`make chaos`: 1,800, half an hour),
COLLM_CHAOS_SESSIONS how many there are.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import psutil
import pytest
from tests.chaos.stub_cloud import CUT, FINGERPRINT, WIDTH
from tests.raw_http2 import SETTINGS_HEAD, call_that_takes_nothing

from collm.config import Sampling
from collm.limits import DEFAULT_LIMITS
from collm.link.base import Link
from collm.link.grpc_client import connect
from collm.link.grpc_options import PATH
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import (
    PROTOCOL_MAJOR,
    PROTOCOL_MINOR,
    Append,
    ClientMessage,
    CloudMessage,
    Heartbeat,
    Hello,
    Pong,
    Verdict,
    Verify,
    Welcome,
)

SECONDS = float(os.environ.get("COLLM_CHAOS_SECONDS", "8"))
SESSIONS = int(os.environ.get("COLLM_CHAOS_SESSIONS", "1000"))
IS_FULL = SECONDS > 60
"""A 99th percentile of a fraction of a millisecond takes many samples to tell."""
TRIPS = 3000 if IS_FULL else 600
HELLO = Hello(protocol_major=PROTOCOL_MAJOR, protocol_minor=PROTOCOL_MINOR, cut=CUT,
              fingerprint=FINGERPRINT, wire_format="f16", software="crowd")  # fmt: skip
ROW = np.ones((1, WIDTH), np.float32)
GREEDY = Sampling()

pytestmark = pytest.mark.e2e


@contextmanager
def stub_cloud() -> Iterator[tuple[str, psutil.Process]]:
    """A server process whose answers cost nothing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.stub_cloud"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().decode().strip(), psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def _ask(call: grpc.aio.StreamStreamCall, message: ClientMessage) -> CloudMessage:
    await call.write(encode(message, "f16"))
    return decode_cloud(await asyncio.wait_for(call.read(), 30), DEFAULT_LIMITS)


async def _converse(channel: grpc.aio.Channel, until: float, pause: float) -> int:
    """Send a position and ask what comes next, again and again; how often."""
    call = channel.stream_stream(PATH)()
    assert isinstance(await _ask(call, HELLO), Welcome)
    count = 0
    while time.monotonic() < until:
        row = Append(epoch=0, base=count, token_ids=(7,), rows=ROW)
        await call.write(encode(row, "f16"))
        verdict = await _ask(call, Verify(epoch=0, base=count, draft=(), sampling=GREEDY))
        assert isinstance(verdict, Verdict) and (verdict.base, verdict.next_token) == (count, 7)
        count += 1
        await asyncio.sleep(pause)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return count


async def _crowd(address: str, seconds: float, process: psutil.Process) -> tuple[list[int], int]:
    """A thousand sessions over ten connections; their counts, and the memory with all of them."""
    channels = [grpc.aio.insecure_channel(address, [("c", n)]) for n in range(10)]
    try:
        until = time.monotonic() + seconds
        tasks = [
            asyncio.ensure_future(_converse(channels[n % 10], until, 1.0)) for n in range(SESSIONS)
        ]
        await asyncio.sleep(seconds * 0.8)
        held = process.memory_info().rss
        return await asyncio.gather(*tasks), held
    finally:
        for channel in channels:
            await channel.close()


@pytest.mark.timed
@pytest.mark.timeout(2400)
def test_a_thousand_sessions() -> None:
    """No error; the link's memory a session; all of it back; every session its share."""
    with stub_cloud() as (address, process):
        # What the first crowds make grow, stays.
        for _ in range(2):
            asyncio.run(_crowd(address, 30.0 if IS_FULL else 3.0, process))
        time.sleep(0.5)
        before = process.memory_info().rss
        counts, held = asyncio.run(_crowd(address, SECONDS, process))
        assert len(counts) == SESSIONS
        assert (held - before) / SESSIONS < 64 * 1024
        assert max(counts) <= 2 * min(counts), (min(counts), max(counts))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and process.memory_info().rss > 1.05 * before:
            time.sleep(0.1)
        after = process.memory_info().rss
        print(f"questions {min(counts)} to {max(counts)}; MB {before / 1e6:.1f} before, "
              f"{held / 1e6:.1f} with all, {after / 1e6:.1f} after")  # fmt: skip
        assert process.memory_info().rss <= 1.05 * before


def _round_trips(link: Link, count: int) -> list[float]:
    frame, seconds = encode(Heartbeat(nonce=1)), []
    for _ in range(count):
        started = time.perf_counter()
        link.send(frame)
        pong = decode_cloud(link.receive(10.0), DEFAULT_LIMITS)
        seconds.append(time.perf_counter() - started)
        assert isinstance(pong, Pong)
        time.sleep(0.002)
    return seconds


def _dial(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    return socket.create_connection((host, int(port)), 5)


def _words() -> bytes:
    """A session and 50 questions, of somebody who takes no answer."""
    return call_that_takes_nothing([encode(HELLO, "f16"), *[encode(Heartbeat(nonce=1))] * 50])


@contextmanager
def _bad_peers(address: str) -> Iterator[None]:
    """200 that send a byte a second, 50 that ask much and take no answer."""
    command = [sys.executable, "-m", "tests.chaos.bad_peers", address, _words().hex()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "connected\n"
        time.sleep(1.0)
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.timed
@pytest.mark.timeout(300)
def test_slow_peers_do_not_slow_honest_ones() -> None:
    """The 99th percentile beside 200 slow peers and 50 deaf ones, beside that alone."""
    with stub_cloud() as (address, process), connect(address) as link:
        _round_trips(link, 200)
        ratios = []
        for _ in range(5 if IS_FULL else 3):
            alone = statistics.quantiles(_round_trips(link, TRIPS), n=100)[98]
            with _bad_peers(address):
                beside = statistics.quantiles(_round_trips(link, TRIPS), n=100)[98]
            ratios.append(beside / alone)
        print(f"99th percentile beside / alone: {ratios}")
        assert statistics.median(ratios) <= (1.2 if IS_FULL else 2.0), ratios
        assert process.is_running()


@pytest.mark.timeout(300)
def test_rubbish_on_the_port_disturbs_nobody() -> None:
    """Bytes that are no HTTP/2, calls that are none of ours: others go on, memory stays."""
    chances = random.Random(1)
    with stub_cloud() as (address, process), connect(address) as honest:
        _round_trips(honest, 100)
        before = process.memory_info().rss
        for turn in range(300):
            with _dial(address) as one:
                lead = (b"", SETTINGS_HEAD, _words())[turn % 3]
                one.sendall(lead + chances.randbytes(chances.randrange(1, 4096)))
            if turn % 10 == 0:
                _round_trips(honest, 1)
        assert process.memory_info().rss - before < 64 * 2**20
