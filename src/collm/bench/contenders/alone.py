"""The edge writes first, or alone."""

from __future__ import annotations

from collm.bench.contender import OURS, Contender, answering
from collm.bench.quality_settings import Setting

CONTENDERS = (
    Contender(
        name="refine",
        kind=OURS,
        note="the edge writes segments, the cloud scores and corrects them",
        mode="refine",
        start=answering(lambda around: Setting(mode="refine", placement=around.placement)),
    ),
    Contender(
        name="standalone",
        kind=OURS,
        note="the edge alone: no cloud, and the exits' text",
        mode="standalone",
        start=answering(lambda around: Setting(mode="standalone", placement=around.placement)),
    ),
)
