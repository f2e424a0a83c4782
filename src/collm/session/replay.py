"""What a cloud has to hold of one session, as it went over the wire.

A client keeps it to bring a cloud that lost the session, or another cloud, to where it was: the
same token ids and the same bytes of every row, so by the two-row rule the same state bit for bit.
It takes what the rows took on the wire, for the session's length.

Cut and wire format may change on the way. The log is a row of `_Span`s then, each begun by a Recut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from collm.errors import ProtocolError
from collm.limits import Limits
from collm.wire.codec import LOSSLESS, carries_rows, encode_rows, rows_per_append
from collm.wire.encoding import encode, encode_append
from collm.wire.messages import Recut

F32 = npt.NDArray[np.float32]


@dataclass(kw_only=True)
class _Span:
    """Positions from `start` on whose rows come from one cut in one wire format."""

    start: int
    cut: int
    wire_format: str
    most: int
    """Positions that an Append takes."""
    rows: bytearray = field(default_factory=bytearray)
    row_bytes: int = 0


class ReplayLog:
    """Token ids and encoded rows of positions [0, len); grows at the end, is cropped there."""

    def __init__(self, cut: int, wire_format: str, limits: Limits) -> None:
        self._limits = limits
        self._ids: list[int] = []
        self._spans = [self._span(0, cut, wire_format)]
        self.has_changed = False
        """Whether there ever was a recut: a cloud may have missed it, or heard of it too early."""

    def __len__(self) -> int:
        """Positions held."""
        return len(self._ids)

    @property
    def held_bytes(self) -> int:
        """Of the rows."""
        return sum(len(span.rows) for span in self._spans)

    @property
    def cut(self) -> int:
        """Where the rows to come are from."""
        return self._spans[-1].cut

    @property
    def wire_format(self) -> str:
        """The format of the rows to come."""
        return self._spans[-1].wire_format

    @property
    def is_plain(self) -> bool:
        """Whether it leads to what a session begun at this cut in this format would hold."""
        return len(self._spans) == 1 or all(s.wire_format in LOSSLESS for s in self._spans)

    def ids(self, start: int) -> list[int]:
        """Those of positions from `start` on."""
        return self._ids[start:]

    def extend(self, ids: Sequence[int], rows: F32 | None) -> None:
        """The next positions: ids, and their rows float32 [n, d] unless token ids travel alone.

        Raises ProtocolError for rows that cannot travel, or that are not one for each id.
        """
        span = self._spans[-1]
        if (rows is not None) != carries_rows(span.wire_format):
            raise ProtocolError(f"positions in {span.wire_format}: rows are missing, or too many")
        if rows is not None:
            if len(rows) != len(ids):
                raise ProtocolError(f"{len(ids)} token ids and {len(rows)} rows")
            payload = encode_rows(span.wire_format, rows)
            span.row_bytes = len(payload) // max(1, len(ids))
            span.most = rows_per_append(span.wire_format, rows.shape[1], self._limits)
            span.rows += payload
        self._ids.extend(ids)

    def recut(self, cut: int, wire_format: str) -> None:
        """Rows to come are from this cut and in this format."""
        self.has_changed = True
        while self._spans and self._spans[-1].start == len(self._ids):
            self._spans.pop()
        if self._spans and (self.cut, self.wire_format) == (cut, wire_format):
            return
        self._spans.append(self._span(len(self._ids), cut, wire_format))

    def crop(self, position: int) -> None:
        """Forget positions from `position` on; rows to come are as they were."""
        if position >= len(self._ids):
            return
        cut, wire_format = self.cut, self.wire_format
        del self._ids[position:]
        while self._spans and self._spans[-1].start >= position:
            self._spans.pop()
        if self._spans:
            span = self._spans[-1]
            del span.rows[(position - span.start) * span.row_bytes :]
        if not self._spans:
            self._spans.append(self._span(position, cut, wire_format))
        elif (self.cut, self.wire_format) != (cut, wire_format):
            self.recut(cut, wire_format)

    def recut_frame(self, position: int, epoch: int) -> bytes:
        """Tells a cloud that holds so many positions how the next ones come."""
        span = self._spans[self._index(position)]
        return encode(
            Recut(epoch=epoch, position=position, cut=span.cut, wire_format=span.wire_format)
        )

    def frames(self, start: int, end: int, epoch: int, *, settled: bool = False) -> Iterator[bytes]:
        """The Append frames of positions [start, end), with the Recuts between and after them."""
        for index in range(self._index(start), len(self._spans)):
            span = self._spans[index]
            is_last = index == len(self._spans) - 1
            until = end if is_last else min(end, self._spans[index + 1].start)
            if start < span.start <= end:
                yield self.recut_frame(span.start, epoch)
            yield from self._appends(span, max(start, span.start), until, epoch, settled)

    def _appends(
        self, span: _Span, start: int, end: int, epoch: int, settled: bool
    ) -> Iterator[bytes]:
        width = span.row_bytes
        for base in range(start, end, span.most):
            until = min(end, base + span.most)
            yield encode_append(
                self._ids[base:until],
                bytes(span.rows[(base - span.start) * width : (until - span.start) * width]),
                epoch=epoch,
                base=base,
                settled=settled,
                compress=True,
            )

    def _index(self, position: int) -> int:
        """Of the span that the position belongs to, or will."""
        starts = [index for index, span in enumerate(self._spans) if span.start <= position]
        return starts[-1]

    def _span(self, start: int, cut: int, wire_format: str) -> _Span:
        most = self._limits.max_rows_per_append
        return _Span(start=start, cut=cut, wire_format=wire_format, most=most)
