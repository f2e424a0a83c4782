"""What befalls TCP connections on a bad link: by chance, after a while, or by a script.

A script has a line for each event, times counted from when the link comes up::

    10s  down 20s      # nothing passes; nothing is lost either: it comes when the link is back
    40s  reset         # every connection breaks
    45s  refuse 5s     # new ones are refused

Not covered: packets; over TCP their loss is seen as delay, and as a break in the end.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from collm.errors import UsageError
from collm.link.shapes import parse_seconds

ACTIONS: Final = ("down", "reset", "refuse")
_MOST_LINES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a script."""

    at: float
    action: str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LinkFaults:
    """Chances are for every piece of bytes that passes, either way. Raises UsageError."""

    stall: float = 0.0
    stall_seconds: float = 2.0
    """How much later a stalled piece comes, and all after it."""
    cut_after_seconds: float = 0.0
    """A connection ends after so long; 0: never."""
    cut_after_bytes: int = 0
    """… or after so many bytes; 0: never."""
    reset: float = 0.0
    """The connection breaks."""
    blackhole: float = 0.0
    """From here on the connection takes everything and passes nothing."""
    corrupt: float = 0.0
    """One bit of the piece is another."""
    seed: int = 0
    script: tuple[Event, ...] = ()

    def __post_init__(self) -> None:
        for name in ("stall", "reset", "blackhole", "corrupt"):
            chance = getattr(self, name)
            if not 0 <= chance <= 1:
                raise UsageError(f"--{name} {chance:g}: expected a chance, 0 to 1")

    @property
    def any(self) -> bool:
        """Whether anything can happen."""
        return self != LinkFaults(seed=self.seed, stall_seconds=self.stall_seconds)


def read_script(path: Path) -> tuple[Event, ...]:
    """The events of a file, by time. Raises UsageError with the line."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if len(lines) > _MOST_LINES:
        raise UsageError(f"{path}: {len(lines)} lines; at most {_MOST_LINES}")
    events = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        wanted = 2 if words[1:2] == ["reset"] else 3
        if len(words) != wanted or words[1] not in ACTIONS:
            raise UsageError(
                f"{path}, line {number}: expected such as '10s down 20s', '40s reset' or "
                "'45s refuse 5s'"
            )
        try:
            seconds = [parse_seconds(word) for word in (words[0], *words[2:])]
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        events.append(Event(seconds[0], words[1], *seconds[1:]))
    return tuple(sorted(events, key=lambda event: event.at))


class Script:
    """Where a script is at. Safe to use from several threads."""

    def __init__(self, events: tuple[Event, ...]) -> None:
        self._events = events
        self._started = time.perf_counter()

    def until(self, action: str) -> float:
        """When, by `time.perf_counter`, the `action` ends that lasts now; 0: none does."""
        now = time.perf_counter()
        ends = [
            self._started + event.at + event.seconds
            for event in self._events
            if event.action == action
            and self._started + event.at <= now < self._started + event.at + event.seconds
        ]
        return max(ends, default=0.0)

    def resets(self) -> list[float]:
        """When, by `time.perf_counter`, every connection breaks."""
        return [self._started + event.at for event in self._events if event.action == "reset"]


class Fate:
    """What befalls one connection: the same for the same seed, number and pieces."""

    def __init__(self, faults: LinkFaults, script: Script, number: int) -> None:
        self._faults = faults
        self._script = script
        self._random = random.Random(f"{faults.seed} {number}")
        self._lock = threading.Lock()
        self._bytes = 0
        self._began = time.perf_counter()
        self._is_black = False

    def judge(self, piece: bytes) -> tuple[str, bytes, float]:
        """`pass`, `drop`, `cut` or `reset`; the bytes; the moment before which they stay here."""
        faults = self._faults
        with self._lock:
            now = time.perf_counter()
            if self._is_black or self._strikes(faults.blackhole):
                self._is_black = True
                return "drop", b"", 0.0
            if self._strikes(faults.reset):
                return "reset", b"", 0.0
            self._bytes += len(piece)
            if 0 < faults.cut_after_bytes < self._bytes:
                return "cut", b"", 0.0
            if 0 < faults.cut_after_seconds < now - self._began:
                return "cut", b"", 0.0
            if self._strikes(faults.corrupt):
                bit = self._random.randrange(8 * len(piece))
                changed = bytearray(piece)
                changed[bit // 8] ^= 1 << bit % 8
                piece = bytes(changed)
            later = now + faults.stall_seconds if self._strikes(faults.stall) else 0.0
            return "pass", piece, max(later, self._script.until("down"))

    def _strikes(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance
