"""Sampling: an exact sample of the model, and the same token for whoever has the same logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import F32

from collm.config import Sampling
from collm.errors import PromptError
from collm.policy.sampling import choose, gumbel_noise, log_probability

VOCABULARY = 400


def random_logits(seed: int, size: int = VOCABULARY, scale: float = 3.0) -> F32:
    return (np.random.default_rng(seed).normal(0, scale, size)).astype(np.float32)


def softmax(scaled: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scaled.astype(np.float64) - scaled.max())
    return exponentials / exponentials.sum()


# -------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("seed", range(10))
def test_greedy_takes_the_likeliest_whatever_else_is_set(seed: int) -> None:
    logits = random_logits(seed)
    for sampling in (Sampling(), Sampling(top_k=3, top_p=0.5, seed=seed)):
        assert choose(logits, sampling, seed, ()) == logits.argmax()
    assert choose(logits, Sampling(temperature=0.7, top_k=1, seed=seed), 0, ()) == logits.argmax()
    assert choose(logits, Sampling(temperature=0.7, top_p=1e-6), 0, ()) == logits.argmax()
    assert choose(logits, Sampling(temperature=1e-3, seed=seed), 0, ()) == logits.argmax()


def test_ties_go_to_the_first() -> None:
    assert choose(np.array([1, 5, 5, 0], dtype=np.float32), Sampling(), 0, ()) == 1


# ---------------------------------------------------------------------------- exactness


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    """Chi-square with 7 degrees of freedom: over 42 by chance for one seed in a million."""
    logits = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, 0.25, 1.25], dtype=np.float32)
    sampling = Sampling(temperature=temperature, seed=12345)
    drawn = [choose(logits, sampling, position, ()) for position in range(4000)]
    counts = np.bincount(drawn, minlength=8)
    assert chi_square(counts, softmax(logits / temperature)) < 42, counts


def test_a_large_vocabulary_is_sampled_exactly_too() -> None:
    """Groups of tokens, so that every count is large. 7 degrees of freedom, as above."""
    logits = random_logits(1, 5000, 1.0)
    probabilities = softmax(logits).reshape(8, -1).sum(-1)
    drawn = [choose(logits, Sampling(temperature=1.0, seed=7), p, ()) // 625 for p in range(2000)]
    assert chi_square(np.bincount(drawn, minlength=8), probabilities) < 42


def test_neighbouring_positions_and_seeds_are_independent() -> None:
    """Chi-square of pairs, 15 degrees of freedom: over 60 by chance for one in a million."""
    logits = np.array([0.5, 0.0, -0.2, 0.3], dtype=np.float32)
    pairs = np.outer(softmax(logits), softmax(logits)).reshape(-1)

    def draw(seed: int, position: int) -> int:
        return choose(logits, Sampling(temperature=1.0, seed=seed), position, ())

    for step in (1, 256):
        joint = [4 * draw(3, p) + draw(3, p + step) for p in range(0, 3000, 2)]
        assert chi_square(np.bincount(joint, minlength=16), pairs) < 60, f"positions {step} apart"
        joint = [4 * draw(s, 5) + draw(s + step, 5) for s in range(0, 3000, 2)]
        assert chi_square(np.bincount(joint, minlength=16), pairs) < 60, f"seeds {step} apart"


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 5.0, 100.0])
def test_the_shortcut_chooses_what_all_the_noise_would(scale: float) -> None:
    ids = np.arange(20_000)
    for seed in range(15):
        logits = random_logits(seed, len(ids), scale)
        sampling = Sampling(temperature=0.8, seed=seed)
        noise = gumbel_noise(seed, 11, ids)
        expected = (logits.astype(np.float64) / 0.8 + noise).argmax()
        assert choose(logits, sampling, 11, ()) == expected, f"seed {seed}"


def test_noise_depends_on_nothing_but_seed_position_and_token() -> None:
    ids = np.arange(1000)
    noise = gumbel_noise(5, 9, ids)
    order = np.random.default_rng(0).permutation(1000)
    assert (gumbel_noise(5, 9, ids[order]) == noise[order]).all()
    assert (gumbel_noise(5, 9, ids[17:18]) == noise[17]).all()
    assert (gumbel_noise(5, 10, ids) != noise).all()
    assert (gumbel_noise(6, 9, ids) != noise).all()
    assert np.isfinite(gumbel_noise(2**64 - 1, 2**24, np.array([0, 2**24]))).all()


def test_noise_is_finite_for_the_smallest_and_largest_random_bits() -> None:
    from collm.policy.sampling import _gumbel

    noise = _gumbel(np.array([0, 1, 2**52, 2**53 - 2, 2**53 - 1], dtype=np.uint64))
    assert np.isfinite(noise).all()
    assert (np.diff(noise) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**24), keep=st.integers(1, 399))
def test_fewer_candidates_choose_the_same_token_if_they_have_it(
    seed: int, position: int, keep: int
) -> None:
    """What makes a shortlist's draft right exactly when the full model would choose it."""
    logits = random_logits(seed % 1000)
    sampling = Sampling(temperature=1.0, seed=seed)
    chosen = choose(logits, sampling, position, ())
    short = np.full_like(logits, -np.inf)
    kept = np.random.default_rng(keep).choice(VOCABULARY, keep, replace=False)
    short[kept] = logits[kept]
    short[chosen] = logits[chosen]
    assert choose(short, sampling, position, ()) == chosen
    assert choose(logits, sampling, position, ()) == chosen


