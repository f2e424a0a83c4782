"""What a cloud has to hold of one session, as it went over the wire.

A client keeps it to bring a cloud that lost the session, or another cloud, to where it was: the
same token ids and the same bytes of every row, so by the two-row rule the same state bit for bit.
It takes what the rows took on the wire, for the session's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from collm.errors import ProtocolError
from collm.limits import Limits
from collm.wire.codec import carries_rows, encode_rows, rows_per_append
from collm.wire.encoding import encode_append

F32 = npt.NDArray[np.float32]


class ReplayLog:
    """Token ids and encoded rows of positions [0, len); grows at the end, is cropped there."""

    def __init__(self, wire_format: str, limits: Limits) -> None:
        self._wire_format = wire_format
        self._limits = limits
        self._ids: list[int] = []
        self._rows = bytearray()
        self._row_bytes = 0
        self._most = limits.max_rows_per_append

    def __len__(self) -> int:
        """Positions held."""
        return len(self._ids)

    def extend(self, ids: Sequence[int], rows: F32 | None) -> None:
        """The next positions: ids, and their rows float32 [n, d] unless token ids travel alone.

        Raises ProtocolError for rows that cannot travel, or that are not one for each id.
        """
        if (rows is not None) != carries_rows(self._wire_format):
            raise ProtocolError(f"positions in {self._wire_format}: rows are missing, or too many")
        if rows is not None:
            if len(rows) != len(ids):
                raise ProtocolError(f"{len(ids)} token ids and {len(rows)} rows")
            payload = encode_rows(self._wire_format, rows)
            self._row_bytes = len(payload) // max(1, len(ids))
            self._most = rows_per_append(self._wire_format, rows.shape[1], self._limits)
            self._rows += payload
        self._ids.extend(ids)

    def crop(self, position: int) -> None:
        """Forget positions from `position` on."""
        del self._ids[position:]
        del self._rows[position * self._row_bytes :]

    def frames(self, start: int, end: int, epoch: int, *, settled: bool = False) -> Iterator[bytes]:
        """The Append frames of positions [start, end)."""
        for base in range(start, end, self._most):
            until = min(end, base + self._most)
            yield encode_append(
                self._ids[base:until],
                bytes(self._rows[base * self._row_bytes : until * self._row_bytes]),
                self._wire_format,
                epoch=epoch,
                base=base,
                settled=settled,
            )
