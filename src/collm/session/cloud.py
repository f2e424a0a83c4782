"""The cloud's side of a session's link: who is welcome, which session it speaks for.

A `CloudConversation` is one link. The session behind it (`held.py`) may outlive the link for a
moment: a client that comes back attaches to it, over another link or after its memory was needed
for others (`sessions.py`).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from collm import __version__, metrics
from collm.errors import CollmError, ProtocolError, Refused
from collm.limits import Limits
from collm.link.base import NOTHING, Peer
from collm.runtime.stage import Stage
from collm.session.cloud_costs import CloudCosts
from collm.session.held import HeldSession
from collm.session.quotas import Quotas
from collm.session.self_draft import SelfDraft
from collm.session.sessions import Sessions
from collm.wire.codec import WIRE_FORMATS
from collm.wire.encoding import decode_client, encode
from collm.wire.handshake import check_hello, refusal_for
from collm.wire.messages import (
    ATTACH_MINOR,
    EXIT_MINOR,
    PROTOCOL_MINOR,
    Append,
    Ask,
    Attach,
    Attached,
    Bye,
    CloudMessage,
    Evicted,
    Figures,
    Generate,
    Heartbeat,
    Hello,
    Pong,
    Recut,
    Token,
    Verdict,
    Verify,
    Welcome,
)
from collm.wire.tiers import Tier, fitted

logger = logging.getLogger(__name__)

_END: Final = Bye()
"""After the last reply."""


class CloudService:
    """All sessions of one cloud process; they share the weights of one stage.

    self_draft: how to draft where an answer is left to this cloud alone; None: not at all.
    """

    full_model = "here"
    """Where the full model's tokens come from, for metrics."""

    def __init__(self, stage: Stage, limits: Limits, self_draft: SelfDraft | None = None) -> None:
        self.stage = stage
        self.limits = limits
        self.self_draft = self_draft
        self.sessions = Sessions(limits)
        self.quotas = Quotas(limits)
        self.costs = CloudCosts(stage)

    def hold(self, hello: Hello, identity: str) -> HeldSession:
        """A session for a client that is welcome. Raises PlacementError."""
        return HeldSession(self.stage, self.limits, hello, identity, self.self_draft)

    def check_ready(self) -> None:
        """Raises Refused where nobody could be served now."""

    def tiers(self) -> tuple[Tier, ...]:
        """This server, and those above it as they were last seen. Never waits."""
        layers = self.stage.layers
        return (Tier(first=layers.start, last=layers.stop, sessions=len(self.sessions)),)

    def take_turn(self) -> None:
        """Wait as long as a session that has something to compute; the server's turns do, here."""

    def open(self, peer: Peer) -> CloudConversation:
        """A conversation for a new client; it takes no memory before its Hello is accepted."""
        return CloudConversation(self, peer)

    def refusal(self, error: CollmError) -> bytes:
        """The frame that tells a client why its session ends."""
        refusal = refusal_for(error)
        metrics.REFUSALS.labels(refusal.code).inc()
        logger.info("refused: %s", refusal.reason, extra={"code": refusal.code})
        return encode(refusal)

    def close(self) -> None:
        """Give back what sessions without a link still hold. Idempotent."""
        self.sessions.close()


