"""The server's process: listen, say so, and end in order.

Told to end, it takes no more connections; streams under way get a few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
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
from collm.serve.openai.connections import connections
from collm.serve.openai.serving import Serving

logger = logging.getLogger(__name__)

_BACKLOG = 256
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
    socket_: socket.socket,
    *,
    ready: Callable[[str], None],
    security: ServerSecurity = OPEN,
) -> None:
    """Serve until SIGINT or SIGTERM.

    socket_: of `listening`. ready: called with the URL. security: certificate and key, for TLS.
    Raises UsageError for a certificate that is none.
    """
    config = uvicorn.Config(
        make_app(serving),
        lifespan="off",
        log_config=None,
        log_level="critical",  # what strangers send is no news
        backlog=_BACKLOG,  # which asyncio also takes at once: they are not counted yet
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http=connections(serving.limits),
        timeout_graceful_shutdown=max(1, round(serving.limits.http_shutdown_seconds)),
    )
    config.load()
    if security.is_encrypted:
        config.ssl = server_context(security)
    scheme = "https" if security.is_encrypted else "http"
    host, port = socket_.getsockname()[:2]
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    asyncio.run(_Server(config, lambda: ready(url)).serve(sockets=[socket_]))


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket whose clients wait until they are served.

    host: as `check_listen` gives it. port: 0 takes a free one. Raises LinkError where it cannot be
    listened on.
    """
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        made = socket.create_server((host.strip("[]"), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise LinkError(f"cannot listen on {host}:{port}: {_why(error)}") from None
    with made:
        # Connections inherit it. asyncio would set it on sockets that it makes itself; without it
        # a token waits for the reader to have acknowledged the one before, 40 ms at times.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield made


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
