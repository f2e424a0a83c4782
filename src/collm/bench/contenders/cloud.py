"""The whole model in the cloud, streaming: as it is, and drafting with an exit of its own."""

from __future__ import annotations

from collm.bench.contender import BASELINE, Contender, Surroundings, answering
from collm.bench.quality_settings import BASELINE as CLOUD


def _self_speculation(around: Surroundings) -> tuple[str, ...]:
    """The best of a sweep with SmolLM2-135M: exit 10, drafts of 4, confidence 0.7."""
    layers = around.artifact.architecture.layers
    cuts = [entry.cut for entry in around.artifact.exits(None, layers) if entry.cut < layers]
    exit_cut = min(cuts, key=lambda cut: abs(cut - layers / 3), default=around.placement)
    return ("--exits", str(exit_cut), "--draft", "4", "--criterion", "confidence:0.7")


CONTENDERS = (
    Contender(
        name="plain cloud",
        kind=BASELINE,
        note="the whole model in the cloud, which streams token after token",
        mode="cloud",
        start=answering(lambda _: CLOUD),
    ),
    Contender(
        name="cloud, self-speculation",
        kind=BASELINE,
        note="the same, and the cloud drafts with an exit at a third of its layers: same text",
        mode="cloud",
        start=answering(lambda _: CLOUD),
        cloud_arguments=_self_speculation,
    ),
)
