"""A link that is slow on purpose: what a user would see through a network with long trips.

::

    with DelayedLink(connect("host:7070"), 0.2) as link:  # answers come 200 ms later
        CloudClient(link, ...)

Frames keep their order, and many may be on their way at once: the delay is a trip's, not a
frame's. An error travels like a frame: what came before it is received first.

Not covered: jitter, a rate, losses and breaks.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from collm.errors import LinkError, LinkTimeout
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link import refusals
from collm.link.base import Closing, Link
from collm.link.frames import check_frame


class DelayedLink(Closing):
    """`link`, with every frame on its way for longer; see `base.Link`. Closing it closes `link`.

    seconds: from a frame's arrival to when it can be received; up_seconds: from `send` to when a
    frame leaves. `close` waits for frames on their way up, so up to `up_seconds` longer.
    """

    def __init__(
        self, link: Link, seconds: float, up_seconds: float = 0.0, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        if min(seconds, up_seconds) < 0:
            raise ValueError(
                f"a link delayed by {seconds} s and {up_seconds} s; expected 0 or more"
            )
        self._link = link
        self._limits = limits
        self._linger_seconds = limits.linger_seconds + up_seconds
        self._down = _Line(seconds, limits)
        self._up = _Line(up_seconds, limits)
        self._threads = [
            threading.Thread(target=target, name=f"collm-delayed-{name}", daemon=True)
            for name, target in (("up", self._move_up), ("down", self._move_down))
        ]
        for thread in self._threads:
            thread.start()

    def send(self, frame: bytes) -> None:
        self._up.put(frame, self._limits.send_seconds)

    def receive(self, timeout: float) -> bytes:
        return self._down.take(timeout)

    def close(self) -> None:
        up, down = self._threads
        self._up.end(LinkError(refusals.CLOSED_HERE))
        up.join(self._linger_seconds)
        self._up.end(LinkError(refusals.CLOSED_HERE), discard=True)
        self._down.end(LinkError(refusals.CLOSED_HERE), discard=True)
        self._link.close()
        for thread in (up, down):
            thread.join(self._limits.shutdown_seconds)

    @property
    def bytes_up(self) -> int:
        return self._up.bytes_in

    @property
    def bytes_down(self) -> int:
        return self._down.bytes_out

    def _move_up(self) -> None:
        try:
            while True:
                self._link.send(self._up.take(None))
        except LinkError as error:
            self._up.end(error, discard=True)

    def _move_down(self) -> None:
        while True:
            try:
                self._down.put(self._link.receive(self._limits.idle_seconds), None)
            except LinkTimeout:
                continue
            except LinkError as error:
                self._down.end(error)
                # What is on its way up has nowhere to go.
                self._up.end(error, discard=True)
                return


class _Line:
    """A bounded queue whose frames, and whose end, can be taken some seconds after they came."""

    def __init__(self, seconds: float, limits: Limits) -> None:
        self._seconds = seconds
        self._limits = limits
        self._frames: deque[tuple[float, bytes]] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._error: LinkError | None = None
        self._ends_at = 0.0
        self.bytes_in = 0
        self.bytes_out = 0

    def put(self, frame: bytes, timeout: float | None) -> None:
        """As `FrameQueue.put`."""
        check_frame(frame, self._limits)
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._fits(frame), timeout)
            if self._error is not None:
                raise self._error
            if not self._fits(frame):
                raise LinkError(
                    f"the other side took no frame for {timeout:g} s "
                    f"({len(self._frames)} frames are waiting)"
                )
            self._frames.append((time.monotonic() + self._seconds, frame))
            self._waiting_bytes += len(frame)
            self.bytes_in += len(frame)
            self._changed.notify_all()

    def take(self, timeout: float | None) -> bytes:
        """As `FrameQueue.get`; a frame still on its way has not come."""
        given_up_at = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while (wait := self._due_in()) is None or wait > 0:
                if given_up_at is not None:
                    left = given_up_at - time.monotonic()
                    if left <= 0:
                        raise LinkTimeout(f"nothing came from the other side for {timeout:g} s")
                    wait = left if wait is None else min(wait, left)
                self._changed.wait(wait)
            if not self._frames:
                assert self._error is not None  # or nothing would be due
                raise self._error
            _, frame = self._frames.popleft()
            self._waiting_bytes -= len(frame)
            self.bytes_out += len(frame)
            self._changed.notify_all()
            return frame

    def end(self, error: LinkError, *, discard: bool = False) -> None:
        """Take no more frames; the first error stays. `discard`: drop what waits, end now."""
        with self._changed:
            if self._error is None:
                self._error = error
                self._ends_at = time.monotonic() + self._seconds
            if discard:
                self._frames.clear()
                self._waiting_bytes = 0
                self._ends_at = 0.0
            self._changed.notify_all()

    def _due_in(self) -> float | None:
        """Seconds until something can be taken; None while nothing is on its way."""
        if self._frames:
            return self._frames[0][0] - time.monotonic()
        return None if self._error is None else self._ends_at - time.monotonic()

    def _fits(self, frame: bytes) -> bool:
        # An empty queue takes any frame, or a small byte bound would block it for ever.
        return not self._frames or (
            len(self._frames) < self._limits.max_queued_frames
            and self._waiting_bytes + len(frame) <= self._limits.max_queued_bytes
        )
