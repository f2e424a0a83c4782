"""Drafts that are right at a given rate: what the system would do with better exits, or worse.

An oracle reads its draft from the full model's own answer, recorded before, and spoils a share of
the words. The text stays the full model's, whatever it says: the cloud verifies its drafts too.

What it costs: with exits in use the deepest of them is run for every word, as for a draft of its
own, and what it says is thrown away. With none a word costs nothing, and the layers of the edge
run for the whole draft at once when it is uploaded: a ceiling for every kind of drafter.

Not covered: exits that would have spoken up at less depth, and mistakes that come in clusters.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from collm.errors import PromptError
from collm.policy.observation import Reading

ORACLE = "oracle"
"""Source of its tokens, and what let them pass."""


@dataclass(frozen=True)
class Oracle:
    """Drafts `ids`, each word with probability `rate`, else a wrong one; after them nothing.

    ids: the full model's recorded answer to the prompt. Raises PromptError for rates beyond 0 to 1.
    """

    ids: tuple[int, ...]
    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:  # false for NaN too
            raise PromptError(f"oracle's rate {self.rate}: expected 0 to 1, the share of its hits")

    def word(self, position: int, *, vocabulary: int, never: Collection[int]) -> int | None:
        """Its draft for this position of the answer, always the same; None beyond the recording.

        A wrong word is any of the vocabulary but the recorded one and those in `never`.
        """
        if position >= len(self.ids):
            return None
        right = self.ids[position]
        # The word is part of it, lest answers to all prompts be spoiled at the same places.
        chance = random.Random(f"{self.seed} {position} {right}")
        if chance.random() < self.rate:
            return right
        while (wrong := chance.randrange(vocabulary)) == right or wrong in never:
            pass
        return wrong


@dataclass(frozen=True, slots=True)
class OracleReading(Reading):
    """A word of an oracle; the cut is that of the exit that was run for it, 0 for none."""

    @property
    def source(self) -> str:
        """As tokens name it."""
        return ORACLE
