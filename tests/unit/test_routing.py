"""Where new sessions go: decided from measurements, changed only for good reasons."""

from __future__ import annotations

import threading

import pytest

from collm.errors import LinkTimeout, Refused, Unreachable
from collm.link.base import Link
from collm.link.clock import VirtualClock
from collm.link.dialer import Dialer
from collm.link.route_prober import RouteProber
from collm.link.routing import RouteRules, Routes

NEAR, FAR, OTHER = "near:1", "far:1", "other:1"


def ms(**seconds: float | None) -> dict[str, float | None]:
    return {f"{name}:1": None if s is None else s / 1000 for name, s in seconds.items()}


def test_the_first_round_decides_at_once_and_preference_breaks_ties() -> None:
    routes = Routes([FAR, NEAR])
    assert routes.order() == [FAR, NEAR]  # as given, before anything is known
    routes.round(ms(far=40, near=4))
    assert routes.chosen == NEAR
    for figures in (ms(far=5, near=4), ms(far=40, near=33), ms(far=4, near=2.5)):
        routes = Routes([FAR, NEAR])
        routes.round(figures)
        assert routes.chosen == FAR, figures  # under 20 %, or under 2 ms


def test_another_has_to_be_better_for_several_rounds_in_a_row() -> None:
    routes = Routes([NEAR, FAR], RouteRules(gain=1.0))
    routes.round(ms(near=10, far=12))
    for figures in (ms(near=30, far=12), ms(near=30, far=12), ms(near=13, far=12),
                    ms(near=30, far=12), ms(near=30, far=12)):  # fmt: skip
        routes.round(figures)
        assert routes.chosen == NEAR
    routes.round(ms(near=30, far=12))
    assert routes.chosen == FAR
    routes.round(ms(near=10, far=12))  # nor does it go back at once
    assert routes.chosen == FAR


def test_rivals_that_take_turns_are_each_counted_from_the_start() -> None:
    routes = Routes([NEAR, FAR, OTHER], RouteRules(gain=1.0))
    routes.round(ms(near=10, far=40, other=40))
    for far, other in ((10, 20), (20, 10), (10, 20), (20, 10), (10, 20)):
        routes.round(ms(near=60, far=far, other=other))
        assert routes.chosen == NEAR


def test_one_outlier_is_smoothed_away() -> None:
    routes = Routes([NEAR, FAR])
    for near in (10, 40, 10, 10, 10, 10):
        routes.round(ms(near=near, far=14))
    assert routes.chosen == NEAR
    assert routes.seconds(NEAR) == pytest.approx(0.0124, abs=0.001)


def test_who_does_not_answer_is_left_at_once_and_comes_back_on_its_merits() -> None:
    routes = Routes([NEAR, FAR])
    routes.round(ms(near=4, far=40))
    routes.round(ms(near=None, far=40))
    assert (routes.chosen, routes.order()) == (FAR, [FAR, NEAR])
    for _ in range(3):
        assert routes.chosen == FAR
        routes.round(ms(near=4, far=40))
    assert routes.chosen == NEAR
    routes.round(ms(near=None, far=None))
    assert sorted(routes.order()) == sorted([NEAR, FAR])  # somebody has to be tried


def test_a_session_goes_back_to_where_it_was_unless_that_is_ill() -> None:
    routes = Routes([NEAR, FAR, OTHER])
    routes.round(ms(near=4, far=40, other=30))
    assert routes.order(FAR) == [FAR, NEAR, OTHER]
    routes.round(ms(near=4, far=None, other=30))
    assert routes.order(FAR) == [NEAR, OTHER, FAR]


class Clouds:
    """What measuring them gives."""

    def __init__(self, **seconds: float | Exception) -> None:
        self.seconds = {f"{name}:1": figure for name, figure in seconds.items()}
        self.asked: list[str] = []

    def measure(self, address: str) -> float:
        self.asked.append(address)
        figure = self.seconds[address]
        if isinstance(figure, Exception):
            raise figure
        return figure


def test_measuring_goes_on_only_while_links_are_asked_for() -> None:
    clock, clouds = VirtualClock(), Clouds(near=0.004, far=0.04)
    prober = RouteProber([FAR, NEAR], measure=clouds.measure, clock=clock)
    assert not clouds.asked
    assert prober(None) == [NEAR, FAR]
    assert sorted(clouds.asked) == [FAR, NEAR]
    prober(None)
    assert len(clouds.asked) == 2  # fresh enough
    task = prober._task
    assert task is not None
    assert not task.wait(29.0)
    assert len(clouds.asked) == 2 * (1 + 9)
    assert task.wait(10.0)
    asked = len(clouds.asked)
    clock.advance(100.0)
    assert task.is_over and len(clouds.asked) == asked
    prober(None)
    assert len(clouds.asked) == asked + 2


def test_the_ill_are_passed_over_by_new_sessions_and_open_ones_stay() -> None:
    clock, clouds = VirtualClock(), Clouds(near=0.004, far=0.04)
    dialled: list[str] = []

    def dial(address: str) -> Link:
        dialled.append(address)
        return object()  # type: ignore[return-value]

    prober = RouteProber([FAR, NEAR], measure=clouds.measure, clock=clock)
    dialer = Dialer([FAR, NEAR], dial=dial, clock=clock, route=prober)
    dialer()
    for trouble in (Unreachable("gone"), LinkTimeout("late"), Refused("busy", "cloud above")):
        clouds.seconds[NEAR] = trouble
        prober.round()
        dialer()
        clouds.seconds[NEAR] = 0.004
        for _ in range(3):
            prober.round()
        dialer()
    assert dialled == [NEAR] + [FAR, NEAR] * 3


def test_a_slow_cloud_does_not_hold_up_the_first_link() -> None:
    never = threading.Event()

    def measure(address: str) -> float:
        if address == FAR:
            never.wait(5.0)
            raise LinkTimeout("late")
        return 0.004

    prober = RouteProber([FAR, NEAR], measure=measure, clock=VirtualClock())
    assert prober(None) == [NEAR, FAR]
    assert prober._routes.seconds(FAR) is None
    never.set()
