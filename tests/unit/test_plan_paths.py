"""Draft paths in plans: measured, recorded, predicted, chosen where they fit, run as planned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import random_artifact
from tests.unit.plan_world import BLOCK, EXIT, device, flat, random_text, said, world
from tests.unit.test_profiles import HOSTILE

from collm.cli import auto
from collm.cli.plan import run_line, words_of
from collm.config import Generation
from collm.errors import UsageError
from collm.policy.cost_model import Candidate, World, is_lossless, memory_bytes, predict
from collm.policy.planner import OBJECTIVES, Wish, candidates, kind, plan
from collm.policy.profile_json import device_from_json, device_to_json
from collm.policy.profiles import Acceptance, DeviceProfile, PathCost, PathSays, PathSize, RowCost

MB = 10**6
TINY = PathSize(bytes=4 * MB, prefill_bytes=2 * MB, kv_bytes=400, head="short")
TINY_BYTES = 110_622_500
"""Base 100 MB, its own 4, its head 5, and of 100 positions 78 % of 2 MB and 600 bytes each."""
TEXTS = said(random_text(1, 24), random_text(2, 24))
TIGHT = Wish(memory_bytes=113 * MB)
"""The first cut takes 116."""


def with_paths(profile: DeviceProfile, **paths: tuple[PathSize, PathCost]) -> DeviceProfile:
    (costs,) = profile.costs
    costs = replace(costs, paths={name: cost for name, (_, cost) in paths.items()})
    sizes = {name: size for name, (size, _) in paths.items()}
    return replace(profile, paths=sizes, costs=(costs,))


def with_says(found: Acceptance, name: str, sure: Any, right: Any) -> Acceptance:
    one = PathSays(
        digest="d", confidences=np.asarray(sure, np.float32), right=np.asarray(right, np.bool_)
    )
    return replace(found, paths={**found.paths, name: one})


def a_world(size: PathSize = TINY, cost: float = BLOCK, **changes: Any) -> World:
    """A path `tiny` that says what the exit at 10 says, and takes as long."""
    found = with_says(TEXTS, "tiny", TEXTS.confidences[:, 0], TEXTS.right[:, 0])
    path = PathCost(rows=flat(cost), head=EXIT)
    return world(found, device=with_paths(device(), tiny=(size, path)), **changes)


def a_fast_world() -> World:
    """A cloud is near, and `tiny` is fast and good: right at five of six tokens."""
    made = a_world(cost=BLOCK / 4, trip=0.005)
    right = np.arange(TEXTS.tokens) % 6 != 5
    found = with_says(TEXTS, "tiny", np.full(TEXTS.tokens, 0.9), right)
    return replace(made, acceptance=found)


def on_path(**changes: Any) -> Candidate:
    return replace(Candidate(mode="verified", draft_path="tiny", threshold=0.5), **changes)


# ------------------------------------------------------------------- what is predicted


@pytest.mark.parametrize("ahead", [None, 0.0])
@pytest.mark.parametrize("draft", [2, 8])
@pytest.mark.parametrize("quota", [0.0, 0.5])
def test_a_path_is_predicted_as_an_exit_of_the_same_costs_and_record(
    ahead: float | None, draft: int, quota: float
) -> None:
    made = a_world(trip=0.03, rate=1e5)
    made = replace(made, device=replace(made.device, cpu_quota=quota))
    how = on_path(ahead=ahead, draft=draft)
    alike = predict(replace(how, draft_path="", placement=10, exits=(10,)), made)
    found = predict(how, made)
    assert replace(found, memory_bytes=0) == replace(alike, memory_bytes=0)
    assert found.rounds > 0 and found.bytes_up > 0 and found.agreement == 1


def test_a_lone_row_of_a_path_is_not_padded() -> None:
    def seconds(lone: float) -> float:
        cost = PathCost(rows=RowCost(rows=(1, 2, 1000), seconds=(lone, 1.0, 1.0)), head=0.0)
        profile = with_paths(device(), tiny=(TINY, cost))
        return predict(on_path(), replace(a_world(), device=profile)).edge_seconds

    assert seconds(0.1) < 0.8 * seconds(1.0)


def test_a_path_takes_its_layers_its_head_its_cache_and_no_block() -> None:
    assert memory_bytes(on_path(), a_world()) == TINY_BYTES
    assert memory_bytes(on_path(), a_world(context=200)) == 111 * MB + 200 * 600


@pytest.mark.parametrize(
    "wrong",
    [
        {"draft_path": "other"},
        {"wire": "f32"},
        {"placement": 10},
        {"mode": "threshold"},
        {"exits": (10,)},
    ],
)
def test_a_path_that_cannot_run_so_is_not_predicted(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        predict(on_path(**wrong), a_world())


# ------------------------------------------------------------------- what is chosen


def test_a_path_is_chosen_where_the_first_cut_does_not_fit_and_the_cloud_alone_is_slower() -> None:
    made = a_fast_world()
    found = plan(made, TIGHT)
    chosen, predicted = found.chosen.candidate, found.chosen.predicted
    assert chosen.draft_path == "tiny" and is_lossless(chosen)
    assert predicted is not None and predicted.memory_bytes <= 113 * MB
    assert predicted.token_seconds < predict(Candidate(mode="cloud"), made).token_seconds
    without = plan(replace(made, device=device()), TIGHT).chosen.candidate
    assert without.mode == "cloud"
    names = [kind(one.candidate, 30) for one in (found.chosen, *found.others)]
    assert len(set(names)) == len(names)
    assert {"verified, path tiny, ids", "verified, drafting ahead, path tiny, ids"} <= {*names}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_path_that_does_not_fit_is_never_chosen_and_it_is_said(objective: str) -> None:
    made = a_fast_world()
    wish = Wish(memory_bytes=TINY_BYTES - 1, objective=objective)
    found = plan(made, wish)
    assert not found.chosen.candidate.draft_path
    assert not any(one.candidate.draft_path for one in found.frontier)
    said_of = [one for one in found.others if one.candidate.draft_path]
    assert said_of and all(one.why_not == "does not fit: needs 111 MB of 111" for one in said_of)
    assert plan(made, replace(wish, memory_bytes=TINY_BYTES)).refused < found.refused


def test_a_path_that_is_slow_or_was_not_recorded_is_left_out() -> None:
    assert not plan(a_world(cost=1.0), TIGHT).chosen.candidate.draft_path
    unrecorded = replace(a_world(cost=1e-6), acceptance=TEXTS)
    assert not any(one.draft_path for one in candidates(unrecorded, Wish()))
    assert not any(one.draft_path for one in candidates(a_world(link=None, cloud=None), Wish()))


def test_paths_give_way_to_what_the_user_chose() -> None:
    made = a_world(cost=1e-6)
    for wish in (Wish(exits=(10,)), Wish(wire="f32"), Wish(modes=("cloud", "threshold"))):
        assert not any(one.draft_path for one in candidates(made, wish))
    wish = Wish(draft_path="tiny", threshold=0.33, draft=7, modes=("verified",))
    drafting = [one for one in candidates(made, wish) if one.placement < 30]
    assert {(one.draft_path, one.threshold, one.draft) for one in drafting} == {("tiny", 0.33, 7)}


def test_of_two_paths_that_fit_the_one_that_is_right_more_often_is_chosen() -> None:
    made = a_fast_world()
    cost = made.device.costs[0].paths["tiny"]
    profile = with_paths(device(), tiny=(TINY, cost), good=(TINY, cost))
    rows = TEXTS.tokens
    better = with_says(made.acceptance, "good", np.full(rows, 0.9), np.ones(rows))
    chosen = plan(replace(made, device=profile, acceptance=better), TIGHT).chosen.candidate
    assert chosen.draft_path == "good"


def test_words_and_the_command_name_the_path(tmp_path: Path) -> None:
    how = on_path(draft=4, ahead=0.0, threads=2)
    assert words_of(how, 30) == "verified, path tiny ≥ 0.5, ids, drafts of 4, ahead"
    assert run_line(Path("a"), how, a_world(), "h:1") == (
        "collm run a PROMPT --mode verified --draft-path tiny --threads 2 --threshold 0.5 "
        "--wire ids --draft 4 --ahead 0 --cloud h:1"
    )


def test_placement_auto_drafts_with_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    made = a_fast_world()
    made = replace(made, device=replace(made.device, memory_bytes=113 * MB))
    monkeypatch.setattr(auto, "plan_world", lambda *_, **__: made)
    asked = auto.Asked(
        generation=Generation(mode="auto"), exits=None, wire="f32", threads=1, given=()
    )
    with auto.AutoPlan(artifact, None, asked, 100) as planned:
        assert (planned.way.draft_path, planned.way.placement) == ("tiny", 0)
        assert planned.mode == planned.generation().mode == "verified"
        assert planned.generation().draft == planned.way.draft


# ------------------------------------------------------------------- profiles as JSON


def test_paths_survive_json_and_profiles_from_before_are_read() -> None:
    made = a_world().device
    assert device_from_json(device_to_json(made)) == made
    older = json.loads(device_to_json(device()))
    del older["paths"], older["costs"][0]["paths"]
    assert device_from_json(json.dumps(older)) == device()


def test_no_change_of_a_path_does_more_than_a_clear_refusal() -> None:
    def refused(where: str, name: str, value: Any) -> bool:
        data = json.loads(device_to_json(a_world().device))
        place = data if where == "size" else data["costs"][0]
        place["paths"]["tiny"][name] = value
        told = ""
        try:
            device_from_json(json.dumps(data))
        except UsageError as error:
            told = str(error)
        return 0 < len(told) < 400 and "\n" not in told

    for name in ("bytes", "prefill_bytes", "kv_bytes", "head"):
        assert all(refused("size", name, value) for value in HOSTILE), name
    for name in ("rows", "head"):
        assert all(refused("cost", name, value) for value in HOSTILE), name
    for paths in ({}, {"other": {}}, [], None, {"x" * 64: {}}, {str(n): {} for n in range(5000)}):
        data = json.loads(device_to_json(a_world().device))
        data["paths"] = paths
        with pytest.raises(UsageError):
            device_from_json(json.dumps(data))


def test_a_record_of_a_path_that_does_not_fit_its_texts_is_none() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        with_says(TEXTS, "short", [0.5], [True])
    with pytest.raises(ValueError, match="not 0 to 1"):
        with_says(TEXTS, "sure", np.full(TEXTS.tokens, 2.0), TEXTS.right[:, 0])
