"""A gRPC server in a thread of its own, for programs without an event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.base import Closing, Service
from collm.link.credentials import ServerSecurity
from collm.link.grpc_server import OPEN, Server, serve


class BackgroundServer(Closing):
    """A running `grpc_server.Server`; closes with the `with` block or by `close`.

    Raises what `serve` does.
    """

    def __init__(
        self,
        service: Service,
        listen: str = "127.0.0.1:0",
        limits: Limits = DEFAULT_LIMITS,
        workers: int = 1,
        *,
        security: ServerSecurity = OPEN,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="collm-grpc-server", daemon=True
        )
        self._thread.start()
        starting: Future[Server] = asyncio.run_coroutine_threadsafe(
            serve(service, listen, limits, workers, security=security), self._loop
        )
        try:
            self.server = starting.result()
        except BaseException:
            self._end_loop()
            raise

    @property
    def address(self) -> str:
        """Where it listens, with the port it got."""
        return self.server.address

    def close(self, grace: float | None = None) -> None:
        """Stop the server (see `Server.stop`) and its thread. Idempotent."""
        if self._loop.is_closed():
            return
        try:
            asyncio.run_coroutine_threadsafe(self.server.stop(grace), self._loop).result()
        finally:
            self._end_loop()

    def _end_loop(self) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_the_rest(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_the_rest() -> None:
    """End sessions that wait for a computation which was left behind."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
