"""What is said of exits from confidences: calibration, promised thresholds, drafts a round."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from collm.errors import UsageError
from collm.policy.calibration import (
    Rows,
    agreement_interval,
    at_threshold,
    conformal_threshold,
    examples_needed,
    expected_calibration_error,
    mean_risk,
    reliability,
    risk_coverage,
    simulate_drafting,
    widest_at_precision,
)


@st.composite
def texts(draw: st.DrawFn, most: int = 4) -> list[Rows]:
    """A few short texts; confidences on a coarse grid, so that many are equal."""
    found = []
    for length in draw(st.lists(st.integers(1, 30), min_size=1, max_size=most)):
        grid = draw(arrays.arrays(np.int32, length, elements=st.integers(1, 10)))
        right = draw(arrays.arrays(np.bool_, length))
        found.append(Rows(confidence=(grid / 10).astype(np.float32), right=right))
    return found


def random_texts(seed: int, count: int, *, skill: float = 4.0) -> list[Rows]:
    """Texts of differing difficulty, on which confidence is the true chance of being right."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        hard = random.normal(0, 1)
        chance = 1 / (1 + np.exp(-(random.normal(0, skill, random.integers(5, 40)) + hard)))
        made.append(
            Rows(confidence=chance.astype(np.float32), right=random.random(len(chance)) < chance)
        )
    return made


# ------------------------------------------------------------------------------ calibration


def test_an_exit_that_knows_its_chances_has_a_small_calibration_error() -> None:
    rows = Rows.joined(random_texts(0, 2000))
    assert expected_calibration_error(rows) < 0.01


def test_an_exit_that_is_always_sure_errs_by_what_it_gets_wrong() -> None:
    rows = Rows(confidence=np.ones(10, np.float32), right=np.arange(10) < 7)
    assert expected_calibration_error(rows) == pytest.approx(0.3)
    (only,) = reliability(rows)
    assert (only.low, only.high, only.rows) == (14 / 15, 1.0, 10)


def test_bins_are_open_below_and_closed_above() -> None:
    rows = Rows(confidence=np.array([0.25, 0.26, 0.5], np.float32), right=np.ones(3, bool))
    assert [(b.low, b.high, b.rows) for b in reliability(rows, bins=4)] == [
        (0.0, 0.25, 1),
        (0.25, 0.5, 2),
    ]


@settings(max_examples=25)
@given(texts())
def test_bins_hold_every_row_once(found: list[Rows]) -> None:
    rows = Rows.joined(found)
    bins = reliability(rows)
    assert sum(b.rows for b in bins) == len(rows)
    assert sum(b.rows * b.accuracy for b in bins) == pytest.approx(rows.right.sum())
    assert all(b.low - 1e-6 <= b.confidence <= b.high + 1e-6 for b in bins)


# ------------------------------------------------------------------- coverage and precision


@settings(max_examples=25)
@given(texts())
def test_the_curve_says_what_each_threshold_does(found: list[Rows]) -> None:
    rows = Rows.joined(found)
    curve = risk_coverage(rows)
    assert (np.diff(curve.threshold) < 0).all() and (np.diff(curve.coverage) > 0).all()
    assert curve.coverage[-1] == 1
    for threshold, coverage, risk in zip(curve.threshold, curve.coverage, curve.risk, strict=True):
        at = at_threshold(rows, float(threshold))
        assert at.coverage == pytest.approx(coverage)
        assert at.precision == pytest.approx(1 - risk)


@settings(max_examples=25)
@given(texts(), st.sampled_from([0.5, 0.9, 1.0]))
def test_no_threshold_of_that_precision_covers_more(found: list[Rows], precision: float) -> None:
    rows = Rows.joined(found)
    widest = widest_at_precision(rows, precision)
    others = [at_threshold(rows, float(t)) for t in np.unique(rows.confidence)]
    good = [at for at in others if at.precision is not None and at.precision >= precision - 1e-12]
    assert (widest is None) == (not good)
    if widest is not None:
        assert widest.precision is not None and widest.precision >= precision - 1e-12
        assert widest.coverage == max(at.coverage for at in good)


def test_a_threshold_that_nothing_reaches_has_no_precision() -> None:
    at = at_threshold(random_texts(0, 3)[0], 1.5)
    assert (at.coverage, at.precision) == (0.0, None)


def test_the_interval_holds_the_agreement_of_the_whole_population() -> None:
    """Seeds 1 to 60 hold it at least 50 times: with 95 % true odds this fails 1 time in 400."""
    truth = Rows.joined(random_texts(0, 5000)).right.mean()
    held = 0
    for seed in range(1, 61):
        low, high = agreement_interval(random_texts(seed, 60), resamples=300)
        held += low <= truth <= high
    assert held >= 50


# --------------------------------------------------------------- thresholds with a promise


