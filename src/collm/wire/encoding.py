"""Messages to frames; `decode_client` and `decode_cloud` (from `decoding.py`) go back.

A frame is one serialized `Envelope` of `session.proto`, with a checksum: what TCP lets through, or
a proxy damages, would be another text otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from google.protobuf.message import EncodeError

from collm.errors import ProtocolError
from collm.wire import session_pb2 as pb
from collm.wire.choice import sampling_fields, with_alternatives
from collm.wire.codec import carries_rows, encode_rows, pack_ids
from collm.wire.compression import compressed
from collm.wire.decoding import decode_client, decode_cloud
from collm.wire.messages import (
    Append,
    Ask,
    Attach,
    Attached,
    Bye,
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
from collm.wire.tiers import tier_fields

__all__ = ["decode_client", "decode_cloud", "encode", "encode_append"]


def encode(message: ClientMessage | CloudMessage, wire_format: str = "ids") -> bytes:
    """The frame of a message; `wire_format` matters to `Append` alone.

    Raises `ProtocolError` when a field does not fit its place in the frame (a negative
    number, rows that do not match their ids or the wire format). The receiver's own bounds
    are checked by the receiver.
    """
    try:
        frame = sealed(_envelope(message, wire_format).SerializeToString())
    except (ValueError, TypeError, OverflowError, EncodeError) as error:
        raise ProtocolError(f"{type(message).__name__} cannot be encoded: {error}") from error
    return frame


def encode_append(
    ids: Sequence[int],
    payload: bytes,
    *,
    epoch: int,
    base: int,
    settled: bool,
    compress: bool = False,
) -> bytes:
    """The frame of an `Append` whose rows are cast already: what `encode_rows` gave, a part of it.

    compress: where that makes the frame smaller; the receiver has to be of `RECUT_MINOR` or newer.
    Raises `ProtocolError` as `encode` does.
    """
    squeezed = compressed(payload) if compress else None
    try:
        append = pb.Append(
            epoch=epoch,
            base=base,
            token_ids=ids,
            rows=payload if squeezed is None else squeezed,
            settled=settled,
            compressed=squeezed is not None,
        )
        frame = sealed(pb.Envelope(append=append).SerializeToString())
    except (ValueError, TypeError, EncodeError) as error:
        raise ProtocolError(f"Append cannot be encoded: {error}") from error
    return frame


def _envelope(message: ClientMessage | CloudMessage, wire_format: str) -> pb.Envelope:
    match message:
        case Append():
            return pb.Envelope(append=_append(message, wire_format))
        case Verify():
            return pb.Envelope(
                verify=pb.Verify(
                    epoch=message.epoch,
                    base=message.base,
                    draft=message.draft,
                    sampling=sampling_fields(message.sampling),
                    may_exit=message.may_exit,
                )
            )
        case Ask():
            return pb.Envelope(
                ask=pb.Ask(
                    epoch=message.epoch,
                    drafted=message.drafted,
                    token_ids=pack_ids(message.token_ids),
                    sampling=None
                    if message.sampling is None
                    else sampling_fields(message.sampling),
                    may_exit=message.may_exit,
                )
            )
        case Generate():
            return pb.Envelope(
                generate=pb.Generate(
                    epoch=message.epoch,
                    base=message.base,
                    max_tokens=message.max_tokens,
                    stop_ids=message.stop_ids,
                    sampling=sampling_fields(message.sampling),
                )
            )
        # The others' fields are named and typed alike in the dataclass and in the proto file.
        case Hello():
            return pb.Envelope(hello=pb.Hello(**vars(message)))
        case Score():
            sampling = None if message.sampling is None else sampling_fields(message.sampling)
            return pb.Envelope(score=pb.Score(**{**vars(message), "sampling": sampling}))
        case Crop():
            return pb.Envelope(crop=pb.Crop(**vars(message)))
        case Recut():
            return pb.Envelope(recut=pb.Recut(**vars(message)))
        case Attach():
            return pb.Envelope(attach=pb.Attach(**vars(message)))
        case Heartbeat():
            return pb.Envelope(heartbeat=pb.Heartbeat(**vars(message)))
        case Bye():
            return pb.Envelope(bye=pb.Bye())
        case Welcome():
            return pb.Envelope(welcome=pb.Welcome(**vars(message)))
        case Verdict():
            return pb.Envelope(
                verdict=pb.Verdict(**with_alternatives(message, message.alternatives))
            )
        case Scored():
            return pb.Envelope(scored=pb.Scored(**with_alternatives(message, message.alternatives)))
        case Token():
            return pb.Envelope(
                token=pb.Token(**with_alternatives(message, (message.alternatives,)))
            )
        case Finished():
            return pb.Envelope(finished=pb.Finished(**vars(message)))
        case Attached():
            return pb.Envelope(attached=pb.Attached(**vars(message)))
        case Evicted():
            return pb.Envelope(evicted=pb.Evicted())
        case Pong():
            return pb.Envelope(pong=_pong(message))
        case Refusal():
            return pb.Envelope(refusal=pb.Refusal(**vars(message)))
        case _:
            assert_never(message)


def _append(message: Append, wire_format: str) -> pb.Append:
    payload = b""
    if carries_rows(wire_format) != (message.rows is not None):
        given = "without" if message.rows is None else "with"
        raise ProtocolError(f"an Append {given} rows does not go with wire format {wire_format}")
    if message.rows is not None:
        payload = encode_rows(wire_format, message.rows)
        if len(message.rows) != len(message.token_ids):
            raise ProtocolError(
                f"an Append of {len(message.token_ids)} token ids and {len(message.rows)} rows"
            )
    return pb.Append(
        epoch=message.epoch,
        base=message.base,
        token_ids=message.token_ids,
        wire_format=wire_format,
        rows=payload,
        settled=message.settled,
    )


def _pong(message: Pong) -> pb.Pong:
    figures = None
    if message.figures is not None:
        costs = [pb.RowSeconds(**vars(one)) for one in message.figures.costs]
        figures = pb.Figures(**{**vars(message.figures), "costs": costs})
    return pb.Pong(
        nonce=message.nonce,
        padding=message.padding,
        figures=figures,
        tiers=[tier_fields(one) for one in message.tiers],
    )
