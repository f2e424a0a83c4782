"""What a link is to its two users: the client that calls, and the service that answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

from collm.errors import CollmError, Refused


class Link(Protocol):
    """The client's end of one session. Safe to use from several threads."""

    def send(self, frame: bytes) -> None:
        """Queue a frame; returns before it travels.

        Waits only while the queue is full, at most `limits.send_seconds`. Raises `LinkError`
        when the other side does not drain it, when the frame is over
        `limits.max_message_bytes`, and when the link is closed or broken.
        """
        ...

    def receive(self, timeout: float) -> bytes:
        """The next frame.

        Raises `LinkTimeout` after `timeout` seconds (the link stays usable) and `LinkError`
        when the link is closed or broken; frames that arrived before a break come first.
        """
        ...

    def close(self) -> None:
        """Let queued frames out for at most `limits.linger_seconds`, then end. Idempotent."""
        ...

    @property
    def bytes_up(self) -> int:
        """Bytes of the frames accepted by `send`."""
        ...

    @property
    def bytes_down(self) -> int:
        """Bytes of the frames returned by `receive`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a session."""

    address: str
    """For logs."""
    identity: str = ""
    """Whose credentials it showed; empty where none are asked for."""
    end: Callable[[Refused], None] | None = field(default=None, compare=False)
    """Has the link refuse the client when it next waits for it; returns at once."""


class Closing(ABC):
    """Has a `close`, which the end of a `with` block calls."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Nothing(bytes):
    """No frame; an empty one is one."""


NOTHING: Final = _Nothing()
"""Yielded in place of a reply: nothing is sent, and other sessions have their turn."""


class Conversation(Protocol):
    """The service's end of one session; its methods never run at the same time."""

    pause_seconds: float
    """What a link has to wait, after a frame or a reply, before the next."""

    def receive(self, frame: bytes) -> Iterator[bytes]:
        """Take one frame and yield the replies as they are made, and NOTHING where it takes long.

        Any `CollmError` ends the session: the client gets `Service.refusal` of it. When the
        client goes away, the iterator's `close` (if it has one) is called between replies.
        """
        ...

    def close(self) -> None:
        """Give everything back; called once, whatever ended the session."""
        ...


class Service(Protocol):
    """What a cloud process offers to links."""

    def open(self, peer: Peer) -> Conversation:
        """A conversation for a new client."""
        ...

    def refusal(self, error: CollmError) -> bytes:
        """The frame that tells a client why its session ends."""
        ...
