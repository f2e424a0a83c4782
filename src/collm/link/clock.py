"""Time, as those see it who wait for a link: the machine's, or a simulation's.

On a `VirtualClock` nothing really waits and nothing runs beside the caller: waiting moves the time
on, past whatever is due meanwhile. A run of it depends on nothing but its seeds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Task(Protocol):
    """Something done again and again in the background, until it says that it is over."""

    @property
    def is_over(self) -> bool:
        """Whether it was done for the last time."""
        ...

    def wait(self, seconds: float) -> bool:
        """Wait for its end, at most so long; whether it is over."""
        ...

    def cancel(self) -> None:
        """Do it no more; what runs now ends by itself."""
        ...


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Seconds since some moment."""
        ...

    def repeat(self, step: Callable[[], float | None], first: float, name: str) -> Task:
        """Do `step` in `first` seconds, then in as many as it says, until it says None."""
        ...


class RealClock:
    """The machine's time; tasks have threads."""

    def now(self) -> float:
        return time.monotonic()

    def repeat(self, step: Callable[[], float | None], first: float, name: str) -> Task:
        return _ThreadTask(step, first, name)


REAL_CLOCK = RealClock()


class _ThreadTask:
    def __init__(self, step: Callable[[], float | None], first: float, name: str) -> None:
        self._step = step
        self._first = first
        self._cancelled = threading.Event()
        self._over = threading.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def wait(self, seconds: float) -> bool:
        return self._over.wait(seconds)

    def cancel(self) -> None:
        self._cancelled.set()

    def _run(self) -> None:
        pause: float | None = self._first
        while pause is not None and not self._cancelled.wait(pause):
            pause = self._step()
        self._over.set()


class VirtualClock:
    """Time that passes only where somebody waits for it. For one thread."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += max(0.0, seconds)

    def repeat(self, step: Callable[[], float | None], first: float, name: str) -> Task:
        return _VirtualTask(self, step, first)


class _VirtualTask:
    def __init__(self, clock: VirtualClock, step: Callable[[], float | None], first: float) -> None:
        self._clock = clock
        self._step = step
        self._due: float | None = clock.now() + first

    @property
    def is_over(self) -> bool:
        self._catch_up()
        return self._due is None

    def wait(self, seconds: float) -> bool:
        until = self._clock.now() + seconds
        while self._due is not None and self._due <= until:
            self._clock.advance(self._due - self._clock.now())
            self._catch_up()
        if self._due is not None:
            self._clock.advance(until - self._clock.now())
        return self._due is None

    def cancel(self) -> None:
        self._due = None

    def _catch_up(self) -> None:
        while self._due is not None and self._due <= self._clock.now():
            pause = self._step()
            if self._due is not None:
                self._due = None if pause is None else self._clock.now() + pause
