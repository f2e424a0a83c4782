"""What an answer leaves behind for the next turn of its conversation: caches here and in the cloud.

An answer takes up what fits its prompt best: the longest common beginning, cropped to it on both
sides. By the two-row rule what is kept equals what would be computed again, bit for bit, in exact
mode; in the others a row made alone does not, so that of their text only what was a prompt is
kept. What was kept longest ago goes first where there is too much, or where the cloud needs room.

Not covered: copies. What an answer takes up is gone for others until it is put back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from weakref import WeakSet

from collm.errors import CollmError
from collm.link.base import Closing
from collm.runtime.stage import Stage, StageSession
from collm.session.client import CloudClient

_LEAST = 8
"""A shorter common beginning is not worth taking another conversation's caches for."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What caches have to be like to be of use to an answer."""

    stage: Stage | None
    exact: bool
    cut: int | None
    """Where the cloud begins; None: no cloud."""
    wire: str
    owner: str = ""
    """Whose text it is: nobody else is to notice that it is here."""


@dataclass(slots=True)
class Kept:
    """Both sides' state for the text `ids`, or a beginning of it."""

    shape: Shape
    ids: list[int]
    session: StageSession | None
    client: CloudClient | None
    sure: int
    """Positions that equal those of a fresh session, bit for bit; the rest was made otherwise."""
    since: float = 0.0

    @property
    def bytes(self) -> int:
        """Memory held on this side."""
        mine = self.session.bytes if self.session is not None else 0
        return mine + (self.client.held_bytes if self.client is not None else 0)

    def shares(self, ids: Sequence[int]) -> int:
        """Positions of use to an answer to `ids`."""
        # Where a lone row is computed otherwise the prompt's last one has to have company.
        most = len(ids) - (1 if self.shape.exact else 2)
        return max(0, min(common(self.ids, ids), self.sure, most))

    def take_up(self, ids: Sequence[int]) -> int:
        """Crop both sides to what `ids` begins with; how many positions that is, 0: of no use."""
        if self.client is not None and self.client.is_old:
            return 0
        position = self.shares(ids)
        if self.session is not None:
            position = min(position, self.session.position)
        if self.client is not None:
            position = self.client.take_up(position)
        if self.session is not None:
            self.session.crop(position)
        return position

    def close(self) -> None:
        """Give back what is held. Idempotent."""
        if self.session is not None:
            self.session.close()
        if self.client is not None:
            self.client.close()


class Keeper(Closing):
    """Keeps so many conversations, bytes and seconds. Safe to use from several threads."""

    def __init__(
        self,
        *,
        most: int,
        most_bytes: int,
        most_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._most_seconds = most_seconds
        self._clock = clock
        self._lock = Lock()
        self._kept: list[Kept] = []
        """Longest ago first."""
        self._retired: WeakSet[Stage] = WeakSet()
        self._is_closed = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    @property
    def bytes(self) -> int:
        """Memory held for later."""
        with self._lock:
            return sum(one.bytes for one in self._kept)

    def take(self, shape: Shape, ids: Sequence[int]) -> tuple[Kept, int] | None:
        """What fits best, cropped to the positions it shares with `ids`; None: nothing does."""
        with self._lock:
            found, best = None, _LEAST - 1
            for one in self._kept:
                shared = one.shares(ids) if one.shape == shape else 0
                # Of another conversation with the same system prompt most would be thrown away.
                if shared > best and 2 * shared >= min(len(one.ids), len(ids)):
                    found, best = one, shared
            if found is None:
                return None
            self._kept.remove(found)
        try:
            position = found.take_up(ids)
        except CollmError:  # its cloud has gone, or has forgotten it: begin anew
            position = 0
        if not position:
            found.close()
            return None
        return found, position

    def put(self, kept: Kept) -> None:
        """Keep this for later."""
        kept.since = self._clock()
        with self._lock:
            if self._is_closed or kept.shape.stage in self._retired:
                gone = [kept]
            else:
                self._kept.append(kept)
                gone = self._surplus()
        _close(gone)

    def expire(self) -> None:
        """Let go of what nobody came back for in time."""
        before = self._clock() - self._most_seconds
        with self._lock:
            gone = [one for one in self._kept if one.since < before]
            self._kept = [one for one in self._kept if one.since >= before]
        _close(gone)

    def retire(self, stage: Stage) -> None:
        """Nothing answers with this stage from now on: let go of what would hold its memory."""
        with self._lock:
            self._retired.add(stage)
            gone = [one for one in self._kept if one.shape.stage is stage]
            self._kept = [one for one in self._kept if one.shape.stage is not stage]
        _close(gone)

    def shed(self) -> bool:
        """Let go of what was kept longest ago and has a cloud's memory; whether there was any."""
        with self._lock:
            found = next((one for one in self._kept if one.client is not None), None)
            if found is None:
                return False
            self._kept.remove(found)
        found.close()
        return True

    def close(self) -> None:
        """Give all back; what is put afterwards is let go at once. Idempotent."""
        with self._lock:
            gone, self._kept, self._is_closed = self._kept, [], True
        _close(gone)

    def _surplus(self) -> list[Kept]:
        gone: list[Kept] = []
        held = sum(one.bytes for one in self._kept)
        while self._kept and (len(self._kept) > self._most or held > self._most_bytes):
            gone.append(self._kept.pop(0))
            held -= gone[-1].bytes
        return gone


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    most = min(len(one), len(other))
    return next((i for i in range(most) if one[i] != other[i]), most)


def _close(gone: Sequence[Kept]) -> None:
    for one in gone:
        one.close()
