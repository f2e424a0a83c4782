"""Row codecs: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import numpy as np
import pytest

from collm.errors import ProtocolError
from collm.limits import Limits
from collm.wire.codec import (
    ROW_FORMATS,
    WIRE_FORMATS,
    carries_rows,
    cast_rows,
    decode_rows,
    encode_rows,
    rows_per_append,
)

LIMITS = Limits()
ROWS = np.random.default_rng(7).standard_normal((5, 16)).astype(np.float32)


def test_f32_round_trip_is_exact() -> None:
    decoded = decode_rows("f32", encode_rows("f32", ROWS), 5, 16, LIMITS)
    assert decoded.dtype == np.float32
    assert decoded.shape == (5, 16)
    assert np.array_equal(decoded, ROWS)


def test_f32_is_little_endian_on_the_wire() -> None:
    one = np.array([[1.0]], dtype=np.float32)
    assert encode_rows("f32", one) == b"\x00\x00\x80\x3f"


def test_rows_that_are_not_contiguous_travel_in_row_order() -> None:
    turned = np.asfortranarray(ROWS)[:, ::2]
    assert np.array_equal(cast_rows("f32", turned), turned)


def test_decoding_makes_no_copy() -> None:
    payload = encode_rows("f32", ROWS)
    decoded = decode_rows("f32", payload, 5, 16, LIMITS)
    assert np.shares_memory(decoded, np.frombuffer(payload, dtype=np.uint8))
    assert not decoded.flags.writeable


def test_ids_carry_nothing() -> None:
    assert not carries_rows("ids")
    assert ROW_FORMATS == ("f32", "f16", "int8", "int4")
    assert all(carries_rows(wire_format) for wire_format in ROW_FORMATS)
    assert encode_rows("ids", ROWS) == b""
    assert decode_rows("ids", b"", 5, 16, LIMITS).shape == (5, 0)


@pytest.mark.parametrize("wire_format", WIRE_FORMATS)
def test_cast_is_what_the_other_side_sees(wire_format: str) -> None:
    seen = decode_rows(wire_format, encode_rows(wire_format, ROWS), 5, 16, LIMITS)
    assert np.array_equal(cast_rows(wire_format, ROWS), seen)
    # Casting what was cast changes nothing, or replay would drift.
    if carries_rows(wire_format):
        assert np.array_equal(cast_rows(wire_format, seen), seen)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    rows = ROWS.copy()
    rows[3, 4] = bad
    with pytest.raises(ProtocolError, match="row 3"):
        encode_rows("f32", rows)
    with pytest.raises(ProtocolError, match="row 3"):
        decode_rows("f32", rows.tobytes(), 5, 16, LIMITS)


@pytest.mark.parametrize(
    ("rows", "hidden"),
    [(4, 16), (5, 15), (6, 16), (0, 0), (-1, -80), (10**9, 16), (5, 10**9), (1, 80 * 10**8)],
)
def test_shape_must_match_payload_and_limits(rows: int, hidden: int) -> None:
    with pytest.raises(ProtocolError):
        decode_rows("f32", encode_rows("f32", ROWS), rows, hidden, LIMITS)


def test_ids_with_payload_are_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_rows("ids", b"x", 1, 16, LIMITS)


@pytest.mark.parametrize("rows", [ROWS.astype(np.float64), ROWS[0], ROWS[None]])
def test_only_float32_matrices_are_encoded(rows: np.ndarray) -> None:
    with pytest.raises(ProtocolError, match="float32"):
        encode_rows("f32", rows)


def test_unknown_format_is_named_with_the_known_ones() -> None:
    with pytest.raises(ProtocolError, match=r"'f17'.*ids, f32"):
        encode_rows("f17", ROWS)


@pytest.mark.parametrize("hidden", [1, 576, 32_768])
def test_rows_per_append_fit_a_frame(hidden: int) -> None:
    most = rows_per_append("f32", hidden, LIMITS)
    assert 1 <= most <= LIMITS.max_rows_per_append
    assert most * (hidden + 1) * 4 < LIMITS.max_message_bytes
    assert rows_per_append("ids", hidden, LIMITS) == LIMITS.max_rows_per_append


def test_rows_larger_than_a_frame_are_an_error() -> None:
    with pytest.raises(ProtocolError, match="does not fit"):
        rows_per_append("f32", 576, Limits(max_message_bytes=2048))
