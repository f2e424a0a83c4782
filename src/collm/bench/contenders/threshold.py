"""CE-CoLLM: an exit's word stands where it is confident, else the cloud is asked."""

from __future__ import annotations

from collm.bench.contender import OURS, Contender, Surroundings, answering
from collm.bench.quality_settings import Setting


def _paper(criterion: str, around: Surroundings) -> Setting:
    """The paper's layout: two exits, the cloud from the first on, half precision on the wire."""
    cuts = [entry.cut for entry in around.artifact.exits(None, around.placement)]
    ends = tuple(sorted({cuts[0], cuts[-1]})) if cuts else ()
    return Setting(
        mode="threshold",
        placement=around.placement,
        criterion=criterion,
        exits=ends,
        first_cut=ends[0] if ends else None,
        wire="f16",
    )


def _late(around: Surroundings) -> Setting:
    return Setting(
        mode="threshold",
        placement=around.placement,
        criterion="confidence:0.8",
        first_cut=around.placement,
        wire="f16",
    )


_WORDS = "exits' tokens stand from {}; the cloud begins at the first exit (the paper's layout)"
CONTENDERS = (
    Contender(
        name="threshold 0.8",
        kind=OURS,
        note=_WORDS.format("confidence 0.8 on"),
        mode="threshold",
        start=answering(lambda around: _paper("confidence:0.8", around)),
    ),
    Contender(
        name="threshold 0.9",
        kind=OURS,
        note=_WORDS.format("confidence 0.9 on"),
        mode="threshold",
        start=answering(lambda around: _paper("confidence:0.9", around)),
    ),
    Contender(
        name="threshold risk",
        kind=OURS,
        note=_WORDS.format("the thresholds calibrated for a bound on risk on"),
        mode="threshold",
        start=answering(lambda around: _paper("risk", around)),
    ),
    Contender(
        name="threshold 0.8, late cut",
        kind=OURS,
        note="exits' tokens stand from confidence 0.8 on; the cloud begins at the placement",
        mode="threshold",
        start=answering(_late),
    ),
)
