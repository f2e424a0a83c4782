"""What a token will cost each way, from what was seen so far: acceptance, edge, cloud and link.

A round of `verified` decoding drafts until an exit is unsure, asks, and goes on from the verdict.
With `s` the chance that the exit is sure of a position, `r` that it is right where it is sure, and
drafts of at most k, a round has

    drafted   D = s + s² + … + s^k
    accepted  A = sr + (sr)² + … + (sr)^k        (Leviathan et al. 2023, arXiv 2211.17192)
    takes     (D + 1)·edge + round trip + bytes/rate + cloud(D + 1 rows)

and brings A + 1 tokens. Bytes leave while the edge goes on: what is counted is what is still to
go when the question is asked. The cloud's part is a line in the rows, scaled by the share of the
layers that it runs. `s` and `r` come from a histogram of the confidences that were judged.

Not covered: lookups; that confidences of neighbouring tokens hang together.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from collm.config import Way

_BINS: Final = 20
_PRIOR: Final = 24.0
"""The histogram's first guess counts as so many judged positions."""
_KEPT: Final = 0.995
"""What a position's weight is after each further one."""
_QUESTION_BYTES: Final = 24
_CHANGED: Final = 1.5
"""Less is within what estimates vary by."""
_SMOOTHED: Final = 0.2
_TRIP_SECONDS: Final = 10.0
"""The least round trip counts for so long (BBR, Cardwell et al. 2016)."""
_ROUNDS: Final = 3
_FEW_BYTES: Final = 256
"""They leave in no time on any link worth using."""
_NOISE_SECONDS: Final = 0.002
"""Processes, too, are late by so much."""


class Judged:
    """How sure an exit is, and how often it is right then.

    agreement: held-out, of all its tokens. Before anything was judged its confidences are taken
    to be calibrated and spread as a Beta distribution of this mean.
    """

    def __init__(self, agreement: float) -> None:
        middle = [(i + 0.5) / _BINS for i in range(_BINS)]
        a, b = 1.2 * agreement, 1.2 * (1 - agreement)
        weights = [x ** (a - 1) * (1 - x) ** (b - 1) for x in middle]
        total = math.fsum(weights)
        self._seen = [_PRIOR * weight / total for weight in weights]
        self._right = [seen * x for seen, x in zip(self._seen, middle, strict=True)]

    def add(self, confidence: float, right: bool) -> None:
        """One position more."""
        self._seen = [count * _KEPT for count in self._seen]
        self._right = [count * _KEPT for count in self._right]
        index = min(_BINS - 1, int(confidence * _BINS))
        self._seen[index] += 1
        self._right[index] += right

    def sure(self, threshold: float) -> tuple[float, float]:
        """(share of positions it is sure of, share of these it is right at)."""
        first = min(_BINS - 1, max(0, math.ceil(threshold * _BINS - 1e-9)))
        seen, right = math.fsum(self._seen[first:]), math.fsum(self._right[first:])
        return seen / math.fsum(self._seen), right / seen if seen else 0.0


class Smoothed:
    """A value that follows its measurements."""

    def __init__(self, value: float = math.nan) -> None:
        self.value = value

    @property
    def is_known(self) -> bool:
        """Whether there is one."""
        return self.value == self.value

    def add(self, value: float) -> None:
        """One measurement more."""
        self.value = self.value + _SMOOTHED * (value - self.value) if self.is_known else value


class CloudLine:
    """Cloud seconds of a round: (base + row · rows) · share of the layers."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5
        """Of weight, x, y, xx, xy; x are rows."""

    def add(self, rows: float, share: float, seconds: float) -> None:
        """One round of so many rows; older ones count for less and less."""
        x, y = rows, seconds / max(share, 0.05)
        new = (1.0, x, y, x * x, x * y)
        self._sums = [0.95 * old + more for old, more in zip(self._sums, new, strict=True)]

    def seconds(self, rows: float, share: float) -> float:
        """The estimate; NaN before anything was seen."""
        weight, x, y, xx, xy = self._sums
        if not weight:
            return math.nan
        # Little is known of the slope while all rounds are alike: then a row costs a third of one
        # alone, as measured (docs/planner.md).
        mean_x, mean_y = x / weight, y / weight
        variance = xx / weight - mean_x**2
        prior = mean_y / (mean_x + 2)
        slope = (xy / weight - mean_x * mean_y + 0.5 * prior) / (variance + 0.5)
        slope = min(max(slope, 0.0), mean_y / max(mean_x, 1.0))
        return max(0.1 * mean_y, mean_y + slope * (rows - mean_x)) * share


class LinkEstimate:
    """Round trip and upward rate, from questions and their answers.

    The round trip is the least of the last seconds. What an answer took beyond it went on bytes, if
    it did so three times running: one that came late says nothing.
    """

    def __init__(self) -> None:
        self._trips: deque[tuple[float, float]] = deque()
        self._bytewise: deque[float] = deque(maxlen=_ROUNDS)
        self.bits_per_second = math.inf

    @property
    def round_trip(self) -> float:
        """Seconds; NaN before anything was seen."""
        return min((seconds for _, seconds in self._trips), default=math.nan)

    def add(self, now: float, seconds: float, byte_count: int) -> None:
        """An answer came after so long, less the cloud's computing.

        byte_count: went up since the answer before.
        """
        if not seconds >= 0:
            return
        least = self.round_trip
        while self._trips and now - self._trips[0][0] >= _TRIP_SECONDS:
            self._trips.popleft()
        if byte_count < _FEW_BYTES or least != least:
            self._trips.append((now, seconds))
            return
        trip = max(least, seconds - 8 * byte_count / self.bits_per_second)
        self._trips.append((now, min(seconds, trip)))
        excess = seconds - least
        self._bytewise.append(excess / byte_count if excess > _NOISE_SECONDS else 0.0)
        if len(self._bytewise) == _ROUNDS:
            quickest = min(self._bytewise)
            self.bits_per_second = 8 / quickest if quickest else math.inf

    def probed(self, now: float, round_trip: float, bits_per_second: float) -> None:
        """What a probe found; a rate of 0: none."""
        self._trips.append((now, round_trip))
        if bits_per_second:
            self._bytewise.clear()
            self.bits_per_second = bits_per_second


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """One way's price, for a token on average."""

    seconds: float
    accepted: float = 0.0
    """Of a round's draft."""
    bytes_up: float = 0.0
    cloud_seconds: float = 0.0


