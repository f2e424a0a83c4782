"""What a shaped link is really like: a client and a server in this process, a shaper between."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass

import numpy as np

from collm.link.shapes import LinkShape
from collm.serve.spawn import spawned_link

_ECHO, _SINK, _SOURCE = b"e", b"s", b"g"
_ECHO_BYTES = 64
_WAIT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """As measured. Seconds, bits a second."""

    round_trip_median: float
    round_trip_p95: float
    up_bits_per_second: float
    down_bits_per_second: float


def calibrate(shape: LinkShape, seconds: float = 1.0) -> Calibration:
    """Round trips of 64 bytes, then bytes in bulk each way, for about `seconds` each."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        to = f"127.0.0.1:{server.getsockname()[1]}"
        with spawned_link(shape, to) as link:
            trips = _round_trips(link.address, seconds)
            size = int(shape.bits_per_second / 8 * seconds) or 64_000_000
            up, down = (_rate(link.address, what, size, shape) for what in (_SINK, _SOURCE))
    median, p95 = np.quantile(trips, [0.5, 0.95]).tolist()
    return Calibration(
        round_trip_median=median,
        round_trip_p95=p95,
        up_bits_per_second=up,
        down_bits_per_second=down,
    )


def _dial(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    made = socket.create_connection((host, int(port)), _WAIT_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _round_trips(address: str, seconds: float) -> list[float]:
    trips: list[float] = []
    with _dial(address) as client:
        client.sendall(_ECHO)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(trips) < 10:
            started = time.perf_counter()
            client.sendall(bytes(_ECHO_BYTES))
            _receive(client, _ECHO_BYTES)
            trips.append(time.perf_counter() - started)
    return trips[1:]


def _rate(address: str, what: bytes, size: int, shape: LinkShape) -> float:
    """Bits a second of `size` bytes, the trips there and back left out."""
    with _dial(address) as client:
        client.sendall(what + size.to_bytes(8, "big"))
        started = time.perf_counter()
        if what == _SINK:
            client.sendall(bytes(size))
            _receive(client, 1)
        else:
            _receive(client, size)
        return 8 * size / (time.perf_counter() - started - shape.round_trip_seconds)


def _receive(one: socket.socket, size: int) -> None:
    while size:
        got = len(one.recv(min(size, 65_536)))
        if not got:
            raise ConnectionError("the link ended while it was measured")
        size -= got


def _serve(server: socket.socket) -> None:
    """Echo, swallow or give bytes, a connection at a time, until the socket is closed."""
    while True:
        try:
            one, _ = server.accept()
        except OSError:
            return
        with one:
            try:
                _answer(one)
            except OSError:
                continue


def _answer(one: socket.socket) -> None:
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.settimeout(_WAIT_SECONDS)
    what = one.recv(1)
    if what == _ECHO:
        while some := one.recv(4096):
            one.sendall(some)
        return
    header = b""
    while len(header) < 8 and (some := one.recv(8 - len(header))):
        header += some
    size = int.from_bytes(header, "big")
    if what == _SINK:
        _receive(one, size)
        one.sendall(b".")
    else:
        one.sendall(bytes(size))
