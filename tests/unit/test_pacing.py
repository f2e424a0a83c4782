"""Bulk is kept back at the link's rate, and not where nothing is known of it."""

from __future__ import annotations

import pytest

from collm.session.pacing import Pacer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_bulk_leaves_at_the_links_rate() -> None:
    clock = Clock()
    pacer = Pacer(clock, clock.sleep)
    pacer.bits_per_second = 1e6
    for _ in range(10):
        pacer.sends(25_000)  # 0.2 s each
    assert clock.now == pytest.approx(100 + 2.0 - 0.05)


def test_an_unknown_link_is_not_waited_for_and_a_dead_one_not_for_ever() -> None:
    clock = Clock()
    pacer = Pacer(clock, clock.sleep)
    pacer.sends(10**9)
    assert clock.now == 100
    pacer.bits_per_second = 1.0
    pacer.sends(10**6)
    assert clock.now == 101


def test_a_link_that_rested_takes_a_burst() -> None:
    clock = Clock()
    pacer = Pacer(clock, clock.sleep)
    pacer.bits_per_second = 1e6
    pacer.sends(5_000)
    assert clock.now == 100
    clock.now += 10
    pacer.sends(5_000)
    assert clock.now == 110
