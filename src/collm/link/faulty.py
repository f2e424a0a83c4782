"""A link in this process that breaks as real ones do, on a clock of its own.

::

    clock = VirtualClock()
    cloud = FaultyCloud(service, clock, Faults(cut=0.02, blackhole=0.005), seed=7)
    edge = Edge(artifact, ..., connect=cloud.connect, clock=clock)

Each frame, either way, meets each fault with its chance. Everything happens in the caller's thread
and in virtual time, so that a run is its seed's and a thousand runs take no longer than their
computing. `collm link` does the same to real connections.

Not covered: several clients at a time; what computing costs (it takes no time here).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields

from collm.errors import CollmError, LinkError, LinkTimeout, Unreachable
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link import refusals
from collm.link.base import NOTHING, Closing, Conversation, Link, Peer, Service
from collm.link.clock import VirtualClock


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Chances, 0 to 1, for every frame unless said otherwise."""

    cut: float = 0.0
    """The link breaks: the frame is lost, both sides see it."""
    half_open: float = 0.0
    """The client sees the link break, the cloud does not."""
    blackhole: float = 0.0
    """From here on nothing passes, and neither side sees anything but silence."""
    stall: float = 0.0
    """The frame, and what follows, comes `stall_seconds` later."""
    corrupt: float = 0.0
    """One bit of the frame is another."""
    restart: float = 0.0
    """The cloud's process is gone, and another one is there at once: it knows no session."""
    refuse: float = 0.0
    """For every attempt to connect but the first: nobody answers."""
    stall_seconds: float = 2.0
    delay_seconds: float = 0.01
    """Of every frame."""
    silence_seconds: float = 15.0
    """After so long in a black hole the client's keepalive finds out."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value, most = getattr(self, one.name), 3600.0 if "seconds" in one.name else 1.0
            if not 0 <= value <= most:
                raise ValueError(f"{one.name} {value}; expected 0 to {most:g}")


class FaultyCloud:
    """Links to `service` that fail by chance. For one thread.

    restarted: makes the service of a process that was started anew; None: `Faults.restart` breaks
    the link alone.
    """

    def __init__(
        self,
        service: Service,
        clock: VirtualClock,
        faults: Faults,
        *,
        seed: int,
        limits: Limits = DEFAULT_LIMITS,
        restarted: Callable[[], Service] | None = None,
    ) -> None:
        self.service = service
        self.clock = clock
        self.faults = faults
        self.random = random.Random(seed)
        self.limits = limits
        self._restarted = restarted
        self.happened: dict[str, int] = {}
        """How often each fault struck."""
        self.is_reachable = True
        """Whether connecting works at all."""
        self.links: list[_FaultyLink] = []

    def connect(self) -> Link:
        """A new link. Raises Unreachable."""
        self.clock.advance(2 * self.faults.delay_seconds)
        if not self.is_reachable or (self.links and self.strikes("refuse")):
            self.clock.advance(self.limits.connect_seconds)
            raise Unreachable(f"nobody answers within {self.limits.connect_seconds:g} s")
        link = _FaultyLink(self)
        self.links.append(link)
        return link

    def strikes(self, fault: str) -> bool:
        """Whether this fault happens now."""
        if self.random.random() >= getattr(self.faults, fault):
            return False
        self.happened[fault] = self.happened.get(fault, 0) + 1
        return True

    def restart(self) -> None:
        """Another process: every link is cut, no session is known."""
        self.cut()
        if self._restarted is not None:
            self.service = self._restarted()

    def cut(self) -> None:
        """Break every link that is up; frames on their way are lost."""
        for link in self.links:
            link.cut()
            link.forget()


class _FaultyLink(Closing):
    """See `base.Link`."""

    def __init__(self, cloud: FaultyCloud) -> None:
        self._cloud = cloud
        self._clock = cloud.clock
        self._down: deque[tuple[float, bytes]] = deque()
        self._why: str | None = None
        self._silent_since: float | None = None
        self._up_at = self._down_at = 0.0
        self._over = False
        self.bytes_up = 0
        self.bytes_down = 0
        peer = Peer("faulty")
        self._conversation: Conversation | None = cloud.service.open(peer)

    def send(self, frame: bytes) -> None:
        if self._why is not None:
            raise LinkError(self._why)
        self.bytes_up += len(frame)
        cloud = self._cloud
        if self._is_silent or self._fails():
            return
        self._up_at = max(self._up_at, self._clock.now()) + self._stalled()
        for reply in self._replies(self._damaged(frame)):
            if self._fails():
                return  # with the answers that were to come
            trip = 2 * cloud.faults.delay_seconds + self._stalled()
            self._down_at = max(self._down_at, self._up_at + trip)
            self._down.append((self._down_at, self._damaged(reply)))

    def receive(self, timeout: float) -> bytes:
        given_up_at = self._clock.now() + timeout
        silent = self._silent_since
        if self._down and self._down[0][0] <= given_up_at:
            due, frame = self._down.popleft()
            self._clock.advance(due - self._clock.now())
            self.bytes_down += len(frame)
            return frame
        if not self._down and self._why is not None:
            raise LinkError(self._why)
        if not self._down and self._over:
            raise LinkError(refusals.SESSION_OVER)
        if silent is not None and silent + self._cloud.faults.silence_seconds <= given_up_at:
            self._clock.advance(silent + self._cloud.faults.silence_seconds - self._clock.now())
            self.cut("the link is silent")
            raise LinkError("the link is silent")
        self._clock.advance(given_up_at - self._clock.now())
        raise LinkTimeout(f"nothing came from the other side for {timeout:g} s")

    def close(self) -> None:
        self.cut(refusals.CLOSED_HERE)
        self.forget()

    def forget(self) -> None:
        """Lose what is on its way down."""
        self._down.clear()

    def cut(self, why: str = "the link broke", *, tell_cloud: bool = True) -> None:
        """Break the link; the first reason stays."""
        if self._why is None:
            self._why = why
        if tell_cloud and self._conversation is not None:
            conversation, self._conversation = self._conversation, None
            conversation.close()

    @property
    def _is_silent(self) -> bool:
        return self._silent_since is not None

    def _fails(self) -> bool:
        """Whether this frame is lost, and the link with it."""
        cloud = self._cloud
        if cloud.strikes("cut"):
            self.cut()
        elif cloud.strikes("half_open"):
            self.cut(tell_cloud=False)
        elif cloud.strikes("restart"):
            cloud.restart()
            self.cut()
        elif cloud.strikes("blackhole"):
            self._silent_since = self._clock.now()
        else:
            return False
        return True

    def _stalled(self) -> float:
        return self._cloud.faults.stall_seconds if self._cloud.strikes("stall") else 0.0

    def _damaged(self, frame: bytes) -> bytes:
        if not frame or not self._cloud.strikes("corrupt"):
            return frame
        bit = self._cloud.random.randrange(8 * len(frame))
        changed = bytearray(frame)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def _replies(self, frame: bytes) -> list[bytes]:
        if self._conversation is None:
            return []
        try:
            return [reply for reply in self._conversation.receive(frame) if reply is not NOTHING]
        except CollmError as error:
            conversation, self._conversation = self._conversation, None
            conversation.close()
            self._over = True
            return [self._cloud.service.refusal(error)]
