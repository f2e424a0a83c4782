"""The whole model in the cloud, streaming: as it is, and drafting with an exit of its own."""

from __future__ import annotations

from collm.bench.contender import BASELINE, Contender, Surroundings, answering
from collm.bench.quality_settings import BASELINE as CLOUD


def _self_speculation(around: Surroundings) -> tuple[str, ...]:
    """The best of a sweep over exits, drafts and criteria (SmolLM2-135M: 10, 4, 0.7)."""
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
        note="the same, and the cloud drafts with its own exit after a third of the layers: identical text",
        mode="cloud",
        start=answering(lambda _: CLOUD),
        cloud_arguments=_self_speculation,
    ),
)
