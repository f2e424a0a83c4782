"""A link shaper in user space: a TCP proxy that delays each way and limits its rate.

::

    with LinkShaper(NAMED_LINKS["lte"], "127.0.0.1:0", "127.0.0.1:7070") as link:
        ...  # what connects to link.address reaches 127.0.0.1:7070, slowly

A piece of bytes leaves when those before it have left, of any connection, and its own bits are
through; it arrives a trip later:

    departure = max(arrival here, last departure) + bits / rate
    delivery  = max(departure + delay ± jitter, last delivery of the connection)

Threads with blocking sockets, not an event loop: epoll waits in whole milliseconds.

On top of that `LinkFaults` break connections as bad links do.

Not covered: losses of packets; how TCP's own window would grow over so long a path.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import deque

from collm.errors import LinkError
from collm.link.address import parse_address
from collm.link.base import Closing
from collm.link.faults import Fate, LinkFaults, Script
from collm.link.shapes import LinkShape

MAX_CONNECTIONS = 64
_CONNECT_SECONDS = 5.0
_MOST_BYTES, _LEAST_BYTES, _PIECE_SECONDS = 16_384, 1448, 0.001
_BUFFER_BYTES = 262_144
_RESET = struct.pack("ii", 1, 0)


class LinkShaper(Closing):
    """Listens on `listen` and passes every connection on to `to`, both HOST:PORT.

    Raises LinkError where it cannot listen; what cannot be reached ends the connection that
    asked for it.
    """

    def __init__(
        self, shape: LinkShape, listen: str, to: str, faults: LinkFaults | None = None
    ) -> None:
        host, port = _parsed(listen, any_port=True)
        self._to = _parsed(to)
        self._up, self._down = _Way(shape), _Way(shape)
        self._faults = faults if faults is not None and faults.any else None
        self._script = Script(faults.script if faults is not None else ())
        self._taken = 0
        """Connections so far."""
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._closed = False
        try:
            self._listener = socket.create_server((host, port))
        except OSError as error:
            raise LinkError(f"cannot listen on {listen}: {error.strerror or error}") from None
        bound = self._listener.getsockname()
        self.address = f"{host}:{bound[1]}"
        """Where to connect."""
        threading.Thread(target=self._accept, name="collm-shaper", daemon=True).start()
        if self._script.resets():
            threading.Thread(target=self._break_by_script, daemon=True).start()

    def reshape(self, shape: LinkShape) -> None:
        """Another delay and rate from now on; what has left arrives as it was to."""
        self._up.reshape(shape)
        self._down.reshape(shape)

    def close(self) -> None:
        """End every connection. Idempotent."""
        self._closed = True
        _hang_up(self._listener)
        self._listener.close()
        with self._lock:
            for one in self._open:
                _hang_up(one)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                time.sleep(0.1)  # closed, or out of descriptors: some will be given back
                continue
            refused = self._script.until("refuse") > 0
            if refused or not self._slots.acquire(blocking=False):
                _reset(client)
                continue
            self._taken += 1
            threading.Thread(target=self._serve, args=(client, self._taken), daemon=True).start()

    def _break_by_script(self) -> None:
        for at in self._script.resets():
            while (wait := at - time.perf_counter()) > 0 and not self._closed:
                time.sleep(min(wait, 0.2))
            with self._lock:
                for one in self._open:
                    _break(one)

    def _serve(self, client: socket.socket, number: int) -> None:
        """One connection, until both ways have ended."""
        server: socket.socket | None = None
        try:
            server = socket.create_connection(self._to, _CONNECT_SECONDS)
            server.settimeout(None)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            fate = Fate(self._faults, self._script, number) if self._faults is not None else None
            pipes = [_Pipe(client, server, self._up, fate), _Pipe(server, client, self._down, fate)]
            threads = [
                threading.Thread(target=run, daemon=True)
                for pipe in pipes
                for run in (pipe.read, pipe.write)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except OSError:
            _reset(client)  # nobody there
        finally:
            with self._lock:
                self._open -= {client, server}
            for end in (client, server):
                if end is not None:
                    end.close()
            self._slots.release()


class _Way:
    """One direction of the link, which all connections share."""

    def __init__(self, shape: LinkShape) -> None:
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._random = random.Random(0)
        self.reshape(shape)

    def reshape(self, shape: LinkShape) -> None:
        """See `LinkShaper`."""
        self._shape = shape
        rate = shape.bits_per_second / 8
        self.piece = int(min(_MOST_BYTES, max(_LEAST_BYTES, rate * _PIECE_SECONDS)))
        if not rate:
            self.piece = _MOST_BYTES
        self._buffer_seconds = 0.0
        self.most_bytes = 64 * _BUFFER_BYTES
        """On one connection and its way; a reader of the far side that stalls stalls ours."""
        if rate:
            product = int(rate * shape.delay_seconds)
            buffer = max(_BUFFER_BYTES, 2 * product)
            self._buffer_seconds = buffer / rate
            self.most_bytes = buffer + 2 * product

    def depart(self, size: int) -> float:
        """When a piece that is here now will arrive; waits while too much stands in front of it."""
        shape = self._shape
        with self._lock:
            now = time.perf_counter()
            takes = 8 * size / shape.bits_per_second if shape.bits_per_second else 0.0
            self._free_at = max(now, self._free_at) + takes
            backlog = self._free_at - now - self._buffer_seconds
            jitter = self._random.uniform(-shape.jitter_seconds, shape.jitter_seconds)
            arrives = self._free_at + shape.delay_seconds + jitter
        if shape.bits_per_second and backlog > 0:
            time.sleep(backlog)
        return arrives


class _Pipe:
    """One way of one connection: what is on its way, in order. None at its end, b"" for a reset."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, way: _Way, fate: Fate | None
    ) -> None:
        self._fate = fate
        self._source = source
        self._sink = sink
        self._way = way
        self._flying: deque[tuple[float, bytes | None]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._broken = False

    def read(self) -> None:
        """Take what comes, until its end."""
        last, piece = 0.0, b"-"
        while piece:
            try:
                piece = self._source.recv(self._way.piece)
                # `_break` ends both ways' reading: that is no end to be passed on politely.
                told: bytes | None = piece or (b"" if _is_broken(self._source) else None)
            except OSError:
                piece, told = b"", b""
            if piece and self._fate is not None:
                befalls, piece, held_until = self._fate.judge(piece)
                if befalls == "drop":
                    piece = b"-"
                    continue
                if befalls != "pass":
                    for one in (self._source, self._sink):
                        (_hang_up if befalls == "cut" else _break)(one)
                    told = b""
                else:
                    told = piece
                last = max(last, held_until)
            last = max(last, self._way.depart(len(piece)))
            with self._changed:
                self._changed.wait_for(lambda: self._broken or self._bytes <= self._way.most_bytes)
                if self._broken:
                    return
                self._flying.append((last, told))
                self._bytes += len(piece)
                self._changed.notify_all()

    def write(self) -> None:
        """Deliver what is due."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._flying)
                    due, piece = self._flying[0]
                while (wait := due - time.perf_counter()) > 0:
                    time.sleep(wait)
                if piece == b"":
                    _reset(self._sink)
                    return
                if piece is None:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                self._sink.sendall(piece)
                with self._changed:
                    self._flying.popleft()
                    self._bytes -= len(piece)
                    self._changed.notify_all()
        except OSError:  # the far side is gone: let the near side know
            with self._changed:
                self._broken = True
                self._changed.notify_all()
            _reset(self._source)


def _parsed(address: str, *, any_port: bool = False) -> tuple[str, int]:
    try:
        host, port = parse_address(address, any_port=any_port)
    except ValueError as error:
        raise LinkError(str(error)) from None
    return host.strip("[]"), port


def _hang_up(one: socket.socket) -> None:
    """Wake whoever waits on it."""
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was not connected any more


def _break(one: socket.socket) -> None:
    """Wake whoever waits on it; when it is closed, the other side sees an error."""
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        one.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # it was not connected any more


def _is_broken(one: socket.socket) -> bool:
    """Whether `_break` was called on it."""
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RESET)) == _RESET


def _reset(one: socket.socket) -> None:
    """End it as a broken connection ends: at once, and the other side sees an error."""
    _break(one)
    one.close()
