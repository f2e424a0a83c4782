"""A session's frames over one link after another.

Where a link breaks, another is dialled in the background, with growing, jittered pauses, and the
session is attached to whatever cloud answers: the one that still holds it, that one started anew,
or another with the same weights. What the cloud has lost is sent again from the client's log. Until
then frames go nowhere (the log has them) and nothing is received.

Not covered: finding clouds; the caller's `dial` knows their addresses.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from collm import metrics
from collm.errors import (
    Cancelled,
    CloudAway,
    LinkError,
    LinkTimeout,
    ProtocolError,
    Refused,
    Unreachable,
)
from collm.limits import Limits
from collm.link.base import Link
from collm.link.clock import REAL_CLOCK, Clock
from collm.session.redial import DAMAGED, PASSING, Redial, choices, greet, refused
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import (
    PROTOCOL_MAJOR,
    Attach,
    Attached,
    Bye,
    CloudMessage,
    Evicted,
    Hello,
    Refusal,
    Welcome,
)

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""What an answer that nobody wants any more still waits for: mostly it comes, and the session can
be gone on with."""


class Resumable(Protocol):
    """What a session says of itself when it is taken up again."""

    def standing(self) -> tuple[int, int]:
        """The epoch, and how many positions the cloud may keep."""
        ...

    def replay(self, position: int) -> Iterator[bytes]:
        """Frames that bring a cloud which holds `position` positions to where the session is."""
        ...


