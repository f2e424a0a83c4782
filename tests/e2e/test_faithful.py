"""The default artifact chooses the tokens that the dequantised fp32 model would choose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collm.bench.agreement import exact_argmaxes
from collm.bench.reference import Reference
from collm.model.artifact import Artifact
from collm.model.sources import resolve_source
from collm.runtime.stage import Stage

CHAT = Path(__file__).parent / "chat.jsonl"
"""Chats (token ids) that the fp32 model wrote, half greedily: text that favours neither side."""


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_argmaxes_agree_with_the_dequantised_model(artifact: Artifact) -> None:
    """Teacher-forced on more than 1,000 tokens of chat, against Transformers."""
    ours = exact_argmaxes(Stage(artifact, range(30), threads=2))
    reference = Reference(resolve_source("smollm2"))
    hits = total = 0
    for line in CHAT.read_text().splitlines():
        chat = json.loads(line)
        theirs = reference.argmaxes(chat["prompt"], chat["answer"])
        mine = ours(chat["prompt"], chat["answer"])
        hits += sum(a == b for a, b in zip(mine, theirs, strict=True))
        total += len(theirs)
    assert total >= 1000
    assert hits / total >= 0.97, (hits, total)
