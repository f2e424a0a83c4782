"""Frames that changed on their way are told from those that are wrong."""

from __future__ import annotations

import pytest

from collm.errors import CorruptFrame, ProtocolError
from collm.limits import DEFAULT_LIMITS
from collm.wire import session_pb2 as pb
from collm.wire.encoding import decode_client, decode_cloud, encode
from collm.wire.messages import Attached, Crop, Hello

HELLO = Hello(
    protocol_major=1, protocol_minor=3, fingerprint="f", cut=0, wire_format="ids", software="x"
)


def test_every_bit_of_a_sealed_frame_counts() -> None:
    frame = encode(Crop(epoch=3, position=70_000))
    assert decode_client(frame, DEFAULT_LIMITS, "ids", 0, sealed=True) == Crop(
        epoch=3, position=70_000
    )
    for bit in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptFrame):
            decode_client(bytes(changed), DEFAULT_LIMITS, "ids", 0, sealed=True)


def test_a_cloud_that_sends_no_checksum_is_noticed() -> None:
    bare = pb.Envelope(attached=pb.Attached(position=3)).SerializeToString()
    assert decode_cloud(bare, DEFAULT_LIMITS) == Attached(position=3)
    with pytest.raises(CorruptFrame, match="without a checksum"):
        decode_cloud(bare, DEFAULT_LIMITS, sealed=True)


def test_a_damaged_hello_is_never_taken_for_another() -> None:
    frame = encode(HELLO)
    for bit in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[bit // 8] ^= 1 << bit % 8
        # One that seems to be an older client's is only possible with the checksum's tag gone.
        with pytest.raises((CorruptFrame, ProtocolError)):
            decode_client(bytes(changed), DEFAULT_LIMITS, "ids", 0, sealed=None)


def test_an_older_client_needs_no_checksum() -> None:
    old = {**vars(HELLO), "protocol_minor": 2}
    bare = pb.Envelope(hello=pb.Hello(**old)).SerializeToString()
    assert decode_client(bare, DEFAULT_LIMITS, "ids", 0, sealed=None) == Hello(**old)
    crop = pb.Envelope(crop=pb.Crop(epoch=1, position=2)).SerializeToString()
    assert decode_client(crop, DEFAULT_LIMITS, "ids", 0) == Crop(epoch=1, position=2)
