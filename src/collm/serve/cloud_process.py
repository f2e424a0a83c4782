"""A cloud process: a stage behind a gRPC server, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable

from collm.limits import Limits
from collm.link.credentials import ServerSecurity
from collm.link.grpc_server import OPEN, check_listen, serve
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.cloud import CloudService
from collm.session.self_draft import SelfDraft
from collm.session.sessions import Sessions

logger = logging.getLogger(__name__)

_M_ARENA_MAX = -8
"""Of malloc.h."""
_TRIM_SECONDS = 2.0


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
) -> None:
    """Serve until SIGINT or SIGTERM (or, if asked, the end of standard input).

    ready: called with the address once sessions are taken. self_draft: how to draft where an
    answer is left to the cloud alone. security, insecure: as for `serve`. Raises what that
    does, and ArtifactError.
    """
    check_listen(listen, security, insecure=insecure)  # before the weights are loaded
    keep_memory_together()
    layers = range(artifact.architecture.layers)
    cuts = self_draft.cuts if self_draft is not None else ()
    stage = Stage(artifact, layers, exits=cuts, threads=threads, limits=limits)
    service = CloudService(stage, limits, self_draft)
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
    server = await serve(service, listen, limits, security=security, insecure=insecure)
    tidying = asyncio.create_task(give_memory_back(service.sessions))
    try:
        ready(server.address)
        await stop.wait()
    finally:
        tidying.cancel()
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


def _drain(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        stop.set()
