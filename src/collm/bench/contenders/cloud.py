"""The whole model in the cloud, streaming: as it is, and drafting with an exit of its own."""

from __future__ import annotations

from collm.bench.contender import BASELINE, Contender, Surroundings, answering
from collm.bench.quality_settings import BASELINE as CLOUD


def _self_speculation(around: Surroundings) -> tuple[str, ...]:
    return ("--exits", str(around.placement))


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
        note="the same, and the cloud drafts with its own exit at the placement: identical text",
        mode="cloud",
        start=answering(lambda _: CLOUD),
        cloud_arguments=_self_speculation,
    ),
)
