"""Frames to messages, checked field by field. Nothing but `ProtocolError` comes out.

Parsing is bounded by the frame's length, which is checked first; lengths of runs are checked
before they are copied into Python objects. Fields of a newer minor version are ignored.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from collm.errors import ProtocolError
from collm.limits import Limits
from collm.wire import checks
from collm.wire import session_pb2 as pb
from collm.wire.choice import alternatives_of, sampling_of
from collm.wire.codec import carries_rows, decode_rows, row_bytes, unpack_ids
from collm.wire.compression import decompressed
from collm.wire.messages import (
    ATTACH_MINOR,
    FINISH_REASONS,
    REFUSAL_CODES,
    Append,
    Ask,
    Attach,
    Attached,
    Bye,
    ClientMessage,
    CloudMessage,
    Crop,
    Evicted,
    Figures,
    Finished,
    Generate,
    Heartbeat,
    Hello,
    Pong,
    Recut,
    Refusal,
    RowSeconds,
    Score,
    Scored,
    Token,
    Verdict,
    Verify,
    Welcome,
)
from collm.wire.seal import check_seal, has_seal
from collm.wire.tiers import tiers_of

_MOST_VERSION: Final = 10_000


def decode_client(
    frame: bytes, limits: Limits, wire_format: str, hidden_size: int, *, sealed: bool | None = False
) -> ClientMessage:
    """What a client sent; `wire_format` and `hidden_size` are what its `Hello` agreed on.

    Before that, `"ids"` and 0 do. A decoded `Append`'s rows are a read-only view of the frame.
    sealed: the frame has to end with a checksum; older clients' do not. None: it is not known yet
    whose it is, and what looks like a checksum is one.
    Raises `ProtocolError` for anything wrong with the frame, `CorruptFrame` for its checksum.
    """
    envelope = _parse(frame, limits, sealed=sealed)
    match envelope.WhichOneof("body"):
        case "hello":
            hello = _hello(envelope.hello, limits)
            check_seal(frame, required=hello.protocol_minor >= ATTACH_MINOR)
            return hello
        case "append":
            return _append(envelope.append, limits, wire_format, hidden_size)
        case "verify":
            return _verify(envelope.verify, limits)
        case "ask":
            return _ask(envelope.ask, limits)
        case "score":
            return _score(envelope.score, limits)
        case "generate":
            return _generate(envelope.generate, limits)
        case "crop":
            position = checks.bounded("position", envelope.crop.position, limits.max_positions)
            return Crop(epoch=envelope.crop.epoch, position=position)
        case "recut":
            return Recut(
                epoch=envelope.recut.epoch,
                position=checks.bounded("position", envelope.recut.position, limits.max_positions),
                cut=checks.bounded("cut", envelope.recut.cut, limits.max_layers),
                wire_format=checks.text("wire format", envelope.recut.wire_format, limits),
            )
        case "attach":
            return Attach(
                session_id=checks.text("session id", envelope.attach.session_id, limits),
                epoch=envelope.attach.epoch,
                position=checks.bounded("position", envelope.attach.position, limits.max_positions),
            )
        case "heartbeat":
            return _heartbeat(envelope.heartbeat, limits)
        case "bye":
            return Bye()
        case other:
            raise _unexpected(other, "client")


def decode_cloud(frame: bytes, limits: Limits, *, sealed: bool = False) -> CloudMessage:
    """What a cloud sent. Raises as `decode_client` does."""
    envelope = _parse(frame, limits, sealed=sealed)
    match envelope.WhichOneof("body"):
        case "welcome":
            return _welcome(envelope.welcome, limits)
        case "verdict":
            return _verdict(envelope.verdict, limits)
        case "scored":
            return _scored(envelope.scored, limits)
        case "token":
            return _token(envelope.token, limits)
        case "finished":
            reason = checks.one_of("finish reason", envelope.finished.reason, FINISH_REASONS)
            return Finished(epoch=envelope.finished.epoch, reason=reason)
        case "attached":
            held = envelope.attached.position
            return Attached(position=checks.bounded("position", held, limits.max_positions))
        case "evicted":
            return Evicted()
        case "pong":
            return _pong(envelope.pong, limits)
        case "refusal":
            return Refusal(
                code=checks.one_of("refusal code", envelope.refusal.code, REFUSAL_CODES),
                reason=checks.text("refusal reason", envelope.refusal.reason, limits),
                retry_seconds=checks.seconds("retry seconds", envelope.refusal.retry_seconds),
            )
        case other:
            raise _unexpected(other, "cloud")


def _parse(frame: bytes, limits: Limits, *, sealed: bool | None) -> pb.Envelope:
    if len(frame) > limits.max_message_bytes:
        raise ProtocolError(f"a frame of {len(frame)} bytes; at most {limits.max_message_bytes}")
    check_seal(frame, required=has_seal(frame) if sealed is None else sealed)
    envelope = pb.Envelope()
    try:
        envelope.ParseFromString(frame)
    except (DecodeError, ValueError) as error:
        raise ProtocolError(f"a frame of {len(frame)} bytes that is no CoLLM message") from error
    return envelope


def _unexpected(kind: str | None, sender: str) -> ProtocolError:
    if kind is None:
        return ProtocolError("a frame without a message, or with one of a newer protocol")
    return ProtocolError(f"a {sender} does not send {kind!r}")


def _hello(body: pb.Hello, limits: Limits) -> Hello:
    return Hello(
        protocol_major=checks.bounded("protocol major", body.protocol_major, _MOST_VERSION),
        protocol_minor=checks.bounded("protocol minor", body.protocol_minor, _MOST_VERSION),
        fingerprint=checks.text("fingerprint", body.fingerprint, limits),
        cut=checks.bounded("cut", body.cut, limits.max_layers),
        # Whether the format is known is for the handshake to say: it can answer with a reason.
        wire_format=checks.text("wire format", body.wire_format, limits),
        software=checks.text("software", body.software, limits),
        resumes=checks.text("session", body.resumes, limits),
    )


def _append(body: pb.Append, limits: Limits, wire_format: str, hidden: int) -> Append:
    rows = carries_rows(wire_format)
    if body.wire_format not in ("", wire_format):
        raise ProtocolError(
            f"an Append in {body.wire_format[:40]!r}; this session agreed on {wire_format}"
        )
    count = len(body.token_ids)
    if count == 0:
        raise ProtocolError("an Append without positions")
    checks.counted("rows in one Append", count, limits.max_rows_per_append)
    checks.bounded("base", body.base, limits.max_positions)
    checks.bounded("end of Append", body.base + count, limits.max_positions)
    # `decode_rows` refuses a payload under `ids` and a missing one under any other format.
    payload = body.rows
    if body.compressed:
        size = count * row_bytes(wire_format, hidden)
        payload = decompressed(payload, size, limits)
    decoded = decode_rows(wire_format, payload, count, hidden, limits)
    return Append(
        epoch=body.epoch,
        base=body.base,
        token_ids=checks.token_ids("token id", body.token_ids, limits),
        rows=decoded if rows else None,
        settled=body.settled,
    )


def _heartbeat(body: pb.Heartbeat, limits: Limits) -> Heartbeat:
    checks.bounded("padding", len(body.padding), limits.max_padding_bytes)
    return Heartbeat(
        nonce=body.nonce,
        padding=body.padding,
        reply_bytes=checks.bounded("reply bytes", body.reply_bytes, limits.max_padding_bytes),
        wants_figures=body.wants_figures,
        wants_tiers=body.wants_tiers,
    )


def _pong(body: pb.Pong, limits: Limits) -> Pong:
    checks.bounded("padding", len(body.padding), limits.max_padding_bytes)
    figures = _figures(body.figures, limits) if body.HasField("figures") else None
    tiers = tiers_of(body, limits)
    return Pong(nonce=body.nonce, padding=body.padding, figures=figures, tiers=tiers)


def _figures(body: pb.Figures, limits: Limits) -> Figures:
    checks.counted("costs", len(body.costs), limits.max_cost_entries)
    return Figures(
        fingerprint=checks.text("fingerprint", body.fingerprint, limits),
        model_layers=checks.bounded("model layers", body.model_layers, limits.max_layers),
        sessions=body.sessions,
        at_work=body.at_work,
        costs=tuple(
            RowSeconds(
                cut=checks.bounded("cut", one.cut, limits.max_layers),
                rows=checks.bounded("rows", one.rows, limits.max_rows_per_append),
                seconds=checks.seconds("seconds", one.seconds),
            )
            for one in body.costs
        ),
    )


def _verify(body: pb.Verify, limits: Limits) -> Verify:
    if body.may_exit and len(body.draft):
        raise ProtocolError("a draft that an exit may judge; only the full model judges drafts")
    return Verify(
        epoch=body.epoch,
        base=body.base,
        draft=_draft(body, limits),
        sampling=sampling_of(body.sampling, limits),
        may_exit=body.may_exit,
    )


def _ask(body: pb.Ask, limits: Limits) -> Ask:
    checks.counted("bytes of token ids", len(body.token_ids), 3 * limits.max_rows_per_append)
    return Ask(
        epoch=body.epoch,
        drafted=checks.bounded("draft tokens", body.drafted, limits.max_draft_tokens),
        token_ids=unpack_ids(body.token_ids),
        sampling=sampling_of(body.sampling, limits) if body.HasField("sampling") else None,
        may_exit=body.may_exit,
    )


def _score(body: pb.Score, limits: Limits) -> Score:
    return Score(
        epoch=body.epoch,
        base=body.base,
        draft=_draft(body, limits),
        sampling=sampling_of(body.sampling, limits) if body.HasField("sampling") else None,
    )


def _draft(body: pb.Verify | pb.Score, limits: Limits) -> tuple[int, ...]:
    count = len(body.draft)
    checks.counted("draft tokens", count, limits.max_draft_tokens)
    checks.bounded("base", body.base, limits.max_positions)
    checks.bounded("end of draft", body.base + count, limits.max_positions)
    return checks.token_ids("draft token", body.draft, limits)


def _generate(body: pb.Generate, limits: Limits) -> Generate:
    checks.counted("stop ids", len(body.stop_ids), limits.max_stop_ids)
    return Generate(
        epoch=body.epoch,
        base=checks.bounded("base", body.base, limits.max_positions),
        max_tokens=checks.bounded("max tokens", body.max_tokens, limits.max_new_tokens),
        stop_ids=checks.token_ids("stop id", body.stop_ids, limits),
        sampling=sampling_of(body.sampling, limits),
    )


def _welcome(body: pb.Welcome, limits: Limits) -> Welcome:
    return Welcome(
        protocol_minor=checks.bounded("protocol minor", body.protocol_minor, _MOST_VERSION),
        position=checks.bounded("position", body.position, limits.max_positions),
        software=checks.text("software", body.software, limits),
        session_id=checks.text("session id", body.session_id, limits),
        max_positions=checks.bounded("max positions", body.max_positions, limits.max_positions),
        model_layers=checks.bounded("model layers", body.model_layers, limits.max_layers),
        cuts=_cuts(body, limits),
    )


def _cuts(body: pb.Welcome, limits: Limits) -> tuple[int, ...]:
    checks.counted("cuts", len(body.cuts), limits.max_layers)
    return tuple(checks.bounded("cut", cut, limits.max_layers) for cut in body.cuts)


def _verdict(body: pb.Verdict, limits: Limits) -> Verdict:
    accepted = checks.bounded("accepted", body.accepted, limits.max_draft_tokens)
    if len(body.logprobs_accepted) not in (0, accepted):
        raise ProtocolError(
            f"{len(body.logprobs_accepted)} log-probabilities for {accepted} accepted tokens"
        )
    return Verdict(
        epoch=body.epoch,
        base=checks.bounded("base", body.base, limits.max_positions),
        accepted=accepted,
        next_token=checks.bounded("next token", body.next_token, limits.max_token_id),
        logprob=checks.logprob(body.logprob),
        cloud_seconds=checks.seconds("cloud seconds", body.cloud_seconds),
        logprobs_accepted=tuple(checks.logprob(p) for p in body.logprobs_accepted),
        exit_cut=checks.bounded("exit", body.exit_cut, limits.max_layers),
        alternatives=alternatives_of(body, accepted + 1, limits),
    )


def _scored(body: pb.Scored, limits: Limits) -> Scored:
    count = len(body.logprobs)
    checks.counted("scored tokens", count, limits.max_draft_tokens)
    for name, values in (
        ("ranks", body.ranks),
        ("likeliest tokens", body.best_ids),
        ("log-probabilities of likeliest tokens", body.best_logprobs),
    ):
        if len(values) != count:
            raise ProtocolError(f"{len(values)} {name} for {count} scored tokens")
    ranks = checks.token_ids("rank", body.ranks, limits)
    if 0 in ranks:
        raise ProtocolError("rank is 0; ranks count from 1")
    return Scored(
        epoch=body.epoch,
        base=checks.bounded("base", body.base, limits.max_positions),
        logprobs=tuple(checks.logprob(p) for p in body.logprobs),
        ranks=ranks,
        best_ids=checks.token_ids("likeliest token", body.best_ids, limits),
        best_logprobs=tuple(checks.logprob(p) for p in body.best_logprobs),
        next_token=checks.bounded("next token", body.next_token, limits.max_token_id),
        next_logprob=checks.logprob(body.next_logprob),
        cloud_seconds=checks.seconds("cloud seconds", body.cloud_seconds),
        alternatives=alternatives_of(body, count + 1, limits),
    )


def _token(body: pb.Token, limits: Limits) -> Token:
    alternatives = alternatives_of(body, 1, limits)
    return Token(
        epoch=body.epoch,
        position=checks.bounded("position", body.position, limits.max_positions),
        token_id=checks.bounded("token id", body.token_id, limits.max_token_id),
        logprob=checks.logprob(body.logprob),
        cloud_seconds=checks.seconds("cloud seconds", body.cloud_seconds),
        rejected=checks.bounded("rejected", body.rejected, limits.max_draft_tokens),
        alternatives=alternatives[0] if alternatives else (),
    )
