"""A cloud process: a stage behind a gRPC server, until it is told to stop.

With a cloud above it is an edge server: layers [a, b) here, and what follows there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from collm.errors import Refused
from collm.limits import Limits
from collm.link.credentials import ServerSecurity
from collm.link.dialer import Dialer
from collm.link.grpc_server import OPEN, Server, check_listen, serve
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.above import Above
from collm.session.cloud import CloudService
from collm.session.relay import RelayService
from collm.session.self_draft import SelfDraft
from collm.session.server_exits import ServerExits
from collm.session.sessions import Sessions

logger = logging.getLogger(__name__)

_M_ARENA_MAX = -8
"""Of malloc.h."""
_TRIM_SECONDS = 2.0
_WATCH_SECONDS = 2.0
_FOR_GOOD = frozenset({"version", "fingerprint", "placement", "wire_format", "identity"})
"""Refusals that another attempt would meet again."""
_MOST_WORKERS = 32
"""Threads of an edge server: a session that waits for the cloud above has one most of the time."""


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The cloud above an edge server."""

    dialer: Dialer
    """Makes links to it."""
    wire: str = "f32"
    """How hidden states travel there."""
    exits: ServerExits | None = None
    """The server's own, that may answer instead."""


def run_cloud(
    artifact: Artifact,
    *,
    listen: str,
    threads: int,
    limits: Limits,
    ready: Callable[[str], None],
    self_draft: SelfDraft | None = None,
    until_stdin_closes: bool = False,
    security: ServerSecurity = OPEN,
    insecure: bool = False,
    layers: range | None = None,
    upstream: Upstream | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM (or, if asked, the end of standard input).

    ready: called with the address once sessions are taken. self_draft: how to draft where an
    answer is left to the cloud alone. security, insecure: as for `serve`. layers: those that run
    here, None for all. upstream: where those after them run. Raises what `serve` does,
    ArtifactError, PlacementError, and Refused where the cloud above has another model.
    """
    check_listen(listen, security, insecure=insecure)  # before the weights are loaded
    keep_memory_together()
    run = layers or range(artifact.architecture.layers)
    asked = self_draft if upstream is None else upstream.exits
    cuts = asked.cuts if asked is not None else ()
    stage = Stage(artifact, run, exits=cuts, threads=threads, limits=limits)
    service = CloudService(stage, limits, self_draft)
    if upstream is not None:
        above = Above(stage, limits, upstream.dialer, upstream.wire)
        above.check()
        if isinstance(above.fault, Refused) and above.fault.code in _FOR_GOOD:
            raise above.fault  # who is merely away, or busy, may come back
        service = RelayService(stage, limits, above, upstream.exits)
    asyncio.run(_serve(service, listen, limits, ready, until_stdin_closes, security, insecure))


async def _serve(
    service: CloudService,
    listen: str,
    limits: Limits,
    ready: Callable[[str], None],
    until_stdin_closes: bool,
    security: ServerSecurity,
    insecure: bool,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if until_stdin_closes:
        # The parent's end of the pipe closes however the parent dies.
        loop.add_reader(sys.stdin.fileno(), lambda: _drain(stop))
    relay = service if isinstance(service, RelayService) else None
    workers = min(limits.max_sessions, _MOST_WORKERS) if relay is not None else 1
    server = await serve(service, listen, limits, workers, security=security, insecure=insecure)
    tasks = [asyncio.create_task(give_memory_back(service.sessions))]
    try:
        if relay is not None:
            await server.set_serving(relay.above.fault is None)
            tasks.append(asyncio.create_task(watch_above(relay.above, server)))
        ready(server.address)
        await stop.wait()
    finally:
        for task in tasks:
            task.cancel()
        logger.info("shutting down; clients of open sessions are told to look elsewhere")
        await server.stop()
        service.close()


def keep_memory_together() -> None:
    """Have glibc serve all threads from one arena.

    With one for each thread (8 a core), what a thousand sessions leave behind is never whole pages
    again: memory grew by 4 KB with every session that had ever been.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


async def give_memory_back(sessions: Sessions) -> None:
    """Return to the system what sessions that are over have left, as long as this runs.

    The lists and messages of a long session lie between those of others, where free alone leaves
    them to this process: 14 MB after a thousand sessions of half an hour.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return
    seen = sessions.ended
    while True:
        await asyncio.sleep(_TRIM_SECONDS)
        if sessions.ended != seen:
            seen = sessions.ended
            await asyncio.to_thread(trim, 0)


async def watch_above(above: Above, server: Server) -> None:
    """Keep what health checks are told in step with whether the cloud above is there."""
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        await server.set_serving(await asyncio.to_thread(above.check))


def _drain(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        stop.set()
