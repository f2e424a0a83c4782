"""Rates that one identity may not exceed: it is answered later, not refused.

A token bucket each: a second's worth may come at once, and who took more waits until it is paid.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from collm.limits import Limits

_MOST_IDENTITIES = 10_000


class Quotas:
    """Buckets by identity. Safe to use from several threads."""

    def __init__(self, limits: Limits, now: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._now = now
        self._lock = threading.Lock()
        self._paid_at: dict[tuple[str, str], float] = {}
        """When what was taken so far is paid."""

    def charge(self, identity: str, *, byte_count: int = 0, tokens: int = 0) -> float:
        """Take so much; how many seconds to wait for it."""
        limits = self._limits
        return max(
            self._take((identity, "bytes"), byte_count, limits.identity_bytes_per_second),
            self._take((identity, "tokens"), tokens, limits.identity_tokens_per_second),
        )

    def _take(self, key: tuple[str, str], amount: int, rate: float) -> float:
        if not amount or not rate:
            return 0.0
        with self._lock:
            now = self._now()
            if len(self._paid_at) > _MOST_IDENTITIES:
                self._paid_at = {one: at for one, at in self._paid_at.items() if at > now}
            paid = max(now, self._paid_at.get(key, 0.0)) + amount / rate
            self._paid_at[key] = paid
        return max(0.0, paid - now - 1.0)
