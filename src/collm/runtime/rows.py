"""A window of hidden states that are still wanted, addressed by position."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
_LEAST = 16
"""Rows reserved at least, once there is one."""


class RowBuffer:
    """float32 rows of positions [first, end); grows at the end, is dropped at the start."""

    def __init__(self, width: int, position: int = 0) -> None:
        """Holds nothing yet; the first row to be added is that of `position`."""
        self._data: F32 = np.empty((0, width), dtype=np.float32)
        self.first = position
        self.end = position

    @property
    def bytes(self) -> int:
        """Bytes reserved."""
        return self._data.nbytes

    def bytes_to(self, end: int) -> int:
        """At most the `bytes` when rows up to position `end` have been added."""
        if end <= self.end:
            return self.bytes
        rows = max(len(self._data), _LEAST, 2 * (end - self.first))
        width: int = self._data.shape[1]
        return rows * width * self._data.itemsize

    def append(self, rows: F32) -> None:
        """Add rows for the positions from `end` on."""
        held, more = self.end - self.first, len(rows)
        if held + more > len(self._data):
            rows_then = max(_LEAST, held + more, 2 * held)
            grown = np.empty((rows_then, self._data.shape[1]), dtype=np.float32)
            grown[:held] = self._data[:held]
            self._data = grown
        self._data[held : held + more] = rows
        self.end += more

    def take(self, start: int, end: int) -> F32:
        """A view of positions [start, end); valid until the next append or drop."""
        if not self.first <= start <= end <= self.end:
            raise IndexError(f"rows {start} to {end} of {self.first} to {self.end}")
        return self._data[start - self.first : end - self.first]

    def crop(self, position: int) -> None:
        """Forget positions from `position` on."""
        self.end = min(self.end, position)
        self.first = min(self.first, self.end)

    def drop_before(self, position: int) -> None:
        """Forget positions before `position`."""
        gone = min(position, self.end) - self.first
        if gone > 0:
            held = self.end - self.first - gone
            self._data[:held] = self._data[gone : gone + held].copy()
            self.first += gone
