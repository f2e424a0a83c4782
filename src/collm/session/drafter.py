"""Asking the exits, shallowest first, until one is confident."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from collm.config import Sampling
from collm.policy.drafting import DraftRule
from collm.policy.sampling import choose, log_probability
from collm.runtime.stage import StageSession


@dataclass(frozen=True, slots=True)
class Guess:
    """An exit's token for the next position."""

    cut: int
    token_id: int
    confidence: float
    taken: bool
    """Whether the rule takes it; otherwise it is the deepest exit's, for want of a better one."""


class Drafter:
    """The exits of one session. A shallow exit that is confident spares the deeper layers."""

    def __init__(
        self, session: StageSession, cuts: Sequence[int], rule: DraftRule, sampling: Sampling
    ) -> None:
        self._session = session
        self._cuts = cuts
        self._rule = rule
        self._sampling = sampling

    def guess(self, ids: Sequence[int]) -> Guess | None:
        """The next token after `ids`, which the session holds; None where there are no exits."""
        made: Guess | None = None
        for cut in self._cuts:
            token_id, confidence = self._ask(cut, ids)
            made = Guess(cut, token_id, confidence, self._rule.takes(confidence))
            if made.taken:
                break
        return made

    def _ask(self, cut: int, ids: Sequence[int]) -> tuple[int, float]:
        sampling = self._sampling
        if sampling.temperature == 0.0 and sampling.repetition_penalty == 1.0:
            result = self._session.exit_at(cut)
            return result.token_id, result.confidence
        logits = self._session.exit_logits(cut)
        # The same noise as the cloud's: the draft is right when the distributions agree enough.
        token_id = choose(logits, sampling, len(ids), ids)
        return token_id, math.exp(log_probability(logits, token_id))
