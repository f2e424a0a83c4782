"""Many clients at once: a thousand honest ones, slow ones, and ones that send rubbish.

COLLM_CHAOS_SECONDS says how long a thousand sessions are held (`make chaos`: 1,800, half an hour),
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
import psutil
import pytest

from collm.limits import DEFAULT_LIMITS
from collm.link.grpc_client import connect
from collm.link.grpc_options import PATH

SECONDS = float(os.environ.get("COLLM_CHAOS_SECONDS", "8"))
SESSIONS = int(os.environ.get("COLLM_CHAOS_SESSIONS", "1000"))
IS_FULL = SECONDS > 60
"""A 99th percentile of a fraction of a millisecond takes many samples to tell."""
TRIPS = 3000 if IS_FULL else 600
REQUEST = b"x" * 200

pytestmark = [pytest.mark.e2e, pytest.mark.timed]

_STUB = """
import asyncio, resource, sys
from dataclasses import replace
from collm.limits import DEFAULT_LIMITS
from collm.link.grpc_server import serve
from collm.serve.cloud_process import keep_memory_together

class Stub:
    '''A stage that takes no time: what is left is the link.'''
    def open(self, peer): return self
    pause_seconds = 0.0
    def receive(self, frame): yield frame[:32]
    def close(self): pass
    def refusal(self, error): return b'refused ' + str(error).encode()

async def main():
    limits = replace(DEFAULT_LIMITS, max_sessions=1200, send_seconds=3.0, idle_seconds=600.0)
    server = await serve(Stub(), '127.0.0.1:0', limits)
    print(server.address, flush=True)
    await server.wait()

resource.setrlimit(resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
keep_memory_together()
asyncio.run(main())
"""


@contextmanager
def stub_cloud() -> Iterator[tuple[str, psutil.Process]]:
    """A server process whose answers cost nothing."""
    process = subprocess.Popen([sys.executable, "-c", _STUB], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().decode().strip(), psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def _converse(channel: grpc.aio.Channel, until: float, pause: float) -> int:
    """Ask and wait for the answer, again and again; how often."""
    call = channel.stream_stream(PATH)()
    count = 0
    while time.monotonic() < until:
        await call.write(REQUEST)
        assert await asyncio.wait_for(call.read(), 30) == REQUEST[:32]
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
        assert process.memory_info().rss <= 1.05 * before


def _round_trips(address: str, count: int) -> list[float]:
    seconds = []
    with connect(address, DEFAULT_LIMITS) as link:
        for _ in range(count):
            started = time.perf_counter()
            link.send(REQUEST)
            link.receive(10.0)
            seconds.append(time.perf_counter() - started)
            time.sleep(0.002)
    return seconds


def _dial(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    return socket.create_connection((host, int(port)), 5)


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.mark.timeout(300)
def test_slow_peers_do_not_slow_honest_ones() -> None:
    """200 that send a byte a second, 50 that never read: the 99th percentile beside that alone."""
    with stub_cloud() as (address, process):
        _round_trips(address, 200)
        ratios = []
        for _ in range(5 if IS_FULL else 3):
            alone = statistics.quantiles(_round_trips(address, TRIPS), n=100)[98]
            slow = [_dial(address) for _ in range(200)]
            deaf = [_dial(address) for _ in range(50)]
            try:
                for one in deaf:
                    one.sendall(_PREFACE)
                beside = []
                for _ in range(3):
                    for one in slow:
                        one.sendall(_PREFACE[(part := 3 * len(beside) // TRIPS) : part + 1] or b"x")
                    beside += _round_trips(address, TRIPS // 3)
            finally:
                for one in (*slow, *deaf):
                    one.close()
            ratios.append(statistics.quantiles(beside, n=100)[98] / alone)
        print(f"99th percentile beside / alone: {ratios}")
        assert statistics.median(ratios) <= (1.2 if IS_FULL else 2.0), ratios
        assert process.is_running()


@pytest.mark.timeout(300)
def test_rubbish_on_the_port_disturbs_nobody() -> None:
    """Bytes that are no HTTP/2, calls that are none of ours: others go on, memory stays."""
    chances = random.Random(1)
    with stub_cloud() as (address, process):
        _round_trips(address, 100)
        before = process.memory_info().rss
        with connect(address, DEFAULT_LIMITS) as honest:
            for turn in range(300):
                with _dial(address) as one:
                    lead = _PREFACE if turn % 2 else b""
                    one.sendall(lead + chances.randbytes(chances.randrange(1, 4096)))
                if turn % 10 == 0:
                    honest.send(REQUEST)
                    assert honest.receive(5.0) == REQUEST[:32]
        assert process.memory_info().rss - before < 64 * 2**20
