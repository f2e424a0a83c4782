"""Bulk leaves no faster than the link takes it, so that questions are not stuck behind it.

A long prompt's hidden states fill the buffers between here and the cloud in no time, and what
another conversation of this edge asks then waits behind all of them. So they are kept back here:
no more than `_AHEAD_SECONDS` of the link's rate are on their way at once.

    free at = max(now, free at) + bits / rate        wait while free at - now > `_AHEAD_SECONDS`
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final

_AHEAD_SECONDS: Final = 0.05
_LONGEST_SECONDS: Final = 1.0
"""One wait, whatever the rate is said to be."""


class Pacer:
    """One edge's, for all its answers. Safe to use from several threads.

    bits_per_second: what the link is known to take; infinite: unknown, and nothing waits.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bits_per_second = math.inf
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0
        self._lock = threading.Lock()

    def sends(self, byte_count: int) -> None:
        """So many bytes of bulk leave now; returns when more may follow."""
        if self.bits_per_second == math.inf:
            return
        with self._lock:
            now = self._clock()
            self._free_at = max(now, self._free_at) + 8 * byte_count / self.bits_per_second
            wait = self._free_at - now - _AHEAD_SECONDS
        if wait > 0:
            self._sleep(min(wait, _LONGEST_SECONDS))
