"""One of several clouds: the first that answers, and another one when it fails.

A cloud that did not answer, or whose link did not last, is passed over for a while that doubles
with each failure (a circuit breaker); where all have failed, the one whose while ends first is
tried first. So a dead cloud costs its connection timeout once, not once an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0


@dataclass(slots=True)
class _Cloud:
    address: str
    failures: int = 0
    passed_over_until: float = 0.0


class Again:
    """Calling it makes a link in the place of one that broke. Raises as a `Dialer` does.

    choices: how many clouds it may lead to.
    """

    def __init__(self, redial: Callable[[], Link], choices: int) -> None:
        self._redial = redial
        self.choices = choices

    def __call__(self) -> Link:
        return self._redial()


class Dialer:
    """Calling it makes a link, calling `again` replaces one. Safe to use from several threads.

    addresses: HOST:PORT each, the preferred one first. dial: makes a link to one of them.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        limits: Limits = DEFAULT_LIMITS,
        security: ClientSecurity = OPEN,
        *,
        dial: Callable[[str], Link] | None = None,
        clock: Clock = REAL_CLOCK,
    ) -> None:
        if not addresses:
            raise ValueError("no address; expected at least one")
        self._clouds = [_Cloud(address) for address in addresses]
        self._dial = dial or partial(connect, limits=limits, security=security)
        self._clock = clock
        self._lock = threading.Lock()
        self._last: tuple[_Cloud, float] | None = None
        self.again = Again(self._again, len(self._clouds))
        """Makes a link in the place of one that broke; see `Again`."""

    def _again(self) -> Link:
        """A link in the place of one that broke; where that was young its cloud has failed."""
        with self._lock:
            if self._last is not None:
                cloud, made_at = self._last
                if self._clock.now() - made_at < _SHORT_SECONDS:
                    self._failed(cloud)
                else:
                    cloud.failures = 0
                self._last = None
        return self()

    def __call__(self) -> Link:
        """A link to the best cloud that answers.

        Raises Unreachable when none does, Refused when none lets us in.
        """
        with self._lock:
            now = self._clock.now()
            order = sorted(self._clouds, key=lambda one: max(0.0, one.passed_over_until - now))
        errors: list[LinkError] = []
        for cloud in order:
            try:
                link = self._dial(cloud.address)
            except (Unreachable, Refused) as error:
                errors.append(error)
                with self._lock:
                    self._failed(cloud)
                continue
            with self._lock:
                cloud.passed_over_until = 0.0
                self._last = cloud, self._clock.now()
            return link
        if len(errors) == 1 or all(isinstance(error, Refused) for error in errors):
            raise errors[0]
        raise Unreachable("; ".join(map(str, errors)))

    def _failed(self, cloud: _Cloud) -> None:
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**cloud.failures)
        cloud.failures = min(cloud.failures + 1, 16)
        cloud.passed_over_until = self._clock.now() + pause
