"""A port that stays open: the grpc.aio server behind it is made anew where it has died.

One connection can end the loop in which grpc.aio takes calls: a `:path` with a byte that is no
UTF-8 does (grpcio 1.85), before any credentials are looked at. The port closes then. Calls under
way go on, so the dead server is kept until the last of its sessions is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from collm.errors import CollmError, LinkError

logger = logging.getLogger(__name__)

Behaviour: TypeAlias = Callable[[Any, Any], Awaitable[None]]
"""Of a call whose requests and replies are streams, as grpc.aio takes it."""

_LOOK_SECONDS: Final = 0.1


@dataclass(eq=False)
class _Serving:
    """A grpc.aio server (which ships no types), and how many sessions are open there."""

    grpc: Any = None
    sessions: int = 0
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where it is dead and has no sessions."""

    def counted(self, behaviour: Behaviour) -> Behaviour:
        """The same, counted among the sessions."""

        async def session(requests: Any, context: Any) -> None:
            self.sessions += 1
            try:
                await behaviour(requests, context)
            finally:
                self.sessions -= 1
                if not self.sessions and self.is_dead:
                    self.empty.set()

        return session

    @property
    def is_dead(self) -> bool:
        """Whether it takes no calls any more; grpc tells nobody while any call goes on."""
        return not self.grpc._server.is_running()


class Listening:
    """See the module. Used in one event loop.

    make: a grpc.aio server without a port; its sessions pass through what it is given. credentials:
    grpc's, as the files are now; None for none. listen: `HOST:PORT`, port 0 takes a free one.
    """

    def __init__(
        self,
        make: Callable[[Callable[[Behaviour], Behaviour]], Any],
        credentials: Callable[[], Any] | None,
        listen: str,
    ) -> None:
        self._make = make
        self._credentials = credentials
        self._listen = listen
        self._serving: _Serving | None = None
        self._dead: set[_Serving] = set()
        self._watching: asyncio.Task[None] | None = None
        self._burying: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Take calls; the port. Raises LinkError when the address cannot be listened on."""
        port = await self._open()
        self._listen = f"{self._listen.rpartition(':')[0]}:{port}"
        self._watching = asyncio.create_task(self._watch())
        return port

    async def stop(self, grace: float) -> None:
        """Take no more calls, and cut off those that are not over after so many seconds."""
        tasks = [task for task in (self._watching, *self._burying) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        all_of_them = [one for one in (self._serving, *self._dead) if one is not None]
        await asyncio.gather(*(one.grpc.stop(grace) for one in all_of_them))

    async def _open(self) -> int:
        made = _Serving()
        made.grpc = self._make(made.counted)
        try:
            if self._credentials is not None:
                port = int(made.grpc.add_secure_port(self._listen, self._credentials()))
            else:
                port = int(made.grpc.add_insecure_port(self._listen))
        except RuntimeError as error:
            raise LinkError(
                f"cannot listen on {self._listen}: the port is taken or the address is not this "
                "machine's; choose another with --listen HOST:PORT"
            ) from error
        self._serving = made
        await made.grpc.start()
        return port

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if (serving := self._serving) is None or not serving.is_dead:
                continue
            if serving not in self._dead:
                logger.error(
                    "a damaged or hostile request ended grpc's server on %s: another takes its "
                    "place; sessions go on",
                    self._listen,
                )
                self._dead.add(serving)
                task = asyncio.create_task(self._bury(serving))
                self._burying.add(task)
                task.add_done_callback(self._burying.discard)
            try:
                await self._open()
            except CollmError as error:  # the old socket may not be closed yet: tried again
                logger.warning("%s", error)
            except Exception:  # whatever it is, a cloud that takes no calls is worse
                logger.exception("no server in its place yet")

    async def _bury(self, serving: _Serving) -> None:
        """Cut off who is left there once its sessions are over: whoever killed it, for one."""
        if serving.sessions:
            await serving.empty.wait()
        await serving.grpc.stop(None)
        self._dead.discard(serving)
