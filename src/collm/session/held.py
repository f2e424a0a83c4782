"""What a cloud holds of one session, and what it answers: pending states, verdicts, scores.

Asked to verify, it runs *all* pending positions through the blocks in one call, which both fills
the cache of the tokens that exited early at the edge and gives the logits that judge them. By the
two-row rule the result does not depend on how the positions were grouped. Asked to score, it does
the same and tells what it makes of every drafted token, without an opinion on which of them stand.

`drop` gives the memory back; after that only `attach` brings the session to life, and its client
sends everything again. By the same rule what it then answers is what it would have answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

from collm.config import Sampling
from collm.errors import ProtocolError, Refused
from collm.limits import Limits
from collm.policy.sampling import Alternatives, Made
from collm.runtime.stage import Stage, StageSession
from collm.session.constrained import Constrained
from collm.session.judging import Chosen, Scores, judge
from collm.session.self_draft import SelfDraft, generate
from collm.wire.codec import WIRE_FORMATS
from collm.wire.messages import (
    Append,
    Ask,
    Attach,
    CloudMessage,
    Crop,
    Generate,
    Hello,
    Recut,
    Score,
    Scored,
    Verdict,
    Verify,
)

Said: TypeAlias = Append | Verify | Ask | Score | Generate | Crop | Recut
"""What is a session's own business."""
Replies: TypeAlias = Iterator[CloudMessage | None]
"""As they are made; None where others may have a turn."""


