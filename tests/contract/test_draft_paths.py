"""Whatever drafts, the text is the full model's: draft paths, sound and senseless ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.exit_files import exit_file
from tests.support import random_artifact

from collm.config import Generation, Sampling
from collm.limits import Limits
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.model.drafts import DraftPlan, add_draft
from collm.runtime.stage import Stage
from collm.session.cloud import CloudService
from collm.session.edge import Edge

LIMITS = Limits(kv_step=16, prefill_rows=8)
PROMPT = [5, 9, 40, 77, 3, 120, 8]
GREEDY = Sampling()
WARM = Sampling(temperature=1.3, top_p=0.95, seed=11, repetition_penalty=1.3)
PATHS = {
    "all": DraftPlan(name="all", cut=3, layers=(0, 1, 2)),
    "first": DraftPlan(name="first", cut=1, layers=(0,), weights="int8"),
    "few": DraftPlan(name="few", cut=3, layers=(2,), channels={2: np.arange(32, 64)}),
    "none": DraftPlan(name="none", cut=3, layers=()),
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Every path but the first ends in an exit of random numbers."""
    root: Path = tmp_path_factory.mktemp("tiny")
    made = random_artifact(root / "a", cuts=(1, 2, 3), weights="int4", max_position_embeddings=96)
    for seed, plan in enumerate(PATHS.values()):
        path = root / f"{plan.name}.safetensors"
        exit_file(path, made.architecture, plan.cut, "layer", feed=(0,), shortlist=90, seed=seed)
        add_draft(made.folder, plan, None if plan.name == "all" else path)
    return Artifact(made.folder)


@pytest.fixture(scope="module")
def cloud(artifact: Artifact) -> Iterator[MemoryCloud]:
    stage = Stage(artifact, range(artifact.architecture.layers), limits=LIMITS)
    with MemoryCloud(CloudService(stage, LIMITS), LIMITS) as made:
        yield made


def edge(
    artifact: Artifact,
    cloud: MemoryCloud,
    placement: int,
    draft: str | None = None,
    exits: tuple[int, ...] | None = None,
) -> Edge:
    return Edge(artifact, mode="verified", placement=placement, connect=cloud.connect,
                limits=LIMITS, draft=draft, exits=exits)  # fmt: skip


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("path", PATHS)
def test_the_text_is_the_full_models(
    artifact: Artifact, cloud: MemoryCloud, path: str, sampling: Sampling
) -> None:
    made = Generation(max_tokens=40, sampling=sampling, ignore_eos=True)
    reference = edge(artifact, cloud, 4).answer(PROMPT, made).finish().token_ids
    assert len(reference) == 40
    drafting = edge(artifact, cloud, 0, path)
    for draft, threshold, ahead in ((1, 0.0, None), (8, 0.0, None), (5, 0.02, 0.0), (3, 0.9, None)):
        bold = replace(made, draft=draft, threshold=threshold, ahead=ahead)
        account = drafting.answer(PROMPT, bold).finish()
        assert account.token_ids == reference, (draft, threshold, ahead)
        assert account.drafted or threshold


def test_only_token_ids_go_up(artifact: Artifact, cloud: MemoryCloud) -> None:
    made = Generation(max_tokens=30, threshold=0.0, draft=8, ignore_eos=True)
    by_path = edge(artifact, cloud, 0, "all").answer(PROMPT, made).finish()
    by_blocks = edge(artifact, cloud, 3).answer(PROMPT, made).finish()
    assert by_path.drafted > 20
    # Of a position less goes up than a hidden state of 64 floats takes.
    positions = len(PROMPT) + len(by_path.token_ids)
    assert by_path.bytes_up < 64 * 4 * positions < by_blocks.bytes_up


def test_a_path_of_all_layers_drafts_what_the_blocks_do(
    artifact: Artifact, cloud: MemoryCloud
) -> None:
    # The exit is the untrained one of both; prompts are run in several rows by both, and answers
    # in one by the path alone, which may now and then round a guess to another.
    made = Generation(max_tokens=40, threshold=0.0, draft=4, ignore_eos=True)
    by_path = edge(artifact, cloud, 0, "all").answer(PROMPT, made).finish()
    by_blocks = edge(artifact, cloud, 3, exits=(3,)).answer(PROMPT, made).finish()
    assert by_path.token_ids == by_blocks.token_ids
    assert abs(by_path.rounds - by_blocks.rounds) <= 2
