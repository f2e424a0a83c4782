"""Small services for the link tests: each does one thing that a cloud may do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from collm.errors import CollmError, ProtocolError, Refused
from collm.link.base import Peer


def until(what: Callable[[], bool], seconds: float = 3.0) -> bool:
    """Poll until `what` holds; whether it does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.01)
    return False


class Recorder:
    """What happened to a service's conversations, with waiting for it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.frames: list[bytes] = []
        self.opened = 0
        self.closed = 0
        self.running = 0
        self.overlaps = 0

    def wait_for(self, what: Callable[[Recorder], bool], seconds: float = 3.0) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: what(self), seconds)


class FakeService:
    """Opens `FakeConversation`s; a refusal is `no <code> <reason>` in bytes."""

    def __init__(self) -> None:
        self.record = Recorder()

    def open(self, peer: Peer) -> FakeConversation:
        assert peer.address
        with self.record.changed:
            self.record.opened += 1
            self.record.changed.notify_all()
        return FakeConversation(self.record)

    def refusal(self, error: CollmError) -> bytes:
        code = error.code if isinstance(error, Refused) else type(error).__name__
        return f"no {code} {error}".encode()


class FakeConversation:
    """Does what the first word of a frame says."""

    pause_seconds = 0.0

    def __init__(self, record: Recorder) -> None:
        self._record = record

    def receive(self, frame: bytes) -> Iterator[bytes]:
        with self._record.changed:
            self._record.frames.append(frame)
            self._record.changed.notify_all()
        word, _, rest = frame.partition(b" ")
        match word:
            case b"quiet":
                return iter(())
            case b"stream":  # stream COUNT SECONDS
                count, seconds = rest.split()
                return self._stream(int(count), float(seconds))
            case b"refuse":
                raise Refused("fingerprint", "not that model")
            case b"break":
                raise ProtocolError("bad bytes")
            case b"break-late":
                return self._break_late()
            case b"explode":
                raise RuntimeError("secret /etc/passwd")
            case b"big":  # big BYTES [COUNT]
                size, _, count = rest.partition(b" ")
                return (b"x" * int(size) for _ in range(int(count or b"1")))
            case _:
                return iter([frame])

    def close(self) -> None:
        with self._record.changed:
            self._record.overlaps += self._record.running
            self._record.closed += 1
            self._record.changed.notify_all()

    def _stream(self, count: int, seconds: float) -> Iterator[bytes]:
        for number in range(count):
            # Only ever 1 here, with the one worker that all tests use.
            self._record.running += 1
            time.sleep(seconds)
            self._record.running -= 1
            yield b"%d" % number

    def _break_late(self) -> Iterator[bytes]:
        yield b"first"
        raise ProtocolError("bad bytes")