class Connection:
    """See the module. Used by one thread; raises LinkError, Refused and ProtocolError.

    link: is up, and taken over; None: one is still to be found. dial: makes another; None: the
    session ends with its link. begin_offline: do not wait for another where `link` breaks before
    the cloud has said Welcome. is_unwanted: says whether waiting is in vain; then it ends soon,
    and the session with it, with Cancelled.
    """

    def __init__(
        self,
        link: Link | None,
        hello: Hello,
        session: Resumable,
        limits: Limits,
        dial: Callable[[], Link] | None = None,
        clock: Clock = REAL_CLOCK,
        begin_offline: bool = False,
        is_unwanted: Callable[[], bool] | None = None,
    ) -> None:
        self._clock = clock
        self._link = link
        self._hello = hello
        self._session = session
        self._limits = limits
        self.is_unwanted = is_unwanted
        self._is_given_up = False
        self._redial: Redial | None = None
        self._dial: Callable[[], Link] | None = None
        self._attaching = False
        self._session_id = ""
        """What the last cloud called the session; empty where there was none."""
        self._attached_as = ""
        """What the new cloud calls it; until it is attached, its old name counts."""
        self._said = (0, 0)
        """The last Attach's epoch and position."""
        self._given_up_at: float | None = None
        self._breaks = 0
        """Since the last answer."""
        self._bytes_up = self._bytes_down = 0
        self.greeted_in = math.nan
        """Seconds from the first Hello to its Welcome: a round trip to an idle cloud."""
        self.cuts: frozenset[int] = frozenset()
        """Layers that rows may come from, as the cloud says; empty: it does not."""
        self._minor: int | None = None
        """What the last cloud speaks; None: there was none yet."""
        self._least_minor = 0
        self._pushed: list[CloudMessage] = []
        self.reconnects = 0
        """Links that followed the first."""
        self.replayed = 0
        """Bytes sent again."""
        if link is None:
            assert dial is not None  # or there never would be a link
            self._begin_without(dial, None)
        else:
            self._greet_first(link, dial, begin_offline)
        self._dial = dial

    @property
    def is_up(self) -> bool:
        """Whether there is a link, and the session goes on over it, as far as is known."""
        if self._is_given_up:
            return False
        return self._link is not None and self._redial is None and not self._attaching

    @property
    def is_down(self) -> bool:
        """Whether there is no cloud at the moment, as far as is known."""
        if self._redial is None:
            return False
        return not self._redial.is_done

    @property
    def bytes_up(self) -> int:
        """Bytes sent so far, over all links."""
        return self._bytes_up + (self._link.bytes_up if self._link is not None else 0)

    @property
    def bytes_down(self) -> int:
        """Bytes received so far."""
        return self._bytes_down + (self._link.bytes_down if self._link is not None else 0)

    def send(self, frame: bytes) -> None:
        """Send a frame that `Resumable.replay` has too; without a cloud that is all it needs."""
        if self._link is None or self._attaching:
            return
        try:
            self._link.send(frame)
        except LinkError as error:
            self._broke(error)

    def receive(self, timeout: float | None, *, while_up: bool = False) -> CloudMessage:
        """The next message that is an answer. Raises LinkTimeout after `timeout` seconds.

        None: after `limits.verdict_seconds`, which begin anew with every link. while_up: raises
        CloudAway at once while there is no link.
        Raises Unreachable when no cloud was found within `limits.resume_seconds` of a break.
        """
        if self._pushed:
            return self._pushed.pop()
        seconds = self._limits.verdict_seconds if timeout is None else timeout
        due = self._clock.now() + seconds
        while True:
            left = max(0.0, due - self._clock.now())
            if self._redial is not None:
                patience = math.inf if timeout is None else left
                self._take_link(self._redial, 0.0 if while_up else patience)
                if timeout is None:
                    due = self._clock.now() + seconds
                continue
            assert self._link is not None  # or another is looked for
            try:
                message = decode_cloud(self._hear(self._link, left), self._limits, sealed=True)
            except LinkTimeout as error:
                if timeout is not None:
                    raise
                self._broke(error)  # perhaps the link alone hangs: another one shows
                continue
            except LinkError as error:
                self._broke(error)
                continue
            if isinstance(message, Refusal):
                told = refused(message)
                if told.code not in PASSING:
                    raise told
                self._broke(told)
            elif isinstance(message, Evicted):
                self._attach(self._attached_as or self._session_id)
            elif isinstance(message, Attached):
                self._go_on(message.position)
            else:
                self._given_up_at, self._breaks = None, 0
                return message

    def push_back(self, message: CloudMessage) -> None:
        """It answers something else: the next `receive` returns it."""
        self._pushed.append(message)

    def require(self, minor: int) -> None:
        """From here on a cloud has to speak this minor version, or it would not do as asked.

        Raises Refused where it does not; so does `receive` where a later one does not.
        """
        self._least_minor = max(self._least_minor, minor)
        if self._minor is not None and self._minor < self._least_minor:
            raise Refused(
                "version",
                f"the cloud speaks protocol {PROTOCOL_MAJOR}.{self._minor}, what is asked of it "
                f"needs {PROTOCOL_MAJOR}.{self._least_minor}; update the cloud",
            )

    def close(self) -> None:
        """Say goodbye and end the link. Idempotent."""
        self._dial = None
        if self._redial is not None:
            self._redial.stop()
        if self._link is None:
            return
        try:
            self._link.send(encode(Bye()))
        except LinkError:
            pass  # it is closed or broken already: nobody is left to tell
        self._link.close()

    def _greet_first(
        self, link: Link, dial: Callable[[], Link] | None, begin_offline: bool
    ) -> None:
        """Have the session begin over `link`, or over another one where its cloud refuses it."""
        for left in range(choices(dial) - 1, -1, -1):
            greeted_at = self._clock.now()
            try:
                welcome = greet(link, self._hello, self._limits, self._hear)
                self._session_id = welcome.session_id
                self._met(welcome)
                self._link, self.greeted_in = link, self._clock.now() - greeted_at
                return
            except LinkError as error:
                if isinstance(error, Refused) and error.code not in DAMAGED:
                    link.close()
                    if dial is None or not left:
                        raise
                    link = dial()
                    continue
                if dial is None:
                    raise
                if begin_offline:
                    self._begin_without(dial, link)
                    return
                self._link, welcome = self._first_link(dial, link, error)
                self._session_id = welcome.session_id
                self._met(welcome)
                return

    def _met(self, welcome: Welcome) -> None:
        self.cuts, self._minor = frozenset(welcome.cuts), welcome.protocol_minor
        self.require(self._least_minor)

    def _first_link(
        self, dial: Callable[[], Link], broken: Link, error: LinkError
    ) -> tuple[Link, Welcome]:
        """Another link, where the first one broke before the cloud's Welcome."""
        redial = Redial(dial, broken, self._hello, self._limits, 0.0, self._clock)
        try:
            found = self._await(redial, self._limits.resume_seconds)
        except BaseException:  # also Ctrl-C
            redial.stop()
            raise
        if found is None:
            redial.stop()
            raise error
        return found

    def _begin_without(self, dial: Callable[[], Link], broken: Link | None) -> None:
        """Look for the first link in the background."""
        self._link = None
        self._given_up_at = self._clock.now() + self._limits.resume_seconds
        self._redial = Redial(dial, broken, self._hello, self._limits, 0.0, self._clock)

    def _broke(self, error: LinkError) -> None:
        """Look for a cloud; raises `error` where that is not wanted. `receive` gives up in time."""
        if self._dial is None or self._link is None:
            raise error
        now = self._clock.now()
        if self._given_up_at is None:
            self._given_up_at = now + self._limits.resume_seconds
        logger.info("session %s: %s; looking for a cloud", self._session_id[:8], error)
        self._bytes_up, self._bytes_down = self.bytes_up, self.bytes_down
        pause = error.retry_seconds if isinstance(error, Refused) else 0.0
        if self._breaks:  # links that break before they brought anything: no haste
            most = self._limits.redial_seconds * 2.0 ** min(self._breaks, 30)
            pause = max(pause, random.uniform(0.5, 1.0) * most)
            pause = min(pause, self._limits.redial_longest_seconds)
        self._breaks += 1
        hello = replace(self._hello, resumes=self._session_id)
        self._redial = Redial(self._dial, self._link, hello, self._limits, pause, self._clock)
        self._redial.last_error = error
        self._link = None
        self._attaching, self._attached_as = False, ""

    def _take_link(self, redial: Redial, left: float) -> None:
        """Attach to the cloud that was found. Raises CloudAway where none is yet."""
        assert self._given_up_at is not None  # set by the break
        until = self._given_up_at - self._clock.now()
        found = self._await(redial, max(0.0, min(left, until)))
        if found is None:
            if until <= left:
                redial.stop()
                raise Unreachable(
                    f"no cloud for {self._limits.resume_seconds:g} s: {redial.last_error}"
                )
            raise CloudAway(f"no cloud yet: {redial.last_error}")
        self._redial = None
        self._given_up_at += self._clock.now() - redial.found_at  # it was there, and not needed
        self._link, welcome = found
        self._met(welcome)
        if self._session_id:
            self.reconnects += 1
            metrics.RECONNECTS.inc()
        if not self._session_id and not self._session.standing()[0]:
            self._session_id = welcome.session_id  # new on both sides: nothing to agree on
            self._replay(0)
            return
        self._attached_as = welcome.session_id
        self._attach(self._session_id or welcome.session_id)

    def _hear(self, link: Link, seconds: float) -> bytes:
        """What comes over the link within so many seconds. Raises Cancelled."""
        until = self._clock.now() + seconds
        while self.is_unwanted is not None and until - self._clock.now() > _LOOK_SECONDS:
            try:
                return link.receive(_LOOK_SECONDS)
            except LinkTimeout:
                self._look()
        return link.receive(max(0.0, until - self._clock.now()))

    def _await(self, redial: Redial, seconds: float) -> tuple[Link, Welcome] | None:
        """What the redial has found after so many seconds. Raises Cancelled."""
        until = self._clock.now() + seconds
        while self.is_unwanted is not None and until - self._clock.now() > _LOOK_SECONDS:
            found = redial.wait(_LOOK_SECONDS)
            if found is not None:
                return found
            self._look()
        return redial.wait(max(0.0, until - self._clock.now()))

    def _look(self) -> None:
        if self.is_unwanted is not None and self.is_unwanted():
            self._is_given_up = True  # what is under way may come yet, and nobody would know
            raise Cancelled("the answer was broken off, and the cloud had not answered")

    def _attach(self, session_id: str) -> None:
        self._said = epoch, position = self._session.standing()
        attach = Attach(session_id=session_id, epoch=epoch, position=position)
        self._attaching = True
        assert self._link is not None  # it has just been made, or has just spoken
        try:
            self._link.send(encode(attach))
        except LinkError as error:
            self._broke(error)

    def _go_on(self, position: int) -> None:
        if not self._attaching:
            raise ProtocolError("the cloud attaches a session that did not ask for it")
        if position > self._said[1]:
            raise ProtocolError(f"the cloud keeps {position} positions; {self._said[1]} were named")
        epoch, wanted = self._session.standing()
        if epoch != self._said[0] or position > wanted:
            # The text was cropped meanwhile; the session has its new name by now.
            self._attach(self._attached_as or self._session_id)
            return
        is_new = not self._session_id
        self._attaching = False
        self._session_id, self._attached_as = self._attached_as or self._session_id, ""
        before = self.bytes_up
        if not self._replay(position) or is_new:
            return
        self.replayed += self.bytes_up - before
        metrics.REPLAYED.inc(self.bytes_up - before)

    def _replay(self, position: int) -> bool:
        """Send what a cloud that holds `position` positions lacks; whether the link lasted."""
        for frame in self._session.replay(position):
            self.send(frame)
            if self._redial is not None:
                return False
        return True
