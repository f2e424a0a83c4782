"""Drafts from the exits, verified in the cloud: exactly the full model's text."""

from __future__ import annotations

from dataclasses import replace

from collm.bench.contender import OURS, Contender, Surroundings, answering
from collm.bench.quality_settings import Setting


def _verified(around: Surroundings, *, lookup: bool, is_ahead: bool = False) -> Setting:
    made = Setting(
        mode="verified", placement=around.placement, criterion="confidence:0.6", lookup=lookup
    )
    if not is_ahead:
        return made
    # The edge has no time to spare: the deepest exit alone costs less than all in turn.
    deepest = [entry.cut for entry in around.artifact.exits(None, around.placement)][-1:]
    return replace(made, exits=tuple(deepest), ahead=0.3)


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
    Contender(
        name="verified, ahead",
        kind=OURS,
        note="the deepest exit drafts, and drafts on while a verdict is awaited: identical text",
        mode="verified",
        start=answering(lambda around: _verified(around, lookup=False, is_ahead=True)),
    ),
    Contender(
        name="verified, lookup, ahead",
        kind=OURS,
        note="both: drafts looked up as well, and drafting on: identical text",
        mode="verified",
        start=answering(lambda around: _verified(around, lookup=True, is_ahead=True)),
    ),
)
