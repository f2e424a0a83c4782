"""The cloud's end of sessions over gRPC: an asyncio server around a `Service`.

The event loop only moves frames. All computing, opening and closing of conversations runs on
one executor, a reply a turn, so that sessions interleave token by token (`turns.py`).

Every call passes a `Guard`; whom it names is the identity that the service gets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection

from collm.errors import LinkError, Refused, UsageError
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link import refusals
from collm.link.address import is_loopback, parse_address
from collm.link.base import NOTHING, Peer, Service
from collm.link.certificates import credentials
from collm.link.credentials import ServerSecurity
from collm.link.frames import check_frame
from collm.link.grpc_options import METHOD, SERVICE, TAKEN, server_options
from collm.link.guard import Guard
from collm.link.listening import Behaviour, Listening
from collm.link.places import Place, Places
from collm.link.turns import Turns, refusal_frame
from collm.wire import session_pb2  # noqa: F401 - what reflection shows

logger = logging.getLogger(__name__)

OPEN = ServerSecurity()
"""No encryption and no credentials."""


async def serve(
    service: Service,
    listen: str,
    limits: Limits = DEFAULT_LIMITS,
    workers: int = 1,
    *,
    security: ServerSecurity = OPEN,
    insecure: bool = False,
) -> Server:
    """A running server on `listen` (`HOST:PORT`, port 0 takes a free one).

    `workers` conversations compute at once. security: who is let in. insecure: as for
    `check_listen`. Raises what that does, and `LinkError` when the address cannot be listened on.
    """
    host = check_listen(listen, security, insecure=insecure)
    server = Server(service, limits, workers, security, listen)
    try:
        await server._start(host)
    except BaseException:
        await server.stop(grace=0)
        raise
    return server


def check_listen(
    listen: str,
    security: ServerSecurity,
    *,
    insecure: bool,
    option: str = "--listen",
    tokens: str = "--tokens or --client-ca",
) -> str:
    """The host of `listen`, which strangers must not reach unless that is wanted.

    insecure: other machines may, without encryption or credentials. option: what `listen` was given
    with. tokens: what would ask for credentials. Raises `UsageError` where they could without it,
    `LinkError` when the address is none.
    """
    try:
        host, _ = parse_address(listen, any_port=True)
    except ValueError as error:
        raise LinkError(str(error)) from error
    lacks = [
        what
        for what, has in (
            ("encryption (--tls-cert, --tls-key)", security.is_encrypted),
            (f"authentication ({tokens})", security.is_authenticated),
        )
        if not has
    ]
    if lacks and not insecure and not is_loopback(host):
        raise UsageError(
            f"{option} {listen} takes connections from other machines, and there is no "
            f"{' and no '.join(lacks)}: add that, listen on 127.0.0.1, or say --insecure where "
            "you trust everybody on that network"
        )
    return host


class Server:
    """A running server; made by `serve`. Use it in the event loop that made it."""

    def __init__(
        self,
        service: Service,
        limits: Limits,
        workers: int,
        security: ServerSecurity,
        listen: str,
    ) -> None:
        self.address = ""
        """Where it listens, with the port it got."""
        self.port = 0
        self._service = service
        self._limits = limits
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="collm-compute")
        self._places = Places(limits)
        self._live: set[Turns] = set()
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drained = asyncio.Event()
        # Any: grpc ships no types.
        self._health: Any = health.aio.HealthServicer()
        self._guard = Guard(security)
        secret = partial(credentials, security) if security.is_encrypted else None
        self._listening = Listening(self._make, secret, listen)

    @property
    def sessions(self) -> int:
        """Sessions open now."""
        return len(self._live)

    async def set_serving(self, serving: bool) -> None:
        """What health checks are told, until the server stops."""
        if not self._stopping.done():
            status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
            await self._set_health(status)

    async def stop(self, grace: float | None = None) -> None:
        """End all sessions: idle ones at once, computing ones after their turn. Idempotent.

        What is not over after `grace` seconds (default `limits.shutdown_seconds`) is cut off.
        """
        if not self._stopping.done():
            self._stopping.set_result(None)
            await self._set_health(HealthCheckResponse.NOT_SERVING)
        await self._listening.stop(self._limits.shutdown_seconds if grace is None else grace)
        try:
            if self._live:
                await asyncio.wait_for(self._drained.wait(), self._limits.shutdown_seconds)
        except TimeoutError:
            logger.warning("%d computations did not end and are left behind", len(self._live))
        self._executor.shutdown(wait=not self._live, cancel_futures=True)

    async def _start(self, host: str) -> None:
        self.port = await self._listening.start()
        self.address = f"{host}:{self.port}"
        await self._set_health(HealthCheckResponse.SERVING)

    def _make(self, counted: Callable[[Behaviour], Behaviour]) -> Any:
        """A grpc.aio server without a port. counted: its own, for sessions."""
        made = grpc.aio.server(options=server_options(self._limits), interceptors=[self._guard])
        handler = grpc.stream_stream_rpc_method_handler(counted(self._session))
        made.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, made)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, made)
        return made

    async def _set_health(self, status: Any) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def _session(self, _requests: Any, context: Any) -> None:
        """One session, until either side ends it."""
        address, identity = str(context.peer()), self._guard.identity(context)
        await context.send_initial_metadata((TAKEN,))
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        try:
            place = self._places.take(lambda: _set_soon(loop, ended))
        except Refused as error:
            await self._refuse(context, error, Peer(address, identity))
            return
        peer = Peer(address, identity, place.end)
        turns = Turns(self._service, peer, self._executor)
        self._live.add(turns)
        self._drained.clear()
        try:
            await asyncio.wrap_future(turns.open())
            while (frame := await self._read(context, place, ended)) is not None:
                reply = await asyncio.wrap_future(turns.begin(frame))
                while reply is not None:
                    if reply is not NOTHING:
                        await self._write(context, reply)
                        await self._pause(turns)
                    self._check_running()
                    reply = await asyncio.wrap_future(turns.advance())
                await self._pause(turns)
        except Exception as error:  # noqa: BLE001 - reported by `_refuse`
            if not context.cancelled():
                await self._refuse(context, error, peer)
        finally:
            # Reached by cancellation too, when the client is gone: then this is the only
            # thing still done for it. A second cancellation must not stop it.
            await asyncio.shield(asyncio.ensure_future(self._close(turns, place)))

    async def _pause(self, turns: Turns) -> None:
        """Let a client wait that takes more than its share; it notices by flow control."""
        if turns.pause_seconds > 0:
            await asyncio.wait({self._stopping}, timeout=turns.pause_seconds)

    async def _close(self, turns: Turns, place: Place) -> None:
        try:
            await asyncio.wrap_future(turns.close())
        finally:
            self._places.give_back(place)
            self._live.discard(turns)
            if not self._live:
                self._drained.set()

    async def _read(self, context: Any, place: Place, ended: asyncio.Future[None]) -> bytes | None:
        """The client's next frame; None when it has said that no more will come."""
        place.waits()
        reading = asyncio.ensure_future(context.read())
        try:
            await asyncio.wait(
                {reading, self._stopping, ended},
                timeout=self._limits.idle_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            place.works()
            # A read given up ends with the call, with an error nobody is there to take.
            reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        if not reading.done():
            self._check_running()
            raise place.why or refusals.idle(self._limits)
        frame = reading.result()
        return None if frame is grpc.aio.EOF else bytes(frame)

    def _check_running(self) -> None:
        if self._stopping.done():
            raise refusals.stopping()

    async def _write(self, context: Any, frame: bytes) -> None:
        check_frame(frame, self._limits)
        try:
            await asyncio.wait_for(context.write(frame), self._limits.send_seconds)
        except TimeoutError:
            raise LinkError(
                f"the client took no frame for {self._limits.send_seconds:g} s"
            ) from None
        except Exception as error:
            # gRPC says so in several ways, some before and some after this task's cancellation.
            raise LinkError("the client is gone") from error

    async def _refuse(self, context: Any, error: Exception, peer: Peer) -> None:
        frame = refusal_frame(self._service, error, peer)
        if frame is not None:
            try:
                await asyncio.wait_for(context.write(frame), self._limits.send_seconds)
            except Exception:  # noqa: BLE001 - gRPC says so in several ways
                return  # the client is gone or takes nothing: nobody is left to tell


def _set_soon(loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
    """From any thread."""

    def mark() -> None:
        if not ended.done():
            ended.set_result(None)

    with suppress(RuntimeError):  # the loop is closed, and with it the link
        loop.call_soon_threadsafe(mark)
