"""One answer under way in a thread, its pieces read elsewhere: in another thread, or in asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

from collm.errors import CollmError
from collm.session.answer import Answer
from collm.session.events import Account, Piece


class Reply:
    """Iterate over it, once: previews are among the pieces, and what went wrong is raised there."""

    def __init__(self, answer: Answer, ended: Callable[[Reply], None]) -> None:
        self._answer = answer
        self._ended = ended
        self._pieces: deque[Piece] = deque()
        """Bounded by the answer's length."""
        self._error: BaseException | None = None
        self._is_over = False
        self._is_cancelled = False
        self._is_complete = False
        self._news = threading.Condition()
        self._wake: Callable[[], object] | None = None
        self.on_cancel: Callable[[], object] = lambda: None
        """Called, perhaps more than once, where nobody wants the answer any more."""

    @property
    def account(self) -> Account:
        """What the answer took; complete once it is over."""
        return self._answer.account

    @property
    def is_cancelled(self) -> bool:
        """Whether it was broken off by whoever reads it."""
        return self._is_cancelled

    @property
    def is_complete(self) -> bool:
        """Whether it was made to its end; reading it to the end counts as a cancel, too."""
        return self._is_complete

    def cancel(self) -> None:
        """Break it off: no more pieces come. Idempotent."""
        with self._news:
            self._is_cancelled = True
            self._tell()
        self._answer.cancel()
        self.on_cancel()

    def run(self) -> None:
        """Make the answer, in the calling thread."""
        try:
            self._make()
        except BaseException as error:  # noqa: BLE001 - it is raised where the pieces are read
            self._error = error
        finally:
            self._ended(self)
            with self._news:
                self._is_over = True
                self._tell()

    def _make(self) -> None:
        pieces = self._answer.with_previews()
        try:
            while not self.is_cancelled:
                piece = next(pieces, None)
                if piece is None:
                    self._is_complete = True
                    break
                with self._news:
                    self._pieces.append(piece)
                    self._tell()
        finally:
            pieces.close()

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, as they come."""
        try:
            while True:
                with self._news:
                    while not self._pieces and not self._is_over and not self._is_cancelled:
                        self._news.wait()
                    batch, is_over = self._take()
                yield from batch
                if is_over:
                    break
            self._raise()
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """The pieces, as they come."""
        async for batch in self.batches():
            for piece in batch:
                yield piece

    async def batches(self) -> AsyncIterator[list[Piece]]:
        """The same, those that are there together at a time."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        try:
            while True:
                event.clear()
                with self._news:
                    batch, is_over = self._take()
                    if not batch and not is_over:
                        self._wake = partial(loop.call_soon_threadsafe, event.set)
                if batch:
                    yield batch
                if is_over:
                    break
                if not batch:
                    await event.wait()
            self._raise()
        finally:
            with self._news:
                self._wake = None
            self.cancel()

    def _take(self) -> tuple[list[Piece], bool]:
        batch = [] if self._is_cancelled else list(self._pieces)
        self._pieces.clear()
        return batch, self._is_over or self._is_cancelled

    def _raise(self) -> None:
        if self._error is not None and not self._is_cancelled:
            if not isinstance(self._error, CollmError):
                raise RuntimeError("an answer failed") from self._error
            raise self._error

    def _tell(self) -> None:
        self._news.notify_all()
        if self._wake is not None:
            wake, self._wake = self._wake, None
            wake()