class CloudConversation:
    """One link of a session. Its methods never run at the same time."""

    def __init__(self, service: CloudService, peer: Peer) -> None:
        self._service = service
        self._peer = peer
        self._id = ""
        self._held: HeldSession | None = None
        self._minor = 0
        self._said_evicted = False
        self._said_bye = False
        self.pause_seconds = 0.0
        """What to wait before more is read or computed for this client."""

    def receive(self, frame: bytes) -> Iterator[bytes]:
        """Take one frame, yield the replies as they are made."""
        wire = self._held.wire_format if self._held is not None else "none"
        metrics.BYTES_UP.labels(wire).inc(len(frame))
        self.pause_seconds = self._charge(byte_count=len(frame))
        for reply in self._replies(frame):
            metrics.BYTES_DOWN.inc(len(reply))
            yield reply

    def _replies(self, frame: bytes) -> Iterator[bytes]:
        stage, limits, held = self._service.stage, self._service.limits, self._held
        wire_format = held.wire_format if held is not None else "ids"
        hidden_size = stage.architecture.hidden_size
        sealed = self._minor >= ATTACH_MINOR if held is not None else None
        try:
            message = decode_client(frame, limits, wire_format, hidden_size, sealed=sealed)
        except ProtocolError:
            if held is None or not self._is_evicted(held):
                raise
            # On its way when the memory went, and with it what was agreed on since the Hello.
            yield from self._say_evicted()
            return
        if isinstance(message, Hello):
            yield encode(self._hello(message))
            return
        if isinstance(message, Heartbeat):
            if held is None:  # who asks before a session wants to know whether to begin one
                if not message.wants_tiers:  # which tell it
                    self._service.check_ready()
                self._service.take_turn()
            yield from self._pong(message)
            return
        if isinstance(message, Bye):
            self._said_bye = True
            self.close()
            return
        if held is None:
            raise ProtocolError(f"{type(message).__name__} before Hello")
        if isinstance(message, Attach):
            yield encode(self._attach(held, message))
            return
        with held.lock:
            self._check_owner(held)
            evicted = held.is_dropped
            if not evicted:
                self._service.sessions.make_room(self._id, held.bytes_for(message))
        if evicted:
            yield from self._say_evicted()
            return
        if isinstance(message, Recut) and message.cut < held.cut:
            # It makes the cloud run the whole text through more layers.
            charge = self._charge(tokens=held.position)
            self.pause_seconds = max(self.pause_seconds, charge)
        rows = held.pending + (len(message.token_ids) if isinstance(message, Ask) else 0)
        kind = type(message).__name__.lower()
        if isinstance(message, (Append, Ask)):
            metrics.POSITIONS.labels(str(held.cut)).inc(len(message.token_ids))
        if isinstance(message, Verify) and message.may_exit and self._minor < EXIT_MINOR:
            message = replace(message, may_exit=False)
        replies = held.answer(message)
        try:
            while True:
                with held.lock:
                    self._check_owner(held)
                    if held.is_dropped:
                        break
                    if isinstance(message, Generate):  # it grows as it goes
                        self._service.sessions.make_room(self._id, held.bytes_for(message))
                    self._service.sessions.used(self._id)
                    started = time.perf_counter()
                    reply = next(replies, _END)
                    seconds = time.perf_counter() - started
                if isinstance(reply, Bye):
                    return
                metrics.TURN_SECONDS.labels(kind).observe(seconds)
                if reply is None:
                    yield NOTHING
                    continue
                if isinstance(message, Verify | Ask) and isinstance(reply, Verdict):
                    drafted = message.drafted if isinstance(message, Ask) else len(message.draft)
                    self._service.costs.took(held.cut, rows, drafted + 1, reply.cloud_seconds)
                elif isinstance(reply, Token) and self._service.self_draft is None:
                    self._service.costs.took(0, rows, 1, reply.cloud_seconds)
                    rows = 1  # the first token brought the prompt's with it
                tokens = _count(reply, self._service.full_model)
                self.pause_seconds = max(self.pause_seconds, self._charge(tokens=tokens))
                yield encode(reply)
        finally:
            with held.lock:
                replies.close()
        yield from self._say_evicted()

    def close(self) -> None:
        """End this link's part: the session waits a moment for its client, unless it said Bye."""
        held, self._held = self._held, None
        if held is not None:
            self._log("over" if self._said_bye else "the link is gone")
            self._service.sessions.leave(self._id, held, keep=not self._said_bye)

    def _hello(self, hello: Hello) -> Welcome:
        if self._held is not None:
            raise ProtocolError("a second Hello")
        service, stage = self._service, self._service.stage
        check_hello(
            hello,
            fingerprint=stage.artifact.fingerprint,
            cuts=stage.bounds[:-1],
            wire_formats=WIRE_FORMATS,
        )
        service.check_ready()
        held = service.hold(hello, self._peer.identity)
        self._id = uuid.uuid4().hex
        service.sessions.enter(self._id, held, hello.resumes, self._peer.end)
        self._held, self._minor = held, hello.protocol_minor
        self._log(f"session from cut {hello.cut}, {hello.wire_format}, {hello.software[:40]}")
        return Welcome(
            protocol_minor=PROTOCOL_MINOR,
            position=0,
            software=f"collm {__version__}",
            session_id=self._id,
            max_positions=held.max_positions,
            model_layers=stage.architecture.layers,
            cuts=_cuts(stage, hello.cut),
        )

    def _pong(self, heartbeat: Heartbeat) -> Iterator[bytes]:
        """What is asked for comes back, and is counted as if it had been sent."""
        service, limits = self._service, self._service.limits
        charge = self._charge(byte_count=heartbeat.reply_bytes)
        self.pause_seconds = max(self.pause_seconds, charge)
        figures: Figures | None = None
        if heartbeat.wants_figures:
            for _ in service.costs.measure():
                yield NOTHING
            figures = Figures(
                fingerprint=service.stage.artifact.fingerprint,
                model_layers=service.stage.architecture.layers,
                sessions=len(service.sessions),
                at_work=service.sessions.at_work,
                costs=service.costs.told(limits.max_cost_entries),
            )
        padding = bytes(heartbeat.reply_bytes)
        tiers = fitted(service.tiers(), limits) if heartbeat.wants_tiers else ()
        pong = Pong(nonce=heartbeat.nonce, padding=padding, figures=figures, tiers=tiers)
        yield encode(pong)

    def _attach(self, held: HeldSession, message: Attach) -> Attached:
        found = held
        if message.session_id != self._id:
            found = self._service.sessions.take_over(
                message.session_id, self._id, held, self._peer.identity
            )
            self._held = found
        self._said_evicted = False
        with found.lock:
            self._check_owner(found)
            position = found.attach(message)
        self._log(f"attached to {message.session_id[:8]}, {position} positions held")
        return Attached(position=position)

    def _charge(self, *, byte_count: int = 0, tokens: int = 0) -> float:
        quotas, identity = self._service.quotas, self._peer.identity
        return quotas.charge(identity, byte_count=byte_count, tokens=tokens)

    def _log(self, what: str) -> None:
        name = self._id[:8]  # whole, it would let readers of the log attach to the session
        extra = {"session": name, "identity": self._peer.identity}
        logger.info("%s %s: %s", name, self._peer.address, what, extra=extra)

    def _is_evicted(self, held: HeldSession) -> bool:
        with held.lock:  # it may be losing its memory now
            return held.is_dropped

    def _say_evicted(self) -> Iterator[bytes]:
        """Once: what was on its way before the client can know of it is passed over."""
        if self._minor < ATTACH_MINOR:
            raise Refused("busy", "this session's memory was needed for others; begin anew")
        if not self._said_evicted:
            self._said_evicted = True
            yield encode(Evicted())

    def _check_owner(self, held: HeldSession) -> None:
        if not self._service.sessions.owns(self._id, held):
            raise Refused("protocol", "the session goes on over another link")


def _cuts(stage: Stage, cut: int) -> tuple[int, ...]:
    """Where a session from `cut` may take its rows: lower ones need the layers from 0 on."""
    cuts = stage.bounds[:-1]
    return cuts if stage.layers.start == 0 else tuple(one for one in cuts if one >= cut)


def _count(reply: CloudMessage, full_model: str) -> int:
    """Tokens in it. full_model: where those that no exit chose come from."""
    if isinstance(reply, Verdict) and reply.exit_cut:
        metrics.ANSWERED.labels(f"exit@{reply.exit_cut}").inc()
        return 1
    tokens = 0
    if isinstance(reply, Verdict):
        tokens = reply.accepted + 1
        metrics.VERDICTS.inc()
        metrics.ACCEPTED.observe(reply.accepted)
    elif isinstance(reply, Token):
        tokens = 1
    metrics.TOKENS.inc(tokens)
    metrics.ANSWERED.labels(full_model).inc(tokens)
    return tokens
