"""What a client has asked and not heard, and what its cloud may not have heard of."""

from __future__ import annotations

from dataclasses import dataclass

from collm.config import Sampling
from collm.wire.encoding import encode
from collm.wire.messages import Verify


@dataclass(frozen=True, slots=True)
class Question:
    """A Verify without its verdict."""

    epoch: int
    base: int
    draft: tuple[int, ...]
    sampling: Sampling
    asked_at: float
    rows: int
    """Positions that the cloud has to run for it."""
    crops: int
    """Crops that the cloud has heard of when it answers."""
    may_go_on: bool = False
    """Whether the text may go on before the verdict is there."""
    void: bool = False
    """Known to be refused at its first token: the verdict before named another."""

    @property
    def drafted(self) -> int:
        """Tokens to be judged."""
        return len(self.draft)

    def frame(self, epoch: int) -> bytes:
        """How it is asked."""
        message = Verify(epoch=epoch, base=self.base, draft=self.draft, sampling=self.sampling)
        return encode(message)


@dataclass(slots=True)
class Unheard:
    """Crops that the cloud may not have heard of: beyond them its text may be another."""

    crops: int = 0
    """Made so far."""
    lowest: int | None = None

    def note(self, position: int) -> None:
        """The text was cropped here."""
        self.crops += 1
        self.lowest = position if self.lowest is None else min(self.lowest, position)

    def heard(self, crops: int) -> None:
        """The cloud answered what was asked after so many crops."""
        if crops == self.crops:
            self.lowest = None
