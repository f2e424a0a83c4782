"""The edge's view of a cloud: typed calls over a link, each with its deadline.

A question with an empty draft ("which token comes next?") changes nothing in the cloud, so its
answer may be given up: it is recognised when it comes after all, and never taken for another's.
A draft's verdict says where the text was cropped. Until it is there the text may only be gone on
with, on the guess that the draft stands: more rows, more questions. Where it does not stand the
cloud passes over what was sent on that guess, as both sides count crops (epochs).

Not covered: reconnecting, and sending again what a lost session had.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from collm import __version__
from collm.config import Sampling
from collm.errors import LinkError, LinkTimeout, ProtocolError, Refused
from collm.limits import Limits
from collm.link.base import Link
from collm.wire.codec import rows_per_append
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import (
    PROTOCOL_MAJOR,
    PROTOCOL_MINOR,
    Append,
    Bye,
    CloudMessage,
    Crop,
    Finished,
    Generate,
    Hello,
    Refusal,
    Score,
    Scored,
    Token,
    Verdict,
    Verify,
    Welcome,
)

F32 = npt.NDArray[np.float32]
M = TypeVar("M", Welcome, Verdict, Scored)


@dataclass(frozen=True, slots=True)
class _Question:
    """A Verify without its verdict."""

    epoch: int
    base: int
    draft: tuple[int, ...]
    asked_at: float
    rows: int
    """Positions that the cloud has to run for it."""
    may_go_on: bool = False
    """Whether the text may go on before the verdict is there."""
    void: bool = False
    """Known to be refused at its first token: the verdict before named another."""

    @property
    def drafted(self) -> int:
        """Tokens to be judged."""
        return len(self.draft)


class CloudClient:
    """One session with a cloud. Rows go up in the background; verdicts are waited for, or not.

    wire_format: how hidden states travel, one of `wire.codec.ROW_FORMATS`; token ids do at cut 0.
    Raises Refused, LinkError and ProtocolError, as all of its methods do.
    """

    def __init__(
        self,
        link: Link,
        *,
        fingerprint: str,
        cut: int,
        vocabulary: int,
        limits: Limits,
        wire_format: str = "f32",
    ) -> None:
        self._link = link
        self._vocabulary = vocabulary
        self._limits = limits
        self._wire_format = wire_format if cut else "ids"
        self._epoch = 0
        self._questions: deque[_Question] = deque()
        self._late: deque[tuple[Verdict, float]] = deque(maxlen=limits.max_questions)
        self._run_to = 0
        self.sent = 0
        """Positions appended."""
        self.rows_run = 0
        """Positions that the cloud has run through its layers for us, those run again too.

        Its own exits, where it drafts with them, are not in here.
        """
        self.heads_run = 0
        """Positions at which it has computed logits for us."""
        hello = Hello(
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            fingerprint=fingerprint,
            cut=cut,
            wire_format=self._wire_format,
            software=f"collm {__version__}",
        )
        link.send(encode(hello))
        # The server is there (the link saw that within connect_seconds), but it may be computing.
        self.welcome = self._expect(Welcome, limits.verdict_seconds)

    @property
    def bytes_up(self) -> int:
        """Bytes sent so far."""
        return self._link.bytes_up

    @property
    def bytes_down(self) -> int:
        """Bytes received so far."""
        return self._link.bytes_down

    def append(self, ids: Sequence[int], rows: F32 | None, *, settled: bool = False) -> None:
        """Queue the next positions: ids, and their rows float32 [n, d] unless the cut is 0.

        settled: they will not be taken back, and the cloud may run them before it is asked.
        """
        if not all(one.may_go_on for one in self._questions):
            self._check_settled()
        width = 0 if rows is None else rows.shape[1]
        most = rows_per_append(self._wire_format, width, self._limits)
        for start in range(0, len(ids), most):
            part = tuple(ids[start : start + most])
            message = Append(
                epoch=self._epoch,
                base=self.sent,
                token_ids=part,
                rows=None if rows is None else rows[start : start + most],
                settled=settled,
            )
            self._link.send(encode(message, self._wire_format))
            self.sent += len(part)

    def verify(
        self, draft: Sequence[int], sampling: Sampling, timeout: float | None = None
    ) -> Verdict:
        """Judge the last len(draft) appended positions; crops to what is accepted.

        Raises LinkTimeout after `timeout` seconds (None: `limits.verdict_seconds`). With an empty
        draft the session goes on as if it had not been asked; the verdict of another one has to
        be waited for with `collect` before anything else is done.
        """
        self._check_settled()
        self._ask(tuple(draft), sampling)
        return self.collect(timeout)

    def ask(self, sampling: Sampling) -> None:
        """Ask which token comes after the appended ones, without waiting: `collect` or `late`.

        Raises LinkTimeout when `limits.max_questions` are unanswered.
        """
        self._check_settled()
        self._ask((), sampling)

    def submit(self, draft: Sequence[int], sampling: Sampling) -> None:
        """As `verify`, without waiting: the verdict is `poll`'s.

        A draft that goes on from one not judged yet begins with a guess at the token that comes
        after that. Raises LinkTimeout when `limits.max_questions` are unanswered.
        """
        self._ask(tuple(draft), sampling, may_go_on=True)

    def poll(self, *, wait: bool) -> Verdict | None:
        """The verdict on the oldest question; None where it is not there yet, or none is awaited.

        Where it crops the text, or ends with another token than the next question's draft begins
        with, the questions after it are taken back, and all that was appended for them.
        wait: for at most `limits.verdict_seconds`; raises LinkTimeout then.
        """
        given_up_at = time.monotonic() + (self._limits.verdict_seconds if wait else 0.0)
        while self._questions:
            try:
                verdict, _ = self._next_verdict(max(0.0, given_up_at - time.monotonic()))
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
        return sum(not one.void for one in self._questions)

    def collect(self, timeout: float | None = None) -> Verdict:
        """The verdict on the newest question. Older ones that come first are kept for `late`.

        Raises LinkTimeout as `verify` does, ValueError when nothing was asked.
        """
        if not self._questions:
            raise ValueError("no question is outstanding; ask first")
        given_up_at = time.monotonic() + (
            self._limits.verdict_seconds if timeout is None else timeout
        )
        while True:
            verdict, seconds = self._next_verdict(max(0.0, given_up_at - time.monotonic()))
            if verdict is None:
                continue
            if not self._questions:
                return verdict
            self._late.append((verdict, seconds))

    def late(self) -> list[tuple[Verdict, float]]:
        """Verdicts nobody waited for that are here by now, with the seconds since each was asked.

        Never waits. The seconds end when a verdict is taken from the link: look often.
        """
        while self._questions and not self._questions[0].drafted:
            try:
                verdict, seconds = self._next_verdict(0.0)
            except LinkTimeout:
                break
            if verdict is not None:
                self._late.append((verdict, seconds))
        taken = list(self._late)
        self._late.clear()
        return taken

    def score(self, draft: Sequence[int]) -> Scored:
        """The full model's view of the last len(draft) appended positions; crops nothing.

        Waits for at most `limits.verdict_seconds`; the session is of no use after a LinkTimeout.
        """
        self._check_settled()
        base = self.sent - len(draft) - 1
        self._link.send(encode(Score(epoch=self._epoch, base=base, draft=tuple(draft))))
        self._count(len(draft) + 1)
        self._catch_up()
        scored = self._expect(Scored, self._limits.verdict_seconds)
        if (scored.epoch, scored.base) != (self._epoch, base) or len(scored.ranks) != len(draft):
            raise ProtocolError("the cloud's scores are not about this draft")
        self._check_token(max((*scored.best_ids, scored.next_token)))
        if max(scored.ranks, default=1) > self._vocabulary:
            raise ProtocolError(f"a rank of {max(scored.ranks)} among {self._vocabulary} tokens")
        return scored

    def crop(self, position: int) -> None:
        """Take back every position from `position` on.

        What was verified or scored stays so: positions before the last question's base cannot
        become the base of another.
        """
        self._check_settled()
        if not 0 <= position <= self.sent:
            raise ValueError(f"a crop to {position} of {self.sent} positions")
        self._link.send(encode(Crop(epoch=self._epoch + 1, position=position)))
        self._cropped(position)

    def generate(
        self, max_tokens: int, stop_ids: Sequence[int], sampling: Sampling
    ) -> Iterator[Token]:
        """Let the cloud go on alone; yields tokens as they arrive, the stop token too."""
        self._check_settled()
        message = Generate(
            epoch=self._epoch,
            base=self.sent,
            max_tokens=max_tokens,
            stop_ids=tuple(stop_ids),
            sampling=sampling,
        )
        self._link.send(encode(message))
        self._catch_up()
        pending = self.sent - self._run_to
        self._run_to = self.sent
        for step in range(max_tokens + 1):
            reply = self._receive(self._limits.verdict_seconds)
            if isinstance(reply, Finished):
                return
            if not isinstance(reply, Token):
                raise ProtocolError(f"expected a Token, the cloud sent {type(reply).__name__}")
            self._check_token(reply.token_id)
            # The first token comes from what was pending, each other one from the one before it;
            # what a cloud drafted by itself in vain it ran as well.
            self.rows_run += reply.rejected + (1 if step else pending)
            self.heads_run += reply.rejected + 1
            yield reply
        raise ProtocolError(f"the cloud sent more than {max_tokens} tokens")

    def close(self) -> None:
        """Say goodbye and end the link. Idempotent."""
        try:
            self._link.send(encode(Bye()))
        except LinkError:
            pass  # it is closed or broken already: nobody is left to tell
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, draft: tuple[int, ...], sampling: Sampling, *, may_go_on: bool = False) -> None:
        if len(self._questions) >= self._limits.max_questions:
            raise LinkTimeout(f"the cloud has left {len(self._questions)} questions unanswered")
        base = self.sent - len(draft) - 1
        message = Verify(epoch=self._epoch, base=base, draft=draft, sampling=sampling)
        asked_at = time.monotonic()
        self._link.send(encode(message))
        rows = self.sent - self._run_to
        self._questions.append(_Question(self._epoch, base, draft, asked_at, rows, may_go_on))
        self._count(len(draft) + 1)

    def _next_verdict(self, timeout: float) -> tuple[Verdict | None, float]:
        """The verdict on the oldest question, None where it was void, and the seconds it took.

        Raises LinkTimeout.
        """
        verdict = self._expect(Verdict, timeout)
        question = self._questions.popleft()  # the cloud answers in order
        current = (verdict.epoch, verdict.base) == (question.epoch, question.base)
        if not current or verdict.accepted > question.drafted:
            raise ProtocolError("the cloud's verdict is not about this draft")
        self._check_token(verdict.next_token)
        seconds = time.monotonic() - question.asked_at
        if question.void:
            if verdict.accepted:
                raise ProtocolError("the cloud accepts a token that it had refused")
            return None, seconds
        end = question.base + verdict.accepted + 1
        if verdict.accepted < question.drafted:
            self._take_back(end)
        elif self._questions:
            following = self._questions[0]
            if following.may_go_on and following.draft[:1] not in ((), (verdict.next_token,)):
                # The cloud, too, refuses that draft at once, and passes over those after it.
                self._take_back(end)
                self._questions.append(replace(following, void=True))
        return verdict, seconds

    def _take_back(self, position: int) -> None:
        """The text ends here, and the cloud runs nothing for what was asked on its going on."""
        self.rows_run -= sum(one.rows for one in self._questions)
        self.heads_run -= sum(one.drafted + 1 for one in self._questions)
        self._questions.clear()
        self._cropped(position)

    def _catch_up(self) -> None:
        """Receive the verdicts that come before the answer to what was sent last."""
        while self._questions:
            verdict, seconds = self._next_verdict(self._limits.verdict_seconds)
            if verdict is not None:
                self._late.append((verdict, seconds))

    def _check_settled(self) -> None:
        if any(one.drafted and not one.void for one in self._questions):
            raise ProtocolError(
                "a draft's verdict is still awaited and may crop the text; collect it first"
            )

    def _count(self, heads: int) -> None:
        """Note that the cloud was asked to run what is pending and to compute some logits."""
        self.rows_run += self.sent - self._run_to
        self._run_to = self.sent
        self.heads_run += heads

    def _cropped(self, position: int) -> None:
        self._epoch += 1
        self.sent = position
        self._run_to = min(self._run_to, position)

    def _check_token(self, token_id: int) -> None:
        if token_id >= self._vocabulary:
            raise ProtocolError(
                f"the cloud's token {token_id} is beyond the vocabulary of {self._vocabulary}"
            )

    def _receive(self, timeout: float) -> CloudMessage:
        reply = decode_cloud(self._link.receive(timeout), self._limits)
        if isinstance(reply, Refusal):
            raise Refused(reply.code, f"the cloud refuses: {reply.reason}")
        return reply

    def _expect(self, kind: type[M], timeout: float) -> M:
        reply = self._receive(timeout)
        if not isinstance(reply, kind):
            raise ProtocolError(f"expected a {kind.__name__}, got {type(reply).__name__}")
        return reply
