"""Small worlds for the planner's tests: costs that can be added up by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from collm.policy.cost_model import FrameBytes, World
from collm.policy.profiles import (
    Acceptance,
    CloudProfile,
    DeviceProfile,
    LinkProfile,
    RowCost,
    ThreadCosts,
)

BLOCK, EXIT, HEAD = 0.010, 0.002, 0.003
CLOUD_ROW, CLOUD_HEAD, TRIP = 0.020, 0.005, 0.100
FRAMES = FrameBytes(
    append=40,
    ask=60,
    verdict=50,
    token=45,
    session=400,
    rows={"ids": 0, "f32": 400, "int8": 100},
)


def flat(seconds: float) -> RowCost:
    """A call costs the same whatever its rows."""
    return RowCost(rows=(1, 1000), seconds=(seconds, seconds))


def device(**changes: Any) -> DeviceProfile:
    """Three blocks of ten layers, exits after the first two."""
    costs = ThreadCosts(
        threads=1,
        blocks=(flat(BLOCK),) * 3,
        exits={10: flat(EXIT), 20: flat(EXIT)},
        head=flat(HEAD),
    )
    made = DeviceProfile(
        artifact="a" * 64,
        hardware="a test",
        software="test 1",
        bounds=(0, 10, 20, 30),
        costs=(costs,),
        cores=1,
        memory_bytes=10**9,
        base_bytes=10**8,
        block_bytes=(10**7,) * 3,
        exit_bytes={10: 10**6, 20: 10**6},
        exit_heads={10: "short", 20: "short"},
        head_bytes={"full": 3 * 10**7, "short": 5 * 10**6},
        prefill_bytes=(0, 0, 0),
        kv_bytes=(1000,) * 3,
        row_bytes=100,
    )
    return replace(made, **changes)


def cloud(**changes: Any) -> CloudProfile:
    """Costs a layer, whatever the rows, and the head."""
    costs = {cut: flat(CLOUD_ROW * (30 - cut) / 30) for cut in (0, 10, 20)}
    return replace(
        CloudProfile(fingerprint="f", layers=30, costs={**costs, 30: flat(CLOUD_HEAD)}), **changes
    )


def said(*texts: list[tuple[float, bool]], prompt: int = 8, seed: int | None = None) -> Acceptance:
    """Texts by what the exit at 10 says; the one at 20 is sure and right everywhere."""
    lengths = [len(text) for text in texts]
    shallow = [one for text in texts for one in text]
    confidences = np.array([[c, 1.0] for c, _ in shallow], dtype=np.float32)
    right = np.array([[r, True] for _, r in shallow], dtype=np.bool_)
    return Acceptance(
        fingerprint="f",
        exits_key="e",
        cuts=(10, 20),
        starts=np.cumsum([0, *lengths]).astype(np.int64),
        prompts=np.full(len(texts), prompt, dtype=np.int64),
        confidences=confidences,
        right=right,
        wires={"int8": {10: 0.97, 20: 0.99}},
    )


def random_text(seed: int, length: int) -> list[tuple[float, bool]]:
    """Confidences that are right about as often as they say."""
    random = np.random.default_rng(seed)
    sure = random.random(length)
    return [(float(c), bool(random.random() < c)) for c in sure]


def world(acceptance: Acceptance, trip: float = TRIP, rate: float = 0.0, **changes: Any) -> World:
    """All together."""
    link = LinkProfile(round_trip=trip, up_bits=rate, down_bits=rate, connect=2 * trip)
    made = World(
        device=device(), acceptance=acceptance, frames=FRAMES, link=link, cloud=cloud(), context=100
    )
    return replace(made, **changes)
