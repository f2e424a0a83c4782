"""Answers under way for one request: their pieces as they come, and their end where nobody listens.

One task follows each reply, one watches the connection. What is ready at the same time is taken
together, so that it can be sent together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from starlette.types import Receive

from collm import metrics
from collm.config import Generation
from collm.serve.reply import Reply
from collm.session.events import EmittedToken, Piece


class Gone(Exception):
    """The client has hung up."""


@dataclass(kw_only=True, slots=True)
class Choice:
    """One answer of a response, and how much of it has been told."""

    index: int
    generation: Generation
    prompt_ids: list[int]
    started: Reply | None = None
    lead: str = ""
    """Text that goes before the answer: the prompt, where it is echoed."""
    is_repeat: bool = False
    """Whether an earlier choice has the same prompt, which is counted once."""
    is_open: bool = False
    """Whether anything of it has been told."""
    told: int = 0
    """Tokens."""
    last: EmittedToken | None = None
    changes: int = 0
    """Of the ways of making tokens, those told."""
    traffic: tuple[int, int] = (0, 0)
    """Bytes up and down, as told last."""
    offset: int = 0
    """Characters of the tokens told, as log-probabilities count them."""

    @property
    def reply(self) -> Reply:
        """The answer, which has been started."""
        assert self.started is not None
        return self.started

    def carries(self, piece: Piece) -> bool:
        """Whether the piece brings a token, or only the rest of the text of the last one."""
        return piece.token is not self.last

    def has_told(self, piece: Piece) -> None:
        """That the piece's token has been sent."""
        self.last = piece.token
        self.told += 1


Event = tuple[Choice, Piece | Exception | None]
"""A piece, what went wrong, or None at the end of the answer."""


class Live:
    """Use in an `async with` block, whose end cancels what is still under way."""

    def __init__(self, choices: Sequence[Choice], receive: Receive, since: float) -> None:
        self.choices = choices
        self._receive = receive
        self._since = since
        """When the request came, by `time.perf_counter`."""
        self._ready: list[Event] = []
        self._wake = asyncio.Event()
        self._is_gone = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._follow(choice)) for choice in self.choices]
        self._tasks.append(asyncio.create_task(self._watch()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for choice in self.choices:
            choice.reply.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def events(self, seconds: float) -> list[Event]:
        """What has come, at least one event; none where nothing came for so long.

        Raises Gone where the client hung up.
        """
        if not self._ready and not self._is_gone:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
        self._wake.clear()
        if self._is_gone:
            raise Gone
        found, self._ready = self._ready, []
        return found

    async def _follow(self, choice: Choice) -> None:
        before = self._since
        is_first = True
        try:
            async for batch in choice.reply.batches():
                now = time.perf_counter()
                histogram = metrics.HTTP_FIRST_TOKEN if is_first else metrics.HTTP_BETWEEN_TOKENS
                histogram.observe(now - before)
                for _ in batch[1:]:  # they came with the first
                    metrics.HTTP_BETWEEN_TOKENS.observe(0.0)
                before, is_first = now, False
                self._put([(choice, piece) for piece in batch])
            self._put([(choice, None)])
        except Exception as error:  # noqa: BLE001 - told to the client by whoever reads the events
            self._put([(choice, error)])

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
        self._is_gone = True
        self._wake.set()

    def _put(self, events: list[Event]) -> None:
        self._ready += events
        self._wake.set()
