"""The cloud above an edge server: how its sessions reach it, and whether it is there at all."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from dataclasses import replace

from collm import __version__, metrics
from collm.errors import LinkError, ProtocolError, Refused
from collm.limits import Limits
from collm.link.base import Link
from collm.link.dialer import Dialer
from collm.link.probe import ask
from collm.runtime.stage import Stage
from collm.session.client import CloudClient
from collm.session.redial import greet
from collm.wire.codec import row_bytes
from collm.wire.encoding import encode
from collm.wire.handshake import hello_of
from collm.wire.messages import Bye, Heartbeat
from collm.wire.tiers import Tier, away, met, unreached

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 1.0
_TRIPS = 3
_OWN_REASONS = frozenset({"busy", "limits", "idle"})
"""Refusals of one session, by a cloud that is there."""


class Above:
    """Shared by a server's sessions. Safe to use from several threads.

    dialer: makes links to it. wire: how hidden states travel from `stage`'s end.
    """

    def __init__(self, stage: Stage, limits: Limits, dialer: Dialer, wire: str = "f32") -> None:
        patience = min(limits.resume_seconds, limits.above_seconds)
        self.limits = replace(limits, resume_seconds=patience)
        self.wire = wire
        self.cut = stage.layers.stop
        self._stage = stage
        self.dialer = dialer
        self._checking = threading.Lock()
        self._is_known = False
        self._fault: LinkError | ProtocolError | None = None
        self._closing: list[threading.Thread] = []
        self._trips: deque[float] = deque(maxlen=_TRIPS)
        # What is taken for granted until it tells more, as one of before 1.6 never does.
        self._silent = Tier(
            address=", ".join(dialer.addresses), first=self.cut, last=stage.architecture.layers
        )
        self._tiers: tuple[Tier, ...] = (self._silent,)
        metrics.ABOVE.set(1)

    @property
    def row_bytes(self) -> int:
        """What a session keeps of each position for the cloud above, at most."""
        sent = row_bytes(self.wire, self._stage.architecture.hidden_size)
        return sent * 9 // 8 + _ID_BYTES  # a bytearray grows by an eighth

    @property
    def fault(self) -> LinkError | ProtocolError | None:
        """Why nobody is there, as far as is known; None: somebody is."""
        return self._fault

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The cloud above and those above it, as last seen. Never waits."""
        return self._tiers

    def open(self, cut: int) -> CloudClient:
        """A session from layer `cut` on. Returns at once; its link is made in the background."""
        return CloudClient(
            None,
            fingerprint=self._stage.artifact.fingerprint,
            cut=cut,
            vocabulary=self._stage.architecture.vocab_size,
            limits=self.limits,
            wire_format=self.wire,
            dial=self.dialer.line(),
            begin_offline=True,
        )

    def forget(self, client: CloudClient) -> None:
        """End a session with the cloud above, in the background: goodbyes may take a moment."""
        thread = threading.Thread(target=client.close, name="collm-above-bye", daemon=True)
        thread.start()
        self._closing = [*(one for one in self._closing if one.is_alive()), thread]

    def failed(self, error: LinkError | ProtocolError) -> None:
        """A session could not go on for the cloud above's sake."""
        if not isinstance(error, Refused) or error.code not in _OWN_REASONS:
            self._lost(error)

    def check(self) -> bool:
        """Whether somebody is there who serves this server's model. Takes a few seconds at most.

        Once that is known, a heartbeat is enough, as long as it is answered. A link is laid by: the
        next session begins on a connection that stands.
        """
        with self._checking:
            try:
                try:
                    tiers = self._beat()
                except LinkError:
                    tiers = self._beat()  # perhaps only the link that was laid by has broken
                gone = away(tiers)
                if gone is None and (not self._is_known or self._fault is not None):
                    with self.dialer() as link:
                        self._greet(link)
                    self.dialer.keep(*self.dialer.dial(None))
            except (LinkError, ProtocolError) as error:
                self._lost(error)
                return False
            self._tiers = tiers
            if gone is not None:
                self._set(Refused("busy", f"the {gone.role} {gone.address}: {gone.error}"))
                return False
            self._is_known = True
            self._set(None)
            return True

    def close(self) -> None:
        """Wait for the goodbyes that are being said, a moment."""
        self.dialer.close()
        until = time.monotonic() + 2 * self.limits.linger_seconds
        for thread in self._closing:
            thread.join(max(0.0, until - time.monotonic()))

    def _beat(self) -> tuple[Tier, ...]:
        """Who is there, and above it."""
        address, link = self.dialer.dial(None)
        try:
            seconds, pong = ask(link, self.limits, _PROBE_SECONDS, _HEARTBEAT)
        except BaseException:
            link.close()
            raise
        self.dialer.keep(address, link)
        self._trips.append(seconds)
        return met(pong.tiers or (self._silent,), address, statistics.median(self._trips))

    def _lost(self, error: LinkError | ProtocolError) -> None:
        """Nobody is there who could serve."""
        self._tiers = unreached(self._tiers, str(error))
        self._trips.clear()
        self._set(error)

    def _greet(self, link: Link) -> None:
        fingerprint = self._stage.artifact.fingerprint
        hello = hello_of(f"collm {__version__}", fingerprint, self.cut, self.wire)
        greet(link, hello, replace(self.limits, verdict_seconds=self.limits.above_seconds))
        link.send(encode(Bye()))

    def _set(self, fault: LinkError | ProtocolError | None) -> None:
        if fault is None and self._fault is not None:
            logger.info("the cloud above is back")
        elif fault is not None and self._fault is None:
            logger.warning("the cloud above is gone: %s", fault)
        self._fault = fault
        metrics.ABOVE.set(fault is None)


_HEARTBEAT = Heartbeat(nonce=0, wants_tiers=True)
_ID_BYTES = 40
"""Of a token id in a list."""
