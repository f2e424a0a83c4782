"""HTTP servers of files for the tests: good ones, and ones that break every rule. They count."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass
class Manners:
    """How a server answers; what is named by path counts for that path only."""

    ranges: bool = True
    corrupt: set[str] = field(default_factory=set)
    """Paths whose bytes have one bit turned."""
    cut: dict[str, list[int]] = field(default_factory=dict)
    """Bytes after which the next answers break off, an answer each."""
    more: dict[str, bytes] = field(default_factory=dict)
    """Sent after the file, in chunked encoding."""
    announced: dict[str, int] = field(default_factory=dict)
    """Content-Length, whatever follows."""
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """What the next requests are answered with instead, one each."""
    dripped: set[str] = field(default_factory=set)
    """A byte every 50 ms."""
    silent: set[str] = field(default_factory=set)
    """A head, and then nothing."""
    wrong_range: set[str] = field(default_factory=set)
    """Another range than the one asked for."""
    bytes_per_second: float = 0.0


class BlobServer:
    """Serves `files` by path (`/name`) from memory while its block lasts."""

    def __init__(self, files: Mapping[str, bytes], manners: Manners | None = None) -> None:
        self.files = dict(files)
        self.manners = manners or Manners()
        self.sent: Counter[str] = Counter()
        """Body bytes by path."""
        self.asked: list[tuple[str, str]] = []
        """Paths and Range headers, in order."""
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._http = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def paths(self) -> list[str]:
        """What was asked for."""
        return [path for path, _ in self.asked]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # clients that go away are what these tests are about


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: BlobServer
    timeout = 5

    def setup(self) -> None:
        # Little is under way, so that what was sent is about what has arrived.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        server, path = self.server_of, self.path
        manners = server.manners
        given = self.headers.get("Range", "")
        server.asked.append((path, given))
        server.headers.append(dict(self.headers.items()))
        statuses = manners.statuses.get(path)
        data = server.files.get(path)
        if statuses:
            self._plain(statuses.pop(0))
        elif data is None:
            self._plain(404)
        else:
            self._file(path, data, given)

    def _plain(self, code: int) -> None:
        self.send_response(code)
        if code in (301, 302, 307):
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, path: str, data: bytes, given: str) -> None:
        manners = self.server_of.manners
        if path in manners.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        first = int(given.removeprefix("bytes=").removesuffix("-")) if given else 0
        if given and manners.ranges:
            shown = first - 1 if path in manners.wrong_range else first
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
            body = data[first:]
        else:
            self.send_response(200)
            body = data
        more = manners.more.get(path)
        if more is not None:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (body, more):
                self._send(path, b"%x\r\n" % len(part) + part + b"\r\n")
            self._send(path, b"0\r\n\r\n")
            return
        length = manners.announced.get(path, len(body))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        cuts = manners.cut.get(path)
        if cuts:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        if path in manners.silent:
            self.close_connection = True
            self.server_of.closing.wait(10)
            return
        step, pause = 16_384, 0.0
        if path in manners.dripped:
            step, pause = 1, 0.05
        elif manners.bytes_per_second:
            pause = step / manners.bytes_per_second
        for at in range(0, len(body), step):
            self._send(path, body[at : at + step])
            if pause:
                time.sleep(pause)
            if self.server_of.closing.is_set():
                self.close_connection = True
                return

    def _send(self, path: str, data: bytes) -> None:
        self.wfile.write(data)
        self.server_of.sent[path] += len(data)
