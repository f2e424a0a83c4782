"""What the full model makes of a text: which tokens it would have chosen, or how it scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from collm.config import Sampling
from collm.policy.sampling import Allows, Alternatives, Made, likeliest, log_probability, make, only

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The full model's token at a position."""

    position: int
    sampling: Sampling
    made: Made


def judge(
    logits: F32,
    draft: Sequence[int],
    sampling: Sampling,
    position: int,
    seen: set[int],
    ids: Sequence[int] = (),
    allows: Allows | None = None,
) -> list[Made]:
    """The full model's tokens from `position` on, as far as the draft is right, and the next one.

    logits: float32 [len(draft) + 1, vocabulary]. seen: the ids before `position`; takes up the
    tokens. ids: the text as long as `position` at least; `allows` alone wants it.
    """
    text = list(ids[:position]) if allows is not None else []
    made: list[Made] = []
    for offset, drafted in enumerate((*draft, None)):
        allowed = allows.allowed(text) if allows is not None else None
        made.append(make(logits[offset], sampling, position + offset, seen, allowed))
        token = made[-1].token
        seen.add(token)
        if token != drafted:
            break
        text.append(token)
    return made


@dataclass(slots=True, kw_only=True)
class Scores:
    """Of a draft's tokens, and of the place after them; collected part by part."""

    allows: Allows | None
    top_logprobs: int
    text: list[int]
    """Up to the draft; grows with it. `allows` alone wants it."""

    logprobs: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    best: list[Made] = field(default_factory=list)

    def add(self, row: F32, drafted: int | None) -> None:
        """A place's logits, float32 [vocabulary], and the token drafted for it.

        What a constraint does not allow is neither the best nor ranks before anything.
        """
        allowed = self.allows.allowed(self.text) if self.allows is not None else None
        possible = only(row, allowed)
        best = int(possible.argmax())
        alternatives: Alternatives = likeliest(row, self.top_logprobs)
        self.best.append(Made(best, log_probability(row, best), alternatives))
        if drafted is None:
            return
        is_best = drafted == best
        self.logprobs.append(self.best[-1].logprob if is_best else log_probability(row, drafted))
        self.ranks.append(_rank(possible, drafted))
        self.text.append(drafted)


def _rank(logits: F32, token: int) -> int:
    """1 + tokens that are likelier, or as likely with a lower id: argmax has rank 1."""
    value = logits[token]
    before = np.count_nonzero(logits > value) + np.count_nonzero(logits[:token] == value)
    return 1 + int(before)
