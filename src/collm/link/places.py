"""The places that a server has for links: bounded, and taken from the silent where they run out.

There are some more than sessions: whoever only probes, or has not said what it wants yet, takes
none of a session's. Used by `grpc_server.py` and `memory.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from collm.errors import Refused
from collm.limits import Limits
from collm.link import refusals


class Place:
    """One link's. `end` may be called from any thread, the rest from the link's own."""

    def __init__(self, ended: Callable[[], None]) -> None:
        """ended: called, by whoever ends it, when the link shall go."""
        self._ended = ended
        self._silent_since: float | None = None
        self.why: Refused | None = None
        """What the link is to be refused with."""

    def waits(self) -> None:
        """The client is to speak. Raises what the link was ended with meanwhile."""
        self._silent_since = time.monotonic()
        if self.why is not None:
            raise self.why

    def works(self) -> None:
        """The client has spoken."""
        self._silent_since = None

    def end(self, why: Refused) -> None:
        """Have the link end when it waits for its client."""
        if self.why is None:
            self.why = why
            self._ended()

    def silent_seconds(self, now: float) -> float:
        """How long the client has said nothing."""
        return 0.0 if self._silent_since is None else now - self._silent_since


class Places:
    """Those of one server. Safe to use from several threads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._taken: set[Place] = set()

    def take(self, ended: Callable[[], None]) -> Place:
        """One for a new link. Raises Refused where none is free, nor long silent."""
        with self._lock:
            if len(self._taken) >= self._limits.max_sessions + self._limits.spare_links:
                now = time.monotonic()
                silent = max(self._taken, key=lambda one: one.silent_seconds(now))
                if silent.silent_seconds(now) < self._limits.work_seconds:
                    raise refusals.busy(self._limits)
                self._taken.discard(silent)
                silent.end(refusals.needed())
            place = Place(ended)
            self._taken.add(place)
            return place

    def give_back(self, place: Place) -> None:
        """The link is over. Idempotent."""
        with self._lock:
            self._taken.discard(place)
