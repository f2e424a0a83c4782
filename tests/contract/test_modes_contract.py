"""Modes with exits over both links, on a tiny random model: who chose which token, and how."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.contract.test_session_contract import LIMITS, PROMPT, World, artifact, world
from tests.support import F32, RandomCheckpoint

from collm.config import Generation, Refinement, Sampling
from collm.errors import CollmError, PlacementError, PromptError
from collm.link.delayed import DelayedLink
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.model.build import build
from collm.runtime.stage import Stage
from collm.session.cloud import CloudService
from collm.session.edge import Edge
from collm.session.events import Account
from collm.wire.codec import cast_rows

__all__ = ["artifact", "world"]

THRESHOLD = Generation(mode="threshold", max_tokens=30, ignore_eos=True)
CRITERIA = (
    "confidence:0.1",
    "margin:0.02",
    "entropy:4.5",
    "patience:2",
    "window:0.08,over=4",
    "coherence:logprob=-9,boundary=0 & confidence:0.1",
    "hybrid:0.08,weight=0.1",
    "confidence:0.9 | margin:0.02",
)


def finish(edge: Edge, generation: Generation) -> Account:
    return edge.answer(PROMPT, replace(generation, mode=edge.mode)).finish()


class Split:
    """CE-CoLLM's decoding without any network: what the mode has to give."""

    def __init__(self, world: World, cuts: tuple[int, ...], placement: int, wire: str) -> None:
        artifact = world.artifact
        layers = artifact.architecture.layers
        self.cuts, self.wire = cuts, wire
        self.edge = Stage(artifact, range(placement), exits=cuts, limits=LIMITS)
        self.cloud = Stage(artifact, range(cuts[0], layers), limits=LIMITS)

    def text(self, threshold: float, tokens: int) -> Iterator[tuple[int, str]]:
        edge, cloud = self.edge.open(exact=False), self.cloud.open()
        sent = 0
        edge.append_ids(PROMPT)
        for _ in range(tokens):
            cloud.append_hidden(cast_rows(self.wire, edge.hidden_at(self.cuts[0], sent)))
            sent = edge.position
            for cut in self.cuts:
                made = edge.exit_at(cut)
                if made.confidence >= threshold:
                    token, source = made.token_id, f"exit@{cut}"
                    break
            else:
                token, source = int(cloud.logits(sent - 1)[-1].argmax()), "cloud"
            yield token, source
            edge.append_ids([token])


@pytest.mark.parametrize("wire", ["f32", "f16", "int8", "int4"])
def test_threshold_is_ce_collms_decoding(world: World, wire: str) -> None:
    edge = world.edge("threshold", 3, exits=(1, 2), wire=wire)
    sources = set()
    for threshold in (0.08, 0.12, 0.16):
        account = finish(edge, replace(THRESHOLD, threshold=threshold))
        expected = list(Split(world, (1, 2), 3, wire).text(threshold, 30))
        assert [(t.token_id, t.source) for t in account.tokens] == expected
        assert account.rounds == account.sources.get("cloud", 0)
        sources |= account.sources.keys()
    assert sources == {"exit@1", "exit@2", "cloud"}


def test_every_position_goes_up_once(world: World) -> None:
    account = finish(world.edge("threshold", 3), replace(THRESHOLD, threshold=0.13))
    (conversation,) = world.service.opened
    assert 0 < account.rounds < 30
    # All but the last token were sent (it has no state), the cloud ran what was there when asked.
    assert account.cloud_rows <= len(PROMPT) + 29
    assert account.cloud_heads == account.rounds
    row = world.artifact.architecture.hidden_size * 4 + 4
    assert account.bytes_up < (len(PROMPT) + 30) * (row + 40) + account.rounds * 60 + 200
    assert conversation is not None


def test_narrow_wire_formats_send_less(world: World) -> None:
    made = replace(THRESHOLD, threshold=0.13)
    sent = [
        finish(world.edge("threshold", 2, wire=w), made).bytes_up
        for w in ("f32", "f16", "int8", "int4", "ids")
    ]
    assert sent == sorted(sent, reverse=True)


@pytest.mark.parametrize("mode", ["verified", "threshold", "refine", "standalone"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_mode_takes_every_criterion(world: World, mode: str, criterion: str) -> None:
    if mode != "threshold" and criterion == CRITERIA[-1]:
        pytest.skip("one composition is enough")
    made = Generation(max_tokens=12, criterion=criterion, ignore_eos=True)
    account = finish(world.edge(mode, 3), made)
    assert len(account.tokens) == 12
    names = {name.strip() for name in criterion.replace("|", "&").split("&")}
    for token in account.tokens:
        if token.source.startswith("exit@"):
            assert token.by == "deepest exit" or names & {n.strip() for n in token.by.split("&")}
        else:
            assert token.by == "full model"
    assert account.coherence is not None
    assert account.coherence.tokens == 12
    if mode == "verified":
        whole = finish(world.edge("verified", 4), made)
        assert account.token_ids == whole.token_ids


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.1, seed=5)])
def test_refine_without_leniency_is_the_full_model(world: World, sampling: Sampling) -> None:
    strict = Refinement(segment=7, passes=100, rank=1)
    made = Generation(max_tokens=40, refinement=strict, ignore_eos=True, sampling=Sampling())
    whole = finish(world.edge("verified", 4), made)
    for placement in (1, 3):
        account = finish(world.edge("refine", placement), replace(made, sampling=sampling))
        assert account.token_ids == whole.token_ids
        assert account.logprob_after is not None and account.logprob_before is not None
        assert account.logprob_after >= account.logprob_before


