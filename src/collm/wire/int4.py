"""The wire format `int4`: a row as half bytes with a scale for every 32 channels.

As in `int8` the `KEPT` largest values of a row travel as float32 beside it, because a few channels
are tens of times larger than the rest. A row is

    channels KEPT × uint16, ascending: where the kept values belong
    kept     KEPT × float32
    scales   groups × uint16: the upper half of a float32, at least 0
    nibbles  groups × 16 bytes: value + 8, 1 to 15, the earlier of two channels in the low half;
             8 (nothing) at the kept channels and beyond the row's end

little-endian; a group's values are `(nibble - 8) · scale`. What it does to the full model's choices
is in docs/transmission.md.

Not covered: rows of more than 65,536 values.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from collm.errors import ProtocolError
from collm.wire.int8 import KEPT, checked_channels, largest

F32 = npt.NDArray[np.float32]

GROUP: Final = 32
_MOST_HIDDEN: Final = 2**16
_LARGEST: Final = 7


def _groups(hidden: int) -> int:
    return -(-hidden // GROUP)


def _row(hidden: int) -> np.dtype[np.void]:
    kept, groups = min(KEPT, hidden), _groups(hidden)
    return np.dtype(
        [
            ("channels", "<u2", (kept,)),
            ("kept", "<f4", (kept,)),
            ("scales", "<u2", (groups,)),
            ("nibbles", "u1", (groups, GROUP // 2)),
        ]
    )


def row_bytes(hidden: int) -> int:
    """Bytes of a row of `hidden` values."""
    return 6 * min(KEPT, hidden) + _groups(hidden) * (2 + GROUP // 2)


def encode(rows: F32) -> bytes:
    """Finite float32 [n, hidden] to n rows. Encoding what was decoded changes nothing.

    Raises ProtocolError for rows too long for their channel numbers.
    """
    count, hidden = rows.shape
    if hidden > _MOST_HIDDEN:
        raise ProtocolError(f"a row of {hidden} values in int4; at most {_MOST_HIDDEN}")
    made = np.zeros(count, dtype=_row(hidden))
    is_kept = largest(np.abs(rows), min(KEPT, hidden))
    made["channels"] = np.nonzero(is_kept)[1].reshape(made["channels"].shape)
    kept = rows[is_kept].reshape(made["kept"].shape)
    made["kept"] = kept
    rest = np.zeros((count, _groups(hidden) * GROUP), dtype=np.float32)
    rest[:, :hidden] = np.where(is_kept, np.float32(0), rows)
    groups = rest.reshape(count, _groups(hidden), GROUP)
    # Below the kept values, so that those are found again; and of the scale only 16 bits: all
    # multiples are exact then, and the largest of them gives this same scale again.
    below = np.nextafter(np.abs(kept).min(axis=1, initial=np.inf), np.float32(0))
    most = np.minimum(np.abs(groups).max(axis=2), below[:, None]) / np.float32(_LARGEST)
    upper = (most.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    scale = _floats(upper)[:, :, None]
    steps = np.rint(groups / np.where(scale == 0, np.float32(np.inf), scale))
    values = (np.clip(steps, -_LARGEST, _LARGEST) + 8).astype(np.uint8)
    made["scales"] = upper
    made["nibbles"] = values[:, :, 0::2] | (values[:, :, 1::2] << np.uint8(4))
    return made.tobytes()


def decode(payload: bytes, count: int, hidden: int) -> F32:
    """`count` rows to float32 [count, hidden]; the payload's length was checked.

    Raises ProtocolError for scales and channels that `encode` cannot have written; finite values
    are for the caller to check.
    """
    rows = np.frombuffer(payload, dtype=_row(hidden), count=count)
    scale = _floats(rows["scales"])
    good = (np.isfinite(scale) & (rows["scales"] < 0x8000)).all(axis=1)
    if not good.all():
        row = int(np.argmin(good))
        raise ProtocolError(f"row {row} has a scale that is not 0 or above, and finite")
    channels = checked_channels(rows["channels"], hidden)
    packed = rows["nibbles"]
    values = np.empty((count, _groups(hidden), GROUP), dtype=np.float32)
    values[:, :, 0::2] = packed & np.uint8(15)
    values[:, :, 1::2] = packed >> np.uint8(4)
    values -= 8
    with np.errstate(over="ignore"):
        values *= scale[:, :, None]
    made: F32 = np.ascontiguousarray(values.reshape(count, _groups(hidden) * GROUP)[:, :hidden])
    np.put_along_axis(made, channels, rows["kept"].astype(np.float32), axis=1)
    return made


def _floats(upper: npt.NDArray[np.uint16]) -> F32:
    """The float32 values whose upper halves these are."""
    return (upper.astype(np.uint32) << np.uint32(16)).view(np.float32)
