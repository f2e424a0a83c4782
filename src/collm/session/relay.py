"""An edge server's side of sessions: layers [a, b) here, what follows in the cloud above.

To those below it is a cloud like any other: the same messages, budgets and replay. What it holds of
a session is a `HeldSession` whose model goes on elsewhere: asked to verify or to score, it runs
what is pending to its end, sends the rows at b up, asks the same of the cloud above in a session of
its own, and passes the answer down. So what is verified is the full model's, bit for bit; with a
lossy wire format, that of the model with these casts at both cuts.

Where the client lets exits answer (`Verify.may_exit`), the server's own do as far as its criterion
takes their word. The cloud above then hears of those positions when it is next asked, as a cloud
does of what exited on a device.

While the answer from above is awaited nothing is held: neither the lock of the session, nor the
turn to compute. A session whose cloud above is lost is told `busy`, and replayed elsewhere or here.

Not covered: questions answered out of order. One that a device asks while another is with the
cloud above waits for that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeVar

from collm.config import Sampling
from collm.errors import LinkError, LinkTimeout, ProtocolError, Refused
from collm.limits import Limits
from collm.policy.sampling import Made
from collm.runtime.stage import Stage, StageSession
from collm.session.above import Above
from collm.session.aside import aside
from collm.session.client import CloudClient
from collm.session.cloud import CloudService
from collm.session.drafter import Guess
from collm.session.held import HeldSession, Replies, Said
from collm.session.judging import Chosen
from collm.session.run import LEAST
from collm.session.server_exits import ServerExits, SessionExits
from collm.session.turnstile import Turnstile
from collm.wire.messages import (
    Attach,
    Finished,
    Generate,
    Hello,
    Recut,
    Score,
    Verdict,
    Verify,
)
from collm.wire.tiers import Tier

T = TypeVar("T")

_SLICE_SECONDS: Final = 0.1
"""A session that waits for the cloud above gives its thread up for others this often."""
_SETTLE_SECONDS: Final = 1.0
"""What a client that comes back waits for an answer that is on its way, before all is replayed."""


class RelayService(CloudService):
    """All sessions of an edge server; they share one stage, which runs one of them at a time.

    Wants several workers: a session that waits for the cloud above keeps one.
    """

    full_model = "above"

    def __init__(
        self, stage: Stage, limits: Limits, above: Above, exits: ServerExits | None = None
    ) -> None:
        super().__init__(stage, limits)
        self.above = above
        self.exits = exits
        self.computing = Turnstile()

    def hold(self, hello: Hello, identity: str) -> HeldSession:
        """A session for a client that is welcome. Raises PlacementError."""
        return RelaySession(self, hello, identity)

    def check_ready(self) -> None:
        """Raises Refused while the cloud above cannot be reached."""
        fault, seconds = self.above.fault, self.limits.retry_seconds
        if fault is not None:
            raise Refused("busy", f"the cloud above is gone: {fault}", retry_seconds=seconds)

    def tiers(self) -> tuple[Tier, ...]:
        """This server, the cloud above it, and what that one told."""
        return replace(super().tiers()[0], role="edge server"), *self.above.tiers

    def take_turn(self) -> None:
        """Wait as long as a session that has something to compute."""
        with self.computing:
            pass

    def close(self) -> None:
        """Give back what sessions without a link still hold. Idempotent."""
        super().close()
        self.above.close()


class RelaySession(HeldSession):
    """One session's text, state here and session above; used under `lock`."""

    def __init__(self, service: RelayService, hello: Hello, identity: str) -> None:
        super().__init__(service.stage, service.limits, hello, identity, None)
        self._service = service
        self._above = service.above
        self._computing = service.computing
        self._exits = self._open_exits()
        self._up: CloudClient | None = None
        """The session above, from b on; None before the first question."""
        self._through: CloudClient | None = None
        """One from layer 0 on, where answers are left to the cloud above alone."""
        self._is_out = False
        """Whether one of them is with a thread that waits for the cloud above."""

    @property
    def bytes(self) -> int:
        """Memory of caches and pending rows, and of what the cloud above may have to hear again."""
        return super().bytes + self.position * self._above.row_bytes

    def bytes_for(self, message: Said) -> int:
        """At most the memory that this session takes when the message is dealt with."""
        log = self.position * self._above.row_bytes if isinstance(message, Recut) else 0
        return super().bytes_for(message) + log

    def _bytes_with(self, more: int) -> int:
        return super()._bytes_with(more) + (self.position + more) * self._above.row_bytes

    def attach(self, message: Attach) -> int:
        """As a cloud does. Where an answer from above is still out, it may all have to be said."""
        if not self._is_settled():
            self.drop()
        position = super().attach(message)
        self._crop_above(position)
        return position

    def drop(self) -> None:
        """Give the memory back, also above, and forget the text."""
        self._leave_above()
        super().drop()
        self._exits = self._open_exits()

    def close(self) -> None:
        """Give the memory back, for good."""
        self._leave_above()
        super().close()

    def _recut(self, session: StageSession, message: Recut) -> Iterator[None]:
        """As a cloud does; what went up stays. Exits here are gone: they have not read it all."""
        before, parts, is_over = self.cut, super()._recut(session, message), False
        while not is_over:
            with self._computing:
                is_over = next(parts, _OVER) is _OVER
            if not is_over:
                yield None
        if self.cut != before:
            self._exits = None

    def _prepare(self, sampling: Sampling | None) -> Iterator[None]:
        """Only exits here have to keep to it; the cloud above sees to itself."""
        return super()._prepare(sampling if self._exits is not None else None)

    def _settle(self, session: StageSession) -> None:
        with self._computing:
            super()._settle(session)
        self._send_up(session, settled=True)

    def _verify(self, session: StageSession, message: Verify, seconds: float) -> Replies:
        started = time.perf_counter() - seconds
        if (known := self._known(session, message, started)) is not None:
            yield known
            return
        self._up = self._up or self._above.open(self._above.cut)  # while the exits are asked
        guess = self._ask_exits(message)
        if guess is not None and guess.decision is not None:
            made = guess.decision.reading
            yield Verdict(
                epoch=message.epoch,
                base=message.base,
                accepted=0,
                next_token=made.token_id,
                logprob=math.log(max(made.confidence, LEAST)),
                cloud_seconds=time.perf_counter() - started,
                logprobs_accepted=(),
                exit_cut=made.cut,
                alternatives=(made.alternatives,) if made.alternatives else (),
            )
            return
        with self._asking():
            up = self._send_up(session)
            here = time.perf_counter() - started
            if message.draft:
                up.submit(message.draft, message.sampling)
            else:
                up.ask(message.sampling, may_exit=message.may_exit)
            verdict = yield from self._collect(up)
        position = message.base + 1 + verdict.accepted
        if verdict.accepted < len(message.draft):
            self._crop(session, position, self._epoch + 1)
        if not verdict.exit_cut:
            token, told = verdict.next_token, verdict.alternatives_at(verdict.accepted)
            made_above = Made(token, verdict.logprob, told)
            self._next = Chosen(position, message.sampling, made_above)
            if guess is not None and self._exits is not None:
                with self._computing:
                    self._exits.learn(guess, token)
        seconds = here + verdict.cloud_seconds
        yield replace(verdict, epoch=message.epoch, base=message.base, cloud_seconds=seconds)

    def _known(self, session: StageSession, message: Verify, started: float) -> Verdict | None:
        """The verdict where the last one told already: as for a cloud, nothing is run for it."""
        position, known = message.base + 1, self._next
        if known is None or (known.position, known.sampling) != (position, message.sampling):
            return None
        made = known.made
        if message.draft and message.draft[0] == made.token:
            return None
        if message.draft:
            self._crop(session, position, self._epoch + 1)
        return Verdict(
            epoch=message.epoch,
            base=message.base,
            accepted=0,
            next_token=made.token,
            logprob=made.logprob,
            cloud_seconds=time.perf_counter() - started,
            logprobs_accepted=(),
            alternatives=(made.alternatives,) if made.alternatives else (),
        )

    def _ask_exits(self, message: Verify) -> Guess | None:
        if not message.may_exit or message.draft or self._exits is None:
            return None
        with self._computing:
            masks = self._constrained.masks(message.sampling)
            return self._exits.guess(self._ids, message.sampling, masks)

    def _score(self, session: StageSession, message: Score, seconds: float) -> Replies:
        started = time.perf_counter() - seconds
        with self._asking():
            up = self._send_up(session)
            here = time.perf_counter() - started
            asked = (up.score(draft, message.sampling) for draft in (message.draft,))
            for scored in self._aside(up, asked):
                if scored is None:
                    yield None
                    continue
                seconds = here + scored.cloud_seconds
                yield replace(scored, epoch=message.epoch, cloud_seconds=seconds)

    def _generate(self, session: StageSession, message: Generate) -> Replies:
        """The cloud above generates; the text here goes on with its tokens, all but the last."""
        self._check(session, message.epoch, message.base)
        if self.wire_format != "ids":
            raise ProtocolError("Generate needs a session of cut 0: a cloud alone has token ids")
        self._take(session.position - 1)
        made, token_id = 0, None
        with self._asking():
            up = self._through = self._through or self._above.open(0)
            up.append(self._ids[up.sent :], None)
            tokens = up.generate(message.max_tokens, message.stop_ids, message.sampling)
            for token in self._aside(up, tokens):
                if token is None:
                    yield None
                    continue
                if token_id is not None:
                    session.append_ids([token_id])
                    self._ids.append(token_id)
                    self._take(session.position - 1)
                made, token_id = made + 1, token.token_id
                yield replace(token, epoch=message.epoch)
        reason = "length" if made == message.max_tokens else "context"
        yield Finished(
            epoch=message.epoch, reason="stop" if token_id in message.stop_ids else reason
        )

    def _crop(self, session: StageSession, position: int, epoch: int) -> None:
        super()._crop(session, position, epoch)
        self._crop_above(position)

    def _crop_above(self, position: int) -> None:
        if self._exits is not None:
            self._exits.crop(position)
        for client in (self._up, self._through):
            if client is not None and client.sent > position:
                client.crop(position)

    def _send_up(self, session: StageSession, *, settled: bool = False) -> CloudClient:
        """Rows at b of all positions that the cloud above has not had; its session."""
        up = self._up = self._up or self._above.open(self._above.cut)
        ids = self._ids[up.sent :]
        if ids:
            with self._computing:
                rows = session.hidden_at(self._above.cut, up.sent)
            up.append(ids, rows, settled=settled)
        return up

    def _collect(self, up: CloudClient) -> Generator[None, None, Verdict]:
        """The verdict from above; yields while it is awaited."""
        due = time.monotonic() + self._limits.verdict_seconds
        while True:
            try:
                return up.collect(_SLICE_SECONDS)
            except LinkTimeout:
                if time.monotonic() > due:
                    raise
            yield None

    def _aside(self, up: CloudClient, items: Iterable[T]) -> Iterator[T | None]:
        """What `up` brings, taken from it in a thread of its own."""
        self._is_out = True
        try:
            yield from aside(items, _SLICE_SECONDS)
        except GeneratorExit:
            if up in (self._up, self._through):
                self.drop()  # the thread ends with the session above
            raise
        self._is_out = False

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Tell those below when it is the cloud above that fails; the text has to be said anew."""
        try:
            yield
        except (LinkError, ProtocolError) as error:
            self._above.failed(error)
            self.drop()
            code = "limits" if isinstance(error, Refused) and error.code == "limits" else "busy"
            raise Refused(code, f"the cloud above: {error}", self._limits.retry_seconds) from error

    def _is_settled(self) -> bool:
        """Whether no answer from above is out that could change the text there."""
        until = time.monotonic() + _SETTLE_SECONDS
        try:
            while self._up is not None and self._up.outstanding and not self._is_out:
                self._up.collect(max(0.0, until - time.monotonic()))
        except (LinkError, ProtocolError):
            return False
        return not self._is_out

    def _leave_above(self) -> None:
        for client in (self._up, self._through):
            if client is not None:
                self._above.forget(client)
        self._up = self._through = None
        self._is_out = False

    def _open_exits(self) -> SessionExits | None:
        how = self._service.exits
        return None if how is None else SessionExits(self._stage, self._session, self.cut, how)


_OVER: Final = object()
