"""Compressed rows: nothing is lost, nothing grows, and bombs are refused."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from collm.errors import ProtocolError
from collm.limits import Limits
from collm.wire import session_pb2 as pb
from collm.wire.codec import encode_rows
from collm.wire.compression import compressed, decompressed
from collm.wire.encoding import decode_client, encode_append
from collm.wire.messages import Append
from collm.wire.seal import sealed

LIMITS = Limits(max_message_bytes=2**20)
ROWS = np.repeat(np.random.default_rng(1).standard_normal((4, 64)), 8, axis=0).astype(np.float32)


def test_what_was_compressed_comes_back() -> None:
    payload = encode_rows("int8", ROWS)
    made = compressed(payload)
    assert made is not None and len(made) < len(payload)
    assert decompressed(made, len(payload), LIMITS) == payload


def test_noise_and_little_payloads_travel_as_they_are() -> None:
    assert compressed(np.random.default_rng(2).bytes(4096)) is None
    assert compressed(bytes(100)) is None


@pytest.mark.parametrize("compress", [False, True])
def test_an_append_says_the_same_either_way(compress: bool) -> None:
    frame = encode_append(
        range(32), encode_rows("f16", ROWS), epoch=1, base=5, settled=True, compress=compress
    )
    message = decode_client(frame, LIMITS, "f16", 64)
    assert isinstance(message, Append)
    assert message.rows is not None
    assert np.array_equal(message.rows, ROWS.astype(np.float16).astype(np.float32))
    assert (len(frame) < ROWS.size * 2) == compress


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (zstandard.compress(bytes(2**24)), "a zstd frame of 16777216 bytes"),
        (zstandard.compress(bytes(100)), "a zstd frame of 100 bytes"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(4096)), "zstd frame"),
        (b"no zstd at all", "no zstd frame"),
        (b"", "no zstd frame"),
        (zstandard.compress(bytes(4096))[:-3], "no zstd frame"),
        (zstandard.compress(bytes(4096)) + b"more", "no zstd frame"),
    ],
    ids=["bomb", "short", "unsaid", "garbage", "empty", "cut", "longer"],
)
def test_other_bytes_are_refused_in_one_line(payload: bytes, reason: str) -> None:
    append = pb.Append(epoch=0, base=0, token_ids=range(32), rows=payload, compressed=True)
    frame = sealed(pb.Envelope(append=append).SerializeToString())
    with pytest.raises(ProtocolError, match=reason) as caught:
        decode_client(frame, LIMITS, "f16", 64)
    assert "\n" not in str(caught.value)


def test_more_rows_than_a_message_takes_are_refused_before_they_are_unpacked() -> None:
    append = pb.Append(
        epoch=0, base=0, token_ids=range(1000), rows=zstandard.compress(b""), compressed=True
    )
    frame = sealed(pb.Envelope(append=append).SerializeToString())
    with pytest.raises(ProtocolError, match="at most 1048576"):
        decode_client(frame, LIMITS, "f32", 4096)
