"""Rates by identity, and clouds that are passed over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from collm.errors import Refused, Unreachable
from collm.limits import DEFAULT_LIMITS
from collm.link.base import Link
from collm.link.clock import VirtualClock
from collm.link.dialer import Dialer
from collm.session.quotas import Quotas

LIMITS = replace(DEFAULT_LIMITS, identity_bytes_per_second=1000.0, identity_tokens_per_second=10.0)


def test_a_second_is_free_and_the_rest_is_paid_for() -> None:
    now = [0.0]
    quotas = Quotas(LIMITS, lambda: now[0])
    assert quotas.charge("a", byte_count=1000) == 0
    assert quotas.charge("a", byte_count=500) == pytest.approx(0.5)
    assert quotas.charge("b", byte_count=500) == 0
    assert quotas.charge("a", tokens=10) == 0
    now[0] = 10.0
    assert quotas.charge("a", byte_count=1000, tokens=40) == pytest.approx(3.0)


def test_without_rates_nobody_waits() -> None:
    assert Quotas(DEFAULT_LIMITS).charge("a", byte_count=10**12, tokens=10**9) == 0


class Clouds:
    """Addresses that answer, or do not."""

    def __init__(self, *up: str) -> None:
        self.up = set(up)
        self.tried: list[str] = []

    def dial(self, address: str) -> Link:
        self.tried.append(address)
        if address not in self.up:
            raise Unreachable(f"nobody at {address}")
        return object()  # type: ignore[return-value]


def test_a_dead_cloud_is_tried_once_in_a_while() -> None:
    clock, clouds = VirtualClock(), Clouds("b:1")
    dialer = Dialer(["a:1", "b:1"], dial=clouds.dial, clock=clock)
    for _ in range(5):
        dialer()
        clock.advance(6.0)
    assert clouds.tried.count("b:1") == 5
    assert clouds.tried.count("a:1") == 4  # passed over for 1, 2, 4 s; then for 8
    clock.advance(2.0)
    clouds.up.add("a:1")
    clouds.tried.clear()
    dialer()
    assert clouds.tried == ["a:1"]


def test_a_cloud_whose_links_do_not_last_is_left_for_another() -> None:
    clock, clouds = VirtualClock(), Clouds("a:1", "b:1")
    line = Dialer(["a:1", "b:1"], dial=clouds.dial, clock=clock).line()
    line()
    clock.advance(1.0)
    line()
    assert clouds.tried == ["a:1", "b:1"]
    clock.advance(20.0)
    line()  # that one has lasted: the preferred one is due again
    assert clouds.tried == ["a:1", "b:1", "a:1"]


def test_one_sessions_bad_link_is_not_held_against_anothers_cloud() -> None:
    clock, clouds = VirtualClock(), Clouds("a:1", "b:1")
    dialer = Dialer(["a:1", "b:1"], dial=clouds.dial, clock=clock)
    lasting, other = dialer.line(), dialer.line()
    lasting()
    clock.advance(10.0)
    other()
    lasting()  # in the place of one that was old, whatever the other session has
    assert clouds.tried == ["a:1", "a:1", "a:1"]


def test_answers_that_follow_each_other_keep_to_their_cloud() -> None:
    clock, clouds = VirtualClock(), Clouds("a:1", "b:1")
    dialer = Dialer(["a:1", "b:1"], dial=clouds.dial, clock=clock)
    for _ in range(5):
        dialer()
        clock.advance(1.0)
    assert clouds.tried == ["a:1"] * 5


def test_all_that_failed_are_named() -> None:
    dialer = Dialer(["a:1", "b:1"], dial=Clouds().dial, clock=VirtualClock())
    with pytest.raises(Unreachable, match="nobody at a:1; nobody at b:1"):
        dialer()


def test_a_cloud_that_lets_nobody_in_is_told_as_such() -> None:
    def dial(address: str) -> Link:
        raise Refused("identity", "no valid credentials")

    with pytest.raises(Refused):
        Dialer(["a:1", "b:1"], dial=dial, clock=VirtualClock())()
    with pytest.raises(ValueError, match="no address"):
        Dialer([])
