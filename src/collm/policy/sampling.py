"""Choosing a token from logits, losslessly shared between edge and cloud.

Sampling uses the Gumbel-max rule: argmax of logits / T plus Gumbel noise is an exact sample of
softmax(logits / T). The noise comes from a counter-based generator keyed by (seed, position,
token id), so whoever has the same logits chooses the same token, and a draft is right exactly
when the full model would have chosen it (Gumbel 1954; Maddison et al. 2014, "A* Sampling").
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from collm.config import Sampling

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


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
    noise = gumbel_noise(sampling.seed, position, ids)
    return int(ids[int((scaled + noise).argmax())])


def log_probability(logits: F32, token: int) -> float:
    """log softmax(logits)[token], at temperature 1 and before any penalty."""
    peak = logits.max()
    return float(logits[token] - peak - np.log(np.exp(logits - peak).sum()))


def gumbel_noise(seed: int, position: int, token_ids: I64) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise, float64, one per token id; a pure function of its arguments.

    Each of the three keys goes through SplitMix64's finaliser (Steele, Lea, Flood 2014).
    """
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed) + _GOLDEN)
        key = _mix(key ^ (np.uint64(position) + _GOLDEN))
        bits = _mix(key ^ (token_ids.astype(np.uint64) * _GOLDEN))
    # 53 random bits in the open interval (0, 1): the logarithms below stay finite.
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def _mix(x: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return np.asarray(x ^ (x >> np.uint64(31)))


def _penalised(logits: F32, penalty: float, seen: Collection[int]) -> F32:
    logits = logits.copy()
    index = np.fromiter(set(seen), dtype=np.int64)
    values = logits[index]
    logits[index] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def _candidates(logits: F32, sampling: Sampling) -> tuple[I64, npt.NDArray[np.float64]]:
    """Ids that top-k and top-p leave, and their logits / temperature."""
    scaled = logits.astype(np.float64) / sampling.temperature
    ids: I64 = np.arange(len(logits))
    if sampling.top_k and sampling.top_k < len(ids):
        # Ties at the k-th place are all kept: which of them a partition returns is not defined.
        kth = np.partition(scaled, -sampling.top_k)[-sampling.top_k]
        ids = np.flatnonzero(scaled >= kth)
    if sampling.top_p < 1.0:
        kept = scaled[ids]
        order = np.argsort(-kept, kind="stable")
        probs = np.exp(kept[order] - kept[order[0]])
        before = np.cumsum(probs) - probs
        ids = np.sort(ids[order[before < sampling.top_p * probs.sum()]])
    return ids, scaled[ids]
