"""The lossy wire formats: how far off they are, what they refuse, and that rows stand alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from collm.errors import ProtocolError
from collm.limits import Limits
from collm.wire import int8
from collm.wire.codec import ROW_FORMATS, cast_rows, decode_rows, encode_rows, rows_per_append

F32 = npt.NDArray[np.float32]
LIMITS = Limits()
LARGEST = float(np.finfo(np.float32).max)
EXAMPLES = settings(max_examples=200, deadline=None)
ANY_ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 4), st.integers(1, 12)),
    elements=st.one_of(
        st.floats(-LARGEST, LARGEST, width=32), st.sampled_from([0.0, -0.0, 1.0, -1.0, 70000.0])
    ),
)


def states(rows: int = 40, hidden: int = 64) -> F32:
    """As a language model's are: normal, but for two channels."""
    made = np.random.default_rng(5).standard_normal((rows, hidden)).astype(np.float32)
    made[:, 7] *= 200
    made[:, 11] -= 90
    return made


@EXAMPLES
@given(rows=ANY_ROWS, wire_format=st.sampled_from(ROW_FORMATS))
def test_casting_twice_changes_nothing(rows: F32, wire_format: str) -> None:
    """Or a replay of what was received would drift."""
    once = cast_rows(wire_format, rows)
    assert once.dtype == np.float32
    assert np.array_equal(cast_rows(wire_format, once), once)


@EXAMPLES
@given(rows=ANY_ROWS, wire_format=st.sampled_from(ROW_FORMATS))
def test_a_row_does_not_depend_on_its_neighbours(rows: F32, wire_format: str) -> None:
    alone = [encode_rows(wire_format, row[None]) for row in rows]
    assert b"".join(alone) == encode_rows(wire_format, rows)
    seen = decode_rows(wire_format, b"".join(alone), len(rows), rows.shape[1], LIMITS)
    assert np.array_equal(seen, cast_rows(wire_format, rows))


@EXAMPLES
@given(rows=ANY_ROWS)
def test_int8_is_off_by_half_a_step_at_most(rows: F32) -> None:
    """A step is a 127th of the largest value that is not kept whole."""
    seen = cast_rows("int8", rows).astype(np.float64)
    sizes = np.sort(np.abs(rows.astype(np.float64)), axis=1)[:, ::-1]
    rest = sizes[:, int8.KEPT] if rows.shape[1] > int8.KEPT else np.zeros(len(rows))
    # The scale has 16 bits; below 1e-36 or so it has fewer.
    allowed = rest / 127 * (0.5 + 127 * 2.0**-15) + 1e-35
    assert (np.abs(seen - rows) <= allowed[:, None]).all()


def test_errors_on_rows_with_massive_channels() -> None:
    rows = states()
    for wire_format, most in (("f32", 0.0), ("f16", 1e-3), ("int8", 1e-3), ("int4", 2e-2)):
        off = np.linalg.norm(cast_rows(wire_format, rows) - rows, axis=1)
        assert (off <= most * np.linalg.norm(rows, axis=1)).all()
    # The rest of a row keeps its precision beside channels a hundred times larger.
    calm = np.delete(states(), (7, 11), axis=1)
    seen = np.delete(cast_rows("int8", rows), (7, 11), axis=1)
    assert np.abs(seen - calm).max() < 0.02


@EXAMPLES
@given(rows=ANY_ROWS)
def test_int4_is_off_by_little_more_than_half_a_step(rows: F32) -> None:
    """A step is a seventh of the largest of 32 neighbours, less the kept ones."""
    seen = cast_rows("int4", rows).astype(np.float64)
    sizes = np.sort(np.abs(rows.astype(np.float64)), axis=1)[:, ::-1]
    rest = sizes[:, int8.KEPT] if rows.shape[1] > int8.KEPT else np.zeros(len(rows))
    # The scale has 8 bits, rounded down: the largest may be off by that much more.
    allowed = rest / 7 * (0.5 + 7 * 2.0**-7) + 1e-37
    assert (np.abs(seen - rows) <= allowed[:, None]).all()


def test_int4_layout() -> None:
    row = np.array([[1.0, -7.0, 0, 900, 901, 902, -903, 3.0]], np.float32)
    kept = np.array([900, 901, 902, -903], "<f4").tobytes()
    channels = np.array([3, 4, 5, 6], "<u2").tobytes()
    nibbles = bytes([9 | 1 << 4, 8 | 8 << 4, 8 | 8 << 4, 8 | 11 << 4, *[8 | 8 << 4] * 12])
    assert encode_rows("int4", row) == channels + kept + b"\x80\x3f" + nibbles
    assert np.array_equal(cast_rows("int4", row), row)


@pytest.mark.parametrize("bad", [0x7F80, 0x7FC0, 0x8000, 0xBF80])
def test_bad_int4_scales_are_refused(bad: int) -> None:
    payload = bytearray(encode_rows("int4", states(4, 16)))
    row = len(payload) // 4
    payload[2 * row + 24 : 2 * row + 26] = np.array([bad], "<u2").tobytes()
    with pytest.raises(ProtocolError, match="row 2"):
        decode_rows("int4", bytes(payload), 4, 16, LIMITS)


