"""Prometheus reads `collm.metrics` here: GET /metrics over HTTP, in a thread.

Over TCP where a user asks for it, and over a Unix socket for `collm top`.
"""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from collm.errors import LinkError, UsageError
from collm.link.address import is_loopback, parse_address
from collm.link.credentials import TokenFile
from collm.metrics import REGISTRY

_REQUEST_SECONDS = 5.0
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(WSGIServer):
    request_queue_size = 16

    def get_request(self) -> Any:
        connection, address = super().get_request()
        connection.settimeout(_REQUEST_SECONDS)  # or one that says nothing would stop the others
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # a scraper that went away is no news


class _SocketServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # not HTTPServer's, which wants a host and a port
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self) -> Any:
        return super().get_request()[0], ("localhost", 0)


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def metrics_server(
    listen: str, *, tokens: Path | None = None, insecure: bool = False
) -> Iterator[str]:
    """Publish on `listen`; the address, with the port it got.

    tokens: those that links need are needed here too. Raises UsageError for an address that other
    machines reach unless `insecure`, LinkError where it cannot be listened on.
    """
    try:
        host, port = parse_address(listen, any_port=True)
    except ValueError as error:
        raise LinkError(str(error)) from error
    if not insecure and not is_loopback(host):
        raise UsageError(
            f"--metrics {listen} can be read from other machines, without encryption: listen on "
            "127.0.0.1, or say --insecure"
        )
    app = _guarded(make_wsgi_app(REGISTRY), TokenFile(tokens) if tokens is not None else None)
    try:
        server = make_server(
            host.strip("[]"), port, app, server_class=_Server, handler_class=_Quiet
        )
    except OSError as error:
        raise LinkError(f"cannot listen on {listen}: {error.strerror or error}") from None
    with _serving(server):
        yield f"{host}:{server.server_port}"


@contextmanager
def socket_metrics(path: Path) -> Iterator[None]:
    """Publish on a Unix socket at `path` meanwhile, for this user alone; it is removed at the end.

    Raises OSError.
    """
    path.unlink(missing_ok=True)
    server = _SocketServer(str(path), _Quiet)  # type: ignore[arg-type]  # a path, not host and port
    server.set_app(make_wsgi_app(REGISTRY))
    try:
        os.chmod(path, 0o600)
        with _serving(server):
            yield
    finally:
        server.server_close()
        with suppress(OSError):
            path.unlink()


@contextmanager
def _serving(server: WSGIServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, name="collm-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _guarded(app: App, tokens: TokenFile | None) -> App:
    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        kind, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        known = tokens is None or (
            kind.lower() == "bearer" and tokens.identity(token.strip()) is not None
        )
        if not known:
            start("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
            return [b"no valid credentials\n"]
        if environ.get("PATH_INFO") != "/metrics":
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"only /metrics is here\n"]
        return app(environ, start)

    return guarded
