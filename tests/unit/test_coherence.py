"""Coherence: loops, drift and rough passages show, and going back leaves no trace."""

from __future__ import annotations

import math
import statistics
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import F32

from collm.policy.coherence import CoherenceTracker, sentence_boundary
from collm.policy.observation import Coherence

D = 48


def states_about(topic: int, count: int, seed: int) -> F32:
    """States of a residual stream: a topic, noise, two huge dimensions, a sink at position 0."""
    noise = np.random.default_rng(seed).normal(0, 1, (count, D))
    noise += np.random.default_rng(1000 + topic).normal(0, 1, D)
    noise[:, 3] += 90
    noise[:, 17] -= 40
    noise[0] *= 100
    return noise.astype(np.float32)


def prompted(topic: int, count: int = 24) -> CoherenceTracker:
    tracker = CoherenceTracker()
    tracker.read_prompt(range(count), states_about(topic, count, seed=0))
    return tracker


def written(tracker: CoherenceTracker, topic: int, tokens: int = 32) -> CoherenceTracker:
    """The tracker after further tokens about a topic."""
    for i, state in enumerate(states_about(topic, tokens + 1, seed=1)[1:]):
        tracker.push(1000 + i, 0.8, 1.0, state)
    return tracker


# ----------------------------------------------------------------------------- confidence


def test_nothing_is_wrong_with_an_empty_text() -> None:
    assert CoherenceTracker().read() == Coherence()


def test_means_are_over_the_text_and_over_the_window() -> None:
    tracker = CoherenceTracker(window=4)
    for i, confidence in enumerate([0.9] * 10 + [0.1, 0.2, 0.3, 0.4]):
        tracker.push(i, confidence, math.nan)
    text = tracker.read()
    last = [math.log(c) for c in (0.1, 0.2, 0.3, 0.4)]
    assert text.tokens == 14
    assert text.window_confidence == pytest.approx(0.25)
    assert text.window_logprob == pytest.approx(sum(last) / 4)
    assert text.mean_logprob == pytest.approx((10 * math.log(0.9) + sum(last)) / 14)


def test_a_token_without_any_confidence_leaves_figures_finite() -> None:
    tracker = CoherenceTracker()
    tracker.push(1, 0.0, math.nan)
    assert math.isfinite(tracker.read().mean_logprob)


def test_the_entropy_trend_is_the_slope_of_a_line() -> None:
    tracker = CoherenceTracker(window=8)
    for i in range(20):
        tracker.push(i, 0.5, 1.0 + 0.25 * i if i % 3 else math.nan)
    assert tracker.read().entropy_trend == pytest.approx(0.25)


def test_few_entropies_make_no_trend() -> None:
    tracker = CoherenceTracker()
    for i in range(20):
        tracker.push(i, 0.5, float(i) if i > 16 else math.nan)
    assert tracker.read().entropy_trend == 0.0


# ----------------------------------------------------------------------------- repetition


@pytest.mark.parametrize("period", [1, 2, 3, 5, 13, 40, 100])
def test_a_loop_of_any_period_is_seen_and_fresh_text_is_not_a_loop(period: int) -> None:
    tracker = CoherenceTracker()
    for i in range(period + 2):
        tracker.push(i % period, 0.9, 0.5)
    assert tracker.read().repetition <= 2 / (period + 2)
    for i in range(period + 2, period + 40):
        tracker.push(i % period, 0.9, 0.5)
    assert tracker.read().repetition == 1.0


def test_a_text_gets_over_its_repetitions() -> None:
    tracker = CoherenceTracker()
    for token_id in [1, 2, 3, 4] * 10 + list(range(100, 132)):
        tracker.push(token_id, 0.9, 0.5)
    assert tracker.read().repetition == 0.0


def test_what_is_taken_from_the_prompt_is_no_repetition() -> None:
    tracker = CoherenceTracker()
    tracker.read_prompt(range(30), None)
    for token_id in range(30):
        tracker.push(token_id, 0.9, 0.5)
    assert tracker.read().repetition == 0.0


# ---------------------------------------------------------------------------------- drift


def test_another_topic_is_further_from_the_prompt() -> None:
    for topic in range(5):
        on = written(prompted(topic), topic).read().drift
        off = written(prompted(topic), topic + 5).read().drift
        assert on < 0.3 < 0.6 < off


