"""Whatever bytes arrive, decoding gives a message or a `ProtocolError`, and nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collm.config import Constraint, Sampling
from collm.errors import CorruptFrame, ProtocolError
from collm.limits import Limits
from collm.wire.encoding import decode_client, decode_cloud, encode
from collm.wire.messages import (
    Append,
    Ask,
    Attach,
    Attached,
    ClientMessage,
    CloudMessage,
    Crop,
    Evicted,
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
from collm.wire.seal import sealed
from collm.wire.tiers import Tier

LIMITS = Limits(max_message_bytes=4096, max_rows_per_append=16, max_draft_tokens=16)
HIDDEN = 6
FORMATS = st.sampled_from(["ids", "f32", "f16", "int8", "int4", "f17", ""])
EXAMPLES = settings(max_examples=300, deadline=None)

SAMPLING = Sampling(temperature=0.5, top_k=3, top_p=0.5, seed=2**63, repetition_penalty=1.25)
BOUND = Sampling(
    constraint=Constraint(kind="regex", text="[a-z]+\nx", start=3), top_logprobs=2, seed=1
)
PLACES = (((1, -0.5), (2, -1.5)), ((3, -0.25), (4, -2.5)), ((5, -0.125), (6, -3.5)))
GOOD: list[tuple[ClientMessage | CloudMessage, str]] = [
    (
        Hello(
            protocol_major=1,
            protocol_minor=0,
            fingerprint="f" * 64,
            cut=3,
            wire_format="f32",
            software="x",
        ),
        "ids",
    ),
    (Append(epoch=1, base=2, token_ids=(3, 4), rows=np.ones((2, HIDDEN), np.float32)), "f32"),
    (Append(epoch=1, base=2, token_ids=(3, 4), rows=np.ones((2, HIDDEN), np.float32)), "f16"),
    (Append(epoch=1, base=2, token_ids=(3, 4), rows=np.ones((2, HIDDEN), np.float32)), "int8"),
    (Append(epoch=1, base=2, token_ids=(3, 4), rows=np.ones((2, HIDDEN), np.float32)), "int4"),
    (Append(epoch=1, base=2, token_ids=(3, 4), rows=None), "ids"),
    (Verify(epoch=1, base=2, draft=(3, 4, 5), sampling=SAMPLING), "ids"),
    (Verify(epoch=1, base=2, draft=(), sampling=SAMPLING, may_exit=True), "ids"),
    (Score(epoch=1, base=2, draft=(3, 4, 5)), "ids"),
    (Generate(epoch=1, base=2, max_tokens=3, stop_ids=(4,), sampling=SAMPLING), "ids"),
    (Verify(epoch=1, base=2, draft=(3, 4, 5), sampling=BOUND), "ids"),
    (Score(epoch=1, base=2, draft=(3, 4, 5), sampling=BOUND), "ids"),
    (Ask(epoch=0, drafted=1, token_ids=(3, 4, 5), sampling=BOUND), "ids"),
    (Crop(epoch=1, position=2), "ids"),
    (Recut(epoch=0, position=0, cut=2, wire_format="int4"), "ids"),
    (Recut(epoch=1, position=2, cut=0, wire_format="ids"), "ids"),
    (Ask(epoch=0, drafted=1, token_ids=(3, 4, 5), sampling=SAMPLING), "ids"),
    (Ask(epoch=1, drafted=3), "ids"),
    (Attach(session_id="a1", epoch=1, position=2), "ids"),
    (Attached(position=2), "ids"),
    (Evicted(), "ids"),
    (Heartbeat(nonce=1), "ids"),
    (Heartbeat(nonce=1, reply_bytes=3, wants_figures=True, wants_tiers=True), "ids"),
    (
        Pong(
            nonce=1,
            padding=b"abc",
            tiers=(
                Tier(role="edge server", first=1, last=2, round_trip=0.5, sessions=3),
                Tier(address="c:1", last=3, ok=False, error="away"),
            ),
        ),
        "ids",
    ),
    (
        Welcome(
            protocol_minor=0,
            position=0,
            software="x",
            session_id="y",
            max_positions=9,
            model_layers=3,
        ),
        "ids",
    ),
    (
        Verdict(
            epoch=1,
            base=2,
            accepted=1,
            next_token=3,
            logprob=-1.0,
            cloud_seconds=0.5,
            logprobs_accepted=(-2.0,),
        ),
        "ids",
    ),
    (
        Scored(
            epoch=1,
            base=2,
            logprobs=(-1.0, -2.0),
            ranks=(1, 3),
            best_ids=(4, 5),
            best_logprobs=(-1.0, -0.5),
            next_token=6,
            next_logprob=-0.25,
            cloud_seconds=0.5,
        ),
        "ids",
    ),
    (Token(epoch=1, position=2, token_id=3, logprob=-1.0, cloud_seconds=0.5), "ids"),
    (
        Token(
            epoch=1,
            position=2,
            token_id=3,
            logprob=-1.0,
            cloud_seconds=0.5,
            alternatives=PLACES[0],
        ),
        "ids",
    ),
    (
        Verdict(
            epoch=1,
            base=2,
            accepted=2,
            next_token=3,
            logprob=-1.0,
            cloud_seconds=0.5,
            logprobs_accepted=(-2.0, -3.0),
            alternatives=PLACES,
        ),
        "ids",
    ),
    (Finished(epoch=1, reason="stop"), "ids"),
    (Refusal(code="busy", reason="later", retry_seconds=2.0), "ids"),
]
FRAMES = [encode(message, wire_format) for message, wire_format in GOOD]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good frame with bytes changed, cut out, put in, or followed by another frame.

    Half of them with a checksum that is right all the same.
    """
    frame = bytearray(draw(st.sampled_from(FRAMES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        match draw(st.integers(0, 3)):
            case 0 if at < len(frame):
                frame[at] = draw(st.integers(0, 255))
            case 1:
                frame[at:at] = draw(st.binary(min_size=1, max_size=8))
            case 2:
                del frame[at : at + draw(st.integers(1, 8))]
            case _:
                frame += draw(st.sampled_from(FRAMES))
    return sealed(bytes(frame)) if draw(st.booleans()) else bytes(frame)


def survive(frame: bytes, wire_format: str) -> None:
    """Decode as either side would; what is accepted can be sent on."""
    refusals: list[str] = []
    try:
        client = decode_client(frame, LIMITS, wire_format, HIDDEN)
    except (ProtocolError, CorruptFrame) as error:
        refusals.append(str(error))
    else:
        again = decode_client(encode(client, wire_format), LIMITS, wire_format, HIDDEN)
        if wire_format == "int8" and isinstance(client, Append):
            # A stranger's rows may use less than the full range; ours are the same again.
            client, again = (
                again,
                decode_client(encode(again, wire_format), LIMITS, wire_format, HIDDEN),
            )
        assert again == client
    try:
        cloud = decode_cloud(frame, LIMITS)
    except (ProtocolError, CorruptFrame) as error:
        refusals.append(str(error))
    else:
        assert decode_cloud(encode(cloud), LIMITS) == cloud
    # No frame is good for both sides, and each no is one line.
    assert refusals
    assert not any("\n" in refusal for refusal in refusals)


@EXAMPLES
@given(frame=st.binary(max_size=512), wire_format=FORMATS)
@example(frame=b"\x0b" * 4096, wire_format="f32")  # groups that open and never close
@example(frame=b"\x12\x04\x1a\x02\x00\x00", wire_format="f32")  # half a token id
@example(frame=b"\0" * 4097, wire_format="f32")
def test_random_bytes(frame: bytes, wire_format: str) -> None:
    survive(frame, wire_format)


@EXAMPLES
@given(frame=mutated(), wire_format=FORMATS)
def test_mutated_frames(frame: bytes, wire_format: str) -> None:
    survive(frame, wire_format)
