"""The client's end of a session over gRPC.

Two threads of a link move frames between its queues and the call: gRPC's own, which takes
frames to send from an iterator, and a reader.

Not covered: reconnecting after a break (`session.connection`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import grpc

from collm.errors import LinkError, Refused, Unreachable
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link import refusals
from collm.link.address import parse_address
from collm.link.base import Closing, Link
from collm.link.credentials import ClientSecurity, read_pem
from collm.link.frames import FrameQueue
from collm.link.grpc_options import PATH, TAKEN, client_options

# What a damaged, cut or reset connection ends a call with.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
}

_SHARE: Final = 0.25
"""Of the time to connect: after so much without an answer another call is made beside."""
_MOST_CALLS: Final = 3

OPEN = ClientSecurity()
"""No encryption and no credentials."""


def connect(address: str, limits: Limits = DEFAULT_LIMITS, security: ClientSecurity = OPEN) -> Link:
    """A link to the cloud at `address` (`HOST:PORT`), encrypted where `security` has a CA.

    Raises `Unreachable` when the address is none, or when nobody answers there within
    `limits.connect_seconds`; a cloud that comes up meanwhile is found, and so is one whose first
    packets were damaged or lost. Raises `Refused` for credentials that the cloud does not take,
    `UsageError` for files that are none.
    """
    try:
        parse_address(address)
    except ValueError as error:
        raise Unreachable(str(error)) from error
    return _Attempts(address, limits, security).made()


class _Attempts:
    """Calls to one address until one of them is answered.

    A call that stays without an answer may have been lost with its first packets, or may be slow:
    it waits on beside the next one, so that a long way or a busy cloud loses nothing by it.
    """

    def __init__(self, address: str, limits: Limits, security: ClientSecurity) -> None:
        self._address = address
        self._limits = limits
        self._security = security
        self._news = threading.Event()
        self._waiting: list[_GrpcLink] = []
        self._why = ""

    def made(self) -> Link:
        """The first that is answered. Raises `Unreachable`, `Refused`, `UsageError`."""
        link: _GrpcLink | None = None
        try:
            link = self._first()
            return link
        finally:
            # Also after Ctrl-C: a link left open keeps its threads.
            for other in self._waiting:
                if other is not link:
                    other.abandon()

    def _first(self) -> _GrpcLink:
        now = time.monotonic()
        until, next_at = now + self._limits.connect_seconds, now
        while True:
            if now >= next_at and len(self._waiting) < _MOST_CALLS:
                link = _GrpcLink(self._address, self._limits, self._security, self._news)
                self._waiting.append(link)
                next_at = now + _SHARE * self._limits.connect_seconds
            due = until if len(self._waiting) == _MOST_CALLS else min(until, next_at)
            self._news.wait(max(0.0, due - time.monotonic()))
            self._news.clear()
            now = time.monotonic()
            for link in tuple(self._waiting):
                if not link.is_over:
                    if link.is_answered:
                        return link
                    continue
                self._waiting.remove(link)
                link.abandon()
                self._why = f" ({link.broken})" if link.broken else ""
                if link.refused is not None:
                    raise link.refused
                if not link.broke_in_passing:
                    raise self._unreachable()
                if not self._waiting:
                    next_at = now + self._limits.redial_seconds
                    if next_at >= until:
                        raise self._unreachable()
            if now >= until:
                raise self._unreachable()

    def _unreachable(self) -> Unreachable:
        return Unreachable(
            f"no CoLLM cloud answers at {self._address} within "
            f"{self._limits.connect_seconds:g} s{self._why}; "
            f"start one with: collm cloud ARTIFACT --listen {self._address}"
        )


def _channel(address: str, limits: Limits, security: ClientSecurity) -> Any:
    options = client_options(limits)
    if security.ca is None:
        return grpc.insecure_channel(address, options)
    key = read_pem(security.key) if security.key is not None else None
    chain = read_pem(security.certificate) if security.certificate is not None else None
    credentials = grpc.ssl_channel_credentials(read_pem(security.ca), key, chain)
    return grpc.secure_channel(address, credentials, options)


class _GrpcLink(Closing):
    """See `base.Link`."""

    def __init__(
        self, address: str, limits: Limits, security: ClientSecurity, news: threading.Event
    ) -> None:
        """news: set when a cloud has taken the call, and when that has ended."""
        self._address = address
        self._limits = limits
        self._up = FrameQueue(limits)
        self._down = FrameQueue(limits)
        self._news = news
        # A server sends its first headers when it takes a call, before any frame: one that
        # accepts connections and then hangs is found out by them, and not by a first Hello.
        self.is_answered = False
        """Whether a cloud has taken the call."""
        self.broken: str | None = None
        """Why it ended before that."""
        self.refused: Refused | None = None
        self.broke_in_passing = False
        """Whether the call broke for a reason that another attempt may not meet."""
        # Any: grpc ships no types.
        self._channel: Any = _channel(address, limits, security)
        metadata = [("authorization", f"Bearer {security.token}")] if security.token else None
        # Without serializers gRPC hands bytes through as they are.
        call = self._channel.stream_stream(
            PATH, request_serializer=None, response_deserializer=None
        )
        # Until it is answered, the call outlives failed attempts to connect.
        self._call: Any = call(self._outgoing(), metadata=metadata, wait_for_ready=True)
        self._reader = threading.Thread(target=self._read, name="collm-grpc-reader", daemon=True)
        self._reader.start()

    @property
    def is_over(self) -> bool:
        """Whether the call ended before a cloud took it."""
        return self.broken is not None

    def abandon(self) -> None:
        """Close without letting anything out."""
        self._end()

    def send(self, frame: bytes) -> None:
        self._up.put(frame, self._limits.send_seconds)

    def receive(self, timeout: float) -> bytes:
        return self._down.get(timeout)

    def close(self) -> None:
        # The end of `_outgoing` tells the server that nothing more comes; a server that is
        # not computing then ends the call, and the reader with it.
        self._up.close(refusals.CLOSED_HERE)
        self._reader.join(self._limits.linger_seconds)
        self._end()

    def _end(self) -> None:
        self._up.close(refusals.CLOSED_HERE, discard=True)
        self._down.close(refusals.CLOSED_HERE, discard=True)
        self._call.cancel()
        self._channel.close()
        self._reader.join(self._limits.shutdown_seconds)

    @property
    def bytes_up(self) -> int:
        return self._up.bytes_in

    @property
    def bytes_down(self) -> int:
        return self._down.bytes_out

    def _outgoing(self) -> Iterator[bytes]:
        while True:
            try:
                frame = self._up.get(None)
            except LinkError:
                return
            yield frame

    def _read(self) -> None:
        """Move frames from the call to the queue until the call ends."""
        why = refusals.SESSION_OVER
        try:
            # Waits for the first headers. Those of other servers, or of a call that failed
            # before it was taken, do not have the mark.
            if TAKEN in {tuple(header) for header in self._call.initial_metadata() or ()}:
                self.is_answered = True
                self._news.set()
            for frame in self._call:
                # Waits while nobody takes frames, so that gRPC's flow control stops the
                # server instead of this process filling up.
                self._down.put(frame, None)
        except grpc.RpcError as error:
            why = self._explain(error)
        except LinkError:
            why = refusals.CLOSED_HERE
        finally:
            if not self.is_answered:
                self.broken = why
            self._down.close(why)
            # Frames not sent yet have nowhere to go.
            self._up.close(why, discard=True)
            self._news.set()

    def _explain(self, error: Any) -> str:
        code = error.code()
        self.broke_in_passing = code in _PASSING
        details = " ".join(str(error.details() or "no details").split())[:200]
        match code:
            case grpc.StatusCode.UNAVAILABLE:
                return f"the link to {self._address} broke: {details}"
            case grpc.StatusCode.UNIMPLEMENTED:
                return f"the server at {self._address} is no CoLLM cloud: {details}"
            case grpc.StatusCode.UNAUTHENTICATED:
                self.refused = Refused("identity", f"the cloud at {self._address}: {details}")
                return str(self.refused)
            case grpc.StatusCode.CANCELLED:
                return f"the call to {self._address} was cancelled"
            case _:
                name = "unknown" if code is None else code.name.lower()
                return f"the link to {self._address} failed ({name}): {details}"