def test_the_promise_holds_on_fresh_texts() -> None:
    """300 calibrations, each judged on its own fresh texts.

    The mean risk may exceed alpha by chance only: with 300 draws its standard error is below
    0.0015, and 3 of those are allowed (odds below 1 in 700 at worst, seeds fixed).
    """
    alpha, risks = 0.05, []
    for seed in range(300):
        chosen = conformal_threshold(random_texts(seed, 50), alpha)
        fresh = random_texts(10_000 + seed, 50)
        risks.append(mean_risk(fresh, chosen.threshold))
    spread = float(np.std(risks)) / math.sqrt(len(risks))
    assert spread < 0.0015
    assert np.mean(risks) <= alpha + 3 * spread
    assert np.mean(risks) > 0.5 * alpha  # and is not kept by never answering


@settings(max_examples=25)
@given(texts(), st.sampled_from([0.1, 0.2, 0.3, 0.5]))
def test_the_threshold_is_the_least_that_keeps_the_bound(found: list[Rows], alpha: float) -> None:
    found = found * 4
    n = len(found)
    if n < examples_needed(alpha):
        with pytest.raises(UsageError, match=f"{n} examples.*{examples_needed(alpha)} examples"):
            conformal_threshold(found, alpha)
        return
    chosen = conformal_threshold(found, alpha)

    def bound(threshold: float | None) -> float:
        return (n * mean_risk(found, threshold) + 1) / (n + 1)

    assert bound(chosen.threshold) <= alpha + 1e-9
    assert chosen.risk == mean_risk(found, chosen.threshold)
    lower = [float(t) for t in np.unique(Rows.joined(found).confidence)]
    for threshold in lower:
        if chosen.threshold is None or threshold < chosen.threshold:
            assert bound(threshold) > alpha - 1e-9


def test_more_agreement_asks_for_more_confidence() -> None:
    found = random_texts(3, 400)
    thresholds = [conformal_threshold(found, a).threshold or 9 for a in (0.2, 0.1, 0.05, 0.01)]
    assert thresholds == sorted(thresholds)
    shared = conformal_threshold(found, 0.1, together=4)
    assert shared == conformal_threshold(found, 0.025)


def test_an_exit_that_is_surely_wrong_answers_nothing_and_a_right_one_everything() -> None:
    wrong = [Rows(confidence=np.ones(5, np.float32), right=np.zeros(5, bool))] * 30
    assert conformal_threshold(wrong, 0.1).threshold is None
    right = [Rows(confidence=np.full(5, 0.01, np.float32), right=np.ones(5, bool))] * 30
    threshold = conformal_threshold(right, 0.1).threshold
    assert threshold is not None and 0 < threshold < 0.001
    assert at_threshold(right[0], threshold).coverage == 1


@pytest.mark.parametrize(("alpha", "needed"), [(0.5, 1), (0.1, 9), (0.02, 49), (0.3, 3)])
def test_how_many_examples_a_promise_takes(alpha: float, needed: int) -> None:
    assert examples_needed(alpha) == needed
    found = random_texts(0, needed)
    assert conformal_threshold(found, alpha).examples == needed
    if needed > 1:
        with pytest.raises(UsageError):
            conformal_threshold(found[1:], alpha)


# --------------------------------------------------------------------------------- drafting


def by_hand(found: list[Rows], threshold: float, length: int) -> tuple[int, int, int, int]:
    """Verified decoding, a token at a time: tokens, rounds, drafted, silent rounds."""
    tokens = rounds = drafted = silent = 0
    for text in found:
        at = 0
        while at < len(text):
            drafts = accepted = 0
            while drafts < min(length, len(text) - at - 1):
                if not text.confidence[at + drafts] >= threshold:
                    break
                drafts += 1
                if not text.right[at + drafts - 1]:
                    break
                accepted += 1
            at += accepted + 1
            tokens += accepted + 1
            rounds, drafted, silent = rounds + 1, drafted + drafts, silent + (drafts == 0)
    return tokens, rounds, drafted, silent


@settings(max_examples=40)
@given(texts(), st.sampled_from([0.1, 0.35, 0.5, 0.75, 1.0]), st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_simulated_rounds_are_those_of_a_token_by_token_run(
    found: list[Rows], threshold: float, length: int
) -> None:
    made = simulate_drafting(found, threshold, length)
    assert (made.tokens, made.rounds, made.drafted, made.silent_rounds) == by_hand(
        found, threshold, length
    )


def test_longer_drafts_and_lower_thresholds_save_rounds() -> None:
    found = random_texts(0, 50)
    for length in (1, 2, 4, 8):
        longer = simulate_drafting(found, 0.5, 2 * length)
        bolder = simulate_drafting(found, 0.3, length)
        made = simulate_drafting(found, 0.5, length)
        assert longer.rounds <= made.rounds and bolder.rounds <= made.rounds
    assert simulate_drafting(found, 1.5, 8).tokens_per_round == 1
    assert simulate_drafting(found, 1.5, 8).silent_share == 1


def test_nothing_to_draft_on() -> None:
    made = simulate_drafting([], 0.5, 4)
    assert (made.tokens, made.rounds, made.tokens_per_round) == (0, 0, 0)
