"""What a family of criteria does over its knob, and whether one family beats another.

Per text and knob it is counted how often the cloud was asked, how many tokens are not the full
model's, and what those cost. A curve joins the knob's points; between two of them it is a straight
line, which tossing a coin between the two settings reaches. Comparisons are paired: every family is
read off the same texts, at the same agreement or the same cloud work, and intervals resample whole
texts (percentile bootstrap, 95 %).

Not covered: the effect of a wrong token on the readings after it (it is in the recorded drops).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collm.policy.observation import Criterion
from collm.tune.policy_families import Family
from collm.tune.trace_file import Traces

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

KNOBS = 200
DRAWS = 1000
_SEED = 20_250_101


@dataclass(frozen=True, kw_only=True)
class Counts:
    """One family over its knob, from asking always to never: arrays [T, K], sums per text."""

    family: Family
    knobs: F64
    rows: F64
    """[T]"""
    requests: F64
    wrong: F64
    dropped: F64
    """Sum of drops, in nats."""
    edge_seconds: F64


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Means per token over the knob, [K]."""

    requests: F64
    agreement: F64
    drop: F64
    edge_seconds: F64


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def sweep(traces: Traces, family: Family, knobs: int = KNOBS) -> Counts:
    """Count the family's decisions at knobs spread over its scores."""
    scores = family.scores
    finite = scores[np.isfinite(scores)]
    # Cloud requests are decided by the best score of a row: that is where to look closely.
    best = scores.max(axis=1)
    best = best[np.isfinite(best)]
    spread = np.concatenate([best, [finite.min()]]) if len(finite) else np.zeros(1)
    levels = np.unique(np.quantile(spread, np.linspace(0, 1, knobs - 1)))
    levels = np.concatenate([[-np.inf], levels, [np.inf]])[::-1]
    where = [traces.cuts.index(cut) for cut in family.cuts]
    wrong_RE = ~traces.right[:, where]
    drops_RE = traces.drops[:, where].astype(np.float64)
    seconds_E = edge_seconds(traces, family.cuts)
    made: list[list[F64]] = [[], [], [], []]
    for level in levels:
        taken_RE = (scores >= level) & np.isfinite(scores)
        took_R = taken_RE.any(axis=1)
        at_R = np.where(took_R, taken_RE.argmax(axis=1), len(where) - 1)[:, None]
        wrong_R = np.take_along_axis(wrong_RE, at_R, 1)[:, 0] & took_R
        drop_R = np.take_along_axis(drops_RE, at_R, 1)[:, 0] * took_R
        for sums, values in zip(
            made, (~took_R, wrong_R, drop_R, seconds_E[at_R[:, 0]]), strict=True
        ):
            sums.append(np.add.reduceat(values.astype(np.float64), traces.starts[:-1]))
    requests, wrong, dropped, seconds = (np.stack(sums, axis=1) for sums in made)
    return Counts(
        family=family,
        knobs=levels,
        rows=np.diff(traces.starts).astype(np.float64),
        requests=requests,
        wrong=wrong,
        dropped=dropped,
        edge_seconds=seconds,
    )


def edge_seconds(traces: Traces, cuts: tuple[int, ...]) -> F64:
    """Until each of `cuts` has been asked, where only these are: [E]."""
    costs = traces.with_cuts(cuts).costs
    return np.array([costs.edge_seconds(i + 1) for i in range(len(cuts))])


def curve(counts: Counts, times: F64 | None = None) -> Curve:
    """Means over all texts. times: how often each text counts, [T]."""
    times = np.ones(len(counts.rows)) if times is None else times
    rows = times @ counts.rows
    return Curve(
        requests=times @ counts.requests / rows,
        agreement=1 - times @ counts.wrong / rows,
        drop=times @ counts.dropped / rows,
        edge_seconds=times @ counts.edge_seconds / rows,
    )


def requests_at(made: Curve, agreement: float) -> float:
    """Fewest cloud requests per token with at least this agreement; 1.0 is always possible."""
    order = np.argsort(made.requests, kind="stable")
    reached = np.maximum.accumulate(made.agreement[order])
    rising = np.concatenate([[True], np.diff(reached) > 0])
    return float(np.interp(agreement, reached[rising], made.requests[order][rising]))


