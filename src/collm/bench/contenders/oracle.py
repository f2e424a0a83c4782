"""Verified with drafts that are right at a given rate: the system's ceiling, whatever the exits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collm.bench.contender import CEILING, Contender, SettingAnswerer, Surroundings
from collm.bench.quality_settings import Setting
from collm.session.oracle import Oracle


class OracleAnswerer(SettingAnswerer):
    """Drafts the full model's recorded answer, spoiled now and then."""

    def __init__(self, around: Surroundings, rate: float) -> None:
        super().__init__(around, Setting(mode="verified", placement=around.placement))
        self._rate = rate

    def extras(self, own: Sequence[int]) -> dict[str, Any]:
        """The recorded answer."""
        return {"oracle": Oracle(ids=tuple(own), rate=self._rate, seed=self.seed)}


CONTENDERS = (
    Contender(
        name="verified, oracle 0.9",
        kind=CEILING,
        note="drafts are the full model's recorded text, right 9 times in 10: identical text",
        mode="verified",
        start=lambda around: OracleAnswerer(around, 0.9),
    ),
)
