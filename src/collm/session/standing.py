"""Where a client's session stands: its text as sent, what is asked, what its cloud may not know.

It is all that a cloud which lost the session, or another one, has to hear to go on with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from collm.config import Sampling
from collm.session.replay import ReplayLog
from collm.wire.encoding import encode
from collm.wire.messages import Ask


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
    may_exit: bool = False
    """Whether an exit on the way may answer."""
    void: bool = False
    """Known to be refused at its first token: the verdict before named another."""

    @property
    def drafted(self) -> int:
        """Tokens to be judged."""
        return len(self.draft)

    def frame(self, epoch: int, ids: Sequence[int] = (), *, knows_sampling: bool = False) -> bytes:
        """How it is asked. ids: of its last positions, which the cloud does not hold yet."""
        return encode(
            Ask(
                epoch=epoch,
                drafted=self.drafted,
                token_ids=tuple(ids),
                sampling=None if knows_sampling else self.sampling,
                may_exit=self.may_exit,
            )
        )


class Standing:
    """One session's; `connection.Resumable`."""

    def __init__(self, log: ReplayLog) -> None:
        self.log = log
        self.epoch = 0
        self.questions: deque[Question] = deque()
        """Unanswered, in the order they were asked."""
        self.keep = 0
        """Rows from here on may be asked for."""
        self.request: Callable[[], bytes] | None = None
        """Makes the frame of the Score or Generate under way."""
        self.told_to = 0
        """Positions from here on, of which only ids travel, go up with the next question."""
        self.told: Sampling | None = None
        """The sampling that the cloud has heard of last."""
        self.crops = 0
        """Crops since the cloud last began to hold the text."""
        self._lowest: int | None = None
        """Of the crops that no answer has confirmed: beyond it the cloud's text may be another."""

    def note_crop(self, position: int) -> None:
        """The text was cropped here, and the cloud does not know it yet."""
        self.crops += 1
        self._lowest = position if self._lowest is None else min(self._lowest, position)

    def note_answer(self, question: Question, accepted: int) -> None:
        """The cloud has answered, and so has heard what was sent before the question."""
        self.keep = question.base + accepted
        if question.crops == self.crops:
            self._lowest = None

    def crop(self, position: int) -> None:
        """The text ends here, in a new epoch."""
        self.epoch += 1
        self.log.crop(position)

    def standing(self) -> tuple[int, int]:
        """The epoch, and how many positions a cloud may keep."""
        # What was refused in advance needs no verdict from a cloud that takes the text up anew;
        # what was asked before a crop is not asked again.
        current = [one for one in self.questions if not one.void and one.epoch == self.epoch]
        self.questions = deque(current)
        places = [len(self.log), max(0, self.keep), *(one.base for one in current)]
        if self._lowest is not None:
            places.append(self._lowest)
        return self.epoch, min(places)

    def replay(self, position: int) -> Iterator[bytes]:
        """What a cloud that holds so many positions has to hear."""
        held = position
        self.crops, self._lowest, self.told = 0, None, None
        self.told_to = len(self.log)
        self.questions = deque(replace(one, crops=0) for one in self.questions)
        for question in tuple(self.questions):
            end = question.base + question.drafted + 1
            yield from self._frames(held, end)
            held = max(held, end)
            yield question.frame(self.epoch)
            self.told = question.sampling
        yield from self._frames(held, len(self.log))
        if self.request is not None:
            yield self.request()

    def _frames(self, start: int, end: int) -> Iterator[bytes]:
        """For a cloud that holds `start` positions, whatever it was last told of cut and format."""
        if self.log.has_changed:
            yield self.log.recut_frame(start, self.epoch)
        yield from self.log.frames(start, end, self.epoch)
