"""Predictions against sums made by hand, against another simulation, and against the real loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import random_artifact, token_ids
from tests.unit.plan_world import (
    BLOCK,
    CLOUD_HEAD,
    CLOUD_ROW,
    EXIT,
    FRAMES,
    HEAD,
    TRIP,
    cloud,
    device,
    random_text,
    said,
    world,
)

from collm.config import Generation
from collm.limits import Limits
from collm.link.memory import connect_memory
from collm.policy.cost_model import Candidate, memory_bytes, predict
from collm.policy.edge_clock import EdgeClock
from collm.policy.profiles import LinkProfile, RowCost
from collm.runtime.acceptance import record_acceptance
from collm.runtime.profiling import measure_device
from collm.runtime.stage import Stage
from collm.session.cloud import CloudService
from collm.session.edge import Edge
from collm.session.planning import cloud_like, frame_bytes

BEGIN = 3 * TRIP
"""Connecting, and the Hello."""


def test_a_cloud_alone_costs_one_trip_and_then_a_token_after_the_other() -> None:
    found = predict(Candidate(mode="cloud"), world(said([(0.0, False)] * 5)))
    each = CLOUD_ROW + CLOUD_HEAD
    assert found.token_seconds == pytest.approx((BEGIN + TRIP + 5 * each) / 5)
    assert found.first_token_seconds == pytest.approx(BEGIN + TRIP + each)
    assert found.cloud_seconds == pytest.approx(each)
    assert found.bytes_down == pytest.approx(45 + 200 / 5)
    assert found.agreement == 1.0


def test_the_whole_model_here_needs_no_link() -> None:
    made = replace(world(said([(0.0, False)] * 4)), link=None, cloud=None)
    found = predict(Candidate(mode="verified", placement=30), made)
    assert found.token_seconds == pytest.approx(3 * BLOCK + HEAD)
    assert (found.bytes_up, found.bytes_down, found.cloud_seconds) == (0, 0, 0)
    with pytest.raises(ValueError, match="needs a cloud"):
        predict(Candidate(mode="cloud"), made)


def test_exits_alone_answer_with_the_first_that_is_sure_else_with_the_deepest() -> None:
    text = [(0.9, True), (0.1, False), (0.9, False), (0.1, True)]
    how = Candidate(mode="standalone", placement=20, exits=(10, 20), threshold=0.5)
    found = predict(how, world(said(text)))
    shallow, deep = BLOCK + EXIT, 2 * (BLOCK + EXIT)
    assert found.token_seconds == pytest.approx((2 * shallow + 2 * deep) / 4)
    assert found.agreement == 3 / 4  # wrong only where the first exit was sure, and wrong


def test_threshold_asks_the_cloud_where_no_exit_is_sure() -> None:
    text = [(0.9, True), (0.1, False), (0.9, False), (0.1, True)]
    how = Candidate(mode="threshold", placement=10, exits=(10,), wire="f32", threshold=0.5)
    found = predict(how, world(said(text)))
    asked = TRIP + CLOUD_ROW * 20 / 30 + CLOUD_HEAD
    assert found.token_seconds == pytest.approx((BEGIN + 4 * (BLOCK + EXIT) + 2 * asked) / 4)
    # A row of 404 bytes for each of 8 + 3 positions, in 4 frames of 40 more; two questions.
    assert found.bytes_up == pytest.approx((200 + 11 * 404 + 4 * 40 + 2 * 60) / 4)
    assert found.agreement == 3 / 4
    assert found.rounds == 2 / 4


def test_verified_accepts_a_draft_up_to_the_first_wrong_token() -> None:
    text = [(0.9, True), (0.9, True), (0.9, False), (0.9, True), (0.1, False), (0.9, True)]
    how = Candidate(mode="verified", placement=10, exits=(10,), wire="f32", threshold=0.5, draft=4)
    found = predict(how, world(said(text)))
    # Four drafted, two stand, the third is the cloud's; one drafted, one stands, and the cloud's
    # next; the last token is never drafted.
    asked = TRIP + CLOUD_ROW * 20 / 30 + CLOUD_HEAD
    first = BLOCK + 4 * EXIT + 4 * BLOCK
    second = 2 * (BLOCK + EXIT)
    third = BLOCK
    edge = first + second + third
    assert found.rounds == 3 / 6
    assert found.token_seconds == pytest.approx((BEGIN + edge + 3 * asked) / 6)
    assert found.edge_seconds == pytest.approx(edge / 6)
    assert found.cloud_seconds == pytest.approx(3 * (asked - TRIP) / 6)


def by_rounds(text: list[tuple[float, bool]], threshold: float, draft: int) -> float:
    """Verified decoding that waits, round by round: written without the simulation's events."""
    seconds, at = BEGIN + BLOCK, 0
    layers_at_prompt = True
    while at < len(text):
        run = 0
        stopped = False
        while run < draft and at + run < len(text) - 1:
            if text[at + run][0] < threshold:
                stopped = True
                break
            run += 1
        exits = run + stopped
        # Every position up to the last written one runs through the layers once a round.
        calls = run + (0 if layers_at_prompt else 1)
        layers_at_prompt = False
        right = 0
        while right < run and text[at + right][1]:
            right += 1
        seconds += exits * EXIT + calls * BLOCK + TRIP + CLOUD_ROW * 20 / 30 + CLOUD_HEAD
        at += right + 1
    return seconds


