"""Row codecs: hidden states to the bytes of a wire format and back.

A new format is one more `RowCodec` in `_CODECS`. All formats are little-endian and row-major,
and a format's rows all take the same number of bytes, so that a payload's length is known
from its shape before memory is taken. Decoded rows take at most eight times their payload.

`ids`   nothing: the receiver has the layers below the cut
`f32`   as computed
`f16`   IEEE half precision; values beyond ±65,504 become ±65,504, never infinite
`int8`  a byte a value and a scale a row, the largest values whole: see `int8.py`
`int4`  half a byte a value and a scale for every 32, the largest values whole: see `int4.py`

A row's bytes depend on that row alone, so the receiver sees the same however rows were grouped;
with a lossy format `cast_rows` gives the states that an exact reference begins with.

Not covered: compression across rows or positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from collm.errors import ProtocolError
from collm.limits import Limits
from collm.wire import int4, int8
from collm.wire.messages import Rows

LOSSLESS: Final = ("f32", "ids")
"""Formats that leave the text the full model's."""
_F32: Final = np.dtype("<f4")
_F16: Final = np.dtype("<f2")
_F16_LARGEST: Final = np.float32(np.finfo(np.float16).max)
_FRAME_OVERHEAD: Final = 1024
"""Room in a frame for the fields of an Append besides its ids and rows; under 100 are used."""


@dataclass(frozen=True, kw_only=True)
class RowCodec:
    """One wire format."""

    row_bytes: Callable[[int], int]
    """Bytes of one row of so many values; 0 for a format without rows."""
    encode: Callable[[Rows], bytes]
    """f32 [n, hidden], finite, to `n * row_bytes(hidden)` bytes."""
    decode: Callable[[bytes, int, int], Rows]
    """Payload of the right length, rows, hidden to f32 [rows, hidden]."""


def _decode_f32(payload: bytes, rows: int, hidden: int) -> Rows:
    view = np.frombuffer(payload, dtype=_F32).reshape(rows, hidden)
    # A view of the payload where the machine is little-endian, a copy elsewhere.
    return view.astype(np.float32, copy=False)


def _encode_f16(rows: Rows) -> bytes:
    return np.clip(rows, -_F16_LARGEST, _F16_LARGEST).astype(_F16).tobytes()


def _decode_f16(payload: bytes, rows: int, hidden: int) -> Rows:
    return np.frombuffer(payload, dtype=_F16).reshape(rows, hidden).astype(np.float32)


_CODECS: Final[dict[str, RowCodec]] = {
    "ids": RowCodec(
        row_bytes=lambda hidden: 0,
        encode=lambda rows: b"",
        decode=lambda payload, rows, hidden: np.empty((rows, 0), dtype=np.float32),
    ),
    "f32": RowCodec(
        row_bytes=lambda hidden: hidden * _F32.itemsize,
        encode=lambda rows: rows.astype(_F32, copy=False).tobytes(),
        decode=_decode_f32,
    ),
    "f16": RowCodec(
        row_bytes=lambda hidden: hidden * _F16.itemsize,
        encode=_encode_f16,
        decode=_decode_f16,
    ),
    "int8": RowCodec(row_bytes=int8.row_bytes, encode=int8.encode, decode=int8.decode),
    "int4": RowCodec(row_bytes=int4.row_bytes, encode=int4.encode, decode=int4.decode),
}

WIRE_FORMATS: Final = tuple(_CODECS)
"""Names of the wire formats this build can read and write."""
ROW_FORMATS: Final = tuple(name for name in _CODECS if name != "ids")
"""Those of them that carry rows: what `--wire` may name."""


def _codec(wire_format: str) -> RowCodec:
    codec = _CODECS.get(wire_format)
    if codec is None:
        known = ", ".join(WIRE_FORMATS)
        raise ProtocolError(f"unknown wire format {wire_format[:40]!r}; known are {known}")
    return codec


def row_bytes(wire_format: str, hidden: int) -> int:
    """Bytes of one row of `hidden` values; 0 for `ids`. Raises `ProtocolError` if unknown."""
    return _codec(wire_format).row_bytes(hidden)


def carries_rows(wire_format: str) -> bool:
    """Whether hidden states travel in this format. Raises `ProtocolError` for an unknown one."""
    return _codec(wire_format).row_bytes(1) > 0


def pack_ids(ids: Sequence[int]) -> bytes:
    """Three bytes each, little-endian. Raises OverflowError for ids that do not fit."""
    return b"".join(token_id.to_bytes(3, "little") for token_id in ids)


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """What `pack_ids` was given. Raises `ProtocolError` for half an id."""
    if len(packed) % 3:
        raise ProtocolError(f"token ids in {len(packed)} bytes; each takes 3")
    starts = range(0, len(packed), 3)
    return tuple(int.from_bytes(packed[at : at + 3], "little") for at in starts)


def rows_per_append(wire_format: str, hidden: int, limits: Limits) -> int:
    """Most positions that one `Append` may carry; at least 1.

    Raises `ProtocolError` when not even one row of this size fits a frame.
    """
    # Four bytes of each position are its token id.
    position_bytes = 4 + _codec(wire_format).row_bytes(hidden)
    fitting = (limits.max_message_bytes - _FRAME_OVERHEAD) // position_bytes
    if fitting < 1:
        raise ProtocolError(
            f"a row of {hidden} values in {wire_format} does not fit a frame of "
            f"{limits.max_message_bytes} bytes"
        )
    return min(fitting, limits.max_rows_per_append)


def encode_rows(wire_format: str, rows: Rows) -> bytes:
    """Rows, f32 [n, hidden], as they travel; empty for `ids`.

    Raises `ProtocolError` for an unknown format, another dtype or rank, and values that are
    not finite.
    """
    codec = _codec(wire_format)
    if rows.dtype != np.float32 or rows.ndim != 2:
        raise ProtocolError(f"rows must be float32 [n, hidden], not {rows.dtype} {rows.shape}")
    _check_finite(rows)
    return codec.encode(rows)


def decode_rows(wire_format: str, payload: bytes, rows: int, hidden: int, limits: Limits) -> Rows:
    """Rows, f32 [rows, hidden], as a read-only view of `payload` where the format allows it.

    `ids` gives [rows, 0]. Raises `ProtocolError` for an unknown format, a shape beyond
    `limits`, a payload of another length than the shape says, and values that are not finite.
    """
    codec = _codec(wire_format)
    if not 0 <= rows <= limits.max_rows_per_append:
        raise ProtocolError(f"{rows} rows in one message; at most {limits.max_rows_per_append}")
    if not 0 <= hidden <= limits.max_hidden_size:
        raise ProtocolError(f"hidden size {hidden}; at most {limits.max_hidden_size}")
    expected = rows * codec.row_bytes(hidden)
    if len(payload) != expected:
        raise ProtocolError(
            f"rows take {len(payload)} bytes; {rows} rows of {hidden} values in {wire_format} "
            f"take {expected}"
        )
    decoded = codec.decode(payload, rows, hidden)
    _check_finite(decoded)
    return decoded


def cast_rows(wire_format: str, rows: Rows) -> Rows:
    """What the other side will see of `rows`, f32 [n, hidden]: encoded and decoded again.

    `n` may be larger than one `Append` takes; rows are cast each for itself. Raises what
    `encode_rows` does.
    """
    payload = encode_rows(wire_format, rows)
    codec = _codec(wire_format)
    return codec.decode(payload, rows.shape[0], rows.shape[1])


def _check_finite(rows: Rows) -> None:
    finite = np.isfinite(rows)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        raise ProtocolError(f"row {row} has values that are not finite (NaN or infinity)")
