"""Finding a cloud for a session that has none: dialled again and again, with growing pauses.

Used by `connection.py`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from collm.errors import LinkError, ProtocolError, Refused
from collm.limits import Limits
from collm.link.base import Link
from collm.link.clock import Clock
from collm.link.dialer import Line
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import Hello, Refusal, Welcome

PASSING: Final = frozenset({"busy", "corrupt", "idle"})
"""Refusals in the midst of a session that another cloud, or the same one later, may not give."""

DAMAGED: Final = frozenset({"corrupt", "protocol"})
"""Refusals of a Hello that changed on its way."""


def choices(dial: Callable[[], Link] | None) -> int:
    """Clouds that `dial` may lead to: the word of one of them is not the others'."""
    return dial.choices if isinstance(dial, Line) else 1


class Redial:
    """Looks for a cloud, in a thread, and says Hello to it."""

    def __init__(
        self,
        dial: Callable[[], Link],
        old: Link | None,
        hello: Hello,
        limits: Limits,
        pause: float,
        clock: Clock,
    ) -> None:
        self._dial = dial
        self._old = old
        self._hello = hello
        self._limits = limits
        self._clock = clock
        self._longest = limits.redial_seconds
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._found: tuple[Link, Welcome] | None = None
        self._fatal: Exception | None = None
        self._refusals = 0
        """For good, by one cloud or another."""
        self.last_error: Exception | None = None
        self.found_at = 0.0
        self._task = clock.repeat(self._attempt, min(pause, limits.resume_seconds), "collm-redial")

    @property
    def is_done(self) -> bool:
        """Whether a cloud was found, or will not be."""
        return self._task.is_over

    def wait(self, seconds: float) -> tuple[Link, Welcome] | None:
        """A link whose cloud has said Welcome; None where there is none after so many seconds.

        Raises what a cloud that will never take this session said.
        """
        if not self._task.wait(seconds):
            return None
        if self._fatal is not None:
            raise self._fatal
        return self._found

    def stop(self) -> None:
        """Look no further; a link that was made is closed."""
        self._stopped.set()
        self._task.cancel()
        with self._lock:
            if self._link is not None:
                self._link.close()

    def _attempt(self) -> float | None:
        """Try once; how long to wait before the next time, None after the last."""
        if self._old is not None:
            self._old.close()
            self._old = None
        pause = self._longest * random.uniform(0.5, 1.0)
        self._longest = min(2 * self._longest, self._limits.redial_longest_seconds)
        try:
            self._found = self._try()
            self.found_at = self._clock.now()
            return None
        except Refused as error:
            self.last_error = error
            if error.code not in PASSING | DAMAGED:
                self._refusals += 1
                if self._refusals < choices(self._dial):
                    return 0.0  # the next one may have other layers, or another owner
                self._fatal = error
                return None
            return max(pause, min(error.retry_seconds, self._limits.resume_seconds))
        except LinkError as error:
            self.last_error = error
            return pause
        except Exception as error:  # noqa: BLE001 - raised by `wait`, to whoever asks
            self._fatal = error
            return None

    def _try(self) -> tuple[Link, Welcome]:
        link = self._dial()
        with self._lock:
            self._link = link
        try:
            if self._stopped.is_set():
                raise LinkError("the session is closed")
            return link, greet(link, self._hello, self._limits)
        except BaseException:
            link.close()
            raise


def greet(
    link: Link,
    hello: Hello,
    limits: Limits,
    hear: Callable[[Link, float], bytes] = lambda link, seconds: link.receive(seconds),
) -> Welcome:
    """Say Hello. Raises LinkError, what the cloud refuses with, and ProtocolError.

    hear: receives from the link, within so many seconds.
    """
    with suppress(LinkError):  # whoever closes the link at once may have said why
        link.send(encode(hello))
    # The server is there (the link saw that), but it may be computing.
    reply = decode_cloud(hear(link, limits.verdict_seconds), limits, sealed=True)
    if isinstance(reply, Refusal):
        raise refused(reply)
    if not isinstance(reply, Welcome):
        raise ProtocolError(f"expected a Welcome, got {type(reply).__name__}")
    return reply


def refused(refusal: Refusal) -> Refused:
    """What the cloud said, as an error."""
    return Refused(refusal.code, f"the cloud refuses: {refusal.reason}", refusal.retry_seconds)
