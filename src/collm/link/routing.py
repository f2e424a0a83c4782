"""Which of several clouds a new session goes to: a decision from measurements, without any I/O.

A cloud's figure is a smoothed time from question to answer, which is the way there and back and the
wait for a turn there. The choice changes only where another is clearly better for several rounds in
a row, or where the chosen one is not healthy; so it does not follow every jitter, and clouds that
share a load do not pass it to and fro.

Not covered: moving sessions. One that is open stays where it is until its link breaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RouteRules:
    """When to change. The defaults tell an edge server in the building from a cloud elsewhere."""

    share: float = 0.2
    """Another is clearly better if it takes this much less of the chosen one's time …"""
    seconds: float = 0.002
    """… and at least so many seconds less."""
    rounds: int = 3
    """… in so many rounds, one after the other."""
    gain: float = 0.25
    """Weight of a new measurement in the smoothed one."""


@dataclass(slots=True)
class _Cloud:
    seconds: float | None = None
    """Smoothed; None: never measured."""
    is_healthy: bool = True


class Routes:
    """The clouds at `addresses`, the preferred one first. For one thread at a time."""

    def __init__(self, addresses: Sequence[str], rules: RouteRules | None = None) -> None:
        self._clouds = {address: _Cloud() for address in addresses}
        self._rules = rules or RouteRules()
        self._rival: str | None = None
        self._better = 0
        """Rounds in which the rival was clearly better."""
        self.chosen: str | None = None
        """Where new sessions go; None before the first round."""

    def seconds(self, address: str) -> float | None:
        """The smoothed figure of a healthy cloud."""
        cloud = self._clouds[address]
        return cloud.seconds if cloud.is_healthy else None

    def round(self, measured: Mapping[str, float | None]) -> None:
        """Take in what was measured in seconds, None for clouds that did not answer; decide."""
        for address, seconds in measured.items():
            cloud = self._clouds[address]
            cloud.is_healthy = seconds is not None
            if seconds is None:
                cloud.seconds = None  # what it was like before says little of what comes back
            elif cloud.seconds is None:
                cloud.seconds = seconds
            else:
                cloud.seconds += self._rules.gain * (seconds - cloud.seconds)
        known = {at: s for at in self._clouds if (s := self.seconds(at)) is not None}
        if not known:
            return
        if self.chosen not in known:
            self.chosen = self._first_choice(known)
            self._better = 0
            return
        rival = min(known, key=lambda at: known[at])  # the preferred one of equals
        if not self._is_clearly_better(known[rival], known[self.chosen]):
            self._rival, self._better = None, 0
            return
        self._better = self._better + 1 if rival == self._rival else 1
        self._rival = rival
        if self._better >= self._rules.rounds:
            self.chosen, self._rival, self._better = rival, None, 0

    def order(self, had: str | None = None) -> list[str]:
        """All addresses, the best first. had: where the session was that needs another link.

        That one may still hold it. Then come the chosen one, others by their figures, those not
        measured, those that did not answer.
        """

        def rank(address: str) -> tuple[bool, bool, bool, bool, float]:
            cloud = self._clouds[address]
            return (
                not cloud.is_healthy,
                address != had,
                address != self.chosen,
                cloud.seconds is None,
                cloud.seconds or 0.0,
            )

        return sorted(self._clouds, key=rank)

    def _first_choice(self, known: Mapping[str, float]) -> str:
        best, *others = known
        for address in others:
            if self._is_clearly_better(known[address], known[best]):
                best = address
        return best

    def _is_clearly_better(self, seconds: float, than: float) -> bool:
        saved = than - seconds
        return saved >= self._rules.seconds and saved >= self._rules.share * than
