"""Choosing a token from logits, losslessly shared between edge and cloud.

Sampling uses the Gumbel-max rule: argmax of logits / T plus Gumbel noise is an exact sample of
softmax(logits / T). The noise comes from a counter-based generator keyed by (seed, position,
token id), so whoever has the same logits chooses the same token, and a draft is right exactly
when the full model would have chosen it (Gumbel 1954; Maddison et al. 2014, "A* Sampling").
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from collm.config import Sampling

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]
Alternatives: TypeAlias = tuple[tuple[int, float], ...]
"""Token ids and log-probabilities, the likeliest first."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_NUCLEUS_GUESS = 512
_GUMBEL_GUESS = 64


class Allows(Protocol):
    """A constraint, as a function of the text."""

    def allowed(self, ids: Sequence[int]) -> Bool:
        """Which tokens may follow `ids`, prompt included: bool [vocabulary], at least one true."""
        ...


class Made(NamedTuple):
    """A token, and what the distribution that it was chosen from says of it."""

    token: int
    logprob: float
    alternatives: Alternatives = ()


def make(
    logits: F32, sampling: Sampling, position: int, seen: Collection[int], allowed: Bool | None
) -> Made:
    """The token for `position` among those allowed, and what is to be told of it.

    Log-probabilities are the model's own: at temperature 1, before the penalty and the constraint.
    """
    token = choose(only(logits, allowed), sampling, position, seen)
    return Made(token, log_probability(logits, token), likeliest(logits, sampling.top_logprobs))


def only(logits: F32, allowed: Bool | None) -> F32:
    """Logits of the allowed tokens, −inf for all others. None: as they are."""
    return logits if allowed is None else np.where(allowed, logits, np.float32(-np.inf))


def likeliest(logits: F32, count: int) -> Alternatives:
    """The `count` likeliest tokens that are possible at all; equally likely ones by token id.

    Log-probabilities as of `log_probability`, rounded to float32: so they travel.
    """
    if not count:
        return ()
    least = np.partition(logits, -count)[-count] if count < len(logits) else logits.min()
    some = np.flatnonzero((logits >= least) & (logits > -np.inf))
    order = some[np.argsort(-logits[some], kind="stable")][:count]
    peak = logits.max()
    told = (logits[order] - peak - np.log(np.exp(logits - peak).sum())).astype(np.float32)
    return tuple(zip(order.tolist(), told.tolist(), strict=True))


def choose(logits: F32, sampling: Sampling, position: int, seen: Collection[int]) -> int:
    """The token for `position`.

    logits: float32 [vocabulary], −inf where a token is impossible; seen: ids of all tokens
    before `position`, used by the repetition penalty only.
    """
    if sampling.repetition_penalty != 1.0 and seen:
        logits = _penalised(logits, sampling.repetition_penalty, seen)
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    ids, scaled = _candidates(logits, sampling)
    return int(ids[_gumbel_argmax(scaled, ids, sampling.seed, position)])


def log_probability(logits: F32, token: int) -> float:
    """log softmax(logits)[token], at temperature 1 and before any penalty."""
    peak = logits.max()
    return float(logits[token] - peak - np.log(np.exp(logits - peak).sum()))


def gumbel_noise(seed: int, position: int, token_ids: I64) -> F64:
    """Standard Gumbel noise, float64, one per token id; a pure function of its arguments."""
    return _gumbel(_random_bits(seed, position, token_ids))


def _random_bits(seed: int, position: int, token_ids: I64) -> U64:
    """53 random bits per token id.

    Each of the three keys goes through SplitMix64's finaliser (Steele, Lea, Flood 2014).
    """
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed) + _GOLDEN)
        key = _mix(key ^ (np.uint64(position) + _GOLDEN))
        return _mix(key ^ (token_ids.astype(np.uint64) * _GOLDEN)) >> np.uint64(11)


def _gumbel(bits: U64) -> F64:
    # A uniform in the open interval (0, 1): both logarithms stay finite. The largest bits + 0.5
    # would round to 1.
    uniform = np.minimum((bits.astype(np.float64) + 0.5) * 2.0**-53, 1 - 2.0**-53)
    return -np.log(-np.log(uniform))


def _mix(x: U64 | np.uint64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return np.asarray(x ^ (x >> np.uint64(31)))


def _penalised(logits: F32, penalty: float, seen: Collection[int]) -> F32:
    logits = logits.copy()
    index = np.fromiter(set(seen), dtype=np.int64)
    values = logits[index]
    logits[index] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def _candidates(logits: F32, sampling: Sampling) -> tuple[I64, F64]:
    """Ids that top-k and top-p leave, ascending, and their logits / temperature."""
    scaled = logits.astype(np.float64) / sampling.temperature
    ids: I64 = np.flatnonzero(scaled > -np.inf)
    if sampling.top_k and sampling.top_k < len(ids):
        # Ties at the k-th place are all kept: which of them a partition returns is not defined.
        ids = _at_least_kth(scaled, ids, sampling.top_k)
    if sampling.top_p < 1.0:
        ids = _nucleus(scaled, ids, sampling.top_p)
    return ids, scaled[ids]


def _nucleus(scaled: F64, ids: I64, top_p: float) -> I64:
    """The likeliest of `ids` whose probabilities just reach `top_p` (Holtzman et al. 2020)."""
    peak = scaled[ids].max()
    enough = top_p * np.exp(scaled[ids] - peak).sum()
    likeliest = _at_least_kth(scaled, ids, min(_NUCLEUS_GUESS, len(ids)))
    for some in (likeliest, ids):  # nearly always the first will do, and sorts far less
        order = np.argsort(-scaled[some], kind="stable")
        probs = np.exp(scaled[some][order] - peak)
        before = np.cumsum(probs) - probs
        if before[-1] + probs[-1] >= enough:
            break
    return np.sort(some[order[before < enough]])


def _at_least_kth(scaled: F64, ids: I64, k: int) -> I64:
    """Those of `ids` not below the k-th largest, ascending."""
    values = scaled[ids]
    kth = float(np.partition(values, -k)[-k])
    return ids[values >= kth]


def _gumbel_argmax(scaled: F64, ids: I64, seed: int, position: int) -> int:
    """Index of max(scaled + noise), with the noise's logarithms taken only where it matters.

    The likeliest few set a mark; any other token needs noise, so random bits, above a bound
    that follows from the mark and the largest logit among the others.
    """
    bits = _random_bits(seed, position, ids)
    some = np.arange(len(ids))
    if len(ids) > 2 * _GUMBEL_GUESS:
        order = np.argpartition(scaled, -_GUMBEL_GUESS)
        likely, others = order[-_GUMBEL_GUESS:], order[:-_GUMBEL_GUESS]
        mark = (scaled[likely] + _gumbel(bits[likely])).max()
        needed = mark - scaled[others].max() - 1e-6  # the margin covers rounding
        bound = np.exp(-np.exp(-needed))
        lucky = others[bits[others] >= np.uint64(bound * 2.0**53 * (1 - 1e-9))]
        some = np.sort(np.concatenate([likely, lucky]))
    return int(some[int((scaled[some] + _gumbel(bits[some])).argmax())])