class HeldSession:
    """One session's text and state; used under `lock`.

    Raises ProtocolError and ContextFull, PlacementError for a cut the stage does not have.
    """

    def __init__(
        self, stage: Stage, limits: Limits, hello: Hello, identity: str, how: SelfDraft | None
    ) -> None:
        self._stage = stage
        self._limits = limits
        self._self_draft = how
        self._can_draft = how is not None
        """False once the exits lack what came before a recut."""
        self.cut = hello.cut
        self.wire_format = hello.wire_format
        self.began_as = (hello.cut, hello.wire_format)
        self.identity = identity
        self.lock = threading.Lock()
        self._computing: AbstractContextManager[None] = nullcontext()
        """Held while a part is run, where several threads serve sessions of one stage."""
        self.is_dropped = False
        self._session = self._open()
        self._ids: list[int] = []
        self._epoch = 0
        self._constrained = Constrained(stage.artifact, limits)
        self._sampling: Sampling | None = None
        """Of the last question."""
        self._judged = 0
        """The first row whose logits can still be asked for."""
        self._next: Chosen | None = None
        """The token that the last verdict ended with, while the text before it stands."""

    @property
    def max_positions(self) -> int:
        """The model's context length."""
        return self._session.max_positions

    @property
    def position(self) -> int:
        """Positions held."""
        return self._session.position

    @property
    def pending(self) -> int:
        """Positions held that its layers have not run yet."""
        return self.position - self._session.run_to(self._stage.layers.stop)

    @property
    def bytes(self) -> int:
        """Memory of caches, pending rows and what keeps to a constraint."""
        return self._session.bytes + self._constrained.bytes

    def bytes_first(self) -> int:
        """What a session takes once it has begun."""
        return self._bytes_with(1)

    def bytes_for(self, message: Said) -> int:
        """At most the memory that this session takes when the message is dealt with."""
        if isinstance(message, Append | Crop | Recut):
            parser = self._constrained.bytes
        else:
            last = self._sampling if isinstance(message, Ask) else None
            parser = self._constrained.bytes_for(message.sampling or last)
        more = 0
        if isinstance(message, Recut):
            more_layers = self._session.bytes_with(0, from_ids=message.cut < self.cut)
            return parser + max(self._bytes_with(0), more_layers)
        if isinstance(message, Ask):
            more = len(message.token_ids)
        elif isinstance(message, Append):
            more = max(0, message.base + len(message.token_ids) - self._session.position)
        elif isinstance(message, Generate):
            more = min(message.max_tokens, self._limits.kv_step)
        return parser + self._bytes_with(min(more, self.max_positions - self._session.position))

    def _bytes_with(self, more: int) -> int:
        return self._session.bytes_with(more)

    def answer(self, message: Said) -> Generator[CloudMessage | None, None, None]:
        """Take a message, yield the replies as they are made; None where others may have a turn."""
        session = self._session
        if isinstance(message, Ask):
            message = self._spelt_out(session, message)
        if isinstance(message, Append):
            self._append(session, message)
            if message.settled:
                yield from self._run(session, session.position)
                self._settle(session)
        elif isinstance(message, Verify):
            if message.epoch < self._epoch:
                return  # sent before the client could know that an earlier verdict cropped the text
            self._check_draft(session, message)
            self._sampling = message.sampling
            yield from self._prepare(message.sampling)
            seconds = yield from self._run(session, message.base)
            yield from self._verify(session, message, seconds)
        elif isinstance(message, Score):
            self._check_draft(session, message)
            yield from self._prepare(message.sampling)
            seconds = yield from self._run(session, message.base)
            yield from self._score(session, message, seconds)
        elif isinstance(message, Generate):
            yield from self._prepare(message.sampling)
            yield from self._generate(session, message)
        elif isinstance(message, Recut):
            yield from self._recut(session, message)
        else:
            self._crop(session, message.position, message.epoch)

    def attach(self, message: Attach) -> int:
        """Go back to what is certain to be the client's text; how many positions that is."""
        self.is_dropped = False
        position = min(message.position, self._session.position)
        self._session.crop(position)
        self._constrained.crop(position)
        self._judged = min(self._judged, position)
        self._next = None
        del self._ids[position:]
        self._epoch = message.epoch
        return position

    def drop(self) -> None:
        """Give the memory back and forget the text."""
        self._session.close()
        self.cut, self.wire_format = self.began_as
        self._session = self._open()
        self._ids, self._judged, self._next = [], 0, None
        self._can_draft = self._self_draft is not None
        self._constrained.forget()
        self.is_dropped = True

    def close(self) -> None:
        """Give the memory back, for good."""
        self._session.close()

    def _open(self) -> StageSession:
        session = self._stage.open(self.cut)
        if self._self_draft is not None and self._self_draft.cuts:
            session.keep_rows(self._self_draft.cuts[0])  # a later turn's drafts read them again
        return session

    def _prepare(self, sampling: Sampling | None) -> Iterator[None]:
        """Have ready what is needed to keep to the question's constraint."""
        return self._constrained.prepare(sampling)

    def _spelt_out(self, session: StageSession, message: Ask) -> Verify:
        """Take in the ids it brings."""
        sampling = message.sampling or self._sampling
        if sampling is None:
            raise ProtocolError("a question without sampling, and none before it in this session")
        if message.token_ids:
            if self.wire_format != "ids":
                raise ProtocolError(f"ids in a question; this session agreed on {self.wire_format}")
            at, ids = session.position, message.token_ids
            self._append(session, Append(epoch=message.epoch, base=at, token_ids=ids, rows=None))
        base = len(self._ids) - message.drafted - 1
        if message.epoch == self._epoch and base < 0:
            raise ProtocolError(f"a draft of {message.drafted} in {len(self._ids)} positions")
        draft = tuple(self._ids[base + 1 :])
        return Verify(
            epoch=message.epoch,
            base=base,
            draft=draft,
            sampling=sampling,
            may_exit=message.may_exit,
        )

    def _append(self, session: StageSession, message: Append) -> None:
        """Idempotent: what is held already, or was sent before a crop, changes nothing."""
        if message.epoch < self._epoch:
            return
        if message.epoch > self._epoch:
            raise ProtocolError(f"epoch {message.epoch}; this session is at {self._epoch}")
        if message.base > session.position:
            raise ProtocolError(
                f"positions from {message.base} on, but {session.position} is the next wanted"
            )
        ids = message.token_ids[session.position - message.base :]
        if not ids:
            return
        vocabulary = self._stage.architecture.vocab_size
        if max(ids) >= vocabulary:
            raise ProtocolError(f"token id {max(ids)}; the vocabulary has {vocabulary}")
        if message.rows is None:
            session.append_ids(ids)
        else:
            session.append_hidden(message.rows[-len(ids) :])
        self._ids.extend(ids)

    def _recut(self, session: StageSession, message: Recut) -> Iterator[None]:
        if message.epoch < self._epoch:
            return  # sent before the client knew of a crop, and said before what that took back
        if message.epoch != self._epoch or message.position != session.position:
            raise ProtocolError(
                f"a recut in epoch {message.epoch} at {message.position} positions; this session "
                f"holds epoch {self._epoch}, {session.position} positions"
            )
        if (message.cut, message.wire_format) == (self.cut, self.wire_format):
            return
        if message.wire_format not in WIRE_FORMATS or (message.cut == 0) != (
            message.wire_format == "ids"
        ):
            raise ProtocolError(f"a recut to layer {message.cut} in {message.wire_format[:40]!r}")
        cuts = self._stage.bounds[:-1]
        if self._stage.layers.start:  # what lies below cannot be made up from ids here
            cuts = tuple(cut for cut in cuts if cut >= self.cut)
        if message.cut not in cuts:
            raise Refused(
                "placement",
                f"the client wants the cloud to start at layer {message.cut}, this cloud can start "
                f"at {', '.join(map(str, cuts))}",
            )
        if message.cut != self.cut:
            # Exits that draft would need every position's states from the first on.
            self._can_draft = False
            yield from session.restart(message.cut, self._ids, self._limits.turn_rows)
        self.cut, self.wire_format = message.cut, message.wire_format

    def _run(self, session: StageSession, end: int) -> Generator[None, None, float]:
        """Run what is pending before `end`, a part a turn: a long prompt keeps nobody waiting.

        The last part is left for the turn that answers. Returns the seconds it took.
        """
        last, most, seconds = self._stage.layers.stop, self._limits.turn_rows, 0.0
        while (begin := session.run_to(last)) + most < end:
            with self._computing:
                started = time.perf_counter()
                session.run(last, begin + most)
                seconds += time.perf_counter() - started
            yield None
        return seconds

    def _settle(self, session: StageSession) -> None:
        """Run the rest of what stays."""
        session.run(self._stage.layers.stop)

    def _verify(self, session: StageSession, message: Verify, seconds: float) -> Replies:
        """seconds: what has been run for it took."""
        started = time.perf_counter() - seconds
        position = message.base + 1
        made = self._judge(session, message, position)
        accepted, chosen = len(made) - 1, made[-1]
        if accepted < len(message.draft):
            self._crop(session, position + accepted, self._epoch + 1)
        self._next = Chosen(position + accepted, message.sampling, chosen)
        yield Verdict(
            epoch=message.epoch,
            base=message.base,
            accepted=accepted,
            next_token=chosen.token,
            logprob=chosen.logprob,
            cloud_seconds=time.perf_counter() - started,
            logprobs_accepted=tuple(one.logprob for one in made[:-1]),
            alternatives=_alternatives(made, message.sampling),
        )

    def _judge(self, session: StageSession, message: Verify, position: int) -> list[Made]:
        """As `judge`. A draft that goes on from the last verdict begins with a guess at its token:

        that one is known, and where the guess is wrong nothing has to be run.
        """
        seen, known, sampling = set(self._ids[:position]), self._next, message.sampling
        masks = self._constrained.masks(sampling)
        if known is None or (known.position, known.sampling) != (position, sampling):
            logits = session.logits(message.base)
            return judge(logits, message.draft, sampling, position, seen, self._ids, masks)
        made = [known.made]
        if message.draft and message.draft[0] == known.made.token:
            seen.add(known.made.token)
            logits, draft = session.logits(position), message.draft[1:]
            made += judge(logits, draft, sampling, position + 1, seen, self._ids, masks)
        return made

    def _score(self, session: StageSession, message: Score, seconds: float) -> Replies:
        """As `_verify`."""
        started = time.perf_counter() - seconds
        sampling, text = message.sampling or Sampling(), self._ids[: message.base + 1]
        scores = Scores(
            allows=self._constrained.masks(sampling), top_logprobs=sampling.top_logprobs, text=text
        )
        hidden_states = session.hidden_at(self._stage.layers.stop, message.base)
        most = self._limits.prefill_rows  # logits are large: never all of a long draft's at once
        for start in range(0, len(hidden_states), most):
            logits = self._stage.logits(hidden_states[start : start + most], exact=session.exact)
            for row, drafted in zip(logits, (*message.draft[start:], None), strict=False):
                scores.add(row, drafted)
        following = scores.best.pop()
        yield Scored(
            epoch=message.epoch,
            base=message.base,
            logprobs=tuple(scores.logprobs),
            ranks=tuple(scores.ranks),
            best_ids=tuple(one.token for one in scores.best),
            best_logprobs=tuple(one.logprob for one in scores.best),
            next_token=following.token,
            next_logprob=following.logprob,
            cloud_seconds=time.perf_counter() - started,
            alternatives=_alternatives([*scores.best, following], sampling),
        )

    def _generate(self, session: StageSession, message: Generate) -> Replies:
        self._check(session, message.epoch, message.base)
        if self.wire_format != "ids":
            raise ProtocolError("Generate needs a session of cut 0: a cloud alone has token ids")
        how = self._self_draft if self._can_draft else None
        self._take(session.position - 1)
        seconds = yield from self._run(session, session.position - 1)
        masks = self._constrained.masks(message.sampling)
        for reply in generate(session, self._ids, message, how, seconds, masks):
            self._take(session.position - 1)
            yield reply
        self._constrained.forget()  # the answer is over; the session may wait long for the next

    def _check_draft(self, session: StageSession, message: Verify | Score) -> None:
        end = message.base + len(message.draft) + 1
        self._check(session, message.epoch, end)
        self._take(message.base)
        if tuple(self._ids[message.base + 1 : end]) != message.draft:
            raise ProtocolError("the draft is not what was appended")

    def _check(self, session: StageSession, epoch: int, position: int) -> None:
        if epoch != self._epoch or position != session.position or position == 0:
            raise ProtocolError(
                f"epoch {epoch}, {position} positions; this session holds epoch {self._epoch}, "
                f"{session.position} positions"
            )

    def _take(self, first: int) -> None:
        """Note that rows from `first` on are asked for: earlier ones are then given up."""
        if first < self._judged:
            raise ProtocolError(f"row {first} is gone; the first still held is {self._judged}")
        self._judged = first

    def _crop(self, session: StageSession, position: int, epoch: int) -> None:
        if epoch != self._epoch + 1:
            raise ProtocolError(f"a crop to epoch {epoch}; this session is at {self._epoch}")
        session.crop(position)
        self._constrained.crop(position)
        self._judged = min(self._judged, position)
        if self._next is not None and position < self._next.position:
            self._next = None
        del self._ids[position:]
        self._epoch = epoch


def _alternatives(made: Sequence[Made], sampling: Sampling) -> tuple[Alternatives, ...]:
    return tuple(one.alternatives for one in made) if sampling.top_logprobs else ()
