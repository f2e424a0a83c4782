"""The real model: the cut moves twenty times in mid-answer, and mode auto leaves the text alone."""

from __future__ import annotations

import random

import pytest
from tests.e2e.prompts import PROMPTS

from collm.config import Generation, Sampling, Way
from collm.limits import DEFAULT_LIMITS
from collm.link.grpc_client import connect
from collm.model.artifact import Artifact
from collm.session.client import CloudClient
from collm.session.drafter import Guess
from collm.session.edge import Edge
from collm.session.run import Run
from collm.wire.messages import Verdict

pytestmark = pytest.mark.e2e

MOVES = 20


class Wanderer:
    """Moves the cut at every verdict, at random, until it has done so often enough."""

    def __init__(self) -> None:
        self.random = random.Random(7)
        self.placements: list[int] = []

    def way(self, run: Run, client: CloudClient, verdict: Verdict) -> Way | None:
        if len(self.placements) == MOVES:
            return None
        others = [cut for cut in (0, 5, 10, 15, 20) if [cut] != self.placements[-1:]]
        placement = self.random.choice(others)
        self.placements.append(placement)
        return Way(
            placement=placement,
            wire=self.random.choice(["f32", "ids"]) if placement else "ids",
            threshold=self.random.choice([0.3, 0.6]),
            draft=self.random.choice([2, 8]),
            ahead=self.random.choice([None, 0.3]),
        )

    def judged(self, guess: Guess, token_id: int) -> None:
        pass

    def unusable(self, way: Way) -> None:
        pass

    def token(self, run: Run, client: CloudClient, cloud_seconds: float) -> None:
        pass


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=3)], ids=["greedy", "warm"]
)
def test_twenty_moves_of_the_cut_change_nothing(
    artifact: Artifact, cloud: str, sampling: Sampling
) -> None:
    made = Generation(max_tokens=64, ignore_eos=True, sampling=sampling)
    whole = Edge(artifact, mode="verified", placement=30)
    ids = whole.tokenizer.encode_chat([{"role": "user", "content": PROMPTS[1]}])
    wanted = whole.answer(ids, made).finish().token_ids
    edge = Edge(artifact, mode="verified", placement=15,
                connect=lambda: connect(cloud, DEFAULT_LIMITS))  # fmt: skip
    wanderer = Wanderer()
    assert edge.answer(ids, made, steer=wanderer).finish().token_ids == wanted
    assert len(wanderer.placements) == MOVES


def test_auto_gives_the_whole_models_text(artifact: Artifact, cloud: str) -> None:
    made = Generation(mode="auto", max_tokens=40, ignore_eos=True)
    whole = Edge(artifact, mode="auto", placement=30)
    ids = whole.tokenizer.encode_chat([{"role": "user", "content": PROMPTS[2]}])
    wanted = whole.answer(ids, made).finish().token_ids
    with Edge(artifact, mode="auto", placement=15, probe=True,
              connect=lambda: connect(cloud, DEFAULT_LIMITS)) as edge:  # fmt: skip
        for _ in range(3):
            account = edge.answer(ids, made).finish()
            assert account.token_ids == wanted
            assert account.changes
