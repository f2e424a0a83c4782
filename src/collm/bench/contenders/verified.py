"""Drafts from the exits, verified in the cloud: exactly the full model's text."""

from __future__ import annotations

from collm.bench.contender import OURS, Contender, Surroundings, answering
from collm.bench.quality_settings import Setting


def _verified(around: Surroundings, lookup: bool) -> Setting:
    return Setting(
        mode="verified", placement=around.placement, criterion="confidence:0.6", lookup=lookup
    )


CONTENDERS = (
    Contender(
        name="verified",
        kind=OURS,
        note="the exits draft up to confidence 0.6, the cloud verifies: identical text",
        mode="verified",
        start=answering(lambda around: _verified(around, lookup=False)),
    ),
    Contender(
        name="verified, lookup",
        kind=OURS,
        note="the same, and drafts are also looked up in the text so far: identical text",
        mode="verified",
        start=answering(lambda around: _verified(around, lookup=True)),
    ),
)
