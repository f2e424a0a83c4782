"""Verified with drafts that are right at a given rate: the system's ceiling, whatever the exits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collm.bench.contender import CEILING, Contender, SettingAnswerer, Surroundings
from collm.bench.quality_settings import Setting
from collm.session.oracle import Oracle

_AHEAD = 0.3
_RATES = (0.3, 0.5, 0.7, 0.9, 1.0)


class OracleAnswerer(SettingAnswerer):
    """Drafts the full model's recorded answer, spoiled now and then.

    is_free: without the deepest exit, which is run for every draft otherwise.
    """

    def __init__(
        self, around: Surroundings, rate: float, *, ahead: float | None, is_free: bool = False
    ) -> None:
        exits = () if is_free else None
        placement = around.placement
        super().__init__(
            around, Setting(mode="verified", placement=placement, exits=exits, ahead=ahead)
        )
        self._rate = rate

    def extras(self, own: Sequence[int]) -> dict[str, Any]:
        """The recorded answer."""
        return {"oracle": Oracle(ids=tuple(own), rate=self._rate, seed=self.seed)}


def _oracle(rate: float) -> Contender:
    return Contender(
        name=f"verified, oracle {rate:g}",
        kind=CEILING,
        note=f"drafts are the full model's recorded text, {rate:.0%} of them right: identical text",
        mode="verified",
        start=lambda around: OracleAnswerer(around, rate, ahead=_AHEAD),
    )


CONTENDERS = (
    *(_oracle(rate) for rate in _RATES),
    Contender(
        name="verified, oracle 0.9, waiting",
        kind=CEILING,
        note="the same at 90 %, and the edge waits for each verdict",
        mode="verified",
        start=lambda around: OracleAnswerer(around, 0.9, ahead=None),
    ),
    Contender(
        name="verified, free oracle 0.9",
        kind=CEILING,
        note="the same at 90 %, drafting ahead, and drafts cost the edge its layers but no exit",
        mode="verified",
        start=lambda around: OracleAnswerer(around, 0.9, ahead=_AHEAD, is_free=True),
    ),
)
