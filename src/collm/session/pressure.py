"""Memory that runs short, or is there again: how many layers the edge should hold.

What is left is the smaller of what the system has available and what this process's control group
still allows. Where it falls below a reserve the deepest block goes; where there is room for the
next one and two reserves for a while, it may come back. In between nothing changes, so that a block
does not come and go.

Not covered: memory that other processes of the same control group take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import psutil

from collm.model.manifest import Manifest
from collm.runtime.hardware import held_memory, memory_limit

_LOOK_SECONDS: Final = 0.5
_CALM_SECONDS: Final = 10.0
"""So long there has to be room before a block comes back."""
_RESERVE_SHARE: Final = 0.04
_LEAST_RESERVE: Final = 16 * 2**20


def memory_left() -> int:
    """Bytes that this process could still take."""
    available = int(psutil.virtual_memory().available)
    limit = memory_limit()
    return available if limit is None else min(available, limit - held_memory())


class Pressure:
    """Called now and then; the most layers that the edge should hold.

    placements: to choose from, the largest one at first. left, clock: as the system tells.
    """

    def __init__(
        self,
        manifest: Manifest,
        placements: Sequence[int],
        *,
        left: Callable[[], int] = memory_left,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._placements = sorted(set(placements))
        self._bytes = {
            block.first: manifest.files[block.graph.removesuffix(".onnx") + ".data"].bytes
            for block in manifest.blocks
        }
        self._left = left
        self._clock = clock
        self._index = len(self._placements) - 1
        self._looked_at = self._calm_since = -1e9
        limit = memory_limit() or int(psutil.virtual_memory().total)
        self.reserve = max(_LEAST_RESERVE, int(_RESERVE_SHARE * limit))
        """Bytes that are not to be touched."""

    def __call__(self) -> int:
        """The most layers, for now."""
        now = self._clock()
        if now - self._looked_at < _LOOK_SECONDS:
            return self._placements[self._index]
        left, self._looked_at = self._left(), now
        if left < self.reserve:
            self._index = max(0, self._index - 1)
            self._calm_since = now
        elif self._index + 1 < len(self._placements):
            if left < self._next_bytes() + 2 * self.reserve:
                self._calm_since = now
            elif now - self._calm_since >= _CALM_SECONDS:
                self._index += 1
                self._calm_since = now
        return self._placements[self._index]

    def _next_bytes(self) -> int:
        """What the blocks up to the next placement take."""
        first, last = self._placements[self._index : self._index + 2]
        return sum(size for start, size in self._bytes.items() if first <= start < last)
