"""Figures from repeated measurements: medians, spreads, ratios within one run, intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
F64 = npt.NDArray[np.float64]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure and its bootstrap interval; without bounds where one unit is all there is."""

    value: float
    low: float | None
    high: float | None


def bootstrap(
    columns: F64,
    statistic: Callable[[F64], F64],
    *,
    share: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap of a function of column sums (Efron and Tibshirani 1993, chapter 13).

    columns: float64 [units, k], a row for each independent unit (a prompt, not a token: tokens of
    one text hang together). statistic: sums float64 [r, k] -> float64 [r]; NaN where it is not
    defined, which leaves the resample out. The same seed and number of units draw the same
    resamples, so columns of two settings side by side give the interval of their difference.
    None where the figure itself is not defined.
    """
    units = len(columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(columns.sum(axis=0, keepdims=True))[0])
        if not math.isfinite(value):
            return None
        if units < 2:
            return Interval(value=value, low=None, high=None)
        drawn = statistic(_resamples(units, resamples, seed) @ columns)
    drawn = drawn[np.isfinite(drawn)]
    low, high = (float(q) for q in np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2]))
    return Interval(value=value, low=low, high=high)


@lru_cache(maxsize=4)
def _resamples(units: int, resamples: int, seed: int) -> F64:
    """How often each unit is drawn: float64 [resamples, units]."""
    even = np.full(units, 1 / units)
    return np.random.default_rng(seed).multinomial(units, even, size=resamples).astype(np.float64)


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
