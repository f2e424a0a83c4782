"""Whether the cloud is there, how far away, and who is above it: looked at now and then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from collm.errors import CollmError, one_line
from collm.limits import Limits
from collm.link.base import Closing, Link
from collm.link.dialer import Dialer
from collm.session.probing import look
from collm.wire.tiers import Tier, away, unreached

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 2.0
_ASKED_SECONDS = 10.0
"""Nobody looks at a health that nobody asks for."""


@dataclass(frozen=True)
class CloudHealth:
    """The cloud, or edge server, as last seen, and those above it as it saw them last."""

    tiers: tuple[Tier, ...]
    """The nearest first; there is at least one."""

    @property
    def ok(self) -> bool:
        """Whether all of them can be reached: it takes them all to serve."""
        return away(self.tiers) is None

    @property
    def fault(self) -> str:
        """Who is away, and why; empty: nobody."""
        gone = away(self.tiers)
        return "" if gone is None else f"the {gone.role} {gone.address} is away: {gone.error}"


class HealthWatch(Closing):
    """Looks every other second, as long as somebody asks for `latest`."""

    def __init__(self, connect: Callable[[], Link], limits: Limits) -> None:
        self._connect = connect
        self._limits = limits
        self._address = ", ".join(connect.addresses) if isinstance(connect, Dialer) else ""
        self._latest = CloudHealth(
            (Tier(address=self._address, ok=False, error="not looked at yet"),)
        )
        self._asked_at = time.monotonic()
        self._done = threading.Event()
        self._asked = threading.Event()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collm-health", daemon=True)
        self._thread.start()

    @property
    def latest(self) -> CloudHealth:
        """What was seen last; never waits."""
        self._asked_at = time.monotonic()
        self._asked.set()
        return self._latest

    def wait(self, seconds: float) -> CloudHealth:
        """The same, but the first time wait so long for it."""
        self._looked.wait(seconds)
        return self.latest

    def close(self) -> None:
        """End; a look under way is not waited for. Idempotent."""
        self._done.set()
        self._asked.set()

    def _run(self) -> None:
        while not self._done.is_set():
            self._latest = self._look()
            self._looked.set()
            self._done.wait(_EVERY_SECONDS)
            if time.monotonic() - self._asked_at > _ASKED_SECONDS:
                self._asked.clear()
                self._asked.wait()

    def _look(self) -> CloudHealth:
        try:
            return CloudHealth(look(self._connect, self._limits))
        except Exception as error:  # whatever it is: a watch that ends says ok for ever
            said, (head, *above) = one_line(error), self._latest.tiers
            if not isinstance(error, CollmError) and said != head.error:
                logger.exception("the cloud's health cannot be looked at")
            head = replace(head, address=self._address)  # all of them were tried
            return CloudHealth(unreached((head, *above), said))
