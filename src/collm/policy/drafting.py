"""When to go on drafting and when to ask the cloud."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DraftRule:
    """Draft while an exit is confident, up to a length.

    Source: CE-CoLLM's confidence threshold (arXiv 2411.02829), applied to runs of tokens.
    """

    threshold: float
    limit: int

    def takes(self, confidence: float) -> bool:
        """Whether a guess of this confidence becomes a draft."""
        return confidence >= self.threshold

    def goes_on(self, drafted: int, remaining: int) -> bool:
        """Whether there is room for another draft, with `remaining` tokens still to emit.

        The cloud's own next token follows every verdict, so the last token is never drafted.
        """
        return drafted < min(self.limit, remaining - 1)
