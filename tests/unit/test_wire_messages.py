"""Every message survives the wire, and every broken one is refused in one line."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from collm.config import Constraint, Sampling
from collm.errors import ProtocolError
from collm.limits import Limits
from collm.wire import session_pb2 as pb
from collm.wire.codec import rows_per_append
from collm.wire.encoding import decode_client, decode_cloud, encode
from collm.wire.messages import (
    Append,
    Ask,
    Attach,
    Bye,
    ClientMessage,
    CloudMessage,
    Crop,
    Finished,
    Generate,
    Heartbeat,
    Hello,
    Pong,
    Recut,
    Refusal,
    Score,
    Scored,
    Token,
    Verdict,
    Verify,
    Welcome,
)
from collm.wire.tiers import Tier, fitted

LIMITS = Limits()
HIDDEN = 8
ROWS = np.random.default_rng(3).standard_normal((3, HIDDEN)).astype(np.float32)
GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0, repetition_penalty=1.0)
WARM = Sampling(temperature=0.7, top_k=40, top_p=0.95, seed=2**64 - 1, repetition_penalty=1.1)
BOUND = replace(
    WARM,
    constraint=Constraint(kind="json_schema", text='{\n\t"type": "ö"}', start=2**24),
    top_logprobs=20,
)
PLACES = (((5, -0.5), (2**24, -9.0)), ((1, -0.25), (0, -2.0)), ((7, 0.0), (8, -3.5)))

HELLO = Hello(
    protocol_major=1,
    protocol_minor=0,
    fingerprint="sha256:0123",
    cut=15,
    wire_format="f32",
    software="collm 0.1",
)
CLIENT: list[ClientMessage] = [
    HELLO,
    Append(epoch=2**32 - 1, base=7, token_ids=(0, 49_151, 2**24), rows=ROWS),
    Verify(epoch=1, base=9, draft=(5, 6, 7), sampling=WARM),
    Verify(epoch=0, base=0, draft=(), sampling=GREEDY),
    Verify(epoch=0, base=0, draft=(), sampling=GREEDY, may_exit=True),
    Score(epoch=1, base=9, draft=(5, 6, 7)),
    Score(epoch=0, base=0, draft=()),
    Score(epoch=0, base=0, draft=(4,), sampling=BOUND),
    Verify(epoch=1, base=9, draft=(5,), sampling=BOUND),
    Verify(epoch=1, base=9, draft=(5,), sampling=replace(BOUND, top_logprobs=0)),
    Generate(epoch=1, base=9, max_tokens=64, stop_ids=(2, 3), sampling=BOUND),
    Ask(epoch=1, drafted=0, sampling=replace(BOUND, constraint=Constraint(kind="json_object"))),
    Generate(epoch=1, base=9, max_tokens=64, stop_ids=(2, 3), sampling=WARM),
    Crop(epoch=2, position=11),
    Recut(epoch=2, position=11, cut=5, wire_format="int4"),
    Ask(epoch=1, drafted=3, token_ids=(5, 6, 7, 2**24 - 1), sampling=WARM),
    Ask(epoch=0, drafted=0),
    Attach(session_id="5e55104", epoch=3, position=7),
    Heartbeat(nonce=2**64 - 1),
    Heartbeat(nonce=1, padding=b"abc", reply_bytes=5, wants_figures=True),
    Heartbeat(nonce=1, wants_tiers=True),
    Bye(),
]
WELCOME = Welcome(
    protocol_minor=0,
    position=0,
    software="collm 0.1",
    session_id="a1b2",
    max_positions=2048,
    model_layers=30,
)
VERDICT = Verdict(
    epoch=1,
    base=9,
    accepted=2,
    next_token=17,
    logprob=-0.1,
    cloud_seconds=0.01,
    logprobs_accepted=(-0.5, -1e-9),
)
TIERS = (
    Tier(role="edge server", first=10, last=20, round_trip=0.0, sessions=0),
    Tier(address="wölke:50051", last=30, ok=False, error="killed"),
    Tier(address="x" * 200, ok=False, error="not known"),
)
TOKEN = Token(epoch=1, position=12, token_id=3, logprob=-2.5, cloud_seconds=0.0)
SCORED = Scored(
    epoch=1,
    base=9,
    logprobs=(-0.5, -20.25),
    ranks=(1, 49_152),
    best_ids=(0, 2**24),
    best_logprobs=(-0.5, -1e-9),
    next_token=17,
    next_logprob=-0.1,
    cloud_seconds=0.01,
)
CLOUD: list[CloudMessage] = [
    WELCOME,
    VERDICT,
    replace(VERDICT, accepted=0, logprobs_accepted=()),
    replace(VERDICT, accepted=0, logprobs_accepted=(), exit_cut=15),
    SCORED,
    replace(SCORED, logprobs=(), ranks=(), best_ids=(), best_logprobs=()),
    TOKEN,
    replace(VERDICT, alternatives=PLACES),
    replace(VERDICT, accepted=0, logprobs_accepted=(), alternatives=PLACES[:1]),
    replace(SCORED, alternatives=PLACES),
    replace(TOKEN, alternatives=PLACES[0]),
    Finished(epoch=1, reason="stop"),
    Pong(nonce=5),
    Pong(nonce=5, tiers=TIERS),
    Refusal(code="busy", reason="all 64 sessions are taken; try again later"),
]


def _names(messages: list[Any]) -> list[str]:
    return [type(message).__name__ for message in messages]


def decode(frame: bytes, wire_format: str = "f32", limits: Limits = LIMITS) -> ClientMessage:
    return decode_client(frame, limits, wire_format, HIDDEN)


@pytest.mark.parametrize("message", CLIENT, ids=_names(CLIENT))
def test_client_messages_round_trip(message: ClientMessage) -> None:
    frame = encode(message, "f32")
    assert decode(frame) == message
    with pytest.raises(ProtocolError, match="a cloud does not send"):
        decode_cloud(frame, LIMITS)


@pytest.mark.parametrize("message", CLOUD, ids=_names(CLOUD))
def test_cloud_messages_round_trip(message: CloudMessage) -> None:
    frame = encode(message)
    assert decode_cloud(frame, LIMITS) == message
    with pytest.raises(ProtocolError, match="a client does not send"):
        decode(frame)


def test_append_of_ids_round_trips_without_rows() -> None:
    message = Append(epoch=0, base=0, token_ids=(1, 2), rows=None)
    frame = encode(message, "ids")
    assert len(frame) < 30
    assert decode(frame, "ids") == message


def test_appends_compare_by_value() -> None:
    first = Append(epoch=0, base=0, token_ids=(1, 2, 3), rows=ROWS)
    assert first == replace(first, rows=ROWS.copy())
    assert first != replace(first, rows=ROWS + 1)
    assert first != replace(first, rows=None)
    assert first != replace(first, epoch=1)
    assert first != Bye()


def test_numpy_numbers_may_be_encoded() -> None:
    token = replace(TOKEN, token_id=np.int64(3), logprob=np.float32(-2.5))
    assert decode_cloud(encode(token), LIMITS) == TOKEN


def test_the_fullest_append_fits_a_frame() -> None:
    hidden = 4096
    count = rows_per_append("f32", hidden, LIMITS)
    message = Append(
        epoch=2**32 - 1,
        base=2**23,
        token_ids=(2**24,) * count,
        rows=np.ones((count, hidden), dtype=np.float32),
    )
    frame = encode(message, "f32")
    assert len(frame) <= LIMITS.max_message_bytes
    assert decode_client(frame, LIMITS, "f32", hidden) == message


BAD_TO_ENCODE: list[tuple[Any, str]] = [
    (Crop(epoch=-1, position=0), "f32"),
    (Crop(epoch=0, position=2**32), "f32"),
    (Heartbeat(nonce=2**64), "f32"),
    (replace(HELLO, fingerprint="\ud800"), "f32"),
    (replace(VERDICT, next_token=1.5), "f32"),
    (Append(epoch=0, base=0, token_ids=(1, 2, 3), rows=ROWS), "ids"),
    (Append(epoch=0, base=0, token_ids=(1, 2, 3), rows=None), "f32"),
    (Append(epoch=0, base=0, token_ids=(1, 2), rows=ROWS), "f32"),
    (Append(epoch=0, base=0, token_ids=(1, 2, 3), rows=ROWS), "zip"),
    (Append(epoch=0, base=0, token_ids=(1, 2, 3), rows=ROWS * np.nan), "f32"),
    (Verify(epoch=0, base=0, draft=(-1,), sampling=GREEDY), "f32"),
]


@pytest.mark.parametrize(("message", "wire_format"), BAD_TO_ENCODE)
def test_what_cannot_travel_is_refused_by_the_sender(message: Any, wire_format: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(message, wire_format)
    assert "\n" not in str(caught.value)


def sampling(**changes: Any) -> bytes:
    """A Verify whose sampling no `Sampling` would hold."""
    body = pb.Sampling(**(vars(GREEDY) | changes))
    return pb.Envelope(verify=pb.Verify(sampling=body)).SerializeToString()


def append(**fields: Any) -> bytes:
    """An Append of three good positions, but for `fields`."""
    whole = {"token_ids": [1, 2, 3], "wire_format": "f32", "rows": ROWS.tobytes()} | fields
    return pb.Envelope(append=pb.Append(**whole)).SerializeToString()


BAD_FROM_CLIENT: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "without a message"),
    "unknown message": (b"\xfa\x01\x00", "newer protocol"),
    "not protobuf": (b"\xff" * 20, "no CoLLM message"),
    "cut short": (encode(HELLO)[:-1], "no CoLLM message"),
    "too large": (b"\0" * (LIMITS.max_message_bytes + 1), "at most 8388608"),
    "long text": (encode(replace(HELLO, software="x" * 4097)), "software is longer"),
    "long text in bytes": (encode(replace(HELLO, software="é" * 2049)), "software is longer"),
    "terminal codes": (encode(replace(HELLO, software="\x1b[31mred")), "cannot be printed"),
    "line break": (encode(replace(HELLO, fingerprint="a\nb")), "cannot be printed"),
    "huge cut": (encode(replace(HELLO, cut=2**31)), "cut is"),
    "huge version": (encode(replace(HELLO, protocol_major=2**31)), "protocol major"),
    "no positions": (append(token_ids=[], rows=b""), "without positions"),
    "too few rows": (append(rows=ROWS[:2].tobytes()), "rows take 64 bytes"),
    "too many rows": (append(token_ids=[1, 2]), "rows take 96 bytes"),
    "no rows": (append(rows=b""), "rows take 0 bytes"),
    "other format": (append(wire_format="ids"), "agreed on f32"),
    "rows with NaN": (append(rows=(ROWS * np.nan).tobytes()), "not finite"),
    "many rows": (append(token_ids=[0] * 1025), "1025 rows"),
    "far base": (append(base=2**24 + 1), "base is"),
    "far end": (append(base=2**24), "end of Append"),
    "large id": (append(token_ids=[1, 2, 2**24 + 1]), "token id is"),
    "far crop": (encode(Crop(epoch=0, position=2**24 + 1)), "position is"),
    "long draft": (
        encode(Verify(epoch=0, base=0, draft=(1,) * 257, sampling=GREEDY)),
        "257 draft tokens; at most 256",
    ),
    "far draft": (
        encode(Verify(epoch=0, base=2**24, draft=(1,), sampling=GREEDY)),
        "end of draft",
    ),
    "large draft id": (
        encode(Verify(epoch=0, base=0, draft=(2**32 - 1,), sampling=GREEDY)),
        "draft token is",
    ),
    "a draft for exits": (
        encode(Verify(epoch=0, base=0, draft=(1,), sampling=GREEDY, may_exit=True)),
        "only the full model judges drafts",
    ),
    "long score": (
        encode(Score(epoch=0, base=0, draft=(1,) * 257)),
        "257 draft tokens; at most 256",
    ),
    "far score": (encode(Score(epoch=0, base=2**24, draft=(1,))), "end of draft"),
    "large scored id": (encode(Score(epoch=0, base=0, draft=(2**32 - 1,))), "draft token is"),
    "no sampling": (pb.Envelope(verify=pb.Verify()).SerializeToString(), "top-p 0"),
    "negative temperature": (sampling(temperature=-0.1), "temperature"),
    "endless temperature": (sampling(temperature=math.inf), "temperature"),
    "NaN temperature": (sampling(temperature=math.nan), "temperature"),
    "top_p 0": (sampling(top_p=0.0), "top-p"),
    "top_p above 1": (sampling(top_p=1.0001), "top-p"),
    "NaN top_p": (sampling(top_p=math.nan), "top-p"),
    "large top_k": (sampling(top_k=2**31), "top_k"),
    "penalty 0": (sampling(repetition_penalty=0.0), "repetition penalty"),
    "negative penalty": (sampling(repetition_penalty=-1.0), "repetition penalty"),
    "endless penalty": (sampling(repetition_penalty=math.inf), "repetition penalty"),
    "many stop ids": (
        encode(Generate(epoch=0, base=0, max_tokens=1, stop_ids=(1,) * 65, sampling=GREEDY)),
        "65 stop ids",
    ),
    "endless generation": (
        encode(Generate(epoch=0, base=0, max_tokens=2**31, stop_ids=(), sampling=GREEDY)),
        "max tokens",
    ),
}


@pytest.mark.parametrize(("frame", "message"), BAD_FROM_CLIENT.values(), ids=BAD_FROM_CLIENT.keys())
def test_bad_client_frames_are_refused(frame: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        decode(frame)
    assert "\n" not in str(caught.value)


def test_rows_are_refused_in_a_session_of_ids() -> None:
    with pytest.raises(ProtocolError):
        decode(append(wire_format="ids"), "ids")
    with pytest.raises(ProtocolError, match="agreed on ids"):
        decode(append(), "ids")


def test_unknown_session_format_is_refused() -> None:
    with pytest.raises(ProtocolError, match="unknown wire format"):
        decode(append(), "zip")


BAD_FROM_CLOUD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "without a message"),
    "finish reason": (encode(Finished(epoch=0, reason="bored")), "finish reason 'bored'"),
    "refusal code": (encode(Refusal(code="no", reason="")), "refusal code 'no'"),
    "refusal text": (encode(Refusal(code="busy", reason="\x1b]0;x\x07")), "cannot be printed"),
    "accepted": (encode(replace(VERDICT, accepted=257, logprobs_accepted=())), "accepted is"),
    "logprob count": (encode(replace(VERDICT, accepted=1)), "2 log-probabilities for 1"),
    "logprob NaN": (encode(replace(VERDICT, logprob=math.nan)), "logprob is nan"),
    "accepted logprob": (
        encode(replace(VERDICT, logprobs_accepted=(-math.inf, 0.0))),
        "logprob is -inf",
    ),
    "score count": (encode(replace(SCORED, logprobs=(-0.1,) * 257)), "257 scored tokens"),
    "rank count": (encode(replace(SCORED, ranks=(1,))), "1 ranks for 2"),
    "likeliest count": (encode(replace(SCORED, best_ids=(1, 2, 3))), "3 likeliest tokens for 2"),
    "best logprob count": (encode(replace(SCORED, best_logprobs=())), "0 log-probabilities"),
    "rank 0": (encode(replace(SCORED, ranks=(0, 1))), "rank is 0"),
    "large rank": (encode(replace(SCORED, ranks=(1, 2**25))), "rank is"),
    "large likeliest": (encode(replace(SCORED, best_ids=(1, 2**25))), "likeliest token is"),
    "score NaN": (encode(replace(SCORED, logprobs=(math.nan, 0.0))), "logprob is nan"),
    "next logprob": (encode(replace(SCORED, next_logprob=1.0)), "must not be above 0"),
    "score seconds": (encode(replace(SCORED, cloud_seconds=math.inf)), "must be finite"),
    "cloud seconds": (encode(replace(TOKEN, cloud_seconds=-1.0)), "must not be negative"),
    "token id": (encode(replace(TOKEN, token_id=2**25)), "token id is"),
    "layers": (encode(replace(WELCOME, model_layers=2**20)), "model layers is"),
    "context": (encode(replace(WELCOME, max_positions=2**30)), "max positions is"),
}


@pytest.mark.parametrize(("frame", "message"), BAD_FROM_CLOUD.values(), ids=BAD_FROM_CLOUD.keys())
def test_bad_cloud_frames_are_refused(frame: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        decode_cloud(frame, LIMITS)
    assert "\n" not in str(caught.value)


def test_fields_of_a_newer_minor_version_are_ignored() -> None:
    crop = pb.Crop(epoch=1, position=2).SerializeToString() + b"\xfa\x01\x03new"
    frame = b"\x2a" + bytes([len(crop)]) + crop
    assert decode(frame) == Crop(epoch=1, position=2)


def test_what_a_server_tells_of_others_fits_the_wire() -> None:
    """However long, many, or foreign it is."""
    strange = Tier(address="ä\x1b\n" * 300, error="\ud800 \t gone " * 100, ok=False)
    sent = fitted((replace(strange, ok=True), *[strange] * 20), LIMITS)
    assert decode_cloud(encode(Pong(nonce=1, tiers=sent)), LIMITS) == Pong(nonce=1, tiers=sent)
    assert len(sent) == LIMITS.max_tiers and sent[0].address.startswith("ä? ä? ")
    assert sent[0].error.startswith("? gone ? gone")