def test_int4_values_that_overflow_are_refused() -> None:
    payload = bytearray(encode_rows("int4", states(1, 16)))
    payload[24:26] = np.array([0x7F7F], "<u2").tobytes()
    with pytest.raises(ProtocolError, match="row 0"):
        decode_rows("int4", bytes(payload), 1, 16, LIMITS)


def test_f16_saturates_and_is_never_infinite() -> None:
    rows = np.array([[65_504, 65_519.9, 65_520, 1e30, -LARGEST, 1.0]], np.float32)
    assert cast_rows("f16", rows).tolist() == [[65_504] * 4 + [-65_504, 1.0]]
    assert encode_rows("f16", np.array([[1.0]], np.float32)) == b"\x00\x3c"


def test_int8_layout() -> None:
    row = np.array([[1.0, -127.0, 0, 900, 901, 902, -903, 64.0]], np.float32)
    kept = np.array([900, 901, 902, -903], "<f4").tobytes()
    channels = np.array([3, 4, 5, 6], "<u2").tobytes()
    values = np.array([1, -127, 0, 0, 0, 0, 0, 64], "i1").tobytes()
    assert encode_rows("int8", row) == b"\x00\x00\x80\x3f" + channels + kept + values
    assert np.array_equal(cast_rows("int8", row), row)


def test_int8_keeps_the_first_of_equal_values() -> None:
    row = np.full((1, 6), 3.0, np.float32)
    assert np.frombuffer(encode_rows("int8", row)[4:12], "<u2").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("wire_format", ["f16", "int8", "int4"])
@pytest.mark.parametrize("shape", [(3, 16), (0, 16), (2, 1)])
def test_zeros_and_empty_rows(wire_format: str, shape: tuple[int, int]) -> None:
    rows = np.zeros(shape, np.float32)
    assert np.array_equal(cast_rows(wire_format, rows), rows)


@pytest.mark.parametrize(
    ("wire_format", "row_bytes"), [("f16", 1152), ("int8", 604), ("int4", 348)]
)
def test_bytes_of_a_row(wire_format: str, row_bytes: int) -> None:
    payload = encode_rows(wire_format, states(3, 576))
    assert len(payload) == 3 * row_bytes
    for wrong in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(ProtocolError, match=f"take {3 * row_bytes}"):
            decode_rows(wire_format, wrong, 3, 576, LIMITS)
    most = rows_per_append(wire_format, 8192, LIMITS)
    assert most * len(encode_rows(wire_format, states(1, 8192))) < LIMITS.max_message_bytes


@pytest.mark.parametrize(
    ("rows", "hidden"), [(10**9, 16), (5, 10**9), (-1, 16), (1, -16), (1025, 0)]
)
@pytest.mark.parametrize("wire_format", ["f16", "int8", "int4"])
def test_shapes_beyond_the_limits_are_refused(wire_format: str, rows: int, hidden: int) -> None:
    with pytest.raises(ProtocolError):
        decode_rows(wire_format, b"\0" * 100, rows, hidden, LIMITS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wire_format", ["f16", "int8", "int4"])
def test_values_that_are_not_finite_are_not_sent(wire_format: str, bad: float) -> None:
    rows = states()
    rows[3, 4] = bad
    with pytest.raises(ProtocolError, match="row 3"):
        encode_rows(wire_format, rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0, LARGEST])
def test_bad_scales_are_refused(bad: float) -> None:
    payload = bytearray(encode_rows("int8", states(4, 16)))
    row = len(payload) // 4
    payload[2 * row : 2 * row + 4] = np.array([bad], "<f4").tobytes()
    with pytest.raises(ProtocolError, match="row 2"):
        decode_rows("int8", bytes(payload), 4, 16, LIMITS)


@pytest.mark.parametrize("bad", [[0, 1, 2, 16], [0, 1, 1, 2], [3, 2, 1, 0], [9, 10, 11, 65_535]])
@pytest.mark.parametrize(("wire_format", "at"), [("int8", 4), ("int4", 0)])
def test_bad_channels_are_refused(bad: list[int], wire_format: str, at: int) -> None:
    payload = bytearray(encode_rows(wire_format, states(1, 16)))
    payload[at : at + 8] = np.array(bad, "<u2").tobytes()
    with pytest.raises(ProtocolError, match="channels"):
        decode_rows(wire_format, bytes(payload), 1, 16, LIMITS)


def test_bad_kept_values_and_halves_are_refused() -> None:
    payload = bytearray(encode_rows("int8", states(1, 16)))
    payload[12:16] = np.array([np.nan], "<f4").tobytes()
    with pytest.raises(ProtocolError, match="row 0"):
        decode_rows("int8", bytes(payload), 1, 16, LIMITS)
    with pytest.raises(ProtocolError, match="row 1"):
        decode_rows("f16", np.array([[1], [np.inf]], "<f2").tobytes(), 2, 1, LIMITS)


@pytest.mark.parametrize("wire_format", ["int8", "int4"])
def test_rows_too_long_for_their_channel_numbers_are_not_sent(wire_format: str) -> None:
    with pytest.raises(ProtocolError, match="at most 65536"):
        encode_rows(wire_format, np.zeros((1, 2**16 + 1), np.float32))