def test_refine_reports_what_it_did(world: World) -> None:
    rules = Refinement(segment=10, passes=2, rank=2, gap=0.5)
    made = Generation(max_tokens=30, refinement=rules, ignore_eos=True)
    account = finish(world.edge("refine", 2), made)
    standalone = finish(world.edge("standalone", 2), made)
    assert len(account.tokens) == 30
    assert 3 <= len(account.passes) <= 9
    assert account.rounds == len(account.passes)
    mended = [one for one in account.passes if one.rejected is not None]
    assert account.sources["cloud"] == len(mended)
    assert all(one.kept <= one.scored for one in account.passes)
    assert account.token_ids != standalone.token_ids
    untouched = finish(
        world.edge("refine", 2), replace(made, refinement=replace(rules, rank=300, gap=100.0))
    )
    assert untouched.logprob_before == untouched.logprob_after
    assert untouched.sources.keys() <= {"exit@1", "exit@2"}


class Parrot(RandomCheckpoint):
    """Layers that say nothing: the likeliest token is the one before, for ever."""

    def floats(self, name: str) -> F32:
        made = super().floats(name)
        return made if "embed" in name or "norm" in name else made / 50


def test_lookup_drafts_leave_the_text_alone(tmp_path: Path) -> None:
    folder = tmp_path / "parrot"
    build(Parrot(), folder, cuts=(1, 2), weights="fp32")
    artifact = Artifact(folder)
    stage = Stage(artifact, range(artifact.architecture.layers), limits=LIMITS)
    made = Generation(max_tokens=60, ignore_eos=True, criterion="confidence:0.6")
    with MemoryCloud(CloudService(stage, LIMITS), LIMITS) as cloud:
        edge = Edge(artifact, mode="verified", placement=2, connect=cloud.connect, limits=LIMITS)
        plain = finish(edge, made)
        looked_up = finish(edge, replace(made, lookup=True))
    assert looked_up.token_ids == plain.token_ids
    assert looked_up.sources["lookup"] > 30
    assert looked_up.rounds <= plain.rounds


@pytest.mark.timed
def test_a_deadline_is_kept_when_the_cloud_is_late(world: World) -> None:
    slow = Edge(
        world.artifact,
        mode="threshold",
        placement=3,
        limits=LIMITS,
        connect=lambda: DelayedLink(world.dial(), 0.2),
    )
    made = replace(THRESHOLD, threshold=0.99, deadline_seconds=0.03)
    started = time.perf_counter()
    account = finish(slow, made)
    assert account.degraded == 30
    assert all(token.by == "deadline" for token in account.tokens)
    assert max(account.token_seconds) < 0.1  # 35 ms on an idle machine
    assert time.perf_counter() - started < 6
    again = finish(slow, made)  # what was learned about the cloud stays: nobody waits for it now
    assert float(np.median(again.token_seconds)) < 0.02


def test_a_deadline_costs_nothing_when_the_cloud_is_quick(world: World) -> None:
    made = replace(THRESHOLD, threshold=0.99)
    plain = finish(world.edge("threshold", 3), made)
    bounded = finish(world.edge("threshold", 3), replace(made, deadline_seconds=5.0))
    assert bounded.degraded == 0
    assert bounded.token_ids == plain.token_ids


def test_what_cannot_be_is_refused_in_one_line(world: World) -> None:
    with pytest.raises(PlacementError, match="leaves nothing to the cloud"):
        world.edge("threshold", 4)
    with pytest.raises(PlacementError, match="no exit to answer from"):
        world.edge("refine", 0)
    with pytest.raises(PlacementError, match="first cut 3: expected one of 0, 1, 2"):
        world.edge("threshold", 2, first_cut=3)
    with pytest.raises(
        PromptError, match="wire format 'f8': expected one of ids, f32, f16, int8, int4"
    ):
        world.edge("verified", 2, wire="f8")
    with pytest.raises(PromptError, match="mode 'fast': expected one of"):
        world.edge("fast", 2)
    edge = world.edge("threshold", 2)
    for criterion in ("sureness:0.5", "confidence:1.5", "confidence", "risk", "learned:none"):
        with pytest.raises(CollmError, match=criterion.split(":")[-1]) as caught:
            finish(edge, replace(THRESHOLD, criterion=criterion))
        assert "\n" not in str(caught.value)
