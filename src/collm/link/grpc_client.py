"""The client's end of a session over gRPC.

Two threads of a link move frames between its queues and the call: gRPC's own, which takes
frames to send from an iterator, and a reader.

Not covered: reconnecting after a break (`session.connection`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

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
_PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}

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
    until = time.monotonic() + limits.connect_seconds
    while True:
        link = _GrpcLink(address, limits, security)
        try:
            link.wait_until_answered(max(0.0, until - time.monotonic()))
        except Unreachable:
            link.abandon()
            pause = limits.redial_seconds
            if not link.broke_in_passing or time.monotonic() + pause >= until:
                raise
            time.sleep(pause)
        except BaseException:
            # Also after Ctrl-C: a link left open keeps its threads.
            link.abandon()
            raise
        else:
            return link


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

    def __init__(self, address: str, limits: Limits, security: ClientSecurity) -> None:
        self._address = address
        self._limits = limits
        self._up = FrameQueue(limits)
        self._down = FrameQueue(limits)
        self._answered = threading.Event()
        self._broken: str | None = None
        self._refused: Refused | None = None
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

    def wait_until_answered(self, seconds: float) -> None:
        """Return when a cloud has taken the call. Raises `Unreachable`, `Refused`."""
        # A server sends its first headers when it takes a call, before any frame: one that
        # accepts connections and then hangs is found out here, and not by a first Hello.
        answered = self._answered.wait(seconds)
        if answered and self._broken is None:
            return
        if self._refused is not None:
            raise self._refused
        told = f" ({self._broken})" if self._broken else ""
        raise Unreachable(
            f"no CoLLM cloud answers at {self._address} within "
            f"{self._limits.connect_seconds:g} s{told}; "
            f"start one with: collm cloud ARTIFACT --listen {self._address}"
        )

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
                self._answered.set()
            for frame in self._call:
                # Waits while nobody takes frames, so that gRPC's flow control stops the
                # server instead of this process filling up.
                self._down.put(frame, None)
        except grpc.RpcError as error:
            why = self._explain(error)
            if not self._answered.is_set():
                self._broken = why
        except LinkError:
            why = refusals.CLOSED_HERE
        finally:
            self._down.close(why)
            # Frames not sent yet have nowhere to go.
            self._up.close(why, discard=True)
            self._answered.set()

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
                self._refused = Refused("identity", f"the cloud at {self._address}: {details}")
                return str(self._refused)
            case grpc.StatusCode.CANCELLED:
                return f"the call to {self._address} was cancelled"
            case _:
                name = "unknown" if code is None else code.name.lower()
                return f"the link to {self._address} failed ({name}): {details}"
