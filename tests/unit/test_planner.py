"""The search: what is chosen, what never is, and what is said of the rest."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from tests.unit.plan_world import cloud, device, random_text, said, world

from collm.errors import UsageError
from collm.policy.cost_model import World, is_lossless, memory_bytes, predict
from collm.policy.planner import OBJECTIVES, Wish, candidates, plan, value

TEXT = said(random_text(1, 24), random_text(2, 24))
EASY = said([(0.95, True)] * 24)
HARD = said([(0.95, False)] * 24)


def a_world(**changes: object) -> World:
    return world(TEXT, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("quality", [None, 0.9])
def test_no_candidate_is_better_by_more_than_plans_that_are_alike(
    objective: str, quality: float | None
) -> None:
    made, wish = a_world(trip=0.01), Wish(objective=objective, quality=quality)
    found = plan(made, wish)
    assert found.chosen.predicted is not None
    best = min(
        value(predict(one, made), objective)
        for one in candidates(made, wish)
        if (is_lossless(one) if quality is None else predict(one, made).agreement >= quality)
        and memory_bytes(one, made) <= made.device.memory_bytes
    )
    assert value(found.chosen.predicted, objective) <= best * 1.03 + 1e-9


def test_what_does_not_fit_is_never_chosen_and_said_so() -> None:
    made = a_world(trip=0.001)
    sizes = sorted({memory_bytes(one, made) for one in candidates(made, Wish())})
    for most, objective in itertools.product(sizes, OBJECTIVES):
        found = plan(made, Wish(memory_bytes=most, objective=objective))
        assert memory_bytes(found.chosen.candidate, made) <= most
        for one in (*found.others, *found.frontier):
            fits = memory_bytes(one.candidate, made) <= most
            assert fits or one.predicted is None
            assert fits or one.why_not.startswith("does not fit: needs ")
    with pytest.raises(UsageError, match=r"no plan fits .*does not fit: needs 100 MB of 50"):
        plan(made, Wish(memory_bytes=50 * 10**6))


def test_the_device_s_own_memory_counts_where_none_is_named() -> None:
    small = a_world(device=device(memory_bytes=120 * 10**6))
    assert memory_bytes(plan(small, Wish()).chosen.candidate, small) <= 120 * 10**6


@pytest.mark.parametrize("quality", [0.5, 0.8, 0.95, 0.975, 1.0])
def test_quality_is_a_bound(quality: float) -> None:
    for acceptance in (TEXT, EASY, HARD):
        found = plan(world(acceptance, 0.02), Wish(quality=quality))
        for one in (found.chosen, *found.others, *found.frontier):
            assert one.predicted is None or one.predicted.agreement >= quality
    lossless = plan(world(EASY, 0.02), Wish())
    for one in (lossless.chosen, *lossless.frontier):
        assert one.candidate.mode in ("cloud", "verified")
        assert one.candidate.wire in ("ids", "f32")


def test_a_faster_link_a_faster_cloud_or_more_memory_never_makes_it_slower() -> None:
    def best(made: World, **wish: int) -> float:
        found = plan(made, Wish(**wish)).frontier[0].predicted  # type: ignore[arg-type]
        assert found is not None
        return found.token_seconds

    trips = [best(a_world(trip=trip)) for trip in (0.001, 0.01, 0.1, 0.4)]
    assert trips == sorted(trips)
    rates = [best(a_world(trip=0.01, rate=rate)) for rate in (1e9, 1e7, 1e6, 1e5)]
    assert rates == sorted(rates)
    clouds = [
        best(a_world(cloud=cloud(costs={c: r.times(f) for c, r in cloud().costs.items()})))
        for f in (0.1, 0.5, 1.0, 4.0)
    ]
    assert clouds == sorted(clouds)
    memory = [best(a_world(), memory_bytes=m * 10**6) for m in (1000, 150, 130, 110)]
    assert memory == sorted(memory)


def test_shallow_exits_that_are_right_make_the_edge_draft_and_wrong_ones_do_not() -> None:
    fast = {"trip": 0.002, "device": device(memory_bytes=160 * 10**6)}
    drafts = plan(world(EASY, **fast), Wish()).chosen  # type: ignore[arg-type]
    assert drafts.candidate.mode == "verified" and drafts.candidate.exits == (10,)
    slow = replace(HARD, right=HARD.right & False)
    small = device(memory_bytes=125 * 10**6)
    assert plan(world(slow, 0.05, device=small), Wish()).chosen.candidate.mode == "cloud"


def test_the_simpler_of_two_that_are_alike_is_taken() -> None:
    """The whole model here is as fast as the cloud, within three in a hundred."""
    made = world(replace(HARD, right=HARD.right & False), 0.0)
    token = 0.033  # three blocks and the head
    alike = replace(made, cloud=cloud(token_seconds=token))
    assert plan(alike, Wish(modes=("cloud", "verified"))).chosen.candidate.mode == "cloud"
    slower = replace(made, cloud=cloud(token_seconds=2 * token))
    assert plan(slower, Wish()).chosen.candidate.placement == 30


def test_every_other_kind_is_there_with_the_reason_why_it_lost() -> None:
    found = plan(a_world(trip=0.05, device=device(memory_bytes=125 * 10**6)), Wish())
    reasons = {one.candidate.mode: one.why_not for one in found.others}
    assert reasons["threshold"] == "not lossless"
    assert all(reasons.values()) and found.chosen.why_not == ""
    assert found.refused < found.considered
    whole = next(one for one in found.others if one.candidate.placement == 30)
    assert whole.why_not == "does not fit: needs 160 MB of 125"
    slower = [one for one in found.others if one.predicted is not None]
    assert slower and all(one.why_not.endswith(("slower", "simple")) for one in slower)


def test_the_frontier_has_nothing_that_another_beats_in_everything() -> None:
    found = plan(a_world(trip=0.005), Wish())
    points = [
        (p.token_seconds, p.cloud_seconds, p.bytes_up + p.bytes_down)
        for one in found.frontier
        if (p := one.predicted) is not None
    ]
    assert points == sorted(points) and len(points) > 1
    for a, b in itertools.permutations(points, 2):
        assert not all(x <= y for x, y in zip(a, b, strict=True))


def test_without_a_cloud_only_what_needs_none_is_planned() -> None:
    alone = a_world(link=None, cloud=None)
    assert plan(alone, Wish()).chosen.candidate.placement == 30
    exits = plan(alone, Wish(quality=0.2, memory_bytes=125 * 10**6)).chosen.candidate
    assert exits.mode == "standalone"


def test_what_the_user_chose_stays() -> None:
    wish = Wish(
        modes=("verified",),
        exits=(10,),
        wire="f32",
        threshold=0.33,
        draft=7,
        memory_bytes=15 * 10**7,
    )
    chosen = plan(a_world(), wish).chosen.candidate
    assert (chosen.exits, chosen.wire, chosen.threshold, chosen.draft) == ((10,), "f32", 0.33, 7)


@pytest.mark.parametrize(
    "wrong",
    [{"objective": "speed"}, {"quality": 0.0}, {"quality": float("nan")}, {"modes": ("refine",)}],
)
def test_wishes_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"expected|can be"):
        Wish(**wrong)  # type: ignore[arg-type]