@pytest.mark.parametrize("draft", [1, 2, 5])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_verified_is_what_rounds_add_up_to(threshold: float, draft: int) -> None:
    for seed in range(20):
        text = random_text(seed, 30)
        how = Candidate(
            mode="verified",
            placement=10,
            exits=(10,),
            wire="f32",
            threshold=threshold,
            draft=draft,
        )
        found = predict(how, world(said(text)))
        assert 30 * found.token_seconds == pytest.approx(by_rounds(text, threshold, draft))


def test_drafting_ahead_hides_the_trip_where_guesses_are_right() -> None:
    text = [(0.9, True)] * 40
    how = Candidate(mode="verified", placement=10, exits=(10,), wire="f32", threshold=0.5, draft=4)
    waits = predict(how, world(said(text)))
    ahead = predict(replace(how, ahead=0.0), world(said(text)))
    assert ahead.token_seconds < 0.75 * waits.token_seconds
    wrong = world(said([(0.9, False)] * 40))
    # Where every guess is wrong each token is a trip, and going on costs nothing but the edge.
    assert predict(replace(how, ahead=0.0), wrong).rounds == pytest.approx(1.0, abs=0.1)
    spent = predict(replace(how, ahead=0.0), wrong).edge_seconds
    assert spent > predict(replace(how, draft=1), wrong).edge_seconds


def test_ids_alone_spare_the_link_and_cost_the_cloud_its_first_layers() -> None:
    how = Candidate(mode="verified", placement=10, exits=(10,), threshold=0.5, draft=4)
    slow = world(said(random_text(1, 40)), rate=1e5)
    ids, rows = predict(replace(how, wire="ids"), slow), predict(replace(how, wire="f32"), slow)
    assert ids.bytes_up < rows.bytes_up / 5
    assert ids.token_seconds < rows.token_seconds
    assert ids.cloud_seconds > rows.cloud_seconds
    assert ids.agreement == rows.agreement == 1.0
    assert predict(replace(how, wire="int8"), slow).agreement == 0.97


def test_a_quota_stops_an_edge_that_computes_and_spares_one_that_waits() -> None:
    busy = EdgeClock(quota=0.25, period=0.1)
    busy.compute(0.1)
    assert busy.now == pytest.approx(0.325)  # 25 ms of each of four periods
    waiting = EdgeClock(quota=0.25, period=0.1)
    for _ in range(4):
        waiting.compute(0.025)
        waiting.wait_for(waiting.now + 0.075)
    assert waiting.now == pytest.approx(0.4)
    assert waiting.busy == pytest.approx(busy.busy) == pytest.approx(0.1)
    free = EdgeClock(quota=2.0, period=0.1)
    free.compute(0.1)
    assert free.now == pytest.approx(0.1)


def test_a_quarter_of_a_core_is_slower_alone_than_with_a_cloud() -> None:
    made = world(said(random_text(3, 30)))
    weak = replace(made, device=device(cpu_quota=0.25))
    here = Candidate(mode="verified", placement=30)
    assert predict(here, weak).token_seconds > 3 * predict(here, made).token_seconds
    alone = Candidate(mode="cloud")
    assert predict(alone, weak).token_seconds == predict(alone, made).token_seconds


def test_memory_is_what_is_loaded() -> None:
    made = world(said([(0.5, True)]))
    base = made.device.base_bytes
    assert memory_bytes(Candidate(mode="cloud"), made) == base
    how = Candidate(mode="verified", placement=20, exits=(10, 20), wire="f32")
    blocks, exits, head = 2 * 10**7, 2 * 10**6, 5 * 10**6
    kv = 100 * (2 * 1000 + 2 * 100 + 3 * 100)  # two exits of a layer, a tenth of a block each
    assert memory_bytes(how, made) == base + blocks + exits + head + kv
    # Once rows go up in pieces; once the prompt is run at once, 100 of the 128 rows measured.
    long = replace(made, device=device(prefill_bytes=(128, 128, 128)))
    assert memory_bytes(how, long) == memory_bytes(how, made)
    at_once = replace(how, wire="ids")
    assert memory_bytes(at_once, long) == memory_bytes(at_once, made) + 200
    whole = Candidate(mode="verified", placement=30)
    assert memory_bytes(whole, made) == base + 3 * 10**7 + 3 * 10**7 + 100 * (3 * 1000 + 100)


