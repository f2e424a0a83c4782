"""Mode `auto`: verified where that is faster, the plain cloud elsewhere, chosen by measuring."""

from __future__ import annotations

from collections.abc import Sequence

from collm.bench.contender import OURS, Contender, Reply, SettingAnswerer, Surroundings
from collm.bench.quality_settings import Setting
from collm.session.steering import Steering, ways_of
from collm.wire.codec import LOSSLESS


class AutoAnswerer(SettingAnswerer):
    """One edge; what it has learnt belongs to the link that it learnt it over."""

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around, Setting(mode="auto", placement=around.placement))
        self._around = around
        cuts = [cut for cut in around.artifact.manifest.cuts if cut <= around.placement]
        self._ways = ways_of(self._edge.exits, cuts[::-1], LOSSLESS)
        self._steerings: dict[str, Steering] = {}

    def answer(self, prompt_ids: Sequence[int], tokens: int, own: Sequence[int]) -> Reply:
        """See `SettingAnswerer`."""
        link = str(getattr(self._around.connect, "link", ""))
        if link not in self._steerings:
            self._steerings[link] = Steering(self._around.artifact, self._ways)
        self._edge.steering = self._steerings[link]
        return super().answer(prompt_ids, tokens, own)


CONTENDERS = (
    Contender(
        name="auto",
        kind=OURS,
        note="verified or the plain cloud, whichever measurements say is faster: identical text",
        mode="auto",
        start=AutoAnswerer,
    ),
)
