"""Measures several clouds every few seconds while links to them are asked for: a `Dialer`'s route.

A measurement is a Heartbeat over a short link of its own, which takes no session; a server that
cannot serve one (full, or its own cloud gone) refuses it. Where nobody has asked for a link for a
while nothing is measured; the next who asks then waits a moment for a first round.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from collm.errors import LinkError, ProtocolError
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.base import Link
from collm.link.clock import REAL_CLOCK, Clock, Task
from collm.link.credentials import ClientSecurity
from collm.link.grpc_client import OPEN, connect
from collm.link.probe import heartbeat
from collm.link.routing import RouteRules, Routes

_DEADLINE_SECONDS: Final = 1.0
"""Of connecting, and of the answer."""
_EVERY_SECONDS: Final = 3.0
_STALE_SECONDS: Final = 10.0
"""Older measurements are not decided on."""
_USED_SECONDS: Final = 30.0
"""So long after the last link was asked for, measuring goes on."""
_LEAST_PATIENCE: Final = 0.05


class RouteProber:
    """Called with the cloud that a session had, if any: the addresses, the best one first.

    addresses: the preferred one first. measure: seconds of a question to one of them; raises
    LinkError or ProtocolError where it is not healthy. Safe to use from several threads.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        limits: Limits = DEFAULT_LIMITS,
        security: ClientSecurity = OPEN,
        *,
        measure: Callable[[str], float] | None = None,
        rules: RouteRules | None = None,
        clock: Clock = REAL_CLOCK,
    ) -> None:
        self._addresses = tuple(addresses)
        hasty = replace(limits, connect_seconds=_DEADLINE_SECONDS)
        dial = partial(connect, limits=hasty, security=security)
        self._measure = measure or partial(_measure, dial=dial, limits=hasty)
        self._clock = clock
        self._routes = Routes(addresses, rules)
        self._lock = threading.Lock()
        self._measuring = threading.Lock()
        self._measured_at = -_STALE_SECONDS
        self._used_at = 0.0
        self._task: Task | None = None

    def __call__(self, had: str | None) -> Sequence[str]:
        with self._lock:
            self._used_at = now = self._clock.now()
            is_stale = now - self._measured_at >= _STALE_SECONDS
        if is_stale:
            self.round()
        with self._lock:
            if self._task is None or self._task.is_over:
                self._task = self._clock.repeat(self._step, _EVERY_SECONDS, "collm-routes")
            return self._routes.order(had)

    def round(self) -> None:
        """Measure all of them at once, and decide.

        Those that are much slower than the quickest are not waited for in the first round.
        """
        with self._measuring:
            started = time.perf_counter()
            is_first = self._routes.chosen is None
            answers: queue.SimpleQueue[tuple[str, float | None]] = queue.SimpleQueue()
            for address in self._addresses:
                work = partial(self._ask, address, answers)
                threading.Thread(target=work, name="collm-probe", daemon=True).start()
            patience = 2 * _DEADLINE_SECONDS
            found: dict[str, float | None] = {}
            while len(found) < len(self._addresses):
                left = max(0.0, started + patience - time.perf_counter())
                try:
                    address, seconds = answers.get(timeout=left)
                except queue.Empty:
                    break
                found[address] = seconds
                if is_first and seconds is not None:
                    taken = time.perf_counter() - started
                    patience = min(patience, max(_LEAST_PATIENCE, 2 * taken))
            if not is_first:
                found = {address: found.get(address) for address in self._addresses}
            with self._lock:
                self._measured_at = self._clock.now()
                self._routes.round(found)

    def _step(self) -> float | None:
        with self._lock:
            if self._clock.now() - self._used_at > _USED_SECONDS:
                self._task = None
                return None
        self.round()
        return _EVERY_SECONDS

    def _ask(self, address: str, answers: queue.SimpleQueue[tuple[str, float | None]]) -> None:
        seconds: float | None = None
        try:
            seconds = self._measure(address)
        except (LinkError, ProtocolError):
            pass  # None says so
        answers.put((address, seconds))


def _measure(address: str, *, dial: Callable[[str], Link], limits: Limits) -> float:
    link = dial(address)
    try:
        return heartbeat(link, limits, _DEADLINE_SECONDS)
    finally:
        link.close()