@dataclass(kw_only=True)
class Forecaster:
    """Everything that was seen, and what follows from it."""

    layers: int
    row_bytes: Callable[[str], int]
    """Of a hidden state in a wire format."""
    agreement: Callable[[int], float]
    """Of the exit at a cut, held-out."""
    link: LinkEstimate = field(default_factory=LinkEstimate)
    cloud: CloudLine = field(default_factory=CloudLine)
    cloud_token: Smoothed = field(default_factory=Smoothed)
    """Seconds a token where the cloud goes on alone, as seen from here."""
    edge: dict[int, Smoothed] = field(default_factory=dict)
    """Seconds a drafted token, by placement."""
    judged: dict[int, Judged] = field(default_factory=dict)
    """By the cut of the exit."""
    _pace: float = math.nan
    """What verdicts said when the cloud alone was last measured."""

    def exit(self, cut: int) -> Judged:
        """What is known of the exit at this cut."""
        if cut not in self.judged:
            self.judged[cut] = Judged(min(0.95, max(0.05, self.agreement(cut))))
        return self.judged[cut]

    def edge_at(self, placement: int) -> Smoothed:
        """Seconds a drafted token with so many layers here, to be added to."""
        return self.edge.setdefault(placement, Smoothed())

    def edge_seconds(self, placement: int) -> float:
        """A drafted token's, measured or from another placement's by layers; NaN: not known."""
        if placement in self.edge:
            return self.edge[placement].value
        known = [(cut, one.value) for cut, one in self.edge.items() if cut]
        if not known:
            return math.nan
        cut, seconds = min(known, key=lambda one: abs(one[0] - placement))
        # A head and an exit's layer cost about as much as five layers of the embedded model's.
        return seconds * (placement + 5) / (cut + 5)

    def cloud_took(self, seconds: float) -> None:
        """A token of the cloud alone came after so long."""
        self.cloud_token.add(seconds)
        self._pace = self.cloud.seconds(2, 1.0)

    def _cloud_alone(self) -> float:
        """What a token takes then; where verdicts say that it has changed since, by as much."""
        now = self.cloud.seconds(2, 1.0)
        if not self.cloud_token.is_known:
            return now
        change = now / self._pace if self._pace > 0 and now > 0 else 1.0
        if 1 / _CHANGED < change < _CHANGED:
            change = 1.0
        return self.cloud_token.value * min(10.0, max(0.1, change))

    def of(self, way: Way) -> Forecast:
        """What a token costs this way; NaN where too little is known."""
        if way.mode == "cloud":
            seconds = self._cloud_alone()
            return Forecast(seconds=seconds, bytes_up=0.5, cloud_seconds=seconds)
        cuts = way.exits if way.exits is not None else (way.placement,)
        sure, right = self.exit(cuts[-1]).sure(way.threshold) if cuts else (0.0, 0.0)
        drafted = math.fsum(sure**i for i in range(1, way.draft + 1))
        accepted = math.fsum((sure * right) ** i for i in range(1, way.draft + 1))
        begins = 0 if way.wire == "ids" else way.placement
        rows = drafted + 1
        edge = self.edge_seconds(way.placement) * rows if way.placement else 0.0
        width = self.row_bytes(way.wire) + 4 if begins else 3
        sent = rows * width + _QUESTION_BYTES
        rate = self.link.bits_per_second
        last = 8 * (width + _QUESTION_BYTES) / rate
        waits = max(8 * sent / rate - edge * (1 - 1 / rows), last)
        cloud = self.cloud.seconds(rows, (self.layers - begins) / self.layers)
        spent = edge + self.link.round_trip + waits + cloud
        if way.ahead is not None:
            # The edge drafts on while it waits; what it drafts then counts if the verdict agrees.
            spent = max(spent - edge * accepted / (accepted + 1), edge)
        tokens = accepted + 1
        return Forecast(
            seconds=spent / tokens,
            accepted=accepted,
            bytes_up=sent / tokens,
            cloud_seconds=cloud / tokens,
        )
