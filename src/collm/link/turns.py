"""Runs a service's conversations on an executor, one reply a turn.

An executor hands out turns in the order they were asked for, so sessions that stream at the
same time take turns reply by reply, and none waits for another's whole answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from typing import TypeVar

from collm import metrics
from collm.errors import CollmError, Refused
from collm.link.base import Conversation, Peer, Service

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Turns:
    """One conversation. Its turns never overlap, and none runs after `close`'s."""

    def __init__(self, service: Service, peer: Peer, executor: Executor) -> None:
        self._service = service
        self._peer = peer
        self._executor = executor
        # With several workers, a turn that was given up may still run when the next is due.
        self._one_at_a_time = threading.Lock()
        self._conversation: Conversation | None = None
        self._replies: Iterator[bytes] | None = None
        self._closed = False

    def open(self) -> Future[None]:
        """Open the conversation."""
        return self._submit(self._open)

    def begin(self, frame: bytes) -> Future[bytes | None]:
        """Hand over a frame; the first reply, or None."""
        return self._submit(partial(self._begin, frame))

    def advance(self) -> Future[bytes | None]:
        """The next reply to that frame, or None after the last."""
        return self._submit(self._advance)

    @property
    def pause_seconds(self) -> float:
        """What to wait before the next turn."""
        conversation = self._conversation
        return 0.0 if conversation is None else conversation.pause_seconds

    def close(self) -> Future[None]:
        """Close the replies and the conversation, after the turn that runs now."""
        return self._submit(self._close)

    def _submit(self, turn: Callable[[], T]) -> Future[T]:
        def run() -> T:
            metrics.QUEUE.dec()
            return turn()

        metrics.QUEUE.inc()
        try:
            return self._executor.submit(run)
        except RuntimeError:
            metrics.QUEUE.dec()
            raise

    def _open(self) -> None:
        with self._one_at_a_time:
            if not self._closed:
                self._conversation = self._service.open(self._peer)

    def _begin(self, frame: bytes) -> bytes | None:
        with self._one_at_a_time:
            if self._closed or self._conversation is None:
                return None
            self._replies = iter(self._conversation.receive(frame))
            return next(self._replies, None)

    def _advance(self) -> bytes | None:
        with self._one_at_a_time:
            if self._closed or self._replies is None:
                return None
            return next(self._replies, None)

    def _close(self) -> None:
        with self._one_at_a_time:
            if self._closed:
                return
            self._closed = True
            try:
                # Left to the garbage collector, a generator's `finally` would run in whatever
                # thread happens to collect it.
                close_replies = getattr(self._replies, "close", None)
                if close_replies is not None:
                    close_replies()
            except Exception:
                logger.exception("replies to %s failed while closing", self._peer.address)
            self._replies = None
            try:
                if self._conversation is not None:
                    self._conversation.close()
            except Exception:
                logger.exception(
                    "the conversation with %s failed while closing", self._peer.address
                )
            self._conversation = None


def refusal_frame(service: Service, error: Exception, peer: Peer) -> bytes | None:
    """The frame that ends the session of `peer`; None if the service cannot even make that.

    What is not a `CollmError` is a bug: it is logged with its traceback, and the client gets
    a line without any.
    """
    if not isinstance(error, CollmError):
        logger.error("the session with %s failed", peer.address, exc_info=error)
        error = Refused("internal", "the cloud failed; its log says why")
    try:
        return service.refusal(error)
    except Exception:
        logger.exception("no refusal could be made for %s", peer.address)
        return None
