"""What mode `auto` foresees and chooses: on worlds whose true costs are known."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from collm.config import Way
from collm.policy.controller import BASELINE, Controller, Rules
from collm.policy.forecast import CloudLine, Forecaster, Judged, LinkEstimate

LAYERS = 30
WIDTHS = {"ids": 0, "f32": 2304, "int8": 604}


def forecaster() -> Forecaster:
    return Forecaster(layers=LAYERS, row_bytes=WIDTHS.__getitem__, agreement=lambda cut: 0.5)


def way(placement: int = 15, wire: str = "f32", threshold: float = 0.6, draft: int = 4) -> Way:
    return Way(placement=placement, exits=(placement,), wire=wire, threshold=threshold, draft=draft)


class Truth:
    """A device, a link and a cloud with costs of their own, and one random answer after another."""

    def __init__(
        self,
        *,
        edge: float = 0.004,
        trip: float = 0.01,
        rate: float = math.inf,
        cloud: float = 0.01,
        right: float = 0.8,
        seed: int = 0,
    ) -> None:
        self.edge, self.trip, self.rate, self.cloud, self.right = edge, trip, rate, cloud, right
        self.random = random.Random(seed)
        self.now = 0.0

    def round(self, made: Forecaster, way: Way) -> tuple[int, float]:
        """Play a round; tell the forecaster what an edge would see."""
        drafted = accepted = 0
        still = True
        while drafted < way.draft:
            confidence = self.random.random()
            right = self.random.random() < self.right * confidence + 0.1
            if still:
                made.exit(way.placement).add(confidence, right)
            if confidence < way.threshold:
                break
            drafted += 1
            still = still and right
            accepted += still
        rows = drafted + 1
        share = (LAYERS - (0 if way.wire == "ids" else way.placement)) / LAYERS
        cloud = self.cloud * (0.6 + 0.4 * rows) * share
        sent = rows * (WIDTHS[way.wire] + 4) + 24
        waits = self.trip + 8 * sent / self.rate
        made.cloud.add(rows, share, cloud)
        made.edge_at(way.placement).add(self.edge)
        self.now += rows * self.edge + waits + cloud
        made.link.add(self.now, waits, sent)
        return accepted + 1, rows * self.edge + waits + cloud

    def token(self, made: Forecaster) -> float:
        made.cloud.add(1, 1.0, self.cloud)
        self.now += self.cloud
        return self.cloud

    def play(self, made: Controller, answers: int, tokens: int = 60) -> list[tuple[Way, float]]:
        """Each answer's last way and its seconds."""
        played = []
        for _ in range(answers):
            emitted, spent = 0, 0.0
            made.forecaster.link.add(self.now, self.trip, 0)
            now = made.first().way
            while emitted < tokens:
                if now.mode == "cloud":
                    count, seconds = 1, self.token(made.forecaster)
                else:
                    count, seconds = self.round(made.forecaster, now)
                made.note(now, count, seconds)
                emitted, spent = emitted + count, spent + seconds
                now = made.decide(now).way
            played.append((now, spent))
        return played


WAYS = [
    way(placement, wire, threshold, draft)
    for placement, wire, threshold, draft in itertools.product(
        (15, 5), ("f32", "ids"), (0.4, 0.8), (4, 8)
    )
]


def controller(with_baseline: bool = True, **rules: float) -> Controller:
    made = forecaster()
    for placement in (5, 15):
        made.edge_at(placement).add(0.004)
    return Controller(WAYS, made, Rules(**rules), with_baseline=with_baseline)  # type: ignore[arg-type]


