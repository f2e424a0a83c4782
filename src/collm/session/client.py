"""The edge's view of a cloud: typed calls over a link, each with its deadline.

What is asked about drafts is in `asking.py`; here are the requests that wait for their answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from collm.config import Sampling
from collm.errors import ProtocolError
from collm.session.answers import check_alternatives, check_scored, check_token
from collm.session.asking import Asking
from collm.wire.encoding import encode
from collm.wire.messages import (
    Finished,
    Generate,
    Score,
    Scored,
    Token,
    Verdict,
)


class CloudClient(Asking):
    """See `Asking`."""

    _is_generating = False
    """Whether tokens may still come that nobody waits for."""

    @property
    def can_be_kept(self) -> bool:
        """Whether another answer may go on with this session, as if it had begun it."""
        return self.connection.is_up and not self._is_generating and self._at.log.is_plain

    @property
    def cut(self) -> int:
        """Where the cloud begins."""
        return self._at.log.cut

    @property
    def wire_format(self) -> str:
        """How positions travel."""
        return self._at.log.wire_format

    @property
    def held_bytes(self) -> int:
        """What is kept here of what went up."""
        return self._at.log.held_bytes

    def take_up(self, position: int) -> int:
        """Go back to `position` or before, for another answer; where that is.

        0: the session cannot be gone on with, as a verdict on the answer before is not here yet.
        Never waits.
        """
        while self._at.questions:
            if self.poll(wait=False) is None and self._at.questions:
                return 0
        self._late.clear()
        position = min(position, self.sent)
        if position < self.sent:
            self.crop(position)
        return position

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

    def score(
        self, draft: Sequence[int], sampling: Sampling | None = None, *, while_up: bool = False
    ) -> Scored:
        """The full model's view of the last len(draft) appended positions; crops nothing.

        sampling: of it the constraint and the number of alternatives count.
        Waits for at most `limits.verdict_seconds`; the session is of no use after a LinkTimeout.
        while_up: raises CloudAway while there is no link; ask again then.
        """
        self._check_settled()
        base = self.sent - len(draft) - 1
        if sampling is not None and not sampling.constraint and not sampling.top_logprobs:
            sampling = None
        if sampling is not None:
            self._require(sampling)
        frame = encode(
            Score(epoch=self._at.epoch, base=base, draft=tuple(draft), sampling=sampling)
        )
        self._tell()
        with self._requesting(lambda: frame):
            self._catch_up()
            scored = self._expect(Scored, while_up=while_up)
        self._count(len(draft) + 1)
        self._at.keep = base
        asked = (self._at.epoch, base)
        check_scored(scored, asked, len(draft), sampling, self._vocabulary)
        return scored

    def generate(
        self, max_tokens: int, stop_ids: Sequence[int], sampling: Sampling
    ) -> Iterator[Token]:
        """Let the cloud go on alone; yields tokens as they arrive, the stop token too."""
        self._check_settled()
        self._require(sampling)
        base, made = self.sent, list[int]()

        def frame() -> bytes:
            """What is still to come; tokens that are here are sent back as the text's."""
            message = Generate(
                epoch=self._at.epoch,
                base=base + len(made),
                max_tokens=max_tokens - len(made),
                stop_ids=tuple(stop_ids),
                sampling=sampling,
            )
            return encode(message)

        self._at.keep = base - 1
        self._tell()
        self._is_generating = True
        with self._requesting(frame):
            self._catch_up()
            pending = self.sent - self._run_to
            self._run_to = self.sent
            while True:
                reply = self.connection.receive(None)
                if isinstance(reply, Finished):
                    self._is_generating = False
                    break
                if not isinstance(reply, Token):
                    raise ProtocolError(f"expected a Token, the cloud sent {type(reply).__name__}")
                if len(made) == max_tokens:
                    raise ProtocolError(f"the cloud sent more than {max_tokens} tokens")
                if reply.position != base + len(made):
                    raise ProtocolError(
                        f"the cloud's token is for position {reply.position}, not "
                        f"{base + len(made)}"
                    )
                check_token(reply.token_id, self._vocabulary)
                check_alternatives((reply.alternatives,), sampling, self._vocabulary)
                # The first token comes from what was pending, each other one from the one before
                # it; what a cloud drafted by itself in vain it ran as well.
                self.rows_run += reply.rejected + (1 if made else pending)
                self.heads_run += reply.rejected + 1
                made.append(reply.token_id)
                self._at.log.extend([reply.token_id], None)
                yield reply
        self._at.log.crop(base + max(0, len(made) - 1))
        self.sent = self._run_to = self._at.told_to = len(
            self._at.log
        )  # a cloud appends each token but its last

    def close(self) -> None:
        """Say goodbye and end the link. Idempotent."""
        self.connection.close()

    def _catch_up(self) -> None:
        """Receive the verdicts that come before the answer to what was sent last."""
        while self._at.questions:
            verdict, seconds = self._next_verdict(None)
            if verdict is not None:
                self._late.append((verdict, seconds))

    @contextmanager
    def _requesting(self, frame: Callable[[], bytes]) -> Iterator[None]:
        """Ask what `frame` says, and ask again where the link breaks before the answer is here."""
        self._at.request = frame
        try:
            self.connection.send(frame())
            yield
        finally:
            self._at.request = None
