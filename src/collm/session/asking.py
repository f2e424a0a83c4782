"""Questions to a cloud: positions go up, drafts are judged, and verdicts come in order.

A question with an empty draft ("which token comes next?") changes nothing in the cloud, so its
answer may be given up: it is recognised when it comes after all, and never taken for another's.
A draft's verdict says where the text was cropped. Until it is there the text may only be gone on
with, on the guess that the draft stands: more rows, more questions. Where it does not stand the
cloud passes over what was sent on that guess, as both sides count crops (epochs).

Where the link breaks the session goes on over another one (`connection.py`), from what the log
holds: nothing that was asked is lost, and nothing is answered twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from collm import __version__, metrics
from collm.config import Sampling
from collm.errors import CloudAway, LinkTimeout, ProtocolError
from collm.limits import Limits
from collm.link.base import Closing, Link
from collm.link.clock import REAL_CLOCK, Clock
from collm.session.answers import check_verdict
from collm.session.connection import Connection
from collm.session.replay import ReplayLog
from collm.session.standing import Question, Standing
from collm.wire.encoding import encode
from collm.wire.handshake import hello_of
from collm.wire.messages import (
    CONSTRAINT_MINOR,
    CloudMessage,
    Crop,
    Scored,
    Verdict,
    Welcome,
)

_MOST_HELD_BACK = 64
F32 = npt.NDArray[np.float32]
M = TypeVar("M", Welcome, Verdict, Scored)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What a session with a cloud has taken so far."""

    bytes_up: int = 0
    bytes_down: int = 0
    reconnects: int = 0
    replayed_bytes: int = 0
    rows_run: int = 0
    heads_run: int = 0


