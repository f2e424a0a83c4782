"""The figures a benchmark reports, from made-up measurements."""

from __future__ import annotations

import math

import pytest

from collm.bench.stats import Share, agreement, rotated, speed_ratio, summary


def test_a_summary_is_the_median_with_its_quartiles_and_variation() -> None:
    made = summary([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (made.median, made.p25, made.p75) == (3.0, 2.0, 4.0)
    assert made.variation == pytest.approx(math.sqrt(2.5) / 3)


def test_one_round_has_no_variation() -> None:
    assert summary([7.0]).variation == 0.0


def test_half_the_time_is_twice_the_speed() -> None:
    ratio = speed_ratio([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert (ratio.of_medians, ratio.p25, ratio.p75) == (2.0, 2.0, 2.0)


def test_a_drift_that_all_share_leaves_the_ratios_within_rounds_alone() -> None:
    ratio = speed_ratio([1.0, 2.0, 10.0], [3.0, 6.0, 30.0])
    assert ratio.p25 == ratio.p75 == 3.0


def test_agreement_counts_equal_places() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 0, 4]) == Share(hits=3, total=4)


def test_agreement_of_unequal_lengths_is_a_mistake() -> None:
    with pytest.raises(ValueError):
        agreement([1], [1, 2])


def test_a_share_of_everything_still_has_a_margin() -> None:
    assert Share(hits=1000, total=1000).value == 1.0
    assert 0.001 < Share(hits=1000, total=1000).margin < 0.003
    assert Share(hits=500, total=1000).margin == pytest.approx(0.031, abs=0.001)


def test_a_share_of_nothing_is_not_a_number() -> None:
    assert math.isnan(Share(hits=0, total=0).value)


def test_every_round_begins_with_another_contestant() -> None:
    orders = [rotated("abc", number) for number in range(-1, 3)]
    assert ["".join(order) for order in orders] == ["cab", "abc", "bca", "cab"]
    assert rotated([], 5) == []
