"""What a cloud takes for rows: measured once when somebody asks, then kept up by its own work.

An edge that plans wants to know what a question will cost. The cloud runs a few rows through its
blocks when the first one asks, in under a second and in parts between which sessions have their
turns; afterwards every verdict tells how much slower (or faster) than that it goes at the moment:
with others at work, or on a warmer machine.

Not covered: graphics processors, whose time depends on what runs beside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np

from collm.policy.profiles import RowCost
from collm.runtime.stage import Stage
from collm.wire.messages import RowSeconds

_ROWS = (2, 8, 32)
_HEAD_ROWS = (2, 8)
_TIMES = 3
_MOST_SECONDS = 0.8
_GAIN = 0.125
"""As RFC 6298 smooths round trips."""
_LEAST_PACE, _MOST_PACE = 0.2, 20.0


class CloudCosts:
    """Of one stage. Safe to use from several threads."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._lock = threading.Lock()
        self._blocks: list[RowCost] = []
        self._head: RowCost | None = None
        self.pace = 1.0
        """How many times as long as measured verdicts have taken lately."""

    @property
    def is_known(self) -> bool:
        """Whether anything was measured."""
        return self._head is not None

    def measure(self) -> Iterator[None]:
        """Measure, unless that was done or is being done; yields where others may have a turn."""
        if self.is_known or not self._stage.is_last or not self._lock.acquire(blocking=False):
            return
        try:
            yield from self._measure()
        finally:
            self._lock.release()

    def took(self, cut: int, rows: int, heads: int, seconds: float) -> None:
        """A verdict on so many rows from `cut` on took so long."""
        known = self._from(cut)
        if known is None or self._head is None or rows < 1:
            return
        expected = known.at(max(2, rows)) + self._head.at(max(2, heads))
        if expected > 0:
            pace = min(max(seconds / expected, _LEAST_PACE), _MOST_PACE)
            self.pace += _GAIN * (pace - self.pace)

    def told(self, most: int) -> tuple[RowSeconds, ...]:
        """The figures as they travel, at the pace of the moment; none before they are known."""
        if self._head is None:
            return ()
        costs = {cut: self._from(cut) for cut in self._stage.bounds[:-1]}
        named = [(cut, cost) for cut, cost in costs.items() if cost is not None]
        named.append((self._stage.layers.stop, self._head))
        made = [
            RowSeconds(cut=cut, rows=rows, seconds=seconds * self.pace)
            for cut, cost in named
            for rows, seconds in zip(cost.rows, cost.seconds, strict=True)
        ]
        return tuple(made[:most]) if len(made) <= most else ()

    def _from(self, cut: int) -> RowCost | None:
        """From `cut` through the last layer."""
        if not self.is_known or cut not in self._stage.bounds[:-1]:
            return None
        blocks = self._blocks[self._stage.bounds.index(cut) :]
        sums = np.sum([block.seconds for block in blocks], axis=0)
        return RowCost(rows=_ROWS, seconds=tuple(sums.tolist()))

    def _measure(self) -> Iterator[None]:
        """Block by block, as rows run through them; a slow model is tried less often."""
        stage, until = self._stage, time.perf_counter() + _MOST_SECONDS
        width = stage.architecture.hidden_size
        rows = {n: np.full((n, width), 0.01, dtype=np.float32) for n in _ROWS}
        caches = [chain.new_cache() for chain in stage.chains]
        times: list[dict[int, list[float]]] = [{n: [] for n in _ROWS} for _ in caches]
        heads: dict[int, list[float]] = {n: [] for n in _HEAD_ROWS}
        for number in range(_TIMES):
            for chain, cache, found in zip(stage.chains, caches, times, strict=True):
                for count in _ROWS:
                    started = time.perf_counter()
                    chain.run(rows[count], cache, 0)
                    found[count].append(time.perf_counter() - started)
                yield
            for count in _HEAD_ROWS:
                started = time.perf_counter()
                stage.logits(rows[count])
                heads[count].append(time.perf_counter() - started)
            yield
            if time.perf_counter() > until and number:
                break
        self._blocks = [_cost(found) for found in times]
        self._head = _cost(heads)


def _cost(found: dict[int, list[float]]) -> RowCost:
    """The best times: what others at work take is for the pace to tell."""
    grown = np.maximum.accumulate([min(times) for times in found.values()]).tolist()
    return RowCost(rows=tuple(found), seconds=tuple(grown))
