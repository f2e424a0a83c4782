"""How far an exit's word can be taken: calibration, thresholds with a promise, drafts a round.

Everything here is counted from two arrays per text: `confidence`, float32 [rows], what the exit
says of its own token, and `right`, bool [rows], whether the full model chooses the same one. A
row is a position whose next token is predicted.

Not covered: fitting of temperatures (done where exits are trained), sampled drafts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collm.errors import UsageError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_BINS = 15
_ALWAYS = 1e-6
"""Below every confidence: the likeliest of V tokens has at least 1 / V."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """An exit on one text: what it is sure of and where it is right, both [rows]."""

    confidence: F32
    right: Bools

    def __len__(self) -> int:
        return len(self.confidence)

    @classmethod
    def joined(cls, texts: Sequence[Rows]) -> Rows:
        """The rows of several texts, end to end."""
        return cls(
            confidence=np.concatenate([text.confidence for text in texts]),
            right=np.concatenate([text.right for text in texts]),
        )


# ----------------------------------------------------------------------------- calibration


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Rows whose confidence lies in (low, high]: their mean confidence and share right."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


def reliability(rows: Rows, bins: int = _BINS) -> tuple[ReliabilityBin, ...]:
    """Bins of equal width over (0, 1], empty ones left out (Guo et al., arXiv 1706.04599)."""
    place = np.clip(np.ceil(rows.confidence.astype(np.float64) * bins) - 1, 0, bins - 1)
    index = place.astype(np.int64)
    count = np.bincount(index, minlength=bins)
    confidence = np.bincount(index, rows.confidence, minlength=bins)
    right = np.bincount(index, rows.right, minlength=bins)
    return tuple(
        ReliabilityBin(
            low=i / bins,
            high=(i + 1) / bins,
            rows=int(count[i]),
            confidence=float(confidence[i] / count[i]),
            accuracy=float(right[i] / count[i]),
        )
        for i in np.flatnonzero(count).tolist()
    )


def expected_calibration_error(rows: Rows, bins: int = _BINS) -> float:
    """Mean distance between confidence and share right over the bins, weighted by their rows.

    Guo et al., arXiv 1706.04599, equation 3.
    """
    found = reliability(rows, bins)
    return sum(b.rows * abs(b.confidence - b.accuracy) for b in found) / max(1, len(rows))


# ------------------------------------------------------------------ coverage and precision


@dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """Share of rows that reach `threshold`, and how many of those are right (None: no such)."""

    threshold: float
    coverage: float
    precision: float | None


def at_threshold(rows: Rows, threshold: float) -> AtThreshold:
    """Coverage and precision of the rows with confidence >= threshold."""
    sure = rows.confidence >= threshold
    taken = int(sure.sum())
    return AtThreshold(
        threshold=threshold,
        coverage=taken / max(1, len(rows)),
        precision=float(rows.right[sure].mean()) if taken else None,
    )


@dataclass(frozen=True, kw_only=True)
class RiskCoverage:
    """For every confidence that occurs, as threshold, from the highest down.

    `coverage`: share of rows that reach it; `risk`: share of those that are wrong.
    """

    threshold: F32
    coverage: F64
    risk: F64


def risk_coverage(rows: Rows) -> RiskCoverage:
    """The risk-coverage curve (El-Yaniv and Wiener 2010; Geifman and El-Yaniv 1705.08500)."""
    order = np.argsort(-rows.confidence, kind="stable")
    confidence = rows.confidence[order]
    # Equal confidences are taken or left together: only the last of each counts as a point.
    ends = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True)[: len(order)])
    taken = ends + 1
    wrong = np.cumsum(~rows.right[order])[ends]
    return RiskCoverage(
        threshold=confidence[ends], coverage=taken / max(1, len(rows)), risk=wrong / taken
    )


def widest_at_precision(rows: Rows, precision: float) -> AtThreshold | None:
    """The threshold with the most coverage among those at least so precise; None: there is none.

    Chosen on the rows themselves, so a little optimistic where rows are few.
    """
    curve = risk_coverage(rows)
    good = np.flatnonzero(1 - curve.risk >= precision - 1e-12)
    if not len(good):
        return None
    return at_threshold(rows, float(curve.threshold[good[-1]]))


def agreement_interval(
    texts: Sequence[Rows], *, share: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the share of right rows.

    Whole texts are resampled, since rows of one text hang together (Efron and Tibshirani 1993,
    chapter 13).
    """
    right = np.array([text.right.sum() for text in texts], dtype=np.float64)
    rows = np.array([len(text) for text in texts], dtype=np.float64)
    random = np.random.default_rng(seed)
    even = np.full(len(texts), 1 / len(texts))
    times = random.multinomial(len(texts), even, size=resamples).astype(np.float64)
    agreements = (times @ right) / (times @ rows)
    low, high = np.quantile(agreements, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------- thresholds with a promise


@dataclass(frozen=True, kw_only=True)
class ConformalThreshold:
    """An exit's threshold; None where nothing but silence keeps the promise.

    `risk` is the mean loss over the `examples` it was chosen on, `alpha` the bound it was
    chosen for.
    """

    threshold: float | None
    alpha: float
    examples: int
    risk: float


def examples_needed(alpha: float) -> int:
    """The fewest texts from which a risk of at most `alpha` can be promised."""
    # The small number keeps 1 / 0.1 and the like from being rounded up a whole text.
    return math.ceil(1 / alpha - 1e-6) - 1


def mean_risk(texts: Sequence[Rows], threshold: float | None) -> float:
    """Mean over texts of the share of rows that the exit answers, and answers wrongly.

    1 less this is the agreement of the text: rows the exit leaves are the full model's own.
    """
    if threshold is None:
        return 0.0
    losses = [((t.confidence >= threshold) & ~t.right).sum() / len(t) for t in texts]
    return float(np.mean(losses))


def conformal_threshold(
    texts: Sequence[Rows], alpha: float, *, together: int = 1
) -> ConformalThreshold:
    """The least threshold at which a fresh text's expected share of wrong answers is <= alpha.

    Conformal risk control (Angelopoulos et al., arXiv 2208.02814): the loss of text i at
    threshold t is the share of its rows with confidence >= t that are wrong. It is bounded by
    B = 1 and does not grow with t, so the least t with n/(n+1) · mean loss + B/(n+1) <= alpha
    keeps the promise for a text exchangeable with the n given ones, whatever the exit is like.
    Texts are the unit, not rows: rows of one text depend on each other.

    together: so many exits answer in one cascade; each gets alpha / together (union bound).
    Raises UsageError where there are fewer texts than ceil(together / alpha) − 1: with fewer no
    threshold can be promised anything.
    """
    alpha = alpha / together
    n = len(texts)
    if n < (needed := examples_needed(alpha)):
        raise UsageError(
            f"{n} examples to calibrate on, but at most {alpha:.3g} wrong can be promised from "
            f"{needed} examples on; give more data or ask for less agreement"
        )
    wrong = np.concatenate([t.confidence[~t.right] for t in texts])
    weight = np.concatenate([np.full(int((~t.right).sum()), 1 / (n * len(t))) for t in texts])
    order = np.argsort(-wrong, kind="stable")
    wrong, risk = wrong[order], np.cumsum(weight[order])
    budget = max(0.0, (alpha * (n + 1) - 1) / n)
    # The risk at threshold wrong[i] is that of the last row with this confidence.
    ends = np.flatnonzero(np.append(wrong[1:] != wrong[:-1], True)[: len(wrong)])
    too_much = ends[risk[ends] > budget]
    if not len(too_much):
        threshold: float | None = _ALWAYS
    else:
        # Just above the first confidence that would cost too much.
        threshold = float(np.nextafter(wrong[too_much[0]], np.float32(2)))
        threshold = None if threshold > 1 else threshold
    return ConformalThreshold(
        threshold=threshold, alpha=alpha, examples=n, risk=mean_risk(texts, threshold)
    )


# --------------------------------------------------------------------------------- drafting


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """What verified decoding would have done over given texts, at one setting."""

    threshold: float
    length: int
    """Most drafts a round."""
    tokens: int
    rounds: int
    drafted: int
    """A lower bound: see `simulate_drafting`."""
    silent_rounds: int
    """Rounds without a draft."""

    @property
    def tokens_per_round(self) -> float:
        """Tokens that a verify round yields; 1 without exits."""
        return self.tokens / max(1, self.rounds)

    @property
    def drafted_per_token(self) -> float:
        """Drafts made for each token emitted."""
        return self.drafted / max(1, self.tokens)

    @property
    def silent_share(self) -> float:
        """Share of rounds in which the exit was not sure even once."""
        return self.silent_rounds / max(1, self.rounds)


def simulate_drafting(texts: Sequence[Rows], threshold: float, length: int) -> Drafting:
    """Verified decoding of texts that the full model wrote greedily, with one exit drafting.

    A round drafts while confidence >= threshold, up to `length` tokens; the verdict takes the
    drafts before the first wrong one and adds the full model's own token. The text's last token
    is never drafted: the full model's own follows every verdict. Accepted drafts are the text
    itself, so rounds and tokens are exact. Drafts after a wrong one would continue a text that is
    not there: they are not counted, which makes `drafted` a lower bound (rounds with a wrong draft
    count up to it).
    A text written with other weights or kernels differs in a few tokens from the model's own;
    to that extent rounds and tokens are estimates.
    """
    if not texts:
        return Drafting(
            threshold=threshold, length=length, tokens=0, rounds=0, drafted=0, silent_rounds=0
        )
    rows = Rows.joined(texts)
    sure = rows.confidence >= threshold
    sure[np.cumsum([len(text) for text in texts]) - 1] = False
    # Rows that are not both sure and right end a round wherever it began, so the runs of good
    # rows between them can be counted by themselves: a full round takes `length` drafts and
    # gets one more token, which is a good row not drafted.
    stops = np.flatnonzero(~(sure & rows.right))
    run = np.diff(stops, prepend=-1) - 1
    full, rest = run // (length + 1), run % (length + 1)
    wrong_draft = sure[stops] & (rest < length)
    return Drafting(
        threshold=threshold,
        length=length,
        tokens=len(rows),
        rounds=int(full.sum()) + len(stops),
        drafted=int((full * length + rest + wrong_draft).sum()),
        silent_rounds=int(((rest == 0) & ~wrong_draft).sum()),
    )