def test_a_passage_of_a_long_prompt_is_enough() -> None:
    tracker = CoherenceTracker()
    parts = [states_about(topic, 40, seed=topic)[1:] for topic in range(6)]
    states = np.concatenate([states_about(0, 1, seed=9), *parts])
    tracker.read_prompt(range(len(states)), states)
    assert written(tracker, 4).read().drift < 0.5


def test_drift_is_the_same_whether_a_state_comes_with_its_token_or_later() -> None:
    later = prompted(1)
    for i, state in enumerate(states_about(2, 33, seed=1)[1:]):
        later.push(1000 + i, 0.8, 1.0)
        later.note_state(state)
        later.note_state(state)
    assert later.read() == written(prompted(1), 2).read()


def test_without_states_there_is_no_drift() -> None:
    tracker = CoherenceTracker()
    tracker.read_prompt(range(5), None)
    assert written(tracker, 3).read().drift == 0.0
    assert written(CoherenceTracker(), 3).read().drift == 0.0
    one = CoherenceTracker()
    one.read_prompt([1], states_about(0, 1, seed=0))
    assert written(one, 3).read().drift == 0.0


# ----------------------------------------------------------------------------- boundaries


def test_tokens_since_the_last_sentence() -> None:
    words = ["Yes", ".", " It", " rains", '."', " So", "?\n", "\n\n", "a.b"]
    tracker = CoherenceTracker(is_boundary=sentence_boundary(words.__getitem__))
    seen = []
    for token_id in range(len(words)):
        tracker.push(token_id, 0.9, 0.5)
        seen.append(tracker.read().since_boundary)
    assert seen == [1, 0, 1, 2, 0, 1, 0, 0, 1]


# ------------------------------------------------------------------------------- going back

tokens = st.tuples(
    st.integers(0, 4), st.floats(0, 1), st.floats(0, 9) | st.just(math.nan), st.integers(-1, 20)
)


@given(st.lists(tokens, max_size=60), st.lists(tokens, max_size=60), st.lists(tokens, max_size=60))
def test_what_is_cropped_leaves_no_trace(
    kept: list[tuple[int, float, float, int]],
    dropped: list[tuple[int, float, float, int]],
    after: list[tuple[int, float, float, int]],
) -> None:
    states = states_about(0, 21, seed=5)

    def made(
        *parts: list[tuple[int, float, float, int]], crop_to: int | None = None
    ) -> list[Coherence]:
        tracker = CoherenceTracker(is_boundary=(0).__eq__, window=8)
        tracker.read_prompt(range(20), states_about(0, 20, seed=0))
        for part in parts[:-1]:
            for token_id, confidence, entropy, state in part:
                tracker.push(token_id, confidence, entropy, states[state] if state >= 0 else None)
        if crop_to is not None:
            tracker.crop(crop_to)
        read = [tracker.read()]
        for token_id, confidence, entropy, state in parts[-1]:
            tracker.push(token_id, confidence, entropy, states[state] if state >= 0 else None)
            read.append(tracker.read())
        return read

    assert made(kept, dropped, after, crop_to=len(kept)) == made(kept, after)


def test_going_back_very_far_forgets_states_but_nothing_else() -> None:
    long, short = written(prompted(1), 1, tokens=700), written(prompted(1), 1, tokens=20)
    long.crop(20)
    assert long.read() == short.read()
    for tracker in (long, short):
        written(tracker, 1, tokens=40)
    assert long.read() == short.read()


# --------------------------------------------------------------------------------- the cost


@pytest.mark.timed
def test_a_token_costs_little_however_long_the_text() -> None:
    """About 40 µs at 576 dimensions; the bound leaves room for a busy machine."""
    random = np.random.default_rng(0)
    tracker = CoherenceTracker()
    tracker.read_prompt(range(300), random.normal(0, 1, (300, 576)).astype(np.float32))
    states = random.normal(0, 1, (1500, 576)).astype(np.float32)
    times = []
    for i, state in enumerate(states):
        started = time.perf_counter()
        tracker.push(i % 700, 0.7, 1.2, state)
        tracker.read()
        times.append(time.perf_counter() - started)
    print(f"push and read: {statistics.median(times) * 1e6:.1f} µs")
    assert statistics.median(times[-500:]) < 200e-6
