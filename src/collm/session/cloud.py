"""The cloud's side of a session: pending hidden states, catch-up in one batch, verdicts.

A `CloudConversation` holds what its client appended. Asked to verify, it runs *all* pending
positions through its blocks in one call, which both fills the cache of the tokens that exited
early at the edge and gives the logits that judge them. By the two-row rule the result does not
depend on how the positions were grouped. Asked to score, it does the same and tells what it makes
of every drafted token, without an opinion on which of them stand.

Not covered: eviction, resuming a lost session.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collm import __version__
from collm.config import Sampling
from collm.errors import CollmError, ProtocolError
from collm.limits import Limits
from collm.policy.sampling import log_probability
from collm.runtime.stage import Stage, StageSession
from collm.session.self_draft import SelfDraft, generate, judge
from collm.wire.codec import WIRE_FORMATS
from collm.wire.encoding import decode_client, encode
from collm.wire.handshake import check_hello, refusal_for
from collm.wire.messages import (
    PROTOCOL_MINOR,
    Append,
    Bye,
    CloudMessage,
    Crop,
    Generate,
    Heartbeat,
    Hello,
    Pong,
    Score,
    Scored,
    Verdict,
    Verify,
    Welcome,
)


class CloudService:
    """All sessions of one cloud process; they share the weights of one stage.

    self_draft: how to draft where an answer is left to this cloud alone; None: not at all.
    """

    def __init__(self, stage: Stage, limits: Limits, self_draft: SelfDraft | None = None) -> None:
        self.stage = stage
        self.limits = limits
        self.self_draft = self_draft

    def open(self, peer: str) -> CloudConversation:
        """A conversation for a new client; it takes no memory before its Hello is accepted."""
        return CloudConversation(self.stage, self.limits, self.self_draft)

    def refusal(self, error: CollmError) -> bytes:
        """The frame that tells a client why its session ends."""
        return encode(refusal_for(error))


class CloudConversation:
    """One client's session. Its methods never run at the same time."""

    def __init__(self, stage: Stage, limits: Limits, self_draft: SelfDraft | None = None) -> None:
        self._stage = stage
        self._limits = limits
        self._self_draft = self_draft
        self._has_drafted = False
        """Exits that were asked before do not start over: later answers do without drafts."""
        self._session: StageSession | None = None
        self._wire_format = "ids"
        self._ids: list[int] = []
        self._epoch = 0
        self._judged = 0
        """The first row whose logits can still be asked for."""
        self._next: _Chosen | None = None
        """The token that the last verdict ended with, while the text before it stands."""

    def receive(self, frame: bytes) -> Iterator[bytes]:
        """Take one frame, yield the replies as they are made."""
        hidden_size = self._stage.architecture.hidden_size
        message = decode_client(frame, self._limits, self._wire_format, hidden_size)
        if isinstance(message, Hello):
            yield encode(self._hello(message))
            return
        if isinstance(message, Heartbeat):
            yield encode(Pong(nonce=message.nonce))
            return
        if isinstance(message, Bye):
            self.close()
            return
        session = self._session
        if session is None:
            raise ProtocolError(f"{type(message).__name__} before Hello")
        if isinstance(message, Append):
            self._append(session, message)
        elif isinstance(message, Verify):
            if message.epoch < self._epoch:
                return  # sent before the client could know that an earlier verdict cropped the text
            yield encode(self._verify(session, message))
        elif isinstance(message, Score):
            yield encode(self._score(session, message))
        elif isinstance(message, Generate):
            for reply in self._generate(session, message):
                yield encode(reply)
        elif isinstance(message, Crop):
            self._crop(session, message.position, message.epoch)

    def close(self) -> None:
        """Free the session's memory."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _hello(self, hello: Hello) -> Welcome:
        if self._session is not None:
            raise ProtocolError("a second Hello")
        stage = self._stage
        check_hello(
            hello,
            fingerprint=stage.artifact.fingerprint,
            cuts=stage.bounds[:-1],
            wire_formats=WIRE_FORMATS,
        )
        self._session = stage.open(hello.cut)
        self._wire_format = hello.wire_format
        return Welcome(
            protocol_minor=PROTOCOL_MINOR,
            position=0,
            software=f"collm {__version__}",
            session_id=uuid.uuid4().hex,
            max_positions=self._session.max_positions,
            model_layers=stage.architecture.layers,
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
        if message.settled:
            session.run(self._stage.layers.stop)

    def _verify(self, session: StageSession, message: Verify) -> Verdict:
        self._check_draft(session, message)
        started = time.perf_counter()
        position = message.base + 1
        made = self._judge(session, message, position)
        accepted, (token, logprob) = len(made) - 1, made[-1]
        if accepted < len(message.draft):
            self._crop(session, position + accepted, self._epoch + 1)
        self._next = _Chosen(position + accepted, message.sampling, token, logprob)
        return Verdict(
            epoch=message.epoch,
            base=message.base,
            accepted=accepted,
            next_token=token,
            logprob=logprob,
            cloud_seconds=time.perf_counter() - started,
            logprobs_accepted=tuple(logprob for _, logprob in made[:-1]),
        )

    def _judge(
        self, session: StageSession, message: Verify, position: int
    ) -> list[tuple[int, float]]:
        """As `judge`. A draft that goes on from the last verdict begins with a guess at its token:

        that one is known, and where the guess is wrong nothing has to be run.
        """
        seen, chosen = set(self._ids[:position]), self._next
        if chosen is None or (chosen.position, chosen.sampling) != (position, message.sampling):
            logits = session.logits(message.base)
            return judge(logits, message.draft, message.sampling, position, seen)
        made = [(chosen.token, chosen.logprob)]
        if message.draft and message.draft[0] == chosen.token:
            seen.add(chosen.token)
            logits, draft = session.logits(position), message.draft[1:]
            made += judge(logits, draft, message.sampling, position + 1, seen)
        return made

    def _score(self, session: StageSession, message: Score) -> Scored:
        self._check_draft(session, message)
        started = time.perf_counter()
        logprobs, ranks, best_ids, best_logprobs = [], [], [], []
        hidden_states = session.hidden_at(self._stage.layers.stop, message.base)
        most = self._limits.prefill_rows  # logits are large: never all of a long draft's at once
        for start in range(0, len(hidden_states), most):
            logits = self._stage.logits(hidden_states[start : start + most], exact=session.exact)
            for row, drafted in zip(logits, (*message.draft[start:], None), strict=False):
                best = int(row.argmax())
                best_ids.append(best)
                best_logprobs.append(log_probability(row, best))
                if drafted is not None:
                    is_best = drafted == best
                    logprob = best_logprobs[-1] if is_best else log_probability(row, drafted)
                    logprobs.append(logprob)
                    ranks.append(_rank(row, drafted))
        return Scored(
            epoch=message.epoch,
            base=message.base,
            logprobs=tuple(logprobs),
            ranks=tuple(ranks),
            best_ids=tuple(best_ids[:-1]),
            best_logprobs=tuple(best_logprobs[:-1]),
            next_token=best_ids[-1],
            next_logprob=best_logprobs[-1],
            cloud_seconds=time.perf_counter() - started,
        )

    def _generate(self, session: StageSession, message: Generate) -> Iterator[CloudMessage]:
        self._check(session, message.epoch, message.base)
        if self._wire_format != "ids":
            raise ProtocolError("Generate needs a session of cut 0: a cloud alone has token ids")
        how = None if self._has_drafted else self._self_draft
        self._has_drafted = how is not None or self._has_drafted
        self._take(session.position - 1)
        for reply in generate(session, self._ids, message, how):
            self._take(session.position - 1)
            yield reply

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
        self._judged = min(self._judged, position)
        if self._next is not None and position < self._next.position:
            self._next = None
        del self._ids[position:]
        self._epoch = epoch


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The full model's token at a position."""

    position: int
    sampling: Sampling
    token: int
    logprob: float


def _rank(logits: npt.NDArray[np.float32], token: int) -> int:
    """1 + tokens that are likelier, or as likely with a lower id: argmax has rank 1."""
    value = logits[token]
    before = np.count_nonzero(logits > value) + np.count_nonzero(logits[:token] == value)
    return 1 + int(before)