@pytest.mark.parametrize("trip", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_where_the_cloud_alone_wins_collaboration_costs_five_per_cent_at_most(
    trip: float, seed: int
) -> None:
    world = Truth(trip=trip, cloud=0.005, edge=0.004, seed=seed)
    played = world.play(controller(), answers=10)
    assert sum(seconds for _, seconds in played) <= 1.05 * 10 * 60 * 0.005
    assert played[-1][0] == BASELINE


@pytest.mark.parametrize("seed", range(5))
def test_where_collaboration_wins_it_is_found_and_kept(seed: int) -> None:
    """A slow cloud that shares its work with a quick edge."""
    world = Truth(trip=0.002, cloud=0.06, edge=0.002, seed=seed)
    played = world.play(controller(), answers=6)
    assert played[0][0] == BASELINE  # to learn what that takes
    assert all(last.mode == "verified" for last, _ in played[2:])
    assert played[-1][1] < 0.8 * 60 * 0.06


def test_a_link_that_becomes_slow_makes_ids_travel_within_a_few_rounds() -> None:
    world = Truth(trip=0.003, cloud=0.03, edge=0.002, rate=100e6)
    made = controller(with_baseline=False)
    now = made.first().way
    rounds = 0
    for number in range(80):
        if number == 30:
            assert now.wire == "f32"
            world.rate = 1e6
        count, seconds = world.round(made.forecaster, now)
        made.note(now, count, seconds)
        now = made.decide(now).way
        rounds += number >= 30 and now.wire == "f32"
    assert now.wire == "ids"
    assert rounds <= 12


def test_what_does_not_fit_is_left_at_once() -> None:
    world = Truth(trip=0.002, cloud=0.05, edge=0.002)
    made = controller(with_baseline=False)
    now = way(15)
    for _ in range(10):
        made.note(now, *world.round(made.forecaster, now))
    made.allowed = 5
    decision = made.decide(now)
    assert decision.way.placement == 5
    assert "memory" in decision.reason


def test_nothing_known_means_the_cloud_alone() -> None:
    made = Controller(WAYS, forecaster())
    assert made.first().way == BASELINE
    assert Controller(WAYS, forecaster(), with_baseline=False).first().way == WAYS[0]


def test_an_exit_is_trusted_as_it_was_seen() -> None:
    judged = Judged(0.4)
    chances = random.Random(1)
    for _ in range(2000):
        confidence = chances.random()
        judged.add(confidence, chances.random() < confidence**2)
    sure, right = judged.sure(0.8)
    assert sure == pytest.approx(0.2, abs=0.08)
    assert right == pytest.approx(0.81, abs=0.12)
    assert judged.sure(0.0)[0] == pytest.approx(1.0)


def test_a_forecast_is_what_a_long_run_gives() -> None:
    """Against the game itself: acceptance, waits and all."""
    world, made = Truth(trip=0.02, cloud=0.01, edge=0.003, rate=20e6, seed=3), forecaster()
    one = way(15, "f32", 0.6, 4)
    tokens = seconds = 0.0
    for _ in range(3000):
        count, spent = world.round(made, one)
        tokens, seconds = tokens + count, seconds + spent
    assert made.of(one).seconds == pytest.approx(seconds / tokens, rel=0.12)


def test_the_links_rate_is_felt_after_three_slow_answers() -> None:
    link = LinkEstimate()
    for number in range(5):
        link.add(number / 10, 0.01, 3000)
    assert link.bits_per_second == math.inf
    link.add(0.6, 0.5, 3000)  # one that came late
    link.add(0.7, 0.011, 3000)
    assert link.bits_per_second == math.inf
    for number in range(3):
        link.add(1 + number / 10, 0.01 + 8 * 3000 / 1e6, 3000)
    assert link.bits_per_second == pytest.approx(1e6, rel=0.01)
    for number in range(3):
        link.add(2 + number / 10, 0.0101, 3000)
    assert link.bits_per_second == math.inf


def test_a_clouds_line_is_found() -> None:
    line = CloudLine()
    assert math.isnan(line.seconds(1, 1))
    for rows in (1, 2, 4, 8) * 20:
        line.add(rows, 0.5, 0.5 * (0.004 + 0.002 * rows))
    for rows in (1, 3, 8):
        assert line.seconds(rows, 1.0) == pytest.approx(0.004 + 0.002 * rows, rel=0.15)
