"""Device, edge server and cloud as processes of the real model: the text is the whole model's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.e2e.prompts import PROMPTS

from collm.config import Generation
from collm.limits import DEFAULT_LIMITS
from collm.link.dialer import Dialer
from collm.model.artifact import Artifact
from collm.serve.spawn import Spawned, spawned_cloud
from collm.session.edge import Edge

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def servers(smollm2: Path, cloud: str) -> Iterator[list[Spawned]]:
    """Two edge servers below the cloud."""
    words = ["--blocks", "0:20", "--upstream", cloud, "--exits", "15,20"]
    words += ["--criterion", "confidence:0.5"]
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                spawned_cloud(smollm2, threads=1, limits=DEFAULT_LIMITS, arguments=words)
            )
            for _ in range(2)
        ]


def test_three_tiers_and_a_killed_server(artifact: Artifact, servers: list[Spawned]) -> None:
    """Each tier answers some tokens; what is verified is exact, also when the server dies."""
    doomed, sibling = servers
    made = Generation(max_tokens=32, ignore_eos=True, threshold=0.4)
    whole = Edge(artifact, mode="verified", placement=30)
    ids = whole.tokenizer.encode_chat([{"role": "user", "content": PROMPTS[0]}])
    wanted = whole.answer(ids, made).finish().token_ids

    mixed = Edge(artifact, mode="threshold", placement=10, first_cut=0,
                 connect=Dialer([doomed.address]))  # fmt: skip
    account = mixed.answer(ids, replace(made, mode="threshold", threshold=0.7)).finish()
    assert {source.split("@")[0] for source in account.sources} == {"exit", "server", "cloud"}
    assert account.rounds == sum(
        count for source, count in account.sources.items() if not source.startswith("exit")
    )

    edge = Edge(artifact, mode="verified", placement=10,
                connect=Dialer([doomed.address, sibling.address]))  # fmt: skip
    answer, told = edge.answer(ids, made), list[int]()
    for piece in answer:
        told.append(piece.token.token_id)
        if len(told) == 13:
            os.kill(doomed.pid, signal.SIGKILL)
    assert told == wanted
    assert answer.account.reconnects >= 1
