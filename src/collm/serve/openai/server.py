"""The server's process: listen, say so, and end in order.

Told to end, it takes no more connections; streams under way get a few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from collm.errors import LinkError
from collm.link.certificates import server_context
from collm.link.credentials import ServerSecurity
from collm.link.grpc_server import OPEN
from collm.serve.openai.app import make_app
from collm.serve.openai.serving import Serving

logger = logging.getLogger(__name__)

_BACKLOG = 512
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As ever, and then say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They end the server, in order and then at once; uvicorn would raise them again."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def run_server(
    serving: Serving,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    security: ServerSecurity = OPEN,
) -> None:
    """Serve until SIGINT or SIGTERM.

    host: as `check_listen` gives it. port: 0 takes a free one. ready: called with the URL.
    security: certificate and key, for TLS. Raises LinkError where it cannot be listened on,
    UsageError for a certificate that is none.
    """
    config = uvicorn.Config(
        make_app(serving),
        lifespan="off",
        log_config=None,
        log_level="critical",  # what strangers send is no news
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=serving.limits.max_http_requests,
        timeout_graceful_shutdown=max(1, round(serving.limits.http_shutdown_seconds)),
    )
    config.load()
    if security.is_encrypted:
        config.ssl = server_context(security)
    listening = _listening(host, port)
    scheme = "https" if security.is_encrypted else "http"
    url = f"{scheme}://{host}:{listening.getsockname()[1]}"
    try:
        asyncio.run(_Server(config, lambda: ready(url)).serve(sockets=[listening]))
    finally:
        listening.close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise LinkError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