def test_times_between_measured_rows_lie_on_a_line() -> None:
    cost = RowCost(rows=(1, 2, 10), seconds=(1.0, 2.0, 6.0))
    assert [cost.at(n) for n in (0, 1, 2, 6, 10, 20)] == [0.0, 1.0, 2.0, 4.0, 6.0, 11.0]
    for rows, seconds in (((), ()), ((2, 1), (1.0, 1.0)), ((1,), (float("nan"),)), ((0,), (1.0,))):
        with pytest.raises(ValueError):
            RowCost(rows=rows, seconds=seconds)


@pytest.mark.parametrize("wire", ["f32", "ids"])
def test_the_real_loop_waits_for_the_cloud_as_often_as_predicted(tmp_path: Path, wire: str) -> None:
    """Bytes and rounds of an answer in mode verified, with the very exits that were recorded."""
    artifact = random_artifact(tmp_path / "a")
    prompt, tokens, limits = token_ids(4, 12), 24, Limits(linger_seconds=0.1)
    found = record_acceptance(artifact, [prompt], tokens=tokens)
    profile = measure_device(artifact, budget=0.05, threads=[1])
    cut = found.cuts[-1]
    made = world(
        found,
        device=profile,
        cloud=cloud_like(profile, artifact),
        frames=frame_bytes(artifact.architecture.hidden_size),
    )
    # Half of all guesses are taken, whatever a random model's exits make of its texts.
    threshold = float(sorted(found.confidences[:, -1])[found.tokens // 2])
    how = Candidate(
        mode="verified", placement=cut, exits=(cut,), wire=wire, threshold=threshold, draft=3
    )
    predicted = predict(how, made)
    service = CloudService(Stage(artifact, range(artifact.architecture.layers)), limits)
    edge = Edge(
        artifact,
        mode="verified",
        placement=cut,
        exits=(cut,),
        wire=wire,
        connect=lambda: connect_memory(service, limits),
        limits=limits,
    )
    generation = Generation(threshold=threshold, draft=3, max_tokens=found.tokens, ignore_eos=True)
    account = edge.answer(prompt, generation).finish()
    service.close()
    assert account.rounds == round(predicted.rounds * found.tokens)
    assert account.bytes_up == pytest.approx(predicted.bytes_up * found.tokens, rel=0.25)


def test_a_slower_link_or_cloud_is_never_faster() -> None:
    text = said(random_text(5, 40))
    for how in (
        Candidate(mode="cloud"),
        Candidate(mode="threshold", placement=10, exits=(10,), wire="f32", threshold=0.5),
        Candidate(mode="verified", placement=20, exits=(10,), wire="f32", threshold=0.5),
        Candidate(mode="verified", placement=10, exits=(10,), wire="ids", threshold=0.3),
    ):
        trips = [predict(how, world(text, trip)).token_seconds for trip in (0.0, 0.01, 0.1, 0.5)]
        assert trips == sorted(trips)
        rates = [predict(how, world(text, 0.01, r)).token_seconds for r in (1e9, 1e7, 1e6, 1e5)]
        assert rates == sorted(rates)
        slower = cloud(costs={c: one.times(3) for c, one in cloud().costs.items()})
        fast = predict(how, world(text)).token_seconds
        assert predict(how, world(text, cloud=slower)).token_seconds > fast


def test_what_the_profiles_do_not_cover_is_not_predicted() -> None:
    made = world(said([(0.5, True)]))
    for how in (
        Candidate(mode="refine", placement=10),
        Candidate(mode="verified", placement=11, exits=(10,)),
        Candidate(mode="verified", placement=10, exits=(20,)),
        Candidate(mode="verified", placement=10, exits=(5,)),
        Candidate(mode="standalone", placement=10),
        Candidate(mode="verified", placement=10, exits=(10,), wire="f16"),
    ):
        with pytest.raises(ValueError):
            predict(how, made)
    assert FRAMES.rows.keys() == {"ids", "f32", "int8"}
    assert LinkProfile(round_trip=0.0).up_bits == 0.0
