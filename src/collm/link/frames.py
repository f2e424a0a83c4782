"""A bounded queue of frames between two threads, closed with a reason."""

from __future__ import annotations

import threading
from collections import deque

from collm.errors import LinkError, LinkTimeout
from collm.limits import Limits


class FrameQueue:
    """One direction of a link: bounded in frames and bytes, counted at both ends."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._frames: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._waiting_bytes = 0
        self._closed: str | None = None
        self._bytes_in = 0
        self._bytes_out = 0

    @property
    def bytes_in(self) -> int:
        """Bytes of all frames ever put."""
        return self._bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes of all frames ever taken."""
        return self._bytes_out

    def put(self, frame: bytes, timeout: float | None) -> None:
        """Append a frame, waiting at most `timeout` seconds for room (None: until closed).

        Raises `LinkError` when there is no room in time, when the frame is too large, and
        when the queue is closed.
        """
        check_frame(frame, self._limits)
        with self._changed:
            self._changed.wait_for(lambda: self._closed is not None or self._fits(frame), timeout)
            if self._closed is not None:
                raise LinkError(self._closed)
            if not self._fits(frame):
                raise LinkError(
                    f"the other side took no frame for {timeout:g} s "
                    f"({len(self._frames)} frames are waiting)"
                )
            self._frames.append(frame)
            self._waiting_bytes += len(frame)
            self._bytes_in += len(frame)
            self._changed.notify_all()

    def get(self, timeout: float | None) -> bytes:
        """Take the oldest frame, waiting at most `timeout` seconds (None: until closed).

        Raises `LinkTimeout` when none comes, `LinkError` when the queue is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed is not None or self._frames, timeout)
            if not self._frames:
                if self._closed is not None:
                    raise LinkError(self._closed)
                raise LinkTimeout(f"nothing came from the other side for {timeout:g} s")
            frame = self._frames.popleft()
            self._waiting_bytes -= len(frame)
            self._bytes_out += len(frame)
            self._changed.notify_all()
            return frame

    def close(self, why: str, *, discard: bool = False) -> None:
        """Take no more frames; the first `why` stays. `discard` drops the waiting ones too."""
        with self._changed:
            if self._closed is None:
                self._closed = why
            if discard:
                self._frames.clear()
                self._waiting_bytes = 0
            self._changed.notify_all()

    def _fits(self, frame: bytes) -> bool:
        # An empty queue takes any frame, or a small byte bound would block it for ever.
        return not self._frames or (
            len(self._frames) < self._limits.max_queued_frames
            and self._waiting_bytes + len(frame) <= self._limits.max_queued_bytes
        )


def check_frame(frame: bytes, limits: Limits) -> None:
    """Raise `LinkError` when a frame of our own is larger than the other side would take."""
    if len(frame) > limits.max_message_bytes:
        raise LinkError(f"a frame of {len(frame)} bytes; at most {limits.max_message_bytes}")
