"""Figures from repeated measurements: medians, spreads and ratios within one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One contestant's rounds, in the unit of what was measured."""

    median: float
    p25: float
    p75: float
    variation: float
    """Coefficient of variation: sample standard deviation / mean; 0 for a single round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as fast as a baseline: above 1 is faster."""

    of_medians: float
    p25: float
    p75: float
    """Quartiles of the ratios within each round: what drifts slowly cancels there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many of so many."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """The share, 0 to 1; nan of nothing."""
        return self.hits / self.total if self.total else math.nan

    @property
    def margin(self) -> float:
        """Half the 95 % interval of a proportion (Wilson 1927), as if tokens were independent."""
        if not self.total:
            return math.nan
        z, n, p = 1.96, self.total, self.value
        return z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))


def summary(values: Sequence[float]) -> Summary:
    """Median, quartiles and variation of at least one value."""
    array = np.asarray(values, dtype=np.float64)
    spread = float(array.std(ddof=1) / array.mean()) if len(array) > 1 else 0.0
    p25, median, p75 = (float(q) for q in np.percentile(array, (25, 50, 75)))
    return Summary(median=median, p25=p25, p75=p75, variation=spread)


def speed_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The speed of `ours` in units of `theirs`; both are times per token, round by round."""
    mine, base = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    p25, p75 = (float(q) for q in np.percentile(base / mine, (25, 75)))
    return Ratio(of_medians=float(np.median(base) / np.median(mine)), p25=p25, p75=p75)


def agreement(guesses: Sequence[int], truth: Sequence[int]) -> Share:
    """In how many places two equally long sequences of token ids are the same."""
    hits = sum(a == b for a, b in zip(guesses, truth, strict=True))
    return Share(hits=hits, total=len(truth))


def rotated(items: Sequence[T], by: int) -> list[T]:
    """`items` in the same cyclic order, beginning at another one every round."""
    start = by % len(items) if items else 0
    return [*items[start:], *items[:start]]
