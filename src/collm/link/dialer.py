"""One of several clouds: the first that answers, and another one when it fails.

A cloud that did not answer, or whose link did not last, is passed over for a while that doubles
with each failure (a circuit breaker); where all have failed, the one whose while ends first is
tried first. So a dead cloud costs its connection timeout once, not once an answer; and no more than
a second of it while there is another to try.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from collm.errors import LinkError, Refused, Unreachable
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.base import Link
from collm.link.clock import REAL_CLOCK, Clock
from collm.link.credentials import ClientSecurity
from collm.link.grpc_client import OPEN, connect

_SHORT_SECONDS: Final = 5.0
"""A link that is replaced so soon has failed."""
_HASTE_SECONDS: Final = 1.0
"""Longest wait for a cloud while there are others to try."""
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0


@dataclass(slots=True)
class _Cloud:
    failures: int = 0
    passed_over_until: float = 0.0

    def seconds_passed_over(self, now: float) -> float:
        """How long it is still passed over."""
        return max(0.0, self.passed_over_until - now)


class Line:
    """The links of one session, one after the other: each call makes the next.

    A link that is replaced while it is young did not last: its cloud has failed. Raises Unreachable
    when no cloud answers, Refused when none lets us in.
    """

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._last: tuple[str, float] | None = None

    @property
    def choices(self) -> int:
        """Clouds that it may lead to."""
        return len(self._dialer.addresses)

    def __call__(self) -> Link:
        dialer, last = self._dialer, self._last
        if last is not None:
            dialer.broke(*last)
        self._last = None
        address, link = dialer.dial(last[0] if last is not None else None)
        self._last = address, dialer.clock.now()
        return link


class Dialer:
    """Makes links to one of several clouds: call it for one, or take a `line` for a session.

    addresses: HOST:PORT each, the preferred one first. dial: makes a link to one of them. route:
    knows the order in which to try them, and is told which one a session had; None: as given.
    Safe to use from several threads.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        limits: Limits = DEFAULT_LIMITS,
        security: ClientSecurity = OPEN,
        *,
        dial: Callable[[str], Link] | None = None,
        clock: Clock = REAL_CLOCK,
        route: Callable[[str | None], Sequence[str]] | None = None,
    ) -> None:
        if not addresses:
            raise ValueError("no address; expected at least one")
        self.addresses = tuple(addresses)
        self.clock = clock
        self._clouds = {address: _Cloud() for address in addresses}
        hasty = replace(limits, connect_seconds=min(limits.connect_seconds, _HASTE_SECONDS))
        self._dial = dial or partial(connect, limits=limits, security=security)
        self._try = dial or partial(connect, limits=hasty, security=security)
        self._route = route or (lambda _: self.addresses)
        self._lock = threading.Lock()
        self._ready: tuple[str, Link] | None = None

    def keep(self, address: str, link: Link) -> None:
        """Lay a link by that nobody has used, for the next session; with one there it is closed."""
        with self._lock:
            if self._ready is None:
                self._ready = address, link
                return
        link.close()

    def close(self) -> None:
        """Close what was laid by. Idempotent."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None:
            ready[1].close()

    def line(self) -> Line:
        """The links of one session."""
        return Line(self)

    def __call__(self) -> Link:
        """A link to the best cloud that answers. Raises as a `Line` does."""
        return self.dial(None)[1]

    def dial(self, had: str | None) -> tuple[str, Link]:
        """The same, and whose it is. had: the cloud that the session was at. Raises as a `Line`."""
        if had is None:
            with self._lock:
                ready, self._ready = self._ready, None
            if ready is not None:
                return ready
        order = self._route(had)  # may take a moment
        with self._lock:
            now = self.clock.now()
            order = sorted(order, key=lambda one: self._clouds[one].seconds_passed_over(now))
        errors: list[LinkError] = []
        for address in order:
            is_last = len(errors) == len(order) - 1
            try:
                link = self._dial(address) if is_last else self._try(address)
            except (Unreachable, Refused) as error:
                errors.append(error)
                with self._lock:
                    self._failed(address)
                continue
            with self._lock:
                self._clouds[address].passed_over_until = 0.0
            return address, link
        if len(errors) == 1 or all(isinstance(error, Refused) for error in errors):
            raise errors[0]
        raise Unreachable("; ".join(map(str, errors)))

    def broke(self, address: str, made_at: float) -> None:
        """A link to `address` that was made then did not last."""
        with self._lock:
            if self.clock.now() - made_at < _SHORT_SECONDS:
                self._failed(address)
            else:
                self._clouds[address].failures = 0

    def _failed(self, address: str) -> None:
        cloud = self._clouds[address]
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**cloud.failures)
        cloud.failures = min(cloud.failures + 1, 16)
        cloud.passed_over_until = self.clock.now() + pause
