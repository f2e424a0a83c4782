"""The text is the full model's: verified == cloud == the whole model in one process, with ==.

The quick form runs with every test run; the full one (`make exact`: 20 prompts, greedy and
sampled, 128 tokens, every placement, drafts of 1 to 16) takes about half an hour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from tests.e2e.prompts import PROMPTS

from collm.config import Generation, Sampling
from collm.limits import DEFAULT_LIMITS
from collm.link.base import Link
from collm.link.grpc_client import connect
from collm.model.artifact import Artifact
from collm.session.edge import Edge

GREEDY = Sampling()
WARM = Sampling(temperature=0.8, seed=7)
FUSSY = Sampling(temperature=0.9, top_k=40, top_p=0.9, seed=2**64 - 1, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def edge_of(artifact: Artifact, cloud: str) -> Callable[..., Edge]:
    """Edges by mode and placement, each loaded once, all linked to one cloud process."""
    dial: Callable[[], Link] = partial(connect, cloud, DEFAULT_LIMITS)
    loaded: dict[tuple[str, int], Edge] = {}

    def edge(mode: str, placement: int) -> Edge:
        key = mode, placement
        if key not in loaded:
            loaded[key] = Edge(artifact, mode=mode, placement=placement, connect=dial)
        return loaded[key]

    return edge


TRIED: dict[int, list[int]] = {}
"""Tokens drafted and tokens accepted, by placement."""


def ids_of(edge: Edge, prompt: str, generation: Generation) -> list[int]:
    ids = edge.tokenizer.encode_chat([{"role": "user", "content": prompt}])
    account = edge.answer(ids, generation).finish()
    if account.mode == "verified" and edge.placement < edge.artifact.architecture.layers:
        assert account.rounds > 0
        tried = TRIED.setdefault(edge.placement, [0, 0])
        tried[0] += account.drafted
        tried[1] += sum(t.source.startswith("exit@") for t in account.tokens)
    return account.token_ids


def check(
    edge_of: Callable[..., Edge], prompt: str, made: Generation, placements: list[int], draft: int
) -> int:
    """All ways of making an answer agree; returns its length."""
    reference = ids_of(edge_of("verified", 30), prompt, made)
    assert ids_of(edge_of("cloud", 15), prompt, replace(made, mode="cloud")) == reference
    for placement in placements:
        bold = replace(made, draft=draft)
        got = ids_of(edge_of("verified", placement), prompt, bold)
        assert got == reference, (prompt, placement, draft, made)
    return len(reference)


@pytest.mark.e2e
@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_verified_equals_cloud_equals_whole(edge_of: Callable[..., Edge], number: int) -> None:
    sampling = (GREEDY, WARM)[(number + number // 4) % 2]
    made = Generation(max_tokens=16, threshold=(0.6, 0.2, 0.0)[number % 3], sampling=sampling)
    placement = (5, 10, 15, 20)[number % 4]
    assert check(edge_of, PROMPTS[number], made, [placement], draft=1 + number % 16) > 0


@pytest.mark.e2e
def test_drafts_were_accepted_and_rejected_at_every_placement() -> None:
    """Otherwise the comparisons above would have compared nothing."""
    if not TRIED:
        pytest.skip("run with the comparisons above")
    for placement in (5, 10, 15, 20):
        drafted, accepted = TRIED[placement]
        assert 0 < accepted < drafted, placement


@pytest.mark.e2e
@pytest.mark.parametrize("placement", [0, 5, 15])
def test_sampling_settings_and_ids_only(edge_of: Callable[..., Edge], placement: int) -> None:
    made = Generation(max_tokens=24, threshold=0.3, sampling=FUSSY)
    check(edge_of, PROMPTS[3], made, [placement], draft=5)


@pytest.mark.e2e
def test_a_bold_draft_is_corrected_and_a_good_one_saves_trips(
    edge_of: Callable[..., Edge],
) -> None:
    """With threshold 0 every token is drafted: many are wrong, some are right."""
    edge = edge_of("verified", 15)
    ids = edge.tokenizer.encode_chat([{"role": "user", "content": PROMPTS[0]}])
    account = edge.answer(ids, Generation(max_tokens=48, threshold=0.0, draft=8)).finish()
    accepted = sum(t.source.startswith("exit@") for t in account.tokens)
    assert 0 < accepted < account.drafted
    assert account.rounds < len(account.tokens)
    # Rejected drafts were sent too, prompt and answer were sent once each: 576 float32 a row, of
    # which zstd takes a few per cent off.
    rows = account.prompt_tokens + account.rounds + account.drafted
    assert 0.85 * rows * 576 * 4 <= account.bytes_up <= rows * (576 * 4 + 64) + 4096


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_full(edge_of: Callable[..., Edge], number: int, sampling: Sampling) -> None:
    for step, placement in enumerate((5, 10, 15, 20)):
        draft = 1 + (number + step * 4) % 16
        made = Generation(max_tokens=128, threshold=0.3, sampling=sampling)
        check(edge_of, PROMPTS[number], made, [placement], draft)