def agreement_at(made: Curve, requests: float) -> float:
    """Best agreement with at most so many cloud requests per token; −inf where it asks more."""
    order = np.argsort(made.requests, kind="stable")
    reached = np.maximum.accumulate(made.agreement[order])
    return float(np.interp(requests, made.requests[order], reached, left=-np.inf))


def drop_at(made: Curve, requests: float) -> float:
    """Least nats per token lost with so many requests per token; inf where it asks more."""
    order = np.argsort(made.requests, kind="stable")
    least = np.minimum.accumulate(made.drop[order])
    return float(np.interp(requests, made.requests[order], least, left=np.inf))


READ = {"requests": requests_at, "agreement": agreement_at, "drop": drop_at}
"""What is read off a curve, at which agreement or cloud work."""


def difference(ours: Counts, theirs: Counts, what: str, at: float, draws: int = DRAWS) -> Interval:
    """READ[what] of `ours` minus that of `theirs`, over the same resampled texts."""
    read, random = READ[what], np.random.default_rng(_SEED)
    texts = len(ours.rows)
    value = read(curve(ours), at) - read(curve(theirs), at)
    found = np.empty(draws)
    for i in range(draws):
        times = np.bincount(random.integers(texts, size=texts), minlength=texts).astype(np.float64)
        found[i] = read(curve(ours, times), at) - read(curve(theirs, times), at)
    if not np.isfinite(found).all():
        return Interval(value=value, low=-np.inf, high=np.inf)
    low, high = np.percentile(found, (2.5, 97.5))
    return Interval(value=value, low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Point:
    """A criterion without a sweep: means per token."""

    name: str
    requests: float
    agreement: float
    drop: float
    edge_seconds: float


def point_of(traces: Traces, criterion: Criterion) -> Point:
    """Decide every row as the token loop does; a criterion that learns does not learn here."""
    seconds = edge_seconds(traces, traces.cuts)
    asked = wrong = 0
    dropped = spent = 0.0
    for row in range(len(traces)):
        took = decide_row(traces, criterion, row)
        asked += took is None
        exit_index = len(traces.cuts) - 1 if took is None else took
        spent += float(seconds[exit_index])
        if took is not None:
            wrong += int(traces.tokens[row, took] != traces.model_tokens[row])
            dropped += float(traces.drops[row, took])
    rows = len(traces)
    return Point(
        name=criterion.name,
        requests=asked / rows,
        agreement=1 - wrong / rows,
        drop=dropped / rows,
        edge_seconds=spent / rows,
    )


def decide_row(traces: Traces, criterion: Criterion, row: int) -> int | None:
    """Index of the exit whose reading is taken, exits asked in turn; None: the cloud's."""
    for asked in range(1, len(traces.cuts) + 1):
        decision = criterion.decide(traces.observation(row, asked))
        if decision is not None:
            return traces.cuts.index(decision.reading.cut)
    return None


def compare_with_criterion(traces: Traces, family: Family, rows: int = 60, seed: int = 0) -> int:
    """Decide sampled rows with the family's own criterion; returns how many were compared.

    Raises AssertionError where the sweep decides otherwise: a bug, never the user's doing. Scores
    within rounding of the knob are left out.
    """
    part = traces.with_cuts(family.cuts)
    random = np.random.default_rng(seed)
    chosen = random.choice(len(part), min(rows, len(part)), replace=False)
    finite = family.scores[np.isfinite(family.scores)]
    compared = 0
    for knob in np.quantile(finite, (0.3, 0.6, 0.9)) if len(finite) else ():
        criterion = family.criterion(float(knob))
        for row in chosen.tolist():
            scores = family.scores[row]
            if (np.abs(scores - knob) < 1e-4).any():
                continue
            taken = np.flatnonzero(scores >= knob)
            expected = int(taken[0]) if len(taken) else None
            found = decide_row(part, criterion, row)
            assert found == expected, f"{family.name}, knob {knob}, row {row}"
            compared += 1
    return compared
