"""Prompt lookup: what is proposed, how sure, and going back."""

from __future__ import annotations

import random
import statistics
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collm.policy.lookup import PromptLookup
from collm.policy.observation import Reading


def proposed(ids: list[int], *, longest: int = 8, shortest: int = 2) -> int | None:
    reading = PromptLookup(ids, longest=longest, shortest=shortest).propose()
    return None if reading is None else reading.token_id


def by_search(ids: list[int], longest: int, shortest: int) -> int | None:
    """The definition, by looking at the whole text."""
    for n in range(min(longest, len(ids)), shortest - 1, -1):
        for end in range(len(ids) - 1, n - 1, -1):
            if ids[end - n : end] == ids[-n:]:
                return ids[end]
    return None


def test_what_followed_the_same_words_before_is_proposed() -> None:
    reading = PromptLookup([5, 6, 7, 8, 9, 5, 6]).propose()
    assert reading is not None
    assert reading.token_id == 7
    assert reading.source == "lookup"
    assert 0 < reading.confidence < 1
    assert reading.entropy != reading.entropy, "no distribution"


def test_nothing_is_proposed_where_the_suffix_is_new() -> None:
    assert proposed([]) is None
    assert proposed([1, 2, 3, 4]) is None
    assert proposed([1, 2, 3, 9, 2]) is None, "one token in common is too few"
    assert proposed([1, 2, 3, 9, 2], shortest=1) == 3


def test_a_longer_match_goes_before_a_later_one() -> None:
    assert proposed([1, 2, 3, 4, 0, 9, 2, 3, 5, 0, 1, 2, 3]) == 4


def test_among_equal_matches_the_latest_goes_first() -> None:
    assert proposed([1, 2, 4, 0, 1, 2, 5, 8, 1, 2]) == 5


def test_a_loop_is_gone_on_with() -> None:
    lookup, ids = PromptLookup([1, 2, 3, 1, 2]), [1, 2, 3, 1, 2]
    for _ in range(20):
        reading = lookup.propose()
        assert reading is not None
        ids.append(reading.token_id)
        lookup.extend(reading.token_id)
    assert ids == ([1, 2, 3] * 9)[:25]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 3), st.integers(0, 5))
def test_it_is_what_a_search_through_the_text_finds(
    ids: list[int], shortest: int, more: int
) -> None:
    longest = shortest + more
    found = proposed(ids, longest=longest, shortest=shortest)
    assert found == by_search(ids, longest, shortest)


@given(*[st.lists(st.integers(0, 3), max_size=40)] * 3)
def test_what_is_cropped_leaves_no_trace(
    kept: list[int], dropped: list[int], after: list[int]
) -> None:
    back, straight = PromptLookup(kept), PromptLookup(kept)
    for token_id in dropped:
        back.extend(token_id)
    back.crop(len(kept))
    for token_id in [None, *after]:
        if token_id is not None:
            back.extend(token_id)
            straight.extend(token_id)
        assert repr(back.propose()) == repr(straight.propose())


# -------------------------------------------------------------------------------- confidence


def confidence(ids: list[int]) -> float:
    reading = PromptLookup(ids).propose()
    assert reading is not None
    return reading.confidence


def test_longer_and_better_supported_matches_are_trusted_more() -> None:
    short = confidence([1, 2, 3, 0, 1, 2])
    long = confidence([1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6])
    agreed = confidence([1, 2, 3, 0, 1, 2, 3, 9, 1, 2])
    mixed = confidence([1, 2, 4, 0, 1, 2, 3, 9, 1, 2])
    assert mixed < short < long
    assert short < agreed


@pytest.mark.parametrize(("right", "order"), [(True, 1), (False, -1)])
def test_confidence_follows_what_came_true(right: bool, order: int) -> None:
    lookup = PromptLookup([1, 2, 3, 0, 1, 2])
    seen = []
    for _ in range(200):
        reading = lookup.propose()
        assert reading is not None
        seen.append(reading.confidence)
        lookup.learn(reading, reading.token_id if right else 99)
    assert seen == sorted(seen)[::order]
    assert abs(seen[-1] - right) < 0.1


def test_only_proposals_teach() -> None:
    lookup = PromptLookup([1, 2, 3, 0, 1, 2])
    before = repr(lookup.propose())
    lookup.learn(Reading(5, 3, 0.9), 99)
    assert repr(lookup.propose()) == before


# ---------------------------------------------------------------------------------- the cost


@pytest.mark.timed
def test_a_token_costs_little_however_long_the_text() -> None:
    """About 10 µs; the bound leaves room for a busy machine."""
    source = random.Random(0)
    lookup, times = PromptLookup(), []
    for _ in range(5000):
        token_id = source.randrange(8)
        started = time.perf_counter()
        lookup.extend(token_id)
        lookup.propose()
        times.append(time.perf_counter() - started)
    print(f"extend and propose: {statistics.median(times) * 1e6:.1f} µs")
    assert statistics.median(times[-1000:]) < 200e-6
