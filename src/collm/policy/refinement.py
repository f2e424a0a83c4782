"""Which tokens of a written segment stand, once the full model has scored them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from collm.config import Refinement


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of the segment beside what the full model would have written there."""

    token_id: int
    logprob: float
    """Under the full model, in nats."""
    rank: int
    """Among the full model's tokens, 1 the likeliest."""
    best_id: int
    best_logprob: float
    repetition: float = 0.0
    """`Coherence.repetition` of the text up to and with this token."""


def stands(token: ScoredToken, rules: Refinement) -> bool:
    """Whether a token is good enough to stay.

    It is when the full model ranks it among the first `rules.rank` and gives it at most
    `rules.gap` nats less than its own choice (typical acceptance as in Medusa, arXiv 2401.10774,
    with a gap instead of an entropy), and when it does not go on with a loop: `rules.repetition`
    bounds the share of repeated n-grams. The full model's own choice always stands.
    """
    if token.token_id == token.best_id:
        return True
    if token.repetition > rules.repetition:
        return False
    return token.rank <= rules.rank and token.best_logprob - token.logprob <= rules.gap


def first_fallen(tokens: Sequence[ScoredToken], rules: Refinement) -> int | None:
    """The index of the first token that does not stand, or None."""
    return next((i for i, token in enumerate(tokens) if not stands(token, rules)), None)
