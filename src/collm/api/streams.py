"""An answer under way, to be read in a thread or in asyncio.

Whoever stops reading stops the answer: by `close`, by the end of a `with` block, by a task that is
cancelled, or by letting go of the stream.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from collm.api.events import Answer, Done, Event
from collm.api.reading import Reading
from collm.errors import CollmError
from collm.serve.reply import Reply

Ended = Callable[[Answer | None], None]
"""Told once how it ended, by whoever notices first: with the whole answer, or None without."""


def _nobody_asks(answer: Answer | None) -> None:
    pass


class _UnderWay:
    """What both kinds of stream are."""

    def __init__(self, reply: Reply, ended: Ended) -> None:
        self.answer: Answer | None = None
        self._ended = ended
        self._cancel = weakref.finalize(self, _break_off, reply, ended)

    def _see(self, event: Event | None) -> None:
        """Raises CollmError where it is over without Done, and nobody here closed it."""
        if isinstance(event, Done):
            self.answer = event.answer
            if self._cancel.detach() is not None:
                self._ended(event.answer)
        elif event is None and self.answer is None and self._cancel.alive:
            raise CollmError(
                "the edge was closed while it answered; read answers before closing it"
            )


class Stream(_UnderWay, Iterator[Event]):
    """The events of one answer; the last is `Done`. Iterate once.

    Errors (`LinkError` and the like) are raised where the events are read. `close` may be called
    from any thread; the iteration then ends without `Done`.
    """

    answer: Answer | None
    """The whole, once it is there."""

    def __init__(self, reply: Reply, reading: Reading, ended: Ended = _nobody_asks) -> None:
        super().__init__(reply, ended)
        self._events = _events(reply, reading)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        try:
            event = next(self._events, None)
            self._see(event)
        except BaseException:
            self._cancel()
            raise
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Break the answer off. Idempotent."""
        self._cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncStream(_UnderWay, AsyncIterator[Event]):
    """The same in asyncio. A task that is cancelled while it reads breaks the answer off."""

    answer: Answer | None
    """The whole, once it is there."""

    def __init__(self, reply: Reply, reading: Reading, ended: Ended = _nobody_asks) -> None:
        super().__init__(reply, ended)
        self._events = _async_events(reply, reading)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            event = await anext(self._events, None)
            self._see(event)
        except BaseException:
            self._cancel()
            raise
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Break the answer off. Idempotent."""
        self._cancel()
        with suppress(RuntimeError):  # another task reads it just now, and is told
            await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def _events(reply: Reply, reading: Reading) -> Iterator[Event]:
    for piece in reply:
        yield from reading.events(piece)
    if reply.is_complete and reading.is_whole:
        yield from reading.end()


async def _async_events(reply: Reply, reading: Reading) -> AsyncGenerator[Event, None]:
    async for batch in reply.batches():
        for piece in batch:
            for event in reading.events(piece):
                yield event
    if reply.is_complete and reading.is_whole:
        for event in reading.end():
            yield event


def _break_off(reply: Reply, ended: Ended) -> None:
    reply.cancel()
    ended(None)


def whole(answer: Answer | None) -> Answer:
    """Raises CollmError where there is none."""
    if answer is None:
        raise CollmError("the answer was broken off")
    return answer
