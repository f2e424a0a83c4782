"""A lock that lets its waiters in in the order in which they came.

`threading.Lock` lets in whoever is quickest: with it, a session whose long prompt is run a part a
turn could pass others that wait for theirs.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turnstile:
    """Used in a `with` statement; not reentrant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()  # until whoever is before us leaves

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()  # it stays taken
            else:
                self._is_taken = False
