"""All sessions of one cloud: those with a link, those whose client may come back, and their memory.

The memory of caches and pending states has a hard budget, asked for before it is taken. Where it
is full, the session that spoke longest ago loses its memory; its client sends everything again when
it goes on. Where places run out, it loses its link. New sessions are let in while those that are at
work leave room, and else told when to come back: sessions that take turns at evicting each other
serve nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from collm import metrics
from collm.errors import Refused
from collm.limits import Limits
from collm.link import refusals
from collm.session.held import HeldSession

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Entry:
    held: HeldSession
    end: Callable[[Refused], None] | None = None
    """Ends its link, where that can be done."""
    born_at: float = field(default_factory=time.monotonic)
    used_at: float = field(default_factory=time.monotonic)
    left_at: float | None = None
    """When its link broke; None: it has one."""
    granted: int = 0
    """Bytes that it may take."""
    was: str | None = None
    """Its name before it was taken over: a client that never heard so may come back by that."""


class Sessions:
    """The sessions by name. Safe to use from several threads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        metrics.KV_BUDGET.set(limits.max_kv_bytes)
        self._entries: dict[str, _Entry] = {}
        self._granted = 0
        self._changed = threading.Condition()
        self._reaper: threading.Thread | None = None
        self._closed = False
        self.ended = 0
        """Sessions that are over."""
        self.evictions = 0
        self.resumed = 0
        """Sessions that a client found again after its link broke."""
        self.lost = 0
        """Sessions whose client came back and had to send everything again."""

    def __len__(self) -> int:
        """Sessions with a link, or waiting for one."""
        return len(self._entries)

    @property
    def at_work(self) -> int:
        """Sessions that spoke in the last seconds."""
        with self._changed:
            since = time.monotonic() - self._limits.work_seconds
            return sum(entry.used_at >= since for entry in self._entries.values())

    @property
    def bytes(self) -> int:
        """Memory that the sessions were granted."""
        return self._granted

    def enter(
        self,
        name: str,
        held: HeldSession,
        resumes: str = "",
        end: Callable[[Refused], None] | None = None,
    ) -> None:
        """Let a new session in. Raises Refused where those at work leave no room.

        resumes: the session that its client is about to attach, whose old link may seem up. end:
        ends its link, for another's sake.
        """
        with self._changed:
            most = self._limits.max_identity_sessions
            resumed = self._entries.get(self._called(resumes)) if resumes else None
            if resumed is not None and resumed.held.identity != held.identity:
                resumed = None  # somebody else's
            others = [entry for entry in self._entries.values() if entry is not resumed]
            least = held.bytes_first()
            now = time.monotonic()
            at_work = sum(
                max(entry.granted, least)
                for entry in others
                if now - entry.used_at < self._limits.work_seconds
            )
            if at_work + least > self._limits.max_kv_bytes:
                raise self._no_room(least, max(0, self._limits.max_kv_bytes - at_work))
            linked = [entry for entry in others if entry.left_at is None]
            theirs = [entry for entry in linked if entry.held.identity == held.identity]
            if most and len(theirs) >= most and not self._took_place(theirs, now):
                seconds = self._limits.retry_seconds
                raise Refused(
                    "busy",
                    f"{held.identity or 'everybody together'} may have {most} sessions at once; "
                    f"try again in {seconds:g} s",
                    retry_seconds=seconds,
                )
            linked = [entry for entry in linked if entry.left_at is None]
            if len(linked) >= self._limits.max_sessions and not self._took_place(linked, now):
                raise refusals.busy(self._limits)
            self._entries[name] = _Entry(held, end)
            metrics.SESSIONS.inc()

    def owns(self, name: str, held: HeldSession) -> bool:
        """Whether the session is still this one's, and no other link has taken it over."""
        entry = self._entries.get(name)
        return entry is not None and entry.held is held

    def used(self, name: str) -> None:
        """Note that the session is at work."""
        with self._changed:
            entry = self._entries.get(name)
            if entry is not None:
                entry.used_at = time.monotonic()

    def make_room(self, name: str, wanted: int) -> None:
        """Grant the session so many bytes in all. Raises Refused where the budget cannot.

        The caller has the session's lock.
        """
        with self._changed:
            entry = self._entries.get(name)
            if entry is None:
                return
            entry.used_at = time.monotonic()
            if entry.used_at - entry.born_at > self._limits.lifetime_seconds:
                raise Refused(
                    "limits", f"the session is over {self._limits.lifetime_seconds:g} s old"
                )
            if wanted <= entry.granted:
                return
            most = self._limits.max_kv_bytes - wanted  # for the others
            if self._granted - entry.granted > most:
                self._evict(entry, most + entry.granted)
            if (others := self._granted - entry.granted) > most:
                raise self._no_room(wanted, self._limits.max_kv_bytes - others)
            self._grant(entry, wanted)

    def leave(self, name: str, held: HeldSession, *, keep: bool) -> None:
        """A link is over. keep: its client may come back for the session."""
        with self._changed:
            entry = self._entries.get(name)
            if entry is None or entry.held is not held:
                return  # another link has it
            if keep and not self._closed and self._limits.detached_seconds:
                self._detach(entry)
                return
            self._remove(name)
        with held.lock:
            held.close()

    def take_over(self, old: str, new: str, fresh: HeldSession, identity: str) -> HeldSession:
        """The session called `old` goes on under the name `new`, whose `fresh` one is given up.

        Where it is gone, `fresh` takes its place. Raises Refused for somebody else's.
        """
        with self._changed:
            mine = self._entries.get(new)
            if mine is None or mine.held is not fresh:
                raise Refused("protocol", "the session goes on over another link")
            old = self._called(old)
            entry = self._entries.get(old)
            if entry is None:
                self.lost += 1
                metrics.ATTACHED.labels("no").inc()
                return fresh
            if entry is mine:
                return fresh  # taken over already: its client had not heard of it
            found = entry.held
            if found.identity != identity:
                raise Refused("identity", "the session belongs to somebody else")
            if found.began_as != fresh.began_as:
                raise Refused("placement", "the session has another cut or wire format")
            del self._entries[old]
            self._remove(new)
            self._entries[new] = entry
            entry.was = old
            entry.left_at, entry.used_at, entry.end = None, time.monotonic(), mine.end
            self.resumed += 1
            metrics.ATTACHED.labels("yes").inc()
        fresh.close()
        return found

    def close(self) -> None:
        """Forget the sessions without a link, and keep none from now on. Idempotent."""
        with self._changed:
            self._closed = True
            gone = [name for name, entry in self._entries.items() if entry.left_at is not None]
            entries = [self._remove(name) for name in gone]
            self._changed.notify_all()
        for entry in entries:
            entry.held.close()

    def _called(self, name: str) -> str:
        """What the session is called now that its client knows by this name."""
        if name in self._entries:
            return name
        return next((new for new, entry in self._entries.items() if name == entry.was), name)

    def _detach(self, entry: _Entry) -> None:
        """It has no link any more, and waits for its client."""
        entry.left_at = time.monotonic()
        if self._reaper is None:
            self._reaper = threading.Thread(
                target=self._reap, name="collm-session-reaper", daemon=True
            )
            self._reaper.start()
        self._changed.notify_all()

    def _took_place(self, entries: Sequence[_Entry], now: float) -> bool:
        """Whether one of these was silent, and has lost its link: the longest silent one."""
        for entry in sorted(entries, key=lambda one: one.used_at):
            if now - entry.used_at < self._limits.work_seconds:
                return False
            if entry.end is None or entry.held.lock.locked():
                continue  # it is computing
            entry.end(refusals.needed())
            entry.end = None
            self._detach(entry)
            self.evictions += 1
            metrics.EVICTIONS.inc()
            return True
        return False

    def _evict(self, keep: _Entry, most: int) -> None:
        """Take the memory of those that spoke longest ago until no more than `most` is granted."""
        for entry in sorted(self._entries.values(), key=lambda one: one.used_at):
            if self._granted <= most:
                return
            if entry is keep or not entry.granted:
                continue
            if not entry.held.lock.acquire(blocking=False):
                continue  # it is computing
            try:
                entry.held.drop()
            finally:
                entry.held.lock.release()
            self._grant(entry, 0)
            self.evictions += 1
            metrics.EVICTIONS.inc()

    def _grant(self, entry: _Entry, count: int) -> None:
        self._granted += count - entry.granted
        metrics.KV_BYTES.inc(count - entry.granted)
        entry.granted = count

    def _remove(self, name: str) -> _Entry:
        entry = self._entries.pop(name)
        self.ended += 1
        self._grant(entry, 0)
        metrics.SESSIONS.dec()
        return entry

    def _no_room(self, wanted: int, left: int) -> Refused:
        budget, seconds = self._limits.max_kv_bytes, self._limits.retry_seconds
        needs = f"this session needs {wanted / 2**20:.1f} MiB of the cloud's memory"
        if wanted > budget:
            return Refused("limits", f"{needs}, all sessions together get {budget / 2**20:.1f}")
        return Refused(
            "busy",
            f"{needs}, {left / 2**20:.1f} are free; try again in {seconds:g} s",
            retry_seconds=seconds,
        )

    def _reap(self) -> None:
        """Close sessions whose clients did not come back."""
        while True:
            with self._changed:
                if self._closed:
                    return
                now, keep = time.monotonic(), self._limits.detached_seconds
                waiting = {
                    name: entry.left_at + keep - now
                    for name, entry in self._entries.items()
                    if entry.left_at is not None
                }
                due = [self._remove(name) for name, left in waiting.items() if left <= 0]
                if not due:
                    self._changed.wait(min(waiting.values(), default=None))
                    continue
            for entry in due:
                with entry.held.lock:
                    entry.held.close()
