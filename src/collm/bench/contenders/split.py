"""The split without exits: each token asks the cloud, and both sides keep their caches."""

from __future__ import annotations

from collm.bench.contender import BASELINE, Contender, answering
from collm.bench.quality_settings import Setting

CONTENDERS = (
    Contender(
        name="fair split",
        kind=BASELINE,
        note="no exits: hidden states up and a token down, every token; KV caches on both sides",
        mode="verified",
        start=answering(
            lambda around: Setting(mode="verified", placement=around.placement, exits=())
        ),
    ),
)
