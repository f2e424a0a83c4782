"""Which way to make tokens, decided anew at every verify boundary, and why.

Ways that were tried are known by what they took; others by their forecast. The plain cloud is the
baseline: a *conservative bandit* (Wu et al. 2016, arXiv 1602.04282) tries another way only while
all tokens so far, with the trial's at its worst, have taken no more than 1 + `budget` times what
the baseline would have taken. So collaboration that loses is given up before it has cost much, and
what is not known to win is never tried on the user's time beyond that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from collm.config import Way
from collm.policy.forecast import Forecast, Forecaster

BASELINE: Final = Way(mode="cloud")
_WINDOW_TOKENS: Final = 24
_KEPT: Final = 0.999
"""What a token counts in the budget after each further one: clouds are not as fast for ever."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When to change."""

    budget: float = 0.04
    """What trying may cost, of the baseline's time."""
    gain: float = 0.10
    """A way that is forecast to be faster by this share is taken."""
    dwell: int = 6
    """Tokens between two changes."""
    doubt: float = 0.15
    """By how much a forecast may be wrong for a way that was not tried yet."""
    trial: int = 16
    """Tokens after which a trial is judged."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How to go on, in words too."""

    way: Way
    seconds: float
    """Expected, a token."""
    reason: str


@dataclass
class _Tried:
    """What one way took lately, against what it was forecast to take."""

    rounds: deque[tuple[int, float]] = field(default_factory=deque)
    """Tokens and seconds of each."""
    ratio: float = 1.0
    """Measured by forecast seconds."""
    tokens: int = 0

    def add(self, tokens: int, seconds: float, forecast: float) -> None:
        self.tokens += tokens
        self.rounds.append((tokens, seconds))
        while sum(one for one, _ in self.rounds) - self.rounds[0][0] >= _WINDOW_TOKENS:
            self.rounds.popleft()
        if tokens and forecast > 0:
            weight = min(0.5, tokens / 16)
            self.ratio += weight * (min(4.0, seconds / tokens / forecast) - self.ratio)

    @property
    def seconds(self) -> float:
        """A token's, lately."""
        tokens = sum(one for one, _ in self.rounds)
        return math.fsum(seconds for _, seconds in self.rounds) / tokens if tokens else math.nan