# --------------------------------------------------------------------------- candidates


def allowed(logits: F32, **settings_: Any) -> set[int]:
    """The tokens that Transformers' warpers leave."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.from_numpy(logits.astype(np.float64))[None]
    scores = TemperatureLogitsWarper(settings_["temperature"])(None, scores)
    if settings_.get("top_k"):
        scores = TopKLogitsWarper(settings_["top_k"])(None, scores)
    if settings_.get("top_p", 1.0) < 1.0:
        scores = TopPLogitsWarper(settings_["top_p"])(None, scores)
    return set(np.flatnonzero(np.isfinite(scores[0].numpy())).tolist())


@pytest.mark.parametrize(
    "settings_",
    [
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 3.0, "top_p": 0.4},
        {"temperature": 2.0, "top_k": 12, "top_p": 0.7},
        {"temperature": 0.5, "top_p": 0.95},
        {"temperature": 1.0, "top_k": 10_000},
    ],
    ids=str,
)
def test_top_k_and_top_p_leave_what_transformers_leaves(settings_: dict[str, Any]) -> None:
    for seed in range(4):
        logits = random_logits(seed)
        candidates = allowed(logits, **settings_)
        sampling = Sampling(seed=seed, **settings_)
        drawn = [choose(logits, sampling, position, ()) for position in range(300)]
        assert set(drawn) <= candidates, f"seed {seed}"
        if len(candidates) <= 6:
            assert set(drawn) == candidates, f"seed {seed}"


def test_the_nucleus_of_a_flat_large_vocabulary_is_not_cut_short() -> None:
    logits = np.zeros(1500, dtype=np.float32)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    drawn = {choose(logits, sampling, position, ()) for position in range(1500)}
    assert drawn <= set(range(1350))
    # 1,500 draws from 1,350 equals leave 900 ± 14 distinct ones; the first guess has 512.
    assert len(drawn) > 800


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"temperature": 5.0},
        {"temperature": 5.0, "top_k": 50},
        {"temperature": 9, "top_p": 0.99},
    ],
    ids=str,
)
def test_impossible_tokens_are_never_chosen(settings_: dict[str, Any]) -> None:
    logits = np.full(VOCABULARY, -np.inf, dtype=np.float32)
    possible = {3, 77, 399}
    logits[sorted(possible)] = [0.1, -20.0, 0.3]
    sampling = Sampling(repetition_penalty=1.3, **settings_)
    for position in range(500):
        assert choose(logits, sampling, position, (3, 5)) in possible


# ------------------------------------------------------------------------------ penalty


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 10.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    for seed in range(5):
        logits = random_logits(seed)
        seen = np.random.default_rng(seed).integers(0, VOCABULARY, 200).tolist()
        seen.append(int(logits.argmax()))
        process = RepetitionPenaltyLogitsProcessor(penalty)
        scores = process(torch.tensor([seen]), torch.from_numpy(logits.copy())[None])[0].numpy()
        before = logits.copy()
        greedy = Sampling(repetition_penalty=penalty)
        assert choose(logits, greedy, 0, seen) == scores.argmax()
        warm = Sampling(repetition_penalty=penalty, temperature=1.5, seed=seed)
        plain = Sampling(temperature=1.5, seed=seed)
        for position in range(50):
            expected = choose(scores, plain, position, ())
            assert choose(logits, warm, position, set(seen)) == expected
        assert (logits == before).all(), "the caller's logits were changed"


def test_log_probability_is_log_softmax() -> None:
    logits = random_logits(0)
    logits[5] = -np.inf
    logits[6] = 80.0
    expected = np.log(softmax(logits)[[0, 6, 9]])
    assert [log_probability(logits, t) for t in (0, 6, 9)] == pytest.approx(expected, abs=1e-4)
    assert log_probability(logits, 5) == -math.inf


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**64},
        {"repetition_penalty": 0.0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(PromptError, match=name.replace("_", "[ -]")):
        Sampling(**wrong)