class Asking(Closing):
    """One session with a cloud, and its questions; `CloudClient` is the whole.

    Rows go up in the background; verdicts are waited for, or not.

    wire_format: one of `wire.codec.ROW_FORMATS`; at cut 0 token ids travel alone. dial: makes
    another link where `link` breaks; None: the session ends with it. link: None where none is up
    yet. begin_offline, is_unwanted: as for `Connection`.
    Raises Refused, LinkError and ProtocolError, as all of its methods do.
    """

    def __init__(
        self,
        link: Link | None,
        *,
        fingerprint: str,
        cut: int,
        vocabulary: int,
        limits: Limits,
        wire_format: str = "f32",
        dial: Callable[[], Link] | None = None,
        clock: Clock = REAL_CLOCK,
        begin_offline: bool = False,
        is_unwanted: Callable[[], bool] | None = None,
    ) -> None:
        self._clock = clock
        self._began_at = clock.now()
        self._vocabulary = vocabulary
        self._limits = limits
        wire_format = wire_format if cut else "ids"
        self._at = Standing(ReplayLog(cut, wire_format, limits))
        self._late: deque[tuple[Verdict, float]] = deque(maxlen=limits.max_questions)
        self._run_to = 0
        self.sent = 0
        """Positions appended."""
        self.rows_run = 0
        """Positions that the cloud has run through its layers for us, those run again too.

        Its own exits, where it drafts with them, are not in here.
        """
        self.answered_in = 0.0
        """Seconds from the last answered question to its verdict."""
        self.heads_run = 0
        """Positions at which it has computed logits for us."""
        hello = hello_of(f"collm {__version__}", fingerprint, cut, wire_format)
        self.connection = Connection(
            link, hello, self._at, limits, dial, clock, begin_offline, is_unwanted
        )

    @property
    def is_old(self) -> bool:
        """Whether an answer that begins now might outlast the session's lifetime."""
        return self._clock.now() - self._began_at > self._limits.lifetime_seconds / 2

    @property
    def bytes_up(self) -> int:
        """Bytes sent so far."""
        return self.connection.bytes_up

    @property
    def bytes_down(self) -> int:
        """Bytes received so far."""
        return self.connection.bytes_down

    def counts(self) -> Counts:
        """What was counted up to now."""
        return Counts(
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            reconnects=self.connection.reconnects,
            replayed_bytes=self.connection.replayed,
            rows_run=self.rows_run,
            heads_run=self.heads_run,
        )

    def append(self, ids: Sequence[int], rows: F32 | None, *, settled: bool = False) -> None:
        """Queue the next positions: ids, and their rows float32 [n, d] unless the cut is 0.

        settled: they will not be taken back, and the cloud may run them before it is asked.
        """
        if not all(one.may_go_on for one in self._at.questions):
            self._check_settled()
        self._at.log.extend(ids, rows)
        self.sent = len(self._at.log)
        if rows is not None or settled or self.sent - self._at.told_to > _MOST_HELD_BACK:
            self._tell(settled=settled)

    def _tell(self, *, settled: bool = False) -> None:
        """Send the positions that were held back."""
        start, self._at.told_to = self._at.told_to, self.sent
        for frame in self._at.log.frames(start, self.sent, self._at.epoch, settled=settled):
            self.connection.send(frame)

    def ask(self, sampling: Sampling, *, may_exit: bool = False) -> None:
        """Ask which token comes after the appended ones, without waiting: `collect` or `late`.

        may_exit: exits of servers on the way may answer; the verdict's `exit_cut` says so.
        Raises LinkTimeout when `limits.max_questions` are unanswered.
        """
        self._check_settled()
        self._ask((), sampling, may_exit=may_exit)

    def submit(self, draft: Sequence[int], sampling: Sampling) -> None:
        """As `verify`, without waiting: the verdict is `poll`'s.

        A draft that goes on from one not judged yet begins with a guess at the token that comes
        after that. Raises LinkTimeout when `limits.max_questions` are unanswered.
        """
        self._ask(tuple(draft), sampling, may_go_on=True)

    def poll(self, *, wait: bool, while_up: bool = False) -> Verdict | None:
        """The verdict on the oldest question; None where it is not there yet, or none is awaited.

        Where it crops the text, or ends with another token than the next question's draft begins
        with, the questions after it are taken back, and all that was appended for them.
        wait: for at most `limits.verdict_seconds`; raises LinkTimeout then. Where the link breaks
        meanwhile that begins anew once there is another. while_up: do not wait for that one, but
        return None.
        """
        while self._at.questions:
            try:
                verdict, _ = self._next_verdict(None if wait else 0.0, while_up=while_up)
            except CloudAway:
                return None
            except LinkTimeout:
                if wait:
                    raise
                return None
            if verdict is not None:
                return verdict
        return None

    @property
    def outstanding(self) -> int:
        """Questions whose verdicts have not been received, nor can be foretold."""
        return sum(not one.void for one in self._at.questions)

    def collect(self, timeout: float | None = None, *, while_up: bool = False) -> Verdict:
        """The verdict on the newest question. Older ones that come first are kept for `late`.

        Raises LinkTimeout as `verify` does, ValueError when nothing was asked. while_up: raises
        CloudAway while there is no link; the question stays asked.
        """
        if not self._at.questions:
            raise ValueError("no question is outstanding; ask first")
        given_up_at = None if timeout is None else self._clock.now() + timeout
        while True:
            left = None if given_up_at is None else max(0.0, given_up_at - self._clock.now())
            verdict, seconds = self._next_verdict(left, while_up=while_up)
            if verdict is None:
                continue
            if not self._at.questions:
                return verdict
            self._late.append((verdict, seconds))

    def late(self) -> list[tuple[Verdict, float]]:
        """Verdicts nobody waited for that are here by now, with the seconds since each was asked.

        Never waits. The seconds end when a verdict is taken from the link: look often.
        """
        while self._at.questions and not self._at.questions[0].drafted:
            try:
                verdict, seconds = self._next_verdict(0.0)
            except LinkTimeout:
                break
            if verdict is not None:
                self._late.append((verdict, seconds))
        taken = list(self._late)
        self._late.clear()
        return taken

    def crop(self, position: int) -> None:
        """Take back every position from `position` on.

        What was verified or scored stays so: positions before the last question's base cannot
        become the base of another.
        """
        self._check_settled()
        if not 0 <= position <= self.sent:
            raise ValueError(f"a crop to {position} of {self.sent} positions")
        self._tell()
        self.connection.send(encode(Crop(epoch=self._at.epoch + 1, position=position)))
        self._at.note_crop(position)
        self._cropped(position)

    def recut(self, cut: int, wire_format: str) -> None:
        """Rows to come are from another cut, or in another format. Needs that no draft is out."""
        self._check_settled()
        wire_format = wire_format if cut else "ids"
        if (cut, wire_format) != (self._at.log.cut, self._at.log.wire_format):
            self.rows_run += self._run_to if cut < self._at.log.cut else 0
            self._tell()
            self._at.log.recut(cut, wire_format)
            self.connection.send(self._at.log.recut_frame(self.sent, self._at.epoch))

    def _ask(
        self,
        draft: tuple[int, ...],
        sampling: Sampling,
        *,
        may_go_on: bool = False,
        may_exit: bool = False,
    ) -> None:
        if len(self._at.questions) >= self._limits.max_questions:
            raise LinkTimeout(f"the cloud has left {len(self._at.questions)} questions unanswered")
        self._require(sampling)
        base = self.sent - len(draft) - 1
        question = Question(
            epoch=self._at.epoch,
            base=base,
            draft=draft,
            sampling=sampling,
            asked_at=self._clock.now(),
            rows=self.sent - self._run_to,
            crops=self._at.crops,
            may_go_on=may_go_on,
            may_exit=may_exit,
        )
        self._at.questions.append(question)
        ids, self._at.told_to = self._at.log.ids(self._at.told_to), self.sent
        knows_sampling, self._at.told = self._at.told == sampling, sampling
        frame = question.frame(self._at.epoch, ids, knows_sampling=knows_sampling)
        self.connection.send(frame)
        self._count(len(draft) + 1)

    def _require(self, sampling: Sampling) -> None:
        """Raises Refused where the cloud is too old to keep to it."""
        if sampling.constraint is not None or sampling.top_logprobs:
            self.connection.require(CONSTRAINT_MINOR)

    def _next_verdict(
        self, timeout: float | None, *, while_up: bool = False
    ) -> tuple[Verdict | None, float]:
        """The verdict on the oldest question, None where it was void, and the seconds it took.

        Raises LinkTimeout.
        """
        reply = self.connection.receive(timeout, while_up=while_up)
        if not self._at.questions:  # only void ones were out, and another cloud is not asked them
            self.connection.push_back(reply)
            return None, 0.0
        verdict = _of_kind(Verdict, reply)
        question = self._at.questions.popleft()  # the cloud answers in order
        check_verdict(verdict, question, self._vocabulary)
        self._at.note_answer(question, verdict.accepted)
        seconds = self._clock.now() - question.asked_at
        self.answered_in = seconds
        metrics.ANSWER_SECONDS.observe(seconds)
        if question.void:
            return None, seconds
        end = question.base + verdict.accepted + 1
        if verdict.accepted < question.drafted:
            self._take_back(end)
        elif self._at.questions:
            following = self._at.questions[0]
            if following.may_go_on and following.draft[:1] not in ((), (verdict.next_token,)):
                # The cloud, too, refuses that draft at once, and passes over those after it.
                self._take_back(end)
                self._at.note_crop(end)
                self._at.questions.append(replace(following, void=True, crops=self._at.crops))
        return verdict, seconds

    def _take_back(self, position: int) -> None:
        """The text ends here, and the cloud runs nothing for what was asked on its going on."""
        self.rows_run -= sum(one.rows for one in self._at.questions)
        self.heads_run -= sum(one.drafted + 1 for one in self._at.questions)
        self._at.questions.clear()
        self._cropped(position)

    def _check_settled(self) -> None:
        if any(one.drafted and not one.void for one in self._at.questions):
            raise ProtocolError(
                "a draft's verdict is still awaited and may crop the text; collect it first"
            )

    def _count(self, heads: int) -> None:
        """Note that the cloud was asked to run what is pending and to compute some logits."""
        self.rows_run += self.sent - self._run_to
        self._run_to = self.sent
        self.heads_run += heads

    def _cropped(self, position: int) -> None:
        self._at.crop(position)
        self.sent = position
        self._at.told_to = min(self._at.told_to, position)
        self._run_to = min(self._run_to, position)

    def _expect(self, kind: type[M], timeout: float | None = None, *, while_up: bool = False) -> M:
        return _of_kind(kind, self.connection.receive(timeout, while_up=while_up))


def _of_kind(kind: type[M], reply: CloudMessage) -> M:
    if not isinstance(reply, kind):
        raise ProtocolError(f"expected a {kind.__name__}, got {type(reply).__name__}")
    return reply