class Controller:
    """Chooses among `ways`; the plain cloud is one of them unless `lossless_cloud` is False.

    ways: the collaborative ones, the preferred first. Pure: time comes in as seconds.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        forecaster: Forecaster,
        rules: Rules | None = None,
        *,
        with_baseline: bool = True,
    ) -> None:
        self.ways = list(ways)
        self.forecaster = forecaster
        self.rules = rules or Rules()
        self.with_baseline = with_baseline
        self._tried: dict[Way, _Tried] = {}
        self._spent = self._tokens = 0.0
        self._since = 0
        """Tokens since the last change."""
        self.allowed = max((way.placement for way in ways), default=0)
        """Most layers on the edge just now."""

    def note(self, way: Way, tokens: int, seconds: float) -> None:
        """So many tokens were made this way in so long."""
        tried = self._tried.setdefault(way, _Tried())
        tried.add(tokens, seconds, self.forecaster.of(way).seconds)
        if way.mode == "cloud" and tokens:
            self.forecaster.cloud_took(seconds / tokens)
        kept = _KEPT**tokens
        self._spent = kept * self._spent + seconds
        self._tokens = kept * self._tokens + tokens
        self._since += tokens

    def first(self) -> Decision:
        """How to begin an answer."""
        self._since = self.rules.dwell
        return self.decide(None)

    def decide(self, now: Way | None) -> Decision:
        """How to go on; now: the way that tokens are made at the moment."""
        if now is not None and now.mode == "cloud":
            return Decision(way=now, seconds=self.expected(now), reason="the cloud goes on alone")
        least = min((way.placement for way in self.ways), default=0)
        usable = [way for way in self.ways if way.placement <= max(self.allowed, least)]
        priced = [(self.expected(way), way) for way in usable]
        priced = [(seconds, way) for seconds, way in priced if seconds == seconds]
        plain = self.expected(BASELINE) if self.with_baseline else math.inf
        if not priced:
            if now is not None and now in usable:
                return Decision(way=now, seconds=math.nan, reason="nothing is known yet")
            if self.with_baseline:
                return Decision(way=BASELINE, seconds=plain, reason="nothing else is known yet")
            return Decision(
                way=(usable or self.ways)[0], seconds=math.nan, reason="the first choice"
            )
        seconds, best = min(priced, key=lambda one: one[0])
        if now is not None and now.placement > self.allowed:
            return Decision(way=best, seconds=seconds, reason="memory is short: fewer layers here")
        if self.with_baseline and plain != plain:
            return Decision(
                way=BASELINE, seconds=plain, reason="to learn what the cloud alone takes"
            )
        if now is None:
            return self._begin(best, seconds, plain)
        mine = self.expected(now)
        if self.with_baseline and plain < 0.97 * min(mine, seconds) and self._is_judged(now):
            words = f"the cloud alone takes {_ms(plain)} a token, this way {_ms(mine)}"
            return Decision(way=BASELINE, seconds=plain, reason=words)
        if self.with_baseline and plain < mine and self._owed(now, plain, mine) > 0:
            words = f"trying has cost enough: the cloud alone takes {_ms(plain)} a token"
            return Decision(way=BASELINE, seconds=plain, reason=words)
        # To move the cut is to load blocks and to run the text through them again.
        gain = self.rules.gain * (1 if best.placement == now.placement else 2)
        if best != now and seconds < (1 - gain) * mine and self._since >= self.rules.dwell:
            self._since = 0
            words = f"{_ms(seconds)} a token are forecast, this way takes {_ms(mine)}"
            return Decision(way=best, seconds=seconds, reason=words)
        return Decision(way=now, seconds=mine, reason="no other way is faster by much")

    def expected(self, way: Way) -> float:
        """Seconds a token: the forecast, mended by what was measured; NaN: not known."""
        forecast, tried = self.forecaster.of(way).seconds, self._tried.get(way)
        if tried is None:
            return forecast * self._general_ratio(way)
        if way.mode == "cloud":
            return forecast
        return forecast * tried.ratio

    def table(self) -> list[tuple[Way, Forecast, float]]:
        """Every way with its forecast and what is expected, cheapest first; for people."""
        ways = [*self.ways, *([BASELINE] if self.with_baseline else [])]
        rows = [(way, self.forecaster.of(way), self.expected(way)) for way in ways]
        return sorted(rows, key=lambda row: math.inf if row[2] != row[2] else row[2])

    def _begin(self, best: Way, seconds: float, plain: float) -> Decision:
        doubtful = seconds if best in self._tried else seconds * (1 + self.rules.doubt)
        words = f"{_ms(seconds)} a token are expected, {_ms(plain)} from the cloud alone"
        if not self.with_baseline or doubtful < plain:
            return Decision(way=best, seconds=seconds, reason=words)
        if seconds < 0.97 * plain and self._owed(best, plain, doubtful) <= 0:
            return Decision(way=best, seconds=seconds, reason=f"a trial: {words}")
        words = f"the cloud alone takes {_ms(plain)} a token, {_ms(seconds)} are the best forecast"
        return Decision(way=BASELINE, seconds=plain, reason=words)

    def _owed(self, way: Way, plain: float, seconds: float) -> float:
        """What a trial of `way` would cost beyond the budget, in seconds."""
        tokens = self._tokens + self.rules.trial
        allowed = (1 + self.rules.budget) * plain * tokens
        return self._spent + self.rules.trial * seconds - allowed

    def _is_judged(self, way: Way) -> bool:
        tried = self._tried.get(way)
        return tried is not None and tried.tokens >= self.rules.dwell

    def _general_ratio(self, way: Way) -> float:
        """How far off forecasts of tried ways alike were, on the slow side."""
        if way.mode == "cloud":
            return 1.0
        ratios = [
            tried.ratio
            for other, tried in self._tried.items()
            if other.mode == way.mode and other.ahead == way.ahead
        ]
        return min(1.5, max(1.0, min(ratios))) if ratios else 1.0


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
